"""What each stream of a codec says about phonemes, speaker, pitch and loudness, and what it costs to predict it.

Every figure is of sentences that no probe was trained on. Conditional entropies are cross entropies of a probe, an
upper bound that falls with more data: compare codecs on the same recordings only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.evaluation.intervals import correlation, correlation_sums, estimate, ratio
from speech_mtp.evaluation.probes import Columns, Split, fit_classes, fit_values, unigram
from speech_mtp.types import CodecSpec

WINDOW = 3
"""Phonemes on each side of the one being spoken that the entropy probe sees."""
CODES = 1
"""Frames on each side whose codes of the other streams it sees."""
LINEAR_CODES = 2
"""Frames on each side that a linear probe sees."""
LONGEST = 15
"""Frames since the start and until the end of a phoneme, and of the utterance, are counted so far."""
TRAINED, CHOSEN = 0.7, 0.1
"""Shares of the sentences to train on and to choose the weights by; the rest is measured on."""
FEWEST_SENTENCES = 10
BITS = 1 / torch.tensor(2.0).log().item()


@dataclass(frozen=True)
class Aligned:
    """An utterance as probes see it: ``frames [K, F]``, the ``phonemes [U]`` of its text, the phoneme ``unit [F]`` of
    each frame, ``log_f0 [F]`` (NaN unvoiced) and the ``energy [F]`` (log of the root mean square)."""

    voice: str
    text: str
    frames: Tensor
    phonemes: Tensor
    unit: Tensor
    log_f0: Tensor
    energy: Tensor


def stream_probes(
    spec: CodecSpec, utterances: Sequence[Aligned], num_phonemes: int, steps: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """All figures as plain JSON. ``report`` hears what is being fitted. Raises ``ValueError`` for too few sentences."""
    table = _Table(spec, utterances, num_phonemes)
    return {
        "utterances": len(utterances),
        "frames": {"train": len(table.split.train), "test": len(table.split.test)},
        "steps": steps,
        "entropy": {name: _entropy(table, name, steps, report) for name in spec.streams},
        "linear": {name: _linear(table, name, steps, report) for name in ("phonemes", *spec.streams)},
    }


def _entropy(table: _Table, name: str, steps: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Bits per frame of a stream (its codebooks added up), by what is known; and what the other streams tell of it."""
    others = [other for other in table.spec.streams if other != name]
    given: dict[str, Columns | None] = {"nothing": None, "phonemes": table.phonemes}
    given["phonemes and voice"] = table.phonemes + table.voice
    if others:
        codes = table.codes(others, CODES)
        given |= {"other streams": codes, "phonemes and other streams": table.phonemes + codes}
    part = table.spec.streams[name]
    bits: dict[str, Tensor] = {}
    for condition, columns in given.items():
        report(f"{name} given {condition}")
        books = [_surprise(table, k, columns, steps) for k in range(part.start, part.stop)]
        bits[condition] = torch.stack(books).sum(0)  # [test frames]
    figures: dict[str, Any] = {
        f"given {condition}": {
            "bits_per_frame": table.mean(found),
            "bits_per_second": float(found.mean()) * table.spec.frame_rate_hz,
        }
        for condition, found in bits.items()
    }
    if others:
        figures["told by other streams"] = table.mean(bits["nothing"] - bits["other streams"])
        told = bits["phonemes"] - bits["phonemes and other streams"]
        figures["told by other streams, phonemes known"] = table.mean(told)
    return figures


def _surprise(table: _Table, k: int, columns: Columns | None, steps: int) -> Tensor:
    """``[test frames]`` bits of the codes of codebook k."""
    target, size, split = table.frames[k], table.spec.codebook_sizes[k], table.split
    truth = target[split.test]
    if columns is None:
        return -unigram(target[split.train], size)[truth] * BITS
    return -fit_classes(columns, target, size, split, steps).gather(1, truth[:, None])[:, 0] * BITS


