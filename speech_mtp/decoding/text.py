"""Decoding text: turns of known tokens and of answers, over one cache.

A row ends by a token of the model's own (``stop``), a stop string (``stop``), or its number of tokens (``length``). The
text is the same whatever the rule, if the rule is lossless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.engine import Run, Statistics
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.sampling import row_seeds
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.lm.chat import StopSearch, first_stop
from speech_mtp.lm.text_lm import TextLM, TextPlace, TextRows
from speech_mtp.types import Finish, RowSampling, Sampling, Status

__all__ = ["Statistics", "TextRun", "generate", "start"]

AHEAD = 4096
"""Tokens of an answer that a GPU's cache is given room for at once, so that its buffers stay where they are."""


@dataclass
class TextRun(Run):
    """A :class:`Run` of text. ``tokens[b]`` is what row b has said so far in this turn; ``max_new_tokens`` counts per
    turn."""

    max_new_tokens: int = 128
    stops: tuple[str, ...] = ()
    tokens: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stops and self.lm.tokenizer is None:
            raise ValueError("Stop strings need the model's tokenizer.")
        self._context: list[list[int]] = [[] for _ in self.finish]
        self._searches: list[StopSearch] = []

    @torch.inference_mode()
    def say(self, texts: Sequence[Sequence[int]]) -> None:
        """Begin a turn: add known tokens to every row, and let the model answer. The cache is reused.

        Raises ValueError when a row's tokens and its answer would not fit into the model's context.
        """
        self._check_room(texts)
        known = self.rows.lengths.tolist()
        if any(n != len(c) for n, c in zip(known, self._context, strict=True)):
            # A stop string cut an answer short of what the cache holds: read everything again.
            sampling = self.rows.sampling
            self.rows = self.lm.open(len(texts))
            self.rows.sampling = sampling
            self.rule.begin(self.rows, self.law)
            texts = [c + list(t) for c, t in zip(self._context, texts, strict=True)]
            self._context = [[] for _ in texts]
        ahead = 0 if self.lm.device.type == "cpu" else min(self.max_new_tokens, AHEAD)
        out, new = self.lm.read(self.rows, texts, self.rule.taps, ahead)
        self.rule.read(self.rows, self.law, out, new)
        self._allow(self.rows)
        self._context = [c + list(t) for c, t in zip(self._context, texts, strict=True)]
        self.tokens = [[] for _ in texts]
        self.finish = [None] * len(texts)
        self._searches = [StopSearch(self.lm.tokenizer, self.stops) for _ in texts] if self.stops else []
        self.status = [Status.GOING] * len(texts)

    def _check_room(self, texts: Sequence[Sequence[int]]) -> None:
        longest = max(len(c) + len(t) for c, t in zip(self._context, texts, strict=True)) + self.max_new_tokens
        if longest > self.lm.max_positions:
            raise ValueError(
                f"Text and answer may take {longest} tokens, but the model reads {self.lm.max_positions}; "
                "shorten the text or ask for fewer new tokens."
            )

    def _allow(self, rows: TextRows) -> None:
        """Every row may have ``max_new_tokens`` from here on, and a newest token that is known ends nothing."""
        place = rows.place
        rows.place = TextPlace(place.position, torch.full_like(place.token, -1), torch.full_like(place.left, self.max_new_tokens))

    def advance(self, only: Sequence[bool] | None = None) -> list[list[int]] | None:  # type: ignore[override]
        """New tokens of every row; None when all have ended."""
        made = super().advance(only)
        if made is None:
            return None
        return [self._take(b, [token for (token,) in row]) for b, row in enumerate(made.new)]

    def complete(self) -> list[list[int]]:
        """Run until all rows have ended; what each has said."""
        while self.advance() is not None:
            continue
        return self.tokens

    def _take(self, b: int, new: list[int]) -> list[int]:
        self.tokens[b] += new
        self._context[b] += new
        return self._until_stop(b, new) if self.stops and new else new

    def _until_stop(self, b: int, new: list[int]) -> list[int]:
        """End the row before the first stop string, if one has appeared; what stays of ``new``."""
        for count in range(1, len(new) + 1):
            if self._searches[b].push(new[count - 1]):
                excess = len(new) - count
                if excess:
                    del self.tokens[b][-excess:]
                    del self._context[b][-excess:]
                    self.statistics.emitted -= excess
                self.finish[b] = Finish("stop", "stop string")
                return new[:count]
        return new

    def text(self, b: int) -> str:
        """What row b has said, without special tokens and from a stop string on."""
        said: str = self.lm.tokenizer.decode(self.tokens[b], skip_special_tokens=True)
        return said[: first_stop(said, self.stops)]


def start(
    lm: TextLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    rule: DecodingRule | None = None,
    max_new_tokens: int = 128,
    stops: Sequence[str] = (),
    seeds: Tensor | None = None,
) -> TextRun:
    """A run over ``prompts`` (token ids); ``seeds [B]`` default to :func:`row_seeds` of the sampling's, so that rows of
    one prompt differ."""
    seeds = row_seeds(sampling.seed, len(prompts), lm.device) if seeds is None else seeds
    rows = lm.open(len(prompts))
    rows.sampling = RowSampling([replace(sampling, seed=seed) for seed in seeds.tolist()], lm.device)
    run = TextRun(lm, TextLaw(lm), rows, rule or Vanilla(), max_new_tokens=max_new_tokens, stops=tuple(stops))
    run.say(prompts)
    return run


def generate(
    lm: TextLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    rule: DecodingRule | None = None,
    max_new_tokens: int = 128,
    stops: Sequence[str] = (),
    seeds: Tensor | None = None,
) -> Iterator[list[list[int]]]:
    """The new tokens of every row, step by step; ``seeds [B]`` as for :func:`start`."""
    run = start(lm, prompts, sampling, rule, max_new_tokens, stops, seeds)
    while (new := run.advance()) is not None:
        yield new
