"""Writes what is made from something else: pages of docs/, .env.example and .runpod/ from the settings and the table of
errors, worker/routes/sdk_parameters.json from the openai and anthropic packages.

python -m builder.generate            write them
python -m builder.generate --check    list those that are out of date, and exit 1 if any is
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import anthropic.resources.beta.messages
import openai.resources.chat
import openai.resources.responses
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from builder import monitoring, profile_docs  # noqa: E402
from llmpod.loadtest.options import SmokeOptions  # noqa: E402
from llmpod.loadtest.smoke import checks  # noqa: E402
from llmpod.worker.environ import names  # noqa: E402
from llmpod.worker.errors import Code  # noqa: E402
from llmpod.worker.other_workers import REFUSED, RENAMED, RETIRED  # noqa: E402
from llmpod.worker.settings import Settings  # noqa: E402

GROUPS = {group.__name__: group for group in Settings.__bases__}
VLLM = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("vllm=="))
VLLM_VERSION = VLLM.split("==")[1].split()[0]


def kind(annotation: Any) -> str:
    """A type in words for the documentation."""
    if get_origin(annotation) is typing.Annotated:
        return kind(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in get_args(annotation) if part is not types.NoneType)
    if get_origin(annotation) is typing.Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is dict:
        return "JSON object"
    if get_origin(annotation) in (list, tuple):
        return "list, comma-separated"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation]


def default(info: FieldInfo) -> str:
    if info.default is None or info.default == ():
        return ""
    if isinstance(info.default, bool):
        return str(info.default).lower()
    return json.dumps(info.default) if isinstance(info.default, dict) else str(info.default)


def in_group(title: str) -> list[tuple[str, FieldInfo]]:
    return [(name.upper(), info) for name, info in GROUPS[title].model_fields.items()]


def help_of(info: FieldInfo) -> str:
    """The help of a setting on one line."""
    return " ".join((info.description or "").split())


def configuration() -> str:
    """docs/configuration.md."""
    out = [
        "# Configuration",
        "",
        "Every setting is an environment variable. Unset and empty mean the same. A value of the wrong type, one out",
        "of range, or a name that is nearly one of these stops the start with one line that states what to change;",
        "`None` as a word, quotes around a value and a stray 0 are corrected and reported as a `setting_corrected`",
        "event.",
        "",
        "This page is generated from `src/llmpod/worker/settings.py` (`make docs`); a test keeps it current.",
    ]
    aliases: dict[str, list[str]] = {}
    for name, field in names().items():
        if name != field.upper():
            aliases.setdefault(field.upper(), []).append(name)
    for title in GROUPS:
        out += ["", f"## {title}", "", "| variable | type | default | meaning |", "|---|---|---|---|"]
        for name, info in in_group(title):
            also = "".join(f" Also: `{alias}`." for alias in aliases.get(name, ()))
            shown = default(info)
            meaning = f"{help_of(info)}{also}".replace("|", "\\|").replace("<", "&lt;")
            out.append(f"| `{name}` | {kind(info.annotation)} | {f'`{shown}`' if shown else '—'} | {meaning} |")
    out += [
        "",
        "## Any other vLLM engine argument",
        "",
        f"Every field of vLLM {VLLM_VERSION}'s `AsyncEngineArgs` is accepted under its upper-case name and read by",
        "vLLM's own command line parser, so it means what it means to `vllm serve`: `ENABLE_PREFIX_CACHING=false`,",
        "`KV_CACHE_DTYPE=fp8`, `LIMIT_MM_PER_PROMPT='{\"image\": 2}'`, `SPECULATIVE_CONFIG='{…}'`. Exceptions are",
        "names that belong to others: `HF_TOKEN` (the hub client reads it itself),",
        "`LOG_LEVEL`, and `MASTER_ADDR`, `MASTER_PORT`, `NNODES`, `NODE_RANK`. vLLM's own `VLLM_…` variables work as",
        "vLLM documents them.",
        "",
        "## Names of other workers",
        "",
        "A variable by which another worker would serve something else stops the start, with one line about what to",
        "set instead:",
        "",
        "| variable | instead |",
        "|---|---|",
        *(f"| {', '.join(f'`{name}`' for name in row.examples)} … | rename it to `{row.ours}` |" for row in RENAMED),
        *(f"| `{name}` | {cure} |" for name, cure in sorted(REFUSED.items())),
        "",
        "Those that mean nothing here are ignored, with a `setting_corrected` event that states why; so are the",
        "arguments of vLLM's server (`ALLOWED_ORIGINS`, `UVICORN_LOG_LEVEL`, …):",
        "",
        "| variable | instead |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in sorted(RETIRED.items())),
        "",
    ]
    return "\n".join(out)


ERRORS = """\
# How jobs fail

A job that fails is FAILED on RunPod, and `error` in its status object is a JSON string:

```json
{"type": "client_error", "code": "prompt_too_long", "status": 400, "message": "The prompt has 1025 characters; this \
worker accepts 1024.", "retryable": false, "hint": "Shorten the prompt, or raise MAX_PROMPT_CHARS.", "job_id": "…", \
"field": "prompt", "details": {"chars": 1025, "limit": 1024}}
```

It is a string because the SDK turns an object into a Python repr. A streamed job gets the same object first, as a last
chunk `{"choices": [], "failure": {…}}`; the text before it stays valid. `code` is stable, messages are not. No
traceback reaches a client. The table is generated from `src/llmpod/worker/errors.py` (`make docs`).

