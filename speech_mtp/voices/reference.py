"""A recording of somebody -> the timbre of their voice.

Silence is left out and the level made that of the recordings that codecs are trained on, so that neither becomes a part
of the voice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from speech_mtp import audio
from speech_mtp.codecs.base import Codec

LEAST_S, MOST_S = 1.0, 10.0
"""Seconds of speech that a voice is made of; of more, the first."""
LOOKED_AT_S = 60.0
"""Seconds of a recording in which they are looked for."""
LEAST_LEVEL = 1e-3
"""What is never louder than this (-60 dB) is silence."""
LEVEL = 0.08
"""Root mean square that the speech is brought to."""
BLOCK_S = 0.02
LOUD_BLOCKS = 25
"""Half a second: as loud as the softest of the loudest blocks is loud."""
BELOW_LOUD = 0.03
"""Blocks that are so much softer than loud ones (-30 dB) are silence."""
FEW_VOICES = 8
"""A model that has heard no more voices makes new ones sound near one of them."""
ABOVE_FLOOR = 2.0
"""Speech is so much louder than what is heard between its words (6 dB)."""
AROUND = 5
"""Blocks on both sides of speech that are kept."""


class UnusableRecordingError(ValueError):
    """No voice can be made of this recording; the sentence says why."""


@dataclass(frozen=True)
class Reference:
    """The speech ``[S]`` of a recording at the codec's rate and at ``LEVEL``, which it was brought to by ``gain``."""

    speech: Tensor
    gain: float

    def timbre(self, codec: Codec) -> Tensor:
        """The voice, ``[E]`` in float32 on the CPU. Raises ValueError for a codec that keeps no timbre."""
        check_timbre(codec)
        timbre = codec.encode(self.speech.to(next(codec.parameters()).device)[None, None]).timbre
        assert timbre is not None
        return timbre[0].float().cpu().clone()


def remark(voices: Iterable[str], heard: int) -> str:
    """What is said of a new voice where a model with ``voices`` of its own has ``heard`` few; else nothing."""
    if heard > FEW_VOICES:
        return ""
    return f"The model was trained on few voices ({', '.join(voices)}): a new one sounds near one of them."


def check_timbre(codec: Codec) -> None:
    """Raise ValueError for a codec that keeps no timbre apart."""
    if not codec.spec.timbre_dim:
        raise ValueError("This codec keeps no timbre apart, so no voice can be made for it; choose a decoupled one.")


def timbre_of(codec: Codec, wave: Tensor, rate_hz: int) -> Tensor:
    """The voice in ``wave [S]``, ``[E]``; 3 to 10 seconds of speech are best. Errors as for :func:`reference_of`, and
    ValueError for a codec that keeps no timbre."""
    check_timbre(codec)
    return reference_of(wave, rate_hz, codec.spec.sample_rate).timbre(codec)


def reference_of(wave: Tensor, from_hz: int, to_hz: int) -> Reference:
    """At most ``MOST_S`` seconds of speech of ``wave [S]``, without silence, at ``to_hz``.

    Raises UnusableRecordingError for silence and for less than a second of speech. What is loud is taken for a voice.
    """
    wave = wave[: int(LOOKED_AT_S * from_hz)]
    if len(wave):
        wave = wave - wave.mean()
    wave = audio.resample(wave, from_hz, to_hz) if from_hz != to_hz and len(wave) else wave
    size = int(BLOCK_S * to_hz)
    blocks = F.pad(wave, (0, -len(wave) % size)).view(-1, size)
    level = blocks.square().mean(1).sqrt()
    loud = float(level.topk(min(LOUD_BLOCKS, len(level))).values[-1]) if len(level) else 0.0
    if loud < LEAST_LEVEL:
        raise UnusableRecordingError("The recording is silent; give one with a voice in it.")
    floor = float(level.quantile(0.1))
    spoken = level > max(LEAST_LEVEL, BELOW_LOUD * loud, min(ABOVE_FLOOR * floor, loud / ABOVE_FLOOR))
    kept = F.max_pool1d(spoken.float()[None], 2 * AROUND + 1, 1, AROUND)[0] > 0
    speech = blocks[kept].flatten()[: int(MOST_S * to_hz)]
    if len(speech) < LEAST_S * to_hz:
        raise UnusableRecordingError(
            f"The recording holds less than {LEAST_S:g} second of speech; give more of it, 3 to 10 seconds."
        )
    gain = LEVEL / float(level[spoken].square().mean().sqrt())
    return Reference((speech * gain).clamp(-1, 1), gain)
