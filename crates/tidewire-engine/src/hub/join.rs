//! Joining a topic: the checks of `PROTOCOL.md` §2.4 that need no database, the reply, and what follows.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::{CLOSE_GOING_AWAY, OperationalCode};
use tidewire_protocol::frame::{Frame, NULL, Payload, Status};
use tidewire_protocol::join::{self, Binding, JoinPayload};
use tidewire_protocol::{json, topic};

use super::access::{Access, MAX_REPLAYED};
use super::channel::Channel;
use super::{
    ChangeCommand, ChannelId, Credential, Hears, HearsPresence, Hub, Member, Output, PeerMessage, Replay,
    SocketId, StoredMessage, Timer,
};
use crate::message::Domain;
use crate::now::Now;

/// A join that has passed the checks of this hub. Owned, because it may have to wait for the database.
#[derive(Debug)]
pub(super) struct JoinRequest {
    pub(super) topic: Arc<str>,
    /// As sent, raw JSON.
    join_ref: Box<str>,
    reference: Box<str>,
    pub(super) credential: Arc<Credential>,
    is_private: bool,
    is_legacy: bool,
    wants_ack: bool,
    receives_own: bool,
    pub(super) wants_presence: bool,
    wants_replication_ready: bool,
    pub(super) replay: Option<Replay>,
    presence_key: Option<String>,
    bindings: Vec<Binding>,
}

/// A refused join: a code for the log, a sentence for the client.
struct Refusal {
    code: OperationalCode,
    reason: String,
    /// The socket is closed with 1001 behind the reply (§1.11).
    closes_socket: bool,
}

impl Refusal {
    fn new(code: OperationalCode, text: &str) -> Self {
        Self { code, reason: format!("{}: {text}", code.as_str()), closes_socket: false }
    }
}