| code | status | retryable | hint |
|---|---|---|---|
"""


def errors() -> str:
    """docs/errors.md."""
    rows = (code.value for code in Code)
    return ERRORS + "".join(
        f"| `{row.code}` | {row.status} | {'yes' if row.retryable else 'no'} | {row.hint} |\n" for row in rows
    )


SDK_METHODS: dict[str, tuple[Callable[..., Any], ...]] = {
    "/v1/chat/completions": (openai.resources.chat.Completions.create,),
    "/v1/completions": (openai.resources.Completions.create,),
    "/v1/responses": (openai.resources.responses.Responses.create,),
    "/v1/embeddings": (openai.resources.Embeddings.create,),
    "/v1/audio/transcriptions": (openai.resources.audio.Transcriptions.create,),
    "/v1/audio/translations": (openai.resources.audio.Translations.create,),
    "/v1/messages": (anthropic.resources.Messages.create, anthropic.resources.beta.messages.Messages.create),
    "/v1/messages/count_tokens": (
        anthropic.resources.Messages.count_tokens,
        anthropic.resources.beta.messages.Messages.count_tokens,
    ),
}
"""Which methods of the packages call which route."""
NOT_IN_BODIES = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def sdk_parameters() -> str:
    """worker/routes/sdk_parameters.json: the packages are not in the worker's image, so their parameters are data."""
    rows = []
    for route, methods in SDK_METHODS.items():
        names = {name for method in methods for name in inspect.signature(method).parameters} - NOT_IN_BODIES
        rows.append(f'  "{route}": {json.dumps(sorted(names))}')
    return "{\n" + ",\n".join(rows) + "\n}\n"


def env_example() -> str:
    """.env.example: every setting, commented out, with its default."""
    out = ["# Settings of the worker, with their defaults. docs/configuration.md explains them."]
    for title in GROUPS:
        out += ["", f"# {title}"]
        out += [f"# {name}={default(info)}" for name, info in in_group(title)]
    return "\n".join(out) + "\n"


def hub() -> dict[str, Any]:
    """.runpod/hub.json: RunPod's form for deploying the worker."""
    return {
        "title": "llmpod",
        "description": "A vLLM worker that answers honestly: guardrails, real streaming, typed errors, plain logs.",
        "type": "serverless",
        "category": "language",
        "config": {
            "runsOn": "GPU",
            "containerDiskInGb": 100,
            "gpuCount": 1,
            "gpuIds": "ADA_24,AMPERE_24,AMPERE_48,ADA_48_PRO,AMPERE_80,ADA_80_PRO",
            "allowedCudaVersions": ["13.0"],
            "env": [hub_field(name, info) for title in GROUPS for name, info in in_group(title)],
        },
    }


def hub_field(name: str, info: FieldInfo) -> dict[str, Any]:
    kind_name = kind(info.annotation)
    field: dict[str, Any] = {
        "name": name.replace("_", " ").capitalize(),
        "type": {"true or false": "boolean", "whole number": "number", "number": "number"}.get(kind_name, "string"),
        "description": help_of(info),
        "advanced": name not in ("MODEL_NAME", "MAX_MODEL_LEN", "MAX_PROMPT_CHARS", "MAX_TOKENS_MAX"),
    }
    if name == "MODEL_NAME":
        field |= {"type": "huggingface", "required": True}
    # No default is given where ours is "unset": a form's 0 or None would arrive as a value.
    if info.default is not None and not isinstance(info.default, dict | tuple):
        field["default"] = info.default
    return {"key": name, "input": field}


def hub_tests() -> dict[str, Any]:
    """.runpod/tests.json: the jobs RunPod runs before it publishes a release, which are those of `loadtest smoke`."""
    options = SmokeOptions()
    question, cold, warm = (
        checks.native_input(options.prompt, options.max_tokens),
        *(int(seconds * 1000) for seconds in (options.cold_timeout, options.timeout)),
    )
    chat = {"route": "/v1/chat/completions", "body": checks.chat_body(options.prompt, options.max_tokens)}
    return {
        "tests": [
            {"name": "cold", "input": question, "timeout": cold},
            {"name": "warm", "input": question, "timeout": warm},
            {"name": "stream", "input": question | {"stream": True}, "timeout": warm},
            {"name": "openai", "input": chat, "timeout": warm},
        ],
        "config": {
            "gpuTypeId": "NVIDIA GeForce RTX 4090",
            "gpuCount": 1,
            "env": [{"key": "MODEL_NAME", "value": "Qwen/Qwen2.5-0.5B-Instruct"}],
            "allowedCudaVersions": ["13.0"],
        },
    }


def files() -> dict[Path, str]:
    """Every generated file and what must be in it."""
    return {
        ROOT / "docs" / "configuration.md": configuration(),
        ROOT / "docs" / "errors.md": errors(),
        ROOT / "docs" / "profiles.md": profile_docs.page((ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")),
        ROOT / "src" / "llmpod" / "worker" / "routes" / "sdk_parameters.json": sdk_parameters(),
        ROOT / ".env.example": env_example(),
        ROOT / ".runpod" / "hub.json": json.dumps(hub(), indent=2, ensure_ascii=False) + "\n",
        ROOT / ".runpod" / "tests.json": json.dumps(hub_tests(), indent=2, ensure_ascii=False) + "\n",
        **monitoring.files(),
    }


def stale() -> list[str]:
    """Generated files that are out of date."""
    return [
        str(path.relative_to(ROOT))
        for path, content in files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        for name in stale():
            print(f"{name} is out of date: run `make docs`")
        return 1 if stale() else 0
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
