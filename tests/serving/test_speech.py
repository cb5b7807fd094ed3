"""``POST /v1/audio/speech``: the sound is that of the library, in six formats, as bytes, events or a file."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any

import av
import numpy as np
import pytest
import torch

from speech_mtp import audio
from speech_mtp.serving.app import create_app
from speech_mtp.serving.encoding import FORMATS
from speech_mtp.serving.errors import EngineFailedError
from speech_mtp.serving.names import Names
from speech_mtp.serving.settings import OPENAI_LISTENERS, OPENAI_VOICES, Settings
from speech_mtp.serving.speaking import Speaking
from speech_mtp.streaming.pipeline import Chunk, speak
from tests.serving.running import LONG, TEXT, Running, serving
from tests.streaming.test_takes import said, with_phonemes
from tests.tiny import tiny_model, tiny_model_without_timbre


def spoken(text: str = TEXT, voice: str = "low") -> bytes:
    return audio.pcm16(torch.cat([chunk.wave for chunk in speak(tiny_model(), text, voice)]))


def alike(one: bytes, other: bytes) -> bool:
    """Whether two sounds of 16 bits are the same but for rounding: when sound is decoded depends on the time, and its
    last bits on that."""
    if len(one) != len(other):
        return False
    return not one or int(np.abs(np.frombuffer(one, "<i2").astype(int) - np.frombuffer(other, "<i2")).max()) <= 4


def seconds(data: bytes, name: str) -> float:
    if name == "pcm":
        return len(data) / 2 / 24000
    with av.open(io.BytesIO(data)) as file:
        return sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate


def events(text: str) -> list[dict[str, Any]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    found = [json.loads(block[1].removeprefix("data: ")) for block in blocks]
    assert [block[0] for block in blocks] == [f"event: {event['type']}" for event in found]
    return found


def test_pcm_is_what_the_library_speaks(server: Running) -> None:
    answer = server.post(input=TEXT, voice="low", response_format="pcm")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/pcm"
    assert answer.headers["x-speech-mtp-sample-rate"] == "24000"
    assert alike(answer.content, spoken())


def test_a_codec_without_timbre_of_another_rate_is_sent_at_24_khz() -> None:
    model = tiny_model_without_timbre()
    alone = {name: torch.cat([chunk.wave for chunk in speak(model, "Hi.", name)]) for name in model.voices}
    assert not torch.equal(alone["low"], alone["high"])
    with serving(model=model) as server:
        for name, wave in alone.items():
            sound = server.post(input="Hi.", voice=name, response_format="pcm").content
            assert len(sound) / 2 == pytest.approx(1.5 * len(wave), abs=2)
            assert np.abs(np.frombuffer(sound, "<i2")).max() > 0


def test_a_long_text_that_is_read_in_slices_is_the_same(server: Running) -> None:
    text = LONG[:700]
    assert alike(server.post(input=text, voice="high", response_format="pcm").content, spoken(text, "high"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [{}, {"stream": False}, {"stream_format": "audio"}, {"stream_format": "sse"}])
def test_every_format_in_every_shape_holds_the_whole_sound(server: Running, name: str, shape: dict[str, Any]) -> None:
    answer = server.post(input=TEXT, voice="low", response_format=name, **shape)
    assert answer.status_code == 200
    data = answer.content
    if shape.get("stream_format") == "sse":
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = b"".join(base64.b64decode(e["audio"]) for e in events(answer.text) if e["type"] == "speech.audio.delta")
    else:
        assert answer.headers["content-type"] == FORMATS[name].media_type
    expected = len(spoken()) / 2 / 24000
    assert expected <= seconds(data, name) + 0.001 <= expected + 0.1


def test_a_streamed_wav_has_one_header_and_the_finished_one_its_size(server: Running) -> None:
    streamed = server.post(input=TEXT, voice="low", response_format="wav").content
    whole = server.post(input=TEXT, voice="low", response_format="wav", stream=False).content
    assert alike(streamed[44:], spoken())
    assert alike(whole[44:], spoken())
    assert streamed.count(b"RIFF") == 1
    with wave.open(io.BytesIO(whole)) as file:
        assert file.getnframes() == len(spoken()) // 2
        assert file.getframerate() == 24000


def test_events_end_with_usage_and_tell_the_words(server: Running) -> None:
    answer = server.post(input=TEXT, voice="low", response_format="pcm", stream_format="sse")
    *deltas, done = events(answer.text)
    assert alike(b"".join(base64.b64decode(d["audio"]) for d in deltas), spoken())
    words = [word for d in deltas for word in d.get("words", [])]
    expected = [word for chunk in speak(tiny_model(), TEXT, "low") for word in chunk.words]
    assert [w["word"] for w in words] == [w.word for w in expected]
    assert [w["end"] for w in words] == [w.end_s for w in expected]
    usage = done["usage"]
    assert done["type"] == "speech.audio.done"
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == len(spoken()) // 2 // 960  # frames of 40 ms


def test_stream_alone_means_events(server: Running) -> None:
    assert server.post(input=TEXT, stream=True).headers["content-type"].startswith("text/event-stream")
    assert server.post(input=TEXT, stream=True, stream_format="audio").headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.5, 4.0])
def test_speed_changes_the_length(server: Running, speed: float) -> None:
    data = server.post(input=LONG[:300], voice="low", response_format="pcm", speed=speed).content
    plain = server.post(input=LONG[:300], voice="low", response_format="pcm").content
    assert len(data) / len(plain) == pytest.approx(1 / speed, rel=0.05)


def test_a_seed_is_another_rendering_and_the_same_each_time(server: Running) -> None:
    one, two, other = (
        server.post(input=TEXT, voice="low", response_format="pcm", seed=seed).content for seed in (7, 7, 8)
    )
    assert alike(one, two)
    assert not alike(one, other)


def test_the_lexicon_changes_how_its_word_is_read(server: Running) -> None:
    plain, read, written = (
        server.post(voice="low", response_format="pcm", **body).content
        for body in (
            {"input": "The fox is good."},
            {"input": "The Fox is good.", "lexicon": {"fox": "dˈɑɡ"}},
            {"input": "The [Fox](/dˈɑɡ/) is good."},
        )
    )
    assert alike(read, written)
    assert not alike(read, plain)


def test_the_best_of_several_takes() -> None:
    with serving(model=with_phonemes()) as server:
        answer = server.post(input=TEXT, response_format="pcm", best_of=3)
        assert answer.status_code == 200
        assert alike(answer.content, audio.pcm16(said(list(speak(server.service.model, TEXT, best_of=3)))))
        paced = server.post(input=TEXT, response_format="pcm", best_of=3, stream_format="audio")
        assert (paced.status_code, paced.json()["error"]["param"]) == (400, "best_of")


def test_an_engine_that_starts_again_is_told_to_whoever_wants_a_file(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind its first sound, as before it."""
    take = Speaking.__aiter__

    async def fail(speaking: Speaking) -> AsyncIterator[Chunk]:
        async for chunk in take(speaking):
            yield chunk
            raise EngineFailedError("again")

    monkeypatch.setattr(Speaking, "__aiter__", fail)
    answer = server.post(input=TEXT, response_format="wav", stream=False)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("voice", [*OPENAI_VOICES, {"id": "low"}, "high"])
