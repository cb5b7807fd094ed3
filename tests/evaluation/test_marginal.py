"""The marginalisation oracle: against full enumeration, truncated, in blocks, as a report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_mtp.evaluation import marginal
from speech_mtp.evaluation.marginal import two_ahead, two_ahead_report
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
def enumerated(lm: TextLM, ids: list[int], kept: int | None = None) -> Tensor:
    """The distribution of the token after the next: every continuation is a text of its own."""
    first = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    if kept is not None:
        first = torch.where(first >= first.sort(descending=True).values[kept - 1], first, 0)
        first = first / first.sum()
    texts = torch.tensor([[*ids, v] for v in range(lm.vocab_size)])
    return first @ lm.model(texts).logits[:, -1].softmax(-1)


@pytest.mark.parametrize("branches", [64, 512, 1000])
def test_all_tokens_between_are_summed_over(lm: TextLM, monkeypatch: pytest.MonkeyPatch, branches: int) -> None:
    monkeypatch.setattr(marginal, "BRANCHES", branches)
    found = list(two_ahead(lm, IDS))
    assert torch.cat([ahead.at for ahead in found]).tolist() == list(range(9))
    log_probs, covered = (torch.cat([getattr(ahead, name) for ahead in found]) for name in ("log_probs", "covered"))
    torch.testing.assert_close(covered, torch.ones(9))
    for t in range(9):
        torch.testing.assert_close(log_probs[t].exp(), enumerated(lm, IDS[: t + 1]), atol=1e-6, rtol=1e-4)


def test_few_tokens_between_are_a_model_that_draws_from_them_alone(lm: TextLM) -> None:
    found = list(two_ahead(lm, IDS, top=5))
    assert len(found) == 1  # 45 continuations are one block
    for t in (0, 4, 8):
        torch.testing.assert_close(found[0].log_probs[t].exp(), enumerated(lm, IDS[: t + 1], 5), atol=1e-6, rtol=1e-4)
    assert bool((found[0].covered < 0.999).all())
    assert bool((found[0].covered > 5 / 300).all())


def test_the_report_counts_the_tokens_from_the_third_on(lm: TextLM) -> None:
    documents = [IDS, IDS[:2], [7, 8, 9, 10]]
    report = two_ahead_report(lm, documents, length=8)
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


def test_what_cannot_be_is_one_sentence(lm: TextLM) -> None:
    with pytest.raises(ValueError, match="top is 0; sum over one token at least"):
        next(two_ahead(lm, IDS, 0))
    with pytest.raises(ValueError, match="The text has 512 tokens; the model reads 1 to 511"):
        next(two_ahead(lm, [1] * 512))
    with pytest.raises(ValueError, match="no document of three tokens"):
        two_ahead_report(lm, [[1, 2]], 8)
