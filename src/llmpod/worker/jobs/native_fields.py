"""Native input fields of other workers: renamed, refused or ignored.

The tables cover RunPod's vLLM worker (runpod-workers/worker-vllm) and langchain-runpod; see docs/migrate.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs.client_fields import MOVED, REFUSED, Refusal, Settled, check_format, move, refused

_NATIVE = "Native jobs have no {0}: call /v1/chat/completions, as {{openai_route, openai_input}}."
NATIVE_REFUSED = REFUSED | {
    "tools": Refusal(_NATIVE.format("tools")),
    "tool_choice": Refusal(_NATIVE.format("tools"), ("none", "auto")),
    "chat_template_kwargs": Refusal(_NATIVE.format("template arguments")),
    "enable_thinking": Refusal(_NATIVE.format("template arguments"), even_empty=True),
    "chat_template": Refusal(_NATIVE.format("templates of their own")),
    "documents": Refusal(_NATIVE.format("documents")),
    "images": Refusal("Images go to /v1/chat/completions, as parts of a message's content."),
    "image": Refusal("Images go to /v1/chat/completions, as parts of a message's content."),
    "image_url": Refusal("Images go to /v1/chat/completions, as parts of a message's content."),
    "model": Refusal("A native job is answered by the worker's model; /v1/chat/completions takes a name."),
    "top_logprobs": Refusal("logprobs is a number here: how many tokens to list at each place.", (0,)),
    "echo": Refusal("Native jobs do not repeat the prompt; /v1/completions can.", ()),
    "suffix": Refusal("This worker does not do fill-in-the-middle."),
    "detokenize": Refusal("Answers are always text.", (True,), even_empty=True),
    "endpoint": Refusal('A route of vLLM is called as {"route": "/health"}, with body and method beside it.'),
    "data": Refusal('A route of vLLM is called as {"route": …, "body": …}.'),
}
NATIVE_MOVED = MOVED | {"max_completion_tokens": ("max_tokens",)}
NATIVE_IGNORED = frozenset(
    {
        # RunPod's vLLM worker: tokens per chunk of a stream. Here the chunk size follows from the network.
        "batch_size",
        "max_batch_size",
        "min_batch_size",
        "batch_size_growth_factor",
        # the same worker: read there and not used
        "use_openai_format",
        # policy is the operator's (PROFILE)
        "block_low_trust_intents",
        # which library compiles a constraint is the operator's (STRUCTURED_OUTPUTS_CONFIG)
        "guided_decoding_backend",
        "stream_options",  # the last chunk always has the usage
        "user",
    }
)
"""Fields of other workers that do not affect the answer."""

_FILES = ("image", "audio", "video", "file", "document")


def settle_native(job_input: Mapping[str, Any], known: Collection[str], sampling_names: Collection[str]) -> Settled:
    """Convert a native job's input to the fields of inputs.py; fields in no table are left for it to refuse.

    Sampling parameters at the top, where RunPod's LangChain package and older workers have them, go into
    sampling_params.

    Raises:
        JobError: unknown_field, with the cure; invalid_input, where something is given twice.
    """
    inner = job_input.get("sampling_params")
    if not isinstance(inner, dict | None):
        raise JobError(Code.INVALID_INPUT, "sampling_params must be an object.", field="sampling_params")
    _refuse_files(job_input.get("messages"))
    parameters = {*sampling_names, "max_tokens"}
    settled = Settled({name: value for name, value in job_input.items() if name in known})
    sampling = Settled({name: value for name, value in (inner or {}).items() if name in parameters})
    for name, value in (inner or {}).items():
        if name not in parameters and not _settle_native(sampling, name, value, f"sampling_params.{name}"):
            sampling.body[name] = value
    for name, value in job_input.items():
        if name in known:
            continue
        if name in parameters and value is not None:
            move(sampling, name, value, (name,))
        elif not _settle_native(sampling, name, value, name):
            settled.body[name] = value
    if sampling.body or inner is not None:
        settled.body["sampling_params"] = sampling.body
    settled.ignored = sampling.ignored
    settled.moved = {name: f"sampling_params.{path}" for name, path in sampling.moved.items()}
    return settled


def _refuse_files(messages: object) -> None:
    for turn, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind.removeprefix("input_").partition("_")[0] in _FILES:
                raise JobError(
                    Code.UNSUPPORTED,
                    "Native messages hold text: images, audio and other files go to /v1/chat/completions, as "
                    "{openai_route, openai_input}.",
                    field=f"messages[{turn}].content[{place}]",
                )


def _settle_native(sampling: Settled, name: str, value: Any, path: str) -> bool:
    """Handle a field of other workers; returns whether it is one."""
    if value is None:
        return True
    if name == "response_format":
        for kind, bound in _constraint(value, path).items():
            move(sampling, name, bound, ("structured_outputs", kind))
    elif name in NATIVE_MOVED and name not in NATIVE_REFUSED:
        move(sampling, name, value, NATIVE_MOVED[name])
    elif name in NATIVE_IGNORED:
        sampling.ignored.append(path)
    elif name in NATIVE_REFUSED:
        if NATIVE_REFUSED[name].asks(value) and not (name == "best_of" and value == sampling.body.get("n", 1)):
            raise refused(path, NATIVE_REFUSED[name])
        sampling.ignored.append(path)
    else:
        return False
    return True


def _constraint(response_format: Any, path: str) -> dict[str, Any]:
    """Convert OpenAI's response_format to structured_outputs, as vLLM's routes do."""
    check_format(path, response_format)
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        described = response_format.get("json_schema")
        if isinstance(described, dict) and isinstance(described.get("schema"), dict):
            return {"json": described["schema"]}
        raise JobError(Code.INVALID_INPUT, f"{path}.json_schema must hold a schema.", field=f"{path}.json_schema")
    if kind == "structural_tag":
        return {"structural_tag": orjson.dumps(response_format).decode()}
    raise JobError(Code.INVALID_INPUT, f"{path}.type must be text, json_object or json_schema.", field=f"{path}.type")
