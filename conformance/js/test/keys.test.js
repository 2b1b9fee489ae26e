// Tokens signed with keys of the tenant's key set. Spec: PROTOCOL.md §1.2, §2.5, §6.1, §6.4.
import assert from "node:assert/strict";
import { constants, createHmac, generateKeyPairSync, randomUUID, sign } from "node:crypto";
import { describe, test } from "node:test";

import { changesOn, isLive, openClient, subscribe, variants, watch } from "../support/clients.js";
import { closing, withServer } from "../support/fixture.js";
import { ALL, allow, newTopic, preparePolicies } from "../support/policies.js";
import { RawSocket, handshake } from "../support/raw.js";
import { makeToken, signToken } from "../support/server.js";

/** A key pair, its entry in the key set, and what signs with it. */
function pair(kid, alg, type, options, signature) {
  const { publicKey, privateKey } = generateKeyPairSync(type, options);
  return {
    kid,
    alg,
    publicKey,
    jwk: { ...publicKey.export({ format: "jwk" }), kid, use: "sig" },
    token: (claims, { header = {} } = {}) => makeToken({ alg, kid, ...header }, claims, (text) => signature(Buffer.from(text), privateKey)),
  };
}

const rsa = (hash) => (text, key) => sign(hash, text, { key, padding: constants.RSA_PKCS1_PADDING });
const ecdsa = (hash) => (text, key) => sign(hash, text, { key, dsaEncoding: "ieee-p1363" });

const keys = [
  pair("rsa-256", "RS256", "rsa", { modulusLength: 2048 }, rsa("sha256")),
  pair("rsa-384", "RS384", "rsa", { modulusLength: 2048 }, rsa("sha384")),
  pair("rsa-512", "RS512", "rsa", { modulusLength: 3072 }, rsa("sha512")),
  pair("ec-256", "ES256", "ec", { namedCurve: "P-256" }, ecdsa("sha256")),
  pair("ec-384", "ES384", "ec", { namedCurve: "P-384" }, ecdsa("sha384")),
  pair("ed", "EdDSA", "ed25519", {}, (text, key) => sign(null, text, key)),
];
const [rs256, , , es256] = keys;
const shared = Buffer.from("a shared secret of the key set, 32 bytes or more");
const sharedToken = (claims) => signToken(claims, shared, { kid: "oct" });
const keySet = (...chosen) => JSON.stringify({ keys: chosen.map(({ jwk }) => jwk).concat([{ kty: "oct", kid: "oct", k: shared.toString("base64url"), alg: "HS256" }]) });

const env = { TIDEWIRE__TENANT__JWKS: keySet(...keys), TIDEWIRE__TIMERS__CHANNEL_ERROR_BACKOFF_MS: "50", TIDEWIRE__TIMERS__CONNECT_ERROR_BACKOFF_MS: "50" };
const server = withServer({ prepare: preparePolicies, env });

const user = (key, claims = {}) => key.token({ role: "authenticated", sub: randomUUID(), ...claims });
const unknownKey = (kid) => `Failed to generate JWT signer for key ID (kid) "${kid}", check your JWT secret or JWKS configuration`;
const NO_SIGNER = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";

async function joined(t, token, topic = "realtime:keys") {
  const raw = closing(t)(await RawSocket.open(server.info));
  raw.send(["1", "1", topic, "phx_join", { config: {}, access_token: token }]);
  return { raw, reply: (await raw.next())[4] };
}

