//! The replication slot: whether to make, reuse or refuse it.
//!
//! Owns the decision (pure, [`decide`]) and the commands that carry it out. It may not drop a slot that another
//! kind of consumer made, and never continues where continuity cannot be proven: a slot that is gone, lost or
//! already confirmed past the requested position is an error, not a fresh start.
//!
//! | slot of this name | `Fresh` | `From(lsn)` |
//! | --- | --- | --- |
//! | none | create | `SlotLost` |
//! | of another kind or database | `SlotForeign` | `SlotForeign` |
//! | active | `SlotInUse` | `SlotInUse` |
//! | invalidated | drop, create | `SlotLost` |
//! | confirmed past `lsn` | drop, create | `PositionLost` |
//! | otherwise | drop, create | continue |
//!
//! Spec: DESIGN.md §3 ("WAL is the log"); PostgreSQL, CREATE_REPLICATION_SLOT.

use crate::error::{Phase, StreamError};
use crate::lsn::Lsn;
use crate::probe::{Prerequisites, SlotFacts, one_row, position};
use crate::session::Session;
use crate::stream::StreamConfig;

/// Whether a slot outlives its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Ends with the connection: cannot fill the disk, cannot resume.
    Temporary,
    /// Outlives the connection: a restart resumes, and the log is kept meanwhile.
    Durable,
}

/// Which durability to choose for a new slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlotPolicy {
    /// Durable where `max_slot_wal_keep_size` bounds what a forgotten slot may keep, else temporary.
    #[default]
    Auto,
    /// Always temporary.
    Temporary,
    /// Always durable: the operator has decided to watch the disk.
    Durable,
}

impl SlotPolicy {
    /// What the policy means in this database.
    #[must_use]
    pub fn durability(self, max_slot_wal_keep_size_mb: i64) -> Durability {
        match self {
            SlotPolicy::Auto if max_slot_wal_keep_size_mb >= 0 => Durability::Durable,
            SlotPolicy::Auto | SlotPolicy::Temporary => Durability::Temporary,
            SlotPolicy::Durable => Durability::Durable,
        }
    }
}

/// Where streaming starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From now: an inactive slot of the same name is dropped and made anew.
    Fresh,
    /// After this position, on the existing durable slot. [`Lsn::ZERO`] means "where the slot stands".
    From(Lsn),
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    DropAndCreate,
    Continue(Lsn),
}

/// A slot ready to stream from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) from: Lsn,
    pub(crate) durability: Durability,
}

/// The table above.
fn decide(slot: Option<&SlotFacts>, start: Start) -> Result<Step, StreamError> {
    let Some(slot) = slot else {
        return match start {
            Start::Fresh => Ok(Step::Create),
            Start::From(_) => Err(StreamError::SlotLost),
        };
    };
    if !slot.is_ours {
        return Err(StreamError::SlotForeign);
    }
    // A temporary slot that we can see belongs to a living session of someone else.
    if slot.active_pid.is_some() || slot.is_temporary {
        return Err(StreamError::SlotInUse { pid: slot.active_pid });
    }
    match start {
        Start::Fresh => Ok(Step::DropAndCreate),
        Start::From(_) if slot.is_lost => Err(StreamError::SlotLost),
        Start::From(Lsn::ZERO) => Ok(Step::Continue(slot.confirmed_lsn)),
        // Postgres would silently start at the confirmed position instead: a hole that nobody reports.
        Start::From(requested) if requested < slot.confirmed_lsn => {
            Err(StreamError::PositionLost { requested, confirmed: slot.confirmed_lsn })
        }
        Start::From(requested) => Ok(Step::Continue(requested)),
    }
}

