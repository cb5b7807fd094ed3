"""Codecs of waveforms learn from nothing, and code as they were trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_mtp import hub, plugins
from speech_mtp.codecs._rowwise import TrainableCodec
from speech_mtp.corpus.features import Features
from speech_mtp.corpus.store import AudioStore
from speech_mtp.nn.ema_vq import EmaBook, quantised
from speech_mtp.training import runs
from speech_mtp.training.codec_data import CodecTaskConfig, CodecWeights
from speech_mtp.training.distributed import Workers
from speech_mtp.training.listening import listen
from speech_mtp.training.loop import numbers
from speech_mtp.training.stages import FeaturesRun, TrainConfig, WaveformCodecRun
from speech_mtp.training.waveform_codec import UNHEEDED_TERMS, WaveformTask
from tests.training.ear import Ear

CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {
    "encodec": {
        "upsampling_ratios": [8, 6, 5, 4],
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_size": 16,
        "target_bandwidths": [0.5],
    },
    "mimi": {
        "upsampling_ratios": [8, 6, 5, 2],
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_size": 16,
        "codebook_dim": 4,
        "vector_quantization_hidden_dimension": 4,
        "upsample_groups": 8,
        "num_quantizers": 3,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 16,
        "layer_scale_initial_scale": 0.5,
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


@pytest.fixture(params=SIZES)
def codec(request: pytest.FixtureRequest) -> TrainableCodec:
    torch.manual_seed(0)
    made: TrainableCodec = plugins.find("codecs", request.param).from_sizes(SIZES[request.param])
    return made


def config(**settings: Any) -> CodecTaskConfig:
    return CodecTaskConfig(
        **{"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "amp": False, "resample": 0.0, **settings}
    )


# -- codebooks -----------------------------------------------------------------------------------------------------
def test_a_book_finds_the_centres_of_its_vectors() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    book = EmaBook(4, 2, decay=0.8)
    book.begin(centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2))
    for _ in range(60):
        book.learn(centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2))
    nearest = torch.cdist(centres, book.vectors).amin(1)
    assert float(nearest.max()) < 0.2


def test_the_means_by_hand() -> None:
    book = EmaBook(2, 1, decay=0.5)
    book.begun.fill_(True)
    book.usage.copy_(torch.tensor([1.0, 1.0]))
    book.sums.copy_(torch.tensor([[0.0], [4.0]]))
    book.learn(torch.tensor([[1.0], [1.0], [5.0]]))
    assert book.usage.tolist() == [1.5, 1.0]
    assert book.sums.tolist() == [[1.0], [4.5]]


def test_a_code_that_nothing_chooses_starts_again() -> None:
    torch.manual_seed(0)
    book = EmaBook(8, 2, decay=0.5)
    book.begin(torch.randn(32, 2))
    for _ in range(20):
        book.learn(torch.randn(32, 2) + 100)
    assert float(book.vectors.min()) > 50


def test_residual_books_quantise_what_is_left() -> None:
    first, second = EmaBook(2, 1), EmaBook(2, 1)
    first.place(torch.tensor([[0.0], [10.0]]))
    second.place(torch.tensor([[0.0], [1.0]]))
    x = torch.tensor([[[11.1, 0.2]]], requires_grad=True)
    parts, loss = quantised([first, second], x, learn=False)
    assert [part.tolist() for part in parts] == [[[[10.0, 0.0]]], [[[1.0, 0.0]]]]
    assert float(loss.detach()) == pytest.approx(((1.1**2 + 0.2**2) / 2 + (0.1**2 + 0.2**2) / 2) / 2, rel=1e-4)
    torch.stack(parts).sum(0).sum().backward(retain_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [[[1.0, 1.0]]]  # straight-through, however many books there are
    x.grad = None
    loss.backward()
    assert torch.allclose(x.grad, torch.tensor([[[(1.1 + 0.1) / 2, (0.2 + 0.2) / 2]]]), atol=1e-5)


# -- training ------------------------------------------------------------------------------------------------------
def test_everything_learns(codec: TrainableCodec, humming: AudioStore) -> None:
    task = WaveformTask(codec, humming, config(ema=0.9), CPU)
    before = {name: value.detach().clone() for name, value in codec.named_parameters()}
    scores: dict[str, float] = {}
    for number in range(2):
        scores = numbers(task.step(number, 1e-3))
    still = [name for name, value in codec.named_parameters() if torch.equal(value, before[name])]
    assert not still
    assert {"books", "stft", "convergence", "mel"} <= scores.keys()
    assert not {"heard", "pitch", "ctc"} & scores.keys()
    assert all(np.isfinite(value) for value in scores.values())
    found = task.evaluate()
    assert all(f"{name}_perplexity" in found for name in codec.spec.codebook_names)


def test_it_gets_better(codec: TrainableCodec, humming: AudioStore) -> None:
    task = WaveformTask(codec, humming, config(), CPU)
    mel = [numbers(task.step(number % 2, 3e-3))["mel"] for number in range(40)]
    assert sum(mel[-4:]) < 0.8 * sum(mel[:4])


def test_it_encodes_and_decodes_as_it_was_trained_to(codec: TrainableCodec, humming: AudioStore) -> None:
    """The codes and the sound of the adapter are those of the training's own forward, average or not."""
    task = WaveformTask(codec, humming, config(ema=0.5), CPU)
    task.step(0, 1e-3)
    for trained in task._codecs():
        task.codec = trained
        trained.eval()
        wave = humming.wave(0)[: 8 * 960][None, None]
        with torch.no_grad():
            values, _, _ = task._quantised(trained.latents(wave))
            sound = trained.sound(values)[..., : 8 * 960]
        codes = trained.encode(wave)
        assert torch.allclose(trained._latents(codes.frames), values, atol=1e-5)
        assert torch.allclose(trained.decode(codes), sound, atol=1e-4)
        assert len(codes.frames.unique()) > 1


