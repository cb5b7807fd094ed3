"""The realtime socket: order and fields of its events, turns, interruptions, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speech_mtp.decoding import catalogue
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime.hearing import Hearing
from speech_mtp.serving.realtime.response import Asked
from speech_mtp.serving.realtime.session import Session
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.chat import Chat
from tests.serving.chatting import LM, chatting
from tests.serving.hearing import FakeRecogniser, tone
from tests.serving.running import Running, serving, until
from tests.serving.talking import RATE, Loudness, Talk, pcm, speech, talking

HEARD = "Hello there!"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
        with chatting(recogniser=FakeRecogniser(HEARD)) as running:
            yield running


@pytest.fixture
def talk(server: Running) -> Iterator[Talk]:
    with talking(server) as one:
        assert one.next()["type"] == "session.created"
        yield one


def test_a_written_question_is_answered_in_sound(talk: Talk) -> None:
    talk.update(max_output_tokens=20)
    item = talk.say("Hello there!")
    assert item["content"] == [{"type": "input_text", "text": "Hello there!"}]
    begin = len(talk.told)
    talk.send("response.create", response={"metadata": {"client_event_id": "mine"}})
    done = talk.until("response.done")["response"]
    assert talk.kinds(begin)[:4] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert talk.kinds(begin)[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    created = talk.of("response.created")[0]["response"]
    assert created["metadata"] == {"client_event_id": "mine"} == done["metadata"]
    assert (created["status"], done["status"]) == ("in_progress", "incomplete")  # 20 tokens were all it might write
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    said = "".join(event["delta"] for event in talk.of("response.output_audio_transcript.delta"))
    assert said == "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=20).ask("Hello there!"))
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": said}]
    frames = done["usage"]["output_token_details"]["audio_tokens"]
    assert len(talk.sound()) == frames * 960 * 2


def test_a_spoken_turn_is_heard_and_answered(talk: Talk) -> None:
    talk.update(max_output_tokens=12, audio={"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}})
    begin = len(talk.told)
    talk.send("input_audio_buffer.append", audio=speech())
    done = talk.until("response.done")["response"]
    assert talk.kinds(begin)[:8] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
    ]
    started, stopped = talk.told[begin], talk.told[begin + 1]
    assert started["audio_start_ms"] == 0
    assert 1450 <= stopped["audio_end_ms"] <= 1600  # a second of speech, half a second of silence
    item = talk.told[begin + 3]["item"]
    assert item["id"] == started["item_id"] == stopped["item_id"]
    assert item["content"] == [{"type": "input_audio", "transcript": None}]
    transcribed = talk.of("conversation.item.input_audio_transcription.completed")[0]
    assert transcribed["transcript"] == HEARD
    assert transcribed["usage"]["type"] == "duration"
    plain = "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=12).ask(HEARD))
    assert done["output"][0]["content"][0]["transcript"] == plain
    talk.send("conversation.item.retrieve", item_id=item["id"])
    retrieved = talk.until("conversation.item.retrieved")["item"]
    assert retrieved["content"] == [{"type": "input_audio", "transcript": HEARD}]


def test_a_click_is_no_turn_and_noise_without_words_is_not_answered(server: Running) -> None:
    recogniser = server.service.recogniser
    assert isinstance(recogniser, FakeRecogniser)
    with talking(server) as talk:
        talk.send("input_audio_buffer.append", audio=speech(0.09, 1.0))
        talk.say("Still here?")
        assert "input_audio_buffer.speech_started" not in talk.kinds()
        said, recogniser.said = recogniser.said, ()
        try:
            talk.send("input_audio_buffer.append", audio=speech())
            talk.until("conversation.item.done")
            talk.say("And here?")
            time.sleep(0.2)
            talk.say("And now?")
        finally:
            recogniser.said = said
        assert "response.created" not in talk.kinds()


def slowed(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is not done before anybody can interrupt."""
    scheduler = server.service.engine.scheduler
    assert scheduler is not None
    tick = scheduler.tick
    monkeypatch.setattr(scheduler, "tick", lambda: time.sleep(0.002) or tick())