def _linear(table: _Table, name: str, steps: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Linear probes on the codes of a stream, or on the phonemes themselves, which say what is due to the text."""
    report(f"linear probes on {name}")
    test = table.split.test
    columns = table.spoken(LINEAR_CODES) if name == "phonemes" else table.codes([name], LINEAR_CODES)
    figures: dict[str, Any] = {}
    if name != "phonemes":
        figures["phoneme"] = _accuracy(table, columns, table.phoneme, steps)[0]
    if len(table.voices) > 1:
        figures["speaker"], law = _accuracy(table, columns, table.voice_index, steps)
        sums = torch.zeros(len(table.owners), law.shape[1]).index_add_(0, table.owner, law)
        right = (sums.argmax(-1) == table.voice_of_owner).float()
        whole = estimate(torch.stack([right, torch.ones_like(right)], 1), ratio)
        figures["speaker of the utterance"] = {**whole, "chance": _most_frequent(table.voice_of_owner)}
    found = fit_values(columns, table.melody, table.split, steps)
    for i, what in enumerate(("log F0", "log F0 over the voice's mean", "energy")):
        figures[what] = table.correlation(found[:, i], table.melody[test, i])
    return figures


def _accuracy(table: _Table, columns: Columns, target: Tensor, steps: int) -> tuple[dict[str, Any], Tensor]:
    """The share of test frames told right, with the share of the most frequent class, and the log-probabilities."""
    law = fit_classes(columns, target, int(target.max()) + 1, table.split, steps, linear=True)
    truth = target[table.split.test]
    return {**table.mean((law.argmax(-1) == truth).float()), "chance": _most_frequent(truth)}, law


def _most_frequent(classes: Tensor) -> float:
    return float(torch.bincount(classes).max()) / len(classes)


class _Table:
    """All frames of all utterances, one below the other, as columns."""

    def __init__(self, spec: CodecSpec, utterances: Sequence[Aligned], num_phonemes: int) -> None:
        self.spec, self._utterances, self._num_phonemes = spec, utterances, num_phonemes
        self.voices = sorted({u.voice for u in utterances})
        lengths = torch.tensor([u.frames.shape[1] for u in utterances])
        rows = torch.arange(len(utterances)).repeat_interleave(lengths)  # [N] the utterance of each frame
        part = _part_of_texts([u.text for u in utterances])[rows]
        self.split = Split(*(torch.nonzero(part == i)[:, 0] for i in range(3)))
        self.owners, self.owner = rows[self.split.test].unique(return_inverse=True)
        self.frames = torch.cat([u.frames for u in utterances], 1)
        voices = torch.tensor([self.voices.index(u.voice) for u in utterances])
        self.voice_index, self.voice_of_owner = voices[rows], voices[self.owners]
        self.voice = Columns(self.voice_index[:, None], (len(self.voices),))
        self.phoneme = torch.cat([u.phonemes[u.unit] for u in utterances])
        self.phonemes = self.spoken_window() + self._positions()
        self.melody = self._melody()

    def mean(self, values: Tensor) -> dict[str, Any]:
        """The mean of ``values [test frames]`` with its interval over utterances."""
        sums = torch.stack([values, torch.ones_like(values)], 1)
        return estimate(torch.zeros(len(self.owners), 2).index_add_(0, self.owner, sums), ratio)

    def correlation(self, found: Tensor, truth: Tensor) -> dict[str, Any] | None:
        """Of the frames at which ``truth`` is known; None where it or what was found does not vary."""
        known = ~truth.isnan()
        if known.sum() < 2 or truth[known].std() == 0:
            return None
        sums = [
            correlation_sums(found[mine], truth[mine])
            for mine in (known & (self.owner == i) for i in range(len(self.owners)))
        ]
        error = (found - truth)[known].square().mean() / truth[known].var(unbiased=False)
        return {**estimate(torch.stack(sums), correlation), "r2": 1 - float(error)}

    def codes(self, streams: Sequence[str], around: int) -> Columns:
        """The codes of ``streams`` at each frame and ``around`` it; 0 stands for the silence outside."""
        parts = [self.spec.streams[name] for name in streams]
        books = [k for part in parts for k in range(part.start, part.stop)]
        values = torch.cat([_around(u.frames[books].T + 1, around) for u in self._utterances])
        sizes = [self.spec.codebook_sizes[k] + 1 for _ in range(2 * around + 1) for k in books]
        return Columns(values, tuple(sizes))

    def spoken(self, around: int) -> Columns:
        """The phoneme spoken at each frame and at the frames ``around`` it."""
        values = torch.cat([_around(u.phonemes[u.unit][:, None] + 1, around) for u in self._utterances])
        return Columns(values, (self._num_phonemes + 1,) * (2 * around + 1))

    def spoken_window(self) -> Columns:
        """The phonemes of the text around the one that is spoken."""
        windows = [_around(u.phonemes[:, None] + 1, WINDOW)[u.unit] for u in self._utterances]
        return Columns(torch.cat(windows), (self._num_phonemes + 1,) * (2 * WINDOW + 1))

    def _positions(self) -> Columns:
        """Frames since the start and until the end of the phoneme, and of the utterance."""
        found = []
        for u in self._utterances:
            at = torch.arange(len(u.unit))
            start = torch.searchsorted(u.unit, u.unit)
            end = torch.searchsorted(u.unit, u.unit, right=True) - 1
            found.append(torch.stack([at - start, end - at, at, at.flip(0)], 1).clamp(max=LONGEST))
        return Columns(torch.cat(found), (LONGEST + 1,) * 4)

    def _melody(self) -> Tensor:
        """``[N, 3]``: log-F0, the same over the mean of its voice, and energy."""
        log_f0 = torch.cat([u.log_f0 for u in self._utterances])
        energy = torch.cat([u.energy for u in self._utterances])
        means = torch.stack([log_f0[self.voice_index == i].nanmean() for i in range(len(self.voices))])
        return torch.stack([log_f0, log_f0 - means[self.voice_index], energy], 1)


def _around(values: Tensor, around: int) -> Tensor:
    """``values [N, K]`` -> ``[N, (2 * around + 1) * K]``: the rows before, here and after; 0 outside."""
    padded = torch.nn.functional.pad(values, (0, 0, around, around))
    return torch.cat([padded[i : i + len(values)] for i in range(2 * around + 1)], 1)


def _part_of_texts(texts: Sequence[str]) -> Tensor:
    """0 (train), 1 (validation) or 2 (test) for each text, the same for the same text."""
    order = sorted(set(texts), key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    if len(order) < FEWEST_SENTENCES:
        raise ValueError(
            f"Probes need {FEWEST_SENTENCES} different sentences that can be aligned, but there are {len(order)}; "
            "give more recordings with their texts."
        )
    first, second = round(TRAINED * len(order)), round((TRAINED + CHOSEN) * len(order))
    part = {text: int(i >= first) + int(i >= second) for i, text in enumerate(order)}
    return torch.tensor([part[text] for text in texts])
