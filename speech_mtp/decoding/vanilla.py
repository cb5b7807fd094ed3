"""Plain decoding: the draft of size one."""

from __future__ import annotations

from typing import Any

from speech_mtp.decoding.base import DecodingRule, plain
from speech_mtp.decoding.laws import Law
from speech_mtp.types import Draft


class Vanilla(DecodingRule):
    """Drafts nothing but the committed position, keeps it, and draws the next one."""

    def propose(self, rows: Any, law: Law) -> Draft:
        return plain(rows)
