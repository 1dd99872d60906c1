"""Settings of the worker: every environment variable with its name, type, range, default and help.

docs/configuration.md, .runpod/hub.json and .env.example are generated from this model; environ.py fills it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llmpod.worker.errors import StartError

DEMO_MODEL = Path(__file__).resolve().parent / "demo_model"
DEMO_NAME = "llmpod-demo"

Group = Literal["Model", "Engine", "Worker", "HTTP", "Routes", "Guardrails", "Log", "Metrics"]


def setting(default: Any, group: Group, help_text: str, *, also: tuple[str, ...] = (), **limits: Any) -> Any:
    """A field of `Settings`: default, documentation group, help text and, in `also`, older names."""
    aliases = AliasChoices(*also) if also else None
    return Field(default, description=help_text, validation_alias=aliases, json_schema_extra={"group": group}, **limits)


def _words(value: object) -> object:
    """Parse a list: a, b, c or a JSON array."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return tuple(word for word in re.split(r"[,\s]+", value) if word)


def _adapters(value: object) -> object:
    """LoRA adapters as name -> path, from that form or from vLLM's list of {"name", "path"}."""
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, dict) and {"name", "path"} <= value.keys():
        value = [value]
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, dict) and {"name", "path"} <= row.keys()]
        if len(rows) != len(value):
            raise ValueError('each adapter needs "name" and "path"')
        names = [row["name"] for row in rows]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is named twice")
        return {row["name"]: row["path"] for row in rows}
    return value


