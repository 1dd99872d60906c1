"""vLLM's own admission control, which came after the oldest release that `make compat` runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmpod.worker.engine.engine import Engine
from llmpod.worker.worker import Worker
from tests.worker.conftest import error_of

pytestmark = pytest.mark.process

MakeWorker = Callable[..., Worker]


async def test_an_engine_that_refuses_admission_is_overload(
    make_worker: MakeWorker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._llm.scheduler_config, "max_num_queued_reqs", 0)
    error = await error_of(make_worker(), {"prompt": "Hello"})
    assert (error["code"], error["status"], error["retryable"]) == ("overloaded", 503, True)
    assert error["details"].keys() == {"retry_after_s", "waiting", "capacity"}
