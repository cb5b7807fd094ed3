"""Trunks: packed rows, learning, accumulation, an objective that inserts positions, a kill, two processes, folders."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import config as settings
from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives.base import Inputs, Objective, Scoring
from speech_mtp.objectives.ntp import NTP
from speech_mtp.training.distributed import Workers
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.packed_rows import PackedRows
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig
from speech_mtp.types import Kind, LMOutput, Positions
from tests.cli.running import run as program
from tests.text_tiny import tiny_folder
from tests.training.test_resume import ROOT, curve, kill_after_a_checkpoint, one_thread  # noqa: F401
from tests.training.test_two_processes import launch
from tests.training.tiny_documents import counting_store, tiny_task

LOOP = LoopConfig(steps=60, learning_rate=1e-2, warmup=5, log_every=1, evaluate_every=25, save_every_s=0.1)


@pytest.fixture
def store(tmp_path: Path) -> DocumentStore:
    return counting_store(tmp_path / "documents")


# -- rows -----------------------------------------------------------------------------------------------------------
def test_rows_are_cut_from_the_stream_and_labels_stay_within_documents(store: DocumentStore) -> None:
    rows = PackedRows(store, "dev", 3, 10)
    tokens, starts = store.tokens("dev").tolist(), set(store.starts("dev").tolist())
    at = labelled = 0
    for batch in rows.in_order():
        assert batch.labels is not None
        for b in range(len(batch.tokens)):
            begin = at
            for t in range(10):
                here, label = int(batch.segment[b, t]), int(batch.labels[b, t, 0])
                if at >= len(tokens):
                    assert (here, label, int(batch.kind[b, t])) == (0, IGNORE, Kind.PAD)
                    continue
                assert int(batch.tokens[b, t]) == tokens[at]
                last = max((s for s in starts if s <= at), default=0)
                assert int(batch.index[b, t]) == at - max(last, begin)
                crosses = at + 1 in starts or at + 1 == len(tokens)
                assert label == (IGNORE if crosses else tokens[at + 1])
                new = t > 0 and at in starts
                assert t == 0 or here == int(batch.segment[b, t - 1]) + new
                labelled += label != IGNORE
                at += 1
    assert at == len(tokens)
    assert labelled == len(tokens) - len(starts)  # every token but the starts, once
    assert store.labels_per_byte("dev") == pytest.approx(labelled / store.manifest["dev"]["bytes"])


def test_some_rows_of_a_split_are_from_all_over_it(store: DocumentStore) -> None:
    rows = PackedRows(store, "train", 2, 8)
    every = [row for batch in rows.in_order() for row in batch.tokens[..., 0].tolist()]
    some = [row for batch in rows.in_order(5) for row in batch.tokens[..., 0].tolist()]
    assert some == [every[i * len(every) // 5] for i in range(5)]
    assert len([row for batch in rows.in_order(10_000) for row in batch.tokens]) == len(every)


def test_every_pass_reads_all_rows_in_another_order(store: DocumentStore) -> None:
    rows, again = (PackedRows(store, "train", 4, 32, seed=3) for _ in range(2))
    passes = []
    for epoch in range(2):
        found = [
            tuple(row) for n in range(len(rows)) for row in rows.batch(epoch * len(rows) + n).tokens[..., 0].tolist()
        ]
        assert len(set(found)) == len(found) == rows.num_rows // 4 * 4
        passes.append(found)
    assert set(passes[0]) != set(passes[1])  # cut at other places
    assert torch.equal(rows.batch(5).tokens, again.batch(5).tokens)


# -- training -------------------------------------------------------------------------------------------------------
def test_a_trunk_learns_to_count(store: DocumentStore, tmp_path: Path) -> None:
    task = tiny_task(store)
    before = task.evaluate()
    after = train(task, LOOP, tmp_path / "out")
    assert before["loss"] == pytest.approx(math.log(257), abs=0.3)
    assert after["loss"] < 0.8  # without a look at what stands before 1.84 is the least: half spaces, ten digits
    assert after["bits_per_byte"] == pytest.approx(after["loss"] * store.labels_per_byte("dev") / math.log(2))
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert {"loss", "next", "norm", "eta_s", "tokens_per_s"} <= lines[0].keys()
    steps = [line for line in lines if "eta_s" in line]
    # Both are of the same clock: tokens/s x ETA is what there is left to read.
    for line in steps[:-1]:
        left = line["tokens_per_s"] * line["eta_s"]
        assert left == pytest.approx(task.tokens_per_step * (LOOP.steps - line["step"]), rel=1e-6)
    assert lines[-1]["dev/bits_per_byte"] == after["bits_per_byte"]


def test_the_first_loss_is_that_of_transformers(store: DocumentStore, tmp_path: Path) -> None:
    task = tiny_task(store)
    task.export(tmp_path / "start")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    batch = task.train_data.batch(0)
    assert batch.labels is not None
    mask = (batch.segment[:, :, None] == batch.segment[:, None]).tril()[:, None]
    scores = theirs(input_ids=batch.tokens[..., 0], position_ids=batch.index, attention_mask=mask).logits
    loss = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
    assert task.backward(batch, 1.0)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for name, weight in theirs.named_parameters():
        ours = task.lm.get_parameter(name)
        torch.testing.assert_close(ours.grad, weight.grad, atol=1e-6, rtol=1e-3)


def test_parts_of_a_step_are_one_larger_batch(tmp_path: Path) -> None:
    store = counting_store(tmp_path / "long", count=10, size=600)
    parts, whole = tiny_task(store, accumulate=2, batch=2), tiny_task(store, batch=4)
    assert parts.tokens_per_step == whole.tokens_per_step == 128
    batches = [parts.train_data.batch(number) for number in (0, 1)]
    joined = {
        name: torch.cat([value, vars(batches[1])[name]])
        for name, value in vars(batches[0]).items()
        if isinstance(value, Tensor)
    }
    sizes = {int((batch.labels != IGNORE).sum()) for batch in batches if batch.labels is not None}
    assert len(sizes) == 1, "the mean of means is the mean where every part has as many labels"
    for batch in batches:
        parts.backward(batch, 0.5)
    whole.backward(replace(batches[0], **joined), 1.0)
    for ours, theirs in zip(parts.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-3)


def test_mixed_precision_takes_the_same_way(store: DocumentStore) -> None:
    plain, mixed = tiny_task(store), tiny_task(store, amp=True)
    for number in range(3):
        assert mixed.step(number, 1e-3)["loss"] == pytest.approx(plain.step(number, 1e-3)["loss"], rel=0.02)
    assert {p.dtype for p in mixed.lm.parameters()} == {torch.float32}


def test_weights_decay_in_matrices_alone(store: DocumentStore) -> None:
    matrices, vectors = tiny_task(store, weight_decay=0.3).optimizers["trunk"].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}


# -- an objective of another kind -------------------------------------------------------------------------------------
class Registers(Objective, nn.Module):
    """A learnt position after each token, which no token sees, predicts what the token predicts."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.vector = nn.Parameter(torch.zeros(32))

    def prepare(self, lm: CausalLM, positions: Positions) -> Inputs:
        x = lm.embed(positions.tokens[..., 0])
        vectors = torch.stack([x, self.vector.expand_as(x)], 2).flatten(1, 2)
        twice = {
            name: value.repeat_interleave(2, 1) for name, value in vars(positions).items() if isinstance(value, Tensor)
        }
        twice["kind"][:, 1::2] = Kind.REGISTER
        segment = twice["segment"]

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (segment[row, query] == segment[row, key]) & (key <= query) & ((key % 2 == 0) | (key == query))

        return Inputs(replace(positions, **twice), sees, vectors)

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        for name, kind in (("next", Kind.TEXT), ("register", Kind.REGISTER)):
            labels = torch.where((positions.kind == kind)[..., None], positions.labels, IGNORE)
            ((_, term),) = NTP().terms(lm, out, replace(positions, labels=labels))
            yield name, term


