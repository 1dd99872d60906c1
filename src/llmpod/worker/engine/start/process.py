"""Environment of the engine's processes: logging configuration and variables that vLLM reads on import."""

from __future__ import annotations

import atexit
import functools
import json
import logging.config
import shutil
import tempfile
import warnings
from pathlib import Path

from llmpod.worker.engine.start import cpu_fork_server
from llmpod.worker.environ import provide
from llmpod.worker.event_log import logging_config
from llmpod.worker.settings import Settings


@functools.cache
def scratch() -> Path:
    """A temporary folder for the engine's processes, removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="llmpod-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def error_log() -> Path:
    """The file to which vLLM's processes log errors."""
    return scratch() / "errors.log"


def milestones() -> Path:
    """The file to which vLLM's processes log how far their start is."""
    return scratch() / "milestones.log"


def prepare(settings: Settings) -> None:
    """Set the variables that vLLM and its child processes read when they are imported."""
    log = logging_config(settings.log_level.upper(), error_log(), milestones())
    logging.config.dictConfig(log)  # for what is logged before vLLM reads the file, and over what the SDK set up
    config = scratch() / "logging.json"
    config.write_text(json.dumps(log))
    warnings.filterwarnings("ignore", module=r"vllm\.")  # deprecations inside vLLM; the operator cannot change them
    if cpu_fork_server.on_cpu() and settings.enforce_eager is not False:
        provide({"TORCH_COMPILE_DISABLE": "1"})  # on the CPU one small function takes 16 s, when a job first needs it
    provide(
        {
            "VLLM_LOGGING_CONFIG_PATH": str(config),
            "VLLM_LOGGING_LEVEL": settings.log_level.upper(),
            "VLLM_ENABLE_RESPONSES_API_STORE": "1",  # previous_response_id; application.py bounds the store
            "VLLM_NO_USAGE_STATS": "1",  # no telemetry
            "TOKENIZERS_PARALLELISM": "false",  # one prompt at a time, and forked children do not warn about it
            # What is not a log record would break the form of the log: progress bars, Python's and C++'s warnings.
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": "ignore",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
    )
