"""Batches cut on the device are those of the store: the same speech, pitch, references and phonemes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore, AudioStoreWriter
from speech_mtp.text.phonemes import parse
from speech_mtp.training.codec_data import CodecData, CodecTaskConfig
from speech_mtp.training.device_data import DeviceAudio, DeviceCodecData

RATE, HOP = 24_000, 240


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    """Two stores with three voices; utterance i is a ramp of its own height, its pitch 100 + i."""
    folders: list[Path] = []
    for part in range(2):
        folders.append(tmp_path_factory.mktemp("store"))
        writer = AudioStoreWriter(folders[-1])
        for i in range(part * 9, part * 9 + 9):
            wave = np.linspace(0, (i + 1) / 20, RATE + 300 * i).astype(np.float32)
            pitch = np.full(-(-len(wave) // HOP), 100.0 + i, np.float32)
            writer.append(str(i), "abc"[i % 3], f"hello {i}", "həlˈO" * (1 + i % 2), "train", wave, pitch)
        writer.close()
    return AudioStore(folders)


def data_of(store: AudioStore, **settings: object) -> DeviceCodecData:
    entries = {"batch": 16, "crop_frames": 8, "max_seconds": 3.0, "resample": 0.0, "reference_s": 0.5, **settings}
    audio = DeviceAudio(store, torch.device("cpu"))
    return DeviceCodecData(audio, Decoupled.tiny().spec, CodecTaskConfig(**entries))  # type: ignore[arg-type]


def test_a_batch_is_cut_out_of_the_store(store: AudioStore) -> None:
    data = data_of(store)
    picks = data.draw(np.random.default_rng((0, 5)))
    batch = data.batch(5)
    phonemes = batch.phonemes.split(batch.phoneme_lengths.tolist())
    for row, (index, other) in enumerate(picks.tolist()):
        wave, length = store.wave(index), int(batch.lengths[row])
        assert length == len(wave)
        gain = float(batch.wave[row, length - 1] / wave[-1])
        assert 0.59 < gain < 1.31
        torch.testing.assert_close(batch.wave[row, :length], wave * gain, atol=1e-4, rtol=1e-3)
        assert not batch.wave[row, length:].any()
        assert batch.pitch[row].tolist() == [100.0 + index] * (-(-length // HOP)) + [0.0] * (
            batch.pitch.shape[1] + -length // HOP
        )
        torch.testing.assert_close(batch.reference[row], store.wave(other)[: RATE // 2] * gain, atol=1e-4, rtol=1e-3)
        assert phonemes[row].tolist() == [unit.id for unit in parse(store.rows[index].phonemes)]
        assert data.voices[int(batch.voice[row])] == store.rows[index].voice == store.rows[other].voice
        assert index != other
        assert int(batch.frames[row]) == -(-length // 960)
        assert 0 <= int(batch.crop[row]) < int(batch.frames[row]) - 8


def test_batches_are_a_function_of_their_number(store: AudioStore) -> None:
    one, other = data_of(store), data_of(store)
    assert torch.equal(one.batch(3).wave, other.batch(3).wave)
    assert one.batch(3).wave.shape != one.batch(4).wave.shape or not torch.equal(one.batch(3).wave, one.batch(4).wave)


def test_a_power_draws_voices_by_their_utterances(store: AudioStore) -> None:
    rows = [*store.rows[:9], *[row for row in store.rows[9:] if row.voice == "a"]]
    few = AudioStore([])
    few.rows = rows
    for power, expected in ((0.0, [1 / 3] * 3), (1.0, [6 / 12, 3 / 12, 3 / 12])):
        config = CodecTaskConfig(crop_frames=8, max_seconds=3.0, voice_power=power)
        assert CodecData(few, Decoupled.tiny().spec, config).chances.tolist() == pytest.approx(expected)


def test_another_speed_is_refused(store: AudioStore) -> None:
    with pytest.raises(ValueError, match=r"task\.resample to 0"):
        data_of(store, resample=0.3)
