// The client of `streamenc serve`, for browsers and Node, without dependencies. docs/server has the
// protocol, docs/io/wire.md the packets. Payloads are little-endian, as every machine of a browser is.

const SUBPROTOCOL = "streamenc.v1";
const MAJOR = 1;
const MINOR = 3;
const HEADER_BYTES = 5;
const MAX_AXES = 8;
const MAX_DEPTH = 8;
const LIMITS = { I: 2 ** 16, D: 2 ** 24, E: 1024, C: 1024, B: 1024, S: 2 ** 24 };
// Bytes of a data packet beside its payload: the wire format's 72, and room for a larger array of sizes.
const OVERHEAD_BYTES = 128;
const MAX_BAD_PACKETS = 16;
const DISCONTINUITY = 1;
const REVISED = 2;
const OPEN_FIELDS = ["model", "direction", "format", "rate", "channels", "codebooks", "dtype", "size", "layout", "hops",
  "vad", "policy"];
const SOUND = { s16: Int16Array, f32: Float32Array };
// Errors after which the same stream goes on at another connection, and close codes after which it never does.
const PASSING = new Set(["full", "ending", "engine_gone"]);
const FINAL = { 1002: "bad_message", 1003: "bad_message", 1007: "bad_message", 1008: "refused", 1009: "too_big",
  4400: "bad_packet", 4408: "idle", 4409: "taken_over", 4410: "expired" };

/** Whatever ends a stream, or is refused: `code` is a word for programs, of the table in docs/server. */
export class StreamError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = "StreamError";
    this.code = code;
    this.fatal = details.fatal ?? true;
    this.seq = details.seq ?? null;
    this.closeCode = details.closeCode ?? null;
  }
}

// ----- packets

class Writer {
  constructor(size) {
    this.view = new DataView(new ArrayBuffer(size));
    this.at = 0;
  }

  byte(value) { this.view.setUint8(this.at++, value); }

  integer(value) {
    if (!Number.isSafeInteger(value)) throw new StreamError("bad_packet", `${value} is no safe integer`, { fatal: false });
    const view = this.view;
    if (value >= 0 && value < 128) this.byte(value);
    else if (value >= 0 && value < 2 ** 16) { this.byte(0xcd); view.setUint16(this.at, value); this.at += 2; }
    else if (value >= 0 && value < 2 ** 32) { this.byte(0xce); view.setUint32(this.at, value); this.at += 4; }
    else if (value >= 0) { this.byte(0xcf); view.setBigUint64(this.at, BigInt(value)); this.at += 8; }
    else { this.byte(0xd3); view.setBigInt64(this.at, BigInt(value)); this.at += 8; }
  }

  float(value) { this.byte(0xcb); this.view.setFloat64(this.at, value); this.at += 8; }

  array(length) { this.byte(0x90 + length); }  // up to 15

  text(ascii) {  // up to 31 letters
    this.byte(0xa0 + ascii.length);
    for (const letter of ascii) this.byte(letter.charCodeAt(0));
  }

  binary(bytes) {
    this.byte(0xc6);
    this.view.setUint32(this.at, bytes.byteLength);
    new Uint8Array(this.view.buffer).set(bytes, this.at + 4);
    this.at += 4 + bytes.byteLength;
  }

  packet() { return new Uint8Array(this.view.buffer, 0, this.at); }
}

function packet(kind, size) {
  const writer = new Writer(size + OVERHEAD_BYTES);
  for (const byte of [0x53, 0x45, MAJOR, MINOR, kind.charCodeAt(0)]) writer.byte(byte);
  return writer;
}

/** A data packet: `data` is a Uint8Array of the payload's bytes. */
export function encodeData({ seq, pts = 0, duration = 0, flags = 0, dtype, shape, data }) {
  const writer = packet("D", data.byteLength);
  writer.array(11);
  for (const value of [0, 0, seq, pts, duration, flags, 0]) writer.integer(value);
  writer.float(1);
  writer.text(dtype);
  writer.array(shape.length);
  for (const size of shape) writer.integer(size);
  writer.binary(data);
  return writer.packet();
}

function encodeCredit(received, window) {
  const writer = packet("C", 0);
  writer.array(3);
  for (const value of [0, received, window]) writer.integer(value);
  return writer.packet();
}

