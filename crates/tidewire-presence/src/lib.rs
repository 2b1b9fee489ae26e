//! Presence state and diffs of one topic; no I/O.
//!
//! [`Presence`] owns who is tracked on one topic and which part of it the members have not been told yet.
//! It does not know sockets, permissions, rate limits or who receives what, and it makes no `phx_ref`: the
//! caller brings everything. Cost of a change is proportional to the change (and to how many channels share
//! its key), not to the room.
//!
//! ```text
//!            track, first     track, other payload        untrack, published
//!   absent ───────────────▶ pending ──take_diff──▶ published ───────────────▶ left ──take_diff──▶ absent
//!      ▲                      │  ▲                    │
//!      └──untrack (cancels)───┘  └──── track, other ──┘ (the old meta goes to left)
//! ```
//!
//! Two sequences of bytes leave this crate, the state and the diff, and they fit together: whoever received
//! [`Presence::write_state`] at any moment and every later [`Presence::take_diff`] holds the state exactly.
//! Therefore the state is what *has been told*, without the changes that wait for the next diff.
//!
//! Nothing here fails. The payload is expected to be JSON object text; what is not is tracked as `{}`.
//!
//! Spec: PROTOCOL.md §4.
#![forbid(unsafe_code)]

mod members;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

/// What [`Presence::track`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// The owner was not tracked: one join.
    Joined,
    /// The owner was tracked with another payload: one join and one leave.
    Updated,
    /// The owner was tracked with this very payload: nothing.
    Unchanged,
}

/// Presence of one topic: key → metas, one meta per owner, and what changed since the last diff.
#[derive(Debug, Default)]
pub struct Presence {
    /// Escaped key → metas, pending ones last. A tree, not a hash table: clients choose the keys, and a tree
    /// has no collisions to aim at.
    keys: BTreeMap<Key, Vec<Meta>>,
    owners: FxHashMap<u64, Key>,
    /// Keys that received a pending meta since the last diff; may repeat, may have lost it again.
    touched: Vec<Key>,
    /// Published metas that are gone since the last diff.
    left: Vec<(Key, Meta)>,
    pending_count: usize,
}

/// A presence key, escaped for JSON, without quotes.
type Key = Arc<str>;

const REF_AT: usize = r#"{"phx_ref":""#.len();

/// One meta, ready to be written.
#[derive(Debug)]
struct Meta {
    owner: u64,
    /// `{"phx_ref":"…","phx_ref_prev":"…",` members of the payload `}`
    text: Box<str>,
    /// Where `phx_ref` ends and where the payload's members begin (or the closing brace, without members).
    ref_end: u32,
    members_at: u32,
    is_published: bool,
}

