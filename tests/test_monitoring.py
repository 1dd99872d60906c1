"""Alert rules and dashboard: every name is in a catalogue, every rule fires above its threshold and not below."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from builder import monitoring
from builder.alerts import RULES, Rule

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("_bucket", "_sum", "_count")


def promtool(*words: str, folder: Path = ROOT / "ops") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)


def base(name: str) -> str:
    """The metric that a series belongs to."""
    return next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)


def test_promtool_accepts_the_rules_and_each_fires_above_its_threshold_and_not_below() -> None:
    checked = promtool("check", "rules", "alerts.yaml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout
    tested = promtool("test", "rules", "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_threshold_that_moves_fails_the_tests_of_its_rule(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above could not fail. A threshold of 0 moves by half a unit."""

    def moved(rule: Rule) -> Rule:
        by = rule.threshold * (factor - 1) if rule.threshold else factor - 1
        return dataclasses.replace(rule, threshold=rule.threshold + by)

    tests = monitoring.alerts_test()
    monkeypatch.setattr(monitoring, "RULES", tuple(map(moved, RULES)))
    (tmp_path / "alerts.yaml").write_text(monitoring.alerts())
    (tmp_path / "alerts_test.yaml").write_text(tests)
    tested = promtool("test", "rules", "alerts_test.yaml", folder=tmp_path)
    failed = set(re.findall(r"alertname: ?(\w+)", tested.stdout + tested.stderr))
    # One event is above every threshold below 1, and a rule with a second condition may hold for that one.
    by_half = {rule.name for rule in RULES if rule.threshold == 0 and (factor > 1 or " and on " in rule.expr)}
    still = by_half | ({"LlmpodWatchBlind"} if factor < 1 else set())  # the one rule that fires below
    assert failed == {rule.name for rule in RULES} - still, tested.stdout + tested.stderr


def test_every_series_of_rules_and_dashboard_is_in_a_catalogue_with_its_labels() -> None:
    texts = [rule.condition for rule in RULES] + [expr for panel in monitoring.PANELS for _, expr in panel.lines]
    texts += [series for rule in RULES for series in (*rule.fires, *rule.holds)]
    for text in texts:
        names = re.findall(r"\bllmpod_\w+", text)
        assert names, text
        for name in names:
            assert base(name) in monitoring.EVERY, f"{name} in {text}"
        for name, selector in re.findall(r"\b(llmpod_\w+)\{([^}]*)\}", text):
            row = monitoring.EVERY[base(name)]
            for label, values in re.findall(r'(\w+)(?:=~|!=|=)"([^"]*)"', selector):
                if label in ("le", "endpoint", "worker"):
                    continue
                assert label in row.labels, f"{label} of {name} in {text}"
                assert set(values.split("|")) <= set(row.labels[label]), f"{values} of {name} in {text}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_threshold_has_the_unit_of_what_it_bounds(rule: Rule) -> None:
    first = monitoring.EVERY[base(re.findall(r"\bllmpod_\w+", rule.expr)[0])]
    if "/" in rule.expr:
        assert (rule.unit, 0 < rule.threshold < 1) == ("share", True)
    else:
        assert rule.unit == first.unit
    if "histogram_quantile" in rule.expr:
        assert rule.threshold in first.buckets  # a percentile is exact at the end of a bucket alone


def test_the_dashboard_draws_thresholds_where_grafana_reads_them_and_in_the_panels_unit() -> None:
    board = monitoring.dashboard()
    units = {"seconds": "s", "share": "percentunit"}
    drawn = 0
    for panel, made in zip(monitoring.PANELS, board["panels"], strict=True):
        assert "thresholds" not in made  # Grafana ignores them outside of fieldConfig
        steps = made["fieldConfig"]["defaults"]["thresholds"]["steps"]
        values = [step["value"] for step in steps[1:]]
        assert values == sorted(values)
        drawn += len(values)
        for rule in monitoring.limits_of(panel):
            assert units.get(rule.unit, "short") == panel.unit
    assert drawn == sum(len(panel.limits) for panel in monitoring.PANELS) > 0


def test_every_rule_has_a_section_in_the_runbook_under_the_name_it_links_to() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    for rule in yaml.safe_load((ROOT / "ops" / "alerts.yaml").read_text())["groups"][0]["rules"]:
        page_name, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (page_name, anchor in headings) == ("docs/operations.md", True), rule["alert"]


def test_the_names_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert len(monitoring.EVERY) == len(monitoring.CATALOGUE) + len(monitoring.WATCHED)
