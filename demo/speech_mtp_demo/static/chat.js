// The voice chat: orb, transcript, typing, and the panel that shows how an answer is made.
import { insecure, openPlayer, wake } from "./audio.js";
import { el, settings } from "./dom.js";
import { Ear } from "./ear.js";
import { Orb } from "./orb.js";
import { Panel } from "./panel.js";
import { Conversation, samplesOf } from "./realtime.js";
import { handlers } from "./told.js";
import { Transcript } from "./transcript.js";

const INTERRUPTED_MS = 700;
const QUESTIONS = ["Why is the sky blue?", "Tell me a short story about a fox.", "How do I make tea?"];

export function start(element, facts) {
  const chat = new Chat(facts);
  element.querySelector(".widget").replaceChildren(chat.box);
  return chat;
}

class Chat {
  constructor(facts) {
    this.facts = facts;
    this.orb = new Orb(() => this.tap());
    this.transcript = new Transcript();
    this.panel = new Panel((on) => this.conversation.open && this.conversation.update({ speech_mtp: { drafting: on } }));
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.answers = new Map(); // by item: {answer, ended, playedMs, soundMs}
    this.heard = new Map(); // turns of the person's, by item
    this.player = this.current = null;
    this.active = null; // the response that is being made
    this.dropped = new Set(); // responses that were interrupted: what still comes of them is not shown
    this.waiting = this.playing = this.cut = false;
    this.conversation = new Conversation(this.events(), () => ({
      voice: settings.get("voice"), speed: settings.get("speed"), drafting: this.panel.drafting,
    }));
    this.ear = new Ear({
      sound: (samples, level) => this.listen(samples, level),
      change: () => this.show(),
      problem: (sentence) => this.say(sentence),
      ready: () => this.ready(),
    });
    this.box = this.build();
    settings.watch((name) => (name === "voice" || name === "speed") && this.conversation.open && this.conversation.configure());
    addEventListener("keydown", (event) => this.key(event, true));
    addEventListener("keyup", (event) => this.key(event, false));
    this.greet();
  }

  build() {
    this.input = el("textarea", { name: "message", rows: "1", placeholder: "type instead ...", "aria-label": "Message",
      maxlength: "2000", onkeydown: (event) => event.key === "Enter" && !event.shiftKey && (event.preventDefault(), this.type()) });
    this.send = el("button", { class: "primary", type: "button", onclick: () => this.type() }, "Send");
    this.tries = el("div", { class: "tries" }, ...QUESTIONS.map((question) =>
      el("button", { class: "chip", type: "button", onclick: () => this.ask(question) }, question)));
    const fresh = el("button", { class: "plain fresh", type: "button", onclick: () => this.anew() }, "New conversation");
    return el("section", { class: "chat", "aria-label": "Voice chat" },
      el("div", { class: "chat-main card" },
        el("div", { class: "talk" }, this.transcript.box, this.notice), this.tries, this.orb.box,
        el("div", { class: "typing" }, this.input, this.send), el("div", { class: "under" }, fresh)),
      this.panel.box,
    );
  }

  greet() {
    if (!this.facts.chats) {
      this.say("No language model answers here. Start the server with --llm packaged, or with --llm-url, and reload.");
      this.send.disabled = this.input.disabled = this.orb.button.disabled = true;
    } else if (insecure()) this.say(insecure());
    this.show();
  }

  say(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
  }

  // -- the state ------------------------------------------------------------------------------------------------
  show() {
    const busy = this.active || this.waiting;
    const state = this.cut ? "interrupted" : this.playing || this.pausing ? "speaking" : busy ? "thinking" : this.ear.open ? "listening" : "idle";
    this.orb.known = this.ear.known;
    this.orb.show(state);
    if (state === "idle") this.orb.sound(0);
    this.box.dataset.state = state;
    this.tries.hidden = this.transcript.list.childElementCount > 0 || !this.facts.chats;
  }

  /** Whether an answer has begun to sound and waits for more. */
  get pausing() {
    const item = this.answers.get(this.current);
    return item !== undefined && !item.over && item.playedMs > 0;
  }

  // -- what a person does -----------------------------------------------------------------------------------------
  tap() {
    wake();
    if (this.playing || this.active || this.waiting) this.interrupt();
    else if (this.ear.open) this.ear.close();
    else if (this.canHear()) this.ear.listen();
  }

  key(event, down) {
    const typing = event.target.closest?.("input, textarea, select, button, summary, [contenteditable]");
    const here = this.box.offsetParent !== null;
    if (!here || !this.facts.chats) return;
    if (event.key === "Escape" && down) this.stop();
    if (event.code !== "Space" || (typing && !event.target.closest(".orb"))) return;
    event.preventDefault();
    if (event.repeat) return;
    wake();
    if (!down && this.ear.holding) this.ear.release();
    if (!down || this.ear.open || !this.canHear()) return;
    this.interrupt();
    this.ear.hold();
  }