impl Meta {
    fn new(owner: u64, phx_ref: &str, previous: Option<&str>, members: &str) -> Meta {
        let mut text = String::with_capacity(REF_AT + 2 * phx_ref.len() + members.len() + 24);
        text.push_str(r#"{"phx_ref":""#);
        text.push_str(phx_ref);
        let ref_end = text.len();
        text.push('"');
        if let Some(previous) = previous {
            text.push_str(r#","phx_ref_prev":""#);
            text.push_str(previous);
            text.push('"');
        }
        if !members.is_empty() {
            text.push(',');
        }
        let members_at = text.len();
        text.push_str(members);
        text.push('}');
        Meta {
            owner,
            text: text.into_boxed_str(),
            ref_end: index(ref_end),
            members_at: index(members_at),
            is_published: false,
        }
    }

    fn phx_ref(&self) -> &str {
        &self.text[REF_AT..self.ref_end as usize]
    }

    /// The `phx_ref_prev` of this meta, if it has one.
    fn previous(&self) -> Option<&str> {
        let rest = &self.text[self.ref_end as usize..self.members_at as usize];
        let rest = rest.strip_prefix(r#"","phx_ref_prev":""#)?;
        let rest = rest.strip_suffix(',').unwrap_or(rest);
        rest.strip_suffix('"')
    }

    fn members(&self) -> &str {
        &self.text[self.members_at as usize..self.text.len() - 1]
    }
}

fn index(position: usize) -> u32 {
    // Refs and keys precede the payload; only they are counted here, and a frame is capped far below 4 GiB.
    u32::try_from(position).expect("invariant: a phx_ref is shorter than 4 GiB")
}

impl Presence {
    /// An empty room.
    pub fn new() -> Presence {
        Presence::default()
    }

    /// Tracks `payload_json_object` for `owner`, the caller's id of a channel, under `key`.
    ///
    /// `phx_ref` must never have been used on this topic before; it is dropped if the payload is unchanged.
    /// Members `phx_ref` and `phx_ref_prev` of the payload are removed, the others are kept verbatim.
    /// Payloads are compared as text. An owner that changes its key leaves the old one.
    pub fn track(&mut self, owner: u64, key: &str, phx_ref: &str, payload_json_object: &str) -> Tracked {
        let key = escape(key);
        let phx_ref = escape(phx_ref);
        let members = members::without_refs(payload_json_object);

        let mut previous: Option<Box<str>> = None;
        let mut outcome = Tracked::Joined;
        if let Some(old_key) = self.owners.get(&owner) {
            let metas = self.keys.get_mut(old_key).expect("invariant: every owner's key has metas");
            let at = position(metas, owner);
            if **old_key == *key && metas[at].members() == &*members {
                return Tracked::Unchanged;
            }
            outcome = Tracked::Updated;
            let stays = **old_key == *key;
            let old = metas.remove(at);
            if stays {
                // In a chain of updates within one turn the members have only seen the first link.
                previous = if old.is_published {
                    Some(old.phx_ref().into())
                } else {
                    old.previous().map(Into::into)
                };
            }
            let old_key = Arc::clone(old_key);
            if !stays && metas.is_empty() {
                self.keys.remove(&old_key);
            }
            self.forget(old_key, old);
        }

        let meta = Meta::new(owner, &phx_ref, previous.as_deref(), &members);
        let key = match self.keys.get_key_value(&*key) {
            Some((key, _)) => Arc::clone(key),
            None => Arc::from(&*key),
        };
        // Most keys have one meta; the ordinary first growth would reserve room for four.
        let metas = self.keys.entry(Arc::clone(&key)).or_insert_with(|| Vec::with_capacity(1));
        metas.push(meta);
        self.pending_count += 1;
        self.touched.push(Arc::clone(&key));
        self.owners.insert(owner, key);
        outcome
    }

    /// Ends the owner's presence. False if it was not tracked.
    pub fn untrack(&mut self, owner: u64) -> bool {
        let Some(key) = self.owners.remove(&owner) else {
            return false;
        };
        let metas = self.keys.get_mut(&key).expect("invariant: every owner's key has metas");
        let old = metas.remove(position(metas, owner));
        if metas.is_empty() {
            self.keys.remove(&key);
        }
        self.forget(key, old);
        // A crowd that has left gives its memory back.
        if self.owners.capacity() > 64 && self.owners.len() < self.owners.capacity() / 4 {
            self.owners.shrink_to(self.owners.len() * 2);
        }
        true
    }

    /// A meta is gone: members who know it must be told, a pending one was never there.
    fn forget(&mut self, key: Key, meta: Meta) {
        if meta.is_published {
            self.left.push((key, meta));
        } else {
            self.pending_count -= 1;
            if !self.has_diff() {
                // Everything cancelled out: a caller that asks `has_diff` first would never empty this.
                self.touched.clear();
            }
        }
    }

    /// Writes the payload of `presence_state`: the state as of the last [`take_diff`](Self::take_diff), so
    /// that the next diff leads whoever receives it to the new state, newcomers included.
    pub fn write_state(&self, out: &mut Vec<u8>) {
        // Left but not yet told: these still belong to the state, under keys that may be gone.
        let mut left: BTreeMap<&str, Vec<&Meta>> = BTreeMap::new();
        for (key, meta) in &self.left {
            left.entry(key).or_default().push(meta);
        }
        let mut entries = Object::open(out);
        for (key, metas) in &self.keys {
            let published = metas.iter().filter(|meta| meta.is_published);
            let gone = left.remove(&**key).unwrap_or_default();
            entries.metas(key, gone.into_iter().chain(published));
        }
        for (key, metas) in left {
            entries.metas(key, metas.into_iter());
        }
        entries.close();
    }

    /// Writes the payload of `presence_diff`: everything since the last call, coalesced, and returns true.
    /// If nothing changed, or everything cancelled out, writes nothing and returns false.
    pub fn take_diff(&mut self, out: &mut Vec<u8>) -> bool {
        let touched = std::mem::take(&mut self.touched);
        if !self.has_diff() {
            return false;
        }
        out.extend_from_slice(br#"{"joins":"#);
        let mut joins = Object::open(out);
        for key in touched {
            let Some(metas) = self.keys.get_mut(&key) else { continue };
            // Pending metas are the tail: they are pushed last, and removal keeps the order.
            let told = metas.iter().rposition(|meta| meta.is_published).map_or(0, |last| last + 1);
            joins.metas(&key, metas[told..].iter());
            metas[told..].iter_mut().for_each(|meta| meta.is_published = true);
        }
        joins.close();
        self.pending_count = 0;

        out.extend_from_slice(br#","leaves":"#);
        let mut left = std::mem::take(&mut self.left);
        left.sort_by(|a, b| a.0.cmp(&b.0));
        let mut leaves = Object::open(out);
        for of_key in left.chunk_by(|a, b| a.0 == b.0) {
            leaves.metas(&of_key[0].0, of_key.iter().map(|(_, meta)| meta));
        }
        leaves.close();
        out.push(b'}');
        true
    }

    /// Whether [`take_diff`](Self::take_diff) would write something.
    pub fn has_diff(&self) -> bool {
        self.pending_count > 0 || !self.left.is_empty()
    }

    /// Nobody is tracked **and** nothing waits to be told: the room can be dropped.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && !self.has_diff()
    }

    /// How many owners are tracked.
    pub fn len(&self) -> usize {
        self.owners.len()
    }
}

fn position(metas: &[Meta], owner: u64) -> usize {
    metas
        .iter()
        .position(|meta| meta.owner == owner)
        .expect("invariant: every owner has a meta under its key")
}

/// Writes `{"key":{"metas":[…]},…}`.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut Vec<u8>) -> Object<'a> {
        out.push(b'{');
        Object { out, is_first: true }
    }

    /// One key with its metas; nothing if there are none.
    fn metas<'m>(&mut self, key: &str, metas: impl Iterator<Item = &'m Meta>) {
        let mut is_first_meta = true;
        for meta in metas {
            if is_first_meta {
                if !self.is_first {
                    self.out.push(b',');
                }
                self.is_first = false;
                self.out.push(b'"');
                self.out.extend_from_slice(key.as_bytes());
                self.out.extend_from_slice(br#"":{"metas":["#);
            } else {
                self.out.push(b',');
            }
            is_first_meta = false;
            self.out.extend_from_slice(meta.text.as_bytes());
        }
        if !is_first_meta {
            self.out.extend_from_slice(b"]}");
        }
    }

    fn close(self) {
        self.out.push(b'}');
    }
}

/// `text` as the inside of a JSON string.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            '\0'..='\x1f' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests;
