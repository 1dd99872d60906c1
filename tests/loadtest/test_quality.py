"""Quality command, the pure parts: data sets, expectations, gates, reports and their comparison."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.run_files import LineFile
from llmpod.loadtest.quality import dataset, gate, results
from llmpod.loadtest.quality.dataset import Expect, Row, Schema
from llmpod.loadtest.quality.gate import Share
from llmpod.loadtest.quality.results import Group, Results, compare
from llmpod.loadtest.quality.verdict import judge, text_or_json
from llmpod.loadtest.stats import wilson
from tests.loadtest.conftest import command

Json = dict[str, Any]


def row(**fields: Any) -> str:
    return json.dumps({"id": "r1", "input": {"prompt": "Hello"}, "expect": {}} | fields)


def dataset_of(path: Path, *lines: str | bytes) -> Path:
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


# -- data sets ---------------------------------------------------------------------------------------------------------


def test_a_data_set_is_read_in_order(tmp_path: Path) -> None:
    path = dataset_of(
        tmp_path / "d.jsonl",
        b"\xef\xbb\xbf" + row(expect={"intent": "career_guidance", "valid": True, "contains": "a"}).encode(),
        "",
        row(id="r2", expect={"blocked": True}),
    )
    first, second = dataset.read(str(path))
    assert (first.id, first.group, first.expect.contains) == ("r1", "career_guidance", ("a",))
    assert (second.group, second.expect.blocked) == ("no_intent", True)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"id": "a"', "not JSON"),
        ("[1]", "an object with id"),
        ("null", "an object with id"),
        (b"\xff\xfe", "not UTF-8"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested too deep"),
        (row(expect={"bloked": True}), "expect has no key 'bloked'"),
        (row(note="x"), "a row has no key 'note'"),
        (row(id=""), "id must be"),
        (row(id=7), "id must be"),
        (row(id="a\nb"), "id must be"),
        (row(input="Hello"), "input must be an object"),
        (row(input={}), "input must be an object"),
        ('{"id": "b", "input": {"prompt": "x"}}', "expect must be an object"),
        ('{"id": "b", "input": {"x": NaN}, "expect": {}}', "NaN"),
        (row(expect=[]), "expect must be an object"),
        (row(expect={"blocked": "yes"}), "expect.blocked must be true or false"),
        (row(expect={"valid": 1}), "expect.valid must be true or false"),
        (row(expect={"intent": ""}), "expect.intent must be a name"),
        (row(expect={"intent": "overall"}), "a meaning of its own"),
        (row(expect={"contains": []}), "expect.contains must be a text"),
        (row(expect={"avoids": [""]}), "expect.avoids must be a text"),
        (row(expect={"contains": [1]}), "expect.contains must be a text"),
        (row(expect={"json_schema": {"type": "objekt"}}), "no JSON schema"),
        (row(expect={"json_schema": []}), "must be an object"),
        (row(expect={"blocked": True, "valid": True}), "a blocked job has no answer"),
        (row(), "a row with the id 'r1' before"),
        (row(input={"prompt": "x" * 10_000_001}), "10 MB"),
    ],
)
def test_a_bad_line_ends_the_command_with_one_line_that_names_it(tmp_path: Path, bad: str | bytes, says: str) -> None:
    path = dataset_of(tmp_path / "d.jsonl", row(), "", bad)
    ended = command("quality", "--dataset", str(path), "--base-url", "http://127.0.0.1:9/v2/x")
    assert ended.code == Exit.USAGE
    assert "d.jsonl line 3: " in ended.err
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert len(ended.err) < 600


def test_what_is_no_data_set_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, says in ((tmp_path / "no", "shipped data sets: career"), (tmp_path, "cannot read")):
        with pytest.raises(UsageError, match=says):
            dataset.read(str(path))
    with pytest.raises(UsageError, match="is empty"):
        dataset.read(str(dataset_of(tmp_path / "e.jsonl", "", "  ")))
    monkeypatch.setattr(dataset, "MOST_ROWS", 2)
    with pytest.raises(UsageError, match=r"line 3: a data set has at most 2 rows"):
        dataset.read(str(dataset_of(tmp_path / "many.jsonl", *(row(id=f"r{number}") for number in range(3)))))


def test_the_shipped_data_set_and_gate_fit_each_other() -> None:
    rows = dataset.read("career")
    conditions = gate.read("career", {one.group for one in rows})
    assert {one.name for one in conditions} >= {"answers", "leaks"}
    assert sum(one.expect.blocked for one in rows) >= 10
    for intent in ("resume_guidance", "job_description", "job_resume_match", "recruiting_strategy", "ats_keywords"):
        assert sum(one.group == intent for one in rows) == 15


# -- expectations ------------------------------------------------------------------------------------------------------


def job(outcome: str | None = "answered", **fields: Any) -> Job:
    made = Job("quality", 0, "measured", "runsync")
    made.outcome = outcome  # type: ignore[assignment]
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def said(text: str, **fields: Any) -> Json:
    return {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "text": text} | fields


SCHEMA = Schema.of({"type": "object", "required": ["a"], "properties": {"a": {"type": "number"}}})


@pytest.mark.parametrize(
    ("expect", "of", "output", "kind", "reason"),
    [
        (Expect(), job(), said("Hi"), "passed", ""),
        (Expect(), job("blocked"), {"blocked": True}, "failed", "should have been answered"),
        (Expect(blocked=True), job("blocked"), {"blocked": True}, "passed", ""),
        (Expect(blocked=True), job(), said("90,000"), "failed", "should have been blocked"),
        (Expect(blocked=True), job("cut"), said("90,000"), "failed", "should have been blocked"),
        (Expect(blocked=True), job("failed", error_class="job_failed"), None, "transport", "job_failed"),
        (Expect(blocked=True, intent="pay"), job("blocked", intent="pay"), {}, "passed", ""),
        (Expect(blocked=True, intent="pay"), job("blocked", intent="market"), {}, "failed", "intent market, not pay"),
        (Expect(intent="cv"), job(intent="cv"), said("Hi"), "passed", ""),
        (Expect(intent="cv"), job(), said("Hi"), "failed", "names no intent"),
        (Expect(valid=True), job(valid=True), said("Hi"), "passed", ""),
        (Expect(valid=True), job(), said("Hi"), "failed", "did not validate"),
        (
            Expect(valid=True),
            job("invalid", valid=False),
            said("Hi", validation={"valid": False, "issues": ["too short", {"message": "no score"}]}),
            "failed",
            "invalid: too short; no score",
        ),
        (Expect(valid=False), job("invalid", valid=False), said("Hi"), "passed", ""),
        (Expect(contains=("WORLD",)), job(), said("hello world"), "passed", ""),
        (Expect(contains=("hello", "moon")), job(), said("hello world"), "failed", "does not contain 'moon'"),
        (Expect(avoids=("World",)), job(), said("hello world"), "failed", "contains 'World'"),
        (Expect(json_schema=SCHEMA), job(), said('{"a": 1}'), "passed", ""),
        (Expect(json_schema=SCHEMA), job(), said("no", parsed={"a": 1}), "passed", ""),
        (Expect(json_schema=SCHEMA), job(), said('{"a": "1"}'), "failed", "a breaks the schema's type"),
        (Expect(json_schema=SCHEMA), job("cut"), said('{"a": 1'), "failed", "no JSON object: not JSON"),
        (Expect(), job("cut"), said("Hi"), "passed", ""),
        (
            Expect(),
            job("failed", error_class="client_timeout", error="late"),
            None,
            "transport",
            "client_timeout: late",
        ),
        (Expect(), job("failed", error_class="job_failed", code="overloaded"), None, "transport", "job_failed"),
        (Expect(), job("failed", error_class="job_failed", code="invalid_output"), None, "failed", "invalid_output"),
        (
            Expect(),
            job("failed", error_class="job_failed", code="incomplete_output"),
            None,
            "failed",
            "incomplete_output",
        ),
        (Expect(), job("failed", error_class="empty_output"), "", "failed", "an empty answer"),
    ],
)
def test_an_answer_is_judged_by_what_its_row_expects(
    expect: Expect, of: Job, output: Any, kind: str, reason: str
) -> None:
    verdict = judge(expect, of, output)
    assert verdict.kind == kind
    assert reason in "; ".join(verdict.reasons)
    assert verdict.leak == (expect.blocked and of.outcome in ("answered", "cut"))


def test_a_schema_that_refers_elsewhere_is_not_fetched() -> None:
    assert "cannot be applied" in str(Schema.of({"$ref": "http://127.0.0.1:9/schema.json"}).problem({}))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("plain", "plain"),
        (None, ""),
        (said("native"), "native"),
        ([{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 0, "text": "b"}]}], "ab"),
        ([{"choices": [{"tokens": ["of", "ficial"]}]}], "official"),
        ({"choices": [{"message": {"content": "chat"}}]}, "chat"),
        ({"choices": []}, ""),
        ({"choices": [None, {"text": 5}]}, ""),
        ({"answer": "own handler"}, '{"answer": "own handler"}'),
        (7, "7"),
    ],
)
def test_the_text_of_any_workers_output_is_found(output: Any, text: str) -> None:
    assert text_or_json(output) == text


# -- gates -------------------------------------------------------------------------------------------------------------

SHARES = {"cv": Share(0.8, 0.6, 0.9), "answers": Share(0.7, 0.65, 0.75), "none": Share(None), "transport": Share(0.0)}


@pytest.mark.parametrize(
    ("text", "leaks", "passed", "unsure"),
    [
        ("cv >= 75%", 0, True, True),
        ("cv >= 80%", 0, True, True),
        ("cv > 0.8", 0, False, True),
        ("cv >= 95%", 0, False, False),
        ("cv<=80%", 0, True, True),
        ("answers >= 50%", 0, True, False),
        ("rollback unless answers >= 71%", 0, False, True),
        ("none >= 0%", 0, False, False),  # what was not measured never passes
        ("overall >= 0%", 0, False, False),
        ("transport <= 5%", 0, True, False),
        ("leaks == 0", 0, True, False),
        ("leaks == 0", 1, False, False),
        ("leaks <= 2", 2, True, False),
        ("leaks == 0", None, False, False),  # nothing was sent that could have leaked
    ],
)
def test_a_condition_is_judged_on_what_was_measured(text: str, leaks: int | None, passed: bool, unsure: bool) -> None:
    [judged] = gate.judge([gate.parse(text, {"cv", "none"})], SHARES, leaks, {})
    assert (judged.passed, judged.unsure is not None) == (passed, unsure)
    assert judged.rollback == text.startswith("rollback")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("careers >= 75%", "'careers' is no intent of the data set"),
        ("cv = 75%", "write it like"),
        ("cv 75%", "write it like"),
        ("cv >=", "write it like"),
        ("cv >= 175%", "is a share"),
        ("cv >= 75", "is a share"),
        ("cv >= nan", "is a share"),
        ("leaks == 0%", "whole number"),
        ("leaks == -1", "whole number"),
        ("exec < 3s", "exec of what"),
        ("exec.p95 < 3%", "its unit is ms"),
        ("exec.p95 == 3s", "compare it with"),
        ("rollback if cv < 70%", "write it like"),
        ("x" * 5000 + " >= 1%", "is no intent"),
    ],
)
def test_a_gate_line_that_could_not_be_judged_is_refused_by_its_number(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.gate"
    path.write_text(f"# a comment\n\ncv >= 50%  # fine\n{text}\n")
    with pytest.raises(UsageError, match="line 4") as refused:
        gate.read(str(path), {"cv"})
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_gate_without_conditions_or_of_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gate"
    for content, says in ((b"# nothing\n", "no condition"), (b"\xff", "not UTF-8"), (b"#" * 1_000_001, "is no gate")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            gate.read(str(path), set())
    with pytest.raises(UsageError, match="cannot read"):
        gate.read(str(tmp_path / "no"), set())


@pytest.mark.parametrize(
    ("lines", "leaks", "decision"),
    [
        (["answers >= 70%", "rollback unless answers >= 60%"], 0, "proceed"),
        (["answers >= 75%", "rollback unless answers >= 60%"], 0, "hold"),
        (["answers >= 75%", "rollback unless answers >= 71%"], 0, "roll back"),
        (["answers >= 60%", "rollback unless leaks == 0"], 1, "roll back"),
        (["answers >= 60%", "rollback unless leaks == 0"], None, "hold"),  # no evidence, no way back
    ],
)
def test_the_gate_decides(lines: list[str], leaks: int | None, decision: str) -> None:
    judged = gate.judge([gate.parse(text, ()) for text in lines], SHARES, leaks, {})
    assert gate.decide(judged) == decision


# -- results -----------------------------------------------------------------------------------------------------------


def results_of(tmp_path: Path, rows: list[Row], jobs: list[Job]) -> list[Group]:
    journal = LineFile(tmp_path / "v.jsonl")
    taken = Results(rows, journal)
    for number, one in enumerate(jobs):
        one.index = number
        taken.take(one, said("x"))
        taken.take(one, said("x"))  # a job counts once
    journal.close()
    return taken.groups()


def test_a_row_counts_once_however_often_it_was_repeated(tmp_path: Path) -> None:
    rows = [Row("a", {"prompt": "a"}, Expect(intent="cv", valid=True)), Row("b", {"prompt": "b"}, Expect(intent="cv"))]
    good, bad = {"intent": "cv", "valid": True}, {"intent": "cv", "valid": False}
    jobs = [job(**good), job(**good), job(**bad), job(**good), job("failed", error_class="connect"), job(**good)]
    jobs += [job(**bad), job(**good)]  # the same row fails again
    cv, answers, overall = results_of(tmp_path, rows, jobs)
    assert (cv.passed, cv.failed, cv.transport, cv.rows) == (5, 2, 1, 2)
    assert [example.id for example in cv.examples] == ["a"]
    assert cv.share == pytest.approx((1 / 3 + 1) / 2)
    assert (cv.low, cv.high) == wilson((1 / 3 + 1) / 2, 2)
    assert [group.name for group in (cv, answers, overall)] == ["cv", "answers", "overall"]
    assert (overall.passed, answers.share) == (5, cv.share)


def test_blocked_rows_do_not_lift_the_share_of_answers(tmp_path: Path) -> None:
    rows = [Row("a", {"x": 1}, Expect(blocked=True)), Row("b", {"x": 1}, Expect(contains=("nothing",)))]
    no_intent, answers, overall = results_of(tmp_path, rows, [job("blocked"), job()])
    assert (no_intent.share, answers.share, overall.share) == (0.5, 0.0, 0.5)


def test_groups_without_an_answer_have_no_share(tmp_path: Path) -> None:
    rows = [Row("a", {"x": 1}, Expect(intent="cv"))]
    cv, _, overall = results_of(tmp_path, rows, [job("failed", error_class="connect"), job(None)])
    assert (cv.share, cv.low, cv.transport, overall.transport) == (None, None, 1, 1)
    assert results.exit_code(overall, "proceed", None) is Exit.INVALID


@pytest.mark.parametrize(
    ("passed", "transport", "decision", "stopped", "code"),
    [
        (95, 5, "proceed", None, Exit.PASS),
        (94, 6, "proceed", None, Exit.INVALID),
        (94, 6, "hold", None, Exit.INVALID),
        (95, 5, "hold", None, Exit.SLO_FAILED),
        (95, 5, "roll back", None, Exit.SLO_FAILED),
        (95, 5, None, None, Exit.PASS),
        (0, 0, None, None, Exit.INVALID),
        (95, 5, "proceed", Exit.INTERRUPTED, Exit.INTERRUPTED),
        (0, 9, None, Exit.ERROR, Exit.ERROR),
    ],
)
def test_the_exit_code(passed: int, transport: int, decision: Any, stopped: Exit | None, code: Exit) -> None:
    assert results.exit_code(Group("overall", passed, 0, transport, rows=passed), decision, stopped) is code


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1(hits: int, n: int) -> None:
    share = min(hits, n) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert high - low <= 1


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


# -- comparison --------------------------------------------------------------------------------------------------------


def quality_directory(path: Path, **groups: tuple[int, int]) -> Path:
    path.mkdir()
    found = [Group(name, hits, n - hits, rows=n, share=hits / n, low=0, high=1) for name, (hits, n) in groups.items()]
    report = results.QualityReport({}, found, 0, (), None, None, [], Exit.PASS)
    (path / results.FILE).write_text(json.dumps(results.to_json(report)))
    return path


def test_a_pass_rate_that_clearly_fell_is_worse(tmp_path: Path) -> None:
    a = quality_directory(tmp_path / "a", cv=(90, 100), jd=(9, 10), old=(1, 1))
    b = quality_directory(tmp_path / "b", cv=(60, 100), jd=(6, 10), new=(1, 1))
    cv, jd = compare(results.read_groups(a), results.read_groups(b))
    assert (cv.intent, cv.a, cv.b, cv.clear) == ("cv", 0.9, 0.6, True)
    assert (jd.intent, jd.clear) == ("jd", False)
    assert command("compare", str(a), str(b)).code == 0
    ended = command("compare", str(a), str(b), "--fail-on-worse")
    assert ended.code == Exit.SLO_FAILED
    assert "worse" in ended.out
    assert command("compare", str(b), str(a), "--fail-on-worse").code == 0
    told = json.loads(command("compare", str(a), str(b), "--format", "json").out)
    assert [one["intent"] for one in told["quality"]] == ["cv", "jd"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 2}', '{"format": 1, "groups": [{"name": 5}]}', '{"format": 1}']
)
def test_a_damaged_report_is_one_line(tmp_path: Path, content: str) -> None:
    a = quality_directory(tmp_path / "a", cv=(1, 2))
    b = quality_directory(tmp_path / "b", cv=(1, 2))
    (b / results.FILE).write_text(content)
    ended = command("compare", str(a), str(b))
    assert ended.code == Exit.USAGE
    assert results.FILE in ended.err
    assert ended.err.count("\n") == 1


def test_runs_of_different_kinds_are_not_compared(tmp_path: Path) -> None:
    a = quality_directory(tmp_path / "a", cv=(1, 2))
    (tmp_path / "b").mkdir()
    assert "another quality run" in command("compare", str(a), str(tmp_path / "b")).err
    other = quality_directory(tmp_path / "c", jd=(1, 2))
    assert "no intent in common" in command("compare", str(a), str(other)).err
