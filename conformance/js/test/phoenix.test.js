// The stock Phoenix client, which knows nothing of Supabase. Spec: PROTOCOL.md §10.3.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Presence, Socket } from "phoenix";
import WebSocket from "ws";

import { closing, withServer } from "../support/fixture.js";
import { Inbox } from "../support/inbox.js";

const server = withServer();

const versions = [
  // The stock serializer writes version 2 whatever `vsn` says; version 1 needs its own pair of functions.
  { vsn: "1.0.0", encode: (message, done) => done(JSON.stringify(message)), decode: (text, done) => done(JSON.parse(text)) },
  { vsn: "2.0.0" },
];

function openSocket(options, more = {}) {
  const socket = new Socket(server.info.ws_url, {
    transport: WebSocket,
    params: { apikey: server.info.anon_key },
    reconnectAfterMs: () => 200,
    ...options,
    ...more,
  });
  socket.connect();
  return { socket, close: () => new Promise((resolve) => socket.disconnect(resolve)) };
}

function answered(push) {
  return new Promise((resolve, reject) => {
    push
      .receive("ok", resolve)
      .receive("error", (response) => reject(new Error(JSON.stringify(response))))
      .receive("timeout", () => reject(new Error("timeout")));
  });
}

for (const options of versions) {
  describe(`phoenix, vsn ${options.vsn}`, () => {
    test("join, broadcast with reply, leave", async (t) => {
      const open = closing(t);
      const [one, two] = [open(openSocket(options)), open(openSocket(options))];
      const config = { config: { broadcast: { ack: true } } };
      const [from, to] = [one.socket.channel("realtime:stock", config), two.socket.channel("realtime:stock", config)];
      const heard = new Inbox("broadcasts");
      to.on("broadcast", (payload) => heard.push(payload));
      assert.deepEqual(await answered(from.join()), { postgres_changes: [] });
      await answered(to.join());
      assert.deepEqual(await answered(from.push("broadcast", { type: "broadcast", event: "e", payload: { n: 1 } })), {});
      assert.deepEqual(await heard.first(() => true), { type: "broadcast", event: "e", payload: { n: 1 } });
      assert.deepEqual(await answered(from.leave()), {});
    });

    test("its Presence follows the room", async (t) => {
      const open = closing(t);
      const [one, two] = [open(openSocket(options)), open(openSocket(options))];
      const join = async (socket, key) => {
        const channel = socket.channel(`realtime:stock-presence-${options.vsn}`, { config: { presence: { enabled: true, key } } });
        const states = new Inbox(`presence of ${key}`);
        const presence = new Presence(channel);
        presence.onSync(() => states.push(Object.keys(presence.state).sort().join()));
        await answered(channel.join());
        return { channel, states };
      };
      const ada = await join(one.socket, "ada");
      await answered(ada.channel.push("presence", { event: "track", payload: { name: "Ada" } }));
      const ben = await join(two.socket, "ben");
      await ben.states.first((keys) => keys === "ada");
      await answered(ben.channel.push("presence", { event: "track", payload: { name: "Ben" } }));
      await ada.states.first((keys) => keys === "ada,ben");
      await answered(ben.channel.leave());
      await ada.states.first((_, index) => ada.states.all.at(-1) === "ada");
    });

    test("changes arrive as plain events", async (t) => {
      const table = `stock_${options.vsn[0]}`;
      await server.table(table, "id int primary key");
      const { socket } = closing(t)(openSocket(options));
      const channel = socket.channel("realtime:stock-changes", { config: { postgres_changes: [{ event: "*", schema: "public", table }] } });
      const [changes, system] = [new Inbox("changes"), new Inbox("system")];
      channel.on("postgres_changes", (payload) => changes.push(payload));
      channel.on("system", (payload) => system.push(payload));
      const { postgres_changes: [{ id }] } = await answered(channel.join());
      assert.deepEqual(await system.first(() => true, { within: 20_000 }), {
        extension: "postgres_changes",
        status: "ok",
        message: "Subscribed to PostgreSQL",
        channel: "stock-changes",
      });
      await server.sql(`insert into ${table} values (1)`);
      const { ids, data } = await changes.first(() => true);
      assert.deepEqual(ids, [id]);
      assert.deepEqual(data.record, { id: 1 });
      assert.deepEqual(data.columns, [{ name: "id", type: "int4" }]);
      assert.equal(data.errors, null);
      assert.ok(!("old_record" in data));
    });

    test("heartbeats keep the socket, and a cut socket comes back with its channels", async (t) => {
      const { socket } = closing(t)(openSocket(options, { heartbeatIntervalMs: 200 }));
      const beats = new Inbox("heartbeat replies");
      socket.onMessage(({ topic, event, payload }) => topic === "phoenix" && beats.push({ event, payload }));
      const joins = new Inbox("joins");
      const channel = socket.channel("realtime:stock-cut", { config: {} });
      channel.join().receive("ok", () => joins.push("ok"));
      await joins.some(1);
      await beats.some(3);
      socket.conn.terminate();
      await joins.some(2);
      assert.equal(channel.state, "joined");
    });
  });
}
