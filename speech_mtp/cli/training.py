"""Making data and models: ``corpus``, ``train``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from speech_mtp.cli.shared import Backbone, Model, Overrides


def corpus(config: Path, overrides: Overrides = None, model: Model = "tiny-en", backbone: Backbone = None) -> None:
    """Make a corpus of teacher speech, or go on with one; the backbone writes its text."""
    from speech_mtp import config as settings
    from speech_mtp.corpus.build import CorpusConfig, build_corpus

    def writer() -> tuple[Any, Any]:
        import torch

        from speech_mtp import hub
        from speech_mtp.lm.backbone import load_causal_lm

        return load_causal_lm(hub.find_backbone(backbone, model), torch.float32)

    figures = build_corpus(settings.load(config, CorpusConfig, overrides or ()), writer)
    print(json.dumps(figures, ensure_ascii=False))


def train(config: Path, overrides: Overrides = None) -> None:
    """Train what the recipe says, or go on with it."""
    # oneDNN keeps a kernel per shape, of 1,024 shapes; training meets a new one at every step, so memory would grow by
    # gigabytes. It reads this when its first kernel is made.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    from speech_mtp import config as settings
    from speech_mtp.threads import use_threads
    from speech_mtp.training.runs import run
    from speech_mtp.training.stages import TrainConfig

    use_threads()

    print(json.dumps(run(settings.load(config, TrainConfig, overrides or ())), ensure_ascii=False))
