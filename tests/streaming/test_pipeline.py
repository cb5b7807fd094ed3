"""Speaking: streamed sound is offline sound, late text is waited for, words lie where they are heard."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.decoding import engine
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.pipeline import Chunk, Ramp, speak
from speech_mtp.streaming.stream import Stream
from speech_mtp.streaming.timed import speak_timed, warm_up
from speech_mtp.streaming.word_track import WordTrack
from speech_mtp.types import Codes, Finish, Sampling, Status
from tests.tiny import tiny_model

TEXT = "Hello there, the quick brown fox jumps. It is good, and we like it a lot!"
MODEL = tiny_model()
SAMPLES_PER_GROUP = MODEL.codec.spec.samples_per_frame * MODEL.lm.config.frames_per_group


def sound(chunks: list[Chunk]) -> torch.Tensor:
    return torch.cat([chunk.wave for chunk in chunks])


@cache
def offline(text: str, seed: int = 5) -> torch.Tensor:
    return speak_timed(MODEL, text, sampling=Sampling(seed=seed)).wave


@pytest.mark.parametrize("ramp", [(1,), (2,), (7,), (1, 1, 2, 4)])
def test_streamed_sound_is_one_decode_of_all_frames(ramp: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[torch.Tensor] = []
    push = MODEL.codec.push

    def spy(state: object, frames: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        pushed.append(frames)
        return push(state, frames, lengths)

    monkeypatch.setattr(MODEL.codec, "push", spy)
    chunks = list(speak(MODEL, TEXT, "high", ramp=Ramp(ramp)))
    monkeypatch.undo()
    frames = torch.cat(pushed, -1)
    groups = [p.shape[-1] // MODEL.lm.config.frames_per_group for p in pushed]
    assert groups[:-1] == [ramp[min(i, len(ramp) - 1)] for i in range(len(groups) - 1)]
    codes = Codes(frames, torch.tensor([frames.shape[-1]]), MODEL.timbre("high"))
    wave = MODEL.codec.decode(codes)[0, 0]
    assert wave.std() > 1e-3
    torch.testing.assert_close(sound(chunks), wave, atol=1e-4, rtol=0)


@given(cuts=st.lists(st.integers(1, len(TEXT) - 1), max_size=12, unique=True), seed=st.integers(0, 3))
@settings(max_examples=25)
def test_text_in_pieces_sounds_as_the_whole_text(cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(edges)]
    streamed = speak_timed(MODEL, iter(pieces), sampling=Sampling(seed=seed))
    torch.testing.assert_close(streamed.wave, offline(TEXT, seed), atol=1e-4, rtol=0)
    assert [word.word for word in streamed.words] == [w.strip(",.!") for w in TEXT.split()]


def test_speech_starts_before_the_text_ends() -> None:
    heard_before_last_word: list[int] = []
    heard = 0

    def writer() -> Iterator[str]:
        words = ("the quick brown fox jumps over the lazy dog and the lazy dog jumps over the brown fox " * 2).split()
        for word in words:
            yield word + " "
        heard_before_last_word.append(heard)
        yield "now."

    for chunk in speak(MODEL, writer()):
        heard += chunk.wave.numel()
    assert 0 < heard_before_last_word[0] < heard


def test_late_text_is_waited_for_and_changes_nothing() -> None:
    units = MODEL.maker.make(["the quick brown fox jumps over the lazy dog."])
    timbre = MODEL.timbre(None)
    whole = torch.cat([s.tokens for s in engine.generate(MODEL.lm, units, timbre, Sampling(seed=1))], 1)
    early = MODEL.maker.make(["the quick brown fox jumps"])
    early.complete[:] = False
    early.hidden = units.hidden
    run = engine.start(MODEL.lm, early, timbre, Sampling(seed=1))
    first = []
    while (made := run.advance()) is not None:
        first.append(made.tokens)
    assert run.status == [Status.WAITING]
    assert run.finish == [None]
    assert int(run.rows.place.pointer[0]) + MODEL.lm.layout.ahead >= int(early.lengths[0])
    run.feed(0, units)
    assert run.status == [Status.GOING]
    while (made := run.advance()) is not None:
        first.append(made.tokens)
    assert torch.equal(torch.cat(first, 1), whole)
    assert [f.reason for f in run.finish if f] == ["stop"]


def test_words_are_in_order_and_inside_the_audio() -> None:
    spoken = speak_timed(MODEL, TEXT)
    assert [w.word for w in spoken.words] == [w.strip(",.!") for w in TEXT.split()]
    edges = [t for w in spoken.words for t in (w.start_s, w.end_s)]
    assert edges == sorted(edges)
    assert edges[0] >= 0
    assert edges[-1] <= spoken.seconds
    assert spoken.words[-1].end_s > 0.5 * spoken.seconds


def test_the_last_chunk_alone_says_why_it_ended_and_totals_agree() -> None:
    chunks = list(speak(MODEL, TEXT))
    assert [c.finish is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].finish is not None
    assert chunks[-1].finish.reason == "stop"
    assert sound(chunks).numel() == chunks[-1].steps * SAMPLES_PER_GROUP
    assert chunks[-1].frames == chunks[-1].steps * MODEL.lm.config.frames_per_group


def test_a_seed_repeats_itself_and_voices_differ() -> None:
    assert torch.equal(offline(TEXT), speak_timed(MODEL, TEXT, sampling=Sampling(seed=5)).wave)
    other = speak_timed(MODEL, TEXT, sampling=Sampling(seed=6)).wave
    assert other.shape != offline(TEXT).shape or not torch.allclose(other, offline(TEXT))
    high = speak_timed(MODEL, TEXT, "high", Sampling(seed=5)).wave
    assert high.shape != offline(TEXT).shape or not torch.allclose(high, offline(TEXT))


def test_a_guard_that_trips_is_told_at_the_end() -> None:
    def stuck() -> SpeechModel:
        model = tiny_model(layout={"name": "aligned", "max_stall": 1000})
        with torch.no_grad():  # the pointer never moves, so only the guard can end it
            model.lm.output.down[0].weight.zero_()
            model.lm.output.down[0].bias.copy_(torch.tensor([50.0] + [0.0] * 10))
        return model

    spoken = speak_timed(stuck(), "hello there")
    assert spoken.finish.reason == "length"
    assert "text units" in spoken.finish.detail


def test_a_guard_that_trips_early_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    end, finishes = Stream.end_sentence, []

    def end_sentence(stream: Stream, finish: Finish) -> None:
        finishes.append(finish)
        end(stream, Finish("length", "cut short") if len(finishes) == 1 else finish)

    monkeypatch.setattr(Stream, "end_sentence", end_sentence)
    spoken = speak_timed(MODEL, "Hello there. It is good.")
    assert [finish.reason for finish in finishes] == ["stop", "stop"]
    assert spoken.finish == Finish("length", "cut short")


def test_a_sentence_said_twice_is_drawn_anew() -> None:
    once, twice = spoken_codes("It is good."), spoken_codes("It is good. It is good.")
    count = once.shape[-1]
    assert torch.equal(twice[..., :count], once)
    assert not torch.equal(twice[..., count:], once)


@pytest.mark.parametrize("text", ["", "   ", "?!"])
def test_nothing_to_say_is_refused_before_any_sound(text: str) -> None:
    with pytest.raises(ValueError, match=r"empty|no words"):
        speak(MODEL, text)


@pytest.mark.parametrize("pieces", [[], [""], [" ", "\n"], ["?", "!"]])
def test_an_empty_stream_is_an_error(pieces: list[str]) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        list(speak(MODEL, pieces))


def test_an_unknown_voice_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'low'"):
        speak(MODEL, TEXT, "lou")


def test_time_spent_waiting_for_text_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("speech_mtp.streaming.timed.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow() -> Iterator[str]:
        for word in TEXT.split():
            now[0] += 10.0
            yield word + " "

    spoken = speak_timed(MODEL, slow())
    assert spoken.compute_s == 0.0
    assert now[0] >= 100.0


def test_the_first_audio_is_timed_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec takes a second a call, everything else no time."""
    now, push = [0.0], MODEL.codec.push

    def slow(*given: Any) -> list[torch.Tensor]:
        now[0] += 1.0
        return push(*given)

    monkeypatch.setattr("speech_mtp.streaming.timed.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(MODEL.codec, "push", slow)
    spoken = speak_timed(MODEL, TEXT)
    assert spoken.first_audio_s == 1.0
    assert spoken.compute_s == now[0] > 3.0


def test_warming_up_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    push = MODEL.codec.push
    monkeypatch.setattr(MODEL.codec, "push", lambda *given: calls.append(given) or push(*given))
    warm_up(MODEL)
    assert calls


LONG = (
    "Hello there, the quick brown fox jumps over 12 lazy dogs, and it is good, but we like the brown dog that "
    "doesn't jump over the quick fox at 9:45 and it is lazy when the morning is good, while the dog likes it a lot "
    "and the fox, which is quick, jumps. Dr. Fox paid $5.99 on 3/4/2024! Hello. "
)


@given(text=st.sampled_from([TEXT, LONG, "1. Wash it\n2. Dry it\n", LONG + LONG]), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_codes_are_the_same_however_the_text_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(text) - 1), max_size=30, unique=True)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert torch.equal(codes_of(iter(pieces)), codes_of(text))


