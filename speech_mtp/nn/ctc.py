"""CTC whose spikes are spread over the phonemes that they stand for.

Plain CTC (Graves et al. 2006) is content with one frame for each phoneme and blank in between. Dividing the
probabilities by a power of how often each symbol is said at all makes the blank dear, so that a phoneme is said for as
long as it lasts (Huang et al. 2024, "Less Peaky and More Accurate CTC Forced Alignment by Label Priors",
arXiv:2406.02560, equation 5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SYMBOLS_AT_LEAST = 1e-4
"""Share that a symbol is taken to have that is hardly ever said."""


class Prior(nn.Module):
    """How often each of ``num_symbols`` is said: a running mean of probabilities."""

    share: Tensor

    def __init__(self, num_symbols: int, decay: float = 0.98) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("share", torch.full((num_symbols,), 1 / num_symbols))

    @torch.no_grad()
    def update(self, log_probs: Tensor, mask: Tensor) -> None:
        """``log_probs [B, F, V]`` of one more batch; ``mask [B, F, 1]`` says which frames there are."""
        now = (log_probs.exp() * mask).sum((0, 1)) / mask.sum()
        self.share.lerp_(now, 1 - self.decay)

    def scores(self, power: float) -> Tensor:
        """What is taken off the log probabilities, ``[V]``."""
        return power * self.share.clamp(min=SYMBOLS_AT_LEAST).log()


def ctc(log_probs: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor, scores: Tensor | None = None) -> Tensor:
    """Mean over the batch of the loss per symbol of ``log_probs [B, F, V]`` (blank 0), less ``scores [V]``.

    ``targets`` are all rows' symbols one after the other, ``lengths [B]`` their numbers, ``frames [B]`` those of the
    rows; a row that cannot be said in its frames counts as 0. The gradient of ``torch``'s loss supposes that
    probabilities sum to one; with scores they do not, so what it adds for that is taken away again.
    """
    given = log_probs if scores is None else log_probs - scores
    loss = F.ctc_loss(given.transpose(0, 1), targets, frames, lengths, reduction="none", zero_infinity=True)
    if scores is not None:
        valid = torch.arange(given.shape[1], device=given.device) < frames.to(given.device)[:, None]
        mass = (given.exp().sum(-1) * valid).sum(1) * (loss.detach() != 0)
        loss = loss - (mass - mass.detach())
    return (loss / lengths.to(loss).clamp(min=1)).mean()
