"""A voice service on a port: ``serve``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtp.cli.shared import AUTO, Backbone, Lexicon, Model, Threads, load_head, load_model, load_text_lm

if TYPE_CHECKING:
    from speech_mtp.frontends.base import Recogniser
    from speech_mtp.streaming.authors import Author
    from speech_mtp.streaming.conversation import Writer

KEY_VARIABLE = "SPEECH_MTP_API_KEY"
LLM_KEY_VARIABLE = "SPEECH_MTP_LLM_KEY"
USUAL_ASR = "faster_whisper"
log = logging.getLogger("speech_mtp.serving")
LOCAL = ("127.0.0.1", "localhost", "::1")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

# Options that the commands with a server share.
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
ApiKeyFile = Annotated[Path | None, typer.Option(help=f"A file of API keys, one a line; or one key in {KEY_VARIABLE}.")]
Llm = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of a language model that answers chats; `packaged`: the packaged one."),
]
LlmUrl = Annotated[
    str | None, typer.Option(help=f"Or an endpoint of OpenAI's shape, http://HOST/v1; its key in {LLM_KEY_VARIABLE}.")
]
LlmModel = Annotated[str | None, typer.Option(help="The name of the model at that endpoint.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: ApiKeyFile = None,
    max_streams: Annotated[int, typer.Option(min=1, help="Streams that speak at a time; others wait.")] = 8,
    max_queue: Annotated[int, typer.Option(min=0, help="Streams that may wait; others are told to come back.")] = 16,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    lexicon: Lexicon = None,
    threads: Threads = None,
    llm: Llm = None,
    llm_head: Annotated[
        str | None,
        typer.Option(help="Its head, as for generate; none: no drafting. By default what fits, if it pays here."),
    ] = None,
    llm_url: LlmUrl = None,
    llm_model: LlmModel = None,
    max_chats: Annotated[int, typer.Option(min=1, help="Answers that are written at a time; others wait.")] = 8,
    asr: Annotated[
        str | None,
        typer.Option(help="What recognises speech: faster_whisper, none; by default the packaged one, if installed."),
    ] = None,
    asr_model: Annotated[Path | None, typer.Option(help="A folder with another model for --asr.")] = None,
    voices_dir: Annotated[
        Path | None, typer.Option(help="A folder for voices that clients make; by default in the user's cache.")
    ] = None,
    without_consent: Annotated[
        bool, typer.Option("--without-consent", help="Make voices of recordings whose speaker has not agreed.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name in the header Host that is answered; * for all.")
    ] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A web page's origin that may call.")] = None,
    voice_alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VOICE", help="Another name for a voice, as in alloy=heart.")
    ] = None,
    public_lists: Annotated[
        bool, typer.Option("--public-lists", help="List voices and models without a key, as Open WebUI asks.")
    ] = False,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Serve others than this machine without any key.")
    ] = False,
    docs: Annotated[bool, typer.Option("--docs", help="Show the OpenAPI schema at /docs.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the web page of the demo at /demo.")] = False,
) -> None:
    """Serve speech over HTTP and WebSockets, in the shapes of OpenAI's API."""
    from speech_mtp.plugins import require
    from speech_mtp.serving import check_extra

    check_extra()
    page = require("speech_mtp_demo", "demo") if demo else None
    from speech_mtp.hub import cache_folder
    from speech_mtp.serving.app import create_app
    from speech_mtp.serving.server import make_server
    from speech_mtp.serving.settings import LOOPBACK, Settings

    keys = _keys(api_key_file)
    local = host in LOCAL
    if not local and not keys and not without_key:
        raise ValueError(f"Serving at {host} without a key is open to everybody; give --api-key-file or --without-key.")
    hosts = (*LOOPBACK, host) if local else ("*",)
    settings = Settings(
        keys=keys,
        public_lists=public_lists,
        allowed_hosts=(*LOOPBACK, *allow_host) if allow_host else hosts,
        allowed_origins=tuple(allow_origin or ()),
        voice_aliases=_aliases(voice_alias or []),
        max_streams=max_streams,
        max_queue=max_queue,
        max_chats=max_chats,
        docs=docs,
        voices_dir=voices_dir or cache_folder() / "voices",
        needs_consent=not without_consent,
    )
    recogniser = load_recogniser(asr, asr_model)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    author, make_writer = load_author(llm, llm_head, llm_url, llm_model, threads, always_drafts=demo)
    loaded = load_model(model, backbone, None, threads, lexicon)
    app = create_app(loaded, settings, make_writer, author=author, recogniser=recogniser)
    if page is not None:
        page.mount(app)
    make_server(app, host, port).run()


def load_author(
    llm: str | None, head: str | None, url: str | None, name: str | None, threads: int | None, always_drafts: bool
) -> tuple[Author | None, Callable[[], Writer] | None]:
    """What answers chats, and the writer that it is, if it is our own. Loaded before the speech model, whose threads
    count. A head that was not asked for drafts only where that is faster, unless it ``always_drafts``."""
    if llm is not None and url is not None:
        raise ValueError("Give either --llm or --llm-url: one of them answers chats.")
    if (url is None) != (name is None):
        raise ValueError("--llm-url and --llm-model belong together; give both.")
    if head is not None and llm is None:
        raise ValueError("--llm-head is the head of --llm; give both.")
    if url is not None and name is not None:
        from speech_mtp.streaming.endpoint import Endpoint

        return Endpoint(url, name, os.environ.get(LLM_KEY_VARIABLE)), None
    if llm is None:
        return None, None
    from speech_mtp import hub
    from speech_mtp.decoding import catalogue
    from speech_mtp.streaming.authors import OwnAuthor
    from speech_mtp.streaming.conversation import Writer
    from speech_mtp.streaming.pays import drafting_pays

    lm = load_text_lm(llm, AUTO, "cpu", keep_layers=False, threads=threads)
    found = head or hub.default_head(lm.fingerprint) or "none"
    drafter = None if found == "none" else load_head(found, lm)
    spec = catalogue.default(drafter)
    if (
        head is None
        and drafter is not None
        and not always_drafts
        and not drafting_pays(lm, catalogue.build(spec, drafter))
    ):
        log.info("drafting with %s is slower than none on this processor; --llm-head %s drafts anyway", found, found)
        spec, drafter = catalogue.default(None), None
    return OwnAuthor(llm, lm.tokenizer, lm.max_positions), lambda: Writer(lm, catalogue.build(spec, drafter))


def load_recogniser(name: str | None, folder: Path | None) -> Recogniser | None:
    """What recognises speech, its model not yet loaded."""
    from speech_mtp import plugins

    if name == "none":
        if folder is not None:
            raise ValueError("--asr-model is the model of a recogniser; leave --asr none out.")
        return None
    spec = {"name": name or USUAL_ASR, **({"folder": str(folder)} if folder is not None else {})}
    try:
        recogniser: Recogniser = plugins.build("frontends", spec)
    except plugins.MissingExtra:
        if name is None and folder is None:
            return None
        raise
    return recogniser


def _aliases(written: list[str]) -> dict[str, str]:
    pairs = [alias.partition("=") for alias in written]
    wrong = next(("".join(pair) for pair in pairs if not all(pair)), None)
    if wrong is not None:
        raise ValueError(f"--voice-alias is {wrong!r}; write NAME=VOICE, as in alloy=heart.")
    return {name: voice for name, _, voice in pairs}


def _keys(path: Path | None) -> tuple[str, ...]:
    from speech_mtp.serving.settings import check_key, read_keys

    if path is not None:
        return read_keys(path)
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return ()
    check_key(key, f"The key in {KEY_VARIABLE}")
    return (key,)
