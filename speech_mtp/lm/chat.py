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


class TextStream:
    """The text of a growing answer, piece by piece: whole characters, no special tokens, nothing from a stop on.

    All pieces together are the text of all tokens at once, up to :func:`first_stop`.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._known, self._told = 0, 0  # tokens [known:told] give the context in which new ones are decoded
        self._held = ""
        self._stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is sure after ``tokens`` more: what may still become a stop string is held back."""
        self._ids += tokens
        text = self._decoded(self._known)
        before = self._decoded(self._known, self._told)
        if text.endswith(_BROKEN) or len(text) <= len(before):
            return ""
        self._known, self._told = self._told, len(self._ids)
        return self._released(text[len(before) :], final=False)

    def close(self) -> str:
        """The rest: the answer has ended."""
        before = self._decoded(self._known, self._told)
        return self._released(self._decoded(self._known)[len(before) :], final=True)

    def _decoded(self, start: int, end: int | None = None) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text

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
