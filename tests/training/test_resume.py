"""A training killed without warning goes on to the same losses and the same weights as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speech_mtp.corpus.codes import CodeCorpus, CodeRow, load_codes, save_codes
from speech_mtp.lm.units import UnitMaker
from speech_mtp.text.phonemes import parse, render
from speech_mtp.training.lm import LMTask, LMTaskConfig, UnitStore, write_units
from speech_mtp.training.loop import LoopConfig, train
from tests.lm.tiny import Letters, tiny_backbone
from tests.tiny import tiny_lm

ROOT = Path(__file__).parents[2]
TEXTS = ["hello there.", "the quick brown fox jumps.", "good morning", "it is a lazy dog."]
DEV_TEXT = "a dog jumps over the fox."
LOOP = LoopConfig(steps=40, learning_rate=3e-3, warmup=5, log_every=1, evaluate_every=15, save_every_s=0.2)


def write_corpus(folder: Path) -> None:
    """Eleven utterances of random codes, and their units."""
    maker = UnitMaker(tiny_backbone(), Letters())
    texts = [*TEXTS, DEV_TEXT]
    write_units(folder / "units", [(texts, maker.make(texts))])
    rng = torch.Generator().manual_seed(0)
    rows, frames, unit, total = [], [], [], 0
    for i in range(11):
        text = DEV_TEXT if i == 10 else TEXTS[i % 4]
        phonemes = render(Letters().phonemize(text))
        n = 3 * len(parse(phonemes))
        rows.append(CodeRow(f"{i}", "low", text, phonemes, "dev" if i == 10 else "train", total, n))
        frames.append(torch.stack([torch.randint(0, size, (n,), generator=rng) for size in (1000, 200)]))
        unit.append(torch.arange(n) // 3)
        total += n
    timbre = torch.randn(11, 8, generator=rng)
    save_codes(CodeCorpus(rows, torch.cat(frames, 1), torch.cat(unit), timbre), folder / "codes")


def main(corpus: Path, out: Path) -> None:
    """What each process runs; the dropout and the noise make every step draw random numbers."""
    task = LMTask(
        tiny_lm(dropout=0.1),
        load_codes(corpus / "codes"),
        UnitStore(corpus / "units"),
        LMTaskConfig(batch=3),
        torch.device("cpu"),
    )
    train(task, LOOP, out)


def started(corpus: Path, out: Path) -> subprocess.Popen[bytes]:
    code = f"from pathlib import Path; from {__name__} import main; main(Path({str(corpus)!r}), Path({str(out)!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of the other process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curve(folder: Path) -> list[dict[str, float]]:
    """The log without its clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("eta_s", "tokens_per_s", "cpu_s")} for line in lines]


def kill_after_a_checkpoint(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Kills in mid-run, some steps behind the last checkpoint; returns how many lines had been logged."""
    log, limit = folder / "log.jsonl", time.monotonic() + 300
    while time.monotonic() < limit and process.poll() is None:
        lines = log.read_text().count("\n") if log.exists() else 0
        if lines >= 8 and (folder / "last" / "state.json").exists():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, "the training must die in its middle"
    return log.read_text().count("\n")


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    logged = kill_after_a_checkpoint(started(tmp_path, cut), cut)
    saved = json.loads((cut / "last" / "state.json").read_text())["step"]
    assert 0 < saved < LOOP.steps
    main(tmp_path, cut)
    main(tmp_path, whole)
    assert 8 <= logged < len(curve(whole))
    assert curve(cut) == curve(whole)
    assert [line["step"] for line in curve(cut) if "loss" in line] == list(range(LOOP.steps))
    names = sorted(path.name for path in (whole / "last").glob("*.safetensors"))
    assert names == ["lm.optimizer.safetensors", "lm.safetensors"]
    for name in names:
        ours, theirs = load_file(cut / "last" / name), load_file(whole / "last" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