def test_an_interruption_ends_the_answer_and_the_compute(
    server: Running, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(server, monkeypatch)
    talk.say("Tell me something long.")
    talk.send("response.create")
    first = talk.until("response.output_audio.delta")
    begin = len(talk.told)
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.0))
    done = talk.until("response.done")["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
    kinds = talk.kinds(begin)
    after = kinds[kinds.index("input_audio_buffer.speech_started") :]
    assert "response.output_audio.delta" not in after[1:]
    until(lambda: not server.service.answering and server.service.admission.taken == 0)
    # What was not sounded is not in the history.
    shown = done["output"][0]["content"][0]["transcript"]
    written = "".join(event["delta"] for event in talk.of("response.output_audio_transcript.delta"))
    assert written.startswith(shown)
    talk.send("conversation.item.truncate", item_id=first["item_id"], content_index=0, audio_end_ms=10**7)
    cut = talk.until("conversation.item.truncated")
    assert cut["audio_end_ms"] == pytest.approx(len(talk.sound()) / 48, abs=1)
    talk.send("conversation.item.truncate", item_id=first["item_id"], content_index=0, audio_end_ms=0)
    talk.until("conversation.item.truncated")
    talk.send("conversation.item.retrieve", item_id=first["item_id"])
    assert talk.until("conversation.item.retrieved")["item"]["content"][0]["transcript"] == ""


def test_without_interruption_speech_is_only_heard(
    server: Running, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(server, monkeypatch)
    turns = {"type": "server_vad", "interrupt_response": False, "create_response": False}
    talk.update(max_output_tokens=30, audio={"input": {"turn_detection": turns}})
    talk.say("Tell me something long.")
    talk.send("response.create")
    talk.until("response.output_audio.delta")
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.8))
    assert talk.until("response.done")["response"]["status"] == "incomplete"
    assert len(talk.of("response.created")) == 1
    assert talk.of("input_audio_buffer.committed")


