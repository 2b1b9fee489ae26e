//! The mark inside every payload: when it should have been sent, by which stream, and its number there.
//!
//! It is plain ASCII of fixed length, so that it survives every serializer and a row of a table alike, and is
//! found again by one comparison at the place where the last one was.

/// Length of a mark in bytes.
pub(crate) const LEN: usize = 33;

const HEAD: &[u8] = b"tw~";

/// What a payload says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Intended send time, nanoseconds of the run's clock.
    pub(crate) at: u64,
    /// Stream: a topic, a writer or an owner.
    pub(crate) by: u16,
    /// Number within the stream, from 0.
    pub(crate) no: u32,
}

impl Stamp {
    /// Writes the mark over the first [`LEN`] bytes of `out`.
    pub(crate) fn write(self, out: &mut [u8]) {
        out[..3].copy_from_slice(HEAD);
        write_hex(&mut out[3..19], self.at);
        out[19] = b'-';
        write_hex(&mut out[20..24], u64::from(self.by));
        out[24] = b'-';
        write_hex(&mut out[25..33], u64::from(self.no));
    }

    /// Reads the mark at the start of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mark = bytes.first_chunk::<LEN>()?;
        if &mark[..3] != HEAD || mark[19] != b'-' || mark[24] != b'-' {
            return None;
        }
        let at = read_hex(&mark[3..19])?;
        let by = u16::try_from(read_hex(&mark[20..24])?).ok()?;
        let no = u32::try_from(read_hex(&mark[25..33])?).ok()?;
        Some(Self { at, by, no })
    }
}

/// Where the mark of `bytes` begins; `hint` is where the last one did.
pub(crate) fn find(bytes: &[u8], hint: usize) -> Option<usize> {
    if bytes.get(hint..).is_some_and(|rest| rest.starts_with(HEAD)) {
        return Some(hint);
    }
    bytes.windows(HEAD.len()).position(|window| window == HEAD)
}

fn write_hex(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    let mut value = 0;
    for &digit in digits {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(nibble);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_and_read_back() {
        let stamp = Stamp { at: 0x0123_4567_89ab_cdef, by: 0xbeef, no: 0xdead_0001 };
        let mut bytes = b"[null,{\"m\":\"".to_vec();
        let start = bytes.len();
        bytes.resize(start + LEN, 0);
        stamp.write(&mut bytes[start..]);
        bytes.extend_from_slice(b"xxx\"}]");
        for hint in [0, start, 1000] {
            assert_eq!(find(&bytes, hint), Some(start));
        }
        assert_eq!(Stamp::read(&bytes[start..]), Some(stamp));
        assert_eq!(Stamp::read(&bytes[start..start + LEN - 1]), None);
        assert_eq!(find(b"nothing here", 0), None);
    }
}
