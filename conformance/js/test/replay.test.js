// Replay of stored messages at a join. Spec: PROTOCOL.md §3.3, §3.6, Q7–Q9.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";

import { openClient, subscribe, variants, watch } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { ALL, DENIED, allow, newTopic, preparePolicies, userToken } from "../support/policies.js";
import { RawSocket, readable } from "../support/raw.js";

const server = withServer({ prepare: preparePolicies, env: { TIDEWIRE__TIMERS__CHANNEL_ERROR_BACKOFF_MS: "50" } });

const T0 = () => Date.now() - 60_000;
const at = (ms) => new Date(ms).toISOString().replace("Z", "");

/** Stores a message; they are seconds apart unless told otherwise. Returns its id. */
async function store(topic, columns = {}) {
  const all = { topic, extension: "broadcast", event: "e", payload: "{}", private: true, ...columns };
  const names = Object.keys(all);
  const { rows } = await server.sql(
    `insert into realtime.messages (${names.join(", ")}) values (${names.map((_, n) => `$${n + 1}`).join(", ")}) returning id`,
    Object.values(all),
  );
  return rows[0].id;
}

/** `count` messages, the first one a minute ago, one per second. */
async function history(topic, count, since = T0()) {
  const ids = [];
  for (let n = 0; n < count; n += 1) ids.push(await store(topic, { event: `e${n}`, payload: `{"n": ${n}}`, inserted_at: at(since + n * 1000) }));
  return { since, ids };
}

/** Joins with `replay` and returns the reply and everything that came with it. */
async function join(t, topic, replay, { vsn, access_token = server.info.service_key, config = {} } = {}) {
  const raw = closing(t)(await RawSocket.open(server.info, { vsn }));
  const name = `realtime:${topic}`;
  const payload = { config: { private: true, ...config, broadcast: { replay } }, access_token };
  raw.send(vsn === "1.0.0" ? { topic: name, event: "phx_join", payload, ref: "1", join_ref: "1" } : ["1", "1", name, "phx_join", payload]);
  const reply = await raw.next();
  return { raw, name, reply: reply.payload ?? reply[4] };
}

const replayed = (name, n, id) => ["1", null, name, "broadcast", { type: "broadcast", event: `e${n}`, payload: { n }, meta: { replayed: true, id } }];
const events = (frames) => frames.map((frame) => (Buffer.isBuffer(frame) ? readable(frame).event : frame[4].event));
const last = (from, to) => Array.from({ length: to - from }, (_, n) => `e${from + n}`);

for (const variant of variants) {
  describe(variant.name, () => {
    test("a channel that asks for history gets it before what is live", async (t) => {
      const topic = newTopic("client");
      const member = randomUUID();
      await allow(server, topic, ALL, member);
      const { since, ids } = await history(topic, 3);
      const client = closing(t)(openClient(variant, server.info, { token: userToken(server, { sub: member }) }));
      await client.client.realtime.setAuth();
      const channel = client.channel(topic, { config: { private: true, broadcast: { replay: { since, limit: 2 } } } });
      const heard = new Inbox(`broadcasts on ${topic}`);
      channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
      await subscribe(channel);
      await server.sql("select realtime.send('{}', 'live', $1)", [topic]);
      await heard.first(({ event }) => event === "live");
      assert.deepEqual(heard.all.map(({ event, payload, meta }) => [event, payload.n, meta.replayed, meta.id === undefined]), [
        ["e1", 1, true, false],
        ["e2", 2, true, false],
        ["live", undefined, undefined, false],
      ]);
      assert.deepEqual(heard.all.slice(0, 2).map(({ meta }) => meta.id), ids.slice(1));
    });
  });
}

test("history of a public channel is a CHANNEL_ERROR that says so", async (t) => {
  const client = closing(t)(openClient(variants[1], server.info));
  // The current client refuses this by itself; its join payload is made by hand here.
  const channel = client.channel(newTopic("public"), { config: { broadcast: { self: true } } });
  channel.params.config.broadcast.replay = { since: T0() };
  const { status, error } = await watch(channel).at(0);
  assert.deepEqual([status, error.message.replaceAll('"', "")], ["CHANNEL_ERROR", "UnableToReplayMessages: Replay is not allowed for public channels"]);
});

