"""The page itself: Gradio's tabs around widgets of our own, which are modules in ``static``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

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
FONTS = ["system-ui", "sans-serif"]
FIXED = ["ui-monospace", "monospace"]


def theme() -> gr.Theme:
    """Gradio's own, with the system's typefaces: none is fetched."""
    return gr.themes.Base(font=FONTS, font_mono=FIXED)


def build(service: VoiceService) -> gr.Blocks:
    """The page of ``service``."""
    facts = about(service)
    lab, timbre = TextLab(service), Timbre(service)
    tabs: list[tuple[str, str, list[Callable[..., Any]]]] = [
        ("chat", "Voice chat", []),
        ("speak", "Speak", []),
        ("voices", "Voices", [timbre.swap]),
        ("text", "Text", [lab.options, lab.begin, lab.more, lab.stop]),
        ("about", "About", []),
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


def widget(module: str, facts: dict[str, Any], functions: Sequence[Callable[..., Any]] = ()) -> gr.HTML:
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
        server_functions=[_marked(function) for function in functions],
    )


def _marked(function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """``function`` in a shape that Gradio can mark as one that pages may call: it cannot mark methods."""

    @functools.wraps(function)
    def called(asked: Any) -> dict[str, Any]:
        return function(asked)

    return called
