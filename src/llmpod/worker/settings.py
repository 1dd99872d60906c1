"""Settings of the worker: every environment variable with its name, type, range, default and help.

docs/configuration.md, .runpod/hub.json and .env.example are generated from this model; environ.py fills it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llmpod.worker.errors import StartError

DEMO_MODEL = Path(__file__).resolve().parent / "demo_model"
DEMO_NAME = "llmpod-demo"


def _words(value: object) -> object:
    """Parse a list: a, b, c or a JSON array."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [*filter(None, re.split(r"[,\s]+", value))]


def _adapters(value: object) -> object:
    """LoRA adapters as name -> path, from that form or from vLLM's list of {"name", "path"}."""
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, dict) and {"name", "path"} <= value.keys():
        value = [value]
    if not isinstance(value, list):
        return value
    if not all(isinstance(row, dict) and {"name", "path"} <= row.keys() for row in value):
        raise ValueError('each adapter needs "name" and "path"')
    names = [row["name"] for row in value]
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=names.count)} is named twice")
    return {row["name"]: row["path"] for row in value}


def _whole_number(value: object) -> object:
    """Parse a whole number: 4k is 4000 and 4K is 4096, as for `vllm serve`."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)([kKmM])", value)):
        return int(match[1]) * {"k": 10**3, "K": 1 << 10, "m": 10**6, "M": 1 << 20}[match[2]]
    return value


Tokens = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]


class _Group(BaseSettings):
    """Settings of one subject. A field's environment variable is its name in upper case; its docstring is its help."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True, use_attribute_docstrings=True
    )


class Model(_Group):
    """Which model is served, and under which names."""

    model_name: str | None = None
    """Model to serve: a Hugging Face id or a folder. llmpod-demo is the demonstration model of this repository, which
    `python handler.py` also runs when none is named; a worker of an endpoint does not start without one."""
    model_revision: str | None = None
    """Branch, tag or commit of the model. One that is in the cache is not looked for anew at the hub."""
    model_store: str = "/models"
    """Folder with models by their ids (OWNER/NAME), looked at before the hub: images bake them here."""
    tokenizer: str | None = Field(None, validation_alias=AliasChoices("TOKENIZER", "TOKENIZER_NAME"))
    """Tokenizer, if it is not the model's own."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer."""
    served_model_name: str | None = Field(
        None, validation_alias=AliasChoices("SERVED_MODEL_NAME", "OPENAI_SERVED_MODEL_NAME_OVERRIDE")
    )
    """Name the model has in replies and requests. Unset: MODEL_NAME."""
    custom_chat_template: str | None = None
    """Jinja chat template that replaces the model's own: the text, or a file's path."""
    quantization: str | None = None
    """Quantisation method (awq, gptq, compressed-tensors, fp8_per_tensor, …). Unset: as in the model's config."""
    dtype: str | None = None
    """Data type of weights and activations. Unset: auto; float32 on a CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you trust."""


class Engine(_Group):
    """vLLM's arguments that have a default or a rule of their own here."""

    max_model_len: Tokens | None = None
    """Longest prompt plus answer, in tokens. Unset: what the model was made for."""
    max_num_batched_tokens: Tokens | None = None
    """Tokens the engine computes in one step. Unset, empty or 0: vLLM decides. A value below MAX_MODEL_LEN is raised to
    it unless ENABLE_CHUNKED_PREFILL is true, and a value below MAX_NUM_SEQS is raised to that."""
    max_num_seqs: PositiveInt | None = None
    """Requests the engine decodes together. Unset: vLLM decides."""
    enable_chunked_prefill: bool | None = None
    """Split long prompts over several steps. Unset: vLLM decides."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of the GPU's memory for weights and KV cache. Unset: vLLM's default."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share the model. Unset: as many of the visible ones as divide its attention heads."""
    enforce_eager: bool | None = None
    """Run without CUDA graphs and compilation: starts faster, decodes slower. Unset: true on a CPU only."""
    compile_cache: str | None = None
    """Folder in which compiled code outlives the worker, so that the next start need not compile; it must be the
    operator's own, because the code in it is run. off: none. Unset: RunPod's network volume, if there is one."""


