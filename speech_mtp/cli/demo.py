"""The page to try everything with: ``demo``."""

from __future__ import annotations

from speech_mtp.cli.serve import ApiKeyFile, Host, Llm, LlmModel, LlmUrl, Port, serve
from speech_mtp.cli.shared import Backbone, Model, Threads


def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: ApiKeyFile = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    threads: Threads = None,
    llm: Llm = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
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
