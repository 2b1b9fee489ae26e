//! One batch of the stream, from bytes to frames.
//!
//! Three steps: *collect*, here, decodes and finds the groups that match; [`ask`] puts to Postgres what only
//! Postgres can decide, once per batch and identity; [`deliver`] turns the answers into receivers, encodes
//! once per (role, selection) and hands frames to the shards, in commit order.
//!
//! What it may not do: deliver a change to anybody for whom the answer is not known. Whoever cannot be
//! asked about within [`PATIENCE`] is told so and gets nothing of the batch.

mod ask;
mod deliver;
mod messages;

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tidewire_authz::AccessError;
use tidewire_engine::{Action, ChannelId, Match, PeerMessage, Rates, TableId};
use tidewire_replication::{
    Begin, Lsn, Message, OldTuple, Relation, ReplicaIdentity, StreamError, Tuple, WalRead, decode,
};
use tokio::time::Instant;

use super::registry::{self, Registry};
use super::table::{PublishedTable, Row};
use super::task::Database;
use crate::config::Limits;
use crate::shard::Shards;

/// How long a batch waits for Postgres to answer. The stream is ordered, so everybody waits; long enough
/// for a failover of the pool's connections, short enough that one broken database does not stall all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Role memberships and attributes change without a trace in the stream. They are looked at before each
/// batch that depends on policies, and otherwise at most this often.
const ROLES_MAX_AGE: Duration = Duration::from_secs(1);

/// How long one look for visibility may take before it is tried again. Commits become visible within
/// milliseconds, unless they wait for a synchronous standby.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(2);

/// What is delivered already: a transaction and how many of its changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    commit: Lsn,
    changes: u32,
}

pub(super) struct Batcher {
    shards: Shards,
    max_record_bytes: usize,
    max_payload_bytes: usize,
    rates: Arc<Rates>,
    relations: FxHashMap<u32, Relation>,
    tables: FxHashMap<u32, Arc<PublishedTable>>,
    transaction: Option<Begin>,
    /// Changes of the current transaction seen so far.
    seen: u32,
    delivered: Position,
    /// End of the last transaction that was delivered whole.
    confirmed: Lsn,
    roles: Option<(u64, Instant)>,
    disturbed: Vec<Disturbed>,
}

/// A channel that changes may have been kept from.
pub(super) struct Disturbed {
    pub(super) channel: ChannelId,
    pub(super) text: String,
    /// Its bindings shall be checked again.
    pub(super) is_transient: bool,
}

/// What one pass over a batch has found.
struct Collected<'a> {
    pending: Vec<Pending<'a>>,
    /// Position of the last change looked at.
    reached: Position,
    /// Role memberships need no further look in this batch.
    roles_checked: bool,
}

/// A change with the groups it matches.
struct Pending<'a> {
    table: Arc<PublishedTable>,
    action: Action,
    /// Commit position of the transaction.
    commit: u64,
    commit_unix_us: i64,
    xid: u32,
    record: Option<Row<'a>>,
    old_record: Option<Row<'a>>,
    matches: Vec<Match>,
    /// Where its answers are, if Postgres is asked about it.
    asked: Option<ask::Asked>,
}

impl<'a> Pending<'a> {
    /// The row that filters and policies look at (§5.8, point 4).
    fn judged(&self) -> Option<&Row<'a>> {
        if self.action == Action::Delete { self.old_record.as_ref() } else { self.record.as_ref() }
    }
}

impl Batcher {
    pub(super) fn new(shards: Shards, limits: &Limits, rates: Arc<Rates>) -> Self {
        Self {
            shards,
            max_record_bytes: limits.max_record_bytes,
            max_payload_bytes: limits.max_payload_bytes,
            rates,
            relations: FxHashMap::default(),
            tables: FxHashMap::default(),
            transaction: None,
            seen: 0,
            delivered: Position::default(),
            confirmed: Lsn(0),
            roles: None,
            disturbed: Vec::new(),
        }
    }

    /// A new session sends every relation again. A stream that goes on compares them with what was known:
    /// filters were compiled for that.
    pub(super) fn on_stream_opened(&mut self, resumed: bool) {
        self.tables.clear();
        self.transaction = None;
        if !resumed {
            self.relations.clear();
            self.delivered = Position::default();
        }
    }

    pub(super) fn start_at(&mut self, lsn: Lsn) {
        self.confirmed = lsn;
    }

    /// Channels that the last batch has kept changes from.
    pub(super) fn take_disturbed(&mut self) -> Vec<Disturbed> {
        std::mem::take(&mut self.disturbed)
    }

    /// How far changes have been handed over; grows with every new one, and with none that is sent again.
    pub(super) fn position(&self) -> Position {
        self.delivered
    }

    pub(super) fn resume_position(&self) -> Lsn {
        self.confirmed
    }

