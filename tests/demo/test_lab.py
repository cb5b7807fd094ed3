"""What the page asks of Python: ways of decoding that race, and recordings in another voice."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from speech_mtp.decoding.text import start
from speech_mtp.lm.chat import opening
from speech_mtp.types import Sampling
from tests.demo.showing import showing
from tests.serving.chatting import LM
from tests.serving.running import Running, serving, until
from tests.tiny import tiny_model_without_timbre

from speech_mtp_demo.text_lab import FORGOTTEN_S, MOST_JOBS, Asked, Job, TextLab, Way  # isort: skip # after gradio
from speech_mtp_demo.timbre import RATE, Timbre  # isort: skip

PROMPT = "Hello there!"
PLAIN = {"head": "none", "rule": "vanilla"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with showing() as running:
        yield running


@pytest.fixture
def lab(server: Running) -> TextLab:
    return TextLab(server.service)


def finished(lab: TextLab, **asked: Any) -> dict[str, Any]:
    """The end of a measurement."""
    job = lab.begin({"prompt": PROMPT, "max_new_tokens": 24, **asked})["job"]
    until(lambda: lab.more({"job": job})["over"])
    told: dict[str, Any] = lab.more({"job": job})
    return told


def test_every_way_writes_what_the_model_writes_alone(lab: TextLab) -> None:
    heads = lab.options()["heads"]
    assert [head["name"] for head in heads] == ["medusa", "none"]
    ways = [{"head": head["name"], "rule": rule} for head in heads for rule in head["rules"]]
    told = finished(lab, ways=ways)
    assert told["error"] is None
    run = start(LM, [opening(LM.tokenizer, [{"role": "user", "content": PROMPT}])], Sampling(temperature=0))
    alone = [LM.tokenizer.decode([token]) for token in run.complete()[0][:24]]
    for way, lane in zip(ways, told["lanes"], strict=True):
        assert [token["text"] for step in lane["steps"] for token in step["tokens"]] == alone, way
        assert lane["tokens"] == 24
        assert lane["tokens_per_forward"] == pytest.approx(24 / lane["forwards"])
    plain = told["lanes"][ways.index(PLAIN)]
    assert plain["forwards"] == 24
    assert not any(token["drafted"] for step in plain["steps"] for token in step["tokens"])


def test_a_step_is_a_tree_whose_kept_nodes_are_its_drafted_tokens(lab: TextLab) -> None:
    (lane,) = finished(lab, ways=[{"head": "medusa", "rule": "tree"}])["lanes"]
    assert any(len(step["nodes"]) > 2 for step in lane["steps"])
    for step in lane["steps"]:
        nodes = step["nodes"]
        assert [node["parent"] for node in nodes[:1]] == [-1]
        assert all(0 <= node["parent"] < i for i, node in enumerate(nodes) if i)
        assert all(nodes[node["parent"]]["kept"] for node in nodes[1:] if node["kept"])
        kept = [node["text"] for node in nodes[1:] if node["kept"]]
        assert kept == [token["text"] for token in step["tokens"] if token["drafted"]]


def test_a_page_gets_only_the_steps_that_it_has_not_seen(lab: TextLab) -> None:
    job = lab.begin({"prompt": PROMPT, "ways": [PLAIN], "max_new_tokens": 8})["job"]
    until(lambda: lab.more({"job": job})["over"])
    assert len(lab.more({"job": job, "seen": [5]})["lanes"][0]["steps"]) == 3
    assert lab.more({"job": job, "seen": [8]})["lanes"][0]["steps"] == []


def test_what_cannot_be_measured_is_refused_in_a_sentence(lab: TextLab) -> None:
    for asked in (None, {}, {"prompt": "", "ways": [PLAIN]}, {"prompt": "x" * 2001, "ways": [PLAIN]}):
        assert "Write a prompt" in lab.begin(asked)["error"]
    assert "no such head" in finished(lab, ways=[{"head": "nothing", "rule": "tree"}])["error"]
    assert "there is none" in finished(lab, ways=[{"head": "none", "rule": "tree"}])["error"]
    for asked in (None, {}, {"job": "nothing"}):
        assert "has ended" in lab.more(asked)["error"]


def test_too_many_measurements_are_told_to_wait(lab: TextLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_thread", type("Idle", (), {"submit": lambda *_: None})())
    for _ in range(MOST_JOBS):
        assert "job" in lab.begin({"prompt": PROMPT, "ways": [PLAIN]})
    assert "try again soon" in lab.begin({"prompt": PROMPT, "ways": [PLAIN]})["error"]


def test_a_measurement_ends_when_nobody_looks() -> None:
    now = time.monotonic()
    job = Job(Asked(prompt=PROMPT, ways=[Way(**PLAIN)]), clock=lambda: now)
    now += FORGOTTEN_S + 1
    job.work(LM, {"none": None})
    assert job.over
    assert job.lanes == []


def test_a_server_without_a_language_model_offers_nothing() -> None:
    with serving() as server:
        lab = TextLab(server.service)
        assert "--llm packaged" in lab.options()["error"]
        assert "--llm packaged" in lab.begin({"prompt": PROMPT, "ways": [PLAIN]})["error"]


# -- recordings -----------------------------------------------------------------------------------------------------
def sound(seconds: float) -> str:
    wave = 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.05)
    return base64.b64encode((wave * 32767).astype("<i2").tobytes()).decode()


def test_a_recording_is_said_again_in_another_voice(server: Running) -> None:
    timbre = Timbre(server.service)
    said = [
        base64.b64decode(timbre.swap({"audio": sound(1.0), "voice": voice}, "")["audio"]) for voice in ("low", "high")
    ]
    assert [len(wave) for wave in said] == [2 * RATE, 2 * RATE]
    low, high = (np.frombuffer(wave, "<i2").astype(float) for wave in said)
    assert np.abs(low).max() > 0
    assert not np.allclose(low, high)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (None, "can be read"),
        ({"audio": "%%%", "voice": "low"}, "can be read"),
        ({"audio": "AAA=", "voice": "low"}, "seconds"),
        ({"audio": sound(15.1), "voice": "low"}, "seconds"),
        ({"audio": sound(1.0), "voice": "nobody"}, "no such voice"),
        ({"audio": sound(1.0), "voice": "../low"}, "not the name of a voice"),
    ],
)
def test_a_bad_recording_is_refused_in_a_sentence(server: Running, asked: Any, sentence: str) -> None:
    assert sentence in Timbre(server.service).swap(asked, "")["error"]


def test_a_codec_without_timbre_says_no_recording_again() -> None:
    with serving(model=tiny_model_without_timbre()) as server:
        assert "has no timbre" in Timbre(server.service).swap({"audio": sound(1.0), "voice": "low"}, "")["error"]
