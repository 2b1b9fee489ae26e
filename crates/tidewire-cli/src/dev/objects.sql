-- What the database of `tidewire dev` contains from the start. Every statement may run again.
-- $authenticator_password$ and $replication_password$ are replaced; both are hexadecimal.
-- Spec: PROTOCOL.md §9.1, §9.4; DESIGN.md §7.

do $do$
begin
  if to_regrole('anon') is null then create role anon; end if;
  if to_regrole('authenticated') is null then create role authenticated; end if;
  if to_regrole('service_role') is null then create role service_role; end if;
  if to_regrole('authenticator') is null then create role authenticator; end if;
  if to_regrole('tidewire_replication') is null then create role tidewire_replication; end if;
  -- Migrations written for Supabase name these two. They are names here: no login, no rights.
  if to_regrole('supabase_admin') is null then create role supabase_admin nologin noinherit; end if;
  if to_regrole('dashboard_user') is null then create role dashboard_user nologin noinherit; end if;
end
$do$;

alter role anon nologin noinherit nosuperuser nobypassrls;
alter role authenticated nologin noinherit nosuperuser nobypassrls;
alter role service_role nologin noinherit nosuperuser bypassrls;
-- Speaks for users: can become the three roles above and is nobody by itself.
alter role authenticator login noinherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls
  password '$authenticator_password$';
grant anon, authenticated, service_role to authenticator;
-- Reads the log of changes.
alter role tidewire_replication login noinherit nosuperuser nocreatedb nocreaterole replication
  password '$replication_password$';

create schema if not exists extensions;
grant usage on schema extensions to anon, authenticated, service_role;

grant usage on schema public to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;

create schema if not exists auth;
grant usage on schema auth to anon, authenticated, service_role;

create or replace function auth.uid() returns uuid language sql stable as $fn$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
  )::uuid
$fn$;

create or replace function auth.role() returns text language sql stable as $fn$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
  )
$fn$;

create or replace function auth.email() returns text language sql stable as $fn$
  select coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
  )
$fn$;

create or replace function auth.jwt() returns jsonb language sql stable as $fn$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$fn$;

do $do$
begin
  if not exists (select from pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
end
$do$;
