/** The official clients, unmodified, in the versions and protocol versions that the suite runs. */

import { createClient } from "@supabase/supabase-js";
import { createClient as createOlderClient } from "supabase-js-older";
import WebSocket from "ws";

import { Inbox } from "./inbox.js";

/** `vsn` undefined leaves the client its own default. The older client speaks 1.0.0 only. */
export const variants = [
  { name: "supabase-js current, vsn 2.0.0", create: createClient, vsn: "2.0.0", hasBinary: true },
  { name: "supabase-js current, vsn 1.0.0", create: createClient, vsn: "1.0.0", hasBinary: false },
  { name: "supabase-js older, vsn 1.0.0", create: createOlderClient, vsn: undefined, hasBinary: false },
];

/**
 * A client whose sockets the test can cut: `sockets` has every one it opened. `token` is a text or a function that
 * gives the one that counts now.
 */
export function openClient(variant, info, { token, key = info.anon_key, realtime = {} } = {}) {
  const sockets = [];
  class Transport extends WebSocket {
    constructor(address, protocols) {
      super(address, protocols, { perMessageDeflate: false });
      sockets.push(this);
    }
  }
  const client = variant.create(info.url, key, {
    auth: { persistSession: false, autoRefreshToken: false, detectSessionInUrl: false },
    realtime: { transport: Transport, reconnectAfterMs: () => 250, ...(variant.vsn && { vsn: variant.vsn }), ...realtime },
    ...(token && { accessToken: async () => (typeof token === "function" ? token() : token) }),
  });
  return {
    client,
    sockets,
    channel: (topic, options) => client.channel(topic, options),
    async close() {
      await client.removeAllChannels();
      await client.realtime.disconnect();
      for (const socket of sockets) socket.terminate();
    },
  };
}

/** Subscribes and returns the inbox of statuses once the channel is SUBSCRIBED; other first statuses reject. */
export async function subscribe(channel, { within = 15_000 } = {}) {
  const statuses = watch(channel);
  const { status, error } = await statuses.first(() => true, { within, what: "the first status" });
  if (status !== "SUBSCRIBED") throw new Error(`${channel.topic}: ${status} ${error?.message ?? ""}`);
  return statuses;
}

/** Subscribes and returns the inbox of `{ status, error }` without waiting. */
export function watch(channel) {
  const statuses = new Inbox(`statuses of ${channel.topic}`);
  channel.subscribe((status, error) => statuses.push({ status, error }));
  return statuses;
}

/**
 * Adds bindings and returns `{ changes, system }`; `live()` subscribes and waits for "Subscribed to PostgreSQL".
 * A binding is the filter object of `postgres_changes`.
 */
export function changesOn(channel, bindings) {
  const changes = new Inbox(`changes on ${channel.topic}`);
  const system = new Inbox(`system messages on ${channel.topic}`);
  for (const binding of bindings) channel.on("postgres_changes", binding, (change) => changes.push(change));
  channel.on("system", {}, (message) => system.push(message));
  return {
    changes,
    system,
    async live({ within = 20_000 } = {}) {
      const statuses = await subscribe(channel);
      await isLive(system, { within });
      return statuses;
    },
  };
}

/** Waits for the `count`th "Subscribed to PostgreSQL" of a channel. */
export function isLive(system, { count = 1, within = 20_000 } = {}) {
  return system.some(count, ({ status, message }) => status === "ok" && message === "Subscribed to PostgreSQL", { within });
}
