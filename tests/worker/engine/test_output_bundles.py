"""Bundles of the engine's outputs: what is kept, for how long, and that nothing is lost; with vLLM's own objects."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.output_bundles import (
    _COUNTS,
    _NOT_JOINED,
    MAX_GAP_S,
    MIN_GAP_S,
    STEP,
    WHOLE_S,
    Bundles,
    scheduler_name,
)
from llmpod.worker.engine.start import engine_arguments
from llmpod.worker.jobs.engine_output import Step
from llmpod.worker.jobs.metering import JobMeter, current_meter
from llmpod.worker.settings import Settings
from tests.worker.scripted import until

RATE = 100.0
STEP_S = 0.01


class Alive(NamedTuple):
    """What is used of vLLM's request."""

    sampling_params: Any


def params(*, stream: bool = False, **given: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(max_tokens=1000, output_kind=kind, **given)


def output(name: str, *tokens: int, end: bool = False, **given: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    return EngineCoreOutput(name, list(tokens), finish_reason=FinishReason.LENGTH if end else None, **given)


def tokens_at(steps: int, *requests: Any, rate: float = RATE, step_s: float = STEP_S) -> list[dict[str, int]]:
    """How many tokens of each request are sent after each step, of so many with a token of each."""
    bundles, alive = Bundles(rate), {str(number): Alive(one) for number, one in enumerate(requests)}
    sent = []
    for step in range(steps):
        ready = bundles.ready([output(name, step) for name in alive], alive, 1000.003 + step * step_s)
        sent.append({one.request_id: len(one.new_token_ids) for one in ready})
    return sent


def test_a_whole_answer_s_first_token_is_sent_at_once_and_the_rest_ten_times_a_second() -> None:
    sent = tokens_at(100, params(), params())
    assert sent[0] == {"0": 1, "1": 1}
    counts = [step["0"] for step in sent if step]
    assert sum(counts) > 85
    assert 10 <= len(counts) <= 12
    assert all(set(step) in (set(), {"0", "1"}) for step in sent), "several share a message"


def test_streams_share_the_rate_and_the_messages() -> None:
    sent = tokens_at(300, *(params(stream=True) for _ in range(20)))
    chunks = sum(map(len, sent[1:]))
    assert 0.6 * RATE < chunks / 3 < 0.85 * RATE
    assert sum(bool(step) for step in sent) < 80, "steps without a message"
    last = {name: max(at for at, step in enumerate(sent) if name in step) for name in sent[0]}
    assert min(last.values()) > 300 - 1.25 * 20 / (0.85 * RATE) / STEP_S - 2, "none is left behind"


def test_a_stream_that_stays_below_the_rate_waits_for_nothing() -> None:
    assert tokens_at(50, params(stream=True), rate=1000) == [{"0": 1}] * 50


def test_a_single_fast_stream_has_no_more_than_160_chunks_a_second() -> None:
    sent = tokens_at(1000, params(stream=True), rate=1000, step_s=0.001)
    assert 120 <= sum(map(bool, sent)) <= 160


def test_a_strict_rate_does_not_silence_the_engine() -> None:
    sent = tokens_at(1000, *(params(stream=True) for _ in range(50)), rate=0.1)
    assert sum(bool(step) for step in sent) >= 8


@pytest.mark.parametrize("given", [{"stop": ["end"]}, {"stop": ["a", "b"], "stream": True}])
def test_what_the_workers_process_looks_for_a_stop_in_is_sent_after_each_step(given: dict[str, Any]) -> None:
    assert tokens_at(30, params(**given)) == [{"0": 1}] * 30


@pytest.mark.parametrize("field", ["new_logprobs", "routed_experts", "new_sampling_mask", "prefill_stats"])
def test_an_output_with_more_than_tokens_is_sent_with_those_before_it(field: str) -> None:
    bundles, alive = Bundles(RATE), {"0": Alive(params())}
    bundles.ready([output("0", 0)], alive, 1000.01)
    assert bundles.ready([output("0", 1)], alive, 1000.02) == []
    (ready,) = bundles.ready([output("0", 2, **{field: object()})], alive, 1000.03)
    assert ready.new_token_ids == [1, 2]


def test_nothing_is_kept_of_a_request_that_was_aborted() -> None:
    bundles, alive = Bundles(RATE), {"0": Alive(params())}
    bundles.ready([output("0", 0)], alive, 1000.01)
    assert bundles.ready([output("0", 1)], alive, 1000.02) == []
    assert bundles.keeps
    assert bundles.ready([], {}, 1000.03) == []
    assert not bundles.keeps


def test_events_are_kept_in_their_order() -> None:
    bundles, alive = Bundles(RATE), {"0": Alive(params())}
    bundles.ready([output("0", 0, events=["queued"])], alive, 1000.01)
    bundles.ready([output("0", 1, events=["preempted"])], alive, 1000.02)
    bundles.ready([output("0", 2)], alive, 1000.03)
    (ready,) = bundles.ready([output("0", 3, events=["scheduled"], end=True)], {}, 1000.04)
    assert (ready.new_token_ids, ready.events) == ([1, 2, 3], ["preempted", "scheduled"])


REQUESTS = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.integers(0, 40), st.integers(1, 60), st.booleans()), max_size=8
)


