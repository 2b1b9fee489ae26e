//! The id of a binding: a hash of its parameters that ignores key order and white space. Streams over the text, so
//! it costs no memory however large the object is.
//!
//! Not a defence against collisions: ids are looked up within one channel, so a client can only confuse itself.
//!
//! Spec: PROTOCOL.md §2.6. The function is frozen: nodes of different versions must agree.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// In `1..2^27`.
pub(super) fn id_of(raw: &str) -> u32 {
    let mut deserializer = serde_json::Deserializer::from_str(raw);
    // Beyond 128 levels, or with a lone surrogate, the text itself must do, white space and all.
    let hash = deserializer.deserialize_any(ValueHash).unwrap_or_else(|_| hash(b'?', raw.as_bytes()));
    let folded = (hash ^ (hash >> 32)) % ((1 << 27) - 1);
    u32::try_from(folded).expect("invariant: the remainder is below 2^27") + 1
}

/// FNV-1a of a tag and bytes, with the finisher of SplitMix64 so that sums of hashes do not cancel out.
fn hash(tag: u8, bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in std::iter::once(&tag).chain(bytes) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Order matters.
fn chain(first: u64, second: u64) -> u64 {
    mix(first.rotate_left(23) ^ second)
}

struct ValueHash;

impl<'de> DeserializeSeed<'de> for ValueHash {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueHash {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(hash(b'n', b""))
    }

    fn visit_bool<E>(self, value: bool) -> Result<u64, E> {
        Ok(hash(b'b', &[u8::from(value)]))
    }

    fn visit_u64<E>(self, value: u64) -> Result<u64, E> {
        Ok(hash(b'u', &value.to_le_bytes()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<u64, E> {
        Ok(hash(b'i', &value.to_le_bytes()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<u64, E> {
        Ok(hash(b'f', &value.to_bits().to_le_bytes()))
    }

    fn visit_str<E>(self, value: &str) -> Result<u64, E> {
        Ok(hash(b's', value.as_bytes()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<u64, A::Error> {
        let mut all = hash(b'a', b"");
        while let Some(element) = seq.next_element_seed(ValueHash)? {
            all = chain(all, element);
        }
        Ok(chain(all, hash(b']', b"")))
    }

    /// Entries are added up, so their order does not matter and none has to be kept. (A key that occurs twice counts
    /// twice: another text, another id, which is all the same to clients.)
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
        let mut all = hash(b'm', b"");
        while let Some(key) = map.next_key_seed(ValueHash)? {
            all = all.wrapping_add(chain(key, map.next_value_seed(ValueHash)?));
        }
        Ok(chain(all, hash(b'}', b"")))
    }
}
