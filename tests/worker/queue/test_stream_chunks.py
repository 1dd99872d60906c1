"""Coalescing: nothing is lost, repeated, reordered or cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.queue.stream_chunks import Deltas, Item, merge, split

pytestmark = pytest.mark.process


def native(*choices: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"choices": list(choices), **rest}


def texts(*items: Any) -> dict[int, str]:
    said: dict[int, str] = {}
    for item in items:
        for choice in item["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["text"]
    return said


def rows(*items: Any) -> list[Any]:
    return [row for item in items for choice in item["choices"] for row in choice.get("logprobs") or ()]


choices = st.builds(
    lambda index, text, logprobs: {"index": index, "text": text} | ({"logprobs": logprobs} if logprobs else {}),
    st.integers(0, 2),
    st.text(),
    st.lists(st.fixed_dictionaries({"token": st.text(max_size=3)}), max_size=3),
)
replies = st.lists(choices, max_size=3, unique_by=lambda choice: choice["index"]).map(lambda some: native(*some))


@given(st.lists(replies, min_size=1, max_size=6))
def test_merged_replies_say_what_the_replies_said(parts: list[Any]) -> None:
    before = json.dumps(parts)
    whole: Any = parts[0]
    for part in parts[1:]:
        whole = merge(whole, part)
    assert texts(whole) == texts(*parts)
    for index in range(3):
        of = [native(*(choice for choice in part["choices"] if choice["index"] == index)) for part in [whole, *parts]]
        assert rows(of[0]) == rows(*of[1:])
    assert json.dumps(parts) == before, "merging changed what it was given"


def test_a_merged_reply_keeps_how_it_ended() -> None:
    last = native({"index": 0, "text": "b", "finish_reason": "stop"}, usage={"output": 2}, model="m")
    whole: Any = merge(native({"index": 0, "text": "a"}, {"index": 1, "text": "c"}), last)
    assert whole["choices"] == [{"index": 0, "text": "ab", "finish_reason": "stop"}, {"index": 1, "text": "c"}]
    assert (whole["usage"], whole["model"]) == ({"output": 2}, "m")


@pytest.mark.parametrize(
    "other", ["data: x\n\n", {"error": "{}"}, {"blocked": True}, {"object": "chunk", "choices": [{"index": 0}]}]
)
def test_what_has_another_form_is_not_merged(other: Item) -> None:
    assert merge(native({"index": 0, "text": "a"}), other) is None
    assert merge(other, native({"index": 0, "text": "a"})) is None


@given(st.text(max_size=4000), st.integers(0, 700), st.integers(2000, 6000))
def test_parts_fit_and_join_to_the_whole(text: str, tokens: int, limit: int) -> None:
    logprobs = [{"token": "t"}] * tokens
    item = native(
        {"index": 0, "text": text} | ({"logprobs": logprobs} if tokens else {}),
        {"index": 1, "text": text[:50], "finish_reason": "stop"},
        usage={"output": tokens},
    )
    parts: list[Any] = list(split(item, limit))
    assert texts(*parts) == texts(item)
    assert rows(*parts) == rows(item)
    assert parts[-1]["usage"] == {"output": tokens}
    if not tokens:
        assert all(len(json.dumps(part).encode()) <= limit for part in parts)


def test_an_event_is_never_cut() -> None:
    event = f"data: {'x' * 3_000_000}\n\n"
    assert list(split(event)) == [event]


async def test_joined_events_stay_below_the_limit_and_whole() -> None:
    sent = [f"data: {'é' * number}\n\n" for number in range(200)]

    async def events() -> AsyncGenerator[Item, None]:
        for event in sent:
            yield event

    arrived: list[Item] = []
    async with aclosing(Deltas(events(), 3000)) as deltas:
        turn = 0
        while (item := await deltas.next()) is not None:
            assert str(item).endswith("\n\n")
            assert len(json.dumps(item, ensure_ascii=False).encode()) < 3000
            turn += 1
            if turn % 3:  # two POSTs of three fail
                deltas.carry(item)
            else:
                arrived.append(item)
    assert "".join(map(str, arrived)) == "".join(sent)
    assert len(arrived) < len(sent)


@pytest.mark.parametrize("reply", [native({"index": 0, "text": "a"}), "data: a\n\n"])
async def test_a_reply_is_not_asked_for_while_a_post_is_under_way(reply: Item) -> None:
    asked = 0

    async def replies() -> AsyncGenerator[Item, None]:
        nonlocal asked
        for _ in range(5):
            asked += 1
            yield reply

    async with aclosing(Deltas(replies())) as deltas:
        await deltas.next()
        await asyncio.sleep(0.01)
        assert asked == 1, "the engine cannot merge what was already handed over"
        await deltas.next()
        assert asked == 2


async def test_what_is_carried_comes_first_and_with_company() -> None:
    async def replies() -> AsyncGenerator[Item, None]:
        for text in "abc":
            yield native({"index": 0, "text": text})

    async with aclosing(Deltas(replies())) as deltas:
        first = await deltas.next()
        assert first is not None
        deltas.carry(first)
        assert texts(await deltas.next()) == {0: "ab"}
        assert texts(await deltas.next()) == {0: "c"}
        assert await deltas.next() is None


async def test_what_is_carried_at_the_end_is_not_forgotten() -> None:
    async def replies() -> AsyncGenerator[Item, None]:
        yield native({"index": 0, "text": "a"})

    async with aclosing(Deltas(replies())) as deltas:
        item = await deltas.next()
        await asyncio.sleep(0)
        for _ in range(3):
            assert item is not None
            deltas.carry(item)
            item = await deltas.next()
        assert texts(item) == {0: "a"}
        assert await deltas.next() is None


@pytest.mark.parametrize("waiting", [False, True])
async def test_closing_closes_the_source_wherever_it_is(waiting: bool) -> None:
    closed = []

    async def replies() -> AsyncGenerator[Item, None]:
        try:
            yield native({"index": 0, "text": "a"})
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    deltas = Deltas(replies())
    item = await deltas.next()
    assert item is not None
    if waiting:
        deltas.carry(item)
        assert await deltas.next() == item, "nothing has come to keep it company"
    await deltas.aclose()
    assert closed == [True]


async def test_what_the_source_raises_is_raised_after_what_it_said() -> None:
    async def replies() -> AsyncGenerator[Item, None]:
        yield "data: 1\n\n"
        raise ValueError("broken")

    async with aclosing(Deltas(replies())) as deltas:
        assert await deltas.next() == "data: 1\n\n"
        with pytest.raises(ValueError, match="broken"):
            await deltas.next()
