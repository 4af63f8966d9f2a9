// The picture of a stream: sound above, what it became below, on one axis of time whose right end is now.

const STEPS = 256;
// Codes have no order, so neighbours are far from each other on this way from ink to vermilion; features are on the second,
// from little to much.
const CODES = ["#1f2a44", "#2c5f73", "#5e9a8f", "#c3cfa0", "#efdcae", "#e39a58", "#b2452a"];
const HEAT = {
  light: ramp(["#f3efe4", "#d9dcc4", "#9cc0ae", "#4f9393", "#2c5f73", "#1f2a44"]),
  dark: ramp(["#191c22", "#1f3240", "#2c5f73", "#5e9a8f", "#c3cfa0", "#f4e6bf"]),
};
const GOLDEN = 0.6180339887;
const COLUMNS = 2048;  // that are remembered
const STRIP = 64;  // CSS pixels of a strip of sound
const AXIS = 22;
// Between two pictures; where less motion is wanted, too.
const MOVING_MS = 33;
const STILL_MS = 1000;
const MAX_ROWS = 1024;
const MAX_TILES = 24;

function ramp(stops) {
  const rgb = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  const table = new Uint32Array(STEPS);
  for (let i = 0; i < STEPS; i++) {
    const at = (i / (STEPS - 1)) * (rgb.length - 1);
    const from = Math.min(rgb.length - 2, Math.floor(at));
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(rgb[from][c] + (at - from) * (rgb[from + 1][c] - rgb[from][c])));
    table[i] = 0xff000000 | (b << 16) | (g << 8) | r;
  }
  return table;
}

/** A strip of sound: its least and greatest sample for each pixel of time. */
class Strip {
  constructor(perSecond) {
    this.perSecond = perSecond;
    this.low = new Float32Array(4 * COLUMNS);
    this.high = new Float32Array(4 * COLUMNS);
    this.end = -1;
  }

  add(samples, seconds, rate) {
    for (let i = 0; i < samples.length; i++) {
      const column = Math.floor((seconds + i / rate) * this.perSecond);
      const at = column % this.low.length;
      if (column > this.end) {
        for (let k = Math.max(this.end + 1, column - this.low.length + 1); k < column; k++) {
          this.low[k % this.low.length] = this.high[k % this.low.length] = 0;
        }
        this.low[at] = this.high[at] = samples[i];
        this.end = column;
      } else if (samples[i] < this.low[at]) this.low[at] = samples[i];
      else if (samples[i] > this.high[at]) this.high[at] = samples[i];
    }
  }
}

