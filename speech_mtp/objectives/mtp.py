"""What heads are trained on: the tokens ahead, the trunk's own law of them, or its states.

Every offset is one term, a sum over the positions that count divided by their number. A head is unrolled one offset at
a time and each term can be back-propagated before the next is computed, so that the logits of all offsets,
``[B, T, N, V]``, never exist (Gloeckle et al. 2024, section 2). The caller says::

    for step in objective.steps(out, positions):
        (step.weight * step.loss).backward(retain_graph=True)
        del step

What is freed when: after ``del`` nothing refers to the offset's logits, so they and all that only they need are gone
before the next are made. Terms that say they are ``light`` keep no logits
(:mod:`speech_mtp.objectives._pieces`): those of one head are added up and back-propagated at once, through what they
share. ``retain_graph`` keeps what the offsets of one head share, which is the head's states of
earlier steps in a recursive head and the one pass of a block drafter; it goes when the head's last offset is done.

This module knows nothing of optimisers, batches or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from speech_mtp.heads.base import MTPHead
from speech_mtp.layouts.base import IGNORE
from speech_mtp.objectives._pieces import mean_of_pieces, rows_at_once
from speech_mtp.types import LMOutput, Positions

Loss = Literal["hard", "soft", "l1", "feature", "judge"]
DEFAULT_ANCHORS = 64


# -- pure functions -------------------------------------------------------------------------------------------------
def cross_entropy(scores: Tensor, tokens: Tensor) -> Tensor:
    """Hard targets: mean of ``-log q(x)`` in nats; ``scores [n, V]``, ``tokens [n]``."""
    return F.cross_entropy(scores, tokens, reduction="sum") / max(1, len(tokens))


def divergence(law: Tensor, scores: Tensor) -> Tensor:
    """Soft targets: mean Kullback-Leibler divergence ``sum p log(p / q)``; ``law [n, V]`` is log p, without
    gradients."""
    total: Tensor = _Divergence.apply(law, scores)
    return total / max(1, len(law))


class _Divergence(torch.autograd.Function):
    """The sum over all rows, in float32 at least. Its gradient is ``q - p``, made on the way: autograd would keep and
    read again three tables of this size."""

    @staticmethod
    def forward(ctx: Any, law: Tensor, scores: Tensor) -> Tensor:
        wide = torch.promote_types(scores.dtype, torch.float32)
        law, guess = law.to(wide), scores.to(wide).log_softmax(-1)
        chance = law.exp()
        total = (law - guess).mul_(chance).sum()
        ctx.save_for_backward(guess.exp_().sub_(chance).to(scores.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * grads[0]


def distance(law: Tensor, scores: Tensor) -> Tensor:
    """``sum |p - q|`` of every position ``[n]``, twice the total variation; ``law [n, V]`` is log p."""
    return (law.exp() - scores.softmax(-1)).abs().sum(-1)


def judgement(law: Tensor, scores: Tensor, chance: Tensor) -> Tensor:
    """DSpark's confidence (arXiv:2607.05147): binary cross entropy of the logit ``chance [n]`` against the share of
    drafts that speculative sampling keeps, ``1 - |p - q| / 2``."""
    kept = 1 - 0.5 * distance(law, scores.detach())
    return F.binary_cross_entropy_with_logits(chance, kept, reduction="sum") / max(1, len(law))


def regression(states: Tensor, targets: Tensor) -> Tensor:
    """EAGLE's feature loss (arXiv:2401.15077, section 4.2): smooth L1, mean over all numbers of ``[n, D]``."""
    return F.smooth_l1_loss(states, targets, reduction="sum") / max(1, states.numel())


def offset_weights(weighting: str, beta: float | None, count: int) -> list[float]:
    """Weights of ``count`` offsets: ``uniform`` 1 (Gloeckle et al. 2024), ``decay`` ``beta ** k`` with 0.8 (Medusa,
    EAGLE-3), ``geometric`` the same divided by its sum with 0.6 (FastMTP, section 3.2); k counts from 0."""
    if weighting not in ("uniform", "decay", "geometric"):
        raise ValueError(f"The weighting is {weighting!r}; it must be 'uniform', 'decay' or 'geometric'.")
    if weighting == "uniform":
        if beta is not None:
            raise ValueError("Uniform weights have no beta; remove it, or use 'decay' or 'geometric'.")
        return [1.0] * count
    base = beta if beta is not None else {"decay": 0.8, "geometric": 0.6}[weighting]
    weights = [base**k for k in range(count)]
    return weights if weighting == "decay" else [w / math.fsum(weights) for w in weights]


