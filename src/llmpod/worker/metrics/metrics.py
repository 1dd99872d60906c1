"""Prometheus metrics of the worker, counted from the events that it logs. Nothing here raises into a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from llmpod import __version__
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs.route_catalog import label_of
from llmpod.worker.metrics.catalogue import CATALOGUE, NONE

_MOST_ZEROES = 8
"""Series that a metric may have to be at zero from the start, so that its first event shows as an increase."""


class Metrics(Collector):
    """The metrics of one worker: events counted by `tap`, others by `add`, and values read when they are asked for."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """`registry`: one of its own, if none is given. vLLM's /metrics serves prometheus_client's default one."""
        self.registry = registry or CollectorRegistry()
        self._rows = {row.name: row for row in CATALOGUE}
        self._made: dict[str, Any] = {}
        self._followed: dict[str, dict[tuple[str, ...], Callable[[], float]]] = {}
        self._labelled: dict[tuple[object, ...], Any] = {}  # by metric and values
        self._failures = 0
        self.software = dict.fromkeys(("commit", "vllm", "torch", "gpu"), NONE)
        started = time.monotonic()
        self.follow("llmpod_uptime_seconds", lambda: time.monotonic() - started)
        self.follow("llmpod_metric_failures_total", lambda: self._failures)
        self.follow("llmpod_log_lines_lost_total", lambda: 0)
        self.follow_all("llmpod_slots", lambda state: 0)
        self._made = {name: self._make(name) for name in self._rows if name not in self._followed}
        self.registry.register(self)

    def _make(self, name: str) -> Any:
        row = self._rows[name]
        if row.kind == "histogram":
            return Histogram(name, row.help, tuple(row.labels), registry=self.registry, buckets=row.buckets)
        made = (Counter if row.kind == "counter" else Gauge)(name, row.help, tuple(row.labels), registry=self.registry)
        if row.kind == "counter" and len(row.labels) == 1:
            (values,) = row.labels.values()
            for value in values if len(values) <= _MOST_ZEROES else ():
                made.labels(value)
        return made

    # -- counting ------------------------------------------------------------------------------------------------------

    def tap(self, emit: Emit) -> Emit:
        """`emit`, with its events counted first. Neither stops the other."""

        def counting(event: str, **fields: Any) -> None:
            try:
                count = _COUNTED.get(event)
                if count is not None:
                    count(self, fields)
            except Exception:  # noqa: BLE001 - a number must not cost a job its result
                self._failures += 1
            emit(event, **fields)

        return counting

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        """Add to a counter."""
        self._change(name, labels, "inc", amount)

    def observe(self, name: str, value: float | None, **labels: object) -> None:
        """Add a value to a histogram; None is none."""
        self._change(name, labels, "observe", value)

    def set(self, name: str, value: float | None, **labels: object) -> None:
        """Set a gauge; None leaves it as it is."""
        self._change(name, labels, "set", value)

    def follow(self, name: str, read: Callable[[], float]) -> None:
        """Take the value of a metric without labels from `read` whenever it is asked for, in whichever thread."""
        self._followed[name] = {(): read}

    def follow_all(self, name: str, read: Callable[[str], float]) -> None:
        """As `follow`, for a metric with one label: `read` is given each of the label's values."""
        (values,) = self._rows[name].labels.values()
        self._followed[name] = {(value,): partial(read, value) for value in values}

    def _change(self, name: str, labels: Mapping[str, object], action: str, value: float | None) -> None:
        if value is None:
            return
        try:
            made = self._labelled.get((name, *labels.values())) if labels else self._made[name]
            if made is None:  # the first time, or a value that is not among the label's
                made = self._series(name, labels)
            getattr(made, action)(value)
        except Exception:  # noqa: BLE001 - as for `tap`
            self._failures += 1

    def _series(self, name: str, labels: Mapping[str, object]) -> Any:
        """The series of a metric for these labels, kept by the values that it has: those are bounded."""
        key = (name, *(self._rows[name].value_of(label, given) for label, given in labels.items()))
        if key not in self._labelled:
            self._labelled[key] = self._made[name].labels(**dict(zip(labels, key[1:], strict=True)))
        return self._labelled[key]

    # -- reading -------------------------------------------------------------------------------------------------------

    def collect(self) -> Iterable[Family]:
        """The metrics that are read, for the registry."""
        for name, reads in self._followed.items():
            row = self._rows[name]
            kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = kind(name.removesuffix("_total"), row.help, labels=tuple(row.labels))
            for key, read in reads.items():
                try:
                    family.add_metric(key, read())
                except Exception:  # noqa: BLE001 - one number that cannot be read costs none of the others
                    self._failures += 1
            yield family

    def snapshot(self) -> dict[str, Any]:
        """All numbers by name, and below it by the values of the labels. Of a histogram: count and sum."""
        found: dict[str, Any] = {}
        names = {name.removesuffix("_total"): name for name in self._rows}
        for family in (*self.collect(), *(family for made in self._made.values() for family in made.collect())):
            values = found.setdefault(names[family.name], {})
            for sample in family.samples:
                part = sample.name.removeprefix(family.name)
                key = ",".join(sample.labels.values())
                if part in ("", "_total"):
                    values[key] = _plain(float(sample.value))
                elif part in ("_count", "_sum"):
                    values.setdefault(key, {})[part[1:]] = _plain(float(sample.value))
            if "" in values:
                found[names[family.name]] = values[""]
        return found


