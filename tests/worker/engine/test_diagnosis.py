"""Failed starts, explained: one line why, one line what to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmpod.worker.engine.start.diagnosis import STARTUP_ERROR_RULES, diagnose, examine, read_error_log
from llmpod.worker.errors import StartError
from llmpod.worker.settings import DEMO_MODEL, Settings

SETTINGS = Settings(model_name="owner/name")

# What the libraries say, as they say it (shortened), and what the operator is told to look at.
SAID = [
    ("You are trying to access a gated repo.\nMake sure to have access to it", "HF_TOKEN"),
    ("401 Client Error. Cannot access gated repo for url", "HF_TOKEN"),
    (
        "RepositoryNotFoundError: 401 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api/models/x/y."
        "\nIf you are trying to access a private or gated repo, make sure you are authenticated",
        "MODEL_NAME",
    ),
    ("Cannot access repository for url x.\nAccess to this resource is disabled.", "has disabled owner/name"),
    ("403 Forbidden: Please enable access to public gated repositories in your token settings", "fine-grained"),
    ("401 Client Error: Unauthorized for url. Invalid username or password.", "HF_TOKEN"),
    ("owner/name is not a local folder and is not a valid model identifier listed on the hub", "MODEL_NAME"),
    ("Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/no/such/folder'", "MODEL_NAME"),
    ("We couldn't connect to 'https://huggingface.co' to load the files", "MODEL_NAME"),
    ("x is not a valid git identifier (branch name, tag name or commit id) that exists", "MODEL_REVISION"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "TENSOR_PARALLEL_SIZE"),
    ("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "MAX_MODEL_LEN"),
    (
        "User-specified max_model_len (9999) is greater than the derived max_model_len (max_position_embeddings=4096",
        "4096",
    ),
    ("Unknown quantization method: awqq. Must be one of [...]", "QUANTIZATION"),
    ("No module named 'bitsandbytes'", "vllm-bnb-plugin"),
    ("CUDA driver version is insufficient for CUDA runtime version", "allowedCudaVersions"),
    ("CUDA error: Error 803: system has unsupported display driver / cuda driver combination", "allowedCudaVersions"),
    ("Failed to infer device type", "GPU"),
    ("Please pass the argument `trust_remote_code=True` to allow custom code to be run.", "TRUST_REMOTE_CODE"),
    ("Model architectures ['FooForCausalLM'] are not supported for now.", "MODEL_NAME"),
    ("Total number of attention heads (14) must be divisible by tensor parallel size (4).", "divisor of 14"),
    ("Worker proc VllmWorker-0 died unexpectedly (exit code: -4)", "DTYPE=float32"),
    (
        "ValueError: Could not find checkpoint files '/m/*.safetensors', only pre-sharded checkpoints "
        "are currently supported!",
        "save_sharded_state",
    ),
    ("RuntimeError: Cannot find any model weights with `/m`", "LOAD_FORMAT"),
    ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", "damaged"),
    ("PermissionError: [Errno 13] Permission denied: '/runpod-volume/huggingface-cache'", "RUN_AS=root"),
    ("OSError: [Errno 28] No space left on device", "disk"),
]


@pytest.mark.parametrize(("said", "told"), SAID)
def test_a_known_failure_names_its_cause_and_its_cure(said: str, told: str) -> None:
    explained = diagnose(RuntimeError(said), SETTINGS)
    line = f"{explained.cause} {explained.cure} {explained.setting}"
    assert told in line
    assert "\n" not in line
    assert "{" not in line


def test_every_symptom_has_an_example() -> None:
    for symptom in STARTUP_ERROR_RULES:
        assert any(re.search(symptom.pattern, said) for said, _ in [*SAID, *MORE]), symptom.pattern


MORE = [
    (
        "To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (3.40 GiB). Based on the available memory, the estimated maximum "
        "model length is 27824. Try increasing `gpu_memory_utilization`",
        "MAX_MODEL_LEN=27824",
    ),
    ("gguf model files need the plugin", "GGUF"),
    ("max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (256).", "MAX_NUM_BATCHED_TOKENS"),
]


@pytest.mark.parametrize(("said", "told"), MORE)
def test_the_cause_is_found_in_what_a_child_process_logged(said: str, told: str) -> None:
    above = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    explained = diagnose(above, SETTINGS, error_log=f"EngineCore failed to start.\nTraceback …\nValueError: {said}")
    assert told in f"{explained.cause} {explained.cure}"


def test_the_cause_of_a_cause_counts() -> None:
    try:
        try:
            raise OSError("You are trying to access a gated repo.")
        except OSError as inner:
            raise RuntimeError("cannot load") from inner
    except RuntimeError as outer:
        assert diagnose(outer, SETTINGS).setting == "HF_TOKEN"


def test_an_unknown_failure_gives_the_deepest_error_not_the_wrapper() -> None:
    explained = diagnose(
        RuntimeError("Engine core initialization failed. See root cause above."),
        SETTINGS,
        error_log="Traceback (most recent call last):\n  File x\nZeroDivisionError: one over zero\n",
    )
    assert "ZeroDivisionError: one over zero" in explained.cause


def test_a_start_error_is_passed_on() -> None:
    original = StartError("a", "b")
    assert diagnose(original, SETTINGS) is original


def test_missing_last_words_are_no_words(tmp_path: Path) -> None:
    assert read_error_log(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"model_name": "/no/such/folder"}, "MODEL_NAME"),
        ({"model_name": "./no-such-folder"}, "MODEL_NAME"),
        ({"model_name": "/proc/1/root/model"}, "MODEL_NAME"),
        ({"tokenizer": "/no/such/folder"}, "TOKENIZER"),
        ({"lora_modules": {"Coach": "/no/such/folder"}}, "LORA_MODULES"),
        ({"lora_modules": {"LLMPOD-demo": "owner/name"}}, "LORA_MODULES"),
    ],
)
def test_what_shows_without_vllm_is_said_without_it(given: dict[str, Any], setting: str) -> None:
    with pytest.raises(StartError) as caught:
        examine(Settings(**given))
    assert caught.value.setting == setting
    assert caught.value.cure


@pytest.mark.parametrize("name", [None, "owner/name", str(DEMO_MODEL)])
def test_a_model_that_may_be_there_passes(name: str | None, tmp_path: Path) -> None:
    examine(Settings(model_name=name, tokenizer=str(tmp_path)))