function encodeSnapshot(blob) {
  const writer = packet("S", blob.byteLength);
  writer.array(2);
  writer.integer(0);
  writer.binary(blob);
  return writer.packet();
}

const bad = (message) => new StreamError("bad_packet", message, { fatal: false });

/** Reads msgpack out of bytes that nobody vouches for: every length is checked before anything is made. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  take(length) {
    if (length > this.bytes.byteLength - this.at) throw bad("a packet that ends too early");
    this.at += length;
    return this.at - length;
  }

  big(signed) {
    const at = this.take(8);
    const value = signed ? this.view.getBigInt64(at) : this.view.getBigUint64(at);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }

  raw(length) {
    const at = this.take(length);
    return this.bytes.subarray(at, at + length);
  }

  text(length) { return new TextDecoder().decode(this.raw(length)); }

  array(length, depth) {
    if (length > this.bytes.byteLength - this.at || depth >= MAX_DEPTH) throw bad("an array that cannot be");
    return Array.from({ length }, () => this.value(depth + 1));
  }

  map(length, depth) {
    this.array(2 * length, depth);  // of a newer minor version: not for us
    return null;
  }

  value(depth = 0) {
    const { view } = this;
    const tag = view.getUint8(this.take(1));
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.map(tag & 15, depth);
    if (tag < 0xa0) return this.array(tag & 15, depth);
    if (tag < 0xc0) return this.text(tag & 31);
    if (tag >= 0xe0) return tag - 256;
    switch (tag) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.raw(view.getUint8(this.take(1)));
      case 0xc5: return this.raw(view.getUint16(this.take(2)));
      case 0xc6: return this.raw(view.getUint32(this.take(4)));
      case 0xca: return view.getFloat32(this.take(4));
      case 0xcb: return view.getFloat64(this.take(8));
      case 0xcc: return view.getUint8(this.take(1));
      case 0xcd: return view.getUint16(this.take(2));
      case 0xce: return view.getUint32(this.take(4));
      case 0xcf: return this.big(false);
      case 0xd0: return view.getInt8(this.take(1));
      case 0xd1: return view.getInt16(this.take(2));
      case 0xd2: return view.getInt32(this.take(4));
      case 0xd3: return this.big(true);
      case 0xd9: return this.text(view.getUint8(this.take(1)));
      case 0xda: return this.text(view.getUint16(this.take(2)));
      case 0xdb: return this.text(view.getUint32(this.take(4)));
      case 0xdc: return this.array(view.getUint16(this.take(2)), depth);
      case 0xdd: return this.array(view.getUint32(this.take(4)), depth);
      case 0xde: return this.map(view.getUint16(this.take(2)), depth);
      case 0xdf: return this.map(view.getUint32(this.take(4)), depth);
      default: throw bad(`the msgpack type 0x${tag.toString(16)}`);
    }
  }
}

const isCount = (value) => Number.isSafeInteger(value) && value >= 0;

function fields(body, wanted) {
  if (!Array.isArray(body) || body.length < wanted) throw bad(`a packet of ${body?.length} fields; wanted ${wanted}`);
  return body;
}

/** What a packet says, by its kind; raises a StreamError `bad_packet` for anything else. */
export function decodePacket(bytes) {
  if (bytes.byteLength <= HEADER_BYTES || bytes[0] !== 0x53 || bytes[1] !== 0x45) throw bad("no packet of streamenc");
  if (bytes[2] !== MAJOR) throw bad(`a packet of version ${bytes[2]}.${bytes[3]}; this client reads ${MAJOR}.${MINOR}`);
  const kind = String.fromCharCode(bytes[4]);
  if (!(bytes.byteLength <= LIMITS[kind])) throw bad(`${bytes.byteLength} bytes of the kind ${kind}`);
  const reader = new Reader(bytes.subarray(HEADER_BYTES));
  const body = reader.value();
  if (reader.at !== reader.bytes.byteLength) throw bad("bytes behind a packet");
  if (kind === "D") return { kind, ...readData(fields(body, 11)) };
  if (kind === "I") {
    const [stream, openedNs, described, tracks] = fields(body, 4);
    const read = fields(tracks, 0).map(readDescribed);
    return { kind, stream, opened: milliseconds(openedNs), ...readDescribed(described), tracks: read };
  }
  if (kind === "C") {
    const [stream, received, window] = fields(body, 3);
    if (!isCount(received) || !isCount(window)) throw bad("a credit of no counts");
    return { kind, stream, received, window };
  }
  if (kind === "S") {
    const [stream, blob] = fields(body, 2);
    if (!(blob instanceof Uint8Array)) throw bad("a snapshot of no bytes");
    return { kind, stream, blob: blob.slice() };
  }
  return { kind, body };
}

