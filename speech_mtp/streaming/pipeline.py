"""Text in, sound out, as generators: ``speak`` yields audio as soon as its frames are final.

One codec row runs through the whole text, sentence after sentence, so there is no seam; the speech LM starts afresh
with each sentence. Streamed audio equals offline audio of the same text and seed because chunking decides
only when frames are sounded, never which; and a text that arrives in pieces is spoken as the whole text because a whole
text is one piece: both are read by the same lines, as far as speech needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from speech_mtp.decoding import engine
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.token_maker import TokenMaker
from speech_mtp.lm.units import UnitMaker, UnitStream, WordUnits
from speech_mtp.streaming.feed import Piece, joined, pieces_of
from speech_mtp.text.normalize import check_text
from speech_mtp.types import Finish, Sampling, TextUnits, WordTime

_SEVERITY = ("stop", "length", "runaway")


@dataclass
class Chunk:
    """``wave [S]`` float in [-1, 1], the words that ended inside what was decoded so far, and running totals.

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


def speak(
    model: SpeechModel,
    text: str | Iterable[str],
    voice: str | None = None,
    sampling: Sampling | None = None,
    ramp: Ramp = Ramp(),
) -> Iterator[Chunk]:
    """Speak a text, or a stream of pieces of text (words may be cut anywhere).

    A stream is spoken while it arrives: a talker that points into its text waits in mid-sentence where it is not there
    yet; where the text is a prefix (the direct form, the layout ``prefix``) each sentence is gathered first. Raises
    ValueError for text that cannot be spoken or an unknown voice.
    """
    timbre = model.timbre(voice)
    law = sampling or model.sampling
    if isinstance(text, str):
        check_text(text)
        gained: Iterable[list[Piece]] = list(pieces_of([text], max_total=len(text)))
    else:
        gained = pieces_of(text)
    if isinstance(model.maker, UnitMaker) and model.lm.layout.points:
        source = _as_it_comes(model.maker, _Pieces(gained))
    else:
        source = _gathered(model, joined(gained))
    return _Speech(model, timbre, law, ramp).run(source)


class _Sentence(ABC):
    """A sentence to speak."""

    @property
    @abstractmethod
    def units(self) -> TextUnits:
        """The units of it that are there."""

    @property
    @abstractmethod
    def words(self) -> list[WordUnits]:
        """Its words that have units, perhaps more than :attr:`units` holds."""

    def more(self) -> bool:
        """Get more units, waiting for text if need be; False when the sentence is complete."""
        return False


class _Gathered(_Sentence):
    """A sentence that is read whole."""

    def __init__(self, maker: UnitMaker | TokenMaker, text: str) -> None:
        self._units = maker.make([text])
        self._words = maker.words(text) if isinstance(maker, UnitMaker) else []

    @property
    def units(self) -> TextUnits:
        return self._units

    @property
    def words(self) -> list[WordUnits]:
        return self._words


def _gathered(model: SpeechModel, texts: Iterable[str]) -> Iterator[_Sentence]:
    for text in texts:
        yield _Gathered(model.maker, text)


class _Pieces:
    """Pieces of text in the order in which they came."""

    def __init__(self, gained: Iterable[list[Piece]]) -> None:
        self._gained = iter(gained)
        self._ready: deque[Piece] = deque()

    def take(self) -> Piece | None:
        """The next piece that has come; None when it would have to be waited for."""
        return self._ready.popleft() if self._ready else None

    def wait(self) -> bool:
        """Wait until there is a piece to take; False at the end of the text."""
        while not self._ready:
            gained = next(self._gained, None)
            if gained is None:
                return False
            self._ready += gained
        return True


class _Arriving(_Sentence):
    """A sentence that is read as far as speech needs it, from pieces that may still have to come."""

    def __init__(self, maker: UnitMaker, pieces: _Pieces) -> None:
        self._stream, self._pieces = UnitStream(maker), pieces
        self._ended = False

    @property
    def units(self) -> TextUnits:
        return self._stream.units

    @property
    def words(self) -> list[WordUnits]:
        return self._stream.words

    def more(self) -> bool:
        while True:
            self._take()
            if self._stream.advance():
                return True
            if self._ended:
                return False
            if not self._pieces.wait():
                self._end()

    def _take(self) -> None:
        """Take in the pieces of the sentence that have come."""
        while not self._ended and (piece := self._pieces.take()) is not None:
            self._stream.push(piece.text)
            if piece.end:
                self._end()

    def _end(self) -> None:
        self._ended = True
        self._stream.finish()

    def leave(self) -> None:
        """Go on to the end of the sentence without reading it."""
        while not self._ended and self._pieces.wait():
            piece = self._pieces.take()
            self._ended = piece is not None and piece.end


