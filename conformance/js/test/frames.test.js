// Frames, byte for byte and in order. Spec: PROTOCOL.md §1.4–1.10, §2.6–2.8, appendix A.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { closing, withServer } from "../support/fixture.js";
import { RawSocket, broadcastPush, readDelivery } from "../support/raw.js";

const server = withServer();

const hex = (bytes) => Buffer.from(bytes.replaceAll(" ", ""), "hex");
const open = async (t, options) => closing(t)(await RawSocket.open(server.info, options));
const isDiff = (frame) => !Buffer.isBuffer(frame) && (frame[3] === "presence_diff" || frame.event === "presence_diff");
const room = "realtime:room";

describe("appendix A", () => {
  test("the session of version 2", async (t) => {
    const raw = await open(t);
    const exchange = async (sent, ...expected) => {
      raw.send(sent);
      for (const frame of expected) assert.deepEqual(await raw.next(), frame);
    };
    await exchange(
      ["1", "1", room, "phx_join", { config: { broadcast: { ack: true, self: true }, presence: { enabled: true, key: "ada" } } }],
      ["1", "1", room, "phx_reply", { status: "ok", response: { postgres_changes: [] } }],
      ["1", null, room, "presence_state", {}],
    );
    const ping = { type: "broadcast", event: "ping", payload: { a: 1 }, extra: 5 };
    await exchange(
      ["1", "2", room, "broadcast", ping],
      [null, null, room, "broadcast", ping],
      ["1", "2", room, "phx_reply", { status: "ok", response: {} }],
    );
    const stale = { type: "broadcast", event: "ping", payload: {} };
    await exchange(
      ["77", "3", room, "broadcast", stale],
      [null, null, room, "broadcast", stale],
      ["1", "3", room, "phx_reply", { status: "ok", response: {} }],
    );
    raw.send(["77", "4", room, "phx_leave", {}]);
    raw.send(["1", "5", room, "presence", { type: "presence", event: "track", payload: { n: 1 } }]);
    // The order of a track reply and its diff is not fixed (§4.4).
    const [reply, diff] = [await raw.next(), await raw.next()].sort((a) => (a[3] === "phx_reply" ? -1 : 1));
    assert.deepEqual(reply, ["1", "5", room, "phx_reply", { status: "ok", response: {} }]);
    const [meta] = diff[4].joins.ada.metas;
    assert.deepEqual(diff, [null, null, room, "presence_diff", { joins: { ada: { metas: [{ phx_ref: meta.phx_ref, n: 1 }] } }, leaves: {} }]);
    assert.match(meta.phx_ref, /^[A-Za-z0-9_-]{16}$/);

    raw.send(["6", "7", room, "phx_join", { config: { presence: { enabled: true, key: "ada" } } }]);
    for (const frame of [
      ["6", "7", room, "phx_reply", { status: "ok", response: { postgres_changes: [] } }],
      ["1", "1", room, "phx_close", {}],
      ["6", null, room, "presence_state", {}],
    ]) {
      assert.deepEqual(await raw.next({ skip: isDiff }), frame);
    }
    raw.send(["6", "8", room, "phx_leave", {}]);
    for (const frame of [
      ["6", "8", room, "phx_reply", { status: "ok", response: {} }],
      ["6", "6", room, "phx_close", {}],
    ]) {
      assert.deepEqual(await raw.next({ skip: isDiff }), frame);
    }
  });

  for (const vsn of [null, "1.0.0"]) {
    test(`the session of version 1, vsn ${vsn ?? "absent"}`, async (t) => {
      const raw = await open(t, { vsn });
      raw.send({ event: "phx_join", payload: { config: {} }, topic: room, ref: "1", join_ref: null });
      assert.deepEqual(await raw.next(), {
        topic: room,
        event: "phx_reply",
        payload: { status: "ok", response: { postgres_changes: [] } },
        ref: "1",
      });
      raw.send({ event: "phx_leave", payload: {}, topic: room, ref: "2", join_ref: null });
      assert.deepEqual(await raw.next(), { topic: room, event: "phx_reply", payload: { status: "ok", response: {} }, ref: "2" });
      assert.deepEqual(await raw.next(), { topic: room, event: "phx_close", payload: {}, ref: null });
    });
  }

  test("kind 3 in, kind 4 out, the bytes of the table", async (t) => {
    const raw = await open(t);
    await raw.join(room, { broadcast: { self: true } });
    raw.send(hex("03 01 01 0D 04 00 01 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D"));
    assert.deepEqual(await raw.next(), hex("04 0D 04 00 01 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D"));
  });
});

