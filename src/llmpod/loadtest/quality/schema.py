"""JSON schemas of expectations, checked by the jsonschema package, which only data sets that have some need."""

from dataclasses import dataclass, field
from typing import Any, Self

from llmpod.loadtest.errors import UsageError


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema whose references lie within itself: nothing is fetched."""

    _validator: Any = field(repr=False)

    @classmethod
    def of(cls, schema: Any) -> Self:
        """Raises ValueError: it is no JSON schema. Raises UsageError: jsonschema is not installed."""
        try:
            from jsonschema import SchemaError, validators
            from referencing import Registry
        except ModuleNotFoundError:
            raise UsageError("json_schema needs the jsonschema package: pip install 'llmpod[loadtest]'") from None
        if not isinstance(schema, dict):
            raise ValueError("expect.json_schema must be an object")
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"expect.json_schema is no JSON schema: {error.message}") from None
        return cls(kind(schema, registry=Registry()))

    def problem(self, value: Any) -> str | None:
        """The first thing that is wrong with a value, or None."""
        from referencing.exceptions import Unresolvable

        try:
            error = next(self._validator.iter_errors(value), None)
        except (Unresolvable, RecursionError) as unresolved:
            return f"the schema cannot be applied: {type(unresolved).__name__}"
        if error is None:
            return None
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
        return f"{where.lstrip('.') or 'the answer'} breaks the schema's {error.validator}"
