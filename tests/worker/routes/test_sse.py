"""Event streams: whatever pieces the bytes come in, the same whole events go out."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.routes import sse

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
EVENT = st.builds(
    lambda name, text: (
        (f"event: {name}\n".encode() if name else b"")
        + b"data: "
        + orjson.dumps({"choices": [{"delta": {"content": text}}]})
        + b"\n\n"
    ),
    st.sampled_from(["", "message_delta", "response.output_text.delta"]),
    TEXT,
)
STREAM = st.lists(EVENT, max_size=12)


@given(STREAM, st.data())
def test_a_stream_split_anywhere_gives_the_same_events(events: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    splitter = sse.Splitter()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(stream[start:end])
    assert found == events
    assert splitter.rest() == b""


@given(STREAM)
def test_a_stream_that_comes_byte_by_byte_gives_the_same_events(events: list[bytes]) -> None:
    splitter = sse.Splitter()
    found = [event for byte in b"".join(events) for event in splitter.feed(bytes([byte]))]
    assert found == events


@given(STREAM, st.integers(1, 2000))
def test_merged_chunks_are_whole_events_in_order_and_within_the_limit(events: list[bytes], limit: int) -> None:
    chunks = list(sse.merge(events, limit))
    assert b"".join(chunks) == b"".join(events)
    for chunk in chunks:
        chunk.decode()  # no character is cut in two
        whole = sse.Splitter()
        inside = whole.feed(chunk)
        assert whole.rest() == b""
        assert len(chunk) <= limit or len(inside) == 1


def test_windows_line_ends_and_comments_are_events_too() -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b": keep-alive\n\ndata: 1\r\n\r\ndata: [DO") == [b": keep-alive\n\n", b"data: 1\r\n\r\n"]
    assert splitter.rest() == b"data: [DO"
    (done,) = splitter.feed(b"NE]\n\n")
    assert done == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'data: {"error":{"message":"x","code":500}}\n\n', "x"),
        (b'data: {"error": {"message": "x"}}\n\n', "x"),
        (b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n', "x"),
        (b'event: response.failed\ndata: {"response":{"error":{"message":"x"}},"type":"response.failed"}\n\n', "x"),
        (b'data: {"object":"error","message":"x"}\n\n', "x"),
        (b"event: error\ndata: what\n\n", "The stream failed."),
    ],
)
def test_an_event_that_ends_a_failed_stream_is_recognised(event: bytes, message: str) -> None:
    error = sse.failure(event)
    assert error is not None
    assert error["message"] == message


@given(TEXT)
def test_an_answer_that_speaks_of_errors_is_no_failure(text: str) -> None:
    for said in (text, '{"error": {"message": "no"}}', 'event: error\ndata: {"error": 1}'):
        event = b"data: " + orjson.dumps({"choices": [{"delta": {"content": said}}]}) + b"\n\n"
        assert sse.failure(event) is None
    assert sse.failure(b"data: [DONE]\n\n") is None


@given(EVENT)
def test_a_field_is_added_to_an_event_without_changing_the_rest(event: bytes) -> None:
    limits = {"max_tokens": {"requested": 9, "effective": 5}}
    changed = sse.with_field(event, "limits", limits)
    before = orjson.loads(event.partition(b"data: ")[2])
    after = orjson.loads(changed.partition(b"data: ")[2])
    assert after == {"limits": limits} | before
    assert sse.with_field(b"data: {}\n\n", "limits", 1) == b'data: {"limits":1}\n\n'
    assert sse.with_field(b"data: [DONE]\n\n", "limits", 1) == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("event", "last"),
    [
        (b"data: [DONE]\n\n", True),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True),
        (b'event: response.completed\ndata: {"response":{}}\n\n', True),
        (b'event: response.incomplete\ndata: {"response":{}}\n\n', True),
        (b'event: message_delta\ndata: {"type":"message_delta"}\n\n', False),
        (b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n', False),
    ],
)
def test_the_end_of_a_stream_is_known_on_every_route(event: bytes, last: bool) -> None:
    assert sse.is_last(event) is last


def test_an_event_says_its_json_or_nothing() -> None:
    assert sse.parse_data(b'event: x\ndata: {"a":1}\n\n') == {"a": 1}
    assert sse.parse_data(b"data: [DONE]\n\n") is None
    assert sse.parse_data(b": keep-alive\n\n") is None


def chat(delta: dict[str, object], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} | more
    return b"data: " + orjson.dumps({"id": "a", "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


def block(delta: dict[str, object], index: int) -> bytes:
    payload = {"type": "content_block_delta", "index": index, "delta": delta}
    return b"event: content_block_delta\ndata: " + orjson.dumps(payload) + b"\n\n"


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
    ["\\", '"', '","content":"x', '"}', "\n\n", '"delta":{"content":"', "\u2028"]
)
DELTAS = st.one_of(
    ANY_TEXT.map(lambda text: chat({"content": text})),
    ANY_TEXT.map(lambda text: chat({"reasoning": text})),
    ANY_TEXT.map(lambda text: chat({"reasoning": "r", "content": text})),
    ANY_TEXT.map(lambda text: chat({"content": text}, finish_reason="stop")),
    ANY_TEXT.map(lambda text: chat({"content": text}, token_ids=[1])),
    ANY_TEXT.map(lambda text: chat({"content": text}, logprobs={"content": []})),
    ANY_TEXT.map(lambda text: chat({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})),
    ANY_TEXT.map(lambda text: chat({"tool_calls": [{"index": 1, "function": {"name": "f", "arguments": text}}]})),
    st.tuples(ANY_TEXT, st.integers(0, 1)).map(lambda it: block({"type": "text_delta", "text": it[0]}, it[1])),
    st.tuples(ANY_TEXT, st.integers(0, 1)).map(
        lambda it: block({"type": "input_json_delta", "partial_json": it[0]}, it[1])
    ),
    st.sampled_from([b"data: [DONE]\n\n", b": ping\n\n", b"event: message_stop\ndata: {}\n\n"]),
    st.just(chat({"role": "assistant"})),
)


def read(events: list[bytes]) -> tuple[dict[object, str], list[object]]:
    """What a client keeps: the texts of each place, and whatever else the events hold, in order."""
    texts: dict[object, str] = {}
    others: list[object] = []
    for event in events:
        payload = sse.parse_data(event)
        if not isinstance(payload, dict):
            others.append(event)
            continue
        delta = payload.get("delta")
        others += [
            value for name in ("finish_reason", "token_ids", "logprobs") if (value := _choice(payload).get(name))
        ]
        for call in _choice(payload).get("delta", {}).get("tool_calls", [{"index": None}]):
            delta = call.get("function") or delta or _choice(payload).get("delta") or {}
            for name, text in delta.items():
                place = (payload.get("index"), call["index"], name)
                if name in {"role", "type", "name"}:
                    texts[place] = text
                else:
                    texts[place] = texts.get(place, "") + text
    return texts, others


def _choice(payload: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = payload.get("choices", [{}])[0]
    return choice


@given(st.lists(DELTAS, max_size=12))
def test_joined_events_add_up_to_the_same_answer(events: list[bytes]) -> None:
    joined = list(sse.join(events))
    assert read(joined) == read(events)
    assert len(joined) <= len(events)


def test_adjacent_texts_are_one_event_and_what_carries_more_than_a_text_stays() -> None:
    stream = [chat({"content": "a\\"}), chat({"content": '"b'}), chat({"content": "c"}, finish_reason="stop")]
    assert list(sse.join(stream)) == [chat({"content": 'a\\"b'}), stream[2]]
    ids = [chat({"content": "a"}, token_ids=[7]), chat({"content": "a"}, token_ids=[7])]
    assert list(sse.join(ids)) == ids
    both = [chat({"reasoning": "a", "content": "b"})] * 2
    assert list(sse.join(both)) == both


def test_a_joined_event_has_a_limited_size() -> None:
    events = list(sse.join([chat({"content": "x" * 1000})] * 100))
    assert len(events) > 1
    assert max(map(len, events)) < sse.JOINED_BYTES + 2000
