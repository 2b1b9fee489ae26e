// The WebSocket protocol itself, from a bare TCP socket: fragments, control frames, rude endings. Spec: RFC 6455, PROTOCOL.md §1.2.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import net from "node:net";
import { describe, test } from "node:test";

import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { RawSocket } from "../support/raw.js";
import { until } from "../support/server.js";

const server = withServer();

const [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG] = [0x0, 0x1, 0x2, 0x8, 0x9, 0xa];

/** One frame as a client writes it. */
function frame(opcode, payload = "", { fin = true, masked = true, reserved = 0, length } = {}) {
  const body = Buffer.from(payload);
  const size = length ?? body.length;
  const head = [(fin ? 0x80 : 0) | reserved | opcode];
  const flag = masked ? 0x80 : 0;
  if (size < 126) head.push(flag | size);
  else if (size < 65_536) head.push(flag | 126, size >> 8, size & 0xff);
  else head.push(flag | 127, ...bigEndian(size));
  if (!masked) return Buffer.concat([Buffer.from(head), body]);
  const mask = randomBytes(4);
  return Buffer.concat([Buffer.from(head), mask, body.map((byte, at) => byte ^ mask[at % 4])]);
}

function bigEndian(size) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(size));
  return [...bytes];
}

/** A connection after its handshake; collects frames of the server and the end of the connection. */
async function connect(t) {
  const { hostname, port } = new URL(server.info.url);
  const socket = net.connect(Number(port), hostname);
  t.after(() => socket.destroy());
  socket.on("error", () => {});
  await once(socket, "connect");
  const frames = new Inbox("frames");
  const ended = once(socket, "close");
  let buffer = Buffer.alloc(0);
  let isUpgraded = false;
  const upgraded = new Promise((resolve, reject) => {
    socket.on("data", (chunk) => {
      buffer = Buffer.concat([buffer, chunk]);
      if (!isUpgraded) {
        const end = buffer.indexOf("\r\n\r\n");
        if (end < 0) return;
        const head = buffer.subarray(0, end).toString();
        buffer = buffer.subarray(end + 4);
        isUpgraded = true;
        if (head.startsWith("HTTP/1.1 101")) resolve();
        else reject(new Error(head));
      }
      for (;;) {
        if (buffer.length < 2) return;
        let [length, at] = [buffer[1] & 0x7f, 2];
        if (length === 126) [length, at] = [buffer.length >= 4 ? buffer.readUInt16BE(2) : Infinity, 4];
        else if (length === 127) [length, at] = [buffer.length >= 10 ? Number(buffer.readBigUInt64BE(2)) : Infinity, 10];
        if (buffer.length < at + length) return;
        const payload = buffer.subarray(at, at + length);
        frames.push({ opcode: buffer[0] & 0x0f, fin: buffer[0] >> 7 === 1, masked: buffer[1] >> 7 === 1, payload });
        buffer = buffer.subarray(at + length);
      }
    });
  });
  socket.write(
    [
      `GET /realtime/v1/websocket?apikey=${server.info.anon_key}&vsn=2.0.0 HTTP/1.1`,
      `Host: ${hostname}:${port}`,
      "Connection: keep-alive, Upgrade",
      "Upgrade: WebSocket",
      "Sec-WebSocket-Version: 13",
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
      "\r\n",
    ].join("\r\n"),
  );
  await upgraded;
  return { socket, frames, ended, send: (...parts) => socket.write(Buffer.concat(parts)) };
}

const heartbeat = (ref) => JSON.stringify([null, ref, "phoenix", "heartbeat", {}]);
const answers = (ref) => ({ opcode, payload }) => opcode === TEXT && payload.includes(`"${ref}"`);
const closeCode = ({ payload }) => (payload.length >= 2 ? payload.readUInt16BE(0) : null);

