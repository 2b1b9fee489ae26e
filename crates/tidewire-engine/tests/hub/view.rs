//! Presence as a client keeps it: the rules of the Phoenix client (`Presence.syncState`, `syncDiff`), which
//! realtime-js and realtime-py share.

use std::collections::BTreeMap;

use serde_json::Value;

/// Key → metas, as clients hold it.
pub(crate) type State = BTreeMap<String, Vec<Value>>;

#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) state: State,
    pending: Vec<Value>,
    has_state: bool,
}

impl View {
    /// A join was sent: until its state is there, diffs are put aside. What is known is kept, as the client
    /// object outlives its joins.
    pub(crate) fn begin(&mut self) {
        self.has_state = false;
        self.pending.clear();
    }

    pub(crate) fn on_state(&mut self, new: &Value) {
        assert!(!self.has_state, "one state per join");
        self.has_state = true;
        let new = read(new);
        let (mut joins, mut leaves) = (State::new(), State::new());
        for (key, metas) in &self.state {
            if !new.contains_key(key) {
                leaves.insert(key.clone(), metas.clone());
            }
        }
        for (key, metas) in &new {
            match self.state.get(key) {
                Some(current) => {
                    let (new_refs, current_refs) = (refs(metas), refs(current));
                    let joined = without(metas, &current_refs);
                    let left = without(current, &new_refs);
                    if !joined.is_empty() {
                        joins.insert(key.clone(), joined);
                    }
                    if !left.is_empty() {
                        leaves.insert(key.clone(), left);
                    }
                }
                None => _ = joins.insert(key.clone(), metas.clone()),
            }
        }
        self.sync_diff(joins, leaves);
        for diff in std::mem::take(&mut self.pending) {
            self.sync_diff(read(&diff["joins"]), read(&diff["leaves"]));
        }
    }

    pub(crate) fn on_diff(&mut self, diff: &Value) {
        if self.has_state {
            self.sync_diff(read(&diff["joins"]), read(&diff["leaves"]));
        } else {
            self.pending.push(diff.clone());
        }
    }

    pub(crate) fn has_state(&self) -> bool {
        self.has_state
    }

    fn sync_diff(&mut self, joins: State, leaves: State) {
        for (key, mut metas) in joins {
            if let Some(current) = self.state.get(&key) {
                let mut kept = without(current, &refs(&metas));
                kept.append(&mut metas);
                metas = kept;
            }
            self.state.insert(key, metas);
        }
        for (key, metas) in leaves {
            let Some(current) = self.state.get(&key) else { continue };
            let kept = without(current, &refs(&metas));
            if kept.is_empty() {
                self.state.remove(&key);
            } else {
                self.state.insert(key, kept);
            }
        }
    }
}

fn read(state: &Value) -> State {
    let entries = state.as_object().expect("a presence state is an object");
    entries
        .iter()
        .map(|(key, entry)| {
            let metas = entry["metas"].as_array().expect("every key has metas");
            assert!(!metas.is_empty(), "no key without metas");
            (key.clone(), metas.clone())
        })
        .collect()
}

fn refs(metas: &[Value]) -> Vec<Value> {
    metas.iter().map(|meta| meta["phx_ref"].clone()).collect()
}

fn without(metas: &[Value], refs: &[Value]) -> Vec<Value> {
    metas.iter().filter(|meta| !refs.contains(&meta["phx_ref"])).cloned().collect()
}
