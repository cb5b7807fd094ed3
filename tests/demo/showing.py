"""A server of tiny models with the demo's page on it, and a browser that looks at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from speech_mtp.lm.chat import Message
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.authors import Outcome, Question, Wish
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.types import Finish
from tests.serving.chatting import own
from tests.serving.running import Running, serving

pytest.importorskip("gradio", reason="needs the demo extra")

import speech_mtp_demo

STATIC = Path(speech_mtp_demo.__file__).parent / "static"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")
FLAGS = (
    "--no-sandbox",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
)


class Reciter:
    """An author that answers everything with one text, word by word."""

    name = "reciter"

    def __init__(self, text: str) -> None:
        self.text = text

    def prepare(self, messages: Sequence[Message], wish: Wish) -> Question:
        return Question(list(messages), wish)

    def write(self, scheduler: Scheduler, question: Question, news: Callable[[], None]) -> Reciting:
        return Reciting(self.text)


class Reciting:
    """A word at a time, whenever it is asked."""

    def __init__(self, text: str) -> None:
        self.words = [word + " " for word in text.split()]

    @property
    def writing(self) -> bool:
        return bool(self.words)

    def take(self) -> list[str]:
        return [self.words.pop(0)] if self.words else []

    def take_steps(self) -> list[list[str]]:
        return []

    def close(self) -> Outcome:
        return Outcome(Finish("stop"))


@contextmanager
def showing(settings: Settings | None = None, **more: Any) -> Iterator[Running]:
    """The page's server; its chats are answered by a tiny language model unless ``more`` says otherwise."""
    with serving(settings, mounting=speech_mtp_demo.mount, **{**own(), **more}) as running:
        yield running


@contextmanager
def looking(playwright: Any, *flags: str, **context: Any) -> Iterator[Any]:
    """A page of a headless browser; ``problems`` of it hold what went wrong, ``asked`` every address it asked for."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}).new_page()
    page.set_default_timeout(60_000)
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    browser.close()
