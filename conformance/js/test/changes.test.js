// Postgres Changes with the official client. Spec: PROTOCOL.md §5.2–5.8, §5.10.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { RawSocket } from "../support/raw.js";

const server = withServer();

let tables = 0;
const tableName = (word) => `${word}_${(tables += 1)}`;

for (const variant of variants) {
  describe(variant.name, () => {
    test("INSERT, UPDATE and DELETE arrive with their rows", async (t) => {
      const games = tableName("games");
      await server.table(games, "id int primary key, status text");
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("three-events"), [{ event: "*", schema: "public", table: games }]);
      await live();

      await server.sql(`insert into ${games} values (1, 'open')`);
      await server.sql(`update ${games} set status = 'won' where id = 1`);
      await server.sql(`delete from ${games} where id = 1`);
      const [inserted, updated, deleted] = await changes.some(3);

      assert.deepEqual([inserted.eventType, inserted.schema, inserted.table], ["INSERT", "public", games]);
      assert.deepEqual(inserted.new, { id: 1, status: "open" });
      assert.deepEqual(inserted.old, {});
      assert.equal(inserted.errors, null);
      assert.match(inserted.commit_timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
      assert.ok(Math.abs(Date.parse(inserted.commit_timestamp) - Date.now()) < 60_000);

      assert.equal(updated.eventType, "UPDATE");
      assert.deepEqual(updated.new, { id: 1, status: "won" });
      assert.deepEqual(updated.old, { id: 1 });

      assert.equal(deleted.eventType, "DELETE");
      assert.deepEqual(deleted.new, {});
      assert.deepEqual(deleted.old, { id: 1 });
    });

    test("a binding for one event hears that event only", async (t) => {
      const games = tableName("games");
      await server.table(games, "id int primary key, status text");
      const client = closing(t)(openClient(variant, server.info));
      const heard = Object.fromEntries(
        ["INSERT", "UPDATE", "DELETE"].map((event) => [event, changesOn(client.channel(`only-${event}`), [{ event, schema: "public", table: games }])]),
      );
      for (const { live } of Object.values(heard)) await live();
      await server.sql(`insert into ${games} values (1, 'a'), (2, 'b')`);
      await server.sql(`update ${games} set status = 'c'`);
      await server.sql(`delete from ${games}`);
      await Promise.all(Object.values(heard).map(({ changes }) => changes.some(2)));
      for (const [event, { changes }] of Object.entries(heard)) {
        assert.deepEqual(changes.all.map(({ eventType }) => eventType), [event, event]);
      }
    });

    test("replica identity full shows the whole old row", async (t) => {
      const games = tableName("games");
      await server.table(games, "id int primary key, status text, score int", { identity: "full" });
      await server.sql(`insert into ${games} values (1, 'open', 3)`);
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("full"), [{ event: "*", schema: "public", table: games }]);
      await live();
      await server.sql(`update ${games} set status = 'won'`);
      await server.sql(`delete from ${games}`);
      const updated = await changes.first(({ eventType }) => eventType === "UPDATE");
      const deleted = await changes.first(({ eventType }) => eventType === "DELETE");
      assert.deepEqual(updated.old, { id: 1, status: "open", score: 3 });
      assert.deepEqual(updated.new, { id: 1, status: "won", score: 3 });
      assert.deepEqual(deleted.old, { id: 1, status: "won", score: 3 });
    });

    test("a binding on a schema hears every published table of it", async (t) => {
      const [one, two, unpublished] = [tableName("one"), tableName("two"), tableName("unpublished")];
      await server.table(one, "id int primary key");
      await server.table(two, "id int primary key");
      await server.table(unpublished, "id int primary key", { publish: false });
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("schema-wide"), [{ event: "INSERT", schema: "public" }]);
      await live();
      await server.sql(`insert into ${unpublished} values (1)`);
      await server.sql(`insert into ${one} values (1)`);
      await server.sql(`insert into ${two} values (2)`);
      const mine = ({ table }) => [one, two, unpublished].includes(table);
      const seen = await changes.some(2, mine);
      assert.deepEqual(seen.map(({ table, new: row }) => [table, row.id]), [[one, 1], [two, 2]]);
    });

    test("two bindings of one channel each hear what they asked for, once", async (t) => {
      const games = tableName("games");
      await server.table(games, "id int primary key, status text");
      const client = closing(t)(openClient(variant, server.info));
      const channel = client.channel("two-bindings");
      const [all, open] = [[], []];
      channel.on("postgres_changes", { event: "*", schema: "public", table: games }, ({ new: row }) => all.push(row.id));
      channel.on("postgres_changes", { event: "INSERT", schema: "public", table: games, filter: "status=eq.open" }, ({ new: row }) => open.push(row.id));
      const { changes, live } = changesOn(channel, [{ event: "INSERT", schema: "public", table: games, filter: "id=eq.99" }]);
      await live();
      await server.sql(`insert into ${games} values (1, 'open'), (2, 'won'), (3, 'open'), (99, 'last')`);
      await changes.some(1);
      assert.deepEqual(all, [1, 2, 3, 99]);
      assert.deepEqual(open, [1, 3]);
    });

    test("select restricts the columns and keeps the primary key", async (t) => {
      const games = tableName("games");
      await server.table(games, "id int primary key, status text, secret text", { identity: "full" });
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("select"), [{ event: "*", schema: "public", table: games, select: ["status"] }]);
      await live();
      await server.sql(`insert into ${games} values (1, 'open', 'hidden')`);
      await server.sql(`update ${games} set secret = 'still hidden'`);
      const [inserted, updated] = await changes.some(2);
      assert.deepEqual(inserted.new, { id: 1, status: "open" });
      assert.deepEqual(updated.new, { id: 1, status: "open" });
      assert.deepEqual(updated.old, { id: 1, status: "open" });
    });

    test("five hundred inserts arrive in order, each once", async (t) => {
      const rows = tableName("rows");
      await server.table(rows, "id int primary key, word text");
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("five-hundred"), [{ event: "INSERT", schema: "public", table: rows }]);
      await live();
      const writer = await server.connect();
      await Promise.all(Array.from({ length: 500 }, (_, n) => writer.query(`insert into ${rows} values ($1, $2)`, [n, `word ${n}`])));
      // A last transaction behind them: when it has come, whatever was doubled has come too.
      await writer.query(`insert into ${rows} values (500, 'last')`);
      await changes.first(({ new: row }) => row.id === 500, { within: 20_000 });
      assert.deepEqual(changes.all.map(({ new: row }) => row.id), Array.from({ length: 501 }, (_, n) => n));
      assert.equal(changes.all[42].new.word, "word 42");
    });

    test("one transaction of five hundred rows arrives whole and in order", async (t) => {
      const rows = tableName("rows");
      await server.table(rows, "id int primary key");
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("one-transaction"), [{ event: "*", schema: "public", table: rows }]);
      await live();
      await server.sql(`insert into ${rows} select generate_series(1, 500)`);
      await changes.some(500, () => true, { within: 20_000 });
      assert.deepEqual(changes.all.map(({ new: row }) => row.id), Array.from({ length: 500 }, (_, n) => n + 1));
    });

    test("what is rolled back never arrives", async (t) => {
      const rows = tableName("rows");
      await server.table(rows, "id int primary key");
      const client = closing(t)(openClient(variant, server.info));
      const { changes, live } = changesOn(client.channel("rolled-back"), [{ event: "*", schema: "public", table: rows }]);
      await live();
      await server.sql(`begin; insert into ${rows} values (1); rollback`);
      await server.sql(`begin; insert into ${rows} values (2); savepoint s; insert into ${rows} values (3); rollback to s; insert into ${rows} values (4); commit`);
      await changes.some(2);
      assert.deepEqual(changes.all.map(({ new: row }) => row.id), [2, 4]);
    });

    test("an invalid filter ends in a system error, and the channel still broadcasts", async (t) => {
      const rows = tableName("rows");
      await server.table(rows, "id int primary key");
      const client = closing(t)(openClient(variant, server.info));
      const channel = client.channel("invalid-filter", { config: { broadcast: { self: true } } });
      const { system } = changesOn(channel, [{ event: "*", schema: "public", table: rows, filter: "nope=eq.1" }]);
      const heard = [];
      channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
      const statuses = await subscribe(channel);
      const { message, extension } = await system.first(({ status }) => status === "error", { within: 20_000 });
      assert.equal(extension, "postgres_changes");
      assert.match(message, /^Unable to subscribe to changes with given parameters\. An exception happened/);
      assert.match(message, /invalid column for filter nope/);
      assert.equal(statuses.all[0].status, "SUBSCRIBED");
      assert.equal(await channel.send({ type: "broadcast", event: "still", payload: {} }), "ok");
    });

    test("a table that is not published ends in a system error", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const channel = client.channel("not-published");
      const { system } = changesOn(channel, [{ event: "INSERT", schema: "public", table: "nope" }]);
      await subscribe(channel);
      const { message } = await system.first(({ status }) => status === "error", { within: 20_000 });
      assert.equal(
        message,
        "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: [event: INSERT, schema: public, table: nope, filters: [], select: nil]",
      );
    });

    test("one bad binding and none of the channel is live", async (t) => {
      const rows = tableName("rows");
      await server.table(rows, "id int primary key");
      const client = closing(t)(openClient(variant, server.info));
      const bad = client.channel("one-bad");
      const refused = changesOn(bad, [
        { event: "*", schema: "public", table: rows },
        { event: "*", schema: "public", table: rows, filter: "id=eq.hey" },
      ]);
      await subscribe(bad);
      const { message } = await refused.system.first(({ status }) => status === "error", { within: 20_000 });
      assert.match(message, /invalid input syntax for type integer: "hey"/);
      const good = changesOn(client.channel("one-good"), [{ event: "*", schema: "public", table: rows }]);
      await good.live();
      await server.sql(`insert into ${rows} values (1)`);
      await good.changes.some(1);
      assert.equal(refused.changes.all.length, 0);
    });
  });
}

