// The page of a server: one stream at a time, from a microphone, a camera or a file, and a picture of what came of it.

import { camera, microphone, speaker } from "./capture.js";
import { Loom } from "./loom.js";
import { connect, StreamError } from "./streamenc.js";

const KEY = "streamenc key";
const IMAGES_PER_SECOND = 8;
const UNSENT_IMAGES = 2;
const TICKS = 90000;  // of images, a second
const MARK_MS = 1000;
const FIGURES_MS = 250;
const FILE_SECONDS = 0.2;  // that a packet of output covers
const FILE_PIECE = 2 ** 16;
// Of sound that was decoded and not played: beyond it the page takes no more, and the server waits.
const HELD_SECONDS = 2;
// Of what is live, more than that is left out.
const LIVE_SECONDS = 0.3;
const READY_MS = 1000;
const LEAST_ROW = 9;  // CSS pixels
const LATEST = 9;  // measurements
const LOG_LINES = 60;

const $ = (id) => document.getElementById(id);
const form = $("controls");
const loom = new Loom($("loom"));
const models = new Map();
let running = null;

const chosen = (name) => form.elements[name].value;
const fixed = (number, digits = 0) => number.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

/** The middle one of the latest measurements, in words. */
function middle(ms, digits = 0) {
  const sorted = [...ms].sort((a, b) => a - b);
  return sorted.length ? `${fixed(sorted[sorted.length >> 1], digits)} ms` : "–";
}

// ----- what is said

function say(words) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toTimeString().slice(0, 8);
  line.append(time, words);
  const log = $("log");
  log.append(line);
  while (log.children.length > LOG_LINES) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
}

function state(name, words) {
  $("state").dataset.state = name;
  if ($("state-words").textContent !== words) $("state-words").textContent = words;
}

function fault(words) {
  $("fault").hidden = !words;
  $("fault").textContent = words;
}

const WORDS = {
  NotAllowedError: "The browser did not let this page use it; allow it beside the address, and start again.",
  NotFoundError: "There is none on this machine.",
  NotReadableError: "Another program has it.",
};

// ----- models

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

async function askModels() {
  const answer = await fetch("/v1/models", { headers: headers() });
  if (answer.status === 401) {
    const wrong = sessionStorage.getItem(KEY) !== null;
    sessionStorage.removeItem(KEY);
    $("key-part").hidden = false;
    state("idle", wrong ? "That key is not one of this server" : "This server wants a key");
    $("key").focus();
    return;
  }
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  const listed = (await answer.json()).models.filter(({ encode }) => encode && ["audio", "video"].includes(encode.input.kind));
  if (!listed.length) throw new Error("the server has no encoder of sound or images yet");
  $("key-part").hidden = true;
  models.clear();
  const groups = { audio: "Sound", video: "Images" };
  const select = $("model");
  select.replaceChildren(...Object.entries(groups).flatMap(([kind, label]) => {
    const own = listed.filter(({ encode }) => encode.input.kind === kind);
    if (!own.length) return [];
    const group = Object.assign(document.createElement("optgroup"), { label });
    for (const model of own) {
      models.set(model.name, model);
      group.append(new Option(model.name));
    }
    return [group];
  }));
  select.disabled = $("start").disabled = false;
  state("idle", "Not connected");
  fault("");
  chooseModel();
}

async function untilModels() {
  for (;;) {
    try {
      return await askModels();
    } catch (error) {
      state("connecting", "Waiting for the server");
      $("model").replaceChildren(new Option("Waiting for the server…"));
      fault(`No models yet: ${error.message}.`);
      await new Promise((resolve) => setTimeout(resolve, READY_MS));
    }
  }
}

