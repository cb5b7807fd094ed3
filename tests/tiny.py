"""A whole speech model of tiny random parts: backbone, letters as phonemes, talker and codec."""

from __future__ import annotations

from typing import Any

import torch

from speech_mtp.codecs.dac import Dac
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.speech_lm import SpeechLM, SpeechLMConfig
from speech_mtp.lm.units import UnitMaker
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.types import Sampling
from tests.lm.tiny import Letters, tiny_backbone

SMALL = {"dim": 32, "num_layers": 2, "heads": 2, "hidden": 48, "unit_dim": 16}


def tiny_lm(codebook_sizes: tuple[int, ...] = (1000, 200), scale: float = 1.0, **settings: Any) -> SpeechLM:
    """A random talker; ``scale`` multiplies its last layer, so that its laws are flat or peaked."""
    torch.manual_seed(1)
    sizes = {"codebook_sizes": codebook_sizes, "frame_rate_hz": 25.0, "timbre_dim": 8, "backbone_dim": 16}
    config = {**SMALL, **sizes, "num_phonemes": len(SYMBOLS), "frames_per_group": 2, **settings}
    lm = SpeechLM(SpeechLMConfig(**config)).eval()
    with torch.no_grad():
        for name, weight in lm.output.named_parameters():
            if name.startswith(("down", "heads")):
                weight.mul_(scale)
    return lm


def tiny_model(**settings: Any) -> SpeechModel:
    """Two voices, ``low`` and ``high``. ``settings`` are those of the talker."""
    codec = Decoupled.tiny()
    lm = tiny_lm(codec.spec.codebook_sizes, **settings)
    rng = torch.Generator().manual_seed(2)
    voices = {name: torch.randn(codec.spec.timbre_dim, generator=rng) for name in ("low", "high")}
    return SpeechModel("tiny", UnitMaker(tiny_backbone(), Letters()), lm, codec, voices, Sampling(seed=5))


def tiny_model_without_timbre() -> SpeechModel:
    """The same two voices, which the talker knows by heart: its codec has no timbre. 16 kHz, 500 frames a second."""
    codec, names = Dac.tiny().eval(), ("low", "high")
    settings = {"frame_rate_hz": codec.spec.frame_rate_hz, "timbre_dim": 0, "voices": names}
    lm = tiny_lm(codec.spec.codebook_sizes, **settings)
    voices = dict(zip(names, torch.eye(2), strict=True))
    return SpeechModel("tiny", UnitMaker(tiny_backbone(), Letters()), lm, codec, voices, Sampling(seed=5))
