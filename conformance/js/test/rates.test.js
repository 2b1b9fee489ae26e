// Rate counters: ticks of five seconds, averaged over a minute. Spec: PROTOCOL.md §7.1, §3.8, Q18.
// Counters begin with the server, and what a burst averages to depends on their age: each test has a server of its own.
import assert from "node:assert/strict";
import { after, test } from "node:test";

import { RawSocket, handshake } from "../support/raw.js";
import { TidewireServer, until } from "../support/server.js";

// A client's timers must not keep the process.
after(() => setTimeout(() => process.exit(), 2_000).unref());

const env = {
  TIDEWIRE__LIMITS__MAX_EVENTS_PER_SECOND: "5",
  TIDEWIRE__LIMITS__MAX_PRESENCE_EVENTS_PER_SECOND: "5",
  TIDEWIRE__LIMITS__MAX_JOINS_PER_SECOND: "5",
  TIDEWIRE__LIMITS__PRESENCE_CALLS: "10000",
  TIDEWIRE__TIMERS__CHANNEL_ERROR_BACKOFF_MS: "50",
  TIDEWIRE__TIMERS__CONNECT_ERROR_BACKOFF_MS: "50",
};

/** Each is sent and delivered once: above 5 per second over two ticks (the start is one) or three, below over six. */
const BURST = 60;
const TRIGGERED_WITHIN = 15_000;
const RELEASED_WITHIN = 45_000; // less than a silent socket may live
const EXCEEDED = "You have exceeded your rate limit";