test("what was committed before the join is not delivered (§5.11)", async (t) => {
  const rows = tableName("before");
  await server.table(rows, "id int primary key");
  const raw = closing(t)(await RawSocket.open(server.info));
  for (let round = 1; round <= 20; round += 1) {
    await server.sql(`insert into ${rows} select generate_series(${round * 1000}, ${round * 1000 + 99})`);
    const topic = `realtime:before-${round}`;
    await raw.join(topic, { postgres_changes: [{ event: "INSERT", schema: "public", table: rows }] }, { ref: String(round) });
    const isLiveFrame = (frame) => frame[2] === topic && frame[3] === "system";
    await raw.readUntil(isLiveFrame);
    await server.sql(`insert into ${rows} values (${-round})`);
    const heard = await raw.readUntil((frame) => frame[2] === topic && frame[3] === "postgres_changes" && frame[4].data.record.id === -round);
    const early = heard.filter((frame) => frame[2] === topic && frame[3] === "postgres_changes" && frame[4].data.record.id > 0);
    assert.equal(early.length, 0, `round ${round}: ${early.length} changes of before the join were delivered`);
    raw.send([String(round), `leave-${round}`, topic, "phx_leave", {}]);
    await raw.readUntil((frame) => frame[3] === "phx_close" && frame[2] === topic);
  }
});

