"""The voice service: an engine's thread behind asyncio, and the HTTP and WebSocket routes that reach it.

``engine`` owns the scheduler, ``speaking`` is one utterance on its way to one client, ``service`` hands out slots and
ties the two together; ``routes`` speak the protocols, ``app`` puts them behind one door. Needs the extra ``serve``.
"""

from __future__ import annotations

from speech_mtp.plugins import require

PACKAGES = ("fastapi", "uvicorn", "websockets", "python_multipart", "prometheus_client", "av", "soundfile", "soxr")


def check_extra() -> None:
    """Raises :class:`speech_mtp.plugins.MissingExtra` where something of the extra ``serve`` is not installed."""
    for package in PACKAGES:
        require(package, "serve")
