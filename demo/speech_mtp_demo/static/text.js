// The tab "Text": one prompt, decoded in several ways by the server's own language model, measured just now.
import { el } from "./dom.js";
import { shown } from "./panel.js";
import { treePicture } from "./tree.js";

const PROMPTS = ["Why is the sky blue?", "Count from one to twenty in words.", "Write a haiku about rain."];
const LOOK_MS = 200;
const PLAIN = { head: "none", rule: "vanilla" };

export async function start(element, facts, server) {
  const box = element.querySelector(".widget");
  box.replaceChildren(el("p", { class: "quiet" }, "Asking which heads there are ..."));
  try {
    const options = await server.options({});
    box.replaceChildren(options.error ? el("p", { class: "card notice" }, options.error) : new TextLab(options.heads, server).box);
  } catch {
    box.replaceChildren(el("p", { class: "card notice" }, "The server does not answer; see whether it is still running, and reload."));
  }
}

class TextLab {
  constructor(heads, server) {
    this.heads = heads;
    this.server = server;
    this.job = null;
    this.measured = new Map(); // "head rule" -> what was measured with this prompt
    this.steps = []; // of the lane whose steps are drawn
    this.box = this.build();
    this.fillRules();
    this.table();
  }

  build() {
    this.prompt = el("textarea", { name: "prompt", rows: "4", maxlength: "2000", "aria-label": "Prompt",
      oninput: () => this.forget() }, PROMPTS[0]);
    this.head = el("select", { name: "head", onchange: () => this.fillRules() },
      ...this.heads.map(({ name }) => el("option", { value: name }, name)));
    this.rule = el("select", { name: "rule" });
    this.buttons = [
      el("button", { class: "primary", type: "button", onclick: () => this.begin([this.way()]) }, "Answer"),
      el("button", { type: "button", onclick: () => this.begin([this.way(), PLAIN]) }, "Race plain"),
      el("button", { type: "button", onclick: () => this.begin(this.all(), true) }, "Measure all"),
    ];
    this.stop = el("button", { type: "button", disabled: true, onclick: () => this.server.stop({ job: this.job }) }, "Stop");
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.lanes = el("div", { class: "lanes" }, el("p", { class: "quiet" }, "The answer appears here, its tokens as they become sure."));
    this.results = el("div", { class: "results" });
    const chips = PROMPTS.map((text) =>
      el("button", { class: "chip", type: "button", onclick: () => ((this.prompt.value = text), this.forget()) }, text));
    return el("section", { class: "text-lab", "aria-label": "Text" },
      el("div", { class: "lab-top" },
        el("div", { class: "card lab-ask" }, this.prompt, el("div", { class: "line" }, ...chips),
          el("div", { class: "line tools" }, el("label", {}, el("span", {}, "Head"), this.head),
            el("label", {}, el("span", {}, "Rule"), this.rule)),
          el("div", { class: "line" }, ...this.buttons, this.stop), this.notice),
        el("div", { class: "card lab-answer" }, el("p", { class: "legend quiet" },
          el("span", { class: "token kept" }, "drafted, kept"), " ", el("span", { class: "token own" }, "the model's own"), " ",
          el("span", { class: "token corrected" }, "its correction of a draft")), this.lanes)),
      this.stepCard(),
      el("div", { class: "card" }, el("h2", {}, "Measured just now, on this machine"), this.results),
    );
  }

  stepCard() {
    this.slider = el("input", { type: "range", min: "1", max: "1", value: "1", disabled: true, "aria-label": "Step",
      oninput: () => this.draw() });
    this.place = el("span", { class: "quiet number" }, "no step yet");
    this.drawing = el("div", { class: "picture" });
    return el("div", { class: "card" }, el("h2", {}, "One step"),
      el("p", { class: "quiet" }, "What was drafted in one forward of the model: kept tokens lead to the right, dashed ones were rejected."),
      el("div", { class: "line" }, this.slider, this.place), this.drawing);
  }

  fillRules() {
    const { rules } = this.heads.find(({ name }) => name === this.head.value);
    this.rule.replaceChildren(...rules.map((name) => el("option", { value: name }, name)));
  }

  way() {
    return { head: this.head.value, rule: this.rule.value };
  }

  all() {
    return this.heads.flatMap(({ name, rules }) => rules.map((rule) => ({ head: name, rule })));
  }

  forget() {
    this.measured.clear();
    this.table();
  }

  say(sentence) {
    this.notice.textContent = sentence ?? "";
    this.notice.hidden = !sentence;
  }

