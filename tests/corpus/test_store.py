"""Audio stores, alignment and code corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus import align
from speech_mtp.corpus.align import agreement, firings, unit_of_frame
from speech_mtp.corpus.codes import batches_of, encode_batches, load_codes, save_codes
from speech_mtp.corpus.store import AudioStore, AudioStoreWriter, resample_pitch
from speech_mtp.text.phonemes import SYMBOLS


def filled(folder: Path, count: int = 3) -> AudioStoreWriter:
    writer = AudioStoreWriter(folder)
    for i in range(len(writer.rows), count):
        wave = np.sin(np.arange(24_000 + 240 * i) * 0.05).astype(np.float32) * 0.3
        writer.append(f"u{i}", "sine", "Hello.", "həlˈO.", "train", wave, np.full(-(-len(wave) // 240), 190.0))
    return writer


def test_a_store_reads_back_what_was_written(tmp_path: Path) -> None:
    filled(tmp_path).close()
    store = AudioStore([tmp_path])
    assert [row.samples for row in store.rows] == [24_000, 24_240, 24_480]
    expected = torch.sin(torch.arange(24_240) * 0.05) * 0.3
    assert torch.allclose(store.wave(1), expected, atol=1e-4)
    assert store.pitch(2).tolist() == [190.0] * 102


def test_a_store_cut_off_by_a_kill_goes_on_after_its_last_whole_row(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with (tmp_path / "audio.i16").open("ab") as file:
        file.write(b"\x01" * 777)
    lines = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(lines[:-20])
    filled(tmp_path, 4).close()
    store = AudioStore([tmp_path])
    assert [row.id for row in store.rows] == ["u0", "u1", "u2", "u3"]
    expected = torch.sin(torch.arange(24_720) * 0.05) * 0.3
    assert torch.allclose(store.wave(3), expected, atol=1e-4)


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="corpus recipe"):
        AudioStore([tmp_path])


def test_pitch_is_interpolated_between_voiced_values_only() -> None:
    track = resample_pitch(np.array([100.0, 200.0, 0.0, 0.0]), 50.0, 8)
    assert track[0] == pytest.approx(100.0)
    assert 100 < track[1] < 200
    assert set(track[4:]) == {0.0}


def test_alignment_follows_the_peaks_of_the_lattice() -> None:
    phonemes = torch.tensor([3, 5, 5, 2])
    log_probs = torch.full((16, 8), -9.0)
    log_probs[:, 0] = -0.1
    for frame, label in ((2, 3), (6, 5), (9, 5), (13, 2)):
        log_probs[frame, 0], log_probs[frame, label] = -9.0, -0.01
    unit = unit_of_frame(log_probs.log_softmax(-1), phonemes)
    assert unit is not None
    assert unit.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def peaked(phonemes: list[int], frames: list[int], length: int) -> torch.Tensor:
    """A lattice of eight symbols that speaks each phoneme in one frame and is blank elsewhere."""
    log_probs = torch.full((length, 8), -9.0)
    log_probs[:, 0] = -0.1
    for label, frame in zip(phonemes, frames, strict=True):
        log_probs[frame, 0], log_probs[frame, label] = -9.0, -0.01
    return log_probs.log_softmax(-1)


def test_long_audio_is_aligned_in_steps_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frames = np.cumsum(rng.integers(3, 12, 400)).tolist()
    labels = rng.integers(1, 8, 400).tolist()
    lattice = peaked(labels, frames, frames[-1] + 300)  # with a long silence at the end
    whole = firings(lattice, torch.tensor(labels))
    monkeypatch.setattr(align, "LONGEST", 500)
    steps = firings(lattice, torch.tensor(labels))
    assert whole is not None
    assert steps is not None
    assert whole.starts == whole.ends == steps.starts == steps.ends == frames
    assert torch.equal(whole.margins, steps.margins)
    assert float(whole.margins.min()) == 0


def test_long_audio_without_its_words_is_aligned_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "LONGEST", 50)
    assert firings(torch.zeros(400, 8).log_softmax(-1), torch.ones(399, dtype=torch.long)) is None
    few = firings(torch.zeros(400, 8).log_softmax(-1), torch.tensor([1, 2, 3]))
    assert few is None or len(few.starts) == 3


def test_agreement_tells_a_text_from_another() -> None:
    lattice = peaked([1, 2, 3, 4, 5], [2, 5, 8, 11, 14], 18)
    for text, low, high in (
        ([1, 2, 3, 4, 5], 0.99, 1.0),
        ([5, 4, 3, 2, 1], float("-inf"), 0.01),
        ([1, 2, 6, 4, 5], 0.1, 0.9),
    ):
        found = firings(lattice, torch.tensor(text))
        assert found is not None
        assert low <= agreement(lattice, torch.tensor(text), found.margins) <= high


def test_windows_do_not_change_what_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Decoupled.tiny(len(SYMBOLS))
    wave = 0.1 * torch.randn(24_000 * 7 + 77, generator=torch.Generator().manual_seed(0))
    whole = codec.phonemes_heard(wave)
    monkeypatch.setattr("speech_mtp.codecs.base.PART_S", 2.0)
    assert whole.shape == (176, len(SYMBOLS))
    assert torch.allclose(codec.phonemes_heard(wave), whole, atol=1e-5)
    monkeypatch.setattr(Decoupled, "reach_frames", 0)  # and it would, if parts were heard alone
    assert not torch.allclose(codec.phonemes_heard(wave), whole, atol=1e-5)


def test_too_many_phonemes_cannot_be_aligned() -> None:
    assert unit_of_frame(torch.zeros(3, 8).log_softmax(-1), torch.tensor([1, 1, 2])) is None


@pytest.mark.parametrize("ends", [[], [90], [30, 20, 90], [-5, 60, 90], [30, 60, 102], [10, 20, 30, 40]])
def test_ends_that_are_not_those_of_the_phonemes_are_refused(ends: list[int], tmp_path: Path) -> None:
    wave, pitch = np.zeros(2400, np.float32), np.zeros(10)
    writer = AudioStoreWriter(tmp_path)
    with pytest.raises(ValueError, match=r"^u: (its phonemes do not end|\d ends for the phonemes 'ab a'; expected 3)"):
        writer.append("u", "v", "t", "ab a", "train", wave, pitch, ends)
    writer.append("u", "v", "t", "ab a", "train", wave, pitch, [30, 60, 101])  # half a millisecond of rounding
    writer.close()


def test_a_store_with_ends_after_its_audio_is_refused(tmp_path: Path) -> None:
    """As stores were whose ends were told of the audio before its silence was trimmed."""
    writer = AudioStoreWriter(tmp_path)
    writer.append("u", "v", "t", "ab", "train", np.zeros(2400, np.float32), np.zeros(10), [30, 100])
    writer.close()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("[30, 100]", "[230, 300]"))
    with pytest.raises(ValueError, match=r"^u: its phonemes do not end .* within its 100 ms .*; speak the store anew"):
        AudioStore([tmp_path])


def test_what_a_teacher_told_is_not_heard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = AudioStoreWriter(tmp_path)
    wave, pitch = 0.1 * np.random.default_rng(0).standard_normal(9600).astype(np.float32), np.zeros(40)
    for number, ends in enumerate(([40, 250, 400], None, [200, 210, 390])):
        writer.append(f"u{number}", "v", "t", "ab a", "train", wave, pitch, ends)
    writer.close()
    store = AudioStore([tmp_path])
    assert [row.ends_ms for row in store.rows] == [[40, 250, 400], None, [200, 210, 390]]
    codec, aligner = Decoupled.tiny(len(SYMBOLS)), Decoupled.tiny(len(SYMBOLS))
    corpus = encode_batches(codec, aligner, store, [[0, 1, 2]])
    assert corpus.item(0)[1].tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert corpus.item(2)[1].tolist() == [0, 0, 0, 0, 0, 2, 2, 2, 2, 2]
    monkeypatch.setattr(Decoupled, "phoneme_log_probs", None)
    told = encode_batches(codec, aligner, store, [[0, 2]])
    assert [row.id for row in told.rows] == ["u0", "u2"]
    with pytest.raises(TypeError):
        encode_batches(codec, aligner, store, [[1]])


def test_code_corpora_round_trip_and_join(tmp_path: Path) -> None:
    filled(tmp_path / "audio").close()
    codec, store = Decoupled.tiny(len(SYMBOLS)), AudioStore([tmp_path / "audio"])
    corpus = encode_batches(codec, codec, store, batches_of(store, 2))
    save_codes(corpus, tmp_path / "codes")
    both = load_codes(tmp_path / "codes", tmp_path / "codes")
    assert len(both) == 2 * len(corpus) == 6
    for i in range(3):
        for a, b in zip(both.item(i), both.item(3 + i), strict=True):
            assert torch.equal(a, b)
        frames, unit = both.item(i)
        assert frames.shape == (2, both.rows[i].frames)
        assert len(unit) == both.rows[i].frames
        assert (unit.diff() >= 0).all()
        assert int(unit[-1]) <= 4


def test_a_store_with_others_in_it_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "part00"):
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match="has others in it; give each a folder of its own"):
        AudioStore([tmp_path])