describe("accepted", { concurrency: true }, () => {
  for (const key of keys) {
    test(`${key.alg}: at the handshake, at the join, pushed, and over HTTP`, async (t) => {
      const token = user(key);
      assert.equal((await handshake(server.info, { query: { apikey: token } })).status, 101);
      const { raw, reply } = await joined(t, token);
      assert.equal(reply.status, "ok");
      raw.send(["1", "2", "realtime:keys", "access_token", { access_token: user(key) }]);
      assert.deepEqual(await raw.settled(), []);
      const answer = await fetch(`${server.info.url}/realtime/v1/api/broadcast/t/events/e`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
        body: "{}",
      });
      assert.equal(answer.status, 202);
    });
  }

  test("a shared key of the set, and the tenant's secret for every other key id", async (t) => {
    assert.equal((await joined(t, sharedToken({ role: "anon" }))).reply.status, "ok");
    assert.equal((await joined(t, signToken({ role: "anon" }, server.info.jwt_secret, { kid: "unheard of" }))).reply.status, "ok");
    assert.equal((await joined(t, server.token({ role: "anon" }))).reply.status, "ok");
  });

  test("the token's algorithm counts, not the entry's: an RSA key verifies RS512 too", async (t) => {
    const [, , rs512] = keys;
    const jwk = { ...rs512.jwk };
    assert.equal(jwk.alg, undefined);
    assert.equal((await joined(t, user(rs512))).reply.status, "ok");
  });
});

for (const variant of variants) {
  describe(variant.name, { concurrency: true }, () => {
    for (const key of [rs256, es256, keys.at(-1)]) {
      test(`${key.alg} as key of the project: broadcast, row-level security and a private room by its claims`, async (t) => {
        const table = `keys_${variants.indexOf(variant)}_${key.alg.toLowerCase()}`;
        await server.table(table, "id int primary key, owner uuid", { rls: true });
        await server.sql(`create policy own on public.${table} for select to authenticated using (owner = auth.uid())`);
        const [sub, topic] = [randomUUID(), newTopic("keys")];
        await allow(server, topic, ALL, sub);
        const token = user(key, { sub });
        const client = closing(t)(openClient(variant, server.info, { key: user(key), token }));
        await client.client.realtime.setAuth();
        const { changes, live } = changesOn(client.channel(topic, { config: { private: true } }), [{ event: "*", schema: "public", table }]);
        await live();
        await server.sql(`insert into ${table} values (1, '${randomUUID()}'), (2, '${sub}')`);
        assert.deepEqual((await changes.at(0)).new, { id: 2, owner: sub });
      });
    }

    test("a token of one algorithm replaces one of another", async (t) => {
      let token = user(rs256);
      const client = closing(t)(openClient(variant, server.info, { token: () => token }));
      await client.client.realtime.setAuth();
      const table = `replaced_${variants.indexOf(variant)}`;
      await server.table(table, "id int primary key");
      const { changes, system, live } = changesOn(client.channel("replaced"), [{ event: "*", schema: "public", table }]);
      const statuses = await live();
      token = user(es256);
      await client.client.realtime.setAuth();
      await isLive(system, { count: 2 });
      await server.sql(`insert into ${table} values (1)`);
      await changes.at(0);
      assert.deepEqual(statuses.all.map(({ status }) => status), ["SUBSCRIBED"]);
    });

    test("a key that is not in the set is a CHANNEL_ERROR that names it", async (t) => {
      const stranger = pair("stranger", "ES256", "ec", { namedCurve: "P-256" }, ecdsa("sha256"));
      const client = closing(t)(openClient(variant, server.info, { token: user(stranger) }));
      await client.client.realtime.setAuth();
      const { status, error } = await watch(client.channel("stranger")).at(0);
      assert.equal(status, "CHANNEL_ERROR");
      assert.equal(error.message.replaceAll('\\"', '"').replace(/^"(.*)"$/, "$1"), `JwtSignerError: ${unknownKey("stranger")}`);
    });
  });
}

