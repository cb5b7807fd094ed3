"""Best of several takes: each is what its seed says alone, the best by the codec's phonemes is sounded, whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming import takes
from speech_mtp.streaming.pipeline import Chunk, speak
from speech_mtp.streaming.scheduler import Scheduler, run_to_end
from speech_mtp.streaming.stream import Stream
from speech_mtp.streaming.takes import NEXT_TAKE, Take, badness, best
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.types import Finish
from tests.tiny import tiny_model

TEXT = "Hello there, it is good. And you?"


def with_phonemes() -> SpeechModel:
    """The tiny model, whose codec can tell phonemes."""
    model = tiny_model()
    return replace(model, codec=Decoupled.tiny(len(SYMBOLS)))


MODEL = with_phonemes()


def said(chunks: list[Chunk]) -> Tensor:
    return torch.cat([chunk.wave for chunk in chunks])


def alone(seed: int, text: str = "Hello there, it is good.") -> Tensor:
    return said(list(speak(MODEL, text, "low", replace(MODEL.sampling, seed=seed))))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_the_take_that_is_chosen_is_sounded_as_if_it_were_alone(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Take] = []

    def judge(model: SpeechModel, take: Take, phonemes: Tensor) -> float:
        judged.append(take)
        return float((len(judged) - 1) % 3 != wanted)

    monkeypatch.setattr(takes, "badness", judge)
    sampling = replace(MODEL.sampling, seed=5)
    chunks = list(speak(MODEL, "Hello there, it is good.", "low", sampling, best_of=3))
    expected = alone(5 + wanted * NEXT_TAKE)
    assert len(judged) == 3
    assert all(take.finish == Finish("stop") for take in judged)
    torch.testing.assert_close(said(chunks), expected, atol=1e-4, rtol=0)
    words = [word.word for chunk in chunks for word in chunk.words]
    assert words == ["Hello", "there", "it", "is", "good"]


def test_one_take_is_plain_speech() -> None:
    sampling = replace(MODEL.sampling, seed=5)
    assert torch.equal(said(list(speak(MODEL, TEXT, "low", sampling, best_of=1))), alone(5, TEXT))


def test_streams_with_takes_do_not_change_each_other() -> None:
    """Different numbers of takes, text in pieces, streams that are cancelled between: each says what it says alone."""
    plans = [(3, "Hello there, it is good."), (1, TEXT), (2, TEXT), (4, "And you?")]
    expected = [said(list(speak(MODEL, text, "low", best_of=count))) for count, text in plans]
    scheduler = Scheduler(MODEL, max_streams=3)
    streams: list[Stream] = []
    for count, text in plans:
        stream = scheduler.speak("low", best_of=count)
        for piece in (text[:7], text[7:20], text[20:]):
            stream.push(piece)
            scheduler.tick()
        stream.finish_text()
        streams.append(stream)
        left = scheduler.speak("high", best_of=2)
        left.push(TEXT)
        scheduler.tick()
        left.cancel()
    run_to_end(scheduler)
    for stream, wave in zip(streams, expected, strict=True):
        torch.testing.assert_close(said(stream.take()), wave, atol=1e-4, rtol=0)


def test_what_is_told_clearly_is_less_bad() -> None:
    """The codec's phoneme head is made to hear a symbol in each content code; a take of the right codes wins."""
    phonemes = torch.tensor([3, 4, 5])

    def heard(self: Decoupled, codes: object) -> Tensor:
        content = codes.frames[:, 0]  # type: ignore[attr-defined]
        return (10 * torch.nn.functional.one_hot(content, len(SYMBOLS)).float()).log_softmax(-1)

    def take(content: list[int], reason: str = "stop") -> Take:
        per_group = MODEL.lm.layout.frames_per_group
        groups = torch.zeros_like(MODEL.lm.layout.nothing(1))[:, None].repeat(1, len(content), 1)
        for i, code in enumerate(content):
            for frame in range(per_group):
                groups[0, i, 1 + 2 * frame] = code
        return Take([(groups, [])], Finish(reason))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoupled, "phoneme_log_probs", heard)
        right, wrong, longer = take([3, 4, 5]), take([3, 7, 5]), take([3, 4, 5], "length")
        assert badness(MODEL, right, phonemes) < 0.1 < badness(MODEL, wrong, phonemes)
        assert best(MODEL, [wrong, right], phonemes) is right
        assert best(MODEL, [longer, wrong], phonemes) is wrong, "one that ended by itself comes first"
        assert best(MODEL, [longer], phonemes) is longer


def test_what_goes_wrong_in_a_choice_ends_that_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("no choice")

    expected = alone(5, TEXT)
    monkeypatch.setattr(takes, "badness", fail)
    scheduler = Scheduler(MODEL)
    many, one = scheduler.speak("low", best_of=2), scheduler.speak("low", replace(MODEL.sampling, seed=5))
    for stream in (many, one):
        stream.push(TEXT)
        stream.finish_text()
    run_to_end(scheduler)
    torch.testing.assert_close(said(one.take()), expected, atol=1e-4, rtol=0)
    with pytest.raises(RuntimeError, match="no choice"):
        many.take()


@pytest.mark.parametrize("count", [0, 17])
def test_how_many_there_may_be(count: int) -> None:
    with pytest.raises(ValueError, match=f"best_of is {count}"):
        list(speak(MODEL, TEXT, best_of=count))


def test_a_codec_that_tells_no_phonemes() -> None:
    with pytest.raises(ValueError, match="cannot tell which"):
        list(speak(tiny_model(), TEXT, best_of=2))


@pytest.mark.parametrize("takes_of_each", [1, 3])
def test_takes_hold_up_neither_text_nor_the_first_sound_of_others(takes_of_each: int) -> None:
    """They have no sound that could run dry, and are one stream to the codec, however many rows they are."""
    scheduler = Scheduler(MODEL, codec_thread=True)
    try:
        stream = scheduler.speak("low", best_of=takes_of_each)
        stream.push(TEXT)
        stream.finish_text()
        scheduler.tick()
        scheduler.tick()
        assert len(stream.rows) == takes_of_each
        assert scheduler._relaxed() == (takes_of_each > 1)
        assert scheduler._thread is not None
        scheduler._thread.call_s = 0.1
        assert scheduler._queue_s() == pytest.approx(0.1)
    finally:
        scheduler.close()