def test_the_first_book_learns_what_a_recogniser_hears(
    codec: TrainableCodec, humming_folder: Path, humming: AudioStore, tmp_path: Path
) -> None:
    listen(FeaturesRun(kind="features", out=tmp_path, data=[humming_folder], components=4), Ear())
    silent = dict.fromkeys(
        set(CodecWeights().__dict__) - {"adversary", "energy", "ctc", "heard", "pitch", "voicing"}, 0.0
    )
    task = WaveformTask(
        codec,
        humming,
        config(weights=CodecWeights(**silent | {"distil": 1.0})),
        CPU,
        tracks={"features": Features(tmp_path)},
    )
    task.optimizers["codec"].param_groups[0]["weight_decay"] = 0.0
    before = {name: value.detach().clone() for name, value in codec.named_parameters()}
    losses = [numbers(task.step(number % 2, 3e-3))["distil"] for number in range(20)]
    assert losses[-1] < losses[0]
    moved = {name for name, value in codec.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if "decoder" in name or "acoustic" in name or "upsample" in name]


@pytest.mark.parametrize("weight", sorted(CodecWeights().__dict__.keys() - {"distil", "critic", "feature"}))
def test_every_term_is_learnt_or_refused(codec: TrainableCodec, humming: AudioStore, weight: str) -> None:
    """No weight is taken and then heard by nobody."""
    try:
        task = WaveformTask(codec, humming, config(weights=CodecWeights(**{weight: 0.77})), CPU)
    except ValueError as error:
        assert f"weights.{weight}" in str(error)  # noqa: PT017
    else:
        assert weight in numbers(task.step(0, 1e-3))


@pytest.mark.parametrize("weight", UNHEEDED_TERMS)
def test_a_term_that_it_has_not_is_refused(codec: TrainableCodec, humming: AudioStore, weight: str) -> None:
    with pytest.raises(ValueError, match=rf"leave task\.weights\.{weight} out"):
        WaveformTask(codec, humming, config(weights=CodecWeights(**{weight: 0.77})), CPU)


def test_several_processes_are_refused(codec: TrainableCodec, humming: AudioStore) -> None:
    several = Workers()
    several.count = 2
    with pytest.raises(ValueError, match="one process"):
        WaveformTask(codec, humming, config(), CPU, several)


@pytest.mark.parametrize("kind", SIZES)
def test_the_stage_exports_what_it_trained(humming_folder: Path, tmp_path: Path, kind: str) -> None:
    stage = {
        "kind": "waveform_codec",
        "out": tmp_path / kind,
        "data": [humming_folder],
        "model": {"name": kind, **SIZES[kind]},
        "task": {"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "resample": 0.0, "ema": 0.9},
        "loop": {"steps": 2, "learning_rate": 1e-3, "evaluate_every": 1},
    }
    runs.run(TrainConfig(run=stage))
    codec = hub.load_codec(tmp_path / kind / "export")
    wave = AudioStore([humming_folder]).wave(0)[None, None]
    codes = codec.encode(wave)
    assert codec.decode(codes).shape[-1] == codes.frames.shape[-1] * 960
    again = {**stage, "out": tmp_path / "more", "start": str(tmp_path / kind / "export")}
    task = runs.waveform_task(WaveformCodecRun(**again))
    assert torch.equal(task.codec.eval().encode(wave).frames, codes.frames)
    books: Any = task.helpers["books"]
    assert bool(books[0].begun)
    for number, book in enumerate(books):  # what was learnt is gone on with
        assert torch.allclose(book.vectors, task.codec.book(number), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "encodec", "num_filterz": 2}, r"model\.num_filterz; did you mean 'num_filters'"),
        ({"name": "decoupled"}, "name encodec or mimi"),
        ({"name": "mimi", "num_quantizers": 1}, r"cannot be made of these sizes"),
        ({**SIZES["encodec"], "name": "encodec", "target_bandwidths": [0.05]}, "has no codebook|cannot be made"),
    ],
)
def test_a_wrong_model_is_refused(humming_folder: Path, tmp_path: Path, model: dict[str, Any], words: str) -> None:
    loop = {"steps": 2, "learning_rate": 1e-3}
    stage = {"kind": "waveform_codec", "out": tmp_path, "data": [humming_folder], "model": model, "loop": loop}
    with pytest.raises(ValueError, match=words):
        runs.waveform_task(WaveformCodecRun(**stage))


def test_codebooks_have_names() -> None:
    assert plugins.find("codecs", "mimi").from_sizes(SIZES["mimi"]).spec.codebook_names == [
        "semantic",
        "acoustic0",
        "acoustic1",
    ]


@pytest.mark.gpu
def test_it_learns_on_a_gpu(codec: TrainableCodec, humming: AudioStore) -> None:
    task = WaveformTask(codec, humming, config(amp=True, ema=0.9), torch.device("cuda"))
    mel = [numbers(task.step(number % 2, 3e-3))["mel"] for number in range(40)]
    assert sum(mel[-4:]) < 0.8 * sum(mel[:4])
    assert task.evaluate()["mel"] > 0
