"""Decoding text: rows advance by whatever a rule keeps, until each ends.

A row ends by a token of the model's own (``stop``), a stop string (``stop``), or its number of tokens (``length``). The
text is the same whatever the rule, if the rule is lossless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule, sent
from speech_mtp.decoding.engine import step
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.sampling import row_seeds
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.lm.chat import StopSearch, first_stop
from speech_mtp.lm.text_lm import TextLM, TextState
from speech_mtp.types import Draft, Finish, Sampling, Verdict

AHEAD = 4096
"""Tokens of an answer that a GPU's cache is given room for at once, so that its buffers stay where they are."""


@dataclass
class Statistics:
    """What drafting gave, over all rows: ``forwards`` of the trunk while rows were running, ``paused`` of which drafted
    nothing because it did not pay, ``emitted`` tokens; and per depth (from 1) how often a draft was ``tried``, all
    earlier ones being right, and was ``kept``. Several drafts of one token are one try."""

    forwards: int = 0
    paused: int = 0
    emitted: int = 0
    tried: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        """Mean tokens a row gains by one forward, the bonus token included: 1 without drafts."""
        return self.emitted / max(1, self.forwards)

    @property
    def acceptance(self) -> list[float]:
        """Per depth, the share of drafts kept among those whose predecessors were all kept (conditional)."""
        return [kept / max(1, tried) for kept, tried in zip(self.kept, self.tried, strict=True)]

    def count(self, tried: int, kept: int) -> None:
        """One row, one forward: ``tried`` depths were judged, ``kept`` of them right: all, or all but the last."""
        self.forwards += 1
        for d in range(tried):
            if d == len(self.tried):
                self.tried.append(0)
                self.kept.append(0)
            self.tried[d] += 1
            self.kept[d] += d < kept


@dataclass
class TextRun:
    """A decode in progress; :meth:`advance` makes one step for every row that is not finished.

    ``tokens[b]`` is what row b has said so far, in this turn. ``max_new_tokens`` counts per turn.
    """

    lm: TextLM
    rule: DecodingRule
    law: TextLaw
    state: TextState
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    tokens: list[list[int]] = field(default_factory=list)
    finish: list[Finish | None] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def __post_init__(self) -> None:
        if self.stops and self.lm.tokenizer is None:
            raise ValueError("Stop strings need the model's tokenizer.")
        self._ends = torch.tensor(sorted(self.lm.ends), device=self.lm.device)
        self._context: list[list[int]] = [[] for _ in self.state.last]
        self._cached = [0] * len(self._context)
        self._searches: list[StopSearch] = []

    @torch.inference_mode()
    def say(self, texts: Sequence[Sequence[int]]) -> None:
        """Begin a turn: add known tokens to every row, and let the model answer. The cache is reused.

        Raises ValueError when a row's tokens and its answer would not fit into the model's context.
        """
        longest = max(len(c) + len(t) for c, t in zip(self._context, texts, strict=True)) + self.max_new_tokens
        if longest > self.lm.max_positions:
            raise ValueError(
                f"Text and answer may take {longest} tokens, but the model reads {self.lm.max_positions}; "
                "shorten the text or ask for fewer new tokens."
            )
        known = self.state.lengths.tolist()
        if any(n != len(c) for n, c in zip(known, self._context, strict=True)):
            # A stop string cut an answer short of what the cache holds: read everything again.
            self.state = self.lm.open(len(texts))
            self.rule.begin(self.state)
            texts = [c + list(t) for c, t in zip(self._context, texts, strict=True)]
            self._context = [[] for _ in texts]
        ahead = 0 if self.lm.device.type == "cpu" else min(self.max_new_tokens, AHEAD)
        out, tokens, following, lengths = self.lm.read(self.state, texts, self.rule.taps, ahead)
        self.rule.read(self.state, out, tokens, following, lengths)
        self._context = [c + list(t) for c, t in zip(self._context, texts, strict=True)]
        self._cached = [len(c) - 1 for c in self._context]
        self.tokens = [[] for _ in texts]
        self.finish = [None] * len(texts)
        self._searches = [StopSearch(self.lm.tokenizer, self.stops) for _ in texts] if self.stops else []

    @torch.inference_mode()
    def advance(self) -> list[list[int]] | None:
        """New tokens of every row; None when all have ended."""
        going = [finish is None for finish in self.finish]
        if not any(going):
            return None
        left = [self.max_new_tokens - len(t) for t in self.tokens]  # at least one while a row is going
        room = sent([n * on for n, on in zip(left, going, strict=True)], self.lm.device)
        whole: list[Verdict] = []

        def trim(draft: Draft, verdict: Verdict) -> Verdict:
            whole.append(verdict)
            return cut(draft, verdict, self._ends, room)

        draft, verdict, following = step(self.lm, self.rule, self.state, self.law, room > 0, trim)
        tried, kept = tries(draft, whole[0], verdict)
        host = torch.cat([torch.stack([verdict.length, tried, kept], 1), following], 1).tolist()  # one copy a step
        for b, (length, tried_b, kept_b, *_) in enumerate(host):
            if going[b]:
                self._cached[b] += length
                self.statistics.count(tried_b, kept_b)
                self.statistics.paused += self.rule.paused
        self.state.cache.know(max(self._cached))
        return [self._take(b, row[3 : row[0] + 3]) if going[b] else [] for b, row in enumerate(host)]

    def complete(self) -> list[list[int]]:
        """Run until all rows have ended; what each has said."""
        while any(finish is None for finish in self.finish):
            self.advance()
        return self.tokens

    def _take(self, b: int, new: list[int]) -> list[int]:
        self.statistics.emitted += len(new)
        self.tokens[b] += new
        if new[-1] in self.lm.ends:
            self.finish[b] = Finish("stop")
        elif len(self.tokens[b]) >= self.max_new_tokens:
            self.finish[b] = Finish("length")
        self._context[b] += new
        if self.stops:
            self._stop(b, len(new))
        return new

    def _stop(self, b: int, new: int) -> None:
        """End the row before the first stop string, if one has appeared."""
        said = self.tokens[b]
        for count in range(len(said) - new + 1, len(said) + 1):
            if self._searches[b].push(said[count - 1]):
                excess = len(said) - count
                if excess:
                    del said[count:]
                    del self._context[b][-excess:]
                    self.statistics.emitted -= excess
                self.finish[b] = Finish("stop", "stop string")
                return

    def text(self, b: int) -> str:
        """What row b has said, without special tokens and from a stop string on."""
        said: str = self.lm.tokenizer.decode(self.tokens[b], skip_special_tokens=True)
        return said[: first_stop(said, self.stops)]