@given(REQUESTS, st.lists(st.floats(0.0005, 0.3), min_size=101, max_size=101), st.floats(1, 1000))
def test_every_token_is_sent_once_in_order_and_in_time(
    requests: list[tuple[bool, bool, int, int, bool]], waits_s: list[float], rate: float
) -> None:
    """Requests of all kinds that begin, end and are aborted at any step."""
    bundles, now = Bundles(rate), 1000.0
    made: dict[str, list[int]] = defaultdict(list)
    sent: dict[str, list[int]] = defaultdict(list)
    waiting: dict[str, float] = {}  # since when
    for step, wait_s in enumerate(waits_s):
        now += wait_s
        outputs, alive, ending = [], {}, set()
        for number, (stream, stop, begin, length, abort) in enumerate(requests):
            name, last = str(number), begin + length - 1
            if not begin <= step <= last or (abort and step == last):
                continue
            count = 1 + (step + number) % 3
            tokens = list(range(len(made[name]), len(made[name]) + count))
            made[name] += tokens
            waiting.setdefault(name, now)
            outputs.append(output(name, *tokens, end=step == last))
            if step == last:
                ending.add(name)
            else:
                alive[name] = Alive(params(stream=stream, stop=["x"] if stop else None))
        at_once = {
            str(number)
            for number, (_, stop, begin, _, _) in enumerate(requests)
            if (stop or begin == step) and str(number) in alive
        }
        ready = bundles.ready(outputs, alive, now)
        assert at_once | ending <= {one.request_id for one in ready}
        for one in ready:
            sent[one.request_id] += one.new_token_ids
            del waiting[one.request_id]
        for name, since in waiting.items():
            gap_s = min(max(len(requests) / (0.85 * rate), MIN_GAP_S), MAX_GAP_S)
            longest = gap_s * (1 + STEP) if requests[int(name)][0] else WHOLE_S
            assert name not in alive or now - since <= longest + wait_s
    for name, tokens in made.items():
        aborted = requests[int(name)][4] or requests[int(name)][2] + requests[int(name)][3] > len(waits_s)
        assert sent[name] == (tokens[: len(sent[name])] if aborted else tokens)
    bundles.ready([], {}, now)
    assert not bundles._requests
    assert not bundles._streams


# -- in vLLM's own scheduler -------------------------------------------------------------------------------------------