def test_an_objective_may_insert_positions_that_tokens_do_not_see(store: DocumentStore, tmp_path: Path) -> None:
    objective = Registers()
    ours, plain = tiny_task(store, objective=objective), tiny_task(store)
    assert ours.tokens_per_step == plain.tokens_per_step
    first = ours.step(0, 1e-2)
    assert first["next"] == pytest.approx(plain.step(0, 1e-2)["next"], rel=1e-5)
    assert first["loss"] == pytest.approx(first["next"] + first["register"])
    assert bool(objective.vector.abs().min() > 0), "the objective's own parameters are trained"
    train(ours, replace(LOOP, steps=4), tmp_path / "out")
    saved = load_file(tmp_path / "out/last/objective.safetensors")
    assert torch.equal(saved["vector"], objective.vector)
    ours.export(tmp_path / "export")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export").num_parameters() == sum(
        p.numel() for p in plain.lm.parameters()
    )


# -- a kill, and two processes ----------------------------------------------------------------------------------------
def main(folder: Path, out: str = "out", steps: int = 8) -> None:
    """What each process runs."""
    workers, loop = Workers(), replace(LOOP, steps=steps, evaluate_every=5)
    train(tiny_task(counting_store(folder / "documents"), workers, accumulate=2, batch=2), loop, folder / out, workers)


@pytest.mark.slow  # the same guarantee is tested on a cheaper task among the fast ones
@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    counting_store(tmp_path / "documents")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    code = f"from pathlib import Path; from {__name__} import main; main(Path({str(tmp_path)!r}), 'cut', 60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    kill_after_a_checkpoint(process, tmp_path / "cut")
    assert 0 < json.loads((tmp_path / "cut/last/state.json").read_text())["step"] < 60
    main(tmp_path, "cut", 60)
    main(tmp_path, "whole", 60)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "last/trunk.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow  # the same guarantee is tested on a cheaper task among the fast ones
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate (the extra 'train')")
def test_two_processes_are_one_with_twice_the_parts(tmp_path: Path) -> None:
    store = counting_store(tmp_path / "documents")
    launch(tmp_path, launcher=False, module=__name__)
    alone = tiny_task(store, accumulate=4, batch=2)
    train(alone, replace(LOOP, steps=8, evaluate_every=5), tmp_path / "one")
    two, one = curve(tmp_path / "out"), curve(tmp_path / "one")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    # Logged is the main process's part of a step; what is held out is measured with the same weights.
    held_out = [[line["dev/loss"] for line in lines if "dev/loss" in line] for lines in (two, one)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / "last/trunk.safetensors") for name in ("out", "one"))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-3)


