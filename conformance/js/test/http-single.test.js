// One broadcast over HTTP. Spec: PROTOCOL.md §3.8, §3.8.2, Q19–Q21.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import http from "node:http";
import { describe, test } from "node:test";

import { openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { allow, newTopic, preparePolicies, userToken } from "../support/policies.js";
import { RawSocket, readable } from "../support/raw.js";
import { signToken } from "../support/server.js";

const server = withServer({ prepare: preparePolicies });

const JSON_TYPE = { "content-type": "application/json" };
const BYTES_TYPE = { "content-type": "application/octet-stream" };

/** A request by hand: `fetch` adds a content type and normalizes paths. */
function send(topic, event, { query = "", headers = JSON_TYPE, body = "{}", key = server.info.anon_key, method = "POST", host } = {}) {
  const path = `/realtime/v1/api/broadcast/${encodeURIComponent(topic)}/events/${encodeURIComponent(event)}${query}`;
  const { hostname, port } = new URL(server.info.url);
  return new Promise((resolve, reject) => {
    const all = { ...(key && { apikey: key }), ...(host && { host }), ...headers };
    const request = http.request({ hostname, port, path, method, headers: all }, async (response) => {
      response.setEncoding("utf8");
      let text = "";
      for await (const chunk of response) text += chunk;
      resolve({ status: response.statusCode, headers: response.headers, body: text });
    });
    request.on("error", reject);
    // A server that answers before it has read the body may close while the rest is still being written.
    request.on("socket", (socket) => socket.on("error", () => {}));
    request.end(body);
  });
}

const accepted = async (...request) => {
  const { status, body } = await send(...request);
  assert.deepEqual([status, body], [202, ""]);
};

async function member(t, topic, { isPrivate = false, vsn } = {}) {
  const raw = closing(t)(await RawSocket.open(server.info, { vsn, apikey: server.info.service_key }));
  const name = `realtime:${topic}`;
  const payload = { config: { private: isPrivate } };
  raw.send(vsn === "1.0.0" ? { topic: name, event: "phx_join", payload, ref: "1" } : ["1", "1", name, "phx_join", payload]);
  const reply = await raw.next();
  assert.equal((reply.payload ?? reply[4]).status, "ok");
  return { raw, name };
}

const delivery = (name, event, payload, encoding = 1) => ({ kind: 4, topic: name, event, metadata: "", encoding, payload });
const heard = async ({ raw }) => (await raw.settled()).map(readable);

describe("payloads", { concurrency: true }, () => {
  for (const [name, request, payload, encoding = 1] of [
    ["an object, byte for byte", { body: '{ "a" : [1, 2.50, "ü"], "b":null }' }, '{ "a" : [1, 2.50, "ü"], "b":null }'],
    ["with parameters of the content type", { headers: { "content-type": "application/json; charset=utf-8" }, body: '{"a":1}' }, '{"a":1}'],
    ["with a content type in capitals", { headers: { "content-type": "Application/JSON" }, body: '{"a":1}' }, '{"a":1}'],
    ["a list", { body: "[1,2]" }, '{"_json":[1,2]}'],
    ["a text", { body: '"x"' }, '{"_json":"x"}'],
    ["a number", { body: "7" }, '{"_json":7}'],
    ["null", { body: "null" }, '{"_json":null}'],
    ["no body", { body: "" }, "{}"],
    ["no content type", { headers: {}, body: '{"not":"looked at"}' }, "{}"],
    ["bytes", { headers: BYTES_TYPE, body: Buffer.from([0, 255, 10, 13]) }, [0, 255, 10, 13], 0],
    ["no bytes", { headers: BYTES_TYPE, body: "" }, [], 0],
    ["bytes that look like JSON", { headers: BYTES_TYPE, body: '{"private":true}' }, [...Buffer.from('{"private":true}')], 0],
  ]) {
    test(name, async (t) => {
      const topic = newTopic("payload");
      const [two, one] = [await member(t, topic), await member(t, topic, { vsn: "1.0.0" })];
      await accepted(topic, "e", request);
      assert.deepEqual(await heard(two), [delivery(two.name, "e", payload, encoding)]);
      // Version 1 has no form for bytes; what follows it shows that nothing came.
      await accepted(topic, "last");
      if (encoding === 1) {
        const frame = await one.raw.next();
        assert.deepEqual(frame, { topic: one.name, event: "broadcast", payload: { type: "broadcast", event: "e", payload: JSON.parse(payload) }, ref: null });
      }
      assert.equal((await one.raw.next()).payload.event, "last");
    });
  }

  test("topic and event are percent-decoded, and have no prefix", async (t) => {
    const topic = `${newTopic("path")}:a/b c%2F?#ü`;
    const { raw, name } = await member(t, topic);
    const prefixed = await member(t, `realtime:${topic}`);
    await accepted(topic, "e/1 ü%");
    await accepted(`realtime:${topic}`, "prefixed");
    assert.deepEqual(await heard({ raw }), [delivery(name, "e/1 ü%", "{}")]);
    assert.deepEqual(await heard(prefixed), [delivery(prefixed.name, "prefixed", "{}")]);
  });

  test("a hundred in a row arrive in order", async (t) => {
    const topic = newTopic("order");
    const one = await member(t, topic);
    for (let n = 0; n < 100; n += 1) await accepted(topic, `${n}`);
    assert.deepEqual((await heard(one)).map(({ event }) => event), Array.from({ length: 100 }, (_, n) => `${n}`));
  });
});

describe("private or not (Q21)", { concurrency: true }, () => {
  for (const [name, request, isPrivate] of [
    ["nothing said", {}, false],
    ["?private=true", { query: "?private=true" }, true],
    ["?private=false", { query: "?private=false" }, false],
    ["?private=TRUE", { query: "?private=TRUE" }, false],
    ["?private=1", { query: "?private=1" }, false],
    ["the body says true", { body: '{"private":true}' }, true],
    ["the body says \"true\"", { body: '{"private":"true"}' }, true],
    ["the body says 1", { body: '{"private":1}' }, false],
    ["the body says true deeper down", { body: '{"a":{"private":true}}' }, false],
    ["a list says true", { body: '[{"private":true}]' }, false],
    ["the body says true, the query false", { query: "?private=false", body: '{"private":true}' }, false],
    ["the body says false, the query true", { query: "?private=true", body: '{"private":false}' }, true],
    ["bytes with the query", { query: "?private=true", headers: BYTES_TYPE }, true],
  ]) {
    test(`${name}: ${isPrivate ? "private" : "public"}`, async (t) => {
      const topic = newTopic("private");
      const [inside, outside] = [await member(t, topic, { isPrivate: true }), await member(t, topic)];
      await accepted(topic, "e", { ...request, key: server.info.service_key });
      assert.deepEqual([(await heard(inside)).length, (await heard(outside)).length], isPrivate ? [1, 0] : [0, 1]);
    });
  }

  test("who may not write is answered 403, who may 202, whatever may be read", async (t) => {
    const [open, shut] = [newTopic("may"), newTopic("may")];
    const sub = randomUUID();
    await allow(server, open, ["write broadcast"], sub);
    await allow(server, shut, ["read broadcast", "read presence", "write presence"], sub);
    const members = [await member(t, open, { isPrivate: true }), await member(t, shut, { isPrivate: true })];
    const request = { query: "?private=true", headers: { ...JSON_TYPE, authorization: `Bearer ${userToken(server, { sub })}` } };
    await accepted(open, "e", request);
    const { status, body } = await send(shut, "e", request);
    assert.deepEqual([status, JSON.parse(body)], [403, { message: "Unauthorized" }]);
    assert.deepEqual(await Promise.all(members.map(async (one) => (await heard(one)).length)), [1, 0]);
  });

  test("the permission is asked anew for every request", async () => {
    const topic = newTopic("anew");
    const request = { query: "?private=true", key: userToken(server) };
    assert.equal((await send(topic, "e", request)).status, 403);
    await allow(server, topic, ["write broadcast"]);
    assert.equal((await send(topic, "e", request)).status, 202);
    await server.sql("delete from rights where topic = $1", [topic]);
    assert.equal((await send(topic, "e", request)).status, 403);
  });

  test("a policy that raises is answered 422 in these words", async () => {
    const topic = newTopic("raising");
    await server.sql(`create policy "raising" on realtime.messages for insert to authenticated
      with check (case when realtime.topic() = '${topic}' then length(topic) / 0 = 1 else false end)`);
    const { status, body } = await send(topic, "e", { query: "?private=true", key: userToken(server) });
    assert.deepEqual([status, JSON.parse(body)], [422, { message: "RLS policy error" }]);
  });
});

describe("answers", { concurrency: true }, () => {
  const unsupported = { error: "Unsupported Media Type. Use application/json or application/octet-stream" };
  const unauthorized = { message: "Unauthorized" };
  const bad = () => signToken({ role: "anon" }, "another secret that is long enough, 32 bytes");
  for (const [name, request, status, body] of [
    ["another content type", () => ({ headers: { "content-type": "text/plain" } }), 415, unsupported],
    ["another content type and no token", () => ({ headers: { "content-type": "multipart/form-data" }, key: null }), 415, unsupported],
    ["a content type that only starts like JSON", () => ({ headers: { "content-type": "application/json+x" } }), 415, unsupported],
    ["no token", () => ({ key: null }), 401, unauthorized],
    ["nonsense as token", () => ({ key: "nonsense" }), 401, unauthorized],
    ["a token of another secret", () => ({ key: bad() }), 401, unauthorized],
    ["an expired token", () => ({ key: server.token({ role: "anon", exp: 1 }) }), 401, unauthorized],
    ["a token without role", () => ({ key: server.token({}) }), 401, unauthorized],
    ["a good key beside a bad Authorization", () => ({ headers: { ...JSON_TYPE, authorization: `Bearer ${bad()}` } }), 401, unauthorized],
    ["an unknown tenant", () => ({ host: "nobody.example.com" }), 401, { message: "Tenant not found in database" }],
    ["an unknown tenant and no token", () => ({ host: "nobody.example.com", key: null }), 401, { message: "Tenant not found in database" }],
    ["a payload above the limit", () => ({ body: JSON.stringify({ a: "x".repeat(3_100_000) }) }), 422, { errors: { payload: ["Payload size exceeds tenant limit"] } }],
    ["bytes above the limit", () => ({ headers: BYTES_TYPE, body: Buffer.alloc(3_100_000) }), 422, { errors: { payload: ["Payload size exceeds tenant limit"] } }],
  ]) {
    test(`${name}: ${status}`, async () => {
      const answer = await send("answers", "e", request());
      assert.equal(answer.status, status, answer.body);
      assert.deepEqual(JSON.parse(answer.body), body);
      assert.match(answer.headers["content-type"], /^application\/json/);
    });
  }

  test("JSON that is none is answered 400, a body above the HTTP limit 413", async () => {
    assert.equal((await send("answers", "e", { body: "{" })).status, 400);
    assert.equal((await send("answers", "e", { headers: BYTES_TYPE, body: Buffer.alloc(8_100_000) })).status, 413);
  });

  test("another scheme than Bearer falls back to the key, and Bearer is compared without case", async () => {
    assert.equal((await send("answers", "e", { headers: { ...JSON_TYPE, authorization: "Basic abc" } })).status, 202);
    assert.equal((await send("answers", "e", { headers: { ...JSON_TYPE, authorization: `bEARER ${server.info.anon_key}` }, key: null })).status, 202);
  });

  test("a refused message reaches nobody", async (t) => {
    const topic = newTopic("refused");
    const one = await member(t, topic);
    await send(topic, "e", { key: "nonsense" });
    await send(topic, "e", { headers: { "content-type": "text/plain" } });
    await send(topic, "e", { body: "{" });
    assert.deepEqual(await heard(one), []);
  });

  test("the path of the server itself serves the same", async () => {
    const answer = await fetch(`${server.info.url}/api/broadcast/t/events/e`, { method: "POST", headers: { ...JSON_TYPE, apikey: server.info.anon_key }, body: "{}" });
    assert.equal(answer.status, 202);
  });
});

describe("httpSend of supabase-js", () => {
  for (const variant of variants) {
    test(`${variant.name}: reaches the members`, async (t) => {
      const topic = newTopic("httpsend");
      const [from, to] = [closing(t)(openClient(variant, server.info)), closing(t)(openClient(variant, server.info))];
      const channel = to.channel(topic);
      const heard = new Inbox(`broadcasts on ${topic}`);
      channel.on("broadcast", { event: "*" }, (message) => heard.push(message));
      await subscribe(channel);
      // The older client's form goes to the batch route; both say the same.
      assert.deepEqual(await from.channel(topic).httpSend("hello", { a: "ü" }), { success: true });
      const { event, payload } = await heard.at(0);
      assert.deepEqual([event, payload], ["hello", { a: "ü" }]);
      if (variant.hasBinary) {
        assert.deepEqual(await from.channel(topic).httpSend("bytes", new Uint8Array([1, 2, 3]).buffer), { success: true });
        const { payload: bytes } = await heard.at(1);
        assert.deepEqual([...new Uint8Array(bytes)], [1, 2, 3]);
      }
    });
  }

  test("a private room: members with the right to write only", async (t) => {
    const topic = newTopic("httpsend");
    const sub = randomUUID();
    await allow(server, topic, ["read broadcast", "write broadcast"], sub);
    const open = async (token) => {
      const client = closing(t)(openClient(variants[0], server.info, { token }));
      await client.client.realtime.setAuth();
      return client.channel(topic, { config: { private: true } });
    };
    const [ada, stranger] = [await open(userToken(server, { sub })), await open(userToken(server))];
    const heard = new Inbox(`broadcasts on ${topic}`);
    ada.on("broadcast", { event: "*" }, (message) => heard.push(message));
    await subscribe(ada);
    await assert.rejects(stranger.httpSend("denied", {}), /Unauthorized/);
    assert.deepEqual(await ada.httpSend("allowed", { n: 1 }), { success: true });
    assert.deepEqual((await heard.at(0)).event, "allowed");
  });
});
