"""Multi-resolution spectrogram critics for adversarial training of decoders.

Spectrograms at several window sizes, a small 2-D network each (the MRD of UnivNet, arXiv:2106.07889, on the logarithm
of the magnitude), least-squares losses (Mao et al. 2017) and feature matching. From real and imaginary parts, as
EnCodec (arXiv:2210.13438) takes them, networks of this size did not learn to tell decoded speech within hundreds of
steps (``recipes/tokenizer/RESULTS.md``): what is wrong with it lies in its quiet parts, next to nothing there.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speech_mtp.nn.spectral import centred, magnitudes


class SpectrogramCritic(nn.Module):
    """``wave [B, S]`` -> a map of scores and the feature maps before it."""

    window: Tensor

    def __init__(self, n_fft: int, width: int = 24) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        sizes = [1, width, width, width, width]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (9, 3), stride=(2, 1), padding=(4, 1))) for a, b in pairwise(sizes)
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        hop = self.n_fft // 4
        found = magnitudes(centred(wave, self.n_fft, hop), self.window, hop) / self.n_fft**0.5
        x = ((found + 1e-4).log() + 5) / 3  # about 0 +- 1 for speech
        x = x.transpose(1, 2)[:, None]
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.score(x), features


class SpectrogramCritics(nn.Module):
    """One critic per window size; ``wave [B, S]`` -> their outputs, or that of critic ``only`` alone."""

    def __init__(self, sizes: tuple[int, ...] = (256, 512, 1024), width: int = 24) -> None:
        super().__init__()
        self.critics = nn.ModuleList(SpectrogramCritic(n, width) for n in sizes)

    def forward(self, wave: Tensor, only: int | None = None) -> list[tuple[Tensor, list[Tensor]]]:
        return [critic(wave) for critic in self.due(only)]

    def due(self, only: int | None = None) -> list[nn.Module]:
        """The critic of that number, or all."""
        return [*self.critics] if only is None else [self.critics[only]]


def critic_loss(critics: SpectrogramCritics, fake: Tensor, real: Tensor, only: int | None = None) -> Tensor:
    """Least squares: real to 1, fake to 0."""
    pairs = zip(critics(fake, only), critics(real, only), strict=True)
    return torch.stack([f.square().mean() + (r - 1).square().mean() for (f, _), (r, _) in pairs]).mean()


def generator_loss(
    critics: SpectrogramCritics, fake: Tensor, real: Tensor, only: int | None = None
) -> tuple[Tensor, Tensor]:
    """``(least squares fake to 1, L1 between feature maps relative to their size)``."""
    with torch.no_grad():
        wanted = critics(real, only)
    scores, features = [], []
    for (f, have), (_, want) in zip(critics(fake, only), wanted, strict=True):
        scores.append((f - 1).square().mean())
        features += [F.l1_loss(a, b) / b.abs().mean().clamp(min=1e-4) for a, b in zip(have, want, strict=True)]
    return torch.stack(scores).mean(), torch.stack(features).mean()
