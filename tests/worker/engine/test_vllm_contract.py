"""Every name of vLLM's that the worker uses, and how it uses it. When an upgrade breaks one, this says which.

`make compat` runs this file against an older release, too.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from llmpod.worker.engine.app import metered_engine
from llmpod.worker.engine.renderer import Guarded
from llmpod.worker.jobs.inputs import NativeRequest

PARAMETERS: list[tuple[str, str, set[str]]] = [
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.from_engine_args", {"engine_args", "stat_loggers"}),
    (
        "vllm.engine.async_llm_engine",
        "AsyncLLMEngine.generate",
        {"prompt", "sampling_params", "request_id", "trace_headers", "reasoning_ended"},
    ),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.abort", {"request_id"}),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.get_tokenizer", set()),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.shutdown", set()),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.get_supported_tasks", set()),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.add_cli_args", {"parser"}),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.from_cli_args", {"args"}),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.create_engine_config", set()),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.create_model_config", set()),
    ("vllm.config", "ModelConfig.get_diff_sampling_param", set()),
    ("vllm.v1.engine.output_processor", "OutputProcessor.get_num_unfinished_requests", set()),
    ("vllm.v1.engine.detokenizer", "IncrementalDetokenizer.from_new_request", {"tokenizer", "request"}),
    ("vllm.v1.engine.detokenizer", "IncrementalDetokenizer.update", {"new_token_ids", "stop_terminated"}),
    ("vllm.v1.engine.detokenizer", "IncrementalDetokenizer.get_next_output_text", {"finished", "delta"}),
    ("vllm.platforms.interface", "Platform.is_cpu", set()),
    ("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.sample_tokens", {"grammar_output"}),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.abort", {"request_id", "internal"}),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine.is_sleeping", set()),
    ("vllm.v1.engine.core_client", "AsyncMPClient.add_request_async", {"request"}),
    ("vllm.v1.serial_utils", "MsgpackEncoder.encode", {"obj"}),
    ("vllm.v1.serial_utils", "MsgpackDecoder.decode", {"bufs"}),
    ("vllm.v1.structured_output", "StructuredOutputManager", {"vllm_config"}),
    ("vllm.v1.structured_output", "StructuredOutputManager.grammar_init", {"request"}),
    ("vllm.v1.structured_output.request", "StructuredOutputRequest.from_sampling_params", {"sampling_params"}),
    (
        "vllm",
        "SamplingParams.verify",
        {"model_config", "speculative_config", "structured_outputs_config", "tokenizer"},
    ),
]


def found(module: str, path: str) -> Any:
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(("module", "path", "parameters"), PARAMETERS)
def test_a_function_is_there_and_takes_what_it_is_given(module: str, path: str, parameters: set[str]) -> None:
    function: Callable[..., Any] = found(module, path)
    signature = inspect.signature(function)
    assert parameters <= set(signature.parameters)
    required = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    assert required - {"self", "cls"} <= parameters, "a new argument has no default"


def test_engine_arguments_have_the_fields_that_settings_fill() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert fields >= {
        "model",
        "served_model_name",
        "revision",
        "tokenizer",
        "tokenizer_revision",
        "quantization",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "trust_remote_code",
        "enforce_eager",
        "enable_chunked_prefill",
    }


def test_sampling_params_are_a_struct_that_msgspec_fills_and_checks() -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    assert issubclass(SamplingParams, msgspec.Struct)
    assert {"n", "temperature", "top_p", "max_tokens", "stop", "output_kind"} <= set(SamplingParams.__struct_fields__)
    assert msgspec.convert({"temperature": 0.5, "max_tokens": 7}, SamplingParams, str_keys=True).max_tokens == 7
    with pytest.raises(msgspec.ValidationError, match=r"\$\.temperature"):
        msgspec.convert({"temperature": "hot"}, SamplingParams, str_keys=True)
    assert {"DELTA", "FINAL_ONLY"} <= set(RequestOutputKind.__members__)


def test_a_check_of_structured_outputs_without_their_configuration_is_none() -> None:
    """That is how it leaves the event loop for constraint_process.py, which makes it with the configuration."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="("))
    params._validate_structured_outputs(None, None, None)
    assert params.structured_outputs._backend is None
    assert params.structured_outputs._backend_was_auto is False


def test_what_a_client_may_not_set_is_still_called_so() -> None:
    """A renamed internal parameter would open up under its new name."""
    from vllm import SamplingParams

    from llmpod.worker.engine.sampling import NOT_FROM_CLIENTS

    assert set(SamplingParams.__struct_fields__) & NOT_FROM_CLIENTS >= {"output_kind", "detokenize", "extra_args"}


# A client may set these, and no others: a parameter that a new release adds is looked at before it is let in.
OPEN_TO_CLIENTS = {
    "allowed_token_ids",
    "bad_words",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_detection",
    "repetition_penalty",
    "seed",
    "skip_reading_prefix_cache",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "structured_outputs",
    "temperature",
    "thinking_token_budget",
    "top_k",
    "top_p",
}


def test_a_new_sampling_parameter_is_noticed() -> None:
    from vllm import SamplingParams

    from llmpod.worker.engine.sampling import NOT_FROM_CLIENTS

    names = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert names - NOT_FROM_CLIENTS <= OPEN_TO_CLIENTS


def test_outputs_have_what_replies_are_made_of() -> None:
    from vllm.outputs import CompletionOutput, RequestOutput

    request = set(inspect.signature(RequestOutput.__init__).parameters)
    assert {"prompt_token_ids", "outputs", "finished", "metrics", "num_cached_tokens"} <= request
    choice = {field.name for field in dataclasses.fields(CompletionOutput)}
    assert {"index", "text", "token_ids", "logprobs", "finish_reason", "stop_reason"} <= choice


def test_request_times_have_the_names_that_the_end_line_is_made_of() -> None:
    from vllm.v1.metrics.stats import RequestStateStats

    fields = {field.name for field in dataclasses.fields(RequestStateStats)}
    assert {"queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"} <= fields


def test_the_exceptions_that_jobs_fail_by_are_there() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    assert issubclass(EngineDeadError, Exception)
    assert issubclass(EngineGenerateError, Exception)


def test_schedulers_config_still_refuses_what_the_clamp_prevents() -> None:
    from vllm.config import SchedulerConfig

    for batched, length, seqs, chunked in ((512, 4096, 8, False), (64, 64, 128, True)):
        with pytest.raises(ValueError, match="max_num_batched_tokens"):
            SchedulerConfig(
                max_num_batched_tokens=batched,
                max_model_len=length,
                max_num_seqs=seqs,
                enable_chunked_prefill=chunked,
                is_encoder_decoder=False,
            )


async def test_the_engine_has_the_attributes_the_worker_reads(engine: Any) -> None:
    llm = engine._llm
    assert isinstance(llm.model_config.max_model_len, int)
    assert isinstance(llm.vllm_config.scheduler_config.max_num_seqs, int)
    assert isinstance(llm.vllm_config.scheduler_config.max_num_batched_tokens, int)
    assert llm.vllm_config.cache_config.num_gpu_blocks > 0
    assert engine.kv_cache_tokens > engine.max_model_len


def test_what_a_model_takes_beside_text_is_said_by_its_processor() -> None:
    from vllm.multimodal.processing import BaseProcessingInfo
    from vllm.renderers.base import BaseRenderer

    assert hasattr(BaseProcessingInfo, "allowed_mm_limits")
    assert "self.mm_processor" in inspect.getsource(BaseRenderer)


def test_the_hubs_client_reads_whether_it_is_offline_at_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.OfflineModeIsEnabled):
        HfApi().model_info("owner/model")


