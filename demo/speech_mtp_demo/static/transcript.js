// The written conversation: what was said, and of answers which words have been heard.
import { calm, el } from "./dom.js";

const AT_END = 24; // pixels from the end within which a reader follows
const MARGIN = 40; // pixels below the word that sounds

export class Transcript {
  constructor() {
    this.list = el("ol", { class: "turns", "aria-label": "Conversation" });
    this.empty = el("p", { class: "empty quiet" }, "What you say and what it answers appears here.");
    this.follows = true; // the reader has not scrolled away
    this.sounding = null; // the word that is spoken now, or the answer that will be
    this.moved = 0; // where it was scrolled to by itself
    this.box = el("div", { class: "transcript", tabindex: "0", role: "log", "aria-label": "Transcript",
      onscroll: () => this.scrolled() }, this.empty, this.list);
  }

  /** A turn of the person's, whose text may come later. */
  user(text = "") {
    const body = el("p", {}, text || "…");
    this.add("You", body, "you");
    return {
      set: (said) => this.keep(() => (body.textContent = said)),
      fail: (sentence) => this.keep(() => (body.replaceChildren(el("em", {}, sentence)), body.classList.add("quiet"))),
    };
  }

  answer() {
    const body = el("p", { class: "answer" });
    this.follows = true;
    this.sounding = body; // its beginning stays in sight until its first word sounds
    this.add("It", body, "it");
    return new Answer(body, this);
  }

  add(who, body, kind) {
    this.empty.hidden = true;
    this.keep(() => this.list.append(el("li", { class: kind }, el("span", { class: "who" }, who), body)));
  }

  keep(change) {
    change();
    this.settle();
  }

  /** Unless the reader looks elsewhere, show the word that sounds, or the end. */
  settle() {
    const { box, sounding } = this;
    if (!this.follows) return;
    const end = box.scrollHeight - box.clientHeight;
    let place = end;
    if (sounding) {
      const [top, bottom] = [sounding.offsetTop, sounding.offsetTop + sounding.offsetHeight + MARGIN];
      const seen = top >= box.scrollTop && bottom <= box.scrollTop + box.clientHeight;
      place = seen ? box.scrollTop : Math.min(end, top - box.clientHeight / 3);
    }
    this.moved = Math.max(0, Math.round(place));
    if (Math.abs(box.scrollTop - this.moved) > 1) box.scrollTop = this.moved;
  }

  scrolled() {
    const { box } = this;
    if (Math.abs(box.scrollTop - this.moved) < 2) return;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < AT_END;
    const word = this.sounding?.offsetTop - box.scrollTop;
    this.follows = atEnd || (word > 0 && word < box.clientHeight);
  }

  sound(word) {
    this.sounding = word;
    this.settle();
  }

  clear() {
    this.sounding = null;
    this.list.replaceChildren();
    this.empty.hidden = false;
  }
}

/** One answer: words in grey until they are heard, the one that sounds underlined. */
class Answer {
  constructor(body, transcript) {
    this.body = body;
    this.transcript = transcript;
    this.text = "";
    this.words = []; // {from, to, startMs, endMs, span}: pieces of the text between white space
    this.searched = 0; // how far words have been found in the text
    this.heardMs = 0;
    this.now = -1;
    this.over = false;
  }

  write(piece) {
    if (this.over) return;
    this.text += piece;
    this.transcript.keep(() => this.cut());
  }

  /** Spans for the words of the text; only the last of them can have grown. */
  cut() {
    const last = this.words.at(-1);
    const from = last ? last.from : 0;
    for (const match of this.text.slice(from).matchAll(/\S+/g)) {
      const [start, end] = [from + match.index, from + match.index + match[0].length];
      const known = last && start === last.from ? last : this.grow(start);
      known.to = end;
      known.span.textContent = match[0];
    }
  }

  grow(from) {
    const word = { from, to: from, startMs: null, endMs: null, span: el("span", { class: "word" }) };
    this.body.append(this.words.length ? " " : "", word.span);
    this.words.push(word);
    return word;
  }

  /** When words sound: [{text, start_ms, end_ms, start_char, end_char}]; without places, they are looked for in order. */
  time(spoken) {
    for (const one of spoken) {
      let [from, to] = [one.start_char, one.end_char];
      if (from == null) {
        from = this.text.toLowerCase().indexOf(one.text.toLowerCase(), this.searched);
        if (from < 0) continue;
        to = from + one.text.length;
      }
      this.searched = Math.max(this.searched, to);
      for (const word of this.words) {
        if (word.to <= from || word.from >= to) continue;
        word.startMs = Math.min(word.startMs ?? Infinity, one.start_ms);
        word.endMs = Math.max(word.endMs ?? 0, one.end_ms);
      }
    }
    this.mark();
  }

  /** So much of the sound has been heard. */
  heard(ms) {
    this.heardMs = ms;
    this.mark();
  }

  mark() {
    let now = -1;
    this.words.forEach((word, i) => {
      if (word.startMs != null && word.startMs <= this.heardMs) now = i;
    });
    const ended = now >= 0 && this.words[now].endMs < this.heardMs - 400;
    this.words.forEach((word, i) => {
      word.span.classList.toggle("heard", i <= now);
      word.span.classList.toggle("now", i === now && !ended && !this.over);
    });
    if (now !== this.now && now >= 0) this.transcript.sound(this.words[now].span);
    this.now = now;
  }

  /** It has been heard to its end. */
  finish() {
    this.over = true;
    for (const word of this.words) word.span.className = "word heard";
    this.transcript.sound(null);
  }

  /** It was interrupted: what was not heard is struck, and soon gone. Returns what was heard. */
  strike() {
    if (this.over) return this.text;
    this.over = true;
    this.mark();
    const unheard = this.words.filter((_, i) => i > this.now);
    for (const word of unheard) word.span.classList.add("struck");
    this.words = this.words.slice(0, this.now + 1);
    this.text = this.text.slice(0, this.words.at(-1)?.to ?? 0);
    setTimeout(() => this.transcript.keep(() => this.drop(unheard)), calm() ? 800 : 1500);
    return this.text;
  }

  drop(words) {
    for (const word of words) {
      word.span.previousSibling?.remove();
      word.span.remove();
    }
    this.transcript.sounding = null;
    this.body.append(el("span", { class: "cut quiet" }, this.words.length ? " - interrupted" : "interrupted"));
  }
}
