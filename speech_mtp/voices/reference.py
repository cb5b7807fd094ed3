"""A recording of somebody -> the timbre of their voice.

Silence is left out and the level made that of the recordings that codecs are trained on, so that neither becomes a part
of the voice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp import audio
from speech_mtp.codecs.base import Codec

LEAST_S, MOST_S = 1.0, 10.0
"""Seconds of speech that a voice is made of; of more, the first."""
LEAST_LEVEL = 1e-3
"""A recording that is never louder than this (-60 dB) is silence."""
LEVEL = 0.08
"""Root mean square that the speech is brought to."""
BLOCK_S = 0.02
BELOW_LOUD = 0.03
"""Blocks that are so much softer than the loud ones (-30 dB) are silence."""
AROUND = 5
"""Blocks on both sides of speech that are kept."""


class UnusableRecordingError(ValueError):
    """No voice can be made of this recording; the sentence says why."""


def timbre_of(codec: Codec, wave: Tensor, rate_hz: int) -> Tensor:
    """The voice in ``wave [S]``, ``[E]`` in float32 on the CPU; 3 to 10 seconds of speech are best.

    Raises UnusableRecordingError for silence and for less than a second of speech, and ValueError for a codec that
    keeps no timbre.
    """
    if not codec.spec.timbre_dim:
        raise ValueError("This codec keeps no timbre apart, so no voice can be made for it; choose a decoupled one.")
    rate = codec.spec.sample_rate
    speech = speech_of(audio.resample(wave, rate_hz, rate) if rate_hz != rate else wave, rate)
    timbre = codec.encode(speech.to(next(codec.parameters()).device)[None, None]).timbre
    assert timbre is not None
    return timbre[0].float().cpu().clone()


def speech_of(wave: Tensor, rate_hz: int) -> Tensor:
    """At most ``MOST_S`` seconds of ``wave [S]`` without its silence, at ``LEVEL``. Errors as for :func:`timbre_of`."""
    size = int(BLOCK_S * rate_hz)
    if not len(wave) or float(wave.abs().max()) < LEAST_LEVEL:
        raise UnusableRecordingError("The recording is silent; give one with a voice in it.")
    blocks = F.pad(wave, (0, -len(wave) % size)).view(-1, size)
    level = blocks.square().mean(1).sqrt()
    spoken = level > BELOW_LOUD * level.quantile(0.95)
    kept = F.max_pool1d(spoken.float()[None], 2 * AROUND + 1, 1, AROUND)[0] > 0
    speech = blocks[kept].flatten()[: int(MOST_S * rate_hz)]
    if len(speech) < LEAST_S * rate_hz:
        raise UnusableRecordingError(
            f"The recording holds less than {LEAST_S:g} second of speech; give more of it, 3 to 10 seconds."
        )
    loud = level[spoken].square().mean().sqrt()
    return torch.as_tensor(speech * (LEVEL / loud)).clamp(-1, 1)
