//! The subscription index against an evaluation of every binding, one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidewire_change::{Decision, Predicate, TypeTraits, filter};
use tidewire_engine::{Action, ActionSet, ChannelId, GroupKey, Member, Subscriptions, TableId, Test, Value};

use super::server::cases;

const TABLES: [TableId; 2] = [TableId(1), TableId(2)];
/// Column, type: int4, text, numeric (whose equality has no single text form), int4 that no row has.
const COLUMNS: [(&str, u32); 4] = [("id", 23), ("name", 25), ("price", 1700), ("absent", 23)];

/// What a filter of the pool means, condition by condition.
fn tests_of(filter: &str) -> Vec<Test> {
    let traits = TypeTraits { is_enum: false, is_deterministic: true };
    filter::parse(filter)
        .expect("the pool holds valid filters")
        .iter()
        .map(|condition| {
            let column = condition.column.clone();
            let oid = COLUMNS.iter().find(|(name, _)| *name == column).expect("a known column").1;
            match Predicate::compile(condition, oid, traits) {
                Decision::InProcess(predicate) => Test::InProcess { column, predicate },
                Decision::AskPostgres => Test::Sql { column, expression: filter.to_owned() },
            }
        })
        .collect()
}

fn condition() -> impl Strategy<Value = String> {
    let number = 0..4_u8;
    prop_oneof![
        number.clone().prop_map(|n| format!("id=eq.{n}")),
        number.clone().prop_map(|n| format!("id=not.eq.{n}")),
        number.clone().prop_map(|n| format!("id=gt.{n}")),
        prop::collection::vec(0..4_u8, 0..4)
            .prop_map(|ns| format!("id=in.({})", ns.iter().map(u8::to_string).collect::<Vec<_>>().join(","))),
        prop::collection::vec(0..4_u8, 1..3).prop_map(|ns| format!(
            "id=not.in.({})",
            ns.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
        )),
        Just("id=in.(1,NULL)".to_owned()),
        Just("id=is.null".to_owned()),
        Just("id=isdistinct.1".to_owned()),
        prop::sample::select(vec!["a", "b", "ä"]).prop_map(|text| format!("name=eq.{text}")),
        prop::sample::select(vec!["(a,b)", "(b,b)", "()"]).prop_map(|list| format!("name=in.{list}")),
        Just("name=like.a%".to_owned()),
        Just("name=ilike.A%".to_owned()),
        Just("name=gt.a".to_owned()),
        number.prop_map(|n| format!("price=eq.{n}.0")),
        Just("price=in.(1,2.50)".to_owned()),
        Just("absent=eq.1".to_owned()),
        Just("absent=is.null".to_owned()),
        Just("absent=ilike.x".to_owned()),
    ]
}

fn filter_text() -> impl Strategy<Value = String> {
    prop::collection::vec(condition(), 0..3).prop_map(|conditions| conditions.join(","))
}

#[derive(Debug, Clone)]
enum Step {
    Insert { channel: u64, table: usize, filter: String, role: usize, has_select: bool },
    Remove { channel: u64 },
    Row { table: usize, id: Option<u8>, name: Option<&'static str>, price: Option<&'static str> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12_u64, 0..2_usize, filter_text(), 0..2_usize, any::<bool>()).prop_map(
            |(channel, table, filter, role, has_select)| {
                Step::Insert { channel, table, filter, role, has_select }
            }
        ),
        1 => (0..12_u64).prop_map(|channel| Step::Remove { channel }),
        4 => (
            0..2_usize,
            prop::option::of(0..4_u8),
            prop::option::of(prop::sample::select(vec!["a", "b", "ä", "abc", ""])),
            prop::option::of(prop::sample::select(vec!["1", "1.0", "2.50", "2.5", "3.00"])),
        )
            .prop_map(|(table, id, name, price)| Step::Row { table, id, name, price }),
    ]
}

/// One binding, the naive way.
struct Naive {
    key: GroupKey,
    tests: Vec<Test>,
    member: Member,
}

/// Whether a row passes, and whether Postgres has to be asked for more.
fn outcome(tests: &[Test], column: impl Fn(&str) -> Option<Option<String>>) -> Option<bool> {
    let mut needs_sql = false;
    for test in tests {
        match test {
            Test::Sql { column: name, .. } => {
                column(name)?;
                needs_sql = true;
            }
            Test::InProcess { column: name, predicate } => {
                if !predicate.matches(column(name)?.as_deref()) {
                    return None;
                }
            }
        }
    }
    Some(needs_sql)
}

