// Row-level security: each subscriber sees what its own claims may select. Spec: PROTOCOL.md §5.7, §5.8.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";

const server = withServer({
  prepare: (started) => started.table("marker", "id int generated always as identity primary key"),
});
const [ada, ben] = [randomUUID(), randomUUID()];

const userToken = (sub, more = {}) => server.token({ role: "authenticated", sub, ...more });

let tables = 0;
/** A table whose rows only their owner may read, with a marker behind it: its row tells that all else has come. */
async function ownRows({ identity } = {}) {
  const name = `own_${(tables += 1)}`;
  await server.table(name, "id int primary key, owner uuid, body text", { rls: true, identity });
  await server.sql(`create policy own on public.${name} for select using (owner = auth.uid())`);
  return name;
}

async function listen(open, variant, token, table, topic) {
  const client = open(openClient(variant, server.info));
  if (token) await client.client.realtime.setAuth(token);
  const listening = changesOn(client.channel(topic), [
    { event: "*", schema: "public", table },
    { event: "INSERT", schema: "public", table: "marker" },
  ]);
  await listening.live();
  return { client, ...listening };
}

/** Writes a marker row and returns what each listener heard of the table until it came. */
async function heardOf(marker, ...listeners) {
  await server.sql("insert into marker default values");
  const { rows } = await server.sql("select max(id) as id from marker");
  await Promise.all(listeners.map(({ changes }) => changes.first(({ table, new: row }) => table === "marker" && row.id === rows[0].id)));
  return listeners.map(({ changes }) => changes.all.filter(({ table }) => table === marker));
}

for (const variant of variants) {
  describe(variant.name, () => {
    test("two users each hear of their own rows only", async (t) => {
      const open = closing(t);
      const table = await ownRows();
      const a = await listen(open, variant, userToken(ada), table, "own-rows-a");
      const b = await listen(open, variant, userToken(ben), table, "own-rows-b");
      await server.sql(`insert into ${table} values (1, '${ada}', 'for ada'), (2, '${ben}', 'for ben'), (3, null, 'for nobody')`);
      await server.sql(`update ${table} set body = body || '!'`);
      const [forAda, forBen] = await heardOf(table, a, b);
      const told = (changes) => changes.map(({ eventType, new: row }) => [eventType, row.id, row.body]);
      assert.deepEqual(told(forAda), [["INSERT", 1, "for ada"], ["UPDATE", 1, "for ada!"]]);
      assert.deepEqual(told(forBen), [["INSERT", 2, "for ben"], ["UPDATE", 2, "for ben!"]]);
    });

    test("a role without any policy hears nothing", async (t) => {
      const table = await ownRows();
      const anon = await listen(closing(t), variant, undefined, table, "no-policy");
      await server.sql(`insert into ${table} values (1, '${ada}', 'hidden')`);
      const [heard] = await heardOf(table, anon);
      assert.deepEqual(heard, []);
    });

    test("the service role hears everything", async (t) => {
      const table = await ownRows();
      const all = await listen(closing(t), variant, server.info.service_key, table, "service");
      await server.sql(`insert into ${table} values (1, '${ada}', 'a'), (2, null, 'b')`);
      const [heard] = await heardOf(table, all);
      assert.deepEqual(heard.map(({ new: row }) => row.id), [1, 2]);
    });

    test("a delete tells every subscriber the key and nothing else, also with replica identity full", async (t) => {
      const open = closing(t);
      const table = await ownRows({ identity: "full" });
      await server.sql(`insert into ${table} values (1, '${ada}', 'secret of ada')`);
      const a = await listen(open, variant, userToken(ada), table, "delete-a");
      const b = await listen(open, variant, userToken(ben), table, "delete-b");
      await server.sql(`delete from ${table}`);
      for (const heard of await heardOf(table, a, b)) {
        assert.deepEqual(heard.map(({ eventType, old }) => [eventType, old]), [["DELETE", { id: 1 }]]);
        assert.ok(!JSON.stringify(heard).includes("secret"));
      }
    });

    test("a token set in the middle of a channel changes what is seen", async (t) => {
      const open = closing(t);
      const table = await ownRows();
      const client = open(openClient(variant, server.info));
      await client.client.realtime.setAuth(userToken(ada));
      const listening = changesOn(client.channel("refresh"), [
        { event: "*", schema: "public", table },
        { event: "INSERT", schema: "public", table: "marker" },
      ]);
      await listening.live();
      await server.sql(`insert into ${table} values (1, '${ada}', 'a')`);
      await listening.changes.first(({ new: row, table: from }) => from === table && row.id === 1);

      await client.client.realtime.setAuth(userToken(ben));
      await isLive(listening.system, { count: 2 });
      await server.sql(`insert into ${table} values (2, '${ada}', 'a'), (3, '${ben}', 'b')`);
      const [heard] = await heardOf(table, listening);
      assert.deepEqual(heard.map(({ new: row }) => row.id), [1, 3]);
    });

    test("a token that comes from a callback is used", async (t) => {
      const table = await ownRows();
      const token = userToken(ada);
      const client = closing(t)(openClient(variant, server.info, { token }));
      // Without an argument the client asks its callback; a channel joined before the answer keeps the anon key.
      await client.client.realtime.setAuth();
      const listening = changesOn(client.channel("callback"), [{ event: "*", schema: "public", table }]);
      await listening.live();
      await server.sql(`insert into ${table} values (1, '${ben}', 'b'), (2, '${ada}', 'a')`);
      const [{ new: row }] = await listening.changes.some(1);
      assert.equal(row.id, 2);
    });
  });
}