const milliseconds = (ns) => (typeof ns === "bigint" ? Number(ns / 1000n) / 1000 : ns / 1e6);

function readDescribed(described) {
  const [kind, ticks, base, rate, per, shape, dtype, model, codebookSize, segmented] = fields(described, 9);
  if (![ticks, base, per].every((n) => Number(n) > 0)) throw bad("a time base that is none");
  return { what: kind, tick: Number(ticks) / Number(base), rate: segmented ? 0 : Number(rate) / Number(per), shape, dtype,
    model, codebookSize, segmented: Boolean(segmented) };
}

function readData(body) {
  const [stream, track, seq, pts, duration, flags, arrivedNs, scale, dtype, shape, payload, , segment] = body;
  const read = Object.hasOwn(PAYLOADS, dtype) ? PAYLOADS[dtype] : null;
  if (!read || !(payload instanceof Uint8Array) || !Array.isArray(shape) || shape.length > MAX_AXES
    || !shape.every(isCount)) throw bad(`data of the type ${String(dtype).slice(0, 20)}`);
  const items = shape.reduce((product, size) => product * size, 1);
  if (items * Number(dtype[1]) !== payload.byteLength) throw bad(`${payload.byteLength} bytes in the shape ${shape}`);
  if (![track, seq, duration, flags].every(isCount) || !Number.isSafeInteger(pts)) throw bad("data of no times");
  return { stream, track, seq, pts, duration, discontinuity: Boolean(flags & DISCONTINUITY),
    revised: Boolean(flags & REVISED), arrived: milliseconds(arrivedNs), scale: Number(scale), dtype, shape,
    segment: segment ?? null, data: read(payload.slice().buffer) };
}

const PAYLOADS = {
  u1: (buffer) => new Uint8Array(buffer),
  u2: (buffer) => new Uint16Array(buffer),
  u4: (buffer) => new Uint32Array(buffer),
  i2: (buffer) => new Int16Array(buffer),
  f4: (buffer) => new Float32Array(buffer),
  f2: (buffer) => Float32Array.from(new Uint16Array(buffer), float16),
  // The upper two bytes of a float32.
  b2: (buffer) => new Float32Array(Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16).buffer),
};

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

// ----- streams

const now = () => performance.now();
const ignore = () => {};

/** A promise with its ends, of which nobody needs to know that it failed. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(ignore);
  return made;
}

/** `http://host`, `ws://host/v1/stream?token=x`, ... -> the address of streams there. */
function streamAddress(url) {
  const address = new URL(url, globalThis.location?.href);
  address.protocol = address.protocol.replace("http", "ws");
  if (!address.pathname.includes("/v1/")) address.pathname = `${address.pathname.replace(/\/$/, "")}/v1/stream`;
  address.hash = "";
  return address;
}

