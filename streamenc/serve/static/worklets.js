// What runs on a browser's audio thread: sound on its way to the page, and from the page to the speaker.

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { samples } }) {
    super();
    this.samples = samples;
    this.chunk = new Float32Array(samples);
    this.filled = 0;
  }

  process([[first, ...others]]) {
    if (!first) return true;
    for (let i = 0; i < first.length; i++) {
      let sum = first[i];
      for (const other of others) sum += other[i];
      this.chunk[this.filled++] = sum / (1 + others.length);
      if (this.filled === this.samples) {
        this.port.postMessage(this.chunk, [this.chunk.buffer]);
        this.chunk = new Float32Array(this.samples);
        this.filled = 0;
      }
    }
    return true;
  }
}

/**
 * Plays what comes; begins, and begins again after it ran dry, once `samples` are there. Of what is live and came late, after
 * a broken connection, it leaves out what is more than `most`, or it would stay late for ever.
 */
class Playback extends AudioWorkletProcessor {
  constructor({ processorOptions: { samples, most } }) {
    super();
    this.lead = samples;
    this.most = most;
    this.queue = [];
    this.at = 0;
    this.held = 0;
    this.playing = false;
    this.dry = 0;
    this.port.onmessage = ({ data }) => {
      if (data === "end") {  // what is left is played, however short
        this.lead = 1;
        return;
      }
      this.queue.push(data);
      this.held += data.samples.length;
      if (this.held > this.most) this.skip();
    };
  }

  skip() {
    while (this.queue.length > 1 && this.held > this.lead) {
      this.held -= this.queue.shift().samples.length - this.at;
      this.at = 0;
    }
  }

  process(_, [[out]]) {
    if (!this.playing && this.held >= this.lead) this.playing = true;
    for (let i = 0; this.playing && i < out.length; i++) {
      const [packet] = this.queue;
      if (!packet) {
        this.playing = false;
        this.dry += 1;
        this.port.postMessage({ held: 0, dry: this.dry });
        break;
      }
      if (!this.at) this.port.postMessage({ seconds: packet.seconds, held: this.held, dry: this.dry, ahead: i / sampleRate });
      out[i] = packet.samples[this.at++];
      this.held -= 1;
      if (this.at === packet.samples.length) {
        this.queue.shift();
        this.at = 0;
      }
    }
    return true;
  }
}

registerProcessor("streamenc-capture", Capture);
registerProcessor("streamenc-playback", Playback);
