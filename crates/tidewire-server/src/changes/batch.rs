//! One batch of the stream, from bytes to frames.
//!
//! Four steps: *collect* decodes and finds the groups that match; *ask* puts to Postgres what only
//! Postgres can decide, once per batch and identity; *select* turns the answers into receivers; *deliver*
//! encodes once per (role, selection) and hands frames to the shards, in commit order.
//!
//! What it may not do: deliver a change to anybody for whom the answer is not known. Whoever cannot be
//! asked about within [`PATIENCE`] is told so and gets nothing of the batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tidewire_authz::{AccessError, RowImage};
use tidewire_change::write_string;
use tidewire_engine::{
    Action, Body, ChannelId, GroupId, Match, Message as Frame, PeerMessage, TableId, Value,
};
use tidewire_protocol::codes::OperationalCode;
use tidewire_replication::{
    Begin, Lsn, Message, OldTuple, Relation, ReplicaIdentity, StreamError, Tuple, WalRead, decode,
};
use tokio::time::Instant;

use super::encode::{Change, OldColumns};
use super::registry::{self, Registry};
use super::table::{PublishedTable, Row};
use super::task::Database;
use crate::shard::Shards;

/// How long a batch waits for Postgres to answer. The stream is ordered, so everybody waits; long enough
/// for a failover of the pool's connections, short enough that one broken database does not stall all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Role memberships and attributes change without a trace in the stream. They are looked at before each
/// batch that depends on policies, and otherwise at most this often.
const ROLES_MAX_AGE: Duration = Duration::from_secs(1);

/// What is delivered already: a transaction and how many of its changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    commit: Lsn,
    changes: u32,
}

pub(super) struct Batcher {
    shards: Shards,
    max_record_bytes: usize,
    relations: FxHashMap<u32, Relation>,
    tables: FxHashMap<u32, Arc<PublishedTable>>,
    transaction: Option<Begin>,
    /// Changes of the current transaction seen so far.
    seen: u32,
    delivered: Position,
    /// End of the last transaction that was delivered whole.
    confirmed: Lsn,
    roles: Option<(u64, Instant)>,
}

/// A change with the groups it matches.
struct Pending<'a> {
    table: Arc<PublishedTable>,
    action: Action,
    commit_unix_us: i64,
    xid: u32,
    record: Option<Row<'a>>,
    old_record: Option<Row<'a>>,
    matches: Vec<Match>,
    /// Position among the images of its table, if Postgres is asked about it.
    image: Option<usize>,
}

impl<'a> Pending<'a> {
    /// The row that filters and policies look at (§5.8, point 4).
    fn judged(&self) -> Option<&Row<'a>> {
        if self.action == Action::Delete { self.old_record.as_ref() } else { self.record.as_ref() }
    }
}

/// What Postgres is asked about one table in one batch.
#[derive(Default)]
struct Questions {
    images: Vec<RowImage>,
    expressions: Vec<String>,
    /// identity → images it may have to see.
    identities: FxHashMap<u32, Vec<usize>>,
}

/// The answers; what is not in here is *no*.
#[derive(Default)]
struct Answers {
    holds: FxHashSet<(String, usize)>,
    visible: FxHashSet<(u32, usize)>,
}

/// A receiver of one change.
struct Receiver {
    frame: usize,
    channel: ChannelId,
    position: u16,
    binding: u32,
}

impl Batcher {
    pub(super) fn new(shards: Shards, max_record_bytes: usize) -> Self {
        Self {
            shards,
            max_record_bytes,
            relations: FxHashMap::default(),
            tables: FxHashMap::default(),
            transaction: None,
            seen: 0,
            delivered: Position::default(),
            confirmed: Lsn(0),
            roles: None,
        }
    }

    /// A new session sends every relation again.
    pub(super) fn on_stream_opened(&mut self, resumed: bool) {
        self.relations.clear();
        self.tables.clear();
        self.transaction = None;
        if !resumed {
            self.delivered = Position::default();
        }
    }

