"""The same speech from another voice, line and room: views of an utterance that must give the same content.

A view has the timing of the utterance, so its codes can be compared frame by frame. It is made of the spectrum that the
content encoder hears; the decoder's target stays the utterance itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled, scaled
from speech_mtp.nn import perturb, spectral
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source import pulse_train


@dataclass(frozen=True)
class Views:
    """How far views differ. Pitch and formants are multiplied or divided by up to ``1 + pitch`` and ``1 + formants``
    (the log of the factor is drawn evenly). A share ``pulses`` has the harmonics of a pulse train at the new pitch, the
    others their own, stretched; a share ``warp`` has its mel axis stretched in place of the formants. ``gain_db`` is
    the deviation of the equaliser; ``noise`` and ``room`` are shares of the views that have one, at ``snr_db`` and with
    ``decay_s``. The decoder, the phonemes and the adversary hear a ``share`` of the utterances by their view, the
    others as they are. All that begins with step ``after``: content that has not learnt its phonemes yet obeys the
    terms best by being always the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    share: float = 0.5
    after: Annotated[int, Field(ge=0)] = 0
    pitch: float = 0.5
    formants: float = 0.18
    pulses: float = 0.6
    warp: float = 0.4
    gain_db: float = 3.0
    noise: float = 0.6
    snr_db: tuple[float, float] = (10.0, 30.0)
    room: float = 0.3
    decay_s: tuple[float, float] = (0.1, 0.5)


@dataclass(frozen=True)
class Change:
    """What a view does to every row, ``[B]`` each: factors of pitch, formants and mel axis; up to which frequency the
    harmonics are those of a pulse train (0: not at all); deviation of the equaliser in dB; ratio of speech to noise in
    dB; level of the direct sound over its echoes in dB and their decay in seconds. Infinite ratios are no noise and no
    echo."""

    pitch: Tensor
    formants: Tensor
    mel_axis: Tensor
    voiced_hz: Tensor
    gain_db: Tensor
    snr_db: Tensor
    direct_db: Tensor
    decay_s: Tensor

    @classmethod
    def random(cls, views: Views, rows: int, device: torch.device) -> Change:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(rows, device=device)

        def spread(most: float) -> Tensor:
            return (1 + most) ** uniform(-1, 1)

        def sometimes(share: float, value: Tensor) -> Tensor:
            return torch.where(torch.rand(rows, device=device) < share, value, torch.inf)

        warped = torch.rand(rows, device=device) < views.warp
        pulses = torch.rand(rows, device=device) < views.pulses
        return cls(
            pitch=spread(views.pitch),
            formants=torch.where(warped, 1.0, spread(views.formants)),
            mel_axis=torch.where(warped, spread(views.formants), 1.0),
            voiced_hz=torch.where(pulses, uniform(2_000, 8_000), 0.0),
            gain_db=torch.full((rows,), views.gain_db, device=device),
            snr_db=sometimes(views.noise, uniform(*views.snr_db)),
            direct_db=sometimes(views.room, uniform(0, 12)),
            decay_s=uniform(*views.decay_s),
        )

    @classmethod
    def fixed(
        cls, rows: int, device: torch.device, pitch: float = 1, formants: float = 1, snr: float = torch.inf
    ) -> Change:
        """The same change of every row."""

        def row(value: float) -> Tensor:
            return torch.full((rows,), value, device=device)

        pulses = 0.0 if pitch == 1 else 5_000.0
        return cls(row(pitch), row(formants), row(1), row(pulses), row(0), row(snr), row(torch.inf), row(0.3))