impl Hub {
    pub(super) fn on_join(&mut self, now: Now, socket: u32, frame: &Frame<'_>) {
        let Payload::Json(payload) = frame.payload else {
            let refusal =
                Refusal::new(OperationalCode::UnknownErrorOnChannel, "the join payload is not a JSON object");
            self.refuse(now, socket, frame, refusal);
            return;
        };
        let request = match join::parse(payload) {
            Ok(request) => request,
            Err(error) => {
                let refusal = Refusal::new(OperationalCode::UnknownErrorOnChannel, &error.to_string());
                self.refuse(now, socket, frame, refusal);
                return;
            }
        };
        let (credential, replay) = match self.admit(now, socket, frame, &request) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.refuse(now, socket, frame, refusal);
                return;
            }
        };
        for problem in &request.problems {
            let topic = Some((*frame.topic).into());
            self.report(OperationalCode::InvalidJoinPayload, socket, topic, problem.to_string());
        }
        let request = JoinRequest {
            topic: (*frame.topic).into(),
            join_ref: (*frame.join_ref).into(),
            reference: (*frame.reference).into(),
            credential,
            is_private: request.private,
            is_legacy: request.legacy,
            wants_ack: request.ack,
            receives_own: request.receives_own,
            wants_presence: request.presence_enabled.unwrap_or(false),
            wants_replication_ready: request.replication_ready,
            replay,
            presence_key: request.presence_key,
            bindings: if request.legacy {
                vec![join::legacy_binding(topic::sub_topic(&frame.topic).unwrap_or_default())]
            } else {
                request.bindings
            },
        };
        if request.is_private {
            self.ask_to_join(socket, request);
        } else {
            self.join(now, socket, request, None, &[]);
        }
    }

    /// The checks of §2.4 that need no database, in order. Which of the others are not made yet (users, tenants,
    /// rates) is listed in the README's status table.
    fn admit(
        &mut self,
        now: Now,
        socket: u32,
        frame: &Frame<'_>,
        request: &JoinPayload<'_>,
    ) -> Result<(Arc<Credential>, Option<Replay>), Refusal> {
        let sub_topic = topic::sub_topic(&frame.topic).unwrap_or_default();
        if sub_topic.is_empty() {
            return Err(Refusal::new(OperationalCode::TopicNameRequired, "You must provide a topic name"));
        }
        if self.is_draining {
            return Err(Refusal::new(
                OperationalCode::RealtimeRestarting,
                "Realtime is restarting, please standby",
            ));
        }
        if self.config.rates.joins.is_triggered() {
            return Err(Refusal {
                closes_socket: true,
                ..Refusal::new(OperationalCode::ClientJoinRateLimitReached, "Too many joins per second")
            });
        }
        self.config.rates.joins.add(1);
        let replaces = self.find_channel(socket, &frame.topic).is_some();
        let is_full = |hub: &Self| {
            let owner = &hub.sockets[socket as usize];
            owner.channels.len() + owner.joining.len() >= hub.config.max_channels
        };
        if !replaces && is_full(self) {
            // A channel that was left a moment ago does not stand in the way.
            self.finish_leaves();
        }
        if !replaces && is_full(self) {
            return Err(Refusal::new(OperationalCode::ChannelRateLimitReached, "Too many channels"));
        }
        let credential = self.channel_credential(now, socket, request)?;
        let replay =
            replay_of(request).map_err(|text| Refusal::new(OperationalCode::UnableToReplayMessages, text))?;
        if request.bindings.len() > self.config.max_bindings {
            let text = format!(
                "a channel may have at most {} postgres_changes bindings, this one asks for {}",
                self.config.max_bindings,
                request.bindings.len()
            );
            return Err(Refusal::new(OperationalCode::TooManyBindings, &text));
        }
        Ok((credential, replay))
    }

    /// §2.3: the channel's own token, or the connection's. Equal tokens share one credential.
    fn channel_credential(
        &mut self,
        now: Now,
        socket: u32,
        request: &JoinPayload<'_>,
    ) -> Result<Arc<Credential>, Refusal> {
        let connection = Arc::clone(&self.sockets[socket as usize].credential);
        let token = request.token().unwrap_or(&connection.token);
        match self.verifier.verify(token, now) {
            Ok(verified) if verified == *connection => Ok(connection),
            Ok(verified) => Ok(Arc::new(verified)),
            Err(refusal) => {
                Err(Refusal { code: refusal.code, reason: refusal.join_reason, closes_socket: false })
            }
        }
    }

    /// The error reply comes after a wait (§2.5), which is the brake on clients that retry in a loop.
    ///
    /// The channel that the join was to replace has ended nevertheless (§2.8), and its `phx_close` follows the
    /// reply as it would follow a good one.
    fn refuse(&mut self, now: Now, socket: u32, frame: &Frame<'_>, refusal: Refusal) {
        self.refuse_named(now, socket, (&frame.join_ref, &frame.reference, &frame.topic), refusal);
    }

    /// Refuses a join that the database has had a say in.
    pub(super) fn refuse_request(
        &mut self,
        now: Now,
        socket: u32,
        request: &JoinRequest,
        code: OperationalCode,
        reason: String,
    ) {
        let names = (&*request.join_ref, &*request.reference, &*request.topic);
        self.refuse_named(now, socket, names, Refusal { code, reason, closes_socket: false });
    }

    fn refuse_named(
        &mut self,
        now: Now,
        socket: u32,
        (join_ref, reference, topic): (&str, &str, &str),
        refusal: Refusal,
    ) {
        let old_close = self.find_channel(socket, topic).map(|old| {
            let close = self.take_channel(old);
            self.note_channel_ended(now, socket);
            close
        });
        let mut response = Vec::with_capacity(refusal.reason.len() + 16);
        response.extend_from_slice(b"{\"reason\":");
        json::write_string(&mut response, &refusal.reason);
        response.push(b'}');
        let response = String::from_utf8(response).expect("invariant: JSON writers emit UTF-8");
        let reply = self.reply_frame(socket, join_ref, reference, topic, Status::Error, &response);
        self.report(refusal.code, socket, Some(topic.into()), refusal.reason);
        let frames = match old_close {
            Some(close) => [reply, close].concat().into(),
            None => reply,
        };
        let id = self.socket_id(socket);
        let owner = &mut self.sockets[socket as usize];
        // Bounded like channels in number, and like the outbox in bytes: topic and refs are the client's.
        let (count, bytes) = (owner.refusal_timers.len(), owner.refusal_bytes + frames.len());
        if count >= self.config.max_channels || (count > 0 && bytes > self.config.max_outbox_bytes) {
            self.close_for_join_flood(socket);
            return;
        }
        owner.refusal_bytes = bytes;
        let timer = self.timers.set(
            now.mono_ms.saturating_add(self.config.join_error_backoff_ms),
            Timer::JoinRefusal { socket: id, frames, closes_socket: refusal.closes_socket },
        );
        owner.refusal_timers.push(timer);
    }

    pub(super) fn on_refusal_timer(&mut self, socket: SocketId, frames: Bytes, closes_socket: bool) {
        let Some(owner) = self.socket_mut(socket) else { return };
        // The wait is the same for all, so this one is the oldest.
        owner.refusal_timers.remove(0);
        owner.refusal_bytes -= frames.len();
        self.push(socket.index, frames);
        if closes_socket {
            self.close(socket.index, CLOSE_GOING_AWAY, "too many joins", false);
        }
    }

    /// Makes the channel and says everything that follows a join, in the order of §2.6.
    pub(super) fn join(
        &mut self,
        now: Now,
        socket: u32,
        request: JoinRequest,
        access: Option<Box<Access>>,
        replayed: &[StoredMessage],
    ) {
        // The old incarnation ends first, but its `phx_close` follows the new reply (§2.8).
        let old_close = self.find_channel(socket, &request.topic).map(|old| self.take_channel(old));
        let domain = if request.is_private { Domain::Private } else { Domain::Public };
        let response = join_response(&request.bindings);
        let topic_slot = self.topic_slot(domain, &request.topic);
        let id = ChannelId((u64::from(self.config.hub) << 48) | self.next_channel_serial);
        self.next_channel_serial += 1;
        let may_read_presence = access.as_deref().is_none_or(|access| access.reads_presence);
        let gets_state = request.wants_presence && may_read_presence;
        let hears = Hears {
            broadcast: access.as_deref().is_none_or(|access| access.reads_broadcast),
            presence: match (gets_state, domain) {
                (true, _) => HearsPresence::AfterState,
                // Every public member hears diffs, whether it asked for presence or not (Q11).
                (false, Domain::Public) => HearsPresence::Yes,
                (false, Domain::Private) => HearsPresence::No,
            },
            has_replayed: !replayed.is_empty(),
        };
        let channel = Channel {
            id,
            socket,
            topic: topic_slot,
            member: self.topics[topic_slot as usize].members.len() as u32,
            push_ref: if &*request.join_ref == NULL { request.reference.clone() } else { Box::default() },
            sent_join_ref: request.join_ref.clone(),
            credential: Arc::clone(&request.credential),
            presence_key: request.presence_key.unwrap_or_else(|| self.random.uuid()).into(),
            presence_window_start_ms: now.mono_ms,
            presence_calls: 0,
            token_timer: self.set_token_timer(now, id, &request.credential),
            wants_ack: request.wants_ack,
            receives_own: request.receives_own,
            wants_presence: request.wants_presence,
            is_tracked: false,
            has_bindings: !request.bindings.is_empty(),
            leaving: None,
            access,
        };
        let slot = self.channels.insert(channel) as u32;
        self.channel_slots.insert(id, slot);
        self.topics[topic_slot as usize].members.push(Member { socket, channel: slot, hears });
        self.sockets[socket as usize].channels.push(slot);

        let (join_ref, reference) = (&request.join_ref, &request.reference);
        self.push_reply(socket, join_ref, reference, &request.topic, Status::Ok, &response);
        if let Some(close) = old_close {
            self.push(socket, close);
        }
        self.push_replayed(slot, replayed);
        let name = Arc::clone(&self.topics[topic_slot as usize].name);
        if !request.bindings.is_empty() {
            self.outputs.push_back(Output::Change(ChangeCommand::Subscribe {
                channel: id,
                topic: name,
                credential: request.credential,
                is_legacy: request.is_legacy,
                bindings: request.bindings,
            }));
        }
        if request.wants_replication_ready {
            self.outputs.push_back(Output::Change(ChangeCommand::TellWhenReady { channel: id }));
        }
        if gets_state {
            self.request_state(slot);
        }
    }

    /// Asks the home hub for the topic's presence.
    pub(super) fn request_state(&mut self, slot: u32) {
        self.hears_mut(slot).presence = HearsPresence::AfterState;
        let (topic, channel) = (self.topic_key(slot), self.channels[slot as usize].id);
        self.send_home(&topic, PeerMessage::StateRequest { topic: topic.clone(), channel });
    }
}