    pub(super) fn start_at(&mut self, lsn: Lsn) {
        self.confirmed = lsn;
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
        let mut reached = self.delivered;
        let mut pending: Vec<Pending<'_>> = Vec::new();
        let mut roles_checked = false;
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
                    let parts = (Action::Insert, OldTuple::None, Some(new));
                    self.collect(
                        relation,
                        parts,
                        registry,
                        database,
                        &mut roles_checked,
                        &mut reached,
                        &mut pending,
                    )
                    .await;
                }
                Message::Update { relation, old, new } => {
                    let parts = (Action::Update, old, Some(new));
                    self.collect(
                        relation,
                        parts,
                        registry,
                        database,
                        &mut roles_checked,
                        &mut reached,
                        &mut pending,
                    )
                    .await;
                }
                Message::Delete { relation, old } => {
                    let parts = (Action::Delete, old, None);
                    self.collect(
                        relation,
                        parts,
                        registry,
                        database,
                        &mut roles_checked,
                        &mut reached,
                        &mut pending,
                    )
                    .await;
                }
                // TRUNCATE is never delivered (§5.6); types come with the catalogue.
                _ => {}
            }
        }
        if !pending.is_empty() {
            let answers = self.ask(&mut pending, registry, database).await;
            for change in &pending {
                self.deliver(change, registry, &answers);
            }
        }
        self.delivered = reached;
        self.confirmed = confirmed;
        Ok((confirmed > before).then_some(confirmed))
    }

    // ── collect ─────────────────────────────────────────────────────────────────────────────────────

    /// The stream sends a relation before its first change and again after anything about it changed:
    /// columns, policies, grants.
    async fn on_relation(&mut self, relation: Relation, registry: &mut Registry, database: &Database) {
        let oid = relation.oid;
        self.tables.remove(&oid);
        let known = self.relations.insert(oid, relation);
        let table = TableId(oid);
        let affected = match known {
            // Filters were compiled for the old columns.
            Some(known) if known.columns != self.relations[&oid].columns => registry.listening_to(table),
            Some(_) => return,
            // A table published after the bindings were made: patterns may include it now, and its very
            // first change must find them (§5.2).
            None => {
                let listening = registry.listening_to(table);
                registry.with_patterns().into_iter().filter(|channel| !listening.contains(channel)).collect()
            }
        };
        for channel in affected {
            let Some(job) = registry.begin_check(channel) else { continue };
            let checked = registry::check(database.catalogue.clone(), job, true).await;
            match checked.outcome {
                Ok(bindings) => registry.go_live(channel, &bindings),
                Err(error) => {
                    registry.index.remove(channel);
                    let message = PeerMessage::System { channel, ok: false, text: error.message };
                    self.shards.send(channel.hub(), message);
                }
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call site per kind of message; a struct would only rename them"
    )]
    async fn collect<'a>(
        &mut self,
        relation: u32,
        (action, old, new): (Action, OldTuple<'a>, Option<Tuple<'a>>),
        registry: &Registry,
        database: &Database,
        roles_checked: &mut bool,
        reached: &mut Position,
        pending: &mut Vec<Pending<'a>>,
    ) {
        let Some(transaction) = self.transaction else { return };
        self.seen += 1;
        let here = Position { commit: transaction.final_lsn, changes: self.seen };
        // After an interruption a durable slot sends again what was not confirmed.
        if here <= self.delivered {
            return;
        }
        *reached = here;
        let table_id = TableId(relation);
        if !registry.index.has_table(table_id) {
            return;
        }
        if !*roles_checked {
            *roles_checked = self.check_roles(relation, database).await;
        }
        let Some(table) = self.table(relation, database).await else { return };
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
            commit_unix_us: transaction.commit_unix_us,
            xid: transaction.xid,
            record,
            old_record,
            matches: Vec::new(),
            image: None,
            table,
        };
        let mut matches = Vec::new();
        if let Some(row) = change.judged() {
            registry.index.matches(table_id, |name| row.by_name(&change.table, name), &mut matches);
        }
        change.matches = matches;
        // Changes of a table without a primary key go to everybody as errors, matching or not.
        if !change.matches.is_empty() || (action != Action::Delete && self.refuses_somebody(&change)) {
            pending.push(change);
        }
    }

    fn refuses_somebody(&self, change: &Pending<'_>) -> bool {
        !change.table.has_primary_key()
            || change.table.catalogue.roles.values().any(|access| !change.table.key_is_selectable(access))
    }

    /// The table as the catalogue and the stream describe it; `None` if it cannot be had, in which case
    /// nobody can be shown anything.
    async fn table(&mut self, relid: u32, database: &Database) -> Option<Arc<PublishedTable>> {
        if let Some(table) = self.tables.get(&relid) {
            return Some(Arc::clone(table));
        }
        let authenticator = &database.authenticator;
        let catalogue = patiently("the catalogue", || authenticator.table(relid)).await?;
        let relation = self.relations.get(&relid)?;
        let table = Arc::new(PublishedTable::new(Arc::new(catalogue), relation));
        self.tables.insert(relid, Arc::clone(&table));
        Some(table)
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
            Some(fingerprint) => {
                if known != Some(fingerprint) {
                    self.tables.clear();
                }
                self.roles = Some((fingerprint, Instant::now()));
            }
            // Not knowing is treated as a change.
            None => {
                self.tables.clear();
                self.roles = None;
            }
        }
        true
    }

    // ── ask ─────────────────────────────────────────────────────────────────────────────────────────

    async fn ask(&self, pending: &mut [Pending<'_>], registry: &Registry, database: &Database) -> Answers {
        let mut questions: FxHashMap<u32, (Arc<PublishedTable>, Questions)> = FxHashMap::default();
        let mut xids = Vec::new();
        for change in &mut *pending {
            let relid = change.table.catalogue.relid;
            let mut expressions: Vec<&str> = Vec::new();
            let mut identities: Vec<u32> = Vec::new();
            for found in &change.matches {
                let group = registry.index.group(found.group);
                let Some(access) = change.table.access(&group.key.role) else { continue };
                if found.needs_sql {
                    expressions.extend(group.sql_tests());
                }
                if change.action != Action::Delete && !access.sees_all_rows && access.policy.is_some() {
                    let wanting =
                        group.members.iter().filter(|member| member.actions.contains(change.action));
                    identities.extend(wanting.map(|member| member.identity));
                }
            }
            if expressions.is_empty() && identities.is_empty() {
                continue;
            }
            let (_, asked) =
                questions.entry(relid).or_insert_with(|| (Arc::clone(&change.table), Questions::default()));
            let image = asked.images.len();
            let Some(row_image) = row_image(change) else { continue };
            asked.images.push(row_image);
            change.image = Some(image);
            xids.push(change.xid);
            for expression in expressions {
                if !asked.expressions.iter().any(|known| known == expression) {
                    asked.expressions.push(expression.to_owned());
                }
            }
            identities.sort_unstable();
            identities.dedup();
            for identity in identities {
                asked.identities.entry(identity).or_default().push(image);
            }
        }
        let mut answers = Answers::default();
        if questions.is_empty() {
            return answers;
        }
        xids.sort_unstable();
        xids.dedup();
        let authenticator = &database.authenticator;
        // The stream is ahead of what other sessions can see: ask only about what is visible.
        let visible =
            patiently("visibility", || authenticator.wait_visible(&xids, Duration::from_secs(2))).await;
        if visible.is_none() {
            return answers;
        }
        for (table, asked) in questions.values() {
            self.ask_filters(table, asked, database, &mut answers).await;
            self.ask_policies(table, asked, registry, database, &mut answers).await;
        }
        answers
    }

    async fn ask_filters(
        &self,
        table: &PublishedTable,
        asked: &Questions,
        database: &Database,
        answers: &mut Answers,
    ) {
        if asked.expressions.is_empty() {
            return;
        }
        let authenticator = &database.authenticator;
        let evaluated = patiently("filters", || {
            authenticator.evaluate(&table.catalogue, &asked.expressions, &asked.images)
        })
        .await;
        for (expression, holds) in asked.expressions.iter().zip(evaluated.unwrap_or_default()) {
            let images = holds.iter().enumerate().filter(|(_, holds)| **holds);
            answers.holds.extend(images.map(|(image, _)| (expression.clone(), image)));
        }
    }

    /// Identities that want the same images are judged together, so that nobody is asked about rows that
    /// its filter has excluded.
    async fn ask_policies(
        &self,
        table: &PublishedTable,
        asked: &Questions,
        registry: &Registry,
        database: &Database,
        answers: &mut Answers,
    ) {
        let mut by_images: HashMap<&[usize], Vec<u32>> = HashMap::new();
        for (identity, images) in &asked.identities {
            by_images.entry(images).or_default().push(*identity);
        }
        for (images, identities) in by_images {
            let rows: Vec<RowImage> = images.iter().map(|image| asked.images[*image].clone()).collect();
            let subscribers: Vec<_> =
                identities.iter().map(|identity| Arc::clone(registry.identity(*identity))).collect();
            let authenticator = &database.authenticator;
            let judged =
                patiently("policies", || authenticator.judge(&table.catalogue, &subscribers, &rows)).await;
            let Some(judgement) = judged else { continue };
            if let Some((_, error)) = judgement.errors.first() {
                tracing::warn!(
                    code = OperationalCode::AuthorizationFailed.as_str(),
                    table = %table.catalogue.name,
                    identities = judgement.errors.len(),
                    error,
                    "a policy failed; these subscribers get nothing of this batch"
                );
            }
            for (identity, visible) in identities.iter().zip(&judgement.visible) {
                let seen = images.iter().zip(visible).filter(|(_, visible)| **visible);
                answers.visible.extend(seen.map(|(image, _)| (*identity, *image)));
            }
        }
    }

    // ── select and deliver ──────────────────────────────────────────────────────────────────────────

    fn deliver(&self, change: &Pending<'_>, registry: &Registry, answers: &Answers) {
        // One frame content per (role, selection) or refusal; receivers name it by position.
        let mut frames: Vec<Bytes> = Vec::new();
        let mut receivers: Vec<Receiver> = Vec::new();
        if change.action != Action::Delete {
            self.refuse(change, registry, &mut frames, &mut receivers);
        }
        let mut contents: FxHashMap<(&str, Option<&Vec<String>>), usize> = FxHashMap::default();
        for found in &change.matches {
            let group = registry.index.group(found.group);
            let key = &group.key;
            let Some(access) = change.table.access(&key.role).filter(|access| access.can_select()) else {
                continue;
            };
            if change.action != Action::Delete
                && (!change.table.has_primary_key() || !change.table.key_is_selectable(access))
            {
                continue;
            }
            if found.needs_sql && !self.filter_holds(change, group.sql_tests(), answers) {
                continue;
            }
            let is_judged = change.action != Action::Delete && !access.sees_all_rows;
            let mut frame = None;
            for member in group.members.iter().filter(|member| member.actions.contains(change.action)) {
                if is_judged
                    && !change.image.is_some_and(|image| answers.visible.contains(&(member.identity, image)))
                {
                    continue;
                }
                let frame = *frame.get_or_insert_with(|| {
                    *contents.entry((&key.role, key.select.as_ref())).or_insert_with(|| {
                        let columns = change.table.columns_for(&key.role, access, key.select.as_ref());
                        frames.push(self.encode(change, &columns));
                        frames.len() - 1
                    })
                });
                receivers.push(Receiver {
                    frame,
                    channel: member.channel,
                    position: member.position,
                    binding: member.binding,
                });
            }
        }
        self.send(change, registry, &frames, receivers);
    }

    fn filter_holds<'t>(
        &self,
        change: &Pending<'_>,
        mut tests: impl Iterator<Item = &'t str>,
        answers: &Answers,
    ) -> bool {
        let Some(image) = change.image else { return false };
        tests.all(|expression| answers.holds.contains(&(expression.to_owned(), image)))
    }

    /// Error frames of §5.8, points 2 and 3: to every subscription of the role, filters not looked at.
    fn refuse(
        &self,
        change: &Pending<'_>,
        registry: &Registry,
        frames: &mut Vec<Bytes>,
        receivers: &mut Vec<Receiver>,
    ) {
        if !self.refuses_somebody(change) {
            return;
        }
        let table = &change.table;
        let groups: Vec<GroupId> = registry.index.groups_of(TableId(table.catalogue.relid));
        for group in groups {
            let group = registry.index.group(group);
            let Some(access) = table.access(&group.key.role) else { continue };
            let error = if !table.has_primary_key() {
                "Error 400: Bad Request, no primary key"
            } else if !table.key_is_selectable(access) {
                "Error 401: Unauthorized"
            } else {
                continue;
            };
            let mut data = Vec::with_capacity(256);
            self.change(change).write_refusal(&mut data, error);
            frames.push(data.into());
            let wanting = group.members.iter().filter(|member| member.actions.contains(change.action));
            receivers.extend(wanting.map(|member| Receiver {
                frame: frames.len() - 1,
                channel: member.channel,
                position: member.position,
                binding: member.binding,
            }));
        }
    }

    fn change<'c, 'r>(&self, change: &'c Pending<'r>) -> Change<'c, 'r> {
        let bytes =
            [&change.record, &change.old_record].into_iter().flatten().map(Row::text_bytes).sum::<usize>();
        Change {
            table: &change.table,
            action: change.action,
            commit_unix_us: change.commit_unix_us,
            record: change.record.as_ref(),
            old_record: change.old_record.as_ref(),
            is_too_large: bytes > self.max_record_bytes,
        }
    }

    fn encode(&self, change: &Pending<'_>, columns: &super::table::Columns) -> Bytes {
        let mut data = Vec::with_capacity(512);
        let old_columns = if change.action == Action::Delete && change.table.catalogue.rls_enabled {
            OldColumns::PrimaryKey
        } else {
            OldColumns::Identity
        };
        self.change(change).write(&mut data, columns, old_columns);
        data.into()
    }

    /// One message per (content, topic, ids), shared by all channels that get exactly it.
    fn send(
        &self,
        change: &Pending<'_>,
        registry: &Registry,
        frames: &[Bytes],
        mut receivers: Vec<Receiver>,
    ) {
        receivers.sort_unstable_by_key(|receiver| {
            (receiver.frame, receiver.channel, std::cmp::Reverse(receiver.position))
        });
        let mut messages: HashMap<(usize, &str, bool, Vec<u32>), Vec<ChannelId>> = HashMap::new();
        for same in receivers.chunk_by(|a, b| (a.frame, a.channel) == (b.frame, b.channel)) {
            let Some(entry) = registry.channels.get(&same[0].channel) else { continue };
            let ids = same.iter().map(|receiver| receiver.binding).collect();
            messages
                .entry((same[0].frame, &entry.topic, entry.is_legacy, ids))
                .or_default()
                .push(same[0].channel);
        }
        for ((frame, topic, is_legacy, ids), channels) in messages {
            let body = if is_legacy {
                Body::Json { event: change.action.as_str(), payload: frames[frame].clone() }
            } else {
                Body::Json { event: "postgres_changes", payload: with_ids(&ids, &frames[frame]) }
            };
            let message = Arc::new(Frame::new(topic, body));
            // Channel ids begin with their hub, and `channels` is sorted.
            for of_hub in channels.chunk_by(|a, b| a.hub() == b.hub()) {
                let deliver = PeerMessage::Deliver { message: Arc::clone(&message), channels: of_hub.into() };
                self.shards.send(of_hub[0].hub(), deliver);
            }
        }
    }
}