def test_a_client_cancels_and_asks_again(server: Running, talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(server, monkeypatch)
    talk.say("Tell me something long.")
    talk.send("response.create")
    created = talk.until("response.created")["response"]
    talk.send("response.create", event_id="second")
    refused = talk.refused()
    assert (refused["code"], refused["event_id"]) == ("conversation_already_has_active_response", "second")
    talk.until("response.output_audio.delta")
    talk.send("response.cancel", response_id="resp_other")
    assert talk.refused()["code"] == "response_cancel_not_active"
    talk.send("response.cancel", response_id=created["id"])
    talk.send("response.create", response={"max_output_tokens": 5})
    assert talk.until("response.done")["response"]["status_details"]["reason"] == "client_cancelled"
    assert talk.until("response.done")["response"]["status"] == "incomplete"
    talk.send("response.cancel")
    assert talk.refused()["code"] == "response_cancel_not_active"


def test_out_of_band_answers_stay_out_of_the_conversation(talk: Talk) -> None:
    talk.update(max_output_tokens=8)
    begin = len(talk.told)
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Name it."}]}
    response = {"conversation": "none", "input": [question], "output_modalities": ["text"], "instructions": "Be brief."}
    talk.send("response.create", response=response)
    done = talk.until("response.done")["response"]
    assert done["conversation_id"] is None
    assert done["output"][0]["content"][0]["type"] == "output_text"
    assert "conversation.item.added" not in talk.kinds(begin)
    assert not talk.sound()
    talk.send("response.create")
    failed = talk.until("response.done")["response"]
    assert failed["status_details"]["error"]["code"] == "nothing_to_answer"


def test_items_have_their_places(talk: Talk) -> None:
    talk.say("One.", id="one")
    talk.say("Two.", id="two")
    content = [{"type": "input_text", "text": "Be brief."}]
    talk.send(
        "conversation.item.create",
        previous_item_id="root",
        item={"id": "zero", "type": "message", "role": "system", "content": content},
    )
    assert talk.until("conversation.item.added")["previous_item_id"] is None
    tool = {"id": "call", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    talk.send("conversation.item.create", previous_item_id="one", item=tool)
    added = talk.until("conversation.item.added")
    assert added["previous_item_id"] == "one"
    assert added["item"] == {**tool, "object": "realtime.item", "status": "completed"}
    talk.send("conversation.item.create", item={"id": "one", "type": "message", "role": "user", "content": content})
    assert talk.refused()["code"] == "item_create_duplicate_item_id"
    talk.send("conversation.item.delete", item_id="one")
    assert talk.until("conversation.item.deleted")["item_id"] == "one"
    talk.send("conversation.item.retrieve", item_id="one", event_id="rci_one")
    refused = talk.refused()
    assert (refused["code"], refused["event_id"]) == ("item_retrieve_invalid_item_id", "rci_one")
    talk.send("conversation.item.truncate", item_id="two", content_index=0, audio_end_ms=1)
    assert talk.refused()["code"] == "item_truncate_invalid_item_id"


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma", "audio/pcm"])
def test_turns_by_hand_in_the_formats_of_the_telephone(talk: Talk, kind: str) -> None:
    form = {"type": kind}
    audio = {"input": {"format": form, "turn_detection": None}, "output": {"format": form}}
    session = talk.update(max_output_tokens=10, audio=audio)
    assert session["audio"]["input"]["turn_detection"] is None
    rate, width = (24_000, 2) if kind == "audio/pcm" else (8000, 1)
    assert session["audio"]["input"]["format"]["type"] == kind
    talk.send("input_audio_buffer.commit")
    assert talk.refused()["code"] == "input_audio_buffer_commit_empty"
    data = bytes(range(256)) * (rate * width // 256)
    for begin in range(0, len(data), 333):  # odd pieces, half samples
        talk.send("input_audio_buffer.append", audio=base64.b64encode(data[begin : begin + 333]).decode())
    talk.send("input_audio_buffer.commit")
    assert talk.until("input_audio_buffer.committed")
    talk.send("response.create")
    done = talk.until("response.done")["response"]
    seconds = done["usage"]["output_token_details"]["audio_tokens"] / 25
    assert len(talk.sound()) / rate / width == pytest.approx(seconds, abs=0.02)
    talk.send("input_audio_buffer.append", audio=pcm(tone(0.5)))
    talk.send("input_audio_buffer.clear")
    talk.until("input_audio_buffer.cleared")
    talk.send("input_audio_buffer.commit")
    assert talk.refused()["code"] == "input_audio_buffer_commit_empty"


def test_settings_that_mean_nothing_are_no_error(talk: Talk) -> None:
    session = talk.update(
        output_modalities=["text", "audio"],
        voice="unknown-and-misplaced",
        tracing="auto",
        prompt={"id": "p"},
        temperature="hot",
        max_output_tokens="inf",
        audio={
            "input": {
                "turn_detection": {"type": "semantic_vad", "eagerness": "high", "unheard_of": 1},
                "transcription": {"model": "whisper-9", "language": "en"},
                "noise_reduction": {"type": "near_field"},
            },
            "output": {"voice": {"id": "nobody"}, "speed": 9, "format": {"type": "audio/unknown"}},
        },
        include=["item.input_audio_transcription.logprobs", "speech_mtp.words"],
        tools=[{"type": "function", "name": "f", "parameters": {}}],
        unheard_of={"a": [1]},
    )
    assert session["output_modalities"] == ["audio"]
    assert session["audio"]["input"]["turn_detection"]["type"] == "semantic_vad"
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "nobody",
        "speed": 1.5,
    }
    assert session["include"] == ["speech_mtp.words"]
    assert session["tools"][0]["name"] == "f"
    talk.say("Hello there!")
    talk.send("response.create", response={"max_output_tokens": 5})
    assert talk.until("response.done")["response"]["status"] == "incomplete"
    assert "unheard_of" not in talk.update(instructions="Be brief.")
    talk.send("session.update", session={"type": "transcription"})
    assert talk.refused()["code"] == "invalid_session_type"


@pytest.mark.parametrize(
    "message",
    [
        b"\x00\x01",
        "not json",
        "[]",
        "{}",
        '{"type": 5}',
        '{"type": "session.updated"}',
        '{"type": "session.update"}',
        '{"type": "session.update", "session": 5}',
        '{"type": "session.update", "session": {"type": "realtime", "instructions": 5}}',
        '{"type": "input_audio_buffer.append"}',
        '{"type": "input_audio_buffer.append", "audio": "%%%"}',
        '{"type": "input_audio_buffer.append", "audio": NaN}',
        '{"type": "conversation.item.create"}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": "text"}}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "robot", "content": []}}',
        '{"type": "conversation.item.create", "item": {"type": "mcp_call"}}',
        '{"type": "conversation.item.create", "previous_item_id": "none", "item": '
        '{"type": "message", "role": "user", "content": []}}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": '
        '[{"type": "input_image", "image_url": "http://127.0.0.1/"}]}}',
        '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": '
        '[{"type": "input_text", "text": "\\ud800"}]}}',
        '{"type": "conversation.item.delete", "item_id": {"a": 1}}',
        '{"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": -1}',
        '{"type": "response.create", "response": []}',
        '{"type": "response.create", "response": {"input": [5]}}',
        '{"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "x"}]}}',
        '{"type": "output_audio_buffer.clear"}',
        '{"a":' * 500 + "1" + "}" * 500,
    ],
)
def test_what_is_no_event_is_told_and_the_session_goes_on(talk: Talk, message: str | bytes) -> None:
    talk.socket.send(message)
    error = talk.refused()
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")
    assert set(error) == {"type", "code", "message", "param", "event_id"}
    talk.say("Still here?")


def test_words_drafts_and_figures_for_those_who_ask(talk: Talk) -> None:
    names = ["speech_mtp.words", "speech_mtp.drafting", "speech_mtp.figures"]
    talk.update(max_output_tokens=40, include=names)
    talk.say("Hello there!")
    talk.send("response.create")
    done = talk.until("response.done")["response"]
    said = done["output"][0]["content"][0]["transcript"]
    words = [word for event in talk.of("speech_mtp.words") for word in event["words"]]
    assert words == sorted(words, key=lambda word: word["start_ms"])
    placed = [word for word in words if word["start_char"] is not None]
    assert placed
    for word in placed:
        assert said[word["start_char"] : word["end_char"]].lower() in word["text"].lower()
    steps = [step for event in talk.of("speech_mtp.drafting") for step in event["steps"]]
    tokens = [token for step in steps for token in step["tokens"]]
    assert "".join(token["text"] for token in tokens) == said
    assert any(token["drafted"] for token in tokens)
    assert all(not step["tokens"][-1]["drafted"] for step in steps)
    figures = talk.of("speech_mtp.figures")[-1]
    assert (figures["tokens"], figures["forwards"]) == (40, len(steps))
    assert figures["tokens_per_forward"] == pytest.approx(40 / len(steps), abs=1e-3)
    assert figures["first_audio_ms"] > 0
    assert figures["dropped_messages"] == 0
    # The same answer without drafts, a token a forward.
    talk.update(speech_mtp={"drafting": False})
    talk.send("conversation.item.delete", item_id=done["output"][0]["id"])
    begin = len(talk.told)
    talk.send("response.create")
    assert talk.until("response.done")["response"]["output"][0]["content"][0]["transcript"] == said
    figures = [event for event in talk.told[begin:] if event["type"] == "speech_mtp.figures"][-1]
    assert (figures["tokens"], figures["forwards"], figures["drafting"]) == (40, 40, False)


def test_a_long_silence_is_told_once(talk: Talk) -> None:
    turns = {"type": "server_vad", "idle_timeout_ms": 1000}
    talk.update(max_output_tokens=5, audio={"input": {"turn_detection": turns}})
    talk.say("Hello there!")
    silence = pcm(np.zeros(RATE // 2, np.float32))
    for _ in range(8):
        talk.send("input_audio_buffer.append", audio=silence)
    told = talk.until("input_audio_buffer.timeout_triggered")
    assert told["audio_end_ms"] - told["audio_start_ms"] >= 1000
    talk.until("response.done")
    talk.say("Still here.")
    assert len(talk.of("input_audio_buffer.timeout_triggered")) == 1


# -- who may come in ------------------------------------------------------------------------------------------------
def test_a_model_that_is_not_there(server: Running) -> None:
    for model in ("tiny-chat", "gpt-realtime", "gpt-4o-realtime-preview", "tts-1"):
        with talking(server, f"?model={model}") as talk:
            assert talk.next()["session"]["model"] == "tiny-chat"
    with talking(server, "?model=other") as talk:
        assert talk.next()["error"]["code"] == "model_not_found"
        with pytest.raises(ConnectionClosed) as closed:
            talk.next()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


KEY = "a-key-of-the-realtime-tests"


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(Settings(keys=(KEY,), max_sessions=2)) as running:
        yield running


def issue(server: Running, **body: Any) -> Any:
    return server.http.post("/v1/realtime/client_secrets", json=body, headers={"authorization": f"Bearer {KEY}"})


def test_a_secret_opens_a_session_and_nothing_else(locked: Running) -> None:
    session = {"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "low"}}}
    answer = issue(locked, session=session, expires_after={"anchor": "created_at", "seconds": 60}).json()
    secret = answer["value"]
    assert secret.startswith("ek_")
    assert 0 < answer["expires_at"] - time.time() <= 60
    assert answer["session"]["instructions"] == "Be brief."
    with talking(locked, additional_headers={"Authorization": f"Bearer {secret}"}) as talk:
        created = talk.next()["session"]
        assert (created["instructions"], created["audio"]["output"]["voice"]) == ("Be brief.", "low")
    protocols = ["realtime", f"openai-insecure-api-key.{secret}", "openai-agents-sdk.0.20.0"]
    with talking(locked, subprotocols=protocols) as talk:
        assert talk.socket.subprotocol == "realtime"
        assert talk.next()["type"] == "session.created"
    for path in ("/v1/models", "/v1/audio/voices"):
        assert locked.http.get(path, headers={"authorization": f"Bearer {secret}"}).status_code == 401
    assert locked.http.post("/v1/realtime/client_secrets", json={}).status_code == 401


def test_false_and_old_secrets_open_nothing(locked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = issue(locked).json()["value"]
    for wrong in (secret[:-3] + "AAA", "ek_", "ek_x", "ek_" + "A" * 80, secret[3:], "", "ek_ü"):
        with (
            pytest.raises(InvalidStatus) as refused,
            talking(locked, additional_headers={"Authorization": f"Bearer {wrong}".encode().decode("latin-1")}),
        ):
            pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"{}")["error"]["code"] == "invalid_api_key"
    later = time.time() + 700
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(InvalidStatus), talking(locked, additional_headers={"Authorization": f"Bearer {secret}"}):
        pass
    assert issue(locked, expires_after={"seconds": 9}).status_code == 400
    assert issue(locked, session={"instructions": "x" * 5000}).json()["error"]["code"] == "session_too_large"
    calls = locked.http.post("/v1/realtime/calls", headers={"authorization": f"Bearer {KEY}"})
    assert calls.status_code == 501


def test_too_many_sessions_are_told_to_come_back(locked: Running) -> None:
    head = {"Authorization": f"Bearer {KEY}"}
    with talking(locked, additional_headers=head) as one, talking(locked, additional_headers=head) as two:
        assert one.next()["type"] == two.next()["type"] == "session.created"
        with pytest.raises(InvalidStatus) as refused, talking(locked, additional_headers=head):
            pass
        assert refused.value.response.status_code == 429
        # A server that has neither a language model nor a recogniser says so, and the session lives.
        one.say("Hello there!")
        one.send("response.create")
        done = one.until("response.done")["response"]
        assert done["status_details"]["error"]["code"] == "no_chat_model"


def test_a_server_that_stops_lets_the_answer_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting() as server, talking(server) as talk:
        slowed(server, monkeypatch)
        talk.update(max_output_tokens=30)
        talk.say("Hello there!")
        talk.send("response.create")
        talk.until("response.output_audio.delta")
        server.server.handle_exit(15, None)
        done = talk.until("response.done")["response"]
        assert done["status"] == "incomplete"
        with pytest.raises(ConnectionClosed) as closed:
            talk.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_sound_that_a_response_shall_answer_is_heard(talk: Talk) -> None:
    talk.update(max_output_tokens=12)
    part = {"type": "input_audio", "audio": pcm(tone(0.5))}
    question = {"type": "message", "role": "user", "content": [part]}
    talk.send("response.create", response={"conversation": "none", "input": [question]})
    done = talk.until("response.done")["response"]
    plain = "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=12).ask(HEARD))
    assert done["output"][0]["content"][0]["transcript"] == plain


def test_what_was_cut_off_does_not_come_back(talk: Talk) -> None:
    talk.update(max_output_tokens=40)
    talk.say("Hello there!")
    talk.send("response.create")
    item = talk.until("response.done")["response"]["output"][0]
    for end_ms, expected in ((200, 200), (10**6, 200), (100, 100)):
        talk.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=end_ms)
        assert talk.until("conversation.item.truncated")["audio_end_ms"] == expected


def test_half_a_sample_before_the_buffer_was_cleared_is_gone(server: Running, talk: Talk) -> None:
    talk.update(audio={"input": {"turn_detection": None}})
    talk.send("input_audio_buffer.append", audio=base64.b64encode(bytes(4801)).decode())
    talk.send("input_audio_buffer.clear")
    talk.send("input_audio_buffer.append", audio=pcm(tone(1.0)))
    talk.say("Heard?")
    (session,) = server.service.sessions
    assert isinstance(session, Session)
    assert np.abs(session.hearing.ear.sound()).max() == pytest.approx(0.3, abs=0.02)


def test_half_duplex_hears_nothing_while_an_answer_sounds_and_all_behind_it(server: Running, talk: Talk) -> None:
    talk.update(speech_mtp={"half_duplex": True})
    (session,) = server.service.sessions
    assert isinstance(session, Session)
    session.answers._sounded(60.0)
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.0))  # the first that is sent since
    talk.say("Heard?")
    assert not talk.of("input_audio_buffer.speech_started")
    session.answers.playback.until = 0.0
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.0))
    talk.until("input_audio_buffer.speech_started")


