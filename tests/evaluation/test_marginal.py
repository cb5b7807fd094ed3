"""The marginalisation oracle: against full enumeration, truncated, in blocks, as a report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_mtp.evaluation import marginal
from speech_mtp.evaluation.marginal import Between, ahead_report, look_ahead
from speech_mtp.lm.text_lm import TextLM
from tests.text_tiny import tiny_text_lm


@pytest.fixture(scope="module")
def lm() -> TextLM:
    lm = tiny_text_lm()
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(4)  # or every token is about as likely as every other
    return lm


IDS = torch.randint(300, (9,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def enumerated(lm: TextLM, ids: list[int], kept: int | None = None, k: int = 2) -> Tensor:
    """The distribution of the k-th token: every continuation is a text of its own."""
    first = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    if k == 1:
        return first
    chances, tokens = first.topk(kept or len(first))
    if k == 2:
        texts = torch.tensor([[*ids, v] for v in tokens.tolist()])
        return chances @ lm.model(texts).logits[:, -1].softmax(-1) / chances.sum()
    mass = [mass_of(lm, [*ids, v], kept, k - 1) for v in tokens.tolist()]
    weights = chances * torch.tensor(mass)
    after = torch.stack([enumerated(lm, [*ids, v], kept, k - 1) for v in tokens.tolist()])
    return weights @ after / weights.sum()


@torch.no_grad()
def mass_of(lm: TextLM, ids: list[int], kept: int | None, k: int) -> float:
    """Of the continuations of k - 1 tokens that are summed over."""
    if k == 1:
        return 1.0
    chances, tokens = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1).topk(kept or lm.vocab_size)
    later = [mass_of(lm, [*ids, v], kept, k - 1) for v in tokens.tolist()]
    return float(chances @ torch.tensor(later))


@pytest.mark.parametrize("branches", [64, 512, 1000])
def test_all_tokens_between_are_summed_over(lm: TextLM, monkeypatch: pytest.MonkeyPatch, branches: int) -> None:
    monkeypatch.setattr(marginal, "BRANCHES", branches)
    found = list(look_ahead(lm, IDS))
    assert torch.cat([ahead.at for ahead in found]).tolist() == list(range(9))
    log_probs, covered = (torch.cat([getattr(ahead, name) for ahead in found]) for name in ("log_probs", "covered"))
    torch.testing.assert_close(covered, torch.ones(9))
    for t in range(9):
        torch.testing.assert_close(log_probs[t].exp(), enumerated(lm, IDS[: t + 1]), atol=1e-6, rtol=1e-4)


def test_few_tokens_between_are_a_model_that_draws_from_them_alone(lm: TextLM) -> None:
    found = list(look_ahead(lm, IDS, between=Between(top=5)))
    assert len(found) == 1  # 45 continuations are one block
    for t in (0, 4, 8):
        torch.testing.assert_close(found[0].log_probs[t].exp(), enumerated(lm, IDS[: t + 1], 5), atol=1e-6, rtol=1e-4)
    assert bool((found[0].covered < 0.999).all())
    assert bool((found[0].covered > 5 / 300).all())


def test_the_report_counts_the_tokens_from_the_third_on(lm: TextLM) -> None:
    documents = [IDS, IDS[:2], [7, 8, 9, 10]]
    report = ahead_report(lm, documents, length=8)
    assert report["tokens"] == 6 + 2
    nats, right = [], []
    for ids in (IDS[:8], documents[2]):
        for t in range(len(ids) - 2):
            probs = enumerated(lm, ids[: t + 1])
            nats.append(-probs[ids[t + 2]].log())
            right.append(probs.argmax() == ids[t + 2])
    assert report["loss"]["value"] == pytest.approx(float(torch.stack(nats).mean()), rel=1e-5)
    assert report["right"]["value"] == pytest.approx(float(torch.stack(right).float().mean()))
    assert report["covered"]["value"] == pytest.approx(1)


@pytest.mark.parametrize("branches", [16, 512])
@pytest.mark.parametrize(("k", "kept"), [(3, 4), (4, 3)])
def test_further_ahead_every_continuation_of_the_likeliest_counts(
    lm: TextLM, monkeypatch: pytest.MonkeyPatch, k: int, kept: int, branches: int
) -> None:
    monkeypatch.setattr(marginal, "BRANCHES", branches)
    found = list(look_ahead(lm, IDS, k, Between(top=kept)))
    log_probs, covered = (torch.cat([getattr(ahead, name) for ahead in found]) for name in ("log_probs", "covered"))
    for t in (0, 3, 8):
        text = IDS[: t + 1]
        torch.testing.assert_close(log_probs[t].exp(), enumerated(lm, text, kept, k), atol=1e-6, rtol=1e-3)
        assert float(covered[t]) == pytest.approx(mass_of(lm, text, kept, k), rel=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_draws_come_near_the_sum(lm: TextLM, k: int) -> None:
    """Half the L1 distance of 2,000 draws; of twenty it is clearly more."""
    exact = torch.cat([ahead.log_probs for ahead in look_ahead(lm, IDS[:3], k, Between(top=None if k == 2 else 40))])
    far = []
    for samples in (20, 2000):
        drawn = list(look_ahead(lm, IDS[:3], k, Between(samples=samples), seed=5))
        again = list(look_ahead(lm, IDS[:3], k, Between(samples=samples), seed=5))
        assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(drawn, again, strict=True))
        assert all(bool((ahead.covered - 1).abs().max() < 1e-4) for ahead in drawn)
        far.append(
            float((torch.cat([ahead.log_probs for ahead in drawn]).exp() - exact.exp()).abs().sum(-1).mean() / 2)
        )
    assert far[1] < 0.1
    assert far[0] > 2 * far[1]


def test_what_cannot_be_is_one_sentence(lm: TextLM) -> None:
    with pytest.raises(ValueError, match="top is 0; use one at least"):
        Between(top=0)
    with pytest.raises(ValueError, match="not both"):
        Between(top=2, samples=3)
    with pytest.raises(ValueError, match="The text has 512 tokens; the model reads 1 to 511 and one more"):
        next(look_ahead(lm, [1] * 512))
    with pytest.raises(ValueError, match="k is 1"):
        next(look_ahead(lm, IDS, 1))
    with pytest.raises(ValueError, match="90000 continuations of 2 tokens are more than"):
        next(look_ahead(lm, IDS, 3))
    with pytest.raises(ValueError, match="no document of 4 tokens"):
        ahead_report(lm, [[1, 2, 3]], 8, 3)
