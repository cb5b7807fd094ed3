from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import audio
from speech_mtp.corpus.build import CorpusConfig, build_corpus, plan_jobs
from speech_mtp.corpus.manifest import MANIFEST, read_manifest, read_rejects
from speech_mtp.corpus.texts import load_script
from tests.corpus.killing import kill_when

HERE = Path(__file__).parent
NOUNS = ["cat", "dog", "bus", "tea", "car", "map", "lamp", "book"]
SENTENCES = [f"The {a} is near the {b}." for a in NOUNS for b in NOUNS if a != b]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(HERE))
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*SENTENCES, "Please mute the television now."]))
    return path


def _config(text: Path, out: Path, **more: Any) -> CorpusConfig:
    teacher = {"name": "sine_teacher:Sine", "pause_s": more.pop("pause_s", 0.0)}
    voices = [{"teacher": teacher, "voice": "low"}, {"teacher": teacher, "voice": "high", "share": 0.5}]
    settings = {
        "out": out,
        "texts": [{"path": text, "dev_fraction": 0.2}],
        "voices": voices,
        "g2p": "sine_teacher:Vowels",
        "coverage_words": 0,
        "workers": 2,
        "batch": 5,
    }
    return CorpusConfig.model_validate(settings | more)


def test_a_corpus_is_made_reported_and_left_alone_when_complete(text: Path, tmp_path: Path) -> None:
    config = _config(text, tmp_path / "corpus")
    figures = build_corpus(config)
    rows = read_manifest(config.out)
    assert {row.text for row in rows if row.voice == "low"} == set(SENTENCES)
    assert 12 < sum(row.voice == "high" for row in rows) < 44
    assert {row.split for row in rows if row.text == SENTENCES[0]} == {
        next(r.split for r in rows if r.text == SENTENCES[0])
    }
    for row in rows[::20]:
        wave, _ = audio.read(config.out / row.audio, 24_000)
        assert len(wave) / 24_000 == pytest.approx(row.seconds, abs=1e-3)
        assert row.f0_hz is not None
        assert len(row.f0_hz) == -(-len(wave) // 240)
    assert figures["hours"] == pytest.approx(sum(row.seconds for row in rows) / 3600, abs=1e-3)
    assert figures["rejected_audio"]["low: silent"] == 1
    assert figures["phonemes"]["covered"] == 1
    assert json.loads((config.out / "report.json").read_text()) == figures
    before = (config.out / MANIFEST).read_bytes()
    assert build_corpus(config) == figures
    assert (config.out / MANIFEST).read_bytes() == before


def test_kill_and_resume(text: Path, tmp_path: Path) -> None:
    config = _config(text, tmp_path / "corpus", pause_s=0.05)
    manifest = config.out / MANIFEST
    kill_when(lambda: manifest.exists() and manifest.read_bytes().count(b"\n") >= 15, config, tmp_path)
    before = read_manifest(config.out)
    with manifest.open("ab") as file:
        file.write(b'{"id": "low-123", "te')
    build_corpus(_config(text, config.out, workers=1, batch=50))
    rows = read_manifest(config.out)
    assert rows[: len(before)] == before
    assert len(before) < len(rows)
    script_now = load_script(config.texts, config.sentences, 0, 0)
    made = [row.id for row in rows] + [reject.id for reject in read_rejects(config.out)]
    assert sorted(made) == sorted(job.id for job in plan_jobs(config, script_now))
    assert all(audio.read(config.out / row.audio)[0].numel() for row in rows)


def test_settings_are_checked_before_anything_is_made(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    teacher = "sine_teacher:Sine"
    with pytest.raises(ValueError, match="has no voice 'deep'; it has low, high"):
        build_corpus(_config(text, out, voices=[{"teacher": teacher, "voice": "deep"}]))
    with pytest.raises(ValidationError, match="may be planned once"):
        _config(text, out, voices=[{"teacher": teacher, "voice": "low"}] * 2)
    write = {"prompts": HERE.parents[1] / "recipes/corpus/prompts.yaml", "out": tmp_path / "w.jsonl", "texts": 3}
    with pytest.raises(ValueError, match="name a backbone"):
        build_corpus(_config(text, out, write=write))
    assert not out.exists()


def test_text_is_written_first_when_a_writer_is_there(text: Path, tmp_path: Path) -> None:
    write = {"prompts": HERE.parents[1] / "recipes/corpus/prompts.yaml", "out": tmp_path / "w.jsonl", "texts": 3}

    def writer() -> tuple[Any, Any]:
        raise KeyError("asked for a model")

    with pytest.raises(KeyError, match="asked for a model"):
        build_corpus(_config(text, tmp_path / "corpus", write=write), writer)
