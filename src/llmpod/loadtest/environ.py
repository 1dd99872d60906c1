"""The only place that reads the environment: the endpoint's id and its key.

The key is handed to the HTTP client and to the redactor only. It has no field in any option, plan or record.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

REDACTED = "[api key]"
# So many characters in a row are a piece of the key; fewer are a coincidence.
GIVEAWAY = 6


@dataclass(frozen=True, slots=True)
class Secret:
    """A string that shows itself only to `reveal()`: not in repr, not in a traceback, not in JSON."""

    _value: str = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __str__(self) -> str:
        return REDACTED

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """`text` without the key, also without a beginning of it (services echo keys cut short)."""
        head = self._value[:GIVEAWAY]
        if len(head) < GIVEAWAY or head not in text:
            return text
        out, rest = [], text
        while (at := rest.find(head)) >= 0:
            length = GIVEAWAY
            while length < len(self._value) and rest[at + length : at + length + 1] == self._value[length]:
                length += 1
            out += [rest[:at], REDACTED]
            rest = rest[at + length :]
        return "".join([*out, rest])


@dataclass(frozen=True, slots=True)
class Environment:
    api_key: Secret
    endpoint_id: str | None
    plain: bool  # NO_COLOR or CI: no colours, no live display


def read(environ: Mapping[str, str] | None = None) -> Environment:
    env = os.environ if environ is None else environ
    return Environment(
        api_key=Secret(env.get("RUNPOD_API_KEY", "").strip()),
        endpoint_id=env.get("RUNPOD_ENDPOINT_ID", "").strip() or None,
        plain=bool(env.get("NO_COLOR") or env.get("CI")),
    )
