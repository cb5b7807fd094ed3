"""The adapters give what the models they wrap give, load safetensors only, and refuse the rest in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.codecs._rowwise import RowwiseCodec, randomise
from speech_mtp.codecs._stages import Convolution, Stage, Upsampling, seanet
from speech_mtp.codecs.dac import Dac
from speech_mtp.codecs.encodec import Encodec
from speech_mtp.codecs.mimi import Mimi
from speech_mtp.types import Codes

ADAPTERS: dict[str, Callable[[], RowwiseCodec]] = {
    "encodec": Encodec.tiny,
    "encodec of the package": lambda: Encodec.tiny(backend="encodec"),
    "mimi": Mimi.tiny,
    "dac": Dac.tiny,
}
PACKAGE = "encodec of the package"
each_adapter = pytest.mark.parametrize("name", list(ADAPTERS))


def reference(name: str, model: Any, frames: Tensor) -> Tensor:
    """``[1, K, F]`` -> ``[S]`` by the model's own offline decoding."""
    with torch.no_grad():
        if name == "encodec":
            return model.decode(frames[None], [None])[0].flatten()
        if name == "mimi":
            return model.decode(frames)[0].flatten()
        if name == "dac":
            return model.decode(audio_codes=frames)[0].flatten()
        return model.decode([(frames, None)]).flatten()


def own_codes(name: str, model: Any, wave: Tensor) -> Tensor:
    """``[1, 1, S]`` -> ``[K, F]`` by the model's own encoding."""
    with torch.no_grad():
        if name == "encodec":
            return model.encode(wave, bandwidth=model.config.target_bandwidths[-1])[0][0, 0]
        if name in ("mimi", "dac"):
            return model.encode(wave, return_dict=True).audio_codes[0]
        return model.encode(wave)[0][0][0]


def random_frames(codec: RowwiseCodec, num_frames: int) -> Tensor:
    rng = torch.Generator().manual_seed(num_frames)
    sizes = codec.spec.codebook_sizes
    return torch.stack([torch.randint(0, n, (1, num_frames), generator=rng) for n in sizes], 1)


def decoded(codec: RowwiseCodec, frames: Tensor) -> Tensor:
    return codec.decode(Codes(frames, torch.tensor([frames.shape[-1]])))[0, 0]


@each_adapter
@pytest.mark.parametrize("num_frames", [1, 2, 6, 7, 40])
def test_decoding_equals_the_models_own(name: str, num_frames: int) -> None:
    codec = ADAPTERS[name]()
    frames = random_frames(codec, num_frames)
    torch.testing.assert_close(
        decoded(codec, frames), reference(name, codec.get_submodule("model"), frames), atol=1e-4, rtol=0
    )


@each_adapter
def test_encoding_equals_the_models_own(name: str) -> None:
    codec = ADAPTERS[name]()
    wave = 0.3 * torch.randn(1, 1, 20 * codec.spec.samples_per_frame, generator=torch.Generator().manual_seed(0))
    frames = codec.encode(wave).frames[0]
    assert frames.unique().numel() > 4, "the tiny model must use its codes"
    assert torch.equal(frames, own_codes(name, codec.get_submodule("model"), wave))


@each_adapter
def test_streaming_emits_all_that_is_final_and_nothing_else(name: str) -> None:
    """What was emitted for n frames is what no further frame can change, found by changing them all."""
    codec = ADAPTERS[name]()
    n, more = 25, 40
    changed = torch.zeros(0, dtype=torch.bool)
    frames = random_frames(codec, more)
    for seed in range(3):
        other = frames.clone()
        other[..., n:] = random_frames(codec, more + seed + 1)[..., n:more]
        difference = (decoded(codec, frames) - decoded(codec, other)).abs() > 1e-6
        changed = difference if not len(changed) else changed | difference
    first_change = int(changed.nonzero()[0])
    state = codec.open(1)
    codec.reset(state, torch.tensor([0]), None)
    (emitted,) = codec.push(state, frames[..., :n], torch.tensor([n]))
    assert len(emitted) <= first_change < len(emitted) + codec.spec.samples_per_frame


def test_both_encodec_backends_are_the_same_codec() -> None:
    ours, theirs = Encodec.tiny(), Encodec.tiny(backend="encodec")
    wave = 0.3 * torch.randn(1, 1, 333, generator=torch.Generator().manual_seed(0))
    codes = ours.encode(wave)
    assert torch.equal(codes.frames, theirs.encode(wave).frames)
    torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-5, rtol=0)


