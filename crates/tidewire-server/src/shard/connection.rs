//! One connection as its shard sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidewire_engine::SocketId;
use tidewire_protocol::websocket::Decoder;

/// Counts a connection from its acceptance to its end, whoever holds it.
#[derive(Debug)]
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// Counts one more, unless `limit` is reached.
    pub(crate) fn acquire(count: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::AcqRel);
        let permit = Self(Arc::clone(count));
        (before < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection: the socket, the decoder, and an incomplete frame if there is one.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: SocketId,
    pub(super) stream: mio::net::TcpStream,
    pub(super) decoder: Decoder,
    /// Bytes of a frame that has not arrived completely; no memory while there are none.
    pub(super) partial: Vec<u8>,
    /// The last write filled the socket's buffer; the poller tells when there is room.
    pub(super) is_blocked: bool,
    /// In the list of sockets to be read.
    pub(super) is_ready: bool,
    /// The peer has finished writing: read until the end, however short the reads.
    pub(super) is_read_closed: bool,
    /// The hub has ended it: write what is left, then shut down.
    pub(super) is_closing: bool,
    pub(super) is_shut_down: bool,
    pub(super) _permit: Permit,
}