describe("what is allowed", () => {
  test("a message in fragments, with a ping between them", async (t) => {
    const { frames, send } = await connect(t);
    const text = heartbeat("fragments");
    send(
      frame(TEXT, text.slice(0, 5), { fin: false }),
      frame(PING, "between"),
      frame(CONTINUATION, text.slice(5, 9), { fin: false }),
      frame(CONTINUATION, "", { fin: false }),
      frame(CONTINUATION, text.slice(9)),
    );
    const pong = await frames.first(({ opcode }) => opcode === PONG);
    assert.equal(pong.payload.toString(), "between");
    await frames.first(answers("fragments"));
  });

  test("a character split between fragments", async (t) => {
    const { frames, send } = await connect(t);
    const bytes = Buffer.from(JSON.stringify([null, "wave", "phoenix", "heartbeat", { wave: "🌊" }]));
    const at = bytes.indexOf(Buffer.from("🌊")) + 2;
    send(frame(TEXT, bytes.subarray(0, at), { fin: false }), frame(CONTINUATION, bytes.subarray(at)));
    await frames.first(answers("wave"));
  });

  test("one byte at a time", async (t) => {
    const { frames, socket } = await connect(t);
    socket.setNoDelay(true);
    for (const byte of frame(TEXT, heartbeat("slowly"))) {
      socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await frames.first(answers("slowly"));
  });

  test("a thousand messages in one write are answered in order", async (t) => {
    const { frames, send } = await connect(t);
    send(...Array.from({ length: 1000 }, (_, n) => frame(TEXT, heartbeat(`n${n}`))));
    await frames.some(1000, ({ opcode }) => opcode === TEXT);
    assert.deepEqual(frames.all.map(({ payload }) => JSON.parse(payload)[1]), Array.from({ length: 1000 }, (_, n) => `n${n}`));
  });

  test("an unasked pong is ignored, a ping of 125 bytes comes back, server frames are whole and unmasked", async (t) => {
    const { frames, send } = await connect(t);
    const body = randomBytes(125);
    send(frame(PONG, "unasked"), frame(PING, body), frame(TEXT, heartbeat("after")));
    const pong = await frames.first(({ opcode }) => opcode === PONG);
    assert.deepEqual(pong.payload, body);
    await frames.first(answers("after"));
    for (const { fin, masked } of frames.all) assert.deepEqual([fin, masked], [true, false]);
  });

  test("text that is not UTF-8 is dropped and the connection stays", async (t) => {
    const { frames, send } = await connect(t);
    send(frame(TEXT, Buffer.from([0x22, 0xff, 0xfe, 0x22])), frame(TEXT, heartbeat("still here")));
    await frames.first(answers("still here"));
  });

  test("a close is answered with a close and the end of the connection", async (t) => {
    const { frames, send, ended } = await connect(t);
    send(frame(CLOSE, Buffer.from([0x03, 0xe8])));
    assert.equal(closeCode(await frames.first(({ opcode }) => opcode === CLOSE)), 1000);
    await ended;
  });
});

describe("what is not allowed ends this connection and no other", () => {
  for (const [name, bytes, code] of [
    ["an unmasked frame", () => frame(TEXT, heartbeat("x"), { masked: false }), 1002],
    ["a reserved bit", () => frame(TEXT, heartbeat("x"), { reserved: 0x40 }), 1002],
    ["a reserved opcode", () => frame(0x3, "x"), 1002],
    ["a reserved control opcode", () => frame(0xb, "x"), 1002],
    ["a ping in fragments", () => frame(PING, "x", { fin: false }), 1002],
    ["a ping of 126 bytes", () => frame(PING, Buffer.alloc(126)), 1002],
    ["a continuation of nothing", () => frame(CONTINUATION, "x"), 1002],
    ["a new message inside a fragmented one", () => Buffer.concat([frame(TEXT, "x", { fin: false }), frame(TEXT, "y")]), 1002],
    ["a close of one byte", () => frame(CLOSE, Buffer.from([3])), 1002],
    ["a length of six megabytes", () => frame(BINARY, "", { length: 6_000_000 }), 1009],
    ["a length of 2^63 - 1", () => frame(BINARY, "", { length: 2n ** 63n - 1n }), 1009],
    ["fragments that add up to six megabytes", () => Buffer.concat([frame(BINARY, Buffer.alloc(3_000_000), { fin: false }), frame(CONTINUATION, Buffer.alloc(3_000_000))]), 1009],
  ]) {
    test(`${name}: ${code}`, async (t) => {
      const healthy = closing(t)(await RawSocket.open(server.info));
      const { frames, send, ended } = await connect(t);
      send(bytes());
      assert.equal(closeCode(await frames.first(({ opcode }) => opcode === CLOSE)), code);
      await ended;
      assert.deepEqual(await healthy.settled(), []);
    });
  }

  test("a reader that stops reading is closed, and the others hear everything in time", async (t) => {
    const open = closing(t);
    const [sender, healthy] = [open(await RawSocket.open(server.info)), open(await RawSocket.open(server.info))];
    const slow = await connect(t);
    slow.send(frame(TEXT, JSON.stringify(["1", "1", "realtime:slow", "phx_join", { config: {} }])));
    await slow.frames.first(({ opcode }) => opcode === TEXT);
    slow.socket.pause();
    await healthy.join("realtime:slow");
    await sender.join("realtime:slow", { broadcast: { ack: true } });
    const payload = { words: "x".repeat(500_000) };
    const count = 120;
    for (let n = 0; n < count; n += 1) {
      sender.send(["1", `b${n}`, "realtime:slow", "broadcast", { type: "broadcast", event: `e${n}`, payload }]);
      const delivered = healthy.next();
      const reply = await sender.next();
      assert.equal(reply[1], `b${n}`);
      assert.equal((await delivered)[4].event, `e${n}`);
      healthy.forget();
    }
    // Sixty megabytes later it has long been closed: its presence among the members is over.
    slow.socket.resume();
    await slow.ended;
  });

  test("a client that is cut before its answer leaves nothing behind", async (t) => {
    const watcher = closing(t)(await RawSocket.open(server.info));
    await watcher.join("realtime:cut", { presence: { enabled: true, key: "watcher" } });
    for (let n = 0; n < 20; n += 1) {
      const { socket, send } = await connect(t);
      send(
        frame(TEXT, JSON.stringify(["1", "1", "realtime:cut", "phx_join", { config: { presence: { key: `k${n}` } } }])),
        frame(TEXT, JSON.stringify(["1", "2", "realtime:cut", "presence", { type: "presence", event: "track", payload: { n } }])),
      );
      socket.resetAndDestroy();
    }
    // Whatever joined has left: a newcomer finds the room empty.
    await until(async () => {
      const newcomer = await RawSocket.open(server.info);
      await newcomer.join("realtime:cut", { presence: { enabled: true, key: "new" } });
      const state = await newcomer.next({ skip: ([, , , event]) => event !== "presence_state" });
      await newcomer.close();
      return Object.keys(state[4]).length === 0;
    });
  });
});

describe("HTTP beside it", () => {
  /** Writes raw bytes and reads until the server ends the connection or `enough`. */
  async function talk(bytes, enough = () => false) {
    const { hostname, port } = new URL(server.info.url);
    const socket = net.connect(Number(port), hostname);
    socket.on("error", () => {});
    await once(socket, "connect");
    let text = "";
    socket.write(bytes);
    return new Promise((resolve) => {
      const timer = setTimeout(() => socket.destroy(), 8_000);
      socket.on("data", (chunk) => {
        text += chunk;
        if (enough(text)) socket.destroy();
      });
      socket.on("close", () => {
        clearTimeout(timer);
        resolve(text);
      });
    });
  }
  const statuses = (text) => [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status));

  test("requests in one write are answered one after the other", async () => {
    const one = "GET /demo/config.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const text = await talk(one.repeat(3), (seen) => statuses(seen).length === 3);
    assert.equal(statuses(text).length, 3);
  });

  test("a body in chunks is taken", async () => {
    const body = JSON.stringify({ messages: [{ topic: "chunked", event: "e", payload: {} }] });
    const text = await talk(
      `POST /realtime/v1/api/broadcast HTTP/1.1\r\nHost: localhost\r\napikey: ${server.info.anon_key}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n` +
        `5\r\n${body.slice(0, 5)}\r\n${(body.length - 5).toString(16)}\r\n${body.slice(5)}\r\n0\r\n\r\n`,
      (seen) => statuses(seen).length === 1,
    );
    assert.deepEqual(statuses(text), [202]);
  });

  for (const [name, bytes] of [
    ["noise", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
    ["a request line without end", `GET /${"a".repeat(200_000)}`],
    ["a header without end", `GET / HTTP/1.1\r\nHost: localhost\r\nx: ${"a".repeat(200_000)}`],
    ["two lengths", "POST /realtime/v1/api/broadcast HTTP/1.1\r\nHost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"],
  ]) {
    test(`${name} is refused and harms nobody`, async (t) => {
      const healthy = closing(t)(await RawSocket.open(server.info));
      const text = await talk(bytes, (seen) => statuses(seen).length > 0);
      for (const status of statuses(text)) assert.ok(status >= 400 && status < 500, String(status));
      assert.deepEqual(await healthy.settled(), []);
    });
  }

  test("a body above the limit is 413", async () => {
    const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.anon_key },
      body: JSON.stringify({ messages: [{ topic: "t", event: "e", payload: { x: "y".repeat(9_000_000) } }] }),
    }).catch((error) => error); // the server may end the connection while the body is still being sent
    assert.ok(answer instanceof Error || answer.status === 413, String(answer.status));
  });

  test("two hundred connections that say nothing do not stop a client", async (t) => {
    const { hostname, port } = new URL(server.info.url);
    const silent = Array.from({ length: 200 }, () => net.connect(Number(port), hostname).on("error", () => {}));
    t.after(() => silent.forEach((socket) => socket.destroy()));
    await Promise.all(silent.map((socket) => once(socket, "connect")));
    const healthy = closing(t)(await RawSocket.open(server.info));
    assert.deepEqual(await healthy.settled(), []);
  });
});
