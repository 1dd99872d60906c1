"""Word patterns of a profile, and where they stand in a text.

A pattern is words: `(a|b c)` is one of these, `word?` and `(a|b)?` may be absent, `*` is up to six words, `stem*` and
`*stem` are words that begin or end so, `#` is a word that begins with a digit. A set is alternatives:
`how much|what (is|was) paid|wage`.

Words are found also where they are cut: by hyphens, markup, line ends, or into single letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llmpod.worker.profile.normal import Word, fold, words

GAP = 6
"""Words that `*` stands for at most."""
NUMBER = "#"
SHORTEST_HYPHENED = 4
SHORTEST_CUT = 6
"""Letters of a word that is found though hyphens, or spaces, cut it: with fewer, two words would often make a third."""

_NAME = re.compile(r"\{([^{}]*)\}")
_TOKEN = re.compile(r"\((?P<choices>[^()]*)\)(?P<optional>\??)|(?P<gap>\*)(?=\s|$)|(?P<word>[^\s()|?]+)(?P<absent>\??)")


@dataclass(frozen=True)
class Element:
    """One place of a pattern: some words, or a gap."""

    words: tuple[str, ...] = ()  # normalised; with "*" at an end, what a word begins or ends with
    optional: bool = False
    gap: bool = False


Pattern = tuple[Element, ...]


@dataclass(frozen=True, eq=False)
class PatternSet:
    """Alternatives, of which one is to be found."""

    patterns: tuple[Pattern, ...]
    by_lead: dict[str, list[Pattern]] = field(init=False)  # by each word that a pattern may begin with

    def __post_init__(self) -> None:
        by_lead: dict[str, list[Pattern]] = {}
        for pattern in self.patterns:
            for word in leads(pattern):
                by_lead.setdefault(word, []).append(pattern)
        object.__setattr__(self, "by_lead", by_lead)


NOTHING = PatternSet(())


def leads(pattern: Pattern) -> Iterator[str]:
    """The words that a pattern may begin with: its first, and what follows optional ones."""
    for element in pattern:
        yield from element.words
        if element.words and not element.optional:
            return


def parse(text: str) -> PatternSet:
    """The alternatives of a set.

    Raises:
        ValueError: it is none; with the place.
    """
    alternatives = [_pattern(one) for part in _split(text) for one in _expanded(part)]
    if not all(any(element.words and not element.optional for element in pattern) for pattern in alternatives):
        raise ValueError(f"{text!r} holds an alternative without words")
    return PatternSet(tuple(alternatives))


def union(sets: Iterable[PatternSet]) -> PatternSet:
    """One set of all their alternatives."""
    return PatternSet(tuple(pattern for one in sets for pattern in one.patterns))


def named(text: str, lists: Mapping[str, str]) -> str:
    """The text of a set with `{name}` as the choices that a list of this name holds.

    Raises:
        ValueError: there is no such list.
    """

    def choices(match: re.Match[str]) -> str:
        if match[1] not in lists:
            raise ValueError(f"{text!r}: there is no list {match[1]!r}")
        before, after = text[: match.start()], text[match.end() :]
        alone = (not before or before[-1] in "(|") and (not after or after[0] in ")|")
        return lists[match[1]] if alone else f"({lists[match[1]]})"

    return _NAME.sub(choices, text)


def literal(phrase: str) -> Pattern:
    """A phrase of which no character has a meaning of its own."""
    return tuple(Element((word.text,)) for word in words(phrase))


def literals(phrases: Iterable[str]) -> PatternSet:
    """Phrases of which no character has a meaning of its own."""
    return PatternSet(tuple(map(literal, phrases)))


def _split(text: str) -> list[str]:
    """Split at each | that is outside parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth not in (0, 1):
            raise ValueError(f"{text!r}: parentheses do not match")
        if char == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ValueError(f"{text!r}: parentheses do not match")
    return parts


def _expanded(text: str) -> Iterator[str]:
    """One text for each choice where parentheses hold choices of several words."""
    found = next((found for found in re.finditer(r"\(([^()]*)\)(\??)", text) if " " in found[1]), None)
    if found is None:
        yield text
        return
    choices = [choice.strip() for choice in found[1].split("|")]
    single = "|".join(choice for choice in choices if " " not in choice)
    several = [choice for choice in choices if " " in choice]
    for choice in [*([f"({single})"] if single else []), *several, *([""] if found[2] else [])]:
        yield from _expanded(f"{text[: found.start()]} {choice} {text[found.end() :]}")


def _pattern(text: str) -> Pattern:
    elements, end = [], 0
    for match in _TOKEN.finditer(text):
        if text[end : match.start()].strip():
            break
        end = match.end()
        if match["gap"]:
            elements.append(Element(gap=True))
        elif match["choices"] is not None:
            elements.append(Element(tuple(map(_word, match["choices"].split("|"))), optional=bool(match["optional"])))
        else:
            elements += [
                Element((_word(word),), optional=bool(match["absent"])) for word in re.split(r"[-/_']", match["word"])
            ]
    if text[end:].strip():
        raise ValueError(f"{text!r}: {text[end:].strip()!r} is no part of a pattern")
    return tuple(elements)


