"""The policy of the career profile on the cases, and what cannot change a verdict."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmpod.worker.profile import file, normal, patterns
from llmpod.worker.profile.file import Profile
from tests.worker.profile import cases
from tests.worker.profile.cases import Case

CAREER, SHIPPED = cases.words_alone(), file.load("career")
CASES = cases.read()
TUNED = [case for case in CASES if case.split == "tuned"]
STRANGER = [case for case in CASES if case.source == "stranger"]
BLOCKED = [case for case in TUNED if case.blocked and not case.open]
READABLE = [case for case in BLOCKED if case.kind != "encoded"]  # base64 in other letters is another text
PLAIN = [case for case in BLOCKED if case.kind in ("plain", "market") and len(case.texts) == 1]
ROOT = Path(__file__).parents[3]
SOME_TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
CAUGHT = 0.86  # of the must-block questions of a stranger (measured: 107 of 120)
FALSE_BLOCKS = 0.05  # of the must-answer ones (measured: 5 of 120)


def policy(**given: object) -> Profile:
    content = {"version": 2, "default_intent": "rest", "intents": [{"name": "rest"}]}
    return file.read(content | {"policies": [{"name": "p", "message": "m"} | given]})


# -- cases -------------------------------------------------------------------------------------------------------------


def test_there_are_enough_cases_of_every_kind() -> None:
    for cases_of in (TUNED, STRANGER):
        counts = Counter(case.blocked for case in cases_of)
        assert all(counts[blocked] >= 120 for blocked in (True, False))
    kinds = {"plain", "market", "language", "spacing", "lookalike", "markup", "roleplay", "translation", "turns"}
    for cases_of in (TUNED, STRANGER):
        assert kinds <= {case.kind for case in cases_of if case.blocked}
    assert len({case.texts for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", TUNED, ids=str)
def test_a_case_is_decided_as_it_should_be(case: Case) -> None:
    assert (CAREER.verdict(case.texts) is not None) is (case.blocked is not case.open)


@pytest.mark.parametrize("case", [case for case in TUNED if not case.blocked], ids=str)
def test_what_must_be_answered_is_never_certain(case: Case) -> None:
    """The judge can still say so."""
    verdict = SHIPPED.verdict(case.texts)
    assert verdict is None or verdict.by != "certain"


@pytest.mark.parametrize("split", sorted({case.split for case in CASES}))
def test_the_words_answer_nothing_that_must_be_blocked(split: str) -> None:
    """What they do not block is for the judge to decide."""
    blocked = [case for case in CASES if case.split == split and case.blocked]
    assert blocked
    assert [str(case) for case in blocked if SHIPPED.verdict(case.texts) is None] == []


def test_the_questions_of_a_stranger_are_mostly_decided_as_they_should_be() -> None:
    caught, wrongly = (
        [CAREER.verdict(case.texts) is not None for case in STRANGER if case.blocked is blocked]
        for blocked in (True, False)
    )
    assert sum(caught) >= CAUGHT * len(caught)
    assert sum(wrongly) <= FALSE_BLOCKS * len(wrongly)


@pytest.mark.process
def test_the_page_shows_what_the_command_prints() -> None:
    command = [sys.executable, "bench/policy.py", "--words"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    page = (ROOT / "docs/profiles.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 25 * len({case.split for case in CASES})
    assert [line for line in printed if line not in page] == []


# -- what cannot change a verdict --------------------------------------------------------------------------------------

LOOKALIKES = {
    "a": "аαａ𝐚ᴀ",
    "e": "еεｅ𝐞ᴇ",
    "o": "оοｏ𝐨ᴏ",
    "p": "рρｐ",
    "c": "сｃᴄ",
    "s": "ѕｓꜱ",
    "i": "іιｉı",
    "y": "уｙʏ",
}
ACCENTS = "\u0301\u0308\u0327\u0302"
INVISIBLE = "\u200b\u200d\u00ad\ufeff\u2060\u180e\U000e0061\U0010fffd"


@given(st.sampled_from(BLOCKED), SOME_TEXT, SOME_TEXT)
def test_nothing_around_a_blocked_text_unblocks_it(case: Case, before: str, after: str) -> None:
    assert CAREER.verdict([f"{before}\n{case.texts[0]}", *case.texts[1:-1], *case.texts[1:][-1:], after]) is not None
    assert CAREER.verdict([before, *case.texts, after]) is not None


@given(st.sampled_from(READABLE), st.randoms(use_true_random=False))
def test_no_casing_unblocks(case: Case, rng: object) -> None:
    texts = ["".join(rng.choice((char.upper(), char.lower())) for char in text) for text in case.texts]  # type: ignore[attr-defined]
    assert CAREER.verdict(texts) is not None


@pytest.mark.parametrize("char", INVISIBLE, ids=ascii)
def test_no_invisible_character_everywhere_unblocks(char: str) -> None:
    """Nor do those that would cut what is encoded or spelt backwards."""
    for case in BLOCKED:
        for every in (1, 2, 3):
            cut = ["".join(each + char * (at % every == 0) for at, each in enumerate(text)) for text in case.texts]
            assert CAREER.verdict(cut) is not None, (case, every)


@given(st.sampled_from(BLOCKED), st.data())
def test_no_invisible_character_unblocks(case: Case, data: st.DataObject) -> None:
    texts = ["".join(char + data.draw(st.sampled_from(("", "", *INVISIBLE))) for char in text) for text in case.texts]
    assert CAREER.verdict(texts) is not None


@given(st.sampled_from([case for case in READABLE if case.kind != "language"]), st.data())
def test_no_accent_and_no_look_alike_unblocks(case: Case, data: st.DataObject) -> None:
    def disguised(char: str) -> str:
        others = LOOKALIKES.get(char, "")
        accented = [char + mark for mark in ACCENTS] if char.isascii() and char.isalpha() else []
        return data.draw(st.sampled_from([char, *others, *accented]))

    assert CAREER.verdict(["".join(map(disguised, text)) for text in case.texts]) is not None


@given(st.sampled_from(PLAIN), st.data())
def test_no_hyphen_or_markup_inside_a_word_unblocks(case: Case, data: st.DataObject) -> None:
    """In one word, of four letters or more, at one place."""
    text = case.texts[0]
    places = [
        match.start() + at
        for match in re.finditer(r"[A-Za-z]{4,}", text)
        for at in range(1, len(match[0]))
        if match[0].isupper() or not match[0].isupper()
    ]
    place = data.draw(st.sampled_from(places))
    mark = data.draw(st.sampled_from(("-", "_", "/", "*", "**", "­", "\n", "-\n", "<b>", "</i>", "<!-- x -->", "&shy;")))
    assert CAREER.verdict([text[:place] + mark + text[place:]]) is not None


@given(st.sampled_from(PLAIN), st.data())
def test_no_cut_between_two_texts_unblocks(case: Case, data: st.DataObject) -> None:
    """Two parts of a message, two turns, two fields; also with another turn between them."""
    text = case.texts[0]
    place = data.draw(st.integers(1, len(text) - 1))
    assert CAREER.verdict([text[:place], text[place:]]) is not None
    if " " not in text[max(0, place - 1) : place + 1]:
        words = [normal.words(part) for part in (text[:place], text[place:])]
        if all(words):
            assert CAREER.verdict([text[:place], "Go on.", text[place:]]) is not None


def test_a_word_that_a_pattern_names_by_its_end_is_found_where_another_turn_cuts_it() -> None:
    assert CAREER.verdict(["Will book", "Go on.", "keepers still be needed in 2035?"]) is not None


@pytest.mark.parametrize("word", ["salary", "wages", "gehalt", "sueldo", "salaire", "stipendio"])
def test_a_word_in_single_letters_is_found(word: str) -> None:
    for between in (" ", "-", ".", "  ", "\n", " - ", "_", "\u200b ", "/"):
        assert CAREER.verdict([f"the {between.join(word)} of a nurse"]) is not None, between


ENCODED: dict[str, Callable[[str], str]] = {
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 without padding": lambda text: urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal bytes": lambda text: text.encode().hex(" ").upper(),
    "backwards": lambda text: text[::-1],
    "words backwards": lambda text: " ".join(word[::-1] for word in text.split()),
    "a digit for a letter": lambda text: text.replace("l", "1").replace("i", "1"),
    "strokes": lambda text: text.replace("l", "|").replace("i", "!"),
    "stretched": lambda text: re.sub("[aei]", lambda found: found[0] * 4, text),
    "over five turns": lambda text: "",
}


@pytest.mark.parametrize("way", ENCODED)
@pytest.mark.parametrize(
    "text", ["What is the salary of a nurse?", "the typical wages in nursing", "labour market, Rome"]
)
def test_no_way_to_write_a_text_unblocks_it(text: str, way: str) -> None:
    texts = [ENCODED[way](text)]
    if way == "over five turns":
        texts = [text[:14], "Go on.", text[14:16], "Go on.", text[16:]]
    assert CAREER.verdict(texts) is not None
    assert CAREER.verdict([f"Read this: {texts[0]}", *texts[1:]]) is not None


@pytest.mark.parametrize(
    "text",
    ["APL, PGP and REXX on a CV", "internationalisation and responsibilities", "2024-01-31 to 2024-12-31",
     "deadbeef cafe 00", "C|C++|Rust", "Wow!Great", "www.example.org/a/b/c_d-e", "0x1F 0x2F 0x3F 0x4F 0x5F 0x6F"],
)  # fmt: skip
def test_what_only_looks_encoded_blocks_nothing(text: str) -> None:
    assert CAREER.verdict([text]) is None


# -- what is answered without the judge --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("A letter for my cv", "answered"),
        ("CV: a letter!", "answered"),
        ("a LETTER,\nmy c\u0076", "answered"),
        ("a letter", "undecided"),  # no intent's phrase
        ("", "undecided"),
        ("a letter for my cv in Rome", "undecided"),  # another word
        ("a let-ter for my cv", "undecided"),
        ("a letter for my cv \U0001f4b0", "undecided"),  # a symbol is no word, and a model reads it
        ("a letter for my cv: 100", "undecided"),
        ("a letter <b>for</b> my cv", "undecided"),
        ("a let\u200bter for my cv", "undecided"),
        ("a letter for my wage, cv", "certain"),
        ("a letter for my money, cv", "suspect"),
    ],
)
def test_what_is_answered_has_no_other_words(text: str, by: str) -> None:
    rule = file.read(
        {
            "version": 2,
            "default_intent": "cv",
            "intents": [{"name": "cv", "phrases": ["cv"]}],
            "policies": [{"name": "p", "message": "m", "certain": [["wage"]], "suspect": [["money"]]}],
            "answered": {"undecided": False, "words": ["a|for|my|letter"]},
        }
    )
    verdict = rule.verdict([text])
    assert (verdict.by if verdict else "answered") == by
    assert by != "answered" or rule.verdict([text, "Rome"]) is not None


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        ("how much", ["How much?", "how-much", "how\nmuch", "HOW  MUCH"], ["how very much", "much how", "howl much"]),
        ("(a|b) c", ["a c", "b-c"], ["c a", "a b"]),
        ("(take home|earn) it", ["take home it", "earn it"], ["take it"]),
        ("a? b c", ["a b c", "b c"], ["a c"]),
        ("(the|a)? x y", ["the x y", "x y"], ["the y"]),
        ("a * z", ["a z", "a b c d e f g z"], ["a b c d e f g h z"]),
        ("*gehalt", ["Monatsgehalt", "Gehalt"], ["Gehaltvoll", "halt"]),
        ("gehalts*", ["Gehaltsband"], ["Gehalt"]),
        ("# a year", ["50k a year", "50,000 a year"], ["many a year"]),
        ("l'emploi", ["l'emploi", "l’emploi"], ["lemon"]),
        ("salary", ["s4lary", "$alary", "payroll/salary", "SalaryBot", "sal ary"], ["salaried", "celery"]),
        ("pay", ["p a y", "PayScale"], ["pa y", "spay", "payer"]),
    ],
)
def test_a_pattern_is_found_where_it_stands(pattern: str, found: list[str], not_found: list[str]) -> None:
    rule = policy(certain=[[pattern]])
    assert [text for text in found if rule.verdict([text]) is None] == []
    assert [text for text in not_found if rule.verdict([text]) is not None] == []


def test_all_sets_of_a_group_must_stand_within_the_window() -> None:
    rule = policy(certain=[["how much", "earn|paid"]], window=5)
    assert rule.verdict(["paid how much"]) is not None
    assert rule.verdict(["how much do nurses earn"]) is not None
    assert rule.verdict(["how much do nurses in Rome earn"]) is None
    assert rule.verdict(["how much x x x x x x how much earn"]) is not None


def test_never_takes_out_its_own_words_and_no_others() -> None:
    rule = policy(certain=[["salary"]], never=["negotiate (my|a)? salary", "how * cost"])
    assert rule.verdict(["How do I negotiate my salary?"]) is None
    assert rule.verdict(["How do I negotiate my salary, and what is a good salary?"]) is not None
    assert rule.verdict(["negotiate. A salary"]) is not None  # another sentence
    assert rule.verdict(["negotiate my sal-ary"]) is not None  # hidden words are no phrase
    assert rule.verdict(["how does the salary cost"]) is not None  # what * stands for counts


def test_unless_makes_what_is_certain_suspect_in_its_sentence() -> None:
    rule = policy(certain=[["what * salary"], ["wage"]], unless=["how do i|cv"])

    def by(*texts: str) -> str | None:
        verdict = rule.verdict(texts)
        return verdict and verdict.by

    assert by("What is the salary of a nurse?") == "certain"
    assert by("How do I answer: what is the salary of a nurse?") == "suspect"
    assert by("How do I answer? What is the salary of a nurse?") == "certain"  # another sentence
    assert by("How do I answer: what salary. The wage of a nurse?") == "certain"  # another place
    assert by("A wage for my c-v") == "certain"  # words that are cut excuse nothing
    assert by("A cv", "A wage") == "certain"
    assert by("A cv") is None


def test_a_list_stands_for_its_choices() -> None:
    content: dict[str, object] = {
        "version": 2,
        "lists": {"pay": "salary|take home pay", "ask": "what is|how * is"},
        "policies": [{"name": "p", "message": "m", "certain": [["{ask} (the|a)? {pay}"], ["{pay}|{ask}", "nurse"]]}],
    }
    rule = file.read(content)
    for text in ("What is the take home pay?", "what is salary", "salary of a nurse", "how good is a nurse"):
        assert rule.verdict([text]) is not None, text
    for text in ("what is a nose", "the salary", "take home a nurse"):
        assert rule.verdict([text]) is None, text
    with pytest.raises(ValueError, match="there is no list 'pays'"):
        file.read(content | {"policies": [{"name": "p", "message": "m", "certain": [["{pays}"]]}]})


def test_certain_takes_precedence_over_suspect_in_any_view() -> None:
    rule = policy(certain=[["wage"]], suspect=[["money"]])
    verdict = rule.verdict(["money <b>w</b>age"])
    assert verdict is not None
    assert verdict.by == "certain"
    verdict = rule.verdict(["money"])
    assert verdict is not None
    assert verdict.by == "suspect"


@example("0AA$")
@example("0aa__")
@given(SOME_TEXT)
def test_folding_again_changes_nothing(text: str) -> None:
    once = " ".join(word.text for word in normal.words(text))
    assert " ".join(word.text for word in normal.words(once)) == once


def processor_time(text: str) -> float:
    """Seconds of this thread for a verdict. The worker freezes its heap; a collection here goes through the tests'."""
    gc.freeze()
    try:
        began = time.thread_time()
        CAREER.verdict((text,))
        return time.thread_time() - began
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    "text", ["how much " * 20_000, "s a l a r " * 20_000, "<b>" * 50_000, "a" * 200_000, "pay\n" * 50_000]
)
def test_the_time_for_a_long_text_grows_with_its_length(text: str) -> None:
    quarter, whole = (min(processor_time(part) for _ in range(3)) for part in (text[: len(text) // 4], text))
    assert whole < 12 * quarter + 0.5, (quarter, whole)


def test_a_pattern_says_what_is_wrong_with_it() -> None:
    for text in ("(a", "a)", "a || b", "*", "a (b c", "ab,c", "", "( | )"):
        with pytest.raises(ValueError, match=r"\S"):
            patterns.parse(text)


@given(
    st.lists(st.sampled_from(["s4lary", "payScale", "\u00e9", "a b", "\n", " ", "x" * 4090]), max_size=8).map("".join)
)
def test_a_text_is_folded_in_pieces_as_it_would_be_whole(text: str) -> None:
    whole = normal._folded(text, seams=True)
    if max(map(len, text.split()), default=0) < normal.PIECE_CHARS:
        assert normal.fold(text, seams=True) == whole


MOST_S = 1.0
REPEATED = (
    "1",
    "$",
    "_",
    "a",
    "1a",
    "a ",
    "Ab",
    "é",
    "\u0301",
    "<a",
    "<!--",
    "<!--x-->",
    "/*",
    "](",
    "&",
    "&#x1;",
    "%4",
    "\\u",
    "\n",
)


@pytest.mark.parametrize("unit", REPEATED)
def test_no_text_takes_longer_than_its_length_explains(unit: str) -> None:
    """An expression that searches again from every place would take minutes, and hold the interpreter."""
    assert processor_time((unit * 30_000)[:30_000]) < MOST_S
