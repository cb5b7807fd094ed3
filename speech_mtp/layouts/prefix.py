"""Layout ``prefix``: the text units come first, speech follows, and attention must find the alignment itself.

The control channel says whether speech goes on (0) or this was the last group (1). Kept to compare with ``aligned``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.layouts.base import Layout
from speech_mtp.types import Codes, Positions, Status


class Prefix(Layout):
    """The text is read once, before the first group; it must be complete."""

    def __init__(self, codebook_sizes: tuple[int, ...], frames_per_group: int) -> None:
        super().__init__(codebook_sizes, frames_per_group)
        self.control_size = 2

    def pack(self, codes: Codes, unit_of_frame: Tensor, num_units: Tensor) -> Positions:
        frames, groups = self.pad_frames(codes)
        last = torch.arange(int(groups.max()), device=groups.device) == (groups - 1)[:, None]
        labels = torch.cat([last.long()[..., None], self.group(frames)], -1)
        return self._positions(labels, groups, None)

    def status(self, pointer: Tensor, control: Tensor, num_units: Tensor, complete: Tensor) -> Tensor:
        going = torch.where(control == 1, int(Status.STOP), int(Status.GOING))
        return torch.where(complete, going, int(Status.WAITING))

    def control_mask(self, pointer: Tensor, num_units: Tensor, complete: Tensor, stalled: Tensor) -> Tensor:
        return torch.ones(len(pointer), 2, dtype=torch.bool, device=pointer.device)

    def move(self, pointer: Tensor, control: Tensor) -> Tensor:
        return pointer
