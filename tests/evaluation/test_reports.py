"""Reports by contrived judges: what was planted must be found in the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("jiwer", reason="needs the eval extra")
pytest.importorskip("whisper_normalizer", reason="needs the eval extra")

from speech_mtp import audio
from speech_mtp.codecs.coupled import Coupled
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.samples import from_corpus, from_folder
from speech_mtp.corpus.store import AudioStoreWriter
from speech_mtp.evaluation.codec_report import Sample, code_agreement, codec_report, words_by_voice
from speech_mtp.evaluation.journal import Journal
from speech_mtp.evaluation.judges import Judges, check_installed
from speech_mtp.evaluation.speech_report import speech_report
from speech_mtp.plugins import MissingExtra
from speech_mtp.text.phonemes import parse
from speech_mtp.types import Codes, Finish

SENTENCES = ["the dog ran home", "we had soup", "it is late now"]
RATE = 1000


@dataclass
class Said:
    wave: Tensor
    sample_rate: int = RATE
    steps: int = 10
    finish: Finish = field(default_factory=lambda: Finish("stop"))
    compute_s: float = 0.5
    first_audio_s: float = 0.1


def judges(heard: list[str], speaker: Callable[[Tensor], Tensor] | None = None) -> Judges:
    """Transcripts in order; the opinion is the length in seconds."""
    transcripts = iter(heard)
    return Judges(
        transcribe=lambda wave, rate: next(transcripts),
        opinion=lambda wave, rate: len(wave) / rate,
        second_opinion=lambda wave, rate: 4.0,
        embed=lambda wave, rate: speaker(wave) if speaker else torch.tensor([1.0, 0.0]),
        pitch=lambda wave, rate: torch.arange(10.0),
    )


def test_other_recognisers_count_words_of_their_own() -> None:
    heard = judges(SENTENCES)
    other = iter(["the dog ran", "we had soup", ""])
    report = speech_report(
        lambda text: Said(torch.ones(1000)), SENTENCES, judges=replace(heard, others={"deaf": lambda *_: next(other)})
    )
    assert report["wer"] == 0
    assert report["others"]["deaf"]["wer"] == pytest.approx(5 / 11)
    low, high = report["others"]["deaf"]["wer_interval"]
    assert low < 5 / 11 < high
    assert report["rows"][2]["others"]["deaf"] == {"heard": "", "errors": 4, "words": 4}
    assert report["success_rate"] == 1
    assert "others" not in speech_report(lambda text: Said(torch.ones(1000)), SENTENCES, judges=judges(SENTENCES))


def test_a_report_that_was_cut_off_is_the_same(tmp_path: Path) -> None:
    """But for the times, which are those of the first run where a sentence was judged."""
    heard = ["the dog ran home", "we had soap", "it is late now"]
    speakers = [torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8]), torch.tensor([0.0, 1.0])]

    def report(journal: Journal | None, first: int, stop: int = 3) -> dict[str, Any]:
        left = iter(range(first, stop))
        found = iter(speakers[first:])
        ears = judges(heard[first:], lambda wave: next(found))
        return speech_report(lambda text: Said(torch.ones(1000 + next(left))), SENTENCES, None, ears, 2, journal, "v")

    whole = report(None, 0)
    with pytest.raises((StopIteration, RuntimeError)):
        report(Journal(tmp_path / "j", {}), 0, stop=2)
    assert report(Journal(tmp_path / "j", {}), 2) == whole
    assert report(Journal(tmp_path / "j", {}), 3) == whole
    twice = Journal(tmp_path / "j", {})
    twice.add(twice.rows[0])
    with pytest.raises(ValueError, match=r"j was written by two runs at once"):
        report(Journal(tmp_path / "j", {}), 3)
    assert [row["similarity"] for row in whole["rows"]] == pytest.approx([0.316, 0.99, 0.447], abs=0.01)


def test_a_judge_that_is_missing_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "distillmos" else find_spec(name))
    with pytest.raises(MissingExtra, match=r"'distillmos' is not installed.*\[eval\]"):
        check_installed()


def test_aggregates_weigh_words_and_seconds() -> None:
    said = iter([Said(torch.ones(1000)), Said(torch.ones(3000), first_audio_s=0.3, steps=30), Said(torch.ones(1000))])
    heard = ["the dog ran home", "we had soap", "it is late now"]
    report = speech_report(lambda text: next(said), SENTENCES, judges=judges(heard))
    assert report["wer"] == pytest.approx(1 / 11)
    assert report["success_rate"] == pytest.approx(2 / 3)
    assert report["seconds"] == 5
    assert report["rtf"] == pytest.approx(1.5 / 5)
    assert report["dnsmos"] == pytest.approx(5 / 3)
    assert report["distill_mos"] == pytest.approx(4)
    assert report["steps_per_second"] == pytest.approx(10)
    assert report["ttfa_ms_p50"] == pytest.approx(100)
    assert report["ttfa_ms_p95"] == pytest.approx(280)
    assert report["worst"][0]["text"] == "we had soup"
    assert [row["heard"] for row in report["rows"]] == heard
    assert report["similarity"] == pytest.approx(1.0)
    assert "mean" in report["similarity_to"]
    json.dumps(report)


def test_opinions_may_be_of_the_first_sentences_alone() -> None:
    waves = {text: torch.ones(1000 * (i + 1)) for i, text in enumerate(SENTENCES)}
    heard = ["the dog ran home", "we had soap", "it is late now"]
    few = speech_report(lambda text: Said(waves[text]), SENTENCES, judges=judges(heard), opinions=2)
    assert few["opinions"] == 2
    assert few["dnsmos"] == pytest.approx(1.5)
    assert [row["dnsmos"] for row in few["rows"]] == [1, 2, None]
    assert few["wer"] == pytest.approx(1 / 11)
    low, high = few["wer_interval"]
    assert 0 == low < few["wer"] < high <= 1 / 3
    none = speech_report(lambda text: Said(waves[text]), SENTENCES, judges=judges(heard), opinions=0)
    assert none["dnsmos"] is none["distill_mos"] is None


def test_a_runaway_is_no_success_and_silence_is_all_words_lost() -> None:
    said = iter([Said(torch.ones(1000), finish=Finish("runaway")), Said(torch.zeros(1000)), Said(torch.ones(1000))])

    def speaker(wave: Tensor) -> Tensor:
        if not wave.any():
            raise ValueError("no speech was found")
        return torch.tensor([1.0, 0.0])

    heard = ["the dog ran home", "", "it is late now"]
    report = speech_report(lambda text: next(said), SENTENCES, judges=judges(heard, speaker))
    assert report["wer"] == pytest.approx(3 / 11)
    assert report["success_rate"] == pytest.approx(1 / 3)
    assert report["finish_reasons"] == {"runaway": 1, "stop": 2}
    assert [row["similarity"] for row in report["rows"]] == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert report["similarity"] == pytest.approx(2 / 3)


def test_a_reference_is_what_voices_are_compared_with() -> None:
    def speaker(wave: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]) if wave[0] > 0 else torch.tensor([0.6, 0.8])

    report = speech_report(
        lambda text: Said(torch.ones(1000)), SENTENCES, (-torch.ones(1000), RATE), judges(SENTENCES, speaker)
    )
    assert report["similarity_to"] == "reference"
    assert report["similarity"] == pytest.approx(0.6)


def test_no_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentences"):
        speech_report(lambda text: Said(torch.ones(10)), [], judges=judges([]))


# -- codec ------------------------------------------------------------------------------------------------------------
CODEC = Decoupled.tiny()
CODEC_RATE = CODEC.spec.sample_rate


def recording(seed: int, seconds: float = 0.8) -> Tensor:
    return 0.2 * torch.randn(int(seconds * CODEC_RATE), generator=torch.Generator().manual_seed(seed))


def samples() -> list[Sample]:
    texts = ["hello there", "good morning"]
    return [Sample(voice, text, recording(i)) for i, voice in enumerate(("a", "b")) for text in texts]


def loudness(wave: Tensor) -> Tensor:
    return torch.stack([wave.std(), wave.abs().max()])


def test_every_part_of_the_codec_report() -> None:
    ears = Judges(
        transcribe=lambda wave, rate: "hello there",
        opinion=lambda wave, rate: 3.0,
        second_opinion=lambda wave, rate: 4.0,
        embed=lambda wave, rate: loudness(wave),
        pitch=lambda wave, rate: wave[: len(wave) // 240 * 240].view(-1, 240).std(1),
    )
    report = codec_report(CODEC, samples(), ears)
    assert report["voices"] == ["a", "b"]
    assert report["round_trip"]["wer"] == pytest.approx(0.5)
    assert report["round_trip"]["last_word"] == report["round_trip"]["last_word_original"] == pytest.approx(0.5)
    assert report["bits_per_second"] == pytest.approx(25 * torch.tensor([1000.0, 200.0]).log2().sum().item())
    assert [len(books) for books in report["streams"].values()] == [1, 1]
    assert 0 < report["streams"]["content"][0]["fraction"] <= 1
    assert report["swap"]["trials"] == 8
    assert 0 <= report["swap"]["nearer_to_target"] <= 1
    assert report["agreement"]["pairs"] == 2
    assert report["melody"]["voiced_utterances"] == 4
    assert report["melody"]["mel_distance"] > 0
    json.dumps(report)


def test_opinions_and_melody_of_some_recordings() -> None:
    opinions: list[float] = []

    def opinion(wave: Tensor, rate: int) -> float:
        opinions.append(float(wave[0]))
        return 3.0

    ears = judges(["hello there"] * 40)
    ears = replace(ears, opinion=opinion)
    made = samples()
    report = codec_report(CODEC, made, ears, opinions=2)
    assert report["opinions"] == 2
    assert opinions[::2] == [float(made[0].wave[0]), float(made[2].wave[0])]  # of both voices; then what is decoded
    assert report["round_trip"]["dnsmos"] == 3.0
    assert report["melody"]["mel_distance"] > 0
    none = codec_report(CODEC, made, judges(["hello there"] * 40), opinions=0)
    assert none["round_trip"]["dnsmos"] is none["melody"] is None
    assert none["round_trip"]["wer"] == report["round_trip"]["wer"]


def test_words_are_counted_by_voice_before_and_after_the_round_trip() -> None:
    made = [*samples(), Sample("b", "...", recording(9))]
    said = {id(sample.wave): sample.text for sample in made}
    ears = Judges(transcribe=lambda wave, rate: said.get(id(wave)) or "good evening there")
    found = words_by_voice(CODEC, made, ears)
    # "hello there" is heard as "good evening there": one word otherwise, one too many; "good morning" likewise.
    counts = {"recordings": 2, "words": 4, "errors_original": 0, "errors": 4}
    assert found == {"a": counts, "b": counts}


def test_one_voice_has_no_swap_and_no_agreement() -> None:
    ears = judges(["hello there"] * 10)
    report = codec_report(CODEC, samples()[:1], ears)
    assert report["swap"] is None
    assert report["agreement"] is None
    with pytest.raises(ValueError, match="no audio"):
        codec_report(CODEC, [], ears)


def test_agreement_is_found_through_a_change_of_tempo() -> None:
    content = torch.tensor([5, 5, 80, 80, 300, 300, 7, 7])
    slow = content.repeat_interleave(2)
    other = torch.tensor([1, 2, 3, 4, 600, 601, 602, 603])

    def codes(stream: Tensor) -> Codes:
        return Codes(torch.stack([stream, torch.zeros_like(stream)])[None], torch.tensor([len(stream)]))

    assert code_agreement(CODEC, codes(content), codes(slow)) == 1.0
    assert code_agreement(CODEC, codes(content), codes(other)) == 0.0


def test_agreement_of_a_codec_whose_books_are_trained() -> None:
    codec = Coupled.tiny()
    wave = torch.randn(2, 1, 9_600, generator=torch.Generator().manual_seed(0))
    first, second = (codec.encode(one[None]) for one in wave)
    assert code_agreement(codec, first, first) == 1.0
    assert 0 <= code_agreement(codec, first, second) <= 1


def test_the_swap_test_tells_timbre_from_content() -> None:
    """A codec whose sound is nothing but its timbre wins every trial; one that ignores timbre wins none."""

    class Planted(Decoupled):
        def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
            codes = super().encode(wave, lengths)
            codes.timbre = torch.full((1, self.spec.timbre_dim), float(wave.mean()))
            return codes

        def decode(self, codes: Codes) -> Tensor:
            assert codes.timbre is not None
            return codes.timbre[:, :1, None].expand(1, 1, codes.frames.shape[-1] * 960).clone()

    planted = Planted(CODEC.config).eval()
    rows = [Sample(voice, "hello there", torch.full((9600,), level)) for voice, level in (("a", 0.9), ("b", -0.9))]

    def ears() -> Judges:
        return Judges(
            transcribe=lambda wave, rate: "hello there",
            opinion=lambda wave, rate: 3.0,
            second_opinion=lambda wave, rate: 4.0,
            embed=lambda wave, rate: torch.tensor([float(wave.mean()), 1.0]),
            pitch=lambda wave, rate: torch.zeros(3),
        )

    assert codec_report(planted, rows, ears())["swap"]["nearer_to_target"] == 1.0
    planted.decode = lambda codes: torch.full((1, 1, 960), 0.0)  # type: ignore[method-assign]
    assert codec_report(planted, rows, ears())["swap"]["nearer_to_target"] == 0.0


# -- recordings -------------------------------------------------------------------------------------------------------
def test_a_folder_has_a_folder_per_voice_and_texts_beside(tmp_path: Path) -> None:
    for voice, name in (("ann", "1"), ("ann", "2"), ("bob", "1")):
        (tmp_path / voice).mkdir(exist_ok=True)
        audio.write(tmp_path / voice / f"{name}.wav", recording(0, 0.1), CODEC_RATE)
    (tmp_path / "bob" / "1.txt").write_text("good morning\n")
    found = list(from_folder(tmp_path, CODEC_RATE, per_voice=1))
    assert [(voice, text, told) for voice, text, _, told in found] == [
        ("ann", None, None),
        ("bob", "good morning", None),
    ]
    with pytest.raises(ValueError, match="16000 Hz is needed"):
        list(from_folder(tmp_path, 16_000, per_voice=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no audio"):
        list(from_folder(tmp_path / "empty", CODEC_RATE, per_voice=1))


def test_a_store_gives_the_same_sentences_of_its_voices(tmp_path: Path) -> None:
    writer = AudioStoreWriter(tmp_path)
    for voice, texts in (("a", ["one", "two", "three"]), ("b", ["three", "four"])):
        for text in texts:
            wave = recording(len(text), 0.1).numpy()
            ends = [30, 90] if voice == "b" else None
            writer.append(f"{voice}-{text}", voice, text, "hˈi", "dev", wave, torch.zeros(10).numpy(), ends)
    writer.close()
    found = list(from_corpus(tmp_path, "dev", CODEC_RATE, per_voice=1))
    assert [(voice, text) for voice, text, _, _ in found] == [("a", "three"), ("b", "three")]
    hi = [unit.id for unit in parse("hi")]
    assert [told for *_, told in found] == [None, (hi, [30, 90])]
    with pytest.raises(ValueError, match="no test utterance"):
        list(from_corpus(tmp_path, "test", CODEC_RATE, per_voice=1))
    with pytest.raises(FileNotFoundError):
        list(from_corpus(tmp_path / "none", "dev", CODEC_RATE, per_voice=1))
