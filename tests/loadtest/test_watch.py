"""Watch: what a frozen, a killed, a cold and no worker look like from outside, and a real Prometheus that reads it."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llmpod.endpoint import Faults
from llmpod.loadtest.cli import commands
from llmpod.loadtest.cli.watch import listen_address
from llmpod.loadtest.errors import Exit, UsageError
from llmpod.loadtest.run.client import RunPod
from llmpod.loadtest.run.rate_limit import gates
from llmpod.loadtest.watch.catalogue import CATALOGUE
from llmpod.loadtest.watch.exposition import Numbers
from llmpod.loadtest.watch.watcher import Watcher
from tests.loadtest.conftest import ROOT, environment
from tests.loadtest.test_local_endpoint import endpoint

pytestmark = pytest.mark.process

PROBE = {"prompt": "x", "sleep_ms": 50}


def values(text: str) -> dict[str, float]:
    """Samples by name and state, read by Prometheus' own parser."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["endpoint"]
            found[sample.name + (f".{sample.labels['state']}" if "state" in sample.labels else "")] = sample.value
    return found


@asynccontextmanager
async def watching(url: str, *, timeout_s: float = 60.0) -> AsyncIterator[tuple[Watcher, list[str]]]:
    said: list[str] = []
    async with aiohttp.ClientSession() as session:
        client = RunPod(session, url, environment().api_key, gates(None))
        yield Watcher(client, Numbers("local"), PROBE, timeout_s, said.append), said


async def test_a_healthy_a_frozen_a_killed_a_cold_and_no_worker() -> None:
    cold = Faults(cold_start_s=0.5)
    async with endpoint(faults=cold, dead_after_pings=0) as one, watching(one.url) as (watcher, said):
        assert await watcher.look()
        assert await watcher.probe()
        seen = values(watcher.numbers.text())
        assert seen["llmpod_endpoint_up"] == 1
        assert seen["llmpod_endpoint_workers.ready"] == 1
        assert seen["llmpod_endpoint_workers.initializing"] == 0
        assert (seen["llmpod_probe_total_seconds_count"], seen["llmpod_probe_failures_total"]) == (1, 0)
        parts = [seen[f"llmpod_probe_{part}_seconds_sum"] for part in ("total", "exec", "delay")]
        assert parts[0] > parts[1] > 0.05
        assert parts[2] >= 0
        assert said == []

        (worker,) = await one.ready()
        one.fleet.freeze(worker, frozen=True)
        async with watching(one.url, timeout_s=1.5) as (hasty, complaints):
            assert not await hasty.probe()
            assert values(hasty.numbers.text())["llmpod_probe_failures_total"] == 1
            assert complaints == ["probe: not ended within 1.5 s"]
            await hasty.look()
            after = values(hasty.numbers.text())  # the probe is not left in the queue for others to pay
            assert after["llmpod_endpoint_jobs.in_queue"] == 0

        one.fleet.kill(worker)
        async with asyncio.timeout(30):
            while values(watcher.numbers.text())["llmpod_endpoint_cold_starts_total"] < 1:
                await watcher.look()
                await asyncio.sleep(0.02)
            assert await watcher.probe()  # waits for the new worker
        assert values(watcher.numbers.text())["llmpod_probe_total_seconds_count"] == 2
        await one.close()
        assert not await watcher.look()
        assert not await watcher.probe()
        gone = values(watcher.numbers.text())
        assert gone["llmpod_endpoint_up"] == 0
        assert not [name for name in gone if "endpoint_workers" in name or "endpoint_jobs" in name]
        assert gone["llmpod_endpoint_polls_failed_total"] == 1
        assert [line.partition(":")[0] for line in said] == ["/health", "probe"]


