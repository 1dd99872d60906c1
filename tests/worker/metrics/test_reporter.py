"""Ways out: pushes and snapshots at their intervals, at the end once more, and a gateway that fails costs nothing."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmpod.worker.environ import load
from llmpod.worker.errors import StartError
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.metrics.reporter import reporting
from llmpod.worker.settings import Settings
from tests.worker.conftest import Events
from tests.worker.metrics.gateway import Gateway

POD = {"RUNPOD_ENDPOINT_ID": "abc123", "RUNPOD_POD_ID": "pod/1"}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def settings(**given: object) -> Settings:
    """Shorter intervals than the environment may set."""
    return Settings().model_copy(update=given)


def failures(metrics: Metrics) -> float:
    found: float = metrics.snapshot()["llmpod_push_failures_total"]
    return found


def wait_for(condition: object) -> None:
    until = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.005)


def test_numbers_are_pushed_under_the_worker_s_name_and_deleted_at_the_end(gateway: Gateway, events: Events) -> None:
    metrics = Metrics()
    url = f"http://me:s%40cret@{gateway.address}/"
    with reporting(settings(metrics_push_url=url, metrics_push_seconds=0.02), metrics, events.emit, POD):
        wait_for(lambda: len(gateway.calls) >= 2)
        metrics.tap(events.emit)("end", outcome="ok", route="native")
    assert gateway.methods()[-2:] == ["PUT", "DELETE"]
    assert set(gateway.methods()[:-1]) == {"PUT"}
    paths = {path for _, path, *_ in gateway.calls}
    assert paths == {"/metrics/job/llmpod/endpoint/abc123/worker@base64/cG9kLzE="}  # the form for a slash
    assert {sent for _, _, sent, _ in gateway.calls} == {"Basic " + base64.b64encode(b"me:s@cret").decode()}
    last = {s.name: s.value for f in text_string_to_metric_families(gateway.calls[-2].body.decode()) for s in f.samples}
    assert last["llmpod_jobs_total"] == 1  # also what happened after the last interval
    assert failures(metrics) == 0


def test_a_gateway_that_fails_is_counted_and_said_once_and_nothing_else(gateway: Gateway, events: Events) -> None:
    gateway.status = 500
    metrics = Metrics()
    url = f"http://me:secret@{gateway.address}"
    with reporting(settings(metrics_push_url=url, metrics_push_seconds=0.02), metrics, events.emit, POD):
        wait_for(lambda: failures(metrics) >= 3)
        assert len(events.named("push_failed")) == 1
        gateway.status = 200
        pushed = len(gateway.calls)
        wait_for(lambda: len(gateway.calls) > pushed + 1)
        counted = failures(metrics)
    assert failures(metrics) == counted
    assert "secret" not in str(events.all)


def test_no_gateway_at_all_delays_the_exit_by_little(events: Events) -> None:
    metrics = Metrics()
    url = "http://127.0.0.1:9"
    with reporting(settings(metrics_push_url=url, metrics_push_seconds=60.0), metrics, events.emit, {}):
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert failures(metrics) == 2  # the last push, and the deletion


def test_snapshots_come_at_their_interval_and_once_more_at_the_end(events: Events) -> None:
    metrics = Metrics()
    with reporting(settings(snapshot_seconds=0.02), metrics, events.emit, POD):
        wait_for(lambda: len(events.named("snapshot")) >= 2)
        metrics.tap(events.emit)("end", outcome="ok", route="native")
    assert events.named("snapshot")[-1]["metrics"]["llmpod_jobs_total"] == {"native,ok,none": 1}


def test_without_a_setting_there_is_no_thread_and_no_report(events: Events) -> None:
    before = threading.active_count()
    with reporting(Settings(), Metrics(), events.emit, POD):
        assert threading.active_count() == before
    assert events.all == []


@pytest.mark.parametrize("url", ["gateway:9091", "ftp://gateway", "http://", "me:secret@gateway:9091"])
def test_an_address_that_is_none_stops_the_start_without_repeating_a_password(
    clean_environment: pytest.MonkeyPatch, url: str
) -> None:
    clean_environment.setenv("METRICS_PUSH_URL", url)
    with pytest.raises(StartError, match="METRICS_PUSH_URL") as refusal:
        load()
    assert "secret" not in str(refusal.value)
