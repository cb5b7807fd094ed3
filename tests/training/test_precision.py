"""Mixed precision is used where it was asked for or, if nothing was said, where it is faster."""

from __future__ import annotations

import pytest
import torch

from speech_mtp.training import precision
from speech_mtp.training.precision import bf16_pays, mixed

CPU = torch.device("cpu")


@pytest.mark.parametrize(("seconds", "pays"), [((1.0, 2.0), True), ((2.0, 1.0), False)])
def test_it_follows_what_is_faster(seconds: tuple[float, float], pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    took = {torch.bfloat16: seconds[0], torch.float32: seconds[1]}
    monkeypatch.setattr(precision, "_seconds", took.__getitem__)
    bf16_pays.cache_clear()
    assert bf16_pays(CPU) is pays
    a = torch.ones(2, 2)
    for wanted, expected in ((None, pays), (True, True), (False, False)):
        with mixed(wanted, CPU):
            assert ((a @ a).dtype is torch.bfloat16) is expected
    bf16_pays.cache_clear()


def test_a_gpu_has_it() -> None:
    assert bf16_pays(torch.device("cuda"))
