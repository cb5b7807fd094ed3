"""A stream learns what a recogniser hears: the loss by hand, the stage, and both codecs that use it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_mtp import plugins
from speech_mtp.codecs.coupled import Coupled
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.features import Features
from speech_mtp.corpus.store import AudioStore
from speech_mtp.frontends.base import Recogniser
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training import runs
from speech_mtp.training.codec import CodecTask
from speech_mtp.training.codec_data import CodecData, CodecTaskConfig, CodecWeights
from speech_mtp.training.coupled_codec import CoupledTask
from speech_mtp.training.distilling import distillation
from speech_mtp.training.listening import listen
from speech_mtp.training.loop import numbers
from speech_mtp.training.stages import FeaturesRun, TrainConfig
from tests.training.ear import Ear

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features(humming_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Features:
    out = tmp_path_factory.mktemp("features")
    listen(FeaturesRun(kind="features", out=out, data=[humming_folder], components=4, batch=3), Ear())
    return Features(out)


def config(weight: float, **others: Any) -> CodecTaskConfig:
    """Settings under which nothing else is learnt."""
    silent = {name: 0.0 for name in CodecWeights().__dict__ if name not in ("adversary", "energy")}
    weights = CodecWeights(**silent | {"distil": weight})
    return CodecTaskConfig(
        **{
            "batch": 4,
            "crop_frames": 8,
            "max_seconds": 3.0,
            "amp": False,
            "resample": 0.0,
            "weights": weights,
            **others,
        }
    )


def test_the_loss_of_three_frames_by_hand() -> None:
    guess = torch.tensor([[[1.0, 1.0], [0.0, 2.0], [9.0, 9.0]]])
    features = torch.tensor([[[2.0, 2.0], [0.0, -1.0], [5.0, -5.0]]])
    mask = torch.tensor([[[1.0], [1.0], [0.0]]])
    alike = 1.0, (1 * 2 + 2 * -1) / math.sqrt(5 * 5)
    expected = sum(math.log(1 + math.exp(-a)) for a in alike) / 2
    assert float(distillation(guess, features, mask)) == pytest.approx(expected, rel=1e-6)


def test_the_stage_hears_every_utterance_once(humming_folder: Path, tmp_path: Path) -> None:
    stage = FeaturesRun(kind="features", out=tmp_path, data=[humming_folder], components=4, fit_on=5, batch=3)
    ear = Ear()
    assert listen(stage, ear)["utterances"] == 12
    assert ear.heard == 12 + 5
    assert listen(stage, ear)["utterances"] == 12
    assert ear.heard == 12 + 5


def test_what_is_too_long_is_left_out(humming_folder: Path, tmp_path: Path) -> None:
    class Short(Ear):
        longest_features_s = 1.55

    stage = FeaturesRun(kind="features", out=tmp_path, data=[humming_folder], components=4)
    told = listen(stage, Short())
    assert (told["utterances"], told["too_long"]) == (6, 6)
    Short.longest_features_s = 0.5
    with pytest.raises(ValueError, match=r"no utterance of at most 0\.5 s"):
        listen(stage, Short())


def test_a_recogniser_that_shows_nothing_leaves_nothing_behind(humming_folder: Path, tmp_path: Path) -> None:
    class Deaf(Ear):
        name = "deaf"
        features = Recogniser.features

    stage = FeaturesRun(kind="features", out=tmp_path, data=[humming_folder], components=4)
    with pytest.raises(ValueError, match="does not show"):
        listen(stage, Deaf())
    assert listen(stage, Ear())["utterances"] == 12


def test_utterances_of_one_name_are_refused(humming_folder: Path, tmp_path: Path) -> None:
    stage = FeaturesRun(kind="features", out=tmp_path, data=[humming_folder, humming_folder], components=4)
    with pytest.raises(ValueError, match=r"2 utterances of run\.data are called 0"):
        listen(stage, Ear())


def test_a_batch_has_the_features_of_its_utterances(humming: AudioStore, features: Features) -> None:
    codec = Coupled.tiny()
    data = CodecData(humming, codec.spec, config(1.0), tracks={"features": features})
    batch = data.batch(0)
    picks, _ = data.draw(np.random.default_rng((0, 0))).T
    assert batch.tracks.keys() == {"features"}
    assert batch.tracks["features"].shape == (4, batch.wave.shape[1] // codec.spec.samples_per_frame, 4)
    for row, (pick, frames) in enumerate(zip(picks, batch.frames.tolist(), strict=True)):
        assert torch.equal(batch.tracks["features"][row, :frames], features.of(humming.rows[pick].id, frames))
        assert not batch.tracks["features"][row, frames:].any()


@pytest.mark.parametrize("kind", ["decoupled", "coupled"])
def test_it_is_learnt_and_by_that_stream_alone(humming: AudioStore, features: Features, kind: str) -> None:
    task: CodecTask | CoupledTask
    if kind == "coupled":
        task = CoupledTask(Coupled.tiny(), humming, config(1.0), CPU, tracks={"features": features})
    else:
        weights = CodecWeights(**dict.fromkeys(CodecWeights().__dict__, 0.0) | {"distil": 1.0})
        codec = Decoupled.tiny(len(SYMBOLS))
        task = CodecTask(
            codec, humming, config(1.0, weights=weights, warp_share=0.0), CPU, tracks={"features": features}
        )
    task.optimizers["codec"].param_groups[0]["weight_decay"] = 0.0
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    losses = [numbers(task.step(number % 2, 5e-3))["distil"] for number in range(30)]
    moved = {name for name, value in task.codec.named_parameters() if not torch.equal(before[name], value)}
    assert losses[-1] < losses[0] - 0.05
    first = {"coupled": ("encoder.", "quantiser.books.0."), "decoupled": ("content.",)}[kind]
    assert moved
    assert all(name.startswith(first) for name in moved)
    assert "distil" in task.evaluate()


def test_a_weight_without_features_and_features_without_a_weight_are_refused(
    humming: AudioStore, features: Features
) -> None:
    with pytest.raises(ValueError, match=r"run\.features"):
        CoupledTask(Coupled.tiny(), humming, config(1.0), CPU)
    with pytest.raises(ValueError, match=r"weights\.distil alone"):
        CoupledTask(Coupled.tiny(), humming, config(0.0), CPU, tracks={"features": features})
    with pytest.raises(ValueError, match=r"leave task\.keep_codes out"):
        CoupledTask(Coupled.tiny(), humming, config(1.0, keep_codes=True), CPU, tracks={"features": features})
    with pytest.raises(ValueError, match="on_device"):
        CoupledTask(Coupled.tiny(), humming, config(1.0, on_device=True), CPU, tracks={"features": features})


def test_an_utterance_without_features_is_named(humming: AudioStore, features: Features) -> None:
    row = features.rows.pop("3")
    try:
        with pytest.raises(ValueError, match="1 of 8 utterances, 3 among them, are not in"):
            CodecData(humming, Coupled.tiny().spec, config(1.0), tracks={"features": features})
    finally:
        features.rows["3"] = row


def test_from_the_stage_to_a_codec(humming_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "build", lambda folder, entry: Ear())
    heard = {"kind": "features", "out": tmp_path / "features", "data": [humming_folder], "components": 4}
    runs.run(TrainConfig(run=heard))
    small = {"encoder_dims": (8, 8), "decoder_dims": (8, 8), "decoder_blocks": (1, 1), "dim": 4, "books": (10, 5)}
    codec = {
        "kind": "coupled_codec",
        "out": tmp_path / "codec",
        "data": [humming_folder],
        "features": tmp_path / "features",
        "model": small,
        "task": {"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "resample": 0.0, "weights": {"distil": 1.0}},
        "loop": {"steps": 2, "learning_rate": 1e-3, "evaluate_every": 1},
    }
    assert runs.run(TrainConfig(run=codec))["out"] == str(tmp_path / "codec")
    assert "distil" in (tmp_path / "codec/log.jsonl").read_text()


def test_a_recogniser_that_shows_nothing_says_so() -> None:
    class Deaf(Ear):
        features = Recogniser.features

    with pytest.raises(ValueError, match="does not show"):
        Deaf().features([np.zeros(100, np.float32)])
