// Broadcast with the official client. Spec: PROTOCOL.md §3.2–3.4, §3.8.1, §10.1.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";

const server = withServer();

/** A subscribed channel and the inbox of everything broadcast on it. */
async function room(client, topic, broadcast = {}) {
  const channel = client.channel(topic, { config: { broadcast } });
  const heard = new Inbox(`broadcasts on ${topic}`);
  channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
  const statuses = await subscribe(channel);
  return { channel, heard, statuses };
}

const payloads = (heard) => heard.all.map((message) => message.payload);

for (const variant of variants) {
  describe(variant.name, () => {
    test("a join ends in SUBSCRIBED", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const { statuses } = await room(client, `join-${variant.name}`);
      assert.equal(statuses.all[0].status, "SUBSCRIBED");
    });

    test("a broadcast reaches the other members and not its sender", async (t) => {
      const open = closing(t);
      const [ada, ben] = [open(openClient(variant, server.info)), open(openClient(variant, server.info))];
      const topic = `others-${variant.name}`;
      const [from, to] = [await room(ada, topic), await room(ben, topic)];

      const content = { text: "héllo \"quoted\" \u2028 🌊", nested: { list: [1, null, true, 1.5] } };
      assert.equal(await from.channel.send({ type: "broadcast", event: "note", payload: content }), "ok");
      const heard = await to.heard.first(({ event }) => event === "note");
      assert.deepEqual(heard.payload, content);
      assert.equal(heard.type, "broadcast");

      // What comes back last proves that nothing of the sender's own came before it.
      await to.channel.send({ type: "broadcast", event: "back", payload: {} });
      await from.heard.first(({ event }) => event === "back");
      assert.deepEqual(from.heard.all.map(({ event }) => event), ["back"]);
    });

    test("with self the sender hears itself", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const { channel, heard } = await room(client, `self-${variant.name}`, { self: true });
      await channel.send({ type: "broadcast", event: "mine", payload: { n: 1 } });
      const { payload } = await heard.first(({ event }) => event === "mine");
      assert.deepEqual(payload, { n: 1 });
    });

    test("with ack the send resolves when the server has taken it", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const { channel, heard } = await room(client, `ack-${variant.name}`, { ack: true, self: true });
      assert.equal(await channel.send({ type: "broadcast", event: "acked", payload: {} }), "ok");
      assert.equal(heard.all.length, 1, "the self-copy precedes the acknowledgement");
    });

    test("a listener for one event hears that event only", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const channel = client.channel(`one-event-${variant.name}`, { config: { broadcast: { self: true } } });
      const [wanted, everything] = [new Inbox(), new Inbox()];
      channel.on("broadcast", { event: "wanted" }, (message) => wanted.push(message));
      channel.on("broadcast", { event: "*" }, (message) => everything.push(message));
      await subscribe(channel);
      for (const event of ["other", "wanted", "last"]) await channel.send({ type: "broadcast", event, payload: {} });
      await everything.first(({ event }) => event === "last");
      assert.deepEqual(wanted.all.map(({ event }) => event), ["wanted"]);
    });

    test("a thousand broadcasts arrive in order, each once", async (t) => {
      const open = closing(t);
      const [ada, ben] = [open(openClient(variant, server.info)), open(openClient(variant, server.info))];
      const topic = `order-${variant.name}`;
      const [from, to] = [await room(ada, topic), await room(ben, topic)];
      for (let n = 0; n < 1000; n += 1) from.channel.send({ type: "broadcast", event: "n", payload: { n } });
      await to.heard.some(1000, ({ event }) => event === "n", { within: 20_000 });
      assert.deepEqual(payloads(to.heard).map(({ n }) => n), Array.from({ length: 1000 }, (_, n) => n));
    });

    test("channels do not hear each other", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const here = await room(client, `here-${variant.name}`, { self: true });
      const there = await room(client, `there-${variant.name}`, { self: true });
      await here.channel.send({ type: "broadcast", event: "here", payload: {} });
      await there.channel.send({ type: "broadcast", event: "there", payload: {} });
      await there.heard.first(({ event }) => event === "there");
      await here.heard.first(({ event }) => event === "here");
      assert.deepEqual(there.heard.all.map(({ event }) => event), ["there"]);
      assert.deepEqual(here.heard.all.map(({ event }) => event), ["here"]);
    });

    test("send before the join goes over HTTP and reaches the members", async (t) => {
      const open = closing(t);
      const [ada, ben] = [open(openClient(variant, server.info)), open(openClient(variant, server.info))];
      const topic = `rest-${variant.name}`;
      const to = await room(ben, topic);
      const unjoined = ada.channel(topic);
      assert.equal(await unjoined.send({ type: "broadcast", event: "rest", payload: { via: "http" } }), "ok");
      const heard = await to.heard.first(({ event }) => event === "rest");
      assert.deepEqual(heard.payload, { via: "http" });
    });

    test("leaving ends the channel and a new join works", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const topic = `leave-${variant.name}`;
      // With its last channel the older client disconnects, and forgets a join that follows at once.
      await room(client, `${topic}-stays`);
      const first = await room(client, topic, { self: true });
      assert.equal(await client.client.removeChannel(first.channel), "ok");
      await first.statuses.first(({ status }) => status === "CLOSED");
      const second = await room(client, topic, { self: true });
      await second.channel.send({ type: "broadcast", event: "again", payload: {} });
      await second.heard.first(({ event }) => event === "again");
      assert.equal(first.heard.all.length, 0);
    });

    if (variant.hasBinary) {
      test("bytes arrive as the same bytes", async (t) => {
        const open = closing(t);
        const [ada, ben] = [open(openClient(variant, server.info)), open(openClient(variant, server.info))];
        const topic = `bytes-${variant.name}`;
        const [from, to] = [await room(ada, topic), await room(ben, topic)];
        const bytes = Uint8Array.from({ length: 256 }, (_, n) => n);
        await from.channel.send({ type: "broadcast", event: "bytes", payload: bytes.buffer });
        const { payload } = await to.heard.first(({ event }) => event === "bytes");
        assert.deepEqual(new Uint8Array(payload), bytes);
      });

      test("bytes of no length arrive", async (t) => {
        const client = closing(t)(openClient(variant, server.info));
        const { channel, heard } = await room(client, `no-bytes-${variant.name}`, { self: true });
        await channel.send({ type: "broadcast", event: "empty", payload: new ArrayBuffer(0) });
        const { payload } = await heard.first(({ event }) => event === "empty");
        assert.equal(payload.byteLength, 0);
      });
    }
  });
}

