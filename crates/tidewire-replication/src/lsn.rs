//! Positions in the write-ahead log.
//!
//! Owns the number and its textual form; knows nothing about sessions. Parsing fails with
//! [`ParseLsnError`]; nothing else here can fail.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, shown as Postgres shows it: `16/B374D848`.
///
/// Spec: PostgreSQL, "pg_lsn Type".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The invalid position `0/0`. As a start it means "where the slot stands".
    pub const ZERO: Lsn = Lsn(0);

    /// Whether this is `0/0`, which Postgres uses for "no position".
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

/// The text is not two hexadecimal numbers of at most eight digits with a slash between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a log position, expected something like 16/B374D848")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Lsn((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

/// `u32::from_str_radix` alone would also take a sign.
fn half(text: &str) -> Result<u32, ParseLsnError> {
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ParseLsnError);
    }
    u32::from_str_radix(text, 16).map_err(|_| ParseLsnError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_and_prints_as_postgres_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(format!("{lsn:?}"), "Lsn(16/B374D848)");
        assert_eq!("0/0".parse(), Ok(Lsn::ZERO));
        assert_eq!("ffffffff/FFFFFFFF".parse(), Ok(Lsn(u64::MAX)));
    }

    #[test]
    fn malformed_positions_are_refused() {
        for text in ["", "/", "1/", "/1", "1", "1/2/3", "+1/2", "1/-2", "123456789/0", "g/0", " 1/2"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text:?}");
        }
    }

    #[test]
    fn positions_order_by_log_order_not_by_text() {
        assert!("9/0".parse::<Lsn>().unwrap() < "10/0".parse::<Lsn>().unwrap());
    }
}
