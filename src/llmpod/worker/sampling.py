"""Sampling parameters: the client's over the operator's over the model's own, as vLLM checks them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from llmpod.worker.errors import Code, JobError, StartError

# Sampling parameters that are vLLM's business, not a client's, or whose result a native reply has no place for.
NOT_FROM_CLIENTS = frozenset(
    {
        "detokenize",
        "extra_args",
        "flat_logprobs",
        "logprob_token_ids",
        "output_kind",
        "output_text_buffer_length",
        "prompt_logprob_start",
        "prompt_logprob_token_ids",
        "prompt_logprobs",
        "routed_experts_prompt_start",
        "skip_clone",
        "stream_interval",
        "trace_decode_token_ids",
        "watermarking",
    }
)


class Sampling:
    """Makes vLLM's SamplingParams for the jobs of one engine."""

    def __init__(self, operators: Mapping[str, Any]) -> None:
        """`operators`: DEFAULT_SAMPLING_PARAMS. Imports vllm.

        Raises:
            StartError: a name in it is no sampling parameter of jobs.
        """
        from vllm import SamplingParams

        fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
        self.names = frozenset(fields - NOT_FROM_CLIENTS)
        unset = SamplingParams()
        self.values_without_effect = {name: getattr(unset, name) for name in self.names}
        self._operators = operators
        self._default: dict[str, Any] = {}
        for name in operators:
            if name not in self.names:
                raise StartError(
                    f"DEFAULT_SAMPLING_PARAMS names {name}, which is no sampling parameter of jobs.",
                    "Remove or correct it.",
                    setting="DEFAULT_SAMPLING_PARAMS",
                )

    def learn(self, recommended: Mapping[str, Any]) -> None:
        """Take in what the model's own generation_config.json recommends; what the operator wants goes over it."""
        self._default = {name: recommended[name] for name in recommended if name in self.names} | dict(self._operators)
        self._default.pop("max_tokens", None)

    def params(self, given: Mapping[str, Any], max_tokens: int, *, stream: bool) -> Any:
        """vLLM's SamplingParams for one job.

        Raises:
            JobError: a value of the wrong type or range, by name.
        """
        import msgspec
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        values = copy.deepcopy(self._default)
        values.update((name, value) for name, value in given.items() if value is not None)
        try:
            params = msgspec.convert(values | {"max_tokens": max_tokens}, SamplingParams, str_keys=True)
        except refusals() as error:
            raise self.error(error) from None
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        return params

    def error(self, error: Exception) -> JobError:
        """What a refusal is about.

        vLLM says "top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)", msgspec "… - at `$.top_p`".
        """
        message = str(error)
        name = getattr(error, "parameter", None)
        if " - at `" in message:
            message, _, where = message.partition(" - at `")
            name = where.split("$.", 1)[-1].rstrip("`").split(".")[0].split("[")[0]
        message = message.split(" (parameter=")[0].rstrip(".")
        if name is None:  # not every check names its parameter, but each says it
            name = next((word for word in re.findall(r"\w+", message) if word in self.names), None)
        field = f"sampling_params.{name}" if name else "sampling_params"
        return JobError(Code.INVALID_INPUT, f"{field}: {message}.", field=field)


def vllm_exception(name: str) -> type[Exception]:
    """An exception class of vLLM's, or one that nobody raises where this release does not have it."""
    import vllm.exceptions

    found: type[Exception] = getattr(vllm.exceptions, name, _NotInThisRelease)
    return found


class _NotInThisRelease(Exception):  # noqa: N818 - never raised
    pass


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM, msgspec and pydantic raise when a request is wrong (the latter two's are ValueErrors)."""
    return vllm_exception("VLLMClientError"), ValueError, TypeError