@cache
def whole_codes(text: str) -> torch.Tensor:
    return spoken_codes(text)


def codes_of(text: str | Iterator[str]) -> torch.Tensor:
    return whole_codes(text) if isinstance(text, str) else spoken_codes(text)


def spoken_codes(text: str | Iterator[str]) -> torch.Tensor:
    """The frames ``[1, K, F]`` that reach the codec."""
    pushed: list[torch.Tensor] = []
    push = MODEL.codec.push
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL.codec, "push", lambda s, f, n: pushed.append(f) or push(s, f, n))
        for _ in speak(MODEL, text, sampling=Sampling(seed=3)):
            continue
    return torch.cat(pushed, -1)


def test_a_guard_does_not_depend_on_how_much_text_has_arrived() -> None:
    def slow() -> SpeechModel:  # four groups of two frames a unit, so that the guard trips in the middle
        model = tiny_model(layout={"name": "aligned", "max_stall": 7})
        with torch.no_grad():
            model.lm.output.down[0].weight.zero_()
            model.lm.output.down[0].bias.copy_(torch.tensor([50.0, 40.0] + [0.0] * 9))
        return model

    model = slow()
    whole, late = speak_timed(model, TEXT), speak_timed(model, iter(list(TEXT)))
    assert whole.finish == late.finish
    assert whole.finish.reason == "length"
    assert whole.frames == late.frames