describe("policies", () => {
  const variant = variants[0];

  test("a policy may read any claim", async (t) => {
    const open = closing(t);
    await server.table("by_team", "id int primary key, team text", { rls: true });
    await server.sql("create policy team on public.by_team for select using (team = auth.jwt() ->> 'team')");
    const red = await listen(open, variant, userToken(ada, { team: "red" }), "by_team", "team-red");
    const blue = await listen(open, variant, userToken(ben, { team: "blue" }), "by_team", "team-blue");
    await server.sql("insert into by_team values (1, 'red'), (2, 'blue'), (3, 'red')");
    const [forRed, forBlue] = await heardOf("by_team", red, blue);
    assert.deepEqual(forRed.map(({ new: row }) => row.id), [1, 3]);
    assert.deepEqual(forBlue.map(({ new: row }) => row.id), [2]);
  });

  test("a policy that asks another table is asked in Postgres", async (t) => {
    const open = closing(t);
    await server.sql("create table public.members (who uuid, room int); grant select on public.members to authenticated");
    await server.sql(`insert into members values ('${ada}', 1), ('${ben}', 2)`);
    await server.table("posts", "id int primary key, room int", { rls: true });
    await server.sql("create policy member on public.posts for select using (exists (select from members m where m.room = posts.room and m.who = auth.uid()))");
    const a = await listen(open, variant, userToken(ada), "posts", "posts-a");
    const b = await listen(open, variant, userToken(ben), "posts", "posts-b");
    await server.sql("insert into posts values (1, 1), (2, 2), (3, 3)");
    const [forAda, forBen] = await heardOf("posts", a, b);
    assert.deepEqual(forAda.map(({ new: row }) => row.id), [1]);
    assert.deepEqual(forBen.map(({ new: row }) => row.id), [2]);
  });

  test("a policy that raises denies, and harms nobody else", async (t) => {
    const open = closing(t);
    await server.table("raising", "id int primary key, owner uuid", { rls: true });
    await server.sql("create function public.explode() returns bool language plpgsql as $$ begin raise exception 'boom'; end $$");
    await server.sql(`create policy raising on public.raising for select using (case when auth.uid() = '${ada}' then public.explode() else true end)`);
    const a = await listen(open, variant, userToken(ada), "raising", "raising-a");
    const b = await listen(open, variant, userToken(ben), "raising", "raising-b");
    await server.sql("insert into raising values (1, null)");
    const [forAda, forBen] = await heardOf("raising", a, b);
    assert.deepEqual(forAda, []);
    assert.deepEqual(forBen.map(({ new: row }) => row.id), [1]);
  });

  test("a row made visible by an update arrives as an update", async (t) => {
    const table = await ownRows();
    const a = await listen(closing(t), variant, userToken(ada), table, "made-visible");
    await server.sql(`insert into ${table} values (1, '${ben}', 'x')`);
    await server.sql(`update ${table} set owner = '${ada}'`);
    await server.sql(`update ${table} set owner = '${ben}'`);
    const [heard] = await heardOf(table, a);
    // The first update may be judged by the row as it is now, when it belongs to ben again (§5.8 rule 5).
    assert.ok(heard.length <= 1, JSON.stringify(heard));
    for (const { eventType } of heard) assert.equal(eventType, "UPDATE");
  });

  test("row-level security switched on while subscribed holds from then on", async (t) => {
    await server.table("switched", "id int primary key, owner uuid");
    const a = await listen(closing(t), variant, userToken(ada), "switched", "switched");
    await server.sql(`insert into switched values (1, '${ben}')`);
    await a.changes.first(({ table }) => table === "switched");
    await server.sql("alter table switched enable row level security");
    await server.sql(`insert into switched values (2, '${ben}')`);
    const [heard] = await heardOf("switched", a);
    assert.deepEqual(heard.map(({ new: row }) => row.id), [1]);
  });
});
