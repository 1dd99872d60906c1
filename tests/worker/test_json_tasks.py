"""JSON tasks of a profile, from the job to the reply."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.engine.start import warm_up
from llmpod.worker.errors import StartError
from llmpod.worker.jobs.engine_output import Delta, Step, Timings, Usage
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.profile import file
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events, error_of, replies_of
from tests.worker.scripted import ScriptedEngine

Json = dict[str, Any]
MakeWorker = Callable[..., Worker]

PROFILE = """
version = 2
[[tasks]]
name = "classify"
system = "Decide. The operator never answers questions about salaries."
schema = "schema.json"
request = { max_tokens = 300, sampling = { temperature = 0.0 } }
rules = [
    { rule = "one_of", path = "way", values = ["in", "out"], else = "in" },
    { rule = "equal", left = "sum(parts[*])", right = "total" },
]

[[tasks]]
name = "strict"
schema = "schema.json"
on_invalid = "fail"
rules = [{ rule = "equal", left = "sum(parts[*])", right = "total" }]

[[tasks]]
name = "free"
"""
SCHEMA = {
    "type": "object",
    "properties": {
        "way": {"enum": ["in", "out", "up"]},
        "parts": {"type": "array", "items": {"enum": [1, 2.5]}, "minItems": 1, "maxItems": 3},
        "total": {"enum": [1, 2, 3.5]},
    },
    "required": ["way", "parts", "total"],
    "additionalProperties": False,
}
GOOD = '{"way": "out", "parts": [1, 2.5], "total": 3.5}'
UNBALANCED = '{"way": "up", "parts": [1, 1], "total": 3.5}'


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "p.toml").write_text(PROFILE)
    return str(tmp_path / "p.toml")


class Saying(ScriptedEngine):
    """An engine that says the same text to everybody, in pieces, and keeps what it was asked."""

    def __init__(self, text: str, reason: str = "stop") -> None:
        super().__init__()
        self.sampling_names = frozenset({"temperature", "n", "structured_outputs"})
        self.text, self.reason = text, reason
        self.asked: list[Json] = []
        self.rendered: list[NativeRequest] = []

    async def render(self, request: NativeRequest) -> list[Any]:
        self.rendered.append(request)
        return list(range(5))

    async def generate(self, prompt_ids: list[Any], params: Json, request_id: str) -> AsyncGenerator[Step, None]:
        self.asked.append(params)
        size = 7 if params["stream"] else max(1, len(self.text))
        pieces = [self.text[start : start + size] for start in range(0, len(self.text), size)] or [""]
        for number, piece in enumerate(pieces, 1):
            done = number == len(pieces)
            delta = Delta(0, piece, self.reason if done else None)
            yield Step([delta], Usage(5, number, None), done, Timings(0, 0, 0) if done else None)


def saying(text: str, path: str, events: Events, reason: str = "stop", **settings: Any) -> tuple[Worker, Saying]:
    engine: Any = Saying(text, reason)
    return Worker(Settings(profile=path, **settings), engine, events.emit), engine


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_has_the_object_and_what_is_wrong_with_it(path: str, events: Events, stream: bool) -> None:
    worker, engine = saying(UNBALANCED, path, events)
    replies = await replies_of(worker, {"task": "classify", "prompt": "A bill", "stream": stream})
    reply = replies[-1]
    assert reply["task"] == "classify"
    assert reply["parsed"] == {"way": "in", "parts": [1, 1], "total": 3.5}
    assert "".join(choice["text"] for one in replies for choice in one["choices"]) == UNBALANCED
    validation = reply["validation"]
    assert (validation["valid"], validation["changed"]) == (False, True)
    assert [(issue["rule"], issue["severity"]) for issue in validation["issues"]] == [
        ("one_of", "changed"),
        ("equal", "error"),
    ]
    assert [validation["issues"][1][name] for name in ("path", "expected", "actual")] == ["sum(parts[*])", 3.5, 2]
    end = events.end_of("job-1")
    assert (end["task"], end["valid"], end["ok"], end["complete"]) == ("classify", False, True, True)
    [asked] = engine.asked
    assert asked["structured_outputs"] == {"json": SCHEMA}


async def test_a_task_decides_what_is_asked_and_a_client_may_ask_for_less(path: str, events: Events) -> None:
    worker, engine = saying(GOOD, path, events)
    for given, effective, reason in (
        (None, 300, "profile"),
        (100, 100, None),
        (9000, 300, "profile"),
        (2, 64, "raised"),
    ):
        job = {"task": "classify", "prompt": "x", "sampling_params": {"max_tokens": given, "temperature": 0.7}}
        [reply] = await replies_of(worker, job, f"job-{given}")
        assert reply["limits"]["max_tokens"] == {"requested": given, "effective": effective, "reason": reason}
        assert reply["validation"] == {"valid": True, "issues": [], "changed": False}
        assert (engine.asked[-1]["temperature"], engine.asked[-1]["max_tokens"]) == (0.7, effective)
    assert engine.rendered[-1].system == "Decide. The operator never answers questions about salaries."
    [reply] = await replies_of(worker, {"task": "classify", "prompt": "x"}, "default")
    assert engine.asked[-1]["temperature"] == 0.0
    [reply] = await replies_of(worker, {"task": "free", "prompt": "x"}, "free")
    assert engine.asked[-1]["structured_outputs"] == {"json_object": True}
    assert reply["limits"]["max_tokens"]["reason"] == "default"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_invalid_answer_can_be_a_failure(path: str, events: Events, stream: bool) -> None:
    worker, _ = saying(UNBALANCED, path, events)
    replies = await replies_of(worker, {"task": "strict", "prompt": "x", "stream": stream})
    error = json.loads(replies[-1]["error"])
    assert (error["code"], error["retryable"], error["details"]["task"]) == ("invalid_output", False, "strict")
    assert [issue["rule"] for issue in error["details"]["issues"]] == ["equal"]
    if stream:
        assert replies[-2]["failure"]["code"] == "invalid_output"
        assert "".join(choice["text"] for one in replies[:-1] for choice in one["choices"]) == UNBALANCED
    end = events.end_of("job-1")
    assert (end["ok"], end["error"], end["task"], end["valid"]) == (False, "invalid_output", "strict", False)
    worker, _ = saying(GOOD, path, events)
    assert (await replies_of(worker, {"task": "strict", "prompt": "x"}, "good"))[-1]["validation"]["valid"]


async def test_an_answer_that_max_tokens_cut_is_incomplete_and_not_invalid(path: str, events: Events) -> None:
    for task in ("classify", "strict"):
        worker, _ = saying(GOOD[:-5], path, events, "length")
        error = await error_of(worker, {"task": task, "prompt": "x"}, task)
        assert error["code"] == "incomplete_output"
        assert (events.end_of(task)["complete"], events.end_of(task)["valid"]) == (False, False)
    worker, _ = saying(GOOD[:-5], path, events, "length")
    [reply] = await replies_of(worker, {"task": "classify", "prompt": "x", "allow_partial": True}, "allowed")
    assert (reply["parsed"], reply["validation"]["valid"]) == (None, False)


@pytest.mark.parametrize(
    ("job", "code", "field", "says"),
    [
        ({"task": "clasify"}, "not_found", "task", "classify, strict, free"),
        ({"task": "x" * 5000}, "not_found", "task", "There are"),
        ({"task": 5}, "invalid_input", "task", "string"),
        (
            {"task": "classify", "sampling_params": {"structured_outputs": {"choice": ["a"]}}},
            "invalid_input",
            "sampling_params.structured_outputs",
            "one object",
        ),
        (
            {"task": "classify", "response_format": {"type": "json_object"}},
            "invalid_input",
            "sampling_params.structured_outputs",
            "one object",
        ),
        ({"task": "classify", "sampling_params": {"n": 2}}, "invalid_input", "sampling_params.n", "one object"),
        (
            {"task": "classify", "prompt": None, "messages": [{"role": "system", "content": "Be brief."}]},
            "invalid_input",
            "messages",
            "leave yours out",
        ),
        ({"task": "classify", "apply_chat_template": False}, "invalid_input", "apply_chat_template", "system message"),
    ],
)
async def test_what_a_task_cannot_do_is_refused_by_name(
    path: str, events: Events, job: Json, code: str, field: str, says: str
) -> None:
    worker, engine = saying(GOOD, path, events)
    error = await error_of(worker, {"prompt": "x"} | job)
    assert (error["code"], error["field"]) == (code, field)
    assert says in error["message"]
    assert len(error["message"]) < 300
    assert engine.asked == []


async def test_a_worker_without_tasks_says_so(events: Events) -> None:
    worker = Worker(Settings(), Saying(GOOD), events.emit)  # type: ignore[arg-type]
    error = await error_of(worker, {"task": "classify", "prompt": "x"})
    assert (error["code"], "PROFILE" in error["message"]) == ("not_found", True)


def test_the_engine_is_told_what_to_compile(path: str) -> None:
    _, forms = file.checked_by_engine(file.load(path))
    form = {"structured_outputs": {"json": SCHEMA}}
    assert list(forms) == [
        ("classify", form),
        ("strict", form),
        ("free", {"structured_outputs": {"json_object": True}}),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("version = 2\n[[tasks]]\nname = 'a'\n[[tasks]]\nname = 'a'", "2 have the name"),
        ("version = 2\n[[tasks]]\nname = 'a'\nschema = 'no.json'", "tasks\\[0\\].*no.json cannot be read"),
        ("version = 2\n[[tasks]]\nname = 'a'\nrequest = { max_tokens = 0 }", r"tasks\[0\].request.max_tokens"),
        ("version = 2\n[[tasks]]\nname = 'a'\nrules = [{ rule = 'sum' }]", r"tasks\[0\].rules\[0\]"),
    ],
)
def test_a_bad_task_stops_the_start(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(content)
    with pytest.raises(StartError, match=says):
        file.load(str(tmp_path / "p.toml"))


# -- with the engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_is_held_to_the_tasks_schema(
    make_worker: MakeWorker, path: str, events: Events, stream: bool
) -> None:
    worker = make_worker(profile=path)
    replies = await replies_of(worker, {"task": "classify", "prompt": "What is the salary?", "stream": stream})
    reply = replies[-1]
    text = "".join(choice["text"] for one in replies for choice in one["choices"])
    said = json.loads(text)
    assert set(said) == {"way", "parts", "total"}
    assert reply["parsed"] == said | {"way": said["way"] if said["way"] in ("in", "out") else "in"}
    assert reply["validation"]["valid"] == (sum(said["parts"]) == said["total"])
    assert events.end_of("job-1")["task"] == "classify"


async def test_the_operators_words_are_read_by_the_model_and_not_by_the_guardrails(
    make_worker: MakeWorker, path: str
) -> None:
    worker = make_worker(profile=path, max_prompt_chars=20)
    [reply] = await replies_of(worker, {"task": "classify", "prompt": "x" * 20})
    [bare] = await replies_of(worker, {"prompt": "x" * 20}, "bare")
    assert reply["usage"]["input"] > bare["usage"]["input"] + 5
    error = await error_of(worker, {"task": "classify", "prompt": "x" * 21}, "long")
    assert error["code"] == "prompt_too_long"


async def test_every_shipped_task_compiles(engine: Engine) -> None:
    tasks = file.load("accounting").tasks
    assert set(tasks) >= {"math_validation", "classify_document", "field_mapping", "journal_entry"}
    for task in tasks.values():
        await warm_up.compile_form(engine, task.name, task.form)
    with pytest.raises(StartError, match=r"Task bad of the profile: the engine cannot follow"):
        await warm_up.compile_form(engine, "bad", {"structured_outputs": {"regex": "("}})


async def test_openais_routes_know_no_tasks(make_worker: MakeWorker, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}
    job = {"openai_route": "/v1/chat/completions", "openai_input": body}
    [plain] = await replies_of(make_worker(), job)
    [with_tasks] = await replies_of(make_worker(profile=path), job)
    assert with_tasks["choices"] == plain["choices"]
    assert with_tasks.keys() == plain.keys()
    assert "incomplete" not in json.dumps(with_tasks)
