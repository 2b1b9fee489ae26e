//! Which channels may want a row change: the index from tables and filters to bindings.
//!
//! Owns: the live bindings, arranged so that the work per change follows what matches and not what is
//! subscribed. Bindings with the same table, filter, role and `select` form one [`Group`], whose filter is
//! tested once. A filter with an equality that is decided in process (`eq`, `in`) is found by a hash of
//! the row's value; the rest of a table's filters are tried one by one.
//!
//! It never asks the database: a filter that only Postgres can decide comes back as *undecided*, and who
//! may see the row (roles, policies) is not its question at all.
//!
//! Spec: `PROTOCOL.md` §5.2, §5.3, §5.5, §5.8.

use std::collections::HashMap;

use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;
use tidewire_change::Predicate;

use crate::hub::ChannelId;

/// A table, by `pg_class.oid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u32);

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
}

impl Action {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Insert => 1,
            Self::Update => 2,
            Self::Delete => 4,
        }
    }
}

/// The actions that a binding's `event` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActionSet(u8);

impl ActionSet {
    /// Event `*`.
    pub const ALL: Self = Self(7);

    /// One action.
    pub fn only(action: Action) -> Self {
        Self(action.bit())
    }

    /// Whether the binding wants this action.
    pub fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }
}

/// One condition of a filter, with who decides it.
#[derive(Debug, Clone)]
pub enum Test {
    /// Decided here, on the text of a column.
    InProcess {
        /// Column name.
        column: String,
        /// The compiled condition.
        predicate: Predicate,
    },
    /// Decided by Postgres.
    Sql {
        /// Column name.
        column: String,
        /// A boolean SQL expression over the row.
        expression: String,
    },
}

/// What makes two bindings the same to the index.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// Table.
    pub table: TableId,
    /// The filter as written, trimmed; equal texts are equal filters.
    pub filter: String,
    /// Role of the subscribers: it decides columns and policies.
    pub role: Box<str>,
    /// Selected columns, sorted; `None` = all.
    pub select: Option<Vec<String>>,
}

/// Position of a group; valid while it has members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(usize);

/// One binding of one channel on one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The channel.
    pub channel: ChannelId,
    /// Id told in the join reply.
    pub binding: u32,
    /// Position of the binding in the join; `ids` are sent in reverse of it (§5.5).
    pub position: u16,
    /// Actions wanted.
    pub actions: ActionSet,
    /// Position in the log from which changes are for this binding: what was committed before the join is
    /// not (§5.11), even if it is read after it.
    pub since: u64,
    /// Who the subscriber is, as the owner of the index numbers identities.
    pub identity: u32,
}

impl Member {
    /// Whether the binding wants a change of this action, committed at this position.
    pub fn wants(&self, action: Action, commit: u64) -> bool {
        self.actions.contains(action) && self.since <= commit
    }
}

/// Bindings that are alike but for the channel, the identity and the actions.
#[derive(Debug)]
pub struct Group {
    /// What they share.
    pub key: GroupKey,
    /// The bindings, in no particular order.
    pub members: Vec<Member>,
    tests: Vec<Test>,
}

impl Group {
    /// The conditions that Postgres has to decide.
    pub fn sql_tests(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter_map(|test| match test {
            Test::Sql { expression, .. } => Some(expression.as_str()),
            Test::InProcess { .. } => None,
        })
    }
}

/// A column of a row image as the filters see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Not in the image: every condition on it fails (§5.3).
    Missing,
    /// SQL NULL.
    Null,
    /// Text form.
    Text(&'a str),
}

/// A group that a row matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// The group.
    pub group: GroupId,
    /// Everything decided here holds, but some conditions are Postgres' to decide.
    pub needs_sql: bool,
}

/// How a group is found.
#[derive(Debug, Default)]
struct TableIndex {
    /// column → value → groups with that equality.
    by_value: HashMap<String, HashMap<Box<str>, Vec<GroupId>>>,
    /// Groups without an indexable equality.
    others: Vec<GroupId>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Subscriptions {
    groups: Slab<Group>,
    group_ids: HashMap<GroupKey, GroupId>,
    tables: FxHashMap<TableId, TableIndex>,
    channels: FxHashMap<ChannelId, Vec<Place>>,
}

/// Where a member of a group is, so that it is removed without a search: a whole crowd may leave at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    group: GroupId,
    at: usize,
}

