// The WebSocket handshake, by hand. Spec: PROTOCOL.md §1.1–1.3.
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { withServer } from "../support/fixture.js";
import { handshake } from "../support/raw.js";
import { signToken } from "../support/server.js";

const server = withServer();
const now = () => Math.floor(Date.now() / 1000);

/** A token whose header asks for an algorithm that the tenant has no key for. */
function unknownAlgorithm() {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "RS256", typ: "JWT" })}.${part({ role: "anon", exp: now() + 60 })}.${part("signature")}`;
}

describe("accepted", () => {
  for (const [name, options] of [
    ["below /realtime/v1", {}],
    ["on the server's own path", { path: "/socket/websocket" }],
    ["with vsn 1.0.0", { query: { vsn: "1.0.0" } }],
    ["with vsn 1.0.7", { query: { vsn: "1.0.7" } }],
    ["with vsn 2.0.1", { query: { vsn: "2.0.1" } }],
    ["with unknown parameters", { query: { log_level: "nonsense", eventsPerSecond: "10", x: "y" } }],
    ["from any origin", { headers: { origin: "https://somewhere.example" } }],
  ]) {
    test(name, async () => {
      const answer = await handshake(server.info, { ...options, query: { apikey: server.info.anon_key, ...options.query } });
      assert.equal(answer.status, 101, answer.body);
    });
  }

  test("the header x-api-key wins over the parameter", async () => {
    const answer = await handshake(server.info, { query: { apikey: "nonsense" }, headers: { "x-api-key": server.info.anon_key } });
    assert.equal(answer.status, 101);
    const refused = await handshake(server.info, { query: { apikey: server.info.anon_key }, headers: { "x-api-key": "nonsense" } });
    assert.equal(refused.status, 401);
  });

  test("white space in the credential is ignored", async () => {
    const answer = await handshake(server.info, { query: { apikey: ` ${server.info.anon_key}\n` } });
    assert.equal(answer.status, 101);
  });

  test("no compression and no sub-protocol are agreed on, and the accept key is right", async () => {
    const { headers } = await handshake(server.info, {
      query: { apikey: server.info.anon_key },
      headers: { "sec-websocket-extensions": "permessage-deflate; client_max_window_bits", "sec-websocket-protocol": "phoenix" },
    });
    assert.equal(headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert.equal(headers["sec-websocket-extensions"], undefined);
    assert.equal(headers["sec-websocket-protocol"], undefined);
  });
});

describe("refused", { concurrency: true }, () => {
  const secret = () => server.info.jwt_secret;
  const rows = [
    ["an unknown tenant", () => ({ headers: { host: "nobody.example.com" } }), 404, "Tenant not found"],
    ["no credential", () => ({ query: { apikey: null } }), 401, "API key is missing"],
    ["an empty credential", () => ({ query: { apikey: "" } }), 401, "The token provided is not a valid JWT"],
    ["nonsense", () => ({ query: { apikey: "nonsense" } }), 401, "The token provided is not a valid JWT"],
    ["three parts of nonsense", () => ({ query: { apikey: "a.b.c" } }), 401, "The token provided is not a valid JWT"],
    ["an opaque key", () => ({ query: { apikey: "sb_publishable_abc" } }), 401, "The token provided is not a valid JWT"],
    ["claims that are not an object", () => ({ query: { apikey: signArray(secret()) } }), 401, "The token provided is not a valid JWT"],
    ["an algorithm without key", () => ({ query: { apikey: unknownAlgorithm() } }), 401, "Failed to generate JWT signer, check your JWT secret or JWKS configuration"],
    ["a wrong signature", () => ({ query: { apikey: signToken({ role: "anon" }, `${secret()}x`) } }), 401, "Failed to validate JWT signature"],
    ["an expired token", () => ({ query: { apikey: signToken({ role: "anon", exp: now() - 10 }, secret()) } }), 401, "Token has expired"],
    ["a token without exp", () => ({ query: { apikey: signToken({ role: "anon", exp: null }, secret()) } }), 401, "Fields `role` and `exp` are required in JWT"],
    ["a token without role", () => ({ query: { apikey: signToken({}, secret()) } }), 401, "Fields `role` and `exp` are required in JWT"],
    ["an exp that is not a number", () => ({ query: { apikey: signToken({ role: "anon", exp: "soon" }, secret()) } }), 500, "Error connecting to Realtime"],
  ];

  for (const [name, options, status, error] of rows) {
    test(`${name}: ${status} ${error}`, async () => {
      const { query = { apikey: server.info.anon_key }, headers } = options();
      if (query.apikey === null) delete query.apikey;
      const answer = await handshake(server.info, { query, headers });
      assert.equal(answer.status, status);
      assert.deepEqual(JSON.parse(answer.body), { error });
      assert.equal(answer.headers["content-type"], "application/json; charset=utf-8");
    });
  }

  for (const vsn of ["3.0.0", "3", "abc"]) {
    test(`vsn ${vsn}: 403 with an empty body`, async () => {
      const answer = await handshake(server.info, { query: { apikey: server.info.anon_key, vsn } });
      assert.equal(answer.status, 403);
      assert.equal(answer.body, "");
    });
  }

  test("a plain GET is 400", async () => {
    const answer = await handshake(server.info, { query: { apikey: server.info.anon_key }, upgrade: false });
    assert.equal(answer.status, 400);
  });

  test("an unknown path is 404", async () => {
    const answer = await handshake(server.info, { path: "/nowhere", query: { apikey: server.info.anon_key } });
    assert.equal(answer.status, 404);
  });

  test("no key ever reaches the log", async () => {
    const canary = signToken({ role: "anon", canary: "do not log me" }, "not the secret of this server at all");
    await handshake(server.info, { query: { apikey: canary } });
    await handshake(server.info, { headers: { "x-api-key": canary } });
    for (const secretText of [canary, server.info.anon_key, server.info.jwt_secret]) assert.ok(!server.log.includes(secretText));
  });
});

function signArray(secret) {
  // `signToken` spreads its claims; a payload that is a JSON string has to be signed by hand.
  const token = signToken({ role: "anon" }, secret).split(".");
  token[1] = Buffer.from('"text"').toString("base64url");
  return token.join(".");
}
