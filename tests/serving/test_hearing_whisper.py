"""The packaged recogniser behind the service: what it hears of what the shipped voice says."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import soxr

from speech_mtp import audio, hub, plugins
from speech_mtp.frontends.base import SAMPLE_RATE, Hint
from speech_mtp.streaming.pipeline import speak
from tests.serving.chatting import PATH, chatting
from tests.serving.running import Running

pytestmark = pytest.mark.slow
SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    try:
        recogniser = plugins.build("frontends", "faster_whisper")
    except plugins.MissingExtra as missing:
        pytest.skip(str(missing))
    with chatting(recogniser=recogniser) as running:
        yield running


@pytest.fixture(scope="module")
def said() -> bytes:
    """A WAV file of the shipped voice."""
    model = hub.load("tiny-en")
    wave = b"".join(audio.pcm16(chunk.wave) for chunk in speak(model, SENTENCE, "drew"))
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", model.codec.spec.sample_rate, 1, "PCM_16", format="WAV") as out:
        out.buffer_write(wave, dtype="int16")
    return file.getvalue()


def words(text: str) -> list[str]:
    return [word.strip(".,!?").lower() for word in text.split()]


def test_it_hears_the_sentence(server: Running, said: bytes) -> None:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    answer = server.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", said)}, data=fields).json()
    assert words(answer["text"]) == words(SENTENCE)
    assert [word["word"].strip(".").lower() for word in answer["words"]] == words(SENTENCE)
    assert answer["words"][-1]["end"] <= answer["duration"] + 0.1


def test_a_spoken_question_is_answered_as_the_written_one_is(server: Running, said: bytes) -> None:
    heard = server.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", said)}).json()["text"]
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(said).decode(), "format": "wav"}}
    spoken, written = (
        server.post(PATH, messages=[{"role": "user", "content": content}], max_tokens=10).json()["choices"]
        for content in ([part], heard)
    )
    assert spoken == written


def test_in_a_hurry_it_hears_the_same(server: Running, said: bytes) -> None:
    recogniser = server.service.recogniser
    assert recogniser is not None
    wave, rate = soundfile.read(io.BytesIO(said), dtype="float32")
    wave = soxr.resample(wave, rate, SAMPLE_RATE)
    quick, usual = (recogniser.transcribe(wave, Hint(quick=hurry)) for hurry in (True, False))
    assert words(quick.text) == words(usual.text) == words(SENTENCE)
    assert len(quick.segments) == 1
    noise = np.random.default_rng(0).normal(0, 1e-3, SAMPLE_RATE).astype(np.float32)
    assert not any(c.isalpha() for c in recogniser.transcribe(noise, Hint(quick=True)).text)
    long = np.concatenate([wave] * 6)  # longer than is heard in a hurry: as usual
    assert recogniser.transcribe(long, Hint(quick=True)) == recogniser.transcribe(long)
