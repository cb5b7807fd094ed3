"""Two replicas on this machine: streams spread over them, slots come back, a replica ends without cutting one."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import yaml
from websockets.sync.client import ClientConnection, connect

pytest.importorskip("ray.serve", reason="needs the ray extra")

import ray
from ray import serve
from ray.serve.schema import ServeDeploySchema

from recipes.serve_ray.app import Scaling, Streams, application, build, longest_s, most_requests
from tests.recipes.tiny_fleet import KEY, SERVICE, tiny_app
from tests.serving.running import LONG, until

ROOT = Path(__file__).parents[2]
HEADERS = {"authorization": f"Bearer {KEY}"}
SCALING = Scaling(max_replicas=2, upscale_delay_s=0, downscale_delay_s=1, look_back_period_s=11)
WAIT_S = 120
BYTES_PER_S = 48_000
LONGEST = f"{LONG} {LONG}"[: SERVICE.max_input]
"""The tiny model speaks for most of a minute."""


class Fleet:
    """The running service behind Ray's proxy."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.socket_url = f"ws://127.0.0.1:{port}/v1/realtime"
        self.http = httpx2.Client(base_url=self.url, headers=HEADERS, timeout=60)

    def replicas(self) -> dict[str, int]:
        """How many there are, by state."""
        states = serve.status().applications["voice"].deployments["voice"].replica_states
        return {str(getattr(state, "value", state)): number for state, number in states.items() if number}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        patch.delenv("RAY_AUTH_MODE", raising=False)  # by default a token is asked for: nobody else may come in
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_agent_register_timeout_ms", "90000")  # a slow machine may take long
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'demo'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        limits = {"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False}
        ray.init(**limits, log_to_driver=False, _temp_dir=folder)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application(tiny_app, SERVICE, SCALING, num_cpus=0.5), name="voice")
            yield Fleet(port)
        finally:
            serve.shutdown()
            ray.shutdown()


