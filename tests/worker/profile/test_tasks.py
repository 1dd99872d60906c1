"""Rules and verdicts of JSON tasks, on objects written by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmpod.worker.errors import JobError
from llmpod.worker.profile.tasks import exact_json
from llmpod.worker.profile.tasks.paths import MISSING, Path
from llmpod.worker.profile.tasks.rules import AnyRule, Issue, apply
from llmpod.worker.profile.tasks.task import Task

Json = dict[str, Any]
RULE: TypeAdapter[Any] = TypeAdapter(AnyRule)
SIDES = {"rule": "equal", "left": "sum(debits[*].amount)", "right": "sum(credits[*].amount)", "tolerance": "0.01"}


def rule(**fields: Any) -> Any:
    return RULE.validate_python(fields)


def found(text: str, **fields: Any) -> list[Issue]:
    """The issues of one rule with a document, which it must leave as it is unless it says otherwise."""
    document = exact_json.read(text)
    before = copy.deepcopy(document)
    after, issues = apply([rule(**fields)], document)
    assert document == before
    changed = any(issue.severity == "changed" for issue in issues)
    assert (after == before) != changed
    json.dumps([issue.as_dict() for issue in issues], allow_nan=False)
    return issues


def entry(debited: list[str], credited: list[str]) -> str:
    def rows(amounts: list[str]) -> str:
        return ", ".join(f'{{"amount": {amount}}}' for amount in amounts)

    return f'{{"debits": [{rows(debited)}], "credits": [{rows(credited)}]}}'


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("a", [1]),
        ("b.c", ["x"]),
        ("l[*].n", [1, 2]),
        ("l[1].n", [2]),
        ("l[2].n", [MISSING]),
        ("empty[*].n", []),
        ("no.such", [MISSING]),
        ("no[*].n", [MISSING]),
        ("a.b", [MISSING]),
        ("l.n", [MISSING]),
        ("b[*]", [MISSING]),
        ("matrix[*][*]", [1, 2, 3]),
        ("l[*]", [{"n": 1}, {"n": 2}]),
    ],
)
def test_a_path_leads_to_its_values_or_says_that_they_are_missing(path: str, values: list[Any]) -> None:
    document = {"a": 1, "b": {"c": "x"}, "l": [{"n": 1}, {"n": 2}], "empty": [], "matrix": [[1, 2], [3]]}
    assert [place.value for place in Path.parse(path).find(document)] == values
    assert Path.parse(path).text == path


@pytest.mark.parametrize(
    "text", ["", "a..b", ".a", "a.", "a[", "a[-1]", "a[x]", "a b", "1a", "$.a", "a[*", None, 3, []]
)
def test_what_is_no_path_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a path"):
        Path.parse(text)


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("debited", "credited", "tolerance", "balanced"),
    [
        (["0.1", "0.2"], ["0.3"], "0", True),  # floats: 0.30000000000000004
        (["100", "50.5"], ["150.50"], "0", True),
        (["100.004"], ["100"], "0.01", True),
        (["100.01"], ["100"], "0.01", True),
        (["100.011"], ["100"], "0.01", False),
        (["100"], ["99"], "0.01", False),
        ([], [], "0", True),  # the sum of nothing is 0
        ([], ["0"], "0", True),
        ([], ["5"], "0.01", False),
        (["1e308", "1e308"], ["1e308", "1e308"], "0", True),
        (["1e308", "1e-308"], ["1e308"], "0", False),  # floats: equal
        (["9007199254740993"], ["9007199254740992"], "0", False),  # floats: equal
        (["-5"], ["5"], "0.01", False),
    ],
)
def test_sides_are_compared_as_decimal_numbers(
    debited: list[str], credited: list[str], tolerance: str, balanced: bool
) -> None:
    issues = found(entry(debited, credited), **SIDES | {"tolerance": tolerance})
    assert (not issues) == balanced


def test_a_journal_entry_that_does_not_balance_says_both_sums() -> None:
    [issue] = found(entry(["100", "20"], ["119.5"]), **SIDES)
    assert issue.as_dict() == {
        "rule": "equal",
        "path": "sum(debits[*].amount)",
        "severity": "error",
        "message": "sum(debits[*].amount) is not equal to sum(credits[*].amount) within 0.01",
        "expected": 119.5,
        "actual": 120,
    }


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ('{"credits": []}', "debits", "is missing"),
        ('{"debits": null, "credits": []}', "debits[*]", "is missing"),
        ('{"debits": [{"amount": 1}, {}], "credits": []}', "debits[1].amount", "is missing"),
        ('{"debits": [{"amount": "12"}], "credits": []}', "debits[0].amount", "is not a number"),
        ('{"debits": [{"amount": true}], "credits": []}', "debits[0].amount", "is not a number"),
        ('{"debits": [{"amount": null}], "credits": []}', "debits[0].amount", "is not a number"),
    ],
)
def test_a_sum_of_what_is_not_there_is_an_issue_and_not_0(text: str, path: str, says: str) -> None:
    [issue] = found(text, **SIDES)
    assert (issue.path, issue.severity) == (path, "error")
    assert says in issue.message


def test_counts_and_numbers_can_be_compared() -> None:
    counted = {"rule": "equal", "left": "count(items[*])", "right": "number"}
    assert not found('{"items": [{}, null], "number": 2}', **counted)
    assert found('{"items": [1], "number": 2}', **counted)
    assert found('{"number": 0}', **counted)  # no list is no empty list
    assert not found('{"items": [1, 2, 3]}', rule="equal", left="count(items[*])", right=3)


RELEVANT = {"when": {"relevant": False}}


@pytest.mark.parametrize(
    ("text", "fields", "severities"),
    [
        ('{"relevant": false, "action": "pay"}', {"rule": "null_when", "path": "action", **RELEVANT}, ["error"]),
        ('{"relevant": false, "action": null}', {"rule": "null_when", "path": "action", **RELEVANT}, []),
        ('{"relevant": false}', {"rule": "null_when", "path": "action", **RELEVANT}, []),
        ('{"relevant": true, "action": "pay"}', {"rule": "null_when", "path": "action", **RELEVANT}, []),
        ('{"relevant": 0, "action": "pay"}', {"rule": "null_when", "path": "action", **RELEVANT}, []),  # 0 is not false
        ('{"action": "pay"}', {"rule": "null_when", "path": "action", **RELEVANT}, []),
        (
            '{"relevant": false, "action": "pay"}',
            {"rule": "null_when", "path": "action", "change": True, **RELEVANT},
            ["changed"],
        ),
        ('{"relevant": false, "sure": 80}', {"rule": "zero_when", "path": "sure", **RELEVANT}, ["error"]),
        ('{"relevant": false, "sure": 0.0}', {"rule": "zero_when", "path": "sure", **RELEVANT}, []),
        ('{"relevant": false, "sure": false}', {"rule": "zero_when", "path": "sure", **RELEVANT}, ["error"]),
        ('{"sure": 101}', {"rule": "range", "path": "sure", "min": 0, "max": 100}, ["error"]),
        ('{"sure": 100}', {"rule": "range", "path": "sure", "min": 0, "max": 100}, []),
        ('{"sure": -0.001}', {"rule": "range", "path": "sure", "min": 0}, ["error"]),
        ('{"sure": "50"}', {"rule": "range", "path": "sure", "min": 0}, ["error"]),
        ('{"sure": true}', {"rule": "range", "path": "sure", "min": 0}, ["error"]),
        ('{"sure": null}', {"rule": "range", "path": "sure", "min": 0}, []),
        ('{"sure": 101}', {"rule": "range", "path": "sure", "max": 100, "clamp": True}, ["changed"]),
        ('{"l": [1, 7, -3]}', {"rule": "range", "path": "l[*]", "min": 0, "max": 5, "clamp": True}, ["changed"] * 2),
        ('{"way": "up"}', {"rule": "one_of", "path": "way", "values": ["in", "out"]}, ["error"]),
        ('{"way": "in"}', {"rule": "one_of", "path": "way", "values": ["in", "out"]}, []),
        ('{"way": "IN"}', {"rule": "one_of", "path": "way", "values": ["in"], "else": "none"}, ["changed"]),
        ('{"way": 1}', {"rule": "one_of", "path": "way", "values": [True, "1"]}, ["error"]),
        ('{"way": 1.0}', {"rule": "one_of", "path": "way", "values": [1]}, []),
        ('{"name": "pay_bill"}', {"rule": "pattern", "path": "name", "pattern": "[a-z]+(_[a-z]+)*"}, []),
        ('{"name": "payBill"}', {"rule": "pattern", "path": "name", "pattern": "[a-z]+(_[a-z]+)*"}, ["error"]),
        ('{"name": "pay_bill\\n"}', {"rule": "pattern", "path": "name", "pattern": "[a-z_]+"}, ["error"]),
        ('{"name": 5}', {"rule": "pattern", "path": "name", "pattern": ".*"}, ["error"]),
        ('{"name": "' + "a" * 1001 + '"}', {"rule": "pattern", "path": "name", "pattern": "a*"}, ["error"]),
        ('{"name": "Super_pay"}', {"rule": "prefix_warning", "path": "name", "prefixes": ["super_"]}, ["warning"]),
        ('{"name": "supper"}', {"rule": "prefix_warning", "path": "name", "prefixes": ["super_"]}, []),
        ('{"day": "2024-02-29"}', {"rule": "date", "path": "day"}, []),
        ('{"day": "2023-02-29"}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": "2024-2-9"}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": "20240229"}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": "2024-W09-4"}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": ""}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": 20240229}', {"rule": "date", "path": "day"}, ["error"]),
        ('{"day": null}', {"rule": "date", "path": "day"}, []),
    ],
)
def test_each_rule_finds_what_breaks_it_and_nothing_else(text: str, fields: Json, severities: list[str]) -> None:
    assert [issue.severity for issue in found(text, **fields)] == severities


def test_rules_read_what_those_before_them_have_changed() -> None:
    rules = [
        rule(rule="range", path="a", max=5, clamp=True),
        rule(rule="equal", left="a", right="b"),
        rule(rule="one_of", path="c", values=["x"], **{"else": "x"}),
    ]
    after, issues = apply(rules, exact_json.read('{"a": 9, "b": 5, "c": "z"}'))
    assert exact_json.plain(after) == {"a": 5, "b": 5, "c": "x"}
    assert [(issue.rule, issue.path, issue.severity) for issue in issues] == [
        ("range", "a", "changed"),
        ("one_of", "c", "changed"),
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rule": "equals", "left": "a", "right": "b"}, "equals"),
        ({"rule": "equal", "left": "a[*]", "right": "b"}, "use sum"),
        ({"rule": "equal", "left": "avg(a)", "right": "b"}, "not a path"),
        ({"rule": "equal", "left": "a", "right": "b", "tolerance": -1}, "tolerance"),
        ({"rule": "equal", "left": "a", "right": "b", "tolerance": "lots"}, "not a number"),
        ({"rule": "range", "path": "a"}, "needs min or max"),
        ({"rule": "range", "path": "a", "min": 2, "max": 1}, "above max"),
        ({"rule": "range", "path": "a", "min": "inf"}, "not finite"),
        ({"rule": "pattern", "path": "a", "pattern": "("}, "regular expression"),
        ({"rule": "null_when", "path": "a", "when": {}}, "conditions"),
        ({"rule": "null_when", "path": "a", "when": {"b[*]": 1}}, "needs one"),
        ({"rule": "one_of", "path": "a", "values": []}, "values"),
        ({"rule": "prefix_warning", "path": "a", "prefixes": [""]}, "prefixes"),
        ({"rule": "date", "path": "a", "format": "%d"}, "format"),
    ],
)
def test_a_rule_that_could_not_work_is_refused_when_it_is_read(fields: Json, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        rule(**fields)


# -- properties --------------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-200, 200),
    st.floats(-200, 200),
    st.sampled_from(["in", "super_a", "2024-01-01"]),
)
AMOUNTS = st.lists(st.fixed_dictionaries({}, optional={"amount": SCALARS}) | SCALARS, max_size=3)
DOCUMENTS = st.fixed_dictionaries(
    {}, optional={"a": SCALARS, "b": SCALARS, "debits": AMOUNTS, "credits": AMOUNTS, "l": st.lists(SCALARS, max_size=3)}
)
CHECKS = (
    SIDES,
    {"rule": "equal", "left": "a", "right": "count(l[*])"},
    {"rule": "null_when", "path": "a", "when": {"b": False}},
    {"rule": "zero_when", "path": "a", "when": {"b": False}},
    {"rule": "range", "path": "l[*]", "min": -5, "max": 5},
    {"rule": "one_of", "path": "a", "values": ["in", 1, True]},
    {"rule": "pattern", "path": "b", "pattern": "[a-z_]+"},
    {"rule": "prefix_warning", "path": "b", "prefixes": ["super_"]},
    {"rule": "date", "path": "a"},
)
CHANGES = (
    {"rule": "null_when", "path": "a", "when": {"b": False}, "change": True},
    {"rule": "zero_when", "path": "b", "when": {"a": True}, "change": True},
    {"rule": "range", "path": "l[*]", "min": -5, "max": 5, "clamp": True},
    {"rule": "one_of", "path": "a", "values": ["in", 1, True], "else": 1},
)


@given(DOCUMENTS, st.lists(st.sampled_from(CHECKS + CHANGES), max_size=6))
def test_rules_change_nothing_unless_they_say_so_and_what_they_say(document: Json, rows: list[Json]) -> None:
    before = exact_json.read(json.dumps(document))
    kept = copy.deepcopy(before)
    after, issues = apply([rule(**row) for row in rows], before)
    assert before == kept
    changes = [issue for issue in issues if issue.severity == "changed"]
    if not changes:
        assert after == before
        assert exact_json.plain(after) == document
    for change in changes:  # a later rule may change the same value again
        assert any(Path(change.steps).find(after)[0].value == other.expected for other in changes)
    mended, _ = apply([rule(**row) for row in CHANGES], after)
    assert apply([rule(**row) for row in CHANGES], mended)[0] == mended


@given(
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=20)
)
def test_an_object_without_rules_comes_out_as_it_was(document: Any) -> None:
    assert exact_json.plain(exact_json.read(json.dumps(document))) == document


# -- numbers that are none for other readers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e-400", "3.33e-6440", "1" + "0" * 400, "1e99999999999999999999"]
)
def test_a_number_beyond_a_double_is_an_issue(number: str) -> None:
    verdict = Task(name="t").judge(f'{{"a": [{number}]}}', "stop")
    assert (verdict.valid, verdict.parsed) == (False, None)
    assert "beyond the range of a double" in verdict.issues[0].message


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("80", 80),
        ("80.0", 80.0),
        ("8e1", 80.0),
        ("-0", 0),
        ("0e999999999999999999999", 0),
        ("0.1", 0.1),
        ("2.5e-3", 0.0025),
    ],
)
def test_numbers_are_those_that_json_has(text: str, parsed: float) -> None:
    value = Task(name="t").judge(text, "stop").parsed
    assert value == parsed
    assert type(value) is type(parsed)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "Sure: {}", "{} {}", "NaN", "[" * 100 + "]" * 100, "[" * 100_000])
def test_an_answer_that_is_no_json_has_no_object(text: str) -> None:
    verdict = Task(name="t").judge(text, "stop")
    assert (verdict.valid, verdict.parsed) == (False, None)
    assert [issue.rule for issue in verdict.issues] == ["json"]


# -- tasks -------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "number", "maximum": 100}, "party": {"$ref": "#/$defs/party"}},
    "required": ["sure"],
    "additionalProperties": False,
    "$defs": {"party": {"type": "object", "properties": {"name": {"type": "string"}}}},
}


def task(**fields: Any) -> Task:
    return Task.model_validate({"name": "t", "schema": SCHEMA} | fields)


def test_the_schema_is_checked_on_what_the_rules_left() -> None:
    assert [issue.rule for issue in task().judge('{"sure": 120}', "stop").issues] == ["schema"]
    verdict = task(rules=[{"rule": "range", "path": "sure", "max": 100, "clamp": True}]).judge('{"sure": 120}', "stop")
    assert (verdict.valid, verdict.parsed) == (True, {"sure": 100})
    assert verdict.validation["changed"] is True


def test_an_issue_of_the_schema_names_the_place() -> None:
    [issue] = task().judge('{"sure": 1, "party": {"name": 5}}', "stop").issues
    assert (issue.path, issue.expected, issue.actual) == ("party.name", "string", 5)


def test_an_answer_that_max_tokens_ended_is_not_valid() -> None:
    for text in ('{"sure": 1}', '{"sure": 1'):
        verdict = task().judge(text, "length")
        assert (verdict.valid, verdict.issues[0].rule) == (False, "complete")
    assert task().judge('{"sure": 1}', "stop").valid


def test_the_error_of_an_invalid_answer_quotes_nothing_of_it() -> None:
    named = {"rule": "pattern", "path": "party.name", "pattern": "[A-Z]+"}
    verdict = task(on_invalid="fail", rules=[named]).judge('{"sure": 987654, "party": {"name": "zebedee"}}', "stop")
    with pytest.raises(JobError) as failed:
        verdict.enforce({})
    text = failed.value.as_json("job")
    assert json.loads(text)["code"] == "invalid_output"
    assert json.loads(text)["details"]["issues"][0]["path"] == "party.name"
    assert "zebedee" not in text
    assert "987654" not in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schema": {"type": "objekt"}}, "not a JSON schema"),
        ({"schema": {"$ref": "https://example.com/schema.json"}}, "points to nothing"),
        ({"schema": {"$ref": "#/$defs/no"}}, "points to nothing"),
        ({"schema": "no/such.json"}, "cannot be read"),
        ({"rules": [{"rule": "date", "path": "day"}]}, "the schema has no day"),
        ({"rules": [{"rule": "date", "path": "party.day"}]}, "the schema has no party.day"),
        ({"rules": [{"rule": "null_when", "path": "sure", "when": {"shure": 1}}]}, "the schema has no shure"),
        ({"rules": [{"rule": "equal", "left": "sum(party[*].name)", "right": 1}]}, r"the schema has no party\[\*\]"),
        ({"on_invalid": "retry"}, "on_invalid"),
        ({"name": "a b"}, "name"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_task_that_could_not_work_is_refused_when_it_is_read(fields: Json, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        task(**fields)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({}, "a.b[*].c"),
        ({"type": "object"}, "a"),
        ({"properties": {"a": {"type": "array", "items": {"type": "number"}}}}, "a[*]"),
        ({"properties": {"a": {"type": "array"}}}, "a[0].b"),
        ({"anyOf": [{"type": "null"}, {"properties": {"a": {}}}]}, "a"),
        ({"patternProperties": {"^x": {}}, "properties": {}}, "x1"),
        ({"additionalProperties": {"type": "number"}, "properties": {}}, "b"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}}, "next.next.next"),
        ({"prefixItems": [{}]}, "[0]"),
    ],
)
def test_what_a_schema_leaves_open_can_have_rules(schema: Json, path: str) -> None:
    assert Task.model_validate({"name": "t", "schema": schema, "rules": [{"rule": "date", "path": path}]}).rules


def test_a_schema_can_stand_in_a_file_beside_the_profile(tmp_path: FilePath) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    read = Task.model_validate({"name": "t", "schema": "s.json"}, context=tmp_path)
    assert read.form == {"structured_outputs": {"json": SCHEMA}}
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ValidationError, match="is not JSON"):
        Task.model_validate({"name": "t", "schema": "s.json"}, context=tmp_path)


def test_a_task_without_a_schema_asks_for_any_json() -> None:
    assert Task(name="t").form == {"structured_outputs": {"json_object": True}}
