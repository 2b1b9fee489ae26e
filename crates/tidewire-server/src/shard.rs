//! Shards: one event loop per core. A connection lives on one shard for life.
//!
//! A shard owns its sockets and a [`tidewire_engine::Hub`]. It moves bytes and holds no opinions: what a
//! frame means, who gets what and when a socket ends is decided in the hub. Others reach a shard only
//! through its [`Inbox`].
//!
//! A turn is *drain, mark, flush*: everything that is waiting (inbox, readable sockets, deadlines) is
//! handled first, which appends shared frames to outboxes; then each socket with something to say gets
//! one vectored write. Idle, nothing waits for a batch; loaded, frames coalesce by themselves.
//!
//! At rest a connection costs its descriptor, its decoder (no buffer) and its entry in the hub. Bytes are
//! read into one scratch buffer of the shard; only an incomplete frame is kept by the connection.

mod connection;
mod event_loop;
mod inbox;
mod reports;

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tidewire_engine::{Answer, AskId, Drain, HubConfig, PeerMessage, SocketInfo, VerifyToken};

pub(crate) use connection::Permit;
use event_loop::EventLoop;
use inbox::Inbox;

use crate::access::Access;
use crate::changes::ChangeSender;
use crate::metrics::Metrics;

/// A connection whose handshake has succeeded.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// The socket, nonblocking.
    pub(crate) stream: std::net::TcpStream,
    /// Bytes that arrived behind the handshake.
    pub(crate) early: Bytes,
    /// Version and credential.
    pub(crate) info: SocketInfo,
    /// Counts this connection for as long as it lives.
    pub(crate) permit: Permit,
}

/// What a shard can be told.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    Adopt(Box<Handoff>),
    Peer(PeerMessage),
    Answer(AskId, Answer),
    Drain(Drain),
    Stop,
}

/// All shards of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shards {
    inboxes: Arc<[Arc<Inbox>]>,
    metrics: Arc<Metrics>,
}

/// The threads behind [`Shards`].
#[derive(Debug)]
pub(crate) struct ShardThreads(Vec<JoinHandle<()>>);

impl Shards {
    /// Starts one thread per hub configuration.
    ///
    /// # Errors
    /// When the system has no poller or thread for us.
    pub(crate) fn start(
        configs: Vec<HubConfig>,
        verifier: &Arc<dyn VerifyToken>,
        changes: &ChangeSender,
        access: &Access,
    ) -> std::io::Result<(Self, ShardThreads)> {
        let mut polls = Vec::with_capacity(configs.len());
        let mut inboxes = Vec::with_capacity(configs.len());
        for _ in &configs {
            let poll = mio::Poll::new()?;
            inboxes.push(Arc::new(Inbox::new(poll.registry())?));
            polls.push(poll);
        }
        let metrics = Arc::new(Metrics::new(inboxes.len()));
        let shards = Self { inboxes: inboxes.into(), metrics };
        let mut threads = Vec::with_capacity(configs.len());
        for (config, poll) in configs.into_iter().zip(polls) {
            let name = format!("shard-{}", config.hub);
            let event_loop = EventLoop::new(
                config,
                poll,
                shards.clone(),
                Arc::clone(verifier),
                changes.clone(),
                access.clone(),
            );
            threads.push(std::thread::Builder::new().name(name).spawn(move || event_loop.run())?);
        }
        Ok((shards, ShardThreads(threads)))
    }

    /// Hands a connection to the shard with the fewest.
    pub(crate) fn adopt(&self, handoff: Handoff) {
        if let Some(inbox) = self.inboxes.iter().min_by_key(|inbox| inbox.connection_count()) {
            inbox.count_connection();
            inbox.push(ShardMessage::Adopt(Box::new(handoff)));
        }
    }

    /// To one hub.
    pub(crate) fn send(&self, hub: u16, message: PeerMessage) {
        if let Some(inbox) = self.inboxes.get(usize::from(hub)) {
            inbox.push(ShardMessage::Peer(message));
        }
    }

    /// An answer to a question of a hub.
    pub(crate) fn answer(&self, hub: u16, id: AskId, answer: Answer) {
        if let Some(inbox) = self.inboxes.get(usize::from(hub)) {
            inbox.push(ShardMessage::Answer(id, answer));
        }
    }

    /// To every hub but one.
    pub(crate) fn send_to_others(&self, except: u16, message: &PeerMessage) {
        for (hub, inbox) in self.inboxes.iter().enumerate() {
            if hub != usize::from(except) {
                inbox.push(ShardMessage::Peer(message.clone()));
            }
        }
    }

    /// To every hub.
    pub(crate) fn send_to_all(&self, message: &PeerMessage) {
        for inbox in self.inboxes.iter() {
            inbox.push(ShardMessage::Peer(message.clone()));
        }
    }

    /// What the server counts.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Messages that no shard has taken yet.
    pub(crate) fn waiting_messages(&self) -> u64 {
        self.inboxes.iter().map(|inbox| inbox.waiting() as u64).sum()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// Whether some shard is behind. Whoever produces messages for shards stops reading its own input
    /// while this is true: that is the bound of the inboxes.
    pub(crate) fn is_congested(&self) -> bool {
        self.inboxes.iter().any(|inbox| inbox.is_congested())
    }

    /// Waits until no shard is behind.
    pub(crate) async fn uncongested(&self) {
        while self.is_congested() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn drain(&self, step: Drain) {
        for inbox in self.inboxes.iter() {
            inbox.push(ShardMessage::Drain(step));
        }
    }

    pub(crate) fn stop(&self) {
        for inbox in self.inboxes.iter() {
            inbox.push(ShardMessage::Stop);
        }
    }
}

impl ShardThreads {
    /// Waits for the threads to end; blocking.
    pub(crate) fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a shard thread panicked");
            }
        }
    }
}
