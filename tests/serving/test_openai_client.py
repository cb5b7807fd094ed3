"""OpenAI's own SDK, as it is."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from speech_mtp.serving.settings import Settings
from tests.serving.running import LONG, TEXT, Running, serving
from tests.serving.test_speech import alike, events, seconds, spoken

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with serving(Settings(keys=(KEY,))) as running:
        yield running


@pytest.fixture
def client(guarded: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_create(client: openai.OpenAI, name: str) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=name)
    expected = len(spoken()) / 2 / 24000
    assert seconds(answer.content, name) == pytest.approx(expected, abs=0.1)


def test_create_streams(client: openai.OpenAI) -> None:
    create = client.audio.speech.with_streaming_response.create
    data, pieces = b"", 0
    with create(model="gpt-4o-mini-tts", voice="low", input=LONG[:300], response_format="pcm") as answer:
        for piece in answer.iter_bytes():
            assert len(piece) % 2 == 0
            data, pieces = data + piece, pieces + 1
    assert pieces > 3
    assert alike(data, spoken(LONG[:300]))


def test_events(client: openai.OpenAI) -> None:
    create = client.audio.speech.create
    answer = create(model="tts-1", voice="alloy", input=TEXT, response_format="mp3", stream_format="sse")
    assert events(answer.content.decode())[-1]["type"] == "speech.audio.done"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tts-1", "tts-1-hd", "gpt-4o-mini-tts"]
    assert client.models.retrieve("tts-1").owned_by == "speech_mtp"


def test_errors_are_the_sdks_own(client: openai.OpenAI, guarded: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="empty") as refused:
        client.audio.speech.create(model="tts-1", voice="alloy", input="")
    assert refused.value.param == "input"
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.speech.create(model="other", voice="alloy", input=TEXT)
    assert missing.value.code == "model_not_found"
    stranger = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused_key:
        stranger.models.list()
    assert refused_key.value.code == "invalid_api_key"


def test_the_sdk_waits_as_it_is_told() -> None:
    with serving(Settings(max_streams=1, max_queue=0)) as server:
        with server.http.stream(
            "POST", "/v1/audio/speech", json={"input": LONG[:900], "stream_format": "audio"}
        ) as one:
            parts = one.iter_raw()
            next(parts)
            with pytest.raises(openai.RateLimitError) as refused:
                openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).audio.speech.create(
                    model="tts-1", voice="alloy", input=TEXT
                )
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
        assert patient.audio.speech.create(model="tts-1", voice="low", input=TEXT, response_format="pcm").content


@pytest.mark.anyio
async def test_the_asynchronous_client(guarded: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        create = client.audio.speech.with_streaming_response.create
        async with create(model="tts-1", voice="low", input=TEXT, response_format="pcm") as answer:
            assert alike(b"".join([piece async for piece in answer.iter_bytes()]), spoken())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
