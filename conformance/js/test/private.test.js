// Private channels: policies on realtime.messages decide. Spec: PROTOCOL.md §3.4, §4.2–4.4, §6.4, §6.5.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";

import { openClient, subscribe, variants, watch } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { ALL, DENIED, REVOKED, allow, forbid, newTopic, preparePolicies, userToken } from "../support/policies.js";
import { RawSocket, broadcastPush, readable } from "../support/raw.js";

// The wait before a refusal is the subject of other files.
const server = withServer({ prepare: preparePolicies, env: { TIDEWIRE__TIMERS__CHANNEL_ERROR_BACKOFF_MS: "50" } });

const token = (claims) => userToken(server, claims);

/** A socket that joins as a user; `reply` is the whole reply payload. */
async function member(t, topic, { config = {}, vsn, access_token = token(), ref = "1", ...options } = {}) {
  const raw = closing(t)(await RawSocket.open(server.info, { vsn, ...options }));
  const name = `realtime:${topic}`;
  const payload = { config: { private: true, ...config }, access_token };
  raw.send(vsn === "1.0.0" ? { topic: name, event: "phx_join", payload, ref, join_ref: ref } : [ref, ref, name, "phx_join", payload]);
  const frame = await raw.next();
  const push = (reference, event, content) =>
    raw.send(vsn === "1.0.0" ? { topic: name, event, payload: content, ref: reference, join_ref: ref } : [ref, reference, name, event, content]);
  return {
    raw,
    name,
    reply: vsn === "1.0.0" ? frame.payload : frame[4],
    push,
    say: (reference, event, content = {}) => push(reference, "broadcast", { type: "broadcast", event, payload: content }),
    /** Pushes wait for what was pushed before them; the answer to this one says that all has been decided. */
    async decided(reference = `d-${randomUUID()}`) {
      push(reference, "presence", { type: "presence", event: "untrack" });
      return (await raw.readUntil((frame) => Array.isArray(frame) && frame[1] === reference)).slice(0, -1);
    },
    track: (reference, content = {}) => push(reference, "presence", { type: "presence", event: "track", payload: content }),
    refresh: (next) => push("t", "access_token", { access_token: next }),
  };
}

const ok = { status: "ok", response: { postgres_changes: [] } };
const broadcast = (name, event, payload = {}) => [null, null, name, "broadcast", { type: "broadcast", event, payload }];
const refusal = (topic) => ({ status: "error", response: { reason: `Unauthorized: ${DENIED(topic)}` } });
const shutDown = (name, message) => [
  ["1", null, name, "system", { extension: "system", status: "error", message, channel: name.slice("realtime:".length) }],
  ["1", "1", name, "phx_close", {}],
];

/** Says something from a member who may and waits for the sign that the listener has heard all before it. */
async function settled(speaker, listener, reference = `s-${randomUUID()}`) {
  speaker.say(reference, reference);
  return (await listener.raw.readUntil((frame) => JSON.stringify(frame).includes(reference))).slice(0, -1);
}

