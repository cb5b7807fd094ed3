"""The page itself: Gradio's tabs around widgets of our own, which are modules in ``static``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from speech_mtp.serving.routes.shared import client_of
from speech_mtp.serving.service import VoiceService
from speech_mtp_demo.files import address
from speech_mtp_demo.text_lab import TextLab
from speech_mtp_demo.timbre import Timbre

HEAD = (
    f'<link rel="icon" href="{address("icon.svg")}">'
    f'<link rel="stylesheet" href="{address("page.css")}">'
    f'<script type="module" src="{address("theme.js")}"></script>'
    '<meta name="color-scheme" content="light dark">'
)
Function = Callable[[Any, str], dict[str, Any]]
"""What a page asks, and the client that it is for the door -> an answer."""
FONTS = ["system-ui", "sans-serif"]
FIXED = ["ui-monospace", "monospace"]


def theme() -> gr.Theme:
    """Gradio's own, with the system's typefaces: none is fetched."""
    return gr.themes.Base(font=FONTS, font_mono=FIXED)


def build(service: VoiceService) -> gr.Blocks:
    """The page of ``service``."""
    facts = about(service)
    lab, timbre = TextLab(service), Timbre(service)
    measuring: dict[str, Function] = {
        "options": lambda asked, client: lab.options(),
        "begin": lambda asked, client: lab.begin(asked),
        "more": lambda asked, client: lab.more(asked),
        "stop": lambda asked, client: lab.stop(asked),
    }
    tabs: list[tuple[str, str, dict[str, Function]]] = [
        ("chat", "Voice chat", {}),
        ("speak", "Speak", {}),
        ("voices", "Voices", {"swap": timbre.swap}),
        ("text", "Text", measuring),
        ("about", "About", {}),
    ]
    with gr.Blocks(title="speech_mtp", analytics_enabled=False, fill_width=True) as blocks:
        widget("header", facts)
        with gr.Tabs(elem_id="tabs"):
            for module, title, functions in tabs:
                with gr.Tab(title, id=module):
                    widget(module, facts, functions)
    return blocks


def about(service: VoiceService) -> dict[str, Any]:
    """What the widgets are told of the server."""
    model, recogniser = service.model, service.recogniser
    spec = model.codec.spec
    return {
        "chats": service.author is not None,
        "hears": recogniser is not None,
        "model": {
            "name": service.names.model,
            "voices": list(model.voices),
            "sample_rate": spec.sample_rate,
            "frame_rate_hz": spec.frame_rate_hz,
            "streams": list(spec.streams),
            "frames_per_step": model.lm.layout.frames_per_group,
            "author": service.names.chats[0] if service.names.chats else None,
            "recogniser": recogniser.name if recogniser is not None else None,
        },
    }


def widget(module: str, facts: dict[str, Any], functions: Mapping[str, Function] = {}) -> gr.HTML:
    """The widget that ``start`` of ``static/<module>.js`` makes in an empty element. ``facts`` are told to it, and it
    may call ``functions`` by their names."""
    start = (
        f'import("{address(module + ".js")}").then((module) => module.start(element, {json.dumps(facts)}, '
        'typeof server === "undefined" ? null : server));'
    )
    return gr.HTML(
        html_template=f'<div class="widget widget-{module}"></div>',
        js_on_load=start,
        apply_default_css=False,
        elem_id=f"demo-{module}",
        server_functions=[_offered(name, function) for name, function in functions.items()],
    )


def _offered(name: str, function: Function) -> Callable[..., dict[str, Any]]:
    """``function`` in the shape in which Gradio calls it for a page: it knows by the annotation what to pass, though
    what it passes here is the framework's request and not its own."""

    def offered(asked: Any, request: gr.Request) -> dict[str, Any]:
        return function(asked, client_of(request))

    offered.__name__ = name
    return offered
