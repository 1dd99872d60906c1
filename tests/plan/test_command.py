"""`llmpod plan`: exit codes, what is printed, and models of a hub that refuses, lies or falls silent."""

from __future__ import annotations

import http.server
import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from llmpod.__main__ import main
from llmpod.plan import PlanError, estimate, read_model
from llmpod.plan.gpus import MIB, POOLS, gpu_bytes, memory_bytes
from tests.plan.test_weights import write, write_index

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
DEMO = str(ROOT / "src/llmpod/worker/demo_model")


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    """A folder that looks like Qwen2.5-7B: its config, and as many weights, which are a hole."""
    (tmp_path / "config.json").write_bytes((DATA / "qwen2.5-7b.json").read_bytes())
    write(tmp_path / "model.safetensors", {"model.layers.mlp.weight": ("BF16", [7_615_616_512, 1])})
    return str(tmp_path)


def test_a_model_that_fits_exits_with_0_and_prints_the_settings(qwen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", qwen, "--gpu", "RTX 4090"]) == 0
    out = capsys.readouterr().out
    assert "57,344 bytes per token" in out
    assert "14.19 GiB" in out
    assert out.splitlines()[-1].startswith(f"MODEL_NAME={qwen} MAX_MODEL_LEN=32768 MAX_NUM_SEQS=")


def test_a_model_that_does_not_fit_exits_with_3(qwen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", qwen, "--memory", "16G", "--json"]) == 3
    made = json.loads(capsys.readouterr().out)
    assert made["fits"] is False
    assert made["smallest_gpus"] == 2
    assert {"pool": "AMPERE_16", "gpus": 2} in made["placements"]


def test_without_a_gpu_the_smallest_pool_that_fits_is_used(qwen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", qwen, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_bytes_per_gpu"] == gpu_bytes("ADA_24")
    assert main(["plan", qwen, "--max-num-seqs", "9999999"]) == 3


def test_the_demonstration_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DEMO, "--memory", "4G", "--dtype", "float32", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kv_bytes_per_token"] == 3072
    assert made["unknown"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpu", "RTX 9999"], "no GPU type"),
        (["--memory", "lots"], "no size of memory"),
        (["--memory", "0G"], "no size of memory"),
        (["--memory", "99999999G"], "no size of memory"),
        (["--gpus", "3"], "attention heads"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    qwen: str, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", qwen, *options]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [["--gpus", "0"], ["--utilization", "1.5"], ["--utilization", "nan"], ["--gpu"]])
def test_an_option_out_of_range_is_2(qwen: str, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", qwen, *options])
    assert caught.value.code == 2


LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("", "no JSON"),
        ("[]", "no object"),
        ("[" * 100_000, "no JSON"),
        (json.dumps({**LLAMA, "num_hidden_layers": "many"}), "num_hidden_layers is no whole number but 'many'"),
        (json.dumps({**LLAMA, "num_hidden_layers": 1e300}), "num_hidden_layers"),
        (json.dumps({**LLAMA, "num_attention_heads": float("nan")}), "num_attention_heads is no whole number but nan"),
        (json.dumps({**LLAMA, "hidden_size": 10**400}), "hidden_size"),
        (json.dumps({**LLAMA, "num_attention_heads": -4}), "not between"),
        (json.dumps({**LLAMA, "layer_types": ["full_attention"]}), "names 1 layers, and there are 2"),
        (json.dumps({**LLAMA, "layer_types": 5}), "layer_types"),
        (json.dumps({**LLAMA, "num_hidden_layers": 10**8}), "more than any model has"),
        (json.dumps({**LLAMA, "dtype": "float99"}), "float99 is no data type"),
        (json.dumps({**LLAMA, "rope_scaling": "no"}), "config.json is not one of a llama model"),
        ("9" * 5000, "no JSON"),
    ],
)
def test_a_damaged_config_is_one_line_and_1(
    tmp_path: Path, config: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(config)
    write(tmp_path / "model.safetensors", {"a": ("BF16", [4, 4])})
    assert main(["plan", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert told in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_a_folder_without_a_config_or_weights_and_no_folder_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tmp_path)]) == 1
    assert "config.json cannot be read" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((DATA / "qwen2.5-7b.json").read_bytes())
    assert main(["plan", str(tmp_path), "--gpu", "L4"]) == 1
    out = capsys.readouterr().out
    assert "unknown: weights: it has no safetensors files" in out
    assert "57,344 bytes per token" in out
    assert main(["plan", str(tmp_path / "nowhere")]) == 1


def test_a_shard_that_is_missing_makes_the_answer_unknown(qwen: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_index(Path(qwen), {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"})
    assert main(["plan", qwen, "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert (made["weights_bytes"], made["fits"]) == (None, None)
    assert "model-00002-of-00002.safetensors" in made["unknown"][0]


def test_every_gpu_type_of_the_hub_files_is_known() -> None:
    hub = json.loads((ROOT / ".runpod/hub.json").read_text())["config"]
    assert set(hub["gpuIds"].split(",")) <= POOLS.keys()


@pytest.mark.parametrize(
    ("text", "size"), [("24G", 24 << 30), ("24GiB", 24 << 30), ("80GB", 80 * 10**9), ("24564M", 24_564 * MIB)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("RTX 4090", 24_564),
        ("NVIDIA GeForce RTX 4090", 24_564),
        ("ada_24", 23_034),
        ("L40", 46_068),
        ("h100", 81_559),
        ("A100", 81_920),
    ],
)
def test_gpus_by_name(name: str, mib: int) -> None:
    assert gpu_bytes(name) == mib * MIB


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub: a model whose first of two files answers, a gated one, a private one, and a complete one."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        repo = self.path.strip("/").split("/")[1]
        name = self.path.rsplit("/", 1)[-1]
        folder = Path(os.environ["LLMPOD_TEST_HUB"]) / repo
        if repo == "gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "/v9/" in self.path:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not (folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif repo == "silent" and name.startswith("model-00002"):
            self._send(503, b"")
        else:
            self._send(200, (folder / name).read_bytes()[:200_000])

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        extra = {
            "ETag": f'"{zlib.crc32(self.path.encode()):08x}"',
            "X-Repo-Commit": "a" * 40,
            **(headers or {}),
            "Content-Length": str(len(body)),
        }
        for key, value in extra.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    for repo in ("whole", "silent"):
        folder = tmp_path / "hub" / repo
        folder.mkdir(parents=True)
        (folder / "config.json").write_bytes((DATA / "llama-3.1-8b.json").read_bytes())
        for number in (1, 2):
            write(folder / f"model-0000{number}-of-2.safetensors", {f"w{number}.weight": ("BF16", [1000, 50])})
        write_index(folder, {f"w{number}.weight": f"model-0000{number}-of-2.safetensors" for number in (1, 2)})
    monkeypatch.setenv("LLMPOD_TEST_HUB", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it asks again
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    server.shutdown()
    server.server_close()


def test_models_of_a_hub(hub: HfApi, tmp_path: Path) -> None:
    whole = read_model("you/whole", hub=hub)
    assert whole.weights is not None
    assert whole.weights.stored_bytes == 200_000
    silent = read_model("you/silent", hub=hub)
    assert silent.weights is None
    assert estimate(silent, 80 << 30).fits is None
    assert silent.weights_unknown == "its safetensors files do not all answer (HfHubHTTPError)"
    for name, told in {
        "you/gated": "is a gated model: accept its licence",
        "you/nothing": "is neither a folder nor a model on Hugging Face",
        "not an id": "nor an id of the form OWNER/NAME",
    }.items():
        with pytest.raises(PlanError, match=told):
            read_model(name, hub=hub)
    with pytest.raises(PlanError, match="no revision v9"):
        read_model("you/whole", revision="v9", hub=hub)
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "weights were downloaded"
    unreachable = HfApi(endpoint="http://127.0.0.1:9", token=False)
    with pytest.raises(PlanError, match="cannot be reached"):
        read_model("you/elsewhere", hub=unreachable)
