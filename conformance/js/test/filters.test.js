// Filters: what a binding delivers is what Postgres itself selects. Spec: PROTOCOL.md §5.3.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";

const server = withServer({
  prepare: async (started) => {
    await started.sql("create type level as enum ('low', 'mid', 'high')");
    await started.table(
      "filtered",
      "id int primary key, word text, flag bool, amount numeric, big int8, kind level, at timestamptz, day date, uid uuid, ratio float8",
    );
    await started.table("marker", "id int primary key");
  },
});

// Each filter beside the SQL that says the same; Postgres is the judge of both.
const CASES = [
  ["id=eq.3", "id = 3"],
  ["id=neq.3", "id <> 3"],
  ["id=gt.3", "id > 3"],
  ["id=gte.3", "id >= 3"],
  ["id=lt.3", "id < 3"],
  ["id=lte.3", "id <= 3"],
  ["id=in.(1,3,5)", "id in (1, 3, 5)"],
  ["id=not.in.(1,3,5)", "not id in (1, 3, 5)"],
  ["id=not.eq.3", "not id = 3"],
  ["id=gt.1,id=lt.5", "id > 1 and id < 5"],
  ["word=eq.tide", "word = 'tide'"],
  ["word=eq.", "word = ''"],
  ["word=neq.tide", "word <> 'tide'"],
  ["word=gt.tide", "word > 'tide'"],
  ['word=eq."a,b"', "word = 'a,b'"],
  ['word=in.(tide,"a,b")', "word in ('tide', 'a,b')"],
  ["word=like.ti%", "word like 'ti%'"],
  ["word=like._ide", "word like '_ide'"],
  ["word=ilike.TI%", "word ilike 'TI%'"],
  ["word=not.like.ti%", "not word like 'ti%'"],
  ["word=match.^t.*e$", "word ~ '^t.*e$'"],
  ["word=imatch.^T", "word ~* '^T'"],
  ["word=is.null", "word is null"],
  ["word=not.is.null", "word is not null"],
  ["word=isdistinct.tide", "word is distinct from 'tide'"],
  ["word=not.isdistinct.tide", "word is not distinct from 'tide'"],
  ["flag=is.true", "flag is true"],
  ["flag=is.false", "flag is false"],
  ["flag=is.unknown", "flag is unknown"],
  ["flag=eq.true", "flag = true"],
  ["amount=gt.9.5", "amount > 9.5"],
  ["amount=eq.10.50", "amount = 10.50"],
  ["big=eq.9007199254740993", "big = 9007199254740993"],
  ["big=lt.9007199254740993", "big < 9007199254740993"],
  ["at=gte.2026-01-01T00:00:00+00:00", "at >= '2026-01-01T00:00:00+00:00'"],
  ["day=eq.2026-02-28", "day = '2026-02-28'"],
  ["uid=eq.6F9619FF-8B86-D011-B42D-00CF4FC964FF", "uid = '6f9619ff-8b86-d011-b42d-00cf4fc964ff'"],
  ["kind=eq.high", "kind = 'high'"],
  ["kind=gt.low", "kind > 'low'"],
  ["ratio=lt.0", "ratio < 0"],
  ["word=eq.tide,flag=is.true", "word = 'tide' and flag is true"],
];

const ROWS = `
  (1, 'tide',  true,  9.5,   1,                'low',  '2025-12-31T23:59:59Z', '2026-02-28', '6f9619ff-8b86-d011-b42d-00cf4fc964ff', -1.5),
  (2, 'Tide',  false, 10.5,  9007199254740992, 'mid',  '2026-01-01T00:00:00Z', '2026-03-01', gen_random_uuid(), 0),
  (3, 'a,b',   null,  10.50, 9007199254740993, 'high', '2026-06-01T00:00:00Z', null,         null, 1e300),
  (4, null,    true,  null,  null,             null,   null,                   '2026-02-28', null, null),
  (5, '',      false, -1,    -5,               'low',  '2027-01-01T00:00:00Z', '0044-03-15 BC', null, 'NaN'),
  (6, 'wide',  true,  100,   9007199254740994, 'high', '2026-01-01T01:00:00+01:00', 'infinity', null, '-Infinity'),
  (7, 'tídé',  null,  0,     0,                'mid',  'infinity',             '2026-02-27', null, 'Infinity')`;

let marks = 0;

