// The orb: the state of the conversation as a shape, and as a word beside it. It is also the button.
import { el } from "./dom.js";

const WORDS = {
  idle: "Ready",
  listening: "Listening",
  thinking: "Thinking",
  speaking: "Speaking",
  interrupted: "Interrupted",
};
const HINTS = {
  first: "Allow the microphone and speak",
  idle: "Tap, or hold space, and speak",
  listening: "Speak; tap to stop listening",
  thinking: "Tap to stop",
  speaking: "Speak or tap to interrupt",
  interrupted: "Stopped",
};

export class Orb {
  constructor(ontap) {
    this.state = "idle";
    this.known = false; // whether the microphone was ever allowed here
    this.level = 0;
    this.button = el("button", { class: "orb", type: "button", onclick: ontap }, el("span", { class: "orb-core" }));
    this.word = el("strong", { class: "state", role: "status", "aria-live": "polite" });
    this.hint = el("span", { class: "hint quiet" });
    this.box = el("div", { class: "orb-box" }, this.button, el("div", { class: "orb-words" }, this.word, this.hint));
    this.show("idle");
  }

  show(state) {
    this.state = state;
    this.box.dataset.state = state;
    if (this.word.textContent !== WORDS[state]) this.word.textContent = WORDS[state];
    this.hint.textContent = state === "idle" && !this.known ? HINTS.first : HINTS[state];
    this.button.setAttribute("aria-label", `${WORDS[state]}. ${this.hint.textContent}`);
  }

  /** Loudness, 0 to 1, of what is heard or said. */
  sound(level) {
    this.level = Math.max(Math.min(1, level * 5), this.level * 0.75);
    this.button.style.setProperty("--level", this.level.toFixed(3));
  }
}
