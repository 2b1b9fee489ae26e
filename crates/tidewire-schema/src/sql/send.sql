-- A broadcast from the database. It may fail without harm to the transaction that sends it: whoever sends tells the
-- world about something that has happened anyway. Spec: PROTOCOL.md §3.9, Q23.
create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
returns void language plpgsql as $fn$
declare
  message_id uuid := pg_catalog.gen_random_uuid();
begin
  -- An id of the sender's own wins. A payload that cannot have one (an array, a number) is an error.
  if not coalesce(payload ? 'id', false) then
    payload := jsonb_set(payload, array['id'], to_jsonb(message_id));
  end if;
  -- Policies see the topic, here and for the rest of the transaction.
  perform set_config('realtime.topic', topic, true);
  insert into realtime.messages (id, payload, event, topic, private, extension)
  values (message_id, payload, event, topic, private, 'broadcast');
exception when others then
  raise warning 'WarnSendingBroadcastMessage: %', sqlerrm;
end
$fn$;
