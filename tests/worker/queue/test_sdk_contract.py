"""What the worker leans on inside RunPod's SDK. If one fails, the SDK has moved: look at sdk.py and loop.py."""

from __future__ import annotations

import inspect
import types
from typing import Any

import aiohttp
import pytest
import runpod
from runpod import http_client
from runpod.serverless import worker as sdk_worker
from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_logger, rp_scale, rp_system_fitness
from runpod.serverless.modules.worker_state import JobsProgress

from llmpod.worker.queue import loop, sdk
from llmpod.worker.settings import Settings
from llmpod.worker.worker import Worker
from tests.worker.conftest import Events
from tests.worker.scripted import ScriptedEngine, ScriptedStart

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def sdk_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rp_scale, "JobScaler", rp_scale.JobScaler)
    monkeypatch.setattr(rp_logger.RunPodLogger, "log", rp_logger.RunPodLogger.log)
    monkeypatch.setattr(rp_logger.RunPodLogger, "level", rp_logger.RunPodLogger.level)
    monkeypatch.setattr(rp_fitness, "_fitness_checks", [])
    monkeypatch.setattr(rp_fitness, "_registration_state", {"gpu_check": False, "system_checks": False})


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_installed_sdk_has_every_name_that_is_used() -> None:
    assert sdk.missing() == []


OTHER_FORMS = {"not callable": object(), "with other parameters": lambda one, two, three, four, five, six: None}


