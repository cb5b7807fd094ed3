"""``/v1/audio/voices`` and ``/v1/audio/voice_consents``: voices of recordings, and the consents of who was recorded."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Query

from speech_mtp.serving.bodies import FORM_LIMITS, StrictRoute, multipart
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.forms import ConsentForm, ConsentName, VoiceForm, content
from speech_mtp.serving.routes.shared import Client, Service
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.sound_in import decode, refused_as
from speech_mtp.serving.voices import CONSENT_RATE, MOST_SECONDS, ClientVoices, name_taken, owner_of, refusing
from speech_mtp.voices.reference import remark
from speech_mtp.voices.shelf import Record

router = APIRouter(route_class=StrictRoute)
MOST_BYTES = 10 * 2**20


# -- voices -----------------------------------------------------------------------------------------------------------
@router.post("/v1/audio/voices", form_limits=FORM_LIMITS)
async def make_voice(body: Annotated[VoiceForm, multipart()], service: Service, client: Client) -> dict[str, Any]:
    """Make a voice of a recording."""
    voices, owner = service.check_voices(), owner_of(client)
    if service.names.knows_voice(body.name) or voices.find(owner, body.name) is not None:
        raise name_taken()
    consent = _consent(service, voices, owner, body.consent)
    data = await content(body.audio_sample, MOST_BYTES, "audio_sample")

    def make() -> Record:
        with refused_as("audio_sample"):
            samples = decode(data, voices.sample_rate, MOST_SECONDS)
        wave, notes = torch.from_numpy(samples), {"consent": consent}
        with refusing():
            return voices.make(owner, body.name, wave, voices.sample_rate, notes)

    voice = shape(await service.voice_maker.run(client, make))
    return {**voice, "success": True, "voice": voice, **_note(service)}


def _consent(service: VoiceService, voices: ClientVoices, owner: str, consent: str | None) -> str:
    """What is kept of a consent. Raises ApiError 400 for none, where one is needed, and for an unknown record."""
    consent = (consent or "").strip()
    if consent.startswith(f"{voices.consents.prefix}_") and voices.consents.find(owner, consent) is None:
        raise ApiError(400, "There is no such consent; record one first.", "consent", "consent_not_found")
    if not consent and service.settings.needs_consent:
        message = "A voice needs the consent of who was recorded: the id of a record of it, or who agreed, and when."
        raise ApiError(400, message, "consent", "consent_required")
    return consent


def shape(record: Record) -> dict[str, Any]:
    """``audio.voice``."""
    return {
        "id": record.id,
        "object": "audio.voice",
        "name": record.name,
        "created_at": record.created_at,
        "type": "audio_sample",
    }


def _note(service: VoiceService) -> dict[str, str]:
    said = remark(service.names.voices, service.model.voices_heard)
    return {"note": said} if said else {}


@router.delete("/v1/audio/voices/{voice_id}")
async def forget_voice(voice_id: str, service: Service, client: Client) -> dict[str, Any]:
    """Delete a voice, by its id or name."""
    record = service.check_voices().forget(owner_of(client), voice_id)
    if record is None:
        raise ApiError(404, "There is no such voice of yours.", "voice_id", "voice_not_found")
    return {"id": record.id, "object": "audio.voice.deleted", "deleted": True}


# -- consents ---------------------------------------------------------------------------------------------------------
@router.post("/v1/audio/voice_consents", form_limits=FORM_LIMITS)
async def make_consent(body: Annotated[ConsentForm, multipart()], service: Service, client: Client) -> dict[str, Any]:
    """Keep the recording of a consent."""
    voices = service.check_voices()
    data = await content(body.recording, MOST_BYTES, "recording")

    def keep() -> Record:
        with refused_as("recording"):
            samples = decode(data, CONSENT_RATE, MOST_SECONDS)
        return voices.consent(owner_of(client), body.name, body.language, samples)

    return _consent_shape(await service.voice_maker.run(client, keep))


@router.get("/v1/audio/voice_consents")
async def consents(
    service: Service,
    client: Client,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """A page of them, behind the one whose id is ``after``."""
    found = service.check_voices().consents.of(owner_of(client))
    if after is not None:
        ids = [record.id for record in found]
        if after not in ids:
            raise ApiError(400, "There is no such consent to go on behind.", "after", "consent_not_found")
        found = found[ids.index(after) + 1 :]
    page = [_consent_shape(record) for record in found[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(found) > limit}


@router.get("/v1/audio/voice_consents/{consent_id}")
async def one_consent(consent_id: str, service: Service, client: Client) -> dict[str, Any]:
    """One of them."""
    return _consent_shape(_found(service, client, consent_id))


@router.post("/v1/audio/voice_consents/{consent_id}")
async def rename_consent(consent_id: str, body: ConsentName, service: Service, client: Client) -> dict[str, Any]:
    """Give it another name."""
    found = _found(service, client, consent_id)
    renamed = await service.voice_maker.run(client, partial(service.check_voices().consents.rename, found, body.name))
    if renamed is None:
        raise _no_consent()
    return _consent_shape(renamed)


@router.delete("/v1/audio/voice_consents/{consent_id}")
async def forget_consent(consent_id: str, service: Service, client: Client) -> dict[str, Any]:
    """Delete it. Voices that were made with it stay until they are deleted themselves."""
    found = _found(service, client, consent_id)
    if not service.check_voices().consents.remove(found):
        raise _no_consent()
    return {"id": found.id, "object": "audio.voice_consent", "deleted": True}


def _found(service: VoiceService, client: str, consent_id: str) -> Record:
    found = service.check_voices().consents.find(owner_of(client), consent_id)
    if found is None:
        raise _no_consent()
    return found


def _no_consent() -> ApiError:
    return ApiError(404, "There is no such consent of yours.", "consent_id", "consent_not_found")


def _consent_shape(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "audio.voice_consent",
        "name": record.name,
        "language": record.notes.get("language", ""),
        "created_at": record.created_at,
    }
