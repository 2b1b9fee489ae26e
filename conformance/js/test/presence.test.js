// Presence with the official client. Spec: PROTOCOL.md §4, §10.1.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { openClient, subscribe, variants } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";

const server = withServer();

/** A subscribed channel with a presence key and the inbox of its presence events, each with the state it left. */
async function member(client, topic, key) {
  const channel = client.channel(topic, { config: { presence: { key } } });
  const events = new Inbox(`presence of ${key}`);
  const note = (kind) => (details) => events.push({ kind, ...details, state: structuredClone(channel.presenceState()) });
  channel.on("presence", { event: "sync" }, note("sync"));
  channel.on("presence", { event: "join" }, note("join"));
  channel.on("presence", { event: "leave" }, note("leave"));
  await subscribe(channel);
  return { channel, events };
}

const names = (state) => Object.fromEntries(Object.entries(state).map(([key, metas]) => [key, metas.map(({ name }) => name)]));
const sees = (expected) => ({ kind, state }) => kind === "sync" && JSON.stringify(names(state)) === JSON.stringify(expected);

for (const variant of variants) {
  describe(variant.name, () => {
    test("an empty room syncs to an empty state", async (t) => {
      const client = closing(t)(openClient(variant, server.info));
      const { events } = await member(client, `empty-${variant.name}`, "ada");
      assert.deepEqual((await events.first(({ kind }) => kind === "sync")).state, {});
    });

    test("everybody learns who joins, who changes and who leaves", async (t) => {
      const open = closing(t);
      const topic = `life-${variant.name}`;
      const ada = await member(open(openClient(variant, server.info)), topic, "ada");
      assert.equal(await ada.channel.track({ name: "Ada", n: 1 }), "ok");
      await ada.events.first(sees({ ada: ["Ada"] }));

      const ben = await member(open(openClient(variant, server.info)), topic, "ben");
      await ben.events.first(sees({ ada: ["Ada"] }));
      assert.equal(await ben.channel.track({ name: "Ben" }), "ok");

      const joined = await ada.events.first(({ kind, key }) => kind === "join" && key === "ben");
      assert.deepEqual(joined.newPresences.map(({ name }) => name), ["Ben"]);
      assert.match(joined.newPresences[0].presence_ref, /^[A-Za-z0-9_-]{16}$/);
      await ada.events.first(sees({ ada: ["Ada"], ben: ["Ben"] }));

      assert.equal(await ben.channel.track({ name: "Benjamin" }), "ok");
      await ada.events.first(sees({ ada: ["Ada"], ben: ["Benjamin"] }));

      assert.equal(await ben.channel.untrack(), "ok");
      const left = await ada.events.first(({ kind, key, leftPresences }) => kind === "leave" && key === "ben" && leftPresences[0].name === "Benjamin");
      assert.deepEqual(left.currentPresences, []);
      await ada.events.first(({ kind, state }) => kind === "sync" && !("ben" in state));
      assert.deepEqual(names(ada.channel.presenceState()), { ada: ["Ada"] });
    });

    test("tracking the same again tells nobody", async (t) => {
      const open = closing(t);
      const topic = `same-${variant.name}`;
      const ada = await member(open(openClient(variant, server.info)), topic, "ada");
      const ben = await member(open(openClient(variant, server.info)), topic, "ben");
      await ada.channel.track({ name: "Ada" });
      await ben.events.first(sees({ ada: ["Ada"] }));
      const before = ben.events.all.length;
      assert.equal(await ada.channel.track({ name: "Ada" }), "ok");
      await ada.channel.track({ name: "Ada L." });
      await ben.events.first(sees({ ada: ["Ada L."] }));
      const joins = ben.events.all.slice(before).filter(({ kind }) => kind === "join");
      assert.deepEqual(joins.map(({ newPresences }) => newPresences[0].name), ["Ada L."]);
    });

    test("two channels may share a key", async (t) => {
      const open = closing(t);
      const topic = `shared-${variant.name}`;
      const one = await member(open(openClient(variant, server.info)), topic, "ada");
      const two = await member(open(openClient(variant, server.info)), topic, "ada");
      await one.channel.track({ name: "laptop" });
      await two.events.first(sees({ ada: ["laptop"] }));
      await two.channel.track({ name: "phone" });
      await one.events.first(sees({ ada: ["laptop", "phone"] }));
      await two.channel.unsubscribe();
      const last = await one.events.first(({ kind, key }) => kind === "leave" && key === "ada");
      assert.deepEqual(last.currentPresences.map(({ name }) => name), ["laptop"]);
    });

    test("an unsubscribe is a leave", async (t) => {
      const open = closing(t);
      const topic = `unsubscribe-${variant.name}`;
      const ada = await member(open(openClient(variant, server.info)), topic, "ada");
      const ben = await member(open(openClient(variant, server.info)), topic, "ben");
      await ben.channel.track({ name: "Ben" });
      await ada.events.first(sees({ ben: ["Ben"] }));
      assert.equal(await ben.channel.unsubscribe(), "ok");
      await ada.events.first(({ kind, key }) => kind === "leave" && key === "ben");
    });

    test("a connection that is cut is a leave", async (t) => {
      const open = closing(t);
      const topic = `cut-${variant.name}`;
      const ada = await member(open(openClient(variant, server.info)), topic, "ada");
      const benClient = open(openClient(variant, server.info, { realtime: { reconnectAfterMs: () => 60_000 } }));
      const ben = await member(benClient, topic, "ben");
      await ben.channel.track({ name: "Ben" });
      await ada.events.first(sees({ ben: ["Ben"] }));
      benClient.sockets.at(-1).terminate();
      await ada.events.first(({ kind, key }) => kind === "leave" && key === "ben", { within: 5_000 });
      assert.deepEqual(ada.channel.presenceState(), {});
    });

    test("without a key the server makes one for each channel", async (t) => {
      const open = closing(t);
      const topic = `keyless-${variant.name}`;
      const ada = await member(open(openClient(variant, server.info)), topic, "");
      const ben = await member(open(openClient(variant, server.info)), topic, "");
      await ada.channel.track({ name: "Ada" });
      await ben.channel.track({ name: "Ben" });
      const { state } = await ada.events.first(({ kind, state }) => kind === "sync" && Object.keys(state).length === 2);
      for (const key of Object.keys(state)) assert.match(key, /^[0-9a-f-]{36}$/);
    });
  });
}

test("versions 1 and 2 see each other", async (t) => {
  const open = closing(t);
  const ada = await member(open(openClient(variants[0], server.info)), "mixed", "ada");
  const ben = await member(open(openClient(variants[2], server.info)), "mixed", "ben");
  await ada.channel.track({ name: "Ada" });
  await ben.channel.track({ name: "Ben" });
  const both = ({ state }) => Object.keys(state).sort().join() === "ada,ben";
  await ada.events.first(both);
  await ben.events.first(both);
});

test("fifty members all see fifty", async (t) => {
  const open = closing(t);
  const members = await Promise.all(
    Array.from({ length: 50 }, (_, n) => member(open(openClient(variants[n % variants.length], server.info)), "crowd", `m${n}`)),
  );
  await Promise.all(members.map(({ channel }, n) => channel.track({ name: `m${n}` })));
  await Promise.all(members.map(({ events }) => events.first(({ state }) => Object.keys(state).length === 50, { within: 15_000 })));
});
