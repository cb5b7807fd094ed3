from __future__ import annotations

import pytest

from speech_mtp.evaluation.latency import delays, real_time_factor


def test_percentiles_interpolate_between_ranks() -> None:
    summary = delays([float(ms) for ms in range(101)])
    assert (summary.p50, summary.p95, summary.worst) == (50.0, 95.0, 100.0)
    assert delays([1.0, 2.0]).p50 == 1.5


def test_real_time_factor() -> None:
    assert real_time_factor(0.5, 2.0) == 0.25
    with pytest.raises(ValueError, match="needs some"):
        real_time_factor(1.0, 0.0)
    with pytest.raises(ValueError, match="no delay"):
        delays([])
