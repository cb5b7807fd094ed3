"""The codec's task takes real steps; with kept codes only the decoder learns, and codes made before stay good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore, AudioStoreWriter
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training import codec as training
from speech_mtp.training.codec import CodecTask, speaker_loss
from speech_mtp.training.codec_data import (
    NOBODY,
    CodecBatch,
    CodecData,
    CodecTaskConfig,
    CodecWeights,
    shift_voice,
    warp_frequency,
)
from speech_mtp.training.loop import numbers
from speech_mtp.training.source_filter_task import fill_unvoiced

RATE, HOP = 24_000, 240


def task_of(humming: AudioStore, **settings: Any) -> CodecTask:
    config = CodecTaskConfig(**{"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "amp": False, **settings})
    return CodecTask(Decoupled.tiny(len(SYMBOLS)), humming, config, torch.device("cpu"))


def changed(task: CodecTask, steps: int = 2) -> tuple[set[str], dict[str, float]]:
    """The parts of the codec whose weights are others after ``steps``, and the terms of the last step."""
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    scores: dict[str, float] = {}
    for number in range(steps):
        scores = numbers(task.step(number, 1e-3))
    after = dict(task.codec.named_parameters())
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}, scores


def codes_of(codec: Decoupled, wave: Tensor) -> Tensor:
    with torch.no_grad():
        return codec.eval().encode(wave[None, None]).frames


@pytest.mark.parametrize("critic", [0.0, 1.0])
def test_everything_learns(humming: AudioStore, critic: float) -> None:
    parts, scores = changed(task_of(humming, weights=CodecWeights(critic=critic)))
    assert parts == {"content", "prosody", "timbre", "speaker_of_prosody", "decoder", "phonemes"}
    terms = {"ctc", "adversary", "energy", "pitch", "voicing", "stft", "convergence", "mel", "heard", "loss"}
    assert scores.keys() == terms | ({"critics", "critic", "feature"} if critic else set())
    assert all(np.isfinite(value) for value in scores.values())


def test_single_frames_tell_phonemes_too_and_what_is_often_said_is_dear(humming: AudioStore) -> None:
    """``near`` reaches the content encoder; priors are learnt in training alone, and change both losses."""
    plain = task_of(humming, weights=CodecWeights(near=0.5))
    task = task_of(humming, weights=CodecWeights(near=0.5), ctc_prior=0.5)
    scores = {}
    for name, one in (("plain", plain), ("prior", task)):
        torch.manual_seed(0)
        scores[name] = numbers(one.step(0, 0.0))
    assert all(abs(scores["plain"][term] - scores["prior"][term]) > 0.01 for term in ("ctc", "near"))
    priors = [task.helpers[f"{name}_prior"].share.clone() for name in ("ctc", "near")]
    assert all(float((share - 1 / len(SYMBOLS)).abs().max()) > 0 for share in priors)
    found = task.evaluate()
    assert "near" in found
    assert all(
        torch.equal(task.helpers[f"{name}_prior"].share, share)
        for name, share in zip(("ctc", "near"), priors, strict=True)
    )

    only = dict.fromkeys(CodecWeights().__dict__, 0.0) | {"near": 1.0}
    parts, _ = changed(task_of(humming, weights=CodecWeights(**only)))
    assert "content" in parts


def test_content_is_told_to_use_all_its_levels(humming: AudioStore) -> None:
    only = dict.fromkeys(CodecWeights().__dict__, 0.0) | {"spread": 1.0}
    task = task_of(humming, weights=CodecWeights(**only), warp_share=0.0)
    course = [numbers(task.step(0, 1e-3))["spread"] for _ in range(30)]  # one batch, again and again
    assert 0 < course[-1] < 0.7 * course[0]


def test_the_log_counts_codes_in_use(humming: AudioStore) -> None:
    """The exponential of the entropy of the codes of the batches that are measured."""
    task = task_of(humming)
    found, codec = task.evaluate(), Decoupled.tiny(len(SYMBOLS))
    for k, stream in enumerate(codec.spec.streams):
        said = []
        for number in range(4):
            batch = task.dev_data.batch(number)
            codes = codec.encode(batch.wave[:, None], batch.lengths)
            said += [row[k, :length] for row, length in zip(codes.frames, codes.lengths.tolist(), strict=True)]
        law = torch.bincount(torch.cat(said)).double() / len(torch.cat(said))
        entropy = -(law[law > 0] * law[law > 0].log()).sum()
        assert found[f"{stream}_perplexity"] == pytest.approx(float(entropy.exp()))


def test_with_kept_codes_only_the_decoder_learns(humming: AudioStore) -> None:
    task = task_of(humming, keep_codes=True)
    wave = humming.wave(0)
    before = codes_of(task.codec, wave)
    parts, scores = changed(task)
    assert parts == {"decoder"}
    assert scores.keys() == {"pitch", "voicing", "stft", "convergence", "mel", "heard", "loss"}
    assert torch.equal(codes_of(task.codec, wave), before)


def test_with_kept_codes_the_decoder_hears_content_as_it_is_encoded(humming: AudioStore) -> None:
    """No other speed and no warped frequencies, however much of both the settings ask for."""
    task = task_of(humming, keep_codes=True, resample=1.0, warp=0.3)
    batch = task.data.batch(0)
    heard, _ = streams_of(task, batch)
    for content, wave, length in zip(heard, batch.wave, batch.lengths.tolist(), strict=True):
        expected, _ = task.codec.values(codes_of(task.codec, wave[:length]))
        torch.testing.assert_close(content[: expected.shape[1]], expected[0], atol=1e-5, rtol=1e-5)
    assert set(batch.lengths.tolist()) <= {row.samples for row in humming.rows}


def streams_of(task: CodecTask, batch: CodecBatch) -> tuple[Tensor, Tensor]:
    """Content and prosody as the decoder gets them in training."""
    decode, heard = task.decode_crop, []

    def spy(batch: CodecBatch, content: Tensor, prosody: Tensor, timbre: Tensor) -> Any:
        heard.append((content.detach(), prosody.detach()))
        return decode(batch, content, prosody, timbre)

    task.decode_crop = spy  # type: ignore[method-assign]
    task.terms(batch)
    return heard[0]


def test_kept_codes_are_those_of_encode_in_mixed_precision_too(humming: AudioStore) -> None:
    task = task_of(humming, keep_codes=True, amp=True, batch=8)
    batch = task.data.batch(0)
    encoded = task.codec.encode(batch.wave[:, None], batch.lengths)
    for ours, theirs in zip(streams_of(task, batch), task.codec.values(encoded.frames), strict=True):
        assert torch.equal(ours, theirs)


# -- the terms --------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_weighted_sum_of_its_terms(humming: AudioStore) -> None:
    weights = CodecWeights(stft=2.0, ctc=0.5, critic=0.7, feature=3.0)
    task = task_of(humming, weights=weights, critic_from=1)
    for number, adversarial in enumerate([False, True]):
        scores = numbers(task.step(number, 1e-3))
        assert [name in scores for name in ("critics", "critic", "feature")] == [adversarial] * 3
        parts = [getattr(weights, name) * value for name, value in scores.items() if name not in ("loss", "critics")]
        assert scores["loss"] == pytest.approx(sum(parts), rel=1e-4)


def test_gradients_are_clipped_before_they_are_used(humming: AudioStore) -> None:
    task = task_of(humming, weights=CodecWeights(mel=1e4))
    norms: list[float] = []
    parameters = [*task.codec.parameters(), *task.helpers.parameters()]

    def note(*_: Any) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))

    task.optimizers["codec"].register_step_pre_hook(note)
    task.step(0, 1e-3)
    assert norms == pytest.approx([5.0], rel=1e-3)


def test_every_term_of_the_sound_teaches_the_decoder_and_none_the_ear(humming: AudioStore) -> None:
    task = task_of(humming)
    terms, fake, _ = task.terms(task.data.batch(0))
    for name in ("stft", "convergence", "mel", "heard"):
        (gradient,) = torch.autograd.grad(terms[name], fake, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    task.heard(torch.randn(1, 9_600)).sum().requires_grad_().backward()
    assert all(weight.grad is None for weight in task.codec.content.parameters())


def test_the_sound_must_say_what_the_codes_say(humming: AudioStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording says it better than noise does; the term teaches the decoder, and neither the encoder nor the
    phoneme head."""
    task = task_of(humming, weights=CodecWeights(said=1.0), crop_frames=24)
    with torch.no_grad():  # an untrained head says the same of everything
        for weight in task.codec.phonemes.parameters():
            weight.mul_(4)
    batch = task.data.batch(0)
    terms, fake, real = task.terms(batch)
    (gradient,) = torch.autograd.grad(terms["said"], fake, retain_graph=True)
    assert gradient.abs().sum() > 0
    task.codec.zero_grad()
    values = task.codec.values(task.codec.encode(batch.wave[:, None], batch.lengths).frames)[0]

    def said(wave: Tensor) -> Tensor:
        return task.sound_terms(wave, values, batch.crop)["said"]

    loud = torch.randn_like(real).requires_grad_()
    assert abs(float(said(real))) < 1e-5 < 0.1 < float(said(loud).detach())
    said(loud).backward()
    assert loud.grad is not None
    assert all(weight.grad is None for weight in task.codec.parameters())
    with torch.no_grad():
        inner = float(said(real))
        monkeypatch.setattr("speech_mtp.training.codec.EDGE", 0)
        assert float(said(real)) != inner  # the ends are not asked


