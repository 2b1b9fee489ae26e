// Tokens of channels: expiry, refresh, refusal. Spec: PROTOCOL.md §2.3, §2.5, §6.3, §6.4.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, subscribe, variants, watch } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";
import { RawSocket } from "../support/raw.js";
import { signToken } from "../support/server.js";

const server = withServer();
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

for (const variant of variants) {
  describe(variant.name, { concurrency: true }, () => {
    test("an expired token is a CHANNEL_ERROR that says so", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      await client.client.realtime.setAuth(server.token({ role: "authenticated", exp: inSeconds(-30) }));
      const statuses = watch(client.channel("expired"));
      const { error } = await statuses.first(({ status }) => status === "CHANNEL_ERROR", { within: 9_000 });
      assert.match(error.message, /InvalidJWTToken: Token has expired \d+ seconds ago/);
    });

    test("a private channel is refused as unauthorized", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const statuses = watch(client.channel("secret", { config: { private: true } }));
      const { error } = await statuses.first(({ status }) => status !== "SUBSCRIBED", { within: 9_000 });
      assert.match(error.message, /^"?Unauthorized: /); // the older client quotes the reason
      assert.equal(statuses.all[0].status, "CHANNEL_ERROR");
    });

    test("a token that expires while joined ends the channel with a message", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      await client.client.realtime.setAuth(server.token({ role: "authenticated", exp: inSeconds(4) }));
      const channel = client.channel("expires");
      const system = new Inbox("system");
      channel.on("system", {}, (message) => system.push(message));
      const statuses = await subscribe(channel);
      const { message, status } = await system.first(() => true, { within: 12_000 });
      assert.equal(status, "error");
      assert.match(message, /^Token has expired \d+ seconds ago$/);
      await statuses.first(({ status: state }) => state === "CLOSED");
    });

    test("a token refreshed in time keeps the channel, and Postgres Changes say so once more", async (t) => {
      const table = `refreshed_${variants.indexOf(variant)}`;
      await server.table(table, "id int primary key");
      const client = closing(t)(openClient(variant, server.info));
      const [sub] = [crypto.randomUUID()];
      await client.client.realtime.setAuth(server.token({ role: "authenticated", sub, exp: inSeconds(4) }));
      const channel = client.channel("refreshed", { config: { broadcast: { self: true } } });
      const { changes, system, live } = changesOn(channel, [{ event: "*", schema: "public", table }]);
      const statuses = await live();
      await client.client.realtime.setAuth(server.token({ role: "authenticated", sub, exp: inSeconds(3600) }));
      await isLive(system, { count: 2 });
      // Past the first token's end, and proven by a change rather than by silence.
      await new Promise((resolve) => setTimeout(resolve, 5_000)); // the first token must have run out
      await server.sql(`insert into ${table} values (1)`);
      await changes.some(1);
      assert.deepEqual(statuses.all.map(({ status }) => status), ["SUBSCRIBED"]);
    });
  });
}

describe("raw frames", { concurrency: true }, () => {
  const join = async (t, payload, topic = "realtime:tokens") => {
    const raw = closing(t)(await RawSocket.open(server.info));
    raw.send(["1", "1", topic, "phx_join", payload]);
    return { raw, reply: await raw.next() };
  };

  for (const [name, token, reason] of [
    ["malformed", () => "not a token", "MalformedJWT: The token provided is not a valid JWT"],
    ["of another secret", () => signToken({ role: "anon" }, "another secret that is long enough, 32 bytes"), "JwtSignatureError: Failed to validate JWT signature"],
    ["without a role", () => server.token({ sub: "x" }), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"],
    ["without an expiry", () => server.token({ role: "anon", exp: null }), "InvalidJWTToken: Fields `role` and `exp` are required in JWT"],
  ]) {
    test(`a join with a token ${name} is refused with its reason`, async (t) => {
      const { reply } = await join(t, { config: {}, access_token: token() });
      assert.deepEqual(reply, ["1", "1", "realtime:tokens", "phx_reply", { status: "error", response: { reason } }]);
    });
  }

  test("a token that starts with sb_ is replaced by the connection's", async (t) => {
    const { reply } = await join(t, { config: {}, access_token: "sb_publishable_x" });
    assert.equal(reply[4].status, "ok");
  });

  test("user_token wins over access_token", async (t) => {
    const { reply } = await join(t, { config: {}, access_token: server.info.anon_key, user_token: "nonsense" });
    assert.equal(reply[4].status, "error");
  });

  test("a join without a topic name is refused", async (t) => {
    const { reply } = await join(t, { config: {} }, "realtime:");
    assert.deepEqual(reply[4], { status: "error", response: { reason: "TopicNameRequired: You must provide a topic name" } });
  });

  for (const [name, token, message] of [
    ["malformed", () => "nonsense", "The token provided is not a valid JWT"],
    ["of another secret", () => signToken({ role: "anon" }, "another secret that is long enough, 32 bytes"), ":signature_error"],
    ["without a role", () => server.token({ sub: "x" }), "Fields `role` and `exp` are required in JWT"],
  ]) {
    test(`a pushed token ${name} shuts the channel down with a message and a close`, async (t) => {
      const { raw } = await join(t, { config: {} });
      raw.send(["1", "2", "realtime:tokens", "access_token", { access_token: token() }]);
      assert.deepEqual(await raw.next(), [
        "1",
        null,
        "realtime:tokens",
        "system",
        { extension: "system", status: "error", message, channel: "tokens" },
      ]);
      assert.deepEqual(await raw.next(), ["1", "1", "realtime:tokens", "phx_close", {}]);
      raw.send(["1", "3", "realtime:tokens", "broadcast", { type: "broadcast", event: "e", payload: {} }]);
      assert.deepEqual(await raw.next(), [null, "3", "realtime:tokens", "phx_reply", { status: "error", response: { reason: "unmatched topic" } }]);
    });
  }

  test("a pushed token that is null, equal or of the wrong shape is ignored", async (t) => {
    const { raw } = await join(t, { config: {} });
    for (const payload of [{ access_token: null }, { access_token: "sb_secret_x" }, { access_token: 7 }, {}, { access_token: server.info.anon_key }]) {
      raw.send(["1", "2", "realtime:tokens", "access_token", payload]);
    }
    assert.deepEqual(await raw.settled(), []);
  });
});
