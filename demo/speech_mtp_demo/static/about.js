// The tab "About": what this is made of, under which terms, what it does not do, and how to measure it again.
import { el } from "./dom.js";

const LICENCES = [
  ["speech_mtp", "Apache-2.0, code and shipped weights"],
  ["SmolLM2-135M-Instruct", "Apache-2.0; reads the text for the voice, and answers chats where it is loaded"],
  ["the voices", "synthetic; taught by hibari-tts and Kokoro-82M (Apache-2.0)"],
  ["this page", "Gradio (Apache-2.0); its widgets are part of speech_mtp"],
];
const NOT_DONE = [
  "Languages other than English.",
  "Real speakers: the shipped model has heard some 270 voices, all synthetic; a new voice moves towards yours and is no clone.",
  "WebRTC; sound goes over a WebSocket.",
  "Drafting of speech: the shipped model drafts text alone, as no head for speech has paid yet.",
];
const COMMANDS = [
  ["tokens per forward, tokens per second", 'speech-mtp generate "Why is the sky blue?" --stats'],
  ["all heads and rules on one machine", "speech-mtp bench text --questions lines.txt --json bench.json"],
  ["first sound, real-time factor, many streams", "speech-mtp bench streams --streams 1,2,4 --json streams.json"],
  ["how well it is understood, how it sounds", "speech-mtp eval speech --sentences lines.txt --json scores.json"],
];

export function start(element, facts) {
  const { model } = facts;
  const rows = (pairs) => pairs.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]);
  element.querySelector(".widget").replaceChildren(
    el("section", { class: "about card", "aria-label": "About" },
      el("h2", {}, "What speaks here"),
      el("dl", { class: "facts" }, ...rows([
        ["model", model.name],
        ["voices", model.voices.join(", ")],
        ["codec", `${model.sample_rate / 1000} kHz, ${model.frame_rate_hz} frames a second; streams: ${model.streams.join(", ")}`],
        ["a step", `${model.frames_per_step} frames of speech`],
        ["answers by", model.author ?? "nothing; start the server with --llm or --llm-url"],
        ["hears by", model.recogniser ?? "nothing; start the server with a recogniser (--asr)"],
      ])),
      el("p", {}, "A language model writes the answer, several tokens a forward: a small head drafts, the model verifies, and the text is "
        + "what it would have written alone. A talker turns the words into groups of codec frames while they are written, and a streaming "
        + "vocoder sounds them."),
      el("h2", {}, "Licences"),
      el("dl", { class: "facts" }, ...rows(LICENCES)),
      el("h2", {}, "What it does not do"),
      el("ul", {}, ...NOT_DONE.map((line) => el("li", {}, line))),
      el("h2", {}, "Measure it again"),
      el("p", {}, "The page shows what your server measured for your own questions. These commands measure in earnest; the model's "
        + "cards and recipes/*/RESULTS.md hold what they gave."),
      ...COMMANDS.flatMap(([name, line]) => [el("h3", {}, name), el("pre", { tabindex: "0" }, el("code", {}, line))]),
    ),
  );
}