def labels_at(positions: Positions, offset: int, first: int) -> Tensor:
    """``x_{t + offset}`` for every t ``[B, T]``, IGNORE where it is not to be drafted.

    A draft is trained if all of it, from ``x_{t + first}`` on, lies in one answer of the segment of t: a label crosses
    neither a border of documents nor, in a chat, the user's words between two answers.
    """
    assert positions.labels is not None, "training positions carry labels"
    labels = positions.labels[..., 0]
    answered = labels != IGNORE
    begins = answered & ~F.pad(answered[:, :-1], (1, 0))
    turn = begins.cumsum(1) * answered  # 0 outside of answers
    later = _ahead(labels, offset - 1, IGNORE), _ahead(turn, offset - 1, 0), _ahead(turn, first - 1, 0)
    same = (_ahead(positions.segment, offset - 1, -1) == positions.segment) & (later[1] == later[2])
    return torch.where(same, later[0], IGNORE)


def _ahead(x: Tensor, n: int, fill: int) -> Tensor:
    """``x [B, T]`` -> what stands n positions later, ``fill`` behind the end."""
    missing = min(n, x.shape[1])
    return F.pad(x[:, missing:], (0, missing), value=fill)


def choose_anchors(positions: Positions, first: int, count: int, noise: torch.Generator | None) -> Tensor:
    """``[B, A]``, at most ``count`` random positions of every row after which a draft can be trained, ascending.

    Rows with fewer such positions are filled up with others, which have no labels.
    """
    good = labels_at(positions, first, first) != IGNORE
    order = torch.rand(good.shape, generator=noise).to(good.device) - 2 * good.float()
    most = max(1, min(count, int(good.sum(1).max())))
    return order.topk(most, 1, largest=False).indices.sort(1).values