function chooseModel() {
  const { encode, decode } = models.get($("model").value);
  const { input, output } = encode;
  const pictures = input.kind === "video";
  const promises = { offline: "the whole run at once", segment: "the model's own segments", window: "the same windows" };
  $("model-note").textContent = pictures
    ? `Images to ${output.kind}; each result equals ${promises[encode.equality]}.`
    : `${fixed(input.rate / 1000, input.rate % 1000 ? 2 : 0)} kHz to ${fixed(output.rate, output.rate % 1 ? 2 : 0)} `
      + `${output.kind === "codes" ? "frames" : "vectors"} a second, ${fixed(encode.latency_ms)} ms behind.`;
  const radios = Object.fromEntries([...form.elements.input].map((radio) => [radio.value, radio]));
  radios.microphone.disabled = pictures;
  radios.camera.disabled = !pictures;
  if (radios[chosen("input")].disabled) radios[pictures ? "camera" : "microphone"].checked = true;
  const [, echo] = form.elements.output;
  echo.disabled = !decode || pictures || output.kind !== "codes";
  if (echo.disabled && echo.checked) form.elements.output[0].checked = true;
  $("output-name").textContent = output.kind === "codes" ? "Tokens" : "Features";
  const books = $("books");
  $("books-part").hidden = encode.codebooks < 2;
  books.max = Math.max(1, encode.codebooks);
  books.value = Math.min(8, encode.codebooks || 1);
  chooseParts();
}

function chooseParts() {
  $("file-part").hidden = chosen("input") !== "file";
  $("echo-part").hidden = chosen("output") !== "echo";
  $("books-value").textContent = `${$("books").value} of ${$("books").max}`;
}

// ----- one stream

class Run {
  constructor(model) {
    this.model = model;
    this.facts = model.encode;
    this.input = chosen("input");
    this.echo = chosen("output") === "echo";
    this.books = $("books-part").hidden ? undefined : Number($("books").value);
    this.source = null;
    this.speaker = null;
    this.stream = null;
    this.sent = 0;  // samples
    this.skipped = 0;  // images
    this.captured = [];  // [seconds, when] of the ends of chunks
    this.delays = [];
    this.trips = [];
    this.seconds = 0;
    this.used = [];
    this.codes = 0;
    this.rate = 0;  // columns a second that come out
    this.grid = false;
    this.timers = [];
    this.ending = false;
  }

  async start() {
    const file = this.input === "file" ? $("file").files[0] : null;
    if (this.input === "file" && !file) throw new Error("Choose a file first.");
    if (this.input === "microphone") {
      this.source = await microphone((samples) => this.heard(samples));
    } else if (this.input === "camera") {
      $("preview").hidden = false;
      const size = this.facts.image?.size ?? "";
      this.source = await camera((bytes, seconds) => this.saw(bytes, seconds), { video: $("preview"), rate: IMAGES_PER_SECOND, size });
    }
    const picture = file?.type.startsWith("image/");
    const format = { microphone: "s16", camera: "jpeg", file: picture ? "jpeg" : "media" }[this.input];
    state("connecting", "Connecting");
    this.stream = await connect(location.href, {
      model: this.model.name,
      direction: this.echo ? "echo" : "encode",
      format,
      rate: format === "media" || picture ? undefined : this.source.rate,
      codebooks: this.books,
      hops: format === "media" && !this.echo ? Math.max(1, Math.round(this.facts.output.rate * FILE_SECONDS)) : 1,
      key: sessionStorage.getItem(KEY) ?? "",
    });
    this.listen();
    this.begin();
    const reading = this.read();
    await this.source?.start();
    if (this.input === "microphone" || this.input === "camera") this.every(MARK_MS, () => this.mark().catch(() => {}));
    this.every(FIGURES_MS, () => this.figures());
    if (file) this.feed(file, picture).catch((error) => this.failed(error));
    reading.then(() => this.finished(), (error) => this.failed(error));
  }

