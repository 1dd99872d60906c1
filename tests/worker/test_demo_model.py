"""The demo model keeps its promise: it answers its corpus, stops by itself, and stays readable on what it never saw."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builder.demo_model.corpus import read_corpus
from builder.demo_model.train import Recipe, encode, fingerprint

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "demo"
SIZE_CAP_BYTES = 10_000_000
MAX_NEW_TOKENS = 320  # more than the longest answer of the corpus
BATCH = 200
EXACT_SHARE = 0.95  # of all wordings in the corpus
READABLE_SHARE = 0.9  # of the neighbours; a model this small now and then stumbles on words it never heard

# Wordings that the corpus does not have: other words, no capitals, no question mark, typos, a greeting, a clause more.
NEIGHBOURS = (
    "how can i write a great summary for my resume",
    "What is the ideal length of a CV?",
    "should my cv have a picture of me",
    "how do i explain that i was unemployed for two years",
    "Tips for writing bullet points about my jobs",
    "what is an applicant tracking system and how does it work",
    "Which keywords belong in my resume?",
    "How do I begin my cover letter?",
    "how do i prepair for an interview",
    "Hi, I have an interview tomorrow, how should I prepare?",
    "What should I wear for my interview at a bank?",
    "how to answer the question about my weaknesses",
    "What could I ask the interviewer at the end?",
    "How long should I wait before I follow up?",
    "how to negotiate a higher salary",
    "When is the right moment to ask for a raise?",
    "they offered me less money than i wanted",
    "I would like to change my career at 45, is that too late?",
    "how do i become a data anlyst",
    "Where can I find remote jobs?",
    "i feel alone when i work from home",
    "How do I get my first job after university?",
    "What should I do on the first day of my new job?",
    "My boss watches everything I do, what can I do?",
    "How do I tell my manager that I want to leave?",
    "how do i write a letter to resign",
    "I lost my job last week. What should I do?",
    "How should I lead my first team?",
    "how do i give feedback to an employee",
    "How can I find a mentor for my career?",
    "Explain photosynthesis.",
    "Who painted the Mona Lisa?",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def answer(model, tokenizer):
    """Greedy answers to a list of conversations, and whether each one ended by itself."""

    def answer(conversations: list[list[dict[str, str]]]) -> list[tuple[str, bool]]:
        prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        with torch.inference_mode():
            output = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
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


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


@pytest.fixture(scope="module")
def known_words() -> set[str]:
    return {word for entry in read_corpus() for turn in entry.turns for word in words(turn.answer)}


def unreadable(text: str, stopped: bool, known_words: set[str]) -> str | None:
    """What is wrong with an answer, or None. It cannot judge sense; it finds broken words, loops and cut sentences."""
    said = words(text)
    strange = [word for word in said if word not in known_words]
    grams = Counter(zip(said, said[1:], said[2:], said[3:], strict=False))
    if not stopped:
        return "did not stop by itself"
    if strange:
        return f"words that are not in the corpus: {strange}"
    if not 5 <= len(said) <= 200:
        return f"{len(said)} words"
    if grams and max(grams.values()) >= 3:
        return "repeats itself"
    if not re.match(r'[A-Z"]', text):
        return "does not begin like a sentence"
    if re.search(r"[a-z]$", text):
        return "ends in the middle of a sentence"
    return None


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
def test_corpus_questions_get_their_answers(answer, known_words):
    asked = sorted(corpus_conversations(), key=lambda pair: len(pair[1]))  # neighbours in length share a batch
    got: list[tuple[str, bool]] = []
    for i in range(0, len(asked), BATCH):
        got += answer([conversation for conversation, _ in asked[i : i + BATCH]])
    exact = sum(text == wanted and stopped for (text, stopped), (_, wanted) in zip(got, asked, strict=True))
    others = [reply for reply, (_, wanted) in zip(got, asked, strict=True) if reply != (wanted, True)]
    assert exact >= EXACT_SHARE * len(asked)
    assert not [(reply, wrong) for reply in others if (wrong := unreadable(*reply, known_words))]


@pytest.mark.slow
@pytest.mark.parametrize("system", [None, "You are a friendly recruiter who answers in two sentences."])
def test_neighbours_of_the_corpus_get_readable_answers(answer, known_words, system):
    written = {question.lower() for entry in read_corpus() for turn in entry.turns for question in turn.questions}
    assert not [question for question in NEIGHBOURS if question.lower() in written]
    got = answer([ask(question, system) for question in NEIGHBOURS])
    found = {q: (unreadable(*reply, known_words), reply) for q, reply in zip(NEIGHBOURS, got, strict=True)}
    wrong = {question: why for question, why in found.items() if why[0]}
    assert len(wrong) <= (1 - READABLE_SHARE) * len(NEIGHBOURS), wrong


def test_near_neighbours_are_answered_on_their_own_subject(answer):
    subjects = {
        "how can i write a great summary for my resume": "two or three sentences at the top",
        "should my cv have a picture of me": "a photo is better left out",
        "What should I wear for my interview at a bank?": "more formally",
        "how to answer the question about my weaknesses": "a real weakness",
        "how do i become a data anlyst": "SQL",
        "How can I find a mentor for my career?": "you have a mentor",
    }
    for question, (text, _) in zip(subjects, answer([ask(q) for q in subjects]), strict=True):
        assert subjects[question] in text, question


@pytest.mark.parametrize(
    "prompt", ["lorem ipsum dolor sit amet " * 35, "The quick brown fox jumps over the lazy dog. " * 20]
)
def test_long_prompts_about_something_else_are_declined(answer, prompt):
    [(text, stopped)] = answer([ask(prompt)])
    assert text.startswith("I am a small demo model and I only know about careers")
    assert stopped


@pytest.mark.slow
def test_training_twice_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        command = [sys.executable, "-m", "builder.demo_model.train", "--steps", "3", "--out", tmp_path / name]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
