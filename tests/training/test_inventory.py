"""An inventory finds an utterance by a part of its text: ids by hand, learnt in a moment, saved and found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_mtp import hub
from speech_mtp.corpus.codes import CodeCorpus, CodeRow
from speech_mtp.lm.inventory import Inventory, InventoryConfig
from speech_mtp.nn.code_graph import Search, neighbours, product_ids
from speech_mtp.training.inventory import InventoryTask, InventoryTaskConfig, items_of
from speech_mtp.training.lm import UnitStore, write_units
from speech_mtp.types import TextUnits

DIM, ITEMS = 24, 60
CONFIG = InventoryConfig(DIM, digits=6, size=12, width=32, edges=8)


def test_ids_are_the_nearest_means_of_slices() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    x = centres[torch.randint(2, (200,), generator=rng)] + 0.1 * torch.randn(200, 2, generator=rng)
    ids = product_ids(x, 2, 2)
    assert ids.shape == (200, 2)
    for digit in ids.T:
        high = digit[x[:, 0] > 4].unique()
        low = digit[x[:, 0] < 4].unique()
        assert len(high) == len(low) == 1
        assert int(high) != int(low)
    with pytest.raises(ValueError, match="no 3 digits"):
        product_ids(x, 3, 2)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> UnitStore:
    """Texts of eight tokens; all tokens of a text lie around a place of its own."""
    folder = tmp_path_factory.mktemp("units")
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(ITEMS, 1, DIM, generator=rng) + 0.3 * torch.randn(ITEMS, 8, DIM, generator=rng)
    token = torch.arange(8).expand(ITEMS, -1)
    lengths = torch.full((ITEMS,), 8)
    made = TextUnits(token, token, token, token, lengths, hidden, lengths > 0)
    write_units(folder, [([f"text {i}" for i in range(ITEMS)], made)])
    return UnitStore(folder)


def corpus() -> CodeCorpus:
    rows = [CodeRow(f"{voice}{i}", voice, f"text {i}", "a", "train", 0, 0) for i in range(ITEMS) for voice in "ba"]
    rows += [CodeRow("a-again", "a", "text 0", "a", "train", 0, 0), CodeRow("a-other", "a", "untold", "a", "dev", 0, 0)]
    made = CodeCorpus.__new__(CodeCorpus)
    made.rows = rows
    return made


def task_of(units: UnitStore, **settings: Any) -> InventoryTask:
    items = items_of(corpus(), units, "a")
    return InventoryTask(CONFIG, items, units, InventoryTaskConfig(batch=32, **settings), torch.device("cpu"))


def test_the_items_are_those_of_a_voice_with_states(units: UnitStore) -> None:
    assert items_of(corpus(), units, "b")[:2] == [("b0", "text 0"), ("b1", "text 1")]
    assert items_of(corpus(), units, None)[0] == ("a0", "text 0")
    assert len(items_of(corpus(), units, "a")) == ITEMS
    with pytest.raises(ValueError, match="No utterance of 'c' has stored states; the corpus has a, b"):
        items_of(corpus(), units, "c")


def test_parts_of_texts_find_their_utterance(units: UnitStore, tmp_path: Path) -> None:
    task = task_of(units)
    before = task.evaluate()
    for number in range(60):
        task.step(number, 1e-2)
    after = task.evaluate()
    assert before["first_of_all"] < 0.3
    assert after["first_of_all"] > 0.9
    assert after["first"] > 0.9
    assert after["ten"] >= after["first"]
    for number in range(60, 70):
        task.step(number, 1e-2)
    task.export(tmp_path)
    again = hub.load_inventory(tmp_path)
    learnt = [again.digits.vectors(c) for c in range(CONFIG.digits)]
    assert torch.equal(again.edges, neighbours(again.ids, learnt, CONFIG.edges).int())
    assert again.names == task.inventory.names
    vectors = torch.stack([units.states(f"text {i}")[:5].mean(0) for i in range(10)])
    found, scores = again.find(vectors)
    assert [again.names[i] for i in found[:, 0].tolist()] == [f"a{i}" for i in range(10)]
    assert torch.equal(scores, task.inventory.find(vectors)[1])


def test_the_loss_and_the_score_are_those_of_the_digits() -> None:
    torch.manual_seed(0)
    inventory = Inventory(CONFIG, [str(i) for i in range(ITEMS)])
    vectors = torch.randn(ITEMS, DIM)
    inventory.stock(vectors)
    inventory.link()
    laws = [law.log_softmax(-1) for law in inventory._scores(vectors[:3])]
    items, scores = inventory.find(vectors[:3], Search(beams=ITEMS))

    def total(row: int, item: int) -> Tensor:
        return torch.stack([laws[c][row, int(inventory.ids[item, c])] for c in range(CONFIG.digits)]).sum()

    for row in range(3):
        assert torch.allclose(scores[row, 0], total(row, int(items[row, 0])), atol=1e-5)
        assert torch.allclose(scores[row].max(), torch.stack([total(row, i) for i in range(ITEMS)]).max(), atol=1e-5)
    expected = -torch.stack([total(row, row) for row in range(3)]).mean() / CONFIG.digits
    assert torch.allclose(inventory.loss(vectors[:3], torch.arange(3)), expected, atol=1e-5)


def test_parts_are_runs_of_at_least_the_share(units: UnitStore) -> None:
    task = task_of(units, part=1.0)
    rng = np.random.default_rng(0)
    whole = torch.stack([units.states("text 3").mean(0)])
    assert torch.allclose(task.vectors(np.array([3]), rng), whole)
    runs = [units.states("text 3")[a:b].mean(0) for a in range(8) for b in range(a + 4, 9)]
    half = task_of(units, part=0.5).vectors(np.array([3] * 40), rng)
    apart = (half[:, None] - torch.stack(runs)).abs().amax(-1)
    assert float(apart.amin(1).max()) < 1e-4
    assert len(apart.argmin(1).unique()) > 5
    with pytest.raises(ValueError, match=r"task\.part is 0"):
        task_of(units, part=0.0)


def test_one_utterance_is_no_inventory() -> None:
    with pytest.raises(ValueError, match="two or more"):
        Inventory(CONFIG, ["only"])
