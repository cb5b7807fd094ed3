"""Voices that are kept: whose they are, what they are called, and what lies in their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.voices.saved import EVERYBODY, NameTakenError, SavedVoices
from speech_mtp.voices.shelf import Capacity
from tests.voices.test_reference import RATE, voice

CODEC = Decoupled.tiny()


def test_of_a_long_recording_the_speech_that_is_used_is_kept(tmp_path: Path) -> None:
    SavedVoices(tmp_path, CODEC).make(EVERYBODY, "ann", voice(120.0), RATE, keep_reference=True)
    (record,) = SavedVoices(tmp_path, CODEC).of()
    assert record.name == "ann"
    kept = load_file(next((tmp_path / "voices").iterdir()))
    assert kept["reference"].dtype == torch.int16
    assert len(kept["reference"]) == 10 * RATE


def test_everybodys_voices_are_used_by_all_and_deleted_by_none_of_them(tmp_path: Path) -> None:
    voices = SavedVoices(tmp_path, CODEC)
    voices.make(EVERYBODY, "ann", voice(2.0), RATE)
    voices.make("me", "ben", voice(3.0), RATE)
    assert [record.name for record in voices.of("me")] == ["ben", "ann"]
    assert [record.name for record in voices.of("you")] == [record.name for record in voices.of()] == ["ann"]
    assert voices.timbre("you", "ann") is not None
    assert voices.timbre("you", "ben") is None
    assert voices.forget("me", "ann") is None
    with pytest.raises(NameTakenError):
        voices.make("me", "ann", voice(2.0), RATE)
    assert voices.forget(EVERYBODY, "ann") is not None
    assert voices.of("you") == []


def test_voices_of_another_codec_can_be_listed_and_deleted(tmp_path: Path) -> None:
    SavedVoices(tmp_path, CODEC, Capacity(of_one=1)).make(EVERYBODY, "ann", voice(2.0), RATE)
    torch.manual_seed(1)
    others = SavedVoices(tmp_path, Decoupled(CODEC.config).eval(), Capacity(of_one=1))
    assert others.of() == []
    assert [record.name for record in others.of_other_codecs()] == ["ann"]
    with pytest.raises(ValueError, match="remove one"):
        others.make(EVERYBODY, "ben", voice(2.0), RATE)
    assert others.forget(EVERYBODY, "ann") is not None
    others.make(EVERYBODY, "ben", voice(2.0), RATE)


@pytest.mark.parametrize("name", ["", " ", "a\tb", "../a", "x" * 65])
def test_what_no_voice_can_be_called(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        SavedVoices(tmp_path, CODEC).make(EVERYBODY, name, voice(2.0), RATE)
    assert not list(tmp_path.iterdir())
