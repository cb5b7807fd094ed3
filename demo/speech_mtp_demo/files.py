"""The page's own files, served under ``/demo-static``: an exact list, with the media types that browsers insist on."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response

from speech_mtp.serving.errors import ApiError

FOLDER = Path(__file__).parent / "static"
PREFIX = "/demo-static"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",  # a module or a worklet of another type is refused by the browser
    ".svg": "image/svg+xml",
}
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir() if path.suffix in KINDS))
"""All files that are served. They are public: none says anything of this server."""

router = APIRouter()


def address(name: str) -> str:
    """Where the page finds the file ``name``."""
    assert name in NAMES, f"{name} is not in {FOLDER}"
    return f"{PREFIX}/{name}"


@router.get(PREFIX + "/{name}", include_in_schema=False)
async def static_file(name: str, request: Request) -> Response:
    """One of them; the browser asks again each time whether it has changed."""
    if name not in NAMES:
        raise ApiError(404, "The demo has no such file.")
    path = FOLDER / name
    headers = {"ETag": f'"{path.stat().st_mtime_ns:x}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=headers)
