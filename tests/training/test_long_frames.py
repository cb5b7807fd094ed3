"""A codec of long frames tells several phonemes in each, learns by that, and leaves alignment to another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training.codec import CodecTask
from speech_mtp.training.codec_data import CodecTaskConfig, CodecWeights
from speech_mtp.training.loop import numbers


def codec(per_frame: int, steps: int = 8) -> Decoupled:
    torch.manual_seed(0)
    small = Decoupled.tiny(len(SYMBOLS)).config
    return Decoupled(replace(small, steps_per_frame=steps, phonemes_per_frame=per_frame))


def task_of(store: AudioStore, made: Decoupled, near: float = 0.25, said: float = 0.0) -> CodecTask:
    config = CodecTaskConfig(
        batch=2,
        crop_frames=4,
        max_seconds=3.0,
        amp=False,
        resample=0.0,
        ctc_prior=0.3,
        weights=CodecWeights(near=near, said=said),
    )
    return CodecTask(made, store, config, torch.device("cpu"))


def test_phonemes_are_told_twice_a_frame(humming: AudioStore) -> None:
    made = codec(2)
    values, mask = torch.randn(1, 5, 4), torch.ones(1, 5, 1)
    assert made.phonemes is not None
    assert made.phonemes(values, mask).shape == (1, 10, len(SYMBOLS))
    assert made.spec.frame_rate_hz == 12.5
    task = task_of(humming, made)
    scores = numbers(task.step(0, 1e-3))
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["ctc"] != 0
    assert scores["near"] != 0


def test_what_the_sound_says_is_counted_a_frame(humming: AudioStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as dear where a frame says two phonemes, each as far from what it should be."""
    monkeypatch.setattr("speech_mtp.training.codec.EDGE", 1)
    costs = []
    for per_frame in (1, 2):
        task = task_of(humming, codec(per_frame), near=0.0, said=1.0)
        slots = 4 * per_frame
        laws = iter([torch.zeros(2, slots, 3), torch.tensor([2.0, 0.0, 0.0]).expand(2, slots, 3)])
        monkeypatch.setattr(task.codec.phonemes, "forward", lambda *_, laws=laws: next(laws))
        fake, content = torch.randn(2, 4 * task.codec.spec.samples_per_frame), torch.zeros(2, 4, 4)
        costs.append(float(task.sound_terms(fake, content, torch.zeros(2, dtype=torch.long))["said"]))
    assert costs[1] == pytest.approx(2 * costs[0])
    assert costs[0] > 0.1


def test_more_phonemes_than_frames_can_be_said(humming: AudioStore) -> None:
    """With one phoneme a frame such a text counts as nothing."""
    losses = {}
    for per_frame in (1, 2):
        task = task_of(humming, codec(per_frame))
        batch = task.data.batch(0)
        batch.phonemes = torch.arange(1, 10).repeat(2)
        batch.phoneme_lengths = torch.tensor([9, 9])
        batch.frames = torch.tensor([6, 6])
        mask = torch.ones(2, 6, 1)
        log_probs = torch.zeros(2, 6 * per_frame, len(SYMBOLS)).log_softmax(-1)
        losses[per_frame] = float(task._phonemes_said("ctc", log_probs, batch, mask))
    assert losses[1] == 0
    assert losses[2] > 1


def test_it_aligns_nothing(humming: AudioStore) -> None:
    made = codec(2).eval()
    assert made.spec.num_phonemes == 0
    with pytest.raises(ValueError, match="no phoneme head"):
        made.phoneme_log_probs(made.encode(humming.wave(0)[None, None]))
    assert codec(1).spec.num_phonemes == len(SYMBOLS)


def test_it_decodes_and_streams_as_others_do(humming: AudioStore) -> None:
    made = codec(2).eval()
    codes = made.encode(humming.wave(0)[None, None])
    whole = made.decode(codes)[0, 0]
    assert len(whole) == codes.frames.shape[-1] * 1920
    state = made.open(1)
    made.reset(state, torch.tensor([0]), codes.timbre)
    parts = [
        made.push(state, codes.frames[:, :, at : at + 1], torch.tensor([1]))[0] for at in range(codes.frames.shape[-1])
    ]
    parts += made.flush(state, torch.tensor([0]))
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
