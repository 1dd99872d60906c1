"""What a job may ask of vLLM's routes: which paths are open, and what becomes of a body before the engine sees it.

Pure decisions on plain data. A path that is not in the table is closed, so a route that a new vLLM brings stays closed
until it is written here or named in ALLOWED_ROUTES.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from llmpod.worker import client_fields, limits, tools
from llmpod.worker.errors import Code, JobError, StartError
from llmpod.worker.settings import Settings

Kind = Literal["generate", "embed", "tokens", "info"]


@dataclass(frozen=True)
class Rule:
    """An open route. `max_tokens`: the fields that hold it, the one to write first."""

    path: str
    methods: tuple[str, ...]
    kind: Kind
    max_tokens: tuple[str, ...] = ()
    sampling: Collection[str] | None = ()  # which of DEFAULT_SAMPLING_PARAMS it takes; None: all
    form: bool = False  # multipart: the file comes as base64

    @property
    def scores(self) -> bool:
        """Whether its engine requests are inputs (texts, pairs, seconds of speech), which MAX_N does not count."""
        return self.kind == "embed" or self.form or self.path == "/generative_scoring"

    @property
    def anthropic(self) -> bool:
        """Whether its clients expect Anthropic's error object."""
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
    )
}

# Fields whose text becomes part of the prompt, on whichever route they stand.
PROMPT_FIELDS = (
    "messages",
    "prompt",
    "suffix",
    "input",
    "instructions",
    "system",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
    "query",
    "queries",
    "items",
    "instruction",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
    "texts",
    "inputs",
    "data",
)
MEDIA_KEYS = frozenset(
    {
        "image_url",
        "audio_url",
        "video_url",
        "input_audio",
        "input_video",
        "image",
        "images",
        "audio",
        "video",
        "source",
        "file",
        "file_url",
        "file_data",
        "image_embeds",
        "audio_embeds",
    }
)
"""Keys of a content part under which a file stands, as an address or as data: media.py's business, not text."""

_NO_TEXT = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "format", "detail", "status"})
_ID_FIELDS = ("prompt", "input", "query", "queries", "items", "documents")
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_QUERY = re.compile(r"[A-Za-z0-9._~=&%+-]*")


def clean(route: str, *, field: str) -> tuple[str, str]:
    """A route's path and query. A path only: nothing that could mean another host, or another path once decoded.

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
    """The name in a call of OpenAI's /v1/models/{model}, which vLLM does not have; slashes may be encoded."""
    name = unquote(route.partition("?")[0].removeprefix("/v1/models/")) if route.startswith("/v1/models/") else ""
    return name.strip("/") or None


def rule_for(path: str, allowed: Collection[str], *, exists: bool = True) -> Rule:
    """The rule of an open path; one that only ALLOWED_ROUTES opens takes any method, and counts as generating.

    `exists`: whether vLLM has the path; if so, it was not meant for another.

    Raises:
        JobError: route_closed; not_found, with the path that was probably meant.
    """
    for rule in RULES.values():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", rule.path), path):
            return rule
    if path in {"/" + name.strip("/") for name in allowed}:
        return Rule(path, ("GET", "POST", "PUT", "DELETE"), "generate", ("max_completion_tokens", "max_tokens"))
    meant = None if exists else _meant(path)
    if meant is None:
        raise JobError(Code.ROUTE_CLOSED, f"{path} is no open route of this worker.", field="route")
    base = " A client's base_url ends in /openai/v1, once; Anthropic's in /openai." if _is_tail(path, meant) else ""
    raise JobError(Code.NOT_FOUND, f"{path} is not a route; {meant} is.{base}", field="route")


def _meant(path: str) -> str | None:
    """The open path that a wrong one probably means: one end of it is the same, or nearly all of it."""
    plain = [rule.path for rule in RULES.values() if "{" not in rule.path]
    tails = [known for known in plain if _is_tail(path, known)]
    if tails:
        return min(tails, key=lambda known: abs(len(known) - len(path)))
    longer = [known for known in plain if known.startswith(path + "/")]
    return longer[0] if longer else client_fields.resembles(path, plain, cutoff=0.9)


def _is_tail(path: str, known: str) -> bool:
    return path.endswith(known) or known.endswith(path)