impl Subscriptions {
    /// Adds a binding. `tests` belongs to the key's filter and is ignored if the group exists.
    pub fn insert(&mut self, key: &GroupKey, tests: impl FnOnce() -> Vec<Test>, member: Member) {
        let id = match self.group_ids.get(key) {
            Some(&id) => id,
            None => self.add_group(key.clone(), tests()),
        };
        let members = &mut self.groups[id.0].members;
        members.push(member);
        let place = Place { group: id, at: members.len() - 1 };
        self.channels.entry(member.channel).or_default().push(place);
    }

    fn add_group(&mut self, key: GroupKey, tests: Vec<Test>) -> GroupId {
        let id = GroupId(self.groups.vacant_key());
        let index = self.tables.entry(key.table).or_default();
        match index_keys(&tests) {
            Some((column, values)) => {
                let by_value = index.by_value.entry(column).or_default();
                for value in values {
                    by_value.entry(value).or_default().push(id);
                }
            }
            None => index.others.push(id),
        }
        self.group_ids.insert(key.clone(), id);
        self.groups.insert(Group { key, members: Vec::new(), tests });
        id
    }

    /// Removes every binding of a channel.
    pub fn remove(&mut self, channel: ChannelId) {
        let mut places = self.channels.remove(&channel).unwrap_or_default();
        while let Some(place) = places.pop() {
            let members = &mut self.groups[place.group.0].members;
            members.swap_remove(place.at);
            if let Some(moved) = members.get(place.at) {
                let from = Place { group: place.group, at: members.len() };
                let of_moved = match self.channels.get_mut(&moved.channel) {
                    Some(of_moved) => of_moved,
                    // The same channel has several bindings in this group.
                    None => &mut places,
                };
                if let Some(entry) = of_moved.iter_mut().find(|entry| **entry == from) {
                    entry.at = place.at;
                }
            } else if members.is_empty() {
                self.remove_group(place.group);
            }
        }
    }

    fn remove_group(&mut self, id: GroupId) {
        let group = self.groups.remove(id.0);
        self.group_ids.remove(&group.key);
        let Some(index) = self.tables.get_mut(&group.key.table) else { return };
        match index_keys(&group.tests) {
            Some((column, values)) => {
                if let Some(by_value) = index.by_value.get_mut(&column) {
                    for value in values {
                        if let Some(ids) = by_value.get_mut(&value) {
                            ids.retain(|&other| other != id);
                            if ids.is_empty() {
                                by_value.remove(&value);
                            }
                        }
                    }
                    if by_value.is_empty() {
                        index.by_value.remove(&column);
                    }
                }
            }
            None => index.others.retain(|&other| other != id),
        }
        if index.others.is_empty() && index.by_value.is_empty() {
            self.tables.remove(&group.key.table);
        }
    }

    /// Whether anybody listens to the table at all.
    pub fn has_table(&self, table: TableId) -> bool {
        self.tables.contains_key(&table)
    }

    /// The group.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[id.0]
    }

    /// Every group of a table, filters not looked at (400 and 401 frames go to all, §5.8).
    pub fn groups_of(&self, table: TableId) -> Vec<GroupId> {
        let Some(index) = self.tables.get(&table) else { return Vec::new() };
        let indexed = index.by_value.values().flat_map(|by_value| by_value.values().flatten());
        let mut seen = FxHashSet::default();
        index.others.iter().chain(indexed).copied().filter(|id| seen.insert(*id)).collect()
    }

    /// The groups whose filter the row passes, as far as it can be decided here, in a stable order.
    pub fn matches<'r>(&self, table: TableId, column: impl Fn(&str) -> Value<'r>, found: &mut Vec<Match>) {
        found.clear();
        let Some(index) = self.tables.get(&table) else { return };
        let mut candidate = |id: GroupId| {
            let mut needs_sql = false;
            for test in &self.groups[id.0].tests {
                match test {
                    // Only a column that the image has can be asked about; Postgres would see a null.
                    Test::Sql { column: name, .. } if column(name) == Value::Missing => return,
                    Test::Sql { .. } => needs_sql = true,
                    Test::InProcess { column: name, predicate } => {
                        let holds = match column(name) {
                            Value::Missing => false,
                            Value::Null => predicate.matches(None),
                            Value::Text(text) => predicate.matches(Some(text)),
                        };
                        if !holds {
                            return;
                        }
                    }
                }
            }
            found.push(Match { group: id, needs_sql });
        };
        for &id in &index.others {
            candidate(id);
        }
        for (name, by_value) in &index.by_value {
            if let Value::Text(text) = column(name)
                && let Some(ids) = by_value.get(text)
            {
                ids.iter().copied().for_each(&mut candidate);
            }
        }
        found.sort_unstable_by_key(|found| found.group);
    }

    /// Live channels.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }
}

