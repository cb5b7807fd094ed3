"""Every codec of the folder, at tiny random size, keeps the promises of ``speech_mtp.codecs.base``.

A codec offers ``tiny()``: a random instance without any download. One whose encoder cannot give a padded row
exactly the codes it gets alone says so with a class attribute ``encode_agreement`` below 1, the share of codes that
agree at least.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.types import Codes

TINY: dict[str, Callable[[], Codec]] = {name: plugins.find("codecs", name).tiny for name in plugins.names("codecs")}
# the same adapter on the authors' own code
TINY["encodec of the package"] = partial(plugins.find("codecs", "encodec").tiny, backend="encodec")
each_codec = pytest.mark.parametrize("name", TINY)


@cache
def codec(name: str) -> Codec:
    """The tiny codec; shared, because decoding state lives in states only."""
    return TINY[name]().eval()


def some_codes(codec: Codec, lengths: list[int], seed: int = 0) -> Codes:
    """Random codes and timbre for rows of these lengths."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    frames = torch.stack([torch.randint(0, n, shape, generator=rng) for n in codec.spec.codebook_sizes], 1)
    for row, n in enumerate(lengths):
        frames[row, :, n:] = 0
    size = codec.spec.timbre_dim
    timbre = torch.nn.functional.normalize(torch.randn(len(lengths), size, generator=rng), dim=-1) if size else None
    return Codes(frames, torch.tensor(lengths), timbre)


def noise(lengths: list[int]) -> Tensor:
    return 0.3 * torch.randn(len(lengths), 1, max(lengths), generator=torch.Generator().manual_seed(1))


def alone(codec: Codec, codes: Codes, row: int) -> Tensor:
    """``[S]``: what a row gives when it is decoded offline with nobody else."""
    return codec.decode(codes.row(row))[0, 0]


class Session:
    """Rows of one state, driven one event at a time; collects the samples of each utterance."""

    def __init__(self, codec: Codec, slots: int) -> None:
        self.codec, self.slots, self.state = codec, slots, codec.open(slots)
        self.heard: dict[int, list[Tensor]] = {}

    def join(self, slot: int, codes: Codes, row: int) -> None:
        timbre = None if codes.timbre is None else codes.timbre[row : row + 1]
        self.codec.reset(self.state, torch.tensor([slot]), timbre)
        self.heard[slot] = []

    @torch.no_grad()
    def push(self, pieces: dict[int, Tensor]) -> None:
        """``pieces``: slot -> frames ``[K, F]``; the others stand still."""
        lengths = torch.tensor([pieces[s].shape[-1] if s in pieces else 0 for s in range(self.slots)])
        frames = torch.zeros(self.slots, self.codec.spec.num_streams, int(lengths.max()), dtype=torch.int64)
        for slot, piece in pieces.items():
            frames[slot, :, : piece.shape[-1]] = piece
        for slot, wave in enumerate(self.codec.push(self.state, frames, lengths)):
            assert slot in pieces or wave.numel() == 0, f"slot {slot} stood still but gave {wave.numel()} samples"
            if slot in self.heard:
                self.heard[slot].append(wave)

    @torch.no_grad()
    def leave(self, slot: int) -> Tensor:
        (rest,) = self.codec.flush(self.state, torch.tensor([slot]))
        return torch.cat([*self.heard.pop(slot), rest])


@each_codec
def test_spec_is_consistent(name: str) -> None:
    spec = codec(name).spec
    assert spec.samples_per_frame > 0
    assert spec.sample_rate == round(spec.samples_per_frame * spec.frame_rate_hz)
    assert sum(s.stop - s.start for s in spec.streams.values()) == spec.num_streams
    assert all(size > 1 for size in spec.codebook_sizes)


