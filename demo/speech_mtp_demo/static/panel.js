// "How it is made": what the server tells of an answer while it makes it.
import { calm, el } from "./dom.js";
import { chainPicture } from "./tree.js";

const BARS = 48;
const MOST_TOKENS = 400; // that are shown of an answer
const FULL_BUFFER_S = 4; // the server sends no more than this ahead

export class Panel {
  constructor(onswitch) {
    this.bars = el("div", { class: "bars", role: "img", "aria-label": "Tokens kept, by forward" });
    this.numbers = {};
    const rows = el("dl", { class: "figures" });
    for (const [key, name] of [
      ["tokens", "tokens per forward"],
      ["steps", "speech steps / s"],
      ["first", "first sound"],
      ["factor", "real-time factor"],
    ]) {
      this.numbers[key] = el("dd", {}, "-");
      rows.append(el("dt", {}, name), this.numbers[key]);
      if (key === "tokens") rows.append(this.bars);
    }
    this.meter = el("span", { class: "meter-fill" });
    this.buffer = el("span", { class: "number" }, "-");
    this.switch = el("button", { class: "switch", type: "button", role: "switch", "aria-checked": "true",
      "aria-label": "Drafting", onclick: () => this.turn(onswitch) });
    this.sides = { true: el("b", {}, "-"), false: el("b", {}, "-") };
    this.tokens = el("p", { class: "tokens", "aria-label": "Tokens of the answer" });
    this.picture = el("div", { class: "picture" });
    this.last = null;
    this.rejects = el("span", { class: "token ghost", hidden: true }, "rejected"); // not every server tells of these
    const more = el("details", { ontoggle: () => this.draw() },
      el("summary", {}, "Picture of the last step"), this.picture);
    this.more = more;
    const wide = matchMedia("(min-width: 900px)");
    this.box = el("details", { class: "panel card", open: wide.matches },
      el("summary", { class: "panel-title" }, el("h2", {}, "How it is made")),
      rows,
      el("div", { class: "meter-row" }, el("span", {}, "buffer"), el("span", { class: "meter" }, this.meter), this.buffer),
      el("div", { class: "switch-row" }, el("span", {}, "drafting"), this.switch,
        el("span", { class: "quiet sides" }, el("span", {}, "with ", this.sides.true), el("span", {}, "without ", this.sides.false))),
      el("h3", {}, "Tokens"),
      el("p", { class: "legend quiet" }, el("span", { class: "token kept" }, "drafted, kept"), " ",
        el("span", { class: "token own" }, "its own"), " ", this.rejects),
      this.tokens,
      more,
    );
    wide.addEventListener("change", () => (this.box.open = wide.matches));
  }

  get drafting() {
    return this.switch.getAttribute("aria-checked") === "true";
  }

  turn(onswitch) {
    this.switch.setAttribute("aria-checked", String(!this.drafting));
    onswitch(this.drafting);
  }

  /** A new answer begins. */
  begin() {
    this.tokens.replaceChildren();
    this.bars.replaceChildren();
    this.forward = 0;
    for (const number of Object.values(this.numbers)) number.textContent = "-";
  }

  figures(event) {
    const { numbers } = this;
    const show = (key, value, digits, unit = "") =>
      (numbers[key].textContent = value == null ? "-" : value.toFixed(digits) + unit);
    show("tokens", event.tokens_per_forward, 2);
    show("steps", event.speech_steps_per_s, 1);
    show("first", event.first_audio_ms, 0, " ms");
    show("factor", event.real_time_factor, 2);
    if (event.tokens_per_forward) this.sides[event.drafting].textContent = `${event.tokens_per_forward.toFixed(2)} ×`;
  }

  buffered(s) {
    this.meter.style.width = `${Math.min(100, (100 * s) / FULL_BUFFER_S)}%`;
    this.buffer.textContent = `${s.toFixed(1)} s`;
  }

  steps(list) {
    for (const step of list) {
      this.forward++;
      this.bars.append(el("i", { style: `height: ${Math.min(100, 14 * step.tokens.length)}%` }));
      step.tokens.forEach((token, depth) => this.token(token, depth));
      for (const token of step.rejected ?? []) this.ghost(token);
      this.last = step;
    }
    while (this.bars.childElementCount > BARS) this.bars.firstChild.remove();
    while (this.tokens.childElementCount > MOST_TOKENS) this.tokens.firstChild.remove();
    this.tokens.scrollTop = this.tokens.scrollHeight;
    this.draw();
  }

  token({ text, drafted }, depth) {
    const about = drafted ? `draft ${depth + 1} of forward ${this.forward}, kept` : `forward ${this.forward}, the model's own`;
    this.tokens.append(el("span", { class: `token ${drafted ? "kept" : "own"}`, title: about }, shown(text)));
  }

  ghost({ text }) {
    this.rejects.hidden = false;
    const made = el("span", { class: "token ghost", title: `forward ${this.forward}, rejected` }, shown(text));
    this.tokens.append(made);
    setTimeout(() => made.remove(), calm() ? 1500 : 2500);
  }

  draw() {
    if (this.more?.open && this.last) this.picture.replaceChildren(chainPicture(this.last));
  }
}

/** A token with its line breaks made visible. */
export function shown(text) {
  return text.replaceAll("\n", "⏎");
}
