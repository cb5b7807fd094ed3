"""Content learns the phoneme of every frame from an aligned corpus: tracks by hand, the term, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_mtp.codecs.coupled import CoupledConfig
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.codes import CodecFacts, CodeCorpus, CodeRow, save_codes
from speech_mtp.corpus.frame_phonemes import FramePhonemes
from speech_mtp.corpus.store import AudioStore
from speech_mtp.text.phonemes import SYMBOLS, parse
from speech_mtp.training import runs
from speech_mtp.training.codec import CodecTask
from speech_mtp.training.codec_data import CodecData, CodecTaskConfig, CodecWeights
from speech_mtp.training.loop import numbers
from speech_mtp.training.stages import CoupledCodecRun

PHONEMES = "h\u0259l\u02c8O"
IDS = [unit.id for unit in parse(PHONEMES)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def aligned(humming: AudioStore, tmp_path_factory: pytest.TempPathFactory) -> FramePhonemes:
    """A quarter of every utterance is each of the four phonemes."""
    folder = tmp_path_factory.mktemp("aligned")
    rows, units, start = [], [], 0
    for row in humming.rows:
        frames = -(-row.samples // 960)
        rows.append(CodeRow(row.id, row.voice, row.text, PHONEMES, row.split, start, frames))
        units.append(torch.arange(frames) * len(IDS) // frames)
        start += frames
    unit = torch.cat(units)
    facts = CodecFacts((10,), 25.0, 0)
    nothing = torch.zeros(1, start, dtype=torch.long), unit, torch.zeros(len(rows), 0)
    save_codes(CodeCorpus(rows, *nothing, facts), folder)
    return FramePhonemes(folder)


def config(weight: float, **others: Any) -> CodecTaskConfig:
    weights = CodecWeights(**dict.fromkeys(CodecWeights().__dict__, 0.0) | {"frame": weight})
    settings = {"batch": 4, "crop_frames": 8, "max_seconds": 3.0, "amp": False, "resample": 0.0, "warp_share": 0.0}
    return CodecTaskConfig(**{**settings, "weights": weights, **others})


def test_a_track_is_stretched_to_other_frames(aligned: FramePhonemes, humming: AudioStore) -> None:
    row = aligned.corpus.rows[0]
    assert aligned.of(row.id, 4).tolist() == IDS
    assert aligned.of(row.id, 8).tolist() == [i for i in IDS for _ in range(2)]
    _, unit = aligned.corpus.item(0)
    assert aligned.of(row.id, row.frames).tolist() == [IDS[u] for u in unit.tolist()]


def test_a_batch_knows_the_phonemes_of_its_frames(aligned: FramePhonemes, humming: AudioStore) -> None:
    data = CodecData(humming, Decoupled.tiny().spec, config(1.0), tracks={"aligned": aligned})
    batch = data.batch(0)
    picks, _ = data.draw(np.random.default_rng((0, 0))).T
    assert batch.tracks.keys() == {"aligned"}
    for row, (pick, frames) in enumerate(zip(picks, batch.frames.tolist(), strict=True)):
        assert torch.equal(batch.tracks["aligned"][row, :frames], aligned.of(humming.rows[pick].id, frames))
        assert set(batch.tracks["aligned"][row, frames:].tolist()) <= {-100}


def test_content_alone_learns_them(aligned: FramePhonemes, humming: AudioStore) -> None:
    task = CodecTask(Decoupled.tiny(len(SYMBOLS)), humming, config(1.0), CPU, tracks={"aligned": aligned})
    task.optimizers["codec"].param_groups[0]["weight_decay"] = 0.0
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    losses = [numbers(task.step(number % 2, 5e-3))["frame"] for number in range(30)]
    assert losses[-1] < losses[0] - 0.5
    moved = {name for name, value in task.codec.named_parameters() if not torch.equal(before[name], value)}
    assert moved
    assert all(name.startswith("content.") for name in moved)
    assert "frame" in task.evaluate()


def test_one_without_the_other_is_refused(aligned: FramePhonemes, humming: AudioStore) -> None:
    for weight, told, words in ((1.0, {}, "learns from run"), (0.0, {"aligned": aligned}, "alone, which is 0")):
        with pytest.raises(ValueError, match=words):
            CodecTask(Decoupled.tiny(len(SYMBOLS)), humming, config(weight), CPU, tracks=told)


def test_other_codecs_have_no_such_stream(aligned: FramePhonemes, humming_folder: Path, tmp_path: Path) -> None:
    stage = CoupledCodecRun(
        kind="coupled_codec",
        out=tmp_path,
        data=[humming_folder],
        aligned=aligned.folder,
        model=CoupledConfig(books=(10, 5), dim=4, encoder_dims=(8, 8), decoder_dims=(8, 8), decoder_blocks=(1, 1)),
        loop={"steps": 2, "learning_rate": 1e-3},
    )
    with pytest.raises(ValueError, match=r"run\.aligned is read by task\.weights\.frame alone"):
        runs.codec_task(stage)
