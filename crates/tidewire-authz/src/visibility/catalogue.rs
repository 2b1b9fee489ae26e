//! Reads from the catalogue what [`Table`] holds, who is published, and whether roles have changed.
//!
//! Everything is read by the authenticator itself, which needs no privilege for it: the system catalogues are public.
//! A table is read in one `REPEATABLE READ` transaction, so its parts belong together.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::pipeline::{Query, in_order};
use super::pool::Session;
use super::table::{Column, RoleAccess, Table, TypeShape, TypeTree};
use super::{AccessError, policy};

const CLASS: &str = "
    select n.nspname::text, c.relname::text, c.relrowsecurity
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = $1";

const COLUMNS: &str = "
    select a.attname::text, a.attnum, a.atttypid, t.typname::text,
           pg_catalog.format_type(a.atttypid, null), a.attgenerated <> '',
           coalesce(l.collisdeterministic, true),
           exists (select from pg_catalog.pg_index i
                   where i.indrelid = a.attrelid and i.indisprimary and a.attnum = any (i.indkey))
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = a.atttypid
    left join pg_catalog.pg_collation l on l.oid = a.attcollation
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
    order by a.attnum";

/// Whether a role passes every policy follows `check_enable_rls()` of the server (`src/backend/utils/misc/rls.c`):
/// bypass first, then ownership *with inherited membership* unless `FORCE`.
/// A superuser or replication role is never spoken for. Spec: DESIGN.md §10.
const ROLES: &str = "
    select r.rolname::text,
           not c.relrowsecurity or r.rolbypassrls
               or (not c.relforcerowsecurity and pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')),
           array(select pg_catalog.has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
                        and pg_catalog.has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')
                 from pg_catalog.pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                 order by a.attnum)
    from pg_catalog.pg_class c, pg_catalog.pg_roles r
    where c.oid = $1 and r.rolname::text = any ($2) and not r.rolsuper and not r.rolreplication";

/// Which policies apply to whom follows `check_role_for_policy()` (`src/backend/rewrite/rowsecurity.c`): PUBLIC, or a
/// role whose privileges the subscriber's role *has* (inherited membership), not merely could assume.
/// A policy without USING constrains nothing when reading; the server skips it as well.
/// A whole-row reference leaves no dependency on columns, so it is looked for in the stored tree.
const POLICIES: &str = "
    select p.polpermissive,
           pg_catalog.pg_get_expr(p.polqual, p.polrelid),
           p.polqual::text like '%:varattno 0 %',
           array(select d.refobjsubid::int2 from pg_catalog.pg_depend d
                 where d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and d.objid = p.oid
                   and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                   and d.refobjid = p.polrelid and d.refobjsubid > 0),
           array(select r.rolname::text from pg_catalog.pg_roles r
                 where r.rolname::text = any ($2)
                   and exists (select from pg_catalog.unnest(p.polroles) as of(oid)
                               where of.oid = 0 or pg_catalog.pg_has_role(r.oid, of.oid, 'USAGE')))
    from pg_catalog.pg_policy p
    where p.polrelid = $1 and p.polcmd in ('r', '*') and p.polqual is not null
    order by p.polname";

/// All types that the table's columns are made of.
const TYPES: &str = "
    with recursive of(oid) as (
        select a.atttypid from pg_catalog.pg_attribute a
        where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
        union
        select part.oid from of
        join pg_catalog.pg_type t on t.oid = of.oid
        cross join lateral (
            select t.typbasetype where t.typtype = 'd'
            union all
            select t.typelem where t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
            union all
            select a.atttypid from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        ) as part(oid)
    )
    select t.oid, t.typtype::text, t.typname::text, t.typbasetype,
           case when t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
                 and t.typname not in ('int2vector', 'oidvector') then t.typelem else 0 end,
           t.typdelim::text,
           array(select a.attname::text from pg_catalog.pg_attribute a
                 where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                 order by a.attnum),
           array(select a.atttypid from pg_catalog.pg_attribute a
                 where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                 order by a.attnum)
    from of join pg_catalog.pg_type t on t.oid = of.oid";

const RESOLVE: &str = "
    select c.oid
    from pg_catalog.pg_publication_tables p
    join pg_catalog.pg_namespace n on n.nspname = p.schemaname
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname::text = $1
      and ($2::text is null or p.schemaname::text like $2 escape '')
      and ($3::text is null or p.tablename::text like $3 escape '')
    order by c.oid";

/// The roles that tokens may name, what they are members of, and schema privileges: none of these is announced in the
/// stream when it changes.
const FINGERPRINT: &str = "
    with recursive of(oid) as (
        select r.oid from pg_catalog.pg_roles r where r.rolname::text = any ($1) or r.rolname = session_user
        union
        select m.roleid from of join pg_catalog.pg_auth_members m on m.member = of.oid
    )
    select pg_catalog.hashtextextended(
        coalesce((select pg_catalog.string_agg(pg_catalog.concat_ws(',', r.oid, r.rolname, r.rolsuper, r.rolinherit,
                                                                    r.rolreplication, r.rolbypassrls), ';' order by r.oid)
                  from pg_catalog.pg_roles r join of using (oid)), '') || '|' ||
        coalesce((select pg_catalog.string_agg(pg_catalog.to_jsonb(m)::text, ';' order by m.roleid, m.member, m.grantor)
                  from pg_catalog.pg_auth_members m join of on m.member = of.oid), '') || '|' ||
        coalesce((select pg_catalog.string_agg(pg_catalog.concat_ws(',', n.oid, n.nspname, n.nspowner, n.nspacl), ';'
                                               order by n.oid)
                  from pg_catalog.pg_namespace n
                  where n.nspname not like 'pg\\_temp\\_%' and n.nspname not like 'pg\\_toast%'), ''), 0)";

pub(super) async fn table(session: &mut Session, relid: u32, roles: &[String]) -> Result<Table, AccessError> {
    let texts = [CLASS, COLUMNS, ROLES, POLICIES, TYPES];
    let mut statements = Vec::with_capacity(texts.len());
    for text in texts {
        statements.push(session.prepare(text).await.map_err(AccessError::Query)?);
    }
    let client = &session.client;
    // With an empty search path every name outside pg_catalog is printed with its schema.
    client
        .batch_execute(
            "begin isolation level repeatable read read only; select set_config('search_path', '', true)",
        )
        .await
        .map_err(AccessError::Query)?;
    let queries = statements.iter().enumerate().map(|(index, statement)| -> Query<'_> {
        Box::pin(async move {
            let params: [&(dyn ToSql + Sync); 2] = [&relid, &roles];
            let with_roles = index == 2 || index == 3;
            client.query(statement, if with_roles { &params } else { &params[..1] }).await
        })
    });
    let answers = in_order(queries.collect()).await;
    client.batch_execute("rollback").await.map_err(AccessError::Query)?;

    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_else(|| Ok(Vec::new())).map_err(AccessError::Query);
    let (class, columns, access, policies, types) = (next()?, next()?, next()?, next()?, next()?);
    let Some(class) = class.first() else { return Err(AccessError::NoTable { relid }) };
    assemble(relid, class, &columns, &access, &policies, &types).map_err(AccessError::Query)
}