for (const variant of variants) {
  describe(variant.name, { concurrency: true }, () => {
    const open = (t, options) => closing(t)(openClient(variant, server.info, options));

    /** A client that speaks for a user and its private channel. `access_token` may be a function (see `openClient`). */
    async function room(t, topic, access_token, { broadcast: options = {}, presence } = {}) {
      const client = open(t, { token: access_token });
      await client.client.realtime.setAuth();
      const channel = client.channel(topic, { config: { private: true, broadcast: options, ...(presence && { presence }) } });
      const [heard, system, states] = [new Inbox(`broadcasts on ${topic}`), new Inbox("system"), new Inbox("states")];
      channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
      channel.on("system", {}, (message) => system.push(message));
      if (presence) channel.on("presence", { event: "sync" }, () => states.push(channel.presenceState()));
      return { client, channel, heard, system, states };
    }

    test("members of a room hear each other, and a stranger is told why not", async (t) => {
      const topic = newTopic("members");
      const [ada, ben] = [randomUUID(), randomUUID()];
      for (const who of [ada, ben]) await allow(server, topic, ALL, who);
      const from = await room(t, topic, token({ sub: ada }), { broadcast: { ack: true } });
      const to = await room(t, topic, token({ sub: ben }));
      await subscribe(from.channel);
      await subscribe(to.channel);
      assert.equal(await from.channel.send({ type: "broadcast", event: "hello", payload: { a: [1, "ü"] } }), "ok");
      const { event, payload } = await to.heard.at(0);
      assert.deepEqual({ event, payload }, { event: "hello", payload: { a: [1, "ü"] } });

      const stranger = await room(t, topic, token());
      const { status, error } = await watch(stranger.channel).at(0);
      assert.equal(status, "CHANNEL_ERROR");
      assert.equal(error.message.replaceAll('"', ""), `Unauthorized: ${DENIED(topic)}`); // the older client quotes the reason
    });

    test("presence of a private room is shared among its members", async (t) => {
      const topic = newTopic("present");
      await allow(server, topic, ALL);
      const [ada, ben] = [
        await room(t, topic, token(), { presence: { key: "ada", enabled: true } }),
        await room(t, topic, token(), { presence: { key: "ben", enabled: true } }),
      ];
      await subscribe(ada.channel);
      await subscribe(ben.channel);
      assert.equal(await ada.channel.track({ name: "Ada" }), "ok");
      await ben.states.first((state) => state.ada?.[0].name === "Ada");
      assert.equal(await ben.channel.track({ name: "Ben" }), "ok");
      await ada.states.first((state) => state.ada && state.ben?.[0].name === "Ben");
      assert.equal(await ben.channel.untrack(), "ok");
      await ada.states.first((state, at) => at > 0 && state.ada && !state.ben);
    });

    test("a broadcast without the right to write is not answered and reaches nobody", async (t) => {
      const topic = newTopic("mute");
      const [mute, speaker] = [randomUUID(), randomUUID()];
      await allow(server, topic, ["read broadcast"], mute);
      await allow(server, topic, ALL, speaker);
      const from = await room(t, topic, token({ sub: mute }), { broadcast: { ack: true } });
      const other = await room(t, topic, token({ sub: speaker }), { broadcast: { ack: true } });
      await subscribe(from.channel);
      await subscribe(other.channel);
      assert.equal(await from.channel.send({ type: "broadcast", event: "denied", payload: {} }, { timeout: 700 }), "timed out");
      assert.equal(await other.channel.send({ type: "broadcast", event: "allowed", payload: {} }), "ok");
      await from.heard.first(({ event }) => event === "allowed");
      assert.deepEqual(other.heard.all, []);
    });

    for (const [name, next, message] of [
      ["may read nothing any more", [], DENIED],
      ["may read one of two no longer", ["read presence"], REVOKED],
    ]) {
      test(`a new token of a user who ${name} ends the channel with a message`, async (t) => {
        const topic = newTopic("revoked");
        const [before, after] = [randomUUID(), randomUUID()];
        await allow(server, topic, ALL, before);
        await allow(server, topic, next, after);
        let now = token({ sub: before });
        const { client, channel, system } = await room(t, topic, () => now, { presence: { enabled: true } });
        const statuses = await subscribe(channel);
        now = token({ sub: after });
        await client.client.realtime.setAuth();
        const { status, message: text } = await system.first(({ extension }) => extension === "system");
        assert.deepEqual([status, text], ["error", message(topic)]);
        await statuses.first(({ status: state }) => state === "CLOSED");
      });
    }

    test("a public and a private room of the same name know nothing of each other", async (t) => {
      const topic = newTopic("two-worlds");
      await allow(server, topic, ALL);
      const inside = await room(t, topic, token(), { broadcast: { ack: true } });
      const within = await room(t, topic, token());
      await subscribe(inside.channel);
      await subscribe(within.channel);
      const [outside, without] = [open(t), open(t)].map((client) => client.channel(topic, { config: { broadcast: { ack: true } } }));
      const heard = new Inbox("broadcasts outside");
      without.on("broadcast", { event: "*" }, (message) => heard.push(message));
      await subscribe(outside);
      await subscribe(without);
      for (const [channel, event] of [[inside.channel, "private"], [outside, "public"]]) {
        assert.equal(await channel.send({ type: "broadcast", event, payload: {} }), "ok");
      }
      await heard.first(({ event }) => event === "public");
      await within.heard.first(({ event }) => event === "private");
      assert.deepEqual([heard, within.heard].map((inbox) => inbox.all.map(({ event }) => event)), [["public"], ["private"]]);
    });
  });
}

