//! Joining a topic: the checks of `PROTOCOL.md` §2.4 that need no database, the reply, and what follows.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Frame, NULL, Payload, Status};
use tidewire_protocol::join::{self, Binding, JoinPayload};
use tidewire_protocol::{json, topic};

use super::channel::Channel;
use super::{ChangeCommand, ChannelId, Credential, Hub, Member, Output, PeerMessage, SocketId, Timer};
use crate::now::Now;

/// A refused join: a code for the log, a sentence for the client.
struct Refusal {
    code: OperationalCode,
    reason: String,
}

impl Refusal {
    fn new(code: OperationalCode, text: &str) -> Self {
        Self { code, reason: format!("{}: {text}", code.as_str()) }
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
        match self.admit(now, socket, frame, &request) {
            Ok(credential) => self.join(now, socket, frame, request, credential),
            Err(refusal) => self.refuse(now, socket, frame, refusal),
        }
    }

    /// The checks of §2.4, in order. Which of them need more than this hub knows (users, tenants, rates,
    /// private channels) is listed in the README's status table.
    fn admit(
        &mut self,
        now: Now,
        socket: u32,
        frame: &Frame<'_>,
        request: &JoinPayload<'_>,
    ) -> Result<Arc<Credential>, Refusal> {
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
        let replaces = self.find_channel(socket, &frame.topic).is_some();
        let is_full = |hub: &Self| hub.sockets[socket as usize].channels.len() >= hub.config.max_channels;
        if !replaces && is_full(self) {
            // A channel that was left a moment ago does not stand in the way.
            self.finish_leaves();
        }
        if !replaces && is_full(self) {
            return Err(Refusal::new(OperationalCode::ChannelRateLimitReached, "Too many channels"));
        }
        let credential = self.channel_credential(now, socket, request)?;
        if request.private {
            // Policies on realtime.messages are not evaluated yet; a private channel that nobody checked
            // would be a public one in disguise, so it stays closed.
            return Err(Refusal::new(
                OperationalCode::Unauthorized,
                &format!("You do not have permissions to read from this Channel topic: {sub_topic}"),
            ));
        }
        if request.replay.is_some() {
            return Err(Refusal {
                code: OperationalCode::UnableToReplayMessages,
                reason: "UnableToReplayMessages: Replay is not allowed for public channels".into(),
            });
        }
        if request.bindings.len() > self.config.max_bindings {
            let text = format!(
                "a channel may have at most {} postgres_changes bindings, this one asks for {}",
                self.config.max_bindings,
                request.bindings.len()
            );
            return Err(Refusal::new(OperationalCode::TooManyBindings, &text));
        }
        Ok(credential)
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
            Err(refusal) => Err(Refusal { code: refusal.code, reason: refusal.join_reason }),
        }
    }

    /// The error reply comes after a wait (§2.5), which is the brake on clients that retry in a loop.
    ///
    /// The channel that the join was to replace has ended nevertheless (§2.8), and its `phx_close` follows the
    /// reply as it would follow a good one.
    fn refuse(&mut self, now: Now, socket: u32, frame: &Frame<'_>, refusal: Refusal) {
        let old_close = self.find_channel(socket, &frame.topic).map(|old| {
            let close = self.take_channel(old);
            self.note_channel_ended(now, socket);
            close
        });
        let mut response = Vec::with_capacity(refusal.reason.len() + 16);
        response.extend_from_slice(b"{\"reason\":");
        json::write_string(&mut response, &refusal.reason);
        response.push(b'}');
        let response = String::from_utf8(response).expect("invariant: JSON writers emit UTF-8");
        let reply = self.reply_frame(
            socket,
            &frame.join_ref,
            &frame.reference,
            &frame.topic,
            Status::Error,
            &response,
        );
        self.report(refusal.code, socket, Some((*frame.topic).into()), refusal.reason);
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
            Timer::JoinRefusal { socket: id, frames },
        );
        owner.refusal_timers.push(timer);
    }

    pub(super) fn on_refusal_timer(&mut self, socket: SocketId, frames: Bytes) {
        let Some(owner) = self.socket_mut(socket) else { return };
        // The wait is the same for all, so this one is the oldest.
        owner.refusal_timers.remove(0);
        owner.refusal_bytes -= frames.len();
        self.push(socket.index, frames);
    }

    fn join(
        &mut self,
        now: Now,
        socket: u32,
        frame: &Frame<'_>,
        request: JoinPayload<'_>,
        credential: Arc<Credential>,
    ) {
        // The old incarnation ends first, but its `phx_close` follows the new reply (§2.8).
        let old_close = self.find_channel(socket, &frame.topic).map(|old| self.take_channel(old));

        for problem in &request.problems {
            let topic = Some((*frame.topic).into());
            self.report(OperationalCode::InvalidJoinPayload, socket, topic, problem.to_string());
        }
        let wants_state = request.presence_enabled.unwrap_or(false);
        let bindings = if request.legacy {
            vec![join::legacy_binding(topic::sub_topic(&frame.topic).unwrap_or_default())]
        } else {
            request.bindings
        };
        let response = join_response(&bindings);
        let topic_slot = self.topic_slot(&frame.topic);
        let id = ChannelId((u64::from(self.config.hub) << 48) | self.next_channel_serial);
        self.next_channel_serial += 1;
        let channel = Channel {
            id,
            socket,
            topic: topic_slot,
            member: self.topics[topic_slot as usize].members.len() as u32,
            sent_join_ref: (*frame.join_ref).into(),
            push_ref: if frame.join_ref == NULL { (*frame.reference).into() } else { Box::default() },
            credential: Arc::clone(&credential),
            presence_key: request.presence_key.unwrap_or_else(|| self.random.uuid()).into(),
            presence_window_start_ms: now.mono_ms,
            presence_calls: 0,
            token_timer: self.set_token_timer(now, id, &credential),
            wants_ack: request.ack,
            receives_own: request.receives_own,
            awaits_state: wants_state,
            is_tracked: false,
            has_bindings: !bindings.is_empty(),
            leaving: None,
        };
        let slot = self.channels.insert(channel) as u32;
        self.channel_slots.insert(id, slot);
        self.topics[topic_slot as usize].members.push(Member { socket, channel: slot });
        let owner = &mut self.sockets[socket as usize];
        owner.channels.push(slot);

        self.push_reply(socket, &frame.join_ref, &frame.reference, &frame.topic, Status::Ok, &response);
        if let Some(close) = old_close {
            self.push(socket, close);
        }
        let name = Arc::clone(&self.topics[topic_slot as usize].name);
        if !bindings.is_empty() {
            self.outputs.push_back(Output::Change(ChangeCommand::Subscribe {
                channel: id,
                topic: Arc::clone(&name),
                credential,
                is_legacy: request.legacy,
                bindings,
            }));
        }
        if wants_state {
            self.send_home(&name, PeerMessage::StateRequest { topic: Arc::clone(&name), channel: id });
        }
    }
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
