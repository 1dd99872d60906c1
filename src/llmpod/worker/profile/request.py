"""What a profile asks of the engine for jobs that name nothing."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RequestDefaults(BaseModel):
    """What a native job gets that names nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(
        None,
        ge=1,
        description="for jobs without one; of an intent or task, also the most it gives, in place of MAX_TOKENS_MAX",
    )
    sampling: dict[str, Any] = Field({}, description="sampling parameters; those that a client sends take precedence")