def test_crops_too_short_to_be_asked_are_refused(humming: AudioStore) -> None:
    with pytest.raises(ValueError, match="more than 16 frames"):
        task_of(humming, weights=CodecWeights(said=1.0), crop_frames=16)


def test_padding_adds_nothing_to_the_terms_of_a_stream(humming: AudioStore) -> None:
    task = task_of(humming, batch=1)
    batch, frames, n = task.data.batch(0), 40, 25
    batch.frames = torch.tensor([n])
    torch.manual_seed(0)
    content, prosody, loudness = torch.randn(1, frames, 4), torch.randn(1, frames, 3), torch.randn(1, 4 * frames)
    mask = (torch.arange(frames) < n).float()[None, :, None]
    voices = {"content": batch.voice, "prosody": batch.voice}
    with torch.no_grad():
        padded = task.stream_terms(batch, content, prosody, loudness, mask, voices)
        cut = [content[:, :n], prosody[:, :n], loudness[:, : 4 * n], mask[:, :n]]
        alone = task.stream_terms(batch, *cut, voices)
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, msg=name)


def test_pitch_is_judged_where_there_is_a_voice() -> None:
    """A guess of 5.0 everywhere and a truth of 100 Hz in some steps, which stands in the others too."""
    torch.testing.assert_close(
        fill_unvoiced(torch.tensor([[0.0, 100.0, 0.0, 200.0, 0.0], [0.0] * 5])).exp(),
        torch.tensor([[100.0, 100.0, 100.0, 200.0, 200.0], [150.0] * 5]),
    )
    codec = Decoupled.tiny(len(SYMBOLS)).train()
    with torch.no_grad():
        for layer in (codec.decoder.pitch_out, codec.decoder.pitch_mean):
            layer.weight.zero_()
        codec.decoder.pitch_out.bias.zero_()
    task = CodecTask.__new__(CodecTask)
    task.codec, task.config, task.device = codec, CodecTaskConfig(crop_frames=8, amp=False), torch.device("cpu")
    batch = CodecBatch(torch.zeros(1, 9_600), *[torch.tensor([0])] * 9)  # type: ignore[arg-type]
    batch.pitch = torch.tensor([[100.0, 0.0, 0.0, 0.0] * 20])
    _, _, terms = task.decode_crop(batch, torch.zeros(1, 10, 4), torch.zeros(1, 10, 3), torch.zeros(1, 8))
    assert float(terms["pitch"]) == pytest.approx(5 - np.log(100), abs=1e-4)


