"""One start of handler.py with everything in the hub's cache: no process of it asks the hub, or looks up its name."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from llmpod.worker.settings import DEMO_MODEL
from tests.worker.adapters import make_adapter
from tests.worker.cached import put
from tests.worker.connections import Recorder
from tests.worker.loopback_hub import Hub
from tests.worker.processes import REPOSITORY, environment
from tests.worker.test_machine import CARD, fake

OWN_ADDRESS = ["8.8.8.8", 80]
"""What vLLM connects a datagram socket to, to learn this machine's address; nothing is sent."""


@pytest.mark.slow
@pytest.mark.engine
async def test_a_start_from_the_cache_asks_the_hub_for_nothing(tmp_path: Path) -> None:
    fake(tmp_path, f"echo '{CARD}'")  # with a GPU the fit is estimated, which reads the weights' headers
    cache = tmp_path / "hf" / "hub"
    model = put(cache, "owner/model", [path for path in DEMO_MODEL.iterdir() if path.is_file()])
    put(cache, "owner/adapter", make_adapter(tmp_path / "adapter").iterdir())
    recorder = Recorder(tmp_path / "recorder")
    with Hub.of(DEMO_MODEL) as hub:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, str(REPOSITORY / "handler.py")),
            *("--test_input", '{"input": {"route": "/v1/models"}}'),
            cwd=REPOSITORY,
            env=environment()
            | recorder.variables
            | {
                "MODEL_NAME": "owner/model",
                "TOKENIZER": "owner/model",
                "LORA_MODULES": '{"coach": "owner/adapter"}',
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "0",
                "TRANSFORMERS_OFFLINE": "0",
                "PATH": f"{tmp_path}:/usr/bin:/bin",
            },
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await worker.communicate())[0].decode()
        assert worker.returncode == 0, output[-3000:]
    seen = recorder.beyond_this_machine()
    assert [found for found in seen if found.where != OWN_ADDRESS] == []
    assert len({found.pid for found in recorder.all}) > 1, "more than one process is recorded"
    assert hub.asked == []
    events = [json.loads(line) for line in output.splitlines() if line.startswith('{"ts"')]
    [preflight] = [event for event in events if event["event"] == "preflight"]
    assert (preflight["hub"], preflight["snapshots"]["owner/model"]) == ("cached", str(model))
    [fit] = [event for event in events if event["event"] == "fit"]
    assert fit["weights_mib"] is not None
    answer, _ = json.JSONDecoder().raw_decode(output, output.index("{\n"))
    assert [model["id"] for model in answer["data"]] == ["owner/model", "coach"]
    assert answer["data"][0]["root"] == "owner/model", "clients see the model's id, and no folder"
