"""Catalog of routes: paths that jobs may call, their methods, and error messages for the others.

Pure decisions on plain data. A path that is not in the table is closed, so a route that a new vLLM brings stays closed
until it is written here or named in ALLOWED_ROUTES.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.jobs import client_fields

Kind = Literal["generate", "embed", "tokens", "info"]


@dataclass(frozen=True)
class Rule:
    """An open route. `max_tokens`: the fields that hold it, the preferred one first."""

    path: str
    methods: tuple[str, ...]
    kind: Kind
    max_tokens: tuple[str, ...] = ()
    sampling: Collection[str] | None = ()  # which of DEFAULT_SAMPLING_PARAMS it takes; None: all
    form: bool = False  # multipart: the file comes as base64

    @property
    def scores(self) -> bool:
        """Whether engine requests are inputs to score (texts, pairs, seconds of speech), which MAX_N does not count."""
        return self.kind == "embed" or self.form or self.path == "/generative_scoring"

    @property
    def anthropic(self) -> bool:
        """Whether clients expect Anthropic's error object."""
        return self.path.startswith("/v1/messages")


_COMMON = ("temperature", "top_p", "top_k")
RULES = {
    rule.path: rule
    for rule in (
        Rule("/v1/chat/completions", ("POST",), "generate", ("max_completion_tokens", "max_tokens"), None),
        Rule("/v1/chat/completions/batch", ("POST",), "generate", ("max_completion_tokens", "max_tokens"), None),
        Rule("/v1/completions", ("POST",), "generate", ("max_tokens",), None),
        Rule("/v1/responses", ("POST",), "generate", ("max_output_tokens",), _COMMON),
        Rule("/v1/responses/{response_id}", ("GET",), "info"),
        Rule("/v1/responses/{response_id}/cancel", ("POST",), "info"),
        Rule("/v1/messages", ("POST",), "generate", ("max_tokens",), _COMMON),
        Rule("/v1/messages/count_tokens", ("POST",), "tokens"),
        Rule("/v1/audio/transcriptions", ("POST",), "generate", ("max_completion_tokens",), (), form=True),
        Rule("/v1/audio/translations", ("POST",), "generate", ("max_completion_tokens",), (), form=True),
        Rule("/generative_scoring", ("POST",), "generate"),
        Rule("/v1/embeddings", ("POST",), "embed"),
        Rule("/v2/embed", ("POST",), "embed"),
        Rule("/rerank", ("POST",), "embed"),
        Rule("/v1/rerank", ("POST",), "embed"),
        Rule("/v2/rerank", ("POST",), "embed"),
        Rule("/score", ("POST",), "embed"),
        Rule("/v1/score", ("POST",), "embed"),
        Rule("/classify", ("POST",), "embed"),
        Rule("/pooling", ("POST",), "embed"),
        Rule("/tokenize", ("POST",), "tokens"),
        Rule("/detokenize", ("POST",), "tokens"),
        Rule("/v1/models", ("GET",), "info"),
        Rule("/version", ("GET",), "info"),
        Rule("/health", ("GET",), "info"),
        Rule("/ping", ("GET", "POST"), "info"),
        Rule("/load", ("GET",), "info"),
        Rule("/metrics", ("GET",), "info"),
        Rule("/status", ("GET",), "info"),  # the worker's own
    )
}
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_QUERY = re.compile(r"[A-Za-z0-9._~=&%+-]*")


def clean(route: str, *, field: str) -> tuple[str, str]:
    """A route's normalised path and query; rejects other hosts and paths that change when decoded.

    Raises:
        JobError: the route is anything but a plain absolute path.
    """
    path, _, query = route.partition("?")
    segments = path.removesuffix("/").split("/")[1:]
    plain = path.startswith("/") and all(_SEGMENT.fullmatch(s) and s not in (".", "..") for s in segments)
    if not plain or not segments or len(route) > 512 or not _QUERY.fullmatch(query):
        raise JobError(Code.INVALID_INPUT, f"{field} must be a plain path such as /v1/chat/completions.", field=field)
    return "/" + "/".join(segments), query


def asked_model(route: str) -> str | None:
    """The model name in a call of OpenAI's /v1/models/{model}, which vLLM does not have; slashes may be encoded."""
    name = unquote(route.partition("?")[0].removeprefix("/v1/models/")) if route.startswith("/v1/models/") else ""
    return name.strip("/") or None


