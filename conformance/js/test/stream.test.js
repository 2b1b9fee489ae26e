// The change stream under tables and transactions as people make them. Spec: PROTOCOL.md §5.2, §5.5–5.8, §5.11.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { RawSocket } from "../support/raw.js";
import { until } from "../support/server.js";

const server = withServer();
const variant = variants[0];

let names = 0;
const fresh = (word) => `${word}_${(names += 1)}`;
const ids = ({ all }) => all.map(({ new: row }) => row.id);

async function listen(t, bindings, { token } = {}) {
  const client = closing(t)(openClient(variant, server.info));
  if (token) await client.client.realtime.setAuth(token);
  const listening = changesOn(client.channel(fresh("stream")), bindings);
  await listening.live();
  return listening;
}
const everything = (table) => [{ event: "*", schema: "public", table }];

describe("transactions", () => {
  test("two that overlap arrive whole, in the order of their commits", async (t) => {
    const table = fresh("overlap");
    await server.table(table, "id int primary key");
    const { changes } = await listen(t, everything(table));
    const [one, two] = [await server.connect(), await server.connect()];
    await one.query("begin");
    await one.query(`insert into ${table} values (1)`);
    await two.query("begin");
    await two.query(`insert into ${table} values (10)`);
    await one.query(`insert into ${table} values (2)`);
    await two.query(`insert into ${table} values (11)`);
    await two.query("commit");
    await one.query("commit");
    await changes.some(4);
    assert.deepEqual(ids(changes), [10, 11, 1, 2]);
    const [ten, , first] = changes.all;
    assert.ok(Date.parse(ten.commit_timestamp) <= Date.parse(first.commit_timestamp));
  });

  test("fifty thousand rows arrive whole and in order, and the socket answers meanwhile", async (t) => {
    const table = fresh("large");
    await server.table(table, "id int primary key, word text");
    const { changes } = await listen(t, everything(table));
    const other = closing(t)(await RawSocket.open(server.info));
    const writing = server.sql(`insert into ${table} select n, repeat('x', 100) from generate_series(1, 50000) n`);
    let answers = 0;
    let isDone = false;
    const all = changes.some(50_000, () => true, { within: 60_000 }).finally(() => (isDone = true));
    while (!isDone) {
      await other.settled();
      answers += 1;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await Promise.all([writing, all]);
    assert.ok(answers > 3);
    assert.ok(changes.all.every(({ new: row }, n) => row.id === n + 1), "in order, each once");
  });

  test("one that grows beyond the decoding memory and is rolled back leaves no trace", async (t) => {
    const table = fresh("spilled");
    await server.table(table, "id int primary key, word text");
    const { changes } = await listen(t, everything(table));
    await server.sql(`begin; insert into ${table} select n, repeat(md5(n::text), 100) from generate_series(1, 30000) n; rollback`);
    await server.sql(`insert into ${table} values (0, 'after')`);
    await changes.some(1);
    assert.deepEqual(ids(changes), [0]);
  });

  test("concurrent writers: every row once, each writer's in order", async (t) => {
    const table = fresh("writers");
    await server.table(table, "id int generated always as identity primary key, who int, n int");
    const { changes } = await listen(t, everything(table));
    const writers = await Promise.all(Array.from({ length: 8 }, () => server.connect()));
    await Promise.all(
      writers.map(async (writer, who) => {
        for (let n = 0; n < 50; n += 1) await writer.query(`insert into ${table} (who, n) values (${who}, ${n})`);
      }),
    );
    await changes.some(400, () => true, { within: 20_000 });
    for (let who = 0; who < 8; who += 1) {
      assert.deepEqual(changes.all.filter(({ new: row }) => row.who === who).map(({ new: row }) => row.n), Array.from({ length: 50 }, (_, n) => n));
    }
  });

  test("a row written and deleted in one transaction, under row-level security, shows its delete only", async (t) => {
    const table = fresh("short_lived");
    await server.table(table, "id int primary key", { rls: true });
    await server.sql(`create policy everybody on ${table} for select using (true)`);
    const { changes } = await listen(t, everything(table));
    await server.sql(`begin; insert into ${table} values (1); delete from ${table}; commit`);
    await server.sql(`insert into ${table} values (2)`);
    await changes.first(({ new: row }) => row.id === 2);
    const kinds = changes.all.map(({ eventType }) => eventType);
    assert.deepEqual(kinds.filter((kind) => kind === "DELETE"), ["DELETE"]);
    assert.equal(kinds.at(-1), "INSERT");
  });
});

describe("tables that change", () => {
  test("a column is renamed, retyped, dropped", async (t) => {
    const table = fresh("altered");
    await server.table(table, "id int primary key, a text, b int");
    const { changes } = await listen(t, everything(table));
    // Columns are those of the table as it is when the row is read (§5.6), so each row is awaited before the next step.
    const steps = [
      [`insert into ${table} values (1, 'x', 1)`],
      [`alter table ${table} rename column a to c`, `insert into ${table} values (2, 'x', 2)`],
      [`alter table ${table} alter column b type text`, `insert into ${table} values (3, 'x', '3')`],
      [`alter table ${table} drop column c`, `insert into ${table} values (4, '4')`],
    ];
    for (const [step, statements] of steps.entries()) {
      for (const statement of statements) await server.sql(statement);
      await changes.some(step + 1);
    }
    assert.deepEqual(changes.all.map(({ new: row }) => row), [
      { id: 1, a: "x", b: 1 },
      { id: 2, c: "x", b: 2 },
      { id: 3, c: "x", b: "3" },
      { id: 4, b: "4" },
    ]);
  });

  test("a table published later is heard by a binding on its schema", async (t) => {
    const [known, later] = [fresh("known"), fresh("later")];
    await server.table(known, "id int primary key");
    const { changes } = await listen(t, [{ event: "INSERT", schema: "public" }]);
    await server.table(later, "id int primary key");
    await server.sql(`insert into ${later} values (1)`);
    await changes.first(({ table }) => table === later);
  });

  test("the rows of a partitioned table arrive", async (t) => {
    const table = fresh("parts");
    await server.sql(`create table ${table} (id int, day date, primary key (id, day)) partition by range (day)`);
    await server.sql(`create table ${table}_a partition of ${table} for values from ('2026-01-01') to ('2026-07-01')`);
    await server.sql(`create table ${table}_b partition of ${table} for values from ('2026-07-01') to ('2027-01-01')`);
    await server.sql(`grant select on ${table}, ${table}_a, ${table}_b to anon`);
    await server.sql(`alter publication supabase_realtime add table ${table}`);
    // Without publish_via_partition_root the publication lists the partitions (pg_publication_tables).
    const { changes } = await listen(t, everything(`${table}_a`));
    await server.sql(`insert into ${table} values (1, '2026-03-01'), (2, '2026-08-01'), (3, '2026-04-01')`);
    await changes.some(2);
    assert.deepEqual(changes.all.map(({ table: from, new: row }) => [from, row.id]), [[`${table}_a`, 1], [`${table}_a`, 3]]);
  });

  test("replica identity by an index shows the index's columns", async (t) => {
    const table = fresh("by_index");
    await server.table(table, "id int primary key, code text not null unique, n int");
    await server.sql(`alter table ${table} replica identity using index ${table}_code_key`);
    const { changes } = await listen(t, everything(table));
    await server.sql(`insert into ${table} values (1, 'a', 1)`);
    await server.sql(`update ${table} set n = 2`);
    await server.sql(`delete from ${table}`);
    const [, updated, deleted] = await changes.some(3);
    assert.deepEqual(updated.old, { code: "a" });
    assert.deepEqual(deleted.old, { code: "a" });
  });

  test("an update of the key shows the old key", async (t) => {
    const table = fresh("rekeyed");
    await server.table(table, "id int primary key, n int");
    const { changes } = await listen(t, everything(table));
    await server.sql(`insert into ${table} values (1, 1)`);
    await server.sql(`update ${table} set id = 2`);
    const [, updated] = await changes.some(2);
    assert.deepEqual([updated.old, updated.new], [{ id: 1 }, { id: 2, n: 1 }]);
  });

  test("a schema other than public, and every schema", async (t) => {
    const schema = fresh("other");
    await server.sql(`create schema ${schema}; create table ${schema}.things (id int primary key); grant usage on schema ${schema} to anon; grant select on ${schema}.things to anon`);
    await server.sql(`alter publication supabase_realtime add table ${schema}.things`);
    const named = await listen(t, [{ event: "*", schema, table: "things" }]);
    const any = await listen(t, [{ event: "*", schema: "*" }]);
    await server.sql(`insert into ${schema}.things values (1)`);
    for (const { changes } of [named, any]) {
      const change = await changes.first(({ schema: from }) => from === schema);
      assert.deepEqual([change.table, change.new], ["things", { id: 1 }]);
    }
  });

  test("table names are patterns: an underscore matches any character (§5.2)", async (t) => {
    const n = fresh("p");
    await server.table(`a_${n}`, "id int primary key");
    await server.table(`ax${n}`, "id int primary key");
    const { changes } = await listen(t, everything(`a_${n}`));
    await server.sql(`insert into ax${n} values (1)`);
    await server.sql(`insert into a_${n} values (2)`);
    await changes.some(2);
    assert.deepEqual(ids(changes), [1, 2]);
  });
});

describe("publications that change", () => {
  /** Inserts until a row is heard: how soon a changed publication is noticed is the server's choice, within a minute. */
  async function heardAgain({ changes }, table, from) {
    let id = from;
    await until(async () => {
      await server.sql(`insert into ${table} values (${(id += 1)})`);
      await new Promise((resolve) => setTimeout(resolve, 250));
      return changes.all.some(({ new: row }) => row.id > from);
    }, 75_000);
    const heard = ids(changes).filter((row) => row > from);
    assert.deepEqual(heard, heard.map((_, n) => heard[0] + n), "from the first one on, every row in order");
  }

  test("a table taken out and put back is heard again, and not in between", async (t) => {
    const table = fresh("in_and_out");
    await server.table(table, "id int primary key");
    const listening = await listen(t, everything(table));
    await server.sql(`alter publication supabase_realtime drop table ${table}`);
    await server.sql(`insert into ${table} values (1)`);
    await server.sql(`alter publication supabase_realtime add table ${table}`);
    await heardAgain(listening, table, 1);
    assert.ok(!ids(listening.changes).includes(1));
  });

  test("a publication dropped and made again is heard again", async (t) => {
    const [table, neighbour] = [fresh("dropped"), fresh("neighbour")];
    await server.table(table, "id int primary key");
    await server.table(neighbour, "id int primary key");
    const listening = await listen(t, everything(table));
    const { rows } = await server.sql("select format('%I.%I', schemaname, tablename) as name from pg_publication_tables where pubname = 'supabase_realtime'");
    await server.sql("drop publication supabase_realtime");
    await server.sql(`insert into ${table} values (1)`);
    await server.sql(`create publication supabase_realtime for table ${rows.map(({ name }) => name).join(", ")}`);
    await heardAgain(listening, table, 1);
  });
});

describe("bindings that are refused", () => {
  for (const [name, binding, expected] of [
    ["no parameters", { event: "*" }, /^No subscription params provided\. Please provide at least a `schema` or `table` to subscribe to: /],
    ["a filter without a table", { event: "*", schema: "public", filter: "id=eq.1" }, /^No subscription params provided\./],
    ["a schema that is a number", { event: "*", schema: 7, table: "x" }, /^No subscription params provided\./],
    ["a select on every table", { event: "*", schema: "public", table: "*", select: ["id"] }, /Column selection is not supported for wildcard subscriptions/],
    ["a select that is a string", { event: "*", schema: "public", table: "nope", select: "id" }, /^Error parsing `select` params: expected a list of column name strings/],
    ["a view", { event: "*", schema: "public", table: "a_view" }, /Please check Realtime is enabled for the given connect parameters/],
  ]) {
    test(name, async (t) => {
      await server.sql("create or replace view public.a_view as select 1 as id");
      const raw = closing(t)(await RawSocket.open(server.info));
      await raw.join("realtime:refused", { postgres_changes: [binding] });
      const system = await raw.next({ within: 20_000 });
      assert.deepEqual([system[3], system[4].status, system[4].extension], ["system", "error", "postgres_changes"]);
      assert.match(system[4].message, expected);
    });
  }

  test("a select of a column that does not exist", async (t) => {
    const table = fresh("selected");
    await server.table(table, "id int primary key");
    const raw = closing(t)(await RawSocket.open(server.info));
    await raw.join("realtime:refused", { postgres_changes: [{ event: "*", schema: "public", table, select: ["nope"] }] });
    const system = await raw.next({ within: 20_000 });
    assert.match(system[4].message, /invalid column for select nope/);
  });

  for (const role of ["postgres", "nobody", "authenticator"]) {
    test(`role ${role} never gets a row`, async (t) => {
      const table = fresh("guarded");
      await server.table(table, "id int primary key, secret text");
      const raw = closing(t)(await RawSocket.open(server.info));
      const neighbour = closing(t)(await RawSocket.open(server.info));
      await neighbour.join("realtime:neighbour", { postgres_changes: everything(table) });
      await neighbour.live();
      raw.send(["1", "1", "realtime:guarded", "phx_join", { config: { postgres_changes: everything(table) }, access_token: server.token({ role }) }]);
      const answer = await raw.next({ within: 20_000 });
      const system = answer[4].status === "ok" ? await raw.next({ within: 20_000 }) : answer;
      assert.equal(system[4].status, "error", JSON.stringify(system));
      await server.sql(`insert into ${table} values (1, 'hidden')`);
      await neighbour.readUntil(([, , , event]) => event === "postgres_changes");
      assert.ok(!JSON.stringify(await raw.settled()).includes("hidden"));
    });
  }
});

describe("many at once", () => {
  test("ninety channels on one socket each hear their own rows", async (t) => {
    const table = fresh("shared");
    await server.table(table, "id int primary key, room int");
    const raw = closing(t)(await RawSocket.open(server.info));
    for (let n = 0; n < 90; n += 1) {
      raw.send([String(n), String(n), `realtime:room-${n}`, "phx_join", { config: { postgres_changes: [{ event: "INSERT", schema: "public", table, filter: `room=eq.${n}` }] } }]);
    }
    await raw.frames.some(90, (frame) => frame.includes("Subscribed to PostgreSQL"), { within: 20_000 });
    await server.sql(`insert into ${table} select n, n from generate_series(0, 89) n`);
    const isChange = (frame) => frame.includes('"commit_timestamp"');
    const frames = (await raw.frames.some(90, isChange, { within: 20_000 })).map((frame) => JSON.parse(frame));
    for (const [, , topic, , payload] of frames) assert.equal(topic, `realtime:room-${payload.data.record.room}`);
    assert.deepEqual(frames.map(([, , , , { data }]) => data.record.id), Array.from({ length: 90 }, (_, n) => n), "in the order of the rows");
  });

  test("a hundred clients with claims of their own each hear their own row", async (t) => {
    const table = fresh("mine");
    await server.table(table, "id int primary key, owner text", { rls: true });
    await server.sql(`create policy own on ${table} for select using (owner = auth.jwt() ->> 'sub')`);
    const open = closing(t);
    const sockets = await Promise.all(
      Array.from({ length: 100 }, async (_, n) => {
        const raw = open(await RawSocket.open(server.info));
        await raw.join("realtime:mine", { postgres_changes: everything(table) }, { access_token: server.token({ role: "authenticated", sub: `u${n}` }) });
        await raw.live({ within: 30_000 });
        return raw;
      }),
    );
    await server.sql(`insert into ${table} select n, 'u' || n from generate_series(0, 99) n`);
    await Promise.all(
      sockets.map(async (raw, n) => {
        const frame = (await raw.readUntil(([, , , event]) => event === "postgres_changes")).at(-1);
        assert.equal(frame[4].data.record.id, n);
      }),
    );
    for (const raw of sockets) assert.deepEqual(await raw.settled(), []);
  });

  test("subscribing and leaving all the time never loses a row for somebody who stays", async (t) => {
    const table = fresh("busy");
    await server.table(table, "id int primary key");
    const { changes } = await listen(t, everything(table));
    const rude = openClient(variant, server.info);
    t.after(() => rude.close());
    const churn = (async () => {
      for (let n = 0; n < 30; n += 1) {
        const channel = rude.channel(`churn-${n}`);
        const { system } = changesOn(channel, [{ event: "*", schema: "public", table, filter: `id=eq.${n}` }]);
        await subscribe(channel);
        if (n % 2) await isLive(system);
        await rude.client.removeChannel(channel);
      }
    })();
    for (let n = 0; n < 200; n += 1) await server.sql(`insert into ${table} values (${n})`);
    await churn;
    await changes.some(200, () => true, { within: 20_000 });
    assert.deepEqual(ids(changes), Array.from({ length: 200 }, (_, n) => n));
  });
});
