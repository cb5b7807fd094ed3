"""Many streams of speech and of chat on one machine: four pools, one thread, earliest deadline first.

::

    text  ->  Reader  ->  Talker  ->  Codec  ->  sound          Writer  ->  text
              backbone    rows of     a state                    rows of
              in ragged   one run     per row                    one run
              passes

A :class:`Stream` is a text that becomes sound; a :class:`Conversation` is a chat that becomes text. A *tick* does a
little of everything that is due (:meth:`Scheduler.tick`): text fills the time that speech leaves. Nothing here knows
the web, and nothing waits but for the codec's thread: who has no work for a tick waits where the text comes from.

What a stream says does not depend on the others: every row has its own noise, and chunking decides only when frames are
sounded. One thread calls the language models; with ``codec_thread`` the codec runs in a second one beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.engine import Run
from speech_mtp.decoding.laws import SpeechLaw
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.units import UnitStream, advance_all
from speech_mtp.streaming.codec_thread import CodecThread, Sounded
from speech_mtp.streaming.stream import RAMP, Ramp, Stream
from speech_mtp.types import RowSampling, Sampling, Status

if TYPE_CHECKING:  # they import ``transformers``, which takes a second
    from speech_mtp.streaming.conversation import Conversation, Writer

__all__ = ["Pace", "Scheduler"]

AT_ONCE = 2
"""Streams that the codec works on before others are looked at again."""

SHORT_PASS, LONG_PASS = 2, 4
"""Blocks that the reader reads at a time: on two cores of a desktop 2 cost 1.2 and 4 cost 1.7 times as much as 1."""

TOGETHER_S = 0.6
"""Who is less than this further ahead than the pace wants talks on when another does."""

BEGIN_S = 0.4
"""A stream never waits for more sound than this before it begins."""

LOW_S = 0.4
"""A stream among others that has less sound left than this need not fill its ramp."""

FADE = 0.75
"""The longest round counts for so much after each round."""


@dataclass(frozen=True)
class Pace:
    """How speech is paced. ``ahead_s``: a stream with so much sound that has not been played is not talked on (None:
    it is, as fast as it goes). ``margin_s``: text is written only while every stream has so much left to play."""

    ahead_s: float | None = None
    margin_s: float = 0.3


class Scheduler:
    """Speaks with ``model`` and writes with ``writer``; at most ``max_streams`` streams speak at a time, others wait.

    ``rule`` drafts groups of speech (default: plain decoding). ``clock`` gives seconds.
    """

    def __init__(
        self,
        model: SpeechModel | None = None,
        writer: Writer | None = None,
        rule: DecodingRule | None = None,
        max_streams: int = 16,
        pace: Pace = Pace(),
        codec_thread: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_streams < 1:
            raise ValueError(f"max_streams is {max_streams}; at least one stream must be able to speak.")
        self.model, self.writer, self.rule = model, writer, rule or Vanilla()
        self.max_streams, self.pace, self.clock = max_streams, pace, clock
        self.waiting: list[Stream] = []
        self.streams: list[Stream] = []
        self._closed = False
        self._run: Run | None = None
        self._talking: dict[int, Stream] = {}
        self._thread = CodecThread() if codec_thread else None
        self._round_s = 0.0  # the longest round of speech lately, without what the writer takes
        self._write_s = 0.0  # the longest step of the writer lately

    # -- who comes and goes ---------------------------------------------------------------------------------------
    def speak(
        self, voice: str | Tensor | None = None, sampling: Sampling | None = None, ramp: Ramp = RAMP, **limits: int
    ) -> Stream:
        """A new stream, whose text is pushed; ``voice`` is a name of the model's or a timbre vector ``[E]``. Raises
        ValueError for an unknown voice."""
        self._check_open()
        if self.model is None:
            raise ValueError("This scheduler has no speech model.")
        chosen = sampling or self.model.sampling
        chosen.check_codebooks(len(self.model.lm.config.codebook_sizes))
        stream = Stream(self.model, voice, chosen, ramp, self.clock, **limits)
        if self.pace.ahead_s is not None:
            stream.ahead_s = self.pace.ahead_s
        self.waiting.append(stream)
        return stream

    def chat(self, **settings: Any) -> Conversation:
        """A new conversation; settings as for :meth:`Writer.converse`."""
        self._check_open()
        if self.writer is None:
            raise ValueError("This scheduler has no model that writes text.")
        return self.writer.converse(**settings)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The scheduler has been closed; make a new one.")

    def close(self) -> None:
        """Cancel everything and end the codec's thread; nothing can be said or asked afterwards."""
        self._closed = True
        for stream in [*self.waiting, *self.streams]:
            stream.cancel()
        if self.writer is not None:
            self.writer.cancel_all()
        self._sweep()
        if self._thread is not None:
            self._thread.close()

    # -- a tick ---------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def tick(self) -> bool:
        """One round of work; False when there was none, because every stream is done, waits for text or is far ahead,
        and there is nothing to write.

        1. Streams that were cancelled or have ended leave, and waiting ones are admitted.
        2. The reader reads on, a few blocks, for the streams whose talker cannot go on without.
        3. The talker makes one step of every row that can go on and is not far enough ahead.
        4. The codec sounds groups that are due, those of the most urgent streams.
        5. Unless some stream's sound runs low, the writer makes one step.

        When the codec's thread alone has work, the tick waits for it.
        """
        began = self.clock()
        self._sweep()
        worked = self._read()
        worked |= self._talk()
        worked |= self._sound()
        if worked:
            self._round_s = max(self.clock() - began, FADE * self._round_s)
        if self.writer is not None and self._relaxed():
            worked |= self._write(self.writer)
        if not worked and self._thread is not None:
            return self._take_all(self._thread.wait())
        return worked

    def _sweep(self) -> None:
        """Who is done leaves, gaps are closed, and who waits is admitted."""
        for stream in [s for s in self.streams if s.done]:
            self._leave(stream)
        self.streams = [s for s in self.streams if not s.done]
        self.waiting = [s for s in self.waiting if not s.done]
        if self._run is not None and self._run.is_sparse:
            stay = self._run.gather()
            places = {old: b for b, old in enumerate(stay)}
            self._talking = {places[old]: stream for old, stream in self._talking.items()}
            for stream in self.streams:
                stream.rows = {places[old]: take for old, take in stream.rows.items()}
        self._admit()

    def _admit(self) -> None:
        """Streams that have text before those that only wait for some, which give up their place."""
        ready = [s for s in self.waiting if self._can_go_on(s)]
        while ready and len(self.streams) >= self.max_streams and (spare := self._without_text()) is not None:
            self.streams.remove(spare)
            self.waiting.append(spare)
        for stream in [*ready, *(s for s in self.waiting if s not in ready)]:
            if len(self.streams) < self.max_streams:
                self.waiting.remove(stream)
                self.streams.append(stream)

    def _without_text(self) -> Stream | None:
        """A stream between sentences that has nothing to say at the moment."""
        return next((s for s in self.streams if not s.rows and not self._can_go_on(s)), None)

    def _leave(self, stream: Stream) -> None:
        for row in list(stream.rows):
            self._leave_row(row)
        stream.rows = {}

    def _leave_row(self, row: int) -> None:
        assert self._run is not None
        self._run.leave(row)
        self._talking.pop(row, None)

    # -- the reader -----------------------------------------------------------------------------------------------
    def _read(self) -> bool:
        """Text -> units, one block of each stream that needs some; rows join the talker or are fed."""
        worked = False
        wanting = [s for s in self.streams if not s.rows or self._waits(s)]
        for stream in wanting:
            had = stream.unread
            worked |= self._safely(stream, stream.take_text) or had
        wanting = [s for s in wanting if not s.done]
        reading = [s for s in wanting if s.wants_reading]
        self._advance(reading)
        for stream in wanting:
            if stream in reading or stream.changed:
                self._safely(stream, partial(self._give_units, stream))
                worked = True
        return worked

    def _advance(self, reading: list[Stream]) -> None:
        """One pass of the reader; if it goes wrong, the streams that it was for end with the error."""
        unit_streams: list[UnitStream] = [s.reading for s in reading if s.reading is not None]
        try:
            advance_all(unit_streams, self._blocks(reading))
        except Exception as error:
            for stream in reading:
                stream.fail(error)

    def _blocks(self, reading: list[Stream]) -> int:
        """How many blocks a pass of the reader holds: more rows cost less each, but whoever begins should not wait for
        text that is needed later. A stream alone is read in passes that are always the same."""
        if len(self.streams) == 1:
            return 1
        begins = any(stream.begins for stream in reading)
        return min(LONG_PASS, SHORT_PASS * len(reading)) if begins else LONG_PASS

    @staticmethod
    def _safely(stream: Stream, work: Callable[[], None]) -> bool:
        """Do ``work`` for ``stream``; whether it went wrong. The stream then ends with the error, and no other does."""
        try:
            work()
        except Exception as error:
            stream.fail(error)
            return True
        return False

    def _waits(self, stream: Stream) -> bool:
        """Whether its talker cannot go on without more units, in no row."""
        run = self._run
        return run is not None and bool(stream.rows) and all(run.status[b] is Status.WAITING for b in stream.rows)

    def _give_units(self, stream: Stream) -> None:
        """The units that are there go to the talker."""
        units = stream.units()
        if units is None or not int(units.lengths[0]):
            return
        if not stream.rows:
            self._join(stream, units)
            return
        assert self._run is not None
        for row in stream.rows:
            self._run.feed(row, units)

    def _join(self, stream: Stream, units: Any) -> None:
        assert self.model is not None
        for sampling in stream.begin_sentence():
            rows: Any = self.model.lm.prefill(units, stream.timbre)
            rows.sampling = RowSampling([sampling], stream.timbre.device)
            if self._run is None:
                row, self._run = 0, Run(self.model.lm, SpeechLaw(self.model.lm), rows, self.rule)
            else:
                row = self._run.join(rows)
            stream.begin_take(row)
            self._talking[row] = stream

    # -- the talker -----------------------------------------------------------------------------------------------
    def _talk(self) -> bool:
        run = self._run
        if run is None:
            return False
        wanted = self._who_talks(len(run.finish))
        made = run.advance(wanted)
        if made is not None:
            for b, stream in self._talking.items():
                if made.new[b] and wanted[b]:
                    groups = made.tokens[b : b + 1, : len(made.new[b])]
                    self._safely(stream, partial(stream.take_groups, b, groups, made.pointers[b]))
        ended = [(b, s) for b, s in self._talking.items() if run.finish[b] is not None]
        for b, stream in ended:
            finish = run.finish[b]
            assert finish is not None
            self._leave_row(b)
            if not stream.done:
                self._safely(stream, partial(stream.end_take, b, finish))
        return made is not None or bool(ended)

    def _who_talks(self, rows: int) -> list[bool]:
        """Which rows talk on: when one falls behind, so do those that soon would, for a step of many costs little more
        than a step of one."""
        now = self.clock()
        able = {b: stream for b, stream in self._talking.items() if not (stream.held or self._waits(stream))}
        lead = {b: stream.buffered_s(now) - stream.ahead_s for b, stream in able.items()}
        behind = any(seconds <= 0 for seconds in lead.values())
        return [behind and b in lead and lead[b] <= TOGETHER_S for b in range(rows)]

    # -- the codec ------------------------------------------------------------------------------------------------
    def _sound(self) -> bool:
        """Groups that are due -> sound: of :data:`AT_ONCE` streams at most, so that who joins meanwhile need not wait
        for all the others, or in the codec's thread."""
        worked = self._thread is not None and self._take_all(self._thread.collect())
        begin_s = min(BEGIN_S, self._round_s + self._queue_s())
        for stream in self.streams:
            stream.stalled = not self._says_more(stream)
            if self.max_streams > 1:
                stream.begin_s, stream.low_s = begin_s, LOW_S
        due = [s for s in self.streams if s.due]
        if self._thread is not None:
            self._thread.offer(due)
            return worked
        urgent = sorted(due, key=Stream.deadline)[:AT_ONCE]
        for stream in urgent:
            self._safely(stream, partial(self._sound_now, stream))
        return bool(urgent)

    def _queue_s(self) -> float:
        """How long the codec's thread may take until a stream is sounded again: those that speak may come first."""
        return 0.0 if self._thread is None else self._thread.call_s * len(set(self._talking.values()))

    def _take_all(self, sounded: list[Sounded]) -> bool:
        """Take what the codec's thread has made; whether there was anything."""
        for stream, made in sounded:
            self._safely(stream, partial(self._take_sound, stream, made.result))
        return bool(sounded)

    @staticmethod
    def _sound_now(stream: Stream) -> None:
        stream.take_sound(*stream.decoding()())

    @staticmethod
    def _take_sound(stream: Stream, work: Callable[[], tuple[Tensor, bool]]) -> None:
        stream.take_sound(*work())

    # -- the writer -----------------------------------------------------------------------------------------------
    def _write(self, writer: Writer) -> bool:
        began = self.clock()
        wrote = writer.step()
        self._write_s = max(self.clock() - began, FADE * self._write_s)
        return wrote

    def _relaxed(self) -> bool:
        """Whether text may be written: no stream that can go on is about to run dry. The text of a reply does not wait
        for the codec's thread, nor for sound that needs more text."""
        now = self.clock()
        streams = [s for s in self.streams if not s.held and s.best_of == 1]  # takes have no sound to run dry
        able = [s for s in streams if (self._says_more(s) if s.is_reply else self._can_go_on(s))]
        margin_s = max(self.pace.margin_s, self._write_s + self._round_s)  # until they are sounded again
        return all(s.buffered_s(now) > min(margin_s, s.ahead_s / 2) for s in able)

    def _can_go_on(self, stream: Stream) -> bool:
        """Whether there is anything to do for ``stream`` before more text comes."""
        sounding = stream.due or (self._thread is not None and self._thread.has(stream))
        return sounding or self._says_more(stream) or (not stream.rows and stream.text_ended)

    def _says_more(self, stream: Stream) -> bool:
        """Whether ``stream`` has text to read, or a talker that can go on."""
        return stream.unread or (bool(stream.rows) and not self._waits(stream))


def run_to_end(scheduler: Scheduler) -> None:
    """Tick until there is nothing to do."""
    while scheduler.tick():
        continue
