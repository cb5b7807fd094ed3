"""Block drafters: one pass that decodes as it was trained, blocks blind to each other, DSpark's bias and confidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp.decoding import text
from speech_mtp.decoding.chain import Chain
from speech_mtp.heads.dflash import DFlash, spread
from speech_mtp.heads.dspark import DSpark
from speech_mtp.types import LMOutput, Sampling
from tests.decoding.walk import bound, tiny_text_lm

LM = tiny_text_lm(11, num_layers=4)
TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(3))
CASES = [
    (DFlash, {"num_drafts": 3}),
    (DFlash, {"num_drafts": 1, "num_layers": 1, "mask_id": 10, "draft_vocab": 6}),
    (DSpark, {"num_drafts": 3}),
    (DSpark, {"num_drafts": 4, "draft_vocab": 6, "taps": (1, -1)}),
]


def random_head(kind: type[DFlash], **settings: Any) -> DFlash:
    torch.manual_seed(4)
    head: DFlash = bound(kind, LM, **settings)
    for weight in head.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    if head.token_map is not None:
        head.set_vocabulary(torch.tensor([9, 2, 4, 0, 7, 5]))
    return head


@torch.inference_mode()
def states(head: DFlash, tokens: Tensor = TOKENS) -> LMOutput:
    return LM(tokens, torch.full((len(tokens),), tokens.shape[1]), head.taps)


@torch.inference_mode()
def drafted(head: DFlash, out: LMOutput, lengths: list[int], truth: Tensor = TOKENS) -> list[Tensor]:
    """Scores of every depth after the first ``lengths`` tokens of each row, read in two goes, with the true tokens."""
    state = head.open(len(lengths), torch.device("cpu"), torch.float32)
    first, rest = torch.tensor([1] * len(lengths)), torch.tensor(lengths) - 1
    for part, count in ((slice(0, 1), first), (slice(1, max(lengths)), rest)):
        head.read(state, out.hidden[:, part], head.embed(truth.roll(-1, 1)[:, part]), count)
    scores = []
    for d in range(head.num_depths):
        at = torch.tensor(lengths)[:, None] + d
        token = truth.gather(1, at.clamp(max=truth.shape[1] - 1))
        parents = torch.full_like(token, d - 2)
        states = head.expand(state, head.embed(token), parents) if d else head.root(state)[:, None]
        scores.append(head.scores(states, d, token)[:, 0])
    return scores


def at_anchors(head: DFlash, out: LMOutput, anchors: Tensor) -> dict[int, Tensor]:
    """Scores ``[B, A, num_tokens]`` per offset after ``anchors [B, A]``, with the true tokens."""
    found = {}
    for d, (offset, states) in enumerate(head.unroll_states_at(out, head.embed(TOKENS), anchors)):
        before = TOKENS.gather(1, (anchors + offset - 1).clamp(max=TOKENS.shape[1] - 1))
        found[offset] = head.scores(states, d, before)
    return found


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_drafts_are_what_was_trained(kind: type[DFlash], settings: dict[str, Any]) -> None:
    head = random_head(kind, **settings)
    out = states(head)
    trained = dict(head.unroll(out, TOKENS))
    assert list(trained) == list(head.offsets)
    for lengths in [[1, 3], [4, 2], [6, 8], [8, 5]]:
        for d, scores in enumerate(drafted(head, out, lengths)):
            assert scores.shape == (2, head.num_tokens)
            for b, n in enumerate(lengths):
                if n + d < TOKENS.shape[1]:
                    torch.testing.assert_close(scores[b], trained[d + 2][b, n - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [DFlash, DSpark])
def test_a_block_sees_neither_the_future_nor_other_blocks(kind: type[DFlash]) -> None:
    head = random_head(kind, num_drafts=3)
    out = states(head)
    anchors = torch.tensor([[5, 1], [0, 3]])
    some = at_anchors(head, out, anchors)
    whole = dict(head.unroll(out, TOKENS))
    other = TOKENS.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    changed = dict(head.unroll(states(head, other), other))
    for j, offset in enumerate(head.offsets):
        expected = whole[offset].gather(1, anchors[..., None].expand(-1, -1, 11))
        torch.testing.assert_close(some[offset], expected, atol=1e-4, rtol=1e-4)
        seen = 5 - (1 if kind is DFlash else j + 1)  # anchors whose known tokens are all before position 5
        torch.testing.assert_close(changed[offset][:, :seen], whole[offset][:, :seen], atol=1e-4, rtol=1e-4)
        assert (changed[offset][:, seen] - whole[offset][:, seen]).abs().max() > 1e-3


def test_slots_see_each_other_in_both_directions() -> None:
    """The first slot's state changes with the number of slots behind it."""
    few, many = random_head(DFlash, num_drafts=2), random_head(DFlash, num_drafts=5)
    many.load_state_dict(few.state_dict())
    out = states(few)
    assert not torch.allclose(drafted(few, out, [4, 4])[0], drafted(many, out, [4, 4])[0], atol=1e-3)


