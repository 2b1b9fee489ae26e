//! What waits to be written to one socket.
//!
//! Frames are shared ([`Bytes`]); an outbox holds references, never copies. It is bounded in bytes. The
//! policy at the bound is the caller's: [`Outbox::push`] refuses, and the hub closes the slow reader.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// What a frame costs besides its bytes: its place in the queue, and for frames of one socket an allocation of
/// their own. Without it, pongs of two bytes would fill a bound of 16 MiB with a gigabyte.
pub(crate) const FRAME_COST_BYTES: usize = 64;

/// Places in the ring that a drained outbox keeps: one kilobyte.
const RESTING_FRAMES: usize = 32;

/// The bound was reached; the frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

/// Frames of one socket in writing order.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Bytes>,
    /// Bytes of the first frame that have been written already.
    written: usize,
    /// Bytes still to be written.
    pending: usize,
}

impl Outbox {
    /// Bytes still to be written.
    pub fn pending_bytes(&self) -> usize {
        self.pending
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames not written completely yet.
    pub(crate) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Appends a frame unless that would exceed `limit` bytes, every frame counted with what it costs to keep.
    /// A single frame always fits into an empty outbox, or a frame larger than the bound could never be sent
    /// at all.
    ///
    /// # Errors
    /// [`Overflow`]; the outbox is unchanged.
    pub fn push(&mut self, frame: Bytes, limit: usize) -> Result<(), Overflow> {
        let cost = self.frames.len().saturating_mul(FRAME_COST_BYTES);
        if self.pending.saturating_add(frame.len()).saturating_add(cost) > limit && !self.frames.is_empty() {
            return Err(Overflow);
        }
        self.pending += frame.len();
        self.frames.push_back(frame);
        Ok(())
    }

    /// Drops everything that has not been begun and appends a last frame. What is half written stays, or
    /// the peer would see a broken stream.
    pub fn truncate_with(&mut self, last: Bytes) {
        let begun = if self.written > 0 { 1 } else { 0 };
        self.frames.truncate(begun);
        self.pending = self.frames.front().map_or(0, |first| first.len() - self.written);
        self.pending += last.len();
        self.frames.push_back(last);
    }

    /// Fills `slices` with what to write next, for one vectored write. Returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slot, frame) in slices.iter_mut().zip(&self.frames) {
            let from = if filled == 0 { self.written } else { 0 };
            *slot = IoSlice::new(&frame[from..]);
            filled += 1;
        }
        filled
    }

    /// Forgets `count` written bytes.
    pub fn advance(&mut self, mut count: usize) {
        self.pending = self.pending.saturating_sub(count);
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.frames.pop_front();
        }
        // An idle socket shall cost little; a loaded one shall not grow its ring from nothing in every turn.
        self.frames.shrink_to(RESTING_FRAMES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(outbox: &Outbox) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 16];
        let filled = outbox.slices(&mut slices);
        slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn partial_writes_continue_where_they_stopped() {
        let mut outbox = Outbox::default();
        for frame in ["abc", "de", "fgh"] {
            outbox.push(Bytes::from_static(frame.as_bytes()), 1000).unwrap();
        }
        outbox.advance(4);
        assert_eq!(content(&outbox), b"efgh");
        assert_eq!(outbox.pending_bytes(), 4);
        outbox.advance(4);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_bound_refuses_but_one_large_frame_fits_alone() {
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"0123456789"), 4).unwrap();
        assert_eq!(outbox.push(Bytes::from_static(b"x"), 4), Err(Overflow));
    }

    #[test]
    fn truncation_keeps_the_half_written_frame() {
        let mut outbox = Outbox::default();
        for frame in ["abc", "de"] {
            outbox.push(Bytes::from_static(frame.as_bytes()), 1000).unwrap();
        }
        outbox.advance(1);
        outbox.truncate_with(Bytes::from_static(b"!"));
        assert_eq!(content(&outbox), b"bc!");
        assert_eq!(outbox.pending_bytes(), 3);
    }
}
