"""vLLM's own way from generated tokens to outputs, without an engine: the tokens are given, and so is what merges them.

`Replay` stands where the engine client stands. What detokenises, merges and cuts at stop strings is vLLM's.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

Steps = Sequence[Sequence[int]]  # of one output: what each step of the engine generated


class Replay:
    """An engine client that has generated these tokens for whatever it is asked."""

    def __init__(self, tokenizer: Any, outputs: Sequence[Steps], *, finish_reason: str = "stop") -> None:
        self.tokenizer = tokenizer
        self.outputs = outputs
        self.finish_reason = finish_reason

    async def generate(self, prompt: Sequence[int], params: Any, request_id: str = "r") -> AsyncGenerator[Any, None]:
        """vLLM's RequestOutputs, as merged as `outputs` says."""
        from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
        from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

        processor = OutputProcessor(self.tokenizer, log_stats=False)
        collector = RequestOutputCollector(params.output_kind, request_id)
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=request_id,
        )
        processor.add_request(request, None, None, 0, collector)
        left = sum(len(steps) for steps in self.outputs)
        for steps in self.outputs:
            for ids in steps:
                left -= 1
                end = None if left else FinishReason[self.finish_reason.upper()]
                step = EngineCoreOutput(request_id=request_id, new_token_ids=list(ids), finish_reason=end)
                processor.process_outputs([step])
            output = collector.get_nowait()
            if output is not None:
                yield output
                if output.finished:
                    return

    def detokenizer(self, params: Any, prompt: Sequence[int]) -> Any:
        """As application.py makes it."""
        from llmpod.worker.engine.app.application import detokenizer

        return detokenizer(self.tokenizer, params, prompt)


def one_by_one(ids: Sequence[int]) -> list[list[list[int]]]:
    """An output per token."""
    return [[[token_id]] for token_id in ids]


def splits(ids: Sequence[int], seed: int) -> Iterator[list[list[list[int]]]]:
    """Ways in which the worker can get these tokens: steps of several tokens, and outputs of several steps."""
    for most, at_once in ((2, 1), (3, 1), (8, 1), (len(ids), 1), (1, 4), (5, 3)):
        chance = random.Random(f"{seed} {most} {at_once}")
        steps = list(_cut(list(ids), at_once, chance))
        yield list(_cut(steps, most, chance))
    yield [[[ids[0]]], [[token_id] for token_id in ids[1:]]]
    yield [[[token_id] for token_id in ids]]


def _cut(items: list[Any], most: int, chance: random.Random) -> Iterator[list[Any]]:
    position = 0
    while position < len(items):
        size = chance.randint(1, most)
        yield items[position : position + size]
        position += size
