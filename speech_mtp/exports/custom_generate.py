"""A ``custom_generate`` folder: drafting with a head by ``transformers`` alone, where this package is not installed.

``model.generate(**prompt, custom_generate=FOLDER, trust_remote_code=True)``, where FOLDER may also be a hub repository
that it was uploaded to. The program in it is ``_generate.py`` of this package, unchanged.
"""

from __future__ import annotations

from pathlib import Path

from speech_mtp.exports.base import (
    HeadExport,
    read_json,
    read_tensors,
    restored,
    save_json,
    save_tensors,
    shape_of,
    unlike_medusa,
)
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.hydra import Hydra
from speech_mtp.heads.medusa import Medusa
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CARD

PART = "custom_generate"
README = """---
library_name: transformers
tags:
- custom_generate
---

# Decoding with drafts

A head that reads the states of its model drafts {count} tokens at a time, and the model keeps those that it would have
written itself: greedy text is the same, sampled text follows the same law. For the model that the head was trained on
({dim} numbers per state, {vocab} tokens), one text at a time:

```python
model.generate(**prompt, custom_generate="this folder or repository", trust_remote_code=True)
```
"""


class CustomGenerate(HeadExport):
    """``custom_generate/``: ``generate.py``, ``head.json`` and ``head.safetensors`` with the head's own names."""

    holds = "medusa heads and hydra heads without a prefix layer"

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        if isinstance(head, Hydra):
            return None if head.prefix is None else "its prefix layer has a cache of its own"
        return unlike_medusa(head)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        (folder / PART).mkdir()
        program = Path(__file__).with_name("_generate.py").read_text(encoding="utf-8")
        (folder / PART / "generate.py").write_text(program, encoding="utf-8")
        state = {name: value for name, value in head.state_dict().items() if name != "private.started"}
        save_tensors(folder / PART / "head.safetensors", state)
        config = {
            "kind": "hydra" if isinstance(head, Hydra) else "medusa",
            "num_heads": head.num_depths,
            "taps": list(head.taps),
            "feed": head.mix.kind,
            "dim": lm.dim,
            "vocab_size": lm.vocab_size,
            "trunk": lm.fingerprint,
        }
        save_json(folder / PART / "head.json", config)
        card = README.format(count=head.num_depths, dim=lm.dim, vocab=lm.vocab_size)
        (folder / CARD).write_text(card, encoding="utf-8")

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        config, tensors = (
            read_json(Path(folder) / PART / "head.json"),
            read_tensors(Path(folder) / PART / "head.safetensors"),
        )
        blocks = {name.split(".")[2] for name in tensors if name.startswith("blocks.")}
        settings = {
            "num_heads": int(config["num_heads"]),
            "num_layers": len(blocks),
            "private": "private.0.weight" in tensors,
            "taps": tuple(config["taps"]),
            "feed": config["feed"],
            "draft_vocab": len(tensors["token_map"]) if "token_map" in tensors else None,
        }
        kind = Hydra if config["kind"] == "hydra" else Medusa
        return restored(kind(shape_of(lm), **settings), tensors, lm, Path(folder))