/// `{"ids":[…],"data":{…}}`.
fn with_ids(ids: &[u32], data: &[u8]) -> Bytes {
    let mut payload = Vec::with_capacity(data.len() + 24 + ids.len() * 10);
    payload.extend_from_slice(b"{\"ids\":[");
    for (position, id) in ids.iter().enumerate() {
        if position > 0 {
            payload.push(b',');
        }
        payload.extend_from_slice(id.to_string().as_bytes());
    }
    payload.extend_from_slice(b"],\"data\":");
    payload.extend_from_slice(data);
    payload.push(b'}');
    payload.into()
}

/// The row as policies and SQL filters see it.
fn row_image(change: &Pending<'_>) -> Option<RowImage> {
    /// `json` and `jsonb` are embedded; a string would become a JSON string, not the value.
    const JSON_TYPES: [u32; 2] = [114, 3802];
    let row = change.judged()?;
    let mut json = Vec::with_capacity(256);
    json.push(b'{');
    for ((column, described), value) in
        change.table.columns.iter().zip(&change.table.catalogue.columns).zip(row.values())
    {
        if *value == Value::Missing {
            continue;
        }
        if json.len() > 1 {
            json.push(b',');
        }
        write_string(&mut json, &column.name);
        json.push(b':');
        match value {
            Value::Text(text) if JSON_TYPES.contains(&described.kind.oid) => {
                json.extend_from_slice(text.as_bytes())
            }
            Value::Text(text) => write_string(&mut json, text),
            Value::Null | Value::Missing => json.extend_from_slice(b"null"),
        }
    }
    json.push(b'}');
    Some(RowImage { json: String::from_utf8(json).ok()? })
}

/// Asks until there is an answer or patience ends; connections of the pool break when Postgres restarts.
async fn patiently<T, F: Future<Output = Result<T, AccessError>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut wait = Duration::from_millis(20);
    loop {
        let error = match ask().await {
            Ok(answer) => return Some(answer),
            Err(error) => error,
        };
        if Instant::now() + wait > deadline {
            let text = registry::printed(error.code(), &error);
            tracing::error!(code = error.code(), what, "cannot be decided, so nobody is shown it: {text}");
            return None;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
}
