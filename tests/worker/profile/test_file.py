"""Profile files: both versions, what is wrong with one, and what a profile makes of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.errors import StartError
from llmpod.worker.profile import file
from llmpod.worker.profile.checks import validate
from llmpod.worker.profile.file import Profile
from tests.worker.profile import cases

CAREER = cases.words_alone()


def profile(**content: Any) -> Profile:
    return file.read({"version": 2, "default_intent": "rest", "intents": [{"name": "rest"}]} | content)


@pytest.mark.parametrize(
    ("text", "intent", "policy"),
    [
        ("What salary does a data engineer get?", "career_guidance", "salary_intelligence"),
        ("WAGES of nurses", "career_guidance", "salary_intelligence"),
        ("Is demand for cooks growing?", "career_guidance", "market_intelligence"),
        ("How do I prepare for a job interview?", "interview_skills", None),
        ("Something else", "career_guidance", None),
        ("celery salaried dish", "career_guidance", None),  # "salary" is a word, not a piece of one
        ("Microwaves and wagers", "career_guidance", None),
    ],
)
def test_intents_and_policies_are_found_by_whole_words(text: str, intent: str, policy: str | None) -> None:
    verdict = CAREER.verdict([text])
    assert CAREER.intent_of([text]).name == intent
    assert (verdict.policy.name if verdict else None) == policy


def test_a_phrase_may_be_broken_over_lines() -> None:
    assert CAREER.intent_of(["the star\n method"]).name == "interview_skills"


def test_the_default_intent_answers_everything_else() -> None:
    found = profile(intents=[{"name": "a", "phrases": ["x"]}, {"name": "rest"}])
    assert found.intent_of(["y"]).name == "rest"
    assert found.intent_of(["a, X!"]).name == "a"


def test_a_policy_can_block_what_no_phrase_identifies() -> None:
    found = profile(
        intents=[{"name": "cooking", "phrases": ["soup"]}, {"name": "rest"}],
        policies=[{"name": "off_topic", "message": "Only cooking.", "otherwise": True}],
    )
    assert found.verdict(["How do I make soup?"]) is None
    verdict = found.verdict(["How do I mend a bicycle?"])
    assert verdict is not None
    assert (verdict.policy.name, verdict.by) == ("off_topic", "certain")


V1 = """
default_intent = "rest"
[[intents]]
name = "secret"
phrases = ["the plan", "c++ (beta)"]
blocked = "That is secret."
[[intents]]
name = "rest"
phrases = ["tool"]
checks = { min_words = 3, max_words = 30, min_unique_ratio = 0.35, must_mention = ["tool"] }
"""


def test_a_file_of_version_1_works_as_before(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(V1)
    found = file.load(str(path))
    for text in ("What is THE\nPLAN?", "C++ beta", "How to use the tool: the plan"):
        verdict = found.verdict([text])
        assert verdict is not None
        assert (verdict.policy.name, verdict.policy.message) == ("secret", "That is secret.")
    assert found.verdict(["the planet"]) is None
    intent = found.intent_of(["a tool"])
    assert intent.name == "rest"
    assert len(validate("Use it", "stop", intent.checks)) == 2  # too short, and no tool in it
    assert validate("Use the tool well", "stop", intent.checks) == []
    assert validate("go tool " * 14, "stop", intent.checks) == ["repeats itself"]


def test_a_blocked_default_of_version_1_blocks_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(V1.replace('default_intent = "rest"', 'default_intent = "secret"'))
    found = file.load(str(path))
    assert found.verdict(["anything"]) is not None
    assert found.verdict(["a tool"]) is None


HEAD = 'version = 2\ndefault_intent = "a"\n'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("default_intent = ", "cannot be read"),
        ('default_intent = "a"', "intents: Field required"),
        ('default_intent = "b"\n[[intents]]\nname = "a"', "default_intent: 'b' is not among"),
        ('default_intent = "a"\n[[intents]]\nname = "a"\nphrase = []', r"intents\[0\].phrase: Extra"),
        (
            'default_intent = "a"\n[[intents]]\nname = "a"\nchecks = { min_words = -1 }',
            r"\[0\].checks.min_words",
        ),
        ('version = 3\ndefault_intent = "a"\n[[intents]]\nname = "a"', "version: "),
        (HEAD + '[[intents]]\nname = "a"\n[clean]\nmode = "maybe"', "clean.mode: "),
        (HEAD + '[[intents]]\nname = "a"\n[[intents]]\nname = "a"', "intents: 2 have the name 'a'"),
        (HEAD + '[[intents]]\nname = "a"\nphrases = ["?!"]', r"intents\[0\].phrases\[0\]: '\?!' holds no word"),
        (HEAD + '[[intents]]\nname = "a"\nchecks = [{ kind = "word" }]', r"intents\[0\].checks\[0\]: "),
        (
            HEAD + '[[intents]]\nname = "a"\nchecks = [{ kind = "words", min = 1, most = 2 }]',
            r"intents\[0\].checks\[0\].most: Extra",
        ),
        (HEAD + '[[intents]]\nname = "a"\n[judge]\ndeadline_s = 0', "judge.deadline_s: "),
        (
            HEAD + '[[intents]]\nname = "a"\n[[policies]]\nname = "p"\nmessage = "m"\ncertain = [["a", "(b"]]',
            r"policies\[0\].certain\[0\]\[1\]: '\(b': parentheses",
        ),
        (
            HEAD + '[[intents]]\nname = "a"\n[[policies]]\nname = "p"\nmessage = "m"\nnever = ["*"]',
            r"policies\[0\].never\[0\]: .* without words",
        ),
        (
            HEAD + '[[intents]]\nname = "a"\nrequest = { max_tokens = 79 }\nchecks = [{ kind = "words", min = 50 }]',
            r"intents\[0\].request.max_tokens: 79 tokens cannot hold the 50 words .* need 80",
        ),
        (HEAD + '[request]\nsampling = { max_tokens = 5 }\n[[intents]]\nname = "a"', "request.sampling.max_tokens"),
    ],
)
def test_a_bad_profile_stops_the_start_with_the_place_in_the_file(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(content)
    with pytest.raises(StartError, match=says):
        file.load(str(path))


def test_a_missing_profile_names_the_shipped_ones() -> None:
    with pytest.raises(StartError, match="career"):
        file.load("carreer")
