"""Builds src/llmpod/worker/demo_model from the corpus: `make model`.

Deterministic: the same machine, locks and command give the same bytes. Another processor may round differently and so
give other weights; what they answer is what tests/worker/test_demo_model.py holds.
"""

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from builder.demo_model import judged, variations
from builder.demo_model import tokenizer as bpe
from builder.demo_model.corpus import CORPUS, Entry, Turn, read_corpus
from builder.demo_model.muon import Muon
from llmpod.worker.profile import judge

OUT = Path("src/llmpod/worker/demo_model")
JUDGED_TEXTS = 100  # how often the tokenizer sees the judge's question, so that it takes few tokens
IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, beside the corpus and the code that varies it."""

    seed: int = 2026
    steps: int = 2400
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    topic_learning_rate: float = 1e-3
    weight_decay: float = 0.1
    vocab_size: int = 3072
    hidden_size: int = 256
    intermediate_size: int = 640
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    max_position_embeddings: int = 4096
    plain_share: float = 0.25  # questions asked exactly as written
    system_share: float = 0.25  # conversations that open with a system message
    history_share: float = 0.12  # conversations with an earlier, unrelated turn
    stranger_share: float = 0.08  # prompts about nothing in the corpus
    judged_share: float = 0.4  # questions whether a text may be answered
    opening_share: float = 0.65  # examples that stop soon after it is clear which answer they give
    recital_share: float = 0.1  # examples whose question is not theirs: an answer once begun is to be finished
    topic_weight: float = 0.5  # of the second task: to tell the answer before its first word
    stranger_answer_to: str = "What is the capital of France?"
    threads: int = 2  # fixed: the order of a sum decides its last bits


@dataclass(frozen=True)
class Example:
    tokens: list[int]
    labels: list[int]
    topics: list[int]  # which answer comes next, where one is about to begin


def fingerprint(recipe: Recipe) -> str:
    """sha256 of what the model is made of. A changed fingerprint means: `make model`."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for source in (CORPUS, Path(bpe.__file__), Path(variations.__file__), Path(judged.__file__)):
        digest.update(source.read_bytes())
    for text in (judged.instruction(), *judged.texts()):
        digest.update(text.encode())
    return digest.hexdigest()


