"""A tiny random causal LM on disk, and a head for it: what the text commands are given in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from speech_mtp import hub, plugins
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from tests.lm.tiny import CHAT, tiny_config, tiny_tokenizer


def tiny_folder(folder: Path, chat: str | None = CHAT, seed: int = 0) -> Path:
    """The backbone of :mod:`tests.lm.tiny`, saved."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config())
    model.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    model.save_pretrained(folder)
    tiny_tokenizer(chat).save_pretrained(folder)
    return folder


def tiny_text_lm() -> TextLM:
    """The same in memory."""
    torch.manual_seed(0)
    return TextLM(LlamaForCausalLM(tiny_config()), tiny_tokenizer(), "tiny")


def tiny_head(lm: TextLM, folder: Path | None = None, **spec: Any) -> MTPHead:
    """A random head (default: two Medusa heads) bound to ``lm``, saved in ``folder`` if there is one."""
    spec = spec or {"name": "medusa", "num_heads": 2}
    torch.manual_seed(1)
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    if folder is not None:
        hub.save_head(head, folder, spec, lm.fingerprint)
    return head.eval()
