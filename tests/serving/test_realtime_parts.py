"""Turns, transcripts and settings of a realtime session, without a server."""

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np
import pytest

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.ear import HEARING_RATE, Ear, silero
from speech_mtp.serving.realtime.hearing import Hearing
from speech_mtp.serving.realtime.items import Conversation, Item, item_of
from speech_mtp.serving.realtime.response import Send
from speech_mtp.serving.realtime.sound import WIRE, Receiver
from speech_mtp.serving.realtime.tasks import Tasks
from speech_mtp.serving.realtime.transcript import SpokenTranscript
from speech_mtp.serving.realtime.turns import STEP_MS, TurnDetector
from speech_mtp.serving.service import VoiceService
from speech_mtp.types import WordTime
from tests.serving.talking import Loudness


def changes(detector: TurnDetector, *spans: tuple[float, int], guarded: bool = False) -> list[tuple[str, int]]:
    """What is noticed, and after how many milliseconds, in spans of one probability each (milliseconds)."""
    found, now = [], 0
    for probability, span_ms in spans:
        for _ in range(span_ms // STEP_MS):
            now += STEP_MS
            change = detector.push(probability, guarded)
            if change:
                found.append((change, now))
    return found


def test_a_turn_begins_and_ends() -> None:
    spans = [(0.1, 320), (0.9, 960), (0.1, 640)]
    assert changes(TurnDetector(silence_ms=512), *spans) == [
        ("started", 320 + 128),
        ("paused", 1280 + 192),
        ("stopped", 1280 + 512),
    ]


def test_a_pause_is_no_end_and_a_cough_no_beginning() -> None:
    detector = TurnDetector(silence_ms=512)
    assert changes(detector, (0.9, 96), (0.1, 640)) == []
    spans = [(0.9, 320), (0.1, 320), (0.9, 320), (0.1, 512)]
    assert [change for change, _ in changes(detector, *spans)] == ["started", "paused", "resumed", "paused", "stopped"]
    # Between the bars for a beginning and an end, a turn goes on.
    assert [change for change, _ in changes(detector, (0.9, 320), (0.4, 960))] == ["started"]


def test_while_we_may_be_heard_speech_must_be_clearer() -> None:
    assert changes(TurnDetector(), (0.6, 640), guarded=True) == []
    assert changes(TurnDetector(), (0.9, 640), guarded=True) == [("started", 192)]


def test_a_turn_keeps_the_sound_before_it() -> None:
    ear = Ear(WIRE["audio/pcm"], Loudness())
    ear.padding_ms = 320
    loud = np.full(24_000, 0.5, np.float32)
    sound = np.concatenate([np.zeros(48_000, np.float32), loud, np.zeros(24_000, np.float32)])
    noticed = []
    for one in ear.push(WIRE["audio/pcm"].write(sound)):
        if one is not None:
            noticed.append(one)
        if one is not None and one.change == "stopped":
            break
    assert [one.change for one in noticed] == ["started", "paused", "stopped"]
    start = noticed[0].at_ms
    assert 2000 - 320 - 224 <= start <= 2000 - 320
    kept = ear.take()
    assert len(kept) / HEARING_RATE == pytest.approx((noticed[-1].at_ms - start) / 1000, abs=0.04)
    assert np.abs(kept[: 16 * 300]).max() < 0.01
    assert not len(ear.sound())


def test_what_is_muted_is_silence() -> None:
    ear = Ear(WIRE["audio/pcm"], Loudness())
    ear.muted = True
    assert [one for one in ear.push(WIRE["audio/pcm"].write(np.full(24_000, 0.5, np.float32))) if one] == []


def test_the_packaged_detector_hears_no_speech_in_noise_and_silence() -> None:
    ear = Ear(WIRE["audio/pcm"], silero())
    noise = np.random.default_rng(0).normal(0, 0.05, 48_000).astype(np.float32)
    assert [one for one in ear.push(WIRE["audio/pcm"].write(noise)) if one] == []


@pytest.mark.parametrize("kind", list(WIRE))
def test_formats_keep_the_sound_however_it_is_cut(kind: str) -> None:
    wire = WIRE[kind]
    times = np.arange(wire.rate) / wire.rate
    sound = (0.5 * np.sin(2 * np.pi * 300 * times)).astype(np.float32)
    data = wire.write(sound)
    assert len(data) == wire.rate * wire.bytes_per_sample
    assert np.abs(wire.read(data) - sound).max() < (1e-4 if kind == "audio/pcm" else 0.02)
    whole, cut = Receiver(wire, HEARING_RATE), Receiver(wire, HEARING_RATE)
    pieces = [cut.push(data[i : i + 777]) for i in range(0, len(data), 777)]
    np.testing.assert_allclose(np.concatenate(pieces), whole.push(data)[: sum(map(len, pieces))], atol=1e-4)


def spoken(text: str, *words: tuple[str, float, float], speed: float = 1.0) -> SpokenTranscript:
    track = SpokenTranscript()
    track.text = text
    for word in words:
        track.say(WordTime(*word), speed)
    return track


def test_a_transcript_is_cut_behind_the_last_word_that_was_heard() -> None:
    track = spoken(
        "Well, it is good. It is.", ("Well,", 0, 0.4), ("it", 0.5, 0.6), ("is", 0.6, 0.8), ("good.", 0.8, 1.2)
    )
    assert [track.until(ms, 2000) for ms in (0, 350, 420, 620, 1300)] == [
        "",
        "Well,",
        "Well,",
        "Well, it",
        "Well, it is good.",
    ]
    assert [(word.start_char, word.end_char) for word in track.words] == [(0, 4), (6, 8), (9, 11), (12, 16)]


def test_words_that_are_written_otherwise_than_spoken() -> None:
    track = spoken(
        "It costs $3 today.",
        ("It", 0, 0.2),
        ("costs", 0.2, 0.5),
        ("three", 0.5, 0.8),
        ("dollars", 0.8, 1.1),
        ("today", 1.1, 1.5),
    )
    assert track.words[2].start_char is None
    assert [track.until(ms, 2000) for ms in (500, 1100, 1500)] == ["It costs", "It costs $3", "It costs $3 today."]
    assert spoken("In 1999", ("In", 0, 0.2), ("nineteen", 0.2, 0.5)).until(600, 2000) == "In 1999"


def test_what_is_written_ahead_of_a_number_that_sounds_is_not_heard() -> None:
    track = spoken("In 1999, when we were young, it rained.", ("In", 0, 0.2), ("nineteen", 0.2, 0.5))
    assert track.until(600, 2000) == "In 1999,"
    track.complete = True
    assert [track.until(ms, 2000) for ms in (200, 600)] == ["In", track.text]


def test_times_are_those_of_the_sound_that_is_sent() -> None:
    track = spoken("One two.", ("One", 0, 0.4), ("two.", 0.4, 0.8), speed=2.0)
    assert (track.words[1].start_ms, track.words[1].end_ms) == (200, 400)


def test_settings_of_a_wrong_type_are_left_out() -> None:
    config = SessionConfig("alto")
    turns = {"type": "semantic_vad", "eagerness": ["high"]}
    config.update({"max_output_tokens": True, "audio": {"input": {"turn_detection": turns}}})
    assert config.turn_detection is not None
    assert (config.max_output_tokens, config.turn_detection["eagerness"]) == (None, "auto")


def test_what_is_only_kept_is_not_kept_at_any_size() -> None:
    large = "x" * 2**20
    config = SessionConfig("alto")
    for session in ({"tools": [large]}, {"audio": {"input": {"transcription": {"prompt": large}}}}):
        with pytest.raises(ApiError, match="characters"):
            config.update(session)
    with pytest.raises(ApiError, match="characters"):
        item_of({"type": "function_call_output", "call_id": "a", "output": large})


def test_without_times_of_words_text_is_heard_at_an_even_pace() -> None:
    track = SpokenTranscript(timed=False)
    track.text = "One two three four."
    assert [track.until(ms, 1000) for ms in (0, 500, 800)] == ["", "One two", "One two three"]


def test_what_was_cut_off_never_comes_back() -> None:
    track = SpokenTranscript()
    track.text, track.complete = "One two three.", True
    for number, word in enumerate(("One", "two", "three")):
        track.say(WordTime(word, float(number), number + 0.9), 1.0)
    item = Item("item_1", "assistant", track.text, spoken=True, track=track, audio_ms=3000)
    assert (item.cut(5000), item.text) == (3000, "One two three.")
    assert (item.cut(1000), item.text) == (1000, "One")
    assert (item.cut(5000), item.text) == (1000, "One")
    assert (item.cut(0), item.text) == (0, "")


def test_what_is_cleared_is_not_heard_any_more() -> None:
    """Words that were looked for in a pause belong to the sound that is gone."""

    async def listen() -> bool:
        hearing = Hearing(cast(VoiceService, None), "", Conversation(), cast(Send, None), Tasks())
        hearing.open(SessionConfig("alto"), Loudness())
        early = hearing._early = asyncio.ensure_future(asyncio.sleep(60, "words"))
        hearing.clear()
        await asyncio.wait({early})
        return early.cancelled() and hearing._early is None

    assert asyncio.run(listen())