describe("versions together", () => {
  const [current, currentV1, older] = variants;

  for (const [sender, receiver] of [[current, currentV1], [current, older], [currentV1, current], [older, current]]) {
    test(`${sender.name} → ${receiver.name}`, async (t) => {
      const open = closing(t);
      const [ada, ben] = [open(openClient(sender, server.info)), open(openClient(receiver, server.info))];
      const topic = `mixed-${sender.name}-${receiver.name}`;
      const [from, to] = [await room(ada, topic), await room(ben, topic)];
      await from.channel.send({ type: "broadcast", event: "mixed", payload: { a: [1, "two"] } });
      const heard = await to.heard.first(({ event }) => event === "mixed");
      assert.deepEqual(heard.payload, { a: [1, "two"] });
    });
  }

  test("a version 1 member is spared bytes and still hears what follows", async (t) => {
    const open = closing(t);
    const [ada, ben] = [open(openClient(current, server.info)), open(openClient(older, server.info))];
    const [from, to] = [await room(ada, "spared"), await room(ben, "spared")];
    await from.channel.send({ type: "broadcast", event: "bytes", payload: new ArrayBuffer(4) });
    await from.channel.send({ type: "broadcast", event: "json", payload: { ok: true } });
    await to.heard.first(({ event }) => event === "json");
    assert.deepEqual(to.heard.all.map(({ event }) => event), ["json"]);
  });
});

describe("HTTP batch", () => {
  const post = (body, headers = {}) =>
    fetch(`${server.info.url}/realtime/v1/api/broadcast`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.anon_key, ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
    });

  test("several messages reach their topics in order, with their ids", async (t) => {
    const client = closing(t)(openClient(variants[0], server.info));
    const { heard } = await room(client, "batch");
    const id = "5f0c3f5e-6d0c-4a53-a9f6-0a1b2c3d4e5f";
    const answer = await post({
      messages: [
        { topic: "batch", event: "one", payload: { n: 1 }, id },
        { topic: "elsewhere", event: "two", payload: {} },
        { topic: "batch", event: "three", payload: { n: 3 }, private: false },
      ],
    });
    assert.equal(answer.status, 202);
    assert.equal(await answer.text(), "");
    const [one, three] = await heard.some(2);
    assert.deepEqual([one.event, three.event], ["one", "three"]);
    assert.deepEqual(one.meta, { id });
  });

  test("the key counts as Authorization too, and unknown query parameters are ignored", async () => {
    const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast?apikey=x&vsn=2.0.0`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${server.info.anon_key}` },
      body: JSON.stringify({ messages: [{ topic: "batch", event: "e", payload: {} }] }),
    });
    assert.equal(answer.status, 202);
  });

  for (const [name, body, status, expected] of [
    ["a payload that is missing", { messages: [{ topic: "a", event: "b", payload: {} }, { topic: "a", event: "b" }] }, 422, { errors: { messages: [{}, { payload: ["can't be blank"] }] } }],
    ["a topic that is blank", { messages: [{ topic: "", event: "b", payload: {} }] }, 422, { errors: { messages: [{ topic: ["can't be blank"] }] } }],
    ["an event of the wrong type", { messages: [{ topic: "a", event: 7, payload: {} }] }, 422, { errors: { messages: [{ event: ["is invalid"] }] } }],
    ["no messages", {}, 422, { errors: { messages: ["can't be blank"] } }],
    ["an empty list", { messages: [] }, 422, { errors: { messages: ["can't be blank"] } }],
    ["messages that are not a list", { messages: "x" }, 422, { errors: { messages: ["is invalid"] } }],
  ]) {
    test(`${name} is answered ${status} and says why`, async () => {
      const answer = await post(body);
      assert.equal(answer.status, status);
      assert.deepEqual(await answer.json(), expected);
    });
  }

  test("bad JSON is answered 400", async () => {
    assert.equal((await post("{")).status, 400);
  });

  test("a bad key is answered 401", async () => {
    const answer = await post({ messages: [{ topic: "a", event: "b", payload: {} }] }, { apikey: "nonsense" });
    assert.equal(answer.status, 401);
    assert.deepEqual(await answer.json(), { message: "Unauthorized" });
  });
});