/// The column and the values under which a filter can be found: the first equality decided here.
fn index_keys(tests: &[Test]) -> Option<(String, Vec<Box<str>>)> {
    tests.iter().find_map(|test| {
        let Test::InProcess { column, predicate } = test else { return None };
        if let Some(key) = predicate.equality_key() {
            return Some((column.clone(), vec![key.into()]));
        }
        let mut keys: Vec<Box<str>> = predicate.in_keys()?.to_vec();
        keys.sort_unstable();
        keys.dedup();
        // An empty list is found by no value, but the group has to be found when a whole table is asked for.
        (!keys.is_empty()).then(|| (column.clone(), keys))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidewire_change::{Decision, TypeTraits, filter};

    const TABLE: TableId = TableId(1);
    const INT4: u32 = 23;

    fn tests_of(text: &str) -> Vec<Test> {
        filter::parse(text)
            .unwrap()
            .iter()
            .map(|condition| {
                let traits = TypeTraits { is_enum: false, is_deterministic: true };
                match Predicate::compile(condition, INT4, traits) {
                    Decision::InProcess(predicate) => {
                        Test::InProcess { column: condition.column.clone(), predicate }
                    }
                    Decision::AskPostgres => {
                        Test::Sql { column: condition.column.clone(), expression: String::new() }
                    }
                }
            })
            .collect()
    }

    fn subscribe(index: &mut Subscriptions, channel: u64, text: &str) {
        let key = GroupKey { table: TABLE, filter: text.into(), role: "anon".into(), select: None };
        let member = Member {
            channel: ChannelId(channel),
            binding: 1,
            position: 0,
            actions: ActionSet::ALL,
            since: 0,
            identity: 0,
        };
        index.insert(&key, || tests_of(text), member);
    }

    fn listeners(index: &Subscriptions, id: &str, room: &str) -> Vec<u64> {
        let mut found = Vec::new();
        let column = |name: &str| match name {
            "id" => Value::Text(id),
            "room" => Value::Text(room),
            _ => Value::Missing,
        };
        index.matches(TABLE, column, &mut found);
        let mut channels: Vec<u64> = found
            .iter()
            .flat_map(|one| &index.group(one.group).members)
            .map(|member| member.channel.0)
            .collect();
        channels.sort_unstable();
        channels
    }

    #[test]
    fn equality_in_range_and_no_filter_find_the_same_row() {
        let mut index = Subscriptions::default();
        subscribe(&mut index, 1, "");
        subscribe(&mut index, 2, "room=eq.7");
        subscribe(&mut index, 3, "room=in.(6,7,7)");
        subscribe(&mut index, 4, "id=gt.10");
        subscribe(&mut index, 5, "room=eq.8");
        assert_eq!(listeners(&index, "3", "7"), [1, 2, 3]);
        assert_eq!(listeners(&index, "30", "8"), [1, 4, 5]);
    }

    #[test]
    fn every_condition_must_hold() {
        let mut index = Subscriptions::default();
        subscribe(&mut index, 1, "room=eq.7,id=gt.10");
        assert_eq!(listeners(&index, "3", "7"), [] as [u64; 0]);
        assert_eq!(listeners(&index, "11", "7"), [1]);
    }

    #[test]
    fn equal_bindings_share_a_group_and_the_last_one_takes_it_along() {
        let mut index = Subscriptions::default();
        subscribe(&mut index, 1, "room=eq.7");
        subscribe(&mut index, 2, "room=eq.7");
        assert_eq!(index.groups.len(), 1);
        index.remove(ChannelId(1));
        assert_eq!(listeners(&index, "1", "7"), [2]);
        index.remove(ChannelId(2));
        assert!(!index.has_table(TABLE));
        assert_eq!(index.groups.len() + index.group_ids.len() + index.channels.len(), 0);
    }

    #[test]
    fn a_condition_on_a_missing_column_fails() {
        let mut index = Subscriptions::default();
        subscribe(&mut index, 1, "nowhere=eq.7");
        assert_eq!(listeners(&index, "1", "7"), [] as [u64; 0]);
    }
}
