/**
 * Private channels whose policies ask a table, as an application's would: `rights(topic, who, verb, extension)`.
 * A topic without rows is closed to everybody but the service role.
 */

import { randomUUID } from "node:crypto";

let topics = 0;

/** Creates the table and the two policies on `realtime.messages`. */
export async function preparePolicies(server) {
  await server.sql(`
    create table public.rights (topic text, who uuid, verb text, extension text);
    grant select on public.rights to authenticated, anon;
    create function public.may(wanted_verb text, wanted_extension text) returns boolean language sql stable as $$
      select exists (
        select from public.rights r
        where r.topic = realtime.topic() and r.verb = wanted_verb and r.extension = wanted_extension
          and (r.who is null or r.who = auth.uid()))
    $$;
    create policy "rights to read" on realtime.messages for select to authenticated using (public.may('read', extension));
    create policy "rights to write" on realtime.messages for insert to authenticated with check (public.may('write', extension));
  `);
}

/** Everything that a member can have. */
export const ALL = ["read broadcast", "read presence", "write broadcast", "write presence"];

/** Lets `who` (everybody without it) do these things on a topic. */
export async function allow(server, topic, things, who = null) {
  for (const thing of things) await server.sql("insert into rights values ($1, $2, $3, $4)", [topic, who, ...thing.split(" ")]);
}

/** Takes everything back. */
export async function forbid(server, topic, who = null) {
  await server.sql("delete from rights where topic = $1 and who is not distinct from $2", [topic, who]);
}

/** A name that no other test has used. */
export const newTopic = (word) => `${word}-${(topics += 1)}`;

/** A token of an authenticated user; a new user each time unless named. */
export const userToken = (server, { sub = randomUUID(), ...claims } = {}) => server.token({ role: "authenticated", sub, ...claims });

/** The reason of a refused join and the message of a revoked channel. */
export const DENIED = (topic) => `You do not have permissions to read from this Channel topic: ${topic}`;
export const REVOKED = (topic) => `You no longer have permission to read from this Channel topic: ${topic}`;
