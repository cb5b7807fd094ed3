"""A trunk with weights in blocks: what it computes, that it is invariant, and where its weights come from."""

from __future__ import annotations

import copy
import gc
import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from speech_mtp import hub
from speech_mtp.decoding.text import start
from speech_mtp.lm import block_weights
from speech_mtp.lm.block_weights import OUTPUT, gguf_blocks, load_blocks, of_folder, of_gguf, rounded, save_blocks
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.blocks import KINDS, Blocks
from speech_mtp.types import Sampling
from tests.decoding.test_text_lossless import make_head
from tests.llama import llama_config, random_llama
from tests.lm.test_invariant import PROMPTS, SAMPLINGS, TAPS, chain, check_pieces, check_same_text, check_tree
from tests.nn.test_blocks import needs_kernels

SIZES = {"num_hidden_layers": 3, "intermediate_size": 96, "max_position_embeddings": 512}
NATIVE = pytest.mark.parametrize("native", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "torch"])


def make(name: str = "llama") -> Any:
    """A random model; with biases (qwen2), with norms of queries and keys (qwen3), with scaled angles (yarn), with
    three heads to a key (threes), the same with queries that look at all alike (even), with heads that do not divide
    into sixteens (narrow)."""
    if name == "llama":
        return uneven(random_llama(61, 64, 4, **SIZES))
    if name == "even":
        model = make("threes")
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
        return model
    if name in ("threes", "narrow"):
        heads = {"num_attention_heads": 6} if name == "threes" else {"num_key_value_heads": 4}
        return uneven(random_llama(61, 96, 4, **SIZES, **heads))
    if name == "yarn":
        rope = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
        return uneven(random_llama(61, 64, 4, **SIZES, rope_parameters=rope))
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    sizes = llama_config(61, 64, head_dim=16, **SIZES).to_dict()
    kept = {key: value for key, value in sizes.items() if key not in ("model_type", "architectures", "pretraining_tp")}
    torch.manual_seed(5)
    config, model = kinds[name]
    made = model(config(**kept))
    for parameter, value in made.named_parameters():
        if parameter.endswith("bias"):
            torch.nn.init.normal_(value)
    return uneven(made)


def uneven(model: Any) -> Any:
    """``model`` with norms that are not all one, so that none can stand in for another."""
    for parameter, value in model.named_parameters():
        if "norm" in parameter:
            torch.nn.init.uniform_(value, 0.8, 1.2)
    return model


def prepared(native: bool, monkeypatch: pytest.MonkeyPatch, name: str = "llama", kind: str = "q8") -> TextLM:
    if not native:
        monkeypatch.setattr("speech_mtp.nn.blocks.is_native", lambda: False)
        monkeypatch.setattr("speech_mtp.nn.fused.is_native", lambda: False)
    lm = TextLM(make(name)).prepare(blocks=rounded(kind))
    assert lm.decoder is not None
    assert (lm.decoder.fused is not None) == native
    return lm


def rounded_model(name: str, kind: str) -> TextLM:
    """The same with its weights rounded and its inputs not: plain float32."""
    model = make(name)
    for place, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = f"{place}.weight"
            module.weight.data = rounded(kind)(weight, module.weight).floats()
    return TextLM(model).prepare()


@NATIVE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_states_are_near_those_of_the_rounded_weights(
    name: str, kind: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, lm = rounded_model(name, kind), prepared(native, monkeypatch, name, kind)
    rows = lm.open(2), expected.open(2)
    prompts = [PROMPTS[0], PROMPTS[1][:7]]
    found, true = (model.read(row, prompts, TAPS)[0].hidden for model, row in zip((lm, expected), rows, strict=True))
    off = (found - true).norm(dim=-1) / true.norm(dim=-1)
    assert float(off.max()) < 0.08  # inputs of three layers rounded to 8 bits
    assert float(off.mean()) < 0.03


@needs_kernels
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "yarn"])
def test_all_layers_at_once_and_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same products, so the states are equal but for numbers that fall to the other side of a rounding."""
    fused, plain = prepared(True, monkeypatch, name), prepared(False, monkeypatch, name)
    found, true = (model.read(model.open(1), [PROMPTS[1]], TAPS)[0].hidden for model in (fused, plain))
    assert float((found - true).norm() / true.norm()) < 0.01


@NATIVE
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("width", [2, 5, 41])
def test_a_chain_and_its_nodes_one_by_one(name: str, width: int, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    together, alone = chain(prepared(native, monkeypatch, name, "q4"), PROMPTS[1], width)
    assert torch.equal(together, alone)


@NATIVE
def test_a_tree_in_a_batch_and_its_branches_one_by_one(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tree(prepared(native, monkeypatch))


@NATIVE
@pytest.mark.parametrize("name", ["threes", "narrow", "even"])
def test_a_long_prompt_read_whole_and_token_by_token(name: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of neighbouring tokens are looked up side by side, though one sees an entry more than the other."""
    lm, prompt = prepared(native, monkeypatch, name), (PROMPTS[1] + PROMPTS[0]) * 3
    whole = lm.read(lm.open(1), [prompt], TAPS)[0].hidden[0]
    rows, alone = lm.open(1), []
    for token in prompt:
        alone.append(lm.read(rows, [[token]], TAPS)[0].hidden[0])
    assert torch.equal(whole, torch.cat(alone))


