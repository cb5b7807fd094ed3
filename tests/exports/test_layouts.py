"""The files that vLLM and speculators read: keys as in their field tables, numbers by their formulas, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from speech_mtp import plugins
from speech_mtp.exports.base import HeadExport
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from tests.exports.tiny import DIM, VOCAB, assert_same, scores, trained, trunk

MEDUSA: list[dict[str, Any]] = [
    {"name": "medusa", "num_heads": 3},
    {"name": "medusa", "num_heads": 2, "num_layers": 2, "private": True},
    {"name": "medusa", "num_heads": 2, "private": True, "draft_vocab": 30},
    {"name": "medusa", "num_heads": 2, "draft_vocab": 30},
    {"name": "leap", "num_heads": 2, "stride": 1},
]
EAGLE3: list[dict[str, Any]] = [
    {"name": "eagle3"},
    {"name": "eagle3", "draft_vocab": 30},
    {"name": "eagle3", "private": False, "draft_vocab": 30, "taps": (0, 1, 2)},
    {"name": "eagle3", "private": False},
    {"name": "eagle3", "intermediate_size": 40},
]
TWO = ("vllm-eagle3", "speculators")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> TextLM:
    return trunk(tmp_path_factory.mktemp("trunk") / "lm")


def exported(name: str, head: MTPHead, lm: TextLM, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    plugins.build("exports", name).write(folder, head, lm)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def reader(name: str) -> HeadExport:
    found: HeadExport = plugins.build("exports", name)
    return found


# -- Medusa -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", MEDUSA, ids=str)
def test_medusa_is_what_its_drafter_reads(tmp_path: Path, lm: TextLM, spec: dict[str, Any]) -> None:
    head = trained(lm, **spec)
    config, tensors = exported("vllm-medusa", head, lm, tmp_path / "out")
    n, depth, reduced = len(head.offsets), spec.get("num_layers", 1), spec.get("draft_vocab")
    assert config == {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": DIM,
        "vocab_size": VOCAB,
        "num_heads": n,
        "num_hidden_layers": depth,
        "max_paths": 64,
        "topk": 10,
        "truncated_vocab_size": reduced or VOCAB,
        "original_lm_head": not spec.get("private"),
        "medusa_fc_bias": True,
        "logit_scale": 1.0,
        "dtype": "float32",
    }
    outputs = range(n if spec.get("private") else 1)
    expected = {f"blocks.{i}.layers.{j}.{part}" for i in range(n) for j in range(depth) for part in ("weight", "bias")}
    expected |= {f"lm_heads.{i}.weight" for i in outputs} | ({"token_map"} if reduced else set())
    assert set(tensors) == expected
    assert tensors["lm_heads.0.weight"].shape == (reduced or VOCAB, DIM)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 1, DIM, generator=rng)[:, :, 0]
    for i, logits in enumerate(scores(head).values()):
        x = hidden
        for j in range(depth):
            x = x + F.silu(
                F.linear(x, tensors[f"blocks.{i}.layers.{j}.weight"], tensors[f"blocks.{i}.layers.{j}.bias"])
            )
        theirs = F.linear(x, tensors[f"lm_heads.{i if len(outputs) > 1 else 0}.weight"])
        torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-5)
    assert_same(head, reader("vllm-medusa").read(tmp_path / "out", lm))


def test_blocks_without_biases_are_read(tmp_path: Path, lm: TextLM) -> None:
    head = trained(lm, name="medusa", num_heads=2)
    for name, weight in head.named_parameters():
        if name.endswith(".bias"):
            weight.data.zero_()
    config, tensors = exported("vllm-medusa", head, lm, tmp_path / "out")
    plain = {name: value for name, value in tensors.items() if not name.endswith(".bias")}
    save_file(plain, tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit together"):
        reader("vllm-medusa").read(tmp_path / "out", lm)
    del config["medusa_fc_bias"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert_same(head, reader("vllm-medusa").read(tmp_path / "out", lm))


# -- EAGLE-3 ----------------------------------------------------------------------------------------------------------
LAYER = {
    *(f"layers.0.{norm}.weight" for norm in ("hidden_norm", "input_layernorm", "post_attention_layernorm")),
    *(f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
}


@pytest.mark.parametrize("spec", EAGLE3, ids=str)
def test_eagle3_is_what_vllm_reads(tmp_path: Path, lm: TextLM, spec: dict[str, Any]) -> None:
    head, reduced = trained(lm, **spec), spec.get("draft_vocab")
    config, tensors = exported("vllm-eagle3", head, lm, tmp_path / "out")
    assert set(tensors) == LAYER | {"fc.weight", "norm.weight", "lm_head.weight"} | (
        {"d2t", "t2d"} if reduced else set()
    )
    assert tensors["fc.weight"].shape == (DIM, 3 * DIM)
    assert tensors["layers.0.self_attn.q_proj.weight"].shape == (DIM, 2 * DIM)
    assert tensors["lm_head.weight"].shape == (reduced or VOCAB, DIM)
    wanted = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": reduced or VOCAB,
        "target_hidden_size": DIM,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(head.taps),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [tap - 1 for tap in head.taps],
        },
    }
    assert {key: config[key] for key in wanted} == wanted
    assert_maps(head, tensors)
    assert_same(head, reader("vllm-eagle3").read(tmp_path / "out", lm))


@pytest.mark.parametrize("spec", EAGLE3, ids=str)
def test_eagle3_is_what_speculators_reads(tmp_path: Path, lm: TextLM, spec: dict[str, Any]) -> None:
    head, reduced = trained(lm, **spec), spec.get("draft_vocab")
    config, tensors = exported("speculators", head, lm, tmp_path / "out")
    names = {"fc.weight", "norm.weight", "lm_head.weight", "embed_tokens.weight"}
    assert set(tensors) == LAYER | names | ({"d2t", "t2d"} if reduced else set())
    assert torch.equal(tensors["embed_tokens.weight"], lm.model.get_input_embeddings().weight)
    layer, inner = config.pop("transformer_layer_config"), config.pop("speculators_config")
    greedy = {"proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    assert inner.pop("verifier") == {"name_or_path": lm.model.name_or_path, "architectures": ["LlamaForCausalLM"]}
    assert inner == {"algorithm": "eagle3", "proposal_methods": [greedy], "default_proposal_method": "greedy"}
    assert config == {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "draft_vocab_size": reduced or VOCAB,
        "target_hidden_size": None,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "eagle_aux_hidden_state_layer_ids": list(head.taps),
        "embed_requires_grad": False,
        "dtype": "float32",
    }
    assert LlamaConfig(**layer).to_dict()["num_hidden_layers"] == 1
    assert_maps(head, tensors)
    assert_same(head, reader("speculators").read(tmp_path / "out", lm))


def assert_maps(head: MTPHead, tensors: dict[str, Tensor]) -> None:
    """``d2t`` is what is added to a draft id, ``t2d`` marks the target's ids."""
    if head.token_map is None:
        return
    assert torch.equal(torch.arange(len(head.token_map)) + tensors["d2t"], head.token_map)
    assert torch.equal(tensors["t2d"].nonzero()[:, 0], head.token_map.sort().values)