def check_opened(allowed: Collection[str], existing: Collection[str]) -> None:
    """Every route that ALLOWED_ROUTES names is one that vLLM has.

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
    """Why an open route is not there: the worker's other side has it, or a model of another kind."""
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
    """The HTTP method: what the job says, else what the route takes; RunPod's proxy does not pass it on.

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


@dataclass(frozen=True)
class Prompt:
    """What a body says to the model."""

    texts: tuple[str, ...]
    token_ids: tuple[int, ...] = ()  # prompts given as ids
    field: str = "messages"  # where it stands, for messages

    @property
    def chars(self) -> int:
        """Characters of all texts together, an empty one as one."""
        return sum(len(text) or 1 for text in self.texts)


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """Every text and every token id in the fields that become the prompt."""
    texts: list[str] = []
    ids: list[int] = []
    names = [name for name in PROMPT_FIELDS if body.get(name) is not None]
    for name in names:
        for leaf in _leaves(body[name], with_keys=name in ("tools", "functions")):
            if isinstance(leaf, str):
                texts.append(leaf)
            elif name in _ID_FIELDS:
                ids.append(leaf)
    return Prompt(tuple(texts), tuple(ids), names[0] if names else "messages")


def _leaves(value: object, *, with_keys: bool) -> Iterator[str | int]:
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str) or (isinstance(found, int) and not isinstance(found, bool)):
            yield found
        elif isinstance(found, list):
            pending.extend(reversed(found))
        elif isinstance(found, dict):
            for key in reversed(found):
                if with_keys:
                    pending.extend((found[key], key))
                elif key not in _NO_TEXT and key not in MEDIA_KEYS and not isinstance(found[key], int | float):
                    pending.append(found[key])


def field_of(param: str | None, message: str, body: Mapping[str, Any]) -> str | None:
    """The field of `body` that vLLM's error is about. `param`: what vLLM names, if anything.

    vLLM names a path as pydantic walked it: with classes among which it looked for a fit, and from the middle of the
    body where a part of it is read late. So the path is walked again, along what the body has.
    """
    if not param:
        return blamed(message, body)
    first, *rest = param.removeprefix("body.").split(".")
    if first.isdigit():
        return next((name for name in PROMPT_FIELDS if isinstance(body.get(name), list)), None)
    path, value = [first], body.get(first)
    for step in rest:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif step[:1].isupper() or step is not rest[-1] or not isinstance(value, dict):
            continue  # no step of the body
        path.append(step)  # the last one may be what the body lacks
    return ".".join(path)


def plain(message: str, field: str | None, body: Mapping[str, Any]) -> str:
    """vLLM's message; of pydantic's list of everything that does not fit only what is about `field`."""
    head, _, lines = message.partition("\n")
    if not re.fullmatch(r"\d+ validation errors?:", head):
        return message
    found = [error for line in lines.splitlines() if isinstance(error := _literal(line), dict)]
    about = [str(error.get("msg")) for error in found if field_of(str(error.get("loc")), "", body) == field]
    said = "; ".join(dict.fromkeys(about[:10]))
    return f"{field}: {said}." if said else message


def _literal(line: str) -> object:
    try:
        return ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None  # it was cut


def blamed(message: str, body: Mapping[str, Any]) -> str | None:
    """The field that vLLM's error message is about, where vLLM does not name it."""
    said = message.casefold().replace("_", " ")
    if "empty" in said:
        empty = next((name for name in PROMPT_FIELDS if body.get(name) in ("", [])), None)
        if empty is not None:
            return empty
    if re.search(r"\b(grammar|regex|schema|structured|structural|guided|choice)\b", said):
        names = (*limits.CONSTRAINTS, "tools")
        forced = "structural tag" in said and "tools" in body  # which vLLM makes of the tools
        found = "tools" if forced else next((name for name in names if name in body), None)
        if found is not None:
            return found
    named = [name for name in body if name not in ("model", "input", "prompt") and name.replace("_", " ") in said]
    return max(named, key=len) if named else next((name for name in PROMPT_FIELDS if name in body), None)


@dataclass
class Rewritten:
    """A body as vLLM gets it, and what was decided on the way."""

    body: dict[str, Any]
    max_tokens: limits.MaxTokens | None = None
    client: dict[str, str] = field(default_factory=dict)  # the client's own ids, for the log
    owed_call: tools.OwedCall | None = None


