"""Processor time of compiling structured outputs, by the size of the model's vocabulary.

    python bench/constraints.py

Compiled as the worker does it before the engine gets a structured output (worker/engine/constraint_process.py): vLLM's
check, the engine's backend, and 128 tokens of an answer. The larger vocabularies are the demonstration model's with
random merges added, so they are only as large as a real model's. The median of three; no engine runs.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmpod.worker import environ, settings
from llmpod.worker.engine.constraint_process import Judge

VOCABULARIES = (0, 50_000, 152_000)
"""Tokens; 0: the demonstration model's own. 152,000 is Qwen's size."""


def text_of_at_most(characters: int) -> dict[str, Any]:
    """An object with one text of bounded length."""
    return {"json": {"type": "object", "properties": {"text": {"type": "string", "maxLength": characters}}}}


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
LIST = {"type": "array", "items": PERSON}
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "json_object": {"json_object": True},
    "choice of 2": {"choice": ["yes", "no"]},
    r"regex [A-Z]{2}\d{4}": {"regex": r"[A-Z]{2}\d{4}"},
    "schema of 2 fields": {"json": PERSON},
    "schema of 30 lists": {"json": {"type": "object", "properties": {f"field_{i}": LIST for i in range(30)}}},
    "text, maxLength 20": text_of_at_most(20),
    "text, maxLength 100": text_of_at_most(100),
    "text, maxLength 200": text_of_at_most(200),
}


def enlarge(model: Path, tokens: int) -> None:
    """Add random merges to a copy of the demonstration model until its vocabulary has so many tokens."""
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    chance, known = random.Random(1), list(vocabulary)
    number = 1 + max(*vocabulary.values(), *(added["id"] for added in tokenizer["added_tokens"]))
    while number < tokens:
        pair = chance.choice(known), chance.choice(known)
        if (token := "".join(pair)) not in vocabulary and len(token) <= 16:
            vocabulary[token] = number
            known.append(token)
            merges.append(list(pair) if isinstance(merges[0], list) else " ".join(pair))
            number += 1
    file.write_text(json.dumps(tokenizer))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": tokens}))


def compile_s(judge: Judge, constraint: dict[str, Any]) -> float:
    """Processor time of a compilation in seconds, median of three. Each is a fork's: the backend keeps its results."""
    took = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os._exit("refused" in judge.verdict(constraint))
        _, status, used = os.wait4(pid, 0)
        assert status == 0, constraint
        took.append(used.ru_utime + used.ru_stime)
    return statistics.median(took)


def main() -> int:
    from vllm.engine.arg_utils import AsyncEngineArgs

    columns: dict[int, list[float]] = {}
    for tokens in VOCABULARIES:
        with tempfile.TemporaryDirectory(prefix="bench-constraints-") as folder:
            model = Path(folder, "model")
            shutil.copytree(settings.DEMO_MODEL, model)
            if tokens:
                enlarge(model, tokens)
            with environ.temporarily({"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}):
                config = AsyncEngineArgs(model=str(model)).create_engine_config()
            judge = Judge(config)
            columns[config.model_config.get_vocab_size()] = [compile_s(judge, each) for each in CONSTRAINTS.values()]
    print(f"Python {platform.python_version()}, seconds of processor time (MAX_CONSTRAINT_SECONDS bounds them)\n")
    print("| structured output | " + " | ".join(f"{size:,} tokens" for size in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row, name in enumerate(CONSTRAINTS):
        print(f"| {name} | " + " | ".join(f"{column[row]:.2f}" for column in columns.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
