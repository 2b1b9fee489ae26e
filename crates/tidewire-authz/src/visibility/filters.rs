//! Filters: conditions over an image that are not decided in process, and the checks when a binding is made.
//!
//! Filters are the server's own SQL over values that the client sent; they decide interest, never permission. They
//! run in a subscriber's role all the same, because the authenticator has no access to schemas of its own.
//!
//! An expression that fails is false for every image, and the others are decided without it.

use tokio_postgres::Error;

use super::image::{self, Image};
use super::judge::{BEGIN, qualified};
use super::pool::{Pool, Session};
use super::table::Table;
use super::{AccessError, BindingCondition, BindingRefusal, RowImage, sql};

/// Expressions per statement. A target list may hold 1664; fewer keep one failure from costing much.
const EXPRESSIONS_MAX: usize = 64;

pub(super) async fn evaluate(
    pool: &Pool,
    table: &Table,
    expressions: &[String],
    images: &[RowImage],
) -> Result<Vec<Vec<bool>>, AccessError> {
    let mut results = vec![vec![false; images.len()]; expressions.len()];
    // The least able role that may use the schema; the order makes the choice the same on each node.
    let mut roles: Vec<_> = table.roles.iter().filter(|(_, access)| access.can_select()).collect();
    roles.sort_by_key(|(name, access)| (access.sees_all_rows, *name));
    let Some((role, _)) = roles.first() else { return Ok(results) };
    if images.is_empty() || expressions.is_empty() {
        return Ok(results);
    }
    let read = images.iter().map(|image| Image::read(image, table)).collect::<Result<Vec<_>, _>>()?;
    let json = image::array(read.iter());

    for (chunk, results) in expressions.chunks(EXPRESSIONS_MAX).zip(results.chunks_mut(EXPRESSIONS_MAX)) {
        if !evaluate_some(pool, role, table, chunk, &json, results).await? && chunk.len() > 1 {
            for (expression, result) in chunk.chunks(1).zip(results.chunks_mut(1)) {
                evaluate_some(pool, role, table, expression, &json, result).await?;
            }
        }
    }
    Ok(results)
}

/// False: one of the expressions failed, and `results` is untouched.
async fn evaluate_some(
    pool: &Pool,
    role: &str,
    table: &Table,
    expressions: &[String],
    json: &str,
    results: &mut [Vec<bool>],
) -> Result<bool, AccessError> {
    let targets: Vec<_> = expressions.iter().map(|text| format!("coalesce(({text}\n), false)")).collect();
    let text = format!(
        "SELECT {} FROM json_populate_recordset(null::{}, $1::text::json) AS {}",
        targets.join(", "),
        qualified(table),
        sql::identifier(&table.name)
    );
    let mut lease = pool.lease().await?;
    let session = lease.session();
    session.client.batch_execute(BEGIN).await.map_err(AccessError::Query)?;
    let rows = async {
        session.client.query("select set_config('role', $1, true)", &[&role]).await?;
        let statement = session.prepare(&text).await?;
        session.client.query(&statement, &[&json]).await
    };
    let rows = match rows.await {
        Ok(rows) => rows,
        Err(error) if error.as_db_error().is_some() => {
            tracing::debug!(error = sql::discreet(&error), "filter_failed");
            return Ok(false);
        }
        Err(error) => return Err(AccessError::Query(error)),
    };
    session.client.batch_execute("rollback").await.map_err(AccessError::Query)?;
    lease.give_back();
    if results.iter().any(|result| result.len() != rows.len()) {
        return Err(AccessError::Protocol { what: "another number of rows than images" });
    }
    for (image, row) in rows.iter().enumerate() {
        for (expression, result) in results.iter_mut().enumerate() {
            result[image] = row.try_get(expression).map_err(AccessError::Query)?;
        }
    }
    Ok(true)
}

const ROLE_EXISTS: &str = "select exists (select from pg_catalog.pg_roles where rolname::text = $1)";

