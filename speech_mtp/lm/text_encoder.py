"""Text -> phonemes without an outside dictionary: spelling joined with the backbone's hidden states.

Each written word is read by itself: its letters, the mark behind it and the first letters of the next word, each
with the hidden state of the token that holds it, so that "read" or "the" sound as their context asks. A small
transformer reads them, and CTC (Graves et al. 2006) over phoneme x stress gives the reading, three frames a letter.
The backbone is causal and one following word is all that is looked at: a text that is still being written is read
exactly as the whole text (see :class:`speech_mtp.lm.units.UnitStream`). Pauses follow from punctuation by rule.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speech_mtp.lm.reader import ReadingState, Span, TextReader
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import ALIASES, BLANK, CONSONANTS, PAUSES, VOWELS, Unit, merge_pauses

Sound = tuple[str, int]
"""A phoneme and its stress."""

BREAK: Sound = (" ", 0)
SOUNDS: tuple[Sound, ...] = (
    (BLANK, 0),
    BREAK,
    *((vowel, stress) for vowel in VOWELS for stress in range(3)),
    *((consonant, 0) for consonant in CONSONANTS),
)
"""The joint symbols of CTC; a break starts another spoken word inside a written one ("U.S.")."""

SOUND_ID: dict[Sound, int] = {sound: index for index, sound in enumerate(SOUNDS)}

LETTERS = " ,.!?'-/&abcdefghijklmnopqrstuvwxyz"
PAD, OTHER, BEGIN, END = range(4)
NUM_LETTERS = 4 + len(LETTERS)
FRAMES_PER_LETTER = 3
NEXT_LETTERS = 3  # of the following word
PLACES = 48  # letters further inside a word than that share one place
WORD = re.compile(r"(?:Mrs?|Ms|Dr)\.|(?:[A-Za-z]\.){2,}|[^\W_]+(?:['’./&-][^\W_]+)*(?:(?<=s)['’])?")


@dataclass(frozen=True)
class Word:
    """A written word ``[start, end)``, the mark behind it (a pause, a space, or nothing at the end of the text), and
    the span of the following word (empty if there is none)."""

    start: int
    end: int
    mark: str
    next: Span


def find_words(text: str) -> list[Word]:
    """The written words of normalised ``text``, in order. Raises ValueError for one without an English letter."""
    spans = [match.span() for match in WORD.finditer(text)]
    words = []
    for (start, end), following in pairwise([*spans, (len(text), len(text))]):
        if not any(_letter(c).isalpha() for c in text[start:end]):
            raise ValueError(f"no pronunciation was found for {text[start:end]!r}; write it out in English letters.")
        marks = [unit.phoneme for unit in _pauses(text, end, following[0])]
        mark = max(marks, key=PAUSES.index) if marks else (" " if following[1] > following[0] else "")
        words.append(Word(start, end, mark, following))
    return words


def _letter(char: str) -> str:
    """The plain lower-case letter or mark of ``LETTERS`` that a character stands for, or an empty string."""
    plain = unicodedata.normalize("NFKD", char.replace("’", "'"))[:1].lower()
    return plain if plain in LETTERS else ""


def _pauses(text: str, start: int, end: int) -> list[Unit]:
    found = [(ALIASES.get(text[i], text[i]), i) for i in range(start, end)]
    return [Unit(symbol, 0, False, i, i + 1) for symbol, i in found if symbol in PAUSES]


@dataclass
class Spelling:
    """``N`` words as the encoder reads them, padded to ``T`` letters.

    ``letters``, ``capitals``, ``places [N, T]``; ``tokens [N, T]`` index the flattened states ``[B * L]``, -1 for
    none; ``sizes [N]`` letters of which frames are made: the opening, the word's own, and the mark behind it.
    """

    letters: Tensor
    capitals: Tensor
    places: Tensor
    tokens: Tensor
    sizes: Tensor


def spell(text: str, words: list[Word], spans: list[Span], first_token: int = 0) -> list[Tensor]:
    """``[T, 5]`` for each word (the fields of :class:`Spelling`); ``first_token`` is where the text's states start."""
    ends = [end for _, end in spans]

    def token(at: int) -> int:
        return first_token + min(bisect_right(ends, at), len(ends) - 1)

    rows = []
    for word in words:
        size = word.end - word.start + 2
        row = [(BEGIN, 0, 0, token(word.end - 1), size)]
        row += [(*_glyph(text[i]), min(i - word.start + 1, PLACES - 2), token(i), size) for i in range(*_span(word))]
        follows = word.next[1] > word.next[0]
        mark = 4 + LETTERS.index(word.mark) if word.mark else END
        row.append((mark, 0, PLACES - 1, token(word.next[1] - 1) if follows else -1, size))
        seen = range(word.next[0], min(word.next[1], word.next[0] + NEXT_LETTERS))
        row += [(*_glyph(text[i]), PLACES + i - word.next[0], token(i), size) for i in seen]
        rows.append(torch.tensor(row))
    return rows


