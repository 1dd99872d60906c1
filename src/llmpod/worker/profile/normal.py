"""Text normalisation for policy: the same letters, however they are written.

Compatibility forms (NFKC), invisible characters, accents, letters of other scripts that look like Latin ones, escapes,
markup, base64 and spelling backwards are ways to write a word so that a list of words does not find it, while a model
reads it all the same.
"""

from __future__ import annotations

import base64
import contextlib
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

_LOOKALIKES = str.maketrans(
    # Cyrillic, Greek, Armenian and phonetic letters -> Latin, after casefold.
    dict(
        zip(
            "аеорсухѕіјһԁɡԛԝвкмнтгпуёєѡьзиѵґӏқҳҝәөүұ",
            "aeopcyxsijhdgqwbkmhtrnyeewbeuvrlkxkeoyy",
            strict=True,
        )
    )
    | dict(zip("αβεζηικμνορςτυχγωσδλθφπ", "abeznikmvopctuxywodlofn", strict=True))
    | dict(zip("աոսօյհցգլ", "wnuojhgql", strict=True))
    | dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True))
    | dict(zip("ɓƈɗƒɠɦƙɱŋɲƥʠɽʂƭʋⱳƴʐ", "bcdfghkmnnpqrstvwyz", strict=True))
    | dict(zip("ɑɐəɘɛɩıłøđħŧʍɯʇʌʎⅼ", "aaeeeiilodhtwmtvyl", strict=True))
    | {"æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
    # Letters in boxes and the halves of flags.
    | {chr(first + at): chr(97 + at) for first in (0x1F150, 0x1F170, 0x1F1E6) for at in range(26)}
)
_DIGITS_FOR_LETTERS = str.maketrans("013457$@", "oieastsa")
_RUN = re.compile(r"[\w$@]+")
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")
_STROKE = re.compile(r"[1|!](?=[^\W\d_])|(?<=[^\W\d_])[1|!]")
_LATIN = re.compile("[a-z]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SEAM = "\x1f"
_WORD = re.compile(r"[^\W_]+")
_PUNCTUATION = " \n.,;:!?'\"()-/&"
_ENDS_SENTENCE = re.compile(r"[\n.?!;|]")
_COMMENTS = (("<!--", "-->"), ("/*", "*/"))
_TAG = re.compile(r"</?[^\W\d_][^<>]*>")
_LINK = re.compile(r"\]\([^()\s]*\)")
_LONG_WORD = re.compile(r"[^\W_]{4,}")
_ENCODED: tuple[tuple[re.Pattern[str], Callable[[str], bytes]], ...] = (
    (re.compile(r"[A-Za-z0-9+/_-]{8,}"), lambda run: base64.b64decode(run + "=" * (-len(run) % 4), altchars="-_")),
    (re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){6,}"), lambda run: bytes.fromhex(run.replace(":", ""))),
)
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})|%([0-7][0-9a-fA-F])")

PIECE_CHARS = 4096
"""Characters that are normalised in one call: a few milliseconds, in which no other thread runs."""


@dataclass(frozen=True)
class Word:
    """A word of a normalised text, and what separates it from the one before."""

    text: str
    loose: bool  # a space
    seam: bool  # nothing but a change of case: payScale
    sentence: int  # counts sentences and lines, for patterns that must not cross one


def readings(text: str) -> Iterator[list[Word]]:
    """The words of a text; then, where that differs, with no boundary at a change of case, and with cut words whole.

    Patterns count words, so the pieces of cut ones must not fill the places between those that they look for.
    """
    yield (first := words(text))
    if any(word.seam for word in first):
        yield (first := words(text, seams=False))
    joined = whole(first)
    if len(joined) < len(first):
        yield joined


def whole(found: list[Word]) -> list[Word]:
    """The words with the pieces joined that no space separates, and the letters that stand alone one after another."""
    joined: list[Word] = []
    letter = False  # the last word is made of single letters
    for word in found:
        single = len(word.text) == 1
        if joined and (not word.loose or (letter and single)):
            joined[-1] = replace(joined[-1], text=joined[-1].text + word.text)
        else:
            joined.append(word)
        letter = single
    return joined


