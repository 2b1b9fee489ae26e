//! The reading half of RFC 6455. Owns nothing but the fragments of an unfinished message; at rest it is three
//! words. Memory grows with bytes that arrived, never with bytes that were announced.
//!
//! ```text
//!            Text|Binary, FIN=0                 Continuation, FIN=1
//!   idle ─────────────────────────▶ collecting ─────────────────────▶ message, then idle
//!    │ Text|Binary, FIN=1 → message     │ Continuation, FIN=0 → Fragment
//!    │ Continuation → 1002              │ Text|Binary → 1002
//!    └ control → event                  └ control → event
//! ```

use super::{MASKED, MAX_CONTROL_BYTES, TOO_BIG, apply_mask, protocol};

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// Which end of the connection reads. RFC 6455 §5.1: clients mask, servers do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// Reads what a client sent: masked frames only.
    Server,
    /// Reads what a server sent: unmasked frames only.
    Client,
}

/// The peer broke the protocol: send a close frame with this code and end the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("websocket protocol violation ({code}): {reason}")]
pub struct ProtocolViolation {
    /// The close code to send: 1002 or 1009.
    pub code: u16,
    /// The reason to send with it.
    pub reason: &'static str,
}

/// What one frame means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A whole text message. UTF-8 is **not** validated.
    Text(&'a [u8]),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// Answer with a pong of the same payload.
    Ping(&'a [u8]),
    /// Nothing to do.
    Pong(&'a [u8]),
    /// The peer says goodbye: answer with a close and end the connection.
    Close {
        /// Absent if the frame was empty.
        code: Option<u16>,
        /// Not validated as UTF-8.
        reason: &'a [u8],
    },
    /// Part of a message was absorbed; nothing to hand on yet.
    Fragment,
}

/// One frame, and how much of the buffer it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded<'a> {
    /// Bytes to drop from the front of the buffer once the event has been handled.
    pub consumed: usize,
    /// What it means.
    pub event: Event<'a>,
}

/// Reads frames from the front of a buffer that the driver owns.
#[derive(Debug)]
pub struct Decoder {
    /// Boxed so that an idle decoder stays small; present only between the first and last fragment.
    message: Option<Box<Message>>,
    max_message_bytes: usize,
    role: Role,
}

#[derive(Debug)]
struct Message {
    is_text: bool,
    /// The last event was this message: release it at the next call.
    is_delivered: bool,
    bytes: Vec<u8>,
}

/// The fixed part of a frame, checked as far as it can be without context.
struct Header {
    is_final: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    header_len: usize,
    payload_len: usize,
}

impl Decoder {
    /// A decoder for one connection. `max_message_bytes` bounds one message, fragments together.
    pub fn new(role: Role, max_message_bytes: usize) -> Self {
        Decoder { message: None, max_message_bytes, role }
    }

    /// Reads the frame at the start of `buf`, unmasking it in place.
    ///
    /// `Ok(None)` means more bytes are needed: nothing was consumed or changed, call again with the same bytes and
    /// more. After `Ok(Some)` drop exactly `consumed` bytes before calling again; call until `Ok(None)`, which is
    /// also what releases the memory of a fragmented message.
    ///
    /// # Errors
    /// [`ProtocolViolation`] with code 1002, or 1009 as soon as a header announces more than the limit.
    pub fn decode<'a>(&'a mut self, buf: &'a mut [u8]) -> Result<Option<Decoded<'a>>, ProtocolViolation> {
        if self.message.as_ref().is_some_and(|message| message.is_delivered) {
            self.message = None;
        }
        let Some(&[first, second]) = buf.first_chunk::<2>() else { return Ok(None) };
        self.check_first_bytes(first, second)?;
        let Some(header) = Header::read(buf)? else { return Ok(None) };
        self.check_size(&header)?;

        let total = header.header_len.saturating_add(header.payload_len);
        let Some(payload) = buf.get_mut(header.header_len..total) else { return Ok(None) };
        if let Some(mask) = header.mask {
            apply_mask(payload, mask);
        }
        let event = self.event(header.opcode, header.is_final, payload)?;
        Ok(Some(Decoded { consumed: total, event }))
    }

    /// How many bytes the frame at the start of `buf` has in all, once its header is complete.
    ///
    /// This is what the peer *announces*: reserve towards it as bytes arrive, not at once. It says nothing about
    /// whether the frame is legal; [`Decoder::decode`] does, before the payload is there.
    pub fn needed(buf: &[u8]) -> Option<usize> {
        let header = Header::read(buf).ok().flatten()?;
        Some(header.header_len.saturating_add(header.payload_len))
    }

    /// Everything that two bytes can prove wrong, so that a bad peer is not waited for.
    fn check_first_bytes(&self, first: u8, second: u8) -> Result<(), ProtocolViolation> {
        if first & 0x70 != 0 {
            return Err(protocol("reserved bits are set"));
        }
        let is_final = first & 0x80 != 0;
        match first & 0x0f {
            CONTINUATION if self.message.is_none() => return Err(protocol("continuation without a message")),
            TEXT | BINARY if self.message.is_some() => return Err(protocol("new message inside a message")),
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG => {
                if !is_final {
                    return Err(protocol("fragmented control frame"));
                }
                if usize::from(second & 0x7f) > MAX_CONTROL_BYTES {
                    return Err(protocol("control frame too long"));
                }
            }
            _ => return Err(protocol("reserved opcode")),
        }
        match (self.role, second & MASKED != 0) {
            (Role::Server, false) => Err(protocol("client frame is not masked")),
            (Role::Client, true) => Err(protocol("server frame is masked")),
            (Role::Server, true) | (Role::Client, false) => Ok(()),
        }
    }

    fn check_size(&self, header: &Header) -> Result<(), ProtocolViolation> {
        if header.opcode & 0x8 != 0 {
            return Ok(());
        }
        let collected = self.message.as_ref().map_or(0, |message| message.bytes.len());
        if header.payload_len > self.max_message_bytes.saturating_sub(collected) {
            return Err(TOO_BIG);
        }
        Ok(())
    }

    fn event<'a>(
        &'a mut self,
        opcode: u8,
        is_final: bool,
        payload: &'a [u8],
    ) -> Result<Event<'a>, ProtocolViolation> {
        match opcode {
            TEXT if is_final => Ok(Event::Text(payload)),
            BINARY if is_final => Ok(Event::Binary(payload)),
            TEXT | BINARY => {
                let is_text = opcode == TEXT;
                let message = Message { is_text, is_delivered: false, bytes: payload.to_vec() };
                self.message = Some(Box::new(message));
                Ok(Event::Fragment)
            }
            PING => Ok(Event::Ping(payload)),
            PONG => Ok(Event::Pong(payload)),
            CLOSE => close_event(payload),
            _ => match self.message.as_mut() {
                None => Err(protocol("continuation without a message")),
                Some(message) => {
                    message.bytes.extend_from_slice(payload);
                    message.is_delivered = is_final;
                    match (is_final, message.is_text) {
                        (false, _) => Ok(Event::Fragment),
                        (true, true) => Ok(Event::Text(&message.bytes)),
                        (true, false) => Ok(Event::Binary(&message.bytes)),
                    }
                }
            },
        }
    }
}