describe("which and in what form", { concurrency: true }, () => {
  test("the newest, oldest first, right behind the reply and before presence", async (t) => {
    const topic = newTopic("form");
    const { since, ids } = await history(topic, 5);
    const { raw, name, reply } = await join(t, topic, { since, limit: 3 }, { config: { presence: { enabled: true } } });
    assert.equal(reply.status, "ok");
    for (const n of [2, 3, 4]) assert.deepEqual(await raw.next(), replayed(name, n, ids[n]));
    assert.deepEqual(await raw.next(), ["1", null, name, "presence_state", {}]);
    assert.deepEqual(await raw.settled(), []);
  });

  for (const [name, limit, count] of [
    ["no limit", {}, 25],
    ["limit null", { limit: null }, 25],
    ["limit false", { limit: false }, 25],
    ["limit 10", { limit: 10 }, 10],
    ["limit 0", { limit: 0 }, 1],
    ["limit -5", { limit: -5 }, 1],
    ["limit 1000", { limit: 1000 }, 25],
  ]) {
    test(`${name}: the last ${count} of 30`, async (t) => {
      const topic = newTopic("limit");
      const { since } = await history(topic, 30);
      const { raw } = await join(t, topic, { since, ...limit });
      assert.deepEqual(events(await raw.settled()), last(30 - count, 30));
    });
  }

  test("nothing older than asked for, and nothing of the future", async (t) => {
    const topic = newTopic("since");
    const { since } = await history(topic, 6);
    await store(topic, { event: "soon", inserted_at: at(Date.now() + 30_000) });
    await store(topic, { event: "later", inserted_at: at(Date.now() + 120_000) });
    const { raw } = await join(t, topic, { since: since + 4_000 });
    assert.deepEqual(events(await raw.settled()), ["e4", "e5", "soon"]);
    const none = await join(t, topic, { since: Date.now() + 45_000 });
    assert.deepEqual(await none.raw.settled(), []);
  });

  test("only private broadcasts of this topic", async (t) => {
    const topic = newTopic("only");
    const since = T0();
    await store(topic, { event: "public", private: false });
    await store(topic, { event: "presence", extension: "presence" });
    await store(`${topic}x`, { event: "elsewhere" });
    await store(topic, { event: "this" });
    const { raw } = await join(t, topic, { since });
    assert.deepEqual(events(await raw.settled()), ["this"]);
  });

  test("what comes over sockets and HTTP is not stored", async (t) => {
    const topic = newTopic("unstored");
    const since = T0();
    const { raw } = await join(t, topic);
    raw.send(["1", "2", `realtime:${topic}`, "broadcast", { type: "broadcast", event: "socket", payload: {} }]);
    const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast/${topic}/events/http?private=true`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.service_key },
      body: "{}",
    });
    assert.equal(answer.status, 202);
    const late = await join(t, topic, { since });
    assert.deepEqual(await late.raw.settled(), []);
  });

  test("bytes come as kind 4, and not at all in version 1", async (t) => {
    const topic = newTopic("bytes");
    const since = T0();
    const first = await store(topic, { event: "json", payload: '{"a": 1}', inserted_at: at(since + 1000) });
    const second = await store(topic, { event: "bytes", payload: null, binary_payload: Buffer.from([1, 0, 255]), inserted_at: at(since + 2000) });
    const two = await join(t, topic, { since });
    const meta = { replayed: true, id: first };
    assert.deepEqual(await two.raw.next(), ["1", null, two.name, "broadcast", { type: "broadcast", event: "json", payload: { a: 1 }, meta }]);
    assert.deepEqual(readable(await two.raw.next()), { kind: 4, topic: two.name, event: "bytes", metadata: `{"replayed":true,"id":"${second}"}`, encoding: 0, payload: [1, 0, 255] });
    const one = await join(t, topic, { since }, { vsn: "1.0.0" });
    assert.deepEqual(await one.raw.next(), { topic: one.name, event: "broadcast", payload: { type: "broadcast", event: "json", payload: { a: 1 }, meta }, ref: null });
    one.raw.send({ topic: "phoenix", event: "heartbeat", payload: {}, ref: "9" });
    assert.equal((await one.raw.next()).ref, "9");
  });

  test("payloads that are null or no object are replayed as they are", async (t) => {
    const topic = newTopic("scalars");
    const since = T0();
    for (const [n, payload] of [null, "[1]", '"x"', "null"].entries()) await store(topic, { payload, inserted_at: at(since + n * 1000) });
    const { raw } = await join(t, topic, { since });
    assert.deepEqual((await raw.settled()).map((frame) => frame[4].payload), [null, [1], "x", null]);
  });
});

describe("refused and ignored", { concurrency: true }, () => {
  const INVALID = "UnableToReplayMessages: Replay params are not valid";
  const PUBLIC = "UnableToReplayMessages: Replay is not allowed for public channels";
  for (const [name, replay, reason, config = {}] of [
    ["no since", {}, INVALID],
    ["since as text", { since: "1" }, INVALID],
    ["since with a fraction", { since: 1.5 }, INVALID],
    ["since null", { since: null }, INVALID],
    ["since beyond all time", { since: 1e20 }, INVALID],
    ["limit as text", { since: 1, limit: "10" }, INVALID],
    ["limit true", { since: 1, limit: true }, INVALID],
    ["limit with a fraction", { since: 1, limit: 2.5 }, INVALID],
    ["a public channel", { since: 1 }, PUBLIC, { private: false }],
    ["null on a public channel", null, PUBLIC, { private: false }],
    ["null", null, undefined],
    ["text", "all", undefined],
    ["a list", [1], undefined],
    ["true", true, undefined],
  ]) {
    test(`${name}: ${reason ?? "ignored"}`, async (t) => {
      const { raw, reply } = await join(t, newTopic("params"), replay, { config });
      assert.deepEqual(reply, reason ? { status: "error", response: { reason } } : { status: "ok", response: { postgres_changes: [] } });
      assert.deepEqual(await raw.settled(), []);
    });
  }

  test("who may read presence only is refused when asking for history", async (t) => {
    const topic = newTopic("denied");
    const sub = randomUUID();
    await allow(server, topic, ["read presence", "write broadcast", "write presence"], sub);
    await history(topic, 2);
    const options = { access_token: userToken(server, { sub }), config: { presence: { enabled: true } } };
    const { reply } = await join(t, topic, { since: T0() }, options);
    assert.deepEqual(reply, { status: "error", response: { reason: `Unauthorized: ${DENIED(topic)}` } });
    assert.equal((await join(t, topic, null, options)).reply.status, "ok");
  });

  test("history is read whatever the policies say about single rows", async (t) => {
    const topic = newTopic("reader");
    const sub = randomUUID();
    await allow(server, topic, ["read broadcast"], sub);
    const { since } = await history(topic, 2);
    const { raw } = await join(t, topic, { since }, { access_token: userToken(server, { sub }) });
    assert.deepEqual(events(await raw.settled()), ["e0", "e1"]);
  });
});

describe("once", () => {
  test("a live message with the id of a replayed one is left out", async (t) => {
    const topic = newTopic("once");
    const { since, ids } = await history(topic, 2);
    const asked = await join(t, topic, { since });
    const other = await join(t, topic);
    assert.equal((await asked.raw.settled()).length, 2);
    const fresh = randomUUID();
    const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.service_key },
      body: JSON.stringify({ messages: [ids[0], ids[1], fresh].map((id, n) => ({ topic, event: `http ${n}`, payload: {}, private: true, id })) }),
    });
    assert.equal(answer.status, 202);
    assert.deepEqual(events(await other.raw.settled()), ["http 0", "http 1", "http 2"]);
    assert.deepEqual(events(await asked.raw.settled()), ["http 2"]);
  });

  test("members who join while the database sends get each message once, in order", async (t) => {
    const topic = newTopic("race");
    let [isOver, sent] = [false, 0];
    const sending = (async () => {
      const connection = await server.connect();
      while (!isOver) {
        await connection.query("select realtime.send(jsonb_build_object('n', $2::int), 'n', $1)", [topic, sent]);
        sent += 1;
        await new Promise((resolve) => setTimeout(resolve, 3)); // the pace of the sender, not a wait for anything
      }
      await connection.query("select realtime.send(jsonb_build_object('n', $2::int), 'n', $1)", [topic, sent]);
      await connection.end();
    })();
    const members = [];
    for (let n = 0; n < 20; n += 1) members.push(await join(t, topic, { since: T0(), limit: 25 }));
    isOver = true;
    await sending;
    const numberOf = (frame) => (Buffer.isBuffer(frame) ? JSON.parse(readable(frame).payload).n : frame[4].payload?.n);
    let [replays, gaps] = [0, 0];
    for (const { raw } of members) {
      const frames = await raw.readUntil((frame) => numberOf(frame) === sent);
      const numbers = frames.map(numberOf);
      replays += frames.filter((frame) => !Buffer.isBuffer(frame)).length;
      assert.deepEqual(numbers, [...new Set(numbers)].sort((a, b) => a - b), "no number twice, none before its time");
      gaps += numbers.at(-1) - numbers[0] + 1 - numbers.length;
    }
    assert.ok(replays > 0, "the race took place");
    t.diagnostic(`${members.length} joins, ${sent} messages, ${replays} replayed, ${gaps} lost between replay and live (Q8 allows some)`);
  });
});
