"""Every variable of RunPod's own vLLM worker is understood, refused with what to do, or ignored and said so."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpod.worker.engine.start import engine_arguments
from llmpod.worker.environ import load, names
from llmpod.worker.errors import StartError
from llmpod.worker.other_workers import REFUSED, RENAMED, RETIRED, meant_by
from tests.worker.conftest import Events

# runpod-workers/worker-vllm, 2026-08: src/args_builder.py (VALUE_FLAGS, PAIRED_BOOL_FLAGS, BOOL_FLAGS, REMOVED_FLAGS,
# ENV_ALIASES), src/main.py, src/handler.py, and what its older releases read (src/engine_args.py, src/utils.py).
OFFICIAL = Path(__file__).with_name("official_worker_variables.txt").read_text().split()

LIBRARIES = {"HF_TOKEN"}  # read by the hub client itself


@pytest.fixture(scope="module")
def parser_names() -> tuple[set[str], set[str]]:
    """The arguments of the real vLLM: those of its engine and of its application, and those of its server."""
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs

    make_arg_parser, application = engine_arguments._command_line()
    parser = make_arg_parser(engine_arguments.engine_options.Parser(prog="worker", add_help=False))
    read = {field.name.upper() for kind in (AsyncEngineArgs, application) for field in dataclasses.fields(kind)}
    return read, {action.dest.upper() for action in parser._actions} - read


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_variable_of_the_official_worker_has_a_meaning_here_or_is_said_to_have_none(
    clean_environment: pytest.MonkeyPatch, parser_names: tuple[set[str], set[str]], name: str
) -> None:
    read, of_the_server = parser_names
    verdicts = [
        name in names() or name in LIBRARIES or (name in read and not meant_by(name)),
        name in REFUSED or meant_by(name) is not None,
        name in RETIRED,
        name in of_the_server,
    ]
    assert verdicts.count(True) == 1, verdicts
    if verdicts[1]:
        clean_environment.setenv(name, "x")
        with pytest.raises(StartError) as caught:
            load()
        assert caught.value.setting == name


def test_arguments_of_vllms_server_are_ignored_and_said_so_without_what_may_be_a_secret(
    clean_environment: pytest.MonkeyPatch, events: Events
) -> None:
    given = {"ALLOWED_ORIGINS": '["*"]', "SSL_KEYFILE": "/key", "API_KEY": "hunter2", "ENABLE_LOG_REQUESTS": "true"}
    for name, value in (given | {"PORT": "80", "HOST": "::", "MASTER_ADDR": "x", "VLLM_API_KEY": "hunter2"}).items():
        clean_environment.setenv(name, value)
    environment = load()
    [of_vllm] = environment.corrections
    assert (of_vllm.setting, of_vllm.given, of_vllm.used) == ("VLLM_API_KEY", None, None)
    assert "VLLM_API_KEY" not in environment.others, "vLLM would ask every job for it"
    engine_arguments.read(environment.settings, environment.others, events.emit)
    said = {event["setting"]: event.get("given") for event in events.named("setting_corrected")}
    assert said == given | {"SSL_KEYFILE": None, "API_KEY": None}
    assert "hunter2" not in str(events.all)


@pytest.mark.parametrize(("ours", "name"), [(row.ours, name) for row in RENAMED for name in row.examples])
def test_another_workers_name_for_a_setting_stops_the_start_unless_both_say_the_same(
    clean_environment: pytest.MonkeyPatch, ours: str, name: str
) -> None:
    clean_environment.delenv("HF_TOKEN", raising=False)
    clean_environment.setenv(name, "hf_abc")
    with pytest.raises(StartError) as caught:
        load()
    assert (caught.value.setting, ours in caught.value.cure) == (name, True)
    assert "hf_abc" not in str(caught.value)
    clean_environment.setenv(ours, "hf_abd")
    with pytest.raises(StartError):
        load()
    clean_environment.setenv(ours, "hf_abc")
    assert [correction.setting for correction in load().corrections] == [name]
    clean_environment.setenv(name, "")
    assert load().corrections == ()


@given(st.text(string.ascii_uppercase + "_", min_size=1))
def test_no_setting_of_ours_is_taken_for_anothers(name: str) -> None:
    for known in names():
        assert meant_by(known) is None
        assert known not in RETIRED
        assert known not in REFUSED
    if (ours := meant_by(name)) is not None:
        assert meant_by(ours) is None
