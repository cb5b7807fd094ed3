"""The command line: ``say``, ``tokenize``, ``convert``, ``voices``, ``generate``, ``serve``, ``demo``, ``corpus``,
``train``, ``eval``, ``bench`` and ``export``.

A wrong input ends with one sentence on stderr and exit code 2, and leaves no half-written file. Heavy modules are
imported by the commands that need them, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from speech_mtp.cli import bench, evaluate
from speech_mtp.cli.demo import demo
from speech_mtp.cli.evaluate_codec import eval_codec
from speech_mtp.cli.export import export
from speech_mtp.cli.serve import serve
from speech_mtp.cli.speech import say, tokenize
from speech_mtp.cli.text import generate
from speech_mtp.cli.training import corpus, train
from speech_mtp.cli.trunk import bench_trunk
from speech_mtp.cli.voices import convert
from speech_mtp.cli.voices import group as voices
from speech_mtp.plugins import MissingExtra

UsageError: Any = typer.BadParameter.__base__
app = typer.Typer(rich_markup_mode=None, add_completion=False, help="Speech language models on decoupled codec tokens.")
for command in (say, tokenize, convert, generate, serve, demo, corpus, train, export):
    app.command()(command)
bench.group.command("trunk")(bench_trunk)
evaluate.group.command("codec")(eval_codec)
app.add_typer(voices, name="voices")
app.add_typer(evaluate.group, name="eval")
app.add_typer(bench.group, name="bench")


def main() -> None:
    """Entry point of the program ``speech-mtp``."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="speech-mtp", standalone_mode=False)
    except UsageError as error:
        sys.exit(_refuse(error.format_message()))
    except (ValueError, OSError, MissingExtra) as error:
        sys.exit(_refuse(_sentence(error)))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())


def _refuse(sentence: str) -> int:
    print(f"speech-mtp: {sentence}", file=sys.stderr)
    return 2
