//! Channels with bindings: known here from their join to their end, and live once their bindings have
//! been checked against the database.
//!
//! A check runs beside the stream ([`check`]) and its result comes back as [`Checked`]; only then do the
//! bindings enter the index. One bad binding and none of the channel is live (`PROTOCOL.md` §5.10). Every
//! check carries the channel's version, so that a result that comes after a token refresh or a re-check
//! is recognised as old.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use slab::Slab;
use tidewire_authz::{BindingCondition, Identity, Table};
use tidewire_change::filter::{self, Condition, FILTER_ERROR_PREFIX};
use tidewire_change::{Decision, Predicate, sql};
use tidewire_engine::{
    Action, ActionSet, ChannelId, Credential, GroupKey, Member, Subscriptions, TableId, Test,
};
use tidewire_protocol::join::{Binding, BindingEvent, Pattern};

use super::catalogue::Catalogue;
use super::table::traits_of;
use crate::tokens::identity_of;

/// A channel with bindings.
#[derive(Debug)]
pub(super) struct ChannelEntry {
    pub(super) topic: Arc<str>,
    pub(super) is_legacy: bool,
    pub(super) bindings: Arc<[Binding]>,
    pub(super) credential: Arc<Credential>,
    identity: u32,
    version: u64,
    /// Position from which changes are for this channel; kept through re-checks as long as the stream has no
    /// gap.
    since: Option<u64>,
    pub(super) is_live: bool,
    /// The channel has been told that changes do not flow.
    pub(super) was_told_error: bool,
    /// A new token waits for its check, and the channel for the message about it (§5.11).
    pub(super) has_new_token: bool,
}

/// A table that the stream has named.
#[derive(Debug)]
struct Appeared {
    table: TableId,
    schema: String,
    name: String,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) index: Subscriptions,
    pub(super) channels: FxHashMap<ChannelId, ChannelEntry>,
    identities: Slab<(Arc<Identity>, usize)>,
    identity_numbers: FxHashMap<Arc<Identity>, u32>,
    next_version: u64,
    /// Tables in the order in which the stream named them first.
    appeared: Vec<Appeared>,
}

/// What a check needs.
#[derive(Debug, Clone)]
pub(super) struct CheckJob {
    channel: ChannelId,
    version: u64,
    role: Box<str>,
    bindings: Arc<[Binding]>,
    /// How many tables had appeared when it began.
    appeared: usize,
}

/// The result of a check.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) channel: ChannelId,
    version: u64,
    /// Tables from this one on may have appeared behind its back: those since it began, or all if its answers
    /// were kept ones.
    unseen_from: usize,
    pub(super) outcome: Result<Live, CheckError>,
}

/// Bindings that can go live, and the position from which on.
#[derive(Debug)]
pub(super) struct Live {
    bindings: Vec<CheckedBinding>,
    position: u64,
}

/// A binding that can go live.
#[derive(Debug)]
struct CheckedBinding {
    id: u32,
    position: u16,
    actions: ActionSet,
    filter: String,
    conditions: Vec<Condition>,
    select: Option<Vec<String>>,
    tables: Vec<Arc<Table>>,
}

/// Why bindings cannot go live.
#[derive(Debug)]
pub(super) struct CheckError {
    /// Text of the `system` message.
    pub(super) message: String,
    /// The database could not be asked; asking again may help.
    pub(super) is_transient: bool,
}

impl Registry {
    pub(super) fn join(
        &mut self,
        channel: ChannelId,
        topic: Arc<str>,
        is_legacy: bool,
        bindings: Vec<Binding>,
        credential: Arc<Credential>,
    ) {
        let identity = self.identify(&credential);
        let entry = ChannelEntry {
            topic,
            is_legacy,
            bindings: bindings.into(),
            credential,
            identity,
            version: 0,
            since: None,
            is_live: false,
            was_told_error: false,
            has_new_token: false,
        };
        self.channels.insert(channel, entry);
    }