describe("tables as they are", () => {
  const variant = variants[0];

  test("a table without a primary key gives error 400 instead of rows", async (t) => {
    const rows = tableName("keyless");
    await server.table(rows, "a int");
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("keyless"), [{ event: "INSERT", schema: "public", table: rows, filter: "a=eq.7" }]);
    await live();
    await server.sql(`insert into ${rows} values (1)`);
    const [change] = await changes.some(1);
    assert.deepEqual(change.errors, ["Error 400: Bad Request, no primary key"]);
    assert.deepEqual(change.new, {});
  });

  test("a role without SELECT gets error 401 instead of rows", async (t) => {
    const rows = tableName("forbidden");
    await server.table(rows, "id int primary key, word text", { grants: "service_role" });
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("forbidden"), [{ event: "INSERT", schema: "public", table: rows }]);
    await live();
    await server.sql(`insert into ${rows} values (1, 'hidden')`);
    const [change] = await changes.some(1);
    assert.deepEqual(change.errors, ["Error 401: Unauthorized"]);
    assert.deepEqual(change.new, {});
    assert.ok(!JSON.stringify(changes.all).includes("hidden"));
  });

  test("columns the role may not read are absent", async (t) => {
    const rows = tableName("columns");
    await server.table(rows, "id int primary key, word text, secret text", { grants: null });
    await server.sql(`grant select (id, word) on public.${rows} to anon`);
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("columns"), [{ event: "INSERT", schema: "public", table: rows }]);
    await live();
    await server.sql(`insert into ${rows} values (1, 'shown', 'hidden')`);
    const [change] = await changes.some(1);
    assert.deepEqual(change.new, { id: 1, word: "shown" });
    assert.ok(!JSON.stringify(changes.all).includes("hidden"));
  });

  test("names with capitals, spaces and quotes work", async (t) => {
    await server.sql(`create table public."Odd ""Name" ("Id" int primary key, "a b" text)`);
    await server.sql(`grant select on public."Odd ""Name" to anon`);
    await server.sql(`alter publication supabase_realtime add table public."Odd ""Name"`);
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("odd"), [{ event: "*", schema: "public", table: 'Odd "Name', filter: "a b=eq.x" }]);
    await live();
    await server.sql(`insert into public."Odd ""Name" values (1, 'y'), (2, 'x')`);
    const [change] = await changes.some(1);
    assert.deepEqual(change.new, { Id: 2, "a b": "x" });
  });

  test("a column added while subscribed shows up", async (t) => {
    const rows = tableName("altered");
    await server.table(rows, "id int primary key");
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("altered"), [{ event: "INSERT", schema: "public", table: rows }]);
    await live();
    await server.sql(`insert into ${rows} values (1)`);
    await server.sql(`alter table ${rows} add column word text default 'new'`);
    await server.sql(`insert into ${rows} values (2)`);
    const seen = await changes.some(2);
    assert.deepEqual(seen.map(({ new: row }) => row), [{ id: 1 }, { id: 2, word: "new" }]);
  });

  test("an unchanged large value is missing from the record and listed in the columns", async (t) => {
    const rows = tableName("toast");
    await server.table(rows, "id int primary key, n int, big text");
    await server.sql(`alter table ${rows} alter column big set storage external`);
    await server.sql(`insert into ${rows} values (1, 1, repeat('x', 20000))`);
    const raw = closing(t)(await RawSocket.open(server.info));
    await raw.join("realtime:toast", { postgres_changes: [{ event: "*", schema: "public", table: rows }] });
    await raw.live();
    await server.sql(`update ${rows} set n = 2`);
    const [frame] = await raw.readUntil(([, , , event]) => event === "postgres_changes").then((seen) => seen.slice(-1));
    const { data } = frame[4];
    assert.deepEqual(data.record, { id: 1, n: 2 });
    assert.deepEqual(data.columns.map(({ name }) => name), ["id", "n", "big"]);
  });

  test("a change of more than a megabyte loses its long values and says so", async (t) => {
    const rows = tableName("large");
    await server.table(rows, "id int primary key, short text, long text, nothing text");
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("large"), [{ event: "INSERT", schema: "public", table: rows }]);
    await live();
    await server.sql(`insert into ${rows} values (1, 'kept', repeat('x', 1200000), null)`);
    const [change] = await changes.some(1);
    assert.deepEqual(change.errors, ["Error 413: Payload Too Large"]);
    assert.deepEqual(change.new, { id: 1, short: "kept" });
  });

  test("a truncated table says nothing and the next row arrives", async (t) => {
    const rows = tableName("truncated");
    await server.table(rows, "id int primary key");
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("truncated"), [{ event: "*", schema: "public", table: rows }]);
    await live();
    await server.sql(`insert into ${rows} values (1)`);
    await server.sql(`truncate ${rows}`);
    await server.sql(`insert into ${rows} values (2)`);
    await changes.some(2);
    assert.deepEqual(changes.all.map(({ eventType, new: row }) => [eventType, row.id]), [["INSERT", 1], ["INSERT", 2]]);
  });

  test("the join reply echoes the bindings with ids, and a change names them", async (t) => {
    const rows = tableName("ids");
    await server.table(rows, "id int primary key");
    const raw = closing(t)(await RawSocket.open(server.info));
    const bindings = [
      { event: "*", schema: "public", table: rows, extra: { kept: true } },
      { event: "INSERT", schema: "public", table: rows },
      { event: "insert", schema: "public", table: rows, filter: "id=gt.0" },
    ];
    const { postgres_changes: echoed } = await raw.join("realtime:ids", { postgres_changes: bindings });
    assert.deepEqual(echoed.map(({ id, ...binding }) => binding), bindings);
    for (const { id } of echoed) assert.ok(Number.isInteger(id) && id > 0 && id < 2 ** 27, `id ${id}`);
    await raw.live();
    await server.sql(`insert into ${rows} values (1)`);
    const frame = (await raw.readUntil(([, , , event]) => event === "postgres_changes")).at(-1);
    assert.deepEqual(frame.slice(0, 4), [null, null, "realtime:ids", "postgres_changes"]);
    assert.deepEqual(frame[4].ids, echoed.map(({ id }) => id).reverse());
    assert.deepEqual(Object.keys(frame[4]).sort(), ["data", "ids"]);
  });

  test("a second ok message comes with a second channel, not a second change", async (t) => {
    const rows = tableName("twice");
    await server.table(rows, "id int primary key");
    const client = closing(t)(openClient(variant, server.info));
    const one = changesOn(client.channel("twice-1"), [{ event: "*", schema: "public", table: rows }]);
    const two = changesOn(client.channel("twice-2"), [{ event: "*", schema: "public", table: rows }]);
    await one.live();
    await two.live();
    await isLive(one.system);
    await server.sql(`insert into ${rows} values (1)`);
    await server.sql(`insert into ${rows} values (2)`);
    for (const { changes } of [one, two]) {
      await changes.first(({ new: row }) => row.id === 2);
      assert.deepEqual(changes.all.map(({ new: row }) => row.id), [1, 2]);
    }
  });
});
