"""Text that a language model writes itself: prompts -> raw answers, batched, resumable, as JSON lines.

Self-written text is in the model's own style, which is what a voice for that model will have to speak. The raw
answers are kept as they are; :mod:`speech_mtp.corpus.sentences` takes the speakable sentences out of them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from speech_mtp.corpus.coverage import speakable_word
from speech_mtp.corpus.manifest import JsonLines, read_lines
from speech_mtp.corpus.sentences import frequent_words
from speech_mtp.lm.cache import as_keyword, growing_cache
from speech_mtp.lm.chat import opening
from speech_mtp.progress import progress

_MARK = "\u241e"  # stands for the user's words while a chat template is cut open


class Drawing(BaseModel):
    """How tokens are drawn: ``temperature`` 0 takes the best one, ``top_k`` 0 considers them all."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch: int = Field(default=128, ge=1)
    max_new_tokens: int = Field(default=56, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_k: int = Field(default=40, ge=0)
    seed: int = 0


class WriteConfig(Drawing):
    """How much is written and how it is drawn. ``prompts`` is a YAML file of :class:`PromptBook`."""

    prompts: Path
    out: Path
    texts: int = Field(default=20_000, ge=1)
    temperature: float = Field(default=0.8, gt=0)


class PromptBook(BaseModel):
    """Prompt templates. A word template holds ``{a} {b} {c}``, a topic template ``{topic}``.

    ``empty_share`` of the prompts are an empty user turn: an instruct model then invents a user's words.
    ``word_share`` are word templates, the rest topics. Words are drawn from the ``frequent_words`` most frequent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    word_templates: list[str] = Field(min_length=1)
    topic_templates: list[str] = Field(min_length=1)
    topics: list[str] = Field(min_length=1)
    frequent_words: int = Field(default=21_000, ge=3)
    word_share: float = Field(default=0.4, ge=0, le=1)
    empty_share: float = Field(default=0.05, ge=0, le=1)


def read_prompts(path: Path) -> PromptBook:
    """The prompt templates of a YAML file. Raises ``FileNotFoundError`` and ``ValueError``, naming the key at fault."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no prompt file {path}.")
    try:
        return PromptBook.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path} is not a valid prompt file: {' '.join(str(error).split())}") from error


def expand_prompts(book: PromptBook, count: int, seed: int) -> list[str]:
    """``count`` prompts; prompt i is the same whatever the count. Words are used up before one comes again."""
    rng = random.Random(seed)
    words = [word for word in frequent_words(book.frequent_words) if speakable_word(word)]
    deck: list[str] = []
    prompts: list[str] = []
    for _ in range(count):
        kind = rng.random()
        if kind < book.empty_share:
            prompts.append("")
        elif kind < book.empty_share + book.word_share:
            if len(deck) < 3:
                deck = rng.sample(words, len(words))
            a, b, c = deck.pop(), deck.pop(), deck.pop()
            prompts.append(rng.choice(book.word_templates).format(a=a, b=b, c=c))
        else:
            prompts.append(rng.choice(book.topic_templates).format(topic=rng.choice(book.topics)))
    return prompts


def write(model: Any, tokenizer: Any, prompts: Sequence[str], config: WriteConfig) -> int:
    """Answer ``prompts`` into ``config.out`` (lines of ``index``, ``prompt``, ``text``); returns how many were new.

    ``model`` is a Hugging Face causal LM, ``tokenizer`` its tokenizer with a chat template. A file that is there is
    gone on with. The noise of a batch depends on the seed and the batch's first index alone.
    Raises ``ValueError`` if the file there was written from other prompts.
    """

    def texts(batch: list[str], start: int) -> list[dict[str, Any]]:
        rows = [chat_tokens(tokenizer, prompt) for prompt in batch]
        rows = sample_answers(model, tokenizer, rows, config, config.seed + start)
        return [{"text": tokenizer.decode(row, skip_special_tokens=True)} for row in rows]

    return write_batches(config.out, prompts, config.batch, texts)