/// `comparable` says which operators exist for exactly this type. Spec: PROTOCOL.md §5.3.
const BOUND_COLUMNS: &str = "
    select a.attname::text, pg_catalog.format_type(a.atttypid, null), a.atttypid = 16,
           exists (select from pg_catalog.pg_operator o where o.oprname = '~~' and o.oprleft = a.atttypid),
           exists (select from pg_catalog.pg_operator o where o.oprname = '~' and o.oprleft = a.atttypid
                   and o.oprright = a.atttypid and o.oprresult = 16),
           exists (select from pg_catalog.pg_operator o where o.oprname = '~*' and o.oprleft = a.atttypid
                   and o.oprright = a.atttypid and o.oprresult = 16)
    from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
    where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
      and pg_catalog.has_schema_privilege($2::text::name, c.relnamespace, 'USAGE')
      and pg_catalog.has_column_privilege($2::text::name, a.attrelid, a.attnum, 'SELECT')
    order by a.attnum";

struct BoundColumn {
    name: String,
    type_sql: String,
    is_boolean: bool,
    has_like: bool,
    has_match: bool,
    has_imatch: bool,
}

pub(super) async fn check_binding(
    pool: &Pool,
    role: &str,
    relid: u32,
    conditions: &[BindingCondition],
    select: Option<&[String]>,
) -> Result<(), BindingRefusal> {
    // Postgres has no NUL in text, and the driver would call it a broken request.
    let mut foreign =
        conditions.iter().flat_map(|c| [&c.column, &c.value]).chain(select.into_iter().flatten());
    if role.contains('\0') || foreign.any(|text| text.contains('\0')) {
        return Err(refusal(
            r#"ERROR 22021 (character_not_in_repertoire) invalid byte sequence for encoding "UTF8": 0x00"#,
        ));
    }
    let mut lease = pool
        .lease()
        .await
        .map_err(|error| BindingRefusal { message: error.to_string(), is_transient: true })?;
    let session = lease.session();
    session.client.batch_execute(BEGIN).await.map_err(|error| from_postgres(&error))?;
    // Sent as one role check, one catalogue query and one cast per condition: joins are rare beside changes.
    check(session, role, relid, conditions, select).await?;
    session.client.batch_execute("rollback").await.map_err(|error| from_postgres(&error))?;
    lease.give_back();
    Ok(())
}

async fn check(
    session: &mut Session,
    role: &str,
    relid: u32,
    conditions: &[BindingCondition],
    select: Option<&[String]>,
) -> Result<(), BindingRefusal> {
    let columns = bound_columns(session, role, relid).await.map_err(|error| from_postgres(&error))?;
    let Some(columns) = columns else {
        return Err(refusal(&format!("ERROR 42704 (undefined_object) role \"{role}\" does not exist")));
    };
    // Everything the client wrote is parsed in its own role.
    if !conditions.is_empty() {
        let set = session.client.query("select set_config('role', $1, true)", &[&role]).await;
        set.map_err(|error| from_postgres(&error))?;
    }
    for condition in conditions {
        let Some(column) = columns.iter().find(|column| column.name == condition.column) else {
            return Err(raised(&format!("invalid column for filter {}", condition.column)));
        };
        check_condition(session, condition, column).await?;
    }
    for name in select.into_iter().flatten() {
        if !columns.iter().any(|column| column.name == *name) {
            return Err(raised(&format!("invalid column for select {name}")));
        }
    }
    check_expressions(session, relid, conditions).await.map_err(|error| from_postgres(&error))
}

