"""Voices of recordings and consents: OpenAI's shapes by OpenAI's SDK, whose they are, what is kept, what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from websockets.sync.client import connect

from speech_mtp import audio
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.serving.routes import voices as voice_routes
from speech_mtp.serving.settings import Settings
from speech_mtp.serving.sound_in import decode
from speech_mtp.serving.voices import EVERYBODY, ClientVoices, owner_of
from speech_mtp.streaming.pipeline import speak
from speech_mtp.voices.reference import timbre_of
from speech_mtp.voices.shelf import Capacity, FullShelfError, Record, Shelf
from tests.serving.chatting import HELLO, chatting
from tests.serving.hearing import recording, spoiled
from tests.serving.running import LONG, TEXT, Running, serving, until
from tests.serving.talking import talking
from tests.serving.test_speech import alike, spoken
from tests.tiny import tiny_model

PATH = "/v1/audio/voices"
CONSENTS = "/v1/audio/voice_consents"
KEYS = ("a-key-of-the-tests", "another-key-of-the-tests")
SAMPLE = recording(2.0, "wav")
WORDS = "I, Ann, agree to this voice (2026-11-28)."


def make(voices: ClientVoices) -> Record:
    return voices.make("me", "ann", torch.from_numpy(decode(SAMPLE, 24_000, 60)), 24_000, {"consent": ""})


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(keys=KEYS, voices_dir=folder, **more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with chatting(settings(tmp_path_factory.mktemp("voices"))) as running:
        running.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0], max_retries=0) as one:
        yield one


@pytest.fixture
def stranger(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[1], max_retries=0) as one:
        yield one


@pytest.fixture(autouse=True)
def clean(server: Running) -> Iterator[None]:
    yield
    voices = server.service.check_voices()
    for key in KEYS:
        owner = owner_of(f"key {hashlib.sha256(key.encode()).hexdigest()[:32]}")
        for shelf in (voices.shelf, voices.consents):
            for record in shelf.of(owner):
                shelf.remove(record)


def post(server: Running, sample: bytes = SAMPLE, **fields: Any) -> httpx2.Response:
    data = {"name": "ann", "consent": WORDS, **fields}
    sent = {key: value for key, value in data.items() if value is not None}
    return server.http.post(PATH, files={"audio_sample": ("../../x\0.wav", sample)}, data=sent)


def listed(server: Running, key: str = KEYS[0]) -> list[str]:
    found = server.http.get(PATH, headers={"authorization": f"Bearer {key}"}).json()["voices"]
    return [voice["name"] for voice in found if voice["id"].startswith("voice_")]


def in_voice(sample: bytes, text: str = TEXT) -> bytes:
    """What the library says with the timbre of a recording."""
    model = tiny_model()
    wave = torch.from_numpy(decode(sample, 24_000, 60))
    timbre = timbre_of(model.codec, wave, 24_000)
    return audio.pcm16(torch.cat([chunk.wave for chunk in speak(model, text, timbre)]))


def test_only_a_model_of_few_voices_says_so() -> None:
    names = SimpleNamespace(voices=["low", "high"])
    for heard, notes in ((8, 1), (9, 0)):
        service: Any = SimpleNamespace(model=SimpleNamespace(voices_heard=heard), names=names)
        assert len(voice_routes._note(service)) == notes


# -- OpenAI's SDK, as it is -------------------------------------------------------------------------------------------
def test_a_voice_is_made_used_and_deleted(client: openai.OpenAI, server: Running) -> None:
    voice = client.audio.voices.create(audio_sample=("a.wav", SAMPLE), name="ann", consent=WORDS)
    assert (voice.object, voice.name, voice.type) == ("audio.voice", "ann", "audio_sample")
    assert voice.id.startswith("voice_")
    assert voice.created_at > 1_700_000_000
    extra = voice.model_extra or {}
    assert extra["success"] is True
    assert extra["voice"]["name"] == "ann"
    assert "low, high" in extra["note"]
    expected = in_voice(SAMPLE)
    assert not alike(expected, spoken())
    for name in ("ann", voice.id, {"id": voice.id}):
        said = client.audio.speech.create(model="tts-1", voice=name, input=TEXT, response_format="pcm")
        assert alike(said.content, expected), name
    gone = client.audio.voices.delete(voice.id)
    assert (gone.id, gone.object, gone.deleted) == (voice.id, "audio.voice.deleted", True)
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.voices.delete(voice.id)
    assert missing.value.code == "voice_not_found"
    with pytest.raises(openai.BadRequestError):
        client.audio.speech.create(model="tts-1", voice="ann", input=TEXT)


def test_consents(client: openai.OpenAI, server: Running, stranger: openai.OpenAI) -> None:
    made = [
        client.audio.voice_consents.create(name=f"Ann {i} ✓", language="en-US", recording=("a.wav", SAMPLE))
        for i in range(3)
    ]
    assert (made[0].object, made[0].name, made[0].language) == ("audio.voice_consent", "Ann 0 ✓", "en-US")
    assert client.audio.voice_consents.retrieve(made[0].id) == made[0]
    assert {consent.id for consent in client.audio.voice_consents.list()} == {consent.id for consent in made}
    page = client.audio.voice_consents.list(limit=2)
    assert page.has_more
    assert [consent.id for consent in client.audio.voice_consents.list(limit=1)] == [
        consent.id for consent in client.audio.voice_consents.list()
    ], "the SDK turns the pages"
    renamed = client.audio.voice_consents.update(made[1].id, name="Ben")
    assert (renamed.id, renamed.name, renamed.created_at) == (made[1].id, "Ben", made[1].created_at)
    assert client.audio.voice_consents.retrieve(made[1].id).name == "Ben"
    voice = client.audio.voices.create(audio_sample=("a.wav", SAMPLE), name="ann", consent=made[0].id)
    path = server.service.check_voices().shelf.folder / f"{voice.id}.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata()["consent"] == made[0].id
    gone = client.audio.voice_consents.delete(made[0].id)
    assert (gone.id, gone.deleted, gone.object) == (made[0].id, True, "audio.voice_consent")
    for again in (client.audio.voice_consents.delete, client.audio.voice_consents.retrieve):
        with pytest.raises(openai.NotFoundError):
            again(made[0].id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.voices.create(audio_sample=("a.wav", SAMPLE), name="eve", consent=made[0].id)
    assert refused.value.code == "consent_not_found"
    assert not list(stranger.audio.voice_consents.list())
    for theirs in (stranger.audio.voice_consents.delete, stranger.audio.voice_consents.retrieve):
        with pytest.raises(openai.NotFoundError):
            theirs(made[1].id)
    with pytest.raises(openai.NotFoundError):
        stranger.audio.voice_consents.update(made[1].id, name="Mallory")
    with pytest.raises(openai.BadRequestError):
        stranger.audio.voices.create(audio_sample=("a.wav", SAMPLE), name="eve", consent=made[1].id)


# -- where a voice counts ---------------------------------------------------------------------------------------------
def test_every_route_speaks_with_it(server: Running) -> None:
    voice = post(server).json()["id"]
    expected = in_voice(SAMPLE)
    batch = server.post("/v1/audio/speech/batch", voice=voice, response_format="pcm", items=[{"input": TEXT}]).json()
    assert alike(base64.b64decode(batch["results"][0]["audio_data"]), expected)
    audio_part = {"modalities": ["text", "audio"], "audio": {"voice": "ann", "format": "pcm16"}}
    answer = server.post("/v1/chat/completions", messages=HELLO, max_tokens=20, **audio_part).json()
    said = answer["choices"][0]["message"]["audio"]
    assert alike(base64.b64decode(said["data"]), in_voice(SAMPLE, said["transcript"]))
    assert alike(_by_socket(server, "ann"), expected)
    with talking(server, additional_headers={"authorization": f"Bearer {KEYS[0]}"}) as talk:
        assert talk.update(max_output_tokens=20, audio={"output": {"voice": {"id": voice}}})
        talk.say("Hello there!")
        talk.send("response.create")
        talk.until("response.done")
        transcript = "".join(event["delta"] for event in talk.of("response.output_audio_transcript.delta"))
        assert alike(talk.sound(), in_voice(SAMPLE, transcript))


def _by_socket(server: Running, voice: str) -> bytes:
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    url = f"{server.url.replace('http', 'ws')}/v1/audio/speech/stream"
    with connect(url, additional_headers=headers) as socket:
        for event in (
            {"type": "session.config", "voice": voice, "response_format": "pcm"},
            {"type": "input.text", "text": TEXT},
            {"type": "input.done"},
        ):
            socket.send(json.dumps(event))
        sound = b""
        for message in socket:
            if isinstance(message, bytes):
                sound += message
            elif json.loads(message)["type"] in ("audio.done", "error"):
                return sound
    return sound


def test_voices_are_their_makers_alone(server: Running, stranger: openai.OpenAI) -> None:
    voice = post(server).json()["id"]
    assert (listed(server), listed(server, KEYS[1])) == (["ann"], [])
    for name in ("ann", voice):
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.audio.speech.create(model="tts-1", voice=name, input=TEXT)
        assert "ann" not in str(refused.value)
        with pytest.raises(openai.NotFoundError):
            stranger.audio.voices.delete(name)
    theirs = stranger.audio.voices.create(audio_sample=("a.wav", SAMPLE), name="ann", consent=WORDS)
    assert theirs.id != voice, "a name is taken for its owner only"
    stranger.audio.voices.delete("ann")
    assert listed(server) == ["ann"]


def test_the_keys_order_does_not_matter_and_nothing_is_lost_by_a_restart(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as first:
        first.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        voice = post(first).json()["id"]
    with serving(Settings(keys=KEYS[::-1], voices_dir=tmp_path)) as second:
        second.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        assert (listed(second), listed(second, KEYS[1])) == (["ann"], [])
        assert alike(second.post(input=TEXT, voice=voice, response_format="pcm").content, in_voice(SAMPLE))


def test_without_keys_everybody_has_everything_in_common(tmp_path: Path) -> None:
    with serving(Settings(voices_dir=tmp_path)) as server:
        assert post(server).status_code == 200
        assert listed(server) == ["ann"]
        assert [record.owner for record in server.service.check_voices().of(EVERYBODY)] == [EVERYBODY]


def test_open_lists_show_strangers_the_models_voices_only(tmp_path: Path) -> None:
    with serving(settings(tmp_path, public_lists=True)) as server:
        refused = post(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.http.get(PATH).json()["voices"][0]["id"] == "low"
        server.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        assert post(server).status_code == 200
        assert listed(server) == ["ann"]
        del server.http.headers["authorization"]
        assert "ann" not in server.http.get(PATH).text


def test_another_servers_voices_are_seen(server: Running, tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as first, serving(settings(tmp_path)) as second:
        for one in (first, second):
            one.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        assert listed(second) == []
        voice = post(first).json()["id"]
        until(lambda: listed(second) == ["ann"])
        assert second.post(input=TEXT, voice=voice, response_format="pcm").status_code == 200
        assert first.http.delete(f"{PATH}/{voice}").status_code == 200
        until(lambda: listed(second) == [])
        assert second.post(input=TEXT, voice=voice).status_code == 400


def test_deleting_does_not_harm_who_speaks(server: Running) -> None:
    voice = post(server).json()["id"]
    text = LONG[:400]
    body = {"input": text, "voice": voice, "response_format": "pcm", "stream_format": "audio"}
    with server.http.stream("POST", "/v1/audio/speech", json=body) as answer:
        parts = answer.iter_raw()
        sound = next(parts)
        deleted = httpx2.delete(f"{server.url}{PATH}/{voice}", headers=dict(server.http.headers))
        assert deleted.status_code == 200
        sound += b"".join(parts)
    assert alike(sound, in_voice(SAMPLE, text))


# -- what is kept -----------------------------------------------------------------------------------------------------
def test_what_a_file_holds(server: Running) -> None:
    voice = post(server).json()
    folder = server.service.check_voices().shelf.folder
    (path,) = folder.iterdir()
    assert path.name == f"{voice['id']}.safetensors"
    assert load_file(path)["value"].shape == (8,)
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    assert (notes["name"], notes["consent"]) == ("ann", WORDS)
    assert not any(key in json.dumps(notes) for key in KEYS), "a key is kept as its digest only"
    assert folder.stat().st_mode & 0o077 == 0


def test_files_that_are_none_of_ours_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voices = ClientVoices(tmp_path, Decoupled.tiny(), Capacity())
    good = make(voices)
    folder = voices.shelf.folder
    source = (folder / f"{good.id}.safetensors").read_bytes()
    (folder / f"voice_{'0' * 24}.safetensors").write_bytes(source)  # of another id
    (folder / f"voice_{'1' * 24}.safetensors").write_bytes(source[:40])
    (folder / f"voice_{'2' * 24}.safetensors").write_bytes(b"\x80\x04N.")
    (folder / f"voice_{'3' * 24}.safetensors").write_bytes(b"\xff" * 8 + source)
    (tmp_path / "outside.safetensors").write_bytes(source)
    (folder / f"voice_{'4' * 24}.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "notes.txt").write_text("x")
    (folder / f"voice_{'5' * 24}.safetensors").mkdir()
    assert [record.id for record in voices.of("me")] == [good.id]
    assert [record.id for record in ClientVoices(tmp_path, Decoupled.tiny(), Capacity()).of("me")] == [good.id]
    assert "damaged" in caplog.text
    assert voices.forget("me", good.id)
    assert (tmp_path / "outside.safetensors").exists()


def test_a_voice_of_another_codec_is_not_shown(tmp_path: Path) -> None:
    mine = ClientVoices(tmp_path, Decoupled.tiny(), Capacity())
    make(mine)
    torch.manual_seed(1)
    other = Decoupled(Decoupled.tiny().config)
    assert ClientVoices(tmp_path, other, Capacity()).of("me") == []
    assert len(ClientVoices(tmp_path, Decoupled.tiny(), Capacity()).of("me")) == 1


@pytest.mark.parametrize("value", [torch.zeros(7), torch.full((8,), float("nan")), torch.zeros(1, 8)])
def test_a_vector_that_does_not_fit_is_no_voice(tmp_path: Path, value: torch.Tensor) -> None:
    voices = ClientVoices(tmp_path, Decoupled.tiny(), Capacity())
    record = make(voices)
    path = voices.shelf.folder / f"{record.id}.safetensors"
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    save_file({"value": value}, path, notes)
    assert voices.timbre("me", "ann") is None


def test_capacities(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "voice", Capacity(records=3, of_one=2))
    for name in ("a", "b"):
        shelf.add("me", name, {}, torch.zeros(1))
    with pytest.raises(FullShelfError, match="2 of yours"):
        shelf.add("me", "c", {}, torch.zeros(1))
    shelf.add("you", "a", {}, torch.zeros(1))
    with pytest.raises(FullShelfError, match="whoever runs this"):
        shelf.add("she", "a", {}, torch.zeros(1))
    assert shelf.remove(shelf.of("me")[0])
    shelf.add("she", "a", {}, torch.zeros(1))
    small = Shelf(tmp_path / "small", "voice", Capacity(num_bytes=100))
    small.add("me", "a", {}, torch.zeros(100))
    with pytest.raises(FullShelfError):
        small.add("me", "b", {}, torch.zeros(1))


def test_many_threads_on_one_shelf(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "voice", Capacity(of_one=10))
    start = threading.Barrier(4)

    def work(number: int) -> int:
        start.wait()
        added = 0
        for i in range(10):
            try:
                shelf.add("me", f"{number}-{i}", {}, torch.zeros(1))
                added += 1
            except FullShelfError:
                shelf.of("me")
        return added

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 10
    assert len(shelf.of("me")) == len(list(tmp_path.iterdir())) == 10


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path, "voice", Capacity())

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speech_mtp.voices.shelf.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        shelf.add("me", "a", {}, torch.zeros(1))
    assert shelf.of("me") == []
    assert os.listdir(tmp_path) == []


# -- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"consent": None}, "consent", "consent_required"),
        ({"consent": "   "}, "consent", "consent_required"),
        ({"consent": "cons_" + "0" * 24}, "consent", "consent_not_found"),
        ({"consent": "cons_../../x"}, "consent", "consent_not_found"),
        ({"consent": "x" * 3000}, "consent", None),
        ({"consent": "a\0b"}, "consent", None),
        ({"name": None}, "name", None),
        ({"name": ""}, "name", None),
        ({"name": "../../etc/passwd"}, "name", None),
        ({"name": "..\\x"}, "name", None),
        ({"name": ".hidden"}, "name", None),
        ({"name": "a/b"}, "name", None),
        ({"name": "a\0b"}, "name", None),
        ({"name": "a\nb"}, "name", None),
        ({"name": "ann\n"}, "name", None),
        ({"name": "é"}, "name", None),
        ({"name": "x" * 65}, "name", None),
        ({"name": "x" * 70_000}, None, None),
        ({"name": "low"}, "name", "name_taken"),
        ({"name": "alloy"}, "name", "name_taken"),
        ({"type": "prompt"}, "type", None),
        ({"sample": b""}, "audio_sample", None),
        ({"sample": b"noise"}, "audio_sample", None),
        ({"sample": recording(0.5)}, "audio_sample", None),
        ({"sample": b"http://127.0.0.1/x.wav"}, "audio_sample", None),
    ],
)
def test_what_is_refused(server: Running, fields: dict[str, Any], param: str | None, code: str | None) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].endswith(".")
    assert listed(server) == []


def test_silence_is_no_voice(server: Running) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(48_000), 24_000, format="WAV")
    answer = post(server, file.getvalue())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "audio_sample")
    assert "silent" in answer.json()["error"]["message"]


def test_a_name_is_given_once(server: Running) -> None:
    assert post(server).status_code == 200
    again = post(server)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "name_taken")
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda _: post(server, name="ben").status_code, range(4)))
    assert statuses == [200, 400, 400, 400]


def test_too_much(server: Running) -> None:
    long = post(server, recording(61.0, "flac"))
    assert (long.status_code, long.json()["error"]["code"]) == (413, "audio_too_long")
    large = post(server, SAMPLE + b"\0" * (10 * 2**20))
    assert large.status_code == 413
    larger = post(server, SAMPLE + b"\0" * (11 * 2**20))
    assert (larger.status_code, larger.json()["error"]["code"]) == (413, "request_too_large")
    assert listed(server) == []


def test_an_operator_may_do_without_consent_and_limit_how_many_there_are(tmp_path: Path) -> None:
    own = settings(tmp_path, needs_consent=False, voice_capacity=Capacity(of_one=1))
    with serving(own) as server:
        server.http.headers["authorization"] = f"Bearer {KEYS[0]}"
        assert post(server, consent=None).status_code == 200
        full = post(server, name="ben", consent=None)
        assert (full.status_code, full.json()["error"]["code"]) == (400, "limit_reached")
        server.http.headers["authorization"] = f"Bearer {KEYS[1]}"
        assert post(server, consent=None).status_code == 200


def test_a_server_that_keeps_nothing_says_so() -> None:
    with serving() as server:
        for answer in (
            post(server),
            server.http.delete(f"{PATH}/ann"),
            server.http.get(CONSENTS),
            server.http.get(f"{CONSENTS}/x"),
            server.http.post(f"{CONSENTS}/x", json={"name": "x"}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_voices")
        assert server.http.get(PATH).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fetc%2fpasswd", "%00", "x" * 3000, "voice_" + "0" * 24, "low", "alloy", "%ed%a0%80", "..", "a%0ab", "*"],
)
def test_ids_in_paths(server: Running, path: str) -> None:
    post(server)
    for method, root in (("DELETE", PATH), ("GET", CONSENTS), ("DELETE", CONSENTS)):
        answer = server.http.request(method, f"{root}/{path}")
        assert answer.status_code in (404, 405), answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    renamed = server.http.post(f"{CONSENTS}/{path}", json={"name": "x"})
    assert renamed.status_code in (404, 405, 415)
    assert listed(server) == ["ann"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": 5},
        {"name": None},
        {"name": ["x"]},
        {"name": "x" * 300},
        {"name": "a\0"},
        [],
        "x",
    ],
)
def test_names_of_consents_that_are_wrong(server: Running, body: Any) -> None:
    made = _consent(server).json()
    answer = server.http.post(f"{CONSENTS}/{made['id']}", json=body)
    assert answer.status_code == 400, answer.text
    raw = server.http.post(
        f"{CONSENTS}/{made['id']}", content=b'{"name": "\\udfff"}', headers={"content-type": "application/json"}
    )
    assert (raw.status_code, raw.json()["error"]["code"]) == (400, "invalid_text")
    assert server.http.get(f"{CONSENTS}/{made['id']}").json()["name"] == "Ann"


def _consent(server: Running, sound: bytes = SAMPLE, **fields: Any) -> httpx2.Response:
    data = {"name": "Ann", "language": "en-US", **fields}
    sent = {key: value for key, value in data.items() if value is not None}
    return server.http.post(CONSENTS, files={"recording": ("a.wav", sound)}, data=sent)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": None}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"language": None}, "language"),
        ({"language": "../x"}, "language"),
        ({"sound": b"noise"}, "recording"),
        ({"sound": recording(0.2)}, "recording"),
    ],
)
def test_consents_that_are_refused(server: Running, fields: dict[str, Any], param: str) -> None:
    answer = _consent(server, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=nobody", "after=" + "x" * 99, "after=%00"])
def test_pages_that_are_refused(server: Running, query: str) -> None:
    answer = server.http.get(f"{CONSENTS}?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_random_bodies(server: Running) -> None:
    rng = random.Random(9)
    fields = {"name": "ann", "consent": "é"}
    request = httpx2.Request("POST", server.url + PATH, files={"audio_sample": ("a.wav", SAMPLE)}, data=fields)
    good, kind = request.read(), request.headers["content-type"]
    statuses = []
    for _ in range(100):
        answer = server.http.post(PATH, content=spoiled(good, rng), headers={"content-type": kind})
        statuses.append(answer.status_code)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses.count(400) > 20
    assert alike(server.post(input=TEXT, voice="low", response_format="pcm").content, spoken())
