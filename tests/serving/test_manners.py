"""Manners under load and at the door: who leaves, who stalls, who comes too often, who has no key, and the end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from speech_mtp.serving.settings import Settings, check_key, read_keys
from speech_mtp.streaming.stream import Stream
from tests.serving.running import LONG, TEXT, Running, serving, until
from tests.serving.test_speech import alike, spoken

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")


def raw(port: int, head: str, body: str = "") -> socket.socket:
    """A connection that has sent ``head`` and a body, and has a small window."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall((head.replace("\n", "\r\n") + body).encode())
    return one


def request(body: str) -> tuple[str, str]:
    head = "POST /v1/audio/speech HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    return f"{head}Content-Length: {len(body)}\n\n", body


def test_a_client_that_leaves_stops_the_work(server: Running) -> None:
    with server.http.stream("POST", "/v1/audio/speech", json={"input": LONG, "response_format": "pcm"}) as answer:
        parts = answer.iter_raw()
        next(parts)
        assert server.service.admission.taken == 1
    until(lambda: server.service.admission.taken == 0)
    until(lambda: server.service.engine.scheduler is not None and not server.service.engine.scheduler.streams)
    time.sleep(0.1)  # the tick that let it go is counted at its end
    steps = server.service.engine.steps
    time.sleep(0.3)
    assert server.service.engine.steps == steps


def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    with serving(Settings(max_streams=1)) as server:
        with server.http.stream("POST", "/v1/audio/speech", json={"input": LONG, "stream_format": "audio"}) as answer:
            parts = answer.iter_raw()
            next(parts)
            waiting = raw(server.port, *request('{"input": "Good.", "response_format": "pcm"}'))
            until(lambda: server.service.admission.waiting == 1)
            waiting.close()
            until(lambda: server.service.admission.waiting == 0)
            assert server.service.admission.taken == 1
        until(lambda: server.service.admission.taken == 0)


def test_a_client_that_does_not_read_is_cut_off() -> None:
    settings = Settings(stall_s=0.5, backlog_s=1.0)
    with serving(settings) as server:
        body = f'{{"input": "{LONG}", "response_format": "wav"}}'
        stalled = raw(server.port, *request(body))
        until(lambda: server.service.admission.taken == 1)
        assert alike(server.post(input=TEXT, voice="low", response_format="pcm").content, spoken())
        # What fits into the kernel's buffers is sent; then it is cancelled, unless all of it fitted.
        until(lambda: server.service.admission.taken == 0, 40)
        stalled.close()


def test_too_many_are_told_when_to_come_back() -> None:
    with serving(Settings(max_streams=1, max_queue=1)) as server:
        bodies = [{"input": LONG[:60], "response_format": "wav", "stream": False}] * 4
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda body: httpx2.post(f"{server.url}/v1/audio/speech", json=body), bodies))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200, 200, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        time.sleep(int(refused.headers["retry-after"]))  # what it says is true
        assert server.post(**bodies[0]).status_code == 200