    /// The new claims count from the next check on; until then the old ones apply (§5.11).
    pub(super) fn replace_credential(&mut self, channel: ChannelId, credential: Arc<Credential>) {
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.credential = credential;
            entry.has_new_token = true;
        }
    }

    pub(super) fn leave(&mut self, channel: ChannelId) {
        self.index.remove(channel);
        if let Some(entry) = self.channels.remove(&channel) {
            self.release(entry.identity);
        }
    }

    /// Begins a check; results of earlier ones are void.
    pub(super) fn begin_check(&mut self, channel: ChannelId) -> Option<CheckJob> {
        self.next_version += 1;
        let entry = self.channels.get_mut(&channel)?;
        entry.version = self.next_version;
        Some(CheckJob {
            channel,
            version: entry.version,
            role: entry.credential.role.clone(),
            bindings: Arc::clone(&entry.bindings),
            appeared: self.appeared.len(),
        })
    }

    /// Whether a result is the one the channel waits for.
    pub(super) fn is_current(&self, checked: &Checked) -> bool {
        self.channels.get(&checked.channel).is_some_and(|entry| entry.version == checked.version)
    }

    /// Puts checked bindings into the index, in place of the channel's earlier ones.
    pub(super) fn go_live(&mut self, channel: ChannelId, live: &Live) {
        let Some(entry) = self.channels.get_mut(&channel) else { return };
        let since = *entry.since.get_or_insert(live.position);
        let credential = Arc::clone(&entry.credential);
        let old = entry.identity;
        let identity = self.identify(&credential);
        self.release(old);
        self.index.remove(channel);
        for binding in &live.bindings {
            for table in &binding.tables {
                let key = GroupKey {
                    table: TableId(table.relid),
                    filter: binding.filter.clone(),
                    role: credential.role.clone(),
                    select: binding.select.clone(),
                };
                let member = Member {
                    channel,
                    binding: binding.id,
                    position: binding.position,
                    actions: binding.actions,
                    since,
                    identity,
                };
                self.index.insert(&key, || tests(table, &binding.conditions), member);
            }
        }
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.identity = identity;
            entry.is_live = true;
            entry.was_told_error = false;
            entry.has_new_token = false;
        }
    }

    /// Ends the channel's bindings; the channel itself goes on.
    pub(super) fn go_dead(&mut self, channel: ChannelId) {
        self.index.remove(channel);
        if let Some(entry) = self.channels.get_mut(&channel) {
            entry.is_live = false;
        }
    }

    /// The stream has begun anew: nobody continues from an earlier position.
    pub(super) fn forget_positions(&mut self) {
        self.appeared.clear();
        for entry in self.channels.values_mut() {
            entry.since = None;
        }
    }

    pub(super) fn identity(&self, number: u32) -> &Arc<Identity> {
        &self.identities[number as usize].0
    }

    /// The stream has named a table for the first time, or by a new name. Returns the live channels whose
    /// bindings mean that name and that do not listen to the table.
    pub(super) fn appear(&mut self, table: TableId, schema: &str, name: &str) -> Vec<ChannelId> {
        let has_name = |known: &Appeared| known.schema == schema && known.name == name;
        self.appeared.retain(|known| known.table != table && !has_name(known));
        self.appeared.push(Appeared { table, schema: schema.to_owned(), name: name.to_owned() });
        let listening = self.listening_to(table);
        self.channels
            .iter()
            .filter(|(channel, entry)| entry.is_live && listening.binary_search(channel).is_err())
            .filter(|(_, entry)| entry.bindings.iter().any(|binding| means(binding, schema, name)))
            .map(|(channel, _)| *channel)
            .collect()
    }

    /// Whether a table has appeared that the bindings mean and the check has not seen. Its first change has
    /// looked for listeners already and would not look again.
    pub(super) fn has_missed_a_table(&self, checked: &Checked) -> bool {
        let (Ok(live), Some(entry)) = (&checked.outcome, self.channels.get(&checked.channel)) else {
            return false;
        };
        let unseen = self.appeared.get(checked.unseen_from..).unwrap_or_default();
        unseen.iter().any(|appeared| {
            entry.bindings.iter().zip(&live.bindings).any(|(binding, checked)| {
                means(binding, &appeared.schema, &appeared.name)
                    && !checked.tables.iter().any(|table| table.relid == appeared.table.0)
            })
        })
    }

    /// Live channels that listen to a table.
    pub(super) fn listening_to(&self, table: TableId) -> Vec<ChannelId> {
        let mut channels: Vec<ChannelId> = self
            .index
            .groups_of(table)
            .into_iter()
            .flat_map(|group| self.index.group(group).members.iter().map(|member| member.channel))
            .collect();
        channels.sort_unstable();
        channels.dedup();
        channels
    }

    fn identify(&mut self, credential: &Credential) -> u32 {
        let identity = identity_of(credential);
        if let Some(&number) = self.identity_numbers.get(&identity) {
            self.identities[number as usize].1 += 1;
            return number;
        }
        let identity = Arc::new(identity);
        let number = self.identities.insert((Arc::clone(&identity), 1)) as u32;
        self.identity_numbers.insert(identity, number);
        number
    }

    fn release(&mut self, number: u32) {
        let (identity, uses) = &mut self.identities[number as usize];
        *uses -= 1;
        if *uses == 0 {
            let identity = Arc::clone(identity);
            self.identities.remove(number as usize);
            self.identity_numbers.remove(&identity);
        }
    }
}

