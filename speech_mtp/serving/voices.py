"""Voices that clients have made of recordings, and the consents of who was recorded.

Both belong to the key that made them: others neither see nor use them. Without keys everybody has everything in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from speech_mtp.codecs.base import Codec
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.sound_in import Samples
from speech_mtp.voices.reference import LEAST_LEVEL, UnusableRecordingError
from speech_mtp.voices.saved import EVERYBODY, NameTakenError, SavedVoices
from speech_mtp.voices.shelf import Capacity, FullShelfError, Record, Shelf

MOST_SECONDS = 60.0
"""Of the recording of a voice, or of a consent."""
LEAST_SECONDS = 1.0
"""Of a consent."""
CONSENT_RATE = 16_000
OF_A_KEY = "key "
"""How the door calls clients that have one."""


def owner_of(client: str) -> str:
    """Whose the things are that ``client``, as the door calls it, leaves here."""
    return client if client.startswith(OF_A_KEY) else EVERYBODY


class ClientVoices(SavedVoices):
    """What lies in ``folder`` for ``codec``: voices, and consents."""

    def __init__(self, folder: Path, codec: Codec, capacity: Capacity) -> None:
        super().__init__(folder, codec, capacity)
        self.consents = Shelf(folder / "consents", "cons", capacity)

    def consent(self, owner: str, name: str, language: str, samples: Samples) -> Record:
        """The consent that is spoken in ``samples [S]`` at :data:`CONSENT_RATE`. Raises ApiError 400."""
        if len(samples) < LEAST_SECONDS * CONSENT_RATE:
            message = f"The recording is shorter than {LEAST_SECONDS:g} second; send more of it."
            raise ApiError(400, message, "recording")
        if np.abs(samples).max() < LEAST_LEVEL:
            raise ApiError(400, "The recording is silent; send one with a voice in it.", "recording")
        levels = torch.from_numpy(np.rint(samples * 32767).astype(np.int16))
        with refusing():
            return self.consents.add(owner, name, {"language": language}, levels)


@contextmanager
def refusing() -> Iterator[None]:
    """What makes no voice, or cannot be kept, is told to the client: ApiError 400."""
    try:
        yield
    except UnusableRecordingError as error:
        raise ApiError(400, str(error), "audio_sample") from None
    except NameTakenError:
        raise name_taken() from None
    except FullShelfError as error:
        raise ApiError(400, str(error), code="limit_reached") from None


def name_taken() -> ApiError:
    """What whoever wants a name is told that a voice has already."""
    return ApiError(400, "A voice of this name is there already; choose another name.", "name", "name_taken")