LENGTH = 300
STATES = {
    *("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "num_kv_fetch_reqs_by_stage"),
    *("step_counter", "current_wave", "kv_cache_usage", "iteration_details", "prefix_cache_stats"),
    *("waiting_lora_adapters", "running_lora_adapters"),
}
"""Fields of vLLM's statistics of a step that say how things are, and of which a later message has all."""
AT_ENDS = {
    *("new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "pooling_output", "stop_reason", "finish_reason"),
    *("kv_transfer_params", "ec_transfer_params", "mm_cache_miss_hashes", "spec_decode_metrics"),
}
"""Fields of an output that only a request's first or last has, which are not kept."""
LATEST = {"request_id", "trace_headers", "num_nans_in_logits"}
"""Fields of which the last output's value holds for all."""


def test_nothing_else_is_in_vllms_outputs_and_statistics() -> None:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats

    outputs = set(EngineCoreOutput.__struct_fields__)
    assert outputs <= {"new_token_ids", "events", *_NOT_JOINED, *AT_ENDS, *LATEST}
    assert {"new_token_ids", "events", "finish_reason", "new_logprobs"} <= outputs
    assert set(SchedulerStats.__dataclass_fields__) <= STATES | set(_COUNTS)
    assert {"requests", "preempted_requests", "reset"} <= set(PrefixCacheStats.__dataclass_fields__)


@pytest.mark.parametrize("in_advance", [False, True])
def test_the_scheduler_is_the_one_that_vllm_would_choose(in_advance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import SchedulerConfig

    given = {"max_num_batched_tokens": 64, "max_model_len": 64, "max_num_seqs": 8, "is_encoder_decoder": False}
    config = SchedulerConfig(scheduler_cls=scheduler_name(RATE), async_scheduling=in_advance, **given)
    own = SchedulerConfig(async_scheduling=in_advance, **given).get_scheduler_cls()
    monkeypatch.setattr(own, "__init__", lambda self, **named: None)
    vllm_config = SimpleNamespace(scheduler_config=config)
    made = config.get_scheduler_cls()(vllm_config=vllm_config)
    assert isinstance(made, own)
    assert made.update_from_output.__func__ is not own.update_from_output


def test_the_rate_is_in_no_key_of_compiled_code() -> None:
    keys = set()
    for rate in (0.5, 500.0, 1e9):
        arguments = engine_arguments.read(Settings(max_stream_chunks_per_s=rate), {}, lambda *_, **__: None).engine
        assert arguments.scheduler_cls == scheduler_name(rate)
        keys.add(arguments.create_engine_config().compute_hash())
    assert len(keys) == 1


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """For each message of the engine's process the numbers of tokens in it, by request."""
    from vllm.v1.engine.output_processor import OutputProcessor

    found: list[list[int]] = []
    process = OutputProcessor.process_outputs

    def noting(self: Any, outputs: list[Any], *args: Any, **named: Any) -> Any:
        found.append([len(one.new_token_ids) for one in outputs])
        return process(self, outputs, *args, **named)

    monkeypatch.setattr(OutputProcessor, "process_outputs", noting)
    return found


async def answer(engine: Engine, name: str, *, stream: bool = False, **given: Any) -> tuple[str, int, list[Step]]:
    """The text of an answer of at most LENGTH tokens, its number of tokens, and the steps in which it came."""
    asked = engine.sampling({"temperature": 0, "ignore_eos": True} | given, LENGTH, stream=stream)
    steps = [step async for step in engine.generate([1, 2, 3], asked, name)]
    return "".join(delta.text for step in steps for delta in step.deltas), steps[-1].usage.completion_tokens, steps


@pytest.mark.engine
async def test_a_whole_answer_takes_few_messages_and_is_the_streamed_one(
    engine: Engine, received: list[list[int]]
) -> None:
    text, tokens, _ = await answer(engine, "whole")
    assert (received[0], sum(map(sum, received))) == ([1], LENGTH)
    assert len(received) < LENGTH / 4
    assert (text, tokens) == (await answer(engine, "streamed", stream=True))[:2]


@pytest.mark.engine
async def test_many_streams_get_their_own_tokens_in_fewer_messages(engine: Engine, received: list[list[int]]) -> None:
    kinds: list[dict[str, Any]] = [{"temperature": 1.0, "seed": seed} for seed in range(16)]
    together = await asyncio.gather(
        *(answer(engine, f"stream-{number}", stream=True, **kind) for number, kind in enumerate(kinds))
    )
    assert sum(map(sum, received)) == 16 * LENGTH
    assert sum(map(len, received)) < 16 * LENGTH / 2, "outputs of several tokens"
    for number, kind in enumerate(kinds):
        assert together[number][:2] == (await answer(engine, f"whole-{number}", **kind))[:2]


@pytest.mark.engine
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_count_where_it_stands(
    engine: Engine, stream: bool, received: list[list[int]]
) -> None:
    kind: dict[str, Any] = {"temperature": 1.0, "seed": 1}
    text = (await answer(engine, "all", **kind))[0]
    received.clear()
    stop = text[len(text) // 2 :][:4]
    found, tokens, _ = await answer(engine, "stopped", stream=stream, stop=[stop], **kind)
    assert found == text[: text.index(stop)]
    assert [sum(message) for message in received] == [1] * len(received)
    assert tokens == len(received), "none after the stop"


@pytest.mark.engine
@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_those_of_each_token(engine: Engine, stream: bool) -> None:
    _, tokens, steps = await answer(engine, "logprobs", stream=stream, logprobs=1)
    rows = [row for step in steps for delta in step.deltas for row in delta.logprobs or ()]
    assert len(rows) == tokens == LENGTH


@pytest.mark.engine
async def test_of_a_cancelled_answer_all_is_counted_that_was_sent(engine: Engine, received: list[list[int]]) -> None:
    """What the engine's process keeps at that moment, of a tenth of a second, is not."""
    meter = JobMeter()
    asked = engine.sampling({"ignore_eos": True}, 1000, stream=False)
    token = current_meter.set(meter)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), aclosing(engine.generate([1, 2, 3], asked, "cancelled")) as steps:
                await anext(steps)
    finally:
        current_meter.reset(token)
    assert len(received) >= 2
    assert meter.completion_tokens == sum(map(sum, received))
    await until(lambda: engine.unfinished == 0)
