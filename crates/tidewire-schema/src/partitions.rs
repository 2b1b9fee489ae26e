//! One partition per UTC day: made in time, dropped in time.
//!
//! "Today" is asked of Postgres within the transaction that uses it. Days are made from yesterday to three days ahead:
//! rows are stamped in the time zone of the session that inserts them, up to 14 hours from UTC; and a server that is
//! stopped on a Friday leaves a database that works until Monday.

use tokio_postgres::{Client, Transaction};

use crate::SchemaError;
use crate::objects::{LOCK, PREPARE};

/// Each day around today: its name, its bounds, and what is there.
const DAYS: &str = "
    select d.name, d.day::text, (d.day + 1)::text,
           to_regclass('realtime.' || d.name) is not null as is_there,
           exists (select from pg_inherits i
                   where i.inhparent = 'realtime.messages'::regclass
                     and i.inhrelid = to_regclass('realtime.' || d.name)) as is_attached
    from (select today + n as day, 'messages_' || to_char(today + n, 'YYYY_MM_DD') as name
          from (select (now() at time zone 'UTC')::date) as now(today), generate_series(-1, 3) as n) as d
    order by d.day";

/// Partitions, and whether each is a whole day, named after it, that ended long enough ago. NULL: not one of ours.
const OLD: &str = r"
    select quote_ident(c.relname),
           case when c.relname = 'messages_' || replace(bounds[1], '-', '_')
                 and bounds[2]::date = bounds[1]::date + 1
                then bounds[1]::date < ((now() at time zone 'UTC') - $1::int8 * interval '1 hour')::date end
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join lateral regexp_match(
        pg_get_expr(c.relpartbound, c.oid),
        '^FOR VALUES FROM \(''(\d{4}-\d\d-\d\d) 00:00:00''\) TO \(''(\d{4}-\d\d-\d\d) 00:00:00''\)$') as bounds
    where i.inhparent = 'realtime.messages'::regclass and c.relnamespace = 'realtime'::regnamespace
    order by c.relname";

/// Days have ISO names, in the catalogue as here; a lock that is not had soon is left for the next time, because
/// everybody who uses the table would wait behind us.
const SETTLE: &str = "set local datestyle = 'ISO, YMD'; set local lock_timeout = '2s'";

async fn begin<'a>(client: &'a mut Client, action: &'static str) -> Result<Transaction<'a>, SchemaError> {
    let transaction = client.transaction().await.map_err(SchemaError::of(action))?;
    transaction.batch_execute(PREPARE).await.map_err(SchemaError::of(action))?;
    transaction.batch_execute(LOCK).await.map_err(SchemaError::of("wait for another server"))?;
    transaction.batch_execute(SETTLE).await.map_err(SchemaError::of(action))?;
    let exists = "select coalesce((select relkind = 'p' from pg_class where oid = to_regclass('realtime.messages')), false)";
    let exists = transaction.query_one(exists, &[]).await.and_then(|row| row.try_get(0));
    if !exists.map_err(SchemaError::of(action))? {
        let problem = "it does not exist, or is not partitioned".to_owned();
        return Err(SchemaError::UnexpectedTable { problem });
    }
    Ok(transaction)
}

pub(crate) async fn ensure(client: &mut Client) -> Result<Vec<String>, SchemaError> {
    const ACTION: &str = "make partitions of realtime.messages";
    let failed = || SchemaError::of(ACTION);
    let mut transaction = begin(client, ACTION).await?;
    let days = transaction.query(DAYS, &[]).await.map_err(failed())?;
    let mut made = Vec::new();
    let mut obstacle = None;
    for day in &days {
        let text = |index: usize| day.try_get::<_, String>(index).map_err(failed());
        let is = |name: &str| day.try_get::<_, bool>(name).map_err(failed());
        if is("is_attached")? {
            continue;
        }
        let (name, from, to) = (text(0)?, text(1)?, text(2)?);
        if is("is_there")? {
            obstacle = obstacle.or(Some(format!("realtime.{name} exists and is not a partition of it")));
            continue;
        }
        let savepoint = transaction.savepoint("day").await.map_err(failed())?;
        match savepoint.batch_execute(&create(&name, &from, &to)).await {
            Ok(()) => {
                savepoint.commit().await.map_err(failed())?;
                made.push(name);
            }
            // invalid_object_definition: the day lies within a partition of another name.
            Err(error) if error.code().is_some_and(|code| code.code() == "42P17") => {
                savepoint.rollback().await.map_err(failed())?;
                tracing::debug!(partition = name, "another partition covers this day");
            }
            Err(error) => return Err(failed()(error)),
        }
    }
    transaction.commit().await.map_err(failed())?;
    if !made.is_empty() {
        tracing::info!(partitions = made.join(" "), "partitions made");
    }
    match obstacle {
        Some(problem) => Err(SchemaError::UnexpectedTable { problem }),
        None => Ok(made),
    }
}

/// Made first and attached then: attaching does not stop those who read and insert, as `PARTITION OF` would.
/// `name`, `from` and `to` consist of letters, digits, `_` and `-`.
fn create(name: &str, from: &str, to: &str) -> String {
    format!(
        "create table realtime.{name}
           (like realtime.messages including defaults including constraints including indexes including storage);
         do $do$
         declare
           owner name;
         begin
           if to_regrole('supabase_realtime_admin') is not null then
             alter table realtime.{name} owner to supabase_realtime_admin;
           end if;
           foreach owner in array array['postgres', 'dashboard_user'] loop
             if to_regrole(owner) is not null then
               execute format('grant all on realtime.{name} to %I', owner);
             end if;
           end loop;
         end
         $do$;
         alter table realtime.messages attach partition realtime.{name} for values from ('{from}') to ('{to}')"
    )
}

pub(crate) async fn drop_old(client: &mut Client, keep_hours: u32) -> Result<Vec<String>, SchemaError> {
    const ACTION: &str = "drop old partitions of realtime.messages";
    let failed = || SchemaError::of(ACTION);
    let keep_hours = i64::from(keep_hours);
    let mut dropped = Vec::new();
    // One at a time: each is gone as soon as it can be, and locks are short.
    loop {
        let transaction = begin(client, ACTION).await?;
        let found = transaction.query(OLD, &[&keep_hours]).await.map_err(failed())?;
        let mut old = None;
        for row in &found {
            let name: String = row.try_get(0).map_err(failed())?;
            match row.try_get::<_, Option<bool>>(1).map_err(failed())? {
                Some(true) => old = old.or(Some(name)),
                Some(false) => {}
                None if dropped.is_empty() && old.is_none() => {
                    tracing::warn!(partition = name, "a partition that is no whole day is left alone");
                }
                None => {}
            }
        }
        let Some(name) = old else {
            transaction.commit().await.map_err(failed())?;
            break;
        };
        transaction.batch_execute(&format!("drop table realtime.{name}")).await.map_err(failed())?;
        transaction.commit().await.map_err(failed())?;
        dropped.push(name);
    }
    if !dropped.is_empty() {
        tracing::info!(partitions = dropped.join(" "), "old partitions dropped");
    }
    Ok(dropped)
}
