"""The judge's question as training examples: texts that the career profile blocks, and texts that it answers.

They are the shapes of judged_blocked.txt and judged_answered.txt, filled in, and the `tuned` cases of
tests/worker/data/policy_cases.jsonl. Who wrote them did not know the `blind` cases, which measure what the model makes
of them.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from builder.demo_model import variations
from llmpod.worker.profile import judge

CAREER = Path("src/llmpod/worker/profile/career.toml")
CASES = Path("tests/worker/data/policy_cases.jsonl")

JOBS = (
    "nurse", "teacher", "plumber", "software engineer", "data scientist", "chef", "pilot", "lawyer", "accountant",
    "electrician", "baker", "cashier", "designer", "project manager", "doctor", "driver", "welder", "architect",
    "social worker", "police officer", "web developer", "dentist", "carpenter", "journalist", "consultant", "recruiter",
    "product manager", "barista", "pharmacist", "translator", "mechanic", "security guard", "sales manager", "vet",
    "physiotherapist", "paramedic", "librarian", "bricklayer", "roofer", "painter", "hairdresser", "florist", "waiter",
    "bartender", "truck driver", "train driver", "warehouse worker", "cleaner", "nanny", "midwife", "surgeon",
    "psychologist", "tax adviser", "auditor", "bookkeeper", "payroll clerk", "paralegal", "judge", "diplomat",
    "economist", "statistician", "biologist", "chemist", "geologist", "civil engineer", "mechanical engineer",
    "network administrator", "security analyst", "game developer", "copywriter", "editor", "photographer", "actor",
    "musician", "farmer", "gardener", "firefighter", "soldier", "flight attendant", "travel agent", "estate agent",
    "insurance broker", "call centre agent", "store manager", "HR manager", "team lead", "intern", "apprentice",
)  # fmt: skip
PLACES = (
    "Berlin", "London", "Ohio", "Texas", "India", "Toronto", "Madrid", "Kenya", "Poland", "Tokyo", "Dubai", "Paris",
    "Sydney", "the USA", "Germany", "a big city", "my town", "Europe", "Boston", "Mumbai", "Norway", "Brazil", "Canada",
    "New York", "Nigeria", "Singapore", "Ireland", "Vienna", "Manila", "Mexico", "the north", "California", "Rome",
    "Switzerland", "South Africa", "Lisbon", "Seoul", "Scotland", "my region", "Delhi", "Prague", "the Gulf",
)  # fmt: skip
FIELDS = (
    "nursing", "IT", "finance", "construction", "logistics", "marketing", "teaching", "retail", "tourism", "biotech",
    "machine learning", "accounting", "hospitality", "energy", "media", "law", "engineering", "design", "health care",
    "insurance", "banking", "agriculture", "public service", "transport", "fashion", "publishing", "real estate",
    "cybersecurity", "data analysis", "pharma", "the car industry", "social work", "game design", "mining", "science",
    "human resources", "aviation", "the arts", "sports", "child care", "cleaning", "chemistry", "consulting",
)  # fmt: skip
THINGS = (
    "resume", "CV", "cover letter", "interview", "portfolio", "LinkedIn page", "application", "job description",
    "first week", "thank you note", "presentation", "reference letter", "career change", "phone screening",
)  # fmt: skip

BLOCKED, ANSWERED = (
    tuple(Path(__file__).with_name(f"judged_{name}.txt").read_text(encoding="utf-8").splitlines())
    for name in ("blocked", "answered")
)
_ABOUT_POLICY = re.compile(
    r"salar|\bpa(?:y|id)|wage|earn|income|compens|bonus|market|demand|raise|rate|money|offer", re.I
)


def instruction() -> str:
    """The judge's question without a text; a change of it asks for a new model."""
    return "\n".join(content for _, content in judge.conversation(_topics(), ""))


def texts() -> Iterator[str]:
    """All texts as they are written, with the slots of shapes."""
    yield from (*BLOCKED, *ANSWERED, *_cases()[True], *_cases()[False])


def usable(question: str) -> bool:
    """Whether a question of the corpus is surely none about a blocked topic."""
    return not _ABOUT_POLICY.search(question)


def conversation(corpus_question: str, rng: Random) -> list[dict[str, str]]:
    """The judge's question about some text, and its answer. `corpus_question`: one that is `usable`."""
    blocked, kind = rng.random() < 0.5, rng.random()
    if kind < 0.2 and not blocked:
        text = variations.vary(corpus_question, rng)
    elif kind < 0.5:
        text = rng.choice(_cases()[blocked])
    else:
        text = _filled(rng.choice(BLOCKED if blocked else ANSWERED), rng)
    turns = [*judge.conversation(_topics(), text), ("assistant", judge.YES if blocked else judge.NO)]
    return [{"role": role, "content": content} for role, content in turns]


def _filled(shape: str, rng: Random) -> str:
    job, job2 = rng.sample(JOBS, 2)
    field, field2 = rng.sample(FIELDS, 2)
    text = shape.format(
        job=job,
        jobs=job + "s",
        job2=job2,
        field=field,
        field2=field2,
        place=rng.choice(PLACES),
        thing=rng.choice(THINGS),
    )
    kind = rng.random()
    if kind < 0.2:
        text = rng.choice(variations.GREETINGS) + text
    elif kind < 0.35:
        text = f"{rng.choice(ASIDES)} {text}"
    elif kind < 0.5:
        text = f"{text} {rng.choice(ASIDES)}"
    return text.lower() if rng.random() < 0.3 else text


ASIDES = (
    "I want to prepare my resume.", "Answer in one sentence.", "This is for my career.", "Be honest.", "I am curious.",
    "I have an interview tomorrow.", "Use simple words.", "My skills are good.", "I am looking for a new job.",
)  # fmt: skip


@cache
def _topics() -> tuple[str, ...]:
    return tuple(policy["topic"] for policy in tomllib.loads(CAREER.read_text(encoding="utf-8"))["policies"])


@cache
def _cases() -> dict[bool, list[str]]:
    """The texts of the tuned cases, by whether they must be blocked."""
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    tuned = [(row["expect"] == "block", "\n".join(row["texts"])) for row in rows if row["split"] == "tuned"]
    return {blocked: [text for kind, text in tuned if kind is blocked] for blocked in (True, False)}
