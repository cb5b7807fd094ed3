// The microphone as the chat uses it: opened by a tap, or held open by a key.
import { openMicrophone } from "./audio.js";

const SILENCE = new Int16Array(19200); // 0.8 s: ends a turn whose key was let go

export class Ear {
  /**
   * `on` has `sound(samples, level)`, `change()` when it opens or closes, `problem(sentence)`, and `ready()`, which is
   * waited for when it has opened.
   */
  constructor(on) {
    this.on = on;
    this.microphone = null;
    this.known = false; // whether it was ever allowed here
    this.holding = this.released = false; // by a key; the key was let go before it was open
  }

  get open() {
    return this.microphone !== null;
  }

  async listen() {
    this.released = false;
    try {
      this.microphone = await openMicrophone((samples, level) => this.on.sound(samples, level));
      this.known = true;
      this.on.change();
      await this.on.ready();
    } catch (error) {
      this.on.problem(error.message);
      this.close();
    }
    if (this.released) this.release();
  }

  close() {
    this.microphone?.close();
    this.microphone = null;
    this.on.change();
  }

  hold() {
    if (this.open) return;
    this.holding = true;
    this.listen();
  }

  /** The key was let go: silence ends the turn, and the microphone closes. */
  release() {
    this.holding = false;
    this.released = !this.open;
    if (this.released) return;
    this.on.sound(SILENCE, 0);
    this.close();
  }
}
