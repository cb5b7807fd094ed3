"""How a language model goes on with passages of documents: what it learns from in sequence-level distillation.

Kim and Rush 2016 (arXiv:1606.07947): a student learns the teacher's sequences in place of the data's. Where the model
is its own teacher, it is self-distillation. Each line of the file is a document: a passage of the data, read as if a
document began there, and what the model makes of it. The file grows by whole batches and survives a kill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.corpus.selfwrite import Drawing, write_batches
from speech_mtp.decoding.text import start
from speech_mtp.files import check_inputs_of
from speech_mtp.lm.document_ids import Encoder
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Sampling


class ContinuationConfig(Drawing):
    """``texts`` passages of ``prompt_tokens``, each from a place of the train split that is drawn anew; characters that
    begin before it or end behind it are left out."""

    texts: int = Field(default=2000, ge=1)
    prompt_tokens: int = Field(default=128, ge=1)
    batch: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=384, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)


def write_continuations(lm: TextLM, store: DocumentStore, path: Path, config: ContinuationConfig) -> int:
    """Go on with passages into ``path``, by plain decoding: lines of ``index``, ``prompt``, ``text``, which holds both,
    and whether it ``ended`` by itself. Returns how many are new. Text i depends on the seed, on i and, by rounding, on
    its batch alone.

    Raises ValueError if the file there was written by another model or with other settings, or where passages do not
    fit into the model.
    """
    drawn = config.model_dump(exclude={"texts"})
    written = path.exists() and path.stat().st_size > 0
    check_inputs_of(path.with_suffix(".json"), {"model": lm.fingerprint, **drawn}, written)
    encoder = Encoder(lm.tokenizer)
    prompts = passages(store, lm.tokenizer, config)

    def answer(batch: list[str], first: int) -> list[dict[str, Any]]:
        rows = [encoder.beginning(text) for text in batch]
        sampling = Sampling(temperature=config.temperature, top_k=config.top_k)
        seeds = torch.arange(first, first + len(batch)) + config.seed
        said = start(lm, rows, sampling, None, config.max_new_tokens, seeds=seeds).complete()
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        # With its passage: some tokenizers decode the first token otherwise than the same in the middle.
        return [
            {"text": lm.tokenizer.decode(row + new, **plain), "ended": bool(new) and new[-1] in lm.ends}
            for row, new in zip(rows, said, strict=True)
        ]

    return write_batches(path, prompts, config.batch, answer)


def passages(store: DocumentStore, tokenizer: Any, config: ContinuationConfig) -> list[str]:
    """As many passages as ``config`` asks for, from all over the train split, none across two documents."""
    tokens = store.tokens("train")
    starts = np.asarray(store.starts("train"))
    ends = np.append(starts[1:], len(tokens))
    rng = np.random.default_rng(config.seed)
    found = []
    for at in rng.integers(0, len(tokens), config.texts):
        row = int(np.searchsorted(starts, at, side="right")) - 1
        first = max(int(starts[row]) + 1, min(int(at), int(ends[row]) - 1 - config.prompt_tokens))
        last = min(first + config.prompt_tokens, int(ends[row]) - 1)
        found.append(tokenizer.decode(tokens[first:last].tolist(), skip_special_tokens=True).strip("\ufffd"))
    return found
