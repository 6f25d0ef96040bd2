"use strict";
/* Draws a chart of the numbers that stand beside a picture, in place of the picture: point at it to read a value, drag
   over a part to enlarge it, double-click (or press Escape) to see all of it again. */
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function said(number) {
  if (number === null || number === undefined) return "-";
  return Math.abs(number) >= 1e4 ? Math.round(number).toLocaleString("en") : String(+number.toPrecision(4));
}

/* Whether an axis has names in place of numbers. */
function named(axis) {
  return axis.ticks.some(([, name]) => isNaN(+name));
}

class Scale {
  constructor(given, low, high, start, end) {
    Object.assign(this, { given, low, high, start, end });
    this.bend = given.log ? Math.log : (value) => value;
    this.unbend = given.log ? Math.exp : (value) => value;
  }
  at(value) {
    const [low, high] = [this.bend(this.low), this.bend(this.high)];
    return this.start + ((this.bend(value) - low) / (high - low)) * (this.end - this.start);
  }
  back(place) {
    const [low, high] = [this.bend(this.low), this.bend(this.high)];
    return this.unbend(low + ((place - this.start) / (this.end - this.start)) * (high - low));
  }
  ticks(count) {
    const [low, high] = [Math.min(this.low, this.high), Math.max(this.low, this.high)];
    const inside = this.given.ticks.filter(([at]) => at >= low && at <= high);
    if (inside.length > 1 || named(this.given)) return inside; // between two names there is none
    if (this.given.log && high / low > 20) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const times of [1, 2, 5]) {
          const at = times * 10 ** power;
          if (at >= low && at <= high) found.push([at, said(at)]);
        }
      return found;
    }
    const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((times) => times * size >= raw) * size;
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-12); k++) found.push([k * step, said(k * step)]);
    return found;
  }
}

class Chart {
  constructor(figure, data) {
    Object.assign(this, { figure, data, hidden: new Set(), view: null });
    const image = figure.querySelector("img");
    const names = data.y.ticks.map(([, name]) => name.length);
    this.width = innerWidth < 760 ? 400 : figure.classList.contains("wide") ? 1000 : 560; // so that letters stay legible
    this.left = named(data.y) ? Math.min(0.4 * this.width, 16 + 6.2 * Math.max(...names)) : 56;
    this.height = named(data.y) ? Math.max(150, 70 + 26 * names.length) : Math.min(380, 0.8 * this.width);
    this.svg = make("svg", { viewBox: `0 0 ${this.width} ${this.height}`, class: "chart", role: "img", tabindex: 0 });
    this.svg.setAttribute("aria-label", image.alt + ". Drag to enlarge a part, double-click or Escape for all of it.");
    image.after(this.svg);
    image.classList.add("printed");
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.svg.after(this.tip);
    this.reset = document.createElement("button");
    this.reset.textContent = "show all";
    this.reset.className = "reset";
    this.reset.hidden = true;
    this.reset.onclick = () => this.show(null);
    figure.querySelector("h3").append(this.reset);
    this.listen();
    this.draw();
  }

  show(view) {
    this.view = view;
    this.reset.hidden = !view;
    this.draw();
  }

  scales() {
    const { x, y } = this.data, view = this.view || { x: [x.from, x.to], y: [y.from, y.to] };
    return [
      new Scale(x, ...view.x, this.left, this.width - 14),
      new Scale(y, ...view.y, this.height - 46, 12),
    ];
  }

  draw() {
    const { svg, left, width, height } = this, [x, y] = (this.at = this.scales());
    svg.replaceChildren();
    const clip = `clip-${Chart.count = (Chart.count || 0) + 1}`;
    make("rect", { x: left, y: 12, width: width - 14 - left, height: height - 58 }, make("clipPath", { id: clip }, svg));
    let last = -Infinity;
    for (const [at, text] of x.ticks(this.width / 95)) {
      const place = x.at(at);
      make("line", { x1: place, x2: place, y1: 12, y2: height - 46, class: "grid-line" }, svg);
      if (place - last < 7 * String(text).length + 8) continue;
      make("text", { x: place, y: height - 29, "text-anchor": "middle" }, svg, text);
      last = place;
    }
    for (const [at, text] of y.ticks(5)) {
      if (this.hidden.has(text)) continue;
      const place = y.at(at);
      make("line", { x1: left, x2: width - 14, y1: place, y2: place, class: "grid-line" }, svg);
      const most = Math.floor((left - 9) / 6.2), name = String(text); // of long names the end, where they differ
      const label = make("text", { x: left - 7, y: place + 4, "text-anchor": "end" }, svg);
      label.textContent = name.length > most ? "…" + name.slice(1 - most) : name;
      make("title", {}, label, name);
    }
    const under = make("text", { y: height - 8, "text-anchor": "middle", class: "label" }, svg, this.data.x.label);
    const wide = under.getComputedTextLength(); // centred under the axis, moved and narrowed where it would be cut off
    under.setAttribute("x", Math.max(width / 2, Math.min((left + width) / 2, width - 4 - wide / 2)));
    if (wide > width - 8) for (const [key, value] of [["textLength", width - 8], ["lengthAdjust", "spacingAndGlyphs"]]) under.setAttribute(key, value);
    const turned = { x: 0, y: 0, "text-anchor": "middle", class: "label", transform: `translate(13 ${(height - 34) / 2}) rotate(-90)` };
    if (this.data.y.label) make("text", turned, svg, this.data.y.label);
    const inside = make("g", { "clip-path": `url(#${clip})` }, svg);
    for (const rule of this.data.rules) this.rule(rule, inside, x, y);
    for (const line of this.data.lines) if (!this.hidden.has(line.of)) this.line(line, inside, x, y);
  }

