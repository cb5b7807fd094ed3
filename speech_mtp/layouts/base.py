"""Codes <-> positions: the only place where ``[B, K, F]`` becomes ``[B, T, C]`` and back.

A speech position holds one *group*: a control channel, then ``frames_per_group`` frames of K codes each, frame by
frame. What the control channel means, and what else a position carries, is the layout's own affair. A layout
knows nothing of networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from speech_mtp.types import Codes, Kind, Positions

IGNORE = -100


class Layout(ABC):
    """``frames_per_group`` frames of ``codebook_sizes`` per position, and a control channel of ``control_size``.

    Every channel has one more *input* than it has outputs: ``channel_sizes[c]`` itself stands for "nothing before".
    """

    control_size: int
    points: bool = False
    """Whether positions carry a pointer into the text; otherwise the text stands before the speech."""
    ahead: int = 0
    """Units in front of the pointer that must be known to go on."""

    def __init__(self, codebook_sizes: tuple[int, ...], frames_per_group: int) -> None:
        if frames_per_group < 1:
            raise ValueError(f"frames_per_group is {frames_per_group}; it must be at least 1.")
        self.codebook_sizes, self.frames_per_group = tuple(codebook_sizes), frames_per_group

    @property
    def channel_sizes(self) -> tuple[int, ...]:
        """Vocabulary of each of the C channels: control first."""
        return (self.control_size, *(self.codebook_sizes * self.frames_per_group))

    @property
    def num_channels(self) -> int:
        return len(self.channel_sizes)

    def nothing(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """``[rows, C]``: the input of the first position."""
        return torch.tensor(self.channel_sizes, device=device).expand(rows, -1).clone()

    def group(self, frames: Tensor) -> Tensor:
        """``[B, K, F]`` with F a multiple of the group -> ``[B, F / g, g * K]``."""
        b, k, f = frames.shape
        return frames.view(b, k, f // self.frames_per_group, self.frames_per_group).permute(0, 2, 3, 1).flatten(2)

    def frames(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`group`, control channel dropped: ``[B, T, C]`` -> ``[B, K, T * g]``."""
        k = len(self.codebook_sizes)
        return tokens[..., 1:].unflatten(-1, (self.frames_per_group, k)).flatten(1, 2).transpose(1, 2)

    def pad_frames(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """Repeat each row's last frame up to whole groups: frames ``[B, K, T * g]``, groups ``[B]``."""
        g = self.frames_per_group
        groups = -(-codes.lengths // g)
        longest = int(groups.max()) * g
        at = torch.arange(longest, device=codes.frames.device).expand(len(groups), -1)
        at = torch.minimum(at, (codes.lengths - 1).clamp(min=0)[:, None])
        return codes.frames.gather(2, at[:, None].expand(-1, codes.frames.shape[1], -1)), groups

    def _positions(self, labels: Tensor, groups: Tensor, pointer: Tensor | None) -> Positions:
        """Positions whose inputs are the labels one step earlier."""
        b, t, _ = labels.shape
        first = self.nothing(b, labels.device)[:, None]
        valid = torch.arange(t, device=labels.device) < groups[:, None]
        return Positions(
            tokens=torch.cat([first, labels[:, :-1]], 1),
            kind=torch.where(valid, int(Kind.SPEECH), int(Kind.PAD)),
            index=torch.arange(t, device=labels.device).expand(b, -1),
            segment=torch.zeros_like(valid, dtype=torch.long),
            pointer=pointer,
            labels=labels.masked_fill(~valid[..., None], IGNORE),
        )

    @abstractmethod
    def pack(self, codes: Codes, unit_of_frame: Tensor, num_units: Tensor) -> Positions:
        """Codes and their alignment (``unit_of_frame [B, F]``, ``num_units [B]``) -> training positions."""

    def can_end(self, unit_of_frame: Tensor, num_units: int) -> bool:
        """Whether the control channel can lead through an utterance with this alignment ``[F]`` to its end."""
        return True

    def unpack(self, positions: Positions) -> Codes:
        """Training positions -> codes, whole groups (the padding of the last group is kept)."""
        if positions.labels is None:
            raise ValueError("Positions without labels hold no codes to unpack.")
        lengths = (positions.kind == Kind.SPEECH).sum(1) * self.frames_per_group
        return Codes(self.frames(positions.labels.clamp(min=0)), lengths)

    @abstractmethod
    def status(self, pointer: Tensor, control: Tensor, num_units: Tensor, complete: Tensor) -> Tensor:
        """:class:`Status` GOING, WAITING or STOP of rows or nodes at ``pointer`` whose newest control token is
        ``control`` (-1: none), shapes that go together. One schedule for the engine and for streaming."""

    @abstractmethod
    def control_mask(self, pointer: Tensor, num_units: Tensor, complete: Tensor, stalled: Tensor) -> Tensor:
        """``[B, control_size]`` True where the control channel may go now (``stalled [B]`` groups without a move)."""

    @abstractmethod
    def move(self, pointer: Tensor, control: Tensor) -> Tensor:
        """Pointers ``[B]`` after the control tokens ``[B]``."""