@NATIVE
@pytest.mark.parametrize("threads", [1, 3])
def test_a_prompt_read_whole_and_in_pieces(threads: int, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    check_pieces(prepared(native, monkeypatch), threads)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "rule"),
    [(None, "lookup"), ("medusa", "chain"), ("eagle", "tree"), ("hydra", "cascade"), ("leap", "leap")],
)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top_p", "penalised"])
def test_the_text_is_the_same_whatever_drafts_it(
    name: str | None, rule: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = prepared(True, monkeypatch)
    check_same_text(lm, None if name is None else make_head(name, lm).prepare("q8"), rule, sampling)


def test_without_the_kernels_it_is_the_same_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = prepared(False, monkeypatch)
    check_same_text(lm, make_head("eagle", lm).prepare("q8"), "tree", SAMPLINGS[1])


@NATIVE
def test_states_of_packed_documents_are_those_of_each_alone(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents in a row, which do not see each other."""
    lm = prepared(native, monkeypatch)
    one, two = torch.tensor([PROMPTS[0]]), torch.tensor([PROMPTS[1][:9]])
    counts = one.shape[1], two.shape[1]
    segment = torch.tensor([0] * counts[0] + [1] * counts[1])
    index = torch.cat([torch.arange(count) for count in counts])[None]
    mask = (segment[:, None] == segment) & torch.ones(len(segment), len(segment), dtype=torch.bool).tril()
    with torch.inference_mode():
        packed = lm.trunk_states(lm.embed(torch.cat([one, two], 1)), index, mask[None, None], None, TAPS).hidden
        alone = [lm(ids, torch.tensor([ids.shape[1]]), TAPS).hidden for ids in (one, two)]
    assert torch.equal(packed, torch.cat(alone, 1))
    with torch.autocast("cpu", torch.bfloat16):
        again = lm.trunk_states(lm.embed(torch.cat([one, two], 1)), index, mask[None, None], None, TAPS).hidden
    assert torch.equal(again, packed)
    twice = lm.embed(torch.cat([one, two], 1)).expand(2, -1, -1)
    rows = lm.trunk_states(twice, index, mask[None, None], None, TAPS).hidden
    assert torch.equal(rows, packed.expand_as(rows))
    blind = mask.clone()
    blind[2] = False
    for wrong in (blind, torch.ones_like(mask)):
        with pytest.raises(ValueError, match="must see itself, and none that comes after it"):
            lm.trunk_states(twice, index, wrong[None, None], None, TAPS)


@NATIVE
def test_teacher_forced_states_are_those_of_decoding(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, texts = prepared(native, monkeypatch), [PROMPTS[0], PROMPTS[1][:5]]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    forced = lm(padded, torch.tensor([7, 5])).top
    for row, text in enumerate(texts):
        assert torch.equal(forced[row, : len(text) - 1], lm.read(lm.open(1), [text])[0].top[0])
    with pytest.raises(ValueError, match="decodes with weights in blocks"):
        lm.check_layers()


def test_what_has_no_blocks() -> None:
    torch.manual_seed(0)
    gemma = GemmaForCausalLM(GemmaConfig(vocab_size=61, hidden_size=64, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="'gemma' model on cpu"):
        TextLM(gemma).prepare(blocks=rounded("q8"))
    with pytest.raises(ValueError, match="not compiled"):
        TextLM(make()).prepare(blocks=rounded("q8"), compile=True)
    with pytest.raises(ValueError, match="do not divide into blocks"):
        TextLM(random_llama(31, 40, num_hidden_layers=1)).prepare(blocks=rounded("q8"))


@needs_kernels
def test_what_the_kernels_refuse() -> None:
    lm = TextLM(make()).prepare(blocks=rounded("q8"))
    assert lm.decoder is not None
    assert lm.decoder.fused is not None
    fused, cache, x = lm.decoder.fused, lm.open(1, 4).cache, torch.zeros(1, 2, 64)
    index = torch.arange(2)[None]
    for taps in ((-2,), (4,)):
        with pytest.raises(ValueError, match="from -1 to 3"):
            fused(x, index, None, cache, taps)
    with pytest.raises(ValueError, match="room for 4 entries, not for 5"):
        fused(torch.zeros(1, 5, 64), torch.arange(5)[None], None, cache, (-1,))
    with pytest.raises(ValueError, match="for a CPU, not for inputs on meta"):
        fused(x.to("meta"), index, None, cache, (-1,))
    copied = copy.deepcopy(fused)
    assert torch.equal(copied(x, index, None, cache, (-1,))[0], fused(x, index, None, cache, (-1,))[0])


def test_blocks_are_not_kept_beside_what_is_made_of_them() -> None:
    model = make()
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    made = {name: rounded("q8")(name, weight) for name, weight in weights.items()}
    alive = [weakref.ref(block) for block in made.values()]
    lm = TextLM(model).prepare(blocks=block_weights.among(made))
    del made
    gc.collect()
    assert lm.decoder is not None
    assert len(alive) == 22
    assert not any(found() for found in alive)


# -- where they come from ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_of_a_gguf_file_are_what_they_stand_for(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind]
    weight = np.random.default_rng(0).normal(size=(20, 96)).astype(np.float32)
    data = gguf.quantize(weight, number)
    found = gguf_blocks(torch.from_numpy(data), kind)
    assert found is not None
    assert np.allclose(found.floats().numpy(), gguf.dequantize(data, number), atol=1e-6)


def test_other_kinds_of_a_gguf_file_are_no_blocks() -> None:
    assert gguf_blocks(torch.zeros(2, 32, dtype=torch.uint8), "Q6_K") is None


def test_a_gguf_file_and_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """Queries and keys too, whose rows stand in another order there; and a kind that is none of ours."""
    gguf = pytest.importorskip("gguf")
    model, path = random_llama(64, 64, 4, **SIZES), tmp_path / "tiny.gguf"
    write_gguf(gguf, model, path)
    made = of_gguf(path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    names = [name for name, module in loaded.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {f"{name}.weight" for name in names} == set(made)
    for name in names:
        weight = loaded.get_submodule(name).weight.detach()
        off = (made[f"{name}.weight"].floats() - weight).abs().max()
        assert float(off) < (0.01 if "down_proj" in name else 1e-6), name
    assert made["model.layers.0.self_attn.q_proj.weight"].kind == "q4"
    assert made[OUTPUT].kind == "q8"


def write_gguf(gguf: Any, model: Any, path: Path) -> None:
    """As llama.cpp's converter does it: rows of queries and keys turned, one matrix left in floats."""
    c, q = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    writer.add_rope_freq_base(10_000.0)

    def add(name: str, weight: torch.Tensor, kind: Any = None) -> None:
        numbers = weight.detach().float().numpy()
        if kind is None:
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)

    def turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    add("token_embd.weight", model.model.embed_tokens.weight, q.Q8_0)
    add("output.weight", model.lm_head.weight, q.Q8_0)
    add("output_norm.weight", model.model.norm.weight)
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        add(f"blk.{i}.attn_norm.weight", layer.input_layernorm.weight)
        add(f"blk.{i}.ffn_norm.weight", layer.post_attention_layernorm.weight)
        add(f"blk.{i}.attn_q.weight", turned(attention.q_proj.weight, c.num_attention_heads), q.Q4_1)
        add(f"blk.{i}.attn_k.weight", turned(attention.k_proj.weight, c.num_key_value_heads), q.Q4_1)
        add(f"blk.{i}.attn_v.weight", attention.v_proj.weight, q.Q4_0)
        add(f"blk.{i}.attn_output.weight", attention.o_proj.weight, q.Q8_0)
        add(f"blk.{i}.ffn_gate.weight", mlp.gate_proj.weight, q.Q4_1)
        add(f"blk.{i}.ffn_up.weight", mlp.up_proj.weight, q.Q4_1)
        add(f"blk.{i}.ffn_down.weight", mlp.down_proj.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_rounded_once(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    model = random_llama(61, 64, 4, **SIZES, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "model")
    find = hub.block_weights(tmp_path / "model", "q4")
    for name in ("model.layers.2.mlp.down_proj.weight", OUTPUT):
        weight = model.get_parameter("model.embed_tokens.weight" if tied and name == OUTPUT else name)
        assert torch.equal(find(name, weight).tiles, rounded("q4")(name, weight).tiles)
    monkeypatch.setattr(hub.backbones, "of_folder", lambda *_: pytest.fail("made again"))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache/blocks").iterdir()} == {0o666 & ~umask()}
    again = hub.block_weights(tmp_path / "model", "q4")
    assert torch.equal(again(name, weight).tiles, find(name, weight).tiles)


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    model = random_llama(61, 64, 4, **SIZES)
    model.save_pretrained(tmp_path / "model")
    for _ in range(2):
        assert hub.block_weights(tmp_path / "model", "q8")(OUTPUT, model.lm_head.weight).kind == "q8"
        (path,) = (tmp_path / "cache/blocks").iterdir()
        path.write_bytes(path.read_bytes()[:100])


def test_the_files_own_blocks_and_rounded_ones_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for first."""
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    model, path = random_llama(64, 64, 4, **SIZES), tmp_path / "package" / "tiny.Q4_1.gguf"
    path.parent.mkdir()
    write_gguf(gguf, model, path)
    model.save_pretrained(tmp_path / "model")
    digest = hub.backbones.sha256(path)
    (tmp_path / "model" / "source.json").write_text(json.dumps({"sha256": digest}), encoding="utf-8")
    monkeypatch.setattr(hub.backbones, "_in_package", lambda source: found[0])
    other = path.with_name("other.gguf")
    other.write_bytes(path.read_bytes() + b"newer")
    found = [other]
    source, name = {"file": path.name, "sha256": digest}, "model.layers.0.self_attn.q_proj.weight"
    weight = model.get_parameter(name)
    alone = hub.block_weights(tmp_path / "model", "q4")(name, weight)
    assert hub.own_blocks(tmp_path / "model", source) is None, "another file under the same name"
    found[0] = path
    own = hub.block_weights(tmp_path / "model", "q4", source)(name, weight)
    assert torch.equal(own.tiles, of_gguf(path)[name].tiles)
    assert torch.equal(alone.tiles, rounded("q4")(name, weight).tiles)
    assert hub.own_blocks(tmp_path / "model", {**source, "sha256": "of another"}) is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocks").write_text("a file in the way of the folder", encoding="utf-8")
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path))
    model = random_llama(61, 64, 4, **SIZES)
    model.save_pretrained(tmp_path / "model")
    assert hub.block_weights(tmp_path / "model", "q8")(OUTPUT, model.lm_head.weight).shape == (61, 64)


def test_block_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "blocks.safetensors"
    save_blocks({"a": Blocks.of(torch.zeros(20, 32), "q4")}, path)
    assert load_blocks(path)["a"].shape == (20, 32)
    with pytest.raises(ValueError, match=r"a is \(16, 32\) in the model and \(20, 32\) among the blocks"):
        block_weights.among(load_blocks(path))("a", torch.zeros(16, 32))
    with pytest.raises(ValueError, match="b is"):
        block_weights.among(load_blocks(path))("b", torch.zeros(16, 32))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(OSError, match="is damaged"):
        load_blocks(path)


def test_all_products_of_a_folder(tmp_path: Path) -> None:
    model = random_llama(61, 64, 4, **SIZES)
    model.save_pretrained(tmp_path)
    found = of_folder(tmp_path, "q8")
    linears = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(found) == linears


def test_decoding_needs_no_layers() -> None:
    """The layers are let go one by one, and decoding goes on."""
    lm = TextLM(make()).prepare(keep_layers=False, blocks=rounded("q8"))
    assert not len(lm.model.base_model.layers)
    with pytest.raises(ValueError, match="prepared already; load it anew"):
        lm.prepare(blocks=rounded("q8"))
    start(lm, [PROMPTS[0]], SAMPLINGS[0], None, 4).complete()