def test_encodec_waits_for_its_mirrored_start_only() -> None:
    codec = Encodec.tiny()
    frames, state = random_frames(codec, 10), codec.open(1)
    codec.reset(state, torch.tensor([0]), None)
    given = [len(codec.push(state, frames[..., f : f + 1], torch.tensor([1]))[0]) for f in range(10)]
    assert given == [0] * 6 + [7 * 8, 8, 8, 8]


def test_mimi_answers_every_frame_at_once_and_keeps_a_window_only() -> None:
    codec = Mimi.tiny()
    frames, state = random_frames(codec, 20), codec.open(1)
    codec.reset(state, torch.tensor([0]), None)
    given = [len(codec.push(state, frames[..., f : f + 1], torch.tensor([1]))[0]) for f in range(20)]
    assert given == [16] * 20
    assert state.rows[0] is not None
    (cache,) = [own for own in state.rows[0].stages if hasattr(own, "get_seq_length")]
    assert cache.get_seq_length() == 40
    assert all(layer.keys.shape[-2] == 5 for layer in cache.layers)


def test_mimi_streams_name_the_semantic_codebook() -> None:
    assert Mimi.tiny().spec.streams == {"semantic": slice(0, 1), "acoustic": slice(1, 4)}
    assert Encodec.tiny().spec.streams == {"codebooks": slice(0, 3)}


def test_dac_with_odd_strides_gives_whole_frames() -> None:
    codec = Dac.tiny(downsampling_ratios=(2, 5))
    frames = random_frames(codec, 30)
    wave = decoded(codec, frames)
    own = reference("dac", codec.get_submodule("model"), frames)
    assert wave.shape == (30 * 10,)
    assert len(own) < len(wave)
    torch.testing.assert_close(wave[: len(own)], own, atol=1e-4, rtol=0)
    assert not wave[len(own) :].any()


@pytest.mark.parametrize("name", ["encodec", "mimi", "dac"])
def test_fewer_codebooks_are_the_first_ones(name: str) -> None:
    full = ADAPTERS[name]()
    fewer = type(full)(full.get_submodule("model"), num_codebooks=2)
    wave = 0.3 * torch.randn(1, 1, 300, generator=torch.Generator().manual_seed(0))
    assert fewer.spec.num_streams == 2
    assert torch.equal(fewer.encode(wave).frames, full.encode(wave).frames[:, :2])
    assert decoded(fewer, random_frames(fewer, 3)).shape == (3 * full.spec.samples_per_frame,)
    with pytest.raises(ValueError, match="num_codebooks is 99"):
        type(full)(full.get_submodule("model"), num_codebooks=99)


def saved(folder: Path, codec_class: type[Any]) -> nn.Module:
    """A model of the shape of ``tiny`` with other weights, saved into ``folder``; returns it."""
    model = type(codec_class.tiny().model)(codec_class.tiny().model.config)
    randomise(model, seed=5)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("codec_class", [Encodec, Mimi, Dac])
def test_a_saved_folder_loads_by_path_and_by_recipe(codec_class: type[Any], tmp_path: Path) -> None:
    model = saved(tmp_path, codec_class)
    codec = codec_class.from_pretrained(tmp_path)
    name = codec_class.__name__.lower()
    frames = random_frames(codec, 9)
    torch.testing.assert_close(decoded(codec, frames), reference(name, model, frames), atol=1e-4, rtol=0)
    built = plugins.build("codecs", {"name": name, "source": str(tmp_path), "num_codebooks": 2})
    assert built.spec.num_streams == 2


