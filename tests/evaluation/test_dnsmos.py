from __future__ import annotations

import pytest
import torch

pytest.importorskip("speechmos", reason="needs the eval extra")

from speech_mtp.evaluation.dnsmos import dnsmos


def test_noise_scores_low_and_loud_audio_is_accepted() -> None:
    pytest.importorskip("hibari", reason="needs the corpus extra")
    from hibari import Hibari

    speech = torch.from_numpy(Hibari()("We had soup for dinner, and it was good.", seed=1))
    clean = dnsmos(speech * 5 / speech.abs().max(), 24000)
    noisy = dnsmos(torch.randn(len(speech), generator=torch.Generator().manual_seed(0)) * 0.1, 24000)
    assert clean.overall > 2.5 > noisy.overall
    assert clean.p808 > noisy.p808
