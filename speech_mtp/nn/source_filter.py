"""Causal source-filter decoder: frame features in, waveform out, with explicit per-row state.

A causal ConvNeXt network predicts, 100 times a second, a pitch curve, the envelope of a harmonic
part and the envelope of a noise part. A band-limited pulse train at that pitch and fixed noise are
shaped by the envelopes (minimum phase for the pulses) in the short-time spectrum and overlap-added:
the iSTFT head of Vocos (arXiv:2306.00814) on the source-filter model of speech, so that phase need
not be learned and pitch is exact by construction.

Timing. Output for frame f is computed when frame f + 1 arrives (one frame of look-ahead), and a sample
is final once every window over it was added; ``delay_samples`` is the sum of both. A row's first
``delay_samples`` raw samples are dropped by the caller, and ``flush_frames`` zero frames drain it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.nn.conv import CausalBlock, CausalConv, last_valid
from speech_mtp.nn.source import fixed_noise, pulse_train
from speech_mtp.nn.spectral import minimum_phase


@dataclass
class SourceFilterState:
    """What the decoder remembers of each slot; every tensor has the slots as its first axis.

    ``caches`` of the causal layers, in the order of :meth:`SourceFilterDecoder.causal_layers`; ``f0`` and ``voiced``
    at the last 100 Hz step, ``phase`` in cycles, ``samples`` generated so far, ``source [slots, win - hop]`` the past
    pulses and ``overlap [slots, win - hop]`` the unfinished sum of windows.
    """

    caches: list[Tensor]
    f0: Tensor
    voiced: Tensor
    phase: Tensor
    samples: Tensor
    source: Tensor
    overlap: Tensor
    timbre: Tensor


@dataclass
class Pitch:
    """``log_f0`` (natural log of Hz) and ``voiced`` (logits when predicted, 0 or 1 when given): ``[B, 4 F]``."""

    log_f0: Tensor
    voiced: Tensor

    def where(self, rows: Tensor, other: Pitch) -> Pitch:
        """This pitch in ``rows [B]`` (bool), ``other`` in the rest."""
        mine = rows[:, None]
        return Pitch(
            torch.where(mine, self.log_f0, other.log_f0.to(self.log_f0)),
            torch.where(mine, self.voiced, other.voiced.to(self.voiced)),
        )


class CausalPass:
    """One pass through the causal layers: every layer reads its cache in ``state`` and leaves the new one there."""

    def __init__(self, layers: Iterable[nn.Module], state: SourceFilterState) -> None:
        self.slots = {layer: slot for slot, layer in enumerate(layers)}
        self.state = state

    def __call__(self, layer: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        """``x [B, F, D]`` through ``layer``; ``lengths [B]`` of the F steps count."""
        slot, caches = self.slots[layer], self.state.caches
        condition = (self.state.timbre.to(x.dtype),) if isinstance(layer, CausalBlock) else ()
        y, caches[slot] = layer(x, *condition, caches[slot], lengths)
        return y


class SourceFilterDecoder(nn.Module):
    """``[B, F, dim_in]`` frame features and ``[B, E]`` timbre -> raw waveform ``[B, F * samples_per_frame]``."""

    noise: Tensor
    window: Tensor

    def __init__(
        self,
        dim_content: int,
        dim_prosody: int,
        timbre_dim: int,
        sample_rate: int = 24_000,
        hop: int = 240,
        steps_per_frame: int = 4,
        dims: tuple[int, int] = (320, 256),
        blocks: tuple[int, int] = (3, 5),
        dim_pitch: int = 96,
    ) -> None:
        super().__init__()
        self.sample_rate, self.hop, self.steps = sample_rate, hop, steps_per_frame
        self.n_fft = 4 * hop
        self.tail = self.n_fft - hop
        self.delay_samples = hop * steps_per_frame + self.tail
        self.flush_frames = -(-self.delay_samples // (hop * steps_per_frame))
        slow, fast = dims
        self.pitch_in = CausalConv(dim_prosody, dim_pitch, 3)
        self.pitch_slow = nn.ModuleList(CausalBlock(dim_pitch, 3, 2, timbre_dim) for _ in range(2))
        self.pitch_up = nn.Linear(dim_pitch, steps_per_frame * dim_pitch)
        self.pitch_fast = nn.ModuleList(CausalBlock(dim_pitch, 5, 2, timbre_dim) for _ in range(1))
        self.pitch_out = nn.Linear(dim_pitch, 2)
        self.pitch_mean = nn.Linear(timbre_dim, 1)
        nn.init.constant_(self.pitch_mean.bias, 5.0)
        self.slow_in = CausalConv(dim_content + dim_prosody, slow, 3)
        self.slow = nn.ModuleList(CausalBlock(slow, 5, 3, timbre_dim) for _ in range(blocks[0]))
        self.up = nn.Linear(slow, steps_per_frame * fast)
        self.from_pitch = nn.Linear(2, fast)
        self.fast = nn.ModuleList(CausalBlock(fast, 5, 3, timbre_dim) for _ in range(blocks[1]))
        self.norm = nn.LayerNorm(fast)
        self.envelopes = nn.Linear(fast, 2 * (self.n_fft // 2 + 1))
        nn.init.constant_(self.envelopes.bias, -4.0)
        self.register_buffer("noise", fixed_noise(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def causal_layers(self) -> list[CausalConv | CausalBlock]:
        """The layers with a cache: those of the pitch branch, then those of the envelope branch."""
        layers: list[CausalConv | CausalBlock] = [self.pitch_in, *self.pitch_slow, *self.pitch_fast]
        return [*layers, self.slow_in, *self.slow, *self.fast]

    def train(self, mode: bool = True) -> SourceFilterDecoder:
        """Outside training the small pitch branch runs in double precision.

        Pitch is summed over time into the phase of up to a hundred harmonics: a last-bit difference between
        a batch of one frame and a batch of seven would be heard in a comparison of streamed and offline audio.
        """
        super().train(mode)
        for module in (self.pitch_in, self.pitch_slow, self.pitch_up, self.pitch_fast, self.pitch_out, self.pitch_mean):
            module.to(torch.float32 if mode else torch.float64)
        return self

    def open(self, slots: int, device: torch.device) -> SourceFilterState:
        """A state for ``slots`` rows that have heard nothing, with zero timbre."""
        zeros = torch.zeros(slots, device=device)
        return SourceFilterState(
            caches=[layer.fresh(slots, device) for layer in self.causal_layers()],
            f0=torch.full((slots,), 100.0, device=device, dtype=torch.float64),
            voiced=zeros.clone(),
            phase=zeros.double(),
            samples=zeros.long(),
            source=torch.zeros(slots, self.tail, device=device),
            overlap=torch.zeros(slots, self.tail, device=device),
            timbre=torch.zeros(slots, self.pitch_mean.in_features, device=device),
        )

    def reset(self, state: SourceFilterState, rows: Tensor, timbre: Tensor) -> None:
        """Start ``rows [R]`` afresh with ``timbre [R, E]``."""
        fresh = self.open(len(rows), state.phase.device)
        for cache, new in zip(state.caches, fresh.caches, strict=True):
            cache[rows] = new.to(cache.dtype)
        for name in ("f0", "voiced", "phase", "samples", "source", "overlap"):
            getattr(state, name)[rows] = getattr(fresh, name)
        state.timbre[rows] = timbre.to(state.timbre)

    def forward(
        self,
        state: SourceFilterState,
        content: Tensor,
        prosody: Tensor,
        lengths: Tensor,
        given: Pitch | None = None,
        guided: Tensor | None = None,
    ) -> tuple[Tensor, Pitch]:
        """Advance each row by ``lengths [B]`` of the F frames; updates ``state`` in place.

        ``content [B, F, Dc]``, ``prosody [B, F, Dp]`` -> raw wave ``[B, F * samples_per_frame]`` (valid up to the
        row's length) and the predicted pitch. ``given`` overrides the predicted pitch (training),
        in the rows ``guided [B]`` alone where that is given; the sound teaches the predicted pitch nothing.

        1. Predict the pitch from prosody alone.
        2. Predict the envelopes of both parts from content, prosody and pitch.
        3. Make the sources: pulses at that pitch, and noise.
        4. Shape each source by its envelope, and overlap-add.
        """
        run, steps = CausalPass(self.causal_layers(), state), lengths * self.steps

        with torch.autocast(prosody.device.type, enabled=False):  # bf16 would round pitch to half semitones
            predicted = self._predict_pitch(run, prosody, lengths)
        pitch = Pitch(predicted.log_f0.detach(), (predicted.voiced > 0).to(predicted.voiced.dtype))
        if given is not None:
            pitch = given if guided is None else given.where(guided, pitch)

        harmonic, noisy = self._predict_envelopes(run, content, prosody, pitch, lengths)

        pulses, noise = self._sources(state, pitch, steps)

        shaped = self._shape(harmonic, pulses) + self._shape(noisy, noise, zero_phase=True)
        return self._overlap_add(state, shaped, steps), predicted

    def _predict_pitch(self, run: CausalPass, prosody: Tensor, lengths: Tensor) -> Pitch:
        """The pitch branch: ``prosody [B, F, Dp]`` -> pitch ``[B, 4 F]`` in the precision of the branch's weights."""
        exact = self.pitch_out.weight.dtype
        x = run(self.pitch_in, prosody.to(exact), lengths)
        for block in self.pitch_slow:
            x = run(block, x, lengths)
        x = self._to_steps(self.pitch_up(x))
        for block in self.pitch_fast:
            x = run(block, x, lengths * self.steps)
        deviation, voicing = self.pitch_out(x).unbind(-1)
        return Pitch((self.pitch_mean(run.state.timbre.to(exact)) + deviation).clamp(3.9, 6.7), voicing)

    def _predict_envelopes(
        self, run: CausalPass, content: Tensor, prosody: Tensor, pitch: Pitch, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The envelope branch: log envelopes of the harmonic and the noise part, ``[B, 4 F, n_fft / 2 + 1]`` each."""
        x = run(self.slow_in, torch.cat([content, prosody], -1), lengths)
        for block in self.slow:
            x = run(block, x, lengths)
        x = self._to_steps(self.up(x))
        features = torch.stack([(pitch.log_f0 - 5) * 2, pitch.voiced], -1).to(x.dtype)
        x = x + self.from_pitch(features)
        for block in self.fast:
            x = run(block, x, lengths * self.steps)
        harmonic, noisy = self.envelopes(self.norm(x)).float().clamp(max=6).chunk(2, -1)
        return harmonic, noisy

    def _to_steps(self, x: Tensor) -> Tensor:
        """Frames to the steps in them: ``[B, F, 4 D]`` -> ``[B, 4 F, D]``."""
        return x.unflatten(-1, (self.steps, -1)).flatten(1, 2)

    def _sources(self, state: SourceFilterState, pitch: Pitch, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Pulses and noise with their past: both ``[B, tail + 4 F * hop]``."""
        ramp = (torch.arange(self.hop, device=steps.device) + 1) / self.hop

        def to_samples(last: Tensor, track: Tensor) -> Tensor:
            before = torch.cat([last[:, None], track[:, :-1]], 1)[..., None]
            return (before + (track[..., None] - before) * ramp).flatten(1)

        f0 = pitch.log_f0.double().exp()
        voiced = pitch.voiced.float()
        wave, cycles = pulse_train(to_samples(state.f0, f0), state.phase, self.sample_rate)
        pulses = torch.cat([state.source, wave * to_samples(state.voiced, voiced)], 1)
        at = state.samples[:, None] + torch.arange(-self.tail, wave.shape[1], device=steps.device)
        noise = self.noise[at.remainder(len(self.noise))]
        samples = steps * self.hop
        state.source = last_valid(pulses[..., None], samples, self.tail)[..., 0]
        state.phase = last_valid(torch.cat([state.phase[:, None], cycles], 1)[..., None], samples, 1)[:, 0, 0]
        state.f0 = last_valid(torch.cat([state.f0[:, None], f0], 1)[..., None], steps, 1)[:, 0, 0]
        state.voiced = last_valid(torch.cat([state.voiced[:, None], voiced], 1)[..., None], steps, 1)[:, 0, 0]
        state.samples = state.samples + samples
        return pulses, noise

    def _shape(self, log_envelope: Tensor, source: Tensor, zero_phase: bool = False) -> Tensor:
        """Filter every window of ``source`` by its envelope: ``[B, 4 F, n_fft]`` windowed frames."""
        spectrum = torch.fft.rfft(source.unfold(1, self.n_fft, self.hop) * self.window)
        phase = torch.zeros_like(log_envelope) if zero_phase else minimum_phase(log_envelope)
        filtered = spectrum * torch.polar(log_envelope.exp(), phase)
        return torch.fft.irfft(filtered, self.n_fft) * (self.window / 1.5)

    def _overlap_add(self, state: SourceFilterState, frames: Tensor, steps: Tensor) -> Tensor:
        """Sum the windows; samples past a row's last window stay in ``state.overlap``."""
        valid = torch.arange(frames.shape[1], device=steps.device) < steps[:, None]
        frames = frames * valid[..., None]
        blocks = frames.unflatten(-1, (4, self.hop))
        total = sum(F.pad(blocks[:, :, k], (0, 0, k, 3 - k)) for k in range(4))
        wave = total.flatten(1)  # type: ignore[union-attr]
        wave = torch.cat([wave[:, : self.tail] + state.overlap, wave[:, self.tail :]], 1)
        state.overlap = last_valid(wave[..., None], steps * self.hop, self.tail)[..., 0]
        return wave[:, : frames.shape[1] * self.hop]
