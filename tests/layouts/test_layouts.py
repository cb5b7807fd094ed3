"""Layouts: packing loses nothing, pointers go forward, the decoding schedule is that of training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.layouts.base import IGNORE, Layout
from speech_mtp.types import Codes, Kind, Status

SIZES = (13, 5)
each_layout = pytest.mark.parametrize("name", plugins.names("layouts"))


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Codes, Tensor, Tensor]:
    """Frames per group, codes, unit of each frame, number of units."""
    group = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 23), min_size=1, max_size=4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shape = (len(lengths), max(lengths))
    frames = torch.stack([torch.randint(0, size, shape, generator=rng) for size in SIZES], 1)
    steps = torch.randint(0, draw(st.sampled_from([1, 2, 4])) + 1, shape, generator=rng)
    steps[:, 0] = 0
    unit = steps.cumsum(1)
    last = torch.tensor([int(unit[b, n - 1]) for b, n in enumerate(lengths)])
    return group, Codes(frames, torch.tensor(lengths)), unit, last + 1


def layout(name: str, group: int) -> Layout:
    made: Layout = plugins.build("layouts", name, codebook_sizes=SIZES, frames_per_group=group)
    return made


@each_layout
@given(batch=batches())
@settings(max_examples=40)
def test_unpack_undoes_pack(name: str, batch: tuple[int, Codes, Tensor, Tensor]) -> None:
    group, codes, unit, units = batch
    back = layout(name, group).unpack(layout(name, group).pack(codes, unit, units))
    assert back.lengths.tolist() == [-(-n // group) * group for n in codes.lengths.tolist()]
    for b, n in enumerate(codes.lengths.tolist()):
        assert torch.equal(back.frames[b, :, :n], codes.frames[b, :, :n])
        padding = back.frames[b, :, n : back.lengths[b]]
        assert torch.equal(padding, codes.frames[b, :, n - 1 : n].expand_as(padding)), "the last frame is repeated"


@each_layout
@given(batch=batches())
@settings(max_examples=40)
def test_inputs_are_the_labels_one_step_earlier_and_in_range(
    name: str, batch: tuple[int, Codes, Tensor, Tensor]
) -> None:
    group, codes, unit, units = batch
    made = layout(name, group)
    positions = made.pack(codes, unit, units)
    assert positions.labels is not None
    sizes = torch.tensor(made.channel_sizes)
    assert made.num_channels == 1 + group * len(SIZES)
    assert torch.equal(positions.tokens[:, 0], sizes.expand(len(units), -1)), "nothing comes before the first group"
    valid = positions.kind == Kind.SPEECH
    assert (positions.labels[valid] >= 0).all()
    assert (positions.labels[valid] < sizes).all()
    assert (positions.labels[~valid] == IGNORE).all()
    following = valid[:, 1:]
    assert torch.equal(positions.tokens[:, 1:][following], positions.labels[:, :-1][following])


@given(batch=batches(), max_advance=st.integers(1, 12))
@settings(max_examples=60)
def test_pointers_go_forward_by_the_control_channel_and_stay_inside(
    batch: tuple[int, Codes, Tensor, Tensor], max_advance: int
) -> None:
    group, codes, unit, units = batch
    made: Layout = plugins.build(
        "layouts", {"name": "aligned", "max_advance": max_advance}, codebook_sizes=SIZES, frames_per_group=group
    )
    positions = made.pack(codes, unit, units)
    assert positions.pointer is not None
    assert positions.labels is not None
    for b, n in enumerate(codes.lengths.tolist()):
        groups = -(-n // group)
        pointer, control = positions.pointer[b, :groups], positions.labels[b, :groups, 0]
        assert int(pointer[0]) == 0
        assert torch.equal(made.move(pointer, control)[:-1], pointer[1:])
        assert int((pointer + control)[-1]) <= int(units[b])
        assert (pointer < units[b]).all()
        if not int((control == max_advance).sum()):  # nowhere held back: it stands where the alignment says
            assert torch.equal(pointer, unit[b, :n:group])
            assert int((pointer + control)[-1]) == int(units[b]), "the end of speech is the end of the text"
        held = torch.ones(groups, dtype=torch.bool)
        mask = made.control_mask(pointer, units[b].expand(groups), held, torch.zeros(groups, dtype=torch.long))
        assert mask.gather(1, control[:, None]).all(), "decoding may do whatever training showed"


def statuses(made: Layout, cases: list[tuple[int, int, bool, int]]) -> list[int]:
    """Of rows, each by its pointer, its units, whether they are complete, and its newest control token."""
    pointer, units, complete, control = (torch.tensor(column) for column in zip(*cases, strict=True))
    rows: list[int] = made.status(pointer, control, units, complete).tolist()
    pointer, control = (x[:, None].expand(-1, 2) for x in (pointer, control))
    nodes = made.status(pointer, control, units[:, None], complete[:, None])
    assert nodes.tolist() == [[status] * 2 for status in rows], "nodes are told apart as rows are"
    return rows


def test_the_schedule_of_the_aligned_layout() -> None:
    made = plugins.build("layouts", {"name": "aligned", "ahead": 3}, codebook_sizes=SIZES, frames_per_group=2)
    cases = [(0, 4, False, -1), (1, 4, False, 1), (1, 4, True, 1), (4, 4, True, 0), (0, 0, False, -1)]
    assert statuses(made, cases) == [Status.GOING, Status.WAITING, Status.GOING, Status.STOP, Status.WAITING]


def test_the_schedule_of_the_prefix_layout() -> None:
    made = plugins.build("layouts", "prefix", codebook_sizes=SIZES, frames_per_group=2)
    cases = [(0, 4, False, -1), (0, 4, True, -1), (0, 4, True, 0), (0, 4, True, 1)]
    assert statuses(made, cases) == [Status.WAITING, Status.GOING, Status.GOING, Status.STOP]


def test_the_control_mask_holds_the_pointer_inside_and_moves_it_on() -> None:
    made = plugins.build(
        "layouts", {"name": "aligned", "max_advance": 3, "max_stall": 2}, codebook_sizes=SIZES, frames_per_group=1
    )
    mask = made.control_mask(
        torch.tensor([0, 4, 4]), torch.tensor([9, 5, 5]), torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 2])
    )
    assert mask.tolist() == [[True] * 4, [True, True, False, False], [False, True, False, False]]


@each_layout
def test_a_group_without_frames_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        layout(name, 0)


@given(batch=batches(), most=st.integers(1, 6))
@settings(max_examples=60)
def test_the_aligned_layout_knows_which_utterances_it_leads_to_their_end(
    batch: tuple[int, Codes, Tensor, Tensor], most: int
) -> None:
    group, codes, unit, units = batch
    made = plugins.build(
        "layouts", {"name": "aligned", "max_advance": most}, codebook_sizes=SIZES, frames_per_group=group
    )
    for b, n in enumerate(codes.lengths.tolist()):
        positions = made.pack(codes.row(b), unit[b : b + 1, :n], units[b : b + 1])
        end = int(positions.pointer[0, -1] + positions.labels[0, -1, 0])
        assert made.can_end(unit[b, :n], int(units[b])) == (end == int(units[b]))
