"""Options of the command line, with the names of other load testers as aliases."""

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from llmpod.loadtest.analysis.slo import PRESETS
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.run.payload import DEFAULT_PROMPT
from llmpod.loadtest.units import parse_duration_s

COMMANDS = ("run", "report", "compare", "resume", "capacity", "quality")
PROG = "llmpod loadtest"

EPILOG = """\
exit codes:  0 pass   1 the run could not be done   2 usage   3 an SLO failed   4 stopped by a guard
             5 the measurement is not valid   130 interrupted (the report is still written)

commands:    run (the default), report DIR, compare A B, resume DIR, capacity DIR...,
             quality --dataset FILE   each has its own --help

examples:
  llmpod loadtest --endpoint-id abc123 --concurrency 1 4 8 --runs 40 --slo 'total.p95<8s'
  llmpod loadtest --base-url http://127.0.0.1:8000/v2/local --request-rate 2 --arrival poisson --duration 5m
  llmpod loadtest --soak 2h --concurrency 2 --slo-preset soak --gpu-price 0.40 --max-cost 2
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors that say where help is, and as exceptions, so that one place ends the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def duration(text: str) -> float:
    try:
        return parse_duration_s(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be above 0")
    return value


def _share(text: str) -> float:
    value = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is more than everything; write it like 5% or 0.05")
    return value


def levels(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",") if part]


def run_parser() -> Parser:
    p = Parser(prog=PROG, description="Load tests for any RunPod endpoint.", epilog=EPILOG, allow_abbrev=False)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    where = p.add_argument_group("endpoint (the key is read from RUNPOD_API_KEY only)")
    where.add_argument("--endpoint-id", help="default: RUNPOD_ENDPOINT_ID")
    where.add_argument(
        "--base-url", "--url", help="full URL up to and with the endpoint's id, for another server than RunPod's"
    )
    where.add_argument("--mode", choices=["runsync", "run", "stream", "openai", "sync", "async"], default="runsync")
    where.add_argument(
        "--openai-path", default="/openai/v1/chat/completions", metavar="PATH", help="route of --mode openai"
    )
    where.add_argument("--no-stream", action="store_true", help="--mode openai: ask for the answer in one piece")

    shape = p.add_argument_group("load: closed loop (clients that wait for their answers)")
    shape.add_argument(
        "--concurrency", "-c", nargs="+", type=levels, metavar="N", help="clients; several numbers are phases: 1 4 8"
    )
    shape.add_argument(
        "--ramp-up", type=duration, default=0.0, metavar="TIME", help="start the clients one by one over TIME"
    )
    shape.add_argument(
        "--sweep", metavar="auto|A..B|A,B,C", help="climb a ladder of clients until an SLO breaks or nothing is gained"
    )
    shape.add_argument(
        "--soak", type=duration, metavar="TIME", help="like --duration, with time slices; the worker count may change"
    )
    rate = p.add_argument_group("load: open loop (requests that leave on schedule)")
    rate.add_argument("--request-rate", "--rate", "-q", type=_number, metavar="PER_S")
    rate.add_argument(
        "--arrival", "--arrival-pattern", choices=["constant", "poisson", "gamma"], help="default: poisson"
    )
    rate.add_argument(
        "--burstiness",
        "--arrival-smoothness",
        type=_number,
        metavar="K",
        help="gamma shape: 1 Poisson, below 1 burstier",
    )
    rate.add_argument(
        "--sweep-rate",
        metavar="A..B|A,B,C",
        help="climb a ladder of rates (A..B: in steps of a half) until an SLO breaks or the queue grows",
    )
    rate.add_argument("--ramp", metavar="A..B", help="rate from A to B per second over --duration")
    rate.add_argument(
        "--stages", metavar="TIME:RATE,...", help="straight lines between rates, as in k6: 2m:2,10m:8,2m:0"
    )
    rate.add_argument(
        "--replay", metavar="FILE", help="due times: one number (s) per line, or JSON lines with 'timestamp'"
    )
    rate.add_argument("--time-scale", type=_number, default=1.0, metavar="X", help="--replay: 2 is twice as slow")
    rate.add_argument(
        "--max-concurrency", type=_positive, metavar="N", help="cap on jobs in flight; what it delays is counted"
    )

    stop = p.add_argument_group("length")
    stop.add_argument(
        "--runs",
        "--num-requests",
        "--num-prompts",
        "-n",
        type=_positive,
        metavar="N",
        help="measured requests per phase (40)",
    )
    stop.add_argument("--duration", "-z", type=duration, metavar="TIME", help="measured time per phase, like 30m")
    stop.add_argument(
        "--warmup-requests",
        "--num-warmups",
        type=_count,
        metavar="N",
        help="default: one per client; 1 in an open loop",
    )
    stop.add_argument("--warmup-duration", type=duration, default=0.0, metavar="TIME")
    stop.add_argument(
        "--cooldown", type=duration, default=0.0, metavar="TIME", help="open loop: load goes on unmeasured at the end"
    )
    stop.add_argument(
        "--settle",
        type=duration,
        default=30.0,
        metavar="TIME",
        help="longest wait for an empty queue between phases (30s)",
    )

    job = p.add_argument_group("jobs")
    job.add_argument(
        "--timeout", type=duration, default=120.0, metavar="TIME", help="of one job, then it is cancelled (120s)"
    )
    job.add_argument(
        "--wait", type=duration, default=90.0, metavar="TIME", help="/runsync's wait (90s, RunPod's default)"
    )
    job.add_argument(
        "--retries",
        type=_count,
        default=0,
        metavar="N",
        help="of a submit that met 429, 5xx or no connection, in any mode (0)",
    )
    job.add_argument("--poll-interval", type=duration, metavar="TIME", help="poll /status at a fixed gap")
    job.add_argument(
        "--poll", choices=["auto", "adaptive"], default="auto", help="auto: long poll where the service has it"
    )
    data = p.add_argument_group("payload")
    data.add_argument("--prompt", default=DEFAULT_PROMPT)
    data.add_argument(
        "--dataset",
        "--mix",
        metavar="FILE",
        help="JSON lines with prompt, messages or input; also weight, name and max_tokens: a mix",
    )
    data.add_argument(
        "--input-len", "--isl", type=_positive, metavar="WORDS", help="made-up prompts of that many words"
    )
    data.add_argument("--max-tokens", "--output-len", "--osl", type=_positive, default=150, metavar="N")
    data.add_argument("--temperature", type=float, default=0.2)
    data.add_argument("--model", help="for --mode openai")
    data.add_argument("--payload-template", metavar="FILE", help="the whole JSON body, with {{prompt}} and {{index}}")
    data.add_argument("--extra-body", metavar="JSON", help="more fields for the input (or the OpenAI body)")
    data.add_argument(
        "--prompt-tag",
        choices=["front", "end", "none"],
        default="front",
        help="makes prompts differ, against prefix caches",
    )
    data.add_argument("--seed", type=int, default=0)

    data.add_argument(
        "--expect-blocked",
        action="store_true",
        help="what the worker's policy blocks is a success (demand it with --slo 'blocked_rate>=100%%')",
    )

    safe = p.add_argument_group("guards")
    safe.add_argument("--dry-run", action="store_true", help="say what would be sent and cost; send nothing")
    safe.add_argument("--max-cost", type=_number, metavar="USD", help="needs --gpu-price")
    safe.add_argument("--max-error-rate", type=_share, metavar="SHARE", help="like 5%%, after 20 jobs")
    safe.add_argument(
        "--abort-on-fail", action="store_true", help="stop as soon as an SLO is certain to fail or does so on 20 jobs"
    )
    safe.add_argument(
        "--limits", choices=["runpod", "off"], default="runpod", help="RunPod's rate limits, kept on this side"
    )
    safe.add_argument(
        "--purge-on-abort", action="store_true", help="also empty the endpoint's queue, other people's jobs included"
    )
    out = p.add_argument_group("output")
    out.add_argument("--out", "--output-dir", metavar="DIR", help="default: runs/<UTC time>")
    out.add_argument("--csv", metavar="FILE", help="a copy of requests.csv")
    out.add_argument("--metadata", action="append", default=[], metavar="K=V", help="kept in run.json")
    out.add_argument("--ui", choices=["auto", "live", "plain", "none"], default="auto")
    out.add_argument("--no-tui", action="store_const", const="plain", dest="ui")
    out.add_argument("--health-interval", type=duration, default=2.0, metavar="TIME", help="0 asks nothing")
    view_options(p)
    return p


def view_options(p: Parser) -> None:
    view = p.add_argument_group("judging and showing")
    view.add_argument(
        "--slo",
        action="append",
        default=[],
        metavar="EXPR",
        help="total.p95<8s, delay.p50<2s, error_rate<1%%; repeatable",
    )
    view.add_argument("--slo-preset", action="append", default=[], choices=list(PRESETS))
    view.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help="a good request meets all: ttft:500 total:8000"
    )
    view.add_argument("--percentiles", "--metric-percentiles", default="50,90,95,99", metavar="P,P")
    view.add_argument("--metric", choices=["total", "exec", "delay"], help="show this latency only (all are recorded)")
    view.add_argument("--gpu-price", type=_number, metavar="USD/H", help="of one worker")
    view.add_argument("--slice", type=duration, metavar="TIME", help="width of the time slices")
    view.add_argument("--scaler-value", type=_number, metavar="N", help="REQUEST_COUNT scaler: jobs per worker")
    view.add_argument("--workers-min", type=_count, default=0, metavar="N")
    view.add_argument("--workers-max", type=_count, metavar="N")
    view.add_argument("--allow-worker-change", action="store_true", help="judge although the worker count changed")
    view.add_argument("--format", choices=["table", "json", "quiet"], default="table")
    view.add_argument("--junit", metavar="FILE", help="the objectives as test cases, for CI")
    view.add_argument("--summary", metavar="FILE", help="append a summary in Markdown, as to $GITHUB_STEP_SUMMARY")


def report_parser() -> Parser:
    p = Parser(
        prog=f"{PROG} report",
        description="The report of a recorded run, again or with other objectives.",
        allow_abbrev=False,
    )
    p.add_argument("directory", nargs="?", metavar="DIR")
    p.add_argument("--out", metavar="DIR", help="write the report's files there (default: DIR)")
    p.add_argument("--csv", metavar="FILE", help="a copy of requests.csv")
    view_options(p)
    return p


def compare_parser() -> Parser:
    p = Parser(
        prog=f"{PROG} compare", description="The difference between two runs, with its interval.", allow_abbrev=False
    )
    p.add_argument("a", metavar="A")
    p.add_argument("b", metavar="B")
    p.add_argument("--percentiles", default="50,95", metavar="P,P")
    p.add_argument(
        "--fail-on-slower", type=_share, metavar="SHARE", help="exit 3 when total is certainly slower by more than this"
    )
    p.add_argument("--fail-on-worse", action="store_true", help="quality runs: exit 3 when a pass rate clearly fell")
    p.add_argument("--format", choices=["table", "json"], default="table")
    return p


def resume_parser() -> Parser:
    p = Parser(
        prog=f"{PROG} resume",
        description="Goes on where a run stopped, with the options it was started with.",
        allow_abbrev=False,
    )
    p.add_argument("directory", metavar="DIR")
    p.add_argument("--ui", choices=["auto", "live", "plain", "none"], default="auto")
    return p


def capacity_parser() -> Parser:
    p = Parser(
        prog=f"{PROG} capacity",
        description="How many workers hold a rate within an SLO, and what that costs, simulated from measured runs.",
        allow_abbrev=False,
    )
    p.add_argument("directories", nargs="+", metavar="DIR")
    p.add_argument("--request-rate", "--rate", nargs="+", type=_number, metavar="PER_S", help="rates to answer for")
    p.add_argument("--slo", action="append", default=[], metavar="EXPR")
    p.add_argument("--slo-preset", action="append", default=[], choices=list(PRESETS))
    p.add_argument("--burstiness", type=_number, default=1.0, metavar="K", help="of the arrivals; 1 is Poisson")
    p.add_argument("--max-workers", type=_positive, default=50, metavar="N")
    p.add_argument("--gpu-price", type=_number, metavar="USD/H")
    p.add_argument("--duration", type=duration, default=3600.0, metavar="TIME", help="simulated time per answer (1h)")
    p.add_argument(
        "--scaler", metavar="TYPE:VALUE", help="also simulate an autoscaler: REQUEST_COUNT:1 or QUEUE_DELAY:4"
    )
    p.add_argument("--workers-min", type=_count, default=0, metavar="N")
    p.add_argument("--idle-timeout", type=duration, default=5.0, metavar="TIME")
    p.add_argument("--cold-start", type=duration, metavar="TIME", help="default: as measured, else 60s")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--format", choices=["table", "json"], default="table")
    return p


def _quality_parser() -> Parser:
    from llmpod.loadtest.cli.quality_options import quality_parser

    return quality_parser()


PARSERS = {
    "run": run_parser,
    "report": report_parser,
    "compare": compare_parser,
    "resume": resume_parser,
    "capacity": capacity_parser,
    "quality": _quality_parser,
}


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """(command, options). Raises UsageError."""
    words = list(argv)
    command = "run"
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            raise UsageError(f"there is no command '{words[0]}': there are {', '.join(COMMANDS)}")
        command = words.pop(0)
    options = PARSERS[command]().parse_args(words)
    return command, options


def defaults() -> dict[str, Any]:
    return vars(run_parser().parse_args([]))