for (const variant of [variants[0], variants[2]]) {
  test(`${variant.name}: every filter delivers what Postgres selects`, async (t) => {
    const client = closing(t)(openClient(variant, server.info));
    const listeners = [];
    for (const [filter] of CASES) {
      const { changes, live } = changesOn(client.channel(`filter ${filter}`), [
        { event: "INSERT", schema: "public", table: "filtered", filter },
        { event: "INSERT", schema: "public", table: "marker" },
      ]);
      await live();
      listeners.push(changes);
    }
    await server.sql("truncate filtered");
    await server.sql(`insert into filtered values ${ROWS}`);
    marks += 1;
    await server.sql("insert into marker values ($1)", [marks]);

    const wrong = [];
    for (const [index, [filter, condition]] of CASES.entries()) {
      await listeners[index].first(({ table, new: row }) => table === "marker" && row.id === marks);
      const got = listeners[index].all.filter(({ table }) => table === "filtered").map(({ new: row }) => row.id);
      const { rows } = await server.sql(`select id from filtered where ${condition} order by id`);
      const expected = rows.map(({ id }) => id);
      if (JSON.stringify(got) !== JSON.stringify(expected)) wrong.push(`${filter}: got [${got}], Postgres says [${expected}]`);
    }
    assert.deepEqual(wrong, []);
  });
}

describe("which row a filter looks at", () => {
  const variant = variants[0];

  test("an update is judged by its new row: moving in is heard, moving out is not", async (t) => {
    await server.table("moving", "id int primary key, status text", { identity: "full" });
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("moving"), [{ event: "*", schema: "public", table: "moving", filter: "status=eq.open" }]);
    await live();
    await server.sql("insert into moving values (1, 'won'), (2, 'open')");
    await server.sql("update moving set status = 'open' where id = 1");
    await server.sql("update moving set status = 'won' where id = 2");
    await server.sql("insert into moving values (3, 'open')");
    await changes.first(({ new: row }) => row.id === 3);
    assert.deepEqual(
      changes.all.map(({ eventType, new: row }) => [eventType, row.id]),
      [["INSERT", 2], ["UPDATE", 1], ["INSERT", 3]],
    );
  });

  test("a delete is judged by its identity columns", async (t) => {
    await server.table("deleted", "id int primary key, status text");
    const client = closing(t)(openClient(variant, server.info));
    const byKey = changesOn(client.channel("by-key"), [{ event: "DELETE", schema: "public", table: "deleted", filter: "id=gt.1" }]);
    const byStatus = changesOn(client.channel("by-status"), [
      { event: "DELETE", schema: "public", table: "deleted", filter: "status=eq.open" },
      { event: "INSERT", schema: "public", table: "marker" },
    ]);
    await byKey.live();
    await byStatus.live();
    await server.sql("insert into deleted values (1, 'open'), (2, 'open'), (3, 'open')");
    await server.sql("delete from deleted");
    marks += 1;
    await server.sql("insert into marker values ($1)", [marks]);
    await byKey.changes.some(2);
    assert.deepEqual(byKey.changes.all.map(({ old }) => old), [{ id: 2 }, { id: 3 }]);
    await byStatus.changes.first(({ table }) => table === "marker");
    assert.equal(byStatus.changes.all.length, 1, "a filter on a column outside the identity never matches a delete");
  });
});

describe("filters that are refused", () => {
  for (const [filter, expected] of [
    ["undefined", /^Error parsing `filter` params: \["undefined"\]$/],
    ["id=foo.1", /^Error parsing `filter` params: \["foo", "1"\]$/],
    ["id=eq", /^Error parsing `filter` params: \["eq"\]$/],
    ["id=eq.1,,word=eq.b", /^Error parsing `filter` params: filter must not contain empty segments \(check for extra commas\)$/],
    ["id=in.1", /^Error parsing `filter` params: `in` filter value must be wrapped by parentheses$/],
    ["id=eq.hey", /ERROR 22P02 \(invalid_text_representation\) invalid input syntax for type integer: "hey"$/],
    ["nope=eq.1", /ERROR P0001 \(raise_exception\) invalid column for filter nope$/],
    ["word=is.maybe", /invalid value for is filter: must be null, true, false, or unknown$/],
    ["id=is.true", /is true filter requires a boolean column, got integer$/],
    ["id=like.1", /operator like requires a text-compatible column type, got integer$/],
    ["word=match.(", /invalid regular expression for match filter: /],
    [`id=in.(${Array.from({ length: 101 }, (_, n) => n)})`, /too many values for `in` filter\. Maximum 100$/],
  ]) {
    test(filter.length > 40 ? `${filter.slice(0, 40)}…` : filter, async (t) => {
      const client = closing(t)(openClient(variants[0], server.info));
      const channel = client.channel(`refused ${filter.slice(0, 100)}`);
      const { system } = changesOn(channel, [{ event: "*", schema: "public", table: "filtered", filter }]);
      await subscribe(channel);
      const { message } = await system.first(({ status }) => status === "error", { within: 20_000 });
      assert.match(message, expected);
    });
  }
});
