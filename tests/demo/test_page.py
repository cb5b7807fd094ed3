"""The page without a browser: it stands beside the API, is whole, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from speech_mtp.serving.passes import COOKIE
from speech_mtp.serving.settings import Settings
from tests.demo.showing import NODE, STATIC, showing
from tests.serving.running import Running

KEY = "a-key-of-the-tests"
PAGE = {"accept": "text/html"}
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
NAMESPACE = "http://www.w3.org/2000/svg"
TOLD = ("http://localhost",)
"""Addresses that a sentence of the page tells a reader."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with showing() as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with showing(Settings(keys=(KEY,))) as running:
        yield running


def test_the_page_stands_beside_the_api(server: Running) -> None:
    assert [server.http.get(path).headers["location"] for path in ("/", "/demo")] == ["/demo/", "/demo/"]
    page = server.http.get("/demo/", headers=PAGE)
    assert page.status_code == 200
    assert "speech_mtp" in page.text
    assert server.post(input="Hello there.", response_format="wav", stream=False).content[:4] == b"RIFF"
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/audio/nothing", "/nothing"])
def test_unknown_paths_are_refused_in_the_shape_of_the_api(server: Running, path: str) -> None:
    for method in ("GET", "POST"):
        refused = server.http.request(method, path, headers=PAGE)
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "not_found"


def test_the_page_may_load_nothing_from_elsewhere(server: Running) -> None:
    policy = server.http.get("/demo/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    config = server.http.get("/demo/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert not config.get("run_history")
    addresses = re.findall(r"https?://[^\"'\s\\]+", server.http.get("/demo/config").text)
    assert [address for address in addresses if not address.startswith((server.url, *TOLD))] == []


def test_its_files_are_served_as_what_they_are(server: Running) -> None:
    names = sorted(path.name for path in STATIC.iterdir())
    assert {"chat.js", "worklets.js", "page.css", "icon.svg"} <= set(names)
    for name in names:
        answer = server.http.get(f"/demo-static/{name}")
        assert answer.headers["content-type"].startswith(KINDS[Path(name).suffix])
        assert answer.content == (STATIC / name).read_bytes()
        known = {"if-none-match": answer.headers["etag"]}
        assert server.http.get(f"/demo-static/{name}", headers=known).status_code == 304
    for name in ("nothing.js", "..%2fpage.py", "%2e%2e%2f__init__.py"):
        assert server.http.get(f"/demo-static/{name}").status_code == 404


def test_no_file_names_another_server() -> None:
    for path in (*STATIC.iterdir(), *STATIC.parent.glob("*.py")):
        found = re.findall(r"https?://[^\"'`)\s]+", path.read_text("utf-8"))
        assert [address for address in found if not address.startswith((NAMESPACE, *TOLD))] == [], path.name


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_the_modules_are_javascript() -> None:
    assert NODE is not None
    for path in sorted(STATIC.glob("*.js")):
        check = [NODE, "--check", "--input-type=module"]
        done = subprocess.run(check, input=path.read_bytes(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"{path.name}: {done.stderr.decode()}"


def test_imports_between_modules_exist() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text("utf-8")
        for names, module in re.findall(r"import \{([^}]+)\} from \"\./([\w.]+)\"", text):
            exported = set(
                re.findall(r"export (?:async )?(?:function|class|const) (\w+)", (STATIC / module).read_text())
            )
            assert {name.strip() for name in names.split(",")} <= exported, f"{path.name} imports from {module}"


# -- keys ---------------------------------------------------------------------------------------------------------
def test_without_a_key_nothing_but_the_entrance_opens(locked: Running) -> None:
    assert locked.http.get("/demo/", headers=PAGE).headers["location"] == "/demo-key"
    assert "API key" in locked.http.get("/demo-key").text
    for path in ("/demo/", "/demo/config", "/demo/gradio_api/info", "/demo/gradio_api/queue/status", "/v1/models"):
        assert locked.http.get(path).status_code == 401, path
    assert locked.http.post("/demo/gradio_api/component_server", json={}).status_code == 401
    assert locked.http.get("/v1/models", headers=PAGE).status_code == 401
    for path in ("/v1/realtime", "/v1/audio/speech/stream"):
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{locked.port}{path}"):
            pass
        assert refused.value.response.status_code == 401


def test_a_key_is_shown_once(locked: Running) -> None:
    wrong = locked.http.post("/demo-key", data={"key": "another-key-of-the-tests"})
    assert wrong.status_code == 401
    assert "not a key of this server" in wrong.text
    assert locked.http.post("/demo-key", data={}).status_code == 400
    right = locked.http.post("/demo-key", data={"key": f" {KEY} "})
    assert (right.status_code, right.headers["location"]) == (303, "/demo/")
    told = right.headers["set-cookie"].lower()
    assert all(flag in told for flag in ("httponly", "samesite=strict", "path=/"))
    assert KEY not in told
    held = {"cookie": f"{COOKIE}={right.cookies[COOKIE]}"}
    for path in ("/demo/", "/demo/config", "/v1/models"):
        assert locked.http.get(path, headers=held).status_code == 200, path
    with connect(f"ws://127.0.0.1:{locked.port}/v1/realtime", additional_headers=held) as socket:
        assert "session.created" in str(socket.recv(10))


# -- form ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme: str) -> None:
    css = (STATIC / "page.css").read_text("utf-8")
    block = css.split("color-scheme: light")[0] if scheme == "light" else css.split('[data-theme="dark"]')[1]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block.split("}")[0]))
    pairs = [(ink, ground) for ink in ("ink", "quiet", "accent", "warn") for ground in ("surface", "ground")]
    pairs += [("unheard", "surface"), ("on-accent", "accent"), ("warn", "warn-soft"), ("accent", "accent-soft")]
    for ink, ground in pairs:
        assert _contrast(colours[ink], colours[ground]) >= 4.5, f"{ink} on {ground}"


def _contrast(one: str, other: str) -> float:
    """By WCAG 2."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