def test_the_numbers_are_those_of_the_published_layer(tmp_path: Path, lm: TextLM) -> None:
    """EAGLE-3's first step, written with the tensors of the file and the pieces of ``transformers``."""
    head = trained(lm, name="eagle3")
    config, w = exported("vllm-eagle3", head, lm, tmp_path / "out")
    layer = LlamaConfig(**{key: value for key, value in config.items() if key != "architectures"})
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 3, DIM, generator=rng)
    tokens = torch.randint(VOCAB, (2, 9), generator=rng)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (DIM,), w[f"{name}.weight"], config["rms_norm_eps"])

    def heads(x: Tensor, name: str) -> Tensor:
        y = F.linear(x, w[f"layers.0.self_attn.{name}_proj.weight"])
        return y.unflatten(-1, (-1, config["head_dim"])).transpose(1, 2)

    x = lm.model.get_input_embeddings()(tokens[:, 1:])
    h = F.linear(hidden[:, :-1].flatten(2), w["fc.weight"])
    both = torch.cat([norm(x, "layers.0.input_layernorm"), norm(h, "layers.0.hidden_norm")], -1)
    cos, sin = LlamaRotaryEmbedding(layer)(x, torch.arange(8).expand(2, -1))
    q, k = apply_rotary_pos_emb(heads(both, "q"), heads(both, "k"), cos, sin)
    y = F.scaled_dot_product_attention(q, k, heads(both, "v"), is_causal=True, enable_gqa=True)
    h = h + F.linear(y.transpose(1, 2).flatten(2), w["layers.0.self_attn.o_proj.weight"])
    z = norm(h, "layers.0.post_attention_layernorm")
    gate = F.silu(F.linear(z, w["layers.0.mlp.gate_proj.weight"])) * F.linear(z, w["layers.0.mlp.up_proj.weight"])
    h = h + F.linear(gate, w["layers.0.mlp.down_proj.weight"])
    logits = F.linear(norm(h, "norm"), w["lm_head.weight"])
    torch.testing.assert_close(scores(head)[2][:, :-1], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TWO)