def test_keys() -> None:
    with serving(Settings(keys=KEYS, public_lists=False)) as server:
        for headers in ({}, {"authorization": "Bearer nothing"}, {"authorization": KEYS[0]}, {"x-api-key": KEYS[0]}):
            answer = server.http.get("/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert server.http.get(f"/v1/models?api_key={KEYS[0]}").status_code == 401
        for path in ("/v1/nothing", "/metrics", "/v1/audio/voices"):
            assert server.http.get(path).status_code == 401
        for key in KEYS:
            assert server.http.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert server.http.get("/health").status_code == 200
    with serving(Settings(keys=KEYS, public_lists=True)) as server:
        assert server.http.get("/v1/audio/voices").status_code == 200
        assert server.http.get("/v1/audio/models").status_code == 200
        assert server.http.get("/v1/models").status_code == 401


def test_hosts_and_origins(server: Running) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        answer = server.http.get("/v1/models", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
    assert server.http.get("/v1/models", headers={"origin": server.url}).status_code == 200


def test_the_log_and_the_metrics_hold_an_id_and_nothing_of_the_content(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = server.http.post(
            "/v1/audio/speech?secret=secretword",
            json={"input": "Secretword is good.", "voice": "low"},
            headers={"x-request-id": "my-id-5"},
        )
        server.http.get("/secretword")
        server.post(input="Secretword.", voice="secretword", model="secretword")
        with connect(f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream?key=secretword") as one:
            one.send('{"type": "input.text", "text": "Secretword is good."}')
            one.send('{"type": "session.close"}')
            for _ in one:
                continue
        evil = server.http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert answer.headers["x-request-id"] == "my-id-5"
    assert evil != "a b"
    assert "id=my-id-5 POST /v1/audio/speech 200" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    for text in (ours, server.service.figures().decode()):
        assert "ecretword" not in text


def test_a_fault_of_ours_is_a_500_without_its_words(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(text: str) -> int:
        raise RuntimeError(f"cannot count {text}")

    monkeypatch.setattr(server.service, "count_tokens", fail)
    answer = server.post(input="Secretword is good.", stream=True)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "ecretword" not in answer.text + caplog.text
    assert answer.headers["x-request-id"] in caplog.text
    until(lambda: server.service.admission.taken == 0)


def test_a_fault_in_a_stream_is_logged_without_its_words(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(stream: Stream, text: str) -> None:
        raise RuntimeError(f"cannot read {text}")

    monkeypatch.setattr(Stream, "push", fail)
    answer = server.post(input="Secretword is good.")
    assert answer.status_code == 500
    assert "ecretword" not in answer.text + caplog.text
    assert f"id={answer.headers['x-request-id']} failed: RuntimeError in fail" in caplog.text


def test_a_socket_is_refused_while_the_server_ends() -> None:
    with serving() as server:
        server.service.admission.draining = True
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream"):
            pass
        assert refused.value.response.status_code == 503
        assert b'"code":"unavailable"' in (refused.value.response.body or b"")


def test_metrics_count_what_was_said() -> None:
    with serving() as server:
        server.post(input=LONG[:300], voice="low", response_format="pcm")
        server.post(input="")
        text = server.http.get("/metrics").text
        assert 'speech_mtp_utterances_total{finished_reason="stop"} 1.0' in text
        assert 'speech_mtp_requests_total{route="/v1/audio/speech",status="400"} 1.0' in text
        assert server.metric("speech_mtp_first_audio_seconds_count") == 1
        assert server.metric("speech_mtp_real_time_factor_count") == 1
        assert server.metric("speech_mtp_tokens_per_forward") == 1.0
        assert server.metric("speech_mtp_slots") == 8
        assert server.metric("speech_mtp_streams_running") == 0
        assert server.metric("speech_mtp_audio_seconds_total") > 1


def test_slow_requests_and_too_many_connections_are_hung_up_on() -> None:
    with serving(Settings(head_s=0.4, body_s=0.4, max_connections=12)) as server:
        slow = [raw(server.port, "POST /v1/audio/speech HT") for _ in range(5)]
        for one in slow:
            one.settimeout(5)
            assert one.recv(100) == b""
        head, _ = request("x" * 100)
        body = raw(server.port, head, "xx")
        body.settimeout(5)
        assert b" 408 " in body.recv(4000)
        many = [raw(server.port, "") for _ in range(40)]
        assert server.http.get("/health").status_code == 200  # by a connection that it has kept
        for one in [*slow, *many, body]:
            one.close()


@pytest.mark.parametrize("connections", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_silent_connections_keep_nobody_out(connections: int) -> None:
    """Whoever has waited longest without asking makes room; a stream that runs is not cut."""
    with serving(Settings(head_s=2, max_connections=50)) as server:
        with server.http.stream(
            "POST", "/v1/audio/speech", json={"input": LONG[:400], "response_format": "pcm"}
        ) as answer:
            parts = answer.iter_raw()
            sound = next(parts)
            many = [raw(server.port, "") for _ in range(connections)]
            assert httpx2.get(f"{server.url}/health", timeout=20).status_code == 200
            sound += b"".join(parts)
        assert len(sound) > 48_000
        until(lambda: len(server.server.server_state.connections) <= 2, 10)
        for one in many:
            one.close()


def test_no_http_is_refused_in_the_shape_too(server: Running) -> None:
    one = raw(server.port, "\x00\x01 nonsense\n\n")
    one.settimeout(5)
    answer = ""
    while part := one.recv(4000).decode():
        answer += part
    assert answer.startswith("HTTP/1.1 400")
    assert '"error"' in answer


SERVER = """
import sys
from tests.serving.running import tiny_model, create_app, make_server
from speech_mtp.serving.settings import Settings
server = make_server(create_app(tiny_model(), Settings(drain_s=20)), "127.0.0.1", int(sys.argv[1]))
server.run()
"""


@contextmanager
def process_of_a_server(port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=root, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _ready(url), 60)
        yield process, url
    finally:
        process.kill()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


BODY = {"input": LONG[:300], "voice": "low", "response_format": "pcm", "stream_format": "audio"}


def test_sigterm_lets_streams_end_and_the_exit_code_is_0() -> None:
    with process_of_a_server(free_port()) as (process, url):
        with httpx2.stream("POST", f"{url}/v1/audio/speech", json=BODY, timeout=30) as answer:
            parts = answer.iter_raw()
            data = next(parts)
            process.send_signal(signal.SIGTERM)
            until(lambda: not _ready(url))
            late = httpx2.post(f"{url}/v1/audio/speech", json={"input": "Good."})
            assert late.status_code == 503
            assert late.headers["retry-after"]
            data += b"".join(parts)
        assert alike(data, spoken(LONG[:300]))
        assert process.wait(20) == 0


@pytest.mark.slow
def test_killed_in_the_middle_of_a_stream_and_started_again_it_serves() -> None:
    """The stream breaks off, which its client notices; the next server has the same port, and the same sound."""
    port = free_port()
    with (
        process_of_a_server(port) as (process, url),
        httpx2.stream("POST", f"{url}/v1/audio/speech", json=BODY, timeout=30) as answer,
    ):
        parts = answer.iter_raw()
        next(parts)
        process.kill()
        with pytest.raises(httpx2.RemoteProtocolError):
            b"".join(parts)
    with process_of_a_server(port) as (_, url):
        answer = httpx2.post(f"{url}/v1/audio/speech", json=BODY, timeout=30)
        assert alike(answer.content, spoken(LONG[:300]))


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_key_file_is_read_and_bad_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEYS[0]}\n\n{KEYS[1]}\n")
    assert read_keys(path) == KEYS
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(path)
    for key in ("short", "sixteen letters!", "a/b=cdefghijklmnop", "schlüsselschlüssel"):
        with pytest.raises(ValueError, match="cannot be used") as refused:
            check_key(key, "It")
        assert key not in str(refused.value)
    with pytest.raises(FileNotFoundError, match="no key file"):
        read_keys(tmp_path / "none")
