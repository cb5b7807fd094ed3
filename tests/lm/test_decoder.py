"""The fast decoder computes what the layers of transformers compute, for every family it names."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from speech_mtp.decoding.text import start
from speech_mtp.evaluation.peers import transformers_greedy
from speech_mtp.exports.base import save_trunk
from speech_mtp.lm import backbone, decoder, fingerprint
from speech_mtp.lm.decoder import FAMILIES, Decoder
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn import packed
from speech_mtp.nn.packed import PackedLinear, can_pack
from speech_mtp.types import Draft, Sampling
from tests.lm.tiny import tiny_tokenizer

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3 rope": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}
PARENTS = torch.tensor([[-1, 0, 0, 1, 2], [-1, 0, 1, 2, 3]])


def model(name: str) -> TextLM:
    config, kind, more = MODELS[name]
    torch.manual_seed(0)
    made = kind(config(**SIZES, **more))
    for key, value in made.named_parameters():  # norms and biases that are not one and zero
        if "norm" in key or "bias" in key:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return TextLM(made.eval())


@torch.inference_mode()
def states(lm: TextLM, taps: tuple[int, ...]) -> list[torch.Tensor]:
    """A prompt, a tree of drafts, and the same again after some of it was kept."""
    torch.manual_seed(1)
    state = lm.open(2, size=4)
    prompts = [torch.randint(67, (n,)).tolist() for n in (9, 5)]
    out, *_ = lm.read(state, prompts, taps)
    draft = Draft(torch.randint(67, (2, 5, 1)), PARENTS)
    first = lm.verify(state, draft, taps)
    state.cache.commit(torch.tensor([[0, 2, 4, -1, -1], [0, 1, -1, -1, -1]]), torch.tensor([3, 2]))
    second = lm.verify(state, draft, taps)
    return [out.hidden[0], out.hidden[1, :4], out.top[0], first.hidden, first.top, second.hidden, second.top]


@pytest.mark.parametrize("name", list(MODELS))
def test_same_states_as_the_layers_of_transformers(name: str) -> None:
    slow, fast = model(name), model(name)
    assert Decoder.fits(fast.model)
    fast.prepare(keep_layers=False)
    assert len(fast.model.base_model.layers) == 0
    for a, b in zip(states(slow, (0, 2, -1)), states(fast, (0, 2, -1)), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
@torch.inference_mode()
def test_says_what_generate_says(name: str) -> None:
    lm = model(name)
    prompt = torch.randint(67, (1, 7))
    theirs = lm.model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, 7:].tolist()
    assert len(set(theirs)) > 3
    ours = start(lm.prepare(), prompt.tolist(), Sampling(temperature=0), max_new_tokens=40).complete()[0]
    assert ours == theirs


def test_every_family_is_tested() -> None:
    assert {kind.model_type for kind, _, _ in MODELS.values()} == set(FAMILIES)


def test_other_families_keep_their_own_layers_on_packed_weights() -> None:
    torch.manual_seed(0)
    lm = TextLM(GemmaForCausalLM(GemmaConfig(**SIZES)))
    assert not Decoder.fits(lm.model)
    before = states(lm, (1, -1))
    layers = lm.prepare(keep_layers=False).model.base_model.layers
    assert len(layers) == 3
    assert isinstance(layers[0].mlp.up_proj.forward, PackedLinear) == can_pack(torch.float32)
    for a, b in zip(before, states(lm, (1, -1)), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 24, dtype=dtype), torch.randn(40, dtype=dtype)
    linear = PackedLinear(weight, bias)
    assert linear.shape == (40, 24)
    for rows in ((1,), (3, 5), (2, 40, 1)):
        x = torch.randn(*rows, 24, dtype=dtype)
        expected = torch.nn.functional.linear(x, weight, bias)
        assert linear(x).dtype == dtype
        torch.testing.assert_close(linear(x), expected, atol=1e-5 if dtype is torch.float32 else 0.15, rtol=2e-2)


def test_bfloat16_stays_near_float32() -> None:
    lm, half = model("llama"), model("llama")
    half = TextLM(half.model.to(torch.bfloat16)).prepare()
    for a, b in zip(states(lm, (-1,)), states(half, (-1,)), strict=True):
        assert b.dtype == torch.bfloat16
        error = (a - b.float()).norm() / a.norm()
        assert float(error) < 0.05


def test_without_its_layers_a_model_refuses_what_needs_them(tmp_path: Path) -> None:
    lm = model("llama").prepare(keep_layers=False)
    tokens = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="its layers were let go"):
        lm(tokens, torch.tensor([3]))
    with pytest.raises(ValueError, match="its layers were let go"):
        save_trunk(tmp_path, lm)
    with pytest.raises(ValueError, match="its layers were let go"):
        transformers_greedy(lm)
    kept = model("llama").prepare()
    assert kept(tokens, torch.tensor([3])).hidden.shape == (1, 3, 1, kept.dim)


def test_a_layer_is_let_go_before_the_next_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, alive = model("llama"), []
    theirs = [weakref.ref(layer.self_attn.q_proj.weight) for layer in lm.model.base_model.layers]

    class Watched(PackedLinear):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            alive.append(sum(weight() is not None for weight in theirs))

    monkeypatch.setattr(decoder, "PackedLinear", Watched)
    lm.prepare(keep_layers=False)
    assert alive == [3] * 4 + [2] * 4 + [1] * 4
    assert not any(weight() is not None for weight in theirs)


def test_where_nothing_is_packed_the_weights_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda dtype: False)
    lm = model("llama")
    before = states(lm, (1, -1))
    lm.prepare()
    assert lm._decoder is not None
    for ours, layer in zip(lm._decoder.layers, lm.model.base_model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        for joined, modules in (
            (ours.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (ours.leave, (attention.o_proj,)),
            (ours.gate_up, (mlp.gate_proj, mlp.up_proj)),
            (ours.down, (mlp.down_proj,)),
        ):
            places = {module.weight.untyped_storage().data_ptr() for module in modules}
            assert places == {joined._weight.untyped_storage().data_ptr()}
    out = lm(*given_text())
    for a, b, c in zip(before, states(lm, (1, -1)), (out.hidden,), strict=False):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
        assert c.isfinite().all()


def test_weights_are_hashed_once_and_loaded_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model("llama").model.bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    hashed, asked = [], []
    sha256, load = fingerprint.sha256, backbone.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(fingerprint, "sha256", lambda path: hashed.append(path) or sha256(path))

    def loading(folder: Path, **settings: Any) -> Any:
        asked.append(settings)
        settings.pop("device_map", None)
        return load(folder, **settings)

    monkeypatch.setattr(backbone.AutoModelForCausalLM, "from_pretrained", loading)
    lm = TextLM.from_folder(tmp_path, None)
    assert lm.dtype == torch.bfloat16
    assert [path.name for path in hashed] == ["model.safetensors"]
    assert TextLM.from_folder(tmp_path, torch.float32, "known").dtype == torch.float32
    assert len(hashed) == 1
    assert [settings["dtype"] for settings in asked] == ["auto", torch.float32]


def test_weights_are_read_straight_to_their_device(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model("llama").model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert TextLM.from_folder(tmp_path, device="meta").device.type == "meta"


def given_text() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[1, 2, 3]]), torch.tensor([3])
