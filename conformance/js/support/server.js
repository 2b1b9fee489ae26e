/**
 * One Tidewire server with its private Postgres for one test file: `tidewire dev --json` in a folder of its own.
 *
 * Owns: the process it started, its folder, and SQL connections to its database. It ends only what it
 * started, by process id. `TIDEWIRE_BIN` names the binary; without it the release build of this checkout.
 */

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import pg from "pg";

const here = dirname(fileURLToPath(import.meta.url));
const START_LIMIT_MS = 60_000;
const STOP_LIMIT_MS = 15_000;

export const binary = process.env.TIDEWIRE_BIN ?? join(here, "../../../target/release/tidewire");

/**
 * A token whose signature `sign` makes from the text before it. `exp` is an hour from now unless the claims say
 * otherwise; `null` leaves it out.
 */
export function makeToken(header, claims, sign) {
  const now = Math.floor(Date.now() / 1000);
  const body = { iat: now, exp: now + 3600, ...claims };
  for (const [name, value] of Object.entries(body)) if (value === null) delete body[name];
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const unsigned = `${part({ typ: "JWT", ...header })}.${part(body)}`;
  return `${unsigned}.${sign(unsigned).toString("base64url")}`;
}

/** Signs claims with HS256. */
export function signToken(claims, secret, header = {}) {
  return makeToken({ alg: "HS256", ...header }, claims, (text) => createHmac("sha256", secret).update(text).digest());
}

export class TidewireServer {
  #process = null;
  #stderr = "";
  #clients = new Set();
  #args;
  #dataDir;
  info = null;

  /** Environment of the process, beside the test's own; a change holds from the next `run`. */
  env;

  constructor(dataDir, args, env) {
    this.#dataDir = dataDir;
    this.#args = args;
    this.env = env;
  }

  /** Starts a server in a new folder and waits until it says that it is ready. */
  static async start({ args = [], env = {} } = {}) {
    if (!existsSync(binary)) throw new Error(`no server binary at ${binary}; build it or set TIDEWIRE_BIN`);
    const dataDir = await mkdtemp(join(tmpdir(), "tidewire-conformance-"));
    await chmod(dataDir, 0o711); // as root Postgres runs under another account, which has to pass through
    const server = new TidewireServer(dataDir, args, env);
    await server.run({ port: 0 });
    return server;
  }

  /** Runs the binary in this server's folder; the port stays what it was at the first start. */
  async run({ port = new URL(this.info.url).port } = {}) {
    const child = spawn(binary, ["dev", "--json", "--port", String(port), "--data-dir", join(this.#dataDir, "data"), ...this.#args], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...this.env },
    });
    this.#process = child;
    child.stderr.setEncoding("utf8").on("data", (chunk) => {
      this.#stderr = (this.#stderr + chunk).slice(-200_000);
    });
    const lines = createInterface({ input: child.stdout });
    let timer;
    const tooLate = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`the server was not ready within ${START_LIMIT_MS} ms`)), START_LIMIT_MS);
    });
    const died = once(child, "exit").then(([code, signal]) => {
      throw new Error(`the server ended before it was ready (code ${code}, signal ${signal})`);
    });
    const ready = once(lines, "line").then(([line]) => JSON.parse(line));
    try {
      this.info = await Promise.race([ready, died, tooLate]);
    } catch (error) {
      error.message += `\n${this.#stderr}`;
      child.kill("SIGKILL");
      throw error;
    } finally {
      clearTimeout(timer);
      died.catch(() => {});
      tooLate.catch(() => {});
    }
    if (this.info.error) throw new Error(`the server did not start: ${JSON.stringify(this.info.error)}`);
  }

  /** What the server wrote to stderr so far (its end). */
  get log() {
    return this.#stderr;
  }

  get isRunning() {
    return this.#process !== null && this.#process.exitCode === null && this.#process.signalCode === null;
  }

  /** Sends a signal and waits for the end; returns how long that took in milliseconds. */
  async signal(name) {
    const child = this.#process;
    if (!this.isRunning) return 0;
    const since = performance.now();
    const ended = once(child, "exit");
    child.kill(name);
    let timer;
    const tooLate = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`the server did not end within ${STOP_LIMIT_MS} ms of ${name}`)), STOP_LIMIT_MS);
    });
    try {
      await Promise.race([ended, tooLate]);
    } finally {
      clearTimeout(timer);
    }
    return performance.now() - since;
  }

  /** Ends the server, its connections and its folder. */
  async stop() {
    await Promise.all([...this.#clients].map((client) => client.end().catch(() => {})));
    try {
      await this.signal("SIGTERM");
    } catch (error) {
      this.#process.kill("SIGKILL");
      throw error;
    } finally {
      await rm(this.#dataDir, { recursive: true, force: true, maxRetries: 5 });
    }
  }

  /** A superuser connection, ended with the server. */
  async connect() {
    const client = new pg.Client({ connectionString: this.info.db_url });
    // A connection cut by a restart of Postgres is part of some tests and must not end the test process.
    client.on("error", () => {});
    await client.connect();
    this.#clients.add(client);
    client.on("end", () => this.#clients.delete(client));
    return client;
  }

  /** Runs SQL on a connection that stays open between calls. */
  async sql(text, values) {
    this.#shared ??= this.connect();
    return (await this.#shared).query(text, values);
  }
  #shared = null;

  /** Forgets the shared connection, for example because Postgres was restarted. */
  forgetConnection() {
    this.#shared?.then((client) => client.end()).catch(() => {});
    this.#shared = null;
  }

  /** Creates a table, publishes it and lets the API roles read and write it. */
  async table(name, columns, { publish = true, identity, rls = false, grants = "anon, authenticated, service_role" } = {}) {
    await this.sql(`create table public.${name} (${columns})`);
    if (identity) await this.sql(`alter table public.${name} replica identity ${identity}`);
    if (rls) await this.sql(`alter table public.${name} enable row level security`);
    // The roles have rights on new tables by default, as at Supabase; a test starts from none.
    await this.sql(`revoke all on public.${name} from anon, authenticated, service_role`);
    if (grants) await this.sql(`grant select, insert, update, delete on public.${name} to ${grants}`);
    if (publish) await this.sql(`alter publication supabase_realtime add table public.${name}`);
  }

  token(claims) {
    return signToken(claims, this.info.jwt_secret);
  }

  /** Ends the private Postgres (SIGINT: "fast", SIGQUIT: like a crash) and waits for the one that `tidewire dev` starts in its place. */
  async restartPostgres(signal = "SIGINT") {
    const started = "select pg_postmaster_start_time()::text as at";
    const { rows: [before] } = await this.sql(`select pg_read_file('postmaster.pid') as file, at from (${started}) as started`);
    this.forgetConnection();
    process.kill(Number(before.file.split("\n")[0]), signal);
    await until(async () => {
      const client = new pg.Client({ connectionString: this.info.db_url });
      client.on("error", () => {});
      try {
        await client.connect();
        const { rows: [now] } = await client.query(started);
        return now.at !== before.at;
      } catch {
        return false; // not yet
      } finally {
        await client.end().catch(() => {});
      }
    }, START_LIMIT_MS);
  }
}

/** Asks until the answer is truthy. For facts that nothing announces; everything else is awaited directly. */
export async function until(ask, limitMs = 10_000) {
  const deadline = Date.now() + limitMs;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`not true within ${limitMs} ms: ${ask}`);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