export class Loom {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: true });
    this.map = document.createElement("canvas");
    this.codes = ramp(CODES);
    this.held = false;
    this.drawn = 0;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.dark.addEventListener("change", () => this.ask());
    new ResizeObserver(() => this.ask()).observe(canvas);
    this.clear();
  }

  /** For another stream: `rate` columns a second come out of it. */
  clear({ rate = 50, sound = false, echo = false, rows = 0, grid = false, scale = "all" } = {}) {
    this.rate = rate;
    // Of a column, in CSS pixels: some seconds fit beside each other, and what is slow is still seen.
    this.cell = Math.min(24, Math.max(rate > 75 ? 2 : 3, Math.round(120 / rate)));
    this.perSecond = rate * this.cell;
    this.sound = sound ? new Strip(this.perSecond) : null;
    this.echo = echo ? new Strip(this.perSecond) : null;
    this.rows = rows;
    this.grid = grid;
    this.scale = scale;
    this.last = -1;
    this.now = 0;
    this.breaks = [];
    this.tiles = [];
    this.mean = null;
    this.map.width = COLUMNS;
    this.map.height = Math.max(1, Math.min(MAX_ROWS, rows));
    this.pixels = this.map.getContext("2d", { willReadFrequently: false });
    this.ask();
  }

  heard(samples, seconds, rate) {
    this.sound?.add(samples, seconds, rate);
    this.now = Math.max(this.now, seconds + samples.length / rate);
    this.ask();
  }

  played(samples, seconds, rate) {
    this.echo?.add(samples, seconds, rate);
    this.ask();
  }

  /** From here on the connection is broken, until it is `whole` again. */
  broken() { this.breaks = [...this.breaks.slice(-20), { from: this.now, to: null }]; }

  whole() {
    const last = this.breaks.at(-1);
    if (last) last.to ??= this.now;
    this.ask();
  }

  /** (rows, items) of codes or numbers in C order, from `seconds` on. */
  add(data, rows, items, seconds, isCodes) {
    if (rows > this.rows) {  // more codebooks than before: the map begins anew
      this.rows = rows;
      this.map.height = Math.min(MAX_ROWS, rows);
      this.last = -1;
    }
    const colours = isCodes ? null : this.heat();
    for (let item = 0; item < items; item++) {
      const column = Math.round(seconds * this.rate) + item;
      const image = this.pixels.createImageData(1, this.map.height);
      const words = new Uint32Array(image.data.buffer);
      for (let row = 0; row < Math.min(rows, words.length); row++) {
        const value = data[row * items + item];
        words[isCodes ? row : words.length - 1 - row] = isCodes ? this.colour(value) : colours(value, row);
      }
      for (let k = Math.max(this.last + 1, column - COLUMNS); k < column && this.last >= 0; k++) {
        this.pixels.clearRect(k % COLUMNS, 0, 1, this.map.height);
      }
      this.pixels.putImageData(image, column % COLUMNS, 0);
      this.last = Math.max(this.last, column);
    }
    this.now = Math.max(this.now, seconds + items / this.rate);
    this.ask();
  }

  /** A whole picture of (rows, columns) codes or numbers, as a tile of a film. */
  tile(data, rows, columns, seconds, isCodes) {
    const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
    const image = canvas.getContext("2d").createImageData(columns, rows);
    const words = new Uint32Array(image.data.buffer);
    const colours = isCodes ? null : this.heat();
    for (let i = 0; i < words.length; i++) words[i] = isCodes ? this.colour(data[i]) : colours(data[i], 0);
    canvas.getContext("2d").putImageData(image, 0, 0);
    this.tiles = [...this.tiles.slice(-MAX_TILES), { seconds, canvas }];
    this.now = Math.max(this.now, seconds);
    this.ask();
  }

  colour(code) { return this.codes[Math.floor(((code * GOLDEN) % 1) * STEPS)]; }

  /** The colour of a number by how far it is from what was usual: of all rows, or of its own. */
  heat() {
    const table = HEAT[this.dark.matches ? "dark" : "light"];
    const own = this.scale === "rows";
    const size = own ? this.rows : 1;
    if (this.mean?.length !== size) {
      this.mean = new Float64Array(size);
      this.spread = new Float64Array(size);
      this.seen = new Uint32Array(size);
    }
    return (value, row) => {
      const k = own ? row : 0;
      this.seen[k] += 1;
      const weight = Math.max(1 / this.seen[k], own ? 0.01 : 0.0001);
      const off = value - this.mean[k];
      this.mean[k] += weight * off;
      this.spread[k] += weight * (off * off - this.spread[k]);
      const z = off / (Math.sqrt(this.spread[k]) || 1);
      return table[Math.max(0, Math.min(STEPS - 1, Math.round((z + 1.8) / 4.2 * STEPS)))];
    };
  }

  ask() {
    if (this.asked || this.held) return;
    this.asked = true;
    const due = this.drawn + (this.still.matches ? STILL_MS : MOVING_MS) - performance.now();
    setTimeout(() => requestAnimationFrame(() => {
      this.asked = false;
      this.drawn = performance.now();
      this.draw();
    }), Math.max(0, due));
  }

  hold(held) {
    this.held = held;
    if (!held) this.ask();
  }

  draw() {
    const { canvas, context } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const x = (seconds) => width - (this.now - seconds) * this.perSecond;
    const top = this.sound ? STRIP : 0;
    const bottom = height - AXIS - (this.echo ? STRIP : 0);
    if (this.last < 0 && !this.tiles.length && !this.now) {
      this.sample(context, width, height);
      return;
    }
    if (!this.grid) this.axis(context, width, height, x, colour);
    if (this.sound) this.strip(context, this.sound, 0, x, width, colour("--sound"));
    if (this.echo) this.strip(context, this.echo, bottom, x, width, colour("--echo"));
    if (this.grid) this.film(context, top, bottom, width, colour);
    else this.weave(context, top, bottom, x, width, colour("--surface"));
    context.font = `11px ${style.fontFamily}`;
    for (const { from, to } of this.breaks) {
      const [left, right] = [Math.round(x(from)) + 0.5, Math.round(x(to ?? this.now)) + 0.5];
      if (right < 0) continue;
      context.fillStyle = context.strokeStyle = colour("--accent");
      context.globalAlpha = 0.18;
      context.fillRect(left, 0, right - left, this.sound ? STRIP : 8);
      context.globalAlpha = 1;
      context.setLineDash([3, 3]);
      context.beginPath();
      for (const at of [left, right]) {
        context.moveTo(at, 0);
        context.lineTo(at, height - AXIS);
      }
      context.stroke();
      context.setLineDash([]);
      const words = to === null ? "connection broken" : "resumed";
      const wide = context.measureText(words).width;
      context.fillStyle = colour("--surface");
      context.fillRect(left - wide - 11, 3, wide + 8, 17);
      context.fillStyle = colour("--accent");
      context.fillText(words, left - wide - 7, 15);
    }
  }

  /** Before there is anything: what it will look like, faintly. */
  sample(context, width, height) {
    const [wide, high] = [12, Math.ceil(height / 16)];
    context.globalAlpha = this.dark.matches ? 0.2 : 0.12;
    for (let row = 0; row < 16; row++) {
      for (let k = 0, code = row * 97 + 5; k < width / wide; k++) {
        if ((k * 7 + row * 5) % 11 > row / 2) code = (code * 1103 + 12345) % 8191;
        const colour = this.colour(code);
        context.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
        context.fillRect(k * wide, row * high, wide, high - 2);
      }
    }
    context.globalAlpha = 1;
  }

  axis(context, width, height, x, colour) {
    context.fillStyle = colour("--muted");
    context.strokeStyle = colour("--line");
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    const step = this.perSecond > 45 ? 1 : this.perSecond > 10 ? 5 : 30;
    for (let second = Math.floor(this.now / step) * step; second >= 0 && x(second) > 0; second -= step) {
      const at = Math.round(x(second)) + 0.5;
      context.beginPath();
      context.moveTo(at, 0);
      context.lineTo(at, height - AXIS + 5);
      context.stroke();
      const words = `${second} s`;
      const wide = context.measureText(words).width;
      context.fillText(words, Math.min(at - wide / 2, width - wide - 2), height - 4);
    }
  }

  strip(context, strip, top, x, width, colour) {
    const middle = top + STRIP / 2;
    context.fillStyle = colour;
    context.beginPath();
    const first = Math.max(0, strip.end - Math.ceil(width), strip.end - strip.low.length + 1);
    for (let k = first; k <= strip.end; k++) {
      const high = Math.min(1, Math.abs(strip.high[k % strip.high.length])) ** 0.6;
      const low = Math.min(1, Math.abs(strip.low[k % strip.low.length])) ** 0.6;
      const half = STRIP / 2 - 6;
      context.rect(x(k / strip.perSecond), middle - high * half - 0.5, 1, (high + low) * half + 1);
    }
    context.fill();
  }

  weave(context, top, bottom, x, width, ground) {
    if (this.last < 0) return;
    const [high, cell] = [bottom - top, this.cell];
    const shown = Math.min(COLUMNS, this.last + 1, Math.ceil(width / cell) + 1);
    context.imageSmoothingEnabled = false;
    let first = this.last - shown + 1;
    while (first <= this.last) {
      const from = first % COLUMNS;
      const count = Math.min(this.last - first + 1, COLUMNS - from);
      context.drawImage(this.map, from, 0, count, this.map.height, x(first / this.rate), top, count * cell, high);
      first += count;
    }
    const row = high / this.map.height;
    if (row < 5) return;
    context.fillStyle = ground;
    const [from, to] = [x((this.last - shown + 1) / this.rate), x((this.last + 1) / this.rate)];
    for (let k = 0; k <= this.map.height; k++) context.fillRect(from, Math.round(top + k * row) - 1, to - from, 2);
  }

  /** The latest pictures, newest at the right, each with its second. */
  film(context, top, bottom, width, colour) {
    context.imageSmoothingEnabled = false;
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    context.fillStyle = colour("--muted");
    let right = width - 12;
    for (const { seconds, canvas } of [...this.tiles].reverse()) {
      const high = Math.min(bottom - top - 30, (Math.max(110, width / 4.5) * canvas.height) / canvas.width);
      const wide = (high * canvas.width) / canvas.height;
      const under = (top + bottom + high) / 2;
      context.drawImage(canvas, right - wide, under - high, wide, high);
      context.fillText(`${seconds.toFixed(2)} s`, right - wide, under + 16);
      right -= wide + 10;
      if (right < 0) return;
    }
  }
}
