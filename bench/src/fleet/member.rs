//! One client: its socket, its decoder, and how far it has come.

use std::io::{ErrorKind, Write as _};

use mio::net::TcpStream;
use tidewire_protocol::frame::{self, Payload, Version};
use tidewire_protocol::websocket::{Decoder, Event, Opcode, Role as End, write_masked};

use super::Role;

/// Larger than any frame of a measurement.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;

/// How far a client has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Upgrading,
    Joining,
    /// Joined; the bindings are not live yet.
    Subscribing,
    Live,
    /// With the code of the close frame, if there was one.
    Ended(Option<u16>),
}

/// What became of the bytes that were read.
pub(super) enum Step {
    /// So many were used.
    Go {
        used: usize,
    },
    Ended,
}

pub(super) struct Member {
    pub(super) stream: Option<TcpStream>,
    pub(super) phase: Phase,
    /// A frame that has not arrived completely.
    pub(super) partial: Vec<u8>,
    pub(super) is_paused: bool,
    /// Why it ended, in the server's or the system's words.
    pub(super) complaint: String,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    is_blocked: bool,
    role: Option<Box<Role>>,
    version: Version,
}

impl Member {
    pub(super) fn new(
        stream: TcpStream,
        phase: Phase,
        first: &[u8],
        role: Option<Role>,
        version: Version,
    ) -> Self {
        let is_blocked = phase == Phase::Connecting;
        Self {
            stream: Some(stream),
            phase,
            partial: Vec::new(),
            is_paused: false,
            complaint: String::new(),
            decoder: Decoder::new(End::Client, MAX_MESSAGE),
            out: first.to_vec(),
            written: 0,
            is_blocked,
            role: role.map(Box::new),
            version,
        }
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Appends a frame; says whether the member must be flushed for it.
    pub(super) fn queue(&mut self, opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> bool {
        if self.stream.is_none() {
            return false;
        }
        let was_empty = self.out.is_empty();
        write_masked(&mut self.out, opcode, payload, mask);
        was_empty
    }

    pub(super) fn writable(&mut self) {
        if self.phase == Phase::Connecting {
            match self.stream.as_ref().map(TcpStream::take_error) {
                Some(Ok(None)) => self.phase = Phase::Upgrading,
                Some(Ok(Some(error)) | Err(error)) => {
                    self.complain(&error.to_string());
                    self.end(None);
                    return;
                }
                None => return,
            }
        }
        self.is_blocked = false;
        self.flush();
    }

    /// Writes what is queued. An error is not judged here: the next read finds the end of the stream and the
    /// close frame before it.
    pub(super) fn flush(&mut self) {
        let Some(stream) = self.stream.as_mut() else { return };
        while !self.is_blocked && self.written < self.out.len() {
            match stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_blocked = true,
                Err(_) => self.written = self.out.len(),
            }
        }
        if self.written == self.out.len() {
            self.written = 0;
            self.out.clear();
        }
    }

    pub(super) fn complain(&mut self, text: &str) {
        self.complaint = text.chars().take(300).collect();
    }

    /// Lets go of the socket.
    pub(super) fn end(&mut self, code: Option<u16>) {
        self.phase = Phase::Ended(code);
        self.stream = None;
        self.partial = Vec::new();
        self.out = Vec::new();
        self.written = 0;
    }

    /// Uses what was read; whole messages of a live member go to `deliver`.
    pub(super) fn take(&mut self, bytes: &mut [u8], mut deliver: impl FnMut(&[u8])) -> Step {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                return Step::Go { used };
            };
            used = end + 4;
            if !bytes.starts_with(b"HTTP/1.1 101") {
                let answer = String::from_utf8_lossy(bytes).into_owned();
                self.complain(&answer);
                self.end(None);
                return Step::Ended;
            }
            self.upgraded();
        }
        loop {
            // The decoder borrows what it returns, so what follows from an event is noted and done below.
            let (consumed, ended) = match self.decoder.decode(&mut bytes[used..]) {
                Ok(None) => return Step::Go { used },
                Ok(Some(decoded)) => {
                    let mut ended = None;
                    match decoded.event {
                        Event::Text(message) | Event::Binary(message) if self.phase == Phase::Live => {
                            deliver(message);
                        }
                        Event::Text(message) => {
                            match progress(&self.phase, self.role.as_deref(), self.version, message) {
                                Ok(phase) => self.phase = phase,
                                Err(complaint) => {
                                    self.complaint = complaint;
                                    ended = Some(None);
                                }
                            }
                        }
                        Event::Ping(payload) => write_masked(&mut self.out, Opcode::Pong, payload, [1; 4]),
                        Event::Close { code, .. } => ended = Some(code),
                        Event::Binary(_) | Event::Pong(_) | Event::Fragment => {}
                    }
                    (decoded.consumed, ended)
                }
                Err(violation) => {
                    self.complaint = violation.to_string();
                    (0, Some(None))
                }
            };
            used += consumed;
            if let Some(code) = ended {
                self.end(code);
                return Step::Ended;
            }
        }
    }

    fn upgraded(&mut self) {
        let Some(role) = &self.role else { return };
        if role.topic.is_empty() {
            self.phase = Phase::Live;
            return;
        }
        let mut text = Vec::new();
        frame::write_client_text(
            &mut text,
            self.version,
            "\"1\"",
            "\"1\"",
            &role.topic,
            "phx_join",
            &role.join,
        );
        write_masked(&mut self.out, Opcode::Text, &text, [7; 4]);
        self.phase = Phase::Joining;
    }
}

/// Where a message leads a client that is not live yet.
fn progress(phase: &Phase, role: Option<&Role>, version: Version, message: &[u8]) -> Result<Phase, String> {
    let Ok(frame) = frame::decode_text(version, message) else { return Ok(phase.clone()) };
    let Payload::Json(payload) = frame.payload else { return Ok(phase.clone()) };
    let is_ok = payload.contains(r#""status":"ok""#);
    match (phase, &*frame.event) {
        (Phase::Joining, "phx_reply") if is_ok => {
            let has_bindings = role.is_some_and(|role| role.has_bindings);
            Ok(if has_bindings { Phase::Subscribing } else { Phase::Live })
        }
        (Phase::Subscribing, "system") if is_ok => Ok(Phase::Live),
        (Phase::Joining, "phx_reply") | (Phase::Subscribing, "system") | (_, "phx_close" | "phx_error") => {
            Err(format!("{} {payload}", frame.event))
        }
        _ => Ok(phase.clone()),
    }
}
