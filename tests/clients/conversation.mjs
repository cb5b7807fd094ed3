// A conversation with OpenAI's agents for JavaScript: node conversation.mjs URL QUESTION.raw ANSWER.raw
// Sends a question as 24 kHz PCM, writes the sound of the answer, and prints what was said.
import { readFileSync, writeFileSync } from "node:fs";
import { RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

const [url, question, answer] = process.argv.slice(2);
const sound = [];
const errors = [];
const session = new RealtimeSession(new RealtimeAgent({ name: "Ours", instructions: "Be brief." }), {
  transport: "websocket",
  model: "gpt-realtime",
});
session.on("audio", (event) => sound.push(Buffer.from(event.data)));
session.on("error", (event) => errors.push(String(event.error?.message ?? JSON.stringify(event))));
await session.connect({ url, apiKey: "a-key-of-the-tests" });

const ended = new Promise((resolve) => session.transport.on("turn_done", resolve));
const bytes = readFileSync(question);
for (let at = 0; at < bytes.length; at += 4800) {
  const piece = bytes.subarray(at, at + 4800);
  session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.length));
}
await ended;
await new Promise((resolve) => setTimeout(resolve, 200)); // items that were asked for again
const history = session.history.map((item) => [item.role, item.content[0]?.transcript ?? item.content[0]?.text]);
writeFileSync(answer, Buffer.concat(sound));
session.close();
console.log(JSON.stringify({ history, errors }));
