"""Random Llama models that tests are done with; each names what is special about its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speech_mtp.lm.text_lm import TextLM


def llama_config(vocab_size: int, dim: int, **more: Any) -> LlamaConfig:
    """Four heads, two with keys of their own; feed-forward layers of 1.5 ``dim``; no end token unless one is named."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    sizes["intermediate_size"] = dim * 3 // 2
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaConfig(vocab_size=vocab_size, hidden_size=dim, **{**sizes, **ends, **more})


def random_llama(vocab_size: int, dim: int, seed: int = 0, **more: Any) -> LlamaForCausalLM:
    """A model of :func:`llama_config`."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(vocab_size, dim, **more))


def decodes_invariantly() -> bool:
    """Whether this processor can: where it cannot, refusing is right."""
    try:
        TextLM(random_llama(31, 64, num_hidden_layers=1).bfloat16()).prepare(invariant=True)
    except ValueError:
        return False
    return True


needs_invariance = pytest.mark.skipif(not decodes_invariantly(), reason="products of this processor are not invariant")
