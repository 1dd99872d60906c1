"""A task of a profile: what it adds to a request, and its verdict on the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from llmpod.worker.errors import Code, JobError
from llmpod.worker.profile.request import RequestDefaults
from llmpod.worker.profile.tasks import exact_json
from llmpod.worker.profile.tasks.paths import MISSING, Path, Step, shown
from llmpod.worker.profile.tasks.rules import AnyRule, Issue, apply

LONG_CHARS = 5000
"""A longer answer takes more than a few milliseconds to check."""
MAX_ISSUES = 50
"""Issues of one answer that a reply lists."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What a task finds in an answer. `parsed` is the object after the rules, None where there is none."""

    task: str
    fails: bool = False  # whether an invalid answer is a failure
    parsed: Any = None
    issues: list[Issue] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether nothing is wrong with what is returned: warnings and changes leave it valid."""
        return all(issue.severity != "error" for issue in self.issues)

    @property
    def validation(self) -> Json:
        """The reply's `validation`."""
        return {
            "valid": self.valid,
            "issues": [issue.as_dict() for issue in self.issues[:MAX_ISSUES]],
            "changed": any(issue.severity == "changed" for issue in self.issues),
        }

    @property
    def fields(self) -> Json:
        """The reply's own fields of a task."""
        return {"task": self.task, "parsed": self.parsed}

    def enforce(self, reply: Json) -> Json:
        """Apply `on_invalid` and return `fields`; `reply` is the stream's last chunk. The error quotes no answer.

        Raises:
            JobError: invalid_output.
        """
        if self.valid or not self.fails:
            return self.fields
        wrong = [issue for issue in self.issues if issue.severity == "error"]
        error = JobError(
            Code.INVALID_OUTPUT,
            f"The answer of task {self.task} breaks {len(wrong)} of its rules: {wrong[0].message}.",
            task=self.task,
            issues=[{"rule": one.rule, "path": one.path, "message": one.message} for one in wrong[:MAX_ISSUES]],
        )
        error.last_reply = reply
        raise error


class Task(BaseModel):
    """A request with a name, whose answer is JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="a job's `task`")
    system: str | None = Field(None, description="its system message")
    answer_schema: Json | None = Field(
        None, alias="schema", description="JSON schema of the answer, or the path of a file with one beside the profile"
    )
    request: RequestDefaults = Field(RequestDefaults(), description="as `[request]`, for this task")
    on_invalid: Literal["report", "fail"] = Field(
        "report", description="whether an invalid answer is reported in `validation`, or fails the job"
    )
    rules: tuple[AnyRule, ...] = Field((), description="what a grammar cannot say of the answer")
    _validator: Any = PrivateAttr(None)

    @field_validator("answer_schema", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Read the schema's file. The context of the validation is the profile's folder."""
        if not isinstance(value, str):
            return value
        path = FilePath(info.context or ".") / value
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.answer_schema is None:
            return self
        self._validator = validator(self.answer_schema)
        for number, rule in enumerate(self.rules):
            for path in rule.paths:
                if not reachable(self.answer_schema, path):
                    raise ValueError(f"rules[{number}]: the schema has no {path.text}")
        return self

    @property
    def form(self) -> Json:
        """The sampling parameter that binds the answer."""
        constraint = {"json_object": True} if self.answer_schema is None else {"json": self.answer_schema}
        return {"structured_outputs": constraint}

    async def answer(self, text: str, finish_reason: str | None) -> Verdict:
        """`judge`, in a thread where the answer is long."""
        if len(text) > LONG_CHARS:
            return await asyncio.to_thread(self.judge, text, finish_reason)
        return self.judge(text, finish_reason)

    def judge(self, text: str, finish_reason: str | None) -> Verdict:
        """The verdict on an answer. Its rules are applied first, then its schema to what they left."""
        cut = [Issue("complete", "", "max_tokens ended the answer")] if finish_reason == "length" else []
        try:
            document = exact_json.read(text)
        except exact_json.UnreadableError as error:
            return self._verdict(None, [*cut, Issue("json", "", f"the answer {error}")])
        document, issues = apply(self.rules, document)
        parsed = exact_json.plain(document)
        return self._verdict(parsed, [*cut, *issues, *self._misfits(parsed)])

    def _verdict(self, parsed: Any, issues: list[Issue]) -> Verdict:
        return Verdict(self.name, self.on_invalid == "fail", parsed, issues)

    def _misfits(self, parsed: Any) -> Iterator[Issue]:
        """Where an object breaks its schema: grammars leave out what they cannot express."""
        for error in islice(self._validator.iter_errors(parsed), MAX_ISSUES) if self._validator else ():
            path = shown(tuple(error.absolute_path))
            message = f"{path or 'the answer'} breaks the schema's {error.validator}"
            yield Issue("schema", path, message, "error", error.validator_value, error.instance)


def validator(schema: Json) -> Any:
    """A JSON Schema validator. It fetches nothing: references are pointers within the schema.

    Raises:
        ValueError: the schema is not one, or refers to another.
    """
    from jsonschema import SchemaError, validators
    from referencing import Registry

    cls = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        cls.check_schema(schema)
        references = list(_references(schema))
    except SchemaError as error:
        where = shown(tuple(error.absolute_path))
        raise ValueError(f"it is not a JSON schema: {where + ': ' if where else ''}{error.message}"[:300]) from None
    except RecursionError:
        raise ValueError("the schema is nested too deep") from None
    for reference in references:
        if _resolved(schema, reference) is None:
            raise ValueError(f"$ref {reference[:100]!r} points to nothing in the schema; write it like #/$defs/name")
    return cls(schema, registry=Registry())


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict) and isinstance(part.get("$ref"), str):
        yield part["$ref"]
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _references(inner)


def reachable(schema: Json, path: Path) -> bool:
    """Whether a document of this schema can have a value at `path`: a rule on a misspelt path would never fail."""
    return any(_reaches(schema, schema, path.steps, frozenset()))


def _reaches(root: Json, node: Any, steps: tuple[Step, ...], seen: frozenset[str]) -> Iterator[bool]:
    """Whether each part of a schema allows a value there; a part that says nothing about it allows it."""
    if not steps or not isinstance(node, Mapping):
        yield node is not False
        return
    parts = [part for name in ("anyOf", "oneOf", "allOf") for part in node.get(name) or ()]
    reference = str(node["$ref"]) if "$ref" in node else None
    if reference is not None and reference not in seen:
        parts.append(_resolved(root, reference))
        seen |= {reference}
    for part in parts:
        yield from _reaches(root, part, steps, seen)
    step, rest = steps[0], steps[1:]
    if "type" in node and ("object" if isinstance(step, str) else "array") not in node["type"]:
        return
    known = (node.get("properties") or {}).get(step, MISSING) if isinstance(step, str) else node.get("items", MISSING)
    if known is not MISSING:
        yield from _reaches(root, known, rest, frozenset())
    elif isinstance(step, str):
        silent = not parts and reference is None and "properties" not in node
        yield bool(node.get("patternProperties") or node.get("additionalProperties", silent))
    else:
        yield bool(node.get("prefixItems")) or not (parts or reference)


def _resolved(root: Json, reference: str) -> Any:
    """The schema that a reference within the same schema (`#/$defs/party`) points to; None for any other."""
    node: Any = root
    head, *names = reference.split("/")
    for name in names if head == "#" else ("",):
        node = node.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node
