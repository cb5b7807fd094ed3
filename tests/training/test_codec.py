"""The codec's task takes real steps; with kept codes only the decoder learns, and codes made before stay good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled, DecoupledConfig
from speech_mtp.corpus.store import AudioStore, AudioStoreWriter
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training.codec import CodecBatch, CodecTask, CodecTaskConfig, CodecWeights

RATE, HOP = 24_000, 240


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    """Two voices that hum, four times each for about a second."""
    folder = tmp_path_factory.mktemp("store")
    writer = AudioStoreWriter(folder)
    for i in range(8):
        voice, hertz = ("low", 110.0) if i % 2 else ("high", 220.0)
        samples = RATE + 2_400 * i
        wave = 0.3 * np.sign(np.sin(2 * np.pi * hertz * np.arange(samples) / RATE))
        pitch = np.full(-(-samples // HOP), hertz, np.float32)
        writer.append(str(i), voice, "hello", "həlˈO", "train", wave.astype(np.float32), pitch)
    writer.close()
    return AudioStore([folder])


def tiny_codec() -> Decoupled:
    torch.manual_seed(0)
    sizes = Decoupled.tiny().config.__dict__
    return Decoupled(DecoupledConfig(**{**sizes, "num_symbols": len(SYMBOLS)}))


def task_of(store: AudioStore, **settings: Any) -> CodecTask:
    config = CodecTaskConfig(**{"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "amp": False, **settings})
    return CodecTask(tiny_codec(), store, config, torch.device("cpu"))


def changed(task: CodecTask, steps: int = 2) -> tuple[set[str], dict[str, float]]:
    """The parts of the codec whose weights are others after ``steps``, and the terms of the last step."""
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    scores: dict[str, float] = {}
    for number in range(steps):
        scores = task.step(number, 1e-3)
    after = dict(task.codec.named_parameters())
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}, scores


def codes_of(codec: Decoupled, wave: Tensor) -> Tensor:
    with torch.no_grad():
        return codec.eval().encode(wave[None, None]).frames


@pytest.mark.parametrize("critic", [0.0, 1.0])
def test_everything_learns(store: AudioStore, critic: float) -> None:
    parts, scores = changed(task_of(store, weights=CodecWeights(critic=critic)))
    assert parts == {"content", "prosody", "timbre", "speaker_of_prosody", "decoder", "phonemes"}
    terms = {"ctc", "adversary", "energy", "pitch", "voicing", "stft", "convergence", "mel", "heard", "loss"}
    assert scores.keys() == terms | ({"critics", "critic", "feature"} if critic else set())
    assert all(np.isfinite(value) for value in scores.values())


def test_with_kept_codes_only_the_decoder_learns(store: AudioStore) -> None:
    task = task_of(store, keep_codes=True)
    wave = store.wave(0)
    before = codes_of(task.codec, wave)
    parts, scores = changed(task)
    assert parts == {"decoder"}
    assert scores.keys() == {"pitch", "voicing", "stft", "convergence", "mel", "heard", "loss"}
    assert torch.equal(codes_of(task.codec, wave), before)


def test_with_kept_codes_the_decoder_hears_content_as_it_is_encoded(store: AudioStore) -> None:
    """No other speed and no warped frequencies, however much of both the settings ask for."""
    task = task_of(store, keep_codes=True, resample=1.0, warp=0.3)
    decode, heard = task.decode_crop, []

    def spy(batch: CodecBatch, content: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        heard.append(content)
        return decode(batch, content, *more)

    task.decode_crop = spy  # type: ignore[method-assign]
    batch = task.data.batch(0)
    task.terms(batch)
    for content, wave, length in zip(heard[0], batch.wave, batch.lengths.tolist(), strict=True):
        expected, _ = task.codec.values(codes_of(task.codec, wave[:length]))
        torch.testing.assert_close(content[: expected.shape[1]], expected[0], atol=1e-5, rtol=1e-5)
    assert set(batch.lengths.tolist()) <= {row.samples for row in store.rows}


def test_batches_are_a_function_of_their_number(store: AudioStore) -> None:
    one, other = task_of(store).data, task_of(store).data
    assert torch.equal(one.batch(3).wave, other.batch(3).wave)
    assert one.batch(3).wave.shape != one.batch(4).wave.shape or not torch.equal(one.batch(3).wave, one.batch(4).wave)