def test_a_stat_logger_is_told_of_every_step() -> None:
    from vllm.v1.metrics.loggers import AggregateStatLoggerBase

    assert AggregateStatLoggerBase.__abstractmethods__ == {"__init__", "record", "log_engine_initialized"}


def test_a_dead_engine_says_so() -> None:
    assert isinstance(
        inspect.getattr_static(found("vllm.engine.async_llm_engine", "AsyncLLMEngine"), "errored"), property
    )


def test_the_application_is_built_from_what_the_worker_gives_it() -> None:
    from llmpod.worker.engine.app.application import _application

    takes = [list(inspect.signature(function).parameters.values()) for function in _application()]
    for parameters, given in zip(takes, (3, 4), strict=True):
        assert len(parameters) >= given
        assert all(parameter.default is not parameter.empty for parameter in parameters[given:])


async def test_the_application_has_the_parts_the_worker_reaches_into(engine: Any) -> None:
    application, renderer = engine.application, engine._llm.renderer
    assert isinstance(renderer, Guarded)
    assert application._guards, "control tokens in a client's text are not defused"
    assert application._state.openai_serving_models.lora_requests == {}
    responses = application._state.openai_serving_responses
    for store in ("response_store", "msg_store", "event_store"):
        assert isinstance(getattr(responses, store), metered_engine.Bounded)


def test_every_renderer_of_vllm_has_the_steps_in_which_the_guardrails_are() -> None:
    registry = found("vllm.renderers.registry", "RENDERER_REGISTRY")
    base = found("vllm.renderers.base", "BaseRenderer")
    for name, parameters in (
        ("render_messages", ["self", "messages", "params"]),
        ("render_messages_async", ["self", "messages", "params"]),
        ("_tokenize_prompt", ["self", "prompt", "params"]),
        ("process_for_engine", ["self", "prompt", "arrival_time"]),
        ("process_for_engine_async", ["self", "prompt", "arrival_time"]),
    ):
        step = inspect.signature(getattr(base, name))
        assert [p.name for p in step.parameters.values() if p.kind is not p.KEYWORD_ONLY] == parameters, name
        assert inspect.iscoroutinefunction(getattr(base, name)) is name.endswith("_async")
    assert callable(registry.load_renderer_cls)
    chat_params = found("vllm.renderers.params", "ChatParams")
    assert "chat_template_kwargs" in {field.name for field in dataclasses.fields(chat_params)}


async def test_what_a_request_has_produced_is_there_until_it_is_aborted(engine: Any) -> None:
    processor = engine._llm.output_processor
    ids = await engine.render(NativeRequest("Hello", None, {}, None, False, None, True))
    params = engine.sampling({"ignore_eos": True, "n": 2}, 64, stream=True)
    async with aclosing(engine.generate(ids, params, "running")) as steps:
        await anext(steps)
        [parent] = processor.parent_requests.values()
        assert parent.external_req_id == "running"
        assert parent.output_aggregator == []
        for name in parent.child_requests:
            state = processor.request_states[name]
            assert (state.external_req_id, state.prompt_len) == ("running", len(ids))
            assert state.request_index in (0, 1)
            assert isinstance(state.is_prefilling, bool)
            assert isinstance(state.num_cached_tokens, int)
            assert isinstance(state.detokenizer.num_output_tokens(), int)


async def test_every_step_is_a_sign_of_life(engine: Any) -> None:
    before = engine.last_step
    ids = await engine.render(NativeRequest("Hello", None, {}, None, False, None, True))
    async for _ in engine.generate(ids, engine.sampling({"ignore_eos": True}, 64, stream=False), "signs-of-life"):
        pass
    assert engine.last_step > before
    assert not engine.dead
