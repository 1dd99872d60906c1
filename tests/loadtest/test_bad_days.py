"""Endpoints that fail, keys that must stay secret, command lines and files that are wrong: one line, the right code, no
traceback."""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llmpod.loadtest.cli import commands
from llmpod.loadtest.cli.planning import make_plan
from llmpod.loadtest.environ import Secret
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.model import run_files
from tests.loadtest.conftest import ROOT, Ended, Result, command, door, result_of
from tests.loadtest.scripted import Script, scripted

pytestmark = pytest.mark.process

LoadTest = Callable[..., Awaitable[Result]]
KEY = f"rpa_{secrets.token_hex(20)}"  # of a real key's form, and nobody's
FAST = ["-c", "2", "--runs", "8", "--health-interval", "0.2"]


def refusing(status: int, text: str = "") -> Script:
    return Script(refuse=lambda _op, _number: (status, text, {}))


@pytest.mark.parametrize(
    ("status", "text", "error_class"),
    [
        (500, '{"error": "boom"}', "submit_5xx"),
        (502, "<html><body>Bad gateway</body></html>", "submit_5xx"),
        (401, '{"error": "unauthorized"}', "submit_401"),
        (403, "", "submit_401"),
        (404, '{"error": "endpoint not found"}', "submit_404"),
        (400, '{"error": "bad input"}', "submit_4xx"),
        (429, '{"error": "too many requests"}', "submit_429"),
        (200, "<!doctype html><html>Welcome</html>", "bad_reply"),
        (200, '{"hello": "world"}', "bad_reply"),
        (302, "", "submit_4xx"),
    ],
)
@pytest.mark.parametrize("mode", ["runsync", "run", "openai"])
async def test_an_endpoint_that_only_refuses_is_reported_with_its_class(
    load_test: LoadTest, mode: str, status: int, text: str, error_class: str
) -> None:
    async with scripted(refusing(status, text)) as server:
        result = await load_test(server.url, "--mode", mode, *FAST)
    classes = {failure["error_class"] for failure in result.phase["failures"]}
    assert classes == {error_class}
    assert result.code == 1
    assert (result.directory / "report.html").exists()


async def test_an_endpoint_that_is_not_there_ends_the_run_early(tmp_path: Path) -> None:
    cases = {
        "refused": ("http://127.0.0.1:9/v2/x", "connect"),
        "dns": ("http://no-such-host.invalid/v2/x", "dns"),
    }
    for name, (url, error_class) in cases.items():
        out = tmp_path / name
        ended = await door("--base-url", url, "-c", "4", "--runs", "200", "--out", str(out))
        assert ended.code == 1
        assert "Traceback" not in ended.err + ended.out
        result = result_of(1, out)
        assert {job.error_class for job in result.recorded.jobs} - {"client_cancelled"} == {error_class}
        assert len(result.recorded.jobs) < 30
        assert "cannot be reached" in result.report["stopped"]
        assert (out / "report.html").exists()


async def test_a_tls_failure_is_named_as_one(load_test: LoadTest) -> None:
    async with scripted() as server:  # speaks plain HTTP, whatever it is asked
        result = await load_test(server.url.replace("http://", "https://"), *FAST)
    assert {job.error_class for job in result.recorded.jobs} == {"tls"}
    assert result.code == 1


async def test_a_server_that_hangs_up_is_a_lost_connection(load_test: LoadTest) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        result = await load_test(f"http://127.0.0.1:{port}/v2/x", *FAST)
    finally:
        server.close()
    assert {job.error_class for job in result.recorded.jobs} == {"connect"}
    assert result.code == 1


async def test_an_endpoint_that_fails_half_way_keeps_the_good_half(load_test: LoadTest) -> None:
    async with scripted(Script(refuse=lambda op, n: 500 if op == "runsync" and n >= 10 else None)) as server:
        result = await load_test(
            server.url, "-c", "1", "--runs", "20", "--warmup-requests", "0", "--slo", "error_rate<1%"
        )
    assert (result.phase["ok"], result.phase["failed"]) == (10, 10)
    assert result.code == 3