describe("who may join", { concurrency: true }, () => {
  for (const [name, rights, options = {}, joins = false] of [
    ["somebody without any right", []],
    ["somebody who may only write", ["write broadcast", "write presence"]],
    ["somebody who may read presence, on a channel without presence", ["read presence"]],
    ["the anon role, which no policy names", ALL, { claims: { role: "anon" } }],
    ["a reader of broadcasts", ["read broadcast"], {}, true],
    ["a reader of presence, on a channel with presence", ["read presence"], { config: { presence: { enabled: true } } }, true],
    ["a reader of broadcasts, on a channel with presence", ["read broadcast"], { config: { presence: { enabled: true } } }, true],
    ["the service role, without any right", [], { claims: { role: "service_role" } }, true],
  ]) {
    test(`${name}: ${joins ? "joins" : "is refused"}`, async (t) => {
      const topic = newTopic("who");
      await allow(server, topic, rights);
      const { config, claims } = options;
      const { reply } = await member(t, topic, { config, access_token: token(claims) });
      assert.deepEqual(reply, joins ? ok : refusal(topic));
    });
  }

  for (const role of ["no_such_role", "postgres"]) {
    test(`the role ${role}, which is not in the server's list, is refused as such`, async (t) => {
      const { reply } = await member(t, newTopic("role"), { access_token: token({ role }) });
      assert.deepEqual(reply, { status: "error", response: { reason: "Unauthorized: The role of this token is not allowed" } });
    });
  }

  test("the connection's own key counts when the join has no token", async (t) => {
    const raw = closing(t)(await RawSocket.open(server.info, { apikey: server.info.service_key }));
    assert.deepEqual(await raw.join("realtime:by-key", { private: true }), { postgres_changes: [] });
  });

  test("private may be the word true", async (t) => {
    const topic = newTopic("word");
    const { reply } = await member(t, topic, { config: { private: "TRUE" } });
    assert.deepEqual(reply, refusal(topic));
  });

  test("version 1 is refused with the same words", async (t) => {
    const topic = newTopic("one");
    const { reply } = await member(t, topic, { vsn: "1.0.0" });
    assert.deepEqual(reply, refusal(topic));
  });

  test("a refused channel sends and hears nothing, and the topic may be joined again at once", async (t) => {
    const topic = newTopic("again");
    const speaker = randomUUID();
    await allow(server, topic, ALL, speaker);
    const good = await member(t, topic, { access_token: token({ sub: speaker }), config: { broadcast: { self: true } } });
    const bad = await member(t, topic);
    assert.deepEqual(bad.reply, refusal(topic));
    bad.say("2", "smuggled");
    assert.deepEqual(await bad.raw.next(), [null, "2", bad.name, "phx_reply", { status: "error", response: { reason: "unmatched topic" } }]);
    good.say("2", "x");
    assert.deepEqual(await good.raw.next(), broadcast(good.name, "x"));
    assert.deepEqual(await bad.raw.settled(), []);
    bad.raw.send(["3", "3", bad.name, "phx_join", { config: { private: true }, access_token: token({ sub: speaker }) }]);
    assert.deepEqual(await bad.raw.next(), ["3", "3", bad.name, "phx_reply", ok]);
    good.say("3", "heard");
    assert.deepEqual(await bad.raw.next(), broadcast(bad.name, "heard"));
  });

  test("a join that replaces a channel and is refused ends the channel nevertheless", async (t) => {
    const topic = newTopic("replaced");
    const sub = randomUUID();
    await allow(server, topic, ALL, sub);
    const { raw, name } = await member(t, topic, { access_token: token({ sub }) });
    raw.send(["5", "5", name, "phx_join", { config: { private: true }, access_token: token() }]);
    assert.deepEqual(await raw.next(), ["5", "5", name, "phx_reply", refusal(topic)]);
    assert.deepEqual(await raw.next(), ["1", "1", name, "phx_close", {}]);
  });

  test("the database is asked about the topic as it is, quotes, colons and all", async (t) => {
    const topic = `${newTopic("odd")}:it's "100%" \\ ü:realtime:x`;
    await allow(server, topic, ALL);
    assert.deepEqual((await member(t, topic)).reply, ok);
    assert.deepEqual((await member(t, `${topic}x`)).reply, refusal(`${topic}x`));
  });
});