# -- stages -----------------------------------------------------------------------------------------------------------
def recipe(tmp_path: Path, **more: Any) -> TrainConfig:
    values = {
        "kind": "trunk",
        "out": str(tmp_path / "out"),
        "documents": str(tmp_path / "documents"),
        "model": {"dim": 32, "num_layers": 2},
        "task": {"batch": 4, "length": 32},
        "loop": {"steps": 3, "learning_rate": 1e-3},
    }
    return TrainConfig.model_validate({"run": {**values, "device": "cpu", **more}})


def documents(tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "texts").mkdir(exist_ok=True)
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"the text {number} of a lazy dog. " * 5, "utf-8")
    source = {"name": "files", "paths": [f"{tmp_path}/texts/*.txt"]}
    values = {"kind": "documents", "out": str(tmp_path / "documents"), "sources": {"mine": source}}
    return run(TrainConfig.model_validate({"run": {**values, "dev_fraction": 0.2, **more}}))


def test_a_trunk_from_nothing_becomes_a_hugging_face_folder(tmp_path: Path) -> None:
    figures = documents(tmp_path)
    assert figures["train"]["documents"] + figures["dev"]["documents"] == 30
    scores = run(recipe(tmp_path))
    assert scores["bits_per_byte"] > 0
    exported = tmp_path / "out" / "export"
    model = AutoModelForCausalLM.from_pretrained(exported)
    trained = load_file(tmp_path / "out/last/trunk.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
    # The same key goes on with what the first training has made.
    more = run(recipe(tmp_path, out=str(tmp_path / "more"), model=str(exported)))
    assert more["loss"] < scores["loss"] + 0.05


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="needs the C\\+\\+ compiler"):
        run(recipe(tmp_path, task={"batch": 4, "length": 32, "compile": True}))


def test_a_llama_of_somebody_else_is_trained_further(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "llama")
    documents(tmp_path)
    with pytest.raises(ValueError, match=r"have another tokenizer than .*llama; make them with run\.tokenizer="):
        run(recipe(tmp_path, model=str(folder)))
    documents(tmp_path, tokenizer=str(folder))
    run(recipe(tmp_path, model=str(folder)))
    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, tmp_path / "out/export"))
    moved = [float((a - b).detach().abs().max()) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.02
    assert after.config.eos_token_id == before.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"task": {"batch": 500, "length": 32}}, r"gives \d+ rows of 32 tokens, and a step needs 500; give more text"),
        ({"task": {"length": 4096}}, "length is 4096, but the trunk reads 2048 tokens"),
        ({"task": {"accumulate": 0}}, r"task\.accumulate is 0; it must be 1 or more"),
        ({"objective": {"name": "ntpp"}}, "no 'ntpp' in objectives; did you mean 'ntp'"),
        ({"model": "nowhere/at/all"}, "neither a folder nor a hub id"),
    ],
)
def test_bad_input_is_one_sentence_before_any_training(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    documents(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(recipe(tmp_path, **more))
    assert not (tmp_path / "out").exists()


def test_speed_is_compared_with_the_same_training_in_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents(tmp_path)
    path = tmp_path / "trunk.yaml"
    settings.dump(recipe(tmp_path, task={"batch": 4, "length": 32, "amp": False}), path)
    assert program(monkeypatch, "bench", "trunk", str(path), "--steps", "3", "--json", str(tmp_path / "s.json")) == 0
    report = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert report["first_loss"]["ours"] == pytest.approx(report["first_loss"]["transformers"], rel=1e-5)
    assert report["ratio"]["least"] <= report["ratio"]["median"] <= report["ratio"]["most"]
    assert min(report["tokens_per_s"].values()) > 0
    wrong = str(ROOT / "recipes/objectives/documents.yaml")
    assert program(monkeypatch, "bench", "trunk", wrong, "--json", str(tmp_path / "s.json")) == 2


def test_missing_documents_and_wrong_sizes_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.documents\); run speech-mtp train recipes/objectives/"):
        run(recipe(tmp_path))
    path = tmp_path / "wrong.yaml"
    base = Path(__file__).parents[2] / "recipes/objectives/trunk.yaml"
    path.write_text(f"base: {base}\nrun: {{model: {{layers: 3}}}}\n", "utf-8")
    with pytest.raises(ValueError, match=r"no setting 'run\..*layers'; did you mean 'num_layers'"):
        settings.load(path, TrainConfig)
