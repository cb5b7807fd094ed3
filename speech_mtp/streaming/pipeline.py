"""Text in, sound out, as generators: ``speak`` yields audio as soon as its frames are final.

One codec row runs through the whole text, sentence after sentence, so there is no seam; the speech LM starts afresh
with each sentence. Streamed audio equals offline audio of the same text and seed because chunking decides
only when frames are sounded, never which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from speech_mtp.decoding import engine
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.units import UnitMaker, UnitStream, WordUnits
from speech_mtp.streaming.feed import Feed, arriving_sentences, sentences
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

    A string is read whole, sentence by sentence. A stream is spoken while it arrives: a talker that points into its
    text waits in mid-sentence where it is not there yet; where the text is a prefix (the direct form, the layout
    ``prefix``) each sentence is gathered first. Raises ValueError for text that cannot be spoken or an unknown voice.
    """
    timbre = model.timbre(voice)
    law = sampling or model.sampling
    if isinstance(text, str):
        source = _whole(model, sentences(text))
    elif isinstance(model.maker, UnitMaker) and model.lm.layout.points:
        source = _arriving(model.maker, text)
    else:
        source = _whole(model, arriving_sentences(text))
    return _Speech(model, timbre, law, ramp).run(source)


@dataclass
class _Text:
    """The text of one sentence as it stands: ``last`` marks the final state of a sentence."""

    units: TextUnits
    words: list[WordUnits]
    last: bool


def _whole(model: SpeechModel, texts: Iterable[str]) -> Iterator[_Text]:
    maker = model.maker
    for text in texts:
        words = maker.words(text) if isinstance(maker, UnitMaker) else []
        yield _Text(maker.make([text]), words, last=True)


def _arriving(maker: UnitMaker, texts: Iterable[str]) -> Iterator[_Text]:
    stream: UnitStream | None = None
    for piece in Feed().pieces(texts):
        if piece is None:
            continue
        stream = stream or UnitStream(maker)
        stream.push(piece.text)
        if piece.end:
            stream.finish()
        yield _Text(stream.units, stream.words, piece.end)
        if piece.end:
            stream = None


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

    def run(self, source: Iterable[_Text]) -> Iterator[Chunk]:
        run: engine.Run | None = None
        track = _WordTrack(0.0, 1.0, 0)
        for text in source:
            if run is None:
                if not int(text.units.lengths[0]):
                    continue
                law = replace(self.sampling, seed=self.sampling.seed + 1_000_003 * self.sentence)
                run = engine.start(self.model.lm, text.units, self.timbre, law)
                rate = self.model.codec.spec.frame_rate_hz
                track = _WordTrack(self.frames / rate, rate, self.model.lm.config.frames_per_group)
                self.sentence += 1
            else:
                self.model.lm.extend(run.state, text.units)
            while (made := run.advance()) is not None:
                self.steps += 1
                self.frames += made.frames.shape[-1]
                self.pending.append(made.frames)
                words = track.move(int(made.pointer[0]), text.words)
                if len(self.pending) >= self.ramp[self.calls]:
                    yield Chunk(self._sound(), words, self.steps, self.frames)
                elif words:
                    yield Chunk(torch.zeros(0), words, self.steps, self.frames)
            if text.last:
                ended = run.finish[0] or Finish("stop")
                self.finish = max(self.finish, ended, key=lambda f: _SEVERITY.index(f.reason))
                run = None
        if not self.sentence:
            raise ValueError("The text stream ended without a word; there is nothing to say.")
        yield Chunk(self._end(), [], self.steps, self.frames, self.finish)

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

    def move(self, pointer: int, words: list[WordUnits]) -> list[WordTime]:
        """One more group ended at ``pointer``: the words that have been spoken whole since the last call."""
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