def test_dspark_depends_on_the_token_before_and_dflash_does_not() -> None:
    other = TOKENS.clone()
    other[:, 5] = (other[:, 5] + 1) % 11
    for kind in (DFlash, DSpark):
        head = random_head(kind, num_drafts=3)
        out = states(head)
        mine, changed = drafted(head, out, [4, 4]), drafted(head, out, [4, 4], other)
        assert torch.equal(mine[0], changed[0])
        assert torch.equal(mine[1], changed[1]) == (kind is DFlash)
        assert torch.equal(mine[2], changed[2])


@torch.inference_mode()
def test_confidence_is_as_trained_and_stops_the_chain() -> None:
    head = random_head(DSpark, num_drafts=3)
    assert isinstance(head, DSpark)
    prompts = [TOKENS[0, :4].tolist(), TOKENS[1, :6].tolist()]
    run = text.start(LM, prompts, Sampling(temperature=0), Chain(head))
    last = torch.tensor([[prompt[-1]] for prompt in prompts])
    chance = head.confidence(head.root(run.rows.head)[:, None], 0, last)
    anchors = torch.tensor([[2], [4]])  # the last token is not read yet
    (_, trained), *_ = head.unroll_states_at(states(head), head.embed(TOKENS), anchors)
    assert chance is not None
    torch.testing.assert_close(chance, head.kept_logit(trained, last).sigmoid(), atol=1e-4, rtol=1e-4)
    most = float(chance.max())
    for confidence, drafts in ((1.01 * most, False), (0.99 * most, True)):
        rule = Chain(head, confidence=confidence)
        assert (rule.propose(run.rows, run.law).tokens.shape[1] > 1) == drafts


def test_gradients_reach_every_weight_one_offset_at_a_time() -> None:
    for kind in (DFlash, DSpark):
        head = random_head(kind, num_drafts=3).requires_grad_(True)
        out = LMOutput(states(head).hidden.clone())
        for logits in at_anchors(head, out, torch.tensor([[1, 4], [2, 3]])).values():
            logits.square().sum().backward(retain_graph=head.shared_pass)
        trained = [name for name, weight in head.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert set(dict(head.named_parameters())) - set(trained) <= {"judge.weight", "judge.bias"}


@torch.no_grad()
def test_a_token_may_be_the_mask_and_the_bigram_bias_starts_at_nought() -> None:
    head = bound(DFlash, LM, num_drafts=2, mask_id=10)
    assert torch.equal(head.blocks(LM.embed(torch.tensor([[3]])))[0, 0], LM.embed(torch.tensor([3, 10, 10])))
    spark = bound(DSpark, LM, num_drafts=2)
    assert isinstance(spark, DSpark)
    states = torch.randn(4, spark.shape.dim)
    assert torch.equal(spark.scores(states, 0, torch.arange(4)), spark.unembed(states))


def test_taps_spread_over_the_trunk() -> None:
    assert spread(5, 30) == (2, 9, 15, 21, 28)
    assert spread(3, 30) == (2, 15, 28)
    assert spread(1, 30) == (16,)
    assert spread(2, 3) == (2,)
    assert spread(4, 2) == (1,)


def test_a_block_has_an_end() -> None:
    head = random_head(DFlash, num_drafts=2)
    state = head.open(1, torch.device("cpu"), torch.float32)
    x, parents = head.embed(torch.tensor([[1]])), torch.tensor([[-1]])
    head.root(state)
    head.expand(state, x, parents)
    with pytest.raises(ValueError, match="drafts 2 tokens"):
        head.expand(state, x, parents)
    with pytest.raises(ValueError, match="mask_id is 11"):
        bound(DFlash, LM, mask_id=11)
