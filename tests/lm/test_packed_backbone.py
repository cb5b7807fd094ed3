"""The backbone read from its files: the states of ``transformers``, from the layers that are used alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from speech_mtp.lm import packed_backbone
from speech_mtp.lm.backbone import Backbone
from speech_mtp.lm.block_weights import rounded
from speech_mtp.lm.packed_backbone import PackedBackbone, fits
from speech_mtp.nn.blocks import is_native
from tests.llama import random_llama
from tests.lm.test_backbone import TEXTS, family
from tests.lm.tiny import tiny_tokenizer

FAMILIES: list[tuple[Any, dict[str, Any]]] = [
    (LlamaConfig, {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    (Qwen2Config, {}),
    (Qwen3Config, {"head_dim": 8}),
    (MistralConfig, {"sliding_window": None}),
]


def saved(folder: Path, config: Any, more: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    model = family(config, more).to(dtype)
    for name, parameter in model.named_parameters():  # biases and norms that say something
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize(("config", "more"), FAMILIES, ids=[c.model_type for c, _ in FAMILIES])
@pytest.mark.parametrize("layer", [1, 3, 4, -1])
def test_it_gives_the_states_of_the_backbone(tmp_path: Path, config: Any, more: dict[str, Any], layer: int) -> None:
    saved(tmp_path, config, more)
    assert fits(tmp_path)
    expected = Backbone.from_folder(tmp_path, hidden_layer=layer)
    packed = PackedBackbone(tmp_path, expected.fingerprint, layer, expected.prefix)
    whole, found = expected.encode(TEXTS), packed.encode(TEXTS)
    torch.testing.assert_close(found.hidden, whole.hidden, atol=1e-4, rtol=1e-4)
    assert found.spans == whole.spans
    state = packed.open()
    for piece in ("The quick", " brown fox doesn't", " jump over the lazy dog."):
        packed.extend(state, piece)
        packed.advance(state)
    torch.testing.assert_close(packed.read_all(state), whole.hidden[1:2], atol=1e-4, rtol=1e-4)
    once = packed.open()
    packed.extend(once, TEXTS[1])
    assert torch.equal(packed.read_all(once), state.states), "to the last bit, however the text came"


def test_no_more_is_read_than_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path, LlamaConfig, {}, torch.bfloat16)
    read: list[str] = []
    get = packed_backbone.WeightFiles.__getitem__
    monkeypatch.setattr(
        packed_backbone.WeightFiles, "__getitem__", lambda self, name: read.append(name) or get(self, name)
    )
    packed = PackedBackbone(tmp_path, "x", 2, [1])
    layers = {name.split(".")[2] for name in read if ".layers." in name}
    assert layers == {"0", "1"}
    assert len(read) == len(set(read)) == 2 * 9 + 2
    assert packed._embed.dtype == torch.bfloat16, "as it is stored"
    expected = Backbone(model.float(), tiny_tokenizer(), "x", 2)
    expected.prefix = [1]
    torch.testing.assert_close(packed.encode(TEXTS).hidden, expected.encode(TEXTS).hidden, atol=1e-4, rtol=1e-4)


def test_weights_in_several_files(tmp_path: Path) -> None:
    saved(tmp_path, LlamaConfig, {})
    whole = PackedBackbone(tmp_path, "x", 2, [1]).encode(TEXTS).hidden
    weights = packed_backbone.WeightFiles(tmp_path)
    tensors = {name: weights[name].clone() for name in weights._files}
    (tmp_path / "model.safetensors").unlink()
    for i in (0, 1):
        save_file(dict(list(tensors.items())[i::2]), tmp_path / f"model-{i}.safetensors", {"format": "pt"})
    assert torch.equal(PackedBackbone(tmp_path, "x", 2, [1]).encode(TEXTS).hidden, whole)


def test_what_it_cannot_read_is_left_to_the_library(tmp_path: Path) -> None:
    for name, config, more in (
        ("gemma", GemmaConfig, {"head_dim": 8}),
        ("window", MistralConfig, {"sliding_window": 6}),
        ("rope", LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ):
        saved(tmp_path / name, config, more)
        assert not fits(tmp_path / name), name
    assert not fits(tmp_path / "nothing")


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, LlamaConfig, {})
    with pytest.raises(ValueError, match="hidden_layer is 5, but the backbone has 4 layers"):
        PackedBackbone(tmp_path, "x", 5, [1])


@pytest.mark.parametrize(("width", "heads"), [(160, 8), (64, 4)], ids=["layer by layer", "all layers at once"])
def test_with_weights_in_blocks(tmp_path: Path, width: int, heads: int) -> None:
    """Texts that come in pieces, several at a time, are read as whole ones: to the bit where the kernels do it."""
    sizes = {"intermediate_size": 96, "num_attention_heads": heads, "max_position_embeddings": 64}
    model = random_llama(300, width, 3, initializer_range=0.05, **sizes)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    expected = Backbone.from_folder(tmp_path, hidden_layer=2)
    packed = PackedBackbone(tmp_path, "x", 2, expected.prefix, rounded("q8"))
    whole, near = packed.encode(TEXTS), expected.encode(TEXTS)
    assert float((whole.hidden - near.hidden).norm() / near.hidden.norm()) < 0.05
    states = [packed.open() for _ in TEXTS]
    pieces = [re.findall(r"\s*\S+", text) for text in TEXTS]
    for number in range(max(map(len, pieces))):
        for state, words in zip(states, pieces, strict=True):
            if number < len(words):
                packed.extend(state, words[number])
        packed.advance_many(states)
    for row, state in enumerate(states):
        found = packed.read_all(state)
        if width == 64 and is_native():
            assert torch.equal(found, whole.hidden[row : row + 1, : found.shape[1]])
        else:
            torch.testing.assert_close(found, whole.hidden[row : row + 1, : found.shape[1]], atol=1e-4, rtol=1e-4)
