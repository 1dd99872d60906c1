"""The environment, and what the worker makes of it."""

from __future__ import annotations

import os

import pytest

from llmpod.worker import environ, settings
from llmpod.worker.environ import load
from llmpod.worker.errors import StartError
from llmpod.worker.other_workers import RETIRED
from llmpod.worker.settings import Settings


@pytest.fixture(autouse=True)
def _clean(clean_environment: pytest.MonkeyPatch) -> None:
    """Every test starts without a variable of ours."""


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> environ.Environment:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


@pytest.mark.parametrize(
    ("variables", "field", "value"),
    [
        ({"MODEL_NAME": "Qwen/Qwen2.5-0.5B-Instruct"}, "model_name", "Qwen/Qwen2.5-0.5B-Instruct"),
        ({"MODEL_REVISION": "main"}, "model_revision", "main"),
        ({"OPENAI_SERVED_MODEL_NAME_OVERRIDE": "mine"}, "served_model_name", "mine"),
        ({"SERVED_MODEL_NAME": "mine"}, "served_model_name", "mine"),
        ({"TOKENIZER": "t"}, "tokenizer", "t"),
        ({"TOKENIZER_NAME": "t"}, "tokenizer", "t"),
        ({"MAX_MODEL_LEN": "4096"}, "max_model_len", 4096),
        ({"GPU_MEMORY_UTILIZATION": "0.85"}, "gpu_memory_utilization", 0.85),
        ({"TRUST_REMOTE_CODE": "1"}, "trust_remote_code", True),
        ({"ENFORCE_EAGER": "False"}, "enforce_eager", False),
        ({"LOG_LEVEL": "WARNING"}, "log_level", "warning"),
        ({"MAX_PROMPT_CHARS": "0"}, "max_prompt_chars", 0),
        ({"DEFAULT_SAMPLING_PARAMS": '{"temperature": 0.3}'}, "default_sampling_params", {"temperature": 0.3}),
        ({"MAX_MODEL_LEN": ""}, "max_model_len", None),
        ({"MAX_MODEL_LEN": "  2048 "}, "max_model_len", 2048),
        ({"MAX_MODEL_LEN": "8k"}, "max_model_len", 8000),
        ({"MAX_MODEL_LEN": "8K"}, "max_model_len", 8192),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], field: str, value: object
) -> None:
    assert getattr(loaded(monkeypatch, **variables).settings, field) == value


@pytest.mark.parametrize(
    ("name", "given", "used"),
    [
        ("MODEL_NAME", "None", None),
        ("MODEL_NAME", "null", None),
        ("QUANTIZATION", "None", None),
        ("MODEL_NAME", '"Qwen/Qwen2.5"', "Qwen/Qwen2.5"),
        ("MODEL_NAME", "'Qwen/Qwen2.5'", "Qwen/Qwen2.5"),
        ("MAX_NUM_BATCHED_TOKENS", "0", None),
        ("MAX_MODEL_LEN", "0", None),
        ("MAX_NUM_SEQS", "0", None),
        ("MAX_CONCURRENCY", "0", None),
        ("MAX_MODEL_LEN", "auto", None),
    ],
)
def test_what_forms_leave_behind_is_corrected_and_reported(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, used: str | None
) -> None:
    environment = loaded(monkeypatch, **{name: given})
    assert getattr(environment.settings, name.lower()) == used
    assert [(c.setting, c.given, c.used) for c in environment.corrections] == [(name, given, used)]
    assert os.environ.get(name) == used  # vLLM's processes inherit the corrected value


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MAX_MODEL_LEN": "abc"}, ["MAX_MODEL_LEN", "'abc'", "integer"]),
        ({"MAX_MODEL_LEN": "-5"}, ["MAX_MODEL_LEN", "'-5'", "greater than or equal to 1"]),
        ({"MAX_NUM_BATCHED_TOKENS": "abc"}, ["MAX_NUM_BATCHED_TOKENS", "'abc'"]),
        ({"GPU_MEMORY_UTILIZATION": "1.5"}, ["GPU_MEMORY_UTILIZATION", "less than or equal to 1"]),
        ({"TRUST_REMOTE_CODE": "maybe"}, ["TRUST_REMOTE_CODE", "boolean"]),
        ({"MAX_PROMPT_CHARS": "-1"}, ["MAX_PROMPT_CHARS"]),
        ({"DEFAULT_SAMPLING_PARAMS": "{temperature}"}, ["default_sampling_params", "JSON"]),
        ({"MAX_TOKENS_MIN": "500"}, ["MAX_TOKENS_MIN", "500", "MAX_TOKENS_MAX", "256"]),
        ({"MAX_MODEL_LENGTH": "4096"}, ["MAX_MODEL_LENGTH", "MAX_MODEL_LEN"]),
        ({"MAX_BATCHED_NUM_TOKENS": "4096"}, ["MAX_BATCHED_NUM_TOKENS", "MAX_NUM_BATCHED_TOKENS"]),
        ({"GPU_MEM_UTILIZATION": "0.9"}, ["GPU_MEM_UTILIZATION", "GPU_MEMORY_UTILIZATION"]),
        ({"MAX_PROMPT_CHAR": "9"}, ["MAX_PROMPT_CHAR", "MAX_PROMPT_CHARS"]),
    ],
)
def test_what_cannot_be_guessed_stops_the_start_and_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: list[str]
) -> None:
    with pytest.raises(StartError) as caught:
        loaded(monkeypatch, **variables)
    line = str(caught.value)
    assert "\n" not in line
    for word in says:
        assert word in line


