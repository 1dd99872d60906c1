"""What a profile makes of a native job."""

from __future__ import annotations

from typing import Any

import pytest

from llmpod.worker.jobs import inputs
from llmpod.worker.jobs.engine_output import Delta
from llmpod.worker.jobs.limits import Context
from llmpod.worker.jobs.native_plan import Plan, plan
from llmpod.worker.jobs.native_reply import Answer
from llmpod.worker.profile import file
from llmpod.worker.settings import Settings

NAMES = {"temperature", "top_p", "top_k", "structured_outputs"}
PROFILE = file.read(
    {
        "version": 2,
        "default_intent": "rest",
        "request": {"max_tokens": 100, "sampling": {"temperature": 0.3, "top_k": 50}},
        "clean": {"mode": "apply"},
        "intents": [
            {
                "name": "list",
                "phrases": ["list"],
                "system": "You list.",
                "prefill": "1. ",
                "request": {"max_tokens": 300, "sampling": {"top_k": 5}},
                "checks": [{"kind": "words", "min": 2}],
            },
            {"name": "rest"},
        ],
    }
)


def planned(settings: Settings | None = None, **job: Any) -> Plan:
    request = inputs.parse(job, NAMES)
    assert isinstance(request, inputs.NativeRequest)
    return plan(request, settings or Settings(max_tokens_max=256, max_tokens_min=1), PROFILE, Context())


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("Hello", None, (None, 100, "profile")),
        ("Hello", 50, (50, 50, None)),
        ("Hello", 999, (999, 256, "lowered")),  # MAX_TOKENS_MAX: the intent names none
        ("A list", None, (None, 300, "profile")),
        ("A list", 280, (280, 280, None)),
        ("A list", 999, (999, 300, "profile")),
    ],
)
def test_max_tokens_of_an_intent_is_its_default_and_its_cap(text: str, asked: int | None, expected: Any) -> None:
    sampling = {} if asked is None else {"max_tokens": asked}
    found = planned(prompt=text, sampling_params=sampling).max_tokens
    assert (found.requested, found.effective, found.reason) == expected


def test_sampling_of_the_client_wins_over_the_intent_over_the_file() -> None:
    assert planned(prompt="Hello").request.sampling == {"temperature": 0.3, "top_k": 50}
    assert planned(prompt="A list").request.sampling == {"temperature": 0.3, "top_k": 5}
    own = planned(prompt="A list", sampling_params={"temperature": 0.0, "top_k": None, "top_p": 0.5})
    assert own.request.sampling == {"temperature": 0.0, "top_k": 5, "top_p": 0.5}


@pytest.mark.parametrize(
    ("job", "system", "prefill"),
    [
        ({"prompt": "A list"}, "You list.", "1. "),
        ({"messages": [{"role": "user", "content": "A list"}]}, "You list.", "1. "),
        ({"prompt": "Hello"}, None, None),
        ({"prompt": "A list", "apply_chat_template": False}, None, None),
        ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A list"}]}, None, None),
        ({"prompt": "A list", "sampling_params": {"structured_outputs": {"choice": ["a"]}}}, "You list.", None),
    ],
)
def test_an_intents_prompt_is_for_conversations_without_one(job: Any, system: str | None, prefill: str | None) -> None:
    request = planned(**job).request
    assert (request.system, request.prefill) == (system, prefill)


def answer(*texts: str, prefill: str | None = None) -> Answer:
    made = Answer(prefill)
    for text in texts[:-1]:
        made.add([Delta(0, text, None)])
    made.add([Delta(0, texts[-1], "stop")])
    return made


def test_deltas_join_to_the_text_with_the_prefill_once() -> None:
    made = Answer("1. ")
    chunks = [made.add([Delta(index, text, None)]) for text in ("a", "b") for index in (0, 1)]
    joined = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined[choice["index"]] += choice["text"]
    assert joined == made.texts == {0: "1. ab", 1: "1. ab"}


def test_only_whole_replies_are_cleaned_and_the_checks_judge_what_is_returned() -> None:
    text = "Assistant: one two three four five six seven eight nine ten eleven twelve"
    whole, streamed = answer(text), answer(text[:9], text[9:])
    found = planned(prompt="A list").validation(whole)
    assert found is not None
    assert (found["intent"], found["sanitized"], found["removed_chars"]) == ("list", True, 11)
    assert whole.texts[0] == text[11:]
    assert whole.returned({"choices": [{"index": 0, "text": text}], "model": "m"}) == {
        "choices": [{"index": 0, "text": text[11:]}],
        "model": "m",
    }
    found = planned(prompt="A list", stream=True).validation(streamed)
    assert found is not None
    assert (found["sanitized"], found["removed_chars"], streamed.texts[0]) == (False, 11, text)


def test_without_validation_nothing_is_checked_or_cleaned() -> None:
    made = answer("Assistant: one two three four five six seven eight nine ten eleven twelve")
    assert planned(prompt="A list", enable_validation=False).validation(made) is None
    assert made.texts[0].startswith("Assistant")


def test_a_prompt_that_is_too_long_is_not_searched() -> None:
    settings = Settings(max_prompt_chars=3)
    assert planned(settings, prompt="A list").intent is PROFILE.default
