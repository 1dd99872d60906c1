"""Command line of the worker: serves RunPod's queue or HTTP requests (serve_mode.py), or runs one job.

python -m llmpod.worker                                     run test_input.json
python -m llmpod.worker --test_input '{"input": {...}}'     run the given job
python -m llmpod.worker --profile-start                     and print where the time of the start went
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import prometheus_client

from llmpod.worker import environ, local_run, scratch, shutdown
from llmpod.worker.errors import StartError
from llmpod.worker.event_log import EventLog, use_utf8_line_buffered_stdout
from llmpod.worker.http.loading import LoadingServer
from llmpod.worker.metrics import reporter
from llmpod.worker.metrics.metrics import Metrics
from llmpod.worker.worker_start import WorkerStart


def parser() -> argparse.ArgumentParser:
    """Parser of the worker's own options; unknown ones are the RunPod SDK's."""
    made = argparse.ArgumentParser(
        prog="llmpod worker",
        description="Serve RunPod's jobs where RunPod started this process; anywhere else, run one job and print it.",
    )
    made.add_argument("--test_input", metavar="JSON", help="the job to run, instead of test_input.json")
    made.add_argument(
        "--profile-start", action="store_true", help="run one job, and print where the time of the start went"
    )
    return made


def run(test_input: str | None, *, profile_start: bool = False) -> int:
    """Serve jobs, or run one. Returns the exit status: 1 if the job or the start failed, otherwise 0."""
    shutdown.open_standard_streams()
    use_utf8_line_buffered_stdout()
    log = EventLog()
    try:
        environment = environ.load()
        for correction in environment.corrections:
            log.emit("setting_corrected", **vars(correction))
        mode = environment.mode
        serves = mode.kind != "one job" and test_input is None and not profile_start
        if serves:
            environment.settings.require_model()
            log.emit("serve_mode", mode=mode.kind, reason=mode.reason)
        shutdown.children_end_with_this_process()
        loading = None
        if serves and mode.kind == "http":
            loading = LoadingServer(environment.settings, mode.host)
            loading.start()
        scratch.claim()
        metrics = Metrics(prometheus_client.REGISTRY)
        metrics.follow("llmpod_log_lines_lost_total", lambda: log.lost_in_all)
        start = WorkerStart(environment.settings, environment.others, log.emit, metrics)
        with reporter.reporting(environment.settings, metrics, log.emit, environment.others):
            if loading is not None:
                from llmpod.worker.http import server  # imported here, as below: it is not needed elsewhere

                return server.serve(start, loading)
            if serves:
                from llmpod.worker.queue import loop  # imported here: the SDK takes a second to import

                return loop.serve(start)
            job = local_run.read_job(test_input)
            return asyncio.run(local_run.run_alone(start, job, profile_start=profile_start))
    except KeyboardInterrupt:
        return 130
    except StartError as error:
        log.emit("fatal", level="error", cause=error.cause, cure=error.cure, setting=error.setting)
        return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run. Returns the exit status."""
    arguments, _ = parser().parse_known_args(argv)
    return run(arguments.test_input, profile_start=arguments.profile_start)


if __name__ == "__main__":
    sys.exit(main())