def test_openai_names_are_understood(server: Running, voice: Any) -> None:
    body = {"input": "Good.", "voice": voice, "model": "gpt-4o-mini-tts", "instructions": "Gladly.", "user": "me"}
    assert server.post(**body, response_format="pcm").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": " \n"}, 400, "input"),
        ({"input": "x" * 4097}, 400, "input"),
        ({"input": 5}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": "漢字"}, 400, "input"),
        ({"input": "Good. " * 100 + "漢字"}, 400, "input"),
        ({"input": "Good.", "voice": "../../etc/passwd"}, 400, "voice"),
        ({"input": "Good.", "voice": "http://localhost/x.wav"}, 400, "voice"),
        ({"input": "Good.", "voice": {"id": 3}}, 400, None),
        ({"input": "Good.", "voice": "nobody"}, 400, "voice"),
        ({"input": "Good.", "model": "/etc"}, 404, "model"),
        ({"input": "Good.", "ref_audio": "file:///etc/passwd"}, 400, "ref_audio"),
        ({"input": "Good.", "response_format": "midi"}, 400, "response_format"),
        ({"input": "Good.", "stream_format": "ws"}, 400, "stream_format"),
        ({"input": "Good.", "speed": 0.2}, 400, "speed"),
        ({"input": "Good.", "speed": 4.1}, 400, "speed"),
        ({"input": "Good.", "speed": "fast"}, 400, "speed"),
        ({"input": "Good.", "seed": 2**63}, 400, "seed"),
        ({"input": "Good.", "seed": 1.5}, 400, "seed"),
        ({"input": "Good.", "lexicon": {"fox": "§§"}}, 400, "lexicon"),
        ({"input": "Good.", "best_of": 0}, 400, "best_of"),
        ({"input": "Good.", "best_of": 9}, 400, "best_of"),
        ({"input": "Good.", "best_of": 2}, 400, "best_of"),  # this codec tells no phonemes
        ({"input": "Good.", "best_of": 2, "stream_format": "sse"}, 400, "best_of"),
        ({"input": "Good.", "lexicon": {f"w{i}": "dˈɑɡ" for i in range(300)}}, 400, "lexicon"),
        ({"input": "Good.", "instructions": "x" * 4097}, 400, "instructions"),
    ],
)
def test_what_cannot_be_spoken_is_refused_in_one_sentence(
    server: Running, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = server.post(**body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"].split(".")[0] == param
    assert "\n" not in error["message"]
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"input": "a b", "speed": NaN}', "application/json", 400),
        (b'{"input": "\\ud800 a"}', "application/json", 400),
        (b'{"input": "\xff"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"x":' * 40 + b"1" + b"}" * 40, "application/json", 400),
        (b'{"input": "Good."}', "text/plain", 415),
        (b'{"input": "Good."}', None, 415),
        (b"x" * (2**20 + 1), "application/json", 413),
        (b"", "application/json", 400),
    ],
)
def test_bodies_that_are_no_json_are_refused(server: Running, content: bytes, kind: str | None, status: int) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = server.http.post("/v1/audio/speech", content=content, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_a_length_is_cut_off_too(server: Running) -> None:
    def parts() -> Any:
        for _ in range(20):
            yield b"x" * 2**16

    headers = {"content-type": "application/json"}
    assert server.http.post("/v1/audio/speech", content=parts(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/audio/speech", 405), ("GET", "/v1/nothing", 404), ("GET", "/nothing", 404), ("GET", "/docs", 404)],
)
def test_the_routers_own_refusals_have_the_shape_too(server: Running, method: str, path: str, status: int) -> None:
    answer = server.http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_batch_fails_item_by_item(server: Running) -> None:
    items = [{"input": TEXT, "voice": "low"}, {"input": ""}, {"input": 5}, {"input": TEXT, "voice": "nobody"}]
    answer = server.post("/v1/audio/speech/batch", items=items, response_format="wav").json()
    assert [r["status"] for r in answer["results"]] == ["success", "error", "error", "error"]
    assert [r["index"] for r in answer["results"]] == [0, 1, 2, 3]
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (4, 1, 3)
    assert alike(base64.b64decode(answer["results"][0]["audio_data"])[44:], spoken())
    assert answer["results"][0]["media_type"] == "audio/wav"
    assert set(answer["results"][1]["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("items", [[], [{"input": "Good."}] * 33, "x", [5]])
def test_a_batch_of_the_wrong_shape_is_refused(server: Running, items: Any) -> None:
    assert server.post("/v1/audio/speech/batch", items=items).status_code == 400


def test_lists(server: Running) -> None:
    voices = server.http.get("/v1/audio/voices").json()["voices"]
    assert [voice["id"] for voice in voices] == ["low", "high", *OPENAI_VOICES]
    assert all(isinstance(voice["name"], str) for voice in voices)
    models = server.http.get("/v1/models").json()
    assert models["object"] == "list"
    names = ["tiny", "tts-1", "tts-1-hd", "gpt-4o-mini-tts", "fake", *OPENAI_LISTENERS]
    assert [model["id"] for model in models["data"]] == names
    assert {"id": "tiny", "name": "tiny"} in server.http.get("/v1/audio/models").json()["models"]
    assert server.http.get("/v1/models/tts-1").json()["id"] == "tts-1"
    assert server.http.get("/v1/models/none").json()["error"]["code"] == "model_not_found"
    assert server.http.get("/v1/").status_code == 200


def test_sound_is_not_louder_or_other_in_a_lossy_format(server: Running) -> None:
    data = server.post(input=LONG[:200], voice="low", response_format="opus").content
    with av.open(io.BytesIO(data)) as file:
        made = np.concatenate([f.to_ndarray().mean(0) for f in file.decode(audio=0)])
    reference = np.frombuffer(spoken(LONG[:200]), "<i2") / 32768
    assert np.sqrt((made**2).mean()) == pytest.approx(np.sqrt((reference**2).mean()), rel=0.25)


def test_aliases_are_the_operators() -> None:
    names = Names("tiny", ["low", "high"], Settings(voice_aliases={"alloy": "high", "high": "low"}))
    assert names.voice("alloy") == names.voice("high") == "high"  # a voice's own name stays its own
    with pytest.raises(ValueError, match="did you mean 'high'"):
        Names("tiny", ["low", "high"], Settings(voice_aliases={"alloy": "hihg"}))


def test_the_schema_can_be_shown() -> None:
    paths = create_app(tiny_model(), Settings(docs=True)).openapi()["paths"]
    assert {"/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices", "/v1/models"} <= paths.keys()
    assert "requestBody" in paths["/v1/audio/speech"]["post"]
