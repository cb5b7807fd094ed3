"""Where models are: packaged ones, folders, and repositories of a model hub, which are downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from speech_mtp import plugins
from speech_mtp.storage import CARD, CONFIG, PICKLES, WEIGHTS, refuse_files

ASSETS = Path(__file__).parents[1] / "assets"
DEFAULT_MODEL = "tiny-en"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_S = 3.0
VOICES = "voices.safetensors"
TOKENIZER = "tokenizer"


def known_models() -> list[str]:
    """Names of the packaged models."""
    return sorted({path.relative_to(ASSETS).parts[0] for path in ASSETS.glob(f"*/**/{CONFIG}")} - {"heads"})


def find_model(name: str | Path) -> Path:
    """The folder of a packaged model (``tiny-en``, or a part: ``tiny-en/codec``), of a path, or of a hub id.

    Raises ValueError for an unknown name (listing the known ones) and for a pickle.
    """
    path, known = Path(name), known_models()
    packaged = path.parts and path.parts[0] in known and ".." not in path.parts
    if packaged and (ASSETS / path).is_dir():
        return ASSETS / path
    if path.exists():
        refuse_files(path)
        return path
    if path.suffix not in PICKLES and HUB_ID.fullmatch(str(name)):
        try:
            return download(str(name), [CONFIG, WEIGHTS, CARD, VOICES, f"*/{CONFIG}", f"*/{WEIGHTS}", f"{TOKENIZER}/*"])
        except OSError as error:
            hint = f"no folder has that name, and {error}"
            raise ValueError(
                f"There is no model {str(name)!r}: {hint}; {plugins.nearest(str(name), known)}."
            ) from error
    raise ValueError(f"There is no model {str(name)!r}; {plugins.nearest(str(name), known)}, or give an existing path.")


def download(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    """Files of a hub repository. One short try: FileNotFoundError (part of a sentence) when that fails."""
    from huggingface_hub import snapshot_download

    try:
        # Listing the repository fails at once without a network; asking for one file would be retried for long.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # besides its own errors the client lets those of its HTTP library through
        raise FileNotFoundError(f"the hub repository {repo} could not be reached or read") from error
