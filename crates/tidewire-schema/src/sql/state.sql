-- What is there. The search path is empty; nothing here needs a privilege on realtime.
select
  current_setting('server_version_num')::int4 as version_num,
  current_setting('server_version') as version,
  to_regclass('realtime.schema_migrations') is not null as has_migrations,
  m.oid is not null as has_messages,
  coalesce(m.relkind = 'p' and pg_get_partkeydef(m.oid) = 'RANGE (inserted_at)', false) as is_partitioned,
  array(select a.attname::text from pg_attribute a
        where a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped) as columns,
  to_regprocedure('realtime.topic()') is not null as has_topic,
  to_regprocedure('realtime.send(jsonb, text, text, boolean)') is not null as has_send,
  to_regprocedure('realtime.send_binary(bytea, text, text, boolean)') is not null as has_send_binary,
  to_regprocedure('realtime.broadcast_changes(text, text, text, text, text, record, record, text)') is not null
    as has_broadcast_changes,
  obj_description(to_regnamespace('realtime'), 'pg_namespace') as mark
from (select) as one
left join pg_class m on m.oid = to_regclass('realtime.messages')