def rewrite(
    rule: Rule,
    body: Mapping[str, Any],
    settings: Settings,
    *,
    max_model_len: int = 0,
    fields: Collection[str] | None = None,
) -> Rewritten:
    """Bring the numbers of a body within the limits. vLLM checks the parameters it makes of them, so they are final.

    `max_model_len`: 0 if it is not known. `fields`: what the route's body may hold, if vLLM says.

    Raises:
        JobError: a number is none, or beyond what the operator allows.
    """
    if not isinstance(body.get("stream"), bool | None):  # vLLM would also read "true" and 1, RunPod's endpoint not
        raise JobError(Code.INVALID_INPUT, "stream must be true or false.", field="stream")
    new = Rewritten(dict(body))
    new.client = {name: text for name in ("user", "request_id") if (text := _id(body.get(name)))}
    if isinstance(body.get("metadata"), dict):
        ids = {f"metadata.{key}": _id(value) for key, value in list(body["metadata"].items())[:8] if key != "user"}
        new.client |= {name: text for name, text in ids.items() if text}
    new.body.pop("request_id", None)  # the engine's request has the job's id, and nobody else's
    if rule.scores:
        _limit_inputs(body)
    if rule.path == "/generative_scoring":
        _refuse_text_as_ids(body)
    if rule.kind != "generate":
        return new
    for name, value in body.items():
        if name.endswith("_transfer_params") and value is not None:
            raise JobError(Code.UNSUPPORTED, f"{name[:100]} belongs to split serving, not here.", field=name[:100])
    if body.get("background"):
        raise JobError(
            Code.UNSUPPORTED,
            "background is not offered: its answer would end with this worker. Send the job to RunPod's /run, which "
            "works in the background, and poll /status.",
            field="background",
        )
    if rule.max_tokens:
        _limit_answers(body, settings)
        new.max_tokens = _limit_max_tokens(rule, new.body, settings, max_model_len, fields)
        limits.check_min_tokens(body.get("min_tokens"), max(1, new.max_tokens.effective), field="min_tokens")
    if tools.forced(body):
        new.body["tools"] = tools.strict(body["tools"])
        new.owed_call = tools.OwedCall()
    wanted = limits.default_sampling(settings, new.max_tokens.effective if new.max_tokens else None)
    for name in wanted if rule.sampling is None else [name for name in wanted if name in rule.sampling]:
        if new.body.get(name) is None:
            new.body[name] = wanted[name]
    return new


def _limit_answers(body: Mapping[str, Any], settings: Settings) -> None:
    n = _whole(body, "n")
    prompts = body.get("prompt") if "prompt" in body else body.get("messages")
    several = isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int | dict)
    answers = (1 if n is None else n) * (len(prompts) if several and prompts else 1)
    limits.check_answers(answers, settings, field="n")


def _limit_inputs(body: Mapping[str, Any]) -> None:
    for name in PROMPT_FIELDS:
        inputs_of = body.get(name)
        if isinstance(inputs_of, list) and inputs_of and not isinstance(inputs_of[0], int | float):
            limits.check_inputs(len(inputs_of), field=name)


def _refuse_text_as_ids(body: Mapping[str, Any]) -> None:
    """vLLM reads "5" and 5.0 as ids where it expects ids: those of control tokens, in what looks like text."""
    items = body.get("items")
    given_items = items if isinstance(items, list) else ()
    for name, given in (("query", body.get("query")), *(("items", item) for item in given_items)):
        if isinstance(given, list) and any(type(token_id) is not int for token_id in given):
            raise JobError(Code.INVALID_INPUT, f"{name} must be text or lists of whole numbers.", field=name)


def _limit_max_tokens(
    rule: Rule, body: dict[str, Any], settings: Settings, max_model_len: int, fields: Collection[str] | None
) -> limits.MaxTokens:
    """Writes max_tokens into the body, also where the client named none: vLLM has defaults of its own."""
    given = {name: value for name in rule.max_tokens if (value := _whole(body, name)) is not None}
    first = next(iter(given), rule.max_tokens[0])
    max_tokens = limits.fit_model(limits.cap_max_tokens(given.get(first), settings, field=first), max_model_len)
    for name, value in given.items():
        body[name] = min(value, max_tokens.effective)
    # A path that only ALLOWED_ROUTES opens may take neither field; served.py then refuses what exceeds the limit.
    known = rule.max_tokens if rule.path in RULES else [name for name in rule.max_tokens if name in (fields or ())]
    if not given and known and not rule.anthropic:  # Anthropic's API requires it, and vLLM says so
        body[known[0]] = max_tokens.effective
    return max_tokens


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    """vLLM would also read "5" or 5.0; what is limited must be what is read."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise JobError(Code.INVALID_INPUT, f"{name} must be a whole number.", field=name)
    return value


def _id(value: object) -> str | None:
    return value[:128] if isinstance(value, str) and value else None


def resolve_model(given: object, names: Mapping[str, str]) -> str | None:
    """The served name for what a client calls the model; None where it names none. `names`: any name -> served name.

    Raises:
        JobError: not_found, with the valid names.
    """
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        raise JobError(Code.INVALID_INPUT, "model must be text.", field="model")
    found = names.get(given) or {name.casefold(): served for name, served in names.items()}.get(given.casefold())
    if found is None:
        valid = ", ".join(dict.fromkeys(names.values()))
        raise JobError(
            Code.NOT_FOUND, f"The model {given[:200]!r} does not exist. This worker serves: {valid}.", field="model"
        )
    return found
