// Values as JSON, byte for byte where JavaScript's numbers would hide the difference. Spec: PROTOCOL.md §5.6, §5.9.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, openClient, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { RawSocket } from "../support/raw.js";

// column, type, SQL value, JSON as it stands in the frame, and the type's name in `columns`.
const VALUES = [
  ["i2", "int2", "-5", "-5", "int2"],
  ["i4", "int4", "7", "7", "int4"],
  ["i8", "int8", "9007199254740993", "9007199254740993", "int8"],
  ["f4", "float4", "1.5", "1.5", "float4"],
  ["f8", "float8", "0.1", "0.1", "float8"],
  ["f8nan", "float8", "'NaN'", "null", "float8"],
  ["f8inf", "float8", "'-Infinity'", "null", "float8"],
  ["num", "numeric(10,5)", "1234.5", "1234.50000", "numeric"],
  ["numnan", "numeric", "'NaN'", "null", "numeric"],
  ["yes", "bool", "true", "true", "bool"],
  ["no", "bool", "false", "false", "bool"],
  ["words", "text", "E'say \"hé\\nllo\" \\\\ 🌊'", '"say \\"hé\\nllo\\" \\\\ 🌊"', "text"],
  ["vc", "varchar(20)", "'short'", '"short"', "varchar"],
  ["uid", "uuid", "'6F9619FF-8B86-D011-B42D-00CF4FC964FF'", '"6f9619ff-8b86-d011-b42d-00cf4fc964ff"', "uuid"],
  ["raw", "bytea", "'\\xdeadbeef'", '"deadbeef"', "bytea"],
  ["js", "json", "'{\"b\":1,\"a\":[1,null]}'", { b: 1, a: [1, null] }, "json"],
  ["jsb", "jsonb", "'{\"b\":1,\"a\":[1,null]}'", { a: [1, null], b: 1 }, "jsonb"],
  ["jsnull", "jsonb", "'null'", "null", "jsonb"],
  ["ts", "timestamp", "'2024-01-02 03:04:05.678000'", '"2024-01-02T03:04:05.678"', "timestamp"],
  ["tsz", "timestamptz", "'2024-01-02 03:04:05.678+02'", '"2024-01-02T01:04:05.678+00:00"', "timestamptz"],
  ["day", "date", "'2024-01-02'", '"2024-01-02"', "date"],
  ["clock", "time", "'03:04:05'", '"03:04:05"', "time"],
  ["clockz", "timetz", "'03:04:05+02'", '"03:04:05+02"', "timetz"],
  ["span", "interval", "'1 day 02:03:04'", '"1 day 02:03:04"', "interval"],
  ["ip", "inet", "'10.0.0.1'", '"10.0.0.1"', "inet"],
  ["place", "point", "'(1,2)'", '"(1,2)"', "point"],
  ["rng", "int4range", "'[1,4]'", '"[1,5)"', "int4range"],
  ["mood", "mood", "'ok'", '"ok"', "mood"],
  ["object", "oid", "42", '"42"', "oid"],
  ["ints", "int4[]", "'{{1,2},{3,NULL}}'", [[1, 2], [3, null]], "_int4"],
  ["texts", "text[]", "array['a', 'b,c', null, 'say \"hi\"']", ["a", "b,c", null, 'say "hi"'], "_text"],
  ["none", "text[]", "'{}'", [], "_text"],
  ["pair", "pair", "row(1, 'a')", { x: 1, y: "a" }, "pair"],
  ["positive", "positive", "3", "3", "positive"],
  ["twice", "int4 generated always as (i4 * 2) stored", "default", null, "int4"],
  ["nothing", "text", "null", "null", "text"],
];

const server = withServer({
  prepare: async (started) => {
    await started.sql("create type mood as enum ('ok', 'not ok'); create type pair as (x int, y text); create domain positive as int check (value > 0)");
    await started.table("valued", `id int primary key, ${VALUES.map(([name, type]) => `${name} ${type}`).join(", ")}`);
  },
});