def cut(draft: Draft, verdict: Verdict, ends: Tensor, room: Tensor) -> Verdict:
    """Keep nothing after a token of ``ends [E]``, and at most ``room [B]`` new tokens per row."""
    kept = draft.tokens[..., 0].gather(1, verdict.path.clamp(min=0))
    at = torch.arange(kept.shape[1], device=kept.device)
    new = torch.cat([kept[:, 1:], verdict.next], 1)
    new = torch.where(at == (verdict.length - 1)[:, None], verdict.next, new)
    final = (new[..., None] == ends).any(-1) & (at < verdict.length[:, None])
    first = torch.where(final.any(1), final.long().argmax(1) + 1, verdict.length)
    length = torch.minimum(torch.minimum(verdict.length, first), room.clamp(min=1))
    path = torch.where(at < length[:, None], verdict.path, -1)
    return Verdict(path, length, new.gather(1, (length - 1)[:, None]))


def tries(draft: Draft, whole: Verdict, trimmed: Verdict) -> tuple[Tensor, Tensor]:
    """How many depths of each row were tried and kept, ``[B]`` both: the next one failed only if there was a draft of
    it, and if the row did not end before."""
    stop = whole.path.gather(1, (whole.length - 1)[:, None])
    more = (draft.parents == stop).any(1)
    ended = trimmed.length < whole.length
    kept = trimmed.length - 1 + ended.long()  # all new tokens of a trimmed row are drafts
    return kept + (more & ~ended).long(), kept


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
    rule = rule or Vanilla()
    law = TextLaw(lm, sampling, row_seeds(sampling.seed, len(prompts), lm.device) if seeds is None else seeds)
    state = lm.open(len(prompts))
    rule.begin(state)
    run = TextRun(lm, rule, law, state, max_new_tokens, tuple(stops))
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
