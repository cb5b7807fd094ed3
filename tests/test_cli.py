"""The command line, on a tiny random model: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_mtp import audio, hub, plugins
from speech_mtp.cli import evaluate
from speech_mtp.cli.shared import standard_input
from speech_mtp.evaluation.judges import Judges
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.units import UnitMaker
from speech_mtp.streaming.timed import Utterance, speak_timed
from speech_mtp.text.lexicon import Lexicon
from speech_mtp.threads import SPEECH, use_threads
from speech_mtp.types import Finish
from tests.cli import running
from tests.cli.running import run
from tests.tiny import tiny_model

TEXT = "Hello there, it is good."
ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SpeechModel:
    """The model that every name means, and an empty working folder."""
    made = tiny_model()

    def load(
        name: str, backbone: str | None = None, threads: int | None = None, lexicon: Path | None = None
    ) -> SpeechModel:
        if name != "tiny-en":
            raise ValueError(f"There is no model {name!r}.")
        use_threads(threads, SPEECH)
        return made

    monkeypatch.setattr(hub, "load", load, raising=False)
    monkeypatch.setattr(hub, "load_codec", lambda name: made.codec)
    monkeypatch.chdir(tmp_path)
    return made


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """As :func:`tests.cli.running.refused`, and nothing is written."""
    before = sorted(Path.cwd().rglob("*"))
    said = running.refused(monkeypatch, capsys, *arguments)
    assert sorted(Path.cwd().rglob("*")) == before
    return said


# -- say --------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("model")
class TestSay:
    def test_writes_a_file_and_ends_with_a_json_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, "say", TEXT, "-o", "hello.wav", "--voice", "high", "--seed", "3", "--json") == 0
        said = capsys.readouterr()
        assert said.err == ""
        figures = json.loads(said.out.splitlines()[-1])
        wave, rate = audio.read("hello.wav")
        assert rate == 24_000
        assert figures["seconds"] == pytest.approx(len(wave) / rate, abs=1e-3)
        assert figures["frames_per_step"] == 2
        assert figures["steps"] * 2 / 25 == pytest.approx(figures["seconds"])
        assert figures["finish_reason"] == "stop"
        assert 0 < figures["ttfa_ms"] <= 1000 * figures["rtf"] * figures["seconds"] + 1
        assert [word["word"] for word in figures["words"]] == ["Hello", "there", "it", "is", "good"]

    def test_prints_its_figures_for_people(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, "say", TEXT) == 0
        line = capsys.readouterr().out
        assert all(word in line for word in ("out.wav", "s of audio", "real-time factor", "first audio", "steps of 2"))

    def test_the_seed_decides_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seed in (("a.wav", "1"), ("b.wav", "1"), ("c.wav", "2")):
            run(monkeypatch, "say", TEXT, "-o", name, "--seed", seed)
        assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes() != Path("c.wav").read_bytes()

    def test_a_file_and_a_text_sound_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("story.txt").write_text(TEXT + "\n", encoding="utf-8")
        run(monkeypatch, "say", TEXT, "-o", "a.flac")
        run(monkeypatch, "say", "@story.txt", "-o", "b.flac")
        assert torch.equal(audio.read("a.flac")[0], audio.read("b.flac")[0])

    def test_standard_input_is_a_stream_of_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run(monkeypatch, "say", TEXT, "-o", "a.wav")
        read, write = os.pipe()
        os.write(write, TEXT.encode())
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert run(monkeypatch, "say", "-", "-o", "b.wav") == 0
        assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()

    def test_empty_standard_input_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        read, write = os.pipe()
        os.close(write)
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert "nothing to say" in refused(monkeypatch, capsys, "say", "-")

    def test_standard_input_is_read_as_it_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read, write = os.pipe()
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            pieces = standard_input()
            os.write(write, "Gr\u00fc".encode()[:-1])
            first = next(pieces)
            os.write(write, "\u00fc".encode()[1:] + b"n")
            second = next(pieces)
            os.close(write)
            assert [first, second, "".join(pieces)] == ["Gr", "\u00fcn", ""]

    def test_lines_become_numbered_files_with_a_json_line_each(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: SpeechModel
    ) -> None:
        Path("lines.txt").write_text("Hello there.\nIt is good.\n\n", encoding="utf-8")
        run(monkeypatch, "say", "It is good.", "-o", "alone.wav")
        capsys.readouterr()
        assert run(monkeypatch, "say", "--lines", "lines.txt", "--out-dir", "made/here", "--json") == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["file"] for row in rows] == ["made/here/000.wav", "made/here/001.wav"]
        assert sorted(path.name for path in Path("made/here").iterdir()) == ["000.wav", "001.wav"]
        assert Path("made/here/001.wav").read_bytes() == Path("alone.wav").read_bytes()

    def test_temperature_nought_ignores_the_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, seed in (("a.wav", "1"), ("b.wav", "2")):
            run(monkeypatch, "say", TEXT, "-o", name, "--seed", seed, "--temperature", "0")
        assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["say", ""], "empty"),
            (["say", "..."], "only punctuation"),
            (["say", "a " * 6000], "more than the 10000"),
            (["say", "Привет, мир"], "Cyrillic"),
            (["say", TEXT, "--voice", "hihg"], "did you mean 'high'"),
            (["say", TEXT, "--group", "5"], "2 frames per step, not 5; use --group 2"),
            (["say", TEXT, "--model", "huge"], "no model 'huge'"),
            (["say", TEXT, "--temperature", "-1"], "temperature is -1"),
            (["say", TEXT, "-o", "hello.mp3"], "must end in .wav or .flac"),
            (["say", TEXT, "-o", "nowhere/hello.wav"], "there is no folder nowhere"),
            (["say", "@missing.txt"], "no text file missing.txt"),
            (["say"], "either a text, or --lines"),
            (["say", TEXT, "--lines", "x.txt", "--out-dir", "d"], "either a text, or --lines"),
            (["say", "--lines", "x.txt"], "--out-dir"),
            (["say", "--lines", "x.txt", "--out-dir", "d"], "no text file x.txt"),
            (["say", TEXT, "--seed", "seven"], "--seed"),
            (["sya", TEXT], "No such command"),
            (["train", "missing.yaml"], "no settings file"),
            (["corpus", "missing.yaml"], "no settings file"),
        ],
    )
    def test_a_wrong_input_is_one_sentence(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        expected: str,
    ) -> None:
        if arguments[0] == "train":
            pytest.importorskip("speech_mtp.training.runs")
        assert expected in refused(monkeypatch, capsys, *arguments)

    def test_a_bad_line_is_found_before_any_is_spoken(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("lines.txt").write_text("Hello there.\n\nIt is good.\n", encoding="utf-8")
        assert "Line 2" in refused(monkeypatch, capsys, "say", "--lines", "lines.txt", "--out-dir", "made")
        Path("lines.txt").write_text("Hello there.\n你好\n", encoding="utf-8")
        said = refused(monkeypatch, capsys, "say", "--lines", "lines.txt", "--out-dir", "made")
        assert "Line 2" in said
        assert "Chinese" in said
        Path("lines.txt").write_bytes(b"\xff\xfe\x00")
        assert "UTF-8" in refused(monkeypatch, capsys, "say", "--lines", "lines.txt", "--out-dir", "made")

    def test_a_missing_extra_is_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: SpeechModel
    ) -> None:
        def missing(text: str) -> None:
            plugins.require("no_such_package", "offline")

        monkeypatch.setattr(model.maker.g2p, "phonemize", missing)
        assert "speech-mtp[offline]" in refused(monkeypatch, capsys, "say", TEXT)

    def test_an_interrupt_leaves_nothing_and_says_130(
        self, monkeypatch: pytest.MonkeyPatch, model: SpeechModel
    ) -> None:
        def interrupt(text: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(model.maker.g2p, "phonemize", interrupt)
        assert run(monkeypatch, "say", TEXT) == 130
        assert list(Path.cwd().iterdir()) == []


# -- tokenize ---------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("model")
class TestTokenize:
    @pytest.fixture
    def recording(self, model: SpeechModel) -> Path:
        wave = 0.1 * torch.randn(9_700, generator=torch.Generator().manual_seed(0))
        audio.write("in.wav", wave, 24_000)
        return Path("in.wav")

    def test_codes_and_timbre_and_their_sound(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        recording: Path,
        model: SpeechModel,
    ) -> None:
        assert run(monkeypatch, "tokenize", "in.wav", "-o", "codes.safetensors", "--resynthesize", "again.wav") == 0
        assert capsys.readouterr().err == ""
        tensors = load_file("codes.safetensors")
        codes = model.codec.encode(audio.read("in.wav")[0][None, None])
        assert codes.timbre is not None
        assert torch.equal(tensors["frames"], codes.frames[0])
        assert torch.equal(tensors["timbre"], codes.timbre[0])
        assert len(audio.read("again.wav", 24_000)[0]) == 11 * 960

    def test_names_of_its_own(self, monkeypatch: pytest.MonkeyPatch, recording: Path) -> None:
        assert run(monkeypatch, "tokenize", "in.wav", "--resynthesize") == 0
        assert sorted(p.name for p in Path.cwd().iterdir()) == ["in.resynthesized.wav", "in.safetensors", "in.wav"]

    def test_refusals(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path
    ) -> None:
        audio.write("slow.wav", torch.zeros(100), 8_000)
        Path("noise.wav").write_bytes(b"no sound")
        for arguments, expected in (
            (["missing.wav"], "no audio file"),
            (["slow.wav"], "24000 Hz is needed"),
            (["noise.wav"], "cannot be read as audio"),
            (["in.wav", "-o", "codes.npz"], ".safetensors"),
            (["in.wav", "-o", "no/codes.safetensors"], "no folder no"),
            (["in.wav", "other.wav"], "--resynthesize"),
        ):
            assert expected in refused(monkeypatch, capsys, "tokenize", *arguments)


# -- eval -------------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("model")
class TestEval:
    def test_every_voice_is_reported_and_the_worst_comes_first(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from speech_mtp.evaluation import speech_report as module

        monkeypatch.setattr(evaluate, "_recording_of", lambda model, voice: None)
        made: list[str] = []

        def fake(
            say: object, texts: list[str], reference: object, judges: object, opinions: int | None, *rest: object
        ) -> dict[str, object]:
            assert (texts, opinions) == (["Hello there.", "Good morning."], 1)
            assert rest[1] == ("low", "high")[len(made)]
            spoken = say(texts[0])  # type: ignore[operator]
            made.append(texts[0])
            assert spoken.seconds > 0
            return {"wer": float(len(made)), "rows": [{"errors": 1, "words": 2}, {"errors": 0, "words": 2}]}

        monkeypatch.setattr(module, "speech_report", fake)
        Path("lines.txt").write_text("Hello there.\n", encoding="utf-8")
        Path("more.txt").write_text("Good morning.\n", encoding="utf-8")
        files = ["--sentences", "lines.txt", "--sentences", "more.txt", "--opinions", "1", "--json", "scores.json"]
        assert run(monkeypatch, "eval", "speech", *files) == 0
        assert capsys.readouterr().err == ""
        report = json.loads(Path("scores.json").read_text())
        assert (report["voice"], report["wer"]) == ("high", 2.0)
        assert set(report["voices"]) == {"low", "high"}
        assert "rows" not in report
        assert report["sampling"]["seed"] == 5
        files_of = report["voices"]["low"]["files"]
        assert {name: given["wer"] for name, given in files_of.items()} == {"lines": 0.5, "more": 0.0}
        capsys.readouterr()
        twice = ["--sentences", "lines.txt", "--sentences", "./lines.txt", "--json", "s.json"]
        assert "told apart by their names" in refused(monkeypatch, capsys, "eval", "speech", *twice)
        assert "no voice 'x'" in refused(
            monkeypatch, capsys, "eval", "speech", "--sentences", "lines.txt", "--voice", "x", "--json", "s.json"
        )

    def test_other_recognisers_hear_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from speech_mtp.evaluation import speech_report as module

        def fake(say: object, texts: list[str], reference: object, judges: Judges, *rest: object) -> object:
            assert list(judges.others) == ["pocketsphinx"]
            silence = torch.zeros(24_000)
            return {"wer": 0.0, "rows": [], "heard": judges.others["pocketsphinx"](silence, 24_000)}

        monkeypatch.setattr(module, "speech_report", fake)
        Path("lines.txt").write_text("Hello there.\n", encoding="utf-8")
        files = ["--sentences", "lines.txt", "--json", "scores.json", "--also-heard-by"]
        assert run(monkeypatch, "eval", "speech", *files, "pocketsphinx") == 0
        report = json.loads(Path("scores.json").read_text())
        assert (report["recogniser"], report["voices"]["low"]["heard"]) == ("whisper-tiny.en", "")
        capsys.readouterr()
        for extra, words in (
            (["pocketsphinx", "--also-heard-by", "pocketsphinx"], "named twice"),
            (["pocketsphinx", "--recogniser", "pocketsphinx"], "named twice"),
            (["tests.corpus.sine_teacher:Sine"], "which is no recogniser"),
        ):
            assert words in refused(monkeypatch, capsys, "eval", "speech", *files, *extra)

    def test_what_was_judged_before_a_stop_is_not_judged_again(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spoken: list[str] = []

        def say(name: str, text: str, stop: int) -> Utterance:
            if len(spoken) == stop:
                raise KeyboardInterrupt
            spoken.append(f"{name} {text}")
            return Utterance(0.1 * torch.ones(24_000), 24_000, [], 5, 5, Finish("stop"), 0.1, 0.1)

        def voices(stop: int) -> None:
            made = {name: partial(say, name, stop=stop) for name in ("low", "high")}
            monkeypatch.setattr(evaluate, "_voices_of", lambda *_: made)

        judges = Judges(lambda *_: "one", lambda *_: 3.0, lambda *_: 4.0, lambda wave, _: wave[:2] / wave[:2].norm())
        monkeypatch.setattr(evaluate, "judges_of", lambda *_: (judges, "nobody"))
        Path("lines.txt").write_text("One.\nTwo.\n", encoding="utf-8")
        command = ["eval", "speech", "--sentences", "lines.txt", "--json", "s.json"]
        voices(stop=3)
        assert run(monkeypatch, *command) != 0
        assert sorted(path.name for path in Path.cwd().iterdir()) == ["lines.txt", "s.jsonl"]
        capsys.readouterr()
        said = running.refused(monkeypatch, capsys, *command, "--seed", "8")
        assert "s.jsonl holds measurements with another setting of sampling; remove it" in said
        Path("words.tsv").write_text("Two\ttoo\n", encoding="utf-8")
        for name, value in (("lexicon", "words.tsv"), ("threads", "2"), ("opinions", "1")):
            said = running.refused(monkeypatch, capsys, *command, f"--{name}", value)
            assert f"another setting of {name};" in said
        Path("words.tsv").unlink()
        with monkeypatch.context() as other:
            other.setattr(hub, "find_model", lambda name: Path(__file__).parent / "cli")
            assert "another setting of weights;" in running.refused(monkeypatch, capsys, *command)
        voices(stop=9)
        assert run(monkeypatch, *command) == 0
        assert spoken == ["low One.", "low Two.", "high One.", "high Two."]
        assert sorted(path.name for path in Path.cwd().iterdir()) == ["lines.txt", "s.json"]
        report = json.loads(Path("s.json").read_text())
        assert (report["wer"], report["similarity"]) == (0.5, pytest.approx(1.0))

    def test_a_model_is_the_same_elsewhere_and_another_with_other_weights(self, tmp_path: Path) -> None:
        first = tmp_path / "first"
        (first / "lm").mkdir(parents=True)
        (first / "lm/model.safetensors").write_bytes(b"1")
        (first / "config.json").write_text("{}")
        before = evaluate._digest(first)
        shutil.copytree(first, tmp_path / "second")
        (tmp_path / "second/s.jsonl").write_text("a journal")
        assert evaluate._digest(tmp_path / "second") == before
        for name in ("lm/model.safetensors", "config.json"):
            kept = (first / name).read_bytes()
            (first / name).write_bytes(b"2")
            assert evaluate._digest(first) != before
            (first / name).write_bytes(kept)

    def test_sentences_without_a_word_are_named_before_any_work(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("lines.txt").write_text("Hello there.\nUm, uh.\n", encoding="utf-8")
        said = refused(monkeypatch, capsys, "eval", "speech", "--sentences", "lines.txt", "--json", "s.json")
        assert "Line 2 of lines.txt has no word to count ('Um, uh.'); remove it." in said

    def test_speakers_are_set_side_by_side(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        voice = {"rows": [{"text": "Hello.", "errors": 0, "words": 1}]}
        Path("a.json").write_text(json.dumps({"recogniser": "r", "voices": {"heart": voice}}))
        for name in ("b.json", "c.json"):
            Path(name).write_bytes(Path("a.json").read_bytes())
        assert run(monkeypatch, "eval", "speakers", "ours=a.json", "theirs=b.json,c.json", "--json", "o.json") == 0
        said = capsys.readouterr().out
        assert "theirs  heart   2     0.00% [0.00%, 0.00%]  +0.00% [+0.00%, +0.00%]" in said
        assert [row["name"] for row in json.loads(Path("o.json").read_text())["rows"]] == ["ours", "theirs"]
        for given, words in (
            (["a.json"], "does not say NAME=FILE"),
            (["a="], "does not say NAME=FILE"),
            (["a=a.json", "a=b.json"], "a is named twice"),
            (["a=a.json", "b=./a.json"], "given twice"),
            (["a=p.json"], "to be written over"),
            (["a=none.json"], "none.json cannot be read: No such file"),
            (["a=o.json"], "o.json is no report of eval speech"),
        ):
            assert words in refused(monkeypatch, capsys, "eval", "speakers", *given, "--json", "p.json")

    def test_a_teacher_is_reported_as_a_model_is(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from speech_mtp.evaluation import speech_report as module

        def fake(say: object, texts: list[str], *rest: object) -> dict[str, object]:
            spoken = say(texts[0])  # type: ignore[operator]
            assert spoken.first_audio_s == spoken.compute_s > 0
            return {"wer": spoken.seconds, "reason": spoken.finish.reason}

        monkeypatch.setattr(module, "speech_report", fake)
        Path("lines.txt").write_text("Hello there.\n", encoding="utf-8")
        files = ["--sentences", "lines.txt", "--json", "scores.json"]
        assert run(monkeypatch, "eval", "speech", "--teacher", "tests.corpus.sine_teacher:Sine", *files) == 0
        report = json.loads(Path("scores.json").read_text())
        assert set(report["voices"]) == {"low", "high"}
        assert report["wer"] == pytest.approx(12 * 0.06)
        assert report["teacher"] == "tests.corpus.sine_teacher:Sine"
        assert "sampling" not in report
        capsys.readouterr()
        for extra, words in (
            (["--temperature", "0.3"], "--temperature is of a model"),
            (["--best-of", "4"], "--best-of is of a model"),
            (["--model", "x"], "--model is of a model"),
        ):
            teacher = ["--teacher", "tests.corpus.sine_teacher:Sine"]
            assert words in refused(monkeypatch, capsys, "eval", "speech", *teacher, *extra, *files)
        assert "give one of them" in refused(monkeypatch, capsys, "eval", "speech", "--teacher", "kokoro,piper", *files)
        assert "no 'hibarri' in corpus.teachers" in refused(
            monkeypatch, capsys, "eval", "speech", "--teacher", "hibarri", *files
        )

    def test_factors_of_the_temperature_are_one_for_each_kind(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("lines.txt").write_text("Hello there.\n", encoding="utf-8")
        for given, words in (("1,2", "give 3"), ("1,1,1,1", "give 3"), ("a,b,c", "give numbers")):
            said = refused(monkeypatch, capsys, "say", "Hello.", "-o", "a.wav", "--stream-temperatures", given)
            assert words in said
        assert run(monkeypatch, "say", "Hello.", "-o", "a.wav", "--stream-temperatures", "0,1,1.5") == 0

    def test_a_codec_is_reported_and_nothing_said_on_stderr(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from speech_mtp.evaluation import codec_report as module

        whole = module.codec_report
        ears = Judges(
            transcribe=lambda wave, rate: "hello there",
            opinion=lambda wave, rate: 3.0,
            second_opinion=lambda wave, rate: 4.0,
            embed=lambda wave, rate: torch.stack([wave.std(), wave.abs().max()]),
            pitch=lambda wave, rate: wave[: len(wave) // 240 * 240].view(-1, 240).std(1),
        )
        monkeypatch.setattr(
            module, "codec_report", lambda codec, found, judges, *rest, **more: whole(codec, found, ears, *rest, **more)
        )
        for voice in ("a", "b"):
            Path("heard", voice).mkdir(parents=True)
            audio.write(Path("heard", voice, "said.wav"), 0.2 * torch.randn(19_200), 24_000)
        words = ("--audio", "heard", "--opinions", "1", "--json", "codec.json")
        assert run(monkeypatch, "eval", "codec", *words) == 0
        assert capsys.readouterr().err == ""
        report = json.loads(Path("codec.json").read_text())
        assert (report["codec"], report["voices"]) == ("tiny-en", ["a", "b"])
        assert (report["utterances"], report["opinions"]) == (2, 1)

    def test_a_codec_needs_recordings(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "--audio DIR" in refused(monkeypatch, capsys, "eval", "codec", "--json", "s.json")
        Path("empty").mkdir()
        assert "holds no audio" in refused(monkeypatch, capsys, "eval", "codec", "--audio", "empty", "--json", "s.json")


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from speech_mtp import cli; sys.argv = ['speech-mtp', '--help']\n"
        "try: cli.main()\nexcept SystemExit as ended: code = ended.code\n"
        "heavy = {'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in ("say", "tokenize", "generate", "corpus", "train", "eval", "bench"))


def test_a_lexicon_and_a_number_of_threads_reach_the_speech(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A word of the lexicon sounds as the same word with its phonemes behind it, and not as it is spelled."""
    load, loaded = hub.load, []
    monkeypatch.setattr(hub, "load", lambda *given, **more: loaded.append(load(*given, **more)) or loaded[0])
    monkeypatch.chdir(tmp_path)
    Path("words.tsv").write_text("gnocchi\tzˈOzO\n", encoding="utf-8")
    monkeypatch.setenv("SPEECH_MTP_THREADS", "2")  # what it would be without the option
    before = torch.get_num_threads()
    try:
        assert run(monkeypatch, "say", "Gnocchi.", "--lexicon", "words.tsv", "--threads", "1") == 0
        assert torch.get_num_threads() == 1
        speech = loaded[0]
        assert isinstance(speech.maker, UnitMaker)
        assert isinstance(speech.maker.g2p, Lexicon)
        speech.maker.g2p = Lexicon(speech.maker.g2p.g2p)
        for number, text in enumerate(("[Gnocchi](/zˈOzO/).", "Gnocchi.")):
            audio.write(f"{number}.wav", speak_timed(speech, text).wave, 24_000)
    finally:
        torch.set_num_threads(before)
    assert Path("out.wav").read_bytes() == Path("0.wav").read_bytes() != Path("1.wav").read_bytes()


SPEAKS = """
import sys
from speech_mtp.cli import main
sys.argv = ["speech-mtp", "say", "Hello there.", "-o", sys.argv[1]]
try:
    main()
finally:
    heavy = {"transformers", "huggingface_hub", "scipy", "librosa", "hibari", "accelerate", "onnxruntime"}
    print(sorted(heavy & set(sys.modules)))
"""


def test_speaking_says_nothing_on_stderr_and_imports_what_it_uses(tmp_path: Path) -> None:
    hub.find_backbone()  # converted once, which takes longer and shows how far it is
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SPEAKS, str(tmp_path / "hello.wav")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "[]"