def _plain(value: float) -> float:
    return int(value) if value.is_integer() else round(value, 4)


def _ended(metrics: Metrics, fields: Mapping[str, Any]) -> None:
    outcome, route = fields["outcome"], label_of(str(fields.get("route", "")))
    # First, and alone: each `end` line counts once, whatever else is in it.
    metrics.add("llmpod_jobs_total", route=route, outcome=outcome, code=fields.get("error") or NONE)
    if outcome == "ok":
        metrics.observe("llmpod_job_seconds", _seconds(fields.get("exec_ms")), route=route)
    metrics.observe("llmpod_ttft_seconds", _seconds(fields.get("ttft_ms")), route=route)
    metrics.observe("llmpod_slot_wait_seconds", _seconds(fields.get("wait_ms")), route=route)
    for kind, name in (("prompt", "prompt_tokens"), ("cached", "cached_tokens"), ("generated", "tokens_generated")):
        metrics.add("llmpod_tokens_total", fields.get(name) or 0, kind=kind)
    reason = (fields.get("max_tokens") or {}).get("reason")
    if reason is not None:
        metrics.add("llmpod_clamped_total", reason=reason)
    policy = fields.get("policy")
    if policy is not None:
        metrics.add("llmpod_blocked_total", policy=policy["name"], by=policy["by"])
    if fields.get("valid") is not None:
        metrics.add("llmpod_validation_total", valid=str(fields["valid"]).lower())


def _environment(metrics: Metrics, fields: Mapping[str, Any]) -> None:
    gpus = {gpu["name"] for gpu in fields.get("gpus") or ()}
    metrics.software = {name: fields.get(name) or NONE for name in ("commit", "vllm", "torch")}
    metrics.software["gpu"] = ", ".join(sorted(gpus)) or NONE


def _warmed_up(metrics: Metrics, fields: Mapping[str, Any]) -> None:
    answered: dict[str, bool] = {}
    for name, result in fields["capabilities"].items():
        kind = name.partition(":")[0]  # of several adapters or tasks the worst
        answered[kind] = answered.get(kind, True) and result["ok"]
    for kind, ok in answered.items():
        metrics.set("llmpod_warm_up", int(ok), capability=kind)


def _ready(metrics: Metrics, fields: Mapping[str, Any]) -> None:
    for phase, milliseconds in (fields.get("start_ms") or {}).items():
        metrics.set("llmpod_start_seconds", _seconds(milliseconds), phase=phase)
    memory = fields.get("memory") or {}
    for kind in ("weights", "kv_cache", "processes"):
        metrics.set("llmpod_device_memory_bytes", _bytes(memory.get(f"{kind}_mib")), kind=kind)
    for kind in ("free", "total"):
        sizes = [gpu.get("free_mib" if kind == "free" else "memory_mib") for gpu in memory.get("gpus") or ()]
        if sizes and None not in sizes:
            metrics.set("llmpod_device_memory_bytes", _bytes(sum(sizes)), kind=kind)
    metrics.set("llmpod_info", 1, version=__version__, model=fields.get("model"), **metrics.software)


_COUNTED: Mapping[str, Callable[[Metrics, Mapping[str, Any]], None]] = {
    "end": _ended,
    "environment": _environment,
    "warm_up": _warmed_up,
    "ready": _ready,
}


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _bytes(mib: float | None) -> float | None:
    return None if mib is None else mib * (1 << 20)
