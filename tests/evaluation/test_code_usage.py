from __future__ import annotations

import pytest
import torch

from speech_mtp.evaluation.code_usage import code_usage, count_codes
from speech_mtp.types import Codes


def test_padding_is_not_counted_and_batches_add_up() -> None:
    frames = torch.tensor([[[1, 1, 2, 0], [3, 4, 3, 0]], [[2, 0, 0, 0], [4, 0, 0, 0]]])  # [2, 2, 4]
    codes = Codes(frames=frames, timbre=None, lengths=torch.tensor([3, 1]))
    first, second = count_codes(codes, (4, 5))
    assert first.tolist() == [0, 2, 2, 0]
    assert second.tolist() == [0, 0, 0, 2, 2]
    assert code_usage(first + first).perplexity == pytest.approx(2.0)
    assert code_usage(first).fraction == 0.5


def test_uniform_use_has_full_perplexity() -> None:
    usage = code_usage(torch.full((200,), 7))
    assert usage.fraction == 1.0
    assert usage.perplexity == pytest.approx(200.0)


def test_nothing_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no frame"):
        code_usage(torch.zeros(4))
