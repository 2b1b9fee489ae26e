-- What decides about realtime.messages: attributes and grants of the allowed roles ($1), and the policies for reading.
-- One text: when it is the text of last time, so is everything that was made of it. Run with an empty search_path,
-- so that names are printed with their schema.
select json_build_object(
    'roles', (
        select json_object_agg(r.rolname::text, json_build_object(
            -- As check_enable_rls() decides: bypass, then ownership with inherited membership unless FORCE.
            'sees_all_rows', not c.relrowsecurity or r.rolbypassrls
                or (not c.relforcerowsecurity and pg_has_role(r.oid, c.relowner, 'USAGE')),
            'can_select', has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
                and has_column_privilege(r.oid, c.oid, 'id', 'SELECT'),
            'can_select_all', has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
                and has_table_privilege(r.oid, c.oid, 'SELECT'),
            'can_insert', has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
                and has_table_privilege(r.oid, c.oid, 'INSERT')) order by r.rolname)
        from pg_roles r
        -- Nobody speaks for a superuser or a replication role. Spec: DESIGN.md §10.
        where r.rolname::text = any ($1) and not r.rolsuper and not r.rolreplication),
    'policies', (
        select json_agg(json_build_object(
            'is_permissive', p.polpermissive,
            'expression', pg_get_expr(p.polqual, p.polrelid),
            -- The image has the columns of our own; of any other one it knows nothing.
            'reads_more', exists (
                select from pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                  and a.attname::text not in ('id', 'topic', 'extension', 'private', 'event', 'payload',
                                              'binary_payload', 'inserted_at', 'updated_at')
                  and (p.polqual::text like '%:varattno 0 %'
                       or exists (select from pg_depend d
                                  where d.classid = 'pg_policy'::regclass and d.objid = p.oid
                                    and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid
                                    and d.refobjsubid = a.attnum))),
            'roles', array(
                select r.rolname::text from pg_roles r
                where r.rolname::text = any ($1)
                  and exists (select from unnest(p.polroles) as granted(oid)
                              where granted.oid = 0 or pg_has_role(r.oid, granted.oid, 'USAGE'))
                order by 1)) order by p.polname)
        from pg_policy p
        where p.polrelid = c.oid and p.polcmd in ('r', '*') and p.polqual is not null),
    'has_binary', exists (
        select from pg_attribute a
        where a.attrelid = c.oid and a.attname = 'binary_payload' and not a.attisdropped))::text
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'realtime' and c.relname = 'messages'
