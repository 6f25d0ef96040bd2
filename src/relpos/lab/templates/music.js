"use strict";
/* A piece of music as bars over time, played by two plain oscillators a note. Notes: [start, length, pitch, loudness,
   track], times in seconds. */
class Music {
  static playing = null;

  constructor(holder, notes) {
    this.notes = notes;
    this.length = Math.max(...notes.map(([start, length]) => start + length));
    this.button = document.createElement("button");
    this.button.className = "play";
    this.button.onclick = () => (Music.playing === this ? this.stop() : this.play());
    holder.append(this.button, this.roll());
    this.stop();
  }

  roll() {
    const pitches = this.notes.map(([, , pitch]) => pitch), low = Math.min(...pitches) - 1, high = Math.max(...pitches) + 2;
    const svg = make("svg", { viewBox: `0 0 1000 ${4 * (high - low)}`, preserveAspectRatio: "none", class: "roll", role: "img" });
    svg.setAttribute("aria-label", `${this.notes.length} notes over ${said(this.length)} seconds; click to play from there`);
    for (const [start, length, pitch, , track] of this.notes)
      make("rect", {
        x: (1000 * start) / this.length, y: 4 * (high - pitch - 1), height: 3.4, class: `track-${track % 5}`,
        width: Math.max(1.5, (1000 * length) / this.length - 0.8),
      }, svg);
    this.cursor = make("line", { x1: 0, x2: 0, y1: 0, y2: 4 * (high - low), class: "cursor" }, svg);
    svg.onclick = (event) => {
      const box = svg.getBoundingClientRect();
      this.play(((event.clientX - box.left) / box.width) * this.length);
    };
    return svg;
  }

  play(from = 0) {
    Music.playing?.stop();
    Music.playing = this;
    this.button.textContent = "■ stop";
    this.sound = new AudioContext();
    const loud = this.sound.createGain();
    loud.gain.value = 0.22;
    loud.connect(this.sound.destination);
    const began = (this.began = performance.now() / 1000 - from), zero = this.sound.currentTime + 0.06 - from;
    for (const note of this.notes) if (note[0] + note[1] > from) this.note(note, zero, loud, from);
    const move = () => {
      if (Music.playing !== this || this.began !== began) return;
      const now = performance.now() / 1000 - began, x = Math.min(1000, (1000 * now) / this.length);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
      if (now > this.length + 0.3) this.stop();
      else requestAnimationFrame(move);
    };
    move();
  }

  note([start, length, pitch, loudness], zero, loud, from) {
    const on = zero + Math.max(start, from), off = zero + start + length, shape = this.sound.createGain();
    shape.gain.setValueAtTime(0, on);
    shape.gain.linearRampToValueAtTime(0.3 * loudness, on + 0.012);
    shape.gain.setTargetAtTime(0.12 * loudness, on + 0.012, 0.25);
    shape.gain.setTargetAtTime(0, off, 0.06);
    shape.connect(loud);
    for (const [kind, times] of [["triangle", 1], ["sine", 2]]) {
      const voice = this.sound.createOscillator();
      voice.type = kind;
      voice.frequency.value = 440 * 2 ** ((pitch - 69) / 12) * times;
      voice.connect(shape);
      voice.start(on);
      voice.stop(off + 0.4);
    }
  }

  stop() {
    if (Music.playing === this) Music.playing = null;
    this.sound?.close();
    this.sound = null;
    this.button.textContent = "▶ play";
    this.cursor.setAttribute("x1", 0);
    this.cursor.setAttribute("x2", 0);
  }
}
