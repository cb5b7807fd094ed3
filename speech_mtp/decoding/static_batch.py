"""Many prompts answered at once on fixed shapes: for millions of tokens on a GPU.

:mod:`speech_mtp.decoding` lets rows come and go, and tells the host of every step. Here a batch begins and ends
together, so that nothing of a step depends on the host: it is one CUDA graph and the choice of a token. Prompts are
read in the first P columns of the cache, P the length of the longest, and all rows write their answers side by side
behind them::

    column     0 1 2 3 4 5 | 6 7 8 ...       P = 6
    row 0      p p p p p p | a a a           p: a token of the prompt, a: of the answer
    row 1      p p p . . . | a a a           .: seen by nobody; a rotary position goes on where the prompt ends

A row that has ended is carried along until the last one has: put prompts of like length into a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speech_mtp.decoding.sampling import choose_among
from speech_mtp.lm.graphs import CudaRecorder, Graphs
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.kv_cache import attention
from speech_mtp.types import RowSampling

COLUMNS = 64
"""Attention reads a multiple of so many columns; there is one graph for each number."""

TOKENS_AT_A_TIME = 1 << 18
"""Of prompts that are read together, their padding included."""

CHECK_EVERY = 32
"""Steps between two looks at whether all rows have ended: each is a copy to the host."""


class Columns:
    """``keys, values [layers, B, H, S, d]``: new entries of all rows go to the same columns, either the first ones (of
    prompts: each sees itself and those before it) or ``column [1]``, which sees the first ``seen`` as a mask says."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor | None = None, seen: int = 0) -> None:
        self.keys, self.values, self.column, self.seen = keys, values, column, seen

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        known, contents = self.keys[layer], self.values[layer]
        if self.column is None:
            known[:, :, : keys.shape[2]], contents[:, :, : keys.shape[2]] = keys, values
            return attention(queries, keys, values, None, chain=True)
        known.index_copy_(2, self.column, keys)
        contents.index_copy_(2, self.column, values)
        return attention(queries, known[:, :, : self.seen], contents[:, :, : self.seen], mask)


class StaticBatch:
    """Answers of at most ``rows`` prompts at a time, by plain decoding of ``lm``, which is prepared.

    Prompts have at most ``longest_prompt`` tokens, answers ``longest_answer``. Raises ValueError for a model that does
    not decode by our own layers (:meth:`speech_mtp.lm.decoder.Decoder.fits`), or cannot read so much.
    """

    def __init__(self, lm: TextLM, rows: int, longest_prompt: int, longest_answer: int) -> None:
        if lm.decoder is None:
            raise ValueError("Only a prepared model of a family that we decode ourselves is answered for in a batch.")
        if longest_prompt + longest_answer > lm.max_positions:
            raise ValueError(
                f"Prompt and answer may take {longest_prompt + longest_answer} tokens, but the model reads "
                f"{lm.max_positions}; allow fewer."
            )
        self.lm, self.decoder, self.longest_answer = lm, lm.decoder, longest_answer
        self.device = lm.device
        size, shape = _up(longest_prompt + longest_answer, COLUMNS), lm.shape()
        buffer = (lm.num_layers, rows, shape["num_kv_heads"], size, shape["head_dim"])
        self.keys = torch.zeros(buffer, device=self.device, dtype=self.decoder.cache_dtype)
        self.values = torch.zeros_like(self.keys)
        self.ends = torch.tensor(sorted(lm.ends), device=self.device)
        self.graphs = Graphs(CudaRecorder(self.device)) if self.device.type == "cuda" else None

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Sequence[int]], sampling: RowSampling) -> list[list[int]]:
        """What the model says after each of ``prompts``, its end included, as
        :func:`speech_mtp.decoding.text.start` would (top-k and top-p among few tokens: see :func:`choose_among`)."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = max(map(len, prompts))
        token = self._choice(self._read(prompts, lengths), sampling, lengths)
        said, ended = [token], self._is_end(token)
        for step in range(1, self.longest_answer):
            if step % CHECK_EVERY == 0 and bool(ended.all()):
                break
            token = self._choice(self._step(token, lengths, width, step - 1), sampling, lengths + step)
            said.append(token)
            ended = ended | self._is_end(token)
        return self._cut(torch.stack(said, 1))

    def _read(self, prompts: Sequence[Sequence[int]], lengths: Tensor) -> Tensor:
        """The prompts into the first columns, some rows at a time; their last states ``[B, D]``."""
        padded = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        rows, states = max(1, TOKENS_AT_A_TIME // padded.shape[1]), []
        for first in range(0, len(padded), rows):
            tokens = padded[first : first + rows].to(self.device)
            index = torch.arange(tokens.shape[1], device=self.device).expand(len(tokens), -1)
            mine = slice(first, first + len(tokens))
            _, final = self.decoder(
                self.lm.embed(tokens), index, None, Columns(self.keys[:, mine], self.values[:, mine])
            )
            states.append(final[torch.arange(len(tokens), device=self.device), lengths[mine] - 1])
        return torch.cat(states)

    def _step(self, token: Tensor, lengths: Tensor, width: int, step: int) -> Tensor:
        """Tokens ``[B]``, the ``step``-th of the answers (from 0), into their column; their states ``[B, D]``."""
        rows, seen = len(token), _up(width + step + 1, COLUMNS)
        keys, values = self.keys[:, :rows], self.values[:, :rows]

        def run(token: Tensor, lengths: Tensor, first: Tensor, column: Tensor) -> tuple[Tensor]:
            slots = torch.arange(seen, device=token.device)
            visible = (slots < lengths[:, None]) | ((slots >= first) & (slots <= column))
            mask = torch.zeros(visible.shape, dtype=self.decoder.cache_dtype, device=token.device)
            mask.masked_fill_(~visible, torch.finfo(mask.dtype).min)
            index = lengths + (column - first)
            cache = Columns(keys, values, column, seen)
            return (self.decoder(self.lm.embed(token[:, None]), index[:, None], mask[:, None, None], cache)[1][:, 0],)

        first = torch.full((1,), width, device=self.device)
        inputs = (token, lengths, first, first + step)
        if self.graphs is None:
            return run(*inputs)[0]
        return self.graphs.run(f"A step of {rows} rows ({seen} columns)", (self.keys, self.values), run, inputs)[0]

    def _choice(self, states: Tensor, sampling: RowSampling, position: Tensor) -> Tensor:
        return choose_among(self.lm.output.logits(states), sampling, position, 0)

    def _is_end(self, token: Tensor) -> Tensor:
        return (token[:, None] == self.ends).any(1)

    def _cut(self, said: Tensor) -> list[list[int]]:
        """``said [B, T]`` up to the first end of each row."""
        ends = (said[..., None] == self.ends).any(-1)
        before = (ends.cumsum(1) - ends.int() == 0).sum(1).tolist()
        return [row[:count] for row, count in zip(said.tolist(), before, strict=True)]


def _up(count: int, multiple: int) -> int:
    """``count`` rounded up to a multiple."""
    return -(-count // multiple) * multiple
