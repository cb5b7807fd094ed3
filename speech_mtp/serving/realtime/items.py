"""The items of one conversation, in their order, and what they say to a model that reads text."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from speech_mtp.lm.chat import Message
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime.events import new_id
from speech_mtp.serving.realtime.transcript import SpokenTranscript

MOST_ITEMS = 1000
MOST_TEXT = 65_536
ROLES = ("user", "system", "assistant")
TEXTS = {"user": "input_text", "system": "input_text", "assistant": "output_text"}
OTHERS = ("function_call", "function_call_output")
"""Items of tools, which no model here calls: they are kept and not read."""


@dataclass
class Item:
    """A message, or something of a tool's (``other``: as the client sent it).

    ``text`` of it, which for a spoken one (``spoken``) is its transcript: None until it is known. ``hearing`` waits for
    it. ``track`` is the sound of an answer, ``audio_ms`` of it have been sent.
    """

    id: str
    role: str
    text: str | None = ""
    spoken: bool = False
    status: str = "completed"
    other: dict[str, Any] | None = None
    hearing: asyncio.Future[Any] | None = None
    track: SpokenTranscript | None = None
    audio_ms: float = 0.0
    heard_ms: float | None = None
    empty: bool = False  # its content has not begun

    def shape(self) -> dict[str, Any]:
        """As it is sent."""
        if self.other is not None:
            return {**self.other, "id": self.id, "object": "realtime.item", "status": self.status}
        content: list[dict[str, Any]] = []
        if not self.empty:
            content = [self._content()]
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": content,
        }

    def _content(self) -> dict[str, Any]:
        if self.spoken and self.role == "user":
            return {"type": "input_audio", "transcript": self.text}
        if self.spoken:
            return {"type": "output_audio", "transcript": self.text or ""}
        return {"type": TEXTS[self.role], "text": self.text or ""}

    def cut(self, audio_end_ms: float) -> int:
        """Only ``audio_end_ms`` of its sound were heard; how much that is: at most what there is, and what was cut off
        before does not come back."""
        most_ms = self.audio_ms if self.heard_ms is None else self.heard_ms
        self.heard_ms = min(audio_end_ms, most_ms)
        if self.track is not None:
            whole = self.track.complete and self.heard_ms >= self.audio_ms  # also where speech has no times of words
            self.text = self.track.text if whole else self.track.until(self.heard_ms, self.audio_ms)
        return round(self.heard_ms)


class Conversation:
    """Items in their order. Ids are the client's where it gives some."""

    def __init__(self) -> None:
        self.id = new_id("conversation")
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def find(self, item_id: Any, code: str = "item_not_found") -> Item:
        """Raises ApiError 404."""
        found = next((item for item in self._items if item.id == item_id), None)
        if found is None:
            raise ApiError(404, "There is no such item in the conversation.", "item_id", code)
        return found

    def before(self, item: Item) -> str | None:
        """The id of the one before it."""
        place = self._items.index(item)
        return self._items[place - 1].id if place else None

    @property
    def last_id(self) -> str | None:
        """Of the newest item."""
        return self._items[-1].id if self._items else None

    def add(self, item: Item, previous: str | None = None) -> str | None:
        """Put ``item`` behind ``previous`` (``root``: first; None: last); the id of the one before it.

        Raises ApiError 400 for an id that is taken, and when there are too many; 404 for an unknown ``previous``.
        """
        if any(other.id == item.id for other in self._items):
            raise ApiError(400, "There is an item of this id already.", "item.id", "item_create_duplicate_item_id")
        if len(self._items) >= MOST_ITEMS:
            raise ApiError(400, f"The conversation has {MOST_ITEMS} items; delete some.", "item", "too_many_items")
        place = len(self._items)
        if previous == "root":
            place = 0
        elif previous is not None:
            place = self._items.index(self.find(previous, "previous_item_not_found")) + 1
        self._items.insert(place, item)
        return self._items[place - 1].id if place else None

    def delete(self, item_id: Any) -> None:
        """Raises ApiError 404."""
        self._items.remove(self.find(item_id, "item_delete_invalid_item_id"))

    @property
    def items(self) -> list[Item]:
        """As they are now."""
        return list(self._items)


async def messages(items: list[Item], instructions: str) -> list[Message]:
    """``items`` as text, once what was said in them is known. Empty ones, and those of tools, are not read."""
    found: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if item.hearing is not None:
            await asyncio.wait({item.hearing})
        if item.other is None and item.status != "in_progress" and item.text and item.text.strip():
            found.append({"role": item.role, "content": item.text})
    return found


def item_of(asked: Any) -> tuple[Item, str | None]:
    """The item that a client describes, and the base64 of what is spoken in it, if it is. Raises ApiError 400."""
    if not isinstance(asked, dict):
        raise _wrong("item must be an object.", "item")
    item_id = asked.get("id") or new_id("item")
    if not isinstance(item_id, str) or len(item_id) > 128:
        raise _wrong("The id of an item is a text of at most 128 characters.", "item.id")
    kind = asked.get("type", "message")
    if kind in OTHERS:
        if len(json.dumps(asked)) > MOST_TEXT:
            raise _wrong(f"An item of a tool has at most {MOST_TEXT} characters.", "item")
        return Item(item_id, "tool", other={k: v for k, v in asked.items() if k != "object"}), None
    if kind != "message":
        raise _wrong("An item is a message, a function_call or a function_call_output.", "item.type")
    role, content = asked.get("role"), asked.get("content")
    if role not in ROLES:
        raise _wrong("The role of a message is user, system or assistant.", "item.role")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _wrong("The content of a message is a list of parts.", "item.content")
    texts = [_part_text(part, i) for i, part in enumerate(content)]
    sound = next((part["audio"] for part in content if isinstance(part.get("audio"), str)), None)
    text = "\n".join(text for text in texts if text is not None)
    if len(text) > MOST_TEXT:
        raise _wrong(f"A message has at most {MOST_TEXT} characters.", "item.content")
    spoken = any(part["type"] in ("input_audio", "output_audio") for part in content)
    unheard = spoken and sound is not None and not text
    return Item(item_id, role, None if unheard else text, spoken), sound if unheard else None


def _part_text(part: dict[str, Any], number: int) -> str | None:
    where = f"item.content.{number}"
    kind = part.get("type")
    if kind not in ("input_text", "output_text", "text", "input_audio", "output_audio", "audio"):
        raise _wrong("A part of a message is text or audio; others are not understood.", f"{where}.type")
    text = part.get("transcript") if "audio" in kind else part.get("text")
    if text is not None and not isinstance(text, str):
        raise _wrong("The text of a part is a text.", where)
    if text is None and "audio" not in kind:
        raise _wrong("A part of this type needs a text.", where)
    return text


def _wrong(message: str, where: str) -> ApiError:
    return ApiError(400, message, where, "invalid_value")