  begin() {
    const { opened } = this.stream;
    loom.clear({ rate: this.facts.output.rate, sound: this.input === "microphone", echo: this.echo, rows: this.books ?? 1 });
    $("empty").hidden = true;
    $("stage-title").textContent = `${this.model.name}, ${this.echo ? "tokens and their sound" : this.facts.output.kind === "codes" ? "tokens" : "features"}`;
    state("open", "Live");
    say(`Opened ${this.model.name}, session ${opened.session}.`);
    if (!opened.exact_resume) say(`Where the server's process dies, this stream may not go on exactly: ${opened.why}.`);
  }

  every(ms, what) { this.timers.push(setInterval(what, ms)); }

  listen() {
    const on = (type, heard) => this.stream.addEventListener(type, ({ detail }) => heard(detail));
    on("disconnected", ({ reason, code }) => {
      state("broken", "Connection lost, resuming");
      say(`The connection broke (${reason || code}); the stream goes on by itself.`);
      loom.broken();
    });
    on("resumed", ({ exact, source, next_seq: next, why }) => {
      const times = this.stream.statistics().resumed;
      state("resumed", exact ? `Resumed ${times === 1 ? "once" : `${times} times`}, nothing lost` : `Resumed, with a gap: ${why}`);
      say(`Resumed from ${source === "store" ? "the store" : "memory"} at packet ${next}: ${exact ? "nothing is missing, nothing comes twice" : why}.`);
      loom.whole();
    });
    on("dropped", ({ where, packets }) => say(`${packets} packets were dropped at the server's ${where}.`));
    on("goaway", ({ seconds, why }) => say(`The server ends in ${fixed(seconds)} s: ${why}. The stream resumes when it is back.`));
    on("error", ({ message }) => say(`Refused: ${message}`));
  }

  // ----- in

  heard(samples) {
    const rate = this.source.rate;
    const from = this.sent / rate;
    loom.heard(samples, from, rate);
    this.sent += samples.length;
    this.captured.push([this.sent / rate, performance.now()]);
    if (this.captured.length > 1000) this.captured.splice(0, 500);
    if (!this.ending) this.stream.offer(samples);
  }

  saw(bytes, seconds) {
    if (this.ending) return;
    if (this.stream.statistics().unsent > UNSENT_IMAGES) {  // a model that is slower than the camera sets the pace
      this.skipped += 1;
      return;
    }
    this.stream.offer(bytes, { pts: Math.round(seconds * TICKS), duration: Math.round(TICKS / IMAGES_PER_SECOND) });
  }

  async feed(file, picture) {
    $("progress").hidden = false;
    const piece = picture ? Math.max(1, file.size) : FILE_PIECE;
    for (let at = 0; at < file.size && !this.ending; at += piece) {
      await this.stream.send(await file.slice(at, at + piece).arrayBuffer());
      $("progress").value = Math.min(1, (at + piece) / file.size);
    }
    say(`${file.name} was sent.`);
    await this.stop();
  }

  async mark() {
    if (this.ending) return;
    const { roundTripMs } = await this.stream.mark();
    this.trips = [...this.trips.slice(1 - LATEST), roundTripMs];
  }

  // ----- out

  async read() {
    for await (const frame of this.stream) {
      if (frame.track === 1) await this.sound(frame);
      else this.draw(frame);
    }
  }

  draw({ data, shape, info, seconds, durationSeconds }) {
    const isCodes = info?.what === "codes";
    const grid = shape.length > 2;
    // The first packet tells more than the model did: of images, how many a second come.
    if (!this.rate) {
      this.rate = info.rate;
      this.grid = grid;
      if (grid || !isCodes || loom.rate !== info.rate) {
        loom.clear({ rate: info.rate, sound: this.input === "microphone", echo: this.echo, rows: grid ? 0 : shape[0], grid,
          scale: shape[0] > 256 ? "rows" : "all" });
      }
    }
    this.seconds = seconds + durationSeconds;
    if (grid) {
      const [, frames, rows, columns = 1] = shape;
      for (let k = 0; k < frames; k++) {
        const picture = data.subarray(k * rows * columns, (k + 1) * rows * columns);
        loom.tile(picture, rows, columns, seconds + (k * durationSeconds) / frames, isCodes);
        if (isCodes) this.count([picture]);
      }
    } else {
      loom.add(data, shape[0], shape[1], seconds, isCodes);
      if (isCodes) this.count(Array.from({ length: shape[0] }, (_, row) => data.subarray(row * shape[1], (row + 1) * shape[1])));
    }
  }

