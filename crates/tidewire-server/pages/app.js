/**
 * The page: reads its settings, opens one connection, and wires the panels to it.
 *
 * It owns who I am (name, colour, key: new at each load, kept in memory), the mirror of the shared table,
 * and the measurements. It stores nothing and puts no token into the page's address. With `demo: false`
 * only the connection, presence and broadcast panels are shown, and the key is typed in.
 */

import { Presence, Socket, backoff, describe, summarize } from "./phoenix.js";
import {
  broadcastPanel,
  connectPanel,
  connectionPanel,
  introPanel,
  latencyPanel,
  notesPanel,
  peoplePanel,
  shortText,
  themeButton,
  wirePanel,
} from "./panels.js";

const DEMO_TOPIC = "realtime:tidewire-demo";
const ROUND_TRIP_EVERY_MS = 1_500;
const POINTER_EVERY_MS = 40;
const WRITE_PATIENCE_MS = 10_000;
const MEASURE_PAUSE_MS = 120; // lets the page paint one write, so that the next one does not wait for that
const SUBSCRIBED = "Subscribed to PostgreSQL";

const COLORS = ["#0f8b8d", "#d1603d", "#5b6ee1", "#b0457b", "#3d8f4e", "#c08a1e", "#7a5cc4", "#2f7fb8", "#a3553a", "#4a8a84"];
const FIRST = ["Amber", "Brisk", "Calm", "Dapper", "Early", "Fair", "Gentle", "Hazel", "Ivory", "Jolly", "Keen", "Lunar", "Merry", "Quiet", "Rosy", "Swift"];
const SECOND = ["Albatross", "Bream", "Curlew", "Dolphin", "Eider", "Fulmar", "Gannet", "Heron", "Limpet", "Manta", "Narwhal", "Otter", "Petrel", "Seal", "Tern", "Urchin"];

const pick = (list) => list[crypto.getRandomValues(new Uint32Array(1))[0] % list.length];
const randomKey = () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const me = { key: randomKey(), name: `${pick(FIRST)} ${pick(SECOND)}`, color: pick(COLORS) };

/** Writes that have been issued and whose change has not been seen. */
class PendingWrites {
  #waiting = [];

  /** `matches(change)` recognises the change; `seen` resolves with it, with null if it never came. */
  expect(matches) {
    const write = { matches, since: performance.now() };
    write.seen = new Promise((resolve) => {
      write.settle = (change) => {
        clearTimeout(write.timer);
        this.#waiting = this.#waiting.filter((other) => other !== write);
        resolve(change);
      };
    });
    write.timer = setTimeout(() => write.settle(null), WRITE_PATIENCE_MS);
    this.#waiting.push(write);
    return write;
  }

  /** Settles the oldest write that this change answers, and tells its milliseconds; null if it was somebody else's. */
  arrived(change, now) {
    const write = this.#waiting.find((candidate) => candidate.matches(change));
    write?.settle(change);
    return write ? now - write.since : null;
  }
}

/**
 * The rows of the shared table without the race between loading and streaming: subscribe, wait until the
 * subscription is live, load, then apply what came meanwhile. A change older than the loaded row is skipped.
 */
class TableMirror {
  #rows = new Map();
  #early = null;
  #attempt = 0;
  #round = 0;
  #load;
  #panel;

  constructor({ load, panel }) {
    this.#load = load;
    this.#panel = panel;
  }

  /** From here changes wait, until `live` has loaded the rows. */
  hold() {
    this.#round += 1;
    this.#early ??= [];
    this.#panel.live(false);
  }

