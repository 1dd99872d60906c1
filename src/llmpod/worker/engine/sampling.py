"""Sampling parameters: a client's values over the operator's over the model's own, validated by vLLM."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llmpod.worker.errors import Code, JobError, StartError

# Sampling parameters that are internal to vLLM, or whose result a native reply cannot hold.
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
    """Creates vLLM's SamplingParams for the jobs of one engine."""

    def __init__(self, operators: Mapping[str, Any], max_tokens: int) -> None:
        """`operators`: DEFAULT_SAMPLING_PARAMS. `max_tokens`: for jobs without one. Imports vllm.

        Raises:
            StartError: a name in it is not a sampling parameter of jobs, or a job that names none could not have it.
        """
        from vllm import SamplingParams

        fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
        self.names = frozenset(fields - NOT_FROM_CLIENTS)
        unset = SamplingParams()
        self.values_without_effect = {name: getattr(unset, name) for name in self.names}
        self._operators = operators
        self._default: dict[str, Any] = {}
        setting = "DEFAULT_SAMPLING_PARAMS"
        for name in operators:
            if name not in self.names:
                cause = f"{setting} names {name}, which is not a sampling parameter of jobs."
                raise StartError(cause, "Remove or correct it.", setting=setting)
        try:
            self._convert(dict(operators) | {"max_tokens": max_tokens})
        except JobError as error:
            too_many = "min_tokens" in (error.field or "")
            cure = "Lower it, or raise MAX_TOKENS_DEFAULT." if too_many else "Correct or remove it."
            raise StartError(f"{setting}: {_fault(error)}", cure, setting=setting) from None

    def check_profile(self, given: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Check a profile's sampling parameters, each with its place in the file.

        Raises:
            StartError: a name is not a sampling parameter of jobs, or a value has the wrong type or range.
        """
        known = self.names - {"max_tokens", "structured_outputs"}
        for where, values in given:
            fault = next((f"{name} is not a sampling parameter of jobs." for name in values if name not in known), None)
            try:
                if fault is None:
                    self._convert(values)
            except JobError as error:
                fault = _fault(error)
            if fault is not None:
                raise StartError(f"PROFILE: {where}.{fault}", "Correct the file.", setting="PROFILE")

    def learn(self, recommended: Mapping[str, Any]) -> None:
        """Set defaults from the model's generation_config.json; the operator's values take precedence."""
        self._default = {name: recommended[name] for name in recommended if name in self.names} | dict(self._operators)
        self._default.pop("max_tokens", None)

    def params(self, given: Mapping[str, Any], max_tokens: int, *, stream: bool) -> Any:
        """vLLM's SamplingParams for one job.

        Raises:
            JobError: a value of the wrong type or range, by name.
        """
        from vllm.sampling_params import RequestOutputKind

        values = copy.deepcopy(self._default)
        if isinstance(values.get("min_tokens"), int):
            values["min_tokens"] = min(values["min_tokens"], max_tokens)
        values.update((name, value) for name, value in given.items() if value is not None)
        params = self._convert(values | {"max_tokens": max_tokens})
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        return params

    def exactly(self, values: Mapping[str, Any]) -> Any:
        """vLLM's SamplingParams of these values alone, for an answer that is returned at once.

        Raises:
            JobError: a value of the wrong type or range, by name.
        """
        from vllm.sampling_params import RequestOutputKind

        params = self._convert(values)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return params

    def _convert(self, values: Mapping[str, Any]) -> Any:
        import msgspec
        from vllm import SamplingParams

        try:
            return msgspec.convert(values, SamplingParams, str_keys=True)
        except refusals() as error:
            raise self.error(error) from None

    def error(self, error: Exception) -> JobError:
        """Convert vLLM's error to a JobError that names the parameter.

        vLLM says "top_p must be in (0, 1], got 2.0. (parameter=top_p, value=2.0)", msgspec "… - at `$.top_p`".
        """
        message = str(error)
        name = getattr(error, "parameter", None)
        if " - at `" in message:
            message, _, where = message.partition(" - at `")
            name = where.split("$.", 1)[-1].rstrip("`").split(".")[0].split("[")[0]
        message = message.split(" (parameter=")[0].rstrip(".")
        if name is None:  # not every check names its parameter separately, but each message contains it
            message = message.split(": {")[0]  # vLLM prints the whole object
            name = next((word for word in re.findall(r"\w+", message) if word in self.names), None)
            spelled = (name for name in self.names if "_" in name and name.replace("_", " ") in message)
            name = name or next(spelled, None)
        field = f"sampling_params.{name}" if name else "sampling_params"
        return JobError(Code.INVALID_INPUT, f"{field}: {message}.", field=field)


def _fault(error: JobError) -> str:
    """What is wrong with a value that is no client's."""
    return error.message.removeprefix("sampling_params.")


def vllm_exception(name: str) -> type[Exception]:
    """An exception class of vLLM, or one that is never raised if this release does not have it."""
    import vllm.exceptions

    found: type[Exception] = getattr(vllm.exceptions, name, _NotInThisRelease)
    return found


class _NotInThisRelease(Exception):  # noqa: N818 - never raised
    pass


def refusals() -> tuple[type[Exception], ...]:
    """Exceptions that vLLM, msgspec and pydantic raise for an invalid request (the latter two's are ValueErrors)."""
    return vllm_exception("VLLMClientError"), ValueError, TypeError
