"""Many streams against a clock: the figures are of what was heard."""

from __future__ import annotations

import pytest
import torch

from speech_mtp.streaming.at_once import Listener, streams_at_once, text_beside_speech
from speech_mtp.streaming.conversation import Writer
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import Chunk
from tests.text_tiny import tiny_text_lm
from tests.tiny import tiny_model

MODEL = tiny_model()


@pytest.mark.parametrize("codec_thread", [False, True])
def test_every_stream_is_heard(codec_thread: bool) -> None:
    row = streams_at_once(MODEL, ["Hello there.", "Good morning."], 3, codec_thread)
    assert row["streams"] == 3
    assert row["seconds"] > 0.5
    assert 0 < row["first_audio_ms_p50"] <= row["first_audio_ms_p95"]
    assert 0 < row["rtf"] == pytest.approx(row["rtf"])


def test_a_gap_is_counted_when_sound_comes_after_it_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Scheduler(MODEL).speak("low")
    rate = MODEL.codec.spec.sample_rate
    chunks: list[Chunk] = []
    monkeypatch.setattr(stream, "take", lambda: [chunks.pop()] if chunks else [])
    listener = Listener(stream, joined_s=1.0)
    for now, seconds in ((2.0, 0.5), (2.4, 0.5), (2.9, 1.0), (4.1, 1.0)):  # played until 2.5, 3.0, 4.0: one gap
        chunks.append(Chunk(torch.zeros(int(seconds * rate))))
        listener.listen(now)
    assert listener.first_s == 1.0
    assert listener.playback.gaps == 1
    assert listener.playback.heard_s == pytest.approx(3.0)


def test_text_is_written_beside_speech() -> None:
    texts = ["Hello there, the quick brown fox jumps over the lazy dog. " * 6]
    row = text_beside_speech(MODEL, Writer(tiny_text_lm()), texts, 2, seconds=3.0)
    assert row["joined"] >= 2
    assert row["text_tokens_per_s"] > 0
    assert row["text_slowdown"] > 0
    assert row["first_audio_ms_p95"] > 0
