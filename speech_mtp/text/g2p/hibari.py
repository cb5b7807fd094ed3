"""The G2P of hibari (Apache-2.0): misaki's American lexicon, a tagger, and a small net for unknown words.

Only the front end is used; the synthesis model that hibari ships beside it is never opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from speech_mtp.plugins import locate, require
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import ALIASES, ID, STRESS, Unit, merge_pauses, parse

OOV_LETTERS = 20  # the net for unknown words reads 24 letters: longer words are read in pieces


@cache
def _front_end() -> Any:
    """The one shared ``hibari.g2p.G2P``, with a reader of unknown words that drops no letters."""
    module = _front_end_module()
    return module.G2P(oov=lambda word: _read_unknown(_unknown_words(), word))


@cache
def _unknown_words() -> Any:
    """The net for unknown words, loaded for the first of them."""
    require("onnxruntime", "offline")
    module = _front_end_module()
    return importlib.import_module(f"{module.__name__}.oov").OOV(str(Path(module.ASSETS) / "oov.onnx"))


@cache
def _front_end_module() -> ModuleType:
    """The subpackage ``hibari.g2p`` by itself: importing ``hibari`` would load its synthesis, which takes longer."""
    folder = locate("hibari", "offline") / "g2p"
    spec = importlib.util.spec_from_file_location(
        "hibari_g2p", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _read_unknown(net: Any, word: str) -> str:
    pieces = [word[i : i + OOV_LETTERS] for i in range(0, len(word), OOV_LETTERS)]
    read = "".join(net(piece) or "" for piece in pieces)
    return "".join(c for c in read if c in STRESS or c in ID or c in ALIASES)


@dataclass
class _Piece:
    """Part of a text: its span, what is read for it, and whether white space follows."""

    start: int
    end: int
    phonemes: str
    space_after: bool


class Hibari(G2P):
    """American English with hibari's own G2P, at about a thousand sentences a second on one core."""

    name = "hibari"

    def phonemize(self, text: str) -> list[Unit]:
        front_end = _front_end()
        tokens = front_end.phonemize_tokens(front_end.tokenize(text))
        units: list[Unit] = []
        for group in _groups(_locate(text, tokens)):
            start, end = group[0].start, group[-1].end
            found = parse("".join(piece.phonemes for piece in group), start, end)
            if not found and any(c.isalnum() for c in text[start:end]):
                found = parse(_spell(front_end, text[start:end]), start, end)
            units += found
        return merge_pauses(units)


def _locate(text: str, tokens: list[Any]) -> Iterator[_Piece]:
    """Tokens -> pieces of ``text``: tokens keep the order of the text but not its exact white space."""
    at = 0
    for token in tokens:
        written = "".join(token.text.split())
        start = end = at = _skip_space(text, at)
        for char in written:
            end = _skip_space(text, end)
            if text[end : end + 1] != char:
                raise ValueError(f"{token.text!r} was not found at character {start} of the text that was phonemized.")
            end += 1
        at = end
        phonemes = token.phonemes or ""
        if not any(c.isalnum() for c in written) and not phonemes:
            phonemes = "".join(c for c in written if ALIASES.get(c, c) in (",", ".", "!", "?"))
        yield _Piece(start, end, phonemes, bool(token.whitespace))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _groups(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces written and read without a break form one word; punctuation stands alone."""
    group: list[_Piece] = []
    for piece in pieces:
        mark = bool(piece.phonemes) and not any(c.isalpha() for c in piece.phonemes)
        if mark and group:
            yield group
            group = []
        group.append(piece)
        if mark or piece.space_after:
            yield group
            group = []
    if group:
        yield group


def _spell(front_end: Any, word: str) -> str:
    """A word that has no reading is spelled letter by letter."""
    letters = [front_end(c.upper(), normalize_text=False) for c in word if c.isalnum()]
    if not any(letters):
        raise ValueError(f"no pronunciation was found for {word!r}; write it out in English letters.")
    return " ".join(letters)
