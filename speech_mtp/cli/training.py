"""Making data and models: ``corpus``, ``train``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from speech_mtp.cli.shared import Backbone, Model, Overrides, load_model


def corpus(config: Path, overrides: Overrides = None, model: Model = "tiny-en", backbone: Backbone = None) -> None:
    """Make a corpus of teacher speech, or go on with one; the backbone writes its text."""
    from speech_mtp import config as settings
    from speech_mtp.corpus.build import CorpusConfig, build_corpus

    def writer() -> tuple[Any, Any]:
        from speech_mtp.lm.backbone import Backbone as Writer
        from speech_mtp.lm.units import UnitMaker

        if backbone and Path(backbone).is_dir():
            found = Writer.from_folder(backbone)
        else:
            maker = load_model(model, backbone).maker
            if not isinstance(maker, UnitMaker):
                raise ValueError(
                    f"Model {model} has learned to speak and does not write text; name a --backbone folder."
                )
            found = maker.backbone
        return found.model, found.tokenizer

    figures = build_corpus(settings.load(config, CorpusConfig, overrides or ()), writer)
    print(json.dumps(figures, ensure_ascii=False))


def train(config: Path, overrides: Overrides = None) -> None:
    """Train what the recipe says, or go on with it."""
    # oneDNN keeps a kernel per shape, of 1,024 shapes; training meets a new one at every step, so memory would grow by
    # gigabytes. It reads this when its first kernel is made.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    from speech_mtp import config as settings
    from speech_mtp.training.runs import run
    from speech_mtp.training.stages import TrainConfig

    print(json.dumps(run(settings.load(config, TrainConfig, overrides or ())), ensure_ascii=False))
