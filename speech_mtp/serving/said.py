"""What spoken answers said, for as long as a later turn may refer to them by their id alone."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict

KEPT_S = 3600
MOST = 1024


class Said:
    """Texts by id; each belongs to one client. The oldest go first when there are too many."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, tuple[str, str, int]] = OrderedDict()

    @staticmethod
    def new_id() -> tuple[str, int]:
        """An id, and until when it will be known (seconds since 1970)."""
        return f"audio_{uuid.uuid4().hex}", int(time.time()) + KEPT_S

    def keep(self, client: str, name: str, text: str, expires_at: int) -> None:
        """``name`` of ``client`` said ``text``."""
        self._texts[name] = (client, text, expires_at)
        if len(self._texts) > MOST:
            self._texts.popitem(last=False)

    def find(self, client: str, name: str) -> str | None:
        """What ``name`` said; None if ``client`` was told nothing of that name, or too long ago."""
        owner, text, expires_at = self._texts.get(name, ("", "", 0))
        return text if owner == client and time.time() < expires_at else None