def test_an_item_has_no_more_sound_than_a_turn(server: Running, talk: Talk) -> None:
    talk.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
    part = {"type": "input_audio", "audio": base64.b64encode(bytes(8000 * 601)).decode()}
    talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
    assert "600 s" in talk.refused()["message"]


def test_two_who_wait_for_the_end_of_an_answer_do_not_both_begin_one(server: Running, talk: Talk) -> None:
    talk.update(max_output_tokens=200)
    talk.say("Tell me something long.")
    talk.send("response.create")
    talk.until("response.output_audio.delta")
    (session,) = server.service.sessions
    assert isinstance(session, Session)

    async def both() -> None:
        asked = [Asked(session.config.copied(), session.conversation.items, session.conversation) for _ in range(2)]
        await asyncio.gather(*(session.answers.begin(one) for one in asked))

    asyncio.run_coroutine_threadsafe(both(), next(iter(session.tasks._running)).get_loop()).result(20)
    running: set[str] = set()
    while len(talk.of("response.done")) < 3:
        event = talk.next()
        if event["type"] == "response.created":
            running.add(event["response"]["id"])
        elif event["type"] == "response.done":
            running.discard(event["response"]["id"])
        assert len(running) < 2


def test_noise_does_not_swallow_the_question_before_it(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = iter(["Hello there!", ""])

    async def words(hearing: Hearing, sound: Any) -> str:
        text = next(heard)
        await asyncio.sleep(0.3 if text else 0.0)
        return text

    monkeypatch.setattr(Hearing, "_words", words)
    talk.update(max_output_tokens=5)
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.8))
    talk.send("input_audio_buffer.append", audio=speech(0.3, 0.8))
    assert talk.until("response.done")["response"]["status"] == "incomplete"
    assert len(talk.of("input_audio_buffer.committed")) == 2


