/**
 * A small Phoenix client for Tidewire's own pages: protocol version 2, text frames and the binary
 * kinds 3 (user broadcast push) and 4 (user broadcast).
 *
 * It owns one socket, its refs, heartbeats, reconnects and joins. It may not touch the document, and it
 * keeps the credential in memory only. Everything that can go wrong ends in a reconnect with jittered
 * backoff (socket), a rejoin with the same backoff (channel), or a rejected promise (push).
 *
 * Spec: PROTOCOL.md §1.4, §1.5, §1.7, §1.8, §2.
 */

const HEARTBEAT_MS = 25_000; // the server closes a silent connection after 60 s
const PUSH_TIMEOUT_MS = 10_000;
const BACKOFF_FIRST_MS = 300;
const BACKOFF_LAST_MS = 10_000;

const PUSH = 3;
const DELIVERY = 4;
const JSON_TEXT = 1;

const utf8 = new TextEncoder();
const text = new TextDecoder();

/** Delay before attempt `attempt` (from 0): exponential with half of it random, so that clients spread. */
export function backoff(attempt, random = Math.random) {
  const ceiling = Math.min(BACKOFF_LAST_MS, BACKOFF_FIRST_MS * 2 ** attempt);
  return ceiling / 2 + (ceiling / 2) * random();
}

/** A text frame: `[join_ref, ref, topic, event, payload]`. */
export function encodeText({ joinRef, ref, topic, event, payload }) {
  return JSON.stringify([joinRef, ref, topic, event, payload]);
}

/** A kind 3 frame with a JSON payload. Every length is one byte, so longer fields cannot be sent. */
export function encodeBroadcast({ joinRef, ref, topic, event, payload }) {
  const fields = [joinRef, ref, topic, event].map((field) => utf8.encode(field ?? ""));
  if (fields.some((field) => field.length > 255)) throw new RangeError("a field is longer than 255 bytes");
  const body = utf8.encode(JSON.stringify(payload));
  const lengths = fields.map((field) => field.length);
  const head = [PUSH, ...lengths, 0, JSON_TEXT];
  const frame = new Uint8Array(head.length + lengths.reduce((sum, length) => sum + length, 0) + body.length);
  frame.set(head);
  let at = head.length;
  for (const part of [...fields, body]) {
    frame.set(part, at);
    at += part.length;
  }
  return frame;
}

/** Reads one frame. Throws on anything that is not a text frame of five elements or a kind 4 frame. */
export function decode(data) {
  if (typeof data === "string") {
    const [joinRef, ref, topic, event, payload] = JSON.parse(data);
    return { joinRef, ref, topic, event, payload };
  }
  const bytes = new Uint8Array(data);
  if (bytes[0] !== DELIVERY) throw new TypeError(`binary kind ${bytes[0]} is not for clients`);
  const [, topicLength, eventLength, metaLength, encoding] = bytes;
  let at = 5;
  const take = (length) => text.decode(bytes.subarray(at, (at += length)));
  const topic = take(topicLength);
  const event = take(eventLength);
  const meta = take(metaLength);
  const body = bytes.subarray(at);
  const payload = { type: "broadcast", event, payload: encoding === JSON_TEXT ? JSON.parse(text.decode(body)) : body };
  if (meta) payload.meta = JSON.parse(meta);
  return { joinRef: null, ref: null, topic, event: "broadcast", payload, kind: DELIVERY };
}

/** What a frame says, as text a person can read; binary frames are shown by their kind and content. */
export function describe(data, message) {
  if (typeof data === "string") return data;
  const kind = data instanceof ArrayBuffer ? new Uint8Array(data, 0, 1)[0] : data[0];
  const shown = message.payload?.payload ?? message.payload;
  const body = shown instanceof Uint8Array ? `${shown.length} bytes` : JSON.stringify(shown);
  return `binary kind ${kind} · ${message.topic} · ${message.payload?.event ?? message.event} · ${body}`;
}

/** The part of a frame that tells it from its neighbours. */
export function summarize({ event, payload }) {
  if (event === "postgres_changes") {
    const { type, table, record, old_record: old } = payload.data ?? {};
    return `${type} ${table} ${JSON.stringify(record ?? old)}`;
  }
  if (event === "system") return `${payload.status}: ${payload.message}`;
  const inner = event === "broadcast" ? payload?.payload : event === "phx_reply" ? payload?.response : payload;
  return inner instanceof Uint8Array ? `${inner.length} bytes` : (JSON.stringify(inner) ?? "");
}

