-- Schema realtime as user code and the reference's clients know it. Every statement may run again.
-- Spec: PROTOCOL.md §9.3, §9.4.

do $do$
begin
  if to_regrole('supabase_realtime_admin') is null then
    create role supabase_realtime_admin nologin noinherit noreplication;
  end if;
exception when duplicate_object or unique_violation then
  -- Roles are the cluster's: another database was faster.
  null;
end
$do$;

create schema if not exists realtime;

create table if not exists realtime.messages (
  topic          text      not null,
  extension      text      not null,
  payload        jsonb,
  event          text,
  private        boolean   default false,
  updated_at     timestamp not null default now(),
  inserted_at    timestamp not null default now(),
  id             uuid      not null default gen_random_uuid(),
  binary_payload bytea,
  primary key (id, inserted_at)
) partition by range (inserted_at);

do $do$
begin
  if not exists (select from pg_constraint
                 where conrelid = 'realtime.messages'::regclass and conname = 'messages_payload_exclusive') then
    alter table realtime.messages add constraint messages_payload_exclusive
      check (payload is null or binary_payload is null) not valid;
  end if;
end
$do$;

-- What replay asks for. Spec: PROTOCOL.md §3.6.
create index if not exists messages_inserted_at_topic_index on realtime.messages (inserted_at desc, topic)
  where extension = 'broadcast' and private is true;

-- Without a policy nobody but a role that bypasses row-level security gets in.
alter table realtime.messages enable row level security;
