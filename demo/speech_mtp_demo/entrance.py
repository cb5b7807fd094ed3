"""The page where a browser shows an API key once, and gets a pass (:mod:`speech_mtp.serving.passes`) for it.

The key is sent once, in the body of a form, and is not kept by the page: the pass is a cookie that scripts cannot read
and that other sites cannot use.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from speech_mtp.serving.passes import COOKIE, LIFE_S
from speech_mtp_demo.files import address

ENTRANCE = "/demo-key"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>speech_mtp: key</title><link rel="icon" href="data:,"><link rel="stylesheet" href="{css}"></head>
<body class="entrance"><main class="card"><h1>speech_mtp</h1>
<p>This server wants an API key. It is sent once; this browser then gets a pass for {hours} hours.</p>
<form method="post"><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<p class="problem" role="alert">{problem}</p>
<button class="primary" type="submit">Enter</button></form>
<p class="quiet">The operator has the key: <code>--api-key-file</code> or <code>SPEECH_MTP_API_KEY</code>.</p>
</main></body></html>
"""

router = APIRouter()


def _page(problem: str = "", status: int = 200) -> HTMLResponse:
    html = PAGE.format(css=address("page.css"), hours=LIFE_S // 3600, problem=problem)
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})


@router.get(ENTRANCE, include_in_schema=False)
async def ask() -> HTMLResponse:
    """Ask for the key."""
    return _page()


@router.post(ENTRANCE, include_in_schema=False)
async def enter(request: Request, key: Annotated[str, Form(max_length=1024)]) -> Response:
    """A pass for whoever knows a key, and on to the page."""
    granted = request.app.state.passes.issue(key.strip())
    if granted is None:
        return _page("This is not a key of this server; check for a missing character.", 401)
    response = RedirectResponse("/demo/", 303)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, granted, max_age=LIFE_S, httponly=True, samesite="strict", secure=secure, path="/")
    return response
