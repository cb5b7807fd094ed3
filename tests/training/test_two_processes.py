"""Two processes under ``accelerate launch`` train the model that one process trains with twice the batch."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speech_mtp.training import distributed
from speech_mtp.training.base import Task
from speech_mtp.training.distributed import Workers
from speech_mtp.training.loop import LoopConfig, train

ROOT = Path(__file__).parents[2]
STEPS = 8


class Curve(Task):
    """Fits a curve to eight points a process; ``joined`` draws the points that so many processes draw together."""

    def __init__(self, workers: Workers, joined: int = 1) -> None:
        torch.manual_seed(workers.rank)  # as unlike as can be: the loop must give all of them the same start
        self.workers, self.joined = workers, joined
        self.modules = {"curve": nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))}
        self.modules["curve"][1].eval()  # statistics of a batch would depend on how it is divided
        self.unused = nn.Parameter(torch.ones(2))
        self.parameters = [*self.modules["curve"].parameters(), self.unused]
        self.optimizers = {"curve": torch.optim.AdamW(self.parameters)}

    def points(self, number: int) -> torch.Tensor:
        return torch.randn(8, 3, generator=torch.Generator().manual_seed(number))

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        first = self.workers.batch_number(number) * self.joined
        x = torch.cat([self.points(first + i) for i in range(self.joined)])
        loss = (self.modules["curve"](x)[:, 0] - x.square().sum(1)).square().mean()
        optimizer = self.optimizers["curve"]
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.zero_grad()
        loss.backward()
        self.workers.average_gradients(self.parameters)
        optimizer.step()
        return {"loss": float(loss.detach())}

    def evaluate(self) -> dict[str, float]:
        return {"weight": float(self.modules["curve"][0].weight.detach().sum())}

    def export(self, folder: Path) -> None:
        raise AssertionError("not called by the loop")


def config(max_time_s: float | None = None) -> LoopConfig:
    return LoopConfig(steps=STEPS, learning_rate=0.02, warmup=2, log_every=1, evaluate_every=4, max_time_s=max_time_s)


def main(folder: Path) -> None:
    """What each of the two processes runs: one step a call by the main process's clock, then the rest in one go."""
    workers = Workers()
    for _ in range(3):
        train(Curve(workers), config(0.0 if workers.main else 1e9), folder, workers)
        assert json.loads((folder / "last" / "state.json").read_text())["step"] < STEPS
    scores = train(Curve(workers), config(), folder, workers)
    (folder / f"process{workers.rank}.json").write_text(json.dumps([workers.count, scores]))


def launch(folder: Path, launcher: bool, module: str = __name__) -> None:
    """Start ``main(folder)`` of ``module`` twice by ``accelerate launch``, or as it would start them, which spares a
    third process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = folder / "train.py"
    script.write_text(f"from pathlib import Path\nfrom {module} import main\nmain(Path({str(folder)!r}))\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command, environments = [sys.executable, str(script)], [environment]
    if launcher:
        options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script)]
    else:
        peers = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        environments = [{**peers, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    output = folder / "output.txt"
    with output.open("w") as file:
        started = [subprocess.Popen(command, cwd=ROOT, env=e, stdout=file, stderr=file) for e in environments]
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * len(started), output.read_text()


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate (the extra 'train')")
@pytest.mark.parametrize("launcher", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, launcher: bool) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    launch(two, launcher)
    alone = train(Curve(Workers(), joined=2), config(), one)
    reports = [json.loads((two / f"process{rank}.json").read_text()) for rank in range(2)]
    assert [count for count, _ in reports] == [2, 2]
    assert reports[0] == reports[1], "the two processes must hold the same model"
    assert reports[0][1]["weight"] == pytest.approx(alone["weight"], abs=1e-5)
    ours, theirs = (load_file(folder / "last" / "curve.safetensors") for folder in (two, one))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-5)
    half = train(Curve(Workers()), config(), tmp_path / "half")
    assert half["weight"] != pytest.approx(alone["weight"], abs=1e-3), "the second process's points must count"
    steps = [json.loads(line) for line in (two / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(STEPS)), "one process writes the log"


def test_gradients_are_means_and_a_missing_one_counts_as_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam does not see the scale of a gradient, clipping and the norm in the log do."""
    workers = Workers()
    workers.count = 2
    here, missing = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    here.grad = torch.tensor([2.0, 4.0])
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda flat: flat.add_(torch.tensor([4.0, 0.0, 6.0])))
    workers.average_gradients([here, missing])
    assert missing.grad is not None
    assert [here.grad.tolist(), missing.grad.tolist()] == [[3.0, 2.0], [3.0]]
