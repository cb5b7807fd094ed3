// A picture of sound that grows as it arrives: waveform with word marks, spectrogram below.
import { el } from "./dom.js";

const RATE = 24000;
const PEAK = 240; // samples of one peak: 10 ms
const SIZE = 512; // of the spectrum's window
const HOP = 480; // samples between spectra: 20 ms
const BINS = 170; // of the spectrum that are shown: up to 8 kHz
const MOST_COLUMNS = 16000; // as wide as a canvas may be: 320 s
const HIGH = 96; // pixels of the waveform
const LOW = 120; // pixels of the spectrogram
const FLOOR_DB = 70; // below the loudest that counts as silence

export class Picture {
  constructor() {
    this.wave = el("canvas", { class: "wave", height: HIGH });
    this.spectrum = el("canvas", { class: "spectrum", height: LOW, "aria-hidden": "true" });
    this.label = el("span", { class: "wave-label", "aria-hidden": "true" });
    this.box = el("div", { class: "picture-box", role: "img", "aria-label": "Waveform and spectrogram" },
      this.wave, this.spectrum, this.label);
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.point(null));
    addEventListener("themed", () => this.recolour());
    new ResizeObserver(() => this.soon()).observe(this.box);
    this.begin(3);
  }

  /** New sound, of about `expectedS` seconds. */
  begin(expectedS) {
    this.expectedS = expectedS;
    this.peaks = [];
    this.columns = document.createElement("canvas");
    this.columns.width = 64;
    this.columns.height = BINS;
    this.count = 0;
    this.tail = new Float32Array(0);
    this.open = { filled: 0, top: 0 };
    this.words = [];
    this.playedS = this.samples = 0;
    this.over = false;
    this.soon();
  }

  get durationS() {
    const arrived = this.samples / RATE;
    return this.over ? Math.max(arrived, 0.1) : Math.max(this.expectedS, arrived * 1.05);
  }

  push(samples) {
    this.samples += samples.length;
    for (const sample of samples) {
      this.open.top = Math.max(this.open.top, Math.abs(sample));
      if (++this.open.filled === PEAK) {
        this.peaks.push(this.open.top / 32768);
        this.open = { filled: 0, top: 0 };
      }
    }
    this.analyse(samples);
    this.soon();
  }

  mark(words) {
    this.words.push(...words);
    this.soon();
  }

  played(s) {
    this.playedS = s;
    this.soon();
  }

  end() {
    this.over = true;
    this.soon();
  }

  // -- the spectrogram ----------------------------------------------------------------------------------------------
  analyse(samples) {
    const all = new Float32Array(this.tail.length + samples.length);
    all.set(this.tail);
    for (let i = 0; i < samples.length; i++) all[this.tail.length + i] = samples[i] / 32768;
    let at = 0;
    for (; at + SIZE <= all.length; at += HOP) this.column(levels(all.subarray(at, at + SIZE)));
    this.tail = all.slice(at);
  }

  column(decibels) {
    if (this.count === MOST_COLUMNS) return;
    if (this.count === this.columns.width) this.columns = widened(this.columns);
    const pen = this.columns.getContext("2d");
    const image = pen.createImageData(1, BINS);
    for (let i = 0; i < BINS; i++) {
      const place = 4 * (BINS - 1 - i);
      image.data[place + 3] = 255 * Math.max(0, Math.min(1, (decibels[i] + FLOOR_DB - 10) / FLOOR_DB));
    }
    pen.putImageData(image, this.count++, 0);
  }

  // -- drawing ------------------------------------------------------------------------------------------------------
  soon() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.draw();
    });
  }

  recolour() {
    this.ink = null;
    this.soon();
  }

  colours() {
    if (this.ink) return;
    const style = getComputedStyle(this.box);
    const of = (name) => style.getPropertyValue(name).trim();
    this.ink = { played: of("--accent"), coming: of("--line-strong"), mark: of("--quiet"), line: of("--line") };
  }

  draw() {
    const wide = this.box.clientWidth;
    if (!wide) return;
    this.colours();
    this.drawWave(sized(this.wave, wide, HIGH), wide);
    this.drawSpectrum(sized(this.spectrum, wide, LOW), wide);
  }

  drawWave(pen, wide) {
    const middle = HIGH / 2;
    const perPixel = (this.durationS * RATE) / PEAK / wide;
    const playedTo = (this.playedS / this.durationS) * wide;
    pen.fillStyle = this.ink.line;
    pen.fillRect(0, middle - 0.5, wide, 1);
    for (let x = 0; x < wide; x++) {
      let top = 0;
      for (let i = Math.floor(x * perPixel); i < Math.min(this.peaks.length, Math.ceil((x + 1) * perPixel)); i++) {
        top = Math.max(top, this.peaks[i]);
      }
      if (!top) continue;
      const high = Math.max(1, top * (HIGH - 12));
      pen.fillStyle = x <= playedTo ? this.ink.played : this.ink.coming;
      pen.fillRect(x, middle - high / 2, 1, high);
    }
    pen.fillStyle = this.ink.mark;
    for (const word of this.words) pen.fillRect(Math.round((word.start / this.durationS) * wide), HIGH - 5, 1, 5);
  }

  drawSpectrum(pen, wide) {
    if (!this.count) return;
    const shown = ((this.count * HOP) / RATE / this.durationS) * wide;
    pen.globalCompositeOperation = "source-over";
    pen.drawImage(this.columns, 0, 0, this.count, BINS, 0, 0, shown, LOW);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = this.ink.played;
    pen.fillRect(0, 0, wide, LOW);
    pen.globalCompositeOperation = "source-over";
  }

  /** Name the word under the pointer. */
  point(event) {
    const bounds = this.box.getBoundingClientRect();
    const s = event ? ((event.clientX - bounds.left) / bounds.width) * this.durationS : -1;
    const word = this.words.find((one) => one.start <= s && s < one.end);
    this.label.textContent = word ? `${word.word}  ${word.start.toFixed(2)} s` : "";
    if (word) this.label.style.left = `${Math.min(bounds.width - 96, (word.start / this.durationS) * bounds.width)}px`;
  }
}

