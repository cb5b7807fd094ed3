"""Speaking: streamed sound is offline sound, late text is waited for, words lie where they are heard."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.decoding import engine
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.pipeline import Chunk, Ramp, speak
from speech_mtp.streaming.timed import say, warm_up
from speech_mtp.types import Codes, Sampling
from tests.tiny import tiny_model

TEXT = "Hello there, the quick brown fox jumps. It is good, and we like it a lot!"
MODEL = tiny_model()
SAMPLES_PER_GROUP = MODEL.codec.spec.samples_per_frame * MODEL.lm.config.frames_per_group


def sound(chunks: list[Chunk]) -> torch.Tensor:
    return torch.cat([chunk.wave for chunk in chunks])


@cache
def offline(text: str, seed: int = 5) -> torch.Tensor:
    return say(MODEL, text, sampling=Sampling(seed=seed)).wave


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
    streamed = say(MODEL, iter(pieces), sampling=Sampling(seed=seed))
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
    whole = torch.cat([s.frames for s in engine.generate(MODEL.lm, units, timbre, Sampling(seed=1))], -1)
    early = MODEL.maker.make(["the quick brown fox jumps"])
    early.complete[:] = False
    early.hidden = units.hidden
    run = engine.start(MODEL.lm, early, timbre, Sampling(seed=1))
    first = []
    while (made := run.advance()) is not None:
        first.append(made.frames)
    assert run.waiting() == [True]
    assert run.finish == [None]
    assert int(run.state.pointer[0]) + MODEL.lm.layout.ahead >= int(early.lengths[0])
    MODEL.lm.extend(run.state, units)
    assert run.waiting() == [False]
    while (made := run.advance()) is not None:
        first.append(made.frames)
    assert torch.equal(torch.cat(first, -1), whole)
    assert [f.reason for f in run.finish if f] == ["stop"]


def test_words_are_in_order_and_inside_the_audio() -> None:
    spoken = say(MODEL, TEXT)
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
    assert torch.equal(offline(TEXT), say(MODEL, TEXT, sampling=Sampling(seed=5)).wave)
    other = say(MODEL, TEXT, sampling=Sampling(seed=6)).wave
    assert other.shape != offline(TEXT).shape or not torch.allclose(other, offline(TEXT))
    high = say(MODEL, TEXT, "high", Sampling(seed=5)).wave
    assert high.shape != offline(TEXT).shape or not torch.allclose(high, offline(TEXT))


def test_a_guard_that_trips_is_told_at_the_end() -> None:
    def stuck() -> SpeechModel:
        model = tiny_model(layout={"name": "aligned", "max_stall": 1000})
        with torch.no_grad():  # the pointer never moves, so only the guard can end it
            model.lm.output.down[0].weight.zero_()
            model.lm.output.down[0].bias.copy_(torch.tensor([50.0] + [0.0] * 10))
        return model

    spoken = say(stuck(), "hello there")
    assert spoken.finish.reason == "length"
    assert "text units" in spoken.finish.detail


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
    monkeypatch.setattr("speech_mtp.streaming.timed.time.perf_counter", lambda: now[0])

    def slow() -> Iterator[str]:
        for word in TEXT.split():
            now[0] += 10.0
            yield word + " "

    spoken = say(MODEL, slow())
    assert spoken.compute_s == 0.0
    assert now[0] >= 100.0


def test_warming_up_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    push = MODEL.codec.push
    monkeypatch.setattr(MODEL.codec, "push", lambda *given: calls.append(given) or push(*given))
    warm_up(MODEL)
    assert calls
