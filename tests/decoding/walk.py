"""A tiny random text model, and a head whose drafts depend on every token on the way: for tests of rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.engine import Run
from speech_mtp.heads.base import Binding, HeadState, MTPHead, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Draft, LMOutput
from tests.llama import random_llama


def tiny_text_lm(vocab_size: int = 5, num_layers: int = 2, end: int | None = None, scale: float = 0.6) -> TextLM:
    """A random Llama; ``end`` is the token that ends an answer, ``scale`` makes its laws flat or peaked."""
    sizes = {"num_hidden_layers": num_layers, "max_position_embeddings": 256, "initializer_range": scale}
    return TextLM(random_llama(vocab_size, 16, eos_token_id=end, **sizes))


@dataclass(kw_only=True)
class WalkState(HeadState):
    """``nodes [B, 1 + N, D]``: node 0 and what was expanded since the last read."""

    nodes: Tensor


class Walk(MTPHead):
    """Random weights: a node's state is made of its parent's state and its own vector."""

    recursive = True

    def __init__(self, shape: TrunkShape, num_drafts: int = 3, draft_vocab: int | None = None) -> None:
        super().__init__(shape, tuple(range(2, 2 + num_drafts)), draft_vocab=draft_vocab)
        noise = torch.Generator().manual_seed(1)
        self.said = torch.randn(shape.vocab_size, shape.dim, generator=noise)
        self.turn = torch.randn(shape.dim, shape.dim, generator=noise) / shape.dim**0.5
        self.output = torch.randn(shape.dim, self.num_tokens, generator=noise) / 2

    def bind(self, binding: Binding) -> None:
        super().bind(binding)
        embedded = self.embed(torch.arange(self.shape.vocab_size))
        self.read_vector = torch.linalg.pinv(embedded.detach().float()) @ self.said  # of a token's vector: its ``said``

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        return iter(())

    def scores(self, states: Tensor, depth: int, before: Tensor) -> Tensor:
        return states @ self.output

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> WalkState:
        plain = super().open(rows, device, dtype)
        return WalkState(window=plain.window, last=plain.last, nodes=plain.window[:, :0, 0])

    def root(self, state: HeadState) -> Tensor:
        assert isinstance(state, WalkState)
        node = torch.tanh(state.window[:, -1, -1] @ self.turn + state.last @ self.read_vector)
        state.nodes = node[:, None]
        return node

    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        assert isinstance(state, WalkState)
        above = state.nodes.gather(1, (parents + 1)[..., None].expand(-1, -1, self.shape.dim))
        nodes = torch.tanh(above @ self.turn + x @ self.read_vector)
        state.nodes = torch.cat([state.nodes, nodes], 1)
        state.depth += 1
        return nodes


@torch.inference_mode()
def proposed(run: Run, rule: DecodingRule | None = None) -> Draft:
    """What ``rule`` (by default the run's own) drafts next."""
    return (rule or run.rule).propose(run.rows, run.law)


def bound(head: type[Any], lm: TextLM, **settings: Any) -> Any:
    """A head of class ``head`` on ``lm``."""
    built = head(TrunkShape(**lm.shape()), **settings).eval().requires_grad_(False)
    built.bind(Binding(**lm.binding()))
    return built