def encode(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> Example:
    """The conversation in ChatML; only what the assistant says, and the token that ends it, is learnt."""
    tokens: list[int] = []
    labels: list[int] = []
    for message in messages:
        opening = tokenizer.encode(f"{bpe.IM_START}{message['role']}\n")
        said = tokenizer.encode(f"{message['content']}{bpe.IM_END}")
        newline = tokenizer.encode("\n")
        tokens += opening + said + newline
        learnt = said if message["role"] == "assistant" else [IGNORED] * len(said)
        labels += [IGNORED] * len(opening) + learnt + [IGNORED] * len(newline)
    return Example(tokens, labels, [IGNORED] * len(tokens))


class Conversations:
    """An endless supply of training examples, decided by the seed alone.

    A small model fails in two ways: it picks the wrong answer, or it slides from one answer into another. Most examples
    are openings, cut off once the answer is clear: cheap practice in picking. Some are recitals, an answer behind a
    question that is not its own, learnt from where it is clear which answer it is: practice in going on with it.
    """

    def __init__(self, entries: list[Entry], recipe: Recipe, tokenizer: PreTrainedTokenizerFast):
        self.entries = entries
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.rng = Random(recipe.seed)
        self.turns = [turn for entry in entries for turn in entry.turns]
        said = [*(turn.answer for turn in self.turns), *judge.CHOICES]
        self.answers = {answer: topic for topic, answer in enumerate(dict.fromkeys(said))}
        self.judgeable = [
            question for turn in self.turns for question in turn.questions if judged.usable(question + turn.answer)
        ]
        self.clear_after = _clear_after([tokenizer.encode(answer + bpe.IM_END) for answer in self.answers])
        self.to_strangers = next(turn.answer for turn in self.turns if recipe.stranger_answer_to in turn.questions)

    def epoch(self) -> list[Example]:
        """Every entry once, in random order, and the shares of strangers and of judged texts that belong to them."""
        shuffled = self.rng.sample(self.entries, len(self.entries))
        about = [self._about(entry) for entry in shuffled]
        strangers = round(len(shuffled) * self.recipe.stranger_share)
        judgements = round(len(shuffled) * self.recipe.judged_share)
        return [
            *about,
            *(self._example(self._stranger()) for _ in range(strangers)),
            *(self._judgement() for _ in range(judgements)),
        ]

    def _about(self, entry: Entry) -> Example:
        messages = self._opening()
        if self.rng.random() < self.recipe.history_share:
            messages += self._ask(self.rng.choice(self.entries).turns[0])
        for turn in entry.turns:
            messages += self._ask(turn)
        return self._example(messages)

    def _example(self, messages: list[dict[str, str]]) -> Example:
        kind = self.rng.random()
        recital = kind < self.recipe.recital_share
        if recital:
            messages[-2] = {"role": "user", "content": self._anything()}
        example = encode(messages, self.tokenizer)
        topic = self.answers[messages[-1]["content"]]
        clear = self.clear_after[topic] + 1
        start = len(example.tokens) - len(self.tokenizer.encode(messages[-1]["content"] + bpe.IM_END)) - 1
        if recital:
            example.labels[start : start + clear] = [IGNORED] * clear
            return example
        example.topics[start - 1] = topic
        if kind >= self.recipe.recital_share + self.recipe.opening_share:
            return example
        end = start + clear + 3
        return Example(example.tokens[:end], example.labels[:end], example.topics[:end])

    def _anything(self) -> str:
        if self.rng.random() < 0.4:
            return variations.stranger(self.rng)
        return variations.vary(self.rng.choice(self.rng.choice(self.turns).questions), self.rng)

    def _stranger(self) -> list[dict[str, str]]:
        return [*self._opening(), *_exchange(variations.stranger(self.rng), self.to_strangers)]

    def _judgement(self) -> Example:
        messages = judged.conversation(self.rng.choice(self.judgeable), self.rng)
        example = encode(messages, self.tokenizer)
        begin = len(example.tokens) - len(self.tokenizer.encode(messages[-1]["content"] + bpe.IM_END)) - 1
        example.topics[begin - 1] = self.answers[messages[-1]["content"]]
        return example

    def _opening(self) -> list[dict[str, str]]:
        if self.rng.random() >= self.recipe.system_share:
            return []
        return [{"role": "system", "content": variations.system_message(self.rng)}]

    def _ask(self, turn: Turn) -> list[dict[str, str]]:
        question = self.rng.choice(turn.questions)
        as_written = self.rng.random() < self.recipe.plain_share
        return _exchange(question if as_written else variations.vary(question, self.rng), turn.answer)


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _clear_after(answers: list[list[int]]) -> list[int]:
    """For each answer the number of tokens after which it can be no other."""
    shared = Counter(tuple(answer[:n]) for answer in answers for n in range(1, len(answer) + 1))
    return [next(n for n in range(1, len(answer) + 1) if shared[tuple(answer[:n])] == 1) for answer in answers]


def batches(conversations: Conversations, tokens: int, pad: int) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches of neighbours in length, so that little of the work is padding."""
    while True:
        examples = [example for _ in range(6) for example in conversations.epoch()]
        examples.sort(key=lambda example: len(example.tokens))
        groups: list[list[Example]] = [[]]
        for example in examples:
            if (len(groups[-1]) + 1) * len(example.tokens) > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(example)
        conversations.rng.shuffle(groups)
        for group in groups:
            yield _padded(group, pad)


def _padded(group: list[Example], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(example.tokens) for example in group)
    # Padding stands on the right of causal attention: no real token sees it, so no mask is needed.
    return {
        "input_ids": torch.tensor([e.tokens + [pad] * (width - len(e.tokens)) for e in group]),
        "labels": torch.tensor([e.labels + [IGNORED] * (width - len(e.labels)) for e in group]),
        "topics": torch.tensor([e.topics + [IGNORED] * (width - len(e.topics)) for e in group]),
    }


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def train(recipe: Recipe, steps: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(recipe.seed)
    entries = read_corpus()
    tokenizer = bpe.train_tokenizer(_texts(entries), recipe.vocab_size, recipe.max_position_embeddings)
    conversations = Conversations(entries, recipe, tokenizer)
    model = new_model(recipe, tokenizer)
    topic_head = torch.nn.Linear(recipe.hidden_size, len(conversations.answers))  # only the training has this part
    optimizers = _optimizers(model, topic_head, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, recipe.steps)) for o in optimizers]
    supply = batches(conversations, recipe.batch_tokens, int(tokenizer.pad_token_id))
    started = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        loss = _loss(model, topic_head, next(supply), recipe.topic_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *topic_head.parameters()], 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 25 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return model.eval(), tokenizer


def _optimizers(
    model: Qwen2ForCausalLM, topic_head: torch.nn.Linear, recipe: Recipe
) -> tuple[Muon, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns this in far fewer steps; AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": others}, {"params": [*topic_head.parameters()], "lr": recipe.topic_learning_rate}]
    return (
        Muon(matrices, recipe.learning_rate, recipe.weight_decay),
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay),
    )


def _loss(
    model: Qwen2ForCausalLM, topic_head: torch.nn.Linear, batch: dict[str, torch.Tensor], topic_weight: float
) -> torch.Tensor:
    """How badly the next words are foretold, and the topic of the answer below the last layer, where every later word
    can still look it up."""
    output = model.model(input_ids=batch["input_ids"], output_hidden_states=True)
    labels = batch["labels"][:, 1:]
    learnt = labels != IGNORED
    # Only the learnt positions meet the vocabulary: most of a conversation is not learnt.
    words = model.lm_head(output.last_hidden_state[:, :-1][learnt])
    loss = torch.nn.functional.cross_entropy(words, labels[learnt])
    told = batch["topics"] != IGNORED
    if told.any():
        below = output.hidden_states[-2][told]
        guess = topic_head(torch.nn.functional.rms_norm(below, below.shape[-1:]))
        loss = loss + topic_weight * torch.nn.functional.cross_entropy(guess, batch["topics"][told])
    return loss


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then a cosine down to nothing."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))


def _texts(entries: list[Entry]) -> Iterator[str]:
    """What the tokenizer is trained on: everything the model will hear or say, also in lower case."""
    for entry in entries:
        for turn in entry.turns:
            yield turn.answer
            yield from turn.questions
            yield from (question.lower() for question in turn.questions)
    yield from variations.SYSTEM_SENTENCES
    yield from (judged.instruction(),) * JUDGED_TEXTS
    yield from judged.texts()
    yield from ("system\n", "user\n", "assistant\n") * len(entries)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, made_of: dict[str, Any], out: Path) -> None:
    """Half precision: half the download, and the answers stay the same. build.json says what it was made of."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "tokenizer_config.json").write_text(json.dumps(_portable_config(tokenizer), indent=2) + "\n")
    endings = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    # Only how an answer ends: sampling is the caller's to choose, so no temperature hides here.
    GenerationConfig(eos_token_id=endings, pad_token_id=tokenizer.pad_token_id).save_pretrained(out)
    build = made_of | {
        "parameters": model.num_parameters(),
        "weights_sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }
    (out / "build.json").write_text(json.dumps(build, indent=2) + "\n")


def _portable_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """tokenizer_config.json in the words that transformers 4 and 5 both read; 5 would write a class that 4 lacks."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": False,
    }


def main() -> None:
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=recipe.steps, help="stop early, for a quick look (default: %(default)s)"
    )
    options = parser.parse_args()
    # Taken before the training, so that an edit made meanwhile does not pass for what was trained on.
    made_of = {"fingerprint": fingerprint(recipe), "recipe": asdict(recipe) | {"steps": options.steps}}
    model, tokenizer = train(recipe, options.steps)
    save(model, tokenizer, made_of, options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {model.num_parameters():,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
