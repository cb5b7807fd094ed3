"""What heads are trained on, by contrived heads and by hand."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.heads.base import Binding, MTPHead, ParallelHead, TrunkShape
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.objectives.mtp import MTP, Loss, MTPConfig, Step, choose_anchors, judgement, labels_at, offset_weights
from speech_mtp.training.answer_data import collate
from speech_mtp.types import LMOutput, Positions
from tests.training.tiny_text import VOCAB, counting_answers, tiny_text_lm

I = IGNORE  # noqa: E741


@pytest.fixture(scope="module")
def lm() -> TextLM:
    return tiny_text_lm().requires_grad_(False)


def batch(packed: bool = False) -> Positions:
    """Eight answers: each in a row of its own, or four to a row."""
    answers = counting_answers(8, longest=8)
    return collate([answers[:4], answers[4:]] if packed else [[answer] for answer in answers], length=80, pad_to=8)


def states(lm: TextLM, positions: Positions, taps: tuple[int, ...] = (-1,)) -> LMOutput:
    tokens, segment = positions.tokens[..., 0], positions.segment
    mask = (segment[:, :, None] == segment[:, None]).tril()[:, None]
    with torch.no_grad():
        return lm.trunk_states(lm.embed(tokens), positions.index, mask, None, taps)


def bound(lm: TextLM, head: MTPHead) -> Any:
    head.bind(Binding(**lm.binding()))
    return head


def make(lm: TextLM, name: str = "medusa", **settings: Any) -> MTPHead:
    """A head with random weights."""
    torch.manual_seed(1)
    head = bound(lm, plugins.build("heads", {"name": name, **settings}, shape=TrunkShape(**lm.shape())))
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0, 0.2)
    return head


class Oracle(ParallelHead):
    """Looks at the trunk's later states, so its scores are the trunk's own law of every offset."""

    def __init__(self, shape: TrunkShape, draft_vocab: int | None = None) -> None:
        super().__init__(shape, (2, 3, 4), draft_vocab=draft_vocab)

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        raise NotImplementedError("an oracle cannot draft")

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for offset in self.offsets:
            yield offset, self.mix(out.hidden).roll(-(offset - 1), 1)

    def regress(self, out: LMOutput, x: Tensor) -> tuple[Tensor, Tensor]:
        later = out.top.roll(-1, 1)
        return later + 3, later

    def kept_logit(self, states: Tensor, before: Tensor) -> Tensor:
        return torch.full(before.shape, 2.0)


def terms(head: MTPHead, out: LMOutput, positions: Positions, **config: Any) -> dict[str, Step]:
    return {step.name: step for step in MTP(head, MTPConfig(**config)).steps(out, positions)}


# -- labels and weights ---------------------------------------------------------------------------------------------
def test_labels_stay_within_one_answer_of_one_segment() -> None:
    # Two documents; the first is a chat with two answers, 12 13 14 and 16 17, and the user's 15 between them.
    tokens = [10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 22, 23, 0]
    nexts = [I, 12, 13, 14, I, 16, 17, I, 21, 22, 23, I, I]
    segment = [1] * 8 + [2] * 4 + [0]
    positions = Positions(
        *(torch.tensor([x]) for x in (tokens, segment, segment, segment)), labels=torch.tensor([nexts])
    )
    positions.tokens, positions.labels = positions.tokens[..., None], torch.tensor([nexts])[..., None]
    assert labels_at(positions, 2, 2).tolist() == [[12, 13, 14, I, 16, 17, I, I, 22, 23, I, I, I]]
    assert labels_at(positions, 3, 2).tolist() == [[13, 14, I, I, 17, I, I, I, 23, I, I, I, I]]
    assert labels_at(positions, 4, 2).tolist() == [[14, I, I, I, I, I, I, I, I, I, I, I, I]]
    # A leap of two is judged from its first offset on: what lies nearer is drafted by the state before.
    assert labels_at(positions, 3, 3).tolist() == [[13, 14, I, 16, 17, I, I, I, 23, I, I, I, I]]
    assert labels_at(positions, 20, 2).eq(I).all()


def test_weights_of_offsets() -> None:
    assert offset_weights("uniform", None, 3) == [1, 1, 1]
    assert offset_weights("decay", None, 3) == pytest.approx([1, 0.8, 0.64])
    assert [round(w, 2) for w in offset_weights("geometric", None, 3)] == [0.51, 0.31, 0.18]
    assert offset_weights("geometric", 1.0, 4) == [0.25] * 4
    with pytest.raises(ValueError, match="Uniform weights have no beta"):
        offset_weights("uniform", 0.5, 2)


# -- the terms ------------------------------------------------------------------------------------------------------
def test_hard_terms_are_the_mean_over_what_counts(lm: TextLM) -> None:
    positions = batch()
    out, head = states(lm, positions), make(lm)
    tokens, labels = positions.tokens[..., 0], positions.labels
    assert labels is not None
    scores = dict(head.unroll(out, tokens))
    for name, step in terms(head, out, positions).items():
        k = int(name)
        assert step.offset == k
        losses, right = [], []
        for b, t in [(b, t) for b in range(len(tokens)) for t in range(tokens.shape[1] - k)]:
            if all(int(labels[b, t + i - 1, 0]) != IGNORE for i in range(2, k + 1)):
                losses.append(F.cross_entropy(scores[k][b, t], tokens[b, t + k]))
                right.append(bool(scores[k][b, t].argmax() == tokens[b, t + k]))
        assert len(losses) > 30
        assert step.right is not None
        assert step.known is not None
        torch.testing.assert_close(step.loss, torch.stack(losses).mean())
        assert (int(step.known.sum()), int(step.right.sum())) == (len(right), sum(right))


@pytest.mark.parametrize(("packed", "loss"), [(False, "hard"), (True, "hard"), (False, "soft"), (False, "l1")])
def test_only_positions_with_a_label_get_a_gradient(lm: TextLM, packed: bool, loss: Loss) -> None:
    """Not the later positions that a soft target is the law of."""
    positions = batch(packed)
    hidden = states(lm, positions).hidden.requires_grad_()
    for step in MTP(make(lm), MTPConfig({loss: 1.0})).steps(LMOutput(hidden), positions):
        (gradient,) = torch.autograd.grad(step.loss, hidden, retain_graph=True)
        reached = gradient.abs().sum((-1, -2)) > 0
        assert torch.equal(reached, labels_at(positions, step.offset, 2) != IGNORE)
        assert 0 < int(reached.sum()) < reached.numel()


def test_packed_answers_give_the_terms_of_answers_alone(lm: TextLM) -> None:
    alone, packed = batch(), batch(packed=True)
    head = make(lm)
    ours, theirs = (terms(head, states(lm, p), p) for p in (packed, alone))
    for name, step in ours.items():
        torch.testing.assert_close(step.loss, theirs[name].loss)


@pytest.mark.parametrize("draft_vocab", [None, 20])
def test_an_oracle_has_no_soft_loss(lm: TextLM, draft_vocab: int | None) -> None:
    positions = batch()
    head = bound(lm, Oracle(TrunkShape(**lm.shape()), draft_vocab))
    out = states(lm, positions)
    for loss in ("soft", "l1"):
        found = terms(head, out, positions, losses={loss: 1.0})
        assert list(found) == ["2", "3", "4"]
        assert all(abs(float(step.loss)) < 1e-6 for step in found.values())
    assert all(float(step.loss) > 1 for step in terms(head, out, positions).values())


def test_a_reduced_vocabulary_restricts_the_law_and_leaves_out_other_tokens(lm: TextLM) -> None:
    positions = batch()
    out, head = states(lm, positions), make(lm, draft_vocab=15)
    ids = torch.arange(3, 33, 2)
    head.set_vocabulary(ids)
    tokens = positions.tokens[..., 0]
    whole = lm.output.logits(out.top)
    divergences = []
    for k, scores in head.unroll(out, tokens):
        divergences.append([])
        labels = labels_at(positions, k, 2)
        for b, t in torch.isin(labels, ids).nonzero().tolist():
            p = whole[b, t + k - 1].softmax(-1)[ids]
            p, q = p / p.sum(), scores[b, t].softmax(-1)
            divergences[-1].append((p * (p / q).log()).sum())
    found = terms(head, out, positions, losses={"hard": 0.5, "soft": 2.0})
    hard = terms(head, out, positions)
    for mine, step, plain in zip(divergences, found.values(), hard.values(), strict=True):
        torch.testing.assert_close(step.loss, 0.5 * plain.loss + 2 * torch.stack(mine).mean())
        assert step.known is not None
        assert len(mine) < int(step.known.sum())  # a token that cannot be drafted counts as a wrong guess


def test_no_token_to_learn_is_no_loss(lm: TextLM) -> None:
    positions, head = batch(), make(lm, draft_vocab=2)
    head.set_vocabulary(torch.tensor([0, VOCAB]) - torch.tensor([0, 1]))
    empty = replace(positions, labels=torch.full_like(positions.tokens, IGNORE))
    for step in terms(head, states(lm, empty), empty, losses={"hard": 1.0, "soft": 1.0}).values():
        assert float(step.loss.detach()) == 0
        step.loss.backward(retain_graph=True)


def test_feature_and_confidence(lm: TextLM) -> None:
    positions = batch()
    out, head = states(lm, positions), bound(lm, Oracle(TrunkShape(**lm.shape())))
    feature = terms(head, out, positions, losses={"feature": 0.5, "hard": 1.0})["feature"]
    assert (float(feature.loss), feature.weight) == (pytest.approx(2.5, abs=1e-5), 0.5)
    judged = terms(head, out, positions, losses={"judge": 1.0})["3"]
    assert float(judged.loss) == pytest.approx(float(F.softplus(torch.tensor(-2.0))), abs=1e-5)


def test_features_count_where_a_draft_begins(lm: TextLM) -> None:
    positions = batch()
    counts = (labels_at(positions, 2, 2) != IGNORE)[..., None]
    head = bound(lm, Oracle(TrunkShape(**lm.shape())))
    head.regress = lambda out, tokens: (torch.where(counts, 3.0, 9.0), torch.where(counts, 3.0, 0.0))
    assert float(terms(head, states(lm, positions), positions, losses={"feature": 1.0})["feature"].loss) == 0.0


def test_the_distance_is_a_mean_over_positions(lm: TextLM) -> None:
    positions, head = batch(), make(lm)
    out = states(lm, positions)
    b, t = (labels_at(positions, 2, 2) != IGNORE).nonzero(as_tuple=True)
    p = lm.output.logits(out.top[b, t + 1]).softmax(-1)
    q = dict(head.unroll(out, positions.tokens[..., 0]))[2][b, t].softmax(-1)
    found = terms(head, out, positions, losses={"l1": 2.0})["2"].loss
    torch.testing.assert_close(found, 2 * (p - q).abs().sum(-1).mean())


def test_confidence_learns_the_share_that_is_kept_and_leaves_the_draft_alone() -> None:
    torch.manual_seed(0)
    law, chance = torch.randn(5, 7).log_softmax(-1), torch.randn(5, requires_grad=True)
    scores = torch.randn(5, 7, requires_grad=True)
    kept = torch.minimum(law.exp(), scores.detach().softmax(-1)).sum(-1)
    loss = judgement(law, scores, chance)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(chance, kept))
    loss.backward()
    assert scores.grad is None
    assert chance.grad is not None
    assert chance.grad.all()


# -- one offset at a time -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", plugins.names("heads"))
def test_sequential_backward_is_the_joint_one(name: str) -> None:
    lm = tiny_text_lm().requires_grad_(False).double()  # sums in another order differ by more than 1e-6 in float32
    positions, head = batch(), make(lm, name).double()
    out = states(lm, positions, head.taps)
    objective, gradients = MTP(head, MTPConfig(losses={"hard": 1.0, "soft": 0.5})), []
    for sequential in (True, False):
        hidden = out.hidden.clone().requires_grad_()
        head.zero_grad()
        total: Any = 0.0
        for step in objective.steps(LMOutput(hidden, final=out.final), positions, torch.Generator().manual_seed(0)):
            if sequential:
                (step.weight * step.loss).backward(retain_graph=True)
            else:
                total = total + step.weight * step.loss
            del step
        if not sequential:
            total.backward()
        gradients.append([hidden.grad, *(p.grad for p in head.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert gradients[0][0].abs().sum() > 0


class Watched(ParallelHead):
    """Notes how many of its earlier logits are still alive when it computes the next."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__(shape, (2, 3, 4, 5))
        self.scale = nn.Parameter(torch.ones(4))
        self.made: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        return hidden

    def scores(self, states: Tensor, depth: int, before: Tensor) -> Tensor:
        self.alive.append(sum(reference() is not None for reference in self.made))
        logits = self.unembed(states) * self.scale[depth]
        self.made.append(weakref.ref(logits))
        return logits