impl Header {
    /// `Ok(None)` until the header is complete.
    fn read(buf: &[u8]) -> Result<Option<Header>, ProtocolViolation> {
        let Some(&[first, second]) = buf.first_chunk::<2>() else { return Ok(None) };
        let rest = &buf[2..];
        let (announced, length_len) = match second & 0x7f {
            126 => {
                let Some(bytes) = rest.first_chunk::<2>() else { return Ok(None) };
                let announced = u64::from(u16::from_be_bytes(*bytes));
                if announced < 126 {
                    return Err(protocol("length is not in its shortest form"));
                }
                (announced, 2)
            }
            127 => {
                let Some(bytes) = rest.first_chunk::<8>() else { return Ok(None) };
                let announced = u64::from_be_bytes(*bytes);
                if announced <= 0xffff || announced > i64::MAX as u64 {
                    return Err(protocol("length is not in its shortest form"));
                }
                (announced, 8)
            }
            short => (u64::from(short), 0),
        };
        let mask = if second & MASKED != 0 {
            let Some(mask) = rest[length_len..].first_chunk::<4>() else { return Ok(None) };
            Some(*mask)
        } else {
            None
        };
        Ok(Some(Header {
            is_final: first & 0x80 != 0,
            opcode: first & 0x0f,
            mask,
            header_len: 2 + length_len + if mask.is_some() { 4 } else { 0 },
            // Only a 32-bit host can fail here, and any length it cannot address is over every limit.
            payload_len: usize::try_from(announced).unwrap_or(usize::MAX),
        }))
    }
}

fn close_event(payload: &[u8]) -> Result<Event<'_>, ProtocolViolation> {
    match payload {
        [] => Ok(Event::Close { code: None, reason: &[] }),
        [_] => Err(protocol("close code is one byte long")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(protocol("illegal close code"));
            }
            Ok(Event::Close { code: Some(code), reason })
        }
    }
}

/// RFC 6455 §7.4 and the IANA registry: 1004 is reserved, 1005, 1006 and 1015 never travel.
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragmented_message_is_released_at_the_next_call() {
        let mut decoder = Decoder::new(Role::Client, 1_000);
        assert_eq!(decoder.decode(&mut b"\x01\x01a".to_vec()).unwrap().unwrap().event, Event::Fragment);
        assert_eq!(decoder.decode(&mut b"\x80\x01b".to_vec()).unwrap().unwrap().event, Event::Text(b"ab"));
        assert_eq!(decoder.decode(&mut []), Ok(None));
        assert!(decoder.message.is_none());
    }

    #[test]
    fn an_announced_fragment_costs_nothing_before_it_arrives() {
        let mut decoder = Decoder::new(Role::Client, 5_000_000);
        assert_eq!(decoder.decode(&mut b"\x02\x01a".to_vec()).unwrap().unwrap().event, Event::Fragment);
        // Four million bytes announced, ten of them there.
        let mut announced = b"\x80\x7f\0\0\0\0\0\x3d\x09\0".to_vec();
        assert_eq!(decoder.decode(&mut announced), Ok(None));
        assert!(decoder.message.is_some_and(|message| message.bytes.capacity() < 64));
    }
}
