"""Utterances as probes need them: codes, the phoneme that every frame speaks, pitch and loudness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from speech_mtp.audio import at_seconds
from speech_mtp.codecs.base import Codec
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.f0 import COARSE_RATE_HZ, coarse_log_f0
from speech_mtp.evaluation.stream_probes import Aligned
from speech_mtp.types import CodecSpec

Aligner = Callable[[Sample, CodecSpec], tuple[Tensor, Tensor, float] | None]
"""``(sample, spec of its codec)`` -> phonemes ``[U]``, the unit of each frame ``[F]`` and frames per second, which need
not be the codec's; None for one that cannot be aligned."""


def aligned_utterances(
    codec: Codec, samples: Sequence[Sample], align: Aligner, report: Callable[[str], None] = lambda name: None
) -> Iterator[Aligned]:
    """Those of ``samples`` that have a text and can be aligned."""
    rate = codec.spec.sample_rate
    for i, sample in enumerate(samples):
        report(f"align {i + 1} of {len(samples)}")
        found = align(sample, codec.spec) if sample.text else None
        if found is None or sample.text is None:
            continue
        phonemes, unit, frames_per_second = found
        frames = codec.encode(sample.wave[None, None]).frames[0]
        seconds = (torch.arange(frames.shape[1]) + 0.5) / codec.spec.frame_rate_hz
        yield Aligned(
            voice=sample.voice,
            text=sample.text,
            frames=frames,
            phonemes=phonemes,
            unit=at_seconds(unit, seconds, frames_per_second),
            log_f0=at_seconds(coarse_log_f0(sample.wave, rate), seconds, COARSE_RATE_HZ),
            energy=_energy(sample.wave, frames.shape[1], codec.spec.samples_per_frame),
        )


def _energy(wave: Tensor, frames: int, samples_per_frame: int) -> Tensor:
    padded = torch.nn.functional.pad(wave, (0, frames * samples_per_frame - len(wave)))
    return padded.view(frames, samples_per_frame).square().mean(1).clamp_min(1e-8).log() / 2
