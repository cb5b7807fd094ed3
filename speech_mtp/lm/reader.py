"""Reading a growing text with a language model: one hidden state per token, the same however the text arrived.

Text is read in blocks of :data:`BLOCK` tokens on a fixed grid. A block that is not full yet is read filled up with
padding, and again when more of it has come; attention is causal, so nothing depends on what stands behind::

    prefix and text    t0 t1 t2 t3 t4 t5 t6 t7 | t8 t9
    read               [--------- block -------]  [t8 t9  .  .  .  .  .  . ]    later: [t8 t9 t10 t11 ...]

A token is therefore always computed in a product of the same shape at the same place, and its state is the same to the
last bit whether the text was there at once or came word by word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speech_mtp.text import inline

BLOCK = 8
"""Tokens that are read at a time: eight rows cost a CPU twice as much as one."""

Span = tuple[int, int]


@dataclass
class Encoded:
    """A batch of texts as the language model sees them.

    ``hidden [B, L, D]`` float32, zero past a row's ``lengths [B]``; ``spans[b][l]`` are the characters
    (start, end) of token ``l`` in text ``b``.
    """

    hidden: Tensor
    spans: list[list[Span]]
    lengths: Tensor


@dataclass
class ReadingState:
    """One growing text: ``tokens`` and ``spans`` of all that has come, ``hidden [1, n, D]`` of the n tokens read.

    ``first`` tokens of ``hidden`` and of ``tokens`` are the prefix, which is no part of the text; ``blocks`` full ones
    are in ``cache``.
    """

    cache: Any
    tokens: list[int]
    first: int
    hidden: Tensor
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    blocks: int = 0

    @property
    def states(self) -> Tensor:
        """``[1, l, D]``: the states of the text's first l tokens."""
        return self.hidden[:, self.first :]


class TextReader(ABC):
    """What reads text for speech. ``fingerprint`` names the weights, ``hidden_layer`` the layer whose output is given
    (:class:`speech_mtp.lm.backbone.Backbone`), ``prefix`` the tokens before every text."""

    dim: int
    hidden_layer: int
    fingerprint: str
    prefix: list[int]
    text_tokens: Any
    """The ``tokenizers.Tokenizer``."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where states are computed."""

    @abstractmethod
    def _open_cache(self) -> Any:
        """An empty key-value cache of one row."""

    @abstractmethod
    def _read_block(self, state: ReadingState, ids: Tensor, keep: bool) -> Tensor:
        """States ``[1, BLOCK, D]`` of the tokens ``ids`` behind the cache, into which they go if ``keep``."""

    @abstractmethod
    def _read_whole(self, ids: Tensor) -> Tensor:
        """States ``[B, T, D]`` of the right-padded rows ``ids [B, T]``, read from their beginning."""

    def encode(self, texts: list[str]) -> Encoded:
        """Read each text as an assistant turn, from its beginning. A row is the same alone and among others."""
        read = [self.tokenize(text) for text in texts]
        lengths = [len(tokens) for tokens, _ in read]
        start, width = len(self.prefix), max(lengths, default=0)
        ids = torch.zeros(len(texts), start + width, dtype=torch.long)
        for b, (tokens, _) in enumerate(read):
            ids[b, : start + len(tokens)] = torch.tensor(self.prefix + tokens)
        # Attention is causal and padding is on the right, so that no token ever sees padding: no mask is needed.
        hidden = self._read_whole(ids.to(self.device))[:, start:]
        counts = torch.tensor(lengths, device=hidden.device)
        inside = torch.arange(width, device=hidden.device) < counts[:, None]
        return Encoded(hidden.masked_fill(~inside[..., None], 0.0), [spans for _, spans in read], counts)

    def open(self) -> ReadingState:
        """The state before the first word of a text that will arrive piece by piece."""
        nothing = torch.zeros(1, 0, self.dim, device=self.device)
        return ReadingState(self._open_cache(), list(self.prefix), len(self.prefix), nothing)

    def extend(self, state: ReadingState, text_piece: str) -> None:
        """Add the next piece of a growing text; :meth:`advance` reads it.

        Pieces are cut before white space, never within a word: ``"Good"``, ``" morning."``. Then the tokens are those
        of the whole text. Raises ValueError when the tokenizer reads the earlier text anew because of this piece;
        ``state`` is then as before.
        """
        text = state.text + text_piece
        tokens, spans = self.tokenize(text)
        known = len(state.tokens) - state.first
        if tokens[:known] != state.tokens[state.first :]:
            raise ValueError(f"The piece {text_piece!r} changes how the text before it is read; cut before spaces.")
        state.text, state.spans = text, spans
        state.tokens += tokens[known:]

    @torch.inference_mode()
    def advance(self, state: ReadingState) -> bool:
        """Read the next block of the text, as far as it is there; False when all that has come is read."""
        known = state.states.shape[1]
        while state.states.shape[1] == known and state.hidden.shape[1] < len(state.tokens):
            start = BLOCK * state.blocks
            block = state.tokens[start : start + BLOCK]
            full = len(block) == BLOCK
            ids = torch.tensor([block + [0] * (BLOCK - len(block))], device=self.device)
            found = self._read_block(state, ids, keep=full)
            state.hidden = torch.cat([state.hidden, found[:, state.hidden.shape[1] - start : len(block)]], 1)
            state.blocks += full
        return state.states.shape[1] > known

    def read_all(self, state: ReadingState) -> Tensor:
        """Read all that has come: the states ``[1, l, D]`` of the text's tokens."""
        while self.advance(state):
            continue
        return state.states

    def spans(self, text: str) -> list[Span]:
        """The characters (start, end) of each token of ``text``, without running the model."""
        return self.tokenize(text)[1]

    def tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """The tokens of ``text`` and the characters of each."""
        at = inline.places(text)  # phonemes that are written in the text are not for the language model
        read = self.text_tokens.encode(inline.written(text), add_special_tokens=False)
        return list(read.ids), [(at[a], at[b - 1] + 1 if b > a else at[b]) for a, b in read.offsets]
