/**
 * `const server = withServer()` at the top of a test file: one server for the file, ended after it.
 * `prepare(server)` runs in the same hook, because the order of several root hooks is not promised.
 */

import { after, before } from "node:test";

import { TidewireServer } from "./server.js";

export function withServer({ prepare = async () => {}, ...options } = {}) {
  const holder = {};
  before(async () => {
    holder.server = await TidewireServer.start(options);
    await prepare(holder.server);
  });
  after(async () => {
    await holder.server?.stop();
    // A client's timers (a push that waits for its answer, a reconnect) must not keep the process: all is reported.
    setTimeout(() => process.exit(), 2_000).unref();
  });
  // Tests read `server.info`, call `server.sql`, …: forwarded to the instance that `before` has made.
  return new Proxy(
    {},
    {
      get(_, name) {
        const value = holder.server[name];
        return typeof value === "function" ? value.bind(holder.server) : value;
      },
    },
  );
}

/** Opens clients that end with the test: `const open = closing(t)`, then `open(openClient(…))`. */
export function closing(test) {
  return (thing) => {
    test.after(() => thing.close());
    return thing;
  };
}
