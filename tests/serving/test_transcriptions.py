"""``POST /v1/audio/transcriptions``: OpenAI's shapes, by OpenAI's SDK, over a recogniser that hears what it is told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from speech_mtp.frontends.base import NO_HINT, Hint, Segment, Transcript
from speech_mtp.serving import transcripts
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.settings import Settings
from tests.serving.hearing import FakeRecogniser, recording, spoiled, tone
from tests.serving.running import TEXT, Running, serving, until
from tests.tiny import tiny_model

PATH = "/v1/audio/transcriptions"
SAID = ("Well, the fox jumps.", "It is 1 --> 2.")
WHOLE = "Well, the fox jumps. It is 1 --> 2."
SOUND = ("a.wav", recording(1.5))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(recogniser=FakeRecogniser(*SAID)) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def ears(server: Running) -> FakeRecogniser:
    found = server.service.recogniser
    assert isinstance(found, FakeRecogniser)
    return found


def post(server: Running, **fields: Any) -> httpx2.Response:
    return server.http.post(PATH, files={"file": SOUND}, data=fields)


# -- OpenAI's SDK, as it is -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "fake"])
def test_json(client: openai.OpenAI, model: str) -> None:
    heard = client.audio.transcriptions.create(model=model, file=SOUND)
    assert heard.text == WHOLE
    assert heard.usage is not None
    assert (heard.usage.type, getattr(heard.usage, "seconds", None)) == ("duration", 1.5)


def test_text_and_subtitles(client: openai.OpenAI) -> None:
    create = client.audio.transcriptions.create
    assert create(model="whisper-1", file=SOUND, response_format="text") == f"{WHOLE}\n"
    assert create(model="whisper-1", file=SOUND, response_format="srt") == (
        "1\n00:00:00,000 --> 00:00:01,000\nWell, the fox jumps.\n\n2\n00:00:01,000 --> 00:00:02,000\nIt is 1 -> 2.\n\n"
    )
    assert create(model="whisper-1", file=SOUND, response_format="vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nWell, the fox jumps.\n\n"
        "00:00:01.000 --> 00:00:02.000\nIt is 1 -> 2.\n\n"
    )


def test_hours_are_written_out() -> None:
    late = Transcript("x", "en", 4000, (Segment(" x", 3661.5, 3725.0625, "en"),))
    assert "01:01:01,500 --> 01:02:05,062" in transcripts.as_srt(late)


@pytest.mark.parametrize(
    ("wanted", "segments", "words"), [(None, 2, None), (["word"], None, 9), (["segment", "word"], 2, 9)]
)
def test_verbose(client: openai.OpenAI, wanted: Any, segments: int | None, words: int | None) -> None:
    more = {} if wanted is None else {"timestamp_granularities": wanted}
    heard = client.audio.transcriptions.create(
        model="whisper-1", file=SOUND, response_format="verbose_json", language="en", **more
    )
    assert (heard.text, heard.language, heard.duration) == (WHOLE, "en", 1.5)
    assert (heard.segments and len(heard.segments)) == segments
    assert (heard.words and len(heard.words)) == words
    if heard.segments:
        assert [(s.id, s.start, s.text) for s in heard.segments] == [(0, 0, f" {SAID[0]}"), (1, 1, f" {SAID[1]}")]
    if heard.words:
        assert (heard.words[1].word, heard.words[1].start) == ("the", 0.1)


def test_events(client: openai.OpenAI) -> None:
    *deltas, last = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND, stream=True)
    assert [event.type for event in deltas] == ["transcript.text.delta"] * 2
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == WHOLE
    assert last.type == "transcript.text.done"
    assert last.text == WHOLE
    assert last.usage is not None
    assert (last.usage.input_tokens, last.usage.total_tokens) == (15, 15)


def test_events_are_framed_as_openai_frames_them(server: Running) -> None:
    with server.http.stream("POST", PATH, files={"file": SOUND}, data={"stream": "true"}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line[6:])["type"] for line in lines[:-1]][-1] == "transcript.text.done"


def test_a_delta_comes_before_the_recording_has_ended() -> None:
    hearing = FakeRecogniser(*SAID, held_after=1)
    request = {"files": {"file": SOUND}, "data": {"stream": "true"}}
    with serving(recogniser=hearing) as server, server.http.stream("POST", PATH, **request) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert json.loads(next(lines)[6:]) == {"type": "transcript.text.delta", "delta": SAID[0]}
        assert hearing.segments_given == 1
        hearing.go.set()
        assert json.loads(next(lines)[6:]) == {"type": "transcript.text.delta", "delta": f" {SAID[1]}"}


def test_what_is_told_of_the_recording_reaches_the_recogniser(client: openai.OpenAI, server: Running) -> None:
    client.audio.transcriptions.create(
        model="whisper-1",
        file=SOUND,
        language="en-GB",
        prompt="A fox,",
        temperature=0.5,
        response_format="verbose_json",
        timestamp_granularities=["word"],
        extra_body={"chunking_strategy": "auto", "unknown": "x"},
    )
    assert ears(server).hint == Hint("en", "A fox,", True, 0.5)
    assert ears(server).heard_s == pytest.approx(1.5, abs=0.01)
    assert ears(server).thread.startswith("ears"), "neither the loop nor the engine is held up"


def test_empty_fields_are_none(server: Running) -> None:
    answer = post(server, model="", language="", prompt="", stream="")
    assert answer.json()["text"] == WHOLE
    assert ears(server).hint == Hint()


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_kinds_of_files(server: Running, kind: str) -> None:
    answer = server.http.post(PATH, files={"file": (f"x.{kind}", recording(2.0, kind))})
    assert answer.json()["text"] == WHOLE
    assert ears(server).heard_s == pytest.approx(2.0, abs=0.06)


def test_it_is_counted(server: Running) -> None:
    before, before_s = (server.metric(f"speech_mtp_{name}_total") for name in ("recordings", "heard_seconds"))
    assert post(server).status_code == 200
    assert server.http.post(PATH, files={"file": ("a.wav", b"noise")}).status_code == 400
    assert server.metric("speech_mtp_recordings_total") == before + 2
    assert server.metric("speech_mtp_heard_seconds_total") == pytest.approx(before_s + 1.5)


def test_it_is_listed(client: openai.OpenAI) -> None:
    assert {"fake", "whisper-1", "gpt-4o-transcribe"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("whisper-1").id == "whisper-1"


# -- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "tts-1"}, 404, "model"),
        ({"model": "../x"}, 404, "model"),
        ({"language": "de"}, 400, "language"),
        ({"language": "english, please"}, 400, "language"),
        ({"language": "e" * 10_000}, 400, "language"),
        ({"response_format": "xml"}, 400, "response_format"),
        ({"temperature": "2"}, 400, "temperature"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"stream": "maybe"}, 400, "stream"),
        ({"stream": "true", "response_format": "srt"}, 400, None),
        ({"timestamp_granularities[]": "word"}, 400, None),
        ({"timestamp_granularities[]": "hour", "response_format": "verbose_json"}, 400, "timestamp_granularities[].0"),
        (
            {"timestamp_granularities[]": ["word"] * 9, "response_format": "verbose_json"},
            400,
            "timestamp_granularities[]",
        ),
        ({"prompt": "x" * 5_000}, 400, "prompt"),
        ({"prompt": "x" * 70_000}, 400, None),
        ({"prompt": "a\0b"}, 400, "prompt"),
        ({f"field{i}": "x" for i in range(100)}, 400, None),
    ],
)
def test_fields_that_are_wrong(server: Running, fields: dict[str, Any], status: int, param: str | None) -> None:
    answer = post(server, **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"].endswith(".")


@pytest.mark.parametrize("sound", [b"", b"noise", b"http://127.0.0.1/x.wav", recording(0.5)[:30]])
def test_files_that_are_wrong(server: Running, sound: bytes) -> None:
    answer = server.http.post(PATH, files={"file": ("../../etc/passwd\0.wav", sound)})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "file"


def test_too_much(server: Running) -> None:
    huge = server.http.post(PATH, files={"file": ("a.wav", b"\0" * (26 * 2**20))})
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "request_too_large")
    with serving(Settings(max_recording_s=1.0), recogniser=FakeRecogniser("x")) as short:
        long = post(short)
        assert (long.status_code, long.json()["error"]["code"]) == (413, "audio_too_long")
        assert "1 seconds" in long.json()["error"]["message"]


def test_requests_that_are_no_form_with_a_file(server: Running) -> None:
    as_json = server.http.post(PATH, json={"file": "x"})
    assert as_json.status_code == 415
    for request in (
        {"data": {"file": "a text"}, "files": {"other": SOUND}},
        {"files": {"other": SOUND}},
        {"files": [("file", SOUND), ("file", SOUND)]},
        {"content": b"--x\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"x" * 100, "headers": {"content-type": "multipart/form-data"}},
        {"content": b"x" * 100, "headers": {"content-type": "multipart/form-data; boundary=" + "y" * 500}},
        {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x; charset=no-such"}},
    ):
        answer = server.http.post(PATH, **request)
        assert answer.status_code == 400, (request, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_charset_that_makes_half_characters_is_refused(server: Running) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n+2AA-\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + SOUND[1] + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}
    answer = server.http.post(PATH, content=part + file, headers=headers)
    assert answer.status_code in (200, 400), answer.text
    assert ears(server).hint.prompt is None or ears(server).hint.prompt.isprintable()


def test_random_bodies(server: Running) -> None:
    rng = random.Random(7)
    fields = {"model": "whisper-1", "prompt": "é"}
    request = httpx2.Request("POST", server.url + PATH, files={"file": SOUND}, data=fields)
    good, kind = request.read(), request.headers["content-type"]
    statuses = []
    for _ in range(150):
        answer = server.http.post(PATH, content=spoiled(good, rng), headers={"content-type": kind})
        statuses.append(answer.status_code)
        assert answer.status_code in (200, 400, 404), answer.text
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses.count(400) > 20
    assert not server.service.ears.busy


def test_nothing_recognises_speech() -> None:
    with serving() as deaf, openai.OpenAI(base_url=f"{deaf.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match="--asr") as refused:
            client.audio.transcriptions.create(model="whisper-1", file=SOUND)
        assert (refused.value.status_code, refused.value.code) == (501, "no_recogniser")
        assert "whisper-1" not in {model.id for model in client.models.list()}
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("whisper-1")


# -- under load -------------------------------------------------------------------------------------------------------
def test_too_many_are_told_to_come_back_and_a_client_that_leaves_is_not_listened_to() -> None:
    hearing = FakeRecogniser(*SAID, held_after=0)
    with serving(Settings(max_queue=1), recogniser=hearing) as server:

        async def leave() -> None:
            async with httpx2.AsyncClient(base_url=server.url) as client:
                async with asyncio.timeout(0.5):
                    await client.post(PATH, files={"file": SOUND})

        with pytest.raises(TimeoutError):
            asyncio.run(leave())
        assert server.service.ears.busy, "a recording that is being heard cannot be stopped at once"
        waiting = ThreadPoolExecutor(1).submit(post, server)
        until(lambda: server.service.ears.admission.waiting == 1)
        refused = post(server)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        speech = server.post(input=TEXT, voice="low", response_format="pcm")
        assert speech.status_code == 200, "who speaks is not held up"
        hearing.go.set()
        assert waiting.result(20).json()["text"] == WHOLE
        assert hearing.segments_given == 3, "one of the client that left, two of the other"


def test_the_service_lends_its_ears() -> None:
    hearing = FakeRecogniser(*SAID)

    async def ask(service: VoiceService) -> None:
        heard = await service.transcribe(tone(1.0, 24_000), 24_000)
        assert (heard.text, heard.language, heard.duration_s) == (WHOLE, "en", 1.0)
        assert [segment.text.strip() for segment in heard.segments] == list(SAID)
        with pytest.raises(ValueError, match="language"):
            await service.transcribe(np.zeros(100, np.float32), 16_000, Hint(language="de"))
        service.ears.close()

    async def ask_the_deaf(service: VoiceService) -> None:
        with pytest.raises(ApiError) as refused:
            await service.transcribe(tone(1.0), 24_000)
        assert refused.value.status_code == 501

    asyncio.run(ask(VoiceService(tiny_model(), Settings(), recogniser=hearing)))
    asyncio.run(ask_the_deaf(VoiceService(tiny_model(), Settings())))


def test_a_server_that_ends_does_not_wait_for_the_whole_recording() -> None:
    hearing = FakeRecogniser(*SAID, "x", "y", held_after=1)
    with serving(Settings(drain_s=0.1), recogniser=hearing) as server:
        asked = ThreadPoolExecutor(1).submit(post, server)
        until(lambda: hearing.segments_given == 1)
        server.server.handle_exit(2, None)
        answer = asked.result(20)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        hearing.go.set()
        until(lambda: not server.service.ears.busy)
        assert server.metric("speech_mtp_recordings_total") == 1
    assert hearing.segments_given == 2, "the one that was being heard, and no more"
    assert not server.service.listening


def test_a_recogniser_that_fails_is_a_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeRecogniser):
        def segments(self, wave: Any, hint: Hint = NO_HINT) -> Iterator[Segment]:
            raise RuntimeError("what was said")
            yield

    with serving(recogniser=Broken()) as server:
        answer = post(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert post(server).status_code == 500, "the worker lives on"
    assert "what was said" not in caplog.text


def test_it_is_loaded_before_the_first_recording() -> None:
    recogniser = FakeRecogniser("Hello.")
    with serving(recogniser=recogniser):
        until(lambda: recogniser.is_warm)
