"""Recordings become the same corpus that teachers make."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import audio
from speech_mtp.corpus import importing
from speech_mtp.corpus.build import CorpusConfig, build_corpus
from speech_mtp.corpus.checks import AudioRules
from speech_mtp.corpus.cutting import PieceRules
from speech_mtp.corpus.importing import JOURNAL
from speech_mtp.corpus.manifest import MANIFEST, read_lines, read_manifest, read_rejects
from speech_mtp.corpus.recorded import RecordingJob, Treatment, import_recording
from speech_mtp.corpus.recordings.base import Recording
from tests.corpus import own_recordings as own
from tests.corpus.killing import kill_when
from tests.corpus.test_build import SENTENCES

HERE = Path(__file__).parent


@pytest.fixture
def codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(HERE))
    return own.aligner(tmp_path / "codec")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings are imported in this process: others take seconds to start."""
    monkeypatch.setattr(importing, "in_processes", _one_after_another)


def _one_after_another(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    return (function(*job) for job in jobs)


@pytest.mark.usefixtures("here")
def test_an_import_is_a_corpus_as_teachers_make_it(codec: Path, tmp_path: Path) -> None:
    config = CorpusConfig.model_validate(
        own.recipe(tmp_path / "out", own.tones(tmp_path / "in", SENTENCES[:12]), codec)
    )
    figures = build_corpus(config)
    rows = read_manifest(config.out)
    assert {row.text for row in rows} == set(SENTENCES[:12])
    voices = {row.voice for row in rows}
    assert voices > {"me-p0", "me-Ann"}
    assert len(voices) == 3
    assert all(re.fullmatch(r"[\w-]+", voice, re.ASCII) for voice in voices), "they are names of folders"
    assert {row.split for row in rows} == {"train", "dev"}
    assert {(row.licence, row.source) for row in rows} == {("CC0", "me")}
    assert all(row.phonemes == " ".join("ə" for _ in row.text.split()) for row in rows)
    for row in rows:
        wave, _ = audio.read(config.out / row.audio, 24_000)
        assert len(wave) / 24_000 == pytest.approx(len(row.text) / 15, abs=0.02)
        assert 10 * np.log10(float(wave.double().square().mean())) == pytest.approx(-23, abs=0.1)
        assert row.level_dbfs == pytest.approx(20 * np.log10(0.3) - 3, abs=0.5)
    assert figures["speakers"] == 3
    assert figures["sources"]["me"] == {"licence": "CC0", "hours": figures["hours"], "utterances": 12, "speakers": 3}
    assert figures["seconds"]["max"] == max(round(row.seconds, 2) for row in rows)
    assert "me\n  licence: CC0\n  By me.\n" in (config.out / "NOTICE").read_text()
    journal = [(line["id"], line["seconds"]) for line in read_lines(config.out / JOURNAL)]
    assert sorted(id for id, _ in journal) == sorted(row.id for row in rows)
    assert dict(journal)["me-p0-00"] == pytest.approx(len(SENTENCES[0]) / 15, abs=1e-3)


@pytest.mark.usefixtures("here")
def test_one_bad_recording_never_ends_the_import(codec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    table = own.tones(folder, SENTENCES[:2])
    good = own.tone(2.0)
    soundfile.write(folder / "nan.wav", np.full(48_000, np.nan), 24_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(48_000), 24_000)
    soundfile.write(folder / "empty.wav", np.zeros(0), 24_000)
    soundfile.write(folder / "loud.wav", np.clip(9 * good, -1, 1), 24_000)
    soundfile.write(folder / "good.wav", good, 24_000)
    (folder / "corrupt.flac").write_bytes((folder / "01.flac").read_bytes()[:90] + b"nonsense" * 99)
    words = "The cat is near the dog again."
    rows = [
        {"audio": name, "text": text, "speaker": ""}
        for name, text in [
            ("gone.wav", words), ("nan.wav", words), ("silent.wav", words), ("empty.wav", words), ("loud.wav", words),
            ("corrupt.flac", words), ("good.wav", ""), ("../good.wav", words),
        ]
    ]  # fmt: skip
    soundfile.write(folder / "russian.wav", good, 24_000)
    soundfile.write(folder / "hasty.wav", good, 24_000)
    rows += [
        {"audio": "russian.wav", "text": "Собака", "speaker": ""},
        {"audio": "hasty.wav", "text": "one two three four " * 20, "speaker": ""},
        {"audio": "loud.wav", "text": words, "speaker": ""},
    ]
    text = table.read_text("utf-8")
    own.table(folder, rows)
    table.write_text(text + "\n".join(table.read_text("utf-8").splitlines()[1:]) + "\n", "utf-8")
    config = CorpusConfig.model_validate(own.recipe(tmp_path / "out", table, codec))
    figures = build_corpus(config)
    assert figures["utterances"] == 2
    found = {reject.id: (reject.reason, reject.detail or "") for reject in read_rejects(config.out)}
    assert {id: reason for id, (reason, _) in found.items()} == {
        "me-gone": "no audio file",
        "me-nan": "unreadable audio",
        "me-silent": "silent",
        "me-empty": "unreadable audio",
        "me-loud": "clipped",
        "me-loud#2": "duplicate id",
        "me-corrupt": "unreadable audio",
        "me-good": "unreadable text",
        "me-russian": "unreadable text",
        "me-hasty": "text does not match",
        "me-line-11": "unusable entry",
    }
    assert "NaN" in found["me-nan"][1]
    assert "Cyrillic" in found["me-russian"][1]
    assert all("\n" not in detail for _, detail in found.values())
    assert figures["rejects"]["unreadable audio"] == 3
    before = {name: (config.out / name).read_bytes() for name in (MANIFEST, JOURNAL, "rejects.jsonl", "report.json")}
    build_corpus(config)
    assert {name: (config.out / name).read_bytes() for name in before} == before, "nothing is done twice"


@pytest.mark.slow  # the same guarantee is tested on a cheaper task among the fast ones
def test_kill_and_resume(codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = own.tones(tmp_path / "in", SENTENCES[:24])
    config = CorpusConfig.model_validate(own.recipe(tmp_path / "out", table, codec, workers=2))
    journal = config.out / JOURNAL
    kill_when(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4, config, tmp_path)
    finished = [line["id"] for line in read_lines(journal)]
    assert len(finished) < 24
    made = {row.id: (config.out / row.audio).stat().st_mtime_ns for row in read_manifest(config.out)}
    with journal.open("rb+") as file:  # the kill came after the rows of the last one, before its line
        file.truncate(journal.read_bytes()[:-1].rfind(b"\n") + 1)
    build_corpus(config)
    rows = read_manifest(config.out)
    assert [line["id"] for line in read_lines(journal)][: len(finished) - 1] == finished[:-1]
    assert len({row.id for row in rows}) == len(rows) == 24
    kept = [row for row in rows if row.id in finished[:-1]]
    assert all((config.out / row.audio).stat().st_mtime_ns == made[row.id] for row in kept)
    monkeypatch.setattr(importing, "in_processes", _one_after_another)
    whole = config.model_copy(update={"out": tmp_path / "whole"})
    build_corpus(whole)
    assert sorted(rows, key=lambda row: row.id) == sorted(read_manifest(whole.out), key=lambda row: row.id)
    assert all((config.out / row.audio).read_bytes() == (whole.out / row.audio).read_bytes() for row in rows)


def test_a_text_of_other_words_is_refused(codec: Path, tmp_path: Path) -> None:
    """By the rule alone: a random codec finds no text better than the same backwards."""
    soundfile.write(tmp_path / "a.wav", own.tone(2.0), 24_000)
    recording = Recording("a", tmp_path / "a.wav", "The cat is near the dog again.")
    treatment = Treatment(tmp_path, '"sine_teacher:Vowels"', str(codec), PieceRules(), AudioRules())
    imported = import_recording(RecordingJob("me-a", "me", recording, "me", "CC0", 0.0), treatment)
    (reject,) = imported.items
    assert imported.seconds == 2.0
    assert getattr(reject, "reason", None) == "text does not match"


def test_settings_are_checked_before_anything_is_made(codec: Path, tmp_path: Path) -> None:
    table = own.tones(tmp_path / "in", SENTENCES[:2])
    good = own.recipe(tmp_path / "out", table, codec)
    (plan,) = good["recordings"]
    with pytest.raises(ValidationError, match="licence"):
        CorpusConfig.model_validate(good | {"recordings": [{k: v for k, v in plan.items() if k != "licence"}]})
    with pytest.raises(ValidationError, match="two recordings have one name"):
        CorpusConfig.model_validate(good | {"recordings": [plan, plan]})
    with pytest.raises(ValidationError, match="nothing to make"):
        CorpusConfig.model_validate(good | {"recordings": []})
    with pytest.raises(ValidationError, match="voices need texts"):
        CorpusConfig.model_validate(good | {"texts": [{"path": "x.txt"}]})
    with pytest.raises(ValidationError, match=r"more than audio\.max_seconds"):
        CorpusConfig.model_validate(good | {"pieces": {"max_seconds": 20}})
    for change, words in (
        ({"source": {"name": "csv_table", "file": "gone.csv"}}, "no table"),
        ({"source": "cvs"}, "no 'cvs'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            build_corpus(CorpusConfig.model_validate(good | {"recordings": [plan | change]}))
    with pytest.raises(ValueError, match="nowhere"):
        build_corpus(CorpusConfig.model_validate(good | {"aligner": str(tmp_path / "nowhere")}))
    assert not (tmp_path / "out").exists()