async fn bound_columns(
    session: &mut Session,
    role: &str,
    relid: u32,
) -> Result<Option<Vec<BoundColumn>>, Error> {
    let statement = session.prepare(ROLE_EXISTS).await?;
    if !session.client.query_one(&statement, &[&role]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let statement = session.prepare(BOUND_COLUMNS).await?;
    let rows = session.client.query(&statement, &[&relid, &role]).await?;
    let columns = rows.iter().map(|row| {
        Ok(BoundColumn {
            name: row.try_get(0)?,
            type_sql: row.try_get(1)?,
            is_boolean: row.try_get(2)?,
            has_like: row.try_get(3)?,
            has_match: row.try_get(4)?,
            has_imatch: row.try_get(5)?,
        })
    });
    columns.collect::<Result<Vec<_>, Error>>().map(Some)
}

async fn check_condition(
    session: &Session,
    condition: &BindingCondition,
    column: &BoundColumn,
) -> Result<(), BindingRefusal> {
    let BoundColumn { type_sql, .. } = column;
    let op = condition.op.as_str();
    let no_operator =
        || raised(&format!("operator {op} requires a text-compatible column type, got {type_sql}"));
    match op {
        "in" => {
            let text = format!(
                "select coalesce(jsonb_array_length(to_jsonb({}::{type_sql}[])), 0)",
                sql::literal(&format!("{{{}}}", condition.value))
            );
            let row = session.client.query_one(&text, &[]).await.map_err(|error| from_postgres(&error))?;
            if row.try_get::<_, i32>(0).map_err(|error| from_postgres(&error))? > 100 {
                return Err(raised("too many values for `in` filter. Maximum 100"));
            }
        }
        "is" => match condition.value.as_str() {
            "null" => {}
            "true" | "false" | "unknown" if column.is_boolean => {}
            value @ ("true" | "false" | "unknown") => {
                return Err(raised(&format!("is {value} filter requires a boolean column, got {type_sql}")));
            }
            _ => {
                return Err(raised("invalid value for is filter: must be null, true, false, or unknown"));
            }
        },
        "like" | "ilike" => {
            if !column.has_like {
                return Err(no_operator());
            }
        }
        "match" | "imatch" => {
            if !(if op == "match" { column.has_match } else { column.has_imatch }) {
                return Err(no_operator());
            }
            let compiled = session.client.query("select ''::text ~ $1::text", &[&condition.value]).await;
            compiled.map_err(|error| match error.as_db_error() {
                Some(db) => raised(&format!("invalid regular expression for {op} filter: {}", db.message())),
                None => from_postgres(&error),
            })?;
        }
        _ => {
            let text = format!("select {}::{type_sql}", sql::literal(&condition.value));
            session.client.simple_query(&text).await.map_err(|error| from_postgres(&error))?;
        }
    }
    Ok(())
}

/// The conditions as they will be evaluated parse: the operators exist for these types.
async fn check_expressions(
    session: &Session,
    relid: u32,
    conditions: &[BindingCondition],
) -> Result<(), Error> {
    let parts: Vec<_> =
        conditions.iter().filter(|c| !c.sql.is_empty()).map(|c| format!("({}\n)", c.sql)).collect();
    if parts.is_empty() {
        return Ok(());
    }
    let names = session
        .client
        .query(
            "select format('%I.%I', n.nspname, c.relname), quote_ident(c.relname) from pg_catalog.pg_class c
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
            &[&relid],
        )
        .await?;
    let Some(names) = names.first() else { return Ok(()) };
    let (qualified, name): (String, String) = (names.try_get(0)?, names.try_get(1)?);
    let conditions = parts.join(" AND ");
    session
        .client
        .prepare(&format!("SELECT {conditions} FROM (SELECT (null::{qualified}).*) AS {name}"))
        .await?;
    Ok(())
}

fn raised(message: &str) -> BindingRefusal {
    refusal(&format!("ERROR P0001 (raise_exception) {message}"))
}

fn refusal(message: &str) -> BindingRefusal {
    BindingRefusal { message: message.to_owned(), is_transient: false }
}

fn from_postgres(error: &Error) -> BindingRefusal {
    match error.as_db_error() {
        // A statement that was cancelled may do better next time.
        Some(db) => {
            BindingRefusal { message: sql::spoken(db), is_transient: db.code().code().starts_with("57") }
        }
        None => BindingRefusal { message: "connection lost".to_owned(), is_transient: true },
    }
}
