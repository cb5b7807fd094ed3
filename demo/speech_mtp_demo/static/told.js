// What the chat does when the server tells it something: events of the realtime socket, by type.

export function handlers(chat) {
  return {
    "input_audio_buffer.speech_started": () => chat.interrupt(true),
    "input_audio_buffer.speech_stopped": () => ((chat.waiting = true), chat.show()),
    "conversation.item.added": ({ item }) => added(chat, item),
    "conversation.item.input_audio_transcription.completed": (event) => understood(chat, event),
    "conversation.item.input_audio_transcription.failed": (event) => misheard(chat, event),
    "response.created": ({ response }) => chat.begin(response),
    "response.output_item.added": ({ item }) => chat.item(item.id),
    "response.output_audio_transcript.delta": (event) => chat.item(event.item_id).answer.write(event.delta),
    "response.output_text.delta": (event) => chat.item(event.item_id).answer.write(event.delta),
    "response.output_audio.delta": (event) => chat.sound(event),
    "response.output_audio.done": ({ item_id }) => chat.soundEnds(item_id),
    "response.done": ({ response }) => chat.done(response),
    "speech_mtp.words": ({ item_id, words }) => chat.item(item_id).answer.time(words),
    "speech_mtp.drafting": ({ steps }) => chat.panel.steps(steps),
    "speech_mtp.figures": (event) => chat.panel.figures(event),
    error: ({ error }) => chat.refused(error),
    closed: (sentence) => chat.closed(sentence),
  };
}

function added(chat, item) {
  const spoken = item.role === "user" && item.content?.some((part) => part.type === "input_audio");
  if (spoken && !chat.heard.has(item.id)) chat.heard.set(item.id, chat.transcript.user());
  chat.show();
}

function understood(chat, { item_id, transcript }) {
  const text = transcript.trim();
  chat.heard.get(item_id)?.set(text || "(nothing understood)");
  if (text) chat.conversation.turns.push({ role: "user", text });
  else chat.waiting = false;
  chat.show();
}

function misheard(chat, { item_id, error }) {
  chat.heard.get(item_id)?.fail(error?.message ?? "This was not understood.");
  chat.waiting = false;
  chat.show();
}
