"""Key-value caches of trunks: our own, and our own as the layers of ``transformers`` see it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache, ancestors_of, as_keyword

__all__ = ["HuggingFaceCache", "KVCache", "ancestors_of", "as_keyword", "growing_cache"]


class Written(Protocol):
    """Keys and values of all layers, ``keys`` among them, to which new ones are written."""

    keys: Tensor

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``[B, H, M, d]`` into one layer; returns all that may be seen there."""


class HuggingFaceCache:
    """A cache of our own as the attention layers of ``transformers`` write to a cache.

    They call ``update`` alone when the mask is four-dimensional and positions are given, so rows may have different
    lengths and a draft may be a tree: nothing of the library's own caches, which change between releases, is used.
    """

    def __init__(self, inner: Written) -> None:
        self.inner = inner

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *unused: object, **more: object
    ) -> tuple[Tensor, Tensor]:
        """Write ``[B, H, M, d]`` of one layer; returns all its keys and values ``[B, H, S, d]``."""
        dtype = self.inner.keys.dtype
        return self.inner.write(layer, keys.to(dtype), values.to(dtype))


def growing_cache(model: Any) -> Any:
    """An empty cache of the kind that ``transformers`` makes for ``model``."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