  async begin(ways, only = false) {
    const prompt = this.prompt.value.trim();
    this.say(prompt ? "" : "Write a prompt first.");
    if (!prompt) return;
    this.busy(true);
    try {
      const begun = await this.server.begin({ prompt, ways });
      if (begun.error) return this.say(begun.error);
      this.job = begun.job;
      this.panes = ways.map((way) => new Pane(way));
      if (!only) this.lanes.replaceChildren(...this.panes.map((pane) => pane.box));
      await this.follow();
    } catch {
      this.say("The server does not answer; see whether it is still running.");
    } finally {
      this.busy(false);
    }
  }

  busy(on) {
    for (const button of this.buttons) button.disabled = on;
    this.stop.disabled = !on;
    this.box.dataset.busy = on;
  }

  async follow() {
    for (;;) {
      const told = await this.server.more({ job: this.job, seen: this.panes.map((pane) => pane.steps.length) });
      if (told.error) this.say(told.error);
      (told.lanes ?? []).forEach((lane, i) => this.panes[i].show(lane));
      for (const lane of told.lanes ?? []) if (lane.tokens) this.measured.set(`${lane.head} ${lane.rule}`, lane);
      this.table();
      this.follows(this.panes[0].steps);
      if (told.over || told.error) return;
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  follows(steps) {
    const atEnd = this.steps !== steps || this.slider.value === this.slider.max; // else the reader looks at another
    this.steps = steps;
    this.slider.disabled = !steps.length;
    this.slider.max = String(Math.max(1, steps.length));
    if (atEnd) this.slider.value = this.slider.max;
    this.draw();
  }

  draw() {
    const step = this.steps[Number(this.slider.value) - 1];
    this.place.textContent = step ? `step ${this.slider.value} of ${this.steps.length}` : "no step yet";
    if (step) this.drawing.replaceChildren(treePicture(nodesOf(step)));
  }

  table() {
    const plain = this.measured.get("none vanilla");
    const row = ({ head, rule }) => {
      const found = this.measured.get(`${head} ${rule}`);
      const numbers = found
        ? [found.tokens_per_forward.toFixed(2), found.tokens_per_s.toFixed(1),
          plain ? `${(found.tokens_per_s / plain.tokens_per_s).toFixed(2)} ×` : "-"]
        : ["-", "-", "-"];
      return el("tr", {}, el("th", { scope: "row" }, head), el("td", {}, rule), ...numbers.map((number) => el("td", {}, number)));
    };
    const names = ["head", "rule", "tokens / forward", "tokens / s", "against plain"];
    this.results.replaceChildren(
      el("table", {}, el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...this.all().map(row))),
      el("p", { class: "quiet" }, "Tokens per second of decoding, without reading the prompt. A forward that checks a draft "
        + "costs more than one that adds a token, so whether drafting pays depends on the machine. Greedy, one prompt: a look, not a benchmark."),
    );
  }
}

/** One way's answer: its tokens in colour and its figures. */
class Pane {
  constructor({ head, rule }) {
    this.steps = [];
    this.text = el("p", { class: "tokens answer-tokens" });
    this.line = el("p", { class: "quiet number" }, "reading the prompt ...");
    this.box = el("div", { class: "lane" }, el("h3", {}, head === "none" ? rule : `${head}, ${rule}`), this.text, this.line);
  }

  show(lane) {
    for (const step of lane.steps) {
      this.steps.push(step);
      const corrected = step.nodes.length > step.tokens.length;
      for (const { text, drafted } of step.tokens) {
        const kind = drafted ? "kept" : corrected ? "corrected" : "own";
        this.text.append(el("span", { class: `token ${kind}`, title: `forward ${this.steps.length}` }, shown(text)));
      }
    }
    this.text.scrollTop = this.text.scrollHeight;
    if (!lane.tokens) return;
    this.line.textContent = `${lane.tokens_per_forward.toFixed(2)} tokens per forward  ·  ${lane.tokens_per_s.toFixed(1)} tokens / s  ·  `
      + `${lane.tokens} tokens${lane.over ? ", done" : ""}`;
  }
}

/** The nodes of a step for its picture, the model's own token behind the last kept one. */
function nodesOf({ nodes, tokens }) {
  const drawn = nodes.map((node, i) => ({ ...node, own: i === 0 }));
  const end = nodes.findLastIndex((node) => node.kept);
  const own = tokens.findLast((token) => !token.drafted);
  if (own) drawn.push({ text: own.text, parent: end, kept: true, own: true });
  return drawn;
}
