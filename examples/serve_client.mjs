// Sound in, tokens out, from JavaScript: `streamenc serve -m nano`, then
//
//   node serve_client.mjs http://127.0.0.1:8765 nano      (Node 22 or newer)

import { connect } from "../streamenc/serve/static/streamenc.js";

export async function tokens(url, model, samples, take) {
  const stream = await connect(url, { model, format: "s16", codebooks: 4 });
  stream.send(samples).then(() => stream.close());
  for await (const frame of stream) take(frame);  // goes on by itself where the connection breaks
}

if (process.argv[1] === import.meta.filename) {
  const [, , url = "http://127.0.0.1:8765", model = "nano"] = process.argv;
  const second = Int16Array.from({ length: 16000 }, (_, i) => 8000 * Math.sin(i / 10));
  await tokens(url, model, second, ({ seconds, shape, data }) => console.log(seconds.toFixed(2), shape, data.join(" ")));
}
