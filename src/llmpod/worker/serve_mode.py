"""How jobs come to this process: from RunPod's queue, over HTTP, or one from the command line. Pure decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmpod.worker.settings import Settings

TAKE_ADDRESS = "RUNPOD_WEBHOOK_GET_JOB"
"""The SDK's own sign of a queue (runpod 1.12.0, serverless/worker.py)."""
POD_ID = "RUNPOD_POD_ID"


@dataclass(frozen=True)
class ServeMode:
    """`kind`, and the variable that decided it; `host`: the address that an HTTP server listens on."""

    kind: Literal["queue", "http", "one job"]
    reason: str
    host: str


def decide(settings: Settings, environ: Mapping[str, str]) -> ServeMode:
    """Decide from SERVE_MODE and from what RunPod sets.

    On load-balancing endpoints RunPod sets PORT and PORT_HEALTH (docs.runpod.io, serverless/load-balancing/overview).
    PORT_HEALTH means nothing anywhere else, so it counts before the address to take jobs from: whether that is also set
    on these endpoints is not documented. PORT alone is a common name, and counts on RunPod only.
    """
    host = settings.bind_host or ("0.0.0.0" if environ.get(POD_ID) else "127.0.0.1")  # noqa: S104 - RunPod's network
    if settings.serve_mode != "auto":
        return ServeMode(settings.serve_mode, "SERVE_MODE is set", host)
    if settings.port_health is not None:
        return ServeMode("http", "PORT_HEALTH is set", host)
    if environ.get(TAKE_ADDRESS):
        return ServeMode("queue", f"{TAKE_ADDRESS} is set", host)
    if environ.get(POD_ID) and "port" in settings.model_fields_set:
        return ServeMode("http", f"PORT and {POD_ID} are set", host)
    return ServeMode("one job", f"neither PORT_HEALTH nor {TAKE_ADDRESS} is set", host)
