"""One text on its way to sound: what has come, what is spoken, what is sounded.

One codec row runs through the whole text, sentence after sentence, so there is no seam; the talker starts afresh with
each sentence. A stream does no work by itself: the scheduler asks it what is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, inf

import torch
from torch import Tensor

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.units import UnitMaker, UnitStream, WordUnits
from speech_mtp.streaming.feed import MAX_TOTAL, Feed, Piece
from speech_mtp.streaming.takes import NEXT_TAKE, Take, best, check_best_of
from speech_mtp.streaming.word_track import WordTrack
from speech_mtp.types import Finish, Sampling, TextUnits, WordTime

_SEVERITY = ("stop", "length", "runaway", "cancelled")
_NEXT_SENTENCE = 1_000_003
"""Added to the seed with every sentence."""


@dataclass
class Chunk:
    """``wave [S]`` float in [-1, 1], the words that ended inside what was said so far, and running totals.

    There are ``words`` only where speech points into its text (layout ``aligned``); a text prefix has no word times.
    ``finish`` is set on the last chunk only (its wave may be empty).
    """

    wave: Tensor
    words: list[WordTime] = field(default_factory=list)
    steps: int = 0
    frames: int = 0
    finish: Finish | None = None


@dataclass(frozen=True)
class Ramp:
    """How many groups are gathered before the codec is called: small at first, then more at a time."""

    groups: tuple[int, ...] = (1, 1, 2, 4)

    def __getitem__(self, call: int) -> int:
        return self.groups[min(call, len(self.groups) - 1)]


RAMP = Ramp()

LARGEST = 8
"""Groups that the codec makes at once at the end of a text, where more may be left than the ramp holds."""


class Stream:
    """A text that is spoken while it comes. :meth:`push` text, :meth:`finish_text`, :meth:`take` chunks of sound.

    ``finish`` says why it ended. ``max_total`` limits the characters of the whole text. With ``best_of`` every sentence
    is said so many times at once, and the best take is sounded when all have ended (:mod:`speech_mtp.streaming.takes`);
    ValueError where the model cannot tell. Where others are spoken too,
    ``begin_s`` seconds are gathered before any is sounded, and with less than ``low_s`` left to play, a stream does not
    wait until the ramp is filled. When it is sounded then depends on the time, and its samples on that in their last
    bits; so do those of a text that comes in pieces, for what was said is sounded while more is waited for.
    """

    def __init__(
        self,
        model: SpeechModel,
        voice: str | Tensor | None,
        sampling: Sampling,
        ramp: Ramp,
        clock: Callable[[], float],
        max_total: int = MAX_TOTAL,
        best_of: int = 1,
    ) -> None:
        check_best_of(model, best_of)
        self.model, self.sampling, self.ramp, self.clock = model, sampling, ramp, clock
        self.timbre = model.timbre(voice)
        self.best_of = best_of
        self.rows: dict[int, Take] = {}  # places in the talker's run, where the sentence at hand is said
        self.reading: UnitStream | None = None  # of the sentence that is read piece by piece
        self.speed = 1.0  # so many times faster it is played than it is spoken
        self.ahead_s = inf  # with more sound than this left to play, it need not be talked on
        self.held = False  # whoever takes its sound does not keep up: it is not talked on
        self.is_reply = False  # the writer writes its text, which it does not hold up
        self.changed = False  # units may have changed without the reader: the sentence was closed, or read whole
        self.steps = self.frames = 0
        self.finish: Finish | None = None
        self._error: Exception | None = None
        self._arrives = isinstance(model.maker, UnitMaker) and model.lm.layout.points
        self._feed = Feed(max_total=max_total)
        self._pieces: deque[Piece] = deque()
        self._text_ended = self._left_behind = False
        self._gathered = ""
        self._whole: tuple[TextUnits, list[WordUnits]] | None = None  # a sentence that was read whole
        self._takes: list[Take] = []  # of the sentence at hand
        self._sentence = 0
        self._pointer = 0  # of the talker, in the units of the sentence
        self._worst = Finish("stop")
        self._track: WordTrack | None = None
        self._pending: deque[Tensor] = deque()  # the codec's thread takes from its front
        self._calls = 0
        self.begin_s = self.low_s = 0.0
        self.stalled = False  # nothing more can be said before more text comes
        self._flushed = False
        self._codec = model.codec.open(1)
        self._codec_row = torch.zeros(1, dtype=torch.long)
        model.codec.reset(self._codec, self._codec_row, self.timbre if model.codec.spec.timbre_dim else None)
        self._words: list[WordTime] = []
        self._chunks: deque[Chunk] = deque()
        self._runs_out = clock()  # when a listener will have heard all that was sounded

    # -- text -------------------------------------------------------------------------------------------------------
    def push(self, text: str) -> None:
        """More text, cut anywhere. Raises ValueError for what cannot be spoken, and after the text was finished."""
        if self._text_ended or self.done:
            raise ValueError("The text has been finished; open a new stream for more text.")
        self._pieces += self._or_fail(lambda: self._feed.push(text))

    def finish_text(self) -> None:
        """The text ends here. Raises ValueError for what cannot be spoken."""
        if not self._text_ended:
            self._text_ended = True
            self._pieces += self._or_fail(self._feed.finish)

    def _or_fail(self, read: Callable[[], list[Piece]]) -> list[Piece]:
        """What ``read`` gives; text that cannot be spoken ends the stream."""
        try:
            return read()
        except ValueError as error:
            self.fail(error)
            raise

    def cancel(self) -> None:
        """Say no more; what has been sounded can still be taken."""
        if self.finish is None:
            self._end(torch.zeros(0), Finish("cancelled"))

    def fail(self, error: Exception) -> None:
        """End here: it cannot be spoken. :meth:`take` raises ``error`` once what was made has been taken."""
        if self.finish is None:
            self._error = error
            self._release(Finish("error", str(error)))

    def take_text(self) -> None:
        """Take in pieces that have come, up to the end of the sentence that is read or, between sentences, of the
        next; at the end of everything, let the rest be sounded."""
        if self._left_behind:
            self._leave_behind()
        while self._pieces and not self._sentence_closed():
            self._take_piece(self._pieces.popleft())
        if self._text_ended and not self._pieces and not self.rows and not self._reading_something():
            self._flushed = True

    def _sentence_closed(self) -> bool:
        """Whether the text of the sentence at hand is all there."""
        return self._whole is not None or (self.reading is not None and self.reading.finished)

    def _reading_something(self) -> bool:
        return self.reading is not None or self._whole is not None

    def _take_piece(self, piece: Piece) -> None:
        if not self._arrives:
            self._gathered += piece.text
            if piece.end and self._gathered:
                self._read_whole(self._gathered)
            self._gathered = "" if piece.end else self._gathered
            return
        if self.reading is None:
            assert isinstance(self.model.maker, UnitMaker)
            self.reading = UnitStream(self.model.maker)
        self.reading.push(piece.text)
        if piece.end:
            self.reading.finish()
            self.changed = True

    def _read_whole(self, text: str) -> None:
        maker = self.model.maker
        words = maker.words(text) if isinstance(maker, UnitMaker) else []
        self._whole, self.changed = (maker.make([text]), words), True

    def units(self) -> TextUnits | None:
        """The units of the sentence at hand that are there, a batch of one. A sentence without any is dropped."""
        self.changed = False
        if self._whole is not None:
            units = self._whole[0]
            if not int(units.lengths[0]):
                self._whole = None
            return units
        if self.reading is None:
            return None
        units = self.reading.units
        if bool(units.complete[0]) and not int(units.lengths[0]):
            self.reading = None
        return units

    def begin_sentence(self) -> list[Sampling]:
        """The settings of the sentence that begins now, of each of its takes."""
        rate = self.model.codec.spec.frame_rate_hz
        self._track = WordTrack(self.frames / rate, rate, self.model.lm.layout.frames_per_group)
        first = self.sampling.seed + _NEXT_SENTENCE * self._sentence
        seeds = [first + NEXT_TAKE * take for take in range(self.best_of)]
        self._sentence += 1
        return [replace(self.sampling, seed=(seed + 2**63) % 2**64 - 2**63) for seed in seeds]  # as 64-bit numbers add

    def begin_take(self, row: int) -> None:
        """The talker says the sentence in ``row``, too."""
        self.rows[row] = Take()
        self._takes.append(self.rows[row])

    # -- groups -----------------------------------------------------------------------------------------------------
    def take_groups(self, row: int, tokens: Tensor, pointers: list[int]) -> None:
        """The talker has made groups ``tokens [1, T, C]`` in ``row``, after which the pointer stood at ``pointers``."""
        if self.best_of == 1:
            self.say(tokens, pointers)
        else:
            self.rows[row].said.append((tokens, pointers))
            self._pointer = max(self._pointer, *pointers)

    def end_take(self, row: int, finish: Finish) -> None:
        """The sentence at hand has been spoken in ``row``."""
        self.rows.pop(row).finish = finish
        if self.rows:
            return
        if self.best_of > 1:
            chosen = best(self.model, self._takes, self._phonemes())
            for tokens, pointers in chosen.said:
                self.say(tokens, pointers)
            finish = chosen.finish or finish
        self.end_sentence(finish)

    def _phonemes(self) -> Tensor:
        """``[U]`` of the sentence at hand."""
        units = self.units()
        return torch.zeros(0, dtype=torch.long) if units is None else units.phoneme[0, : int(units.lengths[0])]

    def say(self, tokens: Tensor, pointers: list[int]) -> None:
        """Groups that are to be sounded."""
        self.steps += 1
        self.frames += tokens.shape[1] * self.model.lm.layout.frames_per_group
        self._pending.extend(tokens.split(1, 1))
        if pointers:
            self._pointer = pointers[-1]
        if self._track is not None and pointers:
            words = self._whole[1] if self._whole else (self.reading.words if self.reading else [])
            self._words += [word for pointer in pointers for word in self._track.move(pointer, words)]
        if self._words and not self.due:
            self._tell(torch.zeros(0))

    def end_sentence(self, finish: Finish) -> None:
        self._takes = []
        self._worst = max(self._worst, finish, key=lambda f: _SEVERITY.index(f.reason))
        self._left_behind = self.reading is not None and not self.reading.finished
        self.reading = self._whole = None
        self._pointer = 0  # else the beginning of the next sentence would not be worth reading
        if self._left_behind:
            self._leave_behind()

    def _leave_behind(self) -> None:
        """Drop the rest of a sentence that ended before its text did."""
        while self._pieces and self._left_behind:
            self._left_behind = not self._pieces.popleft().end

    # -- sound ------------------------------------------------------------------------------------------------------
    @property
    def due(self) -> bool:
        """Whether the codec has something to do: groups that fill the ramp, any if no more will come soon or its sound
        runs low, or the end."""
        if self.finish is not None:
            return False
        if self._flushed:
            return True
        if self.stalled:
            return bool(self._pending)
        if not self._calls:
            return len(self._pending) >= max(self.ramp[0], self._first_groups())
        low = bool(self._pending) and self.buffered_s(self.clock()) < self.low_s
        return low or len(self._pending) >= self.ramp[self._calls]

    def _first_groups(self) -> int:
        """Groups of which the codec makes as much sound as the stream begins with."""
        group_s = self.model.lm.layout.frames_per_group / self.model.codec.spec.frame_rate_hz
        return ceil((self.begin_s + self.model.codec.delay_s) / group_s) if self.begin_s else 0

    def decoding(self) -> Callable[[], tuple[Tensor, bool]]:
        """What the codec has to do now, as a function that gives its sound and whether it is the last. This method and
        what it returns may be called in another thread."""
        codec, state, row, last = self.model.codec, self._codec, self._codec_row, self._flushed
        most = max(self.ramp[self._calls], 0 if self._calls else self._first_groups())
        if last:  # all that is left, if that is not so much that the others would have to wait
            most = max(most, LARGEST)
            last = len(self._pending) <= most
        count = min(len(self._pending), most)
        groups = [self._pending.popleft() for _ in range(count)]
        self._calls += bool(groups)
        frames = self.model.lm.layout.frames(torch.cat(groups, 1)) if groups else None

        @torch.inference_mode()
        def work() -> tuple[Tensor, bool]:
            parts = []
            if frames is not None:
                parts += codec.push(state, frames, torch.tensor([frames.shape[-1]]))
            if last:
                parts += codec.flush(state, row)
            return torch.cat(parts), last

        return work

    def take_sound(self, wave: Tensor, last: bool) -> None:
        """The codec has made ``wave [S]``, the last of it or not."""
        if self.finish is not None:
            return
        if wave.numel():
            seconds = len(wave) / self.model.codec.spec.sample_rate
            self._runs_out = max(self._runs_out, self.clock()) + seconds / self.speed
        if last:
            self._end(wave, self._worst)
        else:
            self._tell(wave)

    def _tell(self, wave: Tensor, finish: Finish | None = None) -> None:
        words, self._words = self._words, []
        self._chunks.append(Chunk(wave, words, self.steps, self.frames, finish))

    def _end(self, wave: Tensor, finish: Finish) -> None:
        if finish.reason != "cancelled" and not self._sentence:
            self.fail(ValueError("The text stream ended without a word; there is nothing to say."))
            return
        self._release(finish)
        self._tell(wave, finish)

    def _release(self, finish: Finish) -> None:
        """Nothing more will come: let go of what it was made from."""
        self.finish = finish
        if self.reading is not None:
            self.reading.close()
        self.reading = self._whole = self._codec = None
        self._pieces.clear()
        self._pending = deque()

    def take(self) -> list[Chunk]:
        """The chunks that have been made since the last call. Raises, behind the last of them, what ended the stream:
        ValueError if there was nothing to say or the text cannot be spoken."""
        chunks = list(self._chunks)
        self._chunks.clear()
        if not chunks and self._error is not None:
            raise self._error
        return chunks

    # -- time -------------------------------------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None

    @property
    def begins(self) -> bool:
        """Whether nothing has been sounded yet."""
        return not self._calls

    @property
    def text_ended(self) -> bool:
        """Whether no more text will come."""
        return self._text_ended

    @property
    def unread(self) -> bool:
        """Whether text has come that was not read and is to be, or units that the talker has not been given."""
        return bool(self._pieces) or self.changed or self.wants_reading

    @property
    def wants_reading(self) -> bool:
        """Whether the backbone is to read on: enough text has come for the talker to go on, or for a whole block."""
        reading = self.reading
        return reading is not None and reading.worth_reading(self._pointer + self.model.lm.layout.ahead)

    def buffered_s(self, now: float) -> float:
        """Seconds of sound that are left to play; below 0, for how long it has been silent. Before the first sound,
        minus the time for which somebody has been waiting."""
        return self.deadline() - now

    def deadline(self) -> float:
        """When its sound runs out; before the first sound, when it came."""
        return self._runs_out
