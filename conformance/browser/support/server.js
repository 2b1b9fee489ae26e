/**
 * `tidewire dev --demo --json` in a folder of its own, for one test file. Ends only what it started.
 * `TIDEWIRE_BIN` names the binary; without it the release build of this checkout.
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const binary = process.env.TIDEWIRE_BIN ?? join(here, "../../../target/release/tidewire");

export class DemoServer {
  #dir;
  #args;
  #process;
  info;

  static async start(args = ["--demo"]) {
    const server = new DemoServer();
    server.#args = args;
    server.#dir = await mkdtemp(join(tmpdir(), "tidewire-browser-"));
    await chmod(server.#dir, 0o711); // as root Postgres runs under another account, which has to pass through
    await server.run("0");
    return server;
  }

  /** Starts the binary; at a restart on the port it had. */
  async run(port = new URL(this.info.url).port) {
    const child = spawn(binary, ["dev", "--json", "--port", port, "--data-dir", join(this.#dir, "data"), ...this.#args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#process = child;
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (chunk) => {
      said = (said + chunk).slice(-20_000);
    });
    const ready = once(createInterface({ input: child.stdout }), "line").then(([line]) => JSON.parse(line));
    const died = once(child, "exit").then(([code]) => {
      throw new Error(`the server ended with code ${code}\n${said}`);
    });
    died.catch(() => {});
    this.info = await Promise.race([ready, died]);
    if (this.info.error) throw new Error(JSON.stringify(this.info.error));
  }

  async end(signal = "SIGTERM") {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = once(this.#process, "exit");
    this.#process.kill(signal);
    await ended;
  }

  async stop() {
    await this.end();
    await rm(this.#dir, { recursive: true, force: true, maxRetries: 5 });
  }
}
