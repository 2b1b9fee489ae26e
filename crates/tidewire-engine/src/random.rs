//! Names that must be unique but not secret: presence refs and generated presence keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;

/// A small generator (SplitMix64) seeded by the driver. Not for secrets.
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
    hub: u16,
    counter: u32,
}

impl Random {
    pub(crate) fn new(seed: u64, hub: u16) -> Self {
        Self { state: seed, hub, counter: 0 }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 16 URL-safe characters from 12 bytes (`PROTOCOL.md` §4.4). The hub and a counter make two refs of
    /// one server differ whatever the seed; the rest tells servers and restarts apart.
    pub(crate) fn presence_ref(&mut self) -> String {
        let mut bytes = [0_u8; 12];
        bytes[..6].copy_from_slice(&self.next().to_be_bytes()[..6]);
        bytes[6..8].copy_from_slice(&self.hub.to_be_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
        URL_SAFE.encode(bytes)
    }

    /// A UUID (version 4 layout) for a client that did not choose a presence key.
    pub(crate) fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        let high = (high & !0xF000) | 0x4000;
        let low = (low & !(0b11 << 62)) | (0b10 << 62);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xFFFF,
            high & 0xFFFF,
            low >> 48,
            low & 0xFFFF_FFFF_FFFF
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_are_sixteen_characters_and_differ() {
        let mut random = Random::new(7, 3);
        let (a, b) = (random.presence_ref(), random.presence_ref());
        assert_eq!(a.len(), 16);
        assert_ne!(a, b);
    }

    #[test]
    fn generated_keys_look_like_version_four_uuids() {
        let uuid = Random::new(1, 0).uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"));
    }
}
