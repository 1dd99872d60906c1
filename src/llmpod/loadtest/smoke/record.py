"""deployment.json: what was deployed, as the worker says itself, the checks that it passed, and measured figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.intake import UnreadableError, read_json
from llmpod.loadtest.model import run_files
from llmpod.loadtest.smoke.checks import Result
from llmpod.loadtest.units import utc_now

KEPT = ("total", "exec", "delay", "ttft")


def make_record(
    endpoint: str, facts: Mapping[str, str], results: Sequence[Result], image: str | None, run: Path | None
) -> dict[str, Any]:
    """The record of a deployment that has passed. `run`: the results directory of a load test of it.

    Raises:
        UsageError: there is no readable run.json in `run`.
    """
    return {
        "deployed_at": utc_now(),
        "endpoint": endpoint,
        "image": image,
        **{name: facts.get(name) for name in ("version", "commit", "vllm", "model", "revision")},
        "checks": [asdict(result) for result in results],
        "performance": None if run is None else performance(run),
    }


def performance(directory: Path) -> list[dict[str, Any]]:
    """Per phase of a load test: jobs, throughput, and the percentiles of each latency (ms)."""
    path = directory / run_files.RUN
    try:
        report = read_json(path.read_text(encoding="utf-8"))
        return [_phase(phase) for phase in report["phases"]]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (UnreadableError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no report of a load test") from None


def _phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    latencies = {
        name: {f"p{quantile['p']:g}": quantile["value"] for quantile in phase["rows"][name]["quantiles"]}
        for name in KEPT
        if name in phase["rows"]
    }
    return {**{key: phase.get(key) for key in ("name", "counted", "ok", "throughput_per_s")}, "latency_ms": latencies}
