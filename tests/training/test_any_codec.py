"""Every codec of the folder goes the whole way, at tiny random size: encode, align, units, lm, package, say, eval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("librosa", reason="needs the eval extra")

from safetensors.torch import load_file

from speech_mtp import audio, hub, plugins
from speech_mtp.cli import evaluate_codec
from speech_mtp.cli.voices import chosen
from speech_mtp.codecs.base import Codec
from speech_mtp.codecs.dac import Dac
from speech_mtp.codecs.decoupled import LOSS_WEIGHTS, Decoupled, DecoupledConfig
from speech_mtp.codecs.encodec import Encodec
from speech_mtp.codecs.mimi import Mimi
from speech_mtp.corpus.align import at_frame_rate
from speech_mtp.corpus.codes import CodecFacts, CodeCorpus, CodeRow, load_codes, save_codes
from speech_mtp.corpus.store import AudioStoreWriter
from speech_mtp.evaluation import codec_report, speech_report
from speech_mtp.evaluation.judges import Judges
from speech_mtp.hub import models
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.timed import speak_timed
from speech_mtp.text.g2p.base import read_text
from speech_mtp.text.phonemes import SYMBOLS, parse, render
from speech_mtp.training import runs
from speech_mtp.training.lm import talker_weights
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig
from speech_mtp.types import Sampling
from tests.cli import running
from tests.lm.tiny import Letters
from tests.tiny import SMALL, tiny_lm

CODECS = plugins.names("codecs")
TEXTS = ["the fox jumps.", "a dog is lazy.", "our hen jumps.", "good morning."]
LETTERS = "tests.lm.tiny:Letters"
EARS = Judges(
    transcribe=lambda wave, rate: "good morning",
    opinion=lambda wave, rate: 3.0,
    second_opinion=lambda wave, rate: 4.0,
    embed=lambda wave, rate: torch.tensor([1.0, float(wave.std())]),
    pitch=lambda wave, rate: torch.zeros(3),
)


def tiny(name: str) -> Codec:
    codec: Codec = plugins.find("codecs", name).tiny()
    return codec.eval()


@pytest.fixture
def folder(tmp_path: Path, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two voices, an aligner and a card; ``backbone`` is found by whoever loads a model."""
    monkeypatch.setattr(models, "resolve_backbone", lambda *_: tmp_path / "backbone")
    writer = AudioStoreWriter(tmp_path / "store")
    for i, text in enumerate(TEXTS * 2):
        samples = 12_000 + 960 * i
        wave = 0.3 * np.sin(np.arange(samples) * (0.02 + 0.01 * i)).astype(np.float32)
        split, phonemes = "dev" if text == TEXTS[-1] else "train", render(read_text(Letters(), text))
        pitch = np.full(-(-samples // 240), 120.0)
        writer.append(f"{i}", "low" if i < len(TEXTS) else "high", text, phonemes, split, wave, pitch)
    writer.close()
    torch.manual_seed(0)
    sizes = {**Decoupled.tiny().config.__dict__, "num_symbols": len(SYMBOLS)}
    hub.save_codec(Decoupled(DecoupledConfig(**sizes)), tmp_path / "aligner")
    (tmp_path / "card.md").write_text("# A model")
    return tmp_path


def carry_out(folder: Path, source: dict[str, Any], kind: str, **changes: Any) -> dict[str, Any]:
    """A stage of the chain, as a recipe would name it."""
    layout = {"name": "aligned", "max_advance": 12, "ahead": 11, "max_stall": 2}
    stages: dict[str, dict[str, Any]] = {
        "encode": {"data": [folder / "store"], "codec": str(folder / "codec"), "aligner": str(folder / "aligner")},
        "units": {"codes": [folder / "encode"], "g2p": LETTERS, "backbone": source, "hidden_layer": 2},
        "lm": {
            "codes": [folder / "encode"],
            "units": folder / "units",
            "model": {**SMALL, "frames_per_group": 8, "ahead": 4, "layout": layout},
            "task": {"batch": 2},
            "loop": {"steps": 2, "learning_rate": 1e-3},
        },
        "package": {
            "codec": str(folder / "codec"),
            "lm": folder / "lm" / "export",
            "codes": [folder / "encode"],
            "voices": {"ann": "high", "bob": "low"},
            "backbone": source,
            "hidden_layer": 2,
            "g2p": LETTERS,
            "card": folder / "card.md",
            "storage": "fp32",
        },
    }
    given = {"kind": kind, "device": "cpu", "out": folder / kind, **stages[kind], **changes}
    return run(TrainConfig.model_validate({"run": given}))


def check_codes(codec: Codec, corpus: CodeCorpus) -> None:
    assert len(corpus) == 2 * len(TEXTS)
    assert corpus.codec == CodecFacts.of(codec.spec)
    assert corpus.timbre.shape == (len(corpus), codec.spec.timbre_dim)
    for i, row in enumerate(corpus.rows):
        frames, unit = corpus.item(i)
        assert frames.shape == (codec.spec.num_streams, row.frames)
        assert int(unit[0]) == 0
        assert int(unit.diff().min()) >= 0
        assert 0 < int(unit[-1]) < len(parse(row.phonemes))


def check_voices(model: SpeechModel, codec: Codec) -> None:
    """Both voices are there, each is heard as itself, and a stranger is refused."""
    known = model.lm.config.voices
    assert known == (() if codec.spec.timbre_dim else ("high", "low"))
    if known:
        assert [model.voices[name].tolist() for name in ("ann", "bob")] == [[1.0, 0.0], [0.0, 1.0]]
        with pytest.raises(ValueError, match="has no timbre; name one of the model's voices"):
            model.timbre(torch.zeros(2))
        with pytest.raises(ValueError, match="keeps no timbre"):
            chosen(model, None, Path("hi.wav"))
    with torch.no_grad():  # two steps leave voices alike
        model.lm.timbre.weight.mul_(30)
    ann, bob, again = (speak_timed(model, "Hi.", voice, Sampling(seed=1)) for voice in ("ann", "bob", "ann"))
    assert torch.equal(ann.wave, again.wave)
    assert ann.wave.shape != bob.wave.shape or not torch.equal(ann.wave, bob.wave)


@pytest.mark.parametrize("name", CODECS)
def test_the_whole_way(name: str, folder: Path, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = tiny(name)
    hub.save_codec(codec, folder / "codec", "fp32")
    assert carry_out(folder, backbone, "encode")["utterances"] == 2 * len(TEXTS)
    check_codes(codec, load_codes(folder / "encode"))
    assert carry_out(folder, backbone, "units")["refused"] == 0
    scores = carry_out(folder, backbone, "lm")
    assert all(np.isfinite(value) for key, value in scores.items() if key != "out")
    assert carry_out(folder, backbone, "package")["voices"] == ["ann", "bob"]

    monkeypatch.chdir(folder)
    assert running.run(monkeypatch, "say", "Hi.", "-o", "hi.wav", "--model", "package", "--voice", "bob") == 0
    wave, rate = soundfile.read("hi.wav")
    assert rate == codec.spec.sample_rate
    assert np.abs(wave).max() > 0
    monkeypatch.setattr(
        speech_report, "speech_report", lambda say, texts, *rest: {"wer": float(say(texts[0]).seconds > 0)}
    )
    Path("lines.txt").write_text("Hi.")
    command = ["eval", "speech", "--sentences", "lines.txt", "--json", "s.json", "--model", "package"]
    assert running.run(monkeypatch, *command) == 0
    assert json.loads(Path("s.json").read_text())["wer"] == 1.0
    loaded = hub.load(folder / "package")
    check_voices(loaded, codec)
    alone, voices = hub.load_voices(folder / "package")
    assert alone.spec == loaded.codec.spec
    assert list(voices) == list(loaded.voices)
    spoken = {row.voice for row in load_codes(folder / "encode").rows}
    assert hub.voices_heard(folder / "package") == loaded.voices_heard == len(spoken)
    assert all(torch.equal(voices[name], loaded.voices[name]) for name in voices)

    whole = codec_report.codec_report
    monkeypatch.setattr(
        codec_report, "codec_report", lambda codec, found, _, seed, opinions: whole(codec, found, EARS, seed)
    )
    monkeypatch.setattr(codec_report, "words_by_voice", lambda codec, found, judges: {"low": {"words": len(found)}})
    evaluate_codec.eval_codec(
        Path("c.json"), corpus_dir=[folder / "store"], codec="package", parts="quality,words", aligner="x"
    )
    report = json.loads(Path("c.json").read_text())
    assert report["words"] == {"low": {"words": report["utterances"]}}
    assert report["voices"] == ["high", "low"]
    assert (report["swap"] is None) == (codec.spec.timbre_dim == 0)
    assert sum(len(books) for books in report["streams"].values()) == codec.spec.num_streams


def test_a_talker_of_other_codes_starts_with_what_has_the_same_shape(folder: Path, backbone: dict[str, Any]) -> None:
    sizes = Decoupled.tiny().config
    for levels, talker in (((8, 5, 5, 5), "first"), ((4, 4, 4, 4), "second")):
        hub.save_codec(Decoupled(replace(sizes, content_levels=levels)), folder / "codec", "fp32")
        codes = folder / f"codes_{talker}"
        carry_out(folder, backbone, "encode", out=codes)
        if talker == "first":
            carry_out(folder, backbone, "units", codes=[codes])
            carry_out(folder, backbone, "lm", codes=[codes], out=folder / "first")
    still = {
        "codes": [codes],
        "out": folder / "second",
        "start": folder / "first/export",
        "loop": {"steps": 1, "learning_rate": 1e-12},
    }
    with pytest.raises(ValueError, match=r"cannot be started from: size mismatch for output"):
        carry_out(folder, backbone, "lm", **still)
    carry_out(folder, backbone, "lm", **still, start_partly=True)
    with pytest.raises(ValueError, match=r"start_partly needs start"):
        carry_out(folder, backbone, "lm", **{**still, "start": None}, start_partly=True)
    before, after = (hub.load_speech_lm(folder / name / "export").state_dict() for name in ("first", "second"))
    others = {key for key in before if before[key].shape != after[key].shape}
    assert {key.split(".")[1] for key in others} == {"tables", "down"}
    assert len(others) < len(before) / 2
    for key in before.keys() - others:
        torch.testing.assert_close(after[key], before[key])


def test_a_start_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x cannot be started from: none of its weights"):
        runs._start_from(torch.nn.Linear(2, 3), torch.nn.Linear(4, 5), "x", partly=True)


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_codec_is_the_same_codec(name: str, tmp_path: Path) -> None:
    codec = tiny(name)
    hub.save_codec(codec, tmp_path / "codec", "fp32")
    loaded = hub.load_codec(tmp_path / "codec")
    assert loaded.spec == codec.spec
    wave = 0.3 * torch.randn(1, 1, 40 * codec.spec.samples_per_frame)
    codes = codec.encode(wave)
    assert torch.equal(loaded.encode(wave).frames, codes.frames)
    torch.testing.assert_close(loaded.decode(codes), codec.decode(codes))


@pytest.mark.parametrize("codec_class", [Encodec, Mimi, Dac])
def test_a_published_folder_is_a_codec_by_itself_and_with_settings(
    codec_class: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = type(codec_class.tiny().model)(codec_class.tiny().model.config)
    model.save_pretrained(tmp_path / "published")
    whole = hub.load_codec(tmp_path / "published")
    assert type(whole) is codec_class
    assert not whole.training
    name = codec_class.__name__.lower()
    fewer = hub.load_codec({"name": name, "source": str(tmp_path / "published"), "num_codebooks": 2})
    wave = 0.3 * torch.randn(1, 1, 640)
    assert torch.equal(fewer.encode(wave).frames, whole.encode(wave).frames[:, :2])
    hub.save_codec(fewer, tmp_path / "saved")
    assert hub.load_codec(tmp_path / "saved").spec == fewer.spec
    monkeypatch.chdir(tmp_path)
    audio.write("noise.wav", wave[0, 0], whole.spec.sample_rate)
    spec = f"{{name: {name}, source: {tmp_path}/published, num_codebooks: 2}}"
    assert running.run(monkeypatch, "tokenize", "noise.wav", "-o", "codes.safetensors", "--codec", spec) == 0
    assert load_file("codes.safetensors")["frames"].shape[0] == 2


# -- alignment --------------------------------------------------------------------------------------------------------
def test_units_move_to_another_frame_rate() -> None:
    unit = torch.tensor([0, 0, 1, 1, 2, 3])
    assert at_frame_rate(unit, 25, 25, 6).tolist() == unit.tolist()
    assert at_frame_rate(unit, 25, 75, 18).tolist() == unit.repeat_interleave(3).tolist()
    assert at_frame_rate(unit, 25, 12.5, 3).tolist() == [0, 1, 3]
    assert at_frame_rate(torch.tensor([0, 1, 2]), 25, 12.5, 2).tolist() == [0, 2], "the first frame stays at 0"


def test_the_codecs_own_head_aligns_unless_another_is_named(
    folder: Path, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = hub.load_codec(folder / "aligner")
    hub.save_codec(codec, folder / "codec")
    monkeypatch.setattr(hub, "load_aligner", lambda name: pytest.fail(f"{name} is not needed"))
    carry_out(folder, backbone, "encode", aligner=None)
    monkeypatch.undo()
    carry_out(folder, backbone, "encode", out=folder / "named")
    own, named = load_codes(folder / "encode"), load_codes(folder / "named")
    assert torch.equal(own.frames, named.frames)
    assert torch.equal(own.unit, named.unit)


def test_the_evaluation_aligns_by_the_head_of_a_codec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "build", lambda family, spec: Letters())
    align = evaluate_codec.told_or_heard(str(folder / "aligner"))
    spec = replace(Decoupled.tiny().spec, sample_rate=16_000)
    found = align(codec_report.Sample("ann", "the fox.", 0.3 * torch.randn(16_000)), spec)
    assert found is not None
    phonemes, unit, rate_hz = found
    assert phonemes.tolist() == [one.id for one in read_text(Letters(), "the fox.")]
    assert (len(unit), rate_hz) == (25, 25.0)
    assert unit.unique().tolist() == list(range(len(phonemes)))


# -- what else learns from such codes ---------------------------------------------------------------------------------
def test_heads_and_the_direct_form_learn_voices_too(folder: Path, backbone: dict[str, Any]) -> None:
    hub.save_codec(tiny("mimi"), folder / "codec", "fp32")
    for kind in ("encode", "units", "lm"):
        carry_out(folder, backbone, kind)
    head = {"head": {"name": "medusa", "num_heads": 2}, "objective": {"losses": {"soft": 1.0}}}
    talker = {"lm": str(folder / "lm" / "export"), "codes": [folder / "encode"], "units": folder / "units"}
    few = {"task": {"batch": 2}, "loop": {"steps": 1, "learning_rate": 1e-3}}
    given = {"kind": "speech_mtp", "out": folder / "heads", "device": "cpu", "heads": {"medusa": head}, **talker, **few}
    assert np.isfinite(run(TrainConfig.model_validate({"run": given}))["loss"])
    direct = {"name": "direct", "frames_per_group": 8}
    carry_out(folder, backbone, "lm", out=folder / "direct", model=direct, units=None, backbone=backbone)
    assert hub.load_any_lm(folder / "direct" / "export").config.voices == ("high", "low")


# -- weights ----------------------------------------------------------------------------------------------------------
def test_streams_weigh_what_their_codec_says(tmp_path: Path) -> None:
    lm = tiny_lm()
    assert talker_weights(lm, CodecFacts.of(Decoupled.tiny().spec)) == {"control": 1, "stream0": 1, "stream1": 0.6}
    assert talker_weights(lm, CodecFacts.of(Encodec.tiny().spec)) == {
        "control": 1,
        **{f"stream{k}": 1 for k in range(3)},
    }
    rows = [CodeRow("0", "low", "hello", "", "train", 0, 3)]
    save_codes(CodeCorpus(rows, torch.zeros(2, 3).long(), torch.zeros(3).long(), torch.zeros(1, 8)), tmp_path)
    (tmp_path / "codec.json").write_text('{"codebook_sizes": [1000, 200], "frame_rate_hz": 25.0, "timbre_dim": 8}')
    older = load_codes(tmp_path).codec
    assert older is not None
    assert older.loss_weights == LOSS_WEIGHTS


# -- what is refused --------------------------------------------------------------------------------------------------
def test_what_cannot_work_is_one_sentence(folder: Path, backbone: dict[str, Any]) -> None:
    codec = tiny("encodec")
    hub.save_codec(codec, folder / "codec", "fp32")

    def refused(kind: type[Exception], match: str, stage: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match) as caught:
            carry_out(folder, backbone, stage, **changes)
        assert "\n" not in str(caught.value)

    missing = str(folder / "nowhere")
    refused(FileNotFoundError, r"There is no .*nowhere \(run.codec\)", "encode", codec=missing)
    refused(FileNotFoundError, r"\(run.codec\)", "encode", codec={"name": "encodec", "source": missing})
    refused(ValueError, "has no source; add the folder or hub id", "encode", codec={"name": "encodec"})
    refused(ValueError, "no 'encodek' in codecs", "encode", codec={"name": "encodek", "source": str(folder)})
    refused(ValueError, "has no phoneme head, so it cannot align", "encode", aligner=str(folder / "codec"))

    carry_out(folder, backbone, "encode")
    carry_out(folder, backbone, "units")
    carry_out(folder, backbone, "lm")
    long_groups = {"frames_per_group": 600, "output": "linear", "layout": {"name": "aligned", "max_advance": 1}}
    refused(ValueError, "make groups shorter or its max_advance larger", "lm", model=long_groups)
    hub.save_codec(tiny("mimi"), folder / "other")
    refused(ValueError, "name the codec that encoded its corpus", "package", codec=str(folder / "other"))
    carry_out(folder, backbone, "encode", codec=str(folder / "other"), out=folder / "others")
    refused(ValueError, "are of different codecs", "lm", codes=[folder / "encode", folder / "others"])
    (folder / "encode" / "codec.json").unlink()
    refused(FileNotFoundError, r"holds no codec\.json", "lm", out=folder / "again")


def test_a_corpus_with_a_stranger_does_not_fit_a_talker(folder: Path) -> None:
    rows = [CodeRow("0", "lou", "hello", "", "train", 0, 3)]
    corpus = CodeCorpus(rows, torch.zeros(2, 3).long(), torch.zeros(3).long(), torch.zeros(1, 0))
    with pytest.raises(ValueError, match=r"not trained on the voice 'lou' .*did you mean 'low'"):
        corpus.told_apart(("high", "low"))
