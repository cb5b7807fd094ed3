"""Numbers of threads: what is asked for, what the environment says, what the control group allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import speech_mtp
from speech_mtp import threads
from speech_mtp.threads import number_of_threads, processors, use_threads


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPEECH_MTP_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_processors_are_those_of_the_control_group(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert processors(tmp_path) == expected


def test_what_is_asked_goes_before_the_variable_and_that_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_of_threads(default=1) == 1
    assert number_of_threads() == processors() > 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert number_of_threads() == 1
    monkeypatch.setenv("SPEECH_MTP_THREADS", "3")
    assert number_of_threads(default=1) == 3
    assert number_of_threads(2, default=1) == 2
    for wrong in ("none", "0", "-1"):
        monkeypatch.setenv("SPEECH_MTP_THREADS", wrong)
        with pytest.raises(ValueError, match="number of threads"):
            number_of_threads()


def test_loading_a_speech_model_takes_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for asked, expected in ((None, 1), (2, 2)):
            use_threads(3)
            with pytest.raises(ValueError, match="There is no model"):
                speech_mtp.load(tmp_path / "nothing.here", threads=asked)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