def test_an_evaluation_repeats_itself(humming: AudioStore) -> None:
    task = task_of(humming, weights=CodecWeights(heard=0.0))
    torch.manual_seed(1)
    once = task.evaluate()
    torch.manual_seed(2)
    assert task.evaluate() == once


# -- what is trained on -----------------------------------------------------------------------------------------------
def picked(data: CodecData, batches: int = 30) -> list[tuple[int, int]]:
    """The rows that utterances and their references come from, in so many batches."""
    speech, seen = data._speech, []

    def spy(rng: np.random.Generator, index: int, other: int) -> Any:
        seen.append((int(index), int(other)))
        return speech(rng, index, other)

    data._speech = spy  # type: ignore[method-assign]
    for number in range(batches):
        data.batch(number)
    return seen


def test_dev_sentences_are_never_trained_on(humming: AudioStore) -> None:
    task = task_of(humming)
    training_rows = {i for pair in picked(task.data) for i in pair}
    assert training_rows == set(range(8))
    seen = picked(task.dev_data, 0)
    task.data.batch = None  # type: ignore[method-assign, assignment]
    dev = task.dev_data.batch
    task.dev_data.batch = lambda number: dev(number)  # type: ignore[method-assign]
    task.evaluate()
    assert {i for pair in seen for i in pair} <= set(range(8, 12))
    assert len(seen) == 8


