"""Options of the quality command."""

import argparse

from llmpod.loadtest.cli.options import PROG, Parser, _count, _positive, duration

EPILOG = """\
exit codes:  0 the gate is met   1 the run could not be done   2 usage   3 the gate is not met   4 stopped by a guard
             5 more than 5 % of the jobs had no answer, or none was judged   130 interrupted
"""


def quality_parser() -> Parser:
    p = Parser(
        prog=f"{PROG} quality",
        description="Sends the rows of a data set and judges each answer by what the row expects of it.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--dataset", required=True, metavar="FILE", help="JSON lines of {id, input, expect}, or: career")
    p.add_argument("--gate", metavar="FILE", help="conditions such as 'leaks == 0', or: career")
    p.add_argument("--repeat", type=_positive, default=1, metavar="N", help="send each row N times (1)")
    p.add_argument("--concurrency", "-c", type=_positive, default=3, metavar="N", help="jobs at a time (3)")
    p.add_argument("--endpoint-id", help="default: RUNPOD_ENDPOINT_ID")
    p.add_argument("--base-url", "--url", help="full URL of another server than RunPod's")
    p.add_argument("--mode", choices=["runsync", "run"], default="runsync")
    p.add_argument("--timeout", type=duration, default=120.0, metavar="TIME", help="of one job (120s)")
    p.add_argument("--retries", type=_count, default=2, metavar="N", help="of a submit that was refused (2)")
    p.add_argument("--limits", choices=["runpod", "off"], default="runpod", help="RunPod's rate limits")
    p.add_argument("--out", "--output-dir", metavar="DIR", help="default: runs/<UTC time>-quality")
    p.add_argument("--metadata", action="append", default=[], metavar="K=V", help="kept in quality.json")
    p.add_argument("--format", choices=["table", "json", "quiet"], default="table")
    return p
