"""What a stage reads, checked before anything is loaded: what is missing, and what makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speech_mtp.corpus.texts import TextSource
from speech_mtp.training.stages import Stage

MAKERS = {
    "corpus": "speech-mtp corpus recipes/corpus/config.yaml",
    "data": "speech-mtp train recipes/tokenizer/store.yaml",
    "features": "speech-mtp train recipes/tokenizer/features.yaml",
    "codec": "speech-mtp train recipes/tokenizer/config.yaml",
    "aligner": "speech-mtp train recipes/tokenizer/config.yaml",
    "aligned": "speech-mtp train recipes/tokenizer/aligned.yaml",
    "codes": "speech-mtp train recipes/tiny_en/encode.yaml",
    "units": "speech-mtp train recipes/tiny_en/units.yaml",
    "lm": "speech-mtp train recipes/tiny_en/config.yaml",
    "text_encoder": "speech-mtp train recipes/tiny_en/text_encoder.yaml",
    "answers": "speech-mtp train recipes/text_mtp/answers.yaml",
    "selfwritten": "speech-mtp corpus recipes/corpus/config.yaml",
    "documents": "speech-mtp train recipes/objectives/documents.yaml",
    "head": "speech-mtp train recipes/text_mtp/shipped_more.yaml",
    "start": "the recipe that trains it",
}
"""Settings of stages that name what another stage has made, and what makes it with the recipes as they are."""
GIVEN = ("texts", "dev_texts", "left_out", "prompts", "references", "card")
"""Settings that name other files and folders."""


def inputs(stage: Stage) -> Iterator[tuple[str, str | Path]]:
    """The settings of ``stage`` that name something to read, and what they name; a codec's name is a string."""
    for key in (*MAKERS, *GIVEN):
        value = getattr(stage, key, None)
        if isinstance(value, dict):
            value = [value.get("source")] if key == "codec" else list(value.values())
        for name in value if isinstance(value, list) else [value]:
            name = name.path if isinstance(name, TextSource) else name
            if name is not None:
                yield key, name


def check_inputs(stage: Stage) -> None:
    """Raises FileNotFoundError, with one sentence that says what to run first, for an input that is not there."""
    for key, name in inputs(stage):
        path = Path(name)
        named = isinstance(name, str) and len(path.parts) < 3  # a packaged name or a hub id
        if not path.exists() and not named:
            hint = f"run {MAKERS[key]} first, or name another" if key in MAKERS else "name one that is there"
            raise FileNotFoundError(f"There is no {path} (run.{key}); {hint}.")