def _span(word: Word) -> Span:
    return word.start, word.end


def _glyph(char: str) -> tuple[int, int]:
    letter = _letter(char)
    return (4 + LETTERS.index(letter) if letter else OTHER), int(char.isupper())


def collate(rows: list[Tensor]) -> Spelling:
    """Rows of :func:`spell` -> one padded batch."""
    padded = pad_sequence(rows, batch_first=True)
    letters, capitals, places, tokens, _ = padded.unbind(-1)
    return Spelling(letters, capitals, places, tokens, torch.stack([row[0, 4] for row in rows]))


@dataclass(frozen=True)
class TextEncoderConfig:
    """``hidden_layer`` is the layer of the backbone, of width ``backbone_dim``, whose states were trained on.

    ``word_dropout`` is the share of words that are read without the backbone in training, so that a rare word is
    read by its spelling.
    """

    backbone_dim: int
    hidden_layer: int
    dim: int = 160
    num_layers: int = 3
    heads: int = 4
    hidden: int = 640
    dropout: float = 0.05
    word_dropout: float = 0.15


class TextEncoder(nn.Module):
    """Letters with the states of their tokens -> log-probabilities of sounds, three frames a letter."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        c = self.config = config
        self.letter = nn.Embedding(NUM_LETTERS, c.dim, padding_idx=PAD)
        self.capital = nn.Embedding(2, c.dim)
        self.place = nn.Embedding(PLACES + NEXT_LETTERS, c.dim)
        self.context = nn.Sequential(nn.LayerNorm(c.backbone_dim), nn.Linear(c.backbone_dim, c.dim))
        layer = nn.TransformerEncoderLayer(
            c.dim, c.heads, c.hidden, c.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, c.num_layers, nn.LayerNorm(c.dim), enable_nested_tensor=False)
        self.upsample = nn.Linear(c.dim, FRAMES_PER_LETTER * c.dim)
        self.out = nn.Linear(c.dim, len(SOUNDS))

    def to_config(self) -> dict[str, int | float]:
        """Settings as plain values."""
        return asdict(self.config)

    def forward(self, spelling: Spelling, hidden: Tensor) -> Tensor:
        """``N`` words and states ``hidden [B, L, D]`` -> log-probabilities ``[N, 3 T, len(SOUNDS)]``.

        Only the first ``3 * spelling.sizes`` frames of a row mean anything.
        """
        states = self.context(hidden.flatten(0, 1))
        states = torch.cat([states, states.new_zeros(1, states.shape[1])])
        joined = states[spelling.tokens]
        if self.training:
            kept = torch.rand(len(joined), 1, 1, device=joined.device) >= self.config.word_dropout
            joined = joined * kept
        x = self.letter(spelling.letters) + self.capital(spelling.capitals) + self.place(spelling.places) + joined
        x = self.layers(x, src_key_padding_mask=spelling.letters == PAD)
        frames = self.upsample(x).unflatten(-1, (FRAMES_PER_LETTER, -1)).flatten(1, 2)
        return self.out(nn.functional.gelu(frames)).log_softmax(-1)

    @torch.inference_mode()
    def read(self, rows: list[Tensor], hidden: Tensor) -> list[list[int]]:
        """The sounds (indices of ``SOUNDS``) of each word of :func:`spell`; at least one, never only breaks."""
        if not rows:
            return []
        spelling = to_device(collate(rows), hidden.device)
        scores = self(spelling, hidden).cpu()
        spoken = SOUND_ID[BREAK] + 1
        read = []
        for row, size in zip(scores, (FRAMES_PER_LETTER * spelling.sizes).tolist(), strict=True):
            best = torch.unique_consecutive(row[:size].argmax(-1)).tolist()
            sounds = [sound for sound in best if sound]
            if not any(sound >= spoken for sound in sounds):
                sounds = [spoken + int(row[:size, spoken:].amax(0).argmax())]
            read.append(sounds)
        return read


def to_device(spelling: Spelling, device: torch.device) -> Spelling:
    return Spelling(**{name: value.to(device) for name, value in vars(spelling).items()})


def to_units(sounds: Iterable[int], start: int, end: int) -> list[Unit]:
    """Sounds of one written word -> its units."""
    units: list[Unit] = []
    word_start = True
    for phoneme, stress in (SOUNDS[sound] for sound in sounds):
        if (phoneme, stress) != BREAK:
            units.append(Unit(phoneme, stress, word_start, start, end))
        word_start = (phoneme, stress) == BREAK
    return units


def to_sounds(units: Iterable[Unit]) -> list[int]:
    """The inverse of :func:`to_units`."""
    sounds: list[int] = []
    for unit in units:
        if unit.word_start and sounds:
            sounds.append(SOUND_ID[BREAK])
        sounds.append(SOUND_ID[unit.phoneme, unit.stress])
    return sounds


@dataclass
class _Reading:
    """A text that was read, and the units of each word, by place and neighbour."""

    state: ReadingState
    known: dict[Word, list[Unit]] = field(default_factory=dict)


class Spelled(G2P):
    """The front end made of a backbone and a text encoder; for :class:`speech_mtp.lm.units.UnitMaker`.

    What a call returns depends on its text alone. The last text is remembered, so that a call with the same text and
    more words reads only these. Raises ValueError when the encoder was trained on other states.
    """

    name = "own"

    def __init__(self, backbone: TextReader, encoder: TextEncoder) -> None:
        config = encoder.config
        if (config.backbone_dim, config.hidden_layer) != (backbone.dim, backbone.hidden_layer):
            raise ValueError(
                f"The text encoder reads layer {config.hidden_layer} of width {config.backbone_dim}, the backbone "
                f"gives layer {backbone.hidden_layer} of width {backbone.dim}; use the ones that were trained together."
            )
        self._backbone = backbone
        self._encoder = encoder.to(backbone.device).eval()
        self._last: _Reading | None = None
        self._lock = Lock()

    @torch.inference_mode()
    def phonemize(self, text: str) -> list[Unit]:
        words = find_words(text)
        if not words:
            return []
        with self._lock:
            last, self._last = self._last, None
        reading = self._continue(last, text) or self._read(text)
        new = [word for word in words if word not in reading.known]
        read = self._encoder.read(spell(text, new, reading.state.spans), self._backbone.read_all(reading.state))
        for word, sounds in zip(new, read, strict=True):
            reading.known[word] = to_units(sounds, word.start, word.end)
        units: list[Unit] = []
        for word in words:
            units += reading.known[word] + _pauses(text, word.end, word.next[0])
        with self._lock:
            self._last = reading
        return merge_pauses(units)

    def _read(self, text: str) -> _Reading:
        state = self._backbone.open()
        self._backbone.extend(state, text)
        return _Reading(state)

    def _continue(self, last: _Reading | None, text: str) -> _Reading | None:
        """``last`` with the rest of ``text``; None unless the text goes on from it with white space."""
        if last is None or not text.startswith(last.state.text):
            return None
        piece = text[len(last.state.text) :]
        if piece and not piece[0].isspace():
            return None
        try:
            self._backbone.extend(last.state, piece)
        except ValueError:  # the new piece changes the tokens of what was read
            return None
        return last
