"""The corpus as data: what the demo model knows, read from corpus.txt.

The file is written to be read by people. A block without blank lines is one entry: lines that begin with `? ` are
wordings of one question, the lines after them are the answer, and a further `? ` after an answer opens a follow-up
turn. Lines that begin with `# ` are headings.
"""

from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus.txt"


@dataclass(frozen=True)
class Turn:
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Entry:
    turns: tuple[Turn, ...]


def read_corpus(path: Path = CORPUS) -> list[Entry]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    entries = (_entry([line for line in block.splitlines() if line and not line.startswith("# ")]) for block in blocks)
    return [entry for entry in entries if entry.turns]


def _entry(lines: list[str]) -> Entry:
    turns: list[tuple[list[str], list[str]]] = []
    for line in lines:
        if line.startswith("? "):
            if not turns or turns[-1][1]:
                turns.append(([], []))
            turns[-1][0].append(line[2:])
        else:
            turns[-1][1].append(line)
    return Entry(tuple(Turn(tuple(questions), "\n".join(answer)) for questions, answer in turns))