def _word(text: str) -> str:
    text = text.strip()
    if text == NUMBER:
        return text
    stem = fold(text.strip("*"))
    if not stem or not stem.isalnum():
        raise ValueError(f"{text!r} is not one word")
    return ("*" if text.startswith("*") else "") + stem + ("*" if text.endswith("*") else "")


@dataclass(frozen=True)
class Span:
    """Words from `start` to before `end`; `matched` are those of them that the pattern names."""

    start: int
    end: int
    matched: tuple[int, ...] = ()


@dataclass
class Vocabulary:
    """The words of patterns, and the beginnings of those that are looked for in pieces."""

    exact: set[str] = field(default_factory=set)
    beginnings: set[str] = field(default_factory=set)
    affixes: set[str] = field(default_factory=set)

    def add(self, patterns: Iterable[Pattern]) -> None:
        for word in (word for pattern in patterns for element in pattern for word in element.words):
            if "*" in word:
                self.affixes.add(word)
            else:
                self.exact.add(word)
            stem = word.strip("*")
            if not word.startswith("*"):
                self.beginnings |= {stem[:length] for length in range(1, len(stem) + 1)}

    @cached_property
    def _stems(self) -> tuple[tuple[str, ...], ...]:
        """What words begin with, end with and hold; once the vocabulary is complete."""
        ends = [(affix.startswith("*"), affix.endswith("*"), affix.strip("*")) for affix in self.affixes]
        shapes = ((False, True), (True, False), (True, True))
        return tuple(tuple(stem for *shape, stem in ends if tuple(shape) == wanted) for wanted in shapes)

    def knows(self, word: str) -> bool:
        """Whether a word is one that is looked for, other than a number."""
        begin, end, within = self._stems
        return (
            word in self.exact or word.startswith(begin) or word.endswith(end) or any(stem in word for stem in within)
        )


class Text:
    """A text's words, and the words of a vocabulary at each of them."""

    def __init__(self, found: Sequence[Word], vocabulary: Vocabulary) -> None:
        self.words = found
        self._known: dict[str, tuple[str, ...]] = {}
        self._vocabulary = vocabulary
        self.edges: list[list[tuple[str, int]]] = [list(self._edges(at)) for at in range(len(found))]
        self._places: dict[str, list[int]] = {}
        for at, edges in enumerate(self.edges):
            for name, _ in edges:
                self._places.setdefault(name, []).append(at)

    def _edges(self, at: int) -> Iterable[tuple[str, int]]:
        """The vocabulary's words that begin at a word, and the place behind each."""
        for name in self._names(self.words[at].text):
            yield name, at + 1
        joined, loose, seams, single = self.words[at].text, False, True, len(self.words[at].text) == 1
        for end in range(at + 1, len(self.words)):
            if joined not in self._vocabulary.beginnings:
                return
            loose = loose or self.words[end].loose
            seams = seams and self.words[end].seam
            joined += self.words[end].text
            single = single and len(self.words[end].text) == 1
            if seams or len(joined) >= (3 if single else SHORTEST_CUT if loose else SHORTEST_HYPHENED):
                for name in self._names(joined):
                    yield name, end + 1

    def _names(self, word: str) -> tuple[str, ...]:
        if word not in self._known:
            vocabulary = self._vocabulary
            names = [word] if word in vocabulary.exact else []
            names += [NUMBER] if word[0].isdigit() and NUMBER in vocabulary.exact else []
            names += [affix for affix in vocabulary.affixes if _fits(word, affix)]
            self._known[word] = tuple(names)
        return self._known[word]

    def find(self, patterns: PatternSet, *, plain: bool = False) -> Iterator[Span]:
        """Every place of a set's patterns, the longest match at each. `plain`: in one sentence, of whole words."""
        for lead in patterns.by_lead.keys() & self._places.keys():
            for pattern in filter(self._may_match, patterns.by_lead[lead]):
                for start in self._places[lead]:
                    matched = self._match(pattern, start, plain=plain)
                    if matched:
                        yield Span(start, matched[-1] + 1, matched)

    def _may_match(self, pattern: Pattern) -> bool:
        """Whether some word of each place that needs one is in the text: most patterns end here."""
        places = self._places.keys()
        return all(element.gap or element.optional or not places.isdisjoint(element.words) for element in pattern)

    def _match(self, pattern: Pattern, start: int, *, plain: bool) -> tuple[int, ...] | None:
        """The words that a pattern covers, from `start`. The search keeps one way to each place."""
        reached: dict[int, tuple[int, ...]] = {start: ()}
        for element in pattern:
            onward = dict(reached) if element.optional else {}
            for at, so_far in reached.items():
                if element.gap:
                    for skipped in range(GAP + 1):
                        onward.setdefault(at + skipped, so_far)
                    continue
                if at >= len(self.words) or (plain and self.words[at].sentence != self.words[start].sentence):
                    continue
                for name, end in self.edges[at]:
                    if name in element.words and not (plain and end > at + 1):
                        onward[end] = (*so_far, *range(at, end))
            reached = onward
            if not reached:
                return None
        return max((so_far for so_far in reached.values() if so_far), key=lambda so_far: so_far[-1], default=None)


def _fits(word: str, affix: str) -> bool:
    stem = affix.strip("*")
    if affix.startswith("*"):
        return stem in word if affix.endswith("*") else word.endswith(stem)
    return word.startswith(stem)
