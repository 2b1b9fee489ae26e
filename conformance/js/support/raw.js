/** A bare WebSocket that speaks frames and knows no rules: for tests that look at every byte. */

import { once } from "node:events";
import http from "node:http";

import WebSocket from "ws";

import { Inbox } from "./inbox.js";

export class RawSocket {
  frames = new Inbox("frames");
  closed = null;
  #read = 0;

  /** `vsn` null leaves the parameter out. */
  static async open(info, { vsn = "2.0.0", apikey = info.anon_key, base = info.ws_url, headers = {} } = {}) {
    const url = new URL(`${base}/websocket`);
    url.searchParams.set("apikey", apikey);
    if (vsn !== null) url.searchParams.set("vsn", vsn);
    const raw = new RawSocket();
    raw.ws = new WebSocket(url, { perMessageDeflate: false, headers });
    raw.closed = once(raw.ws, "close").then(([code]) => code);
    raw.ws.on("message", (data, isBinary) => raw.frames.push(isBinary ? data : data.toString()));
    raw.ws.on("error", () => {});
    await Promise.race([once(raw.ws, "open"), once(raw.ws, "error").then(([error]) => Promise.reject(error))]);
    return raw;
  }

  /** Forgets every frame so far, read or not: for tests that move more than memory should keep. */
  forget() {
    this.frames.clear();
    this.#read = 0;
  }

  get isOpen() {
    return this.ws.readyState === WebSocket.OPEN;
  }

  /** Sends an array or object as JSON; strings and buffers as they are. */
  send(frame) {
    this.ws.send(typeof frame === "string" || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame));
  }

  /** Sends several frames in one write, so that the server has them together. */
  sendTogether(...frames) {
    this.ws._socket.cork();
    for (const frame of frames) this.send(frame);
    this.ws._socket.uncork();
  }

  /** The next frame that has not been read, parsed if it is text; `skip` drops frames first. */
  async next({ within = 12_000, skip = () => false } = {}) {
    for (;;) {
      const frame = await this.frames.at(this.#read, { within });
      this.#read += 1;
      const parsed = typeof frame === "string" ? JSON.parse(frame) : frame;
      if (!skip(parsed)) return parsed;
    }
  }

  /** Reads frames until one matches; the ones before it are returned too. */
  async readUntil(matches, options) {
    const seen = [];
    for (;;) {
      seen.push(await this.next(options));
      if (matches(seen.at(-1))) return seen;
    }
  }

  /** Waits for the answer to a heartbeat: everything that the socket had to say before is then here. */
  async settled(ref = `hb-${Math.random()}`) {
    this.send([null, ref, "phoenix", "heartbeat", {}]);
    return (await this.readUntil((frame) => Array.isArray(frame) && frame[1] === ref)).slice(0, -1);
  }

  /** Joins in V2 and returns the reply's `response`. */
  async join(topic, config = {}, { ref = "1", ...payload } = {}) {
    this.send([ref, ref, topic, "phx_join", { config, ...payload }]);
    const reply = await this.next({ skip: ([, , , event]) => event !== "phx_reply" });
    if (reply[4].status !== "ok") throw new Error(`join refused: ${JSON.stringify(reply)}`);
    return reply[4].response;
  }

  /** Waits for the message that says that Postgres Changes are live. */
  async live({ within = 15_000 } = {}) {
    await this.frames.first((frame) => typeof frame === "string" && frame.includes("Subscribed to PostgreSQL"), { within });
  }

  async close() {
    if (this.ws.readyState === WebSocket.CLOSED) return;
    this.ws.close();
    await this.closed;
  }
}

/** An HTTP request with upgrade headers; resolves with the status and, if it was refused, the body. */
export function handshake(info, { path = "/realtime/v1/websocket", query = {}, headers = {}, upgrade = true } = {}) {
  const url = new URL(info.url + path);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return new Promise((resolve, reject) => {
    const request = http.request(url, {
      headers: {
        ...(upgrade && {
          connection: "Upgrade",
          upgrade: "websocket",
          "sec-websocket-version": "13",
          "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }),
        ...headers,
      },
    });
    request.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode, headers: response.headers, body: "" });
    });
    request.on("response", async (response) => {
      response.setEncoding("utf8");
      let body = "";
      for await (const chunk of response) body += chunk;
      resolve({ status: response.statusCode, headers: response.headers, body });
    });
    request.on("error", reject);
    request.end();
  });
}

/** Kind 3 (user broadcast push), `PROTOCOL.md` §1.5. */
export function broadcastPush({ joinRef, ref, topic, event, metadata = "", encoding, payload }) {
  const fields = [joinRef, ref, topic, event, metadata].map((field) => Buffer.from(field));
  return Buffer.concat([Buffer.from([3, ...fields.map((field) => field.length), encoding]), ...fields, Buffer.from(payload)]);
}

/** Kind 4 with the payload as text or, for encoding 0, as a list of bytes: for comparisons. */
export function readable(frame) {
  const delivery = readDelivery(frame);
  return { ...delivery, payload: delivery.encoding === 1 ? delivery.payload.toString() : [...delivery.payload] };
}

/** Reads kind 4 (user broadcast). */
export function readDelivery(frame) {
  const [kind, topicLength, eventLength, metadataLength, encoding] = frame;
  let at = 5;
  const take = (length) => frame.subarray(at, (at += length)).toString();
  return { kind, topic: take(topicLength), event: take(eventLength), metadata: take(metadataLength), encoding, payload: frame.subarray(at) };
}
