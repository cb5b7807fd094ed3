"""Text in, sound out, as a generator: one stream of the scheduler (:mod:`speech_mtp.streaming.scheduler`).

Streamed audio equals offline audio of the same text and seed because chunking decides only when frames are sounded,
never which; and a text that arrives in pieces is spoken as the whole text because a whole text is one piece: both are
read by the same lines, as far as speech needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import RAMP, Chunk, Ramp, Stream
from speech_mtp.text.normalize import check_text
from speech_mtp.types import Sampling

__all__ = ["Chunk", "Ramp", "speak"]


def speak(
    model: SpeechModel,
    text: str | Iterable[str],
    voice: str | Tensor | None = None,
    sampling: Sampling | None = None,
    ramp: Ramp = RAMP,
    rule: DecodingRule | None = None,
    best_of: int = 1,
) -> Iterator[Chunk]:
    """Speak a text, or a stream of pieces of text (words may be cut anywhere); ``rule`` drafts groups of speech.
    ``voice`` is a name of the model's, or a timbre vector ``[E]`` that its codec has made of a recording. Of
    ``best_of`` takes of every sentence the best is sounded, when all are there (:mod:`speech_mtp.streaming.takes`).

    A stream is spoken while it arrives: a talker that points into its text waits in mid-sentence where it is not there
    yet; where the text is a prefix (the direct form, the layout ``prefix``) each sentence is gathered first. Raises
    ValueError for text that cannot be spoken or an unknown voice.
    """
    scheduler = Scheduler(model, rule=rule, max_streams=1)
    if not isinstance(text, str):
        return _spoken(scheduler, scheduler.speak(voice, sampling, ramp, best_of=best_of), iter(text))
    check_text(text)
    stream = scheduler.speak(voice, sampling, ramp, max_total=len(text), best_of=best_of)
    stream.push(text)
    stream.finish_text()
    return _spoken(scheduler, stream, iter(()))


def _spoken(scheduler: Scheduler, stream: Stream, texts: Iterator[str]) -> Iterator[Chunk]:
    """The chunks of ``stream``; text is fetched when speech cannot go on without."""
    ended = False
    while not stream.done:
        worked = scheduler.tick()
        yield from stream.take()
        if not worked and not stream.done:
            assert not ended, "a stream whose text has ended has something to do"
            piece = next(texts, None)
            ended = piece is None
            stream.finish_text() if piece is None else stream.push(piece)
    while chunks := stream.take():
        yield from chunks
