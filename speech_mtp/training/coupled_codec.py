"""Training of the coupled and of the semi-decoupled codec (:mod:`speech_mtp.codecs.coupled`).

Besides what every codec is trained on (:mod:`speech_mtp.training.source_filter_task`):

* ``books``: the codebooks learn the vectors, and the encoder keeps to them (VQ-VAE's two losses);
* ``distil``: a recogniser's features from the values of the first book, as SpeechTokenizer does
  (:mod:`speech_mtp.training.distilling`);
* ``ctc``: with a semantic first book, phonemes from its values: the loss by which the decoupled codec learns what is
  said.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speech_mtp.codecs._source_filter import FrameEncoder
from speech_mtp.codecs.coupled import Coupled
from speech_mtp.nn.ctc import Prior
from speech_mtp.training.codec_data import CodecBatch, check_heeded
from speech_mtp.training.precision import mixed
from speech_mtp.training.source_filter_task import SourceFilterTask

OF_STREAMS = ("warp", "warp_share", "views", "drop_detail")
"""Settings of a content stream."""
TERMS_OF_STREAMS = ("near", "frame", "energy", "adversary", "consistency", "codes", "spread", "said")


class CoupledTask(SourceFilterTask):
    """Trains a :class:`Coupled` codec. Raises ValueError for settings of streams that it has not."""

    codec: Coupled

    def check(self, codec: Coupled) -> None:
        why = "A coupled codec has no content or prosody of its own"
        check_heeded(self.config, OF_STREAMS, TERMS_OF_STREAMS, why)
        if self.config.ctc_prior and codec.phonemes is None:
            raise ValueError(
                "Only a semantic first book tells phonemes; leave task.ctc_prior out, or set model.semantic."
            )

    def make_helpers(self, voices: int) -> dict[str, nn.Module]:
        tells = self.codec.phonemes is not None and self.config.ctc_prior
        return {"ctc_prior": Prior(self.codec.config.num_symbols)} if tells else {}

    @property
    def dim_distilled(self) -> int:
        return self.codec.config.dim

    @property
    def ear(self) -> FrameEncoder:
        return self.codec.encoder

    def features_of_ear(self, crop: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel, low, mask = self.codec.features(crop, lengths)
        return torch.cat([mel, low], -1), mask

    def timbre(self, batch: CodecBatch) -> Tensor:
        """The same for everybody."""
        return self.codec.voice(None, len(batch.wave))

    def encode(self, batch: CodecBatch, timbre: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        codec = self.codec
        with mixed(self.config.amp, self.device):
            mel, low, mask = codec.features(batch.wave, batch.lengths)
            latent = codec.latent(mel, low, mask).float()
        parts, _, loss = codec.quantiser(latent, mask)
        terms = {"books": loss} | self._distilled(parts[0], batch.tracks.get("features"), mask)
        if codec.phonemes is not None:
            with mixed(self.config.amp, self.device):
                log_probs = codec.phonemes(parts[0], mask).float().log_softmax(-1)
            terms["ctc"] = self._phonemes_said("ctc", log_probs, batch, mask)
        whole = torch.stack(parts).sum(0)
        return whole, whole, terms