def _whole_number(value: object) -> object:
    """Parse a whole number: 4k is 4000 and 4K is 4096, as for `vllm serve`."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)([kKmM])", value)):
        return int(match[1]) * {"k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20}[match[2]]
    return value


Tokens = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]


class Settings(BaseSettings):
    """The worker's settings. A field's environment variable is its name in upper case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    model_name: str | None = setting(
        None,
        "Model",
        "Model to serve: a Hugging Face id or a folder. llmpod-demo is the demonstration model of this repository, "
        "which `python handler.py` also runs when none is named; a worker of an endpoint does not start without one.",
    )
    model_revision: str | None = setting(
        None, "Model", "Branch, tag or commit of the model. One that is in the cache is not looked for anew at the hub."
    )
    model_store: str = setting(
        "/models",
        "Model",
        "Folder with models by their ids (OWNER/NAME), looked at before the hub: images bake them here.",
    )
    tokenizer: str | None = setting(
        None, "Model", "Tokenizer, if it is not the model's own.", also=("TOKENIZER", "TOKENIZER_NAME")
    )
    tokenizer_revision: str | None = setting(None, "Model", "Branch, tag or commit of the tokenizer.")
    served_model_name: str | None = setting(
        None,
        "Model",
        "Name the model has in replies and requests. Unset: MODEL_NAME.",
        also=("SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE"),
    )
    custom_chat_template: str | None = setting(
        None, "Model", "Jinja chat template that replaces the model's own: the text, or a file's path."
    )
    quantization: str | None = setting(
        None,
        "Model",
        "Quantisation method (awq, gptq, compressed-tensors, fp8_per_tensor, …). Unset: as in the model's config.",
    )
    dtype: str | None = setting(None, "Model", "Data type of weights and activations. Unset: auto; float32 on a CPU.")
    trust_remote_code: bool = setting(
        False, "Model", "Run Python code that comes with the model. Only for models you trust."
    )

    max_model_len: Tokens | None = setting(
        None, "Engine", "Longest prompt plus answer, in tokens. Unset: what the model was made for."
    )
    max_num_batched_tokens: Tokens | None = setting(
        None,
        "Engine",
        "Tokens the engine computes in one step. Unset, empty or 0: vLLM decides. A value below MAX_MODEL_LEN is "
        "raised to it unless ENABLE_CHUNKED_PREFILL is true, and a value below MAX_NUM_SEQS is raised to that.",
    )
    max_num_seqs: Annotated[int, Field(ge=1)] | None = setting(
        None, "Engine", "Requests the engine decodes together. Unset: vLLM decides."
    )
    enable_chunked_prefill: bool | None = setting(
        None, "Engine", "Split long prompts over several steps. Unset: vLLM decides."
    )
    gpu_memory_utilization: float | None = setting(
        None, "Engine", "Share of the GPU's memory for weights and KV cache. Unset: vLLM's default.", gt=0, le=1
    )
    tensor_parallel_size: Annotated[int, Field(ge=1)] | None = setting(
        None,
        "Engine",
        "GPUs that share the model. Unset: as many of the visible ones as divide its attention heads.",
    )
    enforce_eager: bool | None = setting(
        None,
        "Engine",
        "Run without CUDA graphs and compilation: starts faster, decodes slower. Unset: true on a CPU only.",
    )

    compile_cache: str | None = setting(
        None,
        "Engine",
        "Folder in which compiled code outlives the worker, so that the next start need not compile; it must be the "
        "operator's own, because the code in it is run. off: none. Unset: RunPod's network volume, if there is one.",
    )

    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = setting(
        None,
        "Worker",
        "Jobs held at once. Constant for the worker's life. Unset: MAX_NUM_SEQS and a quarter more, so "
        "that the engine never waits for a job; over HTTP twice as many, of which half wait.",
    )
    max_queue_wait: float = setting(
        60.0,
        "Worker",
        "Seconds a job may wait in the worker for an engine slot before it fails as overloaded.",
        ge=0,
    )
    max_queue_size: Annotated[int, Field(ge=1)] | None = setting(
        None,
        "Worker",
        "Jobs that may wait in the worker for an engine slot; the next one fails at once as overloaded. Unset: no "
        "limit but MAX_QUEUE_WAIT.",
    )
    max_job_seconds: float = setting(
        0.0,
        "Worker",
        "Seconds a job may take in the worker before it fails as timeout. 0: only RunPod's execution timeout holds.",
        ge=0,
    )
    result_delivery_timeout: float = setting(
        120.0, "Worker", "Seconds for which a job's result is sent again when RunPod does not accept it.", gt=0
    )
    min_stream_gap_ms: float = setting(
        0.0,
        "Worker",
        "Least milliseconds between two chunks of a stream. 0: as fast as RunPod and the next setting allow.",
        ge=0,
    )
    max_stream_chunks_per_s: float = setting(
        500.0,
        "Worker",
        "Most chunks a second that all streams together send; the more streams there are, the more tokens has each.",
        gt=0,
    )
    drain_seconds: float = setting(
        25.0,
        "Worker",
        "Seconds that running jobs get to finish when RunPod stops the worker; the rest fail as retryable.",
        ge=0,
    )
    engine_stall_seconds: float = setting(
        120.0,
        "Worker",
        "Seconds without a finished step or an answer from the engine before the worker exits. 0: never.",
        ge=0,
    )
    job_loop: Annotated[Literal["event", "stock"], BeforeValidator(str.lower)] = setting(
        "event",
        "Worker",
        "event: jobs start and results leave at once. stock: the RunPod SDK's own polling loop, also used (with a "
        "`job_loop` event that names what is missing) where the installed SDK lacks something that event uses.",
    )
    return_aggregate_stream: bool = setting(
        True, "Worker", "Give /run and /runsync the whole output of a streamed job, too."
    )
    default_sampling_params: dict[str, Any] = setting(
        {},
        "Worker",
        'Sampling parameters of jobs that name none, as JSON: {"temperature": 0.3}. A job\'s own win.',
    )

    serve_mode: Annotated[Literal["auto", "queue", "http"], BeforeValidator(str.lower)] = setting(
        "auto",
        "HTTP",
        "How jobs come. queue: from RunPod's queue. http: as requests to this worker's HTTP server, on a "
        "load-balancing endpoint. auto: http if PORT_HEALTH is set; queue if RunPod gives an address to take jobs "
        "from; http if RunPod sets PORT. A `serve_mode` event says which, and why.",
    )
    port: int = setting(80, "HTTP", "Port of the HTTP server, as RunPod sets it. 0: any free one.", ge=0, le=65535)
    port_health: Annotated[int, Field(ge=1, le=65535)] | None = setting(
        None, "HTTP", "Port on which /ping is answered, too. RunPod sets it. Unset: PORT."
    )
    health_check_path: str = setting(
        "/ping", "HTTP", "Path that tells the load balancer whether this worker is ready.", pattern=r"^/[\w./-]*$"
    )
    bind_host: str | None = setting(
        None, "HTTP", "Address the HTTP server listens on. Unset: 0.0.0.0 on RunPod, 127.0.0.1 anywhere else."
    )
    max_body_bytes: int = setting(
        30_000_000, "HTTP", "Largest request body. RunPod's load balancer carries 30 MB.", ge=1000
    )

    max_prompt_chars: int = setting(
        1024,
        "Guardrails",
        "Longest prompt in characters, counted over all messages as the model reads them: texts, roles, names, tools, "
        "numbers, whatever a client sends, and the earlier turns of a previous_response_id. Not counted: what the chat "
        "template writes before and after a conversation, around its first 15 messages, and around tools. 0: no limit.",
        ge=0,
    )
    max_job_values: int = setting(
        20_000,
        "Guardrails",
        "Most values in a job: texts, numbers (token ids too), lists, objects. An object in a list, such as a message "
        "or a tool, counts for ten: it costs as much to check.",
        ge=100,
    )
    max_tokens_default: int = setting(150, "Guardrails", "max_tokens of a job that names none.", ge=1)
    max_tokens_min: int = setting(64, "Guardrails", "A smaller max_tokens is raised to this. 1: never raised.", ge=1)
    max_tokens_max: int = setting(
        256, "Guardrails", "A larger max_tokens is lowered to this. 0: no limit but MAX_MODEL_LEN.", ge=0
    )
    max_inputs: int = setting(
        32,
        "Guardrails",
        "Most texts, documents or pairs that one request may have embedded, scored or classified. Each of them takes "
        "an engine slot, as each answer of `n` does.",
        ge=1,
        le=1024,
    )
    max_input_chars: int = setting(
        20_000,
        "Guardrails",
        "Longest of these texts, in characters; token ids count one each. On routes that embed, score or classify it "
        "stands in place of MAX_PROMPT_CHARS. 0: no limit.",
        ge=0,
    )
    max_n: int = setting(4, "Guardrails", "Most answers (n) one job may ask for.", ge=1, le=1024)
    max_constraint_chars: int = setting(
        20_000,
        "Guardrails",
        "Longest structured output (JSON schema, regex, grammar, choices) of a job, as JSON. 0: no limit.",
        ge=0,
    )
    max_constraint_seconds: float = setting(
        3.0,
        "Guardrails",
        "Processor time that a structured output, or the schemas of a job's tools, may take to compile. One that takes "
        "longer is refused before the engine sees it.",
        gt=0,
    )
    allow_control_tokens: bool = setting(
        False,
        "Guardrails",
        "Let text in a job become the model's control tokens (<|im_start|> and the like). Off: they stay plain text.",
    )
    show_cached_tokens: bool = setting(
        False,
        "Guardrails",
        "Report in answers how many of the prompt's tokens were in the prefix cache. Jobs share the cache, so the "
        "number tells a client whether another job's prompt began with a text that it guessed. The log always has it.",
    )
    isolate_prefix_cache: bool = setting(
        False,
        "Guardrails",
        "Let no job reuse what the prefix cache holds of another's prompt. Off: a prompt that begins like another "
        "job's is faster, which a client can measure, and which /metrics adds up. On: a system prompt that all jobs "
        "share is computed for each of them.",
    )
    profile: str | None = setting(
        None,
        "Guardrails",
        "Policy and answer checks of a use case: the name of a shipped profile (career) or a TOML file's path.",
    )

    lora_modules: Annotated[dict[str, str], NoDecode, BeforeValidator(_adapters)] = setting(
        {},
        "Routes",
        'LoRA adapters by the name clients call them, as JSON: {"name": "folder or hub id"}. vLLM\'s own form, '
        '[{"name": …, "path": …}], is read too. One that cannot be loaded stops the start.',
    )
    allowed_routes: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = setting(
        (),
        "Routes",
        "Routes to open beside inference, models, tokenize, health and metrics, separated by commas: "
        "/v1/load_lora_adapter, … Whoever may send jobs may then call them. Some need a variable of vLLM's own: "
        "docs/routes.md.",
    )
    max_tokens_policy: Literal["lower", "reject"] = setting(
        "lower",
        "Routes",
        "What happens on an OpenAI route to a max_tokens above MAX_TOKENS_MAX: it is lowered and the answer's "
        "`limits` says so, or the request is rejected.",
    )
    allowed_media_domains: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = setting(
        (),
        "Routes",
        "Domains from which images, audio and video may be fetched, separated by commas, exactly as written: "
        "example.org does not open www.example.org. Unset: data URIs only.",
    )
    max_media_bytes: int = setting(
        10_000_000, "Routes", "Largest image, audio or video file of a request, in bytes, once decoded.", ge=1
    )

    max_pixels: int = setting(
        25_000_000,
        "Routes",
        "Most pixels in all images of a request together. Each takes the worker about 20 bytes while it is prepared.",
        ge=1,
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)] = setting(
        "error", "Log", "Least severe line that vLLM and the RunPod SDK may log. Events are always logged."
    )
    loading_report_seconds: float = setting(
        15.0,
        "Log",
        "Most seconds between two `loading` events while the worker starts: a start that is silent for longer hangs.",
        gt=0,
    )
    log_prompts: bool = setting(False, "Log", "Put prompts and answers into the log. They may be personal data.")

    metrics_push_url: str | None = setting(
        None,
        "Metrics",
        "Prometheus Pushgateway to send the metrics to, https://user:password@host:9091. Unset: none are sent. "
        "docs/metrics.md has the names.",
        pattern=r"^https?://[^/\s]+",
    )
    metrics_push_seconds: float = setting(15.0, "Metrics", "Seconds between two pushes.", ge=1)
    snapshot_seconds: float = setting(
        0.0, "Metrics", "Seconds between two `snapshot` events, which put the metrics into the log. 0: none.", ge=0
    )

    @property
    def is_demo(self) -> bool:
        """Whether the demonstration model is served: it is named, or no model is."""
        return self.model_name in (None, DEMO_NAME)

    @property
    def model(self) -> str:
        """What the engine loads: a hub id or a folder."""
        if self.model_name is None or self.model_name == DEMO_NAME:
            return str(DEMO_MODEL)
        stored = Path(self.model_store, self.model_name)
        is_there = os.path.isfile(stored / "config.json")  # noqa: PTH113 - Path's raises where it may not look
        return str(stored) if is_there else self.model_name

    @property
    def served_name(self) -> str:
        """The model's name in replies and requests."""
        return self.served_model_name or self.model_name or DEMO_NAME

    def require_model(self) -> None:
        """Check that MODEL_NAME is set, on an endpoint's worker.

        Raises:
            StartError: MODEL_NAME is not set.
        """
        if self.model_name is None:
            raise StartError(
                "MODEL_NAME is not set.",
                f"Set it to a Hugging Face id or a folder (or to {DEMO_NAME}, the demonstration model).",
                setting="MODEL_NAME",
            )

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that an adapter may not have."""
        return self.model, self.served_name