def write_batches(
    path: Path,
    prompts: Sequence[str],
    size: int,
    answer: Callable[[list[str], int], list[dict[str, Any]]],
    max_time_s: float | None = None,
) -> int:
    """Lines of ``index``, ``prompt`` and what ``answer(batch, index of its first prompt)`` gives for each prompt.

    A file that is there is gone on with; returns how many lines are new. After ``max_time_s`` no batch is begun.
    Raises as :func:`write`.
    """
    begun = time.monotonic()
    with JsonLines(path) as log:
        done = written = answered(path, prompts)
        starts = range(done, len(prompts), size)
        for start in progress(starts, "writing", "batch"):
            if max_time_s is not None and time.monotonic() - begun > max_time_s:
                break
            batch = list(prompts[start : start + size])
            pairs = enumerate(zip(batch, answer(batch, start), strict=True), start=start)
            log.append({"index": index, "prompt": prompt, **entries} for index, (prompt, entries) in pairs)
            written = start + len(batch)
    return written - done


def answered(path: Path, prompts: Sequence[str]) -> int:
    """How many of ``prompts`` the file at ``path`` answers already, 0 without a file. Raises as :func:`write`."""
    done = 0
    if not path.exists():
        return done
    for line in read_lines(path):
        if done >= len(prompts) or line.get("prompt") != prompts[done]:
            raise ValueError(f"{path} was written from other prompts; give another `out` or remove the file.")
        done += 1
    return done


@torch.inference_mode()
def sample_answers(
    model: Any, tokenizer: Any, rows: list[list[int]], drawing: Drawing, seed: int, keep_end: bool = False
) -> list[list[int]]:
    """1. token ids -> left-padded ``[B, L]``, 2. :func:`sample_tokens`: what follows each row."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids, mask = _left_padded(rows, pad)
    inputs = ids.to(model.device), mask.to(model.device)
    return sample_tokens(model, *inputs, drawing, _ends(model, pad), seed, keep_end)


def _ends(model: Any, pad: int) -> set[int]:
    """The tokens that end an answer."""
    named = getattr(model.generation_config, "eos_token_id", None)
    return {pad} | set([named] if isinstance(named, int) else named or [])


def sample_tokens(
    model: Any, ids: Tensor, mask: Tensor, drawing: Drawing, ends: set[int], seed: int, keep_end: bool = False
) -> list[list[int]]:
    """Up to ``max_new_tokens`` tokens after each row of left-padded ``ids, mask [B, L]``.

    The token of ``ends`` that ends a row is left out, unless ``keep_end``. Only the ``top_k`` candidates are drawn
    from, and rows that have ended leave the batch and the cache: on a CPU both count for as much as the model itself.
    """
    noise = torch.Generator(model.device).manual_seed(seed)
    written: list[list[int]] = [[] for _ in ids]
    rows = torch.arange(len(ids), device=ids.device)
    cache = growing_cache(model)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for _ in range(drawing.max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **as_keyword(model, cache),
        )
        logits = out.logits[:, -1]
        if drawing.temperature == 0:
            ids = logits.argmax(-1, keepdim=True)
        else:
            scores, candidates = logits.float().topk(min(drawing.top_k or logits.shape[-1], logits.shape[-1]))
            chosen = torch.multinomial((scores / drawing.temperature).softmax(-1), 1, generator=noise)
            ids = candidates.gather(1, chosen)
        going = torch.ones_like(rows, dtype=torch.bool)
        for at, (row, token) in enumerate(zip(rows.tolist(), ids[:, 0].tolist(), strict=True)):
            going[at] = token not in ends
            if going[at] or keep_end:
                written[row].append(token)
        if not going.all():
            if not going.any():
                break
            cache.batch_select_indices(going.nonzero()[:, 0])
            rows, ids, mask, positions = rows[going], ids[going], mask[going], positions[going]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = positions[:, -1:] + 1
    return written


def chat_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The chat up to where the model goes on: its answer, or for an empty prompt the user's own words."""
    if prompt:
        return opening(tokenizer, [{"role": "user", "content": prompt}])
    text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False).split(_MARK)[0]
    return list(tokenizer.encode(text, add_special_tokens=False))


def _left_padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists -> ids and mask ``[B, L]``."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
