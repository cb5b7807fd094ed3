"""Self-distillation: a language model's own answers, as token ids, to train its heads on.

A head drafts what its trunk will say, so it learns from what the trunk does say. Prompts are given, or invented by the
model from an empty user turn; every answer is kept token by token, its end included, and is never decoded and encoded
again: training sees exactly what was generated. (Texts that were written for speech, :mod:`corpus.selfwrite`, may join:
they were kept as text.) All files grow by whole batches and survive a kill.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from speech_mtp.corpus.manifest import read_lines
from speech_mtp.corpus.selfwrite import Drawing, chat_tokens, sample_answers, write_batches
from speech_mtp.decoding.static_batch import StaticBatch
from speech_mtp.decoding.text import Answer as Turn
from speech_mtp.decoding.text import start as start_text
from speech_mtp.lm.chat import openings
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.plugins import nearest
from speech_mtp.types import RowSampling, Sampling

PROMPTS, ANSWERS, SELFWRITTEN = "prompts.jsonl", "answers.jsonl", "selfwritten.jsonl"


class InventConfig(Drawing):
    """How prompts are invented: ``prompts`` of them are drawn; those that are empty or come twice are left out."""

    prompts: int = Field(default=0, ge=0)
    batch: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)


class AnswerConfig(Drawing):
    """How answers are drawn: greedily, unless there is a temperature; then every ``sample_every``-th batch is drawn and
    the others are greedy. Longer prompts than the maximum are left out. After ``max_time_s`` no batch is begun. With
    ``at_once`` so many prompts of a batch are answered together, and the next takes the place of one that has ended
    (0: the whole batch together; not where a GPU answers thousands at once)."""

    max_prompt_tokens: int = Field(default=256, ge=1)
    batch: int = Field(default=32, ge=1)
    at_once: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=192, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    sample_every: int = Field(default=1, ge=1)
    max_time_s: float | None = Field(default=None, gt=0)

    def sampling(self, start: int) -> Sampling:
        """Of the batch that begins with the prompt ``start``."""
        last_of_a_turn = (start // self.batch + 1) % self.sample_every == 0
        return Sampling(temperature=self.temperature if last_of_a_turn else 0.0, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt (the chat up to the answer) and of the answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def read_prompts(path: Path, field: str) -> list[str]:
    """The texts under ``field`` of a JSON-lines file, in order.

    Raises FileNotFoundError, and ValueError with the number of a line that has no such text.
    """
    prompts = []
    for number, line in enumerate(read_lines(path), start=1):
        prompt = line.get(field)
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path}, line {number} has no text under {field!r}; {nearest(field, line)}.")
        prompts.append(prompt.strip())
    return prompts


def invent_prompts(lm: TextLM, path: Path, config: InventConfig) -> list[str]:
    """Prompts that ``lm``, an instruct model, draws as the words of a user; distinct, in the order of ``path``.

    The file at ``path`` keeps all that was drawn and is gone on with.
    """
    opening = chat_tokens(lm.tokenizer, "")
    many = _many_at_once(lm, config.batch, len(opening), config.max_new_tokens)

    def draw(batch: list[str], start: int) -> list[dict[str, Any]]:
        rows, seed = [opening] * len(batch), config.seed + start
        if many is None:
            said = sample_answers(lm.model, lm.tokenizer, rows, config, seed)
        else:
            said = many.answer(
                rows, _seeded(lm, Sampling(temperature=config.temperature, top_k=config.top_k), rows, seed)
            )
        return [{"text": lm.tokenizer.decode(row, skip_special_tokens=True).strip()} for row in said]

    write_batches(path, [""] * config.prompts, config.batch, draw)
    return [text for text in dict.fromkeys(str(line["text"]) for line in read_lines(path)) if text]


def write_answers(lm: TextLM, prompts: Sequence[str], path: Path, config: AnswerConfig) -> int:
    """Answer ``prompts`` into ``path`` by plain decoding; returns how many answers are new.

    A line has ``index``, ``prompt``, and the token ids ``prompt_ids`` and ``answer_ids``. The tokenizer of ``lm`` needs
    a chat template. An answer depends on the seed and its index, and by rounding on its batch, which is the same when a
    file is gone on with. Prompts of like length side by side save time: on a GPU, where batches are large, they are
    brought into such an order. Raises ValueError if the file there answers other prompts.
    """
    ids = dict(zip(prompts, openings(lm.tokenizer, prompts), strict=True))
    short = [prompt for prompt in prompts if len(ids[prompt]) <= config.max_prompt_tokens]
    many = _many_at_once(lm, config.batch, config.max_prompt_tokens, config.max_new_tokens)
    if many is not None:
        short = like_lengths(short, [len(ids[prompt]) for prompt in short], config.batch, config.seed)

    def answer(batch: list[str], start: int) -> list[dict[str, Any]]:
        rows = [ids[prompt] for prompt in batch]
        sampling = _seeded(lm, config.sampling(start), rows, config.seed + start)
        if many is not None:
            said = many.answer(rows, sampling)
        elif config.at_once:
            said = _in_turn(lm, rows, sampling, config.at_once, config.max_new_tokens)
        else:
            seeds = sampling.seed
            said = start_text(lm, rows, sampling.settings[0], None, config.max_new_tokens, seeds=seeds).complete()
        return [{"prompt_ids": row, "answer_ids": new} for row, new in zip(rows, said, strict=True)]

    return write_batches(path, short, config.batch, answer, config.max_time_s)


def like_lengths(prompts: Sequence[str], lengths: Sequence[int], batch: int, seed: int, window: int = 4) -> list[str]:
    """``prompts`` in a random order, so that any beginning is a fair sample, but with those of like ``lengths`` in a
    batch: ``window`` batches are sorted at a time, and mixed again as wholes."""
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    found: list[str] = []
    for first in range(0, len(order), window * batch):
        nearby = sorted(order[first : first + window * batch], key=lengths.__getitem__)
        batches = [nearby[at : at + batch] for at in range(0, len(nearby), batch)]
        random.Random(seed + first).shuffle(batches)
        found += [prompts[i] for one in batches for i in one]
    return found


def _many_at_once(lm: TextLM, batch: int, prompt: int, answer: int) -> StaticBatch | None:
    """What answers ``batch`` prompts of so many tokens at once on a GPU; elsewhere rows are better off one by one."""
    if lm.device.type != "cuda" or lm.decoder is None:
        return None
    return StaticBatch(lm, batch, prompt, answer)


def _in_turn(
    lm: TextLM, prompts: Sequence[Sequence[int]], sampling: RowSampling, at_once: int, max_new_tokens: int
) -> list[list[int]]:
    """Answers to ``prompts``, each with its settings of ``sampling``; ``at_once`` of them are decoded together, and the
    next takes the place of one that has ended. Prompts are read one by one: together, the short ones would be as long
    as the longest."""
    run = start_text(lm, prompts[:1], sampling.settings[0], None, max_new_tokens, seeds=sampling.seed[:1])
    for prompt in prompts:
        run.check_room(Turn(max_new_tokens), len(prompt))
    said: list[list[int]] = [[] for _ in prompts]
    number = {0: 0}  # of the prompt that a place answers
    waiting = iter(range(1, len(prompts)))
    while True:
        while len(number) < at_once and (one := next(waiting, None)) is not None:
            row = run.opened(sampling.settings[one])
            run.told(row, prompts[one])
            number[run.enter(row, Turn(max_new_tokens), prompts[one])] = one
        if not number:
            return said
        run.advance()
        for b in [b for b in number if run.finish[b] is not None]:
            said[number.pop(b)] = run.tokens[b]
            run.leave(b)
        if number and run.is_sparse:
            number = dict(enumerate(number[b] for b in run.gather()))


def _seeded(lm: TextLM, sampling: Sampling, rows: Sequence[Any], first: int) -> RowSampling:
    """``sampling`` for each of ``rows``, with seeds that count from ``first``."""
    return RowSampling([replace(sampling, seed=first + b) for b in range(len(rows))], lm.device)


def write_selfwritten(tokenizer: Any, sources: Sequence[Path], path: Path, max_new_tokens: int) -> int:
    """Texts that ``corpus.selfwrite`` wrote, as answers to their prompts, in a file as :func:`write_answers` makes.

    A text clearly shorter than ``max_new_tokens``, the most that were written, ended by itself: one that was cut may
    lose a token when it is read again, and no text shall be taught an end that it did not have. Returns how many
    there are.
    """
    end = tokenizer.eos_token_id
    lines = [line for source in sources for line in read_lines(source)]

    def answer(batch: list[str], start: int) -> list[dict[str, Any]]:
        found = []
        for line in lines[start : start + len(batch)]:
            said = tokenizer(str(line["text"]), add_special_tokens=False)["input_ids"]
            ended = [] if len(said) >= max_new_tokens - 1 else [end]
            found.append({"prompt_ids": chat_tokens(tokenizer, str(line["prompt"])), "answer_ids": [*said, *ended]})
        return found

    write_batches(path, [str(line["prompt"]) for line in lines], 256, answer)
    return len(lines)


def read_answers(paths: Sequence[Path]) -> list[Answer]:
    """The distinct answers of files that :func:`write_answers` wrote, in order.

    Raises FileNotFoundError, and ValueError for a file of another kind.
    """
    found: dict[Answer, None] = {}
    for path in paths:
        for number, line in enumerate(read_lines(path), start=1):
            try:
                found[Answer(tuple(map(int, line["prompt_ids"])), tuple(map(int, line["answer_ids"])))] = None
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {number} is no answer; write the file with the stage answers."
                ) from error
    return list(found)