/** A server with limits, and what the tests do with it. */
async function limited(t) {
  const server = await TidewireServer.start({ env });
  t.after(() => server.stop());
  const post = (path, body) =>
    fetch(`${server.info.url}/realtime/v1/api/broadcast${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.anon_key },
      body: JSON.stringify(body),
    });
  const single = () => post("/http/events/e", {});
  const batch = (length) => post("", { messages: Array.from({ length }, () => ({ topic: "http", event: "e", payload: {} })) });
  /** Whether the counter is above its limit, asked without an event: this batch is always too large. */
  const isAbove = async () => (await (await batch(1_000)).json()).message === EXCEEDED;
  return {
    server,
    single,
    batch,
    async open() {
      const raw = await RawSocket.open(server.info);
      t.after(() => raw.ws.terminate());
      return raw;
    },
    async member(topic, config = {}) {
      const raw = await this.open();
      await raw.join(topic, config);
      return raw;
    },
    triggered: () => until(isAbove, TRIGGERED_WITHIN),
    released: () => until(async () => !(await isAbove()), RELEASED_WITHIN),
  };
}

const say = (raw, topic, event) => raw.send(["1", null, topic, "broadcast", { type: "broadcast", event, payload: {} }]);
const shutDown = (topic, message) => [
  ["1", null, topic, "system", { extension: "system", status: "error", message, channel: topic.slice("realtime:".length) }],
  ["1", "1", topic, "phx_close", {}],
];

test("a batch that would go over the limit by itself is answered 429 and says what to do", async (t) => {
  const { batch } = await limited(t);
  const answer = await batch(6);
  assert.equal(answer.status, 429);
  assert.deepEqual(await answer.json(), { message: "Too many messages to broadcast, please reduce the batch size" });
  assert.equal((await batch(2)).status, 202);
});

test("over the events limit receivers are shut down with the message, the sender stays, and HTTP says 429", async (t) => {
  const at = await limited(t);
  const topic = "realtime:flood";
  const [sender, receiver, neighbour] = [await at.member(topic), await at.member(topic), await at.member("realtime:neighbour")];
  for (let n = 0; n < BURST; n += 1) say(sender, topic, `${n}`);
  // Nothing triggers before the tick is over: the burst itself arrives.
  for (let n = 0; n < BURST; n += 1) assert.equal((await receiver.next())[4].event, `${n}`);
  await at.triggered();
  for (const answer of [await at.single(), await at.batch(1)]) {
    assert.deepEqual([answer.status, await answer.json()], [429, { message: EXCEEDED }]);
  }
  say(sender, topic, "one too many");
  for (const frame of shutDown(topic, "Too many messages per second")) assert.deepEqual(await receiver.next(), frame);
  assert.deepEqual(await sender.settled(), []);
  assert.deepEqual(await neighbour.settled(), [], "who is not sent anything is not shut down");

  // The topic may be joined again on the same socket, and works when the burst is diluted.
  await at.released();
  assert.deepEqual(await receiver.join(topic, {}, { ref: "2" }), { postgres_changes: [] });
  say(sender, topic, "calm");
  assert.equal((await receiver.next())[4].event, "calm");
});

test("a sender that hears itself is shut down too", async (t) => {
  const at = await limited(t);
  const topic = "realtime:self";
  const sender = await at.member(topic, { broadcast: { self: true } });
  for (let n = 0; n < BURST; n += 1) say(sender, topic, `${n}`);
  for (let n = 0; n < BURST; n += 1) assert.equal((await sender.next())[4].event, `${n}`);
  await at.triggered();
  say(sender, topic, "one too many");
  for (const frame of shutDown(topic, "Too many messages per second")) assert.deepEqual(await sender.next(), frame);
});


test("rows from the database count as events", async (t) => {
  const at = await limited(t);
  await at.server.sql("select realtime.send('{}', 'e', 'nobody', false) from generate_series(1, $1::int)", [2 * BURST]);
  await at.triggered();
});

test("rows from the database are dropped over the events limit, and their receivers stay", async (t) => {
  const at = await limited(t);
  const [receiver, sender] = [await at.member("realtime:rows"), await at.member("realtime:noise")];
  const row = (event) => at.server.sql("select realtime.send('{}', $1, 'rows', false)", [event]);
  await row("before");
  assert.match((await receiver.next()).toString(), /before/);
  for (let n = 0; n < 2 * BURST; n += 1) say(sender, "realtime:noise", `${n}`);
  await at.triggered();
  await row("during");
  await until(() => at.server.log.includes("too_many_requests"));
  await at.released();
  await row("after");
  assert.match((await receiver.next()).toString(), /after/);
});

test("over the presence limit members are shut down with the message", async (t) => {
  const at = await limited(t);
  const topic = "realtime:crowd";
  const member = await at.member(topic, { presence: { enabled: true } });
  await at.member(topic, { presence: { enabled: true } });
  let isOver = false;
  const closing = member.readUntil((frame) => frame[3] === "phx_close", { within: 60_000 }).finally(() => (isOver = true));
  for (let n = 0; !isOver; n += 1) {
    member.send(["1", `${n}`, topic, "presence", { type: "presence", event: "track", payload: { n } }]);
    await new Promise((resolve) => setTimeout(resolve, 30)); // the pace of the flood
  }
  const last = (await closing).filter(([, , , event]) => event === "system" || event === "phx_close");
  assert.deepEqual(last, shutDown(topic, "Too many presence messages per second"));
});

test("over the joins limit a join is refused and its socket closed, and a handshake is answered 429", async (t) => {
  const at = await limited(t);
  const [raw, late] = [await at.open(), await at.open()];
  for (let n = 0; n < 2 * BURST; n += 1) await raw.join("realtime:again", {}, { ref: `${n}` });
  const refused = await until(async () => {
    const answer = await handshake(at.server.info, { query: { apikey: at.server.info.anon_key } });
    return answer.status === 429 && answer;
  }, TRIGGERED_WITHIN);
  assert.deepEqual(JSON.parse(refused.body), { error: "Too many joins per second" });
  const reason = "ClientJoinRateLimitReached: Too many joins per second";
  late.send(["1", "1", "realtime:late", "phx_join", { config: {} }]);
  assert.deepEqual(await late.next(), ["1", "1", "realtime:late", "phx_reply", { status: "error", response: { reason } }]);
  assert.equal(await late.closed, 1001);
  assert.ok(raw.isOpen, "who joined before stays");
});