    /// Takes a batch through all steps. Returns the position up to which everything is delivered.
    pub(super) async fn handle(
        &mut self,
        batch: &[WalRead],
        registry: &mut Registry,
        database: &Database,
    ) -> Result<Option<Lsn>, StreamError> {
        let before = self.confirmed;
        let mut confirmed = self.confirmed;
        let mut collected = Collected { pending: Vec::new(), reached: self.delivered, roles_checked: false };
        for read in batch {
            let data = match read {
                WalRead::Data(data) => data,
                WalRead::Idle(lsn) => {
                    if self.transaction.is_none() {
                        confirmed = confirmed.max(*lsn);
                    }
                    continue;
                }
            };
            let message =
                decode(&data.body).map_err(|error| StreamError::Protocol(format!("pgoutput: {error}")))?;
            match message {
                Message::Begin(begin) => {
                    self.transaction = Some(begin);
                    self.seen = 0;
                }
                Message::Commit(commit) => {
                    self.transaction = None;
                    confirmed = confirmed.max(commit.end_lsn);
                }
                Message::Relation(relation) => self.on_relation(relation, registry, database).await,
                Message::Insert { relation, new } => {
                    let row = (Action::Insert, OldTuple::None, Some(new));
                    self.collect(relation, row, registry, database, &mut collected).await;
                }
                Message::Update { relation, old, new } => {
                    let row = (Action::Update, old, Some(new));
                    self.collect(relation, row, registry, database, &mut collected).await;
                }
                Message::Delete { relation, old } => {
                    let row = (Action::Delete, old, None);
                    self.collect(relation, row, registry, database, &mut collected).await;
                }
                // TRUNCATE is never delivered (§5.6); types come with the catalogue.
                _ => {}
            }
        }
        if !collected.pending.is_empty() {
            let began = Instant::now();
            let answers = ask::ask(&mut collected.pending, registry, database).await;
            if !answers.is_empty() {
                self.shards.metrics().count_authorisation(began.elapsed());
            }
            for change in &collected.pending {
                self.deliver(change, registry, &answers);
            }
            for (table, text) in &answers.undecided {
                self.disturb(TableId(*table), text, registry);
            }
        }
        self.delivered = collected.reached;
        self.confirmed = confirmed;
        Ok((confirmed > before).then_some(confirmed))
    }

    /// The stream sends a relation before its first change and again after anything about it changed:
    /// columns, policies, grants.
    async fn on_relation(&mut self, relation: Relation, registry: &mut Registry, database: &Database) {
        let oid = relation.oid;
        self.tables.remove(&oid);
        let known = self.relations.insert(oid, relation);
        let table = TableId(oid);
        let relation = &self.relations[&oid];
        let mut affected = Vec::new();
        // Filters were compiled for the old columns.
        if known.as_ref().is_some_and(|known| known.columns != relation.columns) {
            affected = registry.listening_to(table);
        }
        // A table published after the bindings were made: they may mean it, and its very first change must
        // find them (§5.2).
        if known.is_none_or(|known| known.name != relation.name || known.schema != relation.schema) {
            affected.extend(registry.appear(table, &relation.schema, &relation.name));
        }
        for channel in affected {
            self.check_now(channel, registry, database).await;
        }
    }

    /// Checks a live channel again before the next change.
    async fn check_now(&mut self, channel: ChannelId, registry: &mut Registry, database: &Database) {
        let Some(job) = registry.begin_check(channel) else { return };
        let has_new_token = registry.channels.get(&channel).is_some_and(|entry| entry.has_new_token);
        let checked = registry::check(database.catalogue.clone(), job, true).await;
        match checked.outcome {
            Ok(live) => {
                registry.go_live(channel, &live);
                // The check that would have told it is void now.
                if has_new_token {
                    let text = "Subscribed to PostgreSQL".into();
                    self.shards.send(
                        channel.hub(),
                        PeerMessage::System { channel, extension: "postgres_changes", ok: true, text },
                    );
                }
            }
            Err(error) => {
                registry.go_dead(channel);
                let (text, is_transient) = (error.message, error.is_transient);
                self.disturbed.push(Disturbed { channel, text, is_transient });
            }
        }
    }

    /// Changes of this table could not be decided about: whoever listens to it is told.
    fn disturb(&mut self, table: TableId, text: &str, registry: &Registry) {
        for channel in registry.listening_to(table) {
            if !self.disturbed.iter().any(|known| known.channel == channel) {
                self.disturbed.push(Disturbed { channel, text: text.to_owned(), is_transient: true });
            }
        }
    }

