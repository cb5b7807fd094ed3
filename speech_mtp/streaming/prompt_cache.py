"""Rows that have read something, kept for prompts that begin with the same tokens: a chat's next turn, and what all
chats begin with.

It holds rows of one that can be copied (:func:`speech_mtp.nn.row_values.select`), and knows nothing of models. A kept
row is used for whoever asks with the same beginning; by the time that an answer takes, somebody may tell whether a
beginning has been read before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import torch

from speech_mtp.nn.row_values import select, trimmed

LEAST = 16
"""Tokens that are worth a copy."""
RECENT = 8
"""Prompts among which beginnings in common are looked for."""


class PromptCache:
    """Rows by the tokens that they have read, at most ``most_tokens`` in all; those that were used last stay."""

    def __init__(self, most_tokens: int = 4096) -> None:
        self.most_tokens = most_tokens
        self._rows: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._recent: deque[tuple[int, ...]] = deque(maxlen=RECENT)

    def find(self, prompt: Sequence[int]) -> tuple[int, Any]:
        """A copy of the row that has read most of the beginning of ``prompt``, but not all of it, and how many tokens
        that is; (0, None) if there is none."""
        whole = tuple(prompt)
        fitting = [tokens for tokens in self._rows if len(tokens) < len(whole) and whole[: len(tokens)] == tokens]
        if not fitting:
            return 0, None
        longest = max(fitting, key=len)
        self._rows.move_to_end(longest)
        return len(longest), _copied(self._rows[longest])

    def stem(self, prompt: Sequence[int]) -> int:
        """How many tokens ``prompt`` begins with in common with an earlier one: where a row is worth keeping. 0: none
        that is not kept already. The prompt counts as an earlier one from now on."""
        whole = tuple(prompt)
        longest = max((_common(whole, earlier) for earlier in self._recent), default=0)
        self._recent.append(whole)
        return longest if LEAST <= longest < len(whole) and whole[:longest] not in self._rows else 0

    def keep(self, tokens: Sequence[int], row: Any) -> None:
        """A copy of ``row``, which has read ``tokens``, as large as these: the room that it had among others would stay."""
        whole = tuple(tokens)
        if LEAST <= len(whole) <= self.most_tokens and whole not in self._rows:
            self._rows[whole] = trimmed(_copied(row))
            while sum(map(len, self._rows)) > self.most_tokens:
                self._rows.popitem(last=False)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@torch.inference_mode()
def _copied(row: Any) -> Any:
    return select(row, torch.zeros(1, dtype=torch.long, device=row.last.device))
