"""Every tool and reasoning parser of the installed vLLM reads the same out of an answer, however tokens were merged.

The parsers are those of vLLM's registries, so a new release brings its own rows. Each reads what its model would write,
where that is written down here, and texts made of the markers that stand in its source. The tokens go vLLM's own way
from the engine's step to the parser (replay.py), through the part of the worker that hands them on.
"""

from __future__ import annotations

import ast
import functools
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.sampling_params import RequestOutputKind
from vllm.tool_parsers import ToolParserManager

from llmpod.worker.engine.app.metered_engine import MeteredEngine
from llmpod.worker.jobs.metering import JobMeter, current_meter
from llmpod.worker.settings import DEMO_MODEL
from tests.worker.replay import Replay, one_by_one, splits

pytestmark = pytest.mark.process

PARSERS = sorted(
    [("tool", name) for name in ToolParserManager.list_registered()]
    + [("reasoning", name) for name in ReasoningParserManager.list_registered()]
)
NEEDS = {
    "cohere_command3": "cohere_melody",
    "cohere_command4": "cohere_melody",
    "hf": "response_template",
}
"""Parsers that cannot be made here -> what their refusal says that they lack: a package, a template's tokenizer."""

CALL = '{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}'
NEXT = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
XML = "<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
QWEN = [f"Sure.\n<tool_call>\n{XML}\n</tool_call>\n<tool_call>\n{XML}\n</tool_call>"]
HERMES = [f"Sure.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{NEXT}\n</tool_call>"]
GLM = "get_weather<arg_key>city</arg_key><arg_value>Zürich</arg_value><arg_key>days</arg_key><arg_value>3</arg_value>"
PYTHONIC = '[get_weather(city="Zürich", days=3), get_weather(city="Oslo")]'
LLAMA = [
    CALL.replace("arguments", "parameters"),
    "<|python_tag|>" + CALL.replace("arguments", "parameters") + "; " + NEXT.replace("arguments", "parameters"),
]
DEEPSEEK = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
DEEPSEEK_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>"
V3 = 'function<｜tool▁sep｜>get_weather\n```json\n{"city": "Zürich", "days": 3}\n```'
V31 = 'get_weather<｜tool▁sep｜>{"city": "Zürich", "days": 3}'
INVOKE = '<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n</invoke>'
DSML = (
    '<｜DSML｜{0}>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Zürich'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜{0}>"
)
KIMI = '<|tool_call_begin|>functions.get_weather:{}<|tool_call_argument_begin|>{{"city": "Zürich"}}<|tool_call_end|>'
STEP3 = (
    '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">'
    '<steptml:parameter name="city">Zürich</steptml:parameter></steptml:invoke><｜tool_call_end｜>'
)
CALLS: dict[str, list[str]] = {
    "apertus": [
        '<|tools_prefix|>[{"get_weather": {"city": "Zürich"}}, {"get_weather": {"city": "Oslo"}}]<|tools_suffix|>'
    ],
    "deepseek_v3": ["Sure." + DEEPSEEK.format(DEEPSEEK_CALL.format(V3) * 2)],
    "deepseek_v31": ["Sure." + DEEPSEEK.format(DEEPSEEK_CALL.format(V31) * 2)],
    "deepseek_v32": ["Sure.\n\n" + DSML.format("function_calls")],
    "deepseek_v4": ["Sure.\n\n" + DSML.format("tool_calls")],
    "dots": [f"<dots_function_call>\n{INVOKE}\n</dots_function_call>"],
    "ernie45": [f"Sure.\n</think>\n\n\n<tool_call>\n{CALL}\n</tool_call>\n\n<tool_call>\n{NEXT}\n</tool_call>\n"],
    "functiongemma": ["<start_function_call>call:get_weather{city:<escape>Zürich<escape>}<end_function_call>"],
    "gemma4": ['<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|>'],
    "gigachat3": [f"Sure.<|function_call|>{CALL}"],
    "glm45": [f"Sure.<tool_call>{GLM}</tool_call><tool_call>{GLM}</tool_call>"],
    "glm47": [f"Sure.<tool_call>{GLM}</tool_call><tool_call>{GLM}</tool_call>"],
    "granite": [f"<|tool_call|>[{CALL}, {NEXT}]", f"<tool_call>[{CALL}, {NEXT}]"],
    "granite-20b-fc": [f"<function_call> {CALL}<function_call> {NEXT}"],
    "granite4": HERMES,
    "hermes": HERMES,
    "hunyuan_a13b": [f"<tool_calls>[{CALL}, {NEXT}]</tool_calls>"],
    "hy_v3": [
        "<tool_calls><tool_call>get_weather<tool_sep><arg_key>city</arg_key><arg_value>Zürich</arg_value></tool_call>"
        "</tool_calls>"
    ],
    "inkling": [
        '<|message_model|><|content_text|>Sure.<|end_message|><|message_model|><|content_invoke_tool_json|>{"name":'
        '"get_weather","args":{"city":"Zürich"}}<|end_message|>'
    ],
    "internlm": [
        'Sure.<|action_start|><|plugin|>{"name": "get_weather", "parameters": {"city": "Zürich"}}<|action_end|>'
    ],
    "jamba": [f"Sure.<tool_calls>[\n    {CALL},\n    {NEXT}\n]</tool_calls>"],
    "kimi_k2": ["Sure.<|tool_calls_section_begin|>" + KIMI.format(0) + KIMI.format(1) + "<|tool_calls_section_end|>"],
    "lfm2": [f"<|tool_call_start|>{PYTHONIC}<|tool_call_end|>Sure."],
    "ling3": [f"</think>Sure.<tool_call>{GLM}</tool_call><tool_call>{GLM}</tool_call>"],
    "llama3_json": LLAMA,
    "llama4_json": LLAMA,
    "llama4_pythonic": [PYTHONIC],
    "longcat": [f"Sure.<longcat_tool_call>{CALL}</longcat_tool_call>"],
    "mimo": QWEN,
    "minimax_m2": [f"Sure.<minimax:tool_call>{INVOKE}{INVOKE}</minimax:tool_call>"],
    "minicpm5": ['<function name="get_weather"><param name="city">Zürich</param></function>'],
    "mistral": [f"[TOOL_CALLS][{CALL}, {NEXT}]"],
    "olmo3": ['<function_calls>get_weather(city="Zürich", days=3)\nget_weather(city="Oslo")</function_calls>'],
    "poolside_v1": [f"Sure.<tool_call>{GLM}</tool_call>"],
    "pythonic": [PYTHONIC],
    "qwen3_coder": QWEN,
    "qwen3_json": HERMES,
    "qwen3_xml": QWEN,
    "seed_oss": [f"<seed:tool_call>\n{XML}\n</seed:tool_call>"],
    "step3": [f"Sure.<｜tool_calls_begin｜>{STEP3}{STEP3}<｜tool_calls_end｜>"],
    "step3p5": ["</think>" + QWEN[0]],
    "xlam": [f"[{CALL}, {NEXT}]", f"Sure.</think>[{CALL}, {NEXT}]"],
}
"""What a model would write whose calls the parser reads."""
UNREAD = {
    "phi4_mini_json": [f"functools[{CALL}]"],
}
"""The same, for parsers that read no calls out of it when it is streamed."""
THOUGHTS = [
    "Let me see: 1 < 2.\n</think>\n\nIt is sunny in Zürich.",
    "<think>\nLet me see: 1 < 2.\n</think>\n\nIt is sunny in Zürich.",
    "Here is my thought process: 1 < 2.\nHere is my response: It is sunny in Zürich.",
    "It is sunny in Zürich.",
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
MARKER = re.compile(r'<[^\s<>"*?()\\+]+>|<[^\s<>]*<[^\s<>]*>\[|\[/?[A-Z_]+\]|<\|"\|>|Ġ?</?|think|>')


def markers(module: str) -> set[str]:
    """What looks like a marker among the texts in a module's source."""
    if not module.startswith("vllm."):
        return set()
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and MARKER.fullmatch(value)}


