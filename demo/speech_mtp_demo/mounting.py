"""The page beside the API: Gradio's app at ``/demo``, its files, its entrance; and what browsers may load with it."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech_mtp.serving.door import Pages
from speech_mtp_demo import entrance, files, page

PATH = "/demo"
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss: data: blob:; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'; object-src 'none'"
)
"""Nothing is loaded from other servers, whatever Gradio's page asks for; Gradio needs inline and evaluated scripts."""
MANIFEST = "/manifest.json"
ICON = "/favicon.ico"
"""Gradio's page, and browsers, ask for these there."""
MOST_UPLOAD = "10mb"


def mount(app: FastAPI) -> None:
    """Serve the demo at ``/demo`` of ``app``, which :func:`speech_mtp.serving.app.create_app` has made.

    ``/`` and ``/demo`` lead there. Where the server wants keys, the page and all that it calls want one too: a browser
    shows it once at ``/demo-key``.
    """
    for path in ("/", PATH):
        app.add_api_route(path, _to_page, methods=["GET"], include_in_schema=False)
    app.add_api_route(MANIFEST, _manifest, methods=["GET"], include_in_schema=False)
    app.add_api_route(ICON, _icon, methods=["GET"], include_in_schema=False)
    app.include_router(files.router)
    app.include_router(entrance.router)
    pages: Pages = app.state.pages
    pages.prefix, pages.entrance = PATH + "/", entrance.ENTRANCE
    pages.open |= {"/", PATH, MANIFEST, ICON, entrance.ENTRANCE, *map(files.address, files.NAMES)}
    gr.mount_gradio_app(
        app,
        page.build(app.state.service),
        PATH,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=MOST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        theme=page.theme(),
        head=page.HEAD,
    )
    app.add_middleware(_Policy)


async def _to_page() -> RedirectResponse:
    return RedirectResponse(f"{PATH}/", 307)


async def _icon() -> RedirectResponse:
    return RedirectResponse(files.address("icon.svg"), 307)


async def _manifest() -> dict[str, str]:
    return {"name": "speech_mtp", "start_url": f"{PATH}/"}


class _Policy:
    """Says with every answer of the page what it may load."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self.app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, told)
