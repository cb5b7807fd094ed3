"""What a client asks for, checked -> how the engine shall speak it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from speech_mtp.lm.units import UnitMaker
from speech_mtp.serving.bodies import Speech
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.lexicon import Readings
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import Manner
from speech_mtp.streaming.takes import check_best_of
from speech_mtp.text.normalize import check_script, check_text


@dataclass(frozen=True)
class Order:
    """How to speak (``manner``) and how to write it down."""

    manner: Manner
    format: str
    speed: float
    readings: Readings | None


def order(service: VoiceService, client: str, speech: Speech, paced: bool) -> Order:
    """The order of ``speech`` for ``client``. Raises ApiError for names and settings that do not exist."""
    service.names.check_model(speech.model)
    settings = service.settings
    sampling = service.model.sampling
    if speech.seed is not None:
        sampling = replace(sampling, seed=speech.seed)
    if paced and speech.best_of > 1:
        message = "best_of is for whole files, as a listener would wait between its sentences; leave it out."
        raise ApiError(400, message, "best_of")
    try:
        check_best_of(service.model, speech.best_of)
    except ValueError as error:
        raise ApiError(400, str(error), "best_of") from None
    manner = Manner(
        service.voice(client, speech.voice_name),
        sampling,
        ahead_s=settings.ahead_s if paced else inf,
        speed=speech.speed,
        backlog_s=settings.backlog_s,
        best_of=speech.best_of,
    )
    return Order(manner, speech.response_format, speech.speed, _readings(service, speech))


def _readings(service: VoiceService, speech: Speech) -> Readings | None:
    if not speech.lexicon:
        return None
    if not isinstance(service.model.maker, UnitMaker):
        raise ApiError(400, "This model reads letters, not phonemes; leave the lexicon out.", "lexicon")
    try:
        return Readings(speech.lexicon)
    except ValueError as error:
        raise ApiError(400, str(error), "lexicon") from None


def whole_text(service: VoiceService, text: str, readings: Readings | None, param: str = "input") -> str:
    """A text that can be spoken, its own readings written in. Raises ApiError 400 otherwise."""
    most = service.settings.max_input
    if len(text) > most:
        raise ApiError(400, f"The text has {len(text)} characters, more than the {most} allowed; split it.", param)
    try:
        check_text(text, most)
        check_script(text)
    except ValueError as error:
        raise ApiError(400, str(error), param) from None
    return readings.whole(text) if readings is not None else text