# -- the key --


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_the_key_is_sent_and_appears_nowhere_else(load_test: LoadTest, tmp_path: Path) -> None:
    echoes = [
        json.dumps({"error": f"Incorrect API key provided: {KEY}"}),
        json.dumps({"error": f"key {KEY[:9]}*** is unknown"}),
        f"<html>{'x' * 90}{KEY}</html>",
        json.dumps({"error": "x" * 292 + KEY}),
    ]
    for text in echoes:
        async with scripted(refusing(401, text)) as server:
            await load_test(server.url, *FAST, "--prompt", f"my key is {KEY}", "--metadata", f"k={KEY}", key=KEY)
            assert server.authorization == {f"Bearer {KEY}"}
    data = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    async with scripted(Script(sse=lambda _: [(0.0, b"data: " + data + b"\n\n")])) as server:
        await load_test(server.url, *FAST, "--mode", "openai", key=KEY)
    files = all_files(tmp_path)
    assert len(files) >= 5 * 7
    for path in files:
        assert KEY[:6] not in path.read_text(), path


async def test_the_door_prints_no_key(tmp_path: Path) -> None:
    async with scripted(refusing(401, json.dumps({"error": f"who is {KEY}?"}))) as server:
        words = ["--base-url", server.url, *FAST, "--out", str(tmp_path / "r")]
        ended = await door(*words, env={"RUNPOD_API_KEY": KEY})
        dry = await door(*words, "--dry-run", "--prompt", "hi", env={"RUNPOD_API_KEY": KEY})
        wrong = await door("--slo", f"{KEY}<1", "--base-url", server.url, env={"RUNPOD_API_KEY": KEY})
    for one in (ended, dry, wrong):
        assert KEY[:6] not in one.out + one.err
    assert "[api key]" in ended.out
    assert wrong.code == 2


def test_a_secret_hides_itself_and_its_beginnings() -> None:
    secret = Secret(KEY)
    assert KEY[:4] not in repr(secret) + str(secret) + f"{secret}"
    assert secret.redact(f"a {KEY} b {KEY[:7]} c") == "a [api key] b [api key] c"
    assert Secret("").redact("nothing") == "nothing"


# -- the command line --

USAGE = [
    (["--slo", "totl.p95<8s"], "no metric is called 'totl'"),
    (["--slo", "total.p95"], "write it like"),
    (["--slo", "total<8s"], "total of what?"),
    (["--slo", "error_rate<5s"], "is a share"),
    (["--slo", "scheduled.p95<5s"], "a closed loop has no schedule"),
    (["--slo", "ttft.p50<1s"], "mode runsync does not measure it"),
    (["--slo-preset", "nope"], "invalid choice"),
    (["--concurrency", "0"], "not positive"),
    (["--concurrency", "1", "--request-rate", "2"], "different shapes"),
    (["--request-rate", "2", "--stages", "1m:2"], "different shapes"),
    (["--arrival", "gamma", "--request-rate", "2"], "needs --burstiness"),
    (["--burstiness", "2"], "need --request-rate"),
    (["--request-rate", "-1"], "must be above 0"),
    (["--request-rate", "nan"], "must be above 0"),
    (["--stages", "1m-2"], "TIME:RATE"),
    (["--duration", "5 parsecs"], "not a duration"),
    (["--ramp", "1..5"], "needs --duration"),
    (["--sweep", "8,4"], "must grow"),
    (["--replay", "/no/such/file"], "cannot read"),
    (["--dataset", "/no/such/file"], "cannot read"),
    (["--extra-body", "{"], "is not JSON"),
    (["--max-cost", "1"], "needs --gpu-price"),
    (["--abort-on-fail"], "needs an --slo"),
    (["--goodput", "speed:5"], "no metric is called 'speed'"),
    (["--percentiles", "0,200"], "between 0 and 100"),
    (["--base-url", "ftp://x"], "must start with http"),
    (["--base-url", "http://user:pw@x/v2/y"], "must not carry"),
    (["--metadata", "novalue"], "NAME=VALUE"),
    (["--unknown-flag"], "unrecognized arguments"),
    (["frobnicate"], "no command 'frobnicate'"),
    (["report"], "needs a DIR"),
    (["report", "/no/such/dir"], "is no directory"),
    (["compare", "/no/a", "/no/b"], "is no directory"),
    (["capacity", "/no/a"], "is no directory"),
    (["resume", "/no/a"], "is no directory"),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[" ".join(words)[:40] for words, _ in USAGE])