def rule_for(path: str, allowed: Collection[str], *, exists: bool = True) -> Rule:
    """The rule of an open path. Paths opened by ALLOWED_ROUTES accept any method and count as generating.

    `exists`: whether vLLM has the path; if so, no other path is suggested.

    Raises:
        JobError: route_closed; not_found, with the path that was probably meant.
    """
    known = _known(path)
    if known is not None:
        return known
    if path in {"/" + name.strip("/") for name in allowed}:
        return Rule(path, ("GET", "POST", "PUT", "DELETE"), "generate", ("max_completion_tokens", "max_tokens"))
    meant = None if exists else _meant(path)
    if meant is None:
        raise JobError(Code.ROUTE_CLOSED, f"{path} is not an open route of this worker.", field="route")
    base = " A client's base_url ends in /openai/v1, once; Anthropic's in /openai." if _is_tail(path, meant) else ""
    raise JobError(Code.NOT_FOUND, f"{path} is not a route; {meant} is.{base}", field="route")


def _meant(path: str) -> str | None:
    """The open path that an unknown one probably misspells."""
    plain = [rule.path for rule in RULES.values() if "{" not in rule.path]
    tails = [known for known in plain if _is_tail(path, known)]
    if tails:
        return min(tails, key=lambda known: abs(len(known) - len(path)))
    longer = [known for known in plain if known.startswith(path + "/")]
    return longer[0] if longer else client_fields.resembles(path, plain, cutoff=0.9)


def _is_tail(path: str, known: str) -> bool:
    return path.endswith(known) or known.endswith(path)


def label_of(route: str) -> str:
    """The path in the table that a job's route stands for, or the route itself, for the labels of metrics."""
    path = route.partition("?")[0]
    rule = _known(path)
    return path if rule is None else rule.path


def _known(path: str) -> Rule | None:
    rule = RULES.get(path)
    return rule or next((rule for rule in RULES.values() if _pattern(rule.path).fullmatch(path)), None)


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", path))


def check_opened(allowed: Collection[str], existing: Collection[str]) -> None:
    """Check that vLLM has every route in ALLOWED_ROUTES.

    Raises:
        StartError: with what vLLM mounts the route for.
    """
    for name in allowed:
        path = "/" + name.strip("/")
        if path in existing or path in RULES:
            continue
        needs = next((needs for paths, needs in _NEEDS if path in paths), None)
        raise StartError(
            f"ALLOWED_ROUTES names {path}, which vLLM does not have as this worker runs it.",
            f"It needs {needs}; or remove it." if needs else "Remove or correct it; some need VLLM_SERVER_DEV_MODE=1.",
            setting="ALLOWED_ROUTES",
        )


_NEEDS = (
    (("/sleep", "/wake_up", "/is_sleeping"), "VLLM_SERVER_DEV_MODE=1 and ENABLE_SLEEP_MODE=true"),
    (
        ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and ENABLE_LORA=true (LORA_MODULES implies it)",
    ),
    (("/tokenizer_info",), "ENABLE_TOKENIZER_INFO_ENDPOINT=true"),
    (("/start_profile", "/stop_profile"), "PROFILER_CONFIG"),
)
"""What vLLM mounts a route for (vllm/entrypoints/launchers/api_server/routers.py and the routers it names)."""


def absent(rule: Rule, method: str, path: str, *, generates: bool, existing: Collection[str]) -> JobError:
    """The error for an open route that this model or this mode of the worker does not have."""
    if path in existing:
        reason = f"vLLM does not take {method} there."
    elif rule.form:
        reason = "It needs a speech model, which this worker's is not."
    elif (rule.kind == "embed") == generates and rule.kind in ("generate", "embed"):
        runner = "generates text" if generates else "embeds and scores (RUNNER=pooling)"
        reason = (
            f"This worker {runner}, and one worker does either: the route needs another, "
            f"whose operator sets RUNNER={'pooling' if generates else 'generate'}."
        )
    else:
        here = ", ".join(known.path for known in RULES.values() if known.kind == rule.kind and known.path in existing)
        reason = f"Its model cannot do it. What it can: {here}."
    return JobError(Code.NOT_FOUND, f"{path} is not among this model's routes. {reason}", field="route")


def method_for(rule: Rule, given: str | None, *, has_body: bool) -> str:
    """The HTTP method: the job's, else the route's; RunPod's proxy does not pass it on.

    Raises:
        JobError: the route does not take the method.
    """
    if given is None:
        if rule.path in RULES:
            return "POST" if "POST" in rule.methods and (has_body or rule.methods[0] == "POST") else rule.methods[0]
        return "POST" if has_body else "GET"
    if given not in rule.methods:
        raise JobError(Code.UNSUPPORTED, f"{rule.path} takes {' or '.join(rule.methods)}, not {given}.", field="method")
    return given
