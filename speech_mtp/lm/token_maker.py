"""Text units of the direct form: the tokens of its backbone (:mod:`speech_mtp.lm.direct`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.layouts.base import IGNORE
from speech_mtp.text import inline
from speech_mtp.types import TextUnits

VOICE = -1
"""The id of the one token of a prompt whose embedding is the voice (``voice="substituted"``)."""


class TokenMaker:
    """Text -> text units of the direct form: the tokens of an assistant's turn, the voice's place first if wanted.

    ``tokenizer`` is the backbone's own, ``prefix`` what opens an assistant's turn. A token may be one letter or a long
    word, so the units also say how many ``characters`` there are to speak.
    """

    def __init__(self, tokenizer: Any, prefix: list[int], voice_place: bool = False) -> None:
        self.tokenizer = tokenizer
        self._start = [VOICE] * voice_place + prefix

    def make(self, texts: list[str]) -> TextUnits:
        """Units of whole texts, padded with 0."""
        plain = [inline.written(text) for text in texts]
        units = token_units(
            [self._start + list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in plain]
        )
        units.characters = torch.tensor([len(text) for text in texts])
        return units


def token_units(rows: list[list[int]]) -> TextUnits:
    """Rows of token ids -> a padded batch of units; every unit is its own token, without hidden states."""
    if not all(rows):
        raise ValueError("A row of text has no token; speech needs at least one token of text before it.")
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    zeros = torch.zeros_like(ids)
    return TextUnits(
        phoneme=ids,
        stress=zeros,
        word_start=zeros,
        token=torch.arange(ids.shape[1]).expand(len(rows), -1).contiguous(),
        lengths=torch.tensor([len(row) for row in rows]),
        hidden=torch.zeros(*ids.shape, 1),
        complete=torch.ones(len(rows), dtype=torch.bool),
    )


def next_tokens(units: TextUnits) -> Tensor:
    """``[B, U]``: the token after each one, -100 after a row's last and where the next one is the voice."""
    after = F.pad(units.phoneme[:, 1:], (0, 1), value=IGNORE)
    last = torch.arange(after.shape[1], device=after.device) >= (units.lengths - 1)[:, None]
    return after.masked_fill(last | (after == VOICE), IGNORE)