fn assemble(
    relid: u32,
    class: &Row,
    columns: &[Row],
    access: &[Row],
    policies: &[Row],
    types: &[Row],
) -> Result<Table, tokio_postgres::Error> {
    let mut catalogue = HashMap::new();
    for row in types {
        let entry = TypeRow {
            kind: row.try_get(1)?,
            name: row.try_get(2)?,
            base: row.try_get(3)?,
            element: row.try_get(4)?,
            delimiter: row.try_get(5)?,
            field_names: row.try_get(6)?,
            field_types: row.try_get(7)?,
        };
        catalogue.insert(row.try_get::<_, u32>(0)?, entry);
    }
    let columns = columns
        .iter()
        .map(|row| {
            let type_oid = row.try_get(2)?;
            Ok(Column {
                name: row.try_get(0)?,
                attnum: row.try_get(1)?,
                type_oid,
                type_name: row.try_get(3)?,
                type_sql: row.try_get(4)?,
                kind: tree(&catalogue, type_oid, 0),
                generated: row.try_get(5)?,
                deterministic_collation: row.try_get(6)?,
                is_primary_key: row.try_get(7)?,
            })
        })
        .collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
    let policies = policies
        .iter()
        .map(|row| {
            Ok(policy::Policy {
                is_permissive: row.try_get(0)?,
                expression: row.try_get(1)?,
                reads_whole_row: row.try_get(2)?,
                attnums: row.try_get(3)?,
                roles: row.try_get(4)?,
            })
        })
        .collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
    let mut roles = HashMap::new();
    for row in access {
        let name: String = row.try_get(0)?;
        let combined = policy::combine(&policies, &name, &columns);
        let access = RoleAccess {
            sees_all_rows: row.try_get(1)?,
            selectable: row.try_get(2)?,
            policy: combined.expression,
            policy_columns: combined.columns,
        };
        roles.insert(name, access);
    }
    Ok(Table {
        relid,
        schema: class.try_get(0)?,
        name: class.try_get(1)?,
        rls_enabled: class.try_get(2)?,
        columns,
        roles,
    })
}

