"""What the documents show works: blocks parse, commands exist with the options they are given, names are settings."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import json
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from llmpod.__main__ import COMMANDS as LLMPOD_COMMANDS
from llmpod.__main__ import EXTRAS, worker_parser
from llmpod.endpoint import cli as endpoint
from llmpod.loadtest.cli import commands as loadtest
from llmpod.plan.cli import parser as plan_parser
from llmpod.worker.environ import names
from llmpod.worker.jobs import inputs
from llmpod.worker.other_workers import REFUSED, RENAMED, RETIRED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")] + sorted(ROOT.glob("docs/*.md"))
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
BUILD_ARGUMENTS = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))

COMMANDS = ("make", "python", "docker", "curl", "export", "llmpod (?:worker|serve|loadtest|plan)", "uvx", "pip")

# Variables of RunPod, of the hub's client and of Docker's user that the pages name, and words in capitals.
OTHERS = re.compile(
    r"RUNPOD_\w+|HF_\w+|HUGGING_FACE_HUB_TOKEN|VLLM_\w+|OTEL_\w+|CUDA_\w+|[A-Z]+_[A-Z]+ERROR|PYTORCH_ALLOC_CONF"
)
OUR_OTHERS = {"LLMPOD_ENDPOINT_API_KEY", "HEALTH_CHECK_PATH", "PORT_HEALTH"}  # the endpoint's, and those it sets
STATES = {"IN_QUEUE", "IN_PROGRESS", "TIMED_OUT", "QUEUE_DELAY", "REQUEST_COUNT"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2]))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command in a block of shell lines, among which there may be what they print."""
    joined = block.text.replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in joined.splitlines()]
    told = [line for line in lines if re.match(rf"([A-Z_]+=\S* )*({'|'.join(COMMANDS)})\b|([A-Z_]+=\S*\s*)+$", line)]
    return [shlex.split(line, comments=True) for line in told]


SHELL = [(block, words) for block in blocks() if block.language in ("", "sh", "bash") for words in commands(block)]


def engine_arguments() -> set[str]:
    """vLLM's, read from its source: to import it would take longer than all of this."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    found = set()
    for file in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py"):
        for node in ast.walk(ast.parse((package / file).read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Args"):
                fields = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]  # type: ignore[union-attr]
                found |= {name.upper() for name in fields}
    assert len(found) > 100
    return found


KNOWN = {*names(), *RETIRED, *REFUSED, *engine_arguments(), *BUILD_ARGUMENTS, *STATES, *OUR_OTHERS}
KNOWN |= {example for row in RENAMED for example in row.examples} | {row.ours for row in RENAMED}


def is_variable(name: str) -> bool:
    return name in KNOWN or OTHERS.fullmatch(name) is not None


def check_job(text: str) -> None:
    """A job that a page shows is one that this worker takes, or the endpoint's example of another worker."""
    job_input = json.loads(text)["input"]
    if not {"echo", "sleep_ms"} & job_input.keys():  # tests/endpoint/workers/echo.py
        inputs.parse(job_input, {"temperature", "top_p", "n", "stop", "seed"})


def check(words: list[str]) -> None:
    words = list(words)
    while words and re.match(r"[A-Z_]+=", words[0]):
        name = words.pop(0).partition("=")[0]
        assert is_variable(name), f"{name} is no setting"
    if not words:
        return
    command, *rest = words
    if command == "make":
        variables = [word for word in rest if "=" in word]
        assert set(rest) - set(variables) <= MAKE_TARGETS, rest
    elif command == "python":
        check_python(rest)
    elif command == "docker":
        given = {after.partition("=")[0] for word, after in pairwise(rest) if word == "--build-arg"}
        assert given <= BUILD_ARGUMENTS
    elif command in ("llmpod", "uvx"):
        name, *options = rest[rest.index("llmpod") + 1 :] if command == "uvx" else rest
        assert name in LLMPOD_COMMANDS, name
        if name == "loadtest" and "--help" not in options:
            loadtest.parse(options)
        elif name == "plan":
            plan_parser().parse_args(options)
    elif command == "pip":
        extras = re.findall(r"\[(.*?)\]", " ".join(rest))
        assert set(extras) <= set(EXTRAS.values()), rest
    elif command == "curl":
        url = next(word for word in rest if "://" in word or word.startswith("$ENDPOINT_URL"))
        path = urlsplit(url).path
        for word, after in pairwise(rest):
            if "//rest.runpod.io/" in url and word == "--data":  # RunPod's management API
                json.loads((ROOT / after[1:]).read_text() if after.startswith("@") else after)
            elif word in ("-d", "--data"):  # of a load-balancing endpoint, a route's own body
                body = {"route": path, "body": json.loads(after)}
                check_job(json.dumps({"input": body}) if path.startswith("/v1/") else after)
    else:
        assert all(is_variable(word.partition("=")[0]) for word in rest), rest