    async fn collect<'a>(
        &mut self,
        relation: u32,
        (action, old, new): (Action, OldTuple<'a>, Option<Tuple<'a>>),
        registry: &Registry,
        database: &Database,
        collected: &mut Collected<'a>,
    ) {
        let Some(transaction) = self.transaction else { return };
        self.seen += 1;
        let here = Position { commit: transaction.final_lsn, changes: self.seen };
        // After an interruption a durable slot sends again what was not confirmed.
        if here <= self.delivered {
            return;
        }
        collected.reached = here;
        if let (Action::Insert, Some(row), Some(relation)) = (action, new, self.relations.get(&relation))
            && messages::is_messages(relation)
        {
            messages::publish(&self.shards, &self.rates, relation, row, self.max_payload_bytes);
        }
        let table_id = TableId(relation);
        if !registry.index.has_table(table_id) {
            return;
        }
        if !collected.roles_checked {
            collected.roles_checked = self.check_roles(relation, database).await;
        }
        let table = match self.table(relation, transaction.xid, database).await {
            Ok(Some(table)) => table,
            // Dropped meanwhile: nothing says any more who may see what of it.
            Ok(None) => return,
            Err(text) => return self.disturb(table_id, &text, registry),
        };
        let is_full = table.identity == ReplicaIdentity::Full;
        let record = new.map(|new| Row::new(&table, new, old.tuple().filter(|_| is_full)));
        let old_record = match (action, old.tuple(), &record) {
            (Action::Insert, ..) => None,
            (_, Some(old), _) => Some(Row::old(&table, old, is_full)),
            (_, None, Some(record)) => Some(Row::identity_of(&table, record)),
            (_, None, None) => None,
        };
        let mut change = Pending {
            action,
            commit: transaction.final_lsn.0,
            commit_unix_us: transaction.commit_unix_us,
            xid: transaction.xid,
            record,
            old_record,
            matches: Vec::new(),
            asked: None,
            table,
        };
        let mut matches = Vec::new();
        if let Some(row) = change.judged() {
            registry.index.matches(table_id, |name| row.by_name(&change.table, name), &mut matches);
        }
        change.matches = matches;
        // Changes of a table without a primary key go to everybody as errors, matching or not.
        if !change.matches.is_empty() || (action != Action::Delete && self.refuses_somebody(&change)) {
            collected.pending.push(change);
        }
    }

    fn refuses_somebody(&self, change: &Pending<'_>) -> bool {
        !change.table.has_primary_key()
            || change.table.catalogue.roles.values().any(|access| !change.table.key_is_selectable(access))
    }

    /// The table as the catalogue and the stream describe it; `None` if it is gone. Without it nobody can be
    /// shown anything.
    async fn table(
        &mut self,
        relid: u32,
        xid: u32,
        database: &Database,
    ) -> Result<Option<Arc<PublishedTable>>, String> {
        if let Some(table) = self.tables.get(&relid) {
            return Ok(Some(Arc::clone(table)));
        }
        let authenticator = &database.authenticator;
        // The transaction may itself have hidden what it wrote, and the catalogue would not show that yet.
        let xids = [xid];
        patiently("visibility", || authenticator.wait_visible(&xids, VISIBILITY_TIMEOUT)).await?;
        let look = async || match authenticator.table(relid).await {
            Err(AccessError::NoTable { .. }) => Ok(None),
            other => other.map(Some),
        };
        let Some(catalogue) = patiently("the catalogue", look).await? else { return Ok(None) };
        let relation =
            self.relations.get(&relid).ok_or("ChangeStreamProtocolViolation: a row of no relation")?;
        let table = Arc::new(PublishedTable::new(Arc::new(catalogue), relation));
        self.tables.insert(relid, Arc::clone(&table));
        Ok(Some(table))
    }

    /// Forgets all tables if roles have changed. Returns whether this batch needs no further look.
    async fn check_roles(&mut self, relid: u32, database: &Database) -> bool {
        let uses_policies = self.tables.get(&relid).is_none_or(|table| table.catalogue.rls_enabled);
        if let Some((_, at)) = self.roles
            && !uses_policies
            && at.elapsed() < ROLES_MAX_AGE
        {
            return false;
        }
        let authenticator = &database.authenticator;
        let found = patiently("the roles", || authenticator.roles_fingerprint()).await;
        let known = self.roles.map(|(fingerprint, _)| fingerprint);
        match found {
            Ok(fingerprint) => {
                if known != Some(fingerprint) {
                    self.tables.clear();
                }
                self.roles = Some((fingerprint, Instant::now()));
            }
            // Not knowing is treated as a change.
            Err(_) => {
                self.tables.clear();
                self.roles = None;
            }
        }
        true
    }
}

/// Asks until there is an answer or patience ends; connections of the pool break when Postgres restarts.
///
/// # Errors
/// Why there is none, as channels are told.
async fn patiently<T, F: Future<Output = Result<T, AccessError>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut wait = Duration::from_millis(20);
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if Instant::now() + wait > deadline {
            let text = registry::printed(error.code(), &error);
            tracing::error!(code = error.code(), what, "cannot be decided, so nobody is shown it: {text}");
            return Err(text);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
}