/// What a join wants replayed (§3.6).
fn replay_of(request: &JoinPayload<'_>) -> Result<Option<Replay>, &'static str> {
    const INVALID: &str = "Replay params are not valid";
    /// Milliseconds at the ends of what a timestamp of Postgres and a JavaScript date can both say.
    const RANGE: std::ops::RangeInclusive<i64> = -8_640_000_000_000_000..=8_640_000_000_000_000;
    let Some(replay) = request.replay else { return Ok(None) };
    if !request.private {
        return Err("Replay is not allowed for public channels");
    }
    let Some([since, limit]) = json::fields(replay.get(), ["since", "limit"]) else { return Ok(None) };
    let since: i64 = since.and_then(|raw| raw.get().parse().ok()).ok_or(INVALID)?;
    if !RANGE.contains(&since) {
        return Err(INVALID);
    }
    let limit = match limit.map(serde_json::value::RawValue::get) {
        None | Some("null" | "false") => MAX_REPLAYED as i64,
        Some(raw) => raw.parse().map_err(|_| INVALID)?,
    };
    Ok(Some(Replay { since_unix_ms: since, limit: limit.clamp(1, MAX_REPLAYED as i64) as u32 }))
}

/// `{"postgres_changes":[…]}`: every binding echoed verbatim with its id (§2.6).
fn join_response(bindings: &[Binding]) -> String {
    let mut out = Vec::with_capacity(24 + bindings.len() * 96);
    out.extend_from_slice(b"{\"postgres_changes\":[");
    for (position, binding) in bindings.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        binding.write_echo(&mut out);
    }
    out.extend_from_slice(b"]}");
    String::from_utf8(out).expect("invariant: bindings are echoed from JSON text")
}
