"""Units that are encoded as they come equal those that are encoded at once, to the last bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from speech_mtp.lm import embeddings
from speech_mtp.lm.embeddings import BLOCK, EncodedUnits, UnitEncoder
from speech_mtp.lm.units import UnitMaker, UnitStream
from speech_mtp.types import TextUnits
from tests.lm.tiny import Letters, tiny_backbone

DIM = 24


def encoder() -> UnitEncoder:
    torch.manual_seed(1)
    return UnitEncoder(200, DIM, 12).eval()


def random_units(count: int, tokens: int, rows: int = 1) -> TextUnits:
    """Units with tokens that never decrease."""
    torch.manual_seed(count)
    return TextUnits(
        phoneme=torch.randint(200, (rows, count)),
        stress=torch.randint(3, (rows, count)),
        word_start=torch.randint(2, (rows, count)),
        token=torch.randint(tokens, (rows, count)).sort(1).values,
        lengths=torch.full((rows,), count),
        hidden=torch.randn(rows, tokens, DIM),
        complete=torch.zeros(rows, dtype=torch.bool),
    )


def first(units: TextUnits, count: int) -> TextUnits:
    """The first ``count`` units, with the states that they need."""
    tokens = int(units.token[:, :count].max()) + 1 if count else 0
    cut = {name: getattr(units, name)[:, :count] for name in ("phoneme", "stress", "word_start", "token")}
    return replace(units, **cut, hidden=units.hidden[:, :tokens], lengths=torch.full_like(units.lengths, count))


@pytest.mark.parametrize("seed", range(20))
def test_any_growth_gives_the_same_rows(seed: int) -> None:
    rng = random.Random(seed)
    units, one = random_units(rng.randint(1, 90), rng.randint(1, 70)), encoder()
    encoded, count = EncodedUnits(one), 0
    while count < int(units.lengths[0]):
        count = min(count + rng.choice([0, 1, 2, 7, BLOCK, 3 * BLOCK]), int(units.lengths[0]))
        now = first(units, count)
        assert torch.equal(encoded.extend(now), one.in_blocks(now)[0])
        assert torch.equal(encoded.rows, one.in_blocks(units)[0, :count])


def test_only_what_is_new_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    units, one = random_units(80, 75), encoder()
    encoded = EncodedUnits(one)
    encoded.extend(first(units, 70))
    rows: list[int] = []
    blocks = embeddings._blocks
    monkeypatch.setattr(embeddings, "_blocks", lambda x: rows.append(len(x)) or blocks(x))
    encoded.extend(first(units, 72))
    states, identity, joined = rows
    assert identity == 72 - 70 // BLOCK * BLOCK
    assert joined == BLOCK
    assert states < 2 * BLOCK


def test_units_of_a_stream_grow_by_what_is_new_and_encode_as_the_whole() -> None:
    maker, one = UnitMaker(tiny_backbone(), Letters()), UnitEncoder(200, 16, 12).eval()
    stream, encoded = UnitStream(maker), EncodedUnits(one)
    for i, word in enumerate(("the quick brown fox doesn't jump over it, " * 4).split()):
        stream.push(" " * (i > 0) + word)
        while stream.advance():
            now = stream.units
            assert torch.equal(encoded.extend(now), one.in_blocks(now)[0])
    stream.finish()
    while stream.advance():
        continue
    last = stream.units
    assert len(encoded.extend(last)) == int(last.lengths[0]) > 4 * BLOCK
    assert torch.equal(encoded.rows, one.in_blocks(last)[0])
    assert last.phoneme.dtype == last.token.dtype == last.lengths.dtype == torch.long
    assert stream.units.phoneme.data_ptr() == last.phoneme.data_ptr(), "nothing is built anew"
