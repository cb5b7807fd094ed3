"""The laws of text and of speech groups: what is done to logits before a token is drawn, and when a row may not go on.

A law knows the language model, never a row: everything that differs between rows and nodes stands in their settings
(:class:`speech_mtp.types.RowSampling`) and their places (:class:`speech_mtp.lm.rows.Place`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speech_mtp.decoding import sampling as noise
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.fused_depth import GroupDraws
from speech_mtp.lm.group_lm import GroupLM, SpeechPlace, SpeechRows
from speech_mtp.types import Draft, LMOutput, RowSampling, Status

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.text_lm import TextLM, TextPlace, TextRows

Choose = Callable[[Tensor, Tensor | int], Tensor]
"""``choose(nodes [B], depth) -> tokens [B, C]``: what the trunk itself draws after one node of every row, which lies
``depth`` nodes behind node 0."""


@dataclass
class Guesses:
    """Guessed children of N nodes: ``tokens [B, N, W, C]``, the likeliest first, and the logarithms of their chances
    ``[B, N, W]`` in the drafter's own opinion (-inf: impossible)."""

    tokens: Tensor
    chance: Tensor


class Law(ABC):
    """The distribution that tokens are drawn from, and the trunk's own draws from it."""

    lm: Any

    @abstractmethod
    def chooser(self, rows: Any, draft: Draft, out: LMOutput) -> Choose:
        """What the trunk draws after the nodes of ``draft``, with the noise of each node's position."""

    @abstractmethod
    def status(self, rows: Any, place: Any) -> Tensor:
        """The :class:`Status` of rows ``[B]`` or of nodes ``[B, M]``, whatever ``place`` is of."""

    @abstractmethod
    def guesses(
        self, rows: Any, draft: Draft, head: MTPHead, states: Tensor, depth: int, layer: int, width: int
    ) -> Guesses:
        """The ``width`` likeliest children of the newest N nodes of ``draft``, all ``depth`` nodes behind node 0, by
        the states ``[B, N, D]`` that ``head`` has for them and its output layer ``layer``: ranked by draft logit plus
        the noise that the trunk will draw with."""


