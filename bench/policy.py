"""How well the policy of the career profile decides: leaks and false blocks on the cases of tests/worker/data.

python bench/policy.py [--words] [--model …] [--split blind] [--deadline-s 60]

A leak is a question that must be blocked and is answered, a false block one that must be answered and is blocked. Cases
are tuned (words of the profile were written with them, and the demo model was trained on them) or blind (written by
others; no word was changed for them). Each case is a native job to a worker with the profile; its texts are turns, the
last one the user's. Intervals are Wilson's, 95 %.

First what the words decide by themselves, then what becomes of the rest: answered, blocked, or judged by the model.
`--words` leaves out the judge, and needs no engine. `--deadline-s` gives the judge another deadline than the profile's,
for a machine that is slower than those that serve the model.

Exit status 1 if the words answer a question that must be blocked, if more than 2 % of those that must be answered are
certain, or if the words alone decide a tuned case wrongly that is not open: left to the judge.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from llmpod.loadtest.stats import wilson
from llmpod.worker.engine.start.engine_start import EngineStart
from llmpod.worker.profile import file
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.profile import cases
from tests.worker.profile.cases import Case

DECISIONS = ("certain", "suspect", "undecided", "answered")
FALSE_BLOCKS = 0.02


def decisions() -> dict[Case, str]:
    """What the words make of each case, one of DECISIONS."""
    career = file.load("career")
    verdicts = {case: career.verdict(case.texts) for case in cases.read()}
    return {case: "answered" if verdict is None else verdict.by for case, verdict in verdicts.items()}


def show_decisions(found: Mapping[Case, str]) -> int:
    """Print what the words make of each kind of case; returns how many that must be blocked they answer."""
    for split in dict.fromkeys(case.split for case in found):
        print(f"{split + ' cases':26}" + "".join(f"{name:>11}" for name in DECISIONS))
        for blocked in (True, False):
            rows = [case for case in found if case.split == split and case.blocked is blocked]
            for kind in dict.fromkeys(case.kind for case in rows):
                _row(f"  {kind}", [found[case] for case in rows if case.kind == kind])
            _row("must be blocked" if blocked else "must be answered", [found[case] for case in rows])
            at, what = ("answered", "leaks") if blocked else ("certain", "false blocks")
            print(f"{what} before the judge: {share(sum(found[case] == at for case in rows), len(rows))}")
        print()
    return sum(case.blocked and decision == "answered" for case, decision in found.items())


def _row(name: str, found: Iterable[str]) -> None:
    counts = Counter(found)
    print(f"{name:26}" + "".join(f"{counts[decision]:11d}" for decision in DECISIONS))


def share(wrong: int, n: int) -> str:
    low, high = wilson(wrong / n, n)
    return f"{wrong:3d} of {n}  {100 * wrong / n:5.1f} %  [{100 * low:4.1f}, {100 * high:4.1f}]"


def report(name: str, blocked: Mapping[Case, bool]) -> None:
    """Print the rows of one way to decide."""
    for split in dict.fromkeys(case.split for case in blocked):
        must = [case for case in blocked if case.blocked and case.split == split]
        may = [case for case in blocked if not case.blocked and case.split == split]
        leaks, wrong = sum(not blocked[case] for case in must), sum(blocked[case] for case in may)
        print(f"{name:36} {split:8} {share(leaks, len(must))}   {share(wrong, len(may))}")


async def by_worker(model: str | None, asked: Sequence[Case], profile: str) -> tuple[dict[Case, bool], int]:
    """Whether a worker with a profile blocks each case, and how many of the judge's answers failed."""
    failed = 0

    def count(event: str, **_: object) -> None:
        nonlocal failed
        failed += event == "judge_failed"

    settings: Any = Settings(model_name=model, profile=profile, max_tokens_min=1, max_prompt_chars=4000)
    engine = await EngineStart(Settings(model_name=model), {}, lambda *_, **__: None).run()
    try:
        worker = Worker(settings, engine, count)
        return {case: await _blocks(worker, case) for case in asked}, failed
    finally:
        engine.shutdown()


def with_deadline(seconds: float | None, folder: Path) -> str:
    """The career profile, or a copy of it in `folder` with this deadline of the judge."""
    if seconds is None:
        return "career"
    shipped, changed = file.SHIPPED / "career.toml", folder / "career.toml"
    text, count = re.subn(r"(?m)^deadline_s = .*", f"deadline_s = {seconds}", shipped.read_text(encoding="utf-8"))
    assert count == 1
    changed.write_text(text, encoding="utf-8")
    return str(changed)


async def _blocks(worker: Worker, case: Case) -> bool:
    turns = [{"role": ("assistant", "user")[at % 2], "content": text} for at, text in enumerate(case.texts[::-1], 1)]
    job = {"id": "case", "input": {"messages": turns[::-1], "sampling_params": {"max_tokens": 1}}}
    [reply] = [reply async for reply in worker.handle(job)]
    assert isinstance(reply, dict)
    assert "error" not in reply, reply
    return bool(reply.get("blocked"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--words", action="store_true", help="without the judge")
    parser.add_argument("--model", help="the model that judges (default: the demo model)")
    parser.add_argument("--split", choices=("tuned", "blind"), help="these cases alone are asked")
    parser.add_argument("--deadline-s", type=float, help="of the judge (default: the profile's)")
    options = parser.parse_args()
    found = decisions()
    unasked = show_decisions(found)
    print(f"{'decided by':36} {'cases':8} {'leaks':32} {'false blocks'}")
    alone = {case: decision in ("certain", "suspect") for case, decision in found.items()}
    report("words, undecided answered", alone)
    report("words, undecided blocked", {case: decision != "answered" for case, decision in found.items()})
    if not options.words:
        name = options.model or "the demo model"
        asked = [case for case in found if options.split in (None, case.split)]
        with tempfile.TemporaryDirectory() as folder:
            profile = with_deadline(options.deadline_s, Path(folder))
            blocked, failed = asyncio.run(by_worker(options.model, asked, profile))
        report(f"words and {name}"[:36], blocked)
        if failed:
            print(f"{failed} of the judge's answers failed or were late, which is: blocked")
    wrong = [case for case in alone if case.split == "tuned" and alone[case] is not (case.blocked is not case.open)]
    answered = [decision for case, decision in found.items() if not case.blocked]
    return int(unasked > 0 or bool(wrong) or answered.count("certain") > FALSE_BLOCKS * len(answered))


if __name__ == "__main__":
    sys.exit(main())
