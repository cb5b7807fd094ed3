"""Output layers by name: ``linear``, ``mlp``, ``depth`` (:mod:`speech_mtp.lm.output`), and ``known``, which draws only
groups that exist (:mod:`speech_mtp.lm.known_groups`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from speech_mtp.lm.known_groups import Known
from speech_mtp.lm.output import Depth, OutputLayer, Parallel

KINDS: dict[str, Callable[[int, tuple[int, ...]], OutputLayer]] = {
    "linear": Parallel,
    "mlp": partial(Parallel, mlp=True),
    "depth": Depth,
    "known": Known,
}


def build_output(kind: str, dim: int, channel_sizes: tuple[int, ...]) -> OutputLayer:
    """The layer ``kind`` of a trunk of ``dim``. Raises ValueError for one that there is not."""
    if kind not in KINDS:
        raise ValueError(f"output is {kind!r}; it must be one of {', '.join(KINDS)}.")
    return KINDS[kind](dim, channel_sizes)
