// What runs in the audio thread: the microphone's batches and the player's queue, both resampled here, so that the
// context may have whatever rate the device has. No imports: old browsers cannot import in a worklet.

const RATE = 24000; // of the server's sound, both ways
const FADE = 32; // frames of a fade
const BATCH = 720; // samples of a microphone's batch: 30 ms
const REPORT_S = 0.04; // between reports of the player
const AHEAD_S = 0.08; // of sound that must be there before any is played
const MOST_AHEAD_S = 0.64; // the same, when it has run dry often

/** Windowed-sinc resampling of a stream: what is pushed in pieces sounds as if it had come whole. */
class Resampler {
  constructor(from, to, zeros = 12, fine = 256) {
    this.step = from / to;
    const cutoff = Math.min(1, to / from) * (from === to ? 1 : 0.94);
    this.half = Math.ceil(zeros / cutoff);
    this.fine = fine;
    this.table = new Float32Array(this.half * fine + 2);
    for (let i = 0; i < this.table.length; i++) {
      const x = i / fine;
      const phase = Math.PI * x * cutoff;
      const sinc = x === 0 ? 1 : Math.sin(phase) / phase;
      const window = x < this.half ? 0.5 + 0.5 * Math.cos((Math.PI * x) / this.half) : 0;
      this.table[i] = cutoff * sinc * window;
    }
    this.kept = new Float32Array(this.half); // what later samples still need; silence before the first
    this.at = this.half; // the next output's place in `kept`, in input samples
  }

  push(input) {
    if (this.step === 1) return input;
    const all = new Float32Array(this.kept.length + input.length);
    all.set(this.kept);
    all.set(input, this.kept.length);
    const made = new Float32Array(Math.max(0, Math.ceil((all.length - this.half - this.at) / this.step)));
    let count = 0;
    for (; this.at + this.half < all.length; this.at += this.step) made[count++] = this.sample(all);
    const gone = Math.min(all.length, Math.max(0, Math.floor(this.at) - this.half));
    this.kept = all.slice(gone);
    this.at -= gone;
    return made.subarray(0, count);
  }

  sample(all) {
    const middle = Math.floor(this.at);
    const offset = this.at - middle;
    let sum = 0;
    for (let k = 1 - this.half; k <= this.half; k++) {
      const x = Math.abs(k - offset) * this.fine;
      const i = x | 0;
      if (i + 1 < this.table.length) {
        sum += (all[middle + k] ?? 0) * (this.table[i] + (x - i) * (this.table[i + 1] - this.table[i]));
      }
    }
    return sum;
  }

  /** The end of the stream: what its last samples still give. */
  flush() {
    return this.step === 1 ? new Float32Array(0) : this.push(new Float32Array(this.half));
  }
}

/** Microphone -> batches of 16-bit samples at 24 kHz, each with its level. */
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.batch = new Int16Array(BATCH);
    this.filled = 0;
    this.power = 0;
  }

  process([input]) {
    if (!input?.[0]) return true;
    for (const sample of this.resampler.push(input[0])) {
      this.power += sample * sample;
      this.batch[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === BATCH) this.send();
    }
    return true;
  }

  send() {
    const samples = this.batch;
    this.port.postMessage({ samples, level: Math.sqrt(this.power / BATCH) }, [samples.buffer]);
    this.batch = new Int16Array(BATCH);
    this.filled = this.power = 0;
  }
}

/**
 * Plays pieces of sound one after the other. Messages in: {type: "push", id, samples}, {type: "end"}, {type: "flush"},
 * {type: "hold", on}. Out: reports {id, playedMs, bufferedS, level, playing, underruns}. It begins, and begins again
 * after it has run dry, when `ahead` frames are there or the end is known.
 */
class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ahead = AHEAD_S * sampleRate;
    this.underruns = 0;
    this.sinceReport = this.power = this.measured = 0;
    this.clear();
    this.port.onmessage = ({ data }) => this[data.type](data);
  }

  clear() {
    this.queue = []; // {id, samples, offset}
    this.buffered = 0;
    this.resampler = null;
    this.played = new Map(); // frames, by id
    this.id = null;
    this.ended = this.playing = this.held = false;
    this.gain = 0;
    this.falling = 0; // frames of the fall that are left
    this.last = 0;
  }

  push({ id, samples }) {
    this.resampler ??= new Resampler(RATE, sampleRate);
    this.ended = false;
    const wave = new Float32Array(samples.length);
    for (let i = 0; i < samples.length; i++) wave[i] = samples[i] / 32768;
    this.add(id, this.resampler.push(wave));
  }

  add(id, samples) {
    if (samples.length) this.queue.push({ id, samples, offset: 0 });
    this.buffered += samples.length;
    this.lastId = id;
  }

  end() {
    if (this.resampler) this.add(this.lastId, this.resampler.flush());
    this.resampler = null;
    this.ended = true;
    if (!this.playing && !this.buffered) this.report();
  }

  hold({ on }) {
    this.held = on;
  }

  flush() {
    const falling = this.playing ? FADE : 0;
    const last = this.last;
    this.report();
    this.clear();
    this.falling = falling;
    this.last = last;
    this.report();
  }

  process(_, [output]) {
    const out = output[0];
    if (!this.playing && !this.held && this.buffered && (this.ended || this.buffered >= this.ahead)) this.playing = true;
    for (let i = 0; i < out.length; i++) out[i] = this.next();
    for (const other of output.slice(1)) other.set(out);
    this.sinceReport += out.length;
    if (this.sinceReport >= REPORT_S * sampleRate && (this.playing || this.buffered || this.reported)) this.report();
    return true;
  }

  next() {
    if (!this.playing || this.held) return this.fall();
    const piece = this.queue[0];
    if (!piece) {
      this.stop();
      return this.fall();
    }
    const sample = piece.samples[piece.offset++];
    this.id = piece.id;
    this.played.set(piece.id, (this.played.get(piece.id) ?? 0) + 1);
    this.buffered--;
    if (piece.offset === piece.samples.length) this.queue.shift();
    this.gain = Math.min(1, this.gain + 1 / FADE);
    this.falling = FADE;
    this.last = sample * this.gain;
    this.power += this.last * this.last;
    this.measured++;
    return this.last;
  }

  fall() {
    this.gain = 0;
    if (!this.falling) return 0;
    this.falling--;
    return (this.last * this.falling) / FADE;
  }

  stop() {
    this.playing = false;
    if (this.ended) return;
    this.underruns++;
    this.ahead = Math.min(MOST_AHEAD_S * sampleRate, 2 * this.ahead); // a few long gaps are better than many short ones
  }

  report() {
    const played = this.id === null ? 0 : this.played.get(this.id);
    this.reported = this.playing;
    this.port.postMessage({
      id: this.id,
      playedMs: (1000 * played) / sampleRate,
      bufferedS: this.buffered / sampleRate,
      level: this.measured ? Math.sqrt(this.power / this.measured) : 0,
      playing: this.playing && !this.held,
      underruns: this.underruns,
    });
    this.sinceReport = this.power = this.measured = 0;
  }
}

registerProcessor("speech-mtp-capture", Capture);
registerProcessor("speech-mtp-player", Player);
