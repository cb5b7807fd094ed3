"""Reading a growing text with a language model: one hidden state per token, the same however the text arrived.

Text is read in blocks of :data:`BLOCK` tokens on a fixed grid. A block that is not full yet is read filled up with
padding, and again when more of it has come; attention is causal, so nothing depends on what stands behind::

    prefix and text    t0 t1 t2 t3 t4 t5 t6 t7 | t8 t9
    read               [--------- block -------]  [t8 t9  .  .  .  .  .  . ]    later: [t8 t9 t10 t11 ...]

A token is therefore always computed in a product of the same shape at the same place, and its state is the same to the
last bit whether the text was there at once or came word by word.

Many texts share one pass (:meth:`TextReader.advance_many`), each at a place of its own. Then only what is new of each
block is read, and products see the tokens of all texts as their rows, as many as there happen to be; a state equals
that of the text alone up to rounding. Keys and values of all texts are rows of one pool.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from speech_mtp.nn.row_pool import Chains, RowPool
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


@dataclass(eq=False)
class ReadingState:
    """One growing text: ``tokens`` and ``spans`` of all that has come, ``hidden [1, n, D]`` of the n tokens read.

    ``first`` tokens of ``hidden`` and of ``tokens`` are the prefix, which is no part of the text. Keys and values of
    the tokens read are in ``row`` of the reader's pool until the text is closed, or the state is no longer used.
    """

    row: int
    tokens: list[int]
    first: int
    hidden: Tensor
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    lease: weakref.finalize[..., ReadingState] = field(init=False, repr=False)
    """Gives ``row`` back when it is called, or when the state is collected."""

    @property
    def states(self) -> Tensor:
        """``[1, l, D]``: the states of the text's first l tokens."""
        return self.hidden[:, self.first :]

    @property
    def unread(self) -> bool:
        """Whether there is text that is not read and may be."""
        return self.lease.alive and max(self.first, self.hidden.shape[1]) < len(self.tokens)

    @property
    def block_is_full(self) -> bool:
        """Whether all of the next token's block has come, so that it is read once."""
        return len(self.tokens) >= (self.hidden.shape[1] // BLOCK + 1) * BLOCK

    def next_block(self) -> tuple[int, list[int]]:
        """Where the block of the next token begins, and its tokens, filled up."""
        edge = self.hidden.shape[1] // BLOCK * BLOCK
        block = self.tokens[edge : edge + BLOCK]
        return edge, block + [0] * (BLOCK - len(block))

    def next_tokens(self, blocks: int) -> tuple[int, list[int]]:
        """Which token is next, and what is unread of its block and the ``blocks - 1`` behind."""
        start = self.hidden.shape[1]
        return start, self.tokens[start : (start // BLOCK + blocks) * BLOCK]

    def keep(self, start: int, count: int, found: Tensor) -> None:
        """Take the first ``count`` of the states ``found [n, D]``, of the tokens from number ``start`` on, as far as
        they are new."""
        known, end = self.hidden.shape[1], min(len(self.tokens), start + count)
        self.hidden = torch.cat([self.hidden, found[None, known - start : end - start]], 1)


class TextReader(ABC):
    """What reads text for speech. ``fingerprint`` names the weights, ``hidden_layer`` the layer whose output is given
    (:class:`speech_mtp.lm.backbone.Backbone`), ``prefix`` the tokens before every text."""

    dim: int
    hidden_layer: int
    fingerprint: str
    prefix: list[int]
    text_tokens: Any
    """The ``tokenizers.Tokenizer``."""

    def __init__(self) -> None:
        self._pool: RowPool | None = None
        self._lock = Lock()  # of the pool: texts may be read in several threads, one after the other

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where states are computed."""

    @abstractmethod
    def _open_pool(self) -> RowPool:
        """A pool of keys and values, all of its rows free."""

    @abstractmethod
    def _read_chains(self, chains: Chains, tokens: list[list[int]]) -> Sequence[Tensor]:
        """States ``[n, D]`` of each row's ``tokens``, which are the new entries of ``chains``; perhaps of more rows."""

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

    @property
    def num_open(self) -> int:
        """How many texts have a row of the pool."""
        return 0 if self._pool is None else self._pool.num_taken

    def open(self) -> ReadingState:
        """The state before the first word of a text that will arrive piece by piece."""
        with self._lock:
            if self._pool is None or not self._pool.num_taken:  # a new one is small again
                self._pool = self._open_pool()
            pool, row = self._pool, self._pool.take()
        state = ReadingState(row, list(self.prefix), len(self.prefix), torch.zeros(1, 0, self.dim, device=self.device))
        state.lease = weakref.finalize(state, pool.give_back, row)
        return state

    def close(self, state: ReadingState) -> None:
        """No more of the text will be read: its row is free for another. Its states stay."""
        state.lease()

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

    def advance(self, state: ReadingState) -> bool:
        """Read the next block of the text, as far as it is there; False when all that has come is read."""
        return self.advance_many([state])[0]

    @torch.inference_mode()
    def advance_many(self, states: Sequence[ReadingState], blocks: int = 1) -> list[bool]:
        """Read on in each text, as far as it is there, all in one pass; for each, whether there was any more of it.

        A pass holds a block of each text, or ``blocks`` in all if that is more. A single block is always read in
        products of the same shape. A prefix longer than what a pass holds takes another one.
        """
        known = [state.states.shape[1] for state in states]
        with self._lock:
            while behind := [
                state for state, n in zip(states, known, strict=True) if state.unread and state.states.shape[1] == n
            ]:
                self._read(behind, max(1, blocks // len(behind)), exact=len(behind) == 1 and blocks == 1)
        return [state.states.shape[1] > n for state, n in zip(states, known, strict=True)]

    def _read(self, states: list[ReadingState], blocks: int, exact: bool) -> None:
        """One pass over the next ``blocks`` of every state; ``exact``: over one that is filled up."""
        assert self._pool is not None, "no text is open"
        pieces = [state.next_block() if exact else state.next_tokens(blocks) for state in states]
        starts, tokens = [start for start, _ in pieces], [piece for _, piece in pieces]
        counts = [len(piece) for piece in tokens]
        chains = self._pool.chains([state.row for state in states], starts, counts)
        for state, start, count, found in zip(states, starts, counts, self._read_chains(chains, tokens), strict=True):
            state.keep(start, count, found)

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
