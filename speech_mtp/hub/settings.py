"""What the folder of a whole model says about itself: its settings, complete for its form, and its voices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speech_mtp.hub.finding import VOICES
from speech_mtp.storage import CONFIG

OWN_G2P = "own"
"""The name of the G2P that is a model's own text encoder."""
TALKER, DIRECT = "talker", "direct"
"""The forms of a model that speaks (``form`` in its settings), and the folders that hold its speech LM."""


def model_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings of a whole model, complete for its form, and its voices."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no model in {folder}: it has no {CONFIG}; check the path.")
    try:
        config = {"form": TALKER, **json.loads((folder / CONFIG).read_text(encoding="utf-8"))}
        voices = load_file(folder / VOICES)
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} is damaged ({error}); get it again.") from error
    if config.get("kind") != "model":
        raise ValueError(f"{folder} holds a {config.get('kind')}, not a model that speaks; name the folder above it.")
    if config["form"] not in (TALKER, DIRECT):
        raise ValueError(f"The model in {folder} is of the form {config['form']!r}, which this version does not know.")
    needed = {"voices", "sampling"} | ({"backbone", "hidden_layer", "g2p"} if config["form"] == TALKER else set())
    missing = needed - set(config)
    if missing or not set(config["voices"]) <= set(voices):
        what = min(missing) if missing else "timbre of every voice"
        raise ValueError(f"The model in {folder} is incomplete: it has no {what}; get it again.")
    heard = config.get("voices_heard", 0)
    if not isinstance(heard, int):
        raise ValueError(f"The model in {folder} is damaged (voices_heard is {heard!r}); get it again.")
    return {**config, "voices_heard": max(heard, len(config["voices"]))}, voices