// One after the other: each changes what the whole database's policies are.
describe("policies", () => {
  const policies = (text) => server.sql(text);

  test("a policy sees the topic, the extension and the defaults of a row that is not there", async (t) => {
    const topic = newTopic("row");
    await policies(`create policy "row" on realtime.messages for select to authenticated using (
      realtime.topic() = '${topic}' and topic = '${topic}' and extension in ('broadcast', 'presence') and not private
      and event is null and payload is null and id is not null and abs(extract(epoch from now()::timestamp - inserted_at)) < 60)`);
    assert.deepEqual((await member(t, topic)).reply, ok);
  });

  test("a policy that wants private rows denies everybody", async (t) => {
    const topic = newTopic("wants-private");
    await policies(`create policy "wants private" on realtime.messages for select to authenticated using (realtime.topic() = '${topic}' and private)`);
    assert.deepEqual((await member(t, topic)).reply, refusal(topic));
  });

  test("a policy reads any claim of the token", async (t) => {
    const topic = newTopic("claims");
    await policies(`create policy "team" on realtime.messages for select to authenticated
      using (realtime.topic() = '${topic}' and auth.jwt() -> 'app' ->> 'team' = 'red' and auth.role() = 'authenticated')`);
    assert.deepEqual((await member(t, topic, { access_token: token({ app: { team: "red" } }) })).reply, ok);
    assert.deepEqual((await member(t, topic, { access_token: token({ app: { team: "blue" } }) })).reply, refusal(topic));
  });

  test("headers of the handshake that start with x- reach the policies, others do not", async (t) => {
    const topic = newTopic("headers");
    await policies(`create policy "headers" on realtime.messages for select to authenticated
      using (realtime.topic() = '${topic}' and current_setting('request.headers')::json ->> 'x-room-key' = 'open'
             and current_setting('request.headers')::json ->> 'user-agent' is null)`);
    const headers = (key) => ({ headers: { "X-Room-Key": key, "user-agent": "conformance" } });
    assert.deepEqual((await member(t, topic, headers("open"))).reply, ok);
    assert.deepEqual((await member(t, topic, headers("shut"))).reply, refusal(topic));
    assert.deepEqual((await member(t, topic)).reply, refusal(topic));
  });

  test("a policy that raises denies this topic and harms no other", async (t) => {
    const topic = newTopic("raising");
    await policies(`create function public.explode() returns boolean language plpgsql as $$ begin raise exception 'boom'; end $$`);
    await policies(`create policy "raising" on realtime.messages for select to authenticated
      using (case when realtime.topic() = '${topic}' then public.explode() else false end)`);
    assert.deepEqual((await member(t, topic)).reply, refusal(topic));
    const other = newTopic("calm");
    await allow(server, other, ALL);
    assert.deepEqual((await member(t, other)).reply, ok);
  });

  test("a policy that raises when it is asked about writing: nothing is sent or answered, and the next push asks again", async (t) => {
    const topic = newTopic("raising-write");
    await allow(server, topic, ["read broadcast", "read presence"]);
    await policies(`create table public.fuse_${topic.replaceAll("-", "_")} (intact boolean)`);
    const fuse = `public.fuse_${topic.replaceAll("-", "_")}`;
    await policies(`grant select on ${fuse} to authenticated; insert into ${fuse} values (false)`);
    await policies(`create policy "fuse" on realtime.messages for insert to authenticated
      with check (case when realtime.topic() = '${topic}' then (select 1 / intact::int > 0 from ${fuse}) else false end)`);
    const sender = await member(t, topic, { config: { broadcast: { ack: true, self: true } } });
    sender.say("2", "unevaluated");
    sender.track("3");
    assert.deepEqual(await sender.raw.next(), ["1", "3", sender.name, "phx_reply", { status: "error", response: {} }]);
    assert.deepEqual(await sender.decided(), []);
    await policies(`update ${fuse} set intact = true`);
    sender.say("4", "evaluated");
    // One more push may be spent on the old answer.
    sender.say("5", "evaluated");
    const [self] = (await sender.raw.readUntil(([, ref]) => ref === "5")).slice(-2);
    assert.deepEqual(self, broadcast(sender.name, "evaluated"));
  });

  test("what was denied is denied until the token changes", async (t) => {
    const topic = newTopic("cached");
    const sub = randomUUID();
    await allow(server, topic, ["read broadcast"], sub);
    const watcher = await member(t, topic, { access_token: server.info.service_key });
    const one = await member(t, topic, { access_token: token({ sub }), config: { broadcast: { ack: true } } });
    one.say("2", "denied");
    assert.deepEqual(await one.decided(), []);
    await allow(server, topic, ["write broadcast"], sub);
    one.say("3", "still denied");
    assert.deepEqual(await one.decided(), []);
    one.refresh(token({ sub, n: 1 }));
    one.say("4", "allowed");
    assert.deepEqual(await one.raw.next(), ["1", "4", one.name, "phx_reply", { status: "ok", response: {} }]);
    assert.deepEqual(await watcher.raw.next(), broadcast(one.name, "allowed"));
  });

  test("what was allowed is allowed until the token changes", async (t) => {
    const topic = newTopic("kept");
    const sub = randomUUID();
    await allow(server, topic, ["read broadcast", "write broadcast"], sub);
    const watcher = await member(t, topic, { access_token: server.info.service_key });
    const one = await member(t, topic, { access_token: token({ sub }) });
    one.say("2", "allowed");
    assert.deepEqual(await watcher.raw.next(), broadcast(one.name, "allowed"));
    await forbid(server, topic, sub);
    one.say("3", "still allowed");
    assert.deepEqual(await watcher.raw.next(), broadcast(one.name, "still allowed"));
    watcher.say("2", "still heard");
    assert.deepEqual(await one.raw.next(), broadcast(one.name, "still heard"));
    one.refresh(token({ sub, n: 1 }));
    for (const frame of shutDown(one.name, DENIED(topic))) assert.deepEqual(await one.raw.next(), frame);
    watcher.say("3", "into the void");
    assert.deepEqual(await one.raw.settled(), []);
  });

  test("a probe leaves nothing behind", async (t) => {
    const topic = newTopic("traceless");
    await allow(server, topic, ALL);
    const one = await member(t, topic, { config: { broadcast: { ack: true }, presence: { enabled: true } } });
    one.say("2", "x");
    await one.raw.readUntil(([, ref]) => ref === "2");
    const { rows } = await server.sql("select count(*)::int as count from realtime.messages where topic = $1", [topic]);
    assert.deepEqual(rows, [{ count: 0 }]);
  });
});

