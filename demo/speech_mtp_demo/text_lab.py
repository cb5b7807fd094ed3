"""The tab "Text": decoding a prompt in several ways on the server's own language model, watched and timed.

The work is done by one thread beside the engine's, with as many threads of torch as the server has: one, unless its
operator said otherwise. Ways that race take turns by the time that they have used, so each is as far as its own speed
brings it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speech_mtp import hub
from speech_mtp.decoding import catalogue
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.chat import opening
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.serving.service import VoiceService
from speech_mtp_demo.watched import Lane, lane

NO_HEAD = "none"
NO_MODEL = "No language model of this server's own is loaded. Start it with --llm packaged, or a folder, and reload."
MOST_JOBS = 4
"""That wait or run; others are told to come back."""
FORGOTTEN_S = 10.0
"""A job that nobody has looked at for so long is stopped."""


class Way(BaseModel):
    """A head and a rule."""

    model_config = ConfigDict(strict=True, extra="forbid")
    head: str
    rule: str


class Asked(BaseModel):
    """A prompt and the ways in which it shall be answered."""

    model_config = ConfigDict(strict=True, extra="forbid")
    prompt: Annotated[str, Field(min_length=1, max_length=2000)]
    ways: Annotated[list[Way], Field(min_length=1, max_length=16)]
    max_new_tokens: Annotated[int, Field(ge=1, le=256)] = 96


class Job:
    """One prompt that is answered in several ways."""

    def __init__(self, asked: Asked, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked, self._clock = asked, clock
        self.lanes: list[Lane] = []
        self.error: str | None = None
        self.stopped = self.over = False
        self.looked_at = clock()

    def work(self, lm: TextLM, heads: dict[str, MTPHead | None]) -> None:
        """Answer, until all ways have ended or nobody looks any more."""
        try:
            self.lanes = [self._lane(lm, heads, way) for way in self.asked.ways if not self._left]
            while not self._left and (going := [one for one in self.lanes if not one.over]):
                min(going, key=lambda one: one.seconds).advance()
        except ValueError as error:
            self.error = str(error)
        finally:
            self.over = True

    @property
    def _left(self) -> bool:
        return self.stopped or self._clock() - self.looked_at > FORGOTTEN_S

    def _lane(self, lm: TextLM, heads: dict[str, MTPHead | None], way: Way) -> Lane:
        if way.head not in heads:
            raise ValueError(f"There is no such head here; known: {', '.join(heads)}.")
        prompt = opening(lm.tokenizer, [{"role": "user", "content": self.asked.prompt}])
        rule = catalogue.build(way.rule, heads[way.head])
        return lane(lm, prompt, way.head, way.rule, rule, self.asked.max_new_tokens)

    def told(self, seen: list[int]) -> dict[str, Any]:
        """How far it is; of each way the steps behind those that were ``seen``."""
        self.looked_at = self._clock()
        since = seen + [0] * len(self.lanes)
        lanes = [one.told(since[i]) for i, one in enumerate(self.lanes)]
        return {"over": self.over, "error": self.error, "lanes": lanes}


class TextLab:
    """What the tab asks of the server. Every answer is a mapping; a refusal is ``{"error": sentence}``."""

    def __init__(self, service: VoiceService) -> None:
        self._service = service
        self._heads: dict[str, MTPHead | None] | None = None
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text-lab")

    @property
    def lm(self) -> TextLM | None:
        """The language model that answers chats, if it is the server's own and has been loaded."""
        scheduler = self._service.engine.scheduler
        return scheduler.writer.lm if scheduler is not None and scheduler.writer is not None else None

    def _load_heads(self, lm: TextLM) -> dict[str, MTPHead | None]:
        """Heads by name: the packaged one that fits, else the one that the server drafts with; and none. Called in the
        tab's own thread, once."""
        if self._heads is None:
            found: dict[str, MTPHead | None] = {}
            packaged = hub.default_head(lm.fingerprint)
            scheduler = self._service.engine.scheduler
            own = getattr(scheduler.writer.rule, "head", None) if scheduler and scheduler.writer else None
            if packaged is not None:
                found[packaged] = hub.load_head(hub.find_head(packaged), lm).to(lm.dtype).prepare(lm.head_blocks)
            elif own is not None:
                found[type(own).__name__.lower()] = own
            self._heads = {**found, NO_HEAD: None}
        return self._heads

    def options(self) -> dict[str, Any]:
        """Heads, each with the rules that draft with it."""
        lm = self.lm
        if lm is None:
            return {"error": NO_MODEL}
        heads = self._heads or self._thread.submit(self._load_heads, lm).result()
        return {"heads": [{"name": name, "rules": catalogue.fitting(head)} for name, head in heads.items()]}

    def begin(self, asked: Any) -> dict[str, Any]:
        """Begin a job; its name is ``job``."""
        lm = self.lm
        if lm is None:
            return {"error": NO_MODEL}
        try:
            job = Job(Asked.model_validate(asked))
        except ValidationError:
            return {"error": "Write a prompt of at most 2,000 characters, and choose a head and a rule."}
        with self._lock:
            self._jobs = {name: one for name, one in self._jobs.items() if not one.over}
            if len(self._jobs) >= MOST_JOBS:
                return {"error": "Others are measuring; try again soon."}
            name = secrets.token_urlsafe(12)
            self._jobs[name] = job
        self._thread.submit(lambda: job.work(lm, self._load_heads(lm)))
        return {"job": name}

    def more(self, asked: Any) -> dict[str, Any]:
        """How far the job ``job`` is; ``seen`` counts the steps of each way that the page has."""
        job = self._jobs.get(str(asked.get("job"))) if isinstance(asked, dict) else None
        if job is None:
            return {"error": "This measurement has ended; begin another."}
        return job.told([int(count) for count in asked.get("seen", []) if isinstance(count, int) and count >= 0])

    def stop(self, asked: Any) -> dict[str, Any]:
        """End the job ``job``."""
        job = self._jobs.get(str(asked.get("job"))) if isinstance(asked, dict) else None
        if job is not None:
            job.stopped = True
        return {}
