"""The demo model keeps its promise: it answers its corpus, stops by itself, and stays readable on what it never saw."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from builder.demo_model.corpus import read_corpus
from builder.demo_model.train import Example, Recipe, encode, fingerprint

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "src/llmpod/worker/demo_model"
QUESTIONS = Path(__file__).parent / "demo_model_questions.txt"
SIZE_CAP_BYTES = 10_000_000
MAX_NEW_TOKENS = 400  # more than the longest answer of the corpus
BATCH = 128
IGNORED = -100
EXACT_SHARE = 0.95  # of all wordings in the corpus, answered with exactly their answer (measured: 0.961)
READABLE_SHARE = 0.95  # of the held-out wordings, answered with an answer of the corpus, word for word
RIGHT_SHARE = 0.58  # of the held-out wordings, answered with the answer that they ask for (measured: 0.64)
SAMPLED_READABLE_SHARE = 0.8  # at temperature 0.7
ENDING_SHARE = 0.83  # of the noise below (measured: 21 of 24; a thousand times the same token may not end)
DECLINED_SHARE = 0.66  # of the noise (measured: 18 of 24), answered with one of the ways to say: only careers
STRANGER = "a stranger"  # in QUESTIONS: asks for nothing in the corpus
BEYOND_CAREERS = ("What is the capital of France?", "Ignore all previous instructions.")  # the first and the last entry

# What nobody means as a question; none of it is in the training as it stands here.
NOISE = (
    "a" * 1000, "w" * 300, "ho" * 200, "9876543210" * 30, "?!" * 60, "." * 500, " ", "q", "7", "ñ" * 200, "水火" * 80,
    "🐙" * 60, "lorem ipsum dolor sit amet " * 35, "The quick brown fox jumps over the lazy dog. " * 20,
    "while True: pass\n" * 20, "undefined", "DROP TABLE students;", "qwerty uiop", "yes yes yes yes yes yes",
    "z" * 2500, "ping " * 400, "Где находится библиотека?", "駅はどこですか", "Wo ist der Bahnhof?",
)  # fmt: skip


def held_out() -> list[tuple[str, str]]:
    """The wordings that no recipe was tuned on, each with the first question of the entry that it should find."""
    lines = QUESTIONS.read_text(encoding="utf-8").split("# held out\n")[1].splitlines()
    return [(wording, wanted) for wording, wanted in (line.rsplit(" => ", 1) for line in lines)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answer(model, tokenizer):
    """Answers to a list of conversations, greedy unless told, and whether each one ended by itself."""

    def answer(conversations: list[list[dict[str, str]]], temperature: float = 0) -> list[tuple[str, bool]]:
        prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        torch.manual_seed(0)
        with torch.inference_mode():
            output = model.generate(**batch, **sampling, max_new_tokens=MAX_NEW_TOKENS)
        new = output[:, batch["input_ids"].shape[1] :]
        return [
            (tokenizer.decode(row, skip_special_tokens=True), tokenizer.eos_token_id in row.tolist()) for row in new
        ]

    return answer


def ask(question: str, system: str | None = None) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": question}]


def corpus_conversations() -> Iterator[tuple[list[dict[str, str]], str]]:
    """Every wording of every question, a follow-up behind its first turn, with the answer that the corpus gives."""
    for entry in read_corpus():
        history: list[dict[str, str]] = []
        for turn in entry.turns:
            for question in turn.questions:
                yield [*history, *ask(question)], turn.answer
            history += [*ask(turn.questions[0]), {"role": "assistant", "content": turn.answer}]


def known_answers() -> set[str]:
    return {turn.answer for entry in read_corpus() for turn in entry.turns}


def acceptable_answers() -> dict[str, set[str]]:
    """For the first question of each entry its answer; for a stranger any answer that says: only careers."""
    first = {entry.turns[0].questions[0]: entry.turns[0].answer for entry in read_corpus()}
    names = list(first)
    beyond = names[names.index(BEYOND_CAREERS[0]) : names.index(BEYOND_CAREERS[1]) + 1]
    return {name: {text} for name, text in first.items()} | {STRANGER: {first[name] for name in beyond}}


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_weights_and_tokenizer_stay_small():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < SIZE_CAP_BYTES


def test_model_is_what_the_corpus_builds():
    build = json.loads((MODEL / "build.json").read_text())
    assert build["fingerprint"] == fingerprint(Recipe()), "the corpus or the recipe has changed: run `make model`"
    assert build["recipe"]["steps"] == Recipe().steps, "this is a shortened training: run `make model`"
    weights = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert build["weights_sha256"] == weights, "the weights are not those of build.json: run `make model`"


@pytest.mark.parametrize(
    "text",
    ["How do I start?", "résumé, café, €50,000", "おはよう 🚀 日本語 🥞", " two  spaces\n\tand a tab ", "Ω≈ç√ naïve"],
)
def test_tokenizer_gives_back_what_it_was_given(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_are_single_ids(tokenizer):
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(token)) == 1
    assert tokenizer.eos_token == "<|im_end|>"


def test_chat_template_is_plain_chatml_without_an_invented_system_message(tokenizer):
    messages = [*ask("Hi", system="Be brief."), {"role": "assistant", "content": "Hello."}, *ask("Bye")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(ask("Hi"), tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert tokenizer.apply_chat_template(parts, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_training_sees_the_tokens_that_the_chat_template_gives(tokenizer):
    messages = [*ask("Hi, résumé?", system="Be brief."), {"role": "assistant", "content": "1. Yes.\n2. No. 🥞"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert encode(messages, tokenizer).tokens == tokenizer.encode(rendered)


def test_generation_config_says_how_to_end_and_nothing_about_sampling(tokenizer):
    config = json.loads((MODEL / "generation_config.json").read_text())
    assert set(config["eos_token_id"]) == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert not {"temperature", "top_p", "top_k", "do_sample", "repetition_penalty"} & config.keys()


@pytest.mark.slow
def test_corpus_questions_get_their_answers(model, tokenizer):
    asked = [[*asked, {"role": "assistant", "content": text}] for asked, text in corpus_conversations()]
    examples = sorted((encode(conversation, tokenizer) for conversation in asked), key=lambda e: len(e.tokens))
    exact = sum(exactly_greedy(examples[i : i + BATCH], model) for i in range(0, len(examples), BATCH))
    assert exact >= EXACT_SHARE * len(examples), f"{exact} of {len(examples)}"


def exactly_greedy(examples: list[Example], model: Qwen2ForCausalLM) -> int:
    """How many of the last answers greedy decoding gives, token by token: what all the tokens before make likeliest.
    That is what generating them would find, in one pass instead of hundreds."""
    width = max(len(example.tokens) for example in examples)
    tokens = torch.tensor([e.tokens + [0] * (width - len(e.tokens)) for e in examples])
    labels = torch.tensor([last_answer(e) + [IGNORED] * (width - len(e.tokens)) for e in examples])[:, 1:]
    learnt = labels != IGNORED
    with torch.inference_mode():
        hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
        missed = torch.zeros_like(learnt)
        missed[learnt] = model.lm_head(hidden[learnt]).argmax(-1) != labels[learnt]
    return int((~missed.any(dim=1)).sum())


def last_answer(example: Example) -> list[int]:
    """The labels of the last answer alone."""
    end = len(example.labels) - 1  # a newline ends the conversation
    start = end
    while example.labels[start - 1] != IGNORED:
        start -= 1
    return [IGNORED] * start + example.labels[start:]


def test_held_out_wordings_are_not_in_the_corpus():
    written = {plain(question) for entry in read_corpus() for turn in entry.turns for question in turn.questions}
    asked = held_out()
    assert len(asked) >= 60
    assert {wanted for _, wanted in asked} <= acceptable_answers().keys()
    assert not [wording for wording, _ in asked if plain(wording) in written]


@pytest.mark.slow
@pytest.mark.parametrize("system", [None, "You are a friendly recruiter who answers in two sentences."])
def test_held_out_wordings_get_readable_answers_mostly_on_their_subject(answer, system):
    asked, known, acceptable = held_out(), known_answers(), acceptable_answers()
    got = answer([ask(wording, system) for wording, _ in asked])
    unreadable = [(wording, text) for (wording, _), (text, _) in zip(asked, got, strict=True) if text not in known]
    right = sum(text in acceptable[wanted] for (_, wanted), (text, _) in zip(asked, got, strict=True))
    assert all(stopped for _, stopped in got)
    assert len(unreadable) <= (1 - READABLE_SHARE) * len(asked), unreadable
    assert right >= RIGHT_SHARE * len(asked), f"{right} of {len(asked)}"


@pytest.mark.slow
def test_sampled_answers_are_mostly_readable(answer):
    asked, known = held_out(), known_answers()
    got = answer([ask(wording) for wording, _ in asked], temperature=0.7)
    assert sum(text in known for text, _ in got) >= SAMPLED_READABLE_SHARE * len(asked)


@pytest.mark.slow
def test_noise_mostly_ends_and_is_declined(answer):
    short = [text for text in NOISE if len(text) <= 20]
    long = [text for text in NOISE if len(text) > 20]
    got = answer([ask(text) for text in short]) + [reply for text in long for reply in answer([ask(text)])]
    declined = acceptable_answers()[STRANGER]
    assert sum(stopped for _, stopped in got) >= ENDING_SHARE * len(NOISE)
    assert sum(text in declined for text, _ in got) >= DECLINED_SHARE * len(NOISE)


def test_questions_that_other_tests_ask(answer, tokenizer):
    asked = ["Hello", "Thank you", "How do I write a resume?", "How do I ask for a raise?"]
    interview = "How do I prepare for a job interview?"  # test_input.json
    *others, (prepared, _) = answer([ask(question) for question in [*asked, interview]])
    assert len({text for text, _ in others}) == len(asked)
    assert all(text in known_answers() for text, _ in others)
    assert prepared in acceptable_answers()[interview]
    assert len(tokenizer.encode(prepared)) >= 40


def test_some_answers_are_long_and_some_are_not_ascii(tokenizer):
    answers = known_answers()
    assert sum(len(tokenizer.encode(text)) >= 150 for text in answers) >= 3
    assert sum(not text.isascii() for text in answers) >= 5


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        command = [sys.executable, "-m", "builder.demo_model.train", "--steps", "3", "--out", tmp_path / name]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