describe("what may be heard and said", { concurrency: true }, () => {
  test("writing is allowed or not for text and kind 3 alike, with and without acknowledgement", async (t) => {
    const topic = newTopic("matrix");
    const [writer, reader] = [randomUUID(), randomUUID()];
    await allow(server, topic, ALL, writer);
    await allow(server, topic, ["read broadcast"], reader);
    for (const ack of [false, true]) {
      const watcher = await member(t, topic, { access_token: server.info.service_key });
      const config = { broadcast: { ack } };
      const [may, mayNot] = [
        await member(t, topic, { config, access_token: token({ sub: writer }) }),
        await member(t, topic, { config, access_token: token({ sub: reader }) }),
      ];
      const kind3 = (ref, payload) => broadcastPush({ joinRef: "1", ref, topic: may.name, event: "k3", encoding: 1, payload });
      mayNot.say("2", "denied");
      mayNot.raw.send(kind3("3", "{}"));
      assert.deepEqual(await mayNot.decided(), []);
      may.say("2", "text", { n: 1 });
      may.raw.send(kind3("3", '{"n":2}'));
      assert.deepEqual(await watcher.raw.next(), broadcast(may.name, "text", { n: 1 }));
      assert.deepEqual(readable(await watcher.raw.next()), { kind: 4, topic: may.name, event: "k3", metadata: "", encoding: 1, payload: '{"n":2}' });
      const reply = (ref) => ["1", ref, may.name, "phx_reply", { status: "ok", response: {} }];
      assert.deepEqual(await may.raw.settled(), ack ? [reply("2"), reply("3")] : []);
      await watcher.raw.close();
    }
  });

  test("what is sent together with a join comes after it, in order", async (t) => {
    const topic = newTopic("eager");
    await allow(server, topic, ALL);
    const raw = closing(t)(await RawSocket.open(server.info));
    const name = `realtime:${topic}`;
    const events = Array.from({ length: 40 }, (_, n) => `e${n}`);
    raw.sendTogether(
      ["1", "1", name, "phx_join", { config: { private: true, broadcast: { self: true, ack: true } }, access_token: token() }],
      ...events.map((event, n) => ["1", `${n + 2}`, name, "broadcast", { type: "broadcast", event, payload: {} }]),
    );
    assert.deepEqual(await raw.next(), ["1", "1", name, "phx_reply", ok]);
    for (const [n, event] of events.entries()) {
      assert.deepEqual(await raw.next(), broadcast(name, event));
      assert.deepEqual(await raw.next(), ["1", `${n + 2}`, name, "phx_reply", { status: "ok", response: {} }]);
    }
  });

  test("a leave does not overtake the last broadcast, nor an untrack its track", async (t) => {
    const topic = newTopic("parting");
    await allow(server, topic, ALL);
    const config = { presence: { enabled: true } };
    const listener = await member(t, topic, { config });
    await listener.raw.next(); // its presence_state
    const { raw, name } = await member(t, topic, { config: { presence: { enabled: true, key: "k" } } });
    raw.sendTogether(
      ["1", "2", name, "presence", { type: "presence", event: "track", payload: {} }],
      ["1", "3", name, "presence", { type: "presence", event: "untrack" }],
      ["1", "4", name, "broadcast", { type: "broadcast", event: "bye", payload: {} }],
      ["1", "5", name, "phx_leave", {}],
    );
    const replies = (await raw.readUntil(([, , , event]) => event === "phx_close")).filter(([, , , event]) => event === "phx_reply");
    assert.deepEqual(replies.map(([, ref, , , { status }]) => [ref, status]), [["2", "ok"], ["3", "ok"], ["5", "ok"]]);
    const heard = await listener.raw.readUntil(([, , , event]) => event === "broadcast");
    assert.deepEqual(heard.at(-1), broadcast(name, "bye"));
    const late = await member(t, topic, { config });
    assert.deepEqual(await late.raw.next(), ["1", null, name, "presence_state", {}]);
  });

  test("a burst of a thousand broadcasts right behind the join arrives whole and in order", async (t) => {
    const topic = newTopic("burst");
    await allow(server, topic, ALL);
    const [from, to] = [await member(t, topic), await member(t, topic)];
    const events = Array.from({ length: 1000 }, (_, n) => `${n}`);
    for (const event of events) from.say(event, event);
    const heard = [];
    for (const _ of events) heard.push((await to.raw.next())[4].event);
    assert.deepEqual(heard, events);
  });

  test("a leave sent together with a join comes after it", async (t) => {
    const topic = newTopic("hasty");
    await allow(server, topic, ALL);
    const raw = closing(t)(await RawSocket.open(server.info));
    const name = `realtime:${topic}`;
    raw.sendTogether(["1", "1", name, "phx_join", { config: { private: true }, access_token: token() }], ["1", "2", name, "phx_leave", {}]);
    assert.deepEqual(await raw.next(), ["1", "1", name, "phx_reply", ok]);
    assert.deepEqual(await raw.next(), ["1", "2", name, "phx_reply", { status: "ok", response: {} }]);
    assert.deepEqual(await raw.next(), ["1", "1", name, "phx_close", {}]);
  });

  test("a reader of presence hears no broadcasts, a reader of broadcasts no presence", async (t) => {
    const topic = newTopic("halves");
    const [presence, broadcasts] = [randomUUID(), randomUUID()];
    await allow(server, topic, ["read presence"], presence);
    await allow(server, topic, ["read broadcast"], broadcasts);
    const config = { presence: { enabled: true } };
    const [p, b] = [
      await member(t, topic, { config, access_token: token({ sub: presence }) }),
      await member(t, topic, { config, access_token: token({ sub: broadcasts }) }),
    ];
    assert.deepEqual(await p.raw.next(), ["1", null, p.name, "presence_state", {}]);
    const all = await member(t, topic, { access_token: server.info.service_key, config: { presence: { enabled: true, key: "all" } } });
    all.track("2", { n: 1 });
    const [, , , event, diff] = await p.raw.next();
    assert.equal(event, "presence_diff");
    assert.equal(diff.joins.all.metas[0].n, 1);
    all.say("3", "x");
    assert.deepEqual(await b.raw.next(), broadcast(b.name, "x"));
    assert.deepEqual(await p.raw.settled(), []);
    assert.deepEqual(await b.raw.settled(), []);
  });

  for (const [name, rights, presence, expected] of [
    ["may not write", ["read broadcast", "read presence"], true, { state: true, reply: "error", diff: false }],
    ["may write and read", ALL, true, { state: true, reply: "ok", diff: "message" }],
    ["may write and not read", ["read broadcast", "write presence"], true, { state: false, reply: "ok", diff: false }],
    ["joined without presence and may write and read", ALL, false, { state: false, reply: "ok", diff: "push" }],
    ["joined without presence and may write and not read", ["read broadcast", "write presence"], false, { state: false, reply: "ok", diff: false }],
    ["joined without presence and may read and not write", ["read broadcast", "read presence"], false, { state: false, reply: "error", diff: false }],
  ]) {
    test(`presence of a member who ${name}`, async (t) => {
      const topic = newTopic("track");
      const sub = randomUUID();
      await allow(server, topic, rights, sub);
      const other = await member(t, topic, { access_token: server.info.service_key, config: { presence: { enabled: true, key: "other" } } });
      await other.raw.next(); // its presence_state
      const one = await member(t, topic, { access_token: token({ sub }), config: { presence: { enabled: presence, key: "one" } } });
      if (expected.state) assert.deepEqual(await one.raw.next(), ["1", null, one.name, "presence_state", {}]);
      assert.deepEqual(await one.raw.settled(), []);

      one.track("2", { n: 1 });
      const isOk = expected.reply === "ok";
      const joinRef = expected.diff === "push" ? "1" : null;
      const wanted = isOk && expected.diff ? 2 : 1;
      const frames = [];
      for (let n = 0; n < wanted; n += 1) frames.push(await one.raw.next());
      const reply = frames.find(([, , , event]) => event === "phx_reply");
      assert.deepEqual(reply, ["1", "2", one.name, "phx_reply", { status: expected.reply, response: {} }]);
      const own = frames.find(([, , , event]) => event === "presence_diff");
      if (own) assert.deepEqual([own[0], own[4].joins.one.metas[0].n], [joinRef, 1]);
      if (isOk) assert.equal((await other.raw.next())[4].joins.one.metas[0].n, 1);
      assert.deepEqual(await other.raw.settled(), []);

      other.track("2", { n: 2 });
      await other.raw.readUntil(([, , , event]) => event === "presence_diff");
      if (expected.diff || expected.state) {
        const [ref, , , , diff] = await one.raw.next();
        assert.deepEqual([ref, diff.joins.other.metas[0].n], [joinRef, 2]);
      }
      assert.deepEqual(await settled(other, one), []);
    });
  }

  test("presence of a public and a private room of one name is counted apart", async (t) => {
    const topic = newTopic("apart");
    await allow(server, topic, ALL);
    const config = { presence: { enabled: true, key: "k" } };
    const inside = await member(t, topic, { config });
    const outside = await member(t, topic, { config: { ...config, private: false } });
    inside.track("2", { where: "inside" });
    await inside.raw.readUntil(([, , , event]) => event === "presence_diff");
    assert.deepEqual((await outside.raw.settled()).map(([, , , , payload]) => payload), [{}]);
    const late = await member(t, topic, { config });
    assert.deepEqual((await late.raw.next())[4].k.metas.map(({ where }) => where), ["inside"]);
  });

  test("a private channel has Postgres Changes too, judged by the tables' own policies", async (t) => {
    const topic = newTopic("changes");
    await allow(server, topic, ALL);
    await server.table("beside", "id int primary key");
    const one = await member(t, topic, { config: { postgres_changes: [{ event: "*", schema: "public", table: "beside" }] } });
    assert.equal(one.reply.response.postgres_changes.length, 1);
    await one.raw.live();
    await server.sql("insert into beside values (7)");
    const frames = await one.raw.readUntil(([, , , event]) => event === "postgres_changes");
    assert.deepEqual(frames.at(-1)[4].data.record, { id: 7 });
  });

  test("the HTTP batch sends what the caller may send, and answers 202 for the rest too", async (t) => {
    const [mine, theirs] = [newTopic("batch"), newTopic("batch")];
    await allow(server, mine, ["write broadcast"]);
    const watchers = [];
    for (const topic of [mine, theirs]) {
      watchers.push(await member(t, topic, { access_token: server.info.service_key }));
      watchers.push(await member(t, topic, { config: { private: false } }));
    }
    const message = (topic, event, isPrivate) => ({ topic, event, payload: {}, ...(isPrivate === undefined ? {} : { private: isPrivate }) });
    const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast`, {
      method: "POST",
      headers: { "content-type": "application/json", apikey: server.info.anon_key, authorization: `Bearer ${token()}` },
      body: JSON.stringify({
        messages: [message(mine, "1", true), message(theirs, "2", true), message(mine, "3", "true"), message(theirs, "4", false), message(mine, "5")],
      }),
    });
    assert.deepEqual([answer.status, await answer.text()], [202, ""]);
    const heard = [];
    for (const { raw } of watchers) heard.push((await raw.settled()).map(([, , , , { event }]) => event));
    assert.deepEqual(heard, [["1", "3"], ["5"], [], ["4"]]);
  });

  test("policies see every header of an HTTP broadcast", async (t) => {
    const topic = newTopic("http-headers");
    await server.sql(`create policy "http headers" on realtime.messages for insert to authenticated
      with check (realtime.topic() = '${topic}' and current_setting('request.headers')::json ->> 'referer' = 'https://good.example/')`);
    const watcher = await member(t, topic, { access_token: server.info.service_key });
    for (const referer of ["https://bad.example/", "https://good.example/"]) {
      await fetch(`${server.info.url}/realtime/v1/api/broadcast`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${token()}`, referer },
        body: JSON.stringify({ messages: [{ topic, event: referer, payload: {}, private: true }] }),
      });
    }
    assert.deepEqual((await watcher.raw.settled()).map(([, , , , { event }]) => event), ["https://good.example/"]);
  });
});

