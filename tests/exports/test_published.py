"""Checkpoints as others publish them, made by hand: names, shapes and keys of the originals, numbers by a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from tests.exports.tiny import DIM, VOCAB, scores, trained, trunk

HEADS, KV, SIZE, INNER, ROWS = 8, 4, 8, 40, 30  # HEADS * SIZE differs from DIM


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> TextLM:
    """Its own rotary base and eps are not the defaults, which a head without those keys has."""
    settings = {"num_hidden_layers": 8, "rope_theta": 500_000.0, "rms_norm_eps": 1e-3}
    return trunk(tmp_path_factory.mktemp("trunk") / "lm", **settings)


# -- EAGLE-3 ----------------------------------------------------------------------------------------------------------
def eagle3(lm: TextLM, layer: str, size: int = SIZE) -> dict[str, Tensor]:
    """The tensors of ``yuhuili/EAGLE3-*`` (``layer`` is ``midlayer``) and their like, in float16, with what others drag
    along: a copy of the embedding and the rates of the rotary positions."""
    rng = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=rng) * 0.3).half()

    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    ids = torch.randperm(VOCAB, generator=rng)[:ROWS].sort().values
    return {
        "fc.weight": random(DIM, 3 * DIM),
        f"{layer}.hidden_norm.weight": random(DIM),
        f"{layer}.input_layernorm.weight": random(DIM),
        f"{layer}.post_attention_layernorm.weight": random(DIM),
        f"{attention}.q_proj.weight": random(HEADS * size, 2 * DIM),
        f"{attention}.k_proj.weight": random(KV * size, 2 * DIM),
        f"{attention}.v_proj.weight": random(KV * size, 2 * DIM),
        f"{attention}.o_proj.weight": random(DIM, HEADS * size),
        f"{attention}.rotary_emb.inv_freq": random(size // 2),
        f"{mlp}.gate_proj.weight": random(INNER, DIM),
        f"{mlp}.up_proj.weight": random(INNER, DIM),
        f"{mlp}.down_proj.weight": random(DIM, INNER),
        "norm.weight": random(DIM),
        "lm_head.weight": random(ROWS, DIM),
        "embed_tokens.weight": lm.model.get_input_embeddings().weight.detach().half(),
        "d2t": ids - torch.arange(ROWS),
        "t2d": torch.zeros(VOCAB, dtype=torch.bool).scatter(0, ids, True),
    }


def config(**more: Any) -> dict[str, Any]:
    """The training configuration that the uploads of EAGLE-3 follow: neither rope_theta nor ids of layers."""
    entries = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": DIM,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": SIZE,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "draft_vocab_size": ROWS,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    return {key: value for key, value in {**entries, **more}.items() if value is not ...}


def written(folder: Path, tensors: dict[str, Tensor], entries: dict[str, Any], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


def read(name: str, folder: Path, lm: TextLM) -> MTPHead:
    head: MTPHead = plugins.build("exports", name).read(folder, lm)
    return head


def first_step(
    lm: TextLM, given: dict[str, Tensor], layer: str, theta: float, eps: float, normed_residual: bool = False
) -> Tensor:
    """EAGLE-3's first step on the states and tokens of :func:`tests.exports.tiny.scores`: logits ``[2, 8, ROWS]``."""
    w = {name: value.float() for name, value in given.items()}
    rng = torch.Generator().manual_seed(0)
    hidden, tokens = torch.randn(2, 9, 3, DIM, generator=rng), torch.randint(VOCAB, (2, 9), generator=rng)
    size = len(w[f"{layer}.self_attn.q_proj.weight"]) // HEADS

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"]

    def heads(x: Tensor, name: str) -> Tensor:
        return (x @ w[f"{layer}.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, size)).transpose(1, 2)

    def turned(x: Tensor) -> Tensor:
        angle = torch.arange(8)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    x = lm.model.get_input_embeddings().weight[tokens[:, 1:]]
    g = hidden[:, :-1].flatten(2) @ w["fc.weight"].T
    u = torch.cat([norm(x, f"{layer}.input_layernorm"), norm(g, f"{layer}.hidden_norm")], -1)
    q, k = turned(heads(u, "q")), turned(heads(u, "k")).repeat_interleave(HEADS // KV, 1)
    weights = (q @ k.transpose(2, 3) / size**0.5).masked_fill(torch.ones(8, 8).triu(1) > 0, float("-inf")).softmax(-1)
    a = (weights @ heads(u, "v").repeat_interleave(HEADS // KV, 1)).transpose(1, 2).flatten(2)
    residual = norm(g, f"{layer}.hidden_norm") if normed_residual else g
    a = residual + a @ w[f"{layer}.self_attn.o_proj.weight"].T
    z = norm(a, f"{layer}.post_attention_layernorm")
    gate = F.silu(z @ w[f"{layer}.mlp.gate_proj.weight"].T) * (z @ w[f"{layer}.mlp.up_proj.weight"].T)
    return norm(a + gate @ w[f"{layer}.mlp.down_proj.weight"].T, "norm") @ w["lm_head.weight"].T


def assert_eagle3(head: MTPHead, tensors: dict[str, Tensor], expected: Tensor, taps: tuple[int, ...]) -> None:
    assert head.taps == taps
    assert torch.equal(head.to_target(torch.arange(ROWS)), tensors["t2d"].nonzero()[:, 0])
    torch.testing.assert_close(scores(head)[2][:, :-1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "theta", "eps", "taps"),
    [
        ({}, 1e4, 1e-5, (2, 4, 5)),
        ({"rms_norm_eps": ..., "rope_theta": 1e6}, 1e6, 1e-6, (2, 4, 5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 2e5}}, 2e5, 1e-5, (2, 4, 5)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3, 6]}}, 1e4, 1e-5, (1, 4, 7)),
        ({"eagle_aux_hidden_state_layer_ids": [0, 3, 6]}, 1e4, 1e-5, (0, 3, 6)),
        ({"norm_before_residual": True}, 1e4, 1e-5, (2, 4, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", ["midlayer", "layers.0"])
def test_eagle3_as_published(
    tmp_path: Path, lm: TextLM, layer: str, more: dict[str, Any], theta: float, eps: float, taps: tuple[int, ...]
) -> None:
    tensors = eagle3(lm, layer)
    head = read("vllm-eagle3", written(tmp_path / "in", tensors, config(**more)), lm)
    expected = first_step(lm, tensors, layer, theta, eps, "norm_before_residual" in more)
    assert_eagle3(head, tensors, expected, taps)


@pytest.mark.parametrize(
    "rope", [{"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, {"rope_theta": 3e4}]
)
@pytest.mark.parametrize("normed", [True, False])
def test_speculators_as_published(tmp_path: Path, lm: TextLM, normed: bool, rope: dict[str, Any]) -> None:
    """Written under transformers 5 and under 4, without the ids, and with a verifier of another name."""
    layer = {k: v for k, v in config(**rope).items() if k not in ("architectures", "draft_vocab_size")}
    entries = {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": layer,
        "draft_vocab_size": ROWS,
        "target_hidden_size": None,
        "norm_before_residual": normed,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "eagle_aux_hidden_state_layer_ids": None,
        "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{"speculative_tokens": 3}]},
    }
    tensors = eagle3(lm, "layers.0")
    head = read("speculators", written(tmp_path / "in", tensors, entries), lm)
    assert len(head.offsets) == 3
    assert_eagle3(head, tensors, first_step(lm, tensors, "layers.0", 3e4, 1e-5, normed), (2, 4, 5))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"num_hidden_layers": 2}, "2 layers"),
        ({"hidden_size": 64}, "states of 64, not 32"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rotary positions"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state"),
        ({"eagle_config": {"norm_before_fc": True}}, "norm_before_fc"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "llama4_text"}, "of the kind 'llama4_text'"),
    ],
    ids=str,
)
def test_what_changes_the_numbers_is_refused(tmp_path: Path, lm: TextLM, more: dict[str, Any], reason: str) -> None:
    folder = written(tmp_path / "in", eagle3(lm, "midlayer"), config(**more))
    with pytest.raises(ValueError, match=reason):
        read("vllm-eagle3", folder, lm)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, lm: TextLM) -> None:
    tensors = eagle3(lm, "midlayer")
    for name, value, reason in (
        ("embed_tokens.weight", tensors["embed_tokens.weight"] + 1, "an embedding that is not its trunk's"),
        ("midlayer.self_attn.q_norm.weight", torch.ones(SIZE), "tensors that ours has not: layer\\.self_attn\\.q_norm"),
        ("t2d", tensors["t2d"].flip(0), "in two ways that differ"),
    ):
        folder = written(tmp_path / "in", {**tensors, name: value}, config())
        with pytest.raises(ValueError, match=reason):
            read("vllm-eagle3", folder, lm)
    # Rows that only fill the vocabulary, and a head of all tokens.
    more = torch.cat([tensors["embed_tokens.weight"], torch.zeros(4, DIM).half()])
    whole = {"lm_head.weight": torch.zeros(VOCAB, DIM), "d2t": torch.zeros(VOCAB, dtype=torch.long)}
    whole |= {"t2d": torch.ones(VOCAB, dtype=torch.bool), "embed_tokens.weight": more}
    folder = written(tmp_path / "in", {**tensors, **whole}, config(draft_vocab_size=VOCAB))
    assert read("vllm-eagle3", folder, lm).token_map is None


@pytest.mark.parametrize("name", ["vllm-eagle3", "speculators"])
def test_our_file_has_the_numbers_of_the_reference(tmp_path: Path, lm: TextLM, name: str) -> None:
    head = read("vllm-eagle3", written(tmp_path / "in", eagle3(lm, "midlayer"), config(norm_before_residual=True)), lm)
    plugins.build("exports", name).write(tmp_path / "out", head, lm)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert entries["norm_before_residual"] is True
    assert entries["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    if name == "vllm-eagle3":
        assert entries["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    expected = first_step(lm, tensors, "layers.0", 1e4, 1e-5, True)
    torch.testing.assert_close(scores(head)[2][:, :-1], expected, rtol=1e-5, atol=1e-4)


# -- Medusa -----------------------------------------------------------------------------------------------------------
def medusa(heads: int, blocks: int, own: bool) -> dict[str, Tensor]:
    """Medusa's state dict: the blocks of all heads and, with ``own``, their output layers."""
    rng = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    for i in range(heads):
        for j in range(blocks):
            tensors[f"{i}.{j}.linear.weight"] = torch.randn(DIM, DIM, generator=rng).half() * 0.2
            tensors[f"{i}.{j}.linear.bias"] = torch.randn(DIM, generator=rng).half() * 0.2
        if own:
            tensors[f"{i}.{blocks}.weight"] = torch.randn(VOCAB, DIM, generator=rng).half()
    return tensors


def medusa_logits(tensors: dict[str, Tensor], lm: TextLM, heads: int, blocks: int) -> list[Tensor]:
    hidden = torch.randn(2, 9, 1, DIM, generator=torch.Generator().manual_seed(0))[:, :, 0]
    found = []
    for i in range(heads):
        x = hidden
        for j in range(blocks):
            x = x + F.silu(x @ tensors[f"{i}.{j}.linear.weight"].float().T + tensors[f"{i}.{j}.linear.bias"].float())
        rows = tensors.get(f"{i}.{blocks}.weight", lm.model.get_output_embeddings().weight)
        found.append(x @ rows.float().T)
    return found


@pytest.mark.parametrize(("blocks", "own"), [(1, True), (2, True), (1, False)])
def test_medusa_as_published(tmp_path: Path, lm: TextLM, blocks: int, own: bool) -> None:
    """The configuration in the uploads says two heads, whatever the file holds."""
    tensors = medusa(4, blocks, own)
    entries = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3"}
    head = read("medusa", written(tmp_path / "in", tensors, entries, "medusa_lm_head.safetensors"), lm)
    assert list(head.offsets) == [2, 3, 4, 5]
    for logits, expected in zip(scores(head).values(), medusa_logits(tensors, lm, 4, blocks), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    plugins.build("exports", "medusa").write(tmp_path / "out", head, lm)
    back = load_file(tmp_path / "out" / "medusa_lm_head.safetensors")
    assert {name: value.float().tolist() for name, value in tensors.items()} == {k: v.tolist() for k, v in back.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["medusa_num_layers"] == blocks


def test_blocks_on_the_trunk_s_output_layer_are_given_copies_of_it(tmp_path: Path, lm: TextLM) -> None:
    head = trained(lm, name="medusa", num_heads=2, num_layers=2)
    plugins.build("exports", "medusa").write(tmp_path / "out", head, lm)
    tensors = load_file(tmp_path / "out" / "medusa_lm_head.safetensors")
    for logits, expected in zip(scores(head).values(), medusa_logits(tensors, lm, 2, 2), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
    assert tensors["1.2.weight"].shape == (VOCAB, DIM)


def test_what_is_not_medusa_s_is_refused(tmp_path: Path, lm: TextLM) -> None:
    tensors = {**medusa(2, 1, True), "2.res_connection.weight": torch.zeros(DIM, DIM)}
    with pytest.raises(ValueError, match=r"no Medusa heads of this layout: 2\.res_connection"):
        read("medusa", written(tmp_path / "in", tensors, {}, "medusa_lm_head.safetensors"), lm)
    with pytest.raises(ValueError, match="a part of the vocabulary"):
        plugins.build("exports", "medusa").write(tmp_path / "out", trained(lm, name="medusa", draft_vocab=30), lm)
