"""What a person sees: the terminal, the page in a browser, the files for a spreadsheet or a program."""

import asyncio
import csv
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from llmpod.loadtest.analysis import validity
from llmpod.loadtest.analysis.analyse import analyse
from llmpod.loadtest.analysis.phase import View
from llmpod.loadtest.model import job_record, run_files
from llmpod.loadtest.model.arrivals import Arrivals, steady
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.model.plan import Phase
from tests.loadtest.conftest import DATA, ROOT, Result, command, door
from tests.loadtest.scripted import JobScript, Script, scripted
from tools import import_old_csv

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"):
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def mixed(number: int) -> JobScript:
    if number % 12 == 11:
        return JobScript(status="FAILED", output=None, error="<script>alert('no')</script>")
    return JobScript(delay_s=0.01, exec_s=0.03, worker=f"worker-{number % 2}")


async def test_the_page_opens_offline_and_says_what_the_run_says(
    load_test: LoadTest, browser: webdriver.Chrome
) -> None:
    async with scripted(Script(job=mixed)) as server:
        result = await load_test(
            server.url,
            "-c",
            "2",
            "4",
            "--runs",
            "40",
            "--slo",
            "total.p50<2s",
            "--slo",
            "error_rate<1%",
            "--gpu-price",
            "0.4",
        )
    browser.get((result.directory / "report.html").as_uri())
    page = browser.find_element(By.TAG_NAME, "body").text
    assert result.phase["why"] in page
    assert f"exit code {result.code}" in page
    assert "total.p50<2s" in page
    assert "✓ met" in page
    assert "✗ missed" in page
    assert "job_failed" in page
    assert "<script>alert('no')</script>" in page
    assert "worker-0" in page
    assert "worker-1" in page
    assert "n/a (n=3" in page
    assert re.search(r"need (299|897)\)", page)  # 897 where neighbours seem to depend on each other
    pictures = browser.find_elements(By.TAG_NAME, "svg")
    assert len(pictures) >= 2 * 3
    for picture in pictures:
        assert picture.size["width"] > 300
        assert picture.size["height"] > 40
    assert browser.find_elements(By.CSS_SELECTOR, "svg path.dots.total")
    wide = browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert wide, "the page scrolls sideways"
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    requests = [
        json.loads(line["message"])["message"]["params"]["request"]["url"]
        for line in browser.get_log("performance")
        if json.loads(line["message"])["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert requests
    assert all(url.startswith("file:") for url in requests)


async def test_the_soaks_page_shows_its_two_states(tmp_path: Path, browser: webdriver.Chrome) -> None:
    soak = DATA / "rp_results_20251010T121412Z.csv"
    words = [str(soak), "-c", "2", "--out", str(tmp_path / "soak"), "--format", "quiet"]
    ended = command(*words, entry=import_old_csv.main)
    assert (ended.code, ended.out) == (0, "")
    page = tmp_path / "soak" / "report.html"
    assert page.stat().st_size < 200_000
    browser.get(page.as_uri())
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "Two states, not one" in text
    assert "n_eff 26" in text
    assert len(browser.find_elements(By.TAG_NAME, "svg")) == 4
    assert "Not drawn: no percentile of these jobs has a 95 % interval." in text


def test_a_page_has_no_address_of_another_place() -> None:
    template = (ROOT / "src/llmpod/loadtest/report/report_template.html").read_text()
    assert not re.search(r"https?://|<script|@import|url\(", template)


async def test_the_door_prints_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    async with scripted(Script(job=mixed)) as server:
        ended = await door(
            "--base-url", server.url, "-c", "2", "--runs", "30", "--out", str(tmp_path / "r"),
            "--slo", "exec.p50<1s", "--gpu-price", "0.4",
            "--csv", str(tmp_path / "copy.csv"),
        )  # fmt: skip
    assert "\x1b" not in ended.out + ended.err
    for said in (
        "total ",
        "delay ",
        "exec ",
        "overhead ",
        "n/a (n=2",
        "✓ met  exec.p50<1s",
        "why  ",
        "not counted: 2 warm-up",
        "cost  busy workers",
    ):
        assert said in ended.out, said
    assert re.search(r"job_failed +2 .*\[job-\d+\]", ended.out)  # a bracket is no style
    assert "2 clients, 30 requests, warm-up 2 requests (not counted)" in ended.err
    rows = list(csv.DictReader((tmp_path / "copy.csv").open()))
    assert len(rows) == len(run_files.read(tmp_path / "r").jobs)
    assert {row["ok"] for row in rows} == {"True", "False"}


async def test_a_terminal_gets_a_live_panel_and_colours(tmp_path: Path) -> None:
    async with scripted(Script(job=lambda _: JobScript(delay_s=0.05, exec_s=0.1), workers=1)) as server:
        leader, follower = pty.openpty()
        words = [
            sys.executable,
            str(ROOT / "rp_load_test.py"),
            "--base-url",
            server.url,
            "-c",
            "2",
            "--runs",
            "12",
            "--out",
            str(tmp_path / "r"),
        ]
        env = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
        process = subprocess.Popen(  # noqa: ASYNC220 - started, not waited for
            words,
            stdout=follower,
            stderr=follower,
            env={**env, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        )
        os.close(follower)
        os.set_blocking(leader, False)
        shown = b""
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.05)
            try:
                shown += os.read(leader, 65536)
            except (BlockingIOError, OSError):
                continue
        try:
            while more := os.read(leader, 65536):
                shown += more
        except OSError:
            pass
        os.close(leader)
    text = shown.decode("utf-8", "replace")
    assert process.returncode in (0, 5)  # 5: the machine is so busy that the tool says so
    assert len(set(re.findall(r"done (\d+) of 12", text))) >= 2
    assert "░" in text
    assert "workers 1 " in text
    assert "\x1b[1m" in text


async def test_json_and_quiet_and_one_metric(load_test: LoadTest) -> None:
    async with scripted() as server:
        result = await load_test(server.url, "-c", "1", "--runs", "3")
    as_json = command("report", str(result.directory), "--format", "json")
    assert json.loads(as_json.out)["phases"][0]["counted"] == 3
    quiet = command("report", str(result.directory), "--format", "quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    one = command("report", str(result.directory), "--metric", "exec")
    assert re.search(r"^exec ", one.out, re.MULTILINE)
    assert not re.search(r"^total ", one.out, re.MULTILINE)


async def test_recorded_once_judged_many_times(load_test: LoadTest) -> None:
    async with scripted(Script(job=lambda _: JobScript(exec_s=0.05))) as server:
        result = await load_test(server.url, "-c", "1", "--runs", "10", "--slo", "exec.p50<1s")
    assert result.code == 0
    same = command("report", str(result.directory))
    assert (same.code, "✓ met  exec.p50<1s" in same.out) == (0, True)
    stricter = command("report", str(result.directory), "--slo", "exec.p50<10ms", "--slo", "total.p95<30s")
    assert (stricter.code, "✗ missed  exec.p50<10ms" in stricter.out) == (3, True)
    preset = command("report", str(result.directory), "--slo-preset", "career")
    assert (preset.code, preset.out.count("✓")) == (0, 1 + 9)


async def test_the_same_directory_gives_the_same_report(load_test: LoadTest) -> None:
    async with scripted(Script(job=mixed)) as server:
        result = await load_test(server.url, "-c", "2", "--runs", "20")
    before = (result.directory / run_files.RUN).read_bytes()
    command("report", str(result.directory), "--format", "quiet")
    again = json.loads((result.directory / run_files.RUN).read_bytes())
    first = json.loads(before)
    assert again["phases"] == first["phases"]


def test_a_record_survives_the_disk() -> None:
    job = Job(
        "p",
        3,
        "measured",
        "run",
        scheduled_ms=1.5,
        sent_ms=2.0,
        total_ms=10.25,
        states=[("IN_QUEUE", 3.0)],
        ok=True,
        worker_id="w",
    )
    assert job_record.from_dict(json.loads(json.dumps(job_record.to_dict(job)))) == job


def test_a_spreadsheet_runs_no_formula_of_an_error_text(tmp_path: Path) -> None:
    from llmpod.loadtest.report.csv_export import write_csv

    write_csv(tmp_path / "x.csv", [Job("p", 0, "measured", "run", error="=cmd|' /C calc'!A0")])
    assert ",'=cmd" in (tmp_path / "x.csv").read_text()


def test_a_late_client_and_a_late_schedule_withhold_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "LAG_MS", 10.0)

    def said(lag_ms: float, total_ms: float, late_ms: float) -> list[tuple[bool, str]]:
        jobs = [
            Job(
                "p",
                n,
                "measured",
                "run",
                scheduled_ms=n * 100.0,
                sent_ms=n * 100.0 + late_ms,
                total_ms=total_ms,
                ok=True,
            )
            for n in range(20)
        ]
        for job in jobs:
            job.done_ms = (job.sent_ms or 0.0) + total_ms
        phase = Phase("p", "open", "constant", arrivals=Arrivals(steady(10, 2)))
        report = analyse(phase, jobs, jobs, [], {"loop_lag_p99_ms": lag_ms}, View())
        return [(doubt.fatal, doubt.text) for doubt in report.doubts]

    assert said(5, 100, 1) == []
    assert [fatal for fatal, _ in said(30, 100, 1)] == [True]
    assert [fatal for fatal, _ in said(30, 3450, 1)] == [False]  # late, but little beside what is measured
    ((fatal, text),) = said(5, 100, 40)
    assert fatal
    assert "after they were due" in text


def in_step(clients: int, rounds: int) -> list[Job]:
    """Clients that all send and all are answered at the same moments, a second apart, on one worker."""
    return [
        Job(
            "c", number * clients + client, "measured", "run", sent_ms=number * 1000.0, done_ms=number * 1000.0 + 999,
            total_ms=999.0, delay_ms=0.0, exec_ms=999.0, ok=True, worker_id="w", output_tokens=10,
        )
        for number in range(rounds)
        for client in range(clients)
    ]  # fmt: skip


def test_clients_in_step_do_as_much_per_second_as_they_do_and_cost_one_worker() -> None:
    jobs = in_step(4, 10)
    jobs[0:4] = [replace(job, role="warmup", done_ms=1000.5) for job in jobs[0:4]]  # ends just inside the window
    phase = Phase("c", "closed", "closed", concurrency=4, requests=36)
    report = analyse(phase, jobs, jobs, [], {}, View(usd_per_hour=3600.0))
    assert report.throughput_per_s == pytest.approx(4, rel=0.01)
    assert report.tokens_per_s == pytest.approx(40, rel=0.01)
    assert report.cost is not None
    assert report.cost.busy_usd == pytest.approx(9, rel=0.01)  # nine seconds of one worker, four jobs at a time
    assert report.little is not None
    assert report.little.ratio == pytest.approx(1, rel=0.01)
