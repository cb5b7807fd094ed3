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
class Answer:
    """What a row of text says in a turn: at most ``max_new_tokens`` (new ones: ``tokens``), up to one of ``stops``.
    ``context`` is all that the row has been told and has said."""

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    search: StopSearch | None = None


@dataclass
class TextRun(Run):
    """A :class:`Run` of text, whose rows have an :class:`Answer` each.

    Rows begin together (:func:`start`) or join one by one: :meth:`opened`, :meth:`told` (as often as there are pieces
    of a prompt), :meth:`enter`; a later turn goes :meth:`resumed`, :meth:`told`, :meth:`enter`.
    """

    answers: list[Answer | None] = field(default_factory=list)

    @property
    def tokens(self) -> list[list[int]]:
        """What every row has said in this turn."""
        return [[] if answer is None else answer.tokens for answer in self.answers]

    # -- rows that begin together ---------------------------------------------------------------------------------
    @torch.inference_mode()
    def say(self, texts: Sequence[Sequence[int]]) -> None:
        """Begin a turn: add known tokens to every row, and let the model answer. The cache is reused.

        Raises ValueError when a row's tokens and its answer would not fit into the model's context.
        """
        answers = [answer for answer in self.answers if answer is not None]
        for answer, text in zip(answers, texts, strict=True):
            self.check_room(answer, len(text))
        known = self.rows.lengths.tolist()
        if any(n != len(answer.context) for n, answer in zip(known, answers, strict=True)):
            # A stop string cut an answer short of what the cache holds: read everything again.
            texts = [answer.context + list(text) for answer, text in zip(answers, texts, strict=True)]
            self.rows = self._empty(self.rows.sampling)
            for answer in answers:
                answer.context = []
        room = max(answer.max_new_tokens for answer in answers)
        out, new = self.lm.read(self.rows, texts, self.rule.taps, 0 if self._on_cpu else min(room, AHEAD))
        self.rule.read(self.rows, self.law, out, new)
        for answer, text in zip(answers, texts, strict=True):
            self._begin(answer, text)
        self.finish = [None] * len(texts)
        self.status = [Status.GOING] * len(texts)
        _allow(self.rows, answers)

    @property
    def _on_cpu(self) -> bool:
        return bool(self.lm.device.type == "cpu")

    def _empty(self, sampling: RowSampling) -> TextRows:
        rows: TextRows = self.lm.open(len(sampling.settings))
        rows.sampling = sampling
        self.rule.begin(rows, self.law)
        return rows

    def check_room(self, answer: Answer, more: int) -> None:
        """ValueError if ``more`` tokens and the answer to them do not fit into the model's context."""
        longest = len(answer.context) + more + answer.max_new_tokens
        if longest > self.lm.max_positions:
            raise ValueError(
                f"Text and answer may take {longest} tokens, but the model reads {self.lm.max_positions}; "
                "shorten the text or ask for fewer new tokens."
            )

    def _begin(self, answer: Answer, text: Sequence[int]) -> None:
        answer.context, answer.tokens = answer.context + list(text), []
        answer.search = StopSearch(self.lm.tokenizer, answer.stops) if answer.stops else None

    # -- rows that come and go ------------------------------------------------------------------------------------
    @torch.inference_mode()
    def opened(self, sampling: Sampling) -> TextRows:
        """A row of its own that has read nothing."""
        return self._empty(RowSampling([sampling], self.lm.device))

    @torch.inference_mode()
    def resumed(self, b: int) -> TextRows:
        """Row ``b``, which has ended a turn, on its own. Where a stop string cut its answer short of what the cache
        holds, an empty row: the context must be told again."""
        row: TextRows = self.alone(b)
        answer = self.answers[b]
        assert answer is not None
        return row if int(row.lengths[0]) == len(answer.context) else self.opened(row.sampling.settings[0])

    @torch.inference_mode()
    def told(self, row: TextRows, tokens: Sequence[int]) -> None:
        """Add known ``tokens`` to ``row``, a row of its own."""
        out, new = self.lm.read(row, [tokens], self.rule.taps)
        self.rule.read(row, self.law, out, new)

    @torch.inference_mode()
    def enter(self, row: TextRows, answer: Answer, text: Sequence[int], b: int | None = None) -> int:
        """``row`` takes part, and answers ``text``, the last it was told; its place (``b``: the one it had)."""
        self._begin(answer, text)
        _allow(row, [answer])
        if b is None:
            b = self.join(row)
            self.answers += [None] * (len(self.finish) - len(self.answers))
        else:
            self.finish[b], self.counts[b] = None, Statistics()
            self.put(b, row)
        self.answers[b] = answer
        return b

    def gather(self) -> list[int]:
        stay = super().gather()
        self.answers = [self.answers[b] for b in stay] + [None] * (len(self.finish) - len(stay))
        return stay

    # -- the loop -------------------------------------------------------------------------------------------------
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
        """Add ``new`` to the row's answer; end the row before the first stop string, if one has appeared."""
        answer = self.answers[b]
        if answer is None:
            return []
        if answer.search is not None:
            for count, token in enumerate(new, 1):
                if answer.search.push(token):
                    self.counts[b].emitted -= len(new) - count
                    self.finish[b] = Finish("stop", "stop string")
                    new = new[:count]
                    break
        answer.tokens += new
        answer.context += new
        return new

    def text(self, b: int) -> str:
        """What row b has said, without special tokens and from a stop string on."""
        answer = self.answers[b]
        assert answer is not None
        said: str = self.lm.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return said[: first_stop(said, answer.stops)]


def _allow(rows: TextRows, answers: Sequence[Answer]) -> None:
    """Every row may say as much as its answer may have from here on; a newest token that was told ends nothing."""
    left = torch.tensor([answer.max_new_tokens for answer in answers], device=rows.last.device)
    rows.place = TextPlace(rows.place.position, torch.full_like(rows.place.token, -1), left)


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
    if stops and lm.tokenizer is None:
        raise ValueError("Stop strings need the model's tokenizer.")
    answers: list[Answer | None] = [Answer(max_new_tokens, tuple(stops)) for _ in prompts]
    run = TextRun(lm, TextLaw(lm), rows, rule or Vanilla(), answers=answers)
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