describe("broadcast by origin and receiver (§3.3)", () => {
  test("text stays text, kind 3 becomes kind 4, version 1 gets objects and no bytes", async (t) => {
    const [two, one, sender] = [await open(t), await open(t, { vsn: "1.0.0" }), await open(t)];
    await two.join("realtime:matrix");
    one.send({ topic: "realtime:matrix", event: "phx_join", payload: { config: {} }, ref: "1" });
    await one.next();
    await sender.join("realtime:matrix");

    const odd = { anything: ["at", "all"], event: 7 };
    sender.send(["1", "2", "realtime:matrix", "broadcast", odd]);
    assert.deepEqual(await two.next(), [null, null, "realtime:matrix", "broadcast", odd]);
    assert.deepEqual(await one.next(), { topic: "realtime:matrix", event: "broadcast", payload: odd, ref: null });

    const push = { joinRef: "1", ref: "3", topic: "realtime:matrix", event: "e" };
    sender.send(broadcastPush({ ...push, encoding: 0, payload: [0xde, 0xad] }));
    sender.send(broadcastPush({ ...push, encoding: 1, metadata: '{"id":"x"}', payload: '{"b" : 2}' }));
    const bytes = readDelivery(await two.next());
    assert.deepEqual({ ...bytes, payload: [...bytes.payload] }, { kind: 4, topic: "realtime:matrix", event: "e", metadata: "", encoding: 0, payload: [0xde, 0xad] });
    const json = readDelivery(await two.next());
    assert.deepEqual({ ...json, payload: json.payload.toString() }, { kind: 4, topic: "realtime:matrix", event: "e", metadata: "", encoding: 1, payload: '{"b" : 2}' });
    assert.deepEqual(await one.next(), { topic: "realtime:matrix", event: "broadcast", payload: { event: "e", payload: { b: 2 }, type: "broadcast" }, ref: null });
    assert.deepEqual(await sender.settled(), []);
  });

  test("without ack there is no reply, and other channels of the same socket hear it", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:quiet");
    raw.send(["1", "2", "realtime:quiet", "broadcast", { type: "broadcast", event: "e", payload: {} }]);
    assert.deepEqual(await raw.settled(), []);
  });
});