class TextLaw(Law):
    """Repetition penalty over the row's tokens and the node's own path, then temperature, top-k and top-p.

    Greedy keeps the penalised logits. ``ends`` are the tokens that end an answer.
    """

    def __init__(self, lm: TextLM) -> None:
        self.lm = lm
        self.ends = torch.tensor(sorted(lm.ends), dtype=torch.long, device=lm.device)

    def chooser(self, rows: TextRows, draft: Draft, out: LMOutput) -> Choose:
        logits = self.lm.output.logits(out.top)
        if not rows.sampling.sampled:  # nothing to sort and no noise: all nodes at once
            choice = noise.best(self.penalised(rows, logits, draft))
            return lambda nodes, depth: choice.gather(1, nodes[:, None])

        def choose(nodes: Tensor, depth: Tensor | int) -> Tensor:
            mine = logits.gather(1, nodes[:, None, None].expand(-1, 1, logits.shape[-1]))
            mine = self.penalised(rows, mine, draft, nodes[:, None])[:, 0]
            return noise.choose(mine, rows.sampling, rows.place.position + depth, 0)[:, None]

        return choose

    def scores(self, rows: TextRows, draft: Draft, out: LMOutput) -> Tensor:
        """The law after every node, as logits ``[B, M, V]``: for rules that need more than the trunk's own draw."""
        return noise.adjust(self.penalised(rows, self.lm.output.logits(out.top), draft), rows.sampling)

    def status(self, rows: TextRows, place: TextPlace) -> Tensor:
        ended = (place.token[..., None] == self.ends).any(-1)
        going = torch.where(place.left > 0, int(Status.GOING), int(Status.LENGTH))
        return torch.where(ended, int(Status.STOP), going)

    def guesses(
        self, rows: TextRows, draft: Draft, head: MTPHead, states: Tensor, depth: int, layer: int, width: int
    ) -> Guesses:
        scores = self.draft_scores(rows, draft, head, states, layer)
        position = (rows.place.position + depth)[:, None].expand(-1, states.shape[1])
        tokens, chance = noise.likeliest(scores, rows.sampling, position, 0, width, head.to_target)
        return Guesses(tokens[..., None], chance)

    def draft_scores(self, rows: TextRows, draft: Draft, head: MTPHead, states: Tensor, layer: int) -> Tensor:
        """The head's logits ``[B, N, num_tokens]`` of the children of the newest N nodes, penalised."""
        n = states.shape[1]
        scores = head.scores(states, layer, draft.tokens[:, -n:, 0])
        nodes = torch.arange(draft.tokens.shape[1] - n, draft.tokens.shape[1], device=scores.device)
        return self.penalised(rows, scores, draft, nodes.expand(len(scores), -1), head.token_map)

    def penalised(
        self, rows: TextRows, logits: Tensor, draft: Draft, nodes: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, N, V]`` of what follows ``nodes [B, N]`` (None: all) -> with the repetition penalty.

        ``ids [V]`` are the tokens that the logits are of, when a head drafts from some only.
        """
        if not rows.sampling.penalised:
            return logits
        (b, n), v = logits.shape[:2], self.lm.vocab_size
        slots = torch.arange(rows.tokens.shape[1], device=logits.device)
        # Entries past a row's length count as its first token, which is in the history anyway.
        history = torch.where(slots < rows.place.position[:, None], rows.tokens, rows.tokens[:, :1])
        seen = torch.zeros(b, v, dtype=torch.bool, device=logits.device).scatter_(1, history, True)
        ancestors, m = draft.ancestors, draft.tokens.shape[1]
        if nodes is not None:
            ancestors = ancestors.gather(1, nodes[..., None].expand(-1, -1, m))
        tokens = draft.tokens[..., 0]
        on_path = torch.where(ancestors, tokens[:, None], tokens[:, :1, None])
        seen = seen[:, None].expand(-1, n, -1).scatter(2, on_path, True)
        seen = seen if ids is None else seen[..., ids]
        logits, penalty = logits.float(), rows.sampling.repetition_penalty[:, None, None]
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@dataclass(frozen=True)
class Guard:
    """When a row is a runaway: more than ``unit_s`` seconds per text unit, or ``character_s`` per character where units
    are tokens of any length (plus ``spare_s``), or the same content code for more than ``max_repeat_s``. Where
    positions point into the text, the units before the pointer count: how much more text there is, or has arrived,
    makes no difference."""

    unit_s: float = 0.32
    character_s: float = 0.24
    spare_s: float = 2.0
    max_repeat_s: float = 2.4


class SpeechLaw(Law):
    """Layout masks on the control channel and the repetition guard on content codes, then the sampling settings.

    The model's own output layer turns the states of a head into groups.
    """

    def __init__(self, lm: GroupLM, guard: Guard | None = None) -> None:
        self.lm, self.guard, self._rate_hz = lm, guard or Guard(), lm.config.frame_rate_hz

    def chooser(self, rows: SpeechRows, draft: Draft, out: LMOutput) -> Choose:
        b, m = draft.parents.shape
        place = self.lm.placed(rows, draft).place
        flat = place.map(by=lambda x: x.flatten(0, 1))

        def pick(channel: int, logits: Tensor) -> Tensor:
            masked = self.masked(rows, flat, m, channel, logits)
            return noise.choose(masked, settings[self.lm.kind_of(channel)], flat.position, channel)

        settings, hidden = self.settings(rows, m), out.top.flatten(0, 1)
        at_once = self.lm.draws_groups
        if at_once is None:
            choice = self.lm.output.sample(hidden, pick)
        else:
            choice = at_once(hidden, self._draws(rows, flat, m, settings))
        choice = choice.view(b, m, -1)
        return lambda nodes, depth: choice.gather(1, nodes[:, None, None].expand(-1, 1, choice.shape[-1]))[:, 0]

    def _draws(self, rows: SpeechRows, flat: SpeechPlace, count: int, settings: list[RowSampling]) -> GroupDraws:
        stuck, lowered = noise.repeats(flat.recent, rows.sampling.repeated(count))
        channels = range(self.lm.layout.num_channels)
        guarded, kinds = [self._is_guarded(c) for c in channels], [self.lm.kind_of(c) for c in channels]
        allowed = self._allowed(rows, flat, count)
        return GroupDraws(allowed, stuck, lowered, guarded, settings, kinds, flat.position, noise.TARGET)

    def _is_guarded(self, channel: int) -> bool:
        """Whether the channel is of content codes."""
        return self.lm.kind_of(channel) == 1

    def settings(self, rows: SpeechRows, count: int) -> list[RowSampling]:
        """By kind of channel, the settings of every row ``count`` times."""
        kinds = 1 + len(self.lm.config.codebook_sizes)
        if not rows.sampling.by_kind:
            return [rows.sampling.repeated(count)] * kinds
        return [rows.sampling.of_kind(kind).repeated(count) for kind in range(kinds)]

    def masked(self, rows: SpeechRows, place: SpeechPlace, count: int, channel: int, logits: Tensor) -> Tensor:
        """Logits ``[B * count, V_c]`` of nodes at ``place``, ``count`` of every row, with masks and guards."""
        if channel == 0:
            return logits.masked_fill(~self._allowed(rows, place, count), float("-inf"))
        if self._is_guarded(channel):
            return noise.guard_repeats(logits, place.recent, rows.sampling.repeated(count))
        return logits

    def _allowed(self, rows: SpeechRows, place: SpeechPlace, count: int) -> Tensor:
        """Which control tokens ``[B * count, V_0]`` the layout allows at ``place``."""
        units, complete = (x.repeat_interleave(count) for x in (rows.num_units, rows.complete))
        return self.lm.layout.control_mask(place.pointer, units, complete, place.stalled)

    def status(self, rows: SpeechRows, place: SpeechPlace) -> Tensor:
        units, complete, characters = (
            x.view(-1, *[1] * (place.pointer.ndim - 1)) for x in (rows.num_units, rows.complete, rows.characters)
        )
        found = self.lm.layout.status(place.pointer, place.control, units, complete)
        frames, limit = self._frames(place), self._limit(place, units, characters)
        found = torch.where(frames > limit, int(Status.LENGTH), found)
        return torch.where(place.run > self.guard.max_repeat_s * self._rate_hz, int(Status.RUNAWAY), found)

    def _frames(self, place: SpeechPlace) -> Tensor:
        return place.position * self.lm.layout.frames_per_group

    def _limit(self, place: SpeechPlace, units: Tensor, characters: Tensor) -> Tensor:
        """Frames that a row may have; -1 characters: it counts by units."""
        known = place.pointer if self.lm.layout.points else units
        guard, rate = self.guard, self._rate_hz
        frames = torch.where(characters < 0, guard.unit_s * rate * known, guard.character_s * rate * characters)
        return frames + guard.spare_s * rate

    def detail(self, rows: SpeechRows, b: int, status: Status) -> str:
        """Why row ``b`` was ended by the guard; empty otherwise."""
        place = rows.place
        if status is Status.RUNAWAY:
            return f"one content code for {int(place.run[b])} frames"
        if status is not Status.LENGTH:
            return ""
        characters = int(rows.characters[b])
        known = int(place.pointer[b] if self.lm.layout.points else rows.num_units[b])
        text = f"{known} text units" if characters < 0 else f"{characters} characters"
        return f"{int(self._frames(place)[b])} frames for {text}"

    def guesses(
        self, rows: SpeechRows, draft: Draft, head: MTPHead, states: Tensor, depth: int, layer: int, width: int
    ) -> Guesses:
        """Siblings differ in their first two channels (:func:`first_ranks`); the rest is the likeliest."""
        b, n = states.shape[:2]
        count = n * width
        nodes = self.lm.placed(rows, draft).place.only(slice(-n, None))
        place = nodes.map(by=lambda x: x.repeat_interleave(width, 1).flatten(0, 1))
        settings, ranks = self.settings(rows, count), first_ranks(width)
        total = torch.zeros(b * count, device=states.device)

        def pick(channel: int, logits: Tensor) -> Tensor:
            wanted = [rank[channel] if channel < 2 else 0 for rank in ranks]
            masked, mine = self.masked(rows, place, count, channel, logits), settings[self.lm.kind_of(channel)]
            ids, chance = noise.likeliest(masked, mine, place.position, channel, max(wanted) + 1)
            at = torch.tensor(wanted, device=ids.device).repeat(b * n)[:, None].clamp(max=ids.shape[-1] - 1)
            total.add_(chance.gather(1, at)[:, 0])
            return ids.gather(1, at)[:, 0]

        hidden = states.repeat_interleave(width, 1).flatten(0, 1)
        tokens = self.lm.output.sample(hidden, pick).view(b, n, width, -1)
        return Guesses(tokens, total.view(b, n, width))


def first_ranks(width: int) -> list[tuple[int, int]]:
    """The ranks of ``width`` siblings in the first two channels, the likeliest pair first: (0, 0), (0, 1), (1, 0), ...
    as if a rank were half as likely as the one before."""
    pairs = [(i, total - i) for total in range(width) for i in range(total + 1)]
    return pairs[:width]
