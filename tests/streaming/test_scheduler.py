"""Many streams: what each says is what it says alone, however they come, wait and go."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import inf
from threading import Event
from time import sleep
from typing import Any

import pytest
import torch

from speech_mtp import plugins
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.streaming.chat import Chat
from speech_mtp.streaming.codec_thread import CodecThread
from speech_mtp.streaming.conversation import Conversation, Writer
from speech_mtp.streaming.pipeline import speak
from speech_mtp.streaming.scheduler import BEGIN_S, Pace, Scheduler, run_to_end
from speech_mtp.streaming.stream import Chunk, Ramp, Stream
from speech_mtp.text.phonemes import Unit
from speech_mtp.types import Sampling
from tests.text_tiny import tiny_head, tiny_text_lm
from tests.tiny import tiny_model

MODEL = tiny_model()
TEXTS = [
    "Hello there, the quick brown fox jumps. It is good!",
    "Good morning.",
    "The lazy dog, it is a good dog. It jumps over the fox. Hello!",
    "It is good, and we like it a lot!",
    "The quick brown fox jumps over the lazy dog, and over the lazy fox.",
]
SAMPLINGS = [Sampling(seed=3), Sampling(temperature=0), Sampling(temperature=0.6, top_k=20, seed=9)]


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def medusa() -> DecodingRule:
    torch.manual_seed(3)
    head: MTPHead = plugins.build("heads", "medusa", shape=TrunkShape(**MODEL.lm.shape()))
    head.bind(Binding(**MODEL.lm.binding()))
    rule: DecodingRule = plugins.build("decoding", "tree", head=head.eval())
    return rule


def alone(text: str, voice: str, sampling: Sampling) -> list[Chunk]:
    return list(speak(MODEL, text, voice, sampling))


def wave(chunks: list[Chunk]) -> torch.Tensor:
    return torch.cat([chunk.wave for chunk in chunks])


def all_of(stream: Stream) -> list[Chunk]:
    """All chunks of a stream that is done, or its error."""
    chunks: list[Chunk] = []
    while more := stream.take():
        chunks += more
    return chunks


class Codes:
    """Records the groups of every stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[Stream, list[torch.Tensor]] = {}
        take = Stream.say

        def spy(stream: Stream, tokens: torch.Tensor, pointers: list[int]) -> None:
            self.of.setdefault(stream, []).append(tokens)
            take(stream, tokens, pointers)

        monkeypatch.setattr(Stream, "say", spy)

    def of_stream(self, stream: Stream) -> torch.Tensor:
        return torch.cat(self.of[stream], 1)