@functools.cache
def tokenizer() -> Any:
    """The demonstration model's, with every marker of every parser as a token."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(str(DEMO_MODEL))
    for kind, name in PARSERS:
        if name not in NEEDS:
            parser_class(kind, name)
    modules = [name for name in sys.modules if name.startswith(("vllm.tool_parsers", "vllm.reasoning", "vllm.parser"))]
    made.add_tokens(sorted(set().union(*map(markers, modules))))
    return made


def parser_class(kind: str, name: str) -> Any:
    """As vLLM's serving layer puts it together."""
    tool, reasoning = (name, None) if kind == "tool" else (None, name)
    return ParserManager.get_parser(tool_parser_name=tool, reasoning_parser_name=reasoning, enable_auto_tools=True)


def encodings(text: str) -> list[list[int]]:
    """The text's tokens and the end of the turn; with its markers as tokens of their own, and as any other text."""
    plain = [part for piece in re.split(r"(?<=[<>|])", text) for part in tokenizer().encode(piece)]
    end = tokenizer().eos_token_id
    return [[*tokenizer().encode(text), end], [*plain, end]]


def texts(kind: str, name: str) -> list[str]:
    """What the parser is to read: its model's answers, as far as they are known, and texts made of its markers."""
    parser = parser_class(kind, name)(tokenizer())
    inner = parser.tool_parser or parser.reasoning_parser
    engine = getattr(inner, "_parser_engine", None)
    classes = [*type(inner).__mro__, *type(engine).__mro__]
    own = sorted(set().union(*(markers(found.__module__) for found in classes)))
    chance = random.Random(name)
    pieces = [*own, *own, CALL, "{", "}", '"city": "Oslo"', "get_weather", "\n", " ", "Zürich", "text", "["]
    soups = ["".join(chance.choices(pieces, k=14)) for _ in range(2)]
    return [*((CALLS | UNREAD).get(name, HERMES) if kind == "tool" else THOUGHTS), *soups]