describe("joins and leaves", () => {
  test("leave and join sent together: join reply, leave reply, then the close of the old", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:quick");
    raw.sendTogether(["1", "2", "realtime:quick", "phx_leave", {}], ["3", "3", "realtime:quick", "phx_join", { config: {} }]);
    const frames = [await raw.next(), await raw.next(), await raw.next()];
    const ok = (joinRef, ref, response) => [joinRef, ref, "realtime:quick", "phx_reply", { status: "ok", response }];
    assert.deepEqual(frames, [
      ok("3", "3", { postgres_changes: [] }),
      ok("1", "2", {}),
      ["1", "1", "realtime:quick", "phx_close", {}],
    ]);
  });

  test("a duplicate join replaces the channel: reply first, then the close of the old", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:double");
    raw.send(["5", "5", "realtime:double", "phx_join", { config: { broadcast: { self: true } } }]);
    assert.deepEqual(await raw.next(), ["5", "5", "realtime:double", "phx_reply", { status: "ok", response: { postgres_changes: [] } }]);
    assert.deepEqual(await raw.next(), ["1", "1", "realtime:double", "phx_close", {}]);
    raw.send(["5", "6", "realtime:double", "broadcast", { type: "broadcast", event: "e", payload: {} }]);
    assert.deepEqual(await raw.next(), [null, null, "realtime:double", "broadcast", { type: "broadcast", event: "e", payload: {} }]);
    assert.deepEqual(await raw.settled(), []);
  });

  test("pushes right behind a join are handled after it", async (t) => {
    const raw = await open(t);
    raw.send(["1", "1", "realtime:behind", "phx_join", { config: { broadcast: { self: true, ack: true } } }]);
    for (let n = 2; n < 12; n += 1) raw.send(["1", String(n), "realtime:behind", "broadcast", { type: "broadcast", event: "n", payload: { n } }]);
    assert.equal((await raw.next())[3], "phx_reply");
    for (let n = 2; n < 12; n += 1) {
      assert.equal((await raw.next())[4].payload.n, n);
      assert.deepEqual(await raw.next(), ["1", String(n), "realtime:behind", "phx_reply", { status: "ok", response: {} }]);
    }
  });

  test("refs come back with the type they were sent with", async (t) => {
    const raw = await open(t);
    raw.send([null, 7, "realtime:scalars", "phx_join", { config: { broadcast: { ack: true } } }]);
    assert.deepEqual((await raw.next()).slice(0, 4), [null, 7, "realtime:scalars", "phx_reply"]);
    raw.send([null, null, "realtime:scalars", "broadcast", { type: "broadcast", event: "e", payload: {} }]);
    assert.deepEqual((await raw.next()).slice(1, 4), [null, "realtime:scalars", "phx_reply"]);
  });

  test("a leave of a topic that is not joined is answered ok", async (t) => {
    const raw = await open(t);
    raw.send(["9", "10", "realtime:never", "phx_leave", {}]);
    assert.deepEqual(await raw.next(), ["9", "10", "realtime:never", "phx_reply", { status: "ok", response: {} }]);
  });

  test("an invalid config joins with defaults", async (t) => {
    const raw = await open(t);
    for (const config of [
      { private: "yes", broadcast: 7, presence: [], postgres_changes: {} },
      { broadcast: { self: "maybe" } },
      { postgres_changes: [null, null] },
      { presence: { key: 42, enabled: "TRUE" } },
    ]) {
      raw.send(["1", "1", "realtime:invalid", "phx_join", { config }]);
      const reply = await raw.next({ skip: (frame) => frame[3] !== "phx_reply" });
      assert.deepEqual(reply[4], { status: "ok", response: { postgres_changes: [] } });
    }
  });

  test("a legacy join makes a binding from the topic and gets bare changes", async (t) => {
    await server.table("legacy", "id int primary key, word text");
    const raw = await open(t);
    raw.send(["1", "1", "realtime:public:legacy", "phx_join", {}]);
    const { response } = (await raw.next())[4];
    assert.deepEqual(response.postgres_changes.map(({ id, ...rest }) => rest), [{ schema: "public", table: "legacy" }]);
    await raw.live();
    await server.sql("insert into legacy values (1, 'old')");
    const frame = (await raw.readUntil(([, , , event]) => event === "INSERT")).at(-1);
    assert.equal(frame[2], "realtime:public:legacy");
    assert.deepEqual(frame[4].record, { id: 1, word: "old" });
    assert.equal(frame[4].ids, undefined);
  });
});

