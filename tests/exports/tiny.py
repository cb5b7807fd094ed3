"""Tiny trunks with real tokenizers on disk, random heads for them, and what the tests of all formats compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from speech_mtp import plugins
from speech_mtp.exports.base import open_trunk
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import LMOutput
from tests.lm.tiny import tiny_tokenizer

VOCAB, DIM, LAYERS = 300, 32, 3


def trunk_folder(folder: Path, kind: str = "llama", **settings: Any) -> Path:
    """A random trunk of the family ``kind``, saved with a tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(kind, **{**sizes, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trunk(folder: Path, kind: str = "llama", **settings: Any) -> TextLM:
    return open_trunk(trunk_folder(folder, kind, **settings))


def trained(lm: TextLM, seed: int = 1, **spec: Any) -> MTPHead:
    """A head with random weights and, if it is reduced, a vocabulary of its own."""
    torch.manual_seed(seed)
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    if head.token_map is not None:
        head.set_vocabulary(torch.randperm(VOCAB)[: head.num_tokens])
    head.bind(Binding(**lm.binding()))
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0, 0.2)
    return head.eval()


def scores(head: MTPHead, num_taps: int | None = None) -> dict[int, Tensor]:
    """Logits by offset on random states and tokens."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, num_taps or len(head.taps), DIM, generator=rng)
    tokens = torch.randint(VOCAB, (2, 9), generator=rng)
    with torch.no_grad():
        return dict(head.unroll(LMOutput(hidden), tokens))


def assert_same(head: MTPHead, back: MTPHead) -> None:
    """``back`` scores as ``head`` does, and its drafts mean the same tokens of the target."""
    ours, theirs = scores(head), scores(back)
    assert (back.taps, list(ours), back.training) == (head.taps, list(theirs), False)
    for offset, logits in ours.items():
        torch.testing.assert_close(theirs[offset], logits, rtol=0, atol=1e-6)
    ids = torch.arange(head.num_tokens)
    assert torch.equal(back.to_target(ids), head.to_target(ids))
