"""The policy cases: questions, and whether they are answered.

Splits: `tuned` (the words of the profile were written with them, and the demo model was trained on them) and `blind`
(written by somebody who knew neither the words nor the other cases; no word is changed for them, and which of them go
wrong is counted, not shown). An `open` case is one that the words alone decide wrongly and leave to the judge. A
`stranger` wrote the cases of that source, having read docs/profiles.md but neither the words nor the other cases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llmpod.worker.profile import file
from llmpod.worker.profile.data import AnsweredData
from llmpod.worker.profile.file import Profile

CASES = Path(__file__).parents[1] / "data/policy_cases.jsonl"


@dataclass(frozen=True)
class Case:
    """Texts that a model reads one after another, and what a worker with the career profile has to do with them."""

    texts: tuple[str, ...]
    blocked: bool
    kind: str
    split: str
    open: bool = False
    source: str = ""

    def __str__(self) -> str:
        return " | ".join(self.texts)


def read(path: Path = CASES) -> list[Case]:
    """All cases of the file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Case(
            tuple(row["texts"]),
            row["expect"] == "block",
            row["kind"],
            row["split"],
            row.get("open", False),
            row.get("source", ""),
        )
        for row in rows
    ]


def words_alone() -> Profile:
    """The career profile, but what its words leave undecided is answered."""
    career = file.load("career")
    return Profile(career.data.model_copy(update={"answered": AnsweredData()}))
