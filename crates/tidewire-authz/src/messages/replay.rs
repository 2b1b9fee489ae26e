//! Stored broadcasts, read again. Spec: PROTOCOL.md §3.6.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Row;

use super::access::ACCESS;
use super::desk::Desk;
use super::exchange::{Param, Step, exchange};
use super::probe::{BEGIN_READ, SET_ROLE, Trouble, UNDO, bare};
use super::reading::{load_access, note_access};
use super::{ProbeError, ReplayedMessage, ReplayedPayload};
use crate::visibility::pool::Lease;

/// Spec: PROTOCOL.md §3.6, appendix B.
const LIMIT_MS: u64 = 5_000;
const LIMIT_SETTING: &str = "select pg_catalog.set_config('statement_timeout', '5000', true)";
/// For the answers to arrive once Postgres has given up.
const SLACK_MS: u64 = 1_000;
const ATTEMPTS: usize = 3;
/// Ends waiting for a server that is not there any more.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);

/// Half-open ranges of what Elixir's `DateTime.from_unix` accepts, which is what clients may send.
const SINCE_MIN_MS: i64 = -377_705_116_800_000;
const SINCE_MAX_MS: i64 = 253_402_300_799_999;
/// Year 1: before anything that is stored, and within what Postgres calls a timestamp.
const EARLIEST_MS: i64 = -62_135_596_800_000;

/// `since` of a replay is a time at all. Otherwise the join is refused with "Replay params are not valid".
/// Spec: PROTOCOL.md §2.5.
#[must_use]
pub fn is_replay_since_valid(since_unix_ms: i64) -> bool {
    (SINCE_MIN_MS..=SINCE_MAX_MS).contains(&since_unix_ms)
}

/// `$1` topic, `$2` milliseconds since 1970, `$3` how many.
fn select(has_binary: bool) -> String {
    let binary = if has_binary { "binary_payload" } else { "null::bytea" };
    format!(
        "select id::text, coalesce(event, ''), payload::text, {binary} from realtime.messages
         where topic = $1::text and extension = 'broadcast' and private is true
           and inserted_at >= timestamp 'epoch' + $2::int8 * interval '1 millisecond'
           and inserted_at < pg_catalog.timezone('UTC', pg_catalog.now()) + interval '1 minute'
         order by inserted_at desc limit $3::int8"
    )
}

pub(super) async fn replay(
    desk: &Desk,
    topic: &str,
    since_unix_ms: i64,
    limit: u32,
) -> Result<Vec<ReplayedMessage>, ProbeError> {
    for _ in 0..ATTEMPTS {
        let lease = desk.lease().await?;
        let answered = timeout(ATTEMPT_LIMIT, attempt(desk, lease, topic, since_unix_ms, limit)).await;
        match answered.unwrap_or(Err(Trouble::Failed(ProbeError::Unavailable))) {
            Ok(messages) => return Ok(messages),
            Err(Trouble::Failed(error)) => return Err(error),
            Err(Trouble::Lost | Trouble::Changed) => {}
        }
    }
    Err(ProbeError::Unavailable)
}

async fn attempt(
    desk: &Desk,
    mut lease: Lease,
    topic: &str,
    since_unix_ms: i64,
    limit: u32,
) -> Result<Vec<ReplayedMessage>, Trouble> {
    let session = lease.session();
    let access = match desk.access() {
        Some(access) => access,
        None => load_access(desk, session).await?,
    };
    let reader = access.bypassing(desk.replay_role.as_deref(), false).ok_or_else(|| {
        let why = "no allowed role bypasses row-level security and may select from realtime.messages";
        Trouble::Failed(ProbeError::Other(why.to_owned()))
    })?;
    let select = select(access.has_binary);
    if !session.is_prepared(&select) || !session.is_prepared(ACCESS) {
        session.client.batch_execute(BEGIN_READ).await?;
        session.prepare(ACCESS).await?;
        session.client.batch_execute(UNDO).await?;
        session.client.query(SET_ROLE, &[&reader]).await?;
        session.prepare(&select).await?;
        session.client.batch_execute("rollback").await?;
    }
    let since = since_unix_ms.clamp(EARLIEST_MS, SINCE_MAX_MS);
    let roles = Param::Texts(desk.pool.config().roles.clone());
    let params = vec![Param::Text(topic.to_owned()), Param::Int(since), Param::Int(i64::from(limit))];
    let steps = [
        Step { statement: session.prepare(ACCESS).await?, params: vec![roles] },
        bare(&session.prepare(UNDO).await?),
        Step { statement: session.prepare(SET_ROLE).await?, params: vec![Param::Text(reader.to_owned())] },
        bare(&session.prepare(LIMIT_SETTING).await?),
        Step { statement: session.prepare(&select).await?, params },
    ];
    let patience = Duration::from_millis(LIMIT_MS + SLACK_MS);
    let exchanged = exchange(session, BEGIN_READ, &steps, patience).await?;
    let mut rows = Vec::new();
    for (index, answer) in exchanged.answers.into_iter().enumerate() {
        let late = || Trouble::Failed(ProbeError::Canceled("replay took too long".to_owned()));
        rows = answer.ok_or_else(late)??;
        if index == 0 {
            let text: &str = match rows.first() {
                Some(row) => row.try_get(0)?,
                None => "",
            };
            if text != access.text {
                // A role that has lost its power since would silently see less.
                note_access(desk, text)?;
                return Err(Trouble::Changed);
            }
        }
    }
    let messages = rows.iter().rev().map(message).collect::<Result<Vec<_>, _>>()?;
    if exchanged.is_over {
        lease.give_back();
    }
    Ok(messages)
}

fn message(row: &Row) -> Result<ReplayedMessage, tokio_postgres::Error> {
    let json: Option<String> = row.try_get(2)?;
    let payload = match row.try_get::<_, Option<Vec<u8>>>(3)? {
        Some(bytes) => ReplayedPayload::Bytes(bytes),
        None => ReplayedPayload::Json(json.unwrap_or_else(|| "null".to_owned())),
    };
    Ok(ReplayedMessage { id: row.try_get(0)?, event: row.try_get(1)?, payload })
}