function bytesOf(data) {
  if (typeof data === "string") return new TextEncoder().encode(data);
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

const DTYPES = new Map([[Uint8Array, "u1"], [Uint8ClampedArray, "u1"], [Uint16Array, "u2"], [Uint32Array, "u4"],
  [Int16Array, "i2"], [Float32Array, "f4"]]);

/** Floats in [-1, 1] as whole numbers of 16 bits, or the other way round. */
function samplesAs(Type, samples) {
  if (samples instanceof Type) return samples;
  const whole = (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
  return Type === Int16Array ? Int16Array.from(samples, whole) : Float32Array.from(samples, (value) => value / 32768);
}

/**
 * One live stream on a server, which goes on by itself after its connection broke.
 *
 * An async iterator of frames, and an EventTarget; events carry what the server said as `detail`.
 * `connect` makes one.
 */
export class LiveStream extends EventTarget {
  #addresses; #options; #socket = null; #turn = 0;
  #state = "connecting"; #stage = "closed"; #token = null; #over = null;
  #ready = deferred(); #wake = ignore; #timer = null; #watch = null; #notBefore = 0;
  // Ordered messages to the server: `#entries` from `#base` on are kept until acknowledged; `#cursor` is sent next, and
  // those below `#limit` are taken.
  #entries = []; #base = 0; #cursor = 0; #limit = 0; #bytes = 0; #waiting = []; #pts = 0; #gap = false; #closing = null;
  // Numbered messages from it: `#count` came, those below `#seen` had come before.
  #count = 0; #seen = 0; #queue = []; #readers = []; #credited = 0;
  #received = 0; #acknowledged = false;
  #marks = new Map(); #answers = { flushed: [], set: [], snapshot: [] }; #blob = null;
  #heard = 0; #progress = 0; #bad = 0; #fault = null;
  #counts = { packetsSent: 0, packetsReceived: 0, bytesSent: 0, bytesReceived: 0, resumed: 0, inexact: 0, refused: 0,
    malformed: 0, droppedHere: 0, droppedInput: 0, droppedOutput: 0, roundTripMs: null };

  constructor(url, options) {
    super();
    this.#addresses = [url].flat().map(streamAddress);
    this.#options = { window: 256, bufferBytes: 2 ** 25, connectSeconds: 5, silenceSeconds: 20, key: "",
      WebSocket: globalThis.WebSocket, ...options };
    if (!this.#options.WebSocket) {
      throw new StreamError("bad_open", "no WebSocket here: give one as an option, or use Node 22 or newer");
    }
    const from = this.#options.snapshot;
    if (from) {
      this.#base = this.#cursor = from.seq;
      this.#pts = from.pts;
    }
    this.opened = null;
    this.info = null;
    this.#run().catch((error) => this.#end(error));
  }

  /** "connecting", "open", "broken" while it is being resumed, "closed" or "failed". */
  get state() { return this.#state; }

  /** Resolves to the stream once it is open. */
  get ready() { return this.#ready.promise; }

  statistics() {
    return { ...this.#counts, unacknowledgedBytes: this.#bytes, unacknowledged: this.#entries.length,
      unsent: this.#base + this.#entries.length - this.#cursor, unread: this.#queue.length };
  }

  // ----- to the server

  /** Sends input as the format of the stream has it; resolves when it has its place, waits while the buffer is full. */
  send(data, times = {}) {
    const sent = Promise.all(this.#pieces(data, times).map((piece) => this.#put(piece)));
    sent.catch(ignore);
    return sent.then(ignore);
  }

  /** The same for what is live: false where there is no room. It is then dropped, counted, and the gap flagged. */
  offer(data, times = {}) {
    const pieces = this.#pieces(data, times);
    const size = pieces.reduce((sum, piece) => sum + piece.size, 0);
    if (this.#over || this.#closing || this.#waiting.length || !this.#room(size)) {
      for (const piece of pieces) this.#pts += piece.samples ?? 0;
      this.#gap = true;
      this.#counts.droppedHere += pieces.length;
      return false;
    }
    for (const piece of pieces) this.#put(piece);
    return true;
  }

  /** The model's stream ends here; resolves behind its last packet. */
  flush() { return this.#ask({ type: "flush" }, "flushed"); }

  /** From the next step on: `codebooks`, or `vad` (true, false). */
  set(changes) { return this.#ask({ type: "set", ...changes }, "set"); }

  /** The whole state, for the option `snapshot` at another server. */
  snapshot() { return this.#ask({ type: "snapshot" }, "snapshot"); }

  /** Resolves once everything before it has come out, with the `roundTripMs` that took. */
  mark(id = `mark ${crypto.randomUUID?.() ?? Math.random()}`) {
    const asked = Object.assign(deferred(), { at: now() });
    this.#marks.set(id, [...(this.#marks.get(id) ?? []), asked]);
    this.#put({ control: { type: "mark", id }, size: 64 }).catch(asked.reject);
    return asked.promise;
  }

  /** Flushes, takes what is left, and ends the stream; frames can be read on. */
  close() {
    if (!this.#closing) {
      this.#closing = deferred();
      if (this.#over) this.#closing.resolve(null);
      else this.#put({ control: { type: "close" }, size: 64 }, true).catch(this.#closing.reject);
    }
    return this.#closing.promise;
  }

  /** Breaks the connection, as a network would: the stream goes on by itself. */
  breakConnection() { this.#drop(4000, "broken on purpose"); }

  /** Leaves without a word: the server keeps the stream for `resume_seconds`, this client forgets it. */
  abandon() { this.#end(new StreamError("abandoned", "the stream was left by its client", { fatal: false }), "closed"); }

  #ask(control, answer) {
    const asked = deferred();
    this.#answers[answer].push(asked);
    this.#put({ control, size: 64 }).catch(asked.reject);
    return asked.promise;
  }

  #pieces(data, { pts = 0, duration = 0, discontinuity = false }) {
    if (!this.opened) throw new StreamError("bad_message", "the stream is not open yet: await ready first", { fatal: false });
    const format = this.opened.input.format;
    const flags = discontinuity ? DISCONTINUITY : 0;
    const room = this.opened.max_message_bytes - OVERHEAD_BYTES;
    const pieces = [];
    if (SOUND[format]) {
      const channels = (Array.isArray(data) ? data : [data]).map((samples) => samplesAs(SOUND[format], samples));
      const [first] = channels;
      if (channels.some(({ length }) => length !== first.length)) throw bad("channels of different lengths");
      const most = Math.max(1, Math.floor(room / (channels.length * first.BYTES_PER_ELEMENT)));
      for (let at = 0; at < first.length; at += most) {
        const samples = Math.min(most, first.length - at);
        const payload = new SOUND[format](channels.length * samples);
        channels.forEach((channel, i) => payload.set(channel.subarray(at, at + samples), i * samples));
        pieces.push({ dtype: DTYPES.get(SOUND[format]), shape: [channels.length, samples], data: bytesOf(payload), samples,
          flags: at ? 0 : flags });
      }
    } else if (data.shape) {
      const dtype = DTYPES.get(data.data.constructor);
      if (!dtype) throw bad(`data of ${data.data.constructor.name}`);
      pieces.push({ dtype, shape: data.shape, data: bytesOf(data.data).slice(), pts, duration, flags });
    } else {
      const bytes = bytesOf(data).slice();
      const most = format === "media" ? room : Math.max(1, bytes.byteLength);
      for (let at = 0; at < bytes.byteLength; at += most) {
        const part = bytes.subarray(at, at + most);
        pieces.push({ dtype: "u1", shape: [1, part.byteLength], data: part, pts, duration, flags });
      }
    }
    for (const piece of pieces) {
      piece.size = piece.data.byteLength + OVERHEAD_BYTES;
      if (piece.size > this.opened.max_message_bytes) {
        throw new StreamError("too_big", `a packet of ${piece.size} bytes; the server takes ${this.opened.max_message_bytes}`,
          { fatal: false });
      }
    }
    return pieces;
  }

  async #put(entry, last = false) {
    if (this.#over) throw this.#over;
    if (this.#closing && !last) throw new StreamError("bad_message", "the stream is closing", { fatal: false });
    if (this.#waiting.length || !this.#fits(entry)) {
      const place = deferred();
      this.#waiting.push({ entry, place });
      return place.promise;
    }
    return this.#keep(entry);
  }

  #room(size) {
    const most = this.#options.bufferBytes;
    // A server that never acknowledges keeps streams in its memory alone: what it is through with, it will not ask for.
    while (!this.#acknowledged && this.#bytes + size > most && this.#base < this.#received) this.#shift();
    return this.#bytes + size <= most;
  }

  // Alone, even what is larger than the buffer has to go.
  #fits(entry) { return this.#room(entry.size) || !this.#entries.length; }

  #shift() {
    this.#bytes -= this.#entries.shift().size;
    this.#base += 1;
  }

  #keep(entry) {
    if (entry.samples !== undefined) {
      entry.pts = this.#pts;
      entry.duration = entry.samples;
      this.#pts += entry.samples;
    }
    if (entry.data && this.#gap) {
      entry.flags |= DISCONTINUITY;
      this.#gap = false;
    }
    this.#entries.push(entry);
    this.#bytes += entry.size;
    this.#pump();
  }

  #pump() {
    while (this.#socket && this.#stage === "live" && this.#cursor < Math.min(this.#limit, this.#base + this.#entries.length)) {
      if (this.#socket.bufferedAmount > 2 ** 21) {
        setTimeout(() => this.#pump(), 20);
        return;
      }
      const entry = this.#entries[this.#cursor - this.#base];
      if (entry.control) this.#say({ ...entry.control, seq: this.#cursor });
      else {
        this.#transmit(encodeData({ ...entry, seq: this.#cursor }));
        this.#counts.packetsSent += 1;
      }
      this.#cursor += 1;
    }
  }

  #say(message) { this.#transmit(JSON.stringify(message)); }

  #transmit(data) {
    if (this.#socket?.readyState !== 1) return;
    this.#counts.bytesSent += data.byteLength ?? data.length;
    this.#socket.send(data);
  }

  #forget(seq) {
    this.#acknowledged = true;
    while (this.#base < Math.min(seq, this.#cursor)) this.#shift();
    this.#admit();
  }

  #admit() {
    while (this.#waiting.length && this.#fits(this.#waiting[0].entry)) {
      const { entry, place } = this.#waiting.shift();
      this.#keep(entry);
      place.resolve();
    }
  }

  // ----- connections

  async #run() {
    let failures = 0;
    let lost = now();
    while (!this.#over) {
      const since = now();
      const before = this.#progress;
      const { code, reason } = await this.#connection();
      if (this.#over) return;
      const lived = this.#stage === "live";
      this.#stage = "closed";
      if (lived) this.#tell("broken", "disconnected", { code, reason: this.#fault?.message ?? reason });
      // A connection at which nothing happened is one more failure.
      if (lived && (this.#progress > before || now() - since > 2000)) {
        failures = 0;
        lost = now();
      }
      const fault = this.#fault;
      this.#fault = null;
      if (fault && !PASSING.has(fault.code)) return this.#end(fault);
      if (!fault && FINAL[code]) {
        return this.#end(new StreamError(FINAL[code], `the server closed the connection: ${reason || code}`, { closeCode: code }));
      }
      const patience = this.#token ? this.opened.resume_seconds + 5 : this.#options.connectSeconds;
      if (now() - lost > patience * 1000) {
        return this.#end(fault ?? new StreamError("unreachable", `no connection to ${this.#addresses[0].host} for ${patience} s: `
          + "it is not there, is full, or takes neither this key nor this page"));
      }
      this.#turn += 1;
      const pause = Math.min(8000, 250 * 2 ** failures++) * (0.5 + Math.random() / 2);
      const told = this.#addresses.length > 1 ? 0 : this.#notBefore - now();
      await this.#pause(failures === 1 && lived ? Math.max(told, pause / 5) : Math.max(told, pause));
    }
  }

  async #pause(ms) {
    await new Promise((resolve) => {
      this.#wake = resolve;
      this.#timer = setTimeout(resolve, ms);
      globalThis.addEventListener?.("online", resolve, { once: true });
    });
    clearTimeout(this.#timer);
    globalThis.removeEventListener?.("online", this.#wake);
  }

  /** One connection, until it is closed. */
  #connection() {
    const address = new URL(this.#addresses[this.#turn % this.#addresses.length]);
    const protocols = [SUBPROTOCOL];
    const { key, WebSocket } = this.#options;
    if (/^[\w!#$%&'*+.^`|~-]+$/.test(key)) protocols.push(`key.${key}`);
    else if (key) address.searchParams.set("token", key);
    if (this.#token) address.searchParams.append("resume", "");
    const socket = new WebSocket(address.href, protocols);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heard = now();
    return new Promise((resolve) => {
      const closed = (event) => {
        clearInterval(this.#watch);
        if (this.#socket === socket) this.#socket = null;
        resolve(event);
      };
      socket.leave = closed;
      let open = false;
      socket.onopen = () => {
        open = true;
        if (this.#socket === socket) this.#greet();
      };
      socket.onmessage = ({ data }) => {
        if (this.#socket === socket) this.#hear(data);
      };
      socket.onclose = closed;
      // `close` follows, but for connections that were never made, in Node 20.
      socket.onerror = () => open || closed({ code: 1006, reason: "" });
      clearInterval(this.#watch);
      this.#watch = setInterval(() => this.#tend(), 250);
    });
  }

  #greet() {
    if (this.#token) {
      this.#say({ type: "resume", token: this.#token, received: this.#count, window: this.#holds() });
      return;
    }
    const open = { type: "open", window: this.#options.window };
    for (const field of OPEN_FIELDS) if (this.#options[field] !== undefined) open[field] = this.#options[field];
    if (this.#options.snapshot) open.snapshot = true;
    this.#say(open);
    if (open.snapshot) this.#transmit(encodeSnapshot(this.#options.snapshot.blob));
  }

  /** Now and then: says what was read, and gives a connection up that is silent while the server owes something. */
  #tend() {
    this.#credit(1);
    const waits = this.#stage !== "live" || this.#cursor >= this.#limit || this.#closing;
    const { silenceSeconds } = this.#options;
    if (silenceSeconds && waits && !this.#queue.length && now() - this.#heard > silenceSeconds * 1000) {
      this.#drop(4000, "silence");
    }
  }

  /** Ends the connection at once; a dead one would take long to say that it is closed. */
  #drop(code, reason) {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = null;
    socket.close(code, reason);
    socket.leave({ code, reason });
  }

  #end(error, state = "failed") {
    if (this.#over) return;
    this.#over = error;
    this.#stage = "closed";
    clearInterval(this.#watch);
    this.#wake();
    this.#drop(1000, "");
    const left = [this.#ready, ...this.#waiting.map(({ place }) => place), ...Object.values(this.#answers).flat(),
      ...[...this.#marks.values()].flat()];
    for (const asked of left) asked.reject(error);
    if (state === "failed") {
      this.#closing?.reject(error);
      this.#emit("error", error);
    }
    for (const reader of this.#readers.splice(0)) this.#finish(reader);
    this.#tell(state, "ended", error);
  }

  // ----- from the server

  #hear(data) {
    this.#heard = now();
    this.#counts.bytesReceived += data.byteLength ?? data.length;
    if (typeof data === "string") {
      let message;
      try {
        message = JSON.parse(data);
      } catch {
        this.#counts.malformed += 1;
        return;
      }
      this.#message(message);
      return;
    }
    const bytes = new Uint8Array(data);
    // A packet of data has its number, whatever is wrong with it.
    const n = bytes[4] === 0x44 ? this.#count++ : -1;
    let read;
    try {
      read = decodePacket(bytes);
    } catch (error) {
      if (!(error instanceof StreamError)) throw error;
      this.#counts.malformed += 1;
      this.#emit("error", error);
      return;
    }
    if (read.kind === "D") this.#frame(read, n);
    else if (read.kind === "I") {
      this.info = read;
      this.#emit("info", read);
    } else if (read.kind === "C") {
      this.#received = Math.max(this.#received, Math.min(read.received, this.#cursor));
      this.#grant(read.received + read.window);
      this.#admit();
    } else if (read.kind === "S") this.#blob = read.blob;
  }

  #grant(limit) {
    if (limit <= this.#limit) return;
    this.#limit = limit;
    this.#progress += 1;
    this.#pump();
  }

  #frame({ kind, ...frame }, n) {
    if (n < this.#seen) return;
    this.#seen = n + 1;
    this.#progress += 1;
    this.#counts.packetsReceived += 1;
    const info = this.info?.what === "mux" ? this.info.tracks[frame.track] ?? null : this.info;
    frame.info = info;
    frame.seconds = info ? frame.pts * info.tick : NaN;
    frame.durationSeconds = info ? frame.duration * info.tick : NaN;
    frame.text = info?.what === "text" ? new TextDecoder().decode(frame.data) : null;
    const reader = this.#readers.shift();
    if (reader) reader.resolve({ value: frame, done: false });
    else this.#queue.push({ n, frame });
    this.#credit(this.#options.window >> 2);
  }

  /** How many numbered messages more can be held. */
  #holds() { return this.#options.window && Math.max(1, this.#options.window - this.#queue.length); }

  #credit(least) {
    const { window } = this.#options;
    const received = this.#queue.length ? this.#queue[0].n : this.#count;
    if (!window || this.#stage !== "live" || received - this.#credited < Math.max(1, least)) return;
    this.#credited = received;
    this.#transmit(encodeCredit(received, window));
  }

  #message(message) {
    const { type, n } = message;
    if (isCount(n) && type !== "resumed") {
      this.#count = n + 1;
      if (n < this.#seen) return;
      this.#seen = n + 1;
    }
    switch (type) {
      case "opened": return this.#begin(message, this.#base);
      case "resumed": return this.#goOn(message);
      case "ack": return this.#forget(message.seq);
      case "mark": return this.#marked(message);
      case "flushed":
      case "set": this.#answers[type].shift()?.resolve(message); break;
      case "snapshot": return this.#taken(message);
      case "dropped":
        this.#counts[message.where === "input" ? "droppedInput" : "droppedOutput"] = message.total;
        break;
      case "goaway": this.#notBefore = now() + message.seconds * 1000; break;
      case "closed": return this.#closed(message);
      case "error": return this.#refusal(message);
      default:
    }
    return this.#emit(type, message);
  }

  #begin(message, next) {
    this.#token = message.token;
    this.#stage = "live";
    this.#cursor = next;
    this.#limit = next + message.window;
    this.#notBefore = 0;
    if (message.type === "opened") {
      this.opened = message;
      this.#tell("open", "opened", message);
      this.#ready.resolve(this);
    }
    this.#pump();
  }

  #goOn(message) {
    const { next_seq: next, n } = message;
    if (!(next >= this.#base && next <= this.#base + this.#entries.length)) {
      this.#end(new StreamError("expired", `the server wants the message ${next}; ${this.#base} to `
        + `${this.#base + this.#entries.length} are here`));
      return;
    }
    if (isCount(n)) this.#count = n;
    this.#credited = 0;  // the last credit may have been lost
    this.#counts.resumed += 1;
    if (!message.exact) this.#counts.inexact += 1;
    this.#begin(message, next);
    this.#tell("open", "resumed", message);
  }

  #taken(message) {
    const blob = this.#blob;
    this.#blob = null;
    if (blob?.byteLength === message.bytes) this.#answers.snapshot.shift()?.resolve({ ...message, blob });
    // Its packet went lost with a connection, and has no number to ask for it by.
    else this.#put({ control: { type: "snapshot" }, size: 64 }).catch(ignore);
  }

  #marked(message) {
    const waiting = this.#marks.get(message.id) ?? [];
    const asked = waiting.shift();
    if (!waiting.length) this.#marks.delete(message.id);
    if (asked) {
      this.#counts.roundTripMs = now() - asked.at;
      asked.resolve({ ...message, roundTripMs: this.#counts.roundTripMs });
    }
    this.#emit("mark", message);
  }

  #closed(message) {
    this.#closing ??= deferred();
    this.#closing.resolve(message);
    this.#emit("closed", message);
    this.#end(new StreamError("closed", "the stream is closed", { fatal: false }), "closed");
  }

  #refusal({ code, message, fatal, seq = null }) {
    const error = new StreamError(code, message, { fatal, seq });
    if (fatal) {
      this.#fault = error;
      this.#drop(1000, "");
      return;
    }
    this.#emit("error", error);
    if (code === "bad_packet" && seq !== null) this.#leaveOut(seq, error);
    else if (code === "bad_sequence") this.#drop(4000, "out of step");
  }

  /** What the server refused is taken out, and what follows it moves up; a resumption says from where it goes on. */
  #leaveOut(seq, error) {
    const at = seq - this.#base;
    this.#counts.refused += 1;
    this.#bad += 1;
    if (!this.#entries[at]?.data || this.#bad >= MAX_BAD_PACKETS) {
      this.#end(error);
      return;
    }
    this.#bytes -= this.#entries.splice(at, 1)[0].size;
    const following = this.#entries.slice(at).find((entry) => entry.data);
    if (following) following.flags |= DISCONTINUITY;
    else this.#gap = true;
    this.#cursor = seq;
    this.#drop(4000, "a packet was refused");
  }

  #tell(state, type, detail) {
    this.#state = state;
    this.#emit(type, detail);
    this.#emit("state", state);
  }

  #emit(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

  // ----- frames

  #finish(reader) {
    if (this.#state === "failed" || this.#over.fatal) reader.reject(this.#over);
    else reader.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    const next = () => {
      const reader = deferred();
      const first = this.#queue.shift();
      if (first) {
        reader.resolve({ value: first.frame, done: false });
        this.#credit(this.#options.window >> 2);
      } else if (this.#over) this.#finish(reader);
      else this.#readers.push(reader);
      return reader.promise;
    };
    // Leaving a loop leaves the stream open: another loop may read on.
    return { next, return: async () => ({ value: undefined, done: true }), [Symbol.asyncIterator]() { return this; } };
  }
}

/**
 * Opens a stream: `options` has the fields of `open` (docs/server), and `key`, `snapshot`, `window`, `bufferBytes`,
 * `connectSeconds`, `silenceSeconds` and `WebSocket` (streamenc.d.ts). `url` may be a list of servers with one store.
 */
export function connect(url, options) {
  return new LiveStream(url, options).ready;
}