def test_a_sentence_held_out_in_one_store_is_held_out_in_all(humming_folder: Path, tmp_path: Path) -> None:
    writer = AudioStoreWriter(tmp_path)
    for i in range(3):
        wave, pitch = np.zeros(RATE, np.float32), np.zeros(RATE // HOP, np.float32)
        writer.append(f"more{i}", "low", f"hello, {'bef'[i]}", "həlˈO", "train", wave, pitch)
    writer.close()
    joined = AudioStore([humming_folder, tmp_path])
    assert {i for pair in picked(task_of(joined).data) for i in pair} == {*range(8), 12}


def test_a_corpus_without_dev_sentences_is_refused(tmp_path: Path, humming: AudioStore) -> None:
    writer = AudioStoreWriter(tmp_path)
    for i in range(3):
        wave, pitch = np.zeros(RATE, np.float32), np.zeros(RATE // HOP, np.float32)
        writer.append(f"{i}", "low", f"hello {i}", "həlˈO", "train", wave, pitch)
    writer.close()
    with pytest.raises(ValueError, match="no voice with two dev utterances"):
        task_of(AudioStore([tmp_path]))


def test_the_reference_is_another_utterance_of_the_voice(humming: AudioStore) -> None:
    pairs = picked(task_of(humming).data, 100)
    assert all(index != other and index % 2 == other % 2 for index, other in pairs)


def test_the_reference_is_as_fast_as_the_utterance_and_cut(humming: AudioStore) -> None:
    data = task_of(humming, batch=4, resample=1.0, reference_s=0.5).data
    pairs, batch = picked(data, 0), data.batch(0)
    for (index, _), length, reference in zip(pairs, batch.lengths, batch.reference_lengths, strict=True):
        assert float(reference) / (0.5 * RATE) == pytest.approx(float(length) / humming.rows[index].samples, rel=1e-3)


def test_padding_is_no_speech_in_the_reference(humming: AudioStore) -> None:
    task = task_of(humming, batch=8, reference_s=3.0, resample=0.0)
    batch = task.data.batch(0)
    assert len(set(batch.reference_lengths.tolist())) > 1
    decode, given = task.decode_crop, []

    def spy(batch: CodecBatch, content: Tensor, prosody: Tensor, timbre: Tensor) -> Any:
        given.append(timbre)
        return decode(batch, content, prosody, timbre)

    task.decode_crop = spy  # type: ignore[method-assign]
    task.terms(batch)
    for timbre, wave, length in zip(given[0], batch.reference, batch.reference_lengths.tolist(), strict=True):
        mel, _, mask = task.codec.features(wave[None, :length], torch.tensor([length]))
        torch.testing.assert_close(timbre, task.codec.timbre(mel, mask)[0], atol=1e-4, rtol=1e-4)


# -- the speaker adversary --------------------------------------------------------------------------------------------
def test_a_voice_at_another_speed_is_nobody(humming: AudioStore) -> None:
    data = task_of(humming, batch=8, resample=0.5).data
    pairs, batch = picked(data, 0), data.batch(0)
    for (index, _), length, label in zip(pairs, batch.lengths.tolist(), batch.voice.tolist(), strict=True):
        as_spoken = length == humming.rows[index].samples
        assert label == (data.voices.index(humming.rows[index].voice) if as_spoken else NOBODY)
    assert 0 < (batch.voice == NOBODY).sum() < 8


def test_a_voice_on_a_warped_axis_is_nobody_in_content_alone(
    humming: AudioStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(humming, batch=8, resample=0.0)
    factors: list[Tensor] = []
    labels: list[Tensor] = []

    def warp(mel: Tensor, given: Tensor) -> Tensor:
        factors.append(given)
        return warp_frequency(mel, given)

    def loss(guesses: Tensor, voices: Tensor) -> Tensor:
        labels.append(voices)
        return speaker_loss(guesses, voices)

    monkeypatch.setattr(training, "warp_frequency", warp)
    monkeypatch.setattr(training, "speaker_loss", loss)
    torch.manual_seed(0)
    batch = task.data.batch(0)
    task.terms(batch)
    warped = factors[0] != 1
    assert 0 < warped.sum() < 8
    content, prosody = labels
    assert torch.equal(content, batch.voice.masked_fill(warped, NOBODY))
    assert torch.equal(prosody, batch.voice)


def test_rows_without_a_label_add_nothing_to_the_speaker_loss() -> None:
    guesses = torch.randn(4, 3, requires_grad=True)
    loss = speaker_loss(guesses, torch.tensor([1, NOBODY, 2, NOBODY]))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(guesses[[0, 2]], torch.tensor([1, 2])))
    loss.backward()
    assert guesses.grad is not None
    assert not guesses.grad[[1, 3]].any()
    assert float(speaker_loss(guesses.detach(), torch.full((4,), NOBODY))) == 0.0


def test_the_classifier_learns_the_voice_and_the_streams_unlearn_it(humming: AudioStore) -> None:
    """A small step against its gradient lowers the loss for the classifier, and raises it for the streams."""
    task = task_of(humming, batch=8)
    batch = task.data.batch(0)
    torch.manual_seed(0)
    frames = batch.wave.shape[1] // task.codec.spec.samples_per_frame
    sizes = len(task.codec.config.content_levels), len(task.codec.config.prosody_levels)
    streams = [torch.randn(8, frames, size, requires_grad=True) for size in sizes]
    mask, loudness = torch.ones(8, frames, 1), torch.zeros(8, 4 * frames)
    voices = {"content": torch.arange(8) % 2, "prosody": torch.arange(8) % 2}

    def adversary(content: Tensor, prosody: Tensor) -> Tensor:
        return task.stream_terms(batch, content, prosody, loudness, mask, voices)["adversary"]

    loss = adversary(*streams)
    loss.backward()
    for stream in streams:
        assert stream.grad is not None
        moved = [s - 100 * s.grad if s is stream else s for s in streams]  # type: ignore[operator]
        assert float(adversary(*moved)) > float(loss) + 1e-4
    with torch.no_grad():
        for parameter in task.helpers.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert float(adversary(*streams)) < float(loss) - 1e-4


# -- voices, axes, crops ----------------------------------------------------------------------------------------------
def peak_hz(wave: Tensor) -> float:
    power = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    return float(power.argmax()) * RATE / len(wave)


@pytest.mark.parametrize(("up", "down"), [(10, 9), (7, 8)])
def test_another_speed_moves_tempo_pitch_and_formants_together(up: int, down: int) -> None:
    """A hum that glides, as its pitch track says, below a steady tone that stands for a formant."""
    time = torch.arange(2 * RATE) / RATE
    hum, formant = (
        0.1 * torch.sin(2 * torch.pi * (150 * time + 25 * time.square())),
        torch.sin(2 * torch.pi * 2_000 * time),
    )
    pitch = 150 + 50 * (torch.arange(200) + 1) / 100
    factor = down / up
    shifted, track = shift_voice(hum + formant, pitch, up, down, HOP)
    assert len(shifted) == pytest.approx(len(time) / factor, abs=2)
    assert len(track) == -(-len(shifted) // HOP)
    assert peak_hz(shifted) == pytest.approx(2_000 * factor, rel=2e-3)
    for step in (50, 100, 150):
        around = shifted[(step + 1) * HOP - RATE // 10 : (step + 1) * HOP + RATE // 10]
        power = torch.fft.rfft(around * torch.hann_window(len(around)), 8 * len(around)).abs()
        low = power[: int(600 * 8 * len(around) / RATE)].argmax() * RATE / (8 * len(around))
        assert float(track[step]) == pytest.approx(float(low), rel=2e-2)


def test_an_unvoiced_step_stays_unvoiced_at_another_speed() -> None:
    pitch = torch.tensor([0.0] * 50 + [100.0] * 50)
    _, track = shift_voice(torch.zeros(RATE), pitch, 10, 9, HOP)
    assert sorted(set(track.tolist())) == pytest.approx([0.0, 90.0])
    assert int((track == 0).sum()) == pytest.approx(len(track) / 2, abs=1)


def test_a_warped_axis_moves_every_band_by_the_factor_of_its_row() -> None:
    bands = torch.arange(80.0)
    mel = torch.exp(-0.5 * ((bands - 40) / 2).square()).expand(3, 5, 80)
    warped = warp_frequency(mel, torch.tensor([1.0, 1.25, 0.8]))
    torch.testing.assert_close(warped[0], mel[0])
    expected = torch.stack([torch.exp(-0.5 * ((bands * f - 40) / 2).square()) for f in (1.25, 0.8)])
    torch.testing.assert_close(warped[1:], expected[:, None].expand(-1, 5, -1), atol=0.03, rtol=0.0)
    assert warped[1:, 0].argmax(1).tolist() == [32, 50]


def test_a_decoded_crop_is_that_crop_of_the_whole_decoded() -> None:
    """At 100 Hz a frame is four periods, so pulses of a crop fall where those of the whole do; noise is silenced."""
    codec = Decoupled.tiny(len(SYMBOLS)).train()
    decoder, size, frames, n, context = codec.decoder, codec.spec.samples_per_frame, 40, 16, 9
    decoder.noise.zero_()
    torch.manual_seed(1)
    content, prosody = torch.rand(2, frames, 4) * 2 - 1, torch.rand(2, frames, 3) * 2 - 1
    timbre, wave = torch.randn(2, 8), torch.randn(2, frames * size)
    hertz = torch.where(torch.rand(2, 4 * frames) < 0.6, 100.0, 0.0)
    batch = CodecBatch(wave, *[torch.tensor([0])] * 7, crop=torch.tensor([7, 20]), frames=torch.tensor([40, 40]))  # type: ignore[arg-type]
    batch.pitch = hertz
    task = CodecTask.__new__(CodecTask)
    task.codec, task.config, task.device = codec, CodecTaskConfig(crop_frames=n, amp=False), torch.device("cpu")
    with torch.no_grad():
        fake, real, _ = task.decode_crop(batch, content, prosody, timbre)
        state = decoder.open(2, torch.device("cpu"))
        state.timbre, state.f0 = timbre, torch.full((2,), 100.0, dtype=torch.float64)
        late = torch.nn.functional.pad(hertz, (4, 0))[:, : 4 * frames]
        truth = Pitch(torch.full_like(late, 100.0).log(), (late > 0).float())
        raw, _ = decoder(state, content, prosody, torch.full((2,), frames), truth)
    whole = raw[:, decoder.delay_samples :]
    for row, at in enumerate([7, 20]):
        assert torch.equal(real[row], wave[row, at * size : (at + n) * size])
        expected = whole[row, (at + context) * size : (at + n) * size]
        error = fake[row, context * size :] - expected
        assert float(error.square().mean()) < 1e-5 * float(expected.square().mean())


def test_pitch_is_predicted_in_full_precision_under_autocast() -> None:
    """In bf16 neighbours of log Hz near 5 are half a semitone apart."""
    decoder = Decoupled.tiny(len(SYMBOLS)).train().decoder
    torch.manual_seed(0)
    content, prosody, lengths = torch.rand(2, 12, 4), torch.rand(2, 12, 3), torch.full((2,), 12)

    def predicted() -> Any:
        state = decoder.open(2, torch.device("cpu"))
        state.timbre = torch.linspace(-1, 1, 16).view(2, 8)
        return decoder(state, content, prosody, lengths)[1]

    exact = predicted()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = predicted()
    assert mixed.log_f0.dtype == mixed.voiced.dtype == torch.float32
    torch.testing.assert_close(mixed.log_f0, exact.log_f0, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed.voiced, exact.voiced, atol=1e-6, rtol=0)


def test_batches_are_a_function_of_their_number(humming: AudioStore) -> None:
    one, other = task_of(humming).data, task_of(humming).data
    assert torch.equal(one.batch(3).wave, other.batch(3).wave)
    assert one.batch(3).wave.shape != one.batch(4).wave.shape or not torch.equal(one.batch(3).wave, one.batch(4).wave)
    assert not torch.equal(
        one.batch(3).wave.flatten()[:RATE], task_of(humming, seed=1).data.batch(3).wave.flatten()[:RATE]
    )
    assert len({int(crop) for number in range(4) for crop in one.batch(number).crop}) > 2
