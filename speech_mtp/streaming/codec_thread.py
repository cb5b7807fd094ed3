"""The codec beside the language models: one thread that sounds the most urgent stream, again and again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from threading import Condition, Thread

from torch import Tensor

from speech_mtp.streaming.stream import Stream

Sounded = tuple[Stream, "Future[tuple[Tensor, bool]]"]


class CodecThread:
    """Streams are offered to it; what it has made of them is collected. All methods are for the thread that has the
    scheduler."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._due: list[Stream] = []
        self._current: Stream | None = None
        self._finished: deque[Sounded] = deque()
        self._closed = False
        self.call_s = 0.0  # how long the last call of the codec took
        self._thread = Thread(target=self._work, name="codec", daemon=True)
        self._thread.start()

    def offer(self, due: Collection[Stream]) -> None:
        """These streams are due, and no others; of those that are at work already it knows."""
        with self._changed:
            self._due = [stream for stream in due if not self._at_work(stream)]
            self._changed.notify_all()

    def _at_work(self, stream: Stream) -> bool:
        return stream is self._current or any(stream is one for one, _ in self._finished)

    def has(self, stream: Stream) -> bool:
        """Whether ``stream`` waits for the codec, is at work, or has sound that was not collected."""
        with self._changed:
            return stream in self._due or self._at_work(stream)

    def collect(self) -> list[Sounded]:
        """What has been made since the last call, in order."""
        with self._changed:
            finished = list(self._finished)
            self._finished.clear()
        return finished

    def wait(self) -> list[Sounded]:
        """What has been made, once there is something; nothing if there is nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or not (self._due or self._current))
        return self.collect()

    def close(self) -> None:
        """End when the stream at work is done."""
        with self._changed:
            self._closed, self._due = True, []
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                if self._closed:
                    return
                self._current = stream = min(self._due, key=Stream.deadline)
                self._due.remove(stream)
            made: Future[tuple[Tensor, bool]] = Future()
            began = time.monotonic()
            try:
                made.set_result(stream.decoding()())
            except BaseException as error:  # raised by whoever takes the sound
                made.set_exception(error)
            self.call_s = time.monotonic() - began
            with self._changed:
                self._finished.append((stream, made))
                self._current = None
                self._changed.notify_all()
