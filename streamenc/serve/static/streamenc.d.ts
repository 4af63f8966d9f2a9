// Types of streamenc.js; docs/server says what the fields of messages mean.

export type Samples = Int16Array | Float32Array;
export type Items = Uint8Array | Uint16Array | Uint32Array | Int16Array | Float32Array;
export type State = "connecting" | "open" | "broken" | "closed" | "failed";

export interface Vad {
  threshold?: number;
  silence_ms?: number;
  padding_ms?: number;
  engine?: "auto" | "silero" | "energy";
}

/** The fields of the message `open`, and what this client does with them. */
export interface Options {
  model: string;
  direction?: "encode" | "decode" | "echo";
  format?: "s16" | "f32" | "opus" | "media" | "jpeg" | "h264" | "rgb" | "codes" | "features" | "text";
  rate?: number;
  channels?: number;
  codebooks?: number;
  dtype?: "float32" | "float16" | "bfloat16";
  size?: string;
  layout?: "books" | "flat" | "delay";
  hops?: number;
  vad?: Vad;
  policy?: "block" | "drop_oldest" | "close";
  /** What `snapshot()` gave, here or at another server. */
  snapshot?: Snapshot;
  /** Numbered messages that may be unread; 256. With 0 nothing is acknowledged, and unread frames have no bound. */
  window?: number;
  key?: string;
  /** Of input that is kept until the server has acknowledged it; 32 MiB. */
  bufferBytes?: number;
  /** For how long a first connection is tried; 5. */
  connectSeconds?: number;
  /** A connection that is silent for so long, while the server owes something, is given up for another; 20, 0 for never. */
  silenceSeconds?: number;
  /** Where there is none in the language. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
}

export interface Opened {
  type: "opened";
  session: string;
  token: string;
  model: string;
  direction: string;
  fingerprint: string;
  equality: string;
  input: { format: string; rate: number; channels: number; time_base: [number, number] };
  model_rate: number;
  lead: number;
  hop: number;
  delay_ms: number;
  rate: number;
  codebooks: number;
  codebook_size: number;
  window: number;
  max_message_bytes: number;
  max_queued_bytes: number;
  resume_seconds: number;
  exact_resume: boolean;
  why: string;
  vad: string;
}

export interface Resumed {
  type: "resumed";
  session: string;
  token: string;
  next_seq: number;
  next_pts: number;
  n: number;
  exact: boolean;
  source: "memory" | "store";
  window: number;
  why: string;
}

/** What a stream, or one track of it, is; `tick` and `rate` in seconds and items a second. */
export interface Described {
  what: "audio" | "video" | "codes" | "features" | "text" | "mux";
  tick: number;
  rate: number;
  shape: (number | null)[];
  dtype: string;
  model: string;
  codebookSize: number;
  segmented: boolean;
}

export interface Info extends Described {
  kind: "I";
  stream: number | bigint;
  opened: number;
  tracks: Described[];
}

/** One packet of output. `data` has the items of `shape` in C order; the second axis is time. */
export interface Frame<T extends Items = Items> {
  stream: number | bigint;
  track: number;
  seq: number;
  pts: number;
  duration: number;
  seconds: number;
  durationSeconds: number;
  /** It does not follow on from the one before. */
  discontinuity: boolean;
  revised: boolean;
  /** When its newest input came to the server, in milliseconds since 1970; 0 where unknown. */
  arrived: number;
  scale: number;
  dtype: "u1" | "u2" | "u4" | "i2" | "f2" | "f4" | "b2";
  shape: number[];
  data: T;
  segment: number | null;
  info: Described | null;
  text: string | null;
}

export interface Mark { type: "mark"; id: string; pts: number; n: number; roundTripMs: number }
export interface Flushed { type: "flushed"; pts: number; n: number }
export interface WasSet { type: "set"; codebooks: number | null; n: number }
export interface Closed { type: "closed"; n: number; packets: number; seconds: number }
export interface Snapshot { seq: number; pts: number; blob: Uint8Array; n?: number; bytes?: number }

export interface Statistics {
  packetsSent: number;
  packetsReceived: number;
  bytesSent: number;
  bytesReceived: number;
  /** How often the stream went on at another connection, and how often that was not exact. */
  resumed: number;
  inexact: number;
  /** Packets that the server refused, and packets from it that could not be read. */
  refused: number;
  malformed: number;
  /** Packets that were dropped: by `offer`, at the server's input and at its output. */
  droppedHere: number;
  droppedInput: number;
  droppedOutput: number;
  /** Of the last mark. */
  roundTripMs: number | null;
  unacknowledgedBytes: number;
  unacknowledged: number;
  unsent: number;
  unread: number;
}

/** `code` is one of docs/server, or "unreachable", "refused", "closed", "abandoned". */
export declare class StreamError extends Error {
  constructor(code: string, message: string, details?: { fatal?: boolean; seq?: number | null; closeCode?: number | null });
  readonly code: string;
  readonly fatal: boolean;
  readonly seq: number | null;
  readonly closeCode: number | null;
}

/** `detail` of each event. */
export interface Events {
  opened: Opened;
  resumed: Resumed;
  disconnected: { code: number; reason: string };
  state: State;
  info: Info;
  mark: Omit<Mark, "roundTripMs">;
  flushed: Flushed;
  set: WasSet;
  speech: { type: "speech"; event: "started" | "stopped"; pts: number; n: number };
  dropped: { type: "dropped"; where: "input" | "output"; packets: number; total: number; n: number };
  goaway: { type: "goaway"; seconds: number; why: string };
  closed: Closed;
  error: StreamError;
  ended: StreamError;
}

/**
 * What packets carry: sound as one array a channel (whole numbers of 16 bits or floats in [-1, 1], whatever the format
 * is), bytes, a text, or arrays with their shape.
 */
export type Input = Samples | Samples[] | ArrayBuffer | Uint8Array | string | { data: Items; shape: number[] };

/** `pts` and `duration` in ticks of `opened.input.time_base`; those of sound are counted. */
export interface Times { pts?: number; duration?: number; discontinuity?: boolean }

export declare class LiveStream extends EventTarget implements AsyncIterable<Frame> {
  /** `connect` makes one and waits for it to open. */
  constructor(url: string | URL | (string | URL)[], options: Options);
  readonly opened: Opened | null;
  readonly info: Info | null;
  readonly state: State;
  readonly ready: Promise<LiveStream>;
  statistics(): Statistics;
  send(data: Input, times?: Times): Promise<void>;
  offer(data: Input, times?: Times): boolean;
  flush(): Promise<Flushed>;
  set(changes: { codebooks?: number | null; vad?: boolean }): Promise<WasSet>;
  snapshot(): Promise<Snapshot>;
  mark(id?: string): Promise<Mark>;
  close(): Promise<Closed | null>;
  breakConnection(): void;
  abandon(): void;
  addEventListener<K extends keyof Events>(type: K, listener: (event: CustomEvent<Events[K]>) => void,
    options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<Frame>;
}

export declare function connect(url: string | URL | (string | URL)[], options: Options): Promise<LiveStream>;

/** One packet of docs/io/wire.md, by its `kind`. Raises StreamError. */
export declare function decodePacket(bytes: Uint8Array): { kind: string } & Record<string, unknown>;

export declare function encodeData(packet: {
  seq: number; pts?: number; duration?: number; flags?: number; dtype: string; shape: number[]; data: Uint8Array;
}): Uint8Array;