def test_without_interruption_the_next_answer_waits(
    server: Running, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(server, monkeypatch)
    talk.update(max_output_tokens=30, audio={"input": {"turn_detection": {"interrupt_response": False}}})
    talk.say("Tell me something long.")
    talk.send("response.create")
    talk.until("response.output_audio.delta")
    talk.send("input_audio_buffer.append", audio=speech(0.5, 0.8))
    assert [talk.until("response.done")["response"]["status"] for _ in range(2)] == ["incomplete"] * 2


def test_exactly_as_much_as_a_turn_must_have(talk: Talk) -> None:
    talk.update(audio={"input": {"turn_detection": None}})
    talk.send("input_audio_buffer.append", audio=pcm(tone(0.1)))
    talk.send("input_audio_buffer.commit")
    assert talk.until("input_audio_buffer.committed")


def test_words_that_were_not_found_in_the_pause_are_looked_for_again(
    server: Running, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = server.service.transcribe
    asked: list[int] = []

    async def once_refused(wave: Any, *more: Any) -> Any:
        asked.append(len(wave))
        if len(asked) == 1:
            raise ApiError(429, "Too many recordings wait.")
        return await hear(wave, *more)

    monkeypatch.setattr(server.service, "transcribe", once_refused)
    talk.update(max_output_tokens=5)
    talk.send("input_audio_buffer.append", audio=speech())
    assert talk.until("response.done")["response"]["status"] == "incomplete"
    assert len(asked) == 2
    assert asked[1] > asked[0]