@contextlib.contextmanager
def rules_at_once(folder: Path) -> Iterator[Path]:
    """The alert rules, evaluated each second and without their waiting time."""
    rules = yaml.safe_load((ROOT / "ops" / "alerts.yaml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["for"] = "0s"
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
    yield folder / "alerts.yaml"


async def line_with(stream: asyncio.StreamReader, pattern: str) -> re.Match[str]:
    while text := (await stream.readline()).decode():
        if found := re.search(pattern, text):
            return found
    raise AssertionError(f"no line with {pattern}")


async def test_a_real_prometheus_scrapes_the_exporter_and_its_rules_fire_when_the_endpoint_is_gone(
    tmp_path: Path,
) -> None:
    words = ("--listen", "127.0.0.1:0", "--poll-every", "200ms", "--probe-every", "500ms", "--limits", "off")
    async with endpoint() as one, asyncio.timeout(60):
        exporter = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmpod.loadtest", "watch", "--base-url", one.url, *words),
            *("--probe-input", json.dumps(PROBE)),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        assert exporter.stderr is not None
        target = (await line_with(exporter.stderr, r"http://([\d.:]+)/metrics"))[1]
        with rules_at_once(tmp_path) as rules:
            scrape = {"job_name": "watch", "static_configs": [{"targets": [target]}]}
            config = {
                "global": {"scrape_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [scrape],
            }
            (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
            prometheus = await asyncio.create_subprocess_exec(
                *("prometheus", f"--config.file={tmp_path / 'prometheus.yaml'}", "--web.listen-address=127.0.0.1:0"),
                f"--storage.tsdb.path={tmp_path / 'data'}",
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                assert prometheus.stderr is not None
                address = (await line_with(prometheus.stderr, r"Listening on.*address=([\d.:]+)"))[1]
                await line_with(prometheus.stderr, "ready to receive web requests")
                draining = asyncio.create_task(prometheus.stderr.read())
                async with aiohttp.ClientSession(f"http://{address}") as session:

                    async def ask(path: str, **query: str) -> Any:
                        async with session.get(f"/api/v1/{path}", params=query) as response:
                            return (await response.json())["data"]

                    async def firing() -> set[str]:
                        return {one["labels"]["alertname"] for one in (await ask("alerts"))["alerts"]}

                    while not (await ask("query", query="llmpod_probe_total_seconds_count > 1"))["result"]:
                        await asyncio.sleep(0.2)
                    assert (await ask("query", query="llmpod_endpoint_up"))["result"][0]["value"][1] == "1"
                    assert await firing() == set()
                    await one.close()
                    while not {"LlmpodWatchBlind", "LlmpodProbeFails"} <= await firing():
                        await asyncio.sleep(0.2)
                draining.cancel()
            finally:
                prometheus.terminate()
                await prometheus.wait()
        exporter.send_signal(signal.SIGTERM)
        assert await exporter.wait() == Exit.PASS


async def test_once_prints_the_metrics_and_its_exit_code_tells_whether_all_was_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llmpod.loadtest.cli.watch import watch

    _, options = commands.parse(["watch", "--once", "--base-url", "http://127.0.0.1:9/v2/gone"])
    assert await watch(options, environment()) is Exit.ERROR
    out = capsys.readouterr()
    assert values(out.out)["llmpod_endpoint_up"] == 0
    assert "/health: cannot connect" in out.err


@pytest.mark.parametrize("text", ["9108", "localhost:", "localhost:port", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_a_usage_error(text: str) -> None:
    if text == "9108":
        assert listen_address(text) == ("127.0.0.1", 9108)
        return
    with pytest.raises(UsageError):
        listen_address(text)


@given(st.text(min_size=1), st.floats(0, 1e6), st.lists(st.floats(0, 1000), max_size=30))
def test_whatever_the_numbers_are_prometheus_reads_the_text(name: str, gauge: float, times: list[float]) -> None:
    numbers = Numbers(name)
    numbers.set("llmpod_endpoint_workers", gauge, "idle")
    for time in times:
        numbers.observe("llmpod_probe_total_seconds", time)
    families = {family.name: family for family in text_string_to_metric_families(numbers.text())}
    assert len(families) == len(CATALOGUE)
    (worker,) = families["llmpod_endpoint_workers"].samples
    assert (worker.labels, worker.value) == ({"endpoint": name, "state": "idle"}, pytest.approx(gauge, rel=1e-4))
    buckets = {s.labels["le"]: s.value for s in families["llmpod_probe_total_seconds"].samples if "le" in s.labels}
    for bound, count in buckets.items():
        assert count == sum(time <= float(bound) for time in times)
