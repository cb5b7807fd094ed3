"""Making data and models: ``corpus``, ``train``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from speech_mtp.cli.shared import Backbone, Model, Overrides
from speech_mtp.plugins import MissingExtra


def corpus(config: Path, overrides: Overrides = None, model: Model = "tiny-en", backbone: Backbone = None) -> None:
    """Make a corpus of teacher speech (the backbone writes its text) and of recordings, or go on with one."""
    from speech_mtp import config as settings
    from speech_mtp.corpus.build import CorpusConfig, build_corpus

    def writer() -> tuple[Any, Any]:
        import torch

        from speech_mtp import hub
        from speech_mtp.lm.backbone import load_causal_lm

        return load_causal_lm(hub.find_backbone(backbone, model), torch.float32)

    loaded = settings.load(config, CorpusConfig, overrides or ())
    figures = build_corpus(loaded, writer)
    _picture(loaded.out)
    print(json.dumps(figures, ensure_ascii=False))


def _picture(folder: Path) -> None:
    """The report's picture, where the package that draws is installed."""
    from speech_mtp.corpus.report import distributions
    from speech_mtp.evaluation.plots import corpus_distributions

    try:
        corpus_distributions(distributions(folder), folder / "report.png")
    except MissingExtra as missing:
        print(f"speech-mtp: report.png was left out. {missing}", file=sys.stderr)


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