pub(crate) async fn prepare(
    session: &mut Session,
    facts: &Prerequisites,
    config: &StreamConfig,
    policy: SlotPolicy,
    start: Start,
) -> Result<Ready, StreamError> {
    let name = &config.slot;
    let step = decide(facts.slot.as_ref(), start)?;
    if let Step::Continue(from) = step {
        return Ok(Ready { from, durability: Durability::Durable });
    }
    if step == Step::DropAndCreate {
        session.query(&format!("DROP_REPLICATION_SLOT \"{name}\""), Phase::Slot).await?;
    }
    let durability = policy.durability(facts.max_slot_wal_keep_size_mb);
    // Postgres waits for each transaction that was writing before the slot; without a limit one forgotten
    // BEGIN would hang the start without a word.
    let patience = format!("SET lock_timeout = {}", config.slot_timeout.as_millis().clamp(1, 86_400_000));
    session.query(&patience, Phase::Query).await?;
    let created =
        session.query(&create_command(name, durability, facts.server_version_num), Phase::Slot).await?;
    session.query("SET lock_timeout = 0", Phase::Query).await?;
    // Columns: slot_name, consistent_point, snapshot_name, output_plugin.
    let consistent_point = one_row(created)?.into_iter().nth(1).flatten().unwrap_or_default();
    let from = position(&consistent_point)?;
    tracing::info!(slot = %name, %from, ?durability, "replication slot created");
    Ok(Ready { from, durability })
}

fn create_command(name: &str, durability: Durability, server_version_num: u32) -> String {
    let temporary = match durability {
        Durability::Temporary => " TEMPORARY",
        Durability::Durable => "",
    };
    // Version 15 brought the option list; the older spelling is deprecated there.
    let snapshot = if server_version_num >= 150_000 { "(SNAPSHOT 'nothing')" } else { "NOEXPORT_SNAPSHOT" };
    format!("CREATE_REPLICATION_SLOT \"{name}\"{temporary} LOGICAL pgoutput {snapshot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Lsn = Lsn(1000);

    fn idle() -> SlotFacts {
        SlotFacts { is_ours: true, is_temporary: false, active_pid: None, is_lost: false, confirmed_lsn: AT }
    }

    #[test]
    fn every_cell_of_the_table_is_decided_as_written() {
        let from = Start::From(AT);
        let code = |slot: Option<&SlotFacts>, start| decide(slot, start).unwrap_err().code();

        assert_eq!(decide(None, Start::Fresh).unwrap(), Step::Create);
        assert_eq!(code(None, from), "ReplicationSlotLost");

        let foreign = SlotFacts { is_ours: false, ..idle() };
        assert_eq!(code(Some(&foreign), Start::Fresh), "ReplicationSlotForeign");
        assert_eq!(code(Some(&foreign), from), "ReplicationSlotForeign");

        let active = SlotFacts { active_pid: Some(7), ..idle() };
        assert_eq!(code(Some(&active), Start::Fresh), "ReplicationSlotInUse");
        assert_eq!(code(Some(&active), from), "ReplicationSlotInUse");

        let lost = SlotFacts { is_lost: true, ..idle() };
        assert_eq!(decide(Some(&lost), Start::Fresh).unwrap(), Step::DropAndCreate);
        assert_eq!(code(Some(&lost), from), "ReplicationSlotLost");

        assert_eq!(decide(Some(&idle()), Start::Fresh).unwrap(), Step::DropAndCreate);
        assert_eq!(code(Some(&idle()), Start::From(Lsn(999))), "ReplicationPositionLost");
        assert_eq!(decide(Some(&idle()), from).unwrap(), Step::Continue(AT));
        assert_eq!(decide(Some(&idle()), Start::From(Lsn(1001))).unwrap(), Step::Continue(Lsn(1001)));
        assert_eq!(decide(Some(&idle()), Start::From(Lsn::ZERO)).unwrap(), Step::Continue(AT));
    }

    #[test]
    fn a_slot_is_durable_only_where_the_log_it_keeps_is_bounded_or_the_operator_insists() {
        assert_eq!(SlotPolicy::Auto.durability(-1), Durability::Temporary);
        assert_eq!(SlotPolicy::Auto.durability(0), Durability::Durable);
        assert_eq!(SlotPolicy::Auto.durability(1024), Durability::Durable);
        assert_eq!(SlotPolicy::Durable.durability(-1), Durability::Durable);
        assert_eq!(SlotPolicy::Temporary.durability(1024), Durability::Temporary);
    }

    #[test]
    fn the_create_command_follows_the_server_version() {
        assert_eq!(
            create_command("s", Durability::Temporary, 150_000),
            "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"
        );
        assert_eq!(
            create_command("s", Durability::Durable, 140_009),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        );
    }
}
