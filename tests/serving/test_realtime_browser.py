"""OpenAI's agents for JavaScript in a browser: another page's origin, a short-lived key sent as a sub-protocol."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.endpoint import Endpoint
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import serving
from tests.serving.talking import Loudness, speech
from tests.serving.test_realtime_clients import ANSWER, CLIENTS, HEARD, SAID
from tests.streaming.fake_endpoint import Script, endpoint

pytestmark = pytest.mark.slow
BUNDLE = CLIENTS / "node_modules/@openai/agents-realtime/dist/bundle/openai-realtime-agents.umd.js"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEY = "a-key-of-the-browser-tests"
PAGE = """<!doctype html><meta charset="utf-8"><script src="/bundle.js"></script><script>
window.converse = async (url, key, question) => {
  const { RealtimeAgent, RealtimeSession } = OpenAIAgentsRealtime;
  const agent = new RealtimeAgent({ name: "Ours", instructions: "Be brief." });
  const session = new RealtimeSession(agent, { transport: "websocket", model: "gpt-realtime" });
  let bytes = 0;
  const errors = [];
  session.on("audio", (event) => (bytes += event.data.byteLength));
  session.on("error", (event) => errors.push(JSON.stringify(event)));
  await session.connect({ url, apiKey: key });
  const ended = new Promise((resolve) => session.transport.on("turn_done", resolve));
  session.sendAudio(Uint8Array.from(atob(question), (c) => c.charCodeAt(0)).buffer);
  await ended;
  await new Promise((resolve) => setTimeout(resolve, 300));
  session.close();
  const history = session.history.map((item) => [item.role, item.content[0]?.transcript]);
  return { bytes, errors, history };
};
</script>"""


@contextmanager
def site() -> Iterator[str]:
    """A page with OpenAI's bundle, on an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            bundle = self.path == "/bundle.js"
            body = BUNDLE.read_bytes() if bundle else PAGE.encode()
            self.send_response(200)
            self.send_header("content-type", "text/javascript" if bundle else "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium.")
@pytest.mark.skipif(not BUNDLE.is_file(), reason="Run `npm install` in tests/clients.")
def test_a_page_converses_with_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    monkeypatch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
    with site() as origin, endpoint(Script(ANSWER)) as script:
        settings = Settings(keys=(KEY,), allowed_origins=(origin,))
        author, recogniser = Endpoint(script.url, "theirs"), FakeRecogniser(HEARD)
        with serving(settings, author=author, recogniser=recogniser) as server, sync_playwright() as playwright:
            headers = {"authorization": f"Bearer {KEY}"}
            secret = server.http.post("/v1/realtime/client_secrets", json={}, headers=headers).json()["value"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-first-run"])
            page = browser.new_page()
            page.goto(origin)
            url = f"ws://127.0.0.1:{server.port}/v1/realtime"
            told = page.evaluate("([url, key, question]) => converse(url, key, question)", [url, secret, speech()])
            refused = page.evaluate(
                "(url) => new Promise((tell) => {"
                " const socket = new WebSocket(url, ['realtime', 'openai-insecure-api-key.ek_wrong']);"
                " socket.onopen = () => tell('open'); socket.onclose = () => tell('closed'); })",
                url,
            )
            browser.close()
    assert told["errors"] == []
    assert told["history"] == [["user", HEARD], ["assistant", SAID]]
    assert told["bytes"] > 24_000
    assert refused == "closed"