test("every type has its JSON, and its name in the columns", async (t) => {
  const raw = closing(t)(await RawSocket.open(server.info));
  await raw.join("realtime:values", { postgres_changes: [{ event: "*", schema: "public", table: "valued" }] });
  await raw.live();
  await server.sql(`insert into valued (id, ${VALUES.map(([name]) => name)}) values (1, ${VALUES.map(([, , value]) => value)})`);
  const isChange = (frame) => typeof frame === "string" && frame.includes('"postgres_changes",');
  const text = await raw.frames.first((frame) => isChange(frame) && frame.includes('"commit_timestamp"'));
  const { data } = JSON.parse(text)[4];

  const wrong = [];
  for (const [name, , , expected] of VALUES) {
    if (expected === null) continue;
    const got = JSON.stringify(data.record[name]);
    if (typeof expected === "string") {
      // Literal text: numbers keep every digit, strings every escape that matters.
      if (!holds(text, name, expected)) wrong.push(`${name}: expected ${expected}, the frame has ${excerpt(text, name)}`);
    } else if (got !== JSON.stringify(expected)) {
      wrong.push(`${name}: expected ${JSON.stringify(expected)}, got ${got}`);
    }
  }
  assert.deepEqual(wrong, []);
  assert.deepEqual(
    data.columns,
    [{ name: "id", type: "int4" }, ...VALUES.map(([name, , , , type]) => ({ name, type }))],
  );
});

/** Whether the record has this key with this literal value; equal strings may be escaped differently. */
function holds(text, name, expected) {
  const at = text.indexOf(`"${name}":`, text.indexOf('"record":'));
  const rest = text.slice(at + name.length + 3);
  if (!expected.startsWith('"')) return new RegExp(`^${expected.replace(".", "\\.")}[,}]`).test(rest);
  return JSON.parse(text)[4].data.record[name] === JSON.parse(expected);
}

function excerpt(text, name) {
  const at = text.indexOf(`"${name}":`, text.indexOf('"record":'));
  return at < 0 ? "no such key" : text.slice(at, at + 60);
}

for (const variant of variants) {
  test(`${variant.name} reads them`, async (t) => {
    const client = closing(t)(openClient(variant, server.info));
    const { changes, live } = changesOn(client.channel("values"), [{ event: "INSERT", schema: "public", table: "valued" }]);
    await live();
    await server.sql("delete from valued");
    await server.sql(`insert into valued (id, ${VALUES.map(([name]) => name)}) values (1, ${VALUES.map(([, , value]) => value)})`);
    const [{ new: row }] = await changes.some(1);
    assert.equal(row.i2, -5);
    assert.equal(row.num, 1234.5);
    assert.equal(row.yes, true);
    assert.equal(row.ts, "2024-01-02T03:04:05.678");
    assert.deepEqual(row.jsb, { a: [1, null], b: 1 });
    assert.deepEqual(row.ints, [[1, 2], [3, null]]);
    assert.deepEqual(row.texts, ["a", "b,c", null, 'say "hi"']);
    assert.deepEqual(row.pair, { x: 1, y: "a" });
    assert.equal(row.mood, "ok");
    assert.equal(row.nothing, null);
    assert.equal(row.words, 'say "hé\nllo" \\ 🌊');
  });
}

describe("values at their edges", () => {
  test("the smallest and largest integers and a numeric of a hundred digits keep every digit", async (t) => {
    await server.table("digits", "id int primary key, low int8, high int8, long numeric, tiny float8");
    const raw = closing(t)(await RawSocket.open(server.info));
    await raw.join("realtime:digits", { postgres_changes: [{ event: "*", schema: "public", table: "digits" }] });
    await raw.live();
    const long = `1${"0".repeat(60)}.${"0".repeat(38)}1`;
    await server.sql(`insert into digits values (1, -9223372036854775808, 9223372036854775807, ${long}, 5e-324)`);
    const text = await raw.frames.first((frame) => typeof frame === "string" && frame.includes('"commit_timestamp"'));
    assert.ok(text.includes('"low":-9223372036854775808'), text);
    assert.ok(text.includes('"high":9223372036854775807'), text);
    assert.ok(text.includes(`"long":${long}`), text);
    assert.equal(JSON.parse(text)[4].data.record.tiny, 5e-324);
  });

  test("control characters and astral characters survive", async (t) => {
    await server.table("characters", "id int primary key, word text");
    const raw = closing(t)(await RawSocket.open(server.info));
    await raw.join("realtime:characters", { postgres_changes: [{ event: "*", schema: "public", table: "characters" }] });
    await raw.live();
    const word = Array.from({ length: 0x2ff }, (_, n) => String.fromCodePoint(n + 1)).join("") + "\u2028\u2029\ufeff\u{1f30a}\u{10ffff}";
    await server.sql("insert into characters values (1, $1)", [word]);
    const text = await raw.frames.first((frame) => typeof frame === "string" && frame.includes('"commit_timestamp"'));
    assert.equal(JSON.parse(text)[4].data.record.word, word);
  });
});
