"""Under which name a module is given its cache: the one that its own forward knows."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from speech_mtp.nn.kv_cache import as_keyword


class Newer(nn.Module):
    def forward(self, cache: Any = None, **more: Any) -> Any:
        assert not more
        return cache


class Older(nn.Module):
    def forward(self, past_key_values: Any = None, **more: Any) -> Any:
        assert not more
        return past_key_values


@pytest.mark.parametrize("kind", [Newer, Older])
def test_a_module_is_given_its_cache_by_the_name_that_it_knows(kind: type[nn.Module]) -> None:
    module, kept = kind(), object()
    assert module(**as_keyword(module, kept)) is kept
    assert module(**as_keyword(module, None)) is None
