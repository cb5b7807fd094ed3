"""Conversations as tokens: what a model reads before it answers, and its answer as text while it grows.

Only tokenizers are known here, no model. A message is a mapping of ``role`` (``user``, ``assistant``) and ``content``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]

_ANSWER = "\ue000answer\ue000"  # of the private use area: no template touches it
_BROKEN = "\ufffd"


def opening(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation up to where the model answers its last message.

    A tokenizer without a chat template reads a single message as plain text; several are a ValueError.
    """
    if not tokenizer.chat_template:
        if len(messages) > 1:
            raise ValueError("This model has no chat template, so it cannot hold a conversation; give one prompt.")
        return list(tokenizer(messages[0]["content"])["input_ids"])
    return _tokens(tokenizer, _rendered(tokenizer, messages))


def openings(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """:func:`opening` for each of many conversations of one message, read together: ten times faster."""
    each = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if not prompts or not tokenizer.chat_template:
        return [opening(tokenizer, messages) for messages in each]
    texts = [_rendered(tokenizer, messages) for messages in each]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def following(tokenizer: Any, messages: Sequence[Message], closed_by: int | None) -> list[int]:
    """The tokens between the model's own answer ``messages[-2]``, which stays as it was generated, and the next one.

    ``closed_by`` is the token with which the model ended that answer by itself, if it did: it is not said twice.
    """
    if not tokenizer.chat_template:
        raise ValueError("This model has no chat template, so it cannot hold a conversation; give one prompt.")
    marked = [*messages[:-2], {"role": "assistant", "content": _ANSWER}, messages[-1]]
    after = _rendered(tokenizer, marked).rpartition(_ANSWER)[2]
    return _tokens(tokenizer, after if closed_by is None else after.removeprefix(tokenizer.decode([closed_by])))


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return text


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, however ``text`` arrives; None if there is none in it."""
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    return min(found)[1] if found else None


class _Pieces:
    """The text of a growing answer, piece by piece. A token is decoded behind those of the piece before it alone, so
    that an answer of n tokens is decoded in a time linear in n."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._known, self._told = 0, 0  # tokens [known:told] give the context in which new ones are decoded

    def push(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """The text behind the earlier sure pieces after ``tokens`` more, and whether it is sure: later tokens may only
        change a text that ends within a character."""
        self._ids += tokens
        piece = self._decoded(self._known)[len(self._decoded(self._known, self._told)) :]
        sure = bool(piece) and not piece.endswith(_BROKEN)
        if sure:
            self._known, self._told = self._told, len(self._ids)
        return piece, sure

    def _decoded(self, start: int, end: int | None = None) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text


class StopSearch:
    """Whether a growing answer holds one of ``stops``, which are not empty, token by token."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._pieces, self._stops = _Pieces(tokenizer), tuple(stops)
        self._reach = max(map(len, stops)) - 1
        self._tail = ""  # what a stop string that is not complete may have begun in

    def push(self, token: int) -> bool:
        """One token more: whether the text of all tokens now holds a stop string."""
        piece, sure = self._pieces.push([token])
        text = self._tail + piece
        if sure:
            self._tail = text[max(0, len(text) - self._reach) :]
        return any(stop in text for stop in self._stops)


class TextStream:
    """The text of a growing answer, piece by piece: whole characters, no special tokens, nothing from a stop on.

    All pieces together are the text of all tokens at once, up to :func:`first_stop`.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._pieces, self._stops = _Pieces(tokenizer), tuple(stops)
        self._held = ""
        self._stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is sure after ``tokens`` more: what may still become a stop string is held back."""
        piece, sure = self._pieces.push(tokens)
        return self._released(piece, final=False) if sure else ""

    def close(self) -> str:
        """The rest: the answer has ended."""
        return self._released(self._pieces.push([])[0], final=True)

    def _released(self, piece: str, final: bool) -> str:
        text = "" if self._stopped else self._held + piece
        found = first_stop(text, self._stops)
        if found is not None:
            self._stopped = True
            return text[:found]
        sure = len(text) if final else len(text) - self._pending(text)
        self._held = text[sure:]
        return text[:sure]

    def _pending(self, text: str) -> int:
        """How many characters at the end of ``text`` may be the beginning of a stop string."""
        begun = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max(begun, default=0)
