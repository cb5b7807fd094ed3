"""The page to try everything with: ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speech_mtp.cli.serve import KEY_VARIABLE, LLM_KEY_VARIABLE, serve
from speech_mtp.cli.shared import Backbone, Model, Threads


def demo(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"A file of API keys, one a line; or one key in {KEY_VARIABLE}.")
    ] = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    threads: Threads = None,
    llm: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of the language model that answers; by default the packaged one."),
    ] = None,
    llm_url: Annotated[
        str | None,
        typer.Option(help=f"Or an endpoint of OpenAI's shape, http://HOST/v1; its key in {LLM_KEY_VARIABLE}."),
    ] = None,
    llm_model: Annotated[str | None, typer.Option(help="The name of the model at that endpoint.")] = None,
) -> None:
    """Serve the demo's page, at http://127.0.0.1:8000: ``serve --demo --llm packaged``, which has more options."""
    if llm is None and llm_url is None:
        llm = "packaged"
    serve(
        host=host,
        port=port,
        api_key_file=api_key_file,
        model=model,
        backbone=backbone,
        threads=threads,
        llm=llm,
        llm_url=llm_url,
        llm_model=llm_model,
        demo=True,
    )
