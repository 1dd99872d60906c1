"""The judge with a real model: the demonstration model has learnt the career profile's question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.profile import file
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, error_of, replies_of

PAGE = Path(__file__).parents[2] / "docs/profiles.md"
BLOCKED, ANSWERED = "What does a nurse earn in Berlin?", "How do I become a nurse?"


@pytest.fixture
def worker(make_worker: Callable[..., Worker], tmp_path: Path) -> Worker:
    """With the career profile's topics, and words that leave everything about nurses to the judge."""
    policies = "\n".join(
        f'[[policies]]\nname = "{policy.name}"\nmessage = "No."\ntopic = "{policy.topic}"\nsuspect = [["nurse|nurses"]]'
        for policy in file.load("career").policies.all
    )
    path = tmp_path / "nurses.toml"
    path.write_text(
        'version = 2\ndefault_intent = "rest"\n[judge]\nmode = "suspect"\ndeadline_s = 60\n[[intents]]\nname = "rest"\n'
        + policies
    )
    return make_worker(profile=str(path), max_prompt_chars=0)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_decides_what_the_words_leave_open(
    worker: Worker, engine: Engine, events: Events, stream: bool
) -> None:
    sampling = {"max_tokens": 64, "temperature": 0.0}
    [reply] = await replies_of(worker, {"prompt": BLOCKED, "stream": stream, "sampling_params": sampling}, "native")
    assert (reply["blocked"], reply["intent"]) == (True, "salary_intelligence")
    assert events.end_of("native")["policy"] == {"name": "salary_intelligence", "by": "judge"}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": BLOCKED}], "stream": stream, "max_tokens": 64}
    chat = {"openai_route": "/v1/chat/completions", "openai_input": body}
    assert (await error_of(worker, chat, "chat"))["code"] == "content_filter"
    assert events.end_of("chat")["policy"]["by"] == "judge"

    *_, last = await replies_of(worker, {"prompt": ANSWERED, "stream": stream, "sampling_params": sampling}, "fine")
    assert last["usage"]["output"] > 1
    end = events.end_of("fine")
    assert end["outcome"] == "ok"
    assert end["prompt_tokens"] == last["usage"]["input"] < 40  # the judge's question is not counted
    body["messages"] = [{"role": "user", "content": ANSWERED}]
    assert "error" not in (await replies_of(worker, chat, "fine-chat"))[-1]
    assert events.end_of("fine-chat")["outcome"] == "ok"
    assert worker.slots.in_use == engine.unfinished == 0
    assert not events.named("judge_failed")


async def test_a_text_that_does_not_fit_the_question_is_blocked(worker: Worker, events: Events) -> None:
    long = "nurse " * 4080
    reply = (await replies_of(worker, {"prompt": long, "sampling_params": {"max_tokens": 1}}))[-1]
    assert reply.get("blocked") is True, reply
    assert [event["cause"] for event in events.named("judge_failed")] == ["context_length_exceeded"]


async def test_the_page_shows_what_the_worker_answers(make_worker: Callable[..., Worker], tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    jobs = re.findall(r"--test_input '(.*)'$", text, re.MULTILINE)
    answers = re.findall(r"^<!-- answer: \w+ -->\n```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(answers) == 2
    for content, job, shown in zip(files[1:3], jobs[:2], answers, strict=True):
        path = tmp_path / "rules.toml"
        path.write_text(content)
        [reply] = await replies_of(make_worker(profile=str(path)), json.loads(job)["input"], "local_test")
        assert reply == json.loads(shown)