def _as_it_comes(maker: UnitMaker, pieces: _Pieces) -> Iterator[_Sentence]:
    while pieces.wait():
        sentence = _Arriving(maker, pieces)
        yield sentence
        sentence.leave()


class _Speech:
    """One call of ``speak``: the codec row, the frames not yet sounded, and the totals."""

    def __init__(self, model: SpeechModel, timbre: Tensor, sampling: Sampling, ramp: Ramp) -> None:
        self.model, self.timbre, self.sampling, self.ramp = model, timbre, sampling, ramp
        self.codec_state = model.codec.open(1)
        self.row = torch.zeros(1, dtype=torch.long)
        model.codec.reset(self.codec_state, self.row, timbre)
        self.pending: list[Tensor] = []
        self.calls = self.steps = self.frames = self.sentence = 0
        self.finish = Finish("stop")

    def run(self, source: Iterable[_Sentence]) -> Iterator[Chunk]:
        for sentence in source:
            yield from self._speak(sentence)
        if not self.sentence:
            raise ValueError("The text stream ended without a word; there is nothing to say.")
        yield Chunk(self._end(), [], self.steps, self.frames, self.finish)

    def _speak(self, sentence: _Sentence) -> Iterator[Chunk]:
        while not int(sentence.units.lengths[0]):
            if not sentence.more():
                return
        law = replace(self.sampling, seed=self.sampling.seed + 1_000_003 * self.sentence)
        run = engine.start(self.model.lm, sentence.units, self.timbre, law)
        rate = self.model.codec.spec.frame_rate_hz
        track = _WordTrack(self.frames / rate, rate, self.model.lm.config.frames_per_group)
        self.sentence += 1
        while run.finish[0] is None:
            made = run.advance()
            if made is not None:
                yield from self._take(made, track.move(made.pointers[0], sentence.words))
            elif run.finish[0] is None:
                sentence.more()
                run.feed(0, sentence.units)
        self.finish = max(self.finish, run.finish[0], key=lambda f: _SEVERITY.index(f.reason))

    def _take(self, made: engine.Step, words: list[WordTime]) -> Iterator[Chunk]:
        """One more group: sound when the ramp is full."""
        frames = self.model.lm.layout.frames(made.tokens[:, : int(made.lengths[0])])
        self.steps += 1
        self.frames += frames.shape[-1]
        self.pending.append(frames)
        if len(self.pending) >= self.ramp[self.calls]:
            yield Chunk(self._sound(), words, self.steps, self.frames)
        elif words:
            yield Chunk(torch.zeros(0), words, self.steps, self.frames)

    def _sound(self) -> Tensor:
        frames = torch.cat(self.pending, -1)
        self.pending = []
        self.calls += 1
        return self.model.codec.push(self.codec_state, frames, torch.tensor([frames.shape[-1]]))[0]

    def _end(self) -> Tensor:
        parts = [self._sound()] if self.pending else []
        return torch.cat([*parts, self.model.codec.flush(self.codec_state, self.row)[0]])


class _WordTrack:
    """Pointer positions of one sentence -> when each word was spoken (seconds of audio)."""

    def __init__(self, offset_s: float, frame_rate_hz: float, frames_per_group: int) -> None:
        self.offset_s, self.rate, self.group = offset_s, frame_rate_hz, frames_per_group
        self.starts = [0.0]  # frame at which each unit begins
        self.groups = 0
        self.told = 0

    def move(self, pointers: list[int], words: list[WordUnits]) -> list[WordTime]:
        """More groups ended at ``pointers``: the words that have been spoken whole since the last call."""
        return [word for pointer in pointers for word in self._move(pointer, words)]

    def _move(self, pointer: int, words: list[WordUnits]) -> list[WordTime]:
        before, known = self.groups * self.group, len(self.starts) - 1
        moved = pointer - known
        self.starts += [before + self.group * (i + 1) / moved for i in range(moved)]
        self.groups += 1
        done: list[WordTime] = []
        while self.told < len(words) and words[self.told][2] <= pointer:
            word = words[self.told]
            start, end = (self.offset_s + self.starts[u] / self.rate for u in word[1:])
            done.append(WordTime(word[0], round(start, 3), round(end, 3)))
            self.told += 1
        return done