  count(rows) {
    this.codes = this.grid ? rows[0].length : rows.length;  // of one column
    this.latest = rows.map((codes) => codes[codes.length - 1]);
    rows.forEach((codes, row) => {
      this.used[row] ??= new Set();
      for (const code of codes) this.used[row].add(code);
    });
  }

  async sound({ data, info, shape, seconds }) {
    const rate = info.rate;
    const samples = data.subarray(0, shape[1]).slice();  // the first channel
    this.speaker ??= await this.loudspeaker(rate);
    loom.played(samples, seconds, rate);
    this.speaker.play(samples, seconds);
    while (this.speaker?.heldSeconds > HELD_SECONDS) await new Promise((resolve) => setTimeout(resolve, 50));
  }

  async loudspeaker(rate) {
    const mostSeconds = this.input === "microphone" ? LIVE_SECONDS : Infinity;
    const made = await speaker({ rate, mostSeconds, heard: (seconds, at) => {
      const then = this.captured.find(([end]) => end >= seconds);
      // The chunk was at hand when its last sample had come.
      if (then) this.delays = [...this.delays.slice(1 - LATEST), at - (then[1] - 1000 * (then[0] - seconds))];
    } });
    made.volume = Number($("volume").value);
    return made;
  }

  // ----- figures

  figures() {
    const { opened } = this.stream;
    const counts = this.stream.statistics();
    const put = (id, words) => { if ($(id).textContent !== words) $(id).textContent = words; };
    const pictures = this.facts.input.kind === "video";
    put("f-hop", pictures ? `${opened.hop} image${opened.hop === 1 ? "" : "s"}` : `${fixed((1000 * opened.hop) / opened.model_rate, 1)} ms`);
    put("f-delay", `${fixed(opened.delay_ms, 1)} ms`);
    const bits = opened.codebook_size ? this.rate * this.codes * Math.ceil(Math.log2(opened.codebook_size)) : 0;
    put("f-bits", bits ? `${fixed(bits / 1000, 2)} kbit/s` : "–");
    put("f-trip", middle(this.trips, 1));
    $("f-sound-part").hidden = !this.echo;
    put("f-sound", middle(this.delays));
    put("f-time", `${fixed(this.seconds, 1)} s`);
    put("f-packets", `${fixed(counts.packetsSent)}, ${fixed(counts.packetsReceived)}`);
    put("f-resumed", counts.resumed ? `${counts.resumed}${counts.inexact ? `, ${counts.inexact} with a gap` : ", exactly"}` : "never");
    put("f-dropped", `${this.skipped + counts.droppedHere + counts.droppedInput + counts.droppedOutput}`);
    put("f-equality", { offline: "as a whole", segment: "by segments", window: "by windows" }[opened.equality] ?? opened.equality);
    this.table();
  }

  table() {
    const rows = this.latest?.length ?? 0;
    const table = $("rows");
    const area = $("loom").clientHeight - 22 - (this.input === "microphone" ? 64 : 0) - (this.echo ? 64 : 0);
    table.hidden = !rows || area / rows < LEAST_ROW || this.grid;
    if (table.hidden) return;
    const body = table.tBodies[0];
    if (body.rows.length !== rows) {
      body.replaceChildren(...this.latest.map((_, row) => {
        const line = document.createElement("tr");
        const head = Object.assign(document.createElement("th"), { scope: "row", textContent: row + 1 });
        line.append(head, document.createElement("td"), document.createElement("td"));
        return line;
      }));
    }
    table.style.setProperty("--row-height", `${area / rows}px`);
    table.style.marginTop = `${this.input === "microphone" ? 64 : 0}px`;
    table.style.height = `${area}px`;
    table.classList.toggle("dense", area / rows < 13);
    this.latest.forEach((code, row) => {
      const { cells } = body.rows[row];
      cells[1].textContent = code;
      cells[2].textContent = `${fixed((100 * this.used[row].size) / this.stream.opened.codebook_size, 1)} %`;
    });
    const words = `A map of the tokens: ${rows} codebooks, ${fixed(this.seconds)} seconds so far`;
    if (this.seconds % 5 < 0.3) $("loom").setAttribute("aria-label", words);
  }

