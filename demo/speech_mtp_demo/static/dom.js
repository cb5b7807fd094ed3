// Small helpers of all widgets: elements, shared settings, and requests to the server's API.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// -- settings that all tabs share, kept in this browser ------------------------------------------------------------
const KEPT = "speech_mtp.demo";
const values = { voice: "", speed: 1, ...read() };
const watchers = new Set();

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  } catch {
    return {};
  }
}

export const settings = {
  get: (name) => values[name],
  set(name, value) {
    values[name] = value;
    try {
      localStorage.setItem(KEPT, JSON.stringify(values));
    } catch {
      // A browser that keeps nothing: the setting holds until the page is left.
    }
    for (const watcher of watchers) watcher(name, value);
  },
  watch(watcher) {
    watchers.add(watcher);
  },
};

/** A <select> of `options` ([value, text] pairs) bound to a shared setting. */
export function picker(name, options, more = {}) {
  const made = el("select", { ...more, onchange: () => settings.set(name, typed(made.value)) });
  const typed = (value) => (typeof options[0]?.[0] === "number" ? Number(value) : value);
  made.fill = (pairs) => {
    options = pairs;
    made.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
    show(settings.get(name));
  };
  const show = (value) => {
    if (options.some(([known]) => known === value)) made.value = value;
  };
  settings.watch((changed, value) => changed === name && show(value));
  made.fill(options);
  return made;
}

export const SPEEDS = [[0.75, "0.75 ×"], [1, "1 ×"], [1.25, "1.25 ×"], [1.5, "1.5 ×"]];

// -- the API --------------------------------------------------------------------------------------------------------
/** The server's answer to a request; an error is thrown with the server's own sentence. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; see whether it is still running.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error?.message ?? `The server answered ${answer.status}.`);
}

export function socketAddress(path) {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;
}

let voices = null;
const voiceWatchers = new Set();

/** The model's own voices, without other names for them. Watchers are told when voices come and go. */
export async function ownVoices(anew = false) {
  if (!voices || anew) {
    voices = ask("/v1/audio/voices")
      .then((answer) => answer.json())
      .then((told) => told.voices.filter((voice) => !voice.alias_of));
    voices.then((list) => voiceWatchers.forEach((watcher) => watcher(list)), () => (voices = null));
  }
  return voices;
}

export function watchVoices(watcher) {
  voiceWatchers.add(watcher);
}

/** A picker of voices, filled when they are known. */
export function voicePicker(more = {}) {
  const made = picker("voice", [], more);
  const fill = (list) => {
    if (!list.some((voice) => voice.id === settings.get("voice"))) settings.set("voice", list[0]?.id ?? "");
    made.fill(list.map((voice) => [voice.id, voice.name]));
  };
  watchVoices(fill);
  ownVoices().then(fill, () => made.fill([["", "server away"]]));
  return made;
}

// -- small things ---------------------------------------------------------------------------------------------------
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

export function base64Of(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export function seconds(value) {
  return `${value.toFixed(1)} s`;
}