function sized(canvas, wide, high) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(wide * scale);
  canvas.height = Math.round(high * scale);
  canvas.style.height = `${high}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

function widened(canvas) {
  const wider = document.createElement("canvas");
  wider.width = Math.min(MOST_COLUMNS, 2 * canvas.width);
  wider.height = canvas.height;
  wider.getContext("2d").drawImage(canvas, 0, 0);
  return wider;
}

// -- spectra ----------------------------------------------------------------------------------------------------------
const WINDOW = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));

/** Decibels of the first BINS frequencies of SIZE samples, 0 for a full-scale sine. */
function levels(samples) {
  const real = samples.map((sample, i) => sample * WINDOW[i]);
  const imaginary = new Float32Array(SIZE);
  transform(real, imaginary);
  const found = new Float32Array(BINS);
  for (let i = 0; i < BINS; i++) found[i] = 20 * Math.log10((4 * Math.hypot(real[i], imaginary[i])) / SIZE + 1e-6);
  return found;
}

/** The fast Fourier transform, in place (radix 2, decimation in time). */
function transform(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let length = 2; length <= n; length *= 2) {
    const angle = (-2 * Math.PI) / length;
    for (let k = 0; k < length / 2; k++) {
      const [c, s] = [Math.cos(angle * k), Math.sin(angle * k)];
      for (let a = k; a < n; a += length) {
        const b = a + length / 2;
        const [re, im] = [real[b] * c - imaginary[b] * s, real[b] * s + imaginary[b] * c];
        [real[b], imaginary[b]] = [real[a] - re, imaginary[a] - im];
        [real[a], imaginary[a]] = [real[a] + re, imaginary[a] + im];
      }
    }
  }
}
