"""The page itself: Gradio's tabs around widgets of our own, which are modules in ``static``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from speech_mtp.serving.service import VoiceService
from speech_mtp_demo.files import address

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
    facts = {"chats": service.author is not None, "hears": service.recogniser is not None}
    with gr.Blocks(title="speech_mtp", analytics_enabled=False, fill_width=True) as blocks:
        widget("header", facts)
        with gr.Tabs(elem_id="tabs"):
            for module, title in (("chat", "Voice chat"), ("speak", "Speak")):
                with gr.Tab(title, id=module):
                    widget(module, facts)
    return blocks


def widget(module: str, facts: dict[str, Any], functions: list[Callable[..., Any]] | None = None) -> gr.HTML:
    """The widget that ``start`` of ``static/<module>.js`` makes in an empty element. ``facts`` are told to it, and it
    may call ``functions``."""
    told = json.dumps(facts)
    start = (
        f'import("{address(module + ".js")}").then((module) => module.start(element, {told}, '
        f"typeof server === 'undefined' ? null : server));"
    )
    return gr.HTML(
        html_template=f'<div class="widget widget-{module}"></div>',
        js_on_load=start,
        apply_default_css=False,
        elem_id=f"demo-{module}",
        server_functions=functions,
    )
