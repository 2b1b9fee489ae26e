//! A raw client of the Phoenix protocol: handshake by hand, frames as they come.
//!
//! It owns one socket and the frames that nobody has asked for yet, in the order they came. It never
//! answers or sends anything by itself. Asking for a frame looks among those first and then reads on, at
//! most for [`DEADLINE`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use serde_json::{Value, json};
use tidewire_protocol::frame::{self, ServerFrame};
use tidewire_protocol::websocket::{self, Decoder, Event, Opcode, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub use tidewire_protocol::frame::Version;

use crate::DEADLINE;

/// Larger than any frame a test provokes.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Room for one read.
const READ_BYTES: usize = 64 * 1024;

/// Any mask will do: it protects proxies, and there is none.
const MASK: [u8; 4] = [0x3a, 0x5c, 0x91, 0xe7];

/// A text frame of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Always null in V1.
    pub join_ref: Value,
    /// Null on what is not a reply or a control event.
    pub reference: Value,
    /// Prefix included.
    pub topic: String,
    /// For example `phx_reply`.
    pub event: String,
    /// The payload; of a binary broadcast `{"type","event","payload"}`, as the text form has it.
    pub payload: Value,
}

/// One connection. Dropping it cuts the connection without a goodbye.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    version: Version,
    decoder: Decoder,
    bytes: BytesMut,
    inbox: VecDeque<Frame>,
    next_ref: u64,
    /// Join refs by topic.
    joined: HashMap<String, Value>,
    /// The code of the close frame, once the connection has ended; `None` inside = cut without one.
    closed: Option<Option<u16>>,
}