/// (channel, position) → needs Postgres
type Listeners = BTreeMap<(u64, u16), bool>;

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn the_index_finds_what_a_search_of_all_bindings_finds(steps in prop::collection::vec(step(), 1..60)) {
        let mut index = Subscriptions::default();
        let mut all: Vec<Naive> = Vec::new();
        let mut next_position = 0;
        for step in steps {
            match step {
                Step::Insert { channel, table, filter, role, has_select } => {
                    let key = GroupKey {
                        table: TABLES[table],
                        filter: filter.clone(),
                        role: ["anon", "authenticated"][role].into(),
                        select: has_select.then(|| vec!["id".to_owned()]),
                    };
                    let member = Member {
                        channel: ChannelId(channel),
                        binding: 1,
                        position: next_position,
                        actions: ActionSet::only(Action::Insert),
                        since: 0,
                        identity: 0,
                    };
                    next_position += 1;
                    index.insert(&key, || tests_of(&filter), member);
                    all.push(Naive { tests: tests_of(&filter), key, member });
                }
                Step::Remove { channel } => {
                    index.remove(ChannelId(channel));
                    all.retain(|one| one.member.channel.0 != channel);
                }
                Step::Row { table, id, name, price } => {
                    let id = id.map(|id| id.to_string());
                    let value = |column: &str| match column {
                        "id" => Some(id.clone()),
                        "name" => Some(name.map(str::to_owned)),
                        "price" => Some(price.map(str::to_owned)),
                        _ => None,
                    };
                    let expected: Listeners = all
                        .iter()
                        .filter(|one| one.key.table == TABLES[table])
                        .filter_map(|one| {
                            let needs_sql = outcome(&one.tests, value)?;
                            Some(((one.member.channel.0, one.member.position), needs_sql))
                        })
                        .collect();
                    let column = |column: &str| match column {
                        "id" => id.as_deref().map_or(Value::Null, Value::Text),
                        "name" => name.map_or(Value::Null, Value::Text),
                        "price" => price.map_or(Value::Null, Value::Text),
                        _ => Value::Missing,
                    };
                    let mut found = Vec::new();
                    index.matches(TABLES[table], column, &mut found);
                    let mut listeners = Listeners::new();
                    for one in &found {
                        let group = index.group(one.group);
                        prop_assert_eq!(one.needs_sql, group.sql_tests().count() > 0);
                        for member in &group.members {
                            let twice = listeners.insert((member.channel.0, member.position), one.needs_sql);
                            prop_assert_eq!(twice, None, "a group was found twice");
                        }
                    }
                    prop_assert_eq!(listeners, expected);
                }
            }
            for table in TABLES {
                let mut everybody: Vec<u16> = index
                    .groups_of(table)
                    .into_iter()
                    .flat_map(|id| &index.group(id).members)
                    .map(|member| member.position)
                    .collect();
                everybody.sort_unstable();
                let expected: Vec<u16> =
                    all.iter().filter(|one| one.key.table == table).map(|one| one.member.position).collect();
                prop_assert_eq!(index.has_table(table), !expected.is_empty());
                prop_assert_eq!(everybody, expected, "everybody on the table");
            }
        }
        for channel in 0..12 {
            index.remove(ChannelId(channel));
        }
        prop_assert_eq!(index.channel_count(), 0);
        prop_assert!(TABLES.iter().all(|&table| !index.has_table(table)));
    }
}

/// §5.8: frames of case 2 and 3 go to all subscriptions of a table, also to one whose filter nothing passes.
#[test]
fn a_filter_that_nothing_passes_still_belongs_to_its_table() {
    let mut index = Subscriptions::default();
    let key = GroupKey { table: TABLES[0], filter: "id=in.()".into(), role: "anon".into(), select: None };
    let member = Member {
        channel: ChannelId(1),
        binding: 1,
        position: 0,
        actions: ActionSet::ALL,
        since: 0,
        identity: 0,
    };
    index.insert(&key, || tests_of(&key.filter), member);
    let mut found = Vec::new();
    index.matches(TABLES[0], |_| Value::Text("1"), &mut found);
    assert_eq!(found, []);
    assert_eq!(index.groups_of(TABLES[0]).len(), 1);
}
