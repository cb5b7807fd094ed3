"""A causal LM of text to be trained: Llama's shape, from nothing or from a folder, and back into one.

Its parameters have the names and shapes of ``transformers``' ``LlamaForCausalLM``, so a folder goes in and out without
a conversion (:mod:`speech_mtp.lm.llama_folder`). It reads packed documents under a mask, and decodes nothing: what has
been trained is read back by :class:`speech_mtp.lm.text_lm.TextLM`, as any other model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp.lm.unembedding import Unembedding
from speech_mtp.nn.transformer import BlockShape, LlamaBlock
from speech_mtp.nn.visibility import Mask
from speech_mtp.types import LMOutput

INIT_SCALE = 0.55
"""Of random weights, times 1 / sqrt(dim): 0.02 at GPT-2's width of 768. Narrow trunks with its 0.02 stand still for
long at first."""


@dataclass(frozen=True)
class CausalLMConfig:
    """Sizes of a trunk, without its vocabulary. ``num_kv_heads`` (default: ``num_heads``) heads of keys and values
    serve them all; ``intermediate_size`` is by default 8/3 ``dim``, rounded up to a multiple of 64. A ``tied`` output
    layer is the embedding. Rows longer than ``max_positions`` are not meant to be read."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    dim: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_positions: int = 2048
    tied: bool = True
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(f"A trunk of width {self.dim} does not divide into {self.num_heads} heads; change one.")
        shape = self.block()
        if shape.head_dim % 2:
            raise ValueError(f"The heads have {shape.head_dim} numbers, which must be even; change dim or num_heads.")
        if self.num_heads % shape.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads cannot share {shape.num_kv_heads} of keys; num_kv_heads must divide num_heads."
            )

    def block(self) -> BlockShape:
        """The sizes of one block."""
        return BlockShape(
            dim=self.dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.head_dim or self.dim // self.num_heads,
            intermediate_size=self.intermediate_size or -(-8 * self.dim // 192) * 64,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
        )


class _Layers(nn.Module):
    """What ``transformers`` keeps under ``model``."""

    def __init__(self, config: CausalLMConfig, vocab_size: int) -> None:
        super().__init__()
        shape = config.block()
        self.embed_tokens = nn.Embedding(vocab_size, config.dim)
        self.layers = nn.ModuleList(LlamaBlock(shape, i) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.rms_norm_eps)


class CausalLM(nn.Module):
    """``config`` and ``vocab_size`` tokens; random weights, those that add to the residual stream smaller by the square
    root of the number of additions (GPT-2)."""

    loss_names = ("next",)

    def __init__(self, config: CausalLMConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.dim = config, vocab_size, config.dim
        self.model = _Layers(config, vocab_size)
        self.lm_head = None if config.tied else nn.Linear(config.dim, vocab_size, bias=False)
        self._initialise()
        self.output = Unembedding(self.lm_head or self._tied_head())

    @classmethod
    def tiny(cls, vocab_size: int = 257, **more: Any) -> Self:
        """Two narrow layers with shared keys, for tests."""
        sizes: dict[str, Any] = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_positions": 128}
        return cls(CausalLMConfig(**{**sizes, **more}), vocab_size)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def shape(self) -> dict[str, Any]:
        """The sizes that a head must know, as keyword arguments of ``TrunkShape``."""
        own = {"vocab_size": self.vocab_size, "num_layers": self.config.num_layers}
        return own | {name: value for name, value in asdict(self.config.block()).items() if name != "dim_in"}

    def binding(self) -> dict[str, Any]:
        """What a head borrows, as keyword arguments of ``Binding``."""
        return {
            "embed": self.embed,
            "unembed": self.output.logits,
            "weight": self.output.weight,
            "norm": self.model.norm,
        }

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., T]`` -> ``[..., T, D]``."""
        out: Tensor = self.model.embed_tokens(tokens)
        return out

    def forward(self, x: Tensor, index: Tensor, mask: Mask, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        """``x [B, T, D]`` embeddings at the rotary positions ``index [B, T]``; ``mask`` as
        :func:`speech_mtp.nn.visibility.mask_of` makes it. A tap k is what enters block k, -1 the top after the final
        norm, which is the output's ``final`` too."""
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.model.layers):
            found[i] = x
            x = block(x, index, mask)
        found[-1] = self.model.norm(x)
        return LMOutput(torch.stack([found[tap] for tap in taps], 2), final=found[-1])

    def _tied_head(self) -> nn.Linear:
        """The embedding as an output layer; it is not a module of its own, so that a state dict has it once."""
        head = nn.Linear(self.dim, self.vocab_size, bias=False, device="meta")
        head.weight = self.model.embed_tokens.weight
        return head

    def _initialise(self) -> None:
        std = INIT_SCALE / self.dim**0.5
        added = std / (2 * self.config.num_layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=added if name.endswith(("o_proj.weight", "down_proj.weight")) else std)