@each_codec
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_length_gives_its_frames_and_its_samples(name: str, data: st.DataObject) -> None:
    tiny = codec(name)
    hop = tiny.spec.samples_per_frame
    lengths = data.draw(st.lists(st.integers(1, 9 * hop), min_size=1, max_size=3))
    codes = tiny.encode(noise(lengths), torch.tensor(lengths))
    frames = [-(-n // hop) for n in lengths]
    assert codes.lengths.tolist() == frames
    assert codes.frames.shape == (len(lengths), tiny.spec.num_streams, max(frames))
    wave = tiny.decode(codes)
    assert wave.shape == (len(lengths), 1, max(frames) * hop)
    for row, n in enumerate(frames):
        assert not wave[row, :, n * hop :].any()


@each_codec
def test_codes_are_integers_of_their_codebooks(name: str) -> None:
    tiny = codec(name)
    hop = tiny.spec.samples_per_frame
    codes = tiny.encode(noise([20 * hop]))
    assert codes.frames.dtype == torch.int64
    assert codes.lengths.tolist() == [20]
    for k, size in enumerate(tiny.spec.codebook_sizes):
        stream = codes.frames[:, k]
        assert int(stream.min()) >= 0
        assert int(stream.max()) < size
    assert (codes.timbre is None) == (tiny.spec.timbre_dim == 0)
    if codes.timbre is not None:
        assert codes.timbre.shape == (1, tiny.spec.timbre_dim)


@each_codec
def test_a_padded_row_encodes_as_it_does_alone(name: str) -> None:
    tiny = codec(name)
    hop = tiny.spec.samples_per_frame
    lengths = [23 * hop, 11 * hop + 1, 17 * hop - 1]
    wave = noise(lengths)
    together = tiny.encode(wave, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        single = tiny.encode(wave[row : row + 1, :, :n])
        mine = together.row(row)
        assert not together.frames[row, :, int(together.lengths[row]) :].any(), "frames past the length must be 0"
        agreement = (mine.frames == single.frames).float().mean()
        assert agreement >= getattr(tiny, "encode_agreement", 1.0)
        if mine.timbre is not None and single.timbre is not None:
            torch.testing.assert_close(mine.timbre, single.timbre, atol=1e-4, rtol=0)


@each_codec
@pytest.mark.parametrize("step", [1, 2, 7])
def test_streaming_equals_offline(name: str, step: int) -> None:
    tiny = codec(name)
    codes = some_codes(tiny, [30])
    offline = alone(tiny, codes, 0)
    assert offline.std() > 1e-2, "a silent codec would pass any comparison"
    session = Session(tiny, 1)
    session.join(0, codes, 0)
    for first in range(0, 30, step):
        session.push({0: codes.frames[0, :, first : first + step]})
    before_flush = sum(len(wave) for wave in session.heard[0])
    assert 0 < before_flush <= 30 * tiny.spec.samples_per_frame
    streamed = session.leave(0)
    assert streamed.shape == (30 * tiny.spec.samples_per_frame,)
    torch.testing.assert_close(streamed, offline, atol=1e-4, rtol=0)


@each_codec
def test_rows_of_a_batch_decode_as_they_do_alone(name: str) -> None:
    tiny = codec(name)
    codes = some_codes(tiny, [13, 1, 22])
    together = tiny.decode(codes)
    for row, n in enumerate(codes.lengths.tolist()):
        mine = together[row, 0, : n * tiny.spec.samples_per_frame]
        torch.testing.assert_close(mine, alone(tiny, codes, row), atol=1e-4, rtol=0)


@each_codec
def test_rows_join_leave_and_advance_without_changing_each_other(name: str) -> None:
    tiny = codec(name)
    codes = some_codes(tiny, [9, 24, 16])
    a, b, c = codes.frames
    session = Session(tiny, 3)
    session.join(0, codes, 0)
    session.push({0: a[:, :2]})
    session.join(2, codes, 1)
    session.push({0: a[:, 2:5], 2: b[:, :7]})
    session.push({2: b[:, 7:8]})
    session.push({0: a[:, 5:9], 2: b[:, 8:10]})
    heard = {0: session.leave(0)}
    session.join(0, codes, 2)
    session.push({0: c[:, :1], 2: b[:, 10:20]})
    session.push({0: c[:, 1:16]})
    heard[2] = session.leave(0)
    session.push({2: b[:, 20:24]})
    heard[1] = session.leave(2)
    for row, wave in heard.items():
        torch.testing.assert_close(wave, alone(tiny, codes, row), atol=1e-4, rtol=0)


@each_codec
def test_reset_in_mid_utterance_starts_afresh(name: str) -> None:
    tiny = codec(name)
    codes = some_codes(tiny, [12, 12])
    session = Session(tiny, 1)
    session.join(0, codes, 0)
    session.push({0: codes.frames[0, :, :5]})
    session.join(0, codes, 1)
    session.push({0: codes.frames[1]})
    torch.testing.assert_close(session.leave(0), alone(tiny, codes, 1), atol=1e-4, rtol=0)


@each_codec
def test_a_copied_state_goes_its_own_way(name: str) -> None:
    tiny = codec(name)
    codes = some_codes(tiny, [12, 12])
    codes = replace(codes, timbre=None if codes.timbre is None else codes.timbre[:1].expand(2, -1))
    codes.frames[1, :, :6] = codes.frames[0, :, :6]
    session = Session(tiny, 1)
    session.join(0, codes, 0)
    session.push({0: codes.frames[0, :, :6]})
    fork = copy.copy(session)
    fork.state, fork.heard = copy.deepcopy(session.state), {0: list(session.heard[0])}
    fork.push({0: codes.frames[1, :, 6:]})
    session.push({0: codes.frames[0, :, 6:]})
    for row, each in enumerate([session, fork]):
        torch.testing.assert_close(each.leave(0), alone(tiny, codes, row), atol=1e-4, rtol=0)


@each_codec
def test_an_utterance_without_frames_is_silent(name: str) -> None:
    tiny = codec(name)
    session = Session(tiny, 2)
    session.join(1, some_codes(tiny, [1]), 0)
    assert session.leave(1).shape == (0,)
