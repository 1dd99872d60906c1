"""Answer checks, each with answers that pass and near misses that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmpod.worker.profile import file
from llmpod.worker.profile.checks import AnyCheck, Check, validate
from llmpod.worker.profile.data import IntentData

ADAPTER: TypeAdapter[Check] = TypeAdapter(AnyCheck)
CAREER = file.load("career")


def issues(check: dict[str, Any], text: str) -> list[str]:
    return ADAPTER.validate_python(check).issues(text)


@pytest.mark.parametrize(
    ("check", "valid", "invalid"),
    [
        ({"kind": "words", "min": 3}, ["one two three", "résumé don't well-known"], ["", "one two", "... - !"]),
        ({"kind": "words", "max": 3}, ["", "one two three"], ["one two three four"]),
        ({"kind": "unique_ratio", "min": 0.35}, ["go " * 20, "a b c d e f g h i j k l " * 2], ["go " * 21]),
        ({"kind": "unique_ratio", "min": 0.35, "over": 3}, ["go go go"], ["go go go go"]),
        ({"kind": "mentions", "any": ["tool"]}, ["A new tool.", "TOOL-box"], ["", "Buy a toolbox"]),
        ({"kind": "mentions", "any": ["a b", "c", "d"], "at_least": 2}, ["a\nb and c"], ["a b a b", "c c c"]),
        ({"kind": "mentions", "any": ["c++"]}, ["I know C++."], ["I know C."]),
        ({"kind": "avoids", "any": ["click here"]}, ["", "click there", "unclick heresy"], ["Click  here!"]),
        (
            {"kind": "bullets", "min": 2},
            ["- a\n* b", "1. a\n2) b", "• a\n – b"],
            ["- a", "-a\n-b", "1.5 a\n2.5 b", "a - b - c"],
        ),
        ({"kind": "bullets", "min": 0, "max": 1}, ["text", "- a"], ["- a\n- b"]),
        (
            {"kind": "sections", "all": ["responsibilities", "requirements"], "any": ["perks", "benefits"]},
            ["**Responsibilities:** x\n## Requirements\ny\nPerks"],
            [
                "Responsibilities\nBenefits",
                "Responsibilities and requirements",
                "irresponsibilities requirements perks",
            ],
        ),
        (
            {"kind": "items", "min": 3, "max": 4},
            ["a, b; c", "- a\n- b\n- c", "Keywords: a, b, c."],
            ["a, b", "a, b, c, d, e", ",,,"],
        ),
        (
            {"kind": "number", "label": "score", "min": 0, "max": 100},
            [
                "Score: 85",
                "**Score:** 85 %",
                "score is 100",
                "Score of 0/100",
                "85% score",
                "SCORE 7.5",
                "Score = 85,5",
            ],
            ["Score: 150%", "Score: -1", "Score: high", "underscore 85", "", "Score 101", "a score\n\nfine: 5 of"],
        ),
        (
            {"kind": "any_of", "checks": [{"kind": "mentions", "any": ["ats"]}, {"kind": "items", "min": 3}]},
            ["ATS words", "a, b, c"],
            ["a, b", "that hats"],
        ),
    ],
)
def test_a_check_tells_valid_answers_from_near_misses(
    check: dict[str, Any], valid: list[str], invalid: list[str]
) -> None:
    assert [(text, found) for text in valid if (found := issues(check, text))] == []
    assert [text for text in invalid if not issues(check, text)] == []


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "words", "min": -1},
        {"kind": "mentions", "any": []},
        {"kind": "unique_ratio", "min": 1.5},
        {"kind": "number"},
        {"kind": "word", "min": 1},
        {"kind": "words", "least": 1},
        {"kind": "any_of", "checks": [{"kind": "words"}]},
    ],
)
def test_a_check_that_is_none_is_refused(check: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(check)


def test_an_answer_that_was_cut_is_never_valid() -> None:
    assert validate("one two three", "length", ()) == ["cut off by max_tokens"]
    assert validate("one two three", "stop", ()) == []


RESUME = """1. Led a team of five nurses and improved handover times by 20 %.
2. Built a training plan that new colleagues still use today.
3. Managed the stock of two wards without a shortage for three years.
4. Created a checklist that reduced errors in medication by a third.
5. Organised the rota of thirty people, with fewer gaps than before.
6. Achieved the best audit of the house in two years.
ATS keywords: triage, medication, rota, audit, training, stock, teamwork, handover, care"""
MATCH = (
    "Score: 72. Matches: Java, SQL, Spring, testing and five years of work in a bank. Gaps: cloud services, Kubernetes "
    "and leading a team. "
    + "Next steps: take a short course on cloud services, move one small service of yours there, and write down what "
    "you did in numbers. Ask to lead a project of two people, so that the skill is in your resume when you apply. "
    "Put the bank first in your summary, because the job description names it twice, and shorten the older jobs to a "
    "line each, since nothing in them matches."
)


@pytest.mark.parametrize(
    ("intent", "answer", "broken"),
    [
        (
            "resume_guidance",
            RESUME,
            [RESUME.replace("\n", " ")[3:], RESUME.split("ATS")[0].replace(",", ""), "1. Led it."],
        ),
        (
            "job_resume_match",
            MATCH,
            [MATCH.replace("72", "172"), MATCH.replace("Score: 72", "A good one"), MATCH[:200]],
        ),
        ("ats_keywords", "\n".join(f"{n}. cloud tool {n}" for n in range(1, 26)), ["1. a\n2. b", "cloud " * 70]),
    ],
)
def test_the_intents_checks_know_a_good_answer(intent: str, answer: str, broken: list[str]) -> None:
    checks = next(one.checks for one in CAREER.data.intents if one.name == intent)
    assert validate(answer, "stop", checks) == []
    for text in broken:
        assert validate(text, "stop", checks) != [], text


@given(st.text(max_size=200), st.sampled_from(CAREER.data.intents))
def test_checks_take_any_text(text: str, intent: IntentData) -> None:
    found = validate(text, "stop", intent.checks)
    assert all(isinstance(issue, str) and issue for issue in found)
