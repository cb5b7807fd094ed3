// The tab "Speak": a text, its sound as it is made, and what it took. Voice and speed stand at the top of the page.
import { openPlayer, wake } from "./audio.js";
import { el, seconds, settings, socketAddress } from "./dom.js";
import { Picture } from "./wave.js";
import { download, wavOf } from "./wav.js";

const MOST = 4096;
const SAMPLES = [
  ["Short", "Hello there. It is good to hear you."],
  ["Numbers", "On March 3rd, 2024, Dr. Smith paid $12.50 for 3 kg of apples at 7:30 a.m."],
  ["Story", "The north wind and the sun argued about which of them was stronger. A traveller came along, wrapped in a warm "
    + "cloak. They agreed that the one who first made him take it off should win. The wind blew as hard as it could, but "
    + "the more it blew, the closer he held it. Then the sun shone out warmly, and at once the traveller took it off."],
];
const LETTERS_PER_S = 15;
const PACED_S = 3.5; // the server sends as fast as it can until it is about this far ahead of real time

export function start(element) {
  element.querySelector(".widget").replaceChildren(new Speak().box);
}

class Speak {
  constructor() {
    this.picture = new Picture();
    this.text = el("textarea", { name: "text", rows: "6", maxlength: MOST, "aria-label": "Text to speak", oninput: () => this.count() },
      SAMPLES[0][1]);
    this.seed = el("input", { name: "seed", inputmode: "numeric", autocomplete: "off", placeholder: "its own", "aria-label": "Seed" });
    this.go = el("button", { class: "primary", type: "button", onclick: () => this.press() }, "Speak");
    this.play = el("button", { type: "button", disabled: true, onclick: () => this.toggle() }, "Play");
    this.save = el("button", { type: "button", disabled: true,
      onclick: () => download(wavOf(this.pieces), "speech.wav") }, "Download");
    this.figures = el("p", { class: "line quiet", role: "status" }, "No sound yet.");
    this.progress = el("span", { class: "quiet", "aria-live": "polite" });
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.counter = el("span", { class: "quiet number" });
    this.utterance = 0;
    this.socket = this.player = null;
    this.pieces = [];
    this.box = this.build();
    this.show("idle");
    this.count();
  }

  build() {
    const samples = SAMPLES.map(([name, text]) =>
      el("button", { class: "chip", type: "button", onclick: () => ((this.text.value = text), this.count()) }, name));
    return el("section", { class: "speak card", "aria-label": "Speak" },
      el("div", { class: "line" }, el("span", { class: "quiet" }, "Sample texts"), ...samples, el("span", { class: "grow" }), this.counter),
      this.text,
      el("div", { class: "line tools" },
        el("label", {}, el("span", {}, "Seed"), this.seed),
        el("span", { class: "grow" }), this.progress, this.go),
      this.notice, this.picture.box,
      el("div", { class: "line" }, this.play, this.save, el("span", { class: "grow" }), this.figures),
    );
  }

  count() {
    this.counter.textContent = `${this.text.value.length} of ${MOST}`;
  }

  show(state) {
    this.box.dataset.state = state; // idle, waiting, sounding, paused, done
    const making = this.socket !== null;
    this.go.textContent = making ? "Stop" : "Speak";
    this.play.disabled = !this.pieces.length;
    this.save.disabled = making || !this.pieces.length;
    this.play.textContent = state === "sounding" ? "Pause" : "Play";
  }

  say(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
  }

  press() {
    if (this.socket) return this.stop();
    const text = this.text.value.trim();
    if (!text) return this.say("Write something to speak first.");
    this.begin(text);
  }

  async begin(text) {
    wake();
    this.say("");
    const seed = this.seed.value.trim();
    if (seed && !Number.isSafeInteger(Number(seed))) return this.say("The seed must be a whole number; or leave it empty.");
    this.prepare(text);
    try {
      this.player ??= await openPlayer((report) => this.report(report));
    } catch (error) {
      this.say(`${error.message} The sound can be downloaded.`);
    }
    this.player?.flush();
    this.player?.hold(false);
    this.dial(text, seed);
  }

