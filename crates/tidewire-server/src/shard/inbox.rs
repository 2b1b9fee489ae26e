//! The way into a shard: a queue under a short lock, and one wake-up per batch.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ShardMessage;

/// The poll token of an inbox; connections use their index.
pub(super) const INBOX: mio::Token = mio::Token(usize::MAX);

/// Messages waiting above which producers stop reading their own input. A message is a reference to
/// shared bytes; 8,192 of them are drained in a few milliseconds, and a producer that ignored the bound
/// could grow memory without limit.
const CONGESTED: usize = 8_192;

#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Vec<ShardMessage>>,
    waiting: AtomicUsize,
    is_signalled: AtomicBool,
    connections: AtomicUsize,
    waker: mio::Waker,
}

impl Inbox {
    pub(super) fn new(registry: &mio::Registry) -> std::io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            is_signalled: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            waker: mio::Waker::new(registry, INBOX)?,
        })
    }

    /// Appends; wakes the shard unless a wake-up is under way already.
    pub(super) fn push(&self, message: ShardMessage) {
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(message);
            self.waiting.store(queue.len(), Ordering::Relaxed);
        }
        if !self.is_signalled.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake a shard");
        }
    }

    /// Swaps the waiting messages into `batch`, which must be empty.
    pub(super) fn take(&self, batch: &mut Vec<ShardMessage>) {
        // Cleared before the queue is read: a push behind this line signals again.
        self.is_signalled.store(false, Ordering::Release);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, batch);
        self.waiting.store(0, Ordering::Relaxed);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn is_congested(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > CONGESTED
    }

    pub(super) fn connection_count(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn forget_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
