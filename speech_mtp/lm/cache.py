"""Key-value caches of trunks: our own, and our own as the layers of ``transformers`` see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache, ancestors_of, as_keyword

__all__ = ["HuggingFaceCache", "KVCache", "ancestors_of", "as_keyword", "growing_cache"]


class HuggingFaceCache:
    """A :class:`KVCache` as the attention layers of ``transformers`` write to a cache.

    They call ``update`` alone when the mask is four-dimensional and positions are given, so rows may have different
    lengths and a draft may be a tree: nothing of the library's own caches, which change between releases, is used.
    """

    def __init__(self, inner: KVCache) -> None:
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
