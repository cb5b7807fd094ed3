"""A text that arrives in pieces is spoken as the whole text: the shipped model on held-out sentences."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speech_mtp import hub
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.feed import joined, pieces_of, sentences
from speech_mtp.streaming.pipeline import speak

DEV = Path(__file__).parents[2] / "recipes/corpus/dev_sentences.txt"
SENTENCES = DEV.read_text(encoding="utf-8").splitlines()
PAIRS = Path(__file__).parents[1] / "text/spoken_pairs.tsv"
WRITTEN = [line.split("\t")[0].replace("\\n", "\n") for line in PAIRS.read_text("utf-8").splitlines()[1:]]
MARKED = [
    "Steps:\nI. Top\n  A. Sub\n  B. More\nII. Next\n\nA. Lincoln was here.\nI. Asimov too.\na. Wash\nb. Dry",
    "He said no. 5 people left. Foo Inc. (NYSE: FOO) rose. 5! = 120 is it! (I think.) No. 5 is alive.",
    "A pre-[Kokoro](/kˈOkəɹO/)-based [talk](/tˈɔk/)s, x**2 + 2**3.",
    "Part I think, Henry Tudor I spoke on the 5th of May, Roe v. Wade, rock n' roll.",
]


def long_texts(count: int) -> list[str]:
    """Texts of about 600 characters."""
    rng = random.Random(3)
    texts = []
    for _ in range(count):
        text = rng.choice(SENTENCES)
        while len(text) < 600:
            text += " " + rng.choice(SENTENCES)
        texts.append(text)
    return texts


def cut(text: str, rng: random.Random) -> Iterator[str]:
    """``text`` in up to forty pieces."""
    places = sorted(rng.sample(range(1, len(text)), min(len(text) - 1, rng.randint(1, 40))))
    return (text[a:b] for a, b in itertools.pairwise([0, *places, len(text)]))


def test_the_sentences_are_the_same() -> None:
    rng = random.Random(1)
    for text in SENTENCES + long_texts(200) + WRITTEN + MARKED:
        assert list(joined(pieces_of(cut(text, rng)))) == sentences(text)


def test_the_sentences_are_the_same_letter_by_letter() -> None:
    for text in WRITTEN + MARKED:
        assert list(joined(pieces_of(text))) == sentences(text)


def test_texts_in_random_order_give_the_same_sentences() -> None:
    rng = random.Random(5)
    for _ in range(200):
        text = rng.choice(" \n").join(rng.choices(WRITTEN + MARKED, k=8))
        assert list(joined(pieces_of(cut(text, rng)))) == sentences(text)


@cache
def shipped() -> SpeechModel:
    model: SpeechModel = hub.load()
    return model


def spoken(text: str | Iterator[str]) -> tuple[Tensor, Tensor]:
    """The frames ``[1, K, F]`` that reach the codec, and the sound ``[S]``."""
    model, pushed = shipped(), []
    push = model.codec.push
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.codec, "push", lambda s, f, n: pushed.append(f) or push(s, f, n))
        wave = torch.cat([chunk.wave for chunk in speak(model, text)])
    return torch.cat(pushed, -1), wave


@pytest.mark.slow  # some twenty minutes of one core
@pytest.mark.parametrize("texts", [SENTENCES, long_texts(200)], ids=["sentences", "long"])
def test_the_codes_and_the_sound_are_the_same(texts: list[str]) -> None:
    rng = random.Random(2)
    for text in texts:
        (codes, wave), (late_codes, late_wave) = spoken(text), spoken(cut(text, rng))
        assert torch.equal(codes, late_codes), text
        torch.testing.assert_close(late_wave, wave, atol=1e-4, rtol=0)


def test_the_codes_are_the_same_for_some() -> None:
    rng = random.Random(4)
    for text in [*SENTENCES[::120], long_texts(1)[0]]:
        assert torch.equal(spoken(text)[0], spoken(cut(text, rng))[0]), text
