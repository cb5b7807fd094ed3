from __future__ import annotations

import pytest
import torch

pytest.importorskip("speechmos", reason="needs the eval extra")

from speech_mtp.evaluation.distill_mos import distill_mos
from speech_mtp.evaluation.dnsmos import _judge, dnsmos
from speech_mtp.evaluation.judge_input import judge_wave


def test_noise_scores_low_and_loud_audio_is_accepted() -> None:
    pytest.importorskip("hibari", reason="needs the corpus extra")
    from hibari import Hibari

    speech = torch.from_numpy(Hibari()("We had soup for dinner, and it was good.", seed=1))
    clean = dnsmos(speech * 5 / speech.abs().max(), 24000)
    noisy = dnsmos(torch.randn(len(speech), generator=torch.Generator().manual_seed(0)) * 0.1, 24000)
    assert clean.overall > 2.5 > noisy.overall
    assert clean.p808 > noisy.p808
    theirs = pytest.importorskip("speechmos.dnsmos").run(judge_wave(speech, 24000), 16_000)
    ours = dnsmos(speech, 24000)
    assert ours.overall == pytest.approx(theirs["ovrl_mos"], abs=1e-4)
    assert ours.p808 == pytest.approx(theirs["p808_mos"], abs=1e-4)
    for session in (_judge().onnx_sess, _judge().p808_onnx_sess):
        assert session.get_session_options().intra_op_num_threads == 1


def test_the_second_opinion_tells_speech_from_noise(capsys: pytest.CaptureFixture[str]) -> None:
    distillmos = pytest.importorskip("distillmos", reason="needs the eval extra")
    hibari = pytest.importorskip("hibari", reason="needs the corpus extra")
    speech = torch.from_numpy(hibari.Hibari()("We had soup for dinner, and it was good.", seed=1))
    noise = torch.randn(len(speech), generator=torch.Generator().manual_seed(0))
    clean, noisy = distill_mos(speech, 24000), distill_mos(speech + noise * 0.3 * speech.std(), 24000)
    assert 5 > clean > 3.5 > 3 > noisy > 1
    assert distill_mos(0.1 * speech, 24000) == pytest.approx(clean, abs=0.01)
    padded = torch.cat([speech, torch.zeros(24_000)])
    assert distill_mos(padded, 24000) == pytest.approx(clean, abs=0.01)  # silence is put behind it anyway
    long = torch.cat([speech, speech, speech])
    theirs = distillmos.ConvTransformerSQAModel().eval()
    capsys.readouterr()
    with torch.inference_mode():
        assert distill_mos(long, 24000) == pytest.approx(
            float(theirs(torch.from_numpy(judge_wave(long, 24000))[None])), abs=1e-3
        )
    with pytest.raises(ValueError, match="cannot be judged"):
        distill_mos(torch.zeros(0), 24000)
    assert capsys.readouterr().out == ""
