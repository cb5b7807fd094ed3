// Runs what is in the audio thread outside of a browser: prints what a script of messages and blocks gave, as JSON.
const fs = require("fs");
const [path, rate] = [process.argv[2], Number(process.argv[3])];
const processors = {};
globalThis.sampleRate = rate;
globalThis.AudioWorkletProcessor = class {
  constructor() {
    this.sent = [];
    this.port = { postMessage: (message) => this.sent.push(message) };
  }
};
globalThis.registerProcessor = (name, made) => (processors[name] = made);
const Resampler = new Function(`${fs.readFileSync(path, "utf8")}; return Resampler;`)();

const sine = (hz, count, at) => Float32Array.from({ length: count }, (_, i) => Math.sin((2 * Math.PI * hz * i) / at));
const pcm = (wave) => Int16Array.from(wave, (x) => x * 16384);

/** The player's sound of `blocks` blocks. */
function pulled(player, blocks) {
  const out = [];
  for (let i = 0; i < blocks; i++) {
    const block = [new Float32Array(128), new Float32Array(128)];
    player.process([], [block]);
    out.push(...block[0]);
  }
  return out;
}

const largestJump = (wave) => wave.reduce((most, x, i) => (i ? Math.max(most, Math.abs(x - wave[i - 1])) : most), 0);
const player = () => new processors["speech-mtp-player"]();
const tell = (one, message) => one.port.onmessage({ data: message });
const last = (one) => one.sent.at(-1);

const scenes = {
  /** A sine in blocks, resampled to and from the server's rate: how far it is from the sine at the other rate. */
  resample() {
    return [[rate, 24000], [24000, rate]].map(([from, to]) => {
      const resampler = new Resampler(from, to);
      const wave = sine(1000, from, from);
      const out = [];
      for (let i = 0; i < wave.length; i += 128) out.push(...resampler.push(wave.slice(i, i + 128)));
      out.push(...resampler.flush());
      const wanted = sine(1000, to, to);
      return { length: out.length, error: Math.max(...out.slice(500, to - 500).map((x, i) => Math.abs(x - wanted[i + 500]))) };
    });
  },
  /** The microphone: a second of a sine in blocks of 128. */
  capture() {
    const capture = new processors["speech-mtp-capture"]();
    const wave = sine(440, rate, rate).map((x) => x / 2);
    for (let i = 0; i + 128 <= wave.length; i += 128) capture.process([[wave.slice(i, i + 128)]]);
    return { lengths: capture.sent.map(({ samples }) => samples.length), level: last(capture).level,
      most: Math.max(...capture.sent.flatMap(({ samples }) => [...samples])) };
  },
  /** Sound is held back until enough is there, and played to its end. */
  play() {
    const one = player();
    tell(one, { type: "push", id: "a", samples: pcm(sine(200, 1200, 24000)) }); // 50 ms: too little to begin
    const before = Math.max(...pulled(one, 8));
    tell(one, { type: "push", id: "a", samples: pcm(sine(200, 10800, 24000)) });
    tell(one, { type: "end" });
    const wave = pulled(one, Math.ceil((0.6 * rate) / 128));
    return { before, jump: largestJump(wave), report: last(one), most: Math.max(...wave) };
  },
  /** Interrupted in the middle of a loud sound. */
  flush() {
    const one = player();
    tell(one, { type: "push", id: "a", samples: pcm(sine(200, 24000, 24000)) });
    const before = pulled(one, Math.ceil((0.3 * rate) / 128));
    tell(one, { type: "flush" });
    const heard = one.sent.findLast(({ id }) => id === "a").playedMs;
    const after = pulled(one, 8);
    const silentFrom = after.findLastIndex((x) => x !== 0) + 1;
    return { heard, jump: largestJump([...before, ...after]), silentFrom, report: last(one) };
  },
  /** It runs dry, then more comes. */
  underrun() {
    const one = player();
    tell(one, { type: "push", id: "a", samples: pcm(sine(200, 4800, 24000)) });
    const wave = pulled(one, Math.ceil((0.4 * rate) / 128));
    const dry = last(one);
    tell(one, { type: "push", id: "a", samples: pcm(sine(200, 9600, 24000)) });
    wave.push(...pulled(one, 60));
    return { jump: largestJump(wave), dry, again: last(one) };
  },
};
console.log(JSON.stringify(Object.fromEntries(Object.entries(scenes).map(([name, scene]) => [name, scene()]))));