def change(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """Remove a name from the SDK, or put something of another form in its place."""
    root, *path, last = name.split(".")
    if root == "scaler":
        stock = rp_scale.JobScaler.__init__

        def changed(self: Any, config: dict[str, Any]) -> None:
            stock(self, config)
            holder = self
            for step in path:  # the progress is shared by all scalers: change a stand-in
                setattr(holder, step, types.SimpleNamespace(add=lambda job: None, remove=lambda job: None))
                holder = getattr(holder, step)
            delattr(holder, last) if how == "removed" else setattr(holder, last, OTHER_FORMS[how])

        monkeypatch.setattr(rp_scale.JobScaler, "__init__", changed)
        return
    holder = getattr(sdk, root)
    for step in path:
        holder = getattr(holder, step)
    if how == "removed":
        monkeypatch.delattr(holder, last)
    else:
        monkeypatch.setattr(holder, last, OTHER_FORMS[how])


@pytest.mark.parametrize("how", ["removed", *OTHER_FORMS])
@pytest.mark.parametrize("name", sdk.USED)
def test_a_name_that_is_missing_or_changed_is_found(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    change(monkeypatch, name, how)
    found = sdk.missing()
    assert name in found
    below = {"rp_scale.JobScaler": "scaler."}.get(name, name + ".")
    assert all(other == name or other.startswith((below, name + ".")) for other in found)


def test_optional_parameters_more_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_job(session: Any, num_jobs: int = 1, *, hold_s: float = 90, **others: Any) -> None: ...

    monkeypatch.setattr(rp_scale, "get_job", get_job)
    monkeypatch.setattr(http_client, "get_auth_header", lambda key=None: {})
    assert sdk.missing() == []


def test_a_release_without_one_of_the_modules_still_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vars(sdk._module("serverless.modules.rp_gone")).keys() >= {"__name__"}
    monkeypatch.setattr(sdk, "rp_fitness", sdk._module("serverless.modules.rp_gone"))
    assert {name.split(".")[0] for name in sdk.missing()} == {"rp_fitness"}


def test_the_scaler_is_looked_up_in_its_module_when_the_worker_starts() -> None:
    assert "rp_scale.JobScaler(config)" in inspect.getsource(sdk_worker.run_worker)
    assert "job_scaler.start()" in inspect.getsource(sdk_worker.run_worker)
    assert "worker.main(config)" in inspect.getsource(runpod.serverless.start)


def test_the_scaler_has_the_parts_that_are_replaced_or_used() -> None:
    for method in ("start", "run", "handle_shutdown", "kill_worker", "is_alive"):
        assert callable(getattr(rp_scale.JobScaler, method))
    assert parameters(rp_scale.JobScaler.handle_shutdown) == ["self", "signum", "frame"]
    scaler = rp_scale.JobScaler({"concurrency_modifier": lambda current: 7})
    assert scaler.is_alive()
    scaler.kill_worker()
    assert not scaler.is_alive()
    assert scaler._shutdown_event.is_set()
    assert (scaler.jobs_tasks, scaler.current_concurrency) == ({}, 1)
    assert scaler.jobs_fetcher is rp_job.get_job
    assert scaler.stop_signals_fetcher is rp_job.get_stop_signals
    assert (scaler.jobs_fetcher_timeout, scaler.stop_signals_fetcher_timeout) == (90, 90)
    assert isinstance(scaler.job_progress, JobsProgress)


def test_start_installs_the_signal_handlers_and_runs_the_loop() -> None:
    source = inspect.getsource(rp_scale.JobScaler.start)
    assert "signal.signal(signal.SIGTERM, self.handle_shutdown)" in source
    assert "signal.signal(signal.SIGINT, self.handle_shutdown)" in source
    assert "asyncio.run(self.run())" in source


def test_polls_take_a_session_and_a_number() -> None:
    assert parameters(rp_job.get_job) == ["session", "num_jobs"]
    assert parameters(rp_job.get_stop_signals) == ["session"]
    assert "session.get(_job_get_url(num_jobs))" in inspect.getsource(rp_job.get_job)
    assert issubclass(http_client.TooManyRequests, aiohttp.ClientResponseError)
    assert "Authorization" in http_client.get_auth_header()


def test_addresses_are_module_globals_with_a_place_for_the_jobs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", "http://h/job-done/w/$ID?x")
    monkeypatch.setattr(rp_http, "JOB_STREAM_URL", "http://h/job-stream/w/$ID?x")
    assert sdk.urls() == ("http://h/job-stream/w/$ID?x", "http://h/job-done/w/$ID?x")
    monkeypatch.setattr(rp_job, "JOB_GET_URL", "http://h/job-take/w?x")
    assert sdk.stop_url() == "http://h/job-stop/w?x"
    monkeypatch.setattr(rp_job, "JOB_GET_URL", "http://h/elsewhere")
    assert sdk.stop_url() is None


def test_calls_look_as_the_sdks_own() -> None:
    source = inspect.getsource(rp_http)
    assert '"Content-Type": "application/x-www-form-urlencoded"' in source
    assert '"charset": "utf-8"' in source
    assert 'session.headers["X-Request-ID"] = job["id"]' in source
    assert '"&isStream={is_stream}"' in source
    assert 'job_result["stopPod"] = True' in inspect.getsource(rp_job.handle_job)


def test_running_jobs_are_known_to_the_heartbeat_by_id() -> None:
    progress = JobsProgress()
    progress.clear()
    progress.add("a")
    assert progress.get_job_list() == "a"
    progress.remove("a")
    assert progress.get_job_list() is None


def test_no_fitness_check_starts_cuda_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rp_system_fitness, "gpu_available", lambda: True)
    monkeypatch.delenv("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", raising=False)
    rp_system_fitness.auto_register_system_checks()
    registered = {check.__name__: check for check in rp_fitness._fitness_checks}
    assert set(registered) >= sdk.TORCH_CHECKS, "the checks have other names now"
    for name, check in registered.items():
        reached = inspect.getsource(check)
        inner = [word.split("(")[0] for word in reached.split() if word.startswith("_check_") and "(" in word]
        source = reached + "".join(inspect.getsource(getattr(rp_system_fitness, one)) for one in inner)
        assert ("import torch" in source) == (name in sdk.TORCH_CHECKS), name
    rp_fitness._fitness_checks.clear()
    sdk.forgo_torch_checks()
    left = {check.__name__ for check in rp_fitness._fitness_checks}
    assert {"_memory_check", "_disk_check", "_network_check"} <= left
    assert not left & sdk.TORCH_CHECKS


def served(monkeypatch: pytest.MonkeyPatch, events: Events, setting: str = "event") -> str:
    """The name of the loop that `serve` starts."""
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(runpod.serverless, "start", started.append)
    monkeypatch.setattr(loop.signal, "signal", lambda *arguments: None)
    worker = Worker(Settings(job_loop=setting), ScriptedEngine(), events.emit)  # type: ignore[arg-type]
    start: Any = ScriptedStart(worker)
    assert loop.serve(start) == 0
    assert rp_scale.JobScaler.worker_start is start
    assert inspect.isasyncgenfunction(started[0]["handler"])
    return str(rp_scale.JobScaler.__mro__[1].__name__)


@pytest.mark.parametrize("version", ["1.12.0", "1.12.1", "9.9"])
@pytest.mark.parametrize(("setting", "expected"), [("event", "EventJobScaler"), ("stock", "EngineJobScaler")])
def test_the_loop_is_the_chosen_one_whatever_the_sdks_version(
    monkeypatch: pytest.MonkeyPatch, events: Events, version: str, setting: str, expected: str
) -> None:
    monkeypatch.setattr(sdk, "VERSION", version)
    assert served(monkeypatch, events, setting) == expected
    assert not events.named("job_loop")


@pytest.mark.parametrize(
    "name",
    ["rp_job._job_stop_url", "http_client.TooManyRequests", "rp_fitness._fitness_checks", "rp_logger.RunPodLogger"],
)
def test_an_sdk_without_a_name_gets_the_stock_loop_and_an_event_that_has_the_name(
    monkeypatch: pytest.MonkeyPatch, events: Events, name: str
) -> None:
    change(monkeypatch, name, "removed")
    assert served(monkeypatch, events) == "EngineJobScaler"
    (event,) = events.named("job_loop")
    assert event["used"] == "stock"
    assert event["missing"][0].startswith(name)
    assert name in event["reason"]
