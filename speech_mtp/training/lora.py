"""Low-rank adapters on a text trunk (Hu et al. 2021, arXiv:2106.09685), by the package ``peft``.

For the joint second stage of training, in which the trunk moves a little towards its heads (Medusa-2, L-MTP).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from torch import nn

from speech_mtp import plugins
from speech_mtp.lm.text_lm import TextLM


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters of ``rank`` and ``alpha`` on all linear layers but the output layer. The loss is that of the next token
    plus ``heads_weight`` times those of the heads; the adapters' learning rate is ``rate_scale`` of the heads'."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rank: int = 32
    alpha: int = 16
    heads_weight: float = 0.1
    rate_scale: float = 0.1


class Adapters(nn.Module):
    """The adapters put into ``lm``, which from then on computes with them. Its own weights stay frozen.

    The state dict holds the adapters alone. Raises MissingExtra (an ImportError) without ``peft``.
    """

    def __init__(self, lm: TextLM, config: LoRAConfig) -> None:
        super().__init__()
        peft: Any = plugins.require("peft", "train")
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear")
        # In a tuple: the trunk's own weights are not part of this module.
        self._adapted = (peft.get_peft_model(lm.model, settings),)
        self._tokenizer = lm.tokenizer
        self.weights = nn.ParameterList(p for p in lm.model.parameters() if p.requires_grad)

    def save_merged(self, folder: Path) -> None:
        """Write the trunk with the adapters added to its weights as an ordinary model, and its tokenizer."""
        copy.deepcopy(self._adapted[0]).merge_and_unload().save_pretrained(folder)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)
