// Microphones, cameras and speakers of a browser, for the client in streamenc.js.

const WORKLETS = new URL("worklets.js", import.meta.url);
const CHUNK_SECONDS = 0.02;
const START_MS = 5000;
// Of an image whose model takes any size.
const IMAGE_SIDE = 320;

async function worklet(context, name, options) {
  await context.audioWorklet.addModule(WORKLETS);
  return new AudioWorkletNode(context, name, options);
}

/** Where there is no sound card, a context never runs, and does not say so. */
async function running(context) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("The browser's sound does not start: is there a sound card?")), START_MS);
  });
  await Promise.race([context.resume(), late]).finally(() => clearTimeout(timer));
}

/**
 * Sound of a microphone, untouched by the browser: mono, at the rate of the machine's sound card, in chunks of 20 ms.
 * `take(samples)` gets a Float32Array; `start()` begins, so that the stream can be opened at `rate` before.
 */
export async function microphone(take) {
  const untouched = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const media = await navigator.mediaDevices.getUserMedia({ audio: { ...untouched, channelCount: 1 } });
  // A context of another rate than the microphone's is refused by Firefox: the server resamples.
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    const samples = Math.round(context.sampleRate * CHUNK_SECONDS);
    const node = await worklet(context, "streamenc-capture", { numberOfOutputs: 0, processorOptions: { samples } });
    node.port.onmessage = ({ data }) => take(data);
    const source = context.createMediaStreamSource(media);
    return {
      rate: context.sampleRate,
      async start() {
        source.connect(node);
        await running(context);
      },
      async stop() {
        node.port.onmessage = null;
        for (const track of media.getTracks()) track.stop();
        await context.close();
      },
    };
  } catch (error) {
    for (const track of media.getTracks()) track.stop();
    await context.close();
    throw error;
  }
}

/** The (width, height) that images are sent at: what the model wants, or not more than needed. */
function sizeFor(video, wanted) {
  if (wanted) return wanted.split("x").map(Number);
  const scale = Math.min(1, IMAGE_SIDE / Math.max(video.videoWidth, video.videoHeight));
  return [Math.round(video.videoWidth * scale), Math.round(video.videoHeight * scale)];
}

/**
 * Images of a camera as JPEG, `rate` a second; `take(bytes, seconds)`. `video` shows them. Where `size` ("WIDTHxHEIGHT") is
 * given, the middle of the picture is cut out in those proportions.
 */
export async function camera(take, { video, rate, size = "" }) {
  const media = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  video.srcObject = media;
  await video.play();
  const [width, height] = sizeFor(video, size);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const drawn = canvas.getContext("2d", { alpha: false });
  let timer = null;
  let first = null;
  let busy = false;
  async function grab() {
    if (busy || video.readyState < 2) return;
    busy = true;
    const at = performance.now();
    first ??= at;
    const scale = Math.max(width / video.videoWidth, height / video.videoHeight);
    const [wide, high] = [width / scale, height / scale];
    drawn.drawImage(video, (video.videoWidth - wide) / 2, (video.videoHeight - high) / 2, wide, high, 0, 0, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
    if (timer !== null && blob) take(new Uint8Array(await blob.arrayBuffer()), (at - first) / 1000);
    busy = false;
  }
  return {
    rate,
    async start() { timer = setInterval(grab, 1000 / rate); },
    async stop() {
      clearInterval(timer);
      timer = null;
      video.srcObject = null;
      for (const track of media.getTracks()) track.stop();
    },
  };
}

/**
 * Plays what a decoder gives, at its own rate, `leadSeconds` behind; `heard(seconds, at)` says what sounds when. Of more than
 * `mostSeconds` that wait, the oldest are left out.
 */
export async function speaker({ rate, leadSeconds = 0.06, mostSeconds = Infinity, heard = () => {} }) {
  const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  const node = await worklet(context, "streamenc-playback", {
    numberOfInputs: 0, outputChannelCount: [1], processorOptions: { samples: Math.round(leadSeconds * rate), most: mostSeconds * rate },
  });
  const gain = context.createGain();
  node.connect(gain).connect(context.destination);
  let held = 0;
  let dry = 0;
  node.port.onmessage = ({ data }) => {
    held = data.held;
    dry = data.dry;
    if (data.seconds === undefined) return;
    const later = 1000 * (data.ahead + (context.outputLatency || context.baseLatency || 0));
    heard(data.seconds, performance.now() + later);
  };
  await running(context);
  return {
    play(samples, seconds) {
      held += samples.length;
      node.port.postMessage({ samples, seconds }, [samples.buffer]);
    },
    end() { node.port.postMessage("end"); },
    get heldSeconds() { return held / rate; },
    get dry() { return dry; },
    set volume(value) { gain.gain.value = value; },
    async stop() {
      node.port.onmessage = null;
      if (context.state !== "closed") await context.close();
    },
  };
}
