"""The interface of a recogniser: sound in, words out, a segment at a time.

A recogniser knows nothing of files, of rates other than its own, of the network or of threads; whoever owns one calls
it from one thread at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Hz of every wave that a recogniser hears."""

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Hint:
    """What a client knows of its recording. ``language``: its ISO-639-1 code (None: find out); ``prompt``: text that
    stands before it, or words that occur; ``words``: times of words are wanted; ``temperature`` of what is drawn (0:
    the likeliest); ``quick``: somebody waits for the words of one utterance, which may cost a little accuracy."""

    language: str | None = None
    prompt: str | None = None
    words: bool = False
    temperature: float = 0.0
    quick: bool = False


NO_HINT = Hint()


@dataclass(frozen=True)
class Word:
    """A word, as it is written, and when it is said, in seconds of the recording."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Segment:
    """Some words that are sure, in seconds of the recording. ``text`` begins with its space, so that segments are
    joined as they are. ``words`` where times of words were asked for and are known.

    The rest is Whisper's and tells how sure it is; others leave it as it is. ``seek`` counts hundredths of a second.
    """

    text: str
    start_s: float
    end_s: float
    language: str
    words: tuple[Word, ...] = ()
    tokens: tuple[int, ...] = ()
    seek: int = 0
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording of ``duration_s`` seconds; ``language`` is None where nothing was heard."""

    text: str
    language: str | None
    duration_s: float
    segments: tuple[Segment, ...] = ()


def joined(segments: Iterable[Segment], duration_s: float) -> Transcript:
    """The transcript that ``segments`` make."""
    heard = tuple(segments)
    text = "".join(segment.text for segment in heard).strip()
    return Transcript(text, heard[0].language if heard else None, duration_s, heard)


class Recogniser(ABC):
    """Recognises speech. Construction finds its files, the first recording loads them.

    ``name`` is what clients call the model.
    """

    name: str

    @abstractmethod
    def segments(self, wave: Wave, hint: Hint = NO_HINT) -> Iterator[Segment]:
        """What is said in ``wave [S]``, float32 in [-1, 1] at :data:`SAMPLE_RATE`, each segment as soon as it is sure.

        Nothing for silence and for a wave without samples. Raises ``ValueError`` for a language that it does not know.
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Load what the first recording would wait for."""

    feature_rate_hz: float = 0.0
    """Vectors a second that :meth:`features` gives; 0 for a recogniser that shows none."""
    longest_features_s: float = float("inf")
    """Seconds of a wave that :meth:`features` hears at most."""

    def features(self, waves: list[Wave]) -> list[Wave]:
        """What the encoder makes of each ``wave [S]``: ``[ceil(S / SAMPLE_RATE * feature_rate_hz), D]``.

        Raises ``ValueError`` for a recogniser that shows none.
        """
        raise ValueError(f"The recogniser {self.name} does not show what its encoder hears; name another.")

    def transcribe(self, wave: Wave, hint: Hint = NO_HINT) -> Transcript:
        """All that is said in ``wave [S]``; see :meth:`segments`."""
        return joined(self.segments(wave, hint), len(wave) / SAMPLE_RATE)
