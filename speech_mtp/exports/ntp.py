"""The trunk alone, as an ordinary Hugging Face folder: what predicts the next token and nothing else.

For programs that know no heads, such as lm-eval's model ``hf``. A trunk that was trained together with heads is
exported as it then is: its adapters are in its weights already.
"""

from __future__ import annotations

from pathlib import Path

from speech_mtp.exports.base import Export, save_trunk
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM


class NTP(Export):
    """Safetensors, tokenizer, configuration and generation settings of the trunk, in the precision of ``lm``."""

    holds = "the trunk of any head"

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        return None

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        save_trunk(folder, lm)

    def read(self, folder: str | Path) -> TextLM:
        """The trunk. Errors as for ``TextLM.from_folder``."""
        return TextLM.from_folder(folder)