def test_speech_needs_no_more_text_than_the_layout_waits_for() -> None:
    tiny_model(layout={"name": "aligned", "ahead": 10}, ahead=10)
    with pytest.raises(ValueError, match="looks 12 ahead and may move by 10; set the layout's ahead to 12 or more"):
        tiny_model(layout={"name": "aligned", "ahead": 10}, ahead=12)
    with pytest.raises(ValueError, match="goes on with 4 units of text ahead"):
        tiny_model(layout={"name": "aligned", "ahead": 4}, ahead=4)


def test_a_word_lasts_while_the_pointer_is_in_it() -> None:
    """Two frames a group, 25 frames a second; words of 2, 3 and 1 units, a pause of one unit before the last."""
    words = [("it", 0, 2), ("fox", 2, 5), ("a", 6, 7)]
    track = WordTrack(1.0, 25.0, 2)
    told = [track.move(pointer, words) for pointer in (0, 1, 3, 3, 6, 7)]
    expected = {2: ("it", 1.0, 1.2), 4: ("fox", 1.2, 1.3733), 5: ("a", 1.4, 1.48)}
    for i, found in enumerate(told):
        assert [w.word for w in found] == ([expected[i][0]] if i in expected else [])
        for word in found:
            assert (word.start_s, word.end_s) == pytest.approx(expected[i][1:], abs=1e-3)
