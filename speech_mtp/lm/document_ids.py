"""Documents as the ids that trunks of text read: behind the start token, and with the end token, which parts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Encoder:
    """Documents -> ids, start and end included. ``tokenizer`` is that of a folder (of the hub)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        end = tokenizer.eos_token_id
        if end is None:
            raise ValueError("The tokenizer has no end token (eos_token), which must part documents; use another.")
        self.end = int(end)
        self.start = self.end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.vocab_size = len(tokenizer)

    def beginning(self, text: str) -> list[int]:
        """Of a document that goes on behind ``text``."""
        found: list[int] = self.ids([text])[0][:-1].tolist()
        return found

    def ids(self, texts: Sequence[str], ended: Sequence[bool] | None = None) -> list[np.ndarray]:
        """``[L]`` of each text; those that were cut, and so have not ``ended``, come without the end token."""
        # A document that holds the name of a special token is text.
        more = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        rows = self.tokenizer(list(texts), **more)["input_ids"]
        ends = [[self.end] if whole else [] for whole in ended or [True] * len(rows)]
        return [np.array([self.start, *row, *end]) for row, end in zip(rows, ends, strict=True)]
