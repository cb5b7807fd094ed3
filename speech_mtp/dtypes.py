"""What the names of a ``dtype`` mean, on the command line and in recipes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Torch's name of the dtype, whether decoding is invariant, and in what blocks (:mod:`speech_mtp.nn.blocks`) the
    weights of products are kept."""

    dtype: str
    invariant: bool = False
    blocks: str | None = None


DTYPES = {
    "fp32": Precision("float32"),
    "bf16": Precision("bfloat16"),
    "bf16-invariant": Precision("bfloat16", invariant=True),
    "q4": Precision("float32", invariant=True, blocks="q4"),
    "int8": Precision("float32", invariant=True, blocks="q8"),
}
"""The text of the last three is the same whatever drafts it. ``bf16-invariant`` is slower and its cache has twice the
size; ``q4`` and ``int8`` keep weights in 4 and 8 bits, which is faster."""
