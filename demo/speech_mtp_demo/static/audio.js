// The page's sound: one context for all tabs, players that say what has been heard, and the microphone.

const WORKLETS = new URL("./worklets.js", import.meta.url);
let context = null;
let loaded = null;

/** The context, running. Call it from a click or a key: browsers begin no sound otherwise. */
export function wake() {
  if (!context) {
    context = new AudioContext();
    loaded = context.audioWorklet
      ? context.audioWorklet.addModule(WORKLETS)
      : Promise.reject(new Error("This page is not secure, so the browser plays no stream here. " + SECURE));
    loaded.catch(() => {}); // told to whoever opens a player
    document.addEventListener("visibilitychange", () => document.hidden || context.resume());
  }
  if (context.state !== "running") context.resume();
  return context;
}

const SECURE =
  "Open it at http://localhost (over ssh: forward the port, ssh -L 8000:localhost:8000 HOST) or by https.";

/** A player of 16-bit sound at 24 kHz; `onreport` is told some 25 times a second how far it is. */
export async function openPlayer(onreport) {
  wake();
  await loaded;
  const node = new AudioWorkletNode(context, "speech-mtp-player", { numberOfInputs: 0, outputChannelCount: [2] });
  node.connect(context.destination);
  node.port.onmessage = ({ data }) => onreport(data);
  const tell = (message, transfer = []) => node.port.postMessage(message, transfer);
  return {
    push: (id, samples) => tell({ type: "push", id, samples }),
    end: () => tell({ type: "end" }),
    flush: () => tell({ type: "flush" }),
    hold: (on) => tell({ type: "hold", on }),
    latencyMs: () => 1000 * (context.outputLatency || 0),
  };
}

const PROBLEMS = {
  NotAllowedError: "The microphone is blocked. Allow it beside the page's address, then tap again; or type below.",
  NotFoundError: "No microphone was found. Plug one in and tap again; or type below.",
  NotReadableError: "Another program is using the microphone. Close it and tap again; or type below.",
};

/** Why there can be no microphone, in one sentence with the next step; "" if there may be one. */
export function insecure() {
  return navigator.mediaDevices ? "" : `The microphone works on secure pages only. ${SECURE}`;
}

/** The microphone; `onbatch(samples, level)` gets 30 ms at a time. Throws an Error whose message is the next step. */
export async function openMicrophone(onbatch) {
  wake();
  if (insecure()) throw new Error(insecure());
  let stream;
  try {
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(PROBLEMS[error.name] ?? `The microphone cannot be opened (${error.name}); type below instead.`);
  }
  await loaded;
  const source = context.createMediaStreamSource(stream);
  const node = new AudioWorkletNode(context, "speech-mtp-capture", { numberOfOutputs: 1 });
  node.port.onmessage = ({ data }) => onbatch(data.samples, data.level);
  const silent = context.createGain(); // a node without a way to the speakers is not run
  silent.gain.value = 0;
  source.connect(node).connect(silent).connect(context.destination);
  return {
    close() {
      node.port.onmessage = null;
      source.disconnect();
      node.disconnect();
      silent.disconnect();
      for (const track of stream.getTracks()) track.stop();
    },
  };
}