describe("heartbeats and unknown things", () => {
  test("heartbeats of both versions are answered", async (t) => {
    const [two, one] = [await open(t), await open(t, { vsn: "1.0.0" })];
    two.send([null, "7", "phoenix", "heartbeat", {}]);
    assert.deepEqual(await two.next(), [null, "7", "phoenix", "phx_reply", { response: {}, status: "ok" }]);
    one.send({ topic: "phoenix", event: "heartbeat", payload: {}, ref: null });
    assert.deepEqual(await one.next(), { topic: "phoenix", event: "phx_reply", payload: { response: {}, status: "ok" }, ref: null });
  });

  test("an unknown topic, an unknown event on phoenix and a foreign join are unmatched", async (t) => {
    const raw = await open(t);
    const unmatched = (ref, topic) => [null, ref, topic, "phx_reply", { status: "error", response: { reason: "unmatched topic" } }];
    raw.send([null, "4", "realtime:nope", "broadcast", {}]);
    assert.deepEqual(await raw.next(), unmatched("4", "realtime:nope"));
    raw.send([null, "5", "phoenix", "status", {}]);
    assert.deepEqual(await raw.next(), unmatched("5", "phoenix"));
    raw.send(["6", "6", "other:topic", "phx_join", {}]);
    const reply = await raw.next();
    assert.deepEqual(reply.slice(1), unmatched("6", "other:topic").slice(1));
  });

  test("an unknown event on a joined topic is not answered", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:unknown-event");
    raw.send(["1", "2", "realtime:unknown-event", "surprise", { a: 1 }]);
    assert.deepEqual(await raw.settled(), []);
  });

  test("presence pushes of every odd shape get the documented answer", async (t) => {
    const raw = await open(t);
    const topic = "realtime:odd-presence";
    await raw.join(topic, { presence: { key: "k" } });
    const ask = async (ref, payload) => {
      raw.send(["1", ref, topic, "presence", payload]);
      return (await raw.next({ skip: isDiff }))[4];
    };
    assert.deepEqual(await ask("2", { event: "track", payload: 7 }), { status: "error", response: { reason: "Presence track payload must be a map" } });
    assert.deepEqual(await ask("3", { event: "surprise" }), { status: "error", response: {} });
    assert.deepEqual(await ask("4", {}), { status: "ok", response: {} });
    assert.deepEqual(await ask("5", { event: "UNTRACK" }), { status: "ok", response: {} });
    assert.deepEqual(await ask("6", { event: "Track" }), { status: "ok", response: {} });
  });
});