# -- what heads may offer besides logits ----------------------------------------------------------------------------
@runtime_checkable
class Regressing(Protocol):
    """A head that also predicts the trunk's states (EAGLE)."""

    def regress(self, out: LMOutput, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets ``[B, T, D]``: entry t is the state of position t + 1. Arguments as for
        :meth:`MTPHead.unroll_states`."""


@runtime_checkable
class Anchored(Protocol):
    """A head whose drafts are blocks, too dear to unroll after every position (DFlash)."""

    def unroll_states_at(self, out: LMOutput, x: Tensor, anchors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """As ``unroll_states`` after the positions ``anchors [B, A]``: states ``[B, A, D]``."""


@runtime_checkable
class Judging(Protocol):
    """A block drafter that says how likely each draft is kept (DSpark)."""

    def kept_logit(self, states: Tensor, before: Tensor) -> Tensor:
        """The logit ``[...]`` of the chance, for ``states [..., D]`` after the tokens ``before [...]``."""


# -- the objective --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MTPConfig:
    """``losses`` are the parts of every offset's term and their weights: ``hard``, ``soft``, ``l1``, ``judge``; and
    ``feature``, a term of its own. ``weighting`` and ``beta`` weigh the offsets (:func:`offset_weights`). A head that
    drafts in blocks is trained after ``anchors`` random positions of each row (default 64), others after all."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    losses: dict[Loss, float] = field(default_factory=lambda: {"hard": 1.0})
    weighting: Literal["uniform", "decay", "geometric"] = "decay"
    beta: float | None = None
    anchors: int | None = None


@dataclass
class Step:
    """One term. ``right`` and ``known`` ``[B, A]`` bool, None for the feature term: where the best guess of ``offset``
    is the token, and where there is a token to guess. ``ranks [n]``, if asked for, say how many tokens score higher
    than the one to guess (the size of the draft vocabulary where that is not in it). ``light``: the term keeps no
    scores, and shares the pass of its head with others, so that they are best back-propagated together."""

    name: str
    loss: Tensor
    weight: float
    offset: int = 0
    right: Tensor | None = None
    known: Tensor | None = None
    ranks: Tensor | None = None
    light: bool = False


class Guesses(NamedTuple):
    """Of n positions: their mean ``loss``, whether the best guess is ``right [n]``, and their ``ranks [n]``."""

    loss: Tensor
    right: Tensor
    ranks: Tensor


class MTP:
    """The terms of one ``head``. ``taps`` are the layers that the trunk's output holds (default: the head's own).

    Soft targets are the trunk's law of ``x_{t+k}``, which is computed from its state at ``t + k - 1``; with a reduced
    draft vocabulary it is restricted to that and renormalised, and positions whose token lies outside are left out.
    ``teacher`` scores the states ``[n, D']`` of another trunk ``[n, V]``, whose law they then are. Raises ValueError
    for losses that the head does not offer.
    """

    def __init__(
        self,
        head: MTPHead,
        config: MTPConfig,
        taps: tuple[int, ...] | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.head, self.losses, self._teacher = head, config.losses, teacher
        kind = type(head).__name__
        if not config.losses or min(config.losses.values()) <= 0:
            raise ValueError("An objective needs a loss, and every loss a positive weight.")
        for loss, ability in (("feature", Regressing), ("judge", Judging)):
            if loss in config.losses and not isinstance(head, ability):
                raise ValueError(f"The head {kind} has nothing to train with the loss {loss!r}; remove it.")
        if config.anchors is not None and (config.anchors < 1 or not isinstance(head, Anchored)):
            raise ValueError(
                f"anchors is {config.anchors} for the head {kind}; only block drafters have a number of them."
            )
        weights = offset_weights(config.weighting, config.beta, len(head.offsets))
        self.weights = dict(zip(head.offsets, weights, strict=True))
        self.anchors = config.anchors or DEFAULT_ANCHORS
        self._select = [(taps or head.taps).index(tap) for tap in head.taps]

    def steps(
        self,
        out: LMOutput,
        positions: Positions,
        noise: torch.Generator | None = None,
        ranked: bool = False,
        above: Tensor | None = None,
    ) -> Iterator[Step]:
        """The terms, one at a time: see the module. ``out`` are the trunk's states of ``positions``, detached.
        ``ranked`` asks for the ranks; ``above [B, T, D']`` are the states of the teacher, if there is one.

        1. The head makes its states: after every position that counts, or after a block drafter's anchors.
        2. What is to be guessed there, and which of it the draft vocabulary holds.
        3. Only these n states are scored.
        """
        with self.head.holding() as held:
            by_pieces = held and not self.head.needs_tokens  # what is learned of tokens is as large for a piece
            yield from self._steps(out, positions, noise, ranked, above, by_pieces)

    def _steps(
        self,
        out: LMOutput,
        positions: Positions,
        noise: torch.Generator | None,
        ranked: bool,
        above: Tensor | None,
        by_pieces: bool,
    ) -> Iterator[Step]:
        head, tokens, first = self.head, positions.tokens[..., 0], self.head.offsets[0]
        # Whatever of a draft is trained, its first token is.
        wanted = None if isinstance(head, Anchored) else labels_at(positions, first, first) != IGNORE
        mine = LMOutput(out.hidden[:, :, self._select], final=out.top, wanted=wanted, segment=positions.segment)
        above = out.top if above is None else above
        x = head.embed(tokens)
        if "feature" in self.losses:
            yield self._feature(mine, x, positions)
        if isinstance(head, Anchored):
            at = choose_anchors(positions, first, self.anchors, noise)
            unrolled = head.unroll_states_at(mine, x, at)
        else:
            at = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
            unrolled = head.unroll_states(mine, x)
        for offset, states in unrolled:
            labels = labels_at(positions, offset, first).gather(1, at)
            ids, known = self._draft_ids(labels), labels != IGNORE
            b, a = (ids >= 0).nonzero(as_tuple=True)
            t = at[b, a] + offset - 1  # the positions before those to guess
            guesses = self._guess(offset, states[b, a], ids[b, a], tokens[b, t], above[b, t], by_pieces)
            del states  # or they would live while the next are made
            right = torch.zeros_like(known)
            right[b, a] = guesses.right
            step = Step(str(offset), guesses.loss, self.weights[offset], offset, right, known)
            step.light = by_pieces and head.shared_pass
            if ranked:
                ranks = torch.full_like(labels, head.num_tokens)
                ranks[b, a] = guesses.ranks
                step.ranks = ranks[known]
            del guesses
            yield step
            del step

    def _guess(
        self, offset: int, states: Tensor, ids: Tensor, before: Tensor, above: Tensor, by_pieces: bool
    ) -> Guesses:
        """The head's ``states [n, D]`` of positions that hold the tokens ``ids [n]`` (draft ids), with the tokens
        ``before [n]`` them and the states ``above [n, D]`` there, which give the law. ``by_pieces``: few scores at a
        time (:mod:`speech_mtp.objectives._pieces`), which pays where nothing has to be made anew for each."""
        rights, ranks = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)

        def term(states: Tensor, rows: slice) -> Tensor:
            found = self._guess_few(offset, states, ids[rows], before[rows], above[rows])
            rights[rows], ranks[rows] = found.right, found.ranks
            return found.loss

        if by_pieces:
            loss = mean_of_pieces(term, states, rows_at_once(self.head.num_tokens, states.device))
        else:
            loss = term(states, slice(None))
        return Guesses(loss, rights, ranks)

    def _guess_few(self, offset: int, states: Tensor, ids: Tensor, before: Tensor, above: Tensor) -> Guesses:
        """The same of few positions, whose scores are all made at once."""
        head = self.head
        parts: dict[str, Tensor] = {}
        scores = head.scores(states, head.offsets.index(offset), before)
        if self.losses.keys() != {"soft"}:
            scores = scores.float()
        if "hard" in self.losses:
            parts["hard"] = cross_entropy(scores, ids)
        if self.losses.keys() & {"soft", "l1", "judge"}:
            with torch.no_grad():
                law = self._law(above).float().log_softmax(-1)
            if "soft" in self.losses:
                parts["soft"] = divergence(law, scores)
            if "l1" in self.losses:
                parts["l1"] = distance(law, scores).sum() / max(1, len(law))
            if "judge" in self.losses and isinstance(head, Judging):
                parts["judge"] = judgement(law, scores, head.kept_logit(states, before).float())
        terms = [weight * parts[name] for name, weight in self.losses.items() if name in parts]
        loss = torch.stack(terms).sum() if terms else scores.sum() * 0
        with torch.no_grad():
            better = (scores > scores.gather(-1, ids[:, None])).sum(-1)
            right = better == 0
            right[right.clone()] = scores[right].argmax(-1) == ids[right]  # of equal ones, the first
            return Guesses(loss, right, better)

    def _law(self, above: Tensor) -> Tensor:
        """Scores of the draft vocabulary ``[n, num_tokens]``."""
        if self._teacher is None:
            return self.head.unembed(above)
        scores = self._teacher(above)
        return scores if self.head.token_map is None else scores[:, self.head.token_map]

    def _draft_ids(self, labels: Tensor) -> Tensor:
        """The trunk's ids, or IGNORE -> draft ids, or -1 where there is no label or none in the draft vocabulary."""
        if self.head.token_map is None:
            return torch.where(labels == IGNORE, -1, labels)
        known = torch.full((self.head.shape.vocab_size,), -1, device=labels.device)
        known[self.head.token_map] = torch.arange(self.head.num_tokens, device=labels.device)
        return torch.where(labels == IGNORE, -1, known[labels.clamp(min=0)])

    def _feature(self, out: LMOutput, x: Tensor, positions: Positions) -> Step:
        assert isinstance(self.head, Regressing)
        states, targets = self.head.regress(out, x)
        counts = labels_at(positions, self.head.offsets[0], self.head.offsets[0]) != IGNORE
        loss = regression(states[counts].float(), targets[counts].float())
        return Step("feature", loss, self.losses["feature"])
