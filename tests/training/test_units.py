"""The stage that stores units: what the G2P refuses costs itself alone, and the text encoder trains on the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_mtp.cli import training
from speech_mtp.lm.backbone import Backbone
from speech_mtp.text.phonemes import Unit
from speech_mtp.training.lm import UnitStore
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig, UnitsRun
from speech_mtp.training.text_encoder import StoredStates
from tests.lm.tiny import Letters

TEXTS = ["hello there.", "the quick brown fox jumps.", "good morning", "it is a zebra, is it?", "a lazy dog."]


class Refusing(Letters):
    """Cannot read of zebras."""

    def phonemize(self, text: str) -> list[Unit]:
        if "zebra" in text:
            raise ValueError(f"there is no way to say {text!r}")
        return super().phonemize(text)


@pytest.fixture
def stage(tmp_path: Path, backbone: dict[str, Any]) -> dict[str, Any]:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    given = {"kind": "units", "out": tmp_path / "units", "texts": [texts], "g2p": f"{__name__}:Refusing"}
    return {**given, "backbone": backbone, "hidden_layer": 2, "batch": 3, "device": "cpu"}


def test_a_text_that_cannot_be_read_is_left_out(
    tmp_path: Path, stage: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(TrainConfig(run=UnitsRun(**stage))) == {"texts": 4, "refused": 1}
    assert "left out: there is no way to say 'it is a zebra,'" in capsys.readouterr().err
    store = UnitStore(stage["out"])
    assert sorted(store.index) == sorted(text for text in TEXTS if "zebra" not in text)
    backbone = Backbone.from_folder(tmp_path / "backbone", torch.bfloat16, hidden_layer=2)
    states = StoredStates(backbone, store)
    known = states.known(TEXTS)
    assert known == [text for text in TEXTS if "zebra" not in text]
    stored, read = states.encode(known), backbone.encode(known)
    for b, (mine, theirs) in enumerate(zip(stored.spans, read.spans, strict=True)):
        assert mine == theirs[: len(mine)]
        torch.testing.assert_close(
            stored.hidden[b, : len(mine)].float(), read.hidden[b, : len(mine)].float(), rtol=0.1, atol=0.1
        )


def test_training_bounds_what_onednn_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "7")
    with pytest.raises((ValueError, OSError)):
        training.train(tmp_path / "none.yaml")
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    with pytest.raises((ValueError, OSError)):
        training.train(tmp_path / "none.yaml")
    assert os.environ[name] == "64"