describe("refused", { concurrency: true }, () => {
  const publicText = (key) => key.publicKey.export({ format: "pem", type: "spki" });
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = () => ({ role: "authenticated", exp: Math.floor(Date.now() / 1000) + 60 });
  for (const [name, token, text, code, pushed = text] of [
    ["an RSA key id that is not in the set", () => user(pair("gone", "RS256", "rsa", { modulusLength: 2048 }, rsa("sha256"))), unknownKey("gone"), "JwtSignerError"],
    ["a key id with quotes", () => user(es256, {}).replace(/^[^.]+/, part({ alg: "ES256", kid: 'a"b' })), unknownKey('a\\"b'), "JwtSignerError"],
    ["a key id of another type of key", () => rs256.token(claims(), { header: { kid: "ec-256" } }), unknownKey("ec-256"), "JwtSignerError"],
    ["no key id", () => rs256.token(claims(), { header: { kid: undefined } }), NO_SIGNER, "JwtSignerError", ":error_generating_signer"],
    ["a signature by another key of that id", () => user(pair("ec-256", "ES256", "ec", { namedCurve: "P-256" }, ecdsa("sha256"))), "Failed to validate JWT signature", "JwtSignatureError", ":signature_error"],
    ["the public key as shared secret", () => makeToken({ alg: "HS256", kid: "rsa-256" }, claims(), (text) => createHmac("sha256", publicText(rs256)).update(text).digest()), "Failed to validate JWT signature", "JwtSignatureError", ":signature_error"],
    ["a signature in the other form of ECDSA", () => makeToken({ alg: "ES256", kid: "ec-256" }, claims(), (text) => sign("sha256", Buffer.from(text), { key: generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey })), "Failed to validate JWT signature", "JwtSignatureError", ":signature_error"],
    ["a shared key's id and the tenant's secret", () => signToken(claims(), server.info.jwt_secret, { kid: "oct" }), "Failed to validate JWT signature", "JwtSignatureError", ":signature_error"],
    ["algorithm none", () => `${part({ alg: "none", kid: "rsa-256" })}.${part(claims())}.`, null, null, null],
  ]) {
    test(name, async (t) => {
      const refused = await handshake(server.info, { query: { apikey: token() } });
      assert.equal(refused.status, 401);
      const { raw, reply } = await joined(t, token());
      assert.equal(reply.status, "error");
      assert.deepEqual(await raw.settled(), []);
      const member = await joined(t, server.info.anon_key);
      member.raw.send(["1", "2", "realtime:keys", "access_token", { access_token: token() }]);
      const [, , , event, payload] = await member.raw.next();
      assert.deepEqual([event, payload.status], ["system", "error"]);
      if (text === null) return; // refused is enough
      assert.deepEqual(JSON.parse(refused.body), { error: text });
      assert.deepEqual(reply.response, { reason: `${code}: ${text}` });
      assert.equal(payload.message, pushed);
    });
  }

  test("an expired token of a good key says so", async (t) => {
    const token = user(es256, { exp: Math.floor(Date.now() / 1000) - 5 });
    assert.deepEqual(JSON.parse((await handshake(server.info, { query: { apikey: token } })).body), { error: "Token has expired" });
    assert.match((await joined(t, token)).reply.response.reason, /^InvalidJWTToken: Token has expired \d+ seconds ago$/);
  });
});

describe("rotation", () => {
  test("with both keys in the set both count; when the old one has left it, its tokens are refused by name", async (t) => {
    const [old, next] = ["old", "next"].map((kid) => pair(kid, "ES256", "ec", { namedCurve: "P-256" }, ecdsa("sha256")));
    const restart = async (...chosen) => {
      await server.signal("SIGTERM");
      server.env.TIDEWIRE__TENANT__JWKS = keySet(...chosen);
      await server.run();
    };
    const before = user(old);
    await restart(old);
    assert.equal((await handshake(server.info, { query: { apikey: before } })).status, 101);
    assert.equal((await handshake(server.info, { query: { apikey: user(next) } })).status, 401);

    // A client that holds a token of the old key, and gets one of the new key in time.
    let token = before;
    const client = closing(t)(openClient(variants[0], server.info, { token: () => token }));
    await client.client.realtime.setAuth();
    const statuses = await subscribe(client.channel("rotation"));

    await restart(old, next);
    for (const good of [before, user(next)]) assert.equal((await handshake(server.info, { query: { apikey: good } })).status, 101);
    await statuses.some(2, ({ status }) => status === "SUBSCRIBED", { within: 20_000 });
    token = user(next);
    await client.client.realtime.setAuth();

    await restart(next);
    const refused = await handshake(server.info, { query: { apikey: before } });
    assert.deepEqual([refused.status, JSON.parse(refused.body)], [401, { error: unknownKey("old") }]);
    assert.equal((await handshake(server.info, { query: { apikey: user(next) } })).status, 101);
    await statuses.some(3, ({ status }) => status === "SUBSCRIBED", { within: 20_000 });
  });
});
