// One conversation with the server over OpenAI's realtime events. It keeps the turns, so that a conversation survives a
// socket that was closed; it knows nothing of the page.
import { base64Of, bytesOf, socketAddress } from "./dom.js";

const INCLUDE = ["speech_mtp.words", "speech_mtp.drafting", "speech_mtp.figures"]; // extensions of this server
const INSTRUCTIONS = "You are a friendly voice assistant. Answer in one to three short sentences, without lists or markup.";
const MOST_TOKENS = 300;
const MOST_EARLY = 200; // batches of the microphone
const AWAY = "The server has closed the conversation; the next thing you say or type opens it again.";

export class Conversation {
  /** `on` has a function for every event of the server by its type, `closed(sentence)` and `level(value)`. */
  constructor(on, settings) {
    this.on = on;
    this.settings = settings; // () => {voice, speed, drafting}
    this.turns = []; // {role, text} that a new socket is told
    this.socket = null;
    this.opening = null;
    this.early = [];
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect() {
    if (this.open) return Promise.resolve();
    this.opening ??= this.dial().finally(() => (this.opening = null));
    return this.opening;
  }

  dial() {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(socketAddress("/v1/realtime"), ["realtime"]);
      let greeted = false;
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "session.created" && !greeted) {
          greeted = true;
          this.socket = socket;
          this.configure();
          for (const turn of this.turns) this.tell(turn);
          for (const event of this.early.splice(0)) this.send(event);
          resolve();
        }
        this.on[event.type]?.(event);
      };
      socket.onclose = ({ code }) => {
        if (this.socket === socket) this.socket = null;
        if (!greeted) reject(new Error("No conversation can be opened; see whether the server is running and warm."));
        else if (code !== 1000 || !this.leaving) this.on.closed?.(AWAY);
      };
    });
  }

  send(event) {
    if (this.open) this.socket.send(JSON.stringify(event));
  }

  configure() {
    const { voice, speed, drafting } = this.settings();
    const pcm = { type: "audio/pcm", rate: 24000 };
    this.update({
      instructions: INSTRUCTIONS,
      max_output_tokens: MOST_TOKENS,
      output_modalities: ["audio"],
      audio: {
        input: {
          format: pcm,
          transcription: { model: "whisper-1" },
          turn_detection: { type: "server_vad", create_response: true, interrupt_response: true },
        },
        output: { format: pcm, speed, ...(voice ? { voice } : {}) },
      },
      include: INCLUDE,
      speech_mtp: { drafting },
    });
  }

  update(session) {
    this.send({ type: "session.update", session: { type: "realtime", ...session } });
  }

  tell({ role, text }) {
    const type = role === "user" ? "input_text" : "output_text";
    this.send({
      type: "conversation.item.create",
      item: { type: "message", role, content: [{ type, text }] },
    });
  }

  say(text) {
    this.tell({ role: "user", text });
    this.send({ type: "response.create" });
  }

  /** More of what the microphone hears; what comes before the socket is open is kept for it. */
  hear(samples) {
    const event = { type: "input_audio_buffer.append", audio: base64Of(new Uint8Array(samples.buffer)) };
    if (this.open) this.send(event);
    else if (this.early.length < MOST_EARLY) this.early.push(event);
  }

  cancel() {
    this.send({ type: "response.cancel" });
  }

  /** Only `ms` of the answer `item` were heard. */
  truncate(item, ms) {
    this.send({
      type: "conversation.item.truncate",
      item_id: item,
      content_index: 0,
      audio_end_ms: Math.max(0, Math.round(ms)),
    });
  }
}

/** The samples of an event that carries sound. */
export function samplesOf(event) {
  const bytes = bytesOf(event.delta);
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}
