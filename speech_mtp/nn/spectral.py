"""Spectral leaves: mel features, minimum-phase filters, multi-resolution spectral losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def magnitude(spectrum: Tensor) -> Tensor:
    """The magnitude of complex numbers, without a gradient at 0; ``abs`` guards against overflow and takes three times
    as long."""
    return (spectrum.real.square() + spectrum.imag.square()).sqrt()


class _Magnitudes(torch.autograd.Function):
    """``|rfft|`` of frames ``[..., n]``, n even. Its gradient is one inverse transform of half a spectrum; torch's own
    is a complex transform of a whole one."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        found = magnitude(spectrum)
        ctx.save_for_backward(spectrum, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        spectrum, found = ctx.saved_tensors
        scale = gradient / found.clamp(min=1e-20)
        scale[..., 1:-1] *= 0.5  # bins that stand for two
        n = 2 * (found.shape[-1] - 1)
        return torch.fft.irfft(spectrum * scale, n, norm="forward")


def magnitudes(wave: Tensor, window: Tensor, hop: int) -> Tensor:
    """The spectrum's magnitude ``[B, T, n // 2 + 1]`` of ``wave [B, S]`` in windows ``[n]`` that begin every ``hop``
    samples from the first on, as many as are whole."""
    found: Tensor = _Magnitudes.apply(wave.unfold(-1, len(window), hop) * window)
    return found


def centred(wave: Tensor, n_fft: int, hop: int) -> Tensor:
    """``wave [B, S]`` with zeros around it: each of its ``ceil(S / hop)`` windows of ``n_fft`` has the middle of its
    own ``hop`` samples in the middle."""
    frames = -(-wave.shape[-1] // hop)
    before = (n_fft - hop) // 2
    after = frames * hop - wave.shape[-1] + n_fft - hop - before
    return F.pad(wave, (before, after))


class LogMel(nn.Module):
    """Log-mel spectrogram, one column per ``hop`` samples: ``wave [B, S]`` -> ``[B, ceil(S / hop), num_mels]``.

    Column i is centred on the middle of samples ``[i * hop, (i + 1) * hop)``; natural logarithm, floor 1e-5.
    """

    def __init__(self, sample_rate: int, n_fft: int, hop: int, num_mels: int, f_max: float | None = None) -> None:
        super().__init__()
        self.hop, self.n_fft = hop, n_fft
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft, hop_length=hop, n_mels=num_mels, f_max=f_max, power=1.0, center=False, norm="slaney"
        )

    def forward(self, wave: Tensor) -> Tensor:
        return self._log(magnitudes(centred(wave, self.n_fft, self.hop), self.mel.spectrogram.window, self.hop))

    def spectrum(self, wave: Tensor) -> Tensor:
        """The complex spectrum ``[B, n_fft // 2 + 1, ceil(S / hop)]`` whose magnitude :meth:`of_magnitude` takes."""
        window, wave = self.mel.spectrogram.window, centred(wave, self.n_fft, self.hop)
        return torch.stft(wave, self.n_fft, self.hop, window=window, center=False, return_complex=True)

    def of_magnitude(self, magnitude: Tensor) -> Tensor:
        """``magnitude [B, n_fft // 2 + 1, T]`` -> ``[B, T, num_mels]``."""
        return self._log(magnitude.transpose(1, 2))

    def _log(self, magnitude: Tensor) -> Tensor:
        """``magnitude [B, T, n_fft // 2 + 1]`` -> ``[B, T, num_mels]``."""
        return (magnitude @ self.mel.mel_scale.fb).clamp(min=1e-5).log()


class LowSpectrum(nn.Module):
    """Log-magnitude of the lowest bins of a long window, where the harmonics of the voice are resolved.

    ``wave [B, S]`` -> ``[B, ceil(S / hop), bins]``, same columns as :class:`LogMel`.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, bins: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.bins = n_fft, hop, bins
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        found = magnitudes(centred(wave, self.n_fft, self.hop), self.window, self.hop)
        return found[..., 1 : self.bins + 1].clamp(min=1e-4).log()


def minimum_phase(log_magnitude: Tensor) -> Tensor:
    """Phase (radians) of the minimum-phase filter with this magnitude, by the folded real cepstrum.

    ``log_magnitude [..., n_fft // 2 + 1]`` -> the same shape (Oppenheim and Schafer, ch. 13).
    """
    n_fft = 2 * (log_magnitude.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log_magnitude, n_fft)
    fold = torch.zeros(n_fft, device=log_magnitude.device)
    fold[0] = fold[n_fft // 2] = 1
    fold[1 : n_fft // 2] = 2
    return torch.fft.rfft(cepstrum * fold, n_fft).imag


class SpectralLoss(nn.Module):
    """Multi-resolution STFT loss (Yamamoto et al. 2020, Parallel WaveGAN): L1 of log magnitudes plus
    spectral convergence, averaged over resolutions. Waves ``[B, S]``."""

    def __init__(self, sizes: tuple[int, ...] = (512, 1024, 2048), floor: float = 1e-3) -> None:
        super().__init__()
        self.sizes, self.floor = sizes, floor
        for n_fft in sizes:
            self.register_buffer(f"window_{n_fft}", torch.hann_window(n_fft), persistent=False)

    def forward(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """``(log-magnitude L1, spectral convergence)``, both scalars."""
        log_terms, convergence = [], []
        for n_fft in self.sizes:
            a, b = (self._magnitudes(wave, n_fft) for wave in (fake, real))
            log_terms.append(F.l1_loss((a + self.floor).log(), (b + self.floor).log()))
            convergence.append((a - b).norm() / b.norm().clamp(min=1e-3))
        return torch.stack(log_terms).mean(), torch.stack(convergence).mean()

    def _magnitudes(self, wave: Tensor, n_fft: int) -> Tensor:
        centred = F.pad(wave[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
        return magnitudes(centred, getattr(self, f"window_{n_fft}"), n_fft // 4).clamp(min=1e-4)


class MultiScaleMel(nn.Module):
    """L1 of log-mel spectra at several window sizes (Kumar et al. 2023, arXiv 2306.06546, with fewer bands).

    Waves ``[B, S]``; ``scales`` are pairs of window size and number of bands, the hop is a quarter of the window.
    """

    def __init__(
        self, sample_rate: int, scales: tuple[tuple[int, int], ...] = ((128, 10), (256, 20), (512, 40), (2048, 120))
    ) -> None:
        super().__init__()
        self.mels = nn.ModuleList(LogMel(sample_rate, n_fft, n_fft // 4, bands) for n_fft, bands in scales)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return torch.stack([F.l1_loss(mel(fake), mel(real)) for mel in self.mels]).mean()
