"""A model's config and weights, read from a folder or from the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpod.plan.cache_layers import Shape, read_shape
from llmpod.plan.errors import PlanError
from llmpod.plan.weights import Tensor, UnknownWeightsError, Weights, folder_tensors, total

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIG_LIMIT = 20_000_000
"""Bytes a config.json may have."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model before it is loaded. `weights` is None where their size is not known; `weights_unknown` says why."""

    name: str
    shape: Shape
    weights: Weights | None
    weights_unknown: str | None = None


def read_model(name: str | Path, *, revision: str | None = None, hub: HfApi | None = None) -> Model:
    """The shape and size of a model: a folder, or an id of the hub, which is asked for config.json and for the headers
    of the weights. Takes seconds for a hub model of many files; `hub` is its client, and reads HF_TOKEN itself.

    Raises:
        PlanError: there is no such model, it may not be read, or its config.json is damaged.
    """
    folder = Path(name)
    if folder.is_dir():
        config = _parse(_read_config(folder / "config.json"))
        tensors: Callable[[], list[Tensor]] = lambda: folder_tensors(folder)  # noqa: E731 - one of two
    elif os.sep in str(name)[:1] or str(name).startswith("."):
        raise PlanError(f"{name} is no folder.")
    else:
        from huggingface_hub import HfApi

        client = hub or HfApi()
        config = _parse(_hub_config(client, str(name), revision))
        tensors = lambda: _hub_tensors(client, str(name), revision)  # noqa: E731
    shape = describe(config)
    try:
        return Model(str(name), shape, total(tensors(), tied=shape.tied))
    except UnknownWeightsError as unknown:
        return Model(str(name), shape, None, " ".join(str(unknown).split()))


def describe(config: Mapping[str, Any]) -> Shape:
    """The shape of a config.json, with the defaults that transformers has for its model type.

    A config.json holds what differs from those defaults (Gemma 3's says neither how many heads there are nor which
    layers look back over a window only), so reading it alone may miss keys.

    Raises:
        PlanError: a value is not what its key says.
    """
    read_shape(config, complete=False)  # hostile values are refused before another package reads them
    full = _with_defaults(config)
    return read_shape(config if full is None else full, complete=full is not None)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config with its type's defaults, as transformers reads it. None: transformers does not know the type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    try:
        full = CONFIG_MAPPING[model_type].from_dict(_without_dtypes(config)).to_dict()
    except Exception as error:  # noqa: BLE001 - what it raises on a bad value is not documented
        raise PlanError(f"config.json is not one of a {model_type} model: {type(error).__name__}: {error}") from None
    return _merge(full, config)


def _without_dtypes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without data types: transformers would import torch to read them, which takes seconds."""
    return {
        key: _without_dtypes(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in ("dtype", "torch_dtype")
    }


def _merge(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `defaults`, parts too: what config.json says counts, however transformers renames it."""
    out = dict(defaults)
    for key, value in own.items():
        inner = out.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            out[key] = _merge(inner, value)
        elif value is not None:
            out[key] = value
    return out


def _read_config(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_LIMIT + 1)
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > CONFIG_LIMIT:
        raise PlanError(f"config.json is larger than {CONFIG_LIMIT} bytes.")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"config.json is no JSON: {error}.") from None
    if not isinstance(config, dict):
        raise PlanError(f"config.json is no object but a {type(config).__name__}.")
    return config


def _hub_config(hub: HfApi, name: str, revision: str | None) -> bytes:
    from huggingface_hub import errors

    try:
        return _read_config(Path(hub.hf_hub_download(name, "config.json", revision=revision)))
    except errors.GatedRepoError:
        raise PlanError(
            f"{name} is a gated model: accept its licence on Hugging Face and set HF_TOKEN to a token of that account."
        ) from None
    except errors.RevisionNotFoundError:
        raise PlanError(f"{name} has no revision {revision}.") from None
    except errors.RepositoryNotFoundError:
        raise PlanError(
            f"{name} is neither a folder nor a model on Hugging Face; a private one needs HF_TOKEN."
        ) from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise PlanError(f"{name} is not on this machine, and Hugging Face cannot be reached.") from None
        raise PlanError(f"{name} has no config.json.") from None
    except errors.HFValidationError:
        raise PlanError(f"{name} is neither a folder nor an id of the form OWNER/NAME.") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise PlanError(f"Hugging Face does not answer for {name}: {type(error).__name__}.") from None


def _hub_tensors(hub: HfApi, name: str, revision: str | None) -> list[Tensor]:
    """Every tensor of a hub model.

    Raises:
        UnknownWeightsError: one of the files does not answer, or there are none.
    """
    from huggingface_hub import errors

    try:
        metadata = hub.get_safetensors_metadata(name, revision=revision)
    except errors.NotASafetensorsRepoError:
        raise UnknownWeightsError("it has no safetensors files") from None
    except (errors.SafetensorsParsingError, errors.HfHubHTTPError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownWeightsError(f"its safetensors files do not all answer ({type(error).__name__})") from None
    missing = set(metadata.weight_map.values()) - metadata.files_metadata.keys()
    if missing:
        raise UnknownWeightsError(f"{len(missing)} of its safetensors files did not answer")
    return [
        Tensor(key, tensor.dtype, tuple(tensor.shape))
        for file in metadata.files_metadata.values()
        for key, tensor in file.tensors.items()
    ]
