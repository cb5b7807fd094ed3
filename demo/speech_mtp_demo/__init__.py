"""The demo: one web page on the voice service, at ``/demo`` (extra ``demo``; ``speech-mtp demo``).

:func:`mount` adds it to an app of :func:`speech_mtp.serving.app.create_app`. The page talks to that server only: to the
API as any other client does, and to three helpers in Python for what the API does not offer. It knows no model by name.
"""

from __future__ import annotations

from speech_mtp_demo.mounting import mount

__all__ = ["mount"]