/// Whether a binding's names mean this table (§5.2).
fn means(binding: &Binding, schema: &str, name: &str) -> bool {
    let matches = |pattern: &Pattern, name: &str| match pattern {
        Pattern::Any => true,
        Pattern::Like(pattern) => is_like(pattern, name),
    };
    binding.target().is_ok_and(|target| matches(&target.schema, schema) && matches(&target.table, name))
}

/// `LIKE` without an escape character. On a mismatch the last `%` takes one character more.
fn is_like(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut last_percent = None;
    loop {
        let text_here = text.clone();
        match (pattern.next(), text.next()) {
            (Some('%'), _) => {
                last_percent = Some((pattern.clone(), text_here.clone()));
                text = text_here;
            }
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == '_' || wanted == found => {}
            _ => {
                let Some((after_percent, mut rest)) = last_percent.take() else { return false };
                if rest.next().is_none() {
                    return false;
                }
                last_percent = Some((after_percent.clone(), rest.clone()));
                (pattern, text) = (after_percent, rest);
            }
        }
    }
}

/// Compiles a filter for one table: what is proven equal runs here, the rest is Postgres' business.
fn tests(table: &Table, conditions: &[Condition]) -> Vec<Test> {
    conditions
        .iter()
        .map(|condition| {
            let Some(column) = table.columns.iter().find(|column| column.name == condition.column) else {
                // Checked before; if the column is gone meanwhile, nothing matches.
                return Test::Sql { column: condition.column.clone(), expression: "false".into() };
            };
            match Predicate::compile(condition, column.type_oid, traits_of(column)) {
                Decision::InProcess(predicate) => {
                    Test::InProcess { column: condition.column.clone(), predicate }
                }
                Decision::AskPostgres => Test::Sql {
                    column: condition.column.clone(),
                    expression: condition_sql(table, condition),
                },
            }
        })
        .collect()
}

fn condition_sql(table: &Table, condition: &Condition) -> String {
    let reference = format!("{}.{}", sql::quote_ident(&table.name), sql::quote_ident(&condition.column));
    let column = table.columns.iter().find(|column| column.name == condition.column);
    let type_sql = column.map_or_else(String::new, |column| {
        if column.type_sql.contains('.') {
            column.type_sql.clone()
        } else {
            // By its catalogue name: the words `character` and `bit` would mean a length of one.
            format!("\"pg_catalog\".{}", sql::quote_ident(&column.type_name))
        }
    });
    sql::condition_sql(condition, &reference, &type_sql)
}

/// Checks the bindings of a channel against the database, under the rules of §5.2–5.4 and §5.10.
///
/// `is_fresh` puts every question to Postgres now, whatever was answered a moment ago.
pub(super) async fn check(catalogue: Catalogue, job: CheckJob, is_fresh: bool) -> Checked {
    let CheckJob { channel, version, role, bindings, appeared } = job;
    let unseen_from = if is_fresh { appeared } else { 0 };
    let mut checked = Vec::with_capacity(bindings.len());
    for (position, binding) in bindings.iter().enumerate() {
        let mut outcome = check_binding(&catalogue, &role, binding, position, is_fresh).await;
        if !is_fresh && outcome.as_ref().is_err_and(|error| !error.is_transient) {
            outcome = check_binding(&catalogue, &role, binding, position, true).await;
        }
        match outcome {
            Ok(binding) => checked.push(binding),
            Err(error) => return Checked { channel, version, unseen_from, outcome: Err(error) },
        }
    }
    // Read last: whatever the client commits after it has been told is not before this position.
    let outcome = match catalogue.position().await {
        Ok(position) => Ok(Live { bindings: checked, position }),
        Err(error) => Err(CheckError { message: printed(error.code(), &error), is_transient: true }),
    };
    Checked { channel, version, unseen_from, outcome }
}

