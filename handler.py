"""The door RunPod opens: settings -> worker -> `runpod.serverless.start`; without RunPod, one job on this machine.

python handler.py                                     run test_input.json
python handler.py --test_input '{"input": {...}}'     run the given job
python handler.py --rp_serve_api                      a RunPod endpoint on this machine, with this worker behind it
"""

import argparse
import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from llmpod.worker import departure, local, scratch, settings
from llmpod.worker.engine import Engine
from llmpod.worker.errors import StartError
from llmpod.worker.events import EventLog, use_utf8_line_buffered_stdout
from llmpod.worker.handler import Worker


def parser() -> argparse.ArgumentParser:
    """The options; those of the SDK are its own."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--test_input", metavar="JSON", help="the job to run, instead of test_input.json")
    made.add_argument("--rp_serve_api", action="store_true", help="serve jobs on this machine (docs/endpoint.md)")
    made.add_argument("--rp_api_host", default="127.0.0.1", metavar="HOST", help="address to serve on: %(default)s")
    made.add_argument("--rp_api_port", default="8000", metavar="PORT", help="port to serve on: %(default)s")
    made.add_argument("--rp_api_concurrency", default="1", metavar="N", help="worker processes: %(default)s")
    return made


def main(argv: list[str]) -> int:
    """Serve jobs, or run one. The process's exit status: 0 if all went well, 1 if the job or the start failed."""
    arguments, _ = parser().parse_known_args(argv)  # the rest is the SDK's
    if arguments.rp_serve_api:
        from llmpod import endpoint  # only here: the worker and the endpoint know nothing of each other

        workers = ["--workers-min", arguments.rp_api_concurrency, "--workers-max", arguments.rp_api_concurrency]
        where = ["--host", arguments.rp_api_host, "--port", arguments.rp_api_port]
        settings.provide({"MODEL_NAME": settings.DEMO_NAME})
        return endpoint.serve([*where, *workers, "--cwd", str(ROOT)])

    departure.open_standard_streams()
    use_utf8_line_buffered_stdout()
    log = EventLog()
    try:
        environment = settings.load()
        for correction in environment.corrections:
            log.emit("setting_corrected", **vars(correction))
        serves = environment.on_runpod and arguments.test_input is None
        if serves:
            environment.settings.require_model()
        departure.children_end_with_this_process()
        scratch.claim()
        engine = Engine(environment.settings, environment.others, log.emit)
        engine.prepare()
        worker = Worker(environment.settings, engine, log.emit)
        if serves:
            from llmpod.worker import jobloop  # only here: the SDK takes a second to import

            return jobloop.serve(worker)
        return asyncio.run(local.run_alone(worker, local.read_job(arguments.test_input)))
    except KeyboardInterrupt:
        return 130
    except StartError as error:
        log.emit("fatal", level="error", cause=error.cause, cure=error.cure, setting=error.setting)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