  // ----- the end

  async stop() {
    if (this.ending) {  // asked twice: what is left is not waited for
      this.stream?.abandon();
      return;
    }
    this.ending = true;
    await this.source?.stop();
    if (this.stream) {
      state("open", "Taking the rest");
      await this.stream.close();
    }
  }

  async finished() {
    say(`Closed after ${fixed(this.seconds, 1)} s.`);
    while (this.speaker && this.speaker.heldSeconds > 0.02) {
      this.speaker.end();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    state("idle", "Closed");
    await this.leave();
  }

  async failed(error) {
    if (running !== this) return;
    const known = WORDS[error.name] ? `${this.input === "camera" ? "The camera" : "The microphone"}: ${WORDS[error.name]}` : error.message;
    fault(known);
    say(`Ended: ${known}`);
    state("failed", error instanceof StreamError ? "Ended by an error" : "Not started");
    this.ending = true;
    this.stream?.abandon();
    await this.leave();
  }

  async leave() {
    if (running !== this) return;
    running = null;
    for (const timer of this.timers) clearInterval(timer);
    if (this.stream) this.figures();
    $("preview").hidden = $("progress").hidden = true;
    $("progress").value = 0;
    await Promise.all([this.source?.stop(), this.speaker?.stop()].map((end) => end?.catch(() => {})));
    controls(false);
  }
}

// ----- controls

function controls(live) {
  const start = $("start");
  start.textContent = live ? "Stop" : "Start";
  start.dataset.running = live;
  $("break").disabled = $("hold").disabled = !live;
  $("model").disabled = live;
  for (const radio of [...form.elements.input, ...form.elements.output, $("file")]) radio.disabled = live;
  if (!live) {
    const { value } = $("books");
    chooseModel();
    $("books").value = value;
    chooseParts();
    loom.hold(false);
    $("hold").setAttribute("aria-pressed", "false");
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) {
    running.stop().catch((error) => running?.failed(error));
    return;
  }
  fault("");
  running = new Run(models.get($("model").value));
  const run = running;
  controls(true);
  await run.start().catch((error) => run.failed(error));
});

$("break").addEventListener("click", () => running?.stream?.breakConnection());
$("hold").addEventListener("click", ({ currentTarget: hold }) => {
  const held = hold.getAttribute("aria-pressed") !== "true";
  hold.setAttribute("aria-pressed", String(held));
  loom.hold(held);
});
$("model").addEventListener("change", chooseModel);
form.addEventListener("change", ({ target }) => {
  if (target.type === "radio") chooseParts();
});
$("volume").addEventListener("input", ({ target }) => {
  if (running?.speaker) running.speaker.volume = Number(target.value);
});
$("books").addEventListener("input", chooseParts);
$("books").addEventListener("change", ({ target }) => {
  running?.stream?.set({ codebooks: Number(target.value) }).catch((error) => say(error.message));
});
function useKey() {
  if ($("key").value) sessionStorage.setItem(KEY, $("key").value);
  $("key").value = "";
  untilModels();
}
$("key-use").addEventListener("click", useKey);
$("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  useKey();
});
addEventListener("pagehide", () => running?.stream?.abandon());

fetch("/version").then((answer) => answer.json()).then(({ version }) => {
  $("version").textContent = `streamenc ${version}`;
}, () => {});
untilModels();
