"""Everything that speaking needs, in one value: text units (with the backbone), speech LM, codec, voices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.token_maker import TokenMaker
from speech_mtp.lm.units import UnitMaker
from speech_mtp.types import Sampling

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.direct import DirectLM


@dataclass
class SpeechModel:
    """A loaded model: a talker with its reader of text, or the direct form. ``voices`` maps a name to its vector
    ``[E]``: a timbre or, where the codec has none, the one-hot of a voice that the speech LM was trained on (see
    :class:`~speech_mtp.lm.group_lm.GroupLMConfig`). ``sampling`` is the checkpoint's default, and ``voices_heard`` how
    many voices it was trained on, as far as it is known."""

    name: str
    maker: UnitMaker | TokenMaker
    lm: SpeechLM | DirectLM
    codec: Codec
    voices: dict[str, Tensor]
    sampling: Sampling = field(default_factory=Sampling)
    voices_heard: int = 0

    def timbre(self, voice: str | Tensor | None) -> Tensor:
        """``[1, E]`` of a voice, which may be a timbre vector ``[E]`` itself (None: the first one); an unknown name is
        an error that lists the known ones, and so is a vector where the codec has no timbre."""
        if isinstance(voice, Tensor):
            if not self.codec.spec.timbre_dim:
                raise ValueError(f"The codec of model {self.name} has no timbre; name one of the model's voices.")
            return voice[None].to(next(iter(self.voices.values())).device)
        name = voice or next(iter(self.voices))
        if name not in self.voices:
            hint = plugins.nearest(name, list(self.voices))
            raise ValueError(f"Model {self.name} has no voice {name!r}; {hint}")
        return self.voices[name][None]