def test_a_wrong_command_line_is_one_line_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llmpod.loadtest.cli import main

    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    where = (
        []
        if words[0] in (*commands.COMMANDS, "frobnicate") or "--base-url" in words
        else ["--base-url", "http://127.0.0.1:9/v2/x"]
    )
    assert main.main([*words, *where]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "words", "said"),
    [
        ({}, [], "which endpoint?"),
        ({"RUNPOD_ENDPOINT_ID": "abc"}, [], "set RUNPOD_API_KEY"),
        ({"RUNPOD_API_KEY": "k" * 20}, ["--endpoint-id", "a/b"], "is no endpoint id"),
    ],
)
async def test_what_the_environment_lacks_is_said(env: dict[str, str], words: list[str], said: str) -> None:
    ended = await door(*words, env=env)
    assert (ended.code, said in ended.err) == (2, True)


async def test_the_environment_alone_is_enough_for_a_dry_run() -> None:
    ended = await door(
        "--dry-run", "--gpu-price", "0.4", env={"RUNPOD_API_KEY": "k" * 20, "RUNPOD_ENDPOINT_ID": "abc123"}
    )
    assert ended.code == 0
    assert "https://api.runpod.ai/v2/abc123" in ended.out
    assert "c=8: closed, 8 clients, 40 requests" in ended.out
    # 3 x 40 measured and 1 + 4 + 8 to warm up, 2.8 s each at 0.40 $ per hour.
    assert "requests: 133" in ended.out
    assert f"about ${133 * 2.8 * 0.4 / 3600:.4f}" in ended.out


def test_the_old_scripts_flags_mean_what_they_meant(tmp_path: Path) -> None:
    _, chosen = commands.parse(
        ["--concurrency", "1", "4", "8", "--runs", "30", "--timeout", "120", "--prompt", "p",
         "--mode", "async", "--metric", "exec", "--csv", "x.csv"]
    )  # fmt: skip
    plan = make_plan(chosen)
    assert [phase.concurrency for phase in plan.phases] == [1, 4, 8]
    assert {phase.requests for phase in plan.phases} == {30}
    assert (plan.mode, chosen.timeout, chosen.metric, chosen.csv, chosen.prompt) == ("run", 120, "exec", "x.csv", "p")
    _, chosen = commands.parse(["--mode", "sync"])
    assert make_plan(chosen).mode == "runsync"


def test_names_known_from_other_tools_are_aliases() -> None:
    same = [
        (["--runs", "9"], ["-n", "9"], ["--num-prompts", "9"], ["--num-requests", "9"]),
        (["--request-rate", "2"], ["--rate", "2"], ["-q", "2"]),
        (["--duration", "60"], ["-z", "1m"]),
        (["--concurrency", "1", "4"], ["-c", "1,4"]),
        (["--max-tokens", "9"], ["--output-len", "9"], ["--osl", "9"]),
        (["--percentiles", "50"], ["--metric-percentiles", "50"]),
    ]
    for first, *others in same:
        _, wanted = commands.parse(first)
        for other in others:
            _, got = commands.parse(other)
            if first[0] == "--concurrency":
                wanted.concurrency = got.concurrency = [n for group in got.concurrency for n in group]
                assert got.concurrency == [1, 4]
            assert vars(got) == vars(wanted)


