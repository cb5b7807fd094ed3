"""What we write is read by the programs it is for: lm-eval (extra ``eval``) and, where installed, speculators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp.exports.base import open_trunk
from speech_mtp.exports.ntp import NTP
from speech_mtp.exports.speculators import Speculators
from speech_mtp.types import LMOutput
from tests.exports.test_ntp import REQUESTS, log_likelihoods
from tests.exports.tiny import DIM, VOCAB, trained, trunk_folder


def test_lm_eval_scores_the_export_as_the_base(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    base = trunk_folder(tmp_path / "base")
    lm = open_trunk(base)
    NTP().write(tmp_path / "out", trained(lm, name="medusa"), lm)

    def scored(folder: Path) -> list[tuple[float, bool]]:
        model: Any = HFLM(pretrained=str(folder), device="cpu", batch_size=2, dtype="auto")
        return list(model.loglikelihood([Instance("loglikelihood", {}, request, 0) for request in REQUESTS]))

    found = scored(tmp_path / "out")
    assert found == scored(base)
    for (mine, mine_greedy), (theirs, theirs_greedy) in zip(log_likelihoods(base), found, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
        assert mine_greedy == theirs_greedy


@pytest.mark.parametrize("draft_vocab", [None, 30])
def test_speculators_drafts_as_we_do(tmp_path: Path, draft_vocab: int | None) -> None:
    """Its model, given our tokens, has the logits of our unroll at every step that both define."""
    pytest.importorskip("speculators", reason="its package is not in our extras, which it would hold back")
    from speculators.models.eagle3.core import Eagle3DraftModel

    lm = open_trunk(trunk_folder(tmp_path / "base"))
    head = trained(lm, name="eagle3", depth=3, draft_vocab=draft_vocab)
    Speculators().write(tmp_path / "out", head, lm)
    theirs: Any = Eagle3DraftModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    seen: list[Tensor] = []
    theirs.lm_head.register_forward_hook(lambda module, given, made: seen.append(made[0].detach()))
    rng = torch.Generator().manual_seed(4)
    hidden, tokens = torch.randn(1, 128, 3, DIM, generator=rng), torch.randint(VOCAB, (1, 128), generator=rng)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours = dict(head.unroll(LMOutput(hidden), tokens))
        after = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
        theirs(hidden.flatten(2), after, torch.zeros_like(after), ttt_steps=3)
    assert len(seen) == len(ours) == 3
    for step, (offset, logits) in enumerate(ours.items()):
        known = tokens.shape[1] - offset
        torch.testing.assert_close(seen[step][:known], logits[0, :known], rtol=1e-4, atol=1e-4)