class Worker(_Group):
    """How many jobs are held, and how long anything may take."""

    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Jobs held at once. Constant for the worker's life. Unset: MAX_NUM_SEQS and a quarter more, so that the engine
    never waits for a job; over HTTP twice as many, of which half wait."""
    max_queue_wait: NonNegativeFloat = 60.0
    """Seconds a job may wait in the worker for an engine slot before it fails as overloaded."""
    max_queue_size: PositiveInt | None = None
    """Jobs that may wait in the worker for an engine slot; the next one fails at once as overloaded. Unset: no limit
    but MAX_QUEUE_WAIT."""
    max_job_seconds: NonNegativeFloat = 0.0
    """Seconds a job may take in the worker before it fails as timeout. 0: only RunPod's execution timeout holds."""
    result_delivery_timeout: PositiveFloat = 120.0
    """Seconds for which a job's result is sent again when RunPod does not accept it."""
    min_stream_gap_ms: NonNegativeFloat = 0.0
    """Least milliseconds between two chunks of a stream. 0: as fast as RunPod and the next setting allow."""
    max_stream_chunks_per_s: PositiveFloat = 500.0
    """Most chunks a second that all streams together send; the more streams there are, the more tokens has each."""
    drain_seconds: NonNegativeFloat = 25.0
    """Seconds that running jobs get to finish when RunPod stops the worker; the rest fail as retryable."""
    engine_stall_seconds: NonNegativeFloat = 120.0
    """Seconds without a finished step or an answer from the engine before the worker exits. 0: never."""
    job_loop: Annotated[Literal["event", "stock"], BeforeValidator(str.lower)] = "event"
    """event: jobs start and results leave at once. stock: the RunPod SDK's own polling loop, also used (with a
    `job_loop` event that names what is missing) where the installed SDK lacks something that event uses."""
    return_aggregate_stream: bool = True
    """Give /run and /runsync the whole output of a streamed job, too."""
    default_sampling_params: dict[str, Any] = {}
    """Sampling parameters of jobs that name none, as JSON: {"temperature": 0.3}. A job's own win."""


class HTTP(_Group):
    """The HTTP server of load-balancing endpoints."""

    serve_mode: Annotated[Literal["auto", "queue", "http"], BeforeValidator(str.lower)] = "auto"
    """How jobs come. queue: from RunPod's queue. http: as requests to this worker's HTTP server, on a load-balancing
    endpoint. auto: http if PORT_HEALTH is set; queue if RunPod gives an address to take jobs from; http if RunPod sets
    PORT. A `serve_mode` event says which, and why."""
    port: int = Field(80, ge=0, le=65535)
    """Port of the HTTP server, as RunPod sets it. 0: any free one."""
    port_health: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port on which /ping is answered, too. RunPod sets it. Unset: PORT."""
    health_check_path: str = Field("/ping", pattern=r"^/[\w./-]*$")
    """Path that tells the load balancer whether this worker is ready."""
    bind_host: str | None = None
    """Address the HTTP server listens on. Unset: 0.0.0.0 on RunPod, 127.0.0.1 anywhere else."""
    max_body_bytes: int = Field(30_000_000, ge=1000)
    """Largest request body. RunPod's load balancer carries 30 MB."""


class Routes(_Group):
    """What may be called, and with which files."""

    lora_modules: Annotated[dict[str, str], NoDecode, BeforeValidator(_adapters)] = {}
    """LoRA adapters by the name clients call them, as JSON: {"name": "folder or hub id"}. vLLM's own form, [{"name": …,
    "path": …}], is read too. One that cannot be loaded stops the start."""
    allowed_routes: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    """Routes to open beside inference, models, tokenize, health and metrics, separated by commas:
    /v1/load_lora_adapter, … Whoever may send jobs may then call them. Some need a variable of vLLM's own:
    docs/routes.md."""
    max_tokens_policy: Literal["lower", "reject"] = "lower"
    """What happens on an OpenAI route to a max_tokens above MAX_TOKENS_MAX: it is lowered and the answer's `limits`
    says so, or the request is rejected."""
    allowed_media_domains: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    """Domains from which images, audio and video may be fetched, separated by commas, exactly as written: example.org
    does not open www.example.org. Unset: data URIs only."""
    max_media_bytes: PositiveInt = 10_000_000
    """Largest image, audio or video file of a request, in bytes, once decoded."""
    max_pixels: PositiveInt = 25_000_000
    """Most pixels in all images of a request together. Each takes the worker about 20 bytes while it is prepared."""


