"""The command line: every option has a flag, mistakes are one line, and what it prints works."""

import asyncio
import os
import signal
import sys

import pytest

from llmpod.endpoint import StartError, serve
from llmpod.endpoint.cli import flags, parse, parser
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.options import Options
from tests.endpoint.conftest import ECHO

pytestmark = pytest.mark.process


def test_every_option_has_a_flag_and_help():
    text = parser().format_help()
    for model in (Options, Faults):
        for name, info in flags(model):
            if name != "faults":
                assert "--" + name.replace("_", "-") in text
                assert info.description


def test_flags_become_options():
    command = "--port 0 --workers-max 5 --scaler-type REQUEST_COUNT --scaler-value 2.5 --no-fleet --take-policy one"
    options = parse(
        [*command.split(), "--command", "python -u 'my worker.py'", "--fault", "job-done:503:0.1", "--seed", "4"]
    )
    assert options.command == ["python", "-u", "my worker.py"]
    assert (options.port, options.workers_max, options.scaler_value, options.fleet) == (0, 5, 2.5, False)
    assert options.faults.take_policy == "one"
    assert options.faults.seed == 4
    assert options.faults.faults[0].outcome == 503


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--port", "99999"], "--port: "),
        (["--workers-min", "5"], "workers_min (5) is above workers_max (3)"),
        (["--take-policy", "all"], "--take-policy: "),
        (["--fault", "nonsense"], "--fault"),
        (["--command", "'"], "--command"),
        (["--host", "0.0.0.0"], "set --api-key"),
        (["--command", "no-such-program --x"], "no program 'no-such-program'"),
        (["--cwd", "/no/such/place"], "no such directory"),
        (["--journal", "/no/such/place"], "--journal /no/such/place: No such file"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(argv, told, capsys):
    assert serve(argv) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        serve(["--wokers", "1"])
    assert caught.value.code == 2
    assert "--wokers" in capsys.readouterr().err


def test_a_start_error_is_a_value():
    with pytest.raises(StartError, match="--port"):
        parse(["--port", "x"])


async def test_the_command_serves_and_leaves_on_ctrl_c():
    import aiohttp

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmpod.endpoint", "--port", "0", "--workers-min", "1", "--command", " ".join(ECHO),
        env=os.environ | {"COLUMNS": "200"}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = b""
    while b"Ctrl-C" not in said:
        said += await asyncio.wait_for(process.stderr.readline(), 10)
    url = next(word for word in said.decode().split() if word.startswith("http") and "/v2/" in word)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/runsync", json={"input": {"echo": 1}}) as response,
    ):
        assert (await response.json())["output"]["echo"] == 1
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0
    assert b'"to":"COMPLETED"' in out
    assert b"Traceback" not in err
    assert b"Starting Serverless Worker" in said + err
