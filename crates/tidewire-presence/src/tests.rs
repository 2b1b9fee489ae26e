use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn state(presence: &Presence) -> Value {
    let mut out = Vec::new();
    presence.write_state(&mut out);
    serde_json::from_slice(&out).unwrap()
}

fn diff(presence: &mut Presence) -> Option<Value> {
    let mut out = Vec::new();
    let some = presence.take_diff(&mut out);
    assert_eq!(some, !out.is_empty());
    some.then(|| serde_json::from_slice(&out).unwrap())
}

#[test]
fn a_first_track_joins_and_the_bytes_are_those_of_the_specification() {
    let mut presence = Presence::new();
    assert_eq!(presence.track(1, "ada", "GHq1", r#"{"name":"Ada"}"#), Tracked::Joined);
    let mut out = Vec::new();
    assert!(presence.take_diff(&mut out));
    assert_eq!(
        String::from_utf8(out).unwrap(),
        r#"{"joins":{"ada":{"metas":[{"phx_ref":"GHq1","name":"Ada"}]}},"leaves":{}}"#
    );
    let mut out = Vec::new();
    presence.write_state(&mut out);
    assert_eq!(String::from_utf8(out).unwrap(), r#"{"ada":{"metas":[{"phx_ref":"GHq1","name":"Ada"}]}}"#);

    assert_eq!(presence.track(1, "ada", "GHq2", r#"{"name":"Ada L."}"#), Tracked::Updated);
    let mut out = Vec::new();
    assert!(presence.take_diff(&mut out));
    assert_eq!(
        String::from_utf8(out).unwrap(),
        r#"{"joins":{"ada":{"metas":[{"phx_ref":"GHq2","phx_ref_prev":"GHq1","name":"Ada L."}]}},"leaves":{"ada":{"metas":[{"phx_ref":"GHq1","name":"Ada"}]}}}"#
    );
}

#[test]
fn an_empty_room_has_an_empty_state_and_no_diff() {
    let mut presence = Presence::new();
    assert!(presence.is_empty());
    assert_eq!(state(&presence), json!({}));
    assert_eq!(diff(&mut presence), None);
    assert!(!presence.untrack(1));
}

#[test]
fn the_same_payload_again_changes_nothing() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", r#"{"n":1}"#);
    diff(&mut presence);
    assert_eq!(presence.track(1, "ada", "r2", r#"{"n":1}"#), Tracked::Unchanged);
    // The client's own refs do not make a difference.
    assert_eq!(presence.track(1, "ada", "r2", r#"{"phx_ref":"x","n":1}"#), Tracked::Unchanged);
    assert!(!presence.has_diff());
    assert_eq!(state(&presence), json!({"ada":{"metas":[{"phx_ref":"r1","n":1}]}}));
}

#[test]
fn a_join_and_a_leave_within_one_turn_cancel() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", "{}");
    assert!(presence.has_diff());
    assert!(presence.untrack(1));
    assert!(!presence.has_diff());
    assert_eq!(diff(&mut presence), None);
    assert!(presence.is_empty());
}

#[test]
fn cancelled_changes_leave_no_trace_in_memory() {
    let mut presence = Presence::new();
    for _ in 0..10 {
        presence.track(1, "ada", "r1", "{}");
        presence.untrack(1);
    }
    assert!(presence.touched.is_empty() && presence.keys.is_empty() && presence.left.is_empty());
}

#[test]
fn updates_within_one_turn_collapse_into_one() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", r#"{"n":1}"#);
    presence.track(1, "ada", "r2", r#"{"n":2}"#);
    assert_eq!(
        diff(&mut presence),
        Some(json!({"joins":{"ada":{"metas":[{"phx_ref":"r2","n":2}]}},"leaves":{}}))
    );
    presence.track(1, "ada", "r3", r#"{"n":3}"#);
    presence.track(1, "ada", "r4", "{}");
    assert_eq!(
        diff(&mut presence),
        Some(json!({
            "joins":{"ada":{"metas":[{"phx_ref":"r4","phx_ref_prev":"r2"}]}},
            "leaves":{"ada":{"metas":[{"phx_ref":"r2","n":2}]}}
        }))
    );
}

#[test]
fn several_owners_share_a_key() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", "{}");
    presence.track(2, "ada", "r2", "{}");
    assert_eq!(presence.len(), 2);
    diff(&mut presence);
    assert_eq!(state(&presence), json!({"ada":{"metas":[{"phx_ref":"r1"},{"phx_ref":"r2"}]}}));
    presence.untrack(1);
    assert_eq!(diff(&mut presence), Some(json!({"joins":{},"leaves":{"ada":{"metas":[{"phx_ref":"r1"}]}}})));
    assert_eq!(state(&presence), json!({"ada":{"metas":[{"phx_ref":"r2"}]}}));
}

#[test]
fn an_owner_that_changes_its_key_leaves_the_old_one() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", "{}");
    diff(&mut presence);
    assert_eq!(presence.track(1, "bob", "r2", "{}"), Tracked::Updated);
    assert_eq!(
        diff(&mut presence),
        Some(
            json!({"joins":{"bob":{"metas":[{"phx_ref":"r2"}]}},"leaves":{"ada":{"metas":[{"phx_ref":"r1"}]}}})
        )
    );
    assert_eq!(state(&presence), json!({"bob":{"metas":[{"phx_ref":"r2"}]}}));
}

#[test]
fn a_newcomer_sees_what_the_others_have_been_told_and_catches_up_with_the_next_diff() {
    let mut presence = Presence::new();
    presence.track(1, "ada", "r1", "{}");
    diff(&mut presence);
    presence.untrack(1);
    presence.track(2, "bob", "r2", "{}");
    assert_eq!(state(&presence), json!({"ada":{"metas":[{"phx_ref":"r1"}]}}));
    assert!(!presence.is_empty());
    diff(&mut presence);
    assert_eq!(state(&presence), json!({"bob":{"metas":[{"phx_ref":"r2"}]}}));
}

#[test]
fn keys_and_refs_are_escaped() {
    let mut presence = Presence::new();
    presence.track(1, "a\"\\\n\u{1}ü", "r\"1", "{}");
    diff(&mut presence);
    presence.track(1, "a\"\\\n\u{1}ü", "r\"2", r#"{"a":1}"#);
    diff(&mut presence);
    assert_eq!(
        state(&presence),
        json!({"a\"\\\n\u{1}ü":{"metas":[{"phx_ref":"r\"2","phx_ref_prev":"r\"1","a":1}]}})
    );
}

/// What a Phoenix client holds: key → metas in order.
#[derive(Default, Debug, PartialEq)]
struct Client(BTreeMap<String, Vec<Value>>);

impl Client {
    fn from_state(state: &Value) -> Client {
        let entries = state.as_object().unwrap();
        Client(entries.iter().map(|(key, entry)| (key.clone(), metas(entry))).collect())
    }

    fn sorted(&self) -> Client {
        let mut sorted = Client(self.0.clone());
        sorted.0.values_mut().for_each(|metas| metas.sort_by_key(|meta| meta["phx_ref"].to_string()));
        sorted
    }

    /// Joins replace metas of equal `phx_ref` or append; then leaves remove by `phx_ref`.
    fn apply(&mut self, diff: &Value) {
        for (key, entry) in diff["joins"].as_object().unwrap() {
            let joined = metas(entry);
            let held = self.0.entry(key.clone()).or_default();
            held.retain(|meta| joined.iter().all(|new| new["phx_ref"] != meta["phx_ref"]));
            held.extend(joined);
        }
        for (key, entry) in diff["leaves"].as_object().unwrap() {
            let gone = metas(entry);
            let Some(held) = self.0.get_mut(key) else { continue };
            held.retain(|meta| gone.iter().all(|old| old["phx_ref"] != meta["phx_ref"]));
            if held.is_empty() {
                self.0.remove(key);
            }
        }
    }
}

fn metas(entry: &Value) -> Vec<Value> {
    entry["metas"].as_array().unwrap().clone()
}

#[derive(Clone, Debug)]
enum Step {
    Track { owner: u64, key: usize, payload: usize },
    Untrack { owner: u64 },
    Diff,
    Newcomer,
}

const KEYS: [&str; 3] = ["ada", "bob \"the\" builder", ""];
const PAYLOADS: [&str; 5] = [
    "{}",
    r#"{"n":1}"#,
    r#"{"phx_ref":"forged","n":2}"#,
    r#"{ "n" : [1, {"x":"},{"}] }"#,
    r#"{"phx_ref_prev":0}"#,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6u64, 0..4usize, 0..PAYLOADS.len()).prop_map(|(owner, key, payload)| Step::Track { owner, key, payload }),
        3 => (0..6u64).prop_map(|owner| Step::Untrack { owner }),
        3 => Just(Step::Diff),
        1 => Just(Step::Newcomer),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn clients_that_apply_every_diff_hold_the_state(steps in steps()) {
        let mut presence = Presence::new();
        // owner → (key, payload without the server's keys): what must be true in the end.
        let mut model: BTreeMap<u64, (String, Value)> = BTreeMap::new();
        let mut clients = vec![Client::default()];
        let mut next_ref = 0;
        for step in steps.into_iter().chain([Step::Diff]) {
            match step {
                Step::Track { owner, key, payload } => {
                    next_ref += 1;
                    // Most owners keep their key; the last choice is the owner's own.
                    let key = KEYS.get(key).copied().unwrap_or(KEYS[owner as usize % KEYS.len()]);
                    let mut value: Value = serde_json::from_str(PAYLOADS[payload]).unwrap();
                    value.as_object_mut().unwrap().retain(|name, _| !name.starts_with("phx_ref"));
                    let new = (key.to_owned(), value);
                    let expected = match model.get(&owner) {
                        None => Tracked::Joined,
                        Some(old) if *old == new => Tracked::Unchanged,
                        Some(_) => Tracked::Updated,
                    };
                    let done = presence.track(owner, key, &format!("ref{next_ref}"), PAYLOADS[payload]);
                    prop_assert_eq!(done, expected);
                    model.insert(owner, new);
                }
                Step::Untrack { owner } => {
                    prop_assert_eq!(presence.untrack(owner), model.remove(&owner).is_some());
                }
                Step::Diff => {
                    let had = presence.has_diff();
                    let diff = diff(&mut presence);
                    prop_assert_eq!(diff.is_some(), had);
                    if let Some(diff) = diff {
                        clients.iter_mut().for_each(|client| client.apply(&diff));
                    }
                    prop_assert!(!presence.has_diff());
                    // Everybody is told exactly the tracked payloads.
                    let mut told: Vec<(String, Value)> = Vec::new();
                    for (key, metas) in &clients[0].0 {
                        for meta in metas {
                            let mut meta = meta.clone();
                            meta.as_object_mut().unwrap().retain(|name, _| !name.starts_with("phx_ref"));
                            told.push((key.clone(), meta));
                        }
                    }
                    let mut expected: Vec<_> = model.values().cloned().collect();
                    let order = |entry: &(String, Value)| format!("{entry:?}");
                    told.sort_by_key(order);
                    expected.sort_by_key(order);
                    prop_assert_eq!(told, expected);
                }
                Step::Newcomer => clients.push(Client::from_state(&state(&presence))),
            }
            prop_assert_eq!(presence.len(), model.len());
            prop_assert_eq!(presence.is_empty(), model.is_empty() && !presence.has_diff());
            // Within a turn, metas about to leave may stand elsewhere in the list than they did.
            prop_assert_eq!(clients[0].sorted(), Client::from_state(&state(&presence)).sorted());
        }
        let held = Client::from_state(&state(&presence));
        for (index, client) in clients.iter().enumerate() {
            // A newcomer of the middle of a turn may hold another order within a key, never another content.
            if index == 0 {
                prop_assert_eq!(client, &held);
            }
            prop_assert_eq!(client.sorted(), held.sorted());
        }
    }

    #[test]
    fn any_payload_text_is_survived(text in any::<String>()) {
        let mut presence = Presence::new();
        presence.track(1, &text, &text, &text);
        presence.track(1, &text, "r", "{}");
        presence.take_diff(&mut Vec::new());
    }
}
