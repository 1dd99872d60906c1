"""CI reports: objectives as JUnit test cases, and a summary in Markdown."""

from pathlib import Path
from xml.etree import ElementTree

from llmpod.loadtest.errors import Exit
from llmpod.loadtest.model.run_files import writing
from llmpod.loadtest.report import facts, view
from llmpod.loadtest.report.report import Report

MARKS = frozenset("\\`*_[]<>|&")


def junit(report: Report) -> str:
    """A suite per phase: a case for validity and one per objective. In a sweep only the answer is
    a case: rungs miss their objectives on purpose."""
    root = ElementTree.Element("testsuites", name="load test")
    if report.answer is not None:
        suite = ElementTree.SubElement(root, "testsuite", name="sweep")
        _case(suite, "sweep", "a rung holds", None if report.answer.best is not None else report.answer.text)
    for phase in report.phases:
        suite = ElementTree.SubElement(root, "testsuite", name=phase.phase.name)
        fatal = "; ".join(doubt.text for doubt in phase.doubts if doubt.fatal)
        _case(suite, phase.phase.name, "valid", fatal or None)
        for verdict in phase.verdicts if report.answer is None else ():
            missed = None if verdict.passed else f"measured {verdict.shown}"
            _case(suite, phase.phase.name, verdict.slo.text, missed)
    if report.exit_code in (Exit.ERROR, Exit.ABORTED, Exit.INTERRUPTED):
        suite = ElementTree.SubElement(root, "testsuite", name="run")
        _case(suite, "run", "completed", report.stopped or facts.headline(report)[0])
    for suite in root:
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: ElementTree.Element, group: str, name: str, failure: str | None) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=f"loadtest.{_plain(group)}", name=_plain(name))
    if failure is not None:
        ElementTree.SubElement(case, "failure", message=_plain(failure))


def _plain(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(char if char.isprintable() else " " for char in text)


def markdown(report: Report) -> str:
    words, _ = facts.headline(report)
    lines = [f"### Load test: {_escape(words)}", "", _escape(" · ".join(report.header)), ""]
    if report.answer is not None:
        lines += [f"**{_escape(report.answer.text)}**", ""]
    table = view.phases(report)
    if table is not None:
        lines += [*_table(table), ""]
    for phase in facts.shown_in_full(report):
        lines += [f"#### {_escape(phase.phase.name)}", "", _escape(phase.why), ""]
        lines += [f"- ⚠ {_escape(words)}" for words, _ in facts.status(phase).doubts]
        for one in (view.latencies(phase), view.verdicts(phase), view.failures(phase)):
            if one is not None:
                lines += ["", *_table(one)]
        lines.append("")
    lines += [f"- {_escape(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def _table(table: view.Table) -> list[str]:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    sides = [":--" if head in table.left else "--:" for head in table.heads]
    body = []
    for row in table.rows:
        cells = []
        for head, cell in zip(table.heads, row, strict=False):
            small = cell.small if head != table.heads[0] else ""
            cells.append(_escape(cell.text) + (f" <sub>{_escape(small)}</sub>" if small else ""))
        body.append(line(cells))
    return [line([_escape(head) for head in table.heads]), line(sides), *body]


def _escape(text: str) -> str:
    """No text of the target is Markdown or HTML, or ends a cell."""
    return "".join(f"&#{ord(char)};" if char in MARKS else char for char in " ".join(text.split()))


def write_junit(path: Path, report: Report) -> None:
    """Raises DirectoryError when the file cannot be written."""
    with writing(path):
        path.write_text(junit(report), encoding="utf-8", errors="replace")


def append_summary(path: Path, report: Report) -> None:
    """Raises DirectoryError when the file cannot be written."""
    with writing(path), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(markdown(report))