def test_logits_of_two_offsets_never_exist_together(lm: TextLM) -> None:
    positions = batch()
    head = bound(lm, Watched(TrunkShape(**lm.shape())))
    for step in MTP(head, MTPConfig(losses={"hard": 1.0, "soft": 1.0})).steps(states(lm, positions), positions):
        step.loss.backward(retain_graph=True)
        del step
    assert head.alive == [0, 0, 0, 0]
    assert bool((head.scale.grad != 0).all())


# -- blocks, and settings that do not fit ---------------------------------------------------------------------------
def test_anchors_are_positions_that_can_be_trained() -> None:
    positions = batch()
    good = labels_at(positions, 2, 2) != IGNORE
    anchors = choose_anchors(positions, 2, 5, torch.Generator().manual_seed(0))
    assert anchors.shape == (8, 5)
    assert bool(good.gather(1, anchors).all())
    assert bool((anchors.diff(dim=1) > 0).all())
    assert not torch.equal(anchors, choose_anchors(positions, 2, 5, torch.Generator().manual_seed(1)))
    every = choose_anchors(positions, 2, 1000, None)
    assert every.shape[1] == int(good.sum(1).max())
    assert torch.equal(good.gather(1, every).sum(1), good.sum(1))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"losses": {"feature": 1.0}}, "Medusa has nothing to train with the loss 'feature'"),
        ({"losses": {"judge": 1.0}}, "Medusa has nothing to train with the loss 'judge'"),
        ({"losses": {}}, "needs a loss"),
        ({"losses": {"hard": -1.0}}, "positive weight"),
        ({"anchors": 8}, "anchors is 8 for the head Medusa"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lm: TextLM, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MTP(make(lm), MTPConfig(**config))
