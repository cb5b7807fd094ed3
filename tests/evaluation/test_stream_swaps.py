"""Swapping a stream moves what that stream carries, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("jiwer", reason="needs the eval extra")
pytest.importorskip("whisper_normalizer", reason="needs the eval extra")

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.judges import Judges
from speech_mtp.evaluation.predictability_table import predictability_table
from speech_mtp.evaluation.stream_swaps import stream_swaps
from speech_mtp.types import Codes

WORDS = ["we had soup", "it is late"]
MELODIES = torch.stack([torch.arange(20.0), torch.tensor([0.0, 1.0] * 10)])


class Transparent(Decoupled):
    """A wave is three numbers a frame: which words, which melody, which voice; so are its codes."""

    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        words, melody, voice = wave[0, 0].view(-1, 3).T
        return Codes(torch.stack([words, melody]).long()[None], torch.tensor([len(words)]), voice[None, :1])

    def decode(self, codes: Codes) -> Tensor:
        words, melody = codes.frames[0].float()
        assert codes.timbre is not None
        return torch.stack([words, melody, codes.timbre[0].expand_as(words)], 1).view(1, 1, -1)


def sample(which: int) -> Sample:
    return Sample("ab"[which], WORDS[which], torch.full((20 + which, 3), float(which)).flatten())


def number(wave: Tensor, at: int) -> int:
    return int(wave.view(-1, 3)[0, at])


EARS = Judges(
    transcribe=lambda wave, rate: WORDS[number(wave, 0)],
    opinion=lambda wave, rate: 3.0,
    second_opinion=lambda wave, rate: 4.0,
    embed=lambda wave, rate: torch.eye(2)[number(wave, 2)],
    pitch=lambda wave, rate: MELODIES[number(wave, 1)],
)


def test_each_stream_moves_its_own_figure() -> None:
    codec = Transparent(Decoupled.tiny().config).eval()
    found = stream_swaps(codec, [sample(0), sample(1)], pairs=2, judges=EARS)
    assert found is not None
    assert list(found) == ["nothing", "content", "prosody", "timbre"]
    kept = {
        name: (f["wer_own"] == 0, f["f0_correlation_own"] > 0.99, f["similarity_own"] > 0.99)
        for name, f in found.items()
    }
    assert kept == {
        "nothing": (True, True, True),
        "content": (False, True, True),
        "prosody": (True, False, True),
        "timbre": (True, True, False),
    }
    assert found["content"]["wer_donor"] == 0
    assert found["content"]["wer_own"] == 1
    assert found["prosody"]["f0_correlation_donor"] > 0.9
    assert found["timbre"]["similarity_donor"] == pytest.approx(1.0)
    assert "timbre" in predictability_table({"swaps": found})


def test_nothing_can_be_swapped_with_itself() -> None:
    assert stream_swaps(Transparent(Decoupled.tiny().config), [sample(0)], pairs=2, judges=EARS) is None
