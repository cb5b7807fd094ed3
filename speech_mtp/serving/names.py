"""What clients call models and voices -> what is loaded. Never a path, never an address."""

from __future__ import annotations

from pathlib import Path

from speech_mtp import plugins
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.settings import OPENAI_VOICES, Settings
from speech_mtp.voices.saved import NAME


def public_name(name: str) -> str:
    """What clients are told of a model that was loaded by ``name``: of a folder its last part."""
    return Path(name).resolve().name if Path(name).exists() else name


class Names:
    """The names of one loaded model with ``voices``, its aliases among them."""

    def __init__(self, model: str, voices: list[str], settings: Settings) -> None:
        self.model, self.voices = public_name(model), voices
        self.models = (self.model, *(alias for alias in settings.model_aliases if alias != self.model))
        self.chats: tuple[str, ...] = ()
        self.listeners: tuple[str, ...] = ()
        spread = {alias: voices[i % len(voices)] for i, alias in enumerate(OPENAI_VOICES)}
        self.aliases = {k: v for k, v in {**spread, **settings.voice_aliases}.items() if k not in voices}
        for alias, voice in settings.voice_aliases.items():
            if voice not in voices:
                raise ValueError(f"The alias {alias!r} means the voice {voice!r}; {plugins.nearest(voice, voices)}.")

    def check_model(self, model: str | None) -> str:
        """The loaded model's name. Raises ApiError 404 for another."""
        if model is not None and model not in self.models:
            raise ApiError(404, f"There is no such model; {_known(self.models)}.", "model", "model_not_found")
        return self.model

    def add_author(self, name: str, aliases: tuple[str, ...]) -> None:
        """Chats are answered by what clients call ``name``."""
        self.chats = tuple(dict.fromkeys((public_name(name), *aliases)))

    def check_chat_model(self, model: str | None) -> str:
        """The name of what answers. The speech model's names mean it too. Raises ApiError 404 for another."""
        if model is not None and model not in (*self.chats, *self.models):
            raise ApiError(404, f"There is no such model; {_known(self.chats)}.", "model", "model_not_found")
        return self.chats[0]

    def add_recogniser(self, name: str, aliases: tuple[str, ...]) -> None:
        """Speech is recognised by what clients call ``name``."""
        self.listeners = tuple(dict.fromkeys((name, *aliases)))

    def check_listener(self, model: str | None) -> str:
        """The name of what recognises speech. Raises ApiError 404 for another."""
        if model is not None and model not in self.listeners:
            raise ApiError(404, f"There is no such model; {_known(self.listeners)}.", "model", "model_not_found")
        return self.listeners[0]

    def knows_voice(self, voice: str) -> bool:
        """Whether ``voice`` is one, or another name of one."""
        return voice in self.voices or voice in self.aliases

    def voice(self, voice: str | None) -> str:
        """The name of a voice of the model (None: its first). Raises ApiError 400 for an unknown one."""
        if voice is None:
            return self.voices[0]
        found = voice if voice in self.voices else self.aliases.get(voice)
        if found is None:
            reason = "There is no such voice" if NAME.fullmatch(voice) else "This is not the name of a voice"
            raise ApiError(400, f"{reason}; {_known(self.voices)}.", "voice", "voice_not_found")
        return found


def _known(names: list[str] | tuple[str, ...]) -> str:
    return f"known: {', '.join(names)}"
