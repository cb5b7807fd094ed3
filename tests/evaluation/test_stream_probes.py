"""Probes find what was planted: functions of the phoneme are certain, copies leak all, independent streams nothing."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import Tensor

from speech_mtp.evaluation.intervals import correlation, correlation_sums, estimate, ratio
from speech_mtp.evaluation.stream_probes import Aligned, stream_probes
from speech_mtp.types import CodecSpec

SIZE = 8
"""Codes of each stream, all equally likely: 3 bits."""


def utterances(kind: str, number: int = 60) -> list[Aligned]:
    """Content is a function of the phoneme; prosody is ``kind`` of: noise, copy (of the content), voice, pitch."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for i in range(number):
        voice = i % 2
        phonemes = torch.randint(SIZE, (20,), generator=rng)
        unit = torch.arange(20).repeat_interleave(3)
        content = (phonemes[unit] * 3 + 1) % SIZE
        noise = torch.randint(SIZE, (60,), generator=rng)
        pitch = torch.randint(SIZE, (60,), generator=rng)
        prosody = {"noise": noise, "copy": content, "voice": noise // 2 * 2 + voice, "pitch": pitch}[kind]
        log_f0 = pitch / 10 + 5 + voice
        log_f0[::5] = float("nan")
        frames = torch.stack([content, prosody])
        made.append(Aligned("ab"[voice], str(i), frames, phonemes, unit, log_f0, content / 2))
    return made


SPEC = CodecSpec(24_000, 25.0, {"content": slice(0, 1), "prosody": slice(1, 2)}, (SIZE, SIZE))


def probes(kind: str, spec: CodecSpec = SPEC) -> dict:
    return stream_probes(spec, utterances(kind), SIZE, 200, lambda what: None)


@cache
def apart() -> dict:
    return probes("noise")


def bits(report: dict, stream: str, condition: str) -> float:
    return report["entropy"][stream][f"given {condition}"]["bits_per_frame"]["value"]


def test_a_function_of_the_phoneme_costs_nothing_and_noise_costs_all() -> None:
    report = apart()
    assert bits(report, "content", "nothing") == pytest.approx(3, abs=0.1)
    assert bits(report, "content", "phonemes") < 0.1
    assert report["entropy"]["content"]["given phonemes"]["bits_per_second"] < 2.5
    assert bits(report, "prosody", "phonemes") == pytest.approx(3, abs=0.15)
    assert report["linear"]["content"]["phoneme"]["value"] > 0.98
    assert report["linear"]["prosody"]["phoneme"]["value"] < 0.3
    json.dumps(report)


def test_independent_streams_leak_nothing_and_a_copy_leaks_everything() -> None:
    told = "told by other streams"
    independent, copied = apart()["entropy"], probes("copy")["entropy"]
    for stream in ("content", "prosody"):
        assert independent[stream][told]["value"] == pytest.approx(0, abs=0.15)
        assert copied[stream][told]["value"] == pytest.approx(3, abs=0.2)
        assert copied[stream][f"{told}, phonemes known"]["value"] == pytest.approx(0, abs=0.15)


@pytest.mark.slow
def test_a_speaker_is_found_where_there_is_one() -> None:
    report = probes("voice")
    assert bits(report, "prosody", "phonemes") - bits(report, "prosody", "phonemes and voice") > 0.8
    found = report["linear"]
    assert found["prosody"]["speaker"]["value"] > 0.95
    assert found["prosody"]["speaker of the utterance"]["value"] == 1.0
    assert found["content"]["speaker"]["value"] < 0.7
    assert 0.4 < found["content"]["speaker"]["chance"] < 0.7


@pytest.mark.slow
def test_pitch_and_energy_are_found_where_they_are() -> None:
    found = probes("pitch")["linear"]
    assert found["prosody"]["log F0 over the voice's mean"]["value"] > 0.85
    assert found["prosody"]["log F0 over the voice's mean"]["r2"] > 0.3
    assert abs(found["content"]["log F0 over the voice's mean"]["value"]) < 0.25
    assert found["content"]["energy"]["value"] > 0.75
    assert found["phonemes"]["energy"]["value"] > 0.75
    assert abs(found["prosody"]["energy"]["value"]) < 0.3
    assert "phoneme" not in found["phonemes"]


def test_a_codec_without_roles_is_reported_by_its_one_stream() -> None:
    spec = CodecSpec(24_000, 25.0, {"codebooks": slice(0, 2)}, (SIZE, SIZE))
    report = probes("noise", spec)
    assert list(report["entropy"]) == ["codebooks"]
    assert bits(report, "codebooks", "nothing") == pytest.approx(6, abs=0.15)
    assert bits(report, "codebooks", "phonemes") == pytest.approx(3, abs=0.2)
    assert "told by other streams" not in report["entropy"]["codebooks"]


def test_one_voice_has_no_speaker_probe_and_few_sentences_are_refused() -> None:
    alone = [u for u in utterances("noise") if u.voice == "a"]
    report = stream_probes(SPEC, alone, SIZE, 10, lambda what: None)
    assert "speaker" not in report["linear"]["content"]
    with pytest.raises(ValueError, match="10 different sentences"):
        stream_probes(SPEC, alone[:9], SIZE, 10, lambda what: None)


def test_intervals_hold_the_value_and_narrow_with_more_utterances() -> None:
    def width(number: int) -> float:
        right = torch.arange(number).double() % 2
        found = estimate(torch.stack([right, torch.ones_like(right)], 1), ratio)
        low, high = found["interval"]
        assert low < found["value"] == 0.5 < high
        return high - low

    assert width(400) < 0.6 * width(50)


def test_correlation_of_sums_is_the_correlation() -> None:
    pair = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    pair[1] += pair[0]
    parts: list[Tensor] = [correlation_sums(*pair[:, :20]), correlation_sums(*pair[:, 20:])]
    assert float(correlation(torch.stack(parts).sum(0))) == pytest.approx(float(torch.corrcoef(pair)[0, 1]))