async def read(kind: str, name: str, ids: list[int], outputs: Sequence[Any], *, split: bool = True) -> dict[str, Any]:
    """What a client has in the end, if the parser gets these outputs; `split`: as the worker hands them on."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    request = ChatCompletionRequest(**body, **({"tools": [TOOL], "tool_choice": "auto"} if kind == "tool" else {}))
    parser = parser_class(kind, name)(tokenizer(), request.tools)
    replay = Replay(tokenizer(), outputs)
    current_meter.set(JobMeter(parsed=split))
    params = SamplingParams(max_tokens=len(ids), skip_special_tokens=False, output_kind=RequestOutputKind.DELTA)
    content, reasoning, calls = "", "", dict[int, list[Any]]()
    async for output in MeteredEngine(replay, replay.detokenizer).generate(tokenizer().encode("Hi"), params):
        for choice in output.outputs:
            delta = parser.parse_delta(
                choice.text,
                list(choice.token_ids),
                request,
                output.prompt_token_ids,
                finished=choice.finish_reason is not None,
            )
            if delta is None:
                continue
            content += delta.content or ""
            reasoning += delta.reasoning or ""
            for call in delta.tool_calls or ():
                found = calls.setdefault(call.index, [0, "", ""])
                found[0] += call.id is not None
                found[1] += (call.function and call.function.name) or ""
                found[2] += (call.function and call.function.arguments) or ""
    return {"content": content, "reasoning": reasoning, "calls": calls}


async def outcome(*args: Any, **named: Any) -> Any:
    """What is read, or the kind of the parser's failure at a text that its model would not write."""
    try:
        return await read(*args, **named)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not depend on the split
        return type(error)


@pytest.mark.parametrize(("kind", "name"), PARSERS)
async def test_a_parser_reads_the_same_however_its_tokens_were_merged(kind: str, name: str) -> None:
    if name in NEEDS:
        with pytest.raises(Exception, match=NEEDS[name]):
            parser_class(kind, name)(tokenizer())
        return
    for text in texts(kind, name):
        for ids in encodings(text):
            expected = await outcome(kind, name, ids, one_by_one(ids), split=False)
            for outputs in splits(ids, seed=len(text)):
                assert await outcome(kind, name, ids, outputs) == expected, (text, outputs)


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_the_answers_that_are_written_down_hold_calls(name: str) -> None:
    for text in CALLS[name]:
        ids = encodings(text)[0]
        found = await read("tool", name, ids, one_by_one(ids))
        assert found["calls"], (text, found)
        assert {call[1] for call in found["calls"].values()} == {"get_weather"}
        assert "Zürich" in found["calls"][0][2]


@pytest.mark.parametrize("name", ["xlam", "step3", "deepseek_v31"])
async def test_merged_deltas_are_misread(name: str) -> None:
    """Else the tests above would prove nothing."""
    (*_, text) = CALLS[name]
    ids = encodings(text)[0]
    expected = await outcome("tool", name, ids, one_by_one(ids), split=False)
    found = [await outcome("tool", name, ids, outputs, split=False) for outputs in splits(ids, seed=1)]
    assert any(other != expected for other in found)
