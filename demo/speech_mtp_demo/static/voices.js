// The tab "Voices": those that there are, one of your own, and a recording said again in another voice.
import { wake } from "./audio.js";
import { ask, base64Of, bytesOf, el, ownVoices, seconds, watchVoices } from "./dom.js";
import { download, samplesOfFile, wavOf } from "./wav.js";

const SENTENCE = "Hello, this is my voice. I hope you like the sound of it.";
const MOST_S = 15; // of a recording that is said again

export function start(element, facts, server) {
  element.querySelector(".widget").replaceChildren(new Voices(server).box);
}

class Voices {
  constructor(server) {
    this.server = server;
    this.sound = null; // what plays now
    this.cards = el("div", { class: "cards" });
    this.notice = el("p", { class: "notice", role: "alert", hidden: true });
    this.box = el("section", { class: "voices", "aria-label": "Voices" }, this.cards, this.notice,
      el("div", { class: "pair" }, this.own(), this.again()),
      el("p", { class: "quiet" }, "The shipped model has heard some 270 synthetic voices. A new voice moves towards yours and is no clone; "
        + "train a codec on real speakers for more (recipes/tokenizer)."));
    const fill = (list) => this.fill(list);
    watchVoices(fill);
    ownVoices().then(fill, (error) => this.say(error.message));
  }

  say(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
  }

  // -- the voices that there are ------------------------------------------------------------------------------------
  fill(list) {
    this.voices = list;
    this.target.replaceChildren(...list.map((voice) => el("option", { value: voice.id }, voice.name)));
    this.cards.replaceChildren(...list.map((voice) => this.card(voice)));
  }

  card(voice) {
    const play = el("button", { type: "button", onclick: () => this.sample(voice.id, play) }, "Play sample");
    const own = voice.created_at != null;
    const drop = el("button", { class: "plain", type: "button", onclick: () => this.remove(voice.id) }, "Delete");
    const about = voice.similarity != null
      ? `similarity to its reference ${voice.similarity.toFixed(2)}`
      : own ? "made from a recording" : "shipped with the model";
    return el("div", { class: "card voice" }, el("h2", {}, voice.name), el("p", { class: "quiet" }, about),
      el("div", { class: "line" }, play, ...(own ? [drop] : [])));
  }

  async sample(voice, button) {
    wake();
    this.say("");
    button.disabled = true;
    try {
      const answer = await ask("/v1/audio/speech", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ input: SENTENCE, voice, response_format: "wav", stream: false }),
      });
      await this.play(await answer.blob());
    } catch (error) {
      this.say(error.message);
    } finally {
      button.disabled = false;
    }
  }

  async play(blob) {
    this.sound?.pause();
    this.sound = new Audio(URL.createObjectURL(blob));
    await this.sound.play();
  }

  async remove(id) {
    this.say("");
    try {
      await ask(`/v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
      await ownVoices(true);
    } catch (error) {
      this.say(error.message);
    }
  }

  // -- a voice of your own ------------------------------------------------------------------------------------------
  own() {
    const drop = new Drop("Drop a recording of 3 to 60 seconds here, or choose a file");
    const name = el("input", { name: "voice-name", maxlength: "64", placeholder: "name", "aria-label": "Name of the new voice",
      pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}", autocomplete: "off" });
    const consent = el("input", { type: "checkbox", name: "consent" });
    const told = el("p", { class: "quiet", role: "status" });
    const make = el("button", { class: "primary", type: "button", onclick: () => this.make(drop, name, consent, told, make) }, "Make voice");
    return el("div", { class: "card" }, el("h2", {}, "A voice of your own"), drop.box,
      el("div", { class: "line" }, name),
      el("label", { class: "consent" }, consent, el("span", {}, "The speaker agrees that this voice is made and used here.")),
      el("div", { class: "line" }, make), told);
  }

  async make(drop, name, consent, told, button) {
    const wrong = !drop.file ? "Choose a recording first." : !name.value.trim() ? "Give the voice a name."
      : !name.checkValidity() ? "A name has letters, digits, dots and hyphens." : !consent.checked ? "The speaker must agree first." : "";
    told.textContent = wrong || "Listening to the recording ...";
    if (wrong) return;
    const form = new FormData();
    form.set("audio_sample", drop.file);
    form.set("name", name.value.trim());
    form.set("consent", "The speaker agreed, says whoever made this voice on the demo's page.");
    button.disabled = true;
    try {
      const made = await (await ask("/v1/audio/voices", { method: "POST", body: form })).json();
      await ownVoices(true);
      told.textContent = `The voice ${made.name} is ready; play its sample above. ${made.note ?? ""}`;
    } catch (error) {
      told.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  }

  // -- a recording in another voice ---------------------------------------------------------------------------------
  again() {
    const drop = new Drop(`Drop a recording here, or choose a file; its first ${MOST_S} seconds count`);
    this.target = el("select", { name: "target" });
    const told = el("p", { class: "quiet", role: "status" });
    const save = el("button", { type: "button", disabled: true, onclick: () => download(this.said, "said-again.wav") }, "Download");
    const say = el("button", { class: "primary", type: "button", onclick: () => this.swap(drop, told, say, save) }, "Say it again");
    return el("div", { class: "card" }, el("h2", {}, "My recording in this voice"), drop.box,
      el("label", {}, el("span", {}, "Voice"), this.target), el("div", { class: "line" }, say, save), told);
  }

  async swap(drop, told, button, save) {
    wake();
    if (!drop.file) return (told.textContent = "Choose a recording first.");
    button.disabled = true;
    told.textContent = "Working ...";
    try {
      const { samples, seconds: length } = await samplesOfFile(drop.file, MOST_S);
      const made = await this.server.swap({ audio: base64Of(new Uint8Array(samples.buffer)), voice: this.target.value });
      if (made.error) throw new Error(made.error);
      this.said = wavOf([bytesOf(made.audio)]);
      save.disabled = false;
      told.textContent = `${seconds(Math.min(length, MOST_S))} said again in ${this.target.value}.`;
      await this.play(this.said);
    } catch (error) {
      told.textContent = error.name === "EncodingError" ? "The browser cannot read this file; use WAV, MP3, FLAC or Ogg." : error.message;
    } finally {
      button.disabled = false;
    }
  }
}

/** Where a sound file is dropped or chosen. */
class Drop {
  constructor(sentence) {
    this.file = null;
    this.input = el("input", { type: "file", accept: "audio/*,.wav", class: "file", onchange: () => this.take(this.input.files[0]) });
    this.text = el("span", {}, sentence);
    this.box = el("label", { class: "drop" }, this.input, this.text);
    this.box.addEventListener("dragover", (event) => (event.preventDefault(), this.box.classList.add("over")));
    this.box.addEventListener("dragleave", () => this.box.classList.remove("over"));
    this.box.addEventListener("drop", (event) => {
      event.preventDefault();
      this.box.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    });
  }

  take(file) {
    if (!file) return;
    this.file = file;
    this.text.textContent = `${file.name} (${Math.ceil(file.size / 1024)} kB)`;
  }
}
