"""Chat completions: OpenAI's shapes, both answers the same, what is refused, and manners."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import soundfile

from speech_mtp.decoding import catalogue
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.chat import Chat
from speech_mtp.streaming.endpoint import Endpoint
from tests.serving.chatting import HELLO, LM, PATH, chatting, events
from tests.serving.hearing import FakeRecogniser, recording
from tests.serving.running import Running, serving, until
from tests.serving.test_speech import alike, spoken
from tests.streaming.fake_endpoint import Script, endpoint

KEY = "a-key-of-the-tests"
OTHER_KEY = "another-key-of-the-tests"
AUDIO: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "low", "format": "pcm16"}}
ANSWER = ["The quick brown ", "fox jumps over 3 ", "lazy dogs, and **it** is good."]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with chatting(Settings(keys=(KEY, OTHER_KEY))) as running:
        running.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


def plain(tokens: int) -> str:
    return "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=tokens).ask("Hello there!"))


def ask(server: Running, **body: Any) -> Any:
    return server.post(PATH, **{"messages": HELLO, "max_tokens": 20, **body})


# -- OpenAI's SDK, as it is -------------------------------------------------------------------------------------------
def test_a_whole_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-chat", messages=HELLO, max_completion_tokens=20)  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert choice.message.content == plain(20)
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "length", 0)
    assert (answer.object, answer.model) == ("chat.completion", "tiny-chat")
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 20
    assert usage.total_tokens == usage.prompt_tokens + 20
    details = usage.completion_tokens_details
    assert details is not None
    assert details.audio_tokens == 0
    assert answer.model_extra is not None
    drafting = answer.model_extra["metrics"]["speculative_decoding"]
    assert drafting["num_accepted_draft_tokens"] == details.accepted_prediction_tokens > 0
    assert drafting["mean_acceptance_length"] == pytest.approx(20 / drafting["num_spec_steps"], abs=1e-4)
    assert sum(drafting["acceptance_histogram"].values()) == drafting["num_spec_steps"]
    assert answer.model_extra["metrics"]["time_to_first_audio_ms"] is None


def test_a_streamed_text(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    chunks = list(
        create(
            model="gpt-4o-audio-preview",
            messages=HELLO,  # type: ignore[arg-type]
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *said, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == plain(20)
    assert said[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * (len(said) - 1) + ["length"]
    assert len(said) > 6
    assert (usage.choices, usage.usage and usage.usage.completion_tokens) == ([], 20)
    assert all(chunk.usage is None for chunk in said)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    without = list(create(model="tiny-chat", messages=HELLO, max_tokens=20, stream=True))  # type: ignore[arg-type]
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_a_streamed_answer_with_its_sound(client: openai.OpenAI, server: Running) -> None:
    chunks = list(
        client.chat.completions.create(
            model="gpt-audio",
            messages=HELLO,  # type: ignore[arg-type]
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            modalities=["text", "audio"],
            audio={"voice": "low", "format": "pcm16"},
        )
    )
    audio = [chunk.choices[0].delta.audio for chunk in chunks[:-1] if chunk.choices[0].delta.audio]
    text = "".join(one.transcript or "" for one in audio)
    sound = b"".join(base64.b64decode(one.data or "") for one in audio)
    assert text == plain(40)
    assert alike(sound, spoken(text))
    assert audio[0].id is not None
    assert audio[0].model_dump(exclude_none=True).keys() == {"id"}
    assert audio[-1].model_dump(exclude_none=True).keys() == {"expires_at"}
    assert (audio[-1].expires_at or 0) > time.time()
    assert all(chunk.choices[0].delta.content is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].model_extra is not None
    metrics = chunks[-2].model_extra["metrics"]
    assert 0 < metrics["time_to_first_token_ms"] < metrics["time_to_first_audio_ms"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert (usage.completion_tokens_details.audio_tokens or 0) > 0
    # A later turn refers to it by its id; another client's does not.
    later = [*HELLO, {"role": "assistant", "audio": {"id": audio[0].id}}, {"role": "user", "content": "Good morning."}]
    written = [HELLO[0], {"role": "assistant", "content": text}, later[2]]
    assert ask(server, messages=later).json()["choices"] == ask(server, messages=written).json()["choices"]
    unknown = server.http.post(PATH, json={"messages": later}, headers={"authorization": f"Bearer {OTHER_KEY}"})
    assert unknown.status_code == 400
    assert unknown.json()["error"]["code"] == "audio_not_found"


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "aac", "pcm16"])
def test_a_whole_answer_with_its_sound(client: openai.OpenAI, name: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny-chat",
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=20,
        modalities=["text", "audio"],
        audio={"voice": "low", "format": name},
    )
    message = answer.choices[0].message
    assert message.content is None
    assert message.audio is not None
    assert message.audio.transcript == plain(20)
    data = base64.b64decode(message.audio.data)
    if name == "wav":
        sound, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate == 24000
        data = sound.tobytes()
    if name in ("wav", "pcm16"):
        assert alike(data, spoken(message.audio.transcript))
    else:
        assert len(data) > 500


def test_the_settings_count(server: Running) -> None:
    def said(**body: Any) -> str:
        return str(ask(server, **body).json()["choices"][0]["message"]["content"])

    whole = plain(20)
    stop = whole[4:6]
    stopped = ask(server, stop=[stop, "never said"]).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert said(temperature=0.9, seed=3) == said(temperature=0.9, seed=3) != whole
    assert len({said(temperature=1.5) for _ in range(3)}) > 1
    assert said(temperature=1.5, top_p=0) == said(temperature=1.5, top_p=0.001, seed=1) == whole
    assert said(max_completion_tokens=5, max_tokens=9) == plain(5)
    more = {"tools": [], "logit_bias": {"1": 2}, "user": "x", "store": True, "n": 1, "unknown": {"a": 1}}
    assert said(**more) == whole
    parts = [{"type": "text", "text": "Hello there!"}]
    assert said(messages=[{"role": "user", "content": parts, "name": "x"}]) == whole


def test_roles(server: Running) -> None:
    first, second = (
        ask(server, messages=[{"role": role, "content": "dog"}, *HELLO]).json()["choices"]
        for role in ("system", "developer")
    )
    assert first == second != ask(server).json()["choices"]


def test_a_long_history(server: Running) -> None:
    history = [{"role": "user", "content": "Hello there! " * 20}, {"role": "assistant", "content": "Good."}] * 9
    answer = ask(server, messages=[*history, *HELLO])
    dropped = answer.json()["metrics"]["dropped_messages"]
    assert 0 < dropped < 18
    assert answer.headers["x-speech-mtp-dropped-messages"] == str(dropped)
    streamed = ask(server, messages=[*history, *HELLO], stream=True)
    assert streamed.headers["x-speech-mtp-dropped-messages"] == str(dropped)
    assert events(streamed.text)[-1]["metrics"]["dropped_messages"] == dropped


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"messages": []}, "messages", None),
        ({"messages": "Hello"}, "messages", None),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content", None),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0", None),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages", None),
        ({"messages": [{"role": "user", "content": "dog " * 900}]}, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0",
            "no_recogniser",
        ),
        ({"n": 2}, "n", None),
        ({"n": 0}, "n", None),
        ({"temperature": 2.1}, "temperature", None),
        ({"top_p": -1}, "top_p", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"stop": [""]}, "stop", None),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", None),
        ({"model": "gpt-5"}, "model", "model_not_found"),
        ({"modalities": ["video"]}, "modalities.0", None),
        ({"modalities": ["text", "audio"]}, None, None),
        ({**AUDIO, "audio": {"voice": "nobody", "format": "wav"}}, "voice", "voice_not_found"),
        ({**AUDIO, "audio": {"voice": "low", "format": "ogg"}}, "audio.format", None),
        ({**AUDIO, "audio": {"voice": "low", "format": "mp3"}, "stream": True}, None, None),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], param: str | None, code: str | None) -> None:
    answer = ask(server, **body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400), error
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["param"] == param or error["param"].startswith(f"{param}.")
    assert error["message"].endswith(".")


def test_nothing_answers() -> None:
    with serving() as server:
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_model")
        assert "--llm" in answer.json()["error"]["message"]


def test_a_recording_is_recognised() -> None:
    def sent(data: str, name: str = "wav") -> list[dict[str, Any]]:
        part = {"type": "input_audio", "input_audio": {"data": data, "format": name}}
        return [{"role": "user", "content": [part]}]

    recogniser = FakeRecogniser("Hello there!")
    with chatting(recogniser=recogniser) as server:
        for kind in ("wav", "mp3"):
            good = base64.b64encode(recording(1.5, kind)).decode()
            assert ask(server, messages=sent(good, kind)).json()["choices"] == ask(server).json()["choices"]
            assert recogniser.heard_s == pytest.approx(1.5, abs=0.1)
        noise = base64.b64encode(b"noise").decode()
        for messages in (sent("%%"), sent(good, "ogg"), sent(noise), sent("é"), sent("")):
            answer = ask(server, messages=messages)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("messages.0.content.0.input_audio")


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"tiny", "tts-1", "tiny-chat", "gpt-audio"} <= set(names)
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"


# -- an endpoint ------------------------------------------------------------------------------------------------------
def test_an_endpoint_is_voiced_before_it_has_ended() -> None:
    heard = threading.Event()
    pieces = ["The quick brown fox jumps over the lazy dog and the other fox. It is", " good."]
    with (
        endpoint(Script(pieces, before=lambda i: None if i == 0 else _await(heard))) as script,
        serving(author=Endpoint(script.url, "theirs")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        text, sound = "", b""
        for chunk in client.chat.completions.create(
            model="theirs",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
            modalities=["text", "audio"],
            audio={"voice": "low", "format": "pcm16"},
        ):
            audio = chunk.choices[0].delta.audio
            text += (audio and audio.transcript) or ""
            sound += base64.b64decode((audio and audio.data) or "")
            if sound:
                heard.set()
        assert text == "".join(pieces)
        assert alike(sound, spoken(text))
        usage = ask(server).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 7)


def _await(event: threading.Event) -> None:
    assert event.wait(20), "no sound came before the text had ended"


def test_an_endpoint_that_fails() -> None:
    with endpoint(Script(["Hello."], status=500)) as script, serving(author=Endpoint(script.url, "theirs")) as server:
        for stream in (False, True):
            answer = ask(server, stream=stream)
            assert (answer.status_code, answer.json()["error"]["type"]) == (502, "server_error")
            assert "500" in answer.json()["error"]["message"]
        script.status, script.breaks = 200, True
        for more in ({}, AUDIO):
            assert ask(server, **more).status_code == 502
            streamed = ask(server, **more, stream=True)
            assert "broke off" in streamed.text.rpartition("data: ")[2]
            assert "[DONE]" not in streamed.text
        script.breaks = False
        assert ask(server, **AUDIO).status_code == 200
        assert server.service.chats.taken == server.service.admission.taken == 0


def test_what_cannot_be_spoken_is_written_to_its_end() -> None:
    pieces = ["Это не английский текст, ", "и он продолжается ", "до самого конца."]
    with endpoint(Script(pieces)) as script, serving(author=Endpoint(script.url, "theirs")) as server:
        whole = ask(server, **AUDIO)
        assert (whole.status_code, whole.json()["error"]["code"]) == (422, "answer_not_speakable")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            text, chunks = "", client.chat.completions.create(model="theirs", messages=HELLO, stream=True, **AUDIO)  # type: ignore[call-overload]
            while len(text) < len("".join(pieces)):
                audio = next(chunks).choices[0].delta.audio
                text += (audio and audio.transcript) or ""
            with pytest.raises(openai.APIError, match="English"):
                next(chunks)
            assert text == "".join(pieces)
        script.pieces = ["--", "!"]
        silent = ask(server, **AUDIO).json()["choices"][0]["message"]["audio"]
        assert (silent["transcript"], silent["data"]) == ("--!", "")


# -- manners ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def slow(server: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """An engine that is not done before anybody can leave."""
    scheduler = server.service.engine.scheduler
    assert scheduler is not None
    tick = scheduler.tick
    monkeypatch.setattr(scheduler, "tick", lambda: time.sleep(0.01) or tick())
    return server


@pytest.mark.parametrize("more", [{}, AUDIO])
def test_a_client_that_leaves_stops_the_work(slow: Running, more: dict[str, Any]) -> None:
    server = slow
    body = {"messages": HELLO, "max_tokens": 250, "stream": True, **more}
    scheduler = server.service.engine.scheduler
    assert scheduler is not None
    assert scheduler.writer is not None
    with server.http.stream("POST", PATH, json=body) as answer:
        parts = answer.iter_raw()  # kept: a client that drops it has left
        next(parts)
        assert server.service.chats.taken == 1
    until(lambda: server.service.chats.taken == 0)
    until(lambda: not scheduler.streams and not scheduler.writer._placed)  # type: ignore[union-attr]
    time.sleep(0.1)  # the tick that let it go is counted at its end
    steps = server.service.engine.steps
    time.sleep(0.3)
    assert server.service.engine.steps == steps


def test_a_client_that_leaves_before_a_whole_answer_stops_the_work(slow: Running) -> None:
    server = slow
    with pytest.raises(httpx2.ReadTimeout):
        server.http.post(PATH, json={"messages": HELLO, "max_tokens": 250, **AUDIO}, timeout=0.3)
    until(lambda: server.service.chats.taken == 0, 2)
    assert server.service.admission.taken == 0


def test_too_many_are_told_to_come_back() -> None:
    go_on = threading.Event()
    with (
        endpoint(Script(["Hello ", "there."], before=lambda i: None if i == 0 else _await(go_on))) as script,
        serving(Settings(max_chats=1, max_queue=0), author=Endpoint(script.url, "theirs")) as server,
    ):
        with server.http.stream("POST", PATH, json={"messages": HELLO, "stream": True}) as answer:
            parts = answer.iter_raw()
            next(parts)
            refused = ask(server)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert "answers are being written" in refused.json()["error"]["message"]
            go_on.set()
            for _ in parts:
                pass
        until(lambda: server.service.chats.taken == 0)
        assert ask(server).status_code == 200
        assert server.metric("speech_mtp_answers_total") == 2


def test_many_at_once_get_what_each_gets_alone(server: Running) -> None:
    bodies = [{"max_tokens": n, "stream": n % 2 == 0, **(AUDIO if n % 3 == 0 else {})} for n in range(9, 17)]
    answers: dict[int, str] = {}

    def one(body: dict[str, Any]) -> None:
        answer = ask(server, **body)
        if body["stream"]:
            deltas = [chunk["choices"][0]["delta"] for chunk in events(answer.text)]
            text = "".join(d.get("content") or d.get("audio", {}).get("transcript", "") for d in deltas)
        else:
            message = answer.json()["choices"][0]["message"]
            text = message["content"] or message["audio"]["transcript"]
        answers[body["max_tokens"]] = text

    threads = [threading.Thread(target=one, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {n: plain(n) for n in range(9, 17)}


def test_the_engine_ends_in_the_middle_of_an_answer() -> None:
    with chatting(Settings(drain_s=0.1)) as server:
        body = {"messages": HELLO, "max_tokens": 250, "stream": True, **AUDIO}
        with server.http.stream("POST", PATH, json=body) as answer:
            parts = answer.iter_text()
            text = next(parts)
            server.server.handle_exit(15, None)
            text += "".join(parts)
        assert "error" in text.rpartition("data: ")[2]