def check_python(words: list[str]) -> None:
    if words[0] == "handler.py":
        arguments = worker_parser().parse_args(words[1:])
        if arguments.test_input:
            check_job(arguments.test_input)
    elif words[0] == "rp_load_test.py":
        command, _ = loadtest.parse(words[1:])
        assert command
    elif words[:2] == ["-m", "llmpod.endpoint"]:
        endpoint.parse(words[2:])
    elif words[0] == "-m":
        assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").exists() or words[1] in ("pytest", "venv"), words
    else:
        assert (ROOT / words[0]).exists(), words


def test_the_pages_have_blocks_and_commands_to_check() -> None:
    assert {block.page for block in blocks()} >= {"README.md", "docs/endpoint.md", "docs/load_testing.md"}
    assert {words[0] for _, words in SHELL} >= {"make", "python", "docker", "curl"}
    assert len(SHELL) > 15


@pytest.mark.parametrize(("block", "words"), SHELL, ids=lambda value: f"{value[0]}:{value[1]}" if value else "")
def test_a_command_exists_and_takes_what_it_is_given(block: Block, words: list[str], capsys: Any) -> None:
    try:
        check(words)
    except SystemExit:
        pytest.fail(f"{block.page}:{block.line}: {shlex.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("block", [block for block in blocks() if block.language], ids=lambda b: f"{b.page}:{b.line}")
def test_a_block_is_in_the_language_it_says(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "jsonl":
        assert all(json.loads(line) for line in block.text.splitlines())
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "python" and block.text.startswith(">>>"):
        examples = doctest.DocTestParser().get_examples(block.text)
        assert examples
        for example in examples:
            ast.parse(example.source)
    elif block.language == "python":
        ast.parse(block.text)
    else:
        assert block.language in ("sh", "bash", "text", "js", "nginx"), "a language that nothing checks"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_variable_that_a_page_names_is_one(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", text))
    assert {name for name in named if not is_variable(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_make_target_or_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= MAKE_TARGETS
    for target in re.findall(r"\]\(([^)#:]+\.md)", text):
        assert (page.parent / target).exists(), target


def test_what_is_wrong_is_found() -> None:
    for line in (
        "make nosuch",
        "MODEL_NAMES=x make run",
        "python handler.py --test_inputs '{}'",
        'python handler.py --test_input \'{"input": {"promt": "a"}}\'',
        "python rp_load_test.py --endpoint-id a --concurency 1",
        "python -m llmpod.endpoint --worker-min 1",
        "python nosuch.py",
        "docker build --build-arg MODEL=x .",
        "curl -d '{' x",
    ):
        with pytest.raises((AssertionError, SystemExit, Exception)):
            check(shlex.split(line))


def test_every_relative_link_and_every_path_of_the_architecture_page_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    text = (ROOT / "docs" / "architecture.md").read_text()
    bases = [
        ROOT,
        ROOT / "src",
        ROOT / "src" / "llmpod",
        *(ROOT / "src" / "llmpod" / name for name in ("worker", "endpoint", "loadtest", "plan")),
    ]
    named = re.findall(r"`([\w./]+(?:\.py|/))`", text) + re.findall(r"\| (tests/[\w/.]+)", text)
    assert len(named) > 40
    for name in named:
        assert any((base / name).exists() for base in bases), name
