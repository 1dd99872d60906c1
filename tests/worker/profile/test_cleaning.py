"""Cleaning: what goes, what stays, and that it can be done twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.profile import answers, file
from llmpod.worker.profile.checks import Words, validate
from llmpod.worker.profile.cleaning import LEAST_LEFT, MOST_REMOVED, clean
from llmpod.worker.profile.data import IntentData

REST = "Learn the tools of the trade, ask for feedback and write down what you did, every week of the year."


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        (f"Assistant: {REST}", REST),
        (f"answer : {REST}", REST),
        (f"{REST}<|im_end|>", REST),
        (f"{REST} [END]", REST),
        (f"{REST}\n[Truncated]\n[end]\n", REST),
        (f"Context: a site\n{REST}", REST),
        (f"{REST}\nAnswered 3 years ago\nMore.", f"{REST}\nMore."),
        (f"{REST} And so on........", f"{REST} And so on..."),
        (f"{REST}\n\n\n\n\nMore.", f"{REST}\n\nMore."),
        (f"{REST} | | | | |", REST),
    ],
)
def test_what_stands_around_an_answer_goes(dirty: str, cleaned: str) -> None:
    found = clean(dirty)
    assert (found.text, found.removed, found.issue) == (cleaned, len(dirty) - len(cleaned), None)


@pytest.mark.parametrize(
    "text",
    [
        "# Responsibilities\nLead the team.",
        "Location: Berlin\nJob Description: cook",
        "Learn [AWS Certified] and #include <stdio.h>, where a < b and c > d.",
        "| Skill | Years |\n|---|---|\n| SQL | 3 |",
        "For more, visit a meetup and ask: what is new?",
        "Is it hard? Yes... but it pays off.",
        "My assistant: a friend. The context: none.",
        "The answer:\nlearn.",
        "[END] is a keyword of the language, and so is [START].",
        "Question: why?\nIt was answered three times ago and again.",
        "",
        "   ",
    ],
)
def test_what_belongs_to_an_answer_stays(text: str) -> None:
    assert clean(text).text == text


@pytest.mark.parametrize("text", ["Answer: yes", "Context: everything stands here\nyes", "<|im_end|>" * 9])
def test_where_too_much_would_go_the_answer_stays_and_it_is_said(text: str) -> None:
    found = clean(text)
    assert (found.text, found.removed) == (text, 0)
    assert found.issue is not None


PIECES = st.lists(
    st.sampled_from(
        [
            "Assistant: ",
            "Context: x\n",
            "Answered 2 days ago\n",
            "[END]",
            "[truncated]",
            "<|im_end|>",
            "....",
            "| ",
            "\n",
            "\n\n",
            " ",
            "word ",
        ]
    )
    | st.text(max_size=8),
    max_size=30,
).map("".join)


@given(PIECES)
def test_cleaning_is_idempotent_and_bounded(text: str) -> None:
    found = clean(text)
    assert clean(found.text).text == found.text
    assert found.removed == len(text) - len(found.text) <= MOST_REMOVED * len(text)
    assert not found.removed or len(found.text.strip()) >= LEAST_LEFT


@given(PIECES, st.sampled_from(file.load("career").data.intents), st.booleans())
def test_a_valid_answer_stays_valid_when_it_is_cleaned(text: str, intent: IntentData, strict: bool) -> None:
    checks = (Words(kind="words", min=len(text.split())),) if strict else intent.checks
    before = validate(text, "stop", checks)
    assessed = answers.assess(intent.name, checks, {0: text}, {0: "stop"}, applies=True)
    assert before or assessed.validation["valid"]
    assert assessed.validation["removed_chars"] == len(text) - len(assessed.texts[0])
    assert assessed.validation["sanitized"] is (assessed.texts[0] != text)


def test_a_report_counts_and_changes_nothing() -> None:
    dirty = f"Assistant: {REST}"
    reported = answers.assess("x", (), {0: dirty, 1: REST}, {0: "stop", 1: "stop"}, reports=True)
    assert reported.texts == {0: dirty, 1: REST}
    assert reported.validation == {"valid": True, "issues": [], "intent": "x", "sanitized": False, "removed_chars": 11}
    applied = answers.assess("x", (), {0: dirty, 1: REST}, {0: "stop", 1: "stop"}, applies=True)
    assert applied.texts == {0: REST, 1: REST}
    assert applied.validation["sanitized"] is True
    kept = answers.assess("x", (), {0: "Answer: yes"}, {0: "stop"}, applies=True)
    assert (kept.texts, kept.validation["valid"]) == ({0: "Answer: yes"}, True)
    assert kept.validation["issues"] == ["not cleaned: 8 of 11 characters would go"]
    off = answers.assess("x", (), {0: dirty}, {0: "stop"})
    assert off.validation["removed_chars"] == 0


def test_an_issue_names_its_answer_where_there_are_several() -> None:
    checks = (Words(kind="words", min=2),)
    assert answers.assess("x", checks, {0: "a b", 1: "c d"}, {0: "stop", 1: "stop"}).validation["valid"] is True
    assessed = answers.assess("x", checks, {0: "a b", 1: "c"}, {0: "stop", 1: "length"})
    assert assessed.validation["valid"] is False
    assert assessed.validation["issues"] == [
        "choice 1: cut off by max_tokens",
        "choice 1: 1 words, at least 2 expected",
    ]
