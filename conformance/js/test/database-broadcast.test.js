// Broadcast from the database. Spec: PROTOCOL.md §3.3, §3.7, §3.9, Q23, Q24.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";

import { openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { allow, newTopic, preparePolicies, userToken } from "../support/policies.js";
import { RawSocket, readable } from "../support/raw.js";
import { until } from "../support/server.js";

const server = withServer({ prepare: preparePolicies, env: { TIDEWIRE__TIMERS__CHANNEL_ERROR_BACKOFF_MS: "50" } });

/** A member by raw frames; the service role unless a token says otherwise, so that policies do not matter. */
async function listener(t, topic, { vsn, config = {}, access_token = server.info.service_key } = {}) {
  const raw = closing(t)(await RawSocket.open(server.info, { vsn }));
  const name = `realtime:${topic}`;
  const payload = { config: { private: true, ...config }, access_token };
  raw.send(vsn === "1.0.0" ? { topic: name, event: "phx_join", payload, ref: "1", join_ref: "1" } : ["1", "1", name, "phx_join", payload]);
  const frame = await raw.next();
  assert.equal((frame.payload ?? frame[4]).status, "ok", JSON.stringify(frame));
  return {
    raw,
    name,
    /** Everything up to the sign that the stream has passed this point. */
    async heard() {
      const mark = `mark-${randomUUID()}`;
      await server.sql("insert into realtime.messages (topic, extension, event, payload, private) values ($1, 'broadcast', $2, '{}', $3)", [topic, mark, payload.config.private]);
      const eventOf = (frame) => (Buffer.isBuffer(frame) ? readable(frame).event : (frame.payload ?? frame[4]).event);
      const seen = await raw.readUntil((frame) => eventOf(frame) === mark);
      return seen.filter((frame) => !eventOf(frame)?.startsWith("mark-")); // other members' signs neither
    },
  };
}

/** Id and payload text of the rows of a topic, in the order they were written. */
const rows = async (topic) =>
  (await server.sql("select id, event, payload::text, private, extension from realtime.messages where topic = $1 and event not like 'mark-%' order by inserted_at", [topic])).rows;

const delivery = (name, event, id, payload, encoding = 1) => ({ kind: 4, topic: name, event, metadata: `{"id":"${id}"}`, encoding, payload });
const toVersion1 = (name, event, id, payload) => ({ topic: name, event: "broadcast", payload: { event, payload, type: "broadcast", meta: { id } }, ref: null });

/** Runs statements on a connection of their own; returns the warnings. */
async function onConnection(...statements) {
  const connection = await server.connect();
  const warnings = [];
  connection.on("notice", ({ severity, message }) => warnings.push([severity, message]));
  try {
    for (const [text, values] of statements.map((entry) => [entry].flat())) await connection.query(text, Array.isArray(values) ? values : undefined);
  } finally {
    await connection.end();
  }
  return warnings;
}

for (const variant of variants) {
  describe(variant.name, { concurrency: true }, () => {
    test("what the database sends reaches the members with the id of its row", async (t) => {
      const topic = newTopic("client");
      const member = randomUUID();
      await allow(server, topic, ["read broadcast"], member);
      const client = closing(t)(openClient(variant, server.info, { token: userToken(server, { sub: member }) }));
      await client.client.realtime.setAuth();
      const channel = client.channel(topic, { config: { private: true } });
      const heard = new Inbox(`broadcasts on ${topic}`);
      channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
      await subscribe(channel);
      await server.sql("select realtime.send(jsonb_build_object('n', 1, 'text', 'ü'), 'said', $1)", [topic]);
      await server.sql("select realtime.send_binary('\\xdead00'::bytea, 'bytes', $1)", [topic]);
      await server.sql("select realtime.send('{\"id\": \"mine\"}', 'last', $1, true)", [topic]);
      await heard.first(({ event }) => event === "last");
      const [said, bytes, last] = await rows(topic);
      const expected = [
        { type: "broadcast", event: "said", payload: { id: said.id, n: 1, text: "ü" }, meta: { id: said.id } },
        ...(variant.hasBinary ? [{ type: "broadcast", event: "bytes", payload: [0xde, 0xad, 0], meta: { id: bytes.id } }] : []),
        { type: "broadcast", event: "last", payload: { id: "mine" }, meta: { id: last.id } },
      ];
      const plain = ({ payload, ...message }) => ({ ...message, payload: payload instanceof ArrayBuffer ? [...new Uint8Array(payload)] : payload });
      assert.deepEqual(heard.all.map(plain), expected);
    });

    test("a trigger tells a room about its rows", async (t) => {
      const table = `games_${variants.indexOf(variant)}`;
      await server.sql(`create table public.${table} (id int primary key, title text)`);
      await server.sql(`
        create function public.tell_${table}() returns trigger language plpgsql security definer as $$
        begin
          perform realtime.broadcast_changes('${table}:' || coalesce(new.id, old.id)::text, tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
          return null;
        end $$;
        create trigger tell after insert or update or delete on public.${table} for each row execute function public.tell_${table}()`);
      const client = closing(t)(openClient(variant, server.info, { token: server.info.service_key }));
      await client.client.realtime.setAuth();
      const channel = client.channel(`${table}:7`, { config: { private: true } });
      const heard = new Inbox(`changes of ${table}`);
      for (const event of ["INSERT", "UPDATE", "DELETE"]) channel.on("broadcast", { event }, (message) => heard.push(message));
      await subscribe(channel);
      await server.sql(`insert into ${table} values (7, 'chess'), (8, 'go')`);
      await server.sql(`update ${table} set title = 'Chess' where id = 7`);
      await server.sql(`delete from ${table}`);
      const told = await heard.some(3);
      const written = await rows(`${table}:7`);
      const change = (operation, record, old_record, { id }) => ({
        type: "broadcast",
        event: operation,
        payload: { id, schema: "public", table, operation, record, old_record },
        meta: { id },
      });
      assert.deepEqual(told, [
        change("INSERT", { id: 7, title: "chess" }, null, written[0]),
        change("UPDATE", { id: 7, title: "Chess" }, { id: 7, title: "chess" }, written[1]),
        change("DELETE", null, { id: 7, title: "Chess" }, written[2]),
      ]);
      assert.deepEqual(written.map((row) => [row.private, row.extension]), Array(3).fill([true, "broadcast"]));
    });
  });
}

describe("frames (§3.3)", { concurrency: true }, () => {
  test("JSON is kind 4 with the text that Postgres prints, and an object in version 1", async (t) => {
    const topic = newTopic("json");
    const [two, one] = [await listener(t, topic), await listener(t, topic, { vsn: "1.0.0" })];
    await server.sql("select realtime.send('{\"b\":[1,2.50,null],\"a\":\"\\u00fc \\\\ \\\"\"}', 'e', $1)", [topic]);
    const [row] = await rows(topic);
    assert.equal(row.payload, `{"a": "ü \\\\ \\"", "b": [1, 2.50, null], "id": "${row.id}"}`);
    assert.deepEqual(readable(await two.raw.next()), delivery(two.name, "e", row.id, row.payload));
    assert.deepEqual(await one.raw.next(), toVersion1(one.name, "e", row.id, JSON.parse(row.payload)));
  });

  test("an id in the payload wins, whatever it is; the metadata has the row's", async (t) => {
    const topic = newTopic("ids");
    const two = await listener(t, topic);
    const payloads = ['{"id": 7}', '{"id": null}', '{"id": "x", "a": {"id": 1}}'];
    for (const payload of payloads) await server.sql("select realtime.send($1::jsonb, 'e', $2)", [payload, topic]);
    const frames = (await two.heard()).map(readable);
    const written = await rows(topic);
    assert.deepEqual(frames, written.map(({ id }) => delivery(two.name, "e", id, "")).map((frame, n) => ({ ...frame, payload: written[n].payload })));
    assert.deepEqual(frames.map(({ payload }) => JSON.parse(payload)), payloads.map((payload) => JSON.parse(payload)));
  });

  test("bytes are kind 4 with encoding 0 and nothing in version 1, empty ones too", async (t) => {
    const topic = newTopic("bytes");
    const [two, one] = [await listener(t, topic), await listener(t, topic, { vsn: "1.0.0" })];
    await server.sql("select realtime.send_binary('\\x00ff7b'::bytea, 'some', $1), realtime.send_binary(''::bytea, 'none', $1)", [topic]);
    const frames = (await two.heard()).map(readable);
    const written = Object.fromEntries((await rows(topic)).map(({ event, id }) => [event, id]));
    assert.deepEqual(frames, [delivery(two.name, "some", written.some, [0, 255, 0x7b], 0), delivery(two.name, "none", written.none, [], 0)]);
    assert.deepEqual(await one.heard(), []);
  });

  test("the fourth argument says whether it is private, which it is without", async (t) => {
    const topic = newTopic("private");
    const [inside, outside] = [await listener(t, topic), await listener(t, topic, { config: { private: false } })];
    await server.sql("select realtime.send('{}', 'default', $1), realtime.send('{}', 'public', $1, false), realtime.send('{}', 'private', $1, true)", [topic]);
    await server.sql("select realtime.send_binary('x', 'bytes', $1), realtime.send_binary('x', 'public bytes', $1, false)", [topic]);
    const events = async (member) => (await member.heard()).map((frame) => readable(frame).event);
    assert.deepEqual(await events(inside), ["default", "private", "bytes"]);
    assert.deepEqual(await events(outside), ["public", "public bytes"]);
  });

  test("who may not read broadcasts hears none of the database's", async (t) => {
    const topic = newTopic("deaf");
    const member = randomUUID();
    await allow(server, topic, ["read presence"], member);
    const deaf = await listener(t, topic, { access_token: userToken(server, { sub: member }), config: { presence: { enabled: true } } });
    const hearing = await listener(t, topic);
    await server.sql("select realtime.send('{}', 'e', $1)", [topic]);
    assert.equal((await hearing.heard()).length, 1);
    assert.deepEqual(await deaf.raw.settled(), [["1", null, deaf.name, "presence_state", {}]]);
  });
});

describe("rows", { concurrency: true }, () => {
  const insert = (topic, columns) => {
    const all = { topic, extension: "broadcast", event: "e", payload: "{}", private: true, ...columns };
    const names = Object.keys(all);
    return server.sql(
      `insert into realtime.messages (${names.join(", ")}) values (${names.map((_, n) => `$${n + 1}`).join(", ")}) returning id`,
      Object.values(all),
    );
  };

  test("every insert is a broadcast, whatever its extension; updates and deletes are none", async (t) => {
    const topic = newTopic("raw");
    const member = await listener(t, topic);
    const ids = [];
    for (const extension of ["broadcast", "presence", "postgres_changes", ""]) {
      ids.push((await insert(topic, { extension, event: `of ${extension}`, payload: '{"n": 1}' })).rows[0].id);
    }
    await server.sql("update realtime.messages set event = 'changed' where topic = $1", [topic]);
    await server.sql("delete from realtime.messages where topic = $1", [topic]);
    const frames = (await member.heard()).map(readable);
    assert.deepEqual(frames, ["broadcast", "presence", "postgres_changes", ""].map((extension, n) => delivery(member.name, `of ${extension}`, ids[n], '{"n": 1}')));
  });

  test("a payload that is not an object is sent as it is", async (t) => {
    const topic = newTopic("scalar");
    const [two, one] = [await listener(t, topic), await listener(t, topic, { vsn: "1.0.0" })];
    const payloads = ["[1, 2]", '"text"', "7", "null"];
    for (const payload of payloads) await insert(topic, { payload });
    assert.deepEqual((await two.heard()).map((frame) => readable(frame).payload), payloads);
    assert.deepEqual((await one.heard()).map((frame) => frame.payload.payload), payloads.map((payload) => JSON.parse(payload)));
  });

  test("rows that lack something are dropped and reported, and those around them are not", async (t) => {
    const topic = newTopic("lacking");
    const member = await listener(t, topic);
    await insert(topic, { event: "before" });
    await insert(topic, { event: null });
    await insert(topic, { payload: null });
    await insert(topic, { private: null });
    await insert(topic, { event: "after" });
    assert.deepEqual((await member.heard()).map((frame) => readable(frame).event), ["before", "after"]);
    for (const problem of ["event_missing", "payload_missing", "private_missing"]) {
      await until(() => server.log.includes(problem));
    }
    assert.match(server.log, /UnableToBroadcastChanges/);
  });

  test("a payload above the limit is dropped, one below it arrives", async (t) => {
    const topic = newTopic("large");
    const member = await listener(t, topic);
    await server.sql("select realtime.send_binary(convert_to(repeat('x', 3100000), 'UTF8'), 'too large', $1)", [topic]);
    await server.sql("select realtime.send_binary(convert_to(repeat('x', 2900000), 'UTF8'), 'large', $1)", [topic]);
    const frames = await member.heard();
    assert.deepEqual(frames.map((frame) => [readable(frame).event, readable(frame).payload.length]), [["large", 2_900_000]]);
  });

  test("a row of another day's partition arrives too", async (t) => {
    const topic = newTopic("tomorrow");
    const member = await listener(t, topic);
    await insert(topic, { event: "tomorrow", inserted_at: new Date(Date.now() + 86_400_000).toISOString().slice(0, 19) });
    assert.deepEqual((await member.heard()).map((frame) => readable(frame).event), ["tomorrow"]);
  });

  test("the name of a topic is taken as it is", async (t) => {
    const topic = `${newTopic("odd")}:it's "100%" \\ 🌊`;
    const member = await listener(t, topic);
    await server.sql("select realtime.send('{}', $2, $1)", [topic, 'e "quoted" ü']);
    assert.deepEqual((await member.heard()).map((frame) => readable(frame).event), ['e "quoted" ü']);
  });
});

describe("transactions", { concurrency: true }, () => {
  test("a transaction that is rolled back sends nothing, nor does a savepoint that is", async (t) => {
    const topic = newTopic("undone");
    const member = await listener(t, topic);
    const say = (event) => ["select realtime.send('{}', $2, $1)", [topic, event]];
    await onConnection("begin", say("never"), "rollback");
    await onConnection("begin", say("first"), "savepoint s", say("never"), "rollback to s", say("second"), "commit");
    await assert.rejects(onConnection("begin", say("never"), "select 1 / 0"));
    assert.deepEqual((await member.heard()).map((frame) => readable(frame).event), ["first", "second"]);
  });

  test("nothing is sent before the commit", async (t) => {
    const topic = newTopic("patient");
    const member = await listener(t, topic);
    const connection = await server.connect();
    await connection.query("begin");
    await connection.query("select realtime.send('{}', 'late', $1)", [topic]);
    assert.deepEqual(await member.heard(), []);
    await connection.query("commit");
    await connection.end();
    assert.deepEqual((await member.heard()).map((frame) => readable(frame).event), ["late"]);
  });

  test("two hundred messages of one transaction arrive in their order", async (t) => {
    const topic = newTopic("many");
    const [two, one] = [await listener(t, topic), await listener(t, topic, { vsn: "1.0.0" })];
    await server.sql("select realtime.send(jsonb_build_object('n', n), 'n', $1) from generate_series(1, 200) n order by n", [topic]);
    const expected = Array.from({ length: 200 }, (_, n) => n + 1);
    assert.deepEqual((await two.heard()).map((frame) => JSON.parse(readable(frame).payload).n), expected);
    assert.deepEqual((await one.heard()).map(({ payload }) => payload.payload.n), expected);
  });

  test("a transaction large enough to be streamed arrives whole and in order", async (t) => {
    const topic = newTopic("streamed");
    const member = await listener(t, topic);
    await server.sql("select realtime.send(jsonb_build_object('n', n, 'fill', repeat('x', 2000)), 'n', $1) from generate_series(1, 5000) n", [topic]);
    const numbers = (await member.heard()).map((frame) => JSON.parse(readable(frame).payload).n);
    assert.deepEqual(numbers, Array.from({ length: 5000 }, (_, n) => n + 1));
  });

  test("connections that send at once: each one's order is kept and nothing is lost or doubled", async (t) => {
    const topic = newTopic("together");
    const member = await listener(t, topic);
    await Promise.all(
      [0, 1, 2, 3].map(async (who) => {
        const connection = await server.connect();
        for (let n = 0; n < 100; n += 1) await connection.query("select realtime.send(jsonb_build_object('who', $2::int, 'n', $3::int), 'e', $1)", [topic, who, n]);
        await connection.end();
      }),
    );
    const told = (await member.heard()).map((frame) => JSON.parse(readable(frame).payload));
    assert.equal(told.length, 400);
    for (const who of [0, 1, 2, 3]) {
      assert.deepEqual(told.filter((message) => message.who === who).map(({ n }) => n), Array.from({ length: 100 }, (_, n) => n));
    }
  });

  test("realtime.topic() is the topic for the rest of the transaction", async () => {
    const connection = await server.connect();
    await connection.query("begin");
    await connection.query("select realtime.send('{}', 'e', 'some topic')");
    assert.deepEqual((await connection.query("select realtime.topic() as topic")).rows, [{ topic: "some topic" }]);
    await connection.query("commit");
    assert.deepEqual((await connection.query("select realtime.topic() as topic")).rows, [{ topic: null }]);
    await connection.end();
  });
});

describe("errors", { concurrency: true }, () => {
  for (const [name, call] of [
    ["no topic", "realtime.send('{}', 'e', null)"],
    ["a payload that cannot take an id", "realtime.send('[1]', 'e', 'errors')"],
    ["bytes without a topic", "realtime.send_binary('x', 'e', null)"],
  ]) {
    test(`${name}: a warning, and the transaction goes on`, async () => {
      const table = newTopic("survived").replace("-", "_");
      const warnings = await onConnection("begin", `create table public.${table} ()`, `select ${call}`, "commit");
      assert.equal(warnings.length, 1, JSON.stringify(warnings));
      assert.equal(warnings[0][0], "WARNING");
      assert.match(warnings[0][1], /^WarnSendingBroadcastMessage: ./);
      assert.equal((await server.sql("select to_regclass($1) is not null as there", [`public.${table}`])).rows[0].there, true);
    });
  }

  test("the caller's own rights count: without a policy a warning, with one a message", async (t) => {
    const [open, shut] = [newTopic("invoker"), newTopic("invoker")];
    await allow(server, open, ["write broadcast"]);
    const members = [await listener(t, open), await listener(t, shut)];
    const claims = `set local request.jwt.claims = '${JSON.stringify({ sub: randomUUID(), role: "authenticated" })}'`;
    const asUser = (topic) => ["begin", "set local role authenticated", claims, ["select realtime.send('{}', 'e', $1)", [topic]], "commit"];
    assert.deepEqual(await onConnection(...asUser(open)), []);
    const [[severity, message]] = await onConnection(...asUser(shut));
    assert.equal(severity, "WARNING");
    assert.match(message, /^WarnSendingBroadcastMessage: new row violates row-level security policy/);
    const heard = [];
    for (const member of members) heard.push((await member.heard()).map((frame) => readable(frame).event));
    assert.deepEqual(heard, [["e"], []]);
  });

  for (const [name, call, message] of [
    ["for each statement", "realtime.broadcast_changes('t', 'e', 'INSERT', 't', 'public', null, null, 'STATEMENT')", /^Failed to process the row: .*each row/],
    ["for another operation", "realtime.broadcast_changes('t', 'e', 'TRUNCATE', 't', 'public', null, null)", /^Failed to process the row: Unexpected operation type: TRUNCATE/],
  ]) {
    test(`broadcast_changes ${name} is an error`, async () => {
      await assert.rejects(server.sql(`select ${call}`), ({ message: text }) => message.test(text));
    });
  }
});

describe("replication_ready (§3.7)", { concurrency: true }, () => {
  const ready = { extension: "system", status: "ok", message: "Replication connection established" };

  test("the message follows the reply, and what is sent after it is heard", async (t) => {
    const topic = newTopic("ready");
    const member = await listener(t, topic, { config: { broadcast: { replication_ready: true } } });
    assert.deepEqual(await member.raw.next(), ["1", null, member.name, "system", { ...ready, channel: topic }]);
    await server.sql("select realtime.send('{}', 'e', $1)", [topic]);
    assert.equal((await member.heard()).length, 1);
  });

  for (const [value, isAsked] of [[1, true], ["no", true], [{}, true], [false, false], [null, false]]) {
    test(`${JSON.stringify(value)} ${isAsked ? "asks" : "does not ask"} for it, public channels too`, async (t) => {
      const topic = newTopic("truthy");
      const member = await listener(t, topic, { config: { private: false, broadcast: { replication_ready: value } } });
      if (isAsked) assert.deepEqual((await member.raw.next())[4], { ...ready, channel: topic });
      assert.deepEqual(await member.raw.settled(), []);
    });
  }

  test("version 1 gets it as an object", async (t) => {
    const topic = newTopic("ready");
    const member = await listener(t, topic, { vsn: "1.0.0", config: { broadcast: { replication_ready: true } } });
    assert.deepEqual(await member.raw.next(), { topic: member.name, event: "system", payload: { ...ready, channel: topic }, ref: null });
  });

  test("supabase-js hears it as a system message", async (t) => {
    const client = closing(t)(openClient(variants[0], server.info));
    const channel = client.channel(newTopic("ready"), { config: { broadcast: { replication_ready: true } } });
    const system = new Inbox("system");
    channel.on("system", {}, (message) => system.push(message));
    await subscribe(channel);
    await system.first(({ message, status }) => message === ready.message && status === "ok");
  });
});