  prepare(text) {
    this.pieces = [];
    this.odd = null;
    this.utterance++;
    this.began = performance.now();
    this.firstMs = this.madeFor = null;
    this.samples = this.spoken = 0;
    this.sentences = text.split(/(?<=[.!?])\s+/).filter(Boolean).map((sentence) => sentence.split(/\s+/).length);
    this.picture.begin(Math.max(1.5, text.length / LETTERS_PER_S / settings.get("speed")));
    this.figures.textContent = "Waiting for the first sound ...";
    this.progress.textContent = "";
  }

  dial(text, seed) {
    const socket = new WebSocket(socketAddress("/v1/audio/speech/stream"));
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    const send = (event) => socket.send(JSON.stringify(event));
    socket.onopen = () => {
      const voice = settings.get("voice");
      send({ type: "session.config", response_format: "pcm", speed: settings.get("speed"),
        ...(voice ? { voice } : {}), ...(seed ? { seed: Number(seed) } : {}) });
      send({ type: "input.text", text });
      send({ type: "input.done" });
    };
    socket.onmessage = ({ data }) => this.socket === socket && (typeof data === "string" ? this.told(JSON.parse(data)) : this.sound(data));
    socket.onclose = () => this.socket === socket && this.broken();
    this.show("waiting");
  }

  told(event) {
    if (event.type === "audio.words") {
      this.picture.mark(event.words);
      this.spoken += event.words.length;
      this.sentence();
    } else if (event.type === "error") this.say(event.error.message);
    else if (event.type === "audio.done" || event.type === "session.done") this.finish(event);
  }

  sentence() {
    if (this.sentences.length < 2) return;
    let words = 0;
    const at = this.sentences.findIndex((count) => (words += count) >= this.spoken);
    this.progress.textContent = `sentence ${at < 0 ? this.sentences.length : at + 1} of ${this.sentences.length}`;
  }

  sound(data) {
    const now = performance.now();
    this.firstMs ??= now - this.began;
    const samples = new Int16Array(data);
    this.samples += samples.length;
    const aheadS = this.samples / 24000 - (now - this.began - this.firstMs) / 1000;
    if (aheadS < PACED_S) this.madeFor = { ms: now - this.began, s: this.samples / 24000 };
    this.pieces.push(samples);
    this.picture.push(samples);
    this.player?.push(`speak-${this.utterance}`, samples.slice());
    this.line();
  }

  line(reason) {
    const made = this.madeFor ?? { ms: 1, s: 0 };
    const parts = [`first sound ${Math.round(this.firstMs)} ms`, `${seconds(this.samples / 24000)} of sound`,
      `made at ${(made.s / (made.ms / 1000)).toFixed(1)} × real time`];
    if (reason && reason !== "stop") parts.push(`ended by ${reason}`);
    this.figures.textContent = parts.join("  ·  ");
  }

  finish(event) {
    this.hangUp();
    this.picture.end();
    this.player?.end();
    if (this.samples) this.line(event.finish_reason);
    else this.figures.textContent = "No sound.";
    this.progress.textContent = "";
    this.show(this.samples && this.player ? "sounding" : "done");
  }

  broken() {
    this.hangUp();
    this.player?.end();
    this.say("The server does not answer; see whether it is still running and warm.");
    if (!this.samples) this.figures.textContent = "No sound.";
    this.show("done");
  }

  hangUp() {
    const { socket } = this;
    this.socket = null;
    socket?.close(1000);
  }

  stop() {
    this.hangUp();
    this.picture.end();
    this.player?.flush();
    this.progress.textContent = "";
    this.show("done");
  }

  toggle() {
    wake();
    const { state } = this.box.dataset;
    if (state === "sounding" || state === "paused") {
      this.player.hold(state === "sounding");
      return this.show(state === "sounding" ? "paused" : "sounding");
    }
    this.utterance++;
    this.player.flush();
    for (const piece of this.pieces) this.player.push(`speak-${this.utterance}`, piece.slice());
    this.player.end();
    this.show("sounding");
  }

  report({ id, playedMs, bufferedS, playing }) {
    if (id !== `speak-${this.utterance}`) return;
    this.picture.played(playedMs / 1000);
    this.box.dataset.playedMs = Math.round(playedMs);
    const { state } = this.box.dataset;
    if (playing && state === "waiting") this.show("sounding");
    else if (!playing && state === "sounding" && !this.socket && bufferedS === 0) this.show("done");
  }
}
