-- Whether the publication is what it should be; NULL: there is none. Anything but realtime.messages and its
-- partitions, a row filter, a column list, or no INSERT makes it another one. Spec: PROTOCOL.md §3.9.
-- to_jsonb, because publications have filters only from PostgreSQL 15 on.
select not p.puballtables and p.pubinsert
   and exists (select from pg_publication_rel r
               where r.prpubid = p.oid and r.prrelid = 'realtime.messages'::regclass)
   and not exists (
         select from pg_publication_rel r
         where r.prpubid = p.oid
           and coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') is not null)
   -- Also what comes with a whole schema.
   and not exists (
         select from pg_publication_tables t
         join pg_namespace n on n.nspname = t.schemaname
         join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
         where t.pubname = p.pubname and c.oid <> 'realtime.messages'::regclass
           and not exists (select from pg_inherits i
                           where i.inhrelid = c.oid and i.inhparent = 'realtime.messages'::regclass))
from pg_publication p
where p.pubname = 'supabase_realtime_messages_publication'
