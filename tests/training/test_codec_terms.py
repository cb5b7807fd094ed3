"""Terms of the codec's second form: views, predicted pitch, several scales, weight averages, sparing critics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speech_mtp import config as settings
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.nn.spectral import MultiScaleMel
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training import averaging
from speech_mtp.training.codec_data import NOBODY, CodecWeights, CriticConfig
from speech_mtp.training.distributed import Workers
from speech_mtp.training.loop import numbers
from speech_mtp.training.stages import TrainConfig
from speech_mtp.training.views import Views
from tests.training.test_codec import changed, task_of

VIEWS = CodecWeights(consistency=1.0, codes=0.5, multiscale=0.5)


def test_with_views_everything_learns_and_the_new_terms_are_there(humming: AudioStore) -> None:
    parts, scores = changed(task_of(humming, views=Views(), weights=VIEWS, ema=0.9, resample=0.0))
    assert parts == {"content", "prosody", "timbre", "speaker_of_prosody", "decoder", "phonemes"}
    assert {"consistency", "codes", "multiscale"} <= scores.keys()
    assert all(np.isfinite(value) for value in scores.values())


def test_views_wait_for_their_time(humming: AudioStore) -> None:
    task = task_of(humming, views=Views(after=1), weights=VIEWS, warp_share=1.0, resample=0.0)
    first = task.step(0, 1e-3)
    assert not {"consistency", "codes"} & first.keys()
    assert {"consistency", "codes"} <= task.step(1, 1e-3).keys()
    assert "equal_both" in task.evaluate()


def test_consistency_alone_draws_the_views_together(humming: AudioStore) -> None:
    task = task_of(humming, views=Views(), weights=VIEWS, batch=4, resample=0.0)
    batch = task.data.batch(0)

    def distance() -> Tensor:
        torch.manual_seed(0)
        return task.terms(batch)[0]["consistency"]

    before = distance()
    before.backward()
    with torch.no_grad():
        for parameter in task.codec.content.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad
    assert float(distance().detach()) < float(before.detach()) - 1e-4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_is_heard_by_its_view_and_is_nobody(humming: AudioStore, share: float) -> None:
    task = task_of(humming, views=Views(share=share), weights=VIEWS, batch=4, resample=0.0)
    batch, seen = task.data.batch(0), []
    terms = task.stream_terms

    def spy(batch: Any, content: Tensor, *more: Any) -> Any:
        seen.append((content, more[-1]))
        return terms(batch, content, *more)

    task.stream_terms = spy  # type: ignore[method-assign]
    task.terms(batch)
    content, voices = seen[0]
    mel, _, mask = task.codec.features(batch.wave, batch.lengths)
    plain, _ = task.codec.content_fsq(task.codec.content(mel, mask))
    assert torch.allclose(content, plain, atol=1e-5) == (share == 0)
    assert voices["content"].tolist() == ([NOBODY] * 4 if share else batch.voice.tolist())
    assert torch.equal(voices["prosody"], batch.voice)


def test_an_evaluation_tells_how_many_codes_stay(humming: AudioStore) -> None:
    scores = task_of(humming, views=Views(), weights=VIEWS, resample=0.0).evaluate()
    assert all(0 <= scores[f"equal_{name}"] <= 1 for name in ("pitch", "formants", "both", "noise"))


def test_the_average_is_what_is_evaluated_and_lags_the_weights(humming: AudioStore) -> None:
    task = task_of(humming, ema=0.5, resample=0.0)
    expected = averaging.average_of(task.codec)
    for number in range(3):
        task.step(number, 1e-2)
        averaging.update(expected, task.codec, 0.5, number)
    average = list(task.modules["average"].parameters())
    assert all(torch.equal(*pair) for pair in zip(average, expected.parameters(), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(average, task.codec.parameters(), strict=True))
    trained, seen = task.codec, []
    terms = task.terms
    task.terms = lambda batch: (seen.append(task.codec), terms(batch))[1]  # type: ignore[method-assign, func-returns-value]
    task.evaluate()
    assert all(codec is task.modules["average"] for codec in seen)
    assert task.codec is trained


def test_an_average_moves_by_its_decay_and_faster_in_early_steps() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = averaging.average_of(module)
    module.weight.data.fill_(1.0)
    averaging.update(average, module, 0.9, 10_000)
    assert float(average.weight) == pytest.approx(0.1)
    averaging.update(average, module, 0.9, 0)
    assert float(average.weight) == pytest.approx(1 - 0.9 / 20)
    assert not average.weight.requires_grad


def test_rows_without_guidance_sound_at_the_predicted_pitch() -> None:
    decoder = Decoupled.tiny(len(SYMBOLS)).train().decoder
    torch.manual_seed(0)
    content, prosody, lengths = torch.rand(2, 12, 4), torch.rand(2, 12, 3), torch.full((2,), 12)
    truth = Pitch(torch.full((2, 48), 6.0), torch.ones(2, 48))

    def wave(*given: Any) -> Tensor:
        state = decoder.open(2, torch.device("cpu"))
        state.timbre = torch.linspace(-1, 1, 16).view(2, 8)
        return decoder(state, content, prosody, lengths, *given)[0]

    mixed = wave(truth, torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], wave(truth)[0])
    torch.testing.assert_close(mixed[1], wave()[1])
    assert not torch.allclose(wave()[0], wave(truth)[0])
    gradients = torch.autograd.grad(wave().square().sum(), decoder.pitch_out.weight, allow_unused=True)
    assert gradients[0] is None or not gradients[0].any()


def test_several_scales_see_what_one_window_blurs() -> None:
    torch.manual_seed(0)
    loss = MultiScaleMel(24_000)
    wave = torch.randn(1, 12_000)
    assert float(loss(wave, wave)) == 0.0
    late = torch.roll(wave, 200, 1)
    assert float(loss(wave, late)) > 0.1


def test_critics_judge_a_part_of_the_crop_one_at_a_time(humming: AudioStore) -> None:
    settings = CriticConfig(width=8, crop_frames=4, every=2, one=True, rate=3.0)
    task = task_of(humming, weights=CodecWeights(critic=1.0), critics=settings)
    assert task.critics.critics[0].score.in_channels == 8
    fake, real = torch.arange(2 * 7_680.0).view(2, -1), torch.arange(2 * 7_680.0).view(2, -1) + 0.5
    choices = []
    for number in (0, 2, 4, 6):
        a, b, only = task._judged(fake, real, number)
        assert a.shape == (2, 4 * 960)
        assert torch.equal(b, a + 0.5)
        choices.append(only)
    assert choices == [0, 1, 2, 0]
    assert "critics" in task.step(2, 1e-3)
    rates = {name: o.param_groups[0]["lr"] for name, o in task.optimizers.items()}
    assert rates == {"codec": 1e-3, "critics": pytest.approx(3e-3)}
    assert "critics" not in task.step(3, 1e-3)


def test_critics_hear_no_more_than_is_decoded(humming: AudioStore) -> None:
    with pytest.raises(ValueError, match=r"critics\.crop_frames is 99"):
        task_of(humming, weights=CodecWeights(critic=1.0), critics=CriticConfig(crop_frames=99))


@pytest.mark.parametrize("wrong", ["width: 0", "every: 0", "crop_frames: -1", "rate: 0.0"])
def test_critics_that_cannot_be_are_refused(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"run: {{kind: codec, out: a, data: [b], task: {{critics: {{{wrong}}}}}}}")
    with pytest.raises(ValueError, match=f"critics.{wrong.split(':')[0]}"):
        settings.load(tmp_path / "r.yaml", TrainConfig)


def test_a_critic_whose_turn_it_is_not_stands_still(humming: AudioStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_noughts(_: Workers, parameters: list[nn.Parameter]) -> None:  # as several processes do
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    monkeypatch.setattr(Workers, "average_gradients", with_noughts)
    task = task_of(humming, weights=CodecWeights(critic=1.0), critics=CriticConfig(width=4, one=True))
    for number in range(4):
        before = [[p.clone() for p in critic.parameters()] for critic in task.critics.critics]
        task.step(number, 1e-3)
        moved = [
            any(not torch.equal(a, b) for a, b in zip(old, critic.parameters(), strict=True))
            for old, critic in zip(before, task.critics.critics, strict=True)
        ]
        assert moved == [k == number % 3 for k in range(3)]


def test_one_critic_alone_is_that_critic() -> None:
    torch.manual_seed(0)
    critics, fake, real = SpectrogramCritics(width=4), torch.randn(1, 4_800), torch.randn(1, 4_800)
    each = [critic_loss(critics, fake, real, only) for only in range(3)]
    torch.testing.assert_close(torch.stack(each).mean(), critic_loss(critics, fake, real))


def test_soft_levels_are_a_distribution_over_those_that_exist() -> None:
    fsq = FSQ((5, 3))
    log = fsq.log_probabilities(torch.tensor([[2.2, 1.0], [0.5, 2.0]]))
    torch.testing.assert_close(log.exp().sum(-1), torch.ones(2, 2))
    assert log.argmax(-1)[0].tolist() == [2, 1]
    assert log[..., 1, 3:].exp().sum() == 0
    assert float(log[1, 0, 0]) == pytest.approx(float(log[1, 0, 1]))


def test_the_log_reads_scalars_from_the_device() -> None:
    assert numbers({"a": torch.tensor(1.5, requires_grad=True).detach(), "b": 2.0}) == {"a": 1.5, "b": 2.0}
