from __future__ import annotations

import pytest
import torch

from speech_mtp.evaluation.speaker_similarity import speaker_embedding, speaker_similarity


def test_cosine() -> None:
    first = torch.tensor([1.0, 0.0])
    assert speaker_similarity(first, torch.tensor([2.0, 0.0])) == pytest.approx(1.0)
    assert speaker_similarity(first, torch.tensor([0.0, 3.0])) == pytest.approx(0.0)


def test_one_voice_is_more_like_itself_than_like_a_shifted_one() -> None:
    for module in ("resemblyzer", "hibari"):
        pytest.importorskip(module, reason="needs the eval and corpus extras")
    from hibari import Hibari

    hibari = Hibari()
    first = torch.from_numpy(hibari("We had soup for dinner, and it was good.", seed=1))
    second = torch.from_numpy(hibari("The bus was late again this morning.", seed=2))
    anchor, same = speaker_embedding(first, 24000), speaker_embedding(second, 24000)
    lower = speaker_embedding(second, 17000)  # played too slowly: another, deeper voice
    assert anchor.shape == (256,)
    assert speaker_similarity(anchor, same) > speaker_similarity(anchor, lower) + 0.05
    with pytest.raises(ValueError, match="no speech was found"):
        speaker_embedding(torch.zeros(16000), 16000)
