-- The sub-topic that a policy is evaluated for. Spec: PROTOCOL.md §6.5.
create or replace function realtime.topic() returns text language sql stable as $fn$
  select nullif(current_setting('realtime.topic', true), '')
$fn$;
