"""How many codes stay when the voice or the room changes and the timing does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.views import VIEWS, View
from speech_mtp.types import Codes

DECODED, REVOICED = "decoded", "decoded, other voice"


def view_agreement(
    codec: Codec,
    samples: Sequence[Sample],
    seed: int = 0,
    views: Mapping[str, View] = VIEWS,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Share of equal codes of each codebook, by view: of the recordings, and of the codec's own decoding of them.

    ``chance`` is the share after a shuffle of the view's frames. A codec with timbre is also asked to decode with the
    timbre of another voice; what it then encodes differently is voice in its codes, or a flaw of its decoder.
    """
    rng = random.Random(seed)
    counts: dict[str, list[Tensor]] = {}
    for i, sample in enumerate(samples):
        report(f"views of {i + 1} of {len(samples)}")
        codes = codec.encode(sample.wave[None, None])
        for name, wave in _views(codec, sample, codes, samples, views, rng):
            counts.setdefault(name, []).append(_equal(codes, codec.encode(wave[None, None]), rng))
    return {
        name: {stream: _figures(torch.stack(found), part) for stream, part in codec.spec.streams.items()}
        for name, found in counts.items()
    }


def _views(
    codec: Codec,
    sample: Sample,
    codes: Codes,
    samples: Sequence[Sample],
    views: Mapping[str, View],
    rng: random.Random,
) -> Iterator[tuple[str, Tensor]]:
    for name, view in views.items():
        yield name, view(sample.wave, codec.spec.sample_rate, rng.randrange(2**31))
    yield DECODED, codec.decode(codes)[0, 0, : len(sample.wave)]
    others = [other for other in samples if other.voice != sample.voice]
    if codec.spec.timbre_dim and others:
        timbre = codec.encode(rng.choice(others).wave[None, None]).timbre
        yield REVOICED, codec.decode(replace(codes, timbre=timbre))[0, 0, : len(sample.wave)]


def _equal(first: Codes, second: Codes, rng: random.Random) -> Tensor:
    """``[K, 3]``: equal codes, equal ones after a shuffle, and frames."""
    ours, theirs = first.frames[0], second.frames[0]
    assert ours.shape == theirs.shape, f"a view has {theirs.shape[1]} frames instead of {ours.shape[1]}"
    order = rng.sample(range(ours.shape[1]), ours.shape[1])
    equal, shuffled = (ours == theirs).sum(1), (ours == theirs[:, order]).sum(1)
    return torch.stack([equal, shuffled, torch.full_like(equal, ours.shape[1])], 1)


def _figures(counts: Tensor, part: slice) -> list[dict[str, Any]]:
    """``counts [utterances, K, 3]`` -> a figure for each codebook of the stream."""
    return [
        {**estimate(counts[:, k, [0, 2]], ratio), "chance": float(ratio(counts[:, k, 1:].sum(0)))}
        for k in range(part.start, part.stop)
    ]
