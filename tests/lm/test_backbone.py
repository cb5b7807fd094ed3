"""The backbone: truncation, batching and incremental reading against the plain ``transformers`` model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from speech_mtp.lm.backbone import Backbone, assistant_prefix
from speech_mtp.lm.fingerprint import fingerprint_of
from tests.lm.tiny import tiny_backbone, tiny_config, tiny_tokenizer

TEXTS = ["Hello there, fox!", "The quick brown fox doesn't jump over the lazy dog.", "Hi", ""]
FAMILIES: list[tuple[Any, dict[str, Any]]] = [
    (LlamaConfig, {}),
    (Qwen2Config, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    (Qwen3Config, {"head_dim": 8}),
    (GemmaConfig, {"head_dim": 8}),
    (Gemma2Config, {"head_dim": 8, "sliding_window": 6}),
    (Gemma3TextConfig, {"head_dim": 8, "sliding_window": 6}),
    (MistralConfig, {"sliding_window": 6}),
    (PhiConfig, {}),
    (Phi3Config, {}),
]


def family(config: Any, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(config(**sizes, **heads, **more)).eval()


def reference(backbone: Backbone, text: str, layer: int) -> torch.Tensor:
    """``[L, D]`` from the whole, untouched model with every hidden state kept."""
    prefix = assistant_prefix(backbone.tokenizer)
    ids = torch.tensor([prefix + backbone.tokenizer(text, add_special_tokens=False)["input_ids"]])
    return backbone.model(ids, output_hidden_states=True).hidden_states[layer][0, len(prefix) :]


@pytest.mark.parametrize(("config", "more"), FAMILIES, ids=[c.model_type for c, _ in FAMILIES])
@pytest.mark.parametrize("layer", [1, 3, 4, -1])
def test_every_family_gives_the_states_of_the_whole_model(config: Any, more: dict[str, Any], layer: int) -> None:
    backbone = Backbone(family(config, more), tiny_tokenizer(), "x", layer)
    encoded = backbone.encode(TEXTS)
    for row, text in enumerate(TEXTS[:2]):
        expected = reference(backbone, text, layer)
        assert encoded.lengths[row] == len(expected) > 8
        torch.testing.assert_close(encoded.hidden[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    state = backbone.open()
    for word in re.findall(r"\s*\S+", TEXTS[1]):
        backbone.extend(state, word)
        backbone.read_all(state)
    torch.testing.assert_close(state.states[0], reference(backbone, TEXTS[1], layer), atol=1e-5, rtol=1e-5)


def test_layers_above_the_chosen_one_are_not_computed() -> None:
    backbone = tiny_backbone(hidden_layer=2)
    calls: list[int] = []
    for i, layer in enumerate(backbone.model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    backbone.encode(["Hello there"])
    assert calls == [0, 1]
    assert len(backbone.model.model.layers) == backbone.model.config.num_hidden_layers == 3


def test_a_row_is_the_same_alone_and_among_others_and_zero_past_its_end() -> None:
    backbone = tiny_backbone()
    together = backbone.encode(TEXTS)
    assert together.lengths.tolist() == [len(spans) for spans in together.spans]
    assert together.lengths[3] == 0
    for row, text in enumerate(TEXTS):
        alone = backbone.encode([text])
        n = int(alone.lengths[0])
        torch.testing.assert_close(together.hidden[row, :n], alone.hidden[0], atol=1e-5, rtol=0)
        assert together.hidden[row, n:].abs().sum() == 0
        assert together.spans[row] == alone.spans[0]


def test_spans_cover_the_text_and_the_prefix_is_an_assistant_turn() -> None:
    backbone = tiny_backbone()
    text = TEXTS[1]
    spans = backbone.encode([text]).spans[0]
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == text.replace(" ", "")
    assert backbone.tokenizer.decode(assistant_prefix(backbone.tokenizer)) == "<|im_start|>assistant\n"
    plain = tiny_tokenizer(chat=None)
    assert assistant_prefix(plain) == [plain.bos_token_id]


@given(st.lists(st.sampled_from(["fox", "doesn't", "Hello,", "lazy", "dog.", "zebra!"]), min_size=1, max_size=8))
def test_word_by_word_equals_the_whole_text(words: list[str]) -> None:
    backbone = BACKBONE
    whole = backbone.encode([" ".join(words)])
    state = backbone.open()
    for i, word in enumerate(words):
        backbone.extend(state, (" " if i else "") + word)
        backbone.read_all(state)
    assert state.spans == whole.spans[0]
    torch.testing.assert_close(state.states, whole.hidden, atol=1e-5, rtol=1e-5)
    at_once = backbone.open()
    backbone.extend(at_once, " ".join(words))
    assert torch.equal(backbone.read_all(at_once), state.states), "to the last bit, however the text came"


BACKBONE = tiny_backbone()


def test_a_piece_cut_within_a_word_is_refused_and_leaves_the_state_alone() -> None:
    state = BACKBONE.open()
    BACKBONE.extend(state, "The qui")
    with pytest.raises(ValueError, match="cut before spaces"):
        BACKBONE.extend(state, "ck")
    BACKBONE.extend(state, " fox")
    assert state.text == "The qui fox"
    assert BACKBONE.read_all(state).shape[1] == len(state.spans) > 2
    assert not BACKBONE.advance(state)


def test_frozen_means_frozen() -> None:
    backbone = tiny_backbone()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().model.training
    assert not backbone.encode(["Hello"]).hidden.requires_grad
    free = Backbone(LlamaForCausalLM(tiny_config()), tiny_tokenizer(), "x", 2, frozen=False)
    free.encode(["Hello"]).hidden.sum().backward()
    assert free.model.model.layers[1].mlp.up_proj.weight.grad is not None
    assert free.model.model.layers[2].mlp.up_proj.weight.grad is None


def test_casting_the_backbone_casts_the_layers_that_it_runs() -> None:
    backbone = tiny_backbone()
    exact = backbone.encode(["Hello there"]).hidden
    rounded = backbone.to(torch.bfloat16).encode(["Hello there"]).hidden
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.5


def test_recurrent_models_and_wrong_layers_are_refused() -> None:
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match="'mamba' model cannot be the backbone"):
        Backbone(mamba, tiny_tokenizer(), "x")
    for layer in (0, 4, -2):
        with pytest.raises(ValueError, match="the backbone has 3 layers"):
            tiny_backbone(hidden_layer=layer)


def test_saved_and_loaded_from_a_folder(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Backbone.from_folder(tmp_path)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    loaded = Backbone.from_folder(tmp_path, hidden_layer=2)
    torch.testing.assert_close(loaded.encode(TEXTS).hidden, backbone.encode(TEXTS).hidden)
    assert loaded.fingerprint == fingerprint_of(tmp_path)
    assert len(loaded.fingerprint) == 64
    (tmp_path / "source.json").write_text('{"sha256": "abc"}')
    assert Backbone.from_folder(tmp_path).fingerprint == "abc"
    assert Backbone.from_folder(tmp_path, fingerprint="mine").fingerprint == "mine"
    (tmp_path / "source.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        Backbone.from_folder(tmp_path)
