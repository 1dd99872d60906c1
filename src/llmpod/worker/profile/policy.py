"""Policy: what a profile does not answer, decided on a text alone.

Pure functions. The verdict depends on the words only, wherever they stand, so nothing around them can change it but the
`never` phrases of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

from llmpod.worker.profile import normal
from llmpod.worker.profile.patterns import NOTHING, PatternSet, Text, Vocabulary

By = Literal["certain", "suspect", "undecided", "judge"]
Group = tuple[PatternSet, ...]

EDGE = 12
"""Words at a text's end and at another's beginning that are read together, for words cut between two turns."""
APART = 4
"""Turns by which such two texts may be apart."""


@dataclass(frozen=True)
class Policy:
    """A topic that is not answered. A group is found where all its sets stand within `window` words."""

    name: str
    message: str
    topic: str = ""  # for the judge's question
    certain: tuple[Group, ...] = ()
    suspect: tuple[Group, ...] = ()
    unless: PatternSet = NOTHING  # in a sentence with one, what is certain is suspect
    never: PatternSet = NOTHING  # phrases whose words do not count
    window: int = 12


@dataclass(frozen=True)
class Verdict:
    """Which policy a text falls under, and by which of its rules."""

    policy: Policy
    by: By


class Policies:
    """The policies of a profile, with the words that are looked for."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.all = tuple(policies)
        self._vocabulary = Vocabulary()
        for policy in policies:
            for group in (*policy.certain, *policy.suspect, (policy.unless, policy.never)):
                for patterns in group:
                    self._vocabulary.add(patterns.patterns)

    def verdict(self, texts: Sequence[str]) -> Verdict | None:
        """The verdict on texts that one model reads one after another; None: nothing stands against an answer.

        What is certain takes precedence, in any view of any text.
        """
        found: Verdict | None = None
        for text in self._views(texts) if self.all else ():
            for policy in self.all:
                # Hiding words must not be easy: not across sentences, and not with words that are cut.
                uncounted = {at for span in text.find(policy.never, plain=True) for at in span.matched}
                if any(_stands(group, text, uncounted, policy.window) for group in policy.certain):
                    open_ = uncounted | _sentences(text, policy.unless)
                    if any(_stands(group, text, open_, policy.window) for group in policy.certain):
                        return Verdict(policy, "certain")
                    found = found or Verdict(policy, "suspect")
                if found is None and any(_stands(group, text, uncounted, policy.window) for group in policy.suspect):
                    found = Verdict(policy, "suspect")
        return found

    def _views(self, texts: Sequence[str]) -> Iterator[Text]:
        """The texts as one, with and without markup, and the ends and beginnings of those that are close."""
        others = ["".join(texts[first::2]) for first in (0, 1)] if len(texts) > 4 else []  # a word cut over three turns
        for joined in {"\n".join(texts): None, "".join(texts): None} | dict.fromkeys(others):
            for view in normal.views(joined):
                for words in normal.readings(view):
                    yield Text(words, self._vocabulary)
                # Spelt backwards, whole or word by word; of such texts, the words alone that are looked for.
                known = [word for word in normal.backwards(view) if self._vocabulary.knows(word.text)]
                if known:
                    yield Text([*known, *known[::-1]], self._vocabulary)
        each = [normal.words(text) for text in texts] if len(texts) > 2 else []
        for at, earlier in enumerate(each):
            for later in each[at + 2 : at + 1 + APART]:
                if earlier and later:
                    first = replace(later[0], loose=False, seam=True)
                    near = [*earlier[-EDGE:], first, *later[1:EDGE]]
                    yield from (Text(words, self._vocabulary) for words in (near, normal.whole(near)))


def _sentences(text: Text, patterns: PatternSet) -> set[int]:
    """The words of the sentences in which one of the patterns stands."""
    numbers = {text.words[span.start].sentence for span in text.find(patterns, plain=True)}
    return {at for at, word in enumerate(text.words) if word.sentence in numbers}


def _stands(group: Group, text: Text, uncounted: AbstractSet[int], window: int) -> bool:
    """Whether all sets of a group stand within `window` words."""
    spans: list[tuple[int, int, int]] = []
    for number, patterns in enumerate(group):
        found = [(span.start, span.end, number) for span in text.find(patterns) if uncounted.isdisjoint(span.matched)]
        if not found:
            return False
        spans += found
    latest: dict[int, int] = {}  # where each set begins last
    for start, end, number in sorted(spans, key=lambda span: span[1]):
        latest[number] = max(start, latest.get(number, start))
        if len(latest) == len(group) and end - min(latest.values()) <= window:
            return True
    return False