async def test_help_is_there_for_every_command() -> None:
    for words in ([], *([name] for name in commands.COMMANDS)):
        ended = await door(*words, "--help")
        assert ended.code == 0
        assert "usage:" in ended.out


# -- files --


async def test_a_directory_of_another_version_or_half_of_one_is_refused(load_test: LoadTest, tmp_path: Path) -> None:
    async def said(directory: Path) -> Ended:
        return command("report", str(directory))

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no results directory" in (await said(empty)).err
    (empty / run_files.PLAN).write_text("{")
    assert "is not JSON" in (await said(empty)).err
    (empty / run_files.PLAN).write_text(json.dumps({"format": 99}))
    ended = await said(empty)
    assert (ended.code, "format 99" in ended.err) == (2, True)
    (empty / run_files.PLAN).write_text(json.dumps({"format": 1, "plan": {"phases": [{"odd": 1}]}}))
    ended = await said(empty)
    assert (ended.code, "not one of this version" in ended.err, "Traceback" in ended.err) == (2, True, False)


async def test_unreadable_lines_are_counted_and_passed_over(load_test: LoadTest) -> None:
    async with scripted() as server:
        first = await load_test(server.url, "-c", "1", "--runs", "5")
    path = first.directory / run_files.REQUESTS
    path.write_bytes(
        b'\xff\xfe{\n[]\n{"phase": 1}\n{"phase":"c=1","index":"x","role":"measured","mode":"run"}\n'
        + path.read_bytes()
        + b'{"half'
    )
    ended = command("report", str(first.directory))
    assert ended.code == 0
    assert "5 unreadable lines" in ended.out
    assert "n=5" in ended.out


async def test_a_run_does_not_overwrite_another(load_test: LoadTest) -> None:
    async with scripted() as server:
        first = await load_test(server.url, "-c", "1", "--runs", "2")
        with pytest.raises(UsageError, match="already holds a run"):
            await load_test(server.url, "-c", "1", "--runs", "2", "--out", str(first.directory))


async def test_a_place_that_cannot_be_written_is_said_in_one_line() -> None:
    ended = await door("--base-url", "http://127.0.0.1:9/v2/x", "--out", "/proc/nowhere")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


# -- what it needs --


def test_it_needs_only_aiohttp_jinja2_and_rich_beyond_the_standard_library() -> None:
    blocked = [
        "orjson",
        "pydantic",
        "numpy",
        "uvloop",
        "runpod",
        "yaml",
        "httpx",
        "requests",
        "msgspec",
        "vllm",
        "torch",
        "transformers",
        "prometheus_client",
    ]
    code = (
        "import sys, pkgutil, importlib\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import llmpod.loadtest\n"
        "for one in pkgutil.walk_packages(llmpod.loadtest.__path__, 'llmpod.loadtest.'):\n"
        "    if not one.name.endswith('__main__'): importlib.import_module(one.name)\n"
        "assert not [name for name in sys.modules if name.startswith(('llmpod.worker', 'llmpod.endpoint'))]\n"
        "own = {'llmpod', 'aiohttp', 'jinja2', 'rich'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:])))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code, *blocked], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imports = set()
    for path in (ROOT / "src/llmpod/loadtest").rglob("*.py"):
        imports |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    foreign = imports - set(sys.stdlib_module_names) - {"llmpod"}
    optional = {"jsonschema", "referencing"}  # imported for data sets of `quality` that expect a json_schema
    assert foreign - optional == {"aiohttp", "jinja2", "rich"}


def test_only_one_module_reads_the_environment() -> None:
    readers = [
        path.name
        for path in (ROOT / "src/llmpod/loadtest").rglob("*.py")
        if re.search(r"os\.environ|getenv", path.read_text())
    ]
    assert readers == ["environ.py"]