  rule(rule, inside, x, y) {
    const ends = rule.across
      ? { x1: this.left, x2: this.width, y1: y.at(rule.at), y2: y.at(rule.at) }
      : { y1: 0, y2: this.height, x1: x.at(rule.at), x2: x.at(rule.at) };
    make("line", { ...ends, class: "rule" }, inside);
    if (!rule.label) return;
    const right = x.at(rule.at) > (this.left + this.width) / 2; // then there is more room on its left
    const place = rule.across
      ? { x: this.width - 18, y: y.at(rule.at) - 5, "text-anchor": "end" }
      : { x: x.at(rule.at) + (right ? -5 : 5), y: 24, "text-anchor": right ? "end" : "start" };
    make("text", { ...place, class: "label" }, inside, rule.label);
  }

  line(line, inside, x, y) {
    const group = make("g", { class: "series", "data-encoding": line.of || "" }, inside);
    group.style.color = line.colour === "#000000" ? "var(--ink)" : line.colour;
    const known = line.points.filter(([a, b]) => a !== null && b !== null);
    if (line.dash !== null) {
      const path = known.map(([a, b], i) => `${i ? "L" : "M"}${x.at(a).toFixed(1)} ${y.at(b).toFixed(1)}`).join("");
      make("path", { d: path, "stroke-dasharray": line.dash, fill: "none", stroke: "currentColor", "stroke-width": 1.8 }, group);
    }
    for (const [a, b, spread] of known) {
      if (spread) make("line", { x1: x.at(a), x2: x.at(a), y1: y.at(b - spread), y2: y.at(b + spread), stroke: "currentColor" }, group);
      if (line.dots) make("circle", { cx: x.at(a), cy: y.at(b), r: 3.6, fill: "currentColor" }, group);
    }
  }

  place(event) {
    const box = this.svg.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.width, ((event.clientY - box.top) / box.height) * this.height];
  }

  nearest(px, py) {
    const [x, y] = this.at;
    let best = null;
    for (const line of this.data.lines) {
      if (this.hidden.has(line.of)) continue;
      for (const [a, b, spread] of line.points) {
        if (a === null || b === null) continue;
        const far = Math.hypot(x.at(a) - px, y.at(b) - py);
        if (far < 40 && (!best || far < best.far)) best = { far, line, a, b, spread };
      }
    }
    return best;
  }

  point(event) {
    const found = this.nearest(...this.place(event)), [x, y] = this.at;
    this.tip.hidden = !found;
    this.svg.querySelector(".mark")?.remove();
    if (!found) return;
    const { line, a, b, spread } = found, box = this.svg.getBoundingClientRect(), outer = this.figure.getBoundingClientRect();
    make("circle", { cx: x.at(a), cy: y.at(b), r: 6, class: "mark" }, this.svg);
    const value = named(this.data.y) ? said(a) : `${said(b)}${spread ? ` ± ${said(spread)}` : ""} at ${said(a)}`;
    this.tip.textContent = `${line.of || line.label}: ${value}`;
    const across = box.left - outer.left + (x.at(a) / this.width) * box.width;
    const half = this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.max(half, Math.min(across, outer.width - half))}px`;
    this.tip.style.top = `${box.top - outer.top + (y.at(b) / this.height) * box.height}px`;
  }

  /* What a drag encloses, across and down; null for a click. A drag along one axis, as fingers do it, or outside of the
     other, leaves that other as it is. */
  part(from, to) {
    const far = [0, 1].map((k) => Math.abs(to[k] - from[k])), most = Math.max(...far);
    if (most < 8) return null;
    return [[this.left, this.width - 14], [12, this.height - 46]].map(([low, high], k) => {
      const ends = [from[k], to[k]].map((each) => Math.min(Math.max(each, low), high)).sort((p, q) => p - q);
      return far[k] < 0.25 * most || ends[1] - ends[0] < 4 ? [low, high] : ends;
    });
  }

  listen() {
    const { svg } = this;
    let from = null, frame = null;
    svg.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button) return;
      from = this.place(event);
      frame = make("rect", { class: "frame" }, svg);
      if (event.pointerType !== "touch") svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!from) return this.point(event);
      const [a, b] = this.part(from, this.place(event)) || [[0, 0], [0, 0]];
      for (const [key, value] of Object.entries({ x: a[0], y: b[0], width: a[1] - a[0], height: b[1] - b[0] }))
        frame.setAttribute(key, value);
    });
    const end = (event) => {
      if (!from) return;
      const part = this.part(from, this.place(event)), [x, y] = this.at;
      from = null;
      frame.remove();
      if (!part) return this.point(event);
      const across = part[0].map((each) => x.back(each)), up = part[1].map((each) => y.back(each));
      const rising = (pair, given) => (given.from < given.to ? pair.sort((p, q) => p - q) : pair.sort((p, q) => q - p));
      this.show({ x: rising(across, this.data.x), y: rising(up, this.data.y) });
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", () => { from = null; frame?.remove(); });
    svg.addEventListener("pointerleave", () => { if (!from) { this.tip.hidden = true; svg.querySelector(".mark")?.remove(); } });
    svg.addEventListener("dblclick", () => this.show(null));
    svg.addEventListener("keydown", (event) => { if (event.key === "Escape") this.show(null); });
  }
}
