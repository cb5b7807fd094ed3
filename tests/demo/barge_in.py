"""How long an answer still sounds in the page when somebody begins to speak, measured in a headless browser:

    speech-mtp say "Wait, tell me something else." -o words.wav
    speech-mtp demo --port 8290
    python -m tests.demo.barge_in --url http://127.0.0.1:8290 --words words.wav --seconds 120

The browser's microphone says the words again and again with silence between them: each time but the first they
interrupt the answer to the time before. All times are of the page's audio clock, so the loudspeaker's latency is not
in them.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tests.demo.showing import looking

SILENT = 1e-3
"""Peak of a block that is silence."""
QUIET_S = 0.25
"""Of silence after which an answer has ended."""
JUST_S = 0.03
"""Before somebody speaks, within which an answer sounded that is interrupted."""
SPOKEN = 0.02
"""Peak of a block of the microphone in which somebody speaks."""

TAP = """
window.tapped = { blocks: [], noticed: [] };
const recorder = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process(inputs) {
    const peak = ([input]) => Math.max(...(input ? input[0] ?? [] : []).map(Math.abs), 0);
    this.port.postMessage([currentTime, ...inputs.map((input) => peak([input]))]);
    return true;
  }
})`;
const source = URL.createObjectURL(new Blob([recorder], { type: "text/javascript" }));
const taps = new Map();
const connect = AudioNode.prototype.connect;
const listen = async (node, input) => {
  if (!taps.has(node.context)) taps.set(node.context, (async () => {
    await node.context.audioWorklet.addModule(source);
    const tap = new AudioWorkletNode(node.context, "tap", { numberOfInputs: 2 });
    tap.port.onmessage = ({ data }) => window.tapped.blocks.push(data);
    connect.call(tap, node.context.destination);
    window.clock = node.context;
    return tap;
  })());
  connect.call(node, await taps.get(node.context), 0, input);
};
AudioNode.prototype.connect = function (to, ...more) {
  if (to === this.context.destination) listen(this, 0);
  if (this instanceof MediaStreamAudioSourceNode) listen(this, 1);
  return connect.call(this, to, ...more);
};
const Plain = window.WebSocket;
window.WebSocket = class extends Plain {
  constructor(...all) {
    super(...all);
    this.addEventListener("message", ({ data }) => {
      const { type } = JSON.parse(data);
      if (type === "input_audio_buffer.speech_started") window.tapped.noticed.push(window.clock.currentTime);
    });
  }
};
"""


def microphone(words: Path, silence_s: float, out: Path) -> None:
    """The words with silence before them and after, as Chromium's fake microphone plays them: 48 kHz, 16 bits."""
    wave, rate = soundfile.read(words, dtype="float32", always_2d=True)
    voice = soxr.resample(wave.mean(1), rate, 48_000)
    silence = np.zeros(int(48_000 * silence_s), np.float32)
    soundfile.write(out, np.concatenate([silence[:48_000], voice, silence]), 48_000, subtype="PCM_16")


def tap(playwright: Any, url: str, file: Path, seconds: float) -> dict[str, Any]:
    """What the page played and heard: ``blocks`` of (time, peak played, peak heard), times at which the server
    ``noticed`` speech."""
    flags = ("--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={file}")
    with looking(playwright, *flags, permissions=["microphone"], bypass_csp=True) as page:
        page.add_init_script(TAP)
        page.goto(f"{url}/demo/")
        page.wait_for_selector(".widget-chat .chat")
        page.get_by_role("button", name=re.compile("Allow the microphone")).click()
        page.wait_for_timeout(1000 * seconds)
        found: dict[str, Any] = page.evaluate("window.tapped")
        return found


def interruptions(tapped: dict[str, Any]) -> list[dict[str, float]]:
    """Milliseconds ``from_event`` (speech noticed, as the page is told) and ``from_voice`` (the first sound of the
    person in the microphone) to the end of the answer that sounded, for each interruption."""
    blocks: NDArray[np.float64] = np.array(tapped["blocks"])
    times, played, heard = blocks.T
    sounding, speaking = times[played > SILENT], times[heard > SPOKEN]
    found = []
    for noticed in tapped["noticed"]:
        before = sounding[sounding <= noticed]
        if not len(before) or noticed - before[-1] > JUST_S:
            continue  # nothing was being said
        after = sounding[sounding > noticed]
        gaps = np.diff(after, prepend=noticed)
        ends = np.flatnonzero(gaps > QUIET_S)
        last = after[: ends[0]] if len(ends) else after
        silent = max(last[-1] if len(last) else before[-1], noticed)
        voice = speaking[(speaking > noticed - 2) & (speaking <= noticed)]
        starts = voice[np.diff(voice, prepend=0.0) > QUIET_S]
        found.append({"from_event": 1000 * (silent - noticed), "from_voice": 1000 * (silent - starts[-1])})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--words", type=Path, required=True, help="A recording of what interrupts.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--silence", type=float, default=6, help="Seconds between the words.")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "microphone.wav"
        microphone(given.words, given.silence, file)
        found = interruptions(tap(playwright, given.url, file, given.seconds))
    for kind in ("from_event", "from_voice"):
        values = sorted(one[kind] for one in found)
        told = {"interruptions": len(values), kind: [round(ms) for ms in values]}
        print(json.dumps({**told, "median_ms": round(median(values)) if values else None}))


if __name__ == "__main__":
    main()
