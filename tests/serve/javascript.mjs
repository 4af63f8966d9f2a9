// What test_javascript.py has Node do: one scenario of those below, at the address given; the result as JSON.
import { connect, decodePacket, encodeData, StreamError } from "../../streamenc/serve/static/streamenc.js";

const [, , scenario, address, given = "{}"] = process.argv;
const options = JSON.parse(given);

/** As the tests make them: any whole numbers, but always the same. */
const samples = (length, from = 0) => Int16Array.from({ length }, (_, i) => ((i + from) * 7919) % 2003 - 1001);

async function collect(stream) {
  const frames = [];
  for await (const { track, seq, pts, shape, data, seconds, discontinuity } of stream) {
    frames.push({ track, seq, pts, shape, data: [...data], seconds, discontinuity });
  }
  return frames;
}

const failure = ({ name, code, message, closeCode }) => ({ name, code, message, closeCode });

/** A whole session: pieces of odd sizes, a mark, fewer codebooks, a flush; with what was told. */
async function session(query, extra = {}) {
  const stream = await connect(`ws://${address}/v1/stream?${query}`, { model: "fake", window: 6, ...options.open, ...extra });
  const frames = collect(stream);
  let at = 0;
  for (const [i, length] of options.lengths.entries()) {
    await stream.send(samples(length, at));
    at += length;
    if (i === 3) stream.set({ codebooks: 2 });
  }
  const mark = await stream.mark("here");
  await stream.flush();
  const closed = await stream.close();
  return { frames: await frames, mark: mark.pts, closed, statistics: stream.statistics(), state: stream.state };
}

const scenarios = {
  async sessions() {
    const all = [];
    for (let at = 0; at < options.queries.length; at += 24) {
      all.push(...await Promise.all(options.queries.slice(at, at + 24).map((query) => session(query))));
    }
    return all;
  },

  async example() {
    const { tokens } = await import("../../examples/serve_client.mjs");
    const printed = [];
    await tokens(`http://${address}`, options.model, samples(options.samples), (frame) => printed.push([...frame.data]));
    return printed;
  },

  async refused() {
    const told = [];
    const attempt = async (url, extra) => {
      try {
        await connect(url, { connectSeconds: 0.3, ...extra });
        told.push(null);
      } catch (error) {
        told.push(failure(error));
      }
    };
    await attempt(`ws://${address}`, { model: "other" });
    await attempt("ws://127.0.0.1:9", { model: "fake" });
    return told;
  },

  /** A packet that the server refuses is left out, and what follows it goes on. */
  async bad() {
    const stream = await connect(`ws://${address}`, { model: "fake" });
    const errors = [];
    stream.addEventListener("error", ({ detail }) => errors.push({ ...failure(detail), seq: detail.seq }));
    const frames = collect(stream);
    for (const length of [480, 13, 480, 480]) stream.send(samples(length));
    await stream.mark();
    await stream.close();
    return { errors, frames: await frames, statistics: stream.statistics() };
  },

  /** Live input beyond the buffer is dropped and flagged; input that may wait, waits. */
  async bounds() {
    const stream = await connect(`ws://${address}`, { model: "fake", bufferBytes: 8000 });
    const frames = collect(stream);
    const taken = Array.from({ length: 12 }, () => stream.offer(samples(480)));
    await Promise.all(Array.from({ length: 12 }, () => stream.send(samples(480))));
    await stream.close();
    let late;
    try {
      await stream.send(samples(1));
    } catch (error) {
      late = failure(error);
    }
    return { taken, frames: await frames, statistics: stream.statistics(), late, offered: stream.offer(samples(1)) };
  },

  /** A server without a store acknowledges nothing: what it is through with makes room. */
  async forgetful() {
    const stream = await connect(`ws://${address}`, { model: "forgetful", bufferBytes: 20000 });
    const frames = collect(stream);
    for (let i = 0; i < 40; i++) await stream.send(samples(480));
    stream.breakConnection();
    await stream.mark();
    const statistics = stream.statistics();
    await stream.close();
    return { frames: await frames, statistics };
  },

  /** A reader that stops for a while holds up the server, and loses nothing. */
  async slow() {
    const stream = await connect(`ws://${address}`, { model: "fake", window: 4 });
    for (let i = 0; i < 20; i++) stream.send(samples(480));
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { unread } = stream.statistics();
    const frames = collect(stream);
    await stream.close();
    return { unread, frames: await frames };
  },

  async move() {
    const moved = [];
    for (const query of options.queries) {
      const first = await connect(`ws://${address}/v1/stream?${query}`, { model: "fake" });
      const before = collect(first);
      await first.send(samples(700));
      const taken = await first.snapshot();
      first.abandon();
      const second = await connect(`ws://${address}`, { model: "fake", snapshot: taken });
      const after = collect(second);
      await second.send(samples(740, 700));
      await second.close();
      moved.push({ seq: taken.seq, pts: taken.pts, before: await before, after: await after });
    }
    return moved;
  },

  async broken() {
    const stream = await connect(`ws://${address}`, { model: "fake" });
    const events = [];
    for (const type of ["disconnected", "resumed", "closed", "ended"]) stream.addEventListener(type, () => events.push(type));
    const frames = collect(stream);
    await stream.send(samples(900));
    stream.breakConnection();
    await stream.send(samples(540, 900));
    await stream.mark();
    await stream.close();
    return { events, frames: await frames };
  },

  /** A model's codes, of sound in pieces of any size, over connections that break. */
  async engine() {
    const stream = await connect(`http://${address}`, { model: options.model, direction: "echo", format: "s16", window: 16 });
    const frames = collect(stream);
    let at = 0;
    for (const [i, length] of options.lengths.entries()) {
      stream.send(samples(length, at));
      at += length;
      if (i % 4 === 2) {
        stream.breakConnection();
        await stream.mark();
      }
    }
    const taken = await stream.snapshot();
    await stream.close();
    return { frames: await frames, taken: taken.blob.length, statistics: stream.statistics() };
  },

  packets() {
    const read = options.packets.map((hex) => {
      try {
        const packet = decodePacket(Uint8Array.from(Buffer.from(hex, "hex")));
        return { ...packet, data: packet.data && [...packet.data],
          blob: packet.blob && [...packet.blob] };
      } catch (error) {
        if (!(error instanceof StreamError)) throw error;
        return failure(error);
      }
    });
    const made = encodeData({ seq: 70000, pts: -5, duration: 3, flags: 1, dtype: "i2", shape: [1, 3],
      data: new Uint8Array(new Int16Array([1, -2, 3]).buffer) });
    return { read, made: Buffer.from(made).toString("hex") };
  },
};

const plain = (_, value) => (typeof value === "bigint" ? String(value) : value);
console.log(JSON.stringify(await scenarios[scenario](), plain));
