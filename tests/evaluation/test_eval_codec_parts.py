"""``eval codec`` with its parts, on a tiny codec of the registry without roles and recordings of noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("librosa", reason="needs the eval extra")
pytest.importorskip("matplotlib", reason="needs the eval extra")

from speech_mtp import audio, hub
from speech_mtp.cli.evaluate import judges_of
from speech_mtp.cli.evaluate_codec import eval_codec, told_or_heard
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.codecs.encodec import Encodec
from speech_mtp.corpus.store import AudioStoreWriter
from speech_mtp.evaluation.alignment import aligned_utterances
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.judges import Judges
from speech_mtp.text.phonemes import SYMBOLS, parse


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    codec = Encodec.tiny().eval()
    monkeypatch.setattr(hub, "load_codec", lambda name: codec)
    folder = tmp_path / "heard" / "ann"
    folder.mkdir(parents=True)
    for i in range(2):
        wave = 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(i))
        audio.write(folder / f"{i}.wav", wave, codec.spec.sample_rate)
    return folder.parent


def test_a_codec_without_roles_is_measured_and_drawn(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "report.json", tmp_path / "picture.png"
    eval_codec(out, [recordings], parts="views,probes", plot=picture, aligner="x")
    report = json.loads(out.read_text())
    assert report["probes"] is None
    assert [len(books) for books in report["views"]["room"].values()] == [3]
    assert 0 <= report["views"]["decoded"]["codebooks"][0]["value"] <= 1
    said = capsys.readouterr().out
    assert "pitch x 0.72" in said
    assert "probes: left out" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_parts_that_were_measured_before_an_interruption_are_kept(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    out, whole, parts = tmp_path / "report.json", tmp_path / "whole.json", "quality,words,views,probes,swaps"
    ears = Judges(
        transcribe=lambda wave, rate: "hello there",
        opinion=lambda wave, rate: float(wave.std()),
        second_opinion=lambda wave, rate: 4.0,
        embed=lambda wave, rate: torch.stack([wave.std(), wave.abs().max()]),
        pitch=lambda wave, rate: wave[: len(wave) // 240 * 240].view(-1, 240).std(1),
    )
    monkeypatch.setattr("speech_mtp.cli.evaluate_codec.judges_of", lambda recogniser: (ears, "ears"))
    for i in range(2):
        (recordings / f"ann/{i}.txt").write_text("hello there" if i else "good morning")
    eval_codec(whole, [recordings], parts=parts, aligner="x")
    with monkeypatch.context() as patch:
        patch.setattr("speech_mtp.cli.evaluate_codec._probes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            eval_codec(out, [recordings], parts=parts, aligner="x")
    assert not out.exists()
    with pytest.raises(ValueError, match=r"report\.jsonl holds measurements with another setting of seed"):
        eval_codec(out, [recordings], parts="views", aligner="x", seed=1)
    with pytest.raises(ValueError, match="another setting of opinions"):
        eval_codec(out, [recordings], parts="views", aligner="x", opinions=1)
    (recordings / "ann/0.txt").write_text("good evening")
    with pytest.raises(ValueError, match="another setting of recordings"):
        eval_codec(out, [recordings], parts="views", aligner="x")
    (recordings / "ann/0.txt").write_text("good morning")
    other = Encodec.tiny().eval()
    next(other.parameters()).data += 1
    with monkeypatch.context() as patch:
        patch.setattr(hub, "load_codec", lambda name: other)
        with pytest.raises(ValueError, match="another setting of weights"):
            eval_codec(out, [recordings], parts="views", aligner="x")
    for again in ("codec_report.codec_report", "codec_report.words_by_voice", "view_agreement.view_agreement"):
        monkeypatch.setattr(f"speech_mtp.evaluation.{again}", cut_off)
    eval_codec(out, [recordings], parts="views", aligner="x")
    assert (tmp_path / "report.jsonl").is_file()  # it holds more than was asked for
    eval_codec(out, [recordings], parts=parts, aligner="x")
    assert json.loads(out.read_text()) == json.loads(whole.read_text())
    assert json.loads(out.read_text())["round_trip"]["dnsmos"] > 0
    assert [path.suffix for path in tmp_path.glob("report.*")] == [".json"]


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'views'"):
        eval_codec(tmp_path / "r.json", [tmp_path], parts="quality,view")


def test_another_recogniser_hears_the_words() -> None:
    usual, name = judges_of(None)
    assert name == "whisper-tiny.en"
    judges, name = judges_of("tests.training.ear:Ear")
    assert name == "tests.training.ear:Ear"
    assert judges.transcribe(torch.zeros(480), 24_000) == ""
    assert judges.opinion is usual.opinion
    with pytest.raises(ValueError, match="give one of them"):
        judges_of("pocketsphinx,faster_whisper")
    with pytest.raises(ValueError, match="which is no recogniser"):
        judges_of("tests.corpus.sine_teacher:Sine")
    with pytest.raises(ValueError, match="no 'pocketsphynx' in frontends"):
        judges_of("pocketsphynx")


def test_what_the_teacher_told_counts_before_what_the_aligner_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Decoupled.tiny(len(SYMBOLS))
    monkeypatch.setattr(hub, "load_aligner", None)  # nobody asks for one
    ids = [unit.id for unit in parse("aba")]
    wave = 0.1 * torch.randn(9_600, generator=torch.Generator().manual_seed(0))
    sample = Sample("v", "hi", wave, (ids, [90, 230, 400]))
    told = next(aligned_utterances(codec, [sample], told_or_heard("x")))
    assert told.phonemes.tolist() == ids
    assert told.unit.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_what_was_told_and_by_whom_the_rest_was_aligned_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Decoupled.tiny(len(SYMBOLS))
    monkeypatch.setattr(hub, "load_codec", lambda name: codec)
    monkeypatch.setattr(hub, "load_aligner", lambda name: codec)
    for name, untold in (("told", -1), ("mixed", 0)):
        writer = AudioStoreWriter(tmp_path / name)
        for i in range(12):
            ends = None if i == untold else [100, 200, 1000]
            wave = (0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(i))).numpy()
            writer.append(f"{i}", "v", f"the sun number {i}", "aba", "dev", wave, torch.zeros(100).numpy(), ends)
        writer.close()
        out = tmp_path / f"{name}.json"
        eval_codec(out, corpus_dir=[tmp_path / name], parts="probes", probe_steps=1, aligner="x")
    told, mixed = (json.loads((tmp_path / f"{name}.json").read_text())["probes"] for name in ("told", "mixed"))
    assert (told["aligner"], told["told"], told["utterances"]) == (None, 12, 12)
    assert (mixed["aligner"], mixed["told"]) == ("x", 11)
