"""``WS /v1/audio/speech/stream``: text in pieces, sound and words out, and a socket that survives mistakes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from speech_mtp.serving.settings import Settings
from tests.serving.running import LONG, TEXT, Running, serving, until
from tests.serving.test_speech import alike, spoken

PATH = "/v1/audio/speech/stream"


@contextmanager
def socket(server: Running, **more: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}{PATH}", **more) as one:
        yield one


def send(one: ClientConnection, kind: str, **fields: Any) -> None:
    one.send(json.dumps({"type": kind, **fields}))


def heard(one: ClientConnection) -> tuple[bytes, list[dict[str, Any]]]:
    """The sound and the events up to ``audio.done``, ``session.done`` or ``error``."""
    sound, events = b"", []
    while True:
        message = one.recv(timeout=20)
        if isinstance(message, bytes):
            sound += message
            continue
        events.append(json.loads(message))
        if events[-1]["type"] in ("audio.done", "session.done", "error"):
            return sound, events


def test_text_in_pieces_sounds_as_the_whole_text(server: Running) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low", model="tts-1")
        for i in range(0, len(TEXT), 5):
            send(one, "input.text", text=TEXT[i : i + 5])
        send(one, "input.done")
        sound, events = heard(one)
        assert alike(sound, spoken())
        assert events[0] == {
            "type": "audio.start",
            "utterance_index": 0,
            "sentence_index": 0,
            "format": "pcm",
            "sample_rate": 24000,
        }
        words = [word["word"] for e in events if e["type"] == "audio.words" for word in e["words"]]
        assert " ".join(words) == "Hello there the quick brown fox jumps"
        assert events[-1]["total_bytes"] == len(sound)
        assert events[-1]["error"] is False
        assert events[-1]["finish_reason"] == "stop"
        send(one, "input.text", text=TEXT)  # the socket stays, and so do the settings
        send(one, "input.done")
        assert alike(heard(one)[0], sound)
        send(one, "session.close")
        assert heard(one)[1] == [{"type": "session.done", "total_utterances": 2, "total_sentences": 2}]
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_sound_comes_before_the_text_has_ended(server: Running) -> None:
    with socket(server) as one:
        send(one, "input.text", text="Hello there, the quick brown fox jumps over the lazy dog. It is")
        first = [one.recv(timeout=20) for _ in range(3)]
        assert any(isinstance(message, bytes) for message in first)


def test_one_frame_for_each_utterance_without_stream_audio(server: Running) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low", response_format="wav", stream_audio=False, word_timestamps=False)
        send(one, "input.text", text=TEXT)
        send(one, "input.done")
        assert json.loads(one.recv())["type"] == "audio.start"
        sound = one.recv(timeout=20)
        assert isinstance(sound, bytes)
        assert alike(sound[44:], spoken())
        assert int.from_bytes(sound[40:44], "little") == len(spoken())
        assert json.loads(one.recv())["type"] == "audio.done"


def test_cancel_ends_the_utterance_and_keeps_the_socket(server: Running) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low")
        send(one, "input.text", text=LONG)
        while not isinstance(one.recv(timeout=20), bytes):
            continue
        send(one, "input.cancel")
        _, events = heard(one)
        assert events[-1]["finish_reason"] == "cancelled"
        send(one, "input.text", text=TEXT)
        send(one, "input.done")
        assert alike(heard(one)[0], spoken())


def test_the_lexicon_reads_a_word_that_is_cut_anywhere(server: Running) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low", lexicon={"fox": "dˈɑɡ"})
        for piece in ("The f", "o", "x is go", "od."):
            send(one, "input.text", text=piece)
        send(one, "input.done")
        assert alike(heard(one)[0], spoken("The [fox](/dˈɑɡ/) is good."))


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "null",
        "[]",
        "5",
        '{"type": "input.text"}',
        '{"type": "input.text", "text": 5}',
        '{"type": "input.text", "text": "\\ud800"}',
        '{"type": "input.text", "text": NaN}',
        '{"type": "nothing"}',
        '{"type": {"a": 1}}',
        '{"type": "session.config", "voice": "nobody"}',
        '{"type": "session.config", "speed": 9}',
        '{"type": "session.config", "response_format": "midi"}',
        '{"type": "session.config", "model": "/etc/passwd"}',
        "[" * 50_000,
        b"\x00\x01",
        '{"type": "input.text", "text": "' + "a " * 5_001 + '"}',
        '{"type": "x", "pad": "' + "a" * 2**20 + '"}',
    ],
)
def test_a_mistake_is_an_error_event_and_nothing_is_lost(server: Running, message: str | bytes) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low")
        one.send(message)
        sound, events = heard(one)
        assert sound == b""
        assert [e["type"] for e in events] == ["error"]
        assert set(events[0]["error"]) == {"message", "type", "param", "code"}
        send(one, "input.text", text=TEXT)
        send(one, "input.done")
        assert alike(heard(one)[0], spoken())


def test_text_that_cannot_be_spoken_fails_its_utterance_alone(server: Running) -> None:
    with socket(server) as one:
        send(one, "session.config", voice="low")
        for text in ("漢字 is not read.", TEXT):
            send(one, "input.text", text=text)
            send(one, "input.done")
        assert heard(one)[1][-1]["error"]["type"] == "invalid_request_error"
        assert heard(one)[1][-1] == {
            "type": "audio.done",
            "utterance_index": 0,
            "sentence_index": 0,
            "total_bytes": 0,
            "error": True,
            "finish_reason": "error",
        }
        assert alike(heard(one)[0], spoken())


def test_settings_stay_while_text_is_open(server: Running) -> None:
    with socket(server) as one:
        send(one, "input.text", text="Hello")
        send(one, "session.config", voice="high")
        assert heard(one)[1][-1]["type"] == "error"


def test_empty_utterances_say_nothing(server: Running) -> None:
    with socket(server) as one:
        send(one, "input.done")
        send(one, "input.text", text="  ")
        send(one, "input.done")
        send(one, "session.close")
        assert heard(one)[1] == [{"type": "session.done", "total_utterances": 0, "total_sentences": 0}]


def test_a_client_that_leaves_frees_its_slot(server: Running) -> None:
    with socket(server) as one:
        send(one, "input.text", text=LONG)
        while not isinstance(one.recv(timeout=20), bytes):
            continue
        assert server.service.admission.taken == 1
    until(lambda: server.service.admission.taken == 0)
    assert server.service.sessions == set()


def test_a_silent_session_is_closed() -> None:
    with serving(Settings(idle_s=0.3)) as server, socket(server) as one:
        send(one, "input.text", text="Hello")
        events: list[Any] = [json.loads(one.recv(timeout=5)) for _ in range(3)]
        assert [e["type"] for e in events] == ["error", "audio.done", "session.done"]
        assert server.service.admission.taken == 0


def test_a_session_is_refused_before_it_is_opened() -> None:
    key = "a-key-of-the-tests"
    with serving(Settings(keys=(key,))) as server:
        for more in (
            {},
            {"additional_headers": {"Authorization": "Bearer wrong"}},
            {"subprotocols": ["openai-insecure-api-key.wrong"]},
        ):
            with pytest.raises(InvalidStatus) as refused, socket(server, **more):
                pass
            assert refused.value.response.status_code == 401
            assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
        with socket(server, subprotocols=["realtime", f"openai-insecure-api-key.{key}"]) as one:
            assert one.subprotocol == "realtime"
        with socket(server, additional_headers={"Authorization": f"Bearer {key}"}) as one:
            assert one.subprotocol is None
        with (
            pytest.raises(InvalidStatus) as refused,
            socket(server, origin="http://evil.example", additional_headers={"Authorization": f"Bearer {key}"}),
        ):
            pass
        assert refused.value.response.status_code == 403


def test_a_session_is_told_when_the_server_ends() -> None:
    with serving() as server, socket(server) as one:
        send(one, "session.config", voice="low")
        send(one, "input.text", text=TEXT)
        until(lambda: server.service.admission.taken == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        sound, events = heard(one)  # what was sent is said
        assert alike(sound, spoken())
        assert events[-1]["finish_reason"] == "stop"
        assert heard(one)[1][0]["error"]["code"] == "unavailable"
        assert heard(one)[1][0]["type"] == "session.done"
        with pytest.raises(ConnectionClosed) as closed:
            one.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_a_socket_outlives_the_time_in_which_a_request_must_come() -> None:
    with serving(Settings(head_s=0.3)) as server, socket(server) as one:
        time.sleep(0.8)
        send(one, "session.close")
        assert heard(one)[1][-1]["type"] == "session.done"