def test_a_layer_that_is_not_ours_is_not_read(tmp_path: Path, lm: TextLM, name: str) -> None:
    config, _ = exported(name, trained(lm, name="eagle3"), lm, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "norm_before_fc": True}))
    with pytest.raises(ValueError, match="has another layer than ours: the settings norm_before_fc"):
        reader(name).read(tmp_path / "out", lm)


# -- all --------------------------------------------------------------------------------------------------------------
FITTING = {"vllm-medusa": MEDUSA[0], **dict.fromkeys(TWO, EAGLE3[0])}


@pytest.mark.parametrize("name", FITTING)
def test_missing_and_damaged_files_are_named(tmp_path: Path, lm: TextLM, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        reader(name).read(tmp_path, lm)
    exported(name, trained(lm, **FITTING[name]), lm, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="is truncated or damaged"):
        reader(name).read(tmp_path / "out", lm)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        reader(name).read(tmp_path / "out", lm)


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path, lm: TextLM) -> None:
    head = trained(lm, **MEDUSA[0])
    (tmp_path / "out").mkdir()
    exported("vllm-medusa", head, lm, tmp_path / "out")  # an empty one is filled
    with pytest.raises(ValueError, match="exists and is not empty"):
        reader("vllm-medusa").write(tmp_path / "out", head, lm)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, lm: TextLM, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = reader("vllm-medusa")
    fill = exporter.fill

    def broken(folder: Path, head: MTPHead, lm: TextLM) -> None:
        fill(folder, head, lm)
        raise OSError("The disk is full.")

    monkeypatch.setattr(exporter, "fill", broken)
    with pytest.raises(OSError, match="Cannot write"):
        exporter.write(tmp_path / "out", trained(lm, **MEDUSA[0]), lm)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        ("vllm-medusa", {"name": "leap"}, r"this Leap head: .*offsets are \[3, 5, 7\]"),
        ("vllm-medusa", {"name": "hydra"}, "this Hydra head: it is not made of residual blocks"),
        ("vllm-medusa", {"name": "medusa", "taps": (1,)}, r"reads the layers \[1\] by 'last'"),
        ("vllm-medusa", {"name": "medusa", "taps": (1, -1), "feed": "mixture"}, "by 'mixture'"),
        *((name, {"name": "eagle"}, "this Eagle head: its layer does not read") for name in TWO),
        *((name, {"name": "eagle3", "taps": (1, 2)}, r"reads the layers \[1, 2\]") for name in TWO),
        *((name, {"name": "eagle3", "taps": (0, 1, -1)}, r"reads the layers \[0, 1, -1\]") for name in TWO),
        *((name, {"name": "eagle3", "taps": (2, 1, 0)}, r"reads the layers \[2, 1, 0\]") for name in TWO),
        ("custom-generate", {"name": "hydra", "prefix_layer": True}, "its prefix layer has a cache"),
        ("custom-generate", {"name": "leap"}, r"this Leap head: .*offsets are \[3, 5, 7\]"),
        ("custom-generate", {"name": "deepseek"}, "this DeepSeek head"),
        ("deepseek", {"name": "medusa"}, "this Medusa head: it is no sequence of modules"),
        ("deepseek", {"name": "fastmtp"}, "this FastMTP head: it is no sequence of modules"),
        ("deepseek", {"name": "deepseek", "taps": (1,)}, r"reads the layers \[1\]"),
    ],
    ids=str,
)
def test_other_heads_are_refused_by_name(
    tmp_path: Path, lm: TextLM, name: str, spec: dict[str, Any], reason: str
) -> None:
    exporter = reader(name)
    with pytest.raises(ValueError, match=reason) as error:
        exporter.write(tmp_path / "out", trained(lm, **spec), lm)
    assert str(error.value).startswith(f"The format {name} cannot hold this ")
    assert str(error.value).endswith(f"; it holds {exporter.holds}.")
    assert not (tmp_path / "out").exists()


def test_a_shared_output_layer_with_a_bias_fits_no_file(tmp_path: Path) -> None:
    lm = trunk(tmp_path / "phi", "phi")
    with pytest.raises(ValueError, match="shares with its trunk has a bias"):
        reader("vllm-medusa").write(tmp_path / "out", trained(lm, name="medusa"), lm)
    reader("vllm-medusa").write(tmp_path / "out", trained(lm, name="medusa", private=True), lm)
