"""Teachers speak straight into stores: every job is a function of its number, and a killed run goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech_mtp.corpus import direct
from speech_mtp.corpus.checks import AudioRules
from speech_mtp.corpus.direct import Speech, VoiceShare, read_sentences
from speech_mtp.corpus.store import AudioStore, read_rows, stores_in

SINE = {"name": "tests.corpus.sine_teacher:Sine"}


def speech(utterances: int = 40, **more: Any) -> Speech:
    return Speech(
        sentences=[f"This is sentence {i}." for i in range(30)],
        dev_sentences=[f"Held out is {i}." for i in range(5)],
        voices=[VoiceShare(teacher=SINE, voices=["low"], share=3), VoiceShare(teacher=SINE, share=1)],
        utterances=utterances,
        dev=0.2,
        g2p="tests.corpus.sine_teacher:Vowels",
        rules=AudioRules(min_chars_per_second=1),
        **more,
    )


def rows_by_id(folder: Path) -> dict[str, tuple[str, str, int]]:
    return {row.id: (row.text, row.split, row.samples) for part in stores_in(folder) for row in read_rows(part)}


def test_the_jobs_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    for worker in range(3):
        assert direct._speak_part(speech(), tmp_path / "three", worker, 3, None) == 0
    direct._speak_part(speech(), tmp_path / "one", 0, 1, None)
    one, three = rows_by_id(tmp_path / "one"), rows_by_id(tmp_path / "three")
    assert one == three
    assert len(one) == 40
    voices = [name.split("-")[0] for name in one]
    assert 25 < voices.count("low") < 40  # three quarters, and half of the last one
    assert 0 < sum(split == "dev" for _, split, _ in one.values()) < 20
    assert all(text.startswith("Held") == (split == "dev") for text, split, _ in one.values())


def test_every_sentence_has_its_turn_before_one_comes_again(tmp_path: Path) -> None:
    """Those of each split by themselves."""
    direct._speak_part(speech(75), tmp_path / "whole", 0, 1, None)
    whole = {name.split("-")[1]: row for name, row in rows_by_id(tmp_path / "whole").items()}
    told = [whole[f"{number:06}"] for number in range(75)]
    texts = [text for text, split, _ in told if split == "train"]
    assert len(texts) == 60
    assert sorted(texts[:30]) == sorted(texts[30:]) == sorted(speech().sentences)
    assert texts[:30] != texts[30:]
    held_out = [text for text, split, _ in told if split == "dev"]
    assert [sorted(held_out[at : at + 5]) for at in (0, 5, 10)] == [sorted(speech().dev_sentences)] * 3
    for part, first, count in ((0, 0, 30), (1, 30, 45)):
        direct._speak_part(speech(count, first=first), tmp_path / f"part{part}", 0, 1, None)
    parts = rows_by_id(tmp_path / "part0") | rows_by_id(tmp_path / "part1")
    assert parts == rows_by_id(tmp_path / "whole")


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    direct._speak_part(speech(10), tmp_path, 0, 1, None)
    first = (tmp_path / "part00" / "audio.i16").read_bytes()
    direct._speak_part(speech(), tmp_path, 0, 1, None)
    assert (tmp_path / "part00" / "audio.i16").read_bytes()[: len(first)] == first
    for worker in range(3):  # as many others as may be
        direct._speak_part(speech(), tmp_path, worker, 3, None)
    store = AudioStore([tmp_path])
    assert len(store) == len({row.id for row in store.rows}) == 40
    assert all(row.ends_ms == [60 * word.end() for word in re.finditer(r"\S+", row.text)] for row in store.rows)
    assert np.unique(store.pitch(0)).tolist() == [100.0 if store.rows[0].voice == "low" else 200.0]


def test_long_work_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("speech_mtp.progress.EVERY_S", 0.0)
    for worker in range(2):
        direct._speak_part(speech(), tmp_path, worker, 2, None)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 20  # of the first process, in the name of all
    assert told[4].startswith("speak, one of 2 processes: 5 of 20, ")


def test_time_is_up(tmp_path: Path) -> None:
    assert direct._speak_part(speech(), tmp_path, 0, 1, until=1.0) == 0
    assert not read_rows(tmp_path / "part00")


def test_sentences_that_cannot_be_spoken_are_counted(tmp_path: Path) -> None:
    silent = Speech(
        ["Be mute now."], ["Held out is 1."], [VoiceShare(teacher=SINE, share=1)], 8, dev=0.5, g2p=speech().g2p
    )
    refused = direct._speak_part(silent, tmp_path, 0, 1, None)
    assert refused == 8 - len(read_rows(tmp_path / "part00")) > 0


def test_an_unknown_voice_is_refused_before_anything_is_spoken(tmp_path: Path) -> None:
    wrong = Speech(["a b"], ["c d"], [VoiceShare(teacher=SINE, voices=["lower"], share=1)], 8)
    with pytest.raises(ValueError, match="no voice 'lower'"):
        direct.speak(wrong, tmp_path, 1)


def test_sentences_of_the_right_length_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\nlong enough\nfar too long for this\n", encoding="utf-8")
    assert read_sentences([tmp_path / "a.txt"], (8, 15)) == ["long enough"]