async fn check_binding(
    catalogue: &Catalogue,
    role: &str,
    binding: &Binding,
    position: usize,
    is_fresh: bool,
) -> Result<CheckedBinding, CheckError> {
    let final_error = |message: String| CheckError { message, is_transient: false };
    let target = binding.target().map_err(|error| final_error(error.to_string()))?;
    let filter = target.filter.unwrap_or_default();
    let conditions =
        filter::parse(&filter).map_err(|error| final_error(format!("{FILTER_ERROR_PREFIX}{error}")))?;
    let parameters = || {
        let select =
            target.select.as_ref().map_or_else(|| "nil".to_owned(), |names| filter::elixir_list(names));
        format!(
            "[event: {}, schema: {}, table: {}, filters: {}, select: {select}]",
            binding.event.as_str(),
            target.schema,
            target.table,
            filter::elixir(&conditions),
        )
    };
    let unavailable = |error: tidewire_authz::AccessError| CheckError {
        message: printed(error.code(), &error),
        is_transient: true,
    };
    let pattern = |pattern: &Pattern| match pattern {
        Pattern::Any => None,
        Pattern::Like(text) => Some(text.clone()),
    };
    let (schema, name) = (pattern(&target.schema), pattern(&target.table));
    let relids = catalogue.published(schema, name, is_fresh).await.map_err(unavailable)?;
    if relids.is_empty() {
        return Err(final_error(format!(
            "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given \
             connect parameters: {}",
            parameters()
        )));
    }
    let mut tables = Vec::with_capacity(relids.len());
    for &relid in relids.iter() {
        let table = catalogue.table(relid, is_fresh).await.map_err(unavailable)?;
        // Nothing to check: the role is known here and the binding names no column.
        if conditions.is_empty() && target.select.is_none() && table.roles.contains_key(role) {
            tables.push(table);
            continue;
        }
        let asked: Vec<BindingCondition> = conditions
            .iter()
            .map(|condition| BindingCondition {
                column: condition.column.clone(),
                negate: condition.negate,
                op: condition.op.name().to_owned(),
                value: condition.value.clone(),
                sql: condition_sql(&table, condition),
            })
            .collect();
        let select = target.select.as_deref();
        if let Err(refusal) = catalogue.authenticator.check_binding(role, relid, &asked, select).await {
            let message = if refusal.is_transient {
                refusal.message
            } else {
                format!(
                    "Unable to subscribe to changes with given parameters. An exception happened so please check \
                     your connect parameters: {}. Exception: {}",
                    parameters(),
                    refusal.message
                )
            };
            return Err(CheckError { message, is_transient: refusal.is_transient });
        }
        tables.push(table);
    }
    let select = target.select.clone().map(|mut names| {
        names.sort_unstable();
        names.dedup();
        names
    });
    Ok(CheckedBinding {
        id: binding.id(),
        position: u16::try_from(position).unwrap_or(u16::MAX),
        actions: match binding.event {
            BindingEvent::All => ActionSet::ALL,
            BindingEvent::Insert => ActionSet::only(Action::Insert),
            BindingEvent::Update => ActionSet::only(Action::Update),
            BindingEvent::Delete => ActionSet::only(Action::Delete),
        },
        filter: filter.trim().to_owned(),
        conditions,
        select,
        tables,
    })
}

/// An error with its causes, behind its code: what a `system` message or a log line shows.
pub(super) fn printed(code: &str, error: &dyn std::error::Error) -> String {
    let mut text = format!("{code}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn names_match_as_like_without_an_escape_matches() {
        for (pattern, text) in [
            ("games", "games"),
            ("my_table", "myXtable"),
            ("%", ""),
            ("%", "anything"),
            ("a%", "a"),
            ("%s", "games"),
            ("%a%e_", "games"),
            ("g%m%", "gmm"),
            ("%ab", "aab"),
            ("_", "ä"),
            ("", ""),
        ] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("games", "Games"),
            ("games", "game"),
            ("a_", "a"),
            ("", "x"),
            ("%ab", "abc"),
            ("%a%b", "b"),
            (r"a\_", "a_"),
        ] {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }
}
