"""Policy and answer checks as data."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.errors import StartError
from llmpod.worker.jobs import profile
from llmpod.worker.jobs.profile import Checks, Intent, Profile, validate, verdict

CAREER = profile.load("career")
SOME_TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize(
    ("text", "intent", "blocked"),
    [
        ("What salary does a data engineer get?", "salary_intelligence", True),
        ("WAGES of nurses", "salary_intelligence", True),
        ("Is demand for cooks growing?", "market_intelligence", True),
        ("How do I prepare for a job interview?", "interview_skills", False),
        ("Write a resume summary", "career_guidance", False),
        ("Something else", "career_guidance", False),
        ("celery salaried dish", "career_guidance", False),  # "salary" is a word, not a piece of one
        ("Microwaves and wagers", "career_guidance", False),
    ],
)
def test_intents_are_found_by_whole_words(text: str, intent: str, blocked: bool) -> None:
    found = CAREER.intent_of([text])
    assert found.name == intent
    assert (found.blocked is not None) == blocked


@given(SOME_TEXT, SOME_TEXT)
def test_nothing_around_a_blocked_phrase_unblocks_it(before: str, after: str) -> None:
    assert CAREER.intent_of([f"{before} how to prepare my resume: salary {after}"]).blocked


def test_a_blocked_phrase_in_any_message_blocks() -> None:
    assert CAREER.intent_of(["Hello", "And the salary?", "Thanks"]).blocked


def test_a_phrase_may_be_broken_over_lines() -> None:
    assert CAREER.intent_of(["the job\n market"]).blocked


@pytest.mark.parametrize(
    ("text", "reason", "checks", "issues"),
    [
        ("one two three", "stop", Checks(min_words=3), 0),
        ("one two", "stop", Checks(min_words=3), 1),
        ("one two three four", "stop", Checks(max_words=3), 1),
        ("one two three", "length", Checks(), 1),  # a cut-off answer is never valid
        ("go " * 30, "stop", Checks(min_unique_ratio=0.35), 1),
        ("go " * 20, "stop", Checks(min_unique_ratio=0.35), 0),  # too short to judge
        ("Learn a new tool", "stop", Checks(must_mention=("tool",)), 0),
        ("Buy a toolbox", "stop", Checks(must_mention=("tool",)), 1),
        ("résumé don't well-known", "stop", Checks(min_words=3, max_words=3), 0),
        ("", "stop", Checks(min_words=1), 1),
    ],
)
def test_an_answer_is_judged_by_its_checks(text: str, reason: str, checks: Checks, issues: int) -> None:
    assert len(validate(text, reason, checks)) == issues


def test_several_answers_are_valid_only_together() -> None:
    intent = Intent(name="x", checks=Checks(min_words=2))
    assert verdict(intent, {0: "a b", 1: "c d"}, {0: "stop", 1: "stop"})["valid"] is True
    judged = verdict(intent, {0: "a b", 1: "c"}, {0: "stop", 1: "stop"})
    assert judged["valid"] is False
    assert judged["issues"] == ["choice 1: 1 words, at least 2 expected"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("default_intent = ", "cannot be read"),
        ('default_intent = "a"', "intents"),
        ('default_intent = "b"\n[[intents]]\nname = "a"', "'b' is not among"),
        ('default_intent = "a"\n[[intents]]\nname = "a"\nphrase = []', "phrase"),
        ('default_intent = "a"\n[[intents]]\nname = "a"\nchecks = { min_words = -1 }', "min_words"),
    ],
)
def test_a_bad_profile_stops_the_start(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(content)
    with pytest.raises(StartError, match=says):
        profile.load(str(path))


def test_a_missing_profile_names_the_shipped_ones() -> None:
    with pytest.raises(StartError, match="career"):
        profile.load("carreer")


def test_the_default_intent_answers_everything_else() -> None:
    lone = Profile((Intent(name="a", phrases=("x",)),), Intent(name="rest"))
    assert lone.intent_of(["y"]).name == "rest"