def words(text: str, *, seams: bool = True) -> list[Word]:
    """The words of a text, normalised: letters and digits in lower case. `seams`: they end at a change of case."""
    found: list[Word] = []
    end = sentence = 0
    folded = fold(text, seams=seams)
    for match in _WORD.finditer(folded):
        between = folded[end : match.start()]
        if between != " " and _ENDS_SENTENCE.search(between):
            sentence += 1
        found.append(Word(match[0], " " in between and "\n" not in between, between == _SEAM, sentence))
        end = match.end()
    return found


def fold(text: str, *, seams: bool = False) -> str:
    """A text in plain lower-case letters. `seams`: a change of case (`payScale`) becomes a mark that is no letter."""
    return "".join(_folded(piece, seams=seams) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at spaces: one call for all of it would hold up other threads."""
    at = 0
    while at < len(text):
        end = at + PIECE_CHARS
        if end < len(text):
            space = max(text.rfind(" ", at, end), text.rfind("\n", at, end)) + 1
            end = space if space > at else end
        yield text[at:end]
        at = end


def _folded(text: str, *, seams: bool) -> str:
    if not text.isascii():
        text = _visible(unicodedata.normalize("NFKC", text))
    text = "".join(char if char >= " " or char in "\n\t\r" else "" for char in text) if _has_controls(text) else text
    text = (_CAMEL.sub(_SEAM, text) if seams else text).casefold()
    if not text.isascii():
        text = text.translate(_LOOKALIKES)
        text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
        text = text.translate(_LOOKALIKES)
    return _STRETCHED.sub(r"\1", _RUN.sub(_letters_for_digits, text.replace("\t", " ")))


def is_plain(text: str) -> bool:
    """Whether a text is letters, digits, spaces and common punctuation: no markup, symbol or invisible character."""
    return all(char.isalnum() or char in _PUNCTUATION for char in text)


def views(text: str) -> Iterator[str]:
    """The text as it is, and in other ways that a model may read it.

    As its markup shows it: without tags, comments and addresses, escapes decoded. With strokes beside letters as
    letters (sa|ary). What it holds in base64 or hexadecimal.
    """
    yield text
    plain = _UNICODE_ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), text)
    plain = visible = _visible(html.unescape(plain))
    for opening, closing in _COMMENTS:
        plain = _without(plain, opening, closing)
    plain = _LINK.sub("]", _TAG.sub("", plain))
    others = (plain, _STROKE.sub(lambda found: "i" if found[0] == "!" else "l", plain), " ".join(_decoded(visible)))
    yield from {other: None for other in others if other not in ("", text)}


def backwards(text: str) -> list[Word]:
    """The words of four letters or more of a text that is read backwards."""
    return words(" ".join(_LONG_WORD.findall(text[::-1])), seams=False)


def _decoded(text: str) -> Iterator[str]:
    """What stands in a text in base64 or hexadecimal."""
    for pattern, decode in _ENCODED:
        for run in pattern.findall(text):
            with contextlib.suppress(ValueError):  # a word, or a number
                yield decode(run).decode()


def _without(text: str, opening: str, closing: str) -> str:
    """The text without what stands between two marks. An expression would search for each missing end anew."""
    kept, at = [], 0
    while (begin := text.find(opening, at)) >= 0 and (end := text.find(closing, begin + len(opening))) >= 0:
        kept.append(text[at:begin])
        at = end + len(closing)
    return "".join((*kept, text[at:]))


def _visible(text: str) -> str:
    hidden = ("Cf", "Co", "Cs", "Cn", "Mn", "Me")
    return text if text.isascii() else "".join(char for char in text if unicodedata.category(char) not in hidden)


def _letters_for_digits(match: re.Match[str]) -> str:
    """`s4lary` and `$alary`, but not `60k`: a word of more letters than digits. In other runs, their words alone."""
    run = match[0]
    if run.isalpha():
        return run
    return _translated(run) or _WORD.sub(lambda word: _translated(word[0]) or word[0], run)


def _translated(word: str) -> str | None:
    digits = sum(not char.isalpha() for char in word)
    return word.translate(_DIGITS_FOR_LETTERS) if 0 < digits < len(word) - digits and _LATIN.search(word) else None


def _has_controls(text: str) -> bool:
    return any(char in text for char in map(chr, (*range(9), 11, 12, *range(14, 32), 127)))