  stop() {
    this.interrupt();
    this.ear.close();
  }

  canHear() {
    this.say(this.facts.hears ? "" : "This server recognises no speech; start it with --asr, or type below.");
    return this.facts.hears;
  }

  listen(samples, level) {
    if (this.orb.state === "listening") this.orb.sound(level * 2);
    this.conversation.hear(samples);
  }

  type() {
    const text = this.input.value.trim();
    if (!text) return this.input.focus();
    this.input.value = "";
    this.ask(text);
  }

  async ask(text) {
    this.say("");
    wake();
    this.interrupt();
    this.cut = false;
    this.transcript.user(text);
    this.waiting = true;
    this.show();
    try {
      await this.ready();
      this.conversation.say(text);
      this.conversation.turns.push({ role: "user", text });
    } catch (error) {
      this.fail(error.message);
    }
  }

  async ready() {
    try {
      this.player ??= await openPlayer((report) => this.report(report));
    } catch (error) {
      this.say(error.message); // answers are still written
    }
    await this.conversation.connect();
  }

  /** Stop what is said now: at once here, then at the server, which is told how much was heard. */
  interrupt(serverKnows = false) {
    const { current } = this;
    const item = this.answers.get(current);
    if (this.active) {
      this.dropped.add(this.active);
      if (!serverKnows) this.conversation.cancel();
    }
    if (item && !item.over && (this.playing || this.active || item.soundMs > item.playedMs)) {
      this.player?.flush();
      this.conversation.truncate(current, item.playedMs);
      this.end(item, item.answer.strike());
      this.fall();
    }
    this.waiting = this.playing = false;
    this.active = null;
    this.show();
  }

  fall() {
    this.cut = true;
    setTimeout(() => ((this.cut = false), this.show()), INTERRUPTED_MS);
  }

  end(item, text) {
    item.over = true;
    if (text) this.conversation.turns.push({ role: "assistant", text });
  }

  anew() {
    this.stop();
    this.conversation.leaving = true;
    this.conversation.socket?.close(1000);
    this.conversation.turns = [];
    this.transcript.clear();
    this.answers.clear();
    this.say("");
    this.show();
  }

  fail(sentence) {
    this.waiting = false;
    this.active = null;
    this.say(sentence);
    this.show();
  }

  // -- what the player tells ----------------------------------------------------------------------------------------
  report({ id, playedMs, bufferedS, level, playing }) {
    const item = this.answers.get(id);
    this.panel.buffered(bufferedS);
    if (item && !item.over) {
      item.playedMs = Math.max(0, playedMs - this.player.latencyMs());
      item.answer.heard(item.playedMs);
      this.box.dataset.playedMs = Math.round(item.playedMs);
      if (item.ended && !playing && bufferedS === 0) {
        item.answer.finish();
        this.end(item, item.answer.text);
      }
    }
    const changed = playing !== this.playing;
    this.playing = playing;
    if (playing) this.orb.sound(level);
    else if (changed) this.orb.sound(0);
    if (changed) this.show();
  }

  // -- what the server tells --------------------------------------------------------------------------------------
  events() {
    const on = handlers(this);
    const kept = ([type, take]) => [type, (event) => this.dropped.has(event.response_id) || take(event)];
    return Object.fromEntries(Object.entries(on).map(kept));
  }

  begin(response) {
    this.active = response.id;
    this.waiting = false;
    this.panel.begin();
    this.show();
  }

  item(id) {
    if (!this.answers.has(id)) {
      this.answers.set(id, { answer: this.transcript.answer(), ended: false, over: false, playedMs: 0, soundMs: 0 });
      this.current = id;
      this.show();
    }
    return this.answers.get(id);
  }

  sound(event) {
    const item = this.item(event.item_id);
    if (item.over) return; // it was interrupted while this was on its way
    const samples = samplesOf(event);
    item.soundMs += samples.length / 24;
    this.player?.push(event.item_id, samples);
  }

  soundEnds(id) {
    const item = this.item(id);
    item.ended = true;
    if (!item.over) this.player?.end();
  }

  done(response) {
    if (this.active === response.id) this.active = null;
    if (this.dropped.delete(response.id)) return;
    const item = this.answers.get(this.current);
    if (response.status === "failed") this.fail(response.status_details?.error?.message ?? "The answer has failed; ask once more.");
    if (item && !item.over && (!this.player || item.soundMs === 0)) {
      item.answer.finish();
      this.end(item, item.answer.text);
    }
    this.show();
  }

  refused(error) {
    if (error.code === "response_cancel_not_active") return; // it had ended already
    this.fail(error.message);
  }

  closed(sentence) {
    this.active = null;
    this.waiting = false;
    if (this.ear.open) this.ear.close();
    this.say(this.conversation.leaving ? "" : sentence);
    this.conversation.leaving = false;
    this.show();
  }
}