/**
 * One connection. States: `closed` → `connecting` → `open` → `waiting` (for the next attempt) → …
 *
 * `onState(state, detail)` tells every transition; `onFrame(direction, data, message)` shows every frame.
 */
export class Socket {
  #url;
  #ws = null;
  #ref = 0;
  #attempt = 0;
  #retryTimer = 0;
  #heartbeatTimer = 0;
  #heartbeatRef = null;
  #channels = new Map();
  #onState;
  #onFrame;
  state = "closed";

  constructor(url, { apikey, onState = () => {}, onFrame = () => {} }) {
    this.#url = new URL(url);
    this.#url.searchParams.set("apikey", apikey);
    this.#url.searchParams.set("vsn", "2.0.0");
    this.#onState = onState;
    this.#onFrame = onFrame;
  }

  connect() {
    if (this.#ws) return;
    clearTimeout(this.#retryTimer);
    this.#enter("connecting");
    const ws = new WebSocket(this.#url);
    ws.binaryType = "arraybuffer";
    this.#ws = ws;
    ws.onopen = () => this.#ws === ws && this.#opened();
    ws.onmessage = ({ data }) => this.#ws === ws && this.#received(data);
    ws.onclose = ({ code }) => this.#ws === ws && this.#lost(code);
  }

  /** Ends the connection for good; `connect` starts again. */
  disconnect() {
    clearTimeout(this.#retryTimer);
    const ws = this.#ws;
    this.#ws = null;
    this.#stopped();
    ws?.close(1000);
    this.#enter("closed");
  }

  /** Tries now instead of at the end of the backoff: the network came back, or somebody is looking. */
  hurry() {
    if (this.state === "waiting") this.connect();
  }

  channel(topic, joinPayload) {
    const channel = new Channel(this, topic, joinPayload);
    this.#channels.set(topic, channel);
    return channel;
  }

  nextRef() {
    this.#ref += 1;
    return String(this.#ref);
  }

  /** Sends if open; `false` means that nothing was sent. */
  send(message, encodeFrame = encodeText) {
    if (this.#ws?.readyState !== WebSocket.OPEN) return false;
    const data = encodeFrame(message);
    this.#ws.send(data);
    this.#onFrame("out", data, message);
    return true;
  }

  #opened() {
    this.#attempt = 0;
    this.#enter("open");
    this.#heartbeatTimer = setInterval(() => this.#beat(), HEARTBEAT_MS);
    for (const channel of this.#channels.values()) channel.socketOpened();
  }

  #beat() {
    if (this.#heartbeatRef) {
      const ws = this.#ws;
      this.#lost("heartbeat unanswered");
      ws.close();
      return;
    }
    this.#heartbeatRef = this.nextRef();
    this.send({ joinRef: null, ref: this.#heartbeatRef, topic: "phoenix", event: "heartbeat", payload: {} });
  }

  #received(data) {
    let message;
    try {
      message = decode(data);
    } catch {
      this.#onFrame("in", data, { topic: "", event: "unreadable", payload: {} });
      return;
    }
    this.#onFrame("in", data, message);
    if (message.topic === "phoenix") {
      if (message.ref === this.#heartbeatRef) this.#heartbeatRef = null;
      return;
    }
    this.#channels.get(message.topic)?.receive(message);
  }

  #lost(detail) {
    this.#ws = null;
    this.#stopped();
    const delay = backoff(this.#attempt);
    this.#attempt += 1;
    this.#enter("waiting", { detail, delay });
    this.#retryTimer = setTimeout(() => this.connect(), delay);
  }

  #stopped() {
    clearInterval(this.#heartbeatTimer);
    this.#heartbeatRef = null;
    for (const channel of this.#channels.values()) channel.socketLost();
  }

  #enter(state, detail = {}) {
    this.state = state;
    this.#onState(state, detail);
  }
}

/** One joined topic. States: `closed` → `joining` → `joined`; `errored` waits for its next attempt. */
export class Channel {
  #socket;
  #joinPayload;
  #listeners = new Map();
  #pending = new Map();
  #joinRef = null;
  #wanted = false;
  #attempt = 0;
  #timer = 0;
  state = "closed";

  constructor(socket, topic, joinPayload) {
    this.#socket = socket;
    this.topic = topic;
    this.#joinPayload = joinPayload;
  }

  on(event, listener) {
    const known = this.#listeners.get(event) ?? [];
    this.#listeners.set(event, [...known, listener]);
    return this;
  }

  join() {
    this.#wanted = true;
    if (this.#socket.state === "open") this.#join();
    return this;
  }

  /** Sends a push and resolves with its reply's `response`; rejects on an error reply or after 10 s. */
  push(event, payload) {
    const ref = this.#socket.nextRef();
    return this.#request(ref, { joinRef: this.#joinRef, ref, topic: this.topic, event, payload });
  }

  /** Sends a broadcast (kind 3, JSON) and does not wait: without `ack` there is no answer. */
  broadcast(event, payload) {
    if (this.state !== "joined") return false;
    const message = { joinRef: this.#joinRef, ref: this.#socket.nextRef(), topic: this.topic, event, payload };
    return this.#socket.send(message, encodeBroadcast);
  }

  socketOpened() {
    this.#attempt = 0;
    if (this.#wanted) this.#join();
  }

  socketLost() {
    clearTimeout(this.#timer);
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer);
      reject(new Error("the connection was lost"));
    }
    this.#pending.clear();
    this.#joinRef = null;
    this.#enter("closed");
  }

  receive(message) {
    const { joinRef, ref, event, payload } = message;
    // A frame that carries another join's ref belongs to an older incarnation of this channel.
    if (joinRef !== null && joinRef !== this.#joinRef) return;
    if (event === "phx_reply") this.#settle(ref, payload);
    else if (event === "phx_close" || event === "phx_error") this.#ended(event);
    else this.#emit(event, payload, message);
  }

  #join() {
    clearTimeout(this.#timer);
    this.#enter("joining");
    const ref = this.#socket.nextRef();
    this.#joinRef = ref;
    this.#request(ref, { joinRef: ref, ref, topic: this.topic, event: "phx_join", payload: this.#joinPayload }).then(
      (response) => {
        if (this.#joinRef !== ref) return;
        this.#attempt = 0;
        this.#enter("joined", response);
      },
      (error) => this.#joinRef === ref && this.#retry(error.message),
    );
  }

  #request(ref, message) {
    return new Promise((resolve, reject) => {
      if (!this.#socket.send(message)) {
        reject(new Error("the connection is not open"));
        return;
      }
      const timer = setTimeout(() => {
        this.#pending.delete(ref);
        reject(new Error("no answer within 10 s"));
      }, PUSH_TIMEOUT_MS);
      this.#pending.set(ref, { resolve, reject, timer });
    });
  }

  #settle(ref, { status, response }) {
    const waiting = this.#pending.get(ref);
    if (!waiting) return;
    this.#pending.delete(ref);
    clearTimeout(waiting.timer);
    if (status === "ok") waiting.resolve(response);
    else waiting.reject(new Error(typeof response === "string" ? response : (response?.reason ?? "refused")));
  }

  #ended(event) {
    this.#joinRef = null;
    this.#retry(event === "phx_close" ? "the server closed the channel" : "the channel crashed");
  }

  #retry(reason) {
    this.#enter("errored", { reason });
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#socket.state === "open" && this.#join(), backoff(this.#attempt + 1));
    this.#attempt += 1;
  }

  #enter(state, detail = {}) {
    if (this.state === state && state === "closed") return;
    this.state = state;
    this.#emit("state", state, detail);
  }

  #emit(event, ...details) {
    for (const listener of this.#listeners.get(event) ?? []) listener(...details);
  }
}

/**
 * Presence of one channel: key → metas. Diffs that come before the state of the current join wait for it.
 * Spec: PROTOCOL.md §4.3–4.5.
 */
export class Presence {
  #state = new Map();
  #early = null;

  constructor(channel, onChange) {
    channel.on("state", (state) => {
      if (state === "joining") this.#early = [];
    });
    channel.on("presence_state", (state) => {
      this.#state = new Map(Object.entries(state).map(([key, { metas }]) => [key, metas]));
      for (const diff of this.#early ?? []) this.#apply(diff);
      this.#early = null;
      onChange(this.#state);
    });
    channel.on("presence_diff", (diff) => {
      if (this.#early) {
        this.#early.push(diff);
        return;
      }
      this.#apply(diff);
      onChange(this.#state);
    });
  }

  #apply({ joins, leaves }) {
    for (const [key, { metas }] of Object.entries(joins)) {
      const fresh = new Set(metas.map((meta) => meta.phx_ref));
      const kept = (this.#state.get(key) ?? []).filter((meta) => !fresh.has(meta.phx_ref));
      this.#state.set(key, [...kept, ...metas]);
    }
    for (const [key, { metas }] of Object.entries(leaves)) {
      const gone = new Set(metas.map((meta) => meta.phx_ref));
      const kept = (this.#state.get(key) ?? []).filter((meta) => !gone.has(meta.phx_ref));
      if (kept.length) this.#state.set(key, kept);
      else this.#state.delete(key);
    }
  }
}