struct TypeRow {
    kind: String,
    name: String,
    base: u32,
    element: u32,
    delimiter: String,
    field_names: Vec<String>,
    field_types: Vec<u32>,
}

/// Postgres refuses types that contain themselves; the depth is a seat belt.
const TYPE_DEPTH_MAX: usize = 64;

fn tree(catalogue: &HashMap<u32, TypeRow>, oid: u32, depth: usize) -> TypeTree {
    let scalar = TypeTree { oid, shape: TypeShape::Scalar };
    let Some(row) = catalogue.get(&oid) else { return scalar };
    if depth > TYPE_DEPTH_MAX {
        return scalar;
    }
    let shape = match row.kind.as_str() {
        "d" => return tree(catalogue, row.base, depth + 1),
        "e" => TypeShape::Enum,
        "c" => TypeShape::Composite {
            fields: row
                .field_names
                .iter()
                .zip(&row.field_types)
                .map(|(name, oid)| (name.clone(), tree(catalogue, *oid, depth + 1)))
                .collect(),
        },
        _ if row.element != 0 => TypeShape::Array {
            element: Box::new(tree(catalogue, row.element, depth + 1)),
            delimiter: row.delimiter.chars().next().unwrap_or(','),
        },
        _ if row.name == "hstore" => TypeShape::Hstore,
        _ => TypeShape::Scalar,
    };
    TypeTree { oid, shape }
}

pub(super) async fn resolve(
    session: &mut Session,
    publication: &str,
    schema: Option<&str>,
    table: Option<&str>,
) -> Result<Vec<u32>, tokio_postgres::Error> {
    let statement = session.prepare(RESOLVE).await?;
    let rows = session.client.query(&statement, &[&publication, &schema, &table]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

pub(super) async fn roles_fingerprint(
    session: &mut Session,
    roles: &[String],
) -> Result<u64, tokio_postgres::Error> {
    let statement = session.prepare(FINGERPRINT).await?;
    let hash: i64 = session.client.query_one(&statement, &[&roles]).await?.try_get(0)?;
    Ok(hash.cast_unsigned())
}

/// A number of bytes since the beginning of the log.
const LOG_POSITION: &str = "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8";

pub(super) async fn log_position(session: &mut Session) -> Result<u64, tokio_postgres::Error> {
    let statement = session.prepare(LOG_POSITION).await?;
    let position: i64 = session.client.query_one(&statement, &[]).await?.try_get(0)?;
    Ok(position.cast_unsigned())
}
