//! From answers to frames: who gets a change, in which form, encoded once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tidewire_engine::{Action, Body, ChannelId, GroupId, Message as Frame, PeerMessage, TableId};

use super::ask::Answers;
use super::{Batcher, Pending};
use crate::changes::encode::{Change, OldColumns};
use crate::changes::registry::Registry;
use crate::changes::table::{Columns, Row};

/// A receiver of one change.
struct Receiver {
    frame: usize,
    channel: ChannelId,
    position: u16,
    binding: u32,
}

impl Batcher {
    pub(super) fn deliver(&self, change: &Pending<'_>, registry: &Registry, answers: &Answers) {
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
            if found.needs_sql && !answers.filter_holds(change, group.sql_tests()) {
                continue;
            }
            let is_judged = change.action != Action::Delete && !access.sees_all_rows;
            let mut frame = None;
            for member in group.members.iter().filter(|member| member.wants(change.action, change.commit)) {
                if is_judged && !answers.is_visible(change, member.identity) {
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
        let metrics = self.shards.metrics();
        metrics.count_change(receivers.len());
        for frame in &frames {
            metrics.change_bytes.observe(frame.len() as u64);
        }
        self.send(change, registry, &frames, receivers);
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
            let wanting = group.members.iter().filter(|member| member.wants(change.action, change.commit));
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

    fn encode(&self, change: &Pending<'_>, columns: &Columns) -> Bytes {
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