impl Client {
    /// Connects with a token as `apikey`.
    ///
    /// # Panics
    /// If the handshake is refused.
    pub async fn connect(address: SocketAddr, token: &str, version: Version) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("nodelay");
        let vsn = if version == Version::V1 { "1.0.0" } else { "2.0.0" };
        let request = format!(
            "GET /realtime/v1/websocket?apikey={token}&vsn={vsn} HTTP/1.1\r\nHost: localhost\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("the request is sent");
        let mut bytes = BytesMut::new();
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break bytes.split_to(end + 4);
            }
            let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut bytes)).await;
            assert!(read.expect("an answer in time").expect("an answer") > 0, "closed during the handshake");
        };
        let head = String::from_utf8_lossy(&head);
        assert!(head.starts_with("HTTP/1.1 101 "), "the handshake was refused: {head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "wrong accept key: {head}");
        Self {
            stream,
            version,
            decoder: Decoder::new(Role::Client, MAX_MESSAGE_BYTES),
            bytes,
            inbox: VecDeque::new(),
            next_ref: 1,
            joined: HashMap::new(),
            closed: None,
        }
    }

    /// Sends a frame as it is and returns its ref, a fresh one.
    ///
    /// # Panics
    /// If the connection has ended.
    pub async fn push(&mut self, join_ref: &Value, topic: &str, event: &str, payload: &Value) -> Value {
        let reference = json!(self.next_ref.to_string());
        self.next_ref += 1;
        let mut text = Vec::new();
        frame::write_client_text(
            &mut text,
            self.version,
            &join_ref.to_string(),
            &reference.to_string(),
            topic,
            event,
            &payload.to_string(),
        );
        let mut bytes = Vec::new();
        websocket::write_masked(&mut bytes, Opcode::Text, &text, MASK);
        self.stream.write_all(&bytes).await.expect("the connection takes a frame");
        reference
    }

    /// The next frame, whatever it is; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        match self.inbox.pop_front() {
            Some(frame) => Some(frame),
            None => self.read().await,
        }
    }

    /// The first frame that is wanted. All others stay, in their order.
    ///
    /// # Panics
    /// If it does not come in time; `what` says what was missing.
    pub async fn expect(&mut self, what: &str, mut wanted: impl FnMut(&Frame) -> bool) -> Frame {
        if let Some(position) = self.inbox.iter().position(&mut wanted) {
            return self.inbox.remove(position).expect("invariant: the position was found just now");
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            match tokio::time::timeout_at(deadline, self.read()).await {
                Ok(Some(frame)) if wanted(&frame) => return frame,
                Ok(Some(frame)) => self.inbox.push_back(frame),
                Ok(None) => panic!("the connection ended ({:?}) before {what}; {}", self.closed, self.rest()),
                Err(_) => panic!("waited in vain for {what}; {}", self.rest()),
            }
        }
    }

    fn rest(&self) -> String {
        let last: Vec<_> = self.inbox.iter().rev().take(5).rev().collect();
        format!("{} other frames, the last: {last:#?}", self.inbox.len())
    }

    /// Frames that have come and that nobody has asked for.
    #[must_use]
    pub fn unread(&self) -> Vec<&Frame> {
        self.inbox.iter().collect()
    }

    /// Reads until the server ends the connection, and returns the close code it gave, if any.
    ///
    /// # Panics
    /// If it does not end in time.
    pub async fn close_code(&mut self) -> Option<u16> {
        let deadline = Instant::now() + DEADLINE;
        while self.closed.is_none() {
            match tokio::time::timeout_at(deadline, self.read()).await {
                Ok(Some(frame)) => self.inbox.push_back(frame),
                Ok(None) => {}
                Err(_) => panic!("the connection did not end"),
            }
        }
        self.closed.flatten()
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.take() {
                if let Some(frame) = frame {
                    return Some(frame);
                }
            }
            if self.closed.is_some() {
                return None;
            }
            self.bytes.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => {
                    self.closed = Some(None);
                    return None;
                }
            }
        }
    }

    /// The next WebSocket frame of the buffer: outer `None` = incomplete, inner `None` = not for the caller.
    fn take(&mut self) -> Option<Option<Frame>> {
        if self.closed.is_some() {
            return None;
        }
        let decoded = self.decoder.decode(&mut self.bytes).expect("the server keeps to RFC 6455")?;
        let consumed = decoded.consumed;
        let frame = match decoded.event {
            Event::Text(bytes) => Some(text_frame(self.version, bytes)),
            Event::Binary(bytes) => Some(binary_frame(bytes)),
            Event::Close { code, .. } => {
                self.closed = Some(code);
                None
            }
            Event::Ping(_) | Event::Pong(_) | Event::Fragment => None,
        };
        self.bytes.advance(consumed);
        Some(frame)
    }

    // ── channels ────────────────────────────────────────────────────────────────────────────────────

    /// Joins, and returns the response of the ok reply.
    ///
    /// # Panics
    /// If the join is refused.
    pub async fn join(&mut self, topic: &str, payload: &Value) -> Value {
        let join_ref = json!(self.next_ref.to_string());
        let reference = self.push(&join_ref, topic, "phx_join", payload).await;
        self.joined.insert(topic.to_owned(), join_ref);
        let reply = self.reply(&reference).await;
        assert_eq!(reply["status"], "ok", "join of {topic}: {reply}");
        reply["response"].clone()
    }

    /// Joins with bindings and returns their ids, in join order.
    pub async fn join_changes(&mut self, topic: &str, bindings: &Value) -> Vec<u64> {
        let response = self.join(topic, &json!({"config": {"postgres_changes": bindings}})).await;
        let bindings = response["postgres_changes"].as_array().cloned().unwrap_or_default();
        bindings.iter().map(|binding| binding["id"].as_u64().expect("an id")).collect()
    }

    /// Joins with bindings and waits until they are live. Returns their ids, in join order.
    pub async fn listen(&mut self, topic: &str, bindings: &Value) -> Vec<u64> {
        let ids = self.join_changes(topic, bindings).await;
        self.subscribed(topic).await;
        ids
    }

    /// Leaves, and waits for the channel's end.
    pub async fn leave(&mut self, topic: &str) {
        let join_ref = self.joined.remove(topic).unwrap_or_default();
        let reference = self.push(&join_ref, topic, "phx_leave", &json!({})).await;
        self.reply(&reference).await;
        self.expect("phx_close", |frame| frame.topic == topic && frame.event == "phx_close").await;
    }

    /// The payload of the reply to a push.
    pub async fn reply(&mut self, reference: &Value) -> Value {
        let is_reply = |frame: &Frame| frame.event == "phx_reply" && frame.reference == *reference;
        self.expect("a reply", is_reply).await.payload
    }

    /// One heartbeat there and back.
    pub async fn heartbeat(&mut self) {
        let reference = self.push(&Value::Null, "phoenix", "heartbeat", &json!({})).await;
        self.reply(&reference).await;
    }

    /// The next `system` message of a topic, as (status, message).
    pub async fn system(&mut self, topic: &str) -> (String, String) {
        let is_system = |frame: &Frame| frame.topic == topic && frame.event == "system";
        let payload = self.expect("a system message", is_system).await.payload;
        let text = |key: &str| payload[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("message"))
    }

    /// The next `system` message, which must say that changes flow.
    ///
    /// # Panics
    /// If it says something else.
    pub async fn subscribed(&mut self, topic: &str) {
        let message = self.system(topic).await;
        assert_eq!(message, ("ok".into(), "Subscribed to PostgreSQL".into()), "on {topic}");
    }

    /// The next `system` message, which must be an error. Returns its text.
    ///
    /// # Panics
    /// If it says something else.
    pub async fn failure(&mut self, topic: &str) -> String {
        let (status, message) = self.system(topic).await;
        assert_eq!(status, "error", "on {topic}: {message}");
        message
    }

    /// The payload of the next `postgres_changes` frame of a topic.
    pub async fn change(&mut self, topic: &str) -> Value {
        let is_change = |frame: &Frame| frame.topic == topic && frame.event == "postgres_changes";
        self.expect("a change", is_change).await.payload
    }

    /// The `data` of all changes of a topic, up to and without the first that is the wanted one.
    pub async fn changes_until(&mut self, topic: &str, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut changes = Vec::new();
        loop {
            let data = self.change(topic).await["data"].take();
            if last(&data) {
                return changes;
            }
            changes.push(data);
        }
    }

    /// Whether some frame of this topic and event has come and was not asked for.
    #[must_use]
    pub fn has_unread(&self, topic: &str, event: &str) -> bool {
        self.inbox.iter().any(|frame| frame.topic == topic && frame.event == event)
    }
}

fn text_frame(version: Version, bytes: &[u8]) -> Frame {
    let value: Value = serde_json::from_slice(bytes).expect("a text frame is JSON");
    let field = |position: usize, name: &str| match version {
        Version::V1 => value[name].clone(),
        Version::V2 => value[position].clone(),
    };
    let text = |value: Value| value.as_str().expect("topic and event are strings").to_owned();
    Frame {
        join_ref: field(0, "join_ref"),
        reference: field(1, "ref"),
        topic: text(field(2, "topic")),
        event: text(field(3, "event")),
        payload: field(4, "payload"),
    }
}

fn binary_frame(bytes: &[u8]) -> Frame {
    let decoded = frame::decode_server_binary(bytes).expect("a binary frame of a known kind");
    let ServerFrame::UserBroadcast { topic, broadcast } = decoded else {
        panic!("official clients cannot read {decoded:?}");
    };
    let payload = serde_json::from_slice(broadcast.payload).unwrap_or_else(|_| json!(broadcast.payload));
    Frame {
        join_ref: Value::Null,
        reference: Value::Null,
        topic: topic.to_owned(),
        event: "broadcast".to_owned(),
        payload: json!({"type": "broadcast", "event": broadcast.event, "payload": payload}),
    }
}
