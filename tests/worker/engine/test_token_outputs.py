"""What was merged comes apart again: the same outputs as if the engine's reader had always been in time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from llmpod.worker.engine.app.metered_engine import MeteredEngine
from llmpod.worker.engine.token_outputs import TokenOutputs
from llmpod.worker.jobs.metering import JobMeter, current_meter
from llmpod.worker.settings import DEMO_MODEL
from tests.worker.replay import Replay, one_by_one, splits


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(DEMO_MODEL))


async def outputs_of(outputs: Any, *, finish_reason: str, **sampling: Any) -> list[Any]:
    replay = Replay(tokenizer(), outputs, finish_reason=finish_reason)
    current_meter.set(JobMeter(parsed=True))
    params = SamplingParams(output_kind=RequestOutputKind.DELTA, **sampling)
    found = MeteredEngine(replay, replay.detokenizer).generate(tokenizer().encode("Hi"), params)
    return [
        (choice.text, list(choice.token_ids), choice.finish_reason, choice.stop_reason, output.finished)
        async for output in found
        for choice in output.outputs
    ]


@settings(max_examples=60)
@given(
    ids=st.lists(st.integers(0, 3000), min_size=1, max_size=40)
    | st.text("abc日🙂é .", min_size=1).map(lambda text: list(tokenizer().encode(text))),
    stop=st.lists(st.text("abc日🙂 .", min_size=1, max_size=3), max_size=2),
    finish_reason=st.sampled_from(["stop", "length"]),
    rest=st.fixed_dictionaries(
        {
            "include_stop_str_in_output": st.booleans(),
            "skip_special_tokens": st.booleans(),
            "min_tokens": st.sampled_from([0, 3]),
        }
    ),
)
async def test_outputs_come_apart_as_they_were_made(
    ids: list[int], stop: list[str], finish_reason: str, rest: dict[str, Any]
) -> None:
    sampling = {"stop": stop, "finish_reason": finish_reason} | rest
    expected = await outputs_of(one_by_one(ids), **sampling)
    for outputs in splits(ids, seed=len(ids)):
        assert await outputs_of(outputs, **sampling) == expected


class Spells:
    """A detokenizer that is wrong."""

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> None:
        pass

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        return "?"


def merged(**choices: list[int]) -> Any:
    """An output with these tokens for each of its answers, and a row of logprobs for each token."""
    made: Any = [
        CompletionOutput(index, text, ids, None, [{token: None} for token in ids], finish_reason="stop")  # type: ignore[misc,dict-item,list-item]
        for index, (text, ids) in enumerate(choices.items())
    ]
    return RequestOutput("r", None, [1], None, made, True)


def test_a_row_of_logprobs_stays_with_its_token_and_only_the_last_output_ends_the_request() -> None:
    def each(output: Any) -> list[Any]:
        return [(choice.index, choice.token_ids, choice.logprobs, choice.finish_reason) for choice in output.outputs]

    outputs = list(TokenOutputs(lambda _: Spells()).split(merged(abc=[7, 8, 9], x=[5])))
    assert [each(output) for output in outputs] == [
        [(0, [7], [{7: None}], None), (1, [5], [{5: None}], "stop")],
        [(0, [8], [{8: None}], None)],
        [(0, [9], [{9: None}], "stop")],
    ]
    assert [output.finished for output in outputs] == [False, False, True]


def test_no_text_is_lost_or_made_up_where_the_detokenizer_disagrees() -> None:
    outputs = list(TokenOutputs(lambda _: Spells()).split(merged(abc=[7, 8, 9])))
    assert "".join(choice.text for output in outputs for choice in output.outputs) == "abc"


@pytest.mark.parametrize(("parsed", "kind"), [(False, "DELTA"), (True, "FINAL_ONLY"), (True, "CUMULATIVE")])
async def test_what_no_streaming_parser_reads_stays_merged(parsed: bool, kind: str) -> None:
    class Engine:
        async def generate(self, *_: Any) -> AsyncGenerator[Any, None]:
            yield merged(abc=[7, 8, 9])

    current_meter.set(JobMeter(parsed=parsed))
    params = SamplingParams(output_kind=RequestOutputKind[kind])
    (output,) = [output async for output in MeteredEngine(Engine(), lambda *_: Spells()).generate("", params)]
    assert output.outputs[0].token_ids == [7, 8, 9]