class Guardrails(_Group):
    """What a job may ask for."""

    max_prompt_chars: NonNegativeInt = 1024
    """Longest prompt in characters, counted over all messages as the model reads them: texts, roles, names, tools,
    numbers, whatever a client sends, and the earlier turns of a previous_response_id. Not counted: what the chat
    template writes before and after a conversation, around its first 15 messages, and around tools. 0: no limit."""
    max_job_values: int = Field(20_000, ge=100)
    """Most values in a job: texts, numbers (token ids too), lists, objects. An object in a list, such as a message or a
    tool, counts for ten: it costs as much to check."""
    max_tokens_default: PositiveInt = 150
    """max_tokens of a job that names none."""
    max_tokens_min: PositiveInt = 64
    """A smaller max_tokens is raised to this. 1: never raised."""
    max_tokens_max: NonNegativeInt = 256
    """A larger max_tokens is lowered to this. 0: no limit but MAX_MODEL_LEN."""
    max_inputs: int = Field(32, ge=1, le=1024)
    """Most texts, documents or pairs that one request may have embedded, scored or classified. Each of them takes an
    engine slot, as each answer of `n` does."""
    max_input_chars: NonNegativeInt = 20_000
    """Longest of these texts, in characters; token ids count one each. On routes that embed, score or classify it
    stands in place of MAX_PROMPT_CHARS. 0: no limit."""
    max_n: int = Field(4, ge=1, le=1024)
    """Most answers (n) one job may ask for."""
    max_constraint_chars: NonNegativeInt = 20_000
    """Longest structured output (JSON schema, regex, grammar, choices) of a job, as JSON. 0: no limit."""
    max_constraint_seconds: PositiveFloat = 3.0
    """Processor time that a structured output, or the schemas of a job's tools, may take to compile. One that takes
    longer is refused before the engine sees it."""
    allow_control_tokens: bool = False
    """Let text in a job become the model's control tokens (<|im_start|> and the like). Off: they stay plain text."""
    show_cached_tokens: bool = False
    """Report in answers how many of the prompt's tokens were in the prefix cache. Jobs share the cache, so the number
    tells a client whether another job's prompt began with a text that it guessed. The log always has it."""
    isolate_prefix_cache: bool = False
    """Let no job reuse what the prefix cache holds of another's prompt. Off: a prompt that begins like another job's is
    faster, which a client can measure, and which /metrics adds up. On: a system prompt that all jobs share is computed
    for each of them."""
    profile: str | None = None
    """Policy and answer checks of a use case: the name of a shipped profile (career) or a TOML file's path."""


class Log(_Group):
    """What is written, and how much of it."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)] = "error"
    """Least severe line that vLLM and the RunPod SDK may log. Events are always logged."""
    loading_report_seconds: PositiveFloat = 15.0
    """Most seconds between two `loading` events while the worker starts: a start that is silent for longer hangs."""
    log_prompts: bool = False
    """Put prompts and answers into the log. They may be personal data."""


class Metrics(_Group):
    """Where the metrics are sent."""

    metrics_push_url: str | None = Field(None, pattern=r"^https?://[^/\s]+")
    """Prometheus Pushgateway to send the metrics to, https://user:password@host:9091. Unset: none are sent.
    docs/metrics.md has the names."""
    metrics_push_seconds: float = Field(15.0, ge=1)
    """Seconds between two pushes."""
    snapshot_seconds: NonNegativeFloat = 0.0
    """Seconds between two `snapshot` events, which put the metrics into the log. 0: none."""


class Settings(Model, Engine, Worker, HTTP, Routes, Guardrails, Log, Metrics):
    """The worker's settings."""

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
        """Raise StartError if MODEL_NAME is not set: an endpoint's worker must not serve what nobody chose."""
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