describe("many", () => {
  test("sixty joins at once on six sockets, every third of a stranger, are each answered rightly", async (t) => {
    const topics = Array.from({ length: 60 }, () => newTopic("crowd"));
    for (const [n, topic] of topics.entries()) if (n % 3) await allow(server, topic, ALL);
    const sockets = await Promise.all(Array.from({ length: 6 }, async () => closing(t)(await RawSocket.open(server.info))));
    for (const [n, topic] of topics.entries()) {
      sockets[n % 6].send([`${n}`, `${n}`, `realtime:${topic}`, "phx_join", { config: { private: true, presence: { enabled: n % 2 === 0 } }, access_token: token() }]);
    }
    for (const [at, socket] of sockets.entries()) {
      const mine = topics.map((topic, n) => [topic, n]).filter(([, n]) => n % 6 === at);
      const replies = new Map();
      while (replies.size < mine.length) {
        const [joinRef, , name, event, payload] = await socket.next();
        if (event === "phx_reply") replies.set(name, [joinRef, payload]);
      }
      for (const [topic, n] of mine) {
        assert.deepEqual(replies.get(`realtime:${topic}`), [`${n}`, n % 3 ? ok : refusal(topic)]);
      }
    }
  });

  test("sockets that go away in the middle of a join harm nobody", async (t) => {
    const topic = newTopic("gone");
    await allow(server, topic, ALL);
    for (let n = 0; n < 20; n += 1) {
      const raw = await RawSocket.open(server.info);
      raw.send(["1", "1", `realtime:${topic}`, "phx_join", { config: { private: true, presence: { enabled: true } }, access_token: token() }]);
      raw.send(["1", "2", `realtime:${topic}`, "presence", { type: "presence", event: "track", payload: { n } }]);
      raw.ws.terminate();
    }
    const one = await member(t, topic, { config: { presence: { enabled: true, key: "one" } } });
    assert.deepEqual(one.reply, ok);
    one.track("2");
    const frames = await one.raw.readUntil(([, , , event, payload]) => event === "presence_diff" && payload.joins.one);
    const state = frames.find(([, , , event]) => event === "presence_state");
    assert.ok(state, "a state came");
  });
});