class Listener:
    """Hears one long utterance, paced as for a player. ``end`` tells how it ended."""

    def __init__(self, fleet: Fleet) -> None:
        body = {"input": LONGEST, "response_format": "pcm", "stream_format": "audio"}
        self._answer = fleet.http.stream("POST", "/v1/audio/speech", json=body)
        answer = self._answer.__enter__()
        self.status, self.replica = answer.status_code, answer.headers.get("x-replica", "")
        self.num_bytes, self.end = 0, ""
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(answer,), daemon=True)
        self._thread.start()

    def _listen(self, answer: httpx2.Response) -> None:
        try:
            for data in answer.iter_raw():
                self.num_bytes += len(data)
                if self._leaving.is_set():
                    break
            self.end = "left" if self._leaving.is_set() else "whole"
        except httpx2.HTTPError as error:
            self.end = type(error).__name__
        finally:
            self._answer.__exit__(None, None, None)

    def leave(self) -> None:
        """Hang up."""
        self._leaving.set()
        self.hear_out()

    def hear_out(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


def admitted(fleet: Fleet) -> Listener:
    """A listener, as soon as there is a slot."""
    found: list[Listener] = []

    def try_it() -> bool:
        found.append(Listener(fleet))
        return found[-1].status == 200

    until(try_it)
    return found[-1]


def first_event(talk: ClientConnection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(talk.recv(30))
    return event


@pytest.mark.slow
def test_streams_spread_and_a_replica_leaves_without_cutting_one(fleet: Fleet) -> None:
    """Streams make the second replica start; when few are left, it ends, and those go on to their end."""
    assert fleet.replicas() == {"RUNNING": 1}
    listeners: list[Listener] = []

    def speak(number: int) -> list[Listener]:
        listeners[:] = [listener for listener in listeners if not listener.end]
        listeners.extend(admitted(fleet) for _ in range(number - len(listeners)))
        return listeners

    first = speak(SERVICE.max_streams)[0].replica
    assert {listener.replica for listener in listeners} == {first}
    until(lambda: bool(speak(SERVICE.max_streams)) and fleet.replicas() == {"RUNNING": 2}, WAIT_S)

    speakers = Counter(listener.replica for listener in speak(2 * SERVICE.max_streams))
    assert list(speakers.values()) == [SERVICE.max_streams] * 2, "both replicas speak, as much as they may"
    refused = fleet.http.post("/v1/audio/speech", json={"input": "Hello."})
    assert refused.status_code == 429
    assert refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1

    newcomers = []
    for leaver in [next(one for one in listeners if one.replica == replica) for replica in speakers]:
        leaver.leave()
        newcomers.append(admitted(fleet))
        assert newcomers[-1].replica == leaver.replica, "the slot of who leaves is free, where it was"
    secrets_hold_everywhere(fleet)

    for listener in listeners:
        listener.leave()
    until(lambda: fleet.replicas().get("RUNNING") == 1, WAIT_S)
    assert [listener.end for listener in newcomers] == ["", ""], "both speak while one replica is to go"
    for listener in newcomers:
        listener.hear_out()
    assert [listener.end for listener in newcomers] == ["whole", "whole"]
    assert newcomers[0].num_bytes == newcomers[1].num_bytes > 30 * BYTES_PER_S
    until(lambda: fleet.replicas() == {"RUNNING": 1}, WAIT_S)


def secrets_hold_everywhere(fleet: Fleet) -> None:
    """A short-lived key opens a session at a replica that has not issued it."""
    issued: dict[str, str] = {}

    def crossed() -> bool:
        answer = fleet.http.post("/v1/realtime/client_secrets", json={})
        issued[answer.headers["x-replica"]] = answer.json()["value"]
        for issuer, secret in issued.items():
            with connect(fleet.socket_url, additional_headers={"authorization": f"Bearer {secret}"}) as talk:
                assert first_event(talk)["type"] == "session.created"
                assert talk.response is not None
                if talk.response.headers["x-replica"] != issuer:
                    return True
        return False

    until(crossed, WAIT_S)


@pytest.mark.slow
def test_a_written_question_is_answered_in_sound(fleet: Fleet) -> None:
    with connect(fleet.socket_url, additional_headers=HEADERS, max_size=None) as talk:
        assert first_event(talk)["type"] == "session.created"
        content = [{"type": "input_text", "text": "Hello there!"}]
        item = {"type": "message", "role": "user", "content": content}
        talk.send(json.dumps({"type": "conversation.item.create", "item": item}))
        talk.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 30}}))
        sound = b""
        while (event := json.loads(talk.recv(60)))["type"] != "response.done":
            assert event["type"] != "error", event
            if event["type"] == "response.output_audio.delta":
                sound += base64.b64decode(event["delta"])
    assert event["response"]["status"] in ("completed", "incomplete")
    assert len(sound) > 1000


@pytest.mark.slow
def test_whoever_has_no_key_is_refused(fleet: Fleet) -> None:
    refused = httpx2.post(f"{fleet.url}/v1/audio/speech", json={"input": "Hello."}, timeout=60)
    assert refused.status_code == 401
    assert refused.json()["error"]["message"]


@pytest.mark.parametrize(("streams", "replicas"), [({}, 1), ({"a": 3.0}, 1), ({"a": 4.0, "b": 4.0}, 2), ({"a": 9}, 2)])
def test_replicas_follow_streams(streams: dict[str, float], replicas: int) -> None:
    policy: Callable[[Any], tuple[int, dict[str, Any]]] = Streams(streams_per_replica=5.6)
    context = SimpleNamespace(aggregated_metrics={"streams": streams} if streams else None)
    assert policy(context)[0] == replicas


def test_the_shipped_file_is_understood(tmp_path: Path) -> None:
    shipped = yaml.safe_load((ROOT / "recipes/serve_ray/serve.yaml").read_text("utf-8"))
    (voice,) = ServeDeploySchema.model_validate(shipped).applications
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    assert voice.import_path == f"{build.__module__}:{build.__name__}"
    assert isinstance(build({**voice.args, "api_key_file": keys}), serve.Application)
    with pytest.raises(ValueError, match="max_stream"):
        build({**voice.args, "service": {"max_stream": 3}})


def test_rays_limits_are_wider_than_ours() -> None:
    assert most_requests(SERVICE) > SERVICE.max_streams + SERVICE.max_queue + SERVICE.max_sessions
    assert longest_s(SERVICE) >= SERVICE.session_s
