"""Layout ``aligned``: every speech position carries a pointer into the text units being spoken.

The control channel is ``advance``: by how many units the pointer moves over the group. Training takes pointers
from forced alignment; in decoding the talker moves its own pointer, so it cannot skip or run away, it ends when
the pointer passes the last unit, and it waits when the text has not arrived yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.layouts.base import Layout
from speech_mtp.types import Codes, Positions, Status


class Aligned(Layout):
    """``max_advance`` units at most per group; ``ahead`` units must be known (or the text complete) to go on;
    after ``max_stall`` groups on one unit the pointer is made to move."""

    points = True

    def __init__(
        self,
        codebook_sizes: tuple[int, ...],
        frames_per_group: int,
        max_advance: int = 10,
        ahead: int = 10,
        max_stall: int = 6,
    ) -> None:
        super().__init__(codebook_sizes, frames_per_group)
        self.max_advance, self.ahead, self.max_stall = max_advance, ahead, max_stall
        self.control_size = max_advance + 1

    def pack(self, codes: Codes, unit_of_frame: Tensor, num_units: Tensor) -> Positions:
        frames, groups = self.pad_frames(codes)
        starts = unit_of_frame[:, :: self.frames_per_group]
        t = int(groups.max())
        at = torch.arange(t + 1, device=starts.device).expand(len(groups), -1)
        inside = at < groups[:, None]
        wanted = torch.where(inside, starts.gather(1, at.clamp(max=starts.shape[1] - 1)), num_units[:, None])
        pointer = [torch.zeros_like(num_units)]
        for i in range(t):
            pointer.append(torch.minimum(wanted[:, i + 1], pointer[-1] + self.max_advance))
        path = torch.stack(pointer, 1)
        advance = path[:, 1:] - path[:, :-1]
        labels = torch.cat([advance[..., None], self.group(frames)], -1)
        return self._positions(labels, groups, path[:, :-1])

    def can_end(self, unit_of_frame: Tensor, num_units: int) -> bool:
        starts = unit_of_frame[:: self.frames_per_group]
        groups_left = torch.arange(len(starts), 0, -1, device=starts.device)
        return bool((num_units - starts <= self.max_advance * groups_left).all())

    def status(self, pointer: Tensor, control: Tensor, num_units: Tensor, complete: Tensor) -> Tensor:
        known = complete | (pointer + self.ahead < num_units)
        going = torch.where(known, int(Status.GOING), int(Status.WAITING))
        return torch.where(complete & (pointer >= num_units), int(Status.STOP), going)

    def control_mask(self, pointer: Tensor, num_units: Tensor, complete: Tensor, stalled: Tensor) -> Tensor:
        steps = torch.arange(self.control_size, device=pointer.device)
        within = steps <= (num_units - pointer)[:, None]
        moving = (steps > 0) | (stalled < self.max_stall)[:, None]
        return within & moving

    def move(self, pointer: Tensor, control: Tensor) -> Tensor:
        return pointer + control