def test_the_package_reads_the_same_folder(tmp_path: Path) -> None:
    model = saved(tmp_path, Encodec)
    codec = Encodec.from_pretrained(tmp_path, backend="encodec")
    assert type(codec.model).__module__ == "encodec.model"
    frames = random_frames(codec, 9)
    torch.testing.assert_close(decoded(codec, frames), reference("encodec", model, frames), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("codec_class", "settings"),
    [(Encodec, {}), (Encodec, {"backend": "encodec"}), (Mimi, {}), (Dac, {})],
)
def test_bad_folders_are_refused_in_one_sentence(
    codec_class: type[Any], settings: dict[str, str], tmp_path: Path
) -> None:
    saved(tmp_path, codec_class)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()

    def refused(kind: type[Exception], match: str) -> None:
        with pytest.raises(kind, match=match) as caught:
            codec_class.from_pretrained(tmp_path, **settings)
        assert "\n" not in str(caught.value)

    weights.write_bytes(whole[: len(whole) // 2])
    refused(ValueError, "damaged")
    weights.rename(tmp_path / "pytorch_model.bin")
    refused(OSError, "safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(ValueError, "'bert'")
    (tmp_path / "config.json").unlink()
    refused(OSError, "config.json")
    with pytest.raises(FileNotFoundError, match="no folder"):
        codec_class.from_pretrained(tmp_path / "nowhere", **settings)


@pytest.mark.parametrize("backend", ["transformers", "encodec"])
def test_weights_that_lack_a_tensor_are_refused(backend: Any, tmp_path: Path) -> None:
    saved(tmp_path, Encodec)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decoder.layers.1.lstm.weight_ih_l0"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack.*lstm.weight_ih_l0"):
        Encodec.from_pretrained(tmp_path, backend=backend)


def test_wrong_input_is_refused_in_one_sentence() -> None:
    codec = Encodec.tiny()
    state, none = codec.open(1), torch.tensor([0])
    with pytest.raises(ValueError, match="mono"):
        codec.encode(torch.zeros(1, 2, 100))
    with pytest.raises(ValueError, match="lengths are \\[101\\]"):
        codec.encode(torch.zeros(1, 1, 100), torch.tensor([101]))
    with pytest.raises(ValueError, match="reset it first"):
        codec.push(state, random_frames(codec, 1), torch.tensor([1]))
    with pytest.raises(ValueError, match="reset it first"):
        codec.flush(state, none)
    with pytest.raises(ValueError, match="no timbre"):
        codec.reset(state, none, torch.zeros(1, 4))
    codec.reset(state, none, None)
    with pytest.raises(ValueError, match="stream 1"):
        codec.push(state, torch.tensor([[[0], [16], [0]]]), torch.tensor([1]))
    assert state.rows[0] is not None
    assert state.rows[0].frames == 0, "a refused push changes nothing"
    with pytest.raises(ValueError, match="takes \\[1, 3, frames\\]"):
        codec.push(state, torch.zeros(1, 2, 4, dtype=torch.int64), torch.tensor([4]))
    with pytest.raises(ValueError, match="counts 5 of 4"):
        codec.push(state, torch.zeros(1, 3, 4, dtype=torch.int64), torch.tensor([5]))


def test_models_that_cannot_be_streamed_are_refused() -> None:
    from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel

    small = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16}
    stereo = EncodecModel(EncodecConfig(**small, target_bandwidths=[36.0], audio_channels=2))
    with pytest.raises(ValueError, match="stereo"):
        Encodec(stereo)
    acausal = EncodecModel(EncodecConfig(**small, target_bandwidths=[36.0], use_causal_conv=False))
    with pytest.raises(ValueError, match="not causal"):
        Encodec(acausal)
    mimi = MimiConfig(**small, num_hidden_layers=1, num_attention_heads=1, upsample_groups=8, use_causal_conv=False)
    with pytest.raises(ValueError, match="not causal"):
        Mimi(MimiModel(mimi))
    with pytest.raises(ValueError, match="'jax'"):
        Encodec("nowhere", backend="jax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pads with 'circular'"):
        Convolution(nn.Conv1d(1, 1, 3), 1, mode="circular")
    with pytest.raises(ValueError, match="Linear"):
        seanet([nn.Linear(1, 1)])


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_a_convolution_in_pieces_is_the_convolution(mode: str, length: int) -> None:
    conv = nn.Conv1d(2, 3, 3, dilation=2)
    x = torch.randn(1, 2, length)
    needed = nn.functional.pad(x, (0, max(0, 5 - length))) if mode == "reflect" else x
    padded = nn.functional.pad(nn.functional.pad(needed, (4, 0), mode=mode)[..., : length + 4], (0, 2))
    assert torch.allclose(in_pieces(Convolution(conv, 4, 2, mode), x), conv(padded), atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_transposed_convolution_in_pieces_is_the_convolution(length: int) -> None:
    conv = nn.ConvTranspose1d(2, 3, 7, stride=3)
    x = torch.randn(1, 2, length)
    assert torch.allclose(in_pieces(Upsampling(conv, 1, 3), x), conv(x)[..., 1:-3], atol=1e-6)


def in_pieces(stage: Stage, x: Tensor) -> Tensor:
    """One sample at a time, with an empty piece between, and the end told apart from the last sample."""
    state = stage.start()
    with torch.no_grad():
        out = [stage.run(state, piece, False) for sample in x.split(1, -1) for piece in (sample[..., :0], sample)]
        return torch.cat([*out, stage.run(state, x[..., :0], True)], -1)
