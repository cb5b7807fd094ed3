"""Every recogniser of the folder keeps the promises of ``speech_mtp.frontends.base``."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soxr

from speech_mtp import plugins
from speech_mtp.corpus.teachers.base import SAMPLE_RATE as RATE
from speech_mtp.frontends.base import SAMPLE_RATE, Hint, Recogniser, Segment, joined


@pytest.fixture(scope="module", params=plugins.names("frontends"))
def recogniser(request: pytest.FixtureRequest) -> Recogniser:
    try:
        built: Recogniser = plugins.build("frontends", request.param)
        built.transcribe(np.zeros(SAMPLE_RATE, np.float32))
    except plugins.MissingExtra as missing:
        pytest.skip(str(missing))
    return built


def noise(seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def test_it_carries_a_name(recogniser: Recogniser) -> None:
    assert recogniser.name
    assert "/" not in recogniser.name


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5, 3.0])
def test_silence_says_nothing(recogniser: Recogniser, seconds: float) -> None:
    transcript = recogniser.transcribe(np.zeros(int(seconds * SAMPLE_RATE), np.float32))
    assert (transcript.text, transcript.segments, transcript.language) == ("", (), None)
    assert transcript.duration_s == pytest.approx(seconds, abs=1e-3)


def test_nothing_of_a_recording_goes_to_the_log(recogniser: Recogniser, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        recogniser.transcribe(noise(1), Hint(prompt="a secret"))
    assert caplog.records == []


def test_segments_are_in_order_and_inside(recogniser: Recogniser) -> None:
    wave = noise(2)
    transcript = recogniser.transcribe(wave, Hint(words=True, prompt="Well,"))
    times = [t for s in transcript.segments for t in (s.start_s, s.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= 2.5 for time in times)
    assert transcript == recogniser.transcribe(wave, Hint(words=True, prompt="Well,"))


def test_a_language_that_nobody_speaks_is_refused(recogniser: Recogniser) -> None:
    with pytest.raises(ValueError, match="language"):
        recogniser.transcribe(noise(0.5), Hint(language="tlh"))


@pytest.mark.parametrize("name", plugins.names("frontends"))
def test_construction_names_the_missing_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(module: str) -> ModuleType:
        raise ModuleNotFoundError(name=module)

    loader = {
        "import_module": staticmethod(load),
        "util": type("Util", (), {"find_spec": staticmethod(lambda n: None)}),
    }
    cls = plugins.find("frontends", name)
    monkeypatch.setattr(plugins, "importlib", type("Loader", (), loader))
    with pytest.raises(plugins.MissingExtra, match=r"speech-mtp\[asr\]"):
        cls()


def test_there_is_one() -> None:
    assert "faster_whisper" in plugins.names("frontends")
    assert inspect.isabstract(importlib.import_module("speech_mtp.frontends.base").Recogniser)


def test_segments_are_joined_as_they_are() -> None:
    transcript = joined([Segment(" Well,", 0, 1, "en"), Segment(" who?", 1, 2, "en")], 2.0)
    assert (transcript.text, transcript.language, transcript.duration_s) == ("Well, who?", "en", 2.0)


def test_a_folder_without_a_model_is_named(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        plugins.build("frontends", {"name": "faster_whisper", "folder": str(tmp_path)})


def test_features_are_as_many_as_the_rate_says_and_those_of_the_wave_alone(recogniser: Recogniser) -> None:
    if not recogniser.feature_rate_hz:
        with pytest.raises(ValueError, match="does not show"):
            recogniser.features([noise(1)])
        return
    waves = [noise(1.5), noise(2.01)]
    both = recogniser.features(waves)
    counts = [int(np.ceil(len(wave) / SAMPLE_RATE * recogniser.feature_rate_hz)) for wave in waves]
    assert [len(row) for row in both] == counts
    assert both[0].dtype == np.float32
    (alone,) = recogniser.features(waves[1:])
    assert np.allclose(both[1], alone, atol=0.05 * float(np.abs(alone).max()))
    assert not np.allclose(both[0], both[1][: len(both[0])], atol=0.1)


def test_a_wave_over_the_window_is_refused(recogniser: Recogniser) -> None:
    if recogniser.feature_rate_hz:
        with pytest.raises(ValueError, match="at a time"):
            recogniser.features([noise(29.5)])


def test_what_is_heard_does_not_depend_on_what_was_heard_before(recogniser: Recogniser) -> None:
    pytest.importorskip("hibari", reason="needs the offline extra")
    teacher = plugins.build("corpus.teachers", "hibari")
    texts = (Path(__file__).parents[2] / "recipes/corpus/dev_sentences.txt").read_text("utf-8").splitlines()[:2]
    waves = [soxr.resample(teacher.synthesize(text, "heart", 0).wave, RATE, SAMPLE_RATE) for text in texts]
    words = Hint(words=True)
    before = [recogniser.transcribe(wave, words) for wave in waves]
    assert all(len(heard.text.split()) > 3 for heard in before)
    recogniser.transcribe((2 * waves[0]).clip(-1, 1))
    assert [recogniser.transcribe(wave, words) for wave in waves] == before
