"""Codecs without roles learn, with and without a first book that tells phonemes; the stage exports what it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_mtp import hub
from speech_mtp.codecs.coupled import Coupled, CoupledConfig
from speech_mtp.corpus.store import AudioStore
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training import runs
from speech_mtp.training.codec_data import CodecTaskConfig, CodecWeights
from speech_mtp.training.coupled_codec import TERMS_OF_STREAMS, CoupledTask
from speech_mtp.training.loop import numbers
from speech_mtp.training.stages import TrainConfig
from speech_mtp.training.views import Views
from speech_mtp.types import Codes

SILENT = {name: 0.0 for name in CodecWeights().__dict__ if name not in TERMS_OF_STREAMS}
"""Weights without any term that a coupled codec has."""


def task_of(humming: AudioStore, semantic: bool, **settings: Any) -> CoupledTask:
    config = CodecTaskConfig(
        **{"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "amp": False, "resample": 0.0, **settings}
    )
    return CoupledTask(Coupled.tiny(len(SYMBOLS) if semantic else 0), humming, config, torch.device("cpu"))


@pytest.mark.parametrize("semantic", [False, True])
def test_everything_learns(humming: AudioStore, semantic: bool) -> None:
    task = task_of(humming, semantic, ema=0.9, ctc_prior=0.3 if semantic else 0.0)
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    scores: dict[str, float] = {}
    for number in range(2):
        scores = numbers(task.step(number, 1e-3))
    after = dict(task.codec.named_parameters())
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"encoder", "quantiser", "decoder", *(["phonemes"] if semantic else [])}
    assert ("ctc" in scores) == semantic
    assert {"books", "mel", "heard", "pitch", "stft"} <= scores.keys()
    assert all(np.isfinite(value) for value in scores.values())
    assert not {"adversary", "energy"} & scores.keys()
    found = task.evaluate()
    assert {"book0_perplexity", "book1_perplexity"} <= found.keys()


@pytest.mark.parametrize("weight", sorted(CodecWeights().__dict__.keys() - {"distil", "critic", "feature"}))
def test_every_term_is_learnt_or_refused(humming: AudioStore, weight: str) -> None:
    """No weight is taken and then heard by nobody."""
    try:
        task = task_of(humming, True, weights=CodecWeights(**{weight: 0.77}))
    except ValueError as error:
        assert f"weights.{weight}" in str(error)  # noqa: PT017
    else:
        assert weight in numbers(task.step(0, 1e-3))


def test_phonemes_shape_the_first_book_alone(humming: AudioStore) -> None:
    only = SILENT | {"ctc": 1.0}
    task = task_of(humming, True, weights=CodecWeights(**only))
    before = {name: value.detach().clone() for name, value in task.codec.quantiser.named_parameters()}
    task.optimizers["codec"].param_groups[0]["weight_decay"] = 0.0
    task.step(0, 1e-3)
    after = dict(task.codec.quantiser.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("books.0.") for name in moved)
    assert not any(name.startswith("books.1.") for name in moved)


def test_the_spectra_reach_all_books(humming: AudioStore) -> None:
    only = SILENT | {"mel": 1.0}
    task = task_of(humming, False, weights=CodecWeights(**only))
    task.optimizers["codec"].param_groups[0]["weight_decay"] = 0.0
    before = [book.leave.weight.detach().clone() for book in task.codec.quantiser.books]  # type: ignore[union-attr, operator]
    task.step(0, 1e-3)
    for book, old in zip(task.codec.quantiser.books, before, strict=True):
        assert not torch.equal(book.leave.weight, old)  # type: ignore[union-attr, arg-type]


def test_phonemes_are_read_of_the_first_book_alone() -> None:
    codec = Coupled.tiny(len(SYMBOLS))
    frames = torch.randint(0, 20, (1, 2, 6), generator=torch.Generator().manual_seed(0))
    heard = []
    for book in (None, 0, 1):
        changed = frames.clone()
        if book is not None:
            changed[:, book] = (changed[:, book] + 1) % 20
        with torch.no_grad():
            heard.append(codec.phoneme_log_probs(Codes(changed, torch.tensor([6]))))
    assert not torch.equal(heard[0], heard[1])
    assert torch.equal(heard[0], heard[2])


def test_a_first_book_needs_phonemes_to_tell() -> None:
    with pytest.raises(ValueError, match="say how many there are"):
        Coupled(CoupledConfig(semantic=True))


def test_settings_of_streams_are_refused(humming: AudioStore) -> None:
    for settings, name in (
        ({"views": Views()}, "task.views"),
        ({"warp": 0.3}, "task.warp"),
        ({"weights": CodecWeights(near=0.5)}, "task.weights.near"),
        ({"weights": CodecWeights(adversary=0.0)}, "task.weights.adversary"),
    ):
        with pytest.raises(ValueError, match=f"no content or prosody of its own; leave {name} out"):
            task_of(humming, True, **settings)
    with pytest.raises(ValueError, match=r"leave task.ctc_prior out"):
        task_of(humming, False, ctc_prior=0.3)


def test_the_stage_trains_and_exports(humming_folder: Path, tmp_path: Path) -> None:
    stage = {
        "kind": "coupled_codec",
        "device": "cpu",
        "out": tmp_path / "out",
        "data": [humming_folder],
        "model": {
            "books": [50, 20],
            "dim": 8,
            "semantic": True,
            "encoder_dims": [16, 16],
            "decoder_dims": [16, 16],
            "decoder_blocks": [1, 1],
        },
        "task": {"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "resample": 0.0},
        "loop": {"steps": 2, "learning_rate": 1e-3, "evaluate_every": 2},
    }
    scores = runs.run(TrainConfig.model_validate({"run": stage}))
    assert scores["books"] > 0
    codec = hub.load_codec(tmp_path / "out/export")
    assert isinstance(codec, Coupled)
    assert codec.spec.codebook_sizes == (50, 20)
    assert codec.spec.num_phonemes == len(SYMBOLS)
    assert codec.spec.timbre_dim == 0
    wave = torch.randn(1, 1, 24_000)
    assert codec.decode(codec.encode(wave)).shape == wave.shape