def test_several_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError) as caught:
        loaded(monkeypatch, MAX_MODEL_LEN="abc", LOG_LEVEL="loud")
    assert "MAX_MODEL_LEN" in caught.value.cause
    assert "LOG_LEVEL" in caught.value.cause


@pytest.mark.parametrize("name", sorted(RETIRED))
def test_a_retired_name_is_ignored_with_a_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    corrections = loaded(monkeypatch, **{name: "1"}).corrections
    assert [(c.setting, c.used) for c in corrections] == [(name, None)]
    assert corrections[0].reason.startswith("ignored: ")


def test_the_machines_own_variables_are_nobodys_typing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {
        "RUNPOD_POD_ID": "x",
        "RUNPOD_ENDPOINT_ID": "x",
        "CUDA_VERSION": "13.0",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "PYTHON_VERSION": "3.12",
        "HF_TOKEN": "hf_secret",
        "HF_HUB_ENABLE_HF_TRANSFER": "1",
        "LD_LIBRARY_PATH": "/x",
        "PUBLIC_KEY": "x",
        "JUPYTER_PASSWORD": "x",
        "OMP_NUM_THREADS": "2",
        "MASTER_ADDR": "x",
    }
    environment = loaded(monkeypatch, **usual)
    assert environment.corrections == ()
    assert usual.items() <= environment.others.items()


def test_runpod_is_recognised_by_its_job_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().mode.kind == "one job"
    assert loaded(monkeypatch, RUNPOD_WEBHOOK_GET_JOB="http://127.0.0.1:1/job-take/$ID").mode.kind == "queue"


def test_every_setting_is_explained() -> None:
    for name, info in Settings.model_fields.items():
        assert info.description, name
        assert info.description.endswith("."), name
        assert [group for group in Settings.__bases__ if name in getattr(group, "model_fields", ())], name


def test_the_demonstration_model_is_used_only_when_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().settings.is_demo
    assert load().settings.model == str(settings.DEMO_MODEL)
    named = loaded(monkeypatch, MODEL_NAME="owner/name").settings
    assert not named.is_demo
    assert named.model == "owner/name"
    by_name = loaded(monkeypatch, MODEL_NAME=settings.DEMO_NAME).settings
    assert by_name.is_demo
    assert (by_name.model, by_name.served_name) == (str(settings.DEMO_MODEL), settings.DEMO_NAME)


def test_an_endpoint_is_not_served_by_a_model_that_nobody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ("", "None"):
        with pytest.raises(StartError, match="MODEL_NAME is not set") as caught:
            loaded(monkeypatch, MODEL_NAME=nothing).settings.require_model()
        assert caught.value.setting == "MODEL_NAME"
    loaded(monkeypatch, MODEL_NAME=settings.DEMO_NAME).settings.require_model()


def test_the_settings_that_differ_are_shown_without_secrets_and_cut() -> None:
    given = Settings(
        model_name="owner/model", custom_chat_template="{" * 1000, max_tokens_max=5, lora_modules={"a": "b"}
    )
    assert environ.differing(given, 10) == {
        "MODEL_NAME": "owner/mode",
        "CUSTOM_CHAT_TEMPLATE": "{" * 10,
        "MAX_TOKENS_MAX": 5,
        "LORA_MODULES": "{'a': 'b'}",
    }
    assert environ.differing(Settings(), 10) == {}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("HF_TOKEN", "RUNPOD_AI_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAIKEY", "DB_PASSWORD")
        ),
        *((name, False) for name in ("MAX_TOKENS_MAX", "TOKENIZER", "TOKENIZERS_PARALLELISM", "KEYMAP", "MODEL_NAME")),
    ],
)
def test_a_secret_is_known_by_its_name(name: str, secret: bool) -> None:
    assert environ.is_secret(name) is secret
