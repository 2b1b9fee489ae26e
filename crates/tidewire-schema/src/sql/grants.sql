-- Who owns and who may use what. Roles that do not exist are left out. Spec: PROTOCOL.md §9.4.
do $do$
declare
  api name;
  routine text;
begin
  if to_regrole('supabase_admin') is not null then
    alter schema realtime owner to supabase_admin;
  end if;
  grant usage, create on schema realtime to supabase_realtime_admin with grant option;
  alter table realtime.messages owner to supabase_realtime_admin;

  foreach api in array array['anon', 'authenticated', 'service_role'] loop
    if to_regrole(api) is not null then
      if not pg_has_role('supabase_realtime_admin', api, 'member') then
        execute format('grant %I to supabase_realtime_admin', api);
      end if;
      execute format('grant usage on schema realtime to %I', api);
      execute format('grant select, insert, update on realtime.messages to %I', api);
    end if;
  end loop;

  if to_regrole('postgres') is not null then
    grant usage on schema realtime to postgres with grant option;
    -- So that policies can be made without a superuser (who counts as a member). Where supautils grants that, it needs
    -- no membership.
    if coalesce(current_setting('supautils.policy_grants', true), '') not like '%realtime.messages%'
       and not pg_has_role('postgres', 'supabase_realtime_admin', 'member') then
      grant supabase_realtime_admin to postgres;
    end if;
  end if;
  if to_regrole('dashboard_user') is not null then
    grant usage on schema realtime to dashboard_user;
  end if;

  foreach routine in array array[
    'realtime.topic()',
    'realtime.send(jsonb, text, text, boolean)',
    'realtime.send_binary(bytea, text, text, boolean)',
    'realtime.broadcast_changes(text, text, text, text, text, record, record, text)'
  ] loop
    execute format('alter function %s owner to supabase_realtime_admin', routine);
    foreach api in array array['postgres', 'dashboard_user'] loop
      if to_regrole(api) is not null then
        execute format('grant execute on function %s to %I', routine, api);
      end if;
    end loop;
  end loop;
  foreach api in array array['postgres', 'dashboard_user'] loop
    if to_regrole(api) is not null then
      execute format('grant all on realtime.messages to %I', api);
    end if;
  end loop;
end
$do$;
