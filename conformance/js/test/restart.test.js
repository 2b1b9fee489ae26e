// Restarts of the server and of Postgres: clients come back by themselves. Spec: PROTOCOL.md §1.11, §10.1.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { RawSocket } from "../support/raw.js";
import { until } from "../support/server.js";

const server = withServer();

let tables = 0;
async function subscribed(t, variant) {
  const table = `restarted_${(tables += 1)}`;
  await server.table(table, "id int primary key");
  const client = closing(t)(openClient(variant, server.info));
  const channel = client.channel(table, { config: { broadcast: { self: true } } });
  const heard = new Inbox("broadcasts");
  channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
  const listening = changesOn(channel, [{ event: "*", schema: "public", table }]);
  const statuses = await listening.live();
  return { table, client, channel, heard, statuses, ...listening };
}

/** Works end to end again: a change and a broadcast arrive on the channel that existed before. */
async function worksAgain({ table, channel, heard, changes, system }, { from }) {
  await isLive(system, { count: from + 1, within: 40_000 });
  await server.sql(`insert into ${table} values (100)`);
  await changes.first(({ new: row }) => row.id === 100);
  await channel.send({ type: "broadcast", event: "again", payload: {} });
  await heard.first(({ event }) => event === "again");
}

for (const variant of variants) {
  describe(variant.name, () => {
    for (const signal of ["SIGKILL", "SIGTERM"]) {
      test(`after ${signal} and a start on the same port the client rejoins by itself and hears changes`, async (t) => {
        const room = await subscribed(t, variant);
        const socketsBefore = room.client.sockets.length;
        const liveBefore = room.system.all.length;
        server.forgetConnection();
        const took = await server.signal(signal);
        if (signal === "SIGTERM") assert.ok(took < 10_000, `the server took ${took} ms to end`);
        const since = performance.now();
        await server.run();
        const startMs = performance.now() - since;
        assert.ok(startMs < 5_000 + 2_000, `the folder was serving again only after ${startMs} ms`);
        await worksAgain(room, { from: liveBefore });
        assert.ok(room.client.sockets.length > socketsBefore);
      });
    }
  });
}

test("SIGTERM closes sockets with 1012 and the keys stay the same", async () => {
  const before = server.info;
  const raw = await RawSocket.open(before);
  await raw.join("realtime:drained");
  server.forgetConnection();
  await server.signal("SIGTERM");
  assert.equal(await raw.closed, 1012);
  await server.run();
  for (const key of ["anon_key", "service_key", "jwt_secret", "url", "tenant"]) assert.equal(server.info[key], before[key], key);
});

test("while Postgres restarts, channels stay and a later change arrives without a rejoin", async (t) => {
  const room = await subscribed(t, variants[0]);
  await server.restartPostgres();
  await server.sql(`insert into ${room.table} values (1)`);
  await room.changes.first(({ new: row }) => row.id === 1, { within: 40_000 });
  assert.deepEqual(room.statuses.all.map(({ status }) => status), ["SUBSCRIBED"]);
  assert.equal(room.client.sockets.length, 1, "the socket was not reopened");
});

for (const [name, interrupt] of [
  ["a restart of Postgres", () => server.restartPostgres()],
  ["a crash of Postgres", () => server.restartPostgres("SIGQUIT")],
  ["the end of the replication connection", () => server.sql("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'")],
]) {
  test(`what is committed before and after ${name} arrives in order and once`, async (t) => {
    const room = await subscribed(t, variants[0]);
    for (let n = 1; n <= 20; n += 1) await server.sql(`insert into ${room.table} values (${n})`);
    await interrupt();
    for (let n = 21; n <= 40; n += 1) await server.sql(`insert into ${room.table} values (${n})`);
    await room.changes.first(({ new: row }) => row.id === 40, { within: 40_000 });
    assert.deepEqual(room.changes.all.map(({ new: row }) => row.id), Array.from({ length: 40 }, (_, n) => n + 1));
    assert.deepEqual(room.statuses.all.map(({ status }) => status), ["SUBSCRIBED"]);
  });
}

test("writers that never stop while connections are cut: every committed row arrives once, in order", async (t) => {
  const room = await subscribed(t, variants[0]);
  const committed = [];
  let isStopped = false;
  const writer = (async () => {
    for (let n = 1; !isStopped; n += 1) {
      try {
        await server.sql(`insert into ${room.table} values (${n})`);
        committed.push(n);
      } catch {
        server.forgetConnection(); // cut by the restart; whether the row was committed is asked at the end
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  })();
  for (const interrupt of [
    () => server.sql("select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'").catch(() => {}),
    () => server.restartPostgres(),
    () => server.restartPostgres("SIGQUIT"),
  ]) {
    const before = committed.length;
    await until(() => committed.length > before + 50);
    await interrupt();
  }
  const before = committed.length;
  await until(() => committed.length > before + 50, 30_000);
  isStopped = true;
  await writer;
  const { rows } = await server.sql(`select id from ${room.table} order by id`);
  await room.changes.first(({ new: row }) => row.id === rows.at(-1).id, { within: 40_000 });
  assert.deepEqual(room.changes.all.map(({ new: row }) => row.id), rows.map(({ id }) => id));
});

test("broadcast and presence go on while Postgres restarts", async (t) => {
  const room = await subscribed(t, variants[0]);
  const restarting = server.restartPostgres();
  for (let n = 0; n < 20; n += 1) await room.channel.send({ type: "broadcast", event: "n", payload: { n } });
  await room.heard.some(20, ({ event }) => event === "n", { within: 3_000 });
  await restarting;
});