def pieces(text: str, rng: random.Random) -> Iterator[str]:
    while text:
        n = rng.randint(1, 12)
        yield text[:n]
        text = text[n:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drafted", [False, True])
def test_any_schedule_gives_what_each_stream_says_alone(
    seed: int, drafted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, codes = random.Random(seed), Codes(monkeypatch)
    expected: dict[tuple[int, str, int], tuple[torch.Tensor, list[Chunk]]] = {}
    for i, text in enumerate(TEXTS):
        voice, which = rng.choice(["low", "high"]), rng.randrange(3)
        one = Scheduler(MODEL, max_streams=1)
        stream = one.speak(voice, SAMPLINGS[which])
        stream.push(text)
        stream.finish_text()
        run_to_end(one)
        expected[i, voice, which] = codes.of_stream(stream), stream.take()
    codes.of.clear()

    scheduler = Scheduler(MODEL, rule=medusa() if drafted else None, max_streams=3)
    todo = list(expected)
    rng.shuffle(todo)
    open_: dict[Stream, tuple[tuple[int, str, int], Iterator[str]]] = {}
    heard: dict[Stream, list[Chunk]] = {}
    doomed: list[Stream] = []
    while todo or any(not stream.done for stream in open_):
        if todo and rng.random() < 0.3:
            key = todo.pop()
            stream = scheduler.speak(key[1], SAMPLINGS[key[2]])
            open_[stream], heard[stream] = (key, pieces(TEXTS[key[0]], rng)), []
            if rng.random() < 0.3:  # somebody who will leave in the middle
                doomed.append(scheduler.speak("low", Sampling(seed=rng.randrange(100))))
                doomed[-1].push(TEXTS[2])
        for stream, (_, text) in open_.items():
            if rng.random() < 0.5:
                piece = next(text, None)
                stream.finish_text() if piece is None else stream.push(piece)
            heard[stream] += stream.take()
        for stream in doomed:
            if rng.random() < 0.1:
                stream.cancel()
        scheduler.tick()
    for stream, (key, _) in open_.items():
        groups, chunks = expected[key]
        assert torch.equal(codes.of_stream(stream), groups)
        heard[stream] += stream.take()
        torch.testing.assert_close(wave(heard[stream]), wave(chunks), atol=1e-4, rtol=0)
        said = [[word for chunk in every for word in chunk.words] for every in (heard[stream], chunks)]
        assert said[0] == said[1]
        assert heard[stream][-1].finish == chunks[-1].finish
    for stream in doomed:
        stream.cancel()
    scheduler.tick()
    assert not scheduler.streams
    assert not scheduler._talking


def test_drafts_in_speech_save_steps_and_change_nothing() -> None:
    plain, drafted = (
        alone(TEXTS[0], "low", SAMPLINGS[1]),
        list(speak(MODEL, TEXTS[0], "low", SAMPLINGS[1], rule=medusa())),
    )
    torch.testing.assert_close(wave(plain), wave(drafted), atol=1e-5, rtol=0)
    assert drafted[-1].frames == plain[-1].frames
    assert drafted[-1].steps <= plain[-1].steps


def test_the_codec_in_its_own_thread_says_the_same() -> None:
    scheduler = Scheduler(MODEL, max_streams=2, codec_thread=True)
    streams = []
    for text in TEXTS:
        stream = scheduler.speak("high", SAMPLINGS[0])
        stream.push(text)
        stream.finish_text()
        streams.append(stream)
    while not all(stream.done for stream in streams):
        scheduler.tick()
    for text, stream in zip(TEXTS, streams, strict=True):
        torch.testing.assert_close(wave(stream.take()), wave(alone(text, "high", SAMPLINGS[0])), atol=1e-4, rtol=0)
    scheduler.close()


def test_a_cancelled_stream_leaves_at_the_next_step() -> None:
    scheduler = Scheduler(MODEL)
    gone, stays = scheduler.speak("low"), scheduler.speak("low")
    for stream in (gone, stays):
        stream.push(TEXTS[2])
        stream.finish_text()
    for _ in range(6):
        scheduler.tick()
    before = gone.frames
    assert before
    gone.cancel()
    scheduler.tick()
    assert gone not in scheduler.streams
    assert gone.frames == before
    assert gone.take()[-1].finish is not None
    run_to_end(scheduler)
    torch.testing.assert_close(wave(stays.take()), wave(alone(TEXTS[2], "low", MODEL.sampling)), atol=1e-5, rtol=0)


def test_streams_wait_for_a_place_and_errors_are_their_own() -> None:
    scheduler = Scheduler(MODEL, max_streams=1)
    silent, after = scheduler.speak("low"), scheduler.speak("low")
    with pytest.raises(ValueError, match="no voice"):
        scheduler.speak("nobody")
    silent.push(" ... ")
    silent.finish_text()
    after.push(TEXTS[1])
    after.finish_text()
    scheduler.tick()
    assert after in scheduler.waiting + scheduler.streams
    run_to_end(scheduler)
    with pytest.raises(ValueError, match="nothing to say"):
        silent.take()
    assert after.take()[-1].finish is not None
    with pytest.raises(ValueError, match="longer than"):
        scheduler.speak("low").push("a" * 20_000)


def test_a_word_that_cannot_be_said_ends_its_own_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    g2p = MODEL.maker.g2p
    phonemize = g2p.phonemize

    def refuse(text: str) -> list[Unit]:
        if "jumps" in text:
            raise ValueError("The word 'jumps' cannot be pronounced.")
        return phonemize(text)

    scheduler = Scheduler(MODEL)
    good, bad = scheduler.speak("low"), scheduler.speak("low")
    good.push(TEXTS[1])
    good.finish_text()
    expected = wave(alone(TEXTS[1], "low", MODEL.sampling))
    monkeypatch.setattr(g2p, "phonemize", refuse)
    bad.push("Hello. " + TEXTS[0])
    bad.finish_text()
    with pytest.raises(ValueError, match="has been finished"):
        bad.push("more")
    run_to_end(scheduler)
    assert bad.finish is not None
    assert bad.finish.reason == "error"
    with pytest.raises(ValueError, match="cannot be pronounced"):
        all_of(bad)
    torch.testing.assert_close(wave(good.take()), expected, atol=1e-4, rtol=0)
    assert not scheduler.streams
    with pytest.raises(ValueError, match="cannot be pronounced"):
        list(speak(MODEL, "It jumps.", "low"))


def test_a_stream_that_is_far_ahead_is_not_talked_on() -> None:
    clock = Clock()
    scheduler = Scheduler(MODEL, pace=Pace(ahead_s=0.5), clock=clock)
    stream = scheduler.speak("low", ramp=Ramp((1,)))
    stream.push(" ".join(TEXTS))
    stream.finish_text()
    for _ in range(200):
        scheduler.tick()
    group_s = MODEL.lm.layout.frames_per_group / MODEL.codec.spec.frame_rate_hz
    assert not stream.done
    assert 0.5 < stream.buffered_s(clock.now) <= 0.5 + 2 * group_s
    clock.now += 0.4
    assert scheduler.tick()
    while not stream.done:
        clock.now += 0.2
        scheduler.tick()


def test_streams_are_paced_one_by_one_and_a_held_one_is_not_talked_on() -> None:
    clock = Clock()
    scheduler = Scheduler(MODEL, pace=Pace(ahead_s=0.5), clock=clock)
    paced, unpaced, held = (scheduler.speak("low") for _ in range(3))
    for stream in (paced, unpaced, held):
        stream.push(" ".join(TEXTS))
        stream.finish_text()
    unpaced.ahead_s = inf
    held.held = True
    run_to_end(scheduler)
    assert [stream.done for stream in (paced, unpaced, held)] == [False, True, False]
    assert held.steps == 0
    held.held, held.ahead_s = False, inf
    run_to_end(scheduler)
    assert [stream.done for stream in (paced, unpaced, held)] == [False, True, True]
    wave_of = [torch.cat([chunk.wave for chunk in stream.take()]) for stream in (unpaced, held)]
    torch.testing.assert_close(*wave_of, atol=1e-4, rtol=0)


# -- text beside speech -----------------------------------------------------------------------------------------------
QUESTIONS = ["Hello there!", "the quick brown fox jumps over the lazy dog. " * 6, "Good morning."]


def writer(drafting: bool, chunk: int = 16) -> Writer:
    lm = tiny_text_lm()
    if not drafting:
        return Writer(lm, chunk=chunk)
    rule: Any = plugins.build("decoding", "tree", head=tiny_head(lm))
    return Writer(lm, rule, chunk)


def talked(conversation: Conversation) -> list[list[int]]:
    return [turn.tokens for turn in conversation.turns]


@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize("stops", [(), ("e",)])
def test_conversations_among_others_are_those_alone(drafting: bool, stops: tuple[str, ...]) -> None:
    settings = [
        {"sampling": Sampling(temperature=0.8, seed=s), "max_new_tokens": 10 + s, "stops": stops} for s in range(3)
    ]
    expected = []
    for some in settings:
        one = Scheduler(writer=writer(drafting))
        conversation = one.chat(**some)
        for question in QUESTIONS[::-1]:
            conversation.ask(question)
            run_to_end(one)
        expected.append(talked(conversation))
    assert len({str(e) for e in expected}) == 3

    rng = random.Random(1)
    together = Scheduler(MODEL, writer(drafting))
    stream = together.speak("low")
    stream.push(TEXTS[2])
    stream.finish_text()
    guest = together.chat(max_new_tokens=40)
    guest.ask("the dog jumps")
    conversations = [together.chat(**some) for some in settings]
    left = {id(c): list(QUESTIONS) for c in conversations}
    while any(left.values()) or any(c.writing for c in conversations):
        for c in conversations:
            if not c.writing and left[id(c)] and rng.random() < 0.4:
                c.ask(left[id(c)].pop())
        if rng.random() < 0.1:
            guest.close()
        together.tick()
    assert [talked(c) for c in conversations] == expected
    assert "".join(conversations[0].take()) == "".join(turn.text for turn in conversations[0].turns)


def test_a_long_prompt_is_read_in_pieces() -> None:
    scheduler = Scheduler(writer=writer(False, chunk=16))
    conversation = scheduler.chat(max_new_tokens=4)
    conversation.ask(QUESTIONS[1])
    ticks = 0
    while not conversation.take():
        scheduler.tick()
        ticks += 1
    assert ticks > len(conversation._prompt) // 16 > 3


def test_speech_never_waits_for_text() -> None:
    clock = Clock()
    scheduler = Scheduler(MODEL, writer(False), pace=Pace(margin_s=0.3), clock=clock)
    conversation = scheduler.chat(max_new_tokens=30)
    conversation.ask("Hello there!")
    stream = scheduler.speak("low")
    stream.push(TEXTS[2])
    stream.finish_text()
    for _ in range(4):
        scheduler.tick()
    assert not conversation.answer.tokens, "text was written while a stream had no sound"
    while stream.buffered_s(clock.now) < 1.0:
        scheduler.tick()
    for _ in range(20):
        scheduler.tick()
    assert conversation.answer.tokens


def test_an_answer_can_be_cancelled_and_the_talk_goes_on() -> None:
    scheduler = Scheduler(writer=writer(True))
    conversation = scheduler.chat(max_new_tokens=60)
    conversation.ask("Hello there!")
    while len(conversation.answer.tokens) < 5:
        scheduler.tick()
    with pytest.raises(ValueError, match="being written"):
        conversation.ask("Hello?")
    conversation.cancel()
    assert conversation.turns[-1].finish.reason == "cancelled"
    conversation.ask("Good morning.")
    run_to_end(scheduler)
    assert len(conversation.turns) == 2
    assert conversation.turns[-1].tokens


def test_a_chat_is_a_conversation() -> None:
    lm = tiny_text_lm()
    chat = Chat(lm, plugins.build("decoding", "vanilla"), max_new_tokens=8)
    said = "".join(chat.ask("Hello there!"))
    assert said == chat.turns[0].text


@pytest.mark.parametrize("length", range(1, 39))
def test_a_stream_that_waits_for_text_does_not_hold_up_the_chat_that_writes_it(length: int) -> None:
    clock, text = Clock(), "Hello there, the quick brown fox jumps."
    scheduler = Scheduler(MODEL, writer(False), clock=clock)
    stream, conversation = scheduler.speak("low"), scheduler.chat(max_new_tokens=3)
    stream.push(text[:length])
    conversation.ask("Hello there!")
    clock.now += 5
    while conversation.writing:
        assert scheduler.tick()
        clock.now += 0.01
    assert conversation.turns[0].tokens
    if length % 9:
        return
    stream.push(text[length:])
    stream.finish_text()
    run_to_end(scheduler)
    torch.testing.assert_close(wave(stream.take()), wave(alone(text, "low", MODEL.sampling)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("begun", ["Hello t", "Hello there, the ", "Hello there. It"])
def test_a_text_that_is_there_does_not_wait_for_one_that_is_not(begun: str) -> None:
    scheduler = Scheduler(MODEL, max_streams=1)
    first, second = scheduler.speak("low"), scheduler.speak("high")
    first.push(begun)
    for _ in range(4):
        scheduler.tick()
    second.push(TEXTS[1])
    second.finish_text()
    run_to_end(scheduler)
    if not first.rows:
        assert second.finish is not None
    first.push("here it is.")
    first.finish_text()
    run_to_end(scheduler)
    for stream in (first, second):
        assert stream.finish is not None
        assert stream.finish.reason == "stop"


def test_a_stream_that_the_codec_finishes_between_two_looks_is_not_offered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the scheduler's thread lost its core for a while before it collects."""
    collect = CodecThread.collect

    def late(thread: CodecThread) -> Any:
        sleep(0.02)
        return collect(thread)

    monkeypatch.setattr(CodecThread, "collect", late)
    scheduler = Scheduler(MODEL, codec_thread=True)
    streams = [scheduler.speak("low", Sampling(seed=seed)) for seed in range(4)]
    for stream in streams:
        stream.push(TEXTS[2])
        stream.finish_text()
    run_to_end(scheduler)
    scheduler.close()
    assert [stream.finish and stream.finish.reason for stream in streams] == ["stop"] * 4


def test_a_long_rest_of_a_text_is_sounded_in_several_calls() -> None:
    stream = Scheduler(MODEL, max_streams=1).speak("low", ramp=Ramp((1, 4)))
    for _ in range(12):
        given_a_group(stream)
    stream._flushed, stream._sentence = True, 1
    sizes = []
    while not stream.done:
        assert stream.due
        before = len(stream._pending)
        made = stream.decoding()()
        sizes.append(before - len(stream._pending))
        stream.take_sound(*made)
    assert sizes == [8, 4]
    frames = 12 * MODEL.lm.layout.frames_per_group
    assert len(wave(stream.take())) == frames * MODEL.codec.spec.samples_per_frame


def test_a_stream_without_text_gives_up_its_place() -> None:
    scheduler = Scheduler(MODEL, max_streams=1)
    silent, ready = scheduler.speak("low"), scheduler.speak("low")
    scheduler.tick()
    ready.push(TEXTS[1])
    ready.finish_text()
    run_to_end(scheduler)
    assert ready.done
    silent.push(TEXTS[1])
    silent.finish_text()
    run_to_end(scheduler)
    torch.testing.assert_close(wave(silent.take()), wave(ready.take()), atol=1e-5, rtol=0)


def test_sound_is_counted_from_when_it_can_be_played() -> None:
    clock = Clock()
    scheduler = Scheduler(MODEL, pace=Pace(ahead_s=1.0), clock=clock)
    stream = scheduler.speak("low")
    stream.push(TEXTS[1])
    run_to_end(scheduler)
    clock.now += 30
    stream.push(" ".join(TEXTS))
    for _ in range(100):
        scheduler.tick()
    assert 0.5 < stream.buffered_s(clock.now) < 2.5


def test_a_question_that_is_taken_back_was_never_asked() -> None:
    scheduler = Scheduler(writer=writer(False, chunk=8))
    conversation, plainly = scheduler.chat(max_new_tokens=6), scheduler.chat(max_new_tokens=6)
    for taken_back, question in (
        (True, QUESTIONS[1]),
        (False, QUESTIONS[0]),
        (True, QUESTIONS[1]),
        (False, QUESTIONS[2]),
    ):
        if taken_back:
            conversation.ask(question)
            scheduler.tick()
            conversation.cancel()
            assert not conversation.writing
        else:
            for either in (conversation, plainly):
                either.ask(question)
                run_to_end(scheduler)
    assert talked(conversation) == talked(plainly)
    assert conversation.messages == plainly.messages
    with pytest.raises(ValueError, match="nothing to read"):
        scheduler.chat(raw=True).ask("")
    conversation.close()
    with pytest.raises(ValueError, match="has been closed"):
        conversation.ask("Hello?")


def test_a_codec_that_fails_ends_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wave(alone(TEXTS[0], "high", MODEL.sampling))
    scheduler = Scheduler(MODEL, codec_thread=True)
    bad, good = scheduler.speak("low"), scheduler.speak("high")
    for stream in (bad, good):
        stream.push(TEXTS[0])
        stream.finish_text()
    push, broken = MODEL.codec.push, bad._codec

    def fails(state: object, *arguments: torch.Tensor) -> list[torch.Tensor]:
        if state is broken:
            raise RuntimeError("out of memory")
        return push(state, *arguments)

    monkeypatch.setattr(MODEL.codec, "push", fails)
    run_to_end(scheduler)
    with pytest.raises(RuntimeError, match="out of memory"):
        all_of(bad)
    torch.testing.assert_close(wave(good.take()), expected, atol=1e-4, rtol=0)
    scheduler.close()
    with pytest.raises(ValueError, match="has been closed"):
        scheduler.speak("low")


def test_conversations_that_close_make_room() -> None:
    scheduler = Scheduler(writer=writer(False))
    talks = [scheduler.chat(max_new_tokens=12, sampling=Sampling(seed=seed)) for seed in range(9)]
    for talk in talks:
        talk.ask("Hello there!")
    run_to_end(scheduler)
    run = scheduler.writer._run
    assert len(run.finish) == 16
    expected = Scheduler(writer=writer(False)).chat(max_new_tokens=12, sampling=Sampling(seed=5))
    for talk in talks:
        if talk is not talks[5]:
            talk.close()
    assert len(run.finish) == 1
    for talk in (talks[5], expected):
        if talk is expected:
            talk.ask("Hello there!")
            while talk.writing:
                talk.writer.step()
        talk.ask("Good morning.")
        while talk.writing:
            talk.writer.step()
    assert talked(talks[5]) == talked(expected)


def test_a_tick_waits_for_the_codec_alone_and_never_spins() -> None:
    scheduler = Scheduler(MODEL, codec_thread=True)
    stream = scheduler.speak("low")
    stream.push(TEXTS[2])
    stream.finish_text()
    ticks = 0
    while not stream.done:
        assert scheduler.tick()
        ticks += 1
    assert ticks < 4 * stream.steps + 20
    scheduler.close()


def test_the_stream_that_runs_out_first_is_sounded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech_mtp.streaming.scheduler.AT_ONCE", 1)
    clock = Clock()
    scheduler = Scheduler(MODEL, clock=clock)
    group = torch.zeros_like(MODEL.lm.layout.nothing(1))[:, None]
    rich, poor = scheduler.speak("low"), scheduler.speak("low")
    rich.push("Hello")
    poor.push("Hello")
    scheduler.tick()  # both are admitted, in the order in which they came
    rich.take_sound(torch.zeros(5 * MODEL.codec.spec.sample_rate), last=False)
    assert rich.deadline() > poor.deadline()
    sounded: list[Stream] = []
    monkeypatch.setattr(Stream, "take_sound", lambda stream, *_: sounded.append(stream))
    for stream in (rich, poor):
        stream.say(group, [])
    scheduler.tick()
    scheduler.tick()
    assert sounded == [poor, rich]


def given_a_group(stream: Stream) -> None:
    stream.say(torch.zeros_like(MODEL.lm.layout.nothing(1))[:, None], [])


def test_a_stream_that_runs_low_among_others_does_not_fill_its_ramp() -> None:
    clock = Clock()
    stream = Scheduler(MODEL, clock=clock).speak("low", ramp=Ramp((1, 4)))
    stream.low_s = 0.4
    given_a_group(stream)
    stream.decoding()()
    stream.take_sound(torch.zeros(2 * MODEL.codec.spec.sample_rate), last=False)
    given_a_group(stream)
    assert not stream.due  # two seconds are left, and the ramp wants four groups
    clock.now = 1.5
    assert not stream.due
    clock.now = 1.7
    assert stream.due
    stream.low_s = 0.0  # alone: the samples of a whole text are the same at every speed
    assert not stream.due


def test_a_stream_begins_with_as_much_sound_as_it_is_told() -> None:
    stream = Scheduler(MODEL).speak("low")
    group_s = MODEL.lm.layout.frames_per_group / MODEL.codec.spec.frame_rate_hz
    stream.begin_s = 2.4 * group_s
    counts = 0
    while not stream.due:
        given_a_group(stream)
        counts += 1
    assert 2.4 * group_s <= counts * group_s - MODEL.codec.delay_s < 3.4 * group_s
    sound, _ = stream.decoding()()
    assert len(sound) >= 2.4 * group_s * MODEL.codec.spec.sample_rate


def test_slow_rounds_make_streams_begin_with_more_sound() -> None:
    scheduler = Scheduler(MODEL, clock=iter(range(10_000)).__next__)  # every look at the clock takes a second
    stream = scheduler.speak("low")
    stream.push(TEXTS[0])
    scheduler.tick()
    assert stream.begin_s == 0.0  # no round has been seen
    scheduler.tick()
    assert stream.begin_s == BEGIN_S  # bounded
    alone = Scheduler(MODEL, max_streams=1, clock=iter(range(10_000)).__next__)
    stream = alone.speak("low")
    stream.push(TEXTS[0])
    alone.tick()
    alone.tick()
    assert stream.begin_s == 0.0


def test_what_was_said_is_sounded_while_more_text_is_waited_for() -> None:
    scheduler = Scheduler(MODEL, max_streams=1)
    stream = scheduler.speak("low", ramp=Ramp((50,)))
    stream.push("The quick brown fox jumps over the lazy dog, and over the lazy ")
    run_to_end(scheduler)
    assert stream.steps
    assert sum(len(chunk.wave) for chunk in stream.take()) > 0
    stream.push("fox.")
    stream.finish_text()
    run_to_end(scheduler)
    assert stream.take()[-1].finish is not None


def test_who_is_a_little_ahead_talks_on_with_who_falls_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    scheduler = Scheduler(MODEL, pace=Pace(ahead_s=2.0), clock=clock)
    streams = [scheduler.speak("low") for _ in range(3)]
    monkeypatch.setattr(Scheduler, "_waits", lambda self, stream: False)
    for row, (stream, seconds) in enumerate(zip(streams, (2.1, 2.5, 2.9), strict=True)):
        stream.take_sound(torch.zeros(int(seconds * MODEL.codec.spec.sample_rate)), last=False)
        scheduler._talking[row] = stream
    assert scheduler._who_talks(4) == [False] * 4  # all are ahead
    clock.now = 0.2
    assert scheduler._who_talks(4) == [True, True, False, False]
    monkeypatch.setattr(Scheduler, "_waits", lambda self, stream: stream is streams[0])
    assert not any(scheduler._who_talks(4)[1:])  # who waits for text is not behind


def test_the_codec_thread_takes_the_most_urgent_of_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, at_work, order = Event(), Event(), []

    def decoding(stream: Stream) -> Any:
        order.append(stream)
        at_work.set()
        gate.wait()
        return lambda: (torch.zeros(1), False)

    monkeypatch.setattr(Stream, "decoding", decoding)
    scheduler, thread = Scheduler(MODEL, clock=(clock := Clock())), CodecThread()
    streams = []
    for clock.now in (3.0, 2.0, 1.0):
        streams.append(scheduler.speak("low"))
    late, soon, sooner = streams
    thread.offer([late])
    assert at_work.wait(30)
    thread.offer([late, soon, sooner])  # the one at work is not taken twice
    assert all(thread.has(stream) for stream in streams)
    gate.set()
    made: list[Stream] = []
    while len(made) < 3:
        made += [stream for stream, _ in thread.wait()]
    assert order == made == [late, sooner, soon]
    assert not any(thread.has(stream) for stream in streams)
    assert thread.wait() == []
    thread.close()


@pytest.mark.parametrize("codec_thread", [False, True])
def test_an_error_of_the_codec_ends_its_stream_alone(codec_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(MODEL, codec_thread=codec_thread)
    bad, good = scheduler.speak("low"), scheduler.speak("high")
    decoding = Stream.decoding

    def broken(stream: Stream) -> Any:
        if stream is bad:
            raise RuntimeError("no memory")
        return decoding(stream)

    monkeypatch.setattr(Stream, "decoding", broken)
    for stream in (bad, good):
        stream.push(TEXTS[0])
        stream.finish_text()
    run_to_end(scheduler)
    scheduler.close()
    assert bad.finish is not None
    assert bad.finish.reason == "error"
    assert good.finish is not None
    assert good.finish.reason == "stop"
    torch.testing.assert_close(wave(good.take()), wave(alone(TEXTS[0], "high", MODEL.sampling)), atol=1e-5, rtol=0)


def test_the_next_sentence_is_read_as_soon_as_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of a sentence is worth reading does not depend on how far the one before it went."""
    monkeypatch.setattr("speech_mtp.lm.reader.ReadingState.block_is_full", False)
    scheduler = Scheduler(tiny_model())
    stream = scheduler.speak()
    for _ in range(2):
        for word in ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and"]:
            stream.push(word + " ")
            run_to_end(scheduler)
        assert stream.rows, "it waits, although the talker could begin"
        stream.push("it is so, and it is good to be here with all of you. ")
        run_to_end(scheduler)
