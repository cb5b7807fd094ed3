"""The one thread that owns the scheduler, and how the event loop talks to it.

Commands go in by a thread-safe queue and are obeyed between two ticks, so a cancelled stream makes at most the step
that is running. What is made goes out by ``loop.call_soon_threadsafe``. A thread without work sleeps until the next
command, or until the next of its jobs has been played far enough to be talked on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from speech_mtp.streaming.scheduler import Scheduler, run_to_end

log = logging.getLogger("speech_mtp.serving")

Command = Callable[[Scheduler], None]
WARM_UP = "Hello there, this is a first sentence."


class Job(Protocol):
    """Something of the scheduler's that somebody waits for. All methods are called in the engine's thread."""

    def pump(self, now: float) -> bool:
        """Hand over what has been made, feed what has come; whether there was anything to do."""

    def over(self) -> bool:
        """Whether nothing more will come."""

    def wakes_in(self, now: float) -> float | None:
        """Seconds after which it wants a tick though nobody commands one; None: it waits for a command."""

    def fail(self, error: Exception) -> None:
        """The engine cannot go on with it."""


class Engine:
    """Runs the scheduler that ``build`` makes. ``steps`` counts ticks that did something, ``busy_s`` their time."""

    def __init__(self, build: Callable[[], Scheduler], warm_up: str | None = WARM_UP) -> None:
        self._build, self._warm_up = build, warm_up
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._jobs: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.scheduler: Scheduler | None = None
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.steps = self.failures = 0
        self.busy_s = 0.0

    # -- the loop's side ------------------------------------------------------------------------------------------
    def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Load and warm up in the thread; ``on_ready`` is called there when that is done, or has failed."""
        self._on_ready = on_ready
        self._thread.start()

    def do(self, command: Command) -> None:
        """Call ``command`` with the scheduler, between two ticks."""
        self._commands.put(command)

    def add(self, job: Job) -> None:
        """Pump ``job`` from now on, until it is over."""
        self._commands.put(lambda _: self._jobs.append(job))

    def stop(self, timeout_s: float = 10.0) -> None:
        """Cancel everything and end the thread."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether it can be asked for anything."""
        return self._thread.is_alive() and self.error is None

    # -- the thread -----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self.scheduler = self._build()
            if self._warm_up:
                _warm_up(self.scheduler, self._warm_up)
        except Exception as error:  # told by whoever asks whether it is ready
            self.error = error
            self._on_ready()
            return
        self.ready.set()
        self._on_ready()
        worked, looked = True, time.monotonic()
        while self._obey(wait=not worked, looked=looked):
            looked = time.monotonic()
            worked = self._tick()
        self.scheduler.close()
        self._pump()

    def _obey(self, wait: bool, looked: float) -> bool:
        """Do what was commanded; False when the engine shall stop. ``wait`` for a command while there is no work, as
        there was none at ``looked``."""
        try:
            command = self._commands.get(timeout=self._sleep_s(looked)) if wait else self._commands.get_nowait()
            while command is not None:
                assert self.scheduler is not None
                command(self.scheduler)
                command = self._commands.get_nowait()
        except Empty:
            return True
        return False

    def _sleep_s(self, looked: float) -> float | None:
        """How long until a job has work again; None: not before a command. Seen from ``looked``, before the tick that
        found none: a job that has fallen behind since is not overlooked."""
        waits = [wait for job in self._jobs if (wait := job.wakes_in(looked)) is not None]
        return max(0.0, min(waits) - (time.monotonic() - looked)) if waits else None

    def _tick(self) -> bool:
        assert self.scheduler is not None
        began = time.monotonic()
        try:
            worked = self.scheduler.tick()
        except Exception as error:
            self._start_again(error)
            return True
        worked |= self._pump()
        if worked:
            self.steps += 1
            self.busy_s += time.monotonic() - began
        return worked

    def _pump(self) -> bool:
        now = time.monotonic()
        worked = False
        for job in self._jobs:
            worked |= job.pump(now)
        self._jobs = [job for job in self._jobs if not job.over()]
        return worked

    def _start_again(self, error: Exception) -> None:
        """A tick failed for no stream in particular: all of them end, and a new scheduler serves who comes next."""
        log.error("the engine failed (%s) and starts again", type(error).__name__)
        self.failures += 1
        for job in self._jobs:
            job.fail(error)
        self._jobs = []
        assert self.scheduler is not None
        with contextlib.suppress(Exception):  # it is broken already
            self.scheduler.close()
        self.scheduler = self._build()


def _warm_up(scheduler: Scheduler, text: str) -> None:
    """Speak ``text``; if there is a writer, answer twice, so that it keeps what all chats begin with."""
    stream = scheduler.speak()
    stream.push(text)
    stream.finish_text()
    run_to_end(scheduler)
    for question in (text, "And this is another.") if scheduler.writer is not None else ():
        conversation = scheduler.chat(max_new_tokens=4)
        conversation.ask(question)
        run_to_end(scheduler)
        conversation.close()