@torch.no_grad()
def perturbed_mel(codec: Decoupled, wave: Tensor, lengths: Tensor, hertz: Tensor, change: Change) -> Tensor:
    """What the content encoder hears of the changed ``wave [B, S]``, ``[B, ceil(S / hop), mels]``, in float32.

    ``hertz [B, >= S / hop]`` is its pitch, 0 where unvoiced. 1. Put the speech into a room. 2. Change pitch and
    formants. 3. Equalise. 4. Add noise. 5. Stretch the mel axis.
    """
    rate = codec.spec.sample_rate
    with torch.autocast(wave.device.type, enabled=False):
        size = codec.spec.samples_per_frame
        wave = F.pad(wave.float(), (0, -wave.shape[-1] % size))
        wave = perturb.reverberate(wave, change.decay_s, change.direct_db, rate)
        spectrum = codec.mel.spectrum(wave)
        magnitude = spectral.magnitude(spectrum).clamp(min=perturb.FLOOR)
        phase = spectrum / magnitude
        harmonics = pulses_of(codec, hertz[:, : magnitude.shape[2]], change)
        magnitude = perturb.change_voice(magnitude, change.pitch, change.formants, rate, harmonics)
        magnitude = magnitude * perturb.random_gain(len(wave), magnitude.shape[1], change.gain_db)[..., None]
        noise = codec.mel.spectrum(perturb.coloured_noise(wave, lengths, change.snr_db))
        mel = scaled(codec.mel.of_magnitude(spectral.magnitude(magnitude * phase + noise)))
        return perturb.stretch(mel, change.mel_axis)


def pulses_of(codec: Decoupled, hertz: Tensor, change: Change) -> perturb.Harmonics:
    """The harmonics of a voice with the pitch ``hertz [B, T]`` times ``change.pitch``, up to ``change.voiced_hz``."""
    hop, rate = codec.config.hop, codec.spec.sample_rate
    track = (held(hertz) * change.pitch[:, None]).clamp(50, 600)
    samples = F.interpolate(track[:, None], scale_factor=float(hop), mode="linear")[:, 0]
    wave, _ = pulse_train(samples, torch.zeros(len(hertz), dtype=torch.float64, device=hertz.device), rate)
    magnitude = spectral.magnitude(codec.mel.spectrum(wave))
    at = torch.linspace(0, rate / 2, magnitude.shape[1], device=hertz.device)
    share = ((change.voiced_hz[:, None] - at) / 1_000 + 0.5).clamp(0, 1) * (change.voiced_hz > 0)[:, None]
    return perturb.Harmonics(magnitude, share[:, None] * (hertz > 0)[..., None])


def held(hertz: Tensor) -> Tensor:
    """``hertz [B, T]`` with the last voiced value, or 150, in place of the zeros."""
    steps = torch.arange(hertz.shape[1], device=hertz.device).expand_as(hertz)
    last = torch.where(hertz > 0, steps, 0).cummax(1).values
    track = hertz.gather(1, last)
    return torch.where(track > 0, track, 150.0)


def view_terms(fsq: FSQ, first: Tensor, second: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far two views ``[B, F, d]`` (before rounding) are apart in the valid frames of ``mask [B, F, 1]``.

    ``consistency`` is their mean distance in grid steps, ``codes`` the cross entropy of one rounded softly against the
    levels of the other, both ways.
    """
    ours, theirs = fsq.place(first), fsq.place(second)
    count = mask.sum() * len(fsq.levels)
    crossed = [
        -fsq.log_probabilities(a).gather(-1, b.detach().round().long()[..., None])[..., 0]
        for a, b in ((ours, theirs), (theirs, ours))
    ]
    return {
        "consistency": ((ours - theirs).abs() * mask).sum() / count,
        "codes": ((crossed[0] + crossed[1]) / 2 * mask).sum() / count,
    }


@torch.no_grad()
def equal_codes(codec: Decoupled, wave: Tensor, lengths: Tensor, hertz: Tensor) -> dict[str, float]:
    """Share of content codes of ``wave [B, S]`` that stay under fixed views: pitch, formants, both, noise at 20 dB."""
    rows, device = len(wave), wave.device
    mel, _, mask = codec.features(wave, lengths)
    changes = {
        "pitch": Change.fixed(rows, device, pitch=0.72),
        "formants": Change.fixed(rows, device, formants=1.13),
        "both": Change.fixed(rows, device, pitch=0.72, formants=1.13),
        "noise": Change.fixed(rows, device, snr=20.0),
    }

    def codes(heard: Tensor) -> Tensor:
        return codec.content_fsq(codec.content(heard, mask).float())[1]

    plain, valid = codes(mel), mask[..., 0].bool()
    return {
        f"equal_{name}": float(
            (codes(perturbed_mel(codec, wave, lengths, hertz, change)) == plain)[valid].float().mean()
        )
        for name, change in changes.items()
    }