describe("malformed input never affects another client", () => {
  const malformed = [
    ["an empty frame", ""],
    ["bad JSON", "{"],
    ["a JSON scalar", "7"],
    ["an object in version 2", '{"topic":"realtime:x","event":"phx_join","payload":{},"ref":"1"}'],
    ["four elements", '["1","1","realtime:x","phx_join"]'],
    ["a topic that is a number", '["1","1",7,"phx_join",{}]'],
    ["half a surrogate pair", '["1","1","realtime:\\ud800","phx_join",{}]'],
    ["deep nesting", `["1","1","realtime:x","broadcast",${"[".repeat(100_000)}${"]".repeat(100_000)}]`],
    ["binary kind 9", Buffer.from([9, 1, 2, 3])],
    ["binary of one byte", Buffer.from([3])],
    ["binary of no bytes", Buffer.alloc(0)],
    ["kind 3 with lengths beyond its end", Buffer.from([3, 255, 255, 255, 255, 255, 1, 65])],
    ["kind 3 with metadata that is not JSON", broadcastPush({ joinRef: "1", ref: "2", topic: room, event: "e", metadata: "nope", encoding: 1, payload: "{}" })],
    ["kind 3 with bytes that are not UTF-8 in its event", Buffer.concat([Buffer.from([3, 0, 0, 1, 1, 0, 1]), Buffer.from([0xff, 0xfe])])],
    ["kind 0 with event broadcast", hex("00 01 01 0D 09 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 62 72 6F 61 64 63 61 73 74 DE AD")],
  ];

  test("the frame is dropped, the connection stays and a neighbour hears nothing of it", async (t) => {
    const [healthy, rude] = [await open(t), await open(t)];
    await healthy.join(room, { broadcast: { self: true } });
    await rude.join(room);
    for (const [name, frame] of malformed) {
      rude.send(frame);
      const answers = await rude.settled();
      // Valid JSON that only some readers take: being answered is as calm as being dropped.
      if (!["half a surrogate pair", "deep nesting"].includes(name)) assert.deepEqual(answers, [], name);
      assert.ok(rude.isOpen, name);
      healthy.send(["1", "9", room, "broadcast", { type: "broadcast", event: name, payload: {} }]);
      const heard = await healthy.next();
      assert.equal(heard[4]?.event, name, `after ${name} the neighbour heard ${JSON.stringify(heard)}`);
      await rude.next();
    }
  });

  test("version 1 drops what is not an object with its four keys, and binary frames", async (t) => {
    const raw = await open(t, { vsn: "1.0.0" });
    for (const frame of ["", "[]", '{"topic":"realtime:x"}', '["1","1","realtime:x","phx_join",{}]', '{"topic":1,"event":2,"payload":{},"ref":null}', Buffer.from([3, 0, 0, 0, 0, 0, 0])]) {
      raw.send(frame);
    }
    raw.send({ topic: "phoenix", event: "heartbeat", payload: {}, ref: "1" });
    assert.deepEqual((await raw.next()).ref, "1");
  });

  for (const [name, make] of [
    ["text", () => `["1","1","realtime:big","broadcast",{"x":"${"y".repeat(6_000_000)}"}]`],
    ["binary", () => Buffer.alloc(6_000_000, 3)],
  ]) {
    test(`a ${name} frame of six megabytes closes its own connection with 1009`, async (t) => {
      const [healthy, big] = [await open(t), await open(t)];
      await healthy.join("realtime:healthy", { broadcast: { self: true } });
      big.send(make());
      assert.equal(await big.closed, 1009);
      healthy.send(["1", "2", "realtime:healthy", "broadcast", { type: "broadcast", event: "fine", payload: {} }]);
      assert.equal((await healthy.next())[4].event, "fine");
    });
  }

  test("a frame just below the limit is taken", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:nearly", { broadcast: { ack: true } });
    raw.send(["1", "2", "realtime:nearly", "broadcast", { type: "broadcast", event: "e", payload: { x: "y".repeat(2_900_000) } }]);
    assert.deepEqual(await raw.next(), ["1", "2", "realtime:nearly", "phx_reply", { status: "ok", response: {} }]);
  });

  test("a payload above the tenant's limit is answered with payload_size_exceeded", async (t) => {
    const raw = await open(t);
    await raw.join("realtime:exceeded", { broadcast: { ack: true } });
    raw.send(["1", "2", "realtime:exceeded", "broadcast", { type: "broadcast", event: "e", payload: { x: "y".repeat(3_100_000) } }]);
    assert.deepEqual(await raw.next(), ["1", "2", "realtime:exceeded", "phx_reply", { status: "error", response: "payload_size_exceeded" }]);
  });

  test("a hundred sockets cut in the middle of a frame harm nobody", async (t) => {
    const healthy = await open(t);
    await healthy.join("realtime:calm", { broadcast: { self: true } });
    const rude = await Promise.all(Array.from({ length: 100 }, () => RawSocket.open(server.info)));
    for (const { ws } of rude) {
      ws.send('["1","1","realtime:calm","phx_join",{"config":{}}]');
      ws._socket.write(Buffer.from([0x81, 0xfe, 0x10, 0x00, 1, 2, 3, 4, 5])); // the head of a frame of 4096 bytes
      ws._socket.destroy();
    }
    healthy.send(["1", "2", "realtime:calm", "broadcast", { type: "broadcast", event: "calm", payload: {} }]);
    assert.equal((await healthy.next({ skip: isDiff }))[4].event, "calm");
  });
});
