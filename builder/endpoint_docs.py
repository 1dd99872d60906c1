"""Writes the option tables of docs/endpoint.md from the code: builder/endpoint_docs.py [--check]"""

import sys
from pathlib import Path

from llmpod.endpoint.cli import flag_of, flags, shown_default
from llmpod.endpoint.faults import Faults
from llmpod.endpoint.options import Options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "endpoint.md"
BEGIN, END = "<!-- options: builder/endpoint_docs.py -->\n", "<!-- end of options -->"


def table(model):
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, info in flags(model):
        default = shown_default(name, info)
        lines.append(
            f"| `{flag_of(name)}` | {f'`{default}`' if default else ''} | {info.description.replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def with_tables(text):
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fault = Faults.model_fields["faults"].description
    tables = f"{table(Options)}\n### Faults\n\n{table(Faults)}| `--fault` |  | {fault}; repeatable |\n"
    return before + BEGIN + tables + END + after


if __name__ == "__main__":
    now = PAGE.read_text()
    wanted = with_tables(now)
    if "--check" in sys.argv:
        if now != wanted:
            sys.exit("docs/endpoint.md is out of date: run builder/endpoint_docs.py")
    else:
        PAGE.write_text(wanted)