  async live() {
    this.hold();
    const round = this.#round;
    let rows;
    try {
      rows = await this.#load();
    } catch (error) {
      if (round !== this.#round) return;
      this.#panel.problem(`The rows could not be loaded: ${error.message}. Trying again.`);
      setTimeout(() => round === this.#round && this.live(), backoff((this.#attempt += 1)));
      return;
    }
    if (round !== this.#round) return;
    this.#attempt = 0;
    this.#rows = new Map(rows.map((row) => [row.id, row]));
    const early = this.#early;
    this.#early = null;
    this.#panel.problem(null);
    this.#panel.keepOnly(new Set(this.#rows.keys()));
    for (const row of this.#rows.values()) this.#panel.upsert(row, { animate: false });
    for (const change of early) this.#apply(change);
    this.#panel.live(true);
  }

  change(change) {
    if (this.#early) this.#early.push(change);
    else this.#apply(change);
  }

  #apply({ type, record, old_record: old }) {
    if (type === "DELETE") {
      this.#rows.delete(old.id);
      this.#panel.remove(old.id);
      return;
    }
    const known = this.#rows.get(record.id);
    if (known && Date.parse(known.updated_at) > Date.parse(record.updated_at)) return;
    // An unchanged large value is absent from the record; the known one stays.
    const row = { ...known, ...record };
    this.#rows.set(row.id, row);
    this.#panel.upsert(row);
  }
}

/** Runs `act` at most once per `everyMs`, always with the latest arguments. */
function paced(everyMs, act) {
  let timer = 0;
  let latest = null;
  return (...args) => {
    latest = args;
    if (timer) return;
    act(...latest);
    latest = null;
    timer = setInterval(() => {
      if (latest) {
        act(...latest);
        latest = null;
      } else {
        clearInterval(timer);
        timer = 0;
      }
    }, everyMs);
  };
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function byteLength(data) {
  return typeof data === "string" ? new Blob([data]).size : data.byteLength;
}

/** Connects the panels that every mode has; returns the channel for those that only the demonstration has. */
function start({ apikey, topic, tenant, bindings }) {
  const connection = connectionPanel();
  const wire = wirePanel();
  connection.tenant(tenant ?? "");

  const url = new URL("realtime/v1/websocket", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";

  const ownTopic = `realtime:tidewire-page-${me.key}`;
  const socket = new Socket(url, {
    apikey,
    onState: (state, { delay }) => {
      if (state === "open") connection.show("joining", "joining");
      else if (state === "waiting") connection.show("waiting", `reconnecting in ${(delay / 1000).toFixed(1)} s`);
      else connection.show(state, state);
    },
    onFrame: (direction, data, message) => {
      const inner = message.event === "broadcast" ? message.payload?.event : typeof data === "string" ? null : message.event;
      const isNoise = message.topic === ownTopic || message.event === "heartbeat" || message.topic === "phoenix" || inner === "pointer";
      const label = inner ? `broadcast ${shortText(inner, 24)}` : message.event;
      wire.frame({ direction, label, summary: summarize(message), words: describe(data, message), bytes: byteLength(data), isNoise });
    },
  });

  const channel = socket.channel(topic, {
    config: {
      broadcast: { self: true, ack: false },
      presence: { enabled: true, key: me.key },
      postgres_changes: bindings,
      private: false,
    },
  });
  channel.on("state", (state, { reason }) => {
    if (state === "joined") {
      connection.show("live", "live");
      track();
    } else if (state === "errored") connection.show("errored", shortText(reason, 120));
  });

  // Presence.
  const track = () => channel.push("presence", { type: "presence", event: "track", payload: { name: me.name, color: me.color } }).catch(() => {});
  const names = new Map();
  const people = peoplePanel({
    onRename: (name) => {
      me.name = name;
      if (channel.state === "joined") track();
    },
  });
  people.me(me.name);
  new Presence(channel, (state) => {
    for (const key of names.keys()) if (!state.has(key)) broadcast.forget(key);
    names.clear();
    for (const [key, metas] of state) {
      const meta = metas[metas.length - 1] ?? {};
      names.set(key, { key, name: shortText(meta.name, 40) || "somebody", color: meta.color, isMe: key === me.key });
    }
    people.show([...names.values()].sort((a, b) => Number(b.isMe) - Number(a.isMe) || a.name.localeCompare(b.name)));
  });

  // Broadcast: even what I do myself is shown when it comes back, so the screen shows the server's truth.
  const who = (key) => names.get(key) ?? { name: "somebody", color: "" };
  const broadcast = broadcastPanel({
    onMove: paced(POINTER_EVERY_MS, ({ x, y }) => channel.broadcast("pointer", { key: me.key, x, y })),
    onPing: ({ x, y }) => channel.broadcast("ping", { key: me.key, x, y }),
    onReaction: (emoji) => channel.broadcast("reaction", { key: me.key, emoji, x: 0.1 + Math.random() * 0.8 }),
    onSay: (words) => channel.broadcast("say", { key: me.key, name: me.name, color: me.color, words }),
  });
  channel.on("broadcast", ({ event, payload }) => {
    if (typeof payload !== "object" || payload === null || typeof payload.key !== "string") return;
    const { key } = payload;
    if (event === "pointer" && key !== me.key) broadcast.pointer(key, { ...who(key), x: payload.x, y: payload.y });
    if (event === "ping") broadcast.ping({ color: who(key).color, x: payload.x, y: payload.y });
    if (event === "reaction") broadcast.reaction(payload);
    if (event === "say") {
      const name = shortText(payload.name, 40) || "somebody";
      broadcast.say({ name, color: payload.color, words: shortText(payload.words, 280), isMe: key === me.key });
    }
  });

  // Round trips are measured on a channel of my own, so that they cost the others nothing; the first one
  // comes after the page has settled.
  const echo = socket.channel(ownTopic, { config: { broadcast: { self: true, ack: false }, private: false } });
  const sent = new Map();
  let number = 0;
  const roundTrip = () => {
    if (document.hidden || echo.state !== "joined") return;
    sent.clear(); // an older one that has not returned is not waited for
    number += 1;
    sent.set(number, performance.now());
    echo.broadcast("round-trip", { number });
  };
  setInterval(roundTrip, ROUND_TRIP_EVERY_MS);

  addEventListener("online", () => socket.hurry());
  document.addEventListener("visibilitychange", () => !document.hidden && socket.hurry());

  return {
    channel,
    onRoundTrip(show) {
      echo.on("broadcast", ({ event, payload }) => {
        const since = event === "round-trip" ? sent.get(payload?.number) : undefined;
        if (since === undefined) return;
        sent.delete(payload.number);
        show(performance.now() - since);
      });
    },
    go() {
      channel.join();
      echo.join();
      socket.connect();
    },
  };
}

/** The whole demonstration: a shared table beside what every mode has. */
function startDemo({ anon_key: apikey, tenant }) {
  introPanel().show();
  const page = start({
    apikey,
    tenant,
    topic: DEMO_TOPIC,
    bindings: [{ event: "*", schema: "public", table: "demo_notes" }],
  });

  const request = async (method, path, body) => {
    const answer = await fetch(new URL(path, document.baseURI), {
      method,
      headers: { apikey, ...(body ? { "content-type": "application/json" } : {}) },
      body: body ? JSON.stringify(body) : undefined,
    });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer;
  };

  const pending = new PendingWrites();
  const write = async (method, path, body, matches) => {
    const expected = pending.expect(matches);
    try {
      await request(method, path, body);
      latency.write.answered(performance.now() - expected.since);
      notes.problem(null);
    } catch (error) {
      expected.settle(null);
      notes.problem(`Not written: ${error.message}.`);
    }
    return expected.seen;
  };
  const insert = (body) =>
    write("POST", "demo/notes", { body, author: me.name, color: me.color }, ({ type, record }) => type === "INSERT" && record.body === body && record.author === me.name);
  const update = (id, fields) => write("PATCH", `demo/notes/${id}`, fields, ({ type, record }) => type === "UPDATE" && record.id === id);
  const remove = (id) => write("DELETE", `demo/notes/${id}`, undefined, ({ type, old_record: old }) => type === "DELETE" && old.id === id);

  const notes = notesPanel({ onInsert: insert, onUpdate: update, onDelete: remove });
  const mirror = new TableMirror({ load: async () => (await request("GET", "demo/notes")).json(), panel: notes });

  const latency = latencyPanel({
    onMeasure: async () => {
      const inserted = await insert(`Measuring 20 writes (${me.name})`);
      if (inserted === null) return;
      const { id } = inserted.record;
      for (let n = 1; n <= 20; n += 1) {
        if ((await update(id, { body: `Write ${n} of 20` })) === null) break;
        await pause(MEASURE_PAUSE_MS);
      }
      await remove(id);
    },
  });
  page.onRoundTrip((ms) => latency.broadcast.add(ms));

  page.channel.on("state", (state) => state === "joining" && mirror.hold());
  page.channel.on("system", ({ extension, status, message }) => {
    if (extension !== "postgres_changes") return;
    if (status === "ok" && message === SUBSCRIBED) mirror.live();
    if (status === "error") notes.problem(shortText(message, 400));
  });
  page.channel.on("postgres_changes", ({ data }) => {
    const now = performance.now();
    const ms = pending.arrived(data, now);
    if (ms !== null) latency.write.add(ms);
    mirror.change(data);
  });
  page.go();
}

/** Without demonstration: a channel of the visitor's choice with the visitor's key. */
function startBare({ tenant }) {
  const connect = connectPanel({
    onConnect: (apikey, topic) => {
      document.getElementById("connect").hidden = true;
      const page = start({ apikey, tenant, topic: `realtime:${topic}`, bindings: [] });
      page.onRoundTrip((ms) => latency.broadcast.add(ms));
      page.go();
    },
  });
  document.getElementById("panel-notes").hidden = true;
  const latency = latencyPanel({ onMeasure: async () => {} });
  latency.hideWrites();
  connectionPanel().show("closed", "not connected");
  connect.show();
}

async function settings() {
  try {
    const answer = await fetch(new URL("demo/config.json", document.baseURI), { cache: "no-store" });
    return answer.ok ? await answer.json() : { demo: false };
  } catch {
    return { demo: false };
  }
}

themeButton();
const found = await settings();
if (found.demo === true) startDemo(found);
else startBare(found);
