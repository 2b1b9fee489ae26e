//! The key set of a tenant: parsed and checked once, when the server reads it.
//!
//! Owns what a key is allowed to be. A key that would weaken verification (short or even RSA moduli, exponents out of
//! bounds, points that are not on their curve, points of small order) is an error of the operator and is refused with
//! the place where it stands, never with what it is. Keys that no token can use with us (no `kid`, a kind we do not
//! know) are set aside and told, as RFC 7517 §5 wants it.
//!
//! Keys are kept apart by kind, and the algorithm of the token says in which kind its `kid` is looked up. So `kty` fits
//! by construction: a public key can never be found where a shared secret is wanted.
//!
//! Spec: PROTOCOL.md §6.1; RFC 7517, RFC 7518 §6, RFC 8037.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::refusal::cut_kid;

/// Why the keys or rules of a tenant cannot be used. Never holds key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither a secret nor one usable key: no token could ever verify.
    #[error("neither a secret nor a key set with a usable key is given")]
    Nothing,
    /// The key set is not JSON. The text itself may hold secrets and is not repeated.
    #[error("key set is not json (line {line}, column {column})")]
    NotJson {
        /// Line of the text, from 1.
        line: usize,
        /// Column in that line, from 1.
        column: usize,
    },
    /// The key set is JSON of another shape.
    #[error("key set is not an object with an array `keys` of objects")]
    NotAKeySet,
    /// One key is not usable as it is written.
    #[error("key {index}{} of the key set: {problem}", named(kid.as_deref()))]
    Key {
        /// Position in the array `keys`, from 0.
        index: usize,
        /// Its `kid`, cut to a bound.
        kid: Option<String>,
        /// What is wrong with it.
        problem: KeyProblem,
    },
    /// The claim validators are not a JSON object.
    #[error("claim validators are not a json object")]
    ClaimValidators,
}

/// What is wrong with one key of a key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyProblem {
    /// A member that this kind of key needs.
    #[error("member `{0}` is missing or not a string")]
    Member(&'static str),
    /// A member that is not base64url.
    #[error("member `{0}` is not base64url")]
    Base64(&'static str),
    /// Shared secrets follow the rule for the tenant's secret.
    #[error("secret has {bytes} bytes, at least {MIN_SECRET_BYTES} are needed")]
    SecretSize {
        /// Bytes it has.
        bytes: usize,
    },
    /// RSA modulus out of bounds.
    #[error("rsa modulus has {bits} bits, {MIN_RSA_BITS} to {MAX_RSA_BITS} are allowed")]
    ModulusSize {
        /// Bits it has.
        bits: usize,
    },
    /// No product of two large primes is even.
    #[error("rsa modulus is even")]
    ModulusEven,
    /// RSA exponent out of bounds.
    #[error("rsa exponent is not an odd number between 3 and 2^33")]
    Exponent,
    /// Coordinates are exactly as long as the field of the curve.
    #[error("member `{member}` has {bytes} bytes where the curve has {wanted}")]
    CoordinateSize {
        /// `x` or `y`.
        member: &'static str,
        /// Bytes it has.
        bytes: usize,
        /// Bytes that the curve wants.
        wanted: usize,
    },
    /// The numbers are no point of the curve.
    #[error("point is not on the curve")]
    NotOnCurve,
    /// Signatures for such a key can be made by anyone.
    #[error("point has a small order")]
    SmallOrder,
    /// The cryptography below refuses it for a reason of its own.
    #[error("key is not usable")]
    Unusable,
}

fn named(kid: Option<&str>) -> String {
    kid.map(|kid| format!(" (kid {kid:?})")).unwrap_or_default()
}

/// As for the tenant's secret. HS256 is worth no more than its key is hard to guess. Spec: RFC 7518 §3.2.
const MIN_SECRET_BYTES: usize = 32;
/// Below, RSA is within reach of well-funded people. Spec: RFC 7518 §3.3.
const MIN_RSA_BITS: usize = 2048;
/// Above, one verification costs milliseconds and a token becomes a weapon.
const MAX_RSA_BITS: usize = 8192;
/// The bound of the usual libraries: larger exponents make verification slow and are used by nobody.
const MAX_RSA_EXPONENT: u64 = (1 << 33) - 1;

/// Asymmetric algorithms, by their registered names. Each says which kind of key and which hash, nothing is negotiable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asymmetric {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    /// `EdDSA`, and `Ed25519` of RFC 9864.
    Ed25519,
    /// Known by name, so that the answer names the key id; there is no key for it, see [`super`].
    Ed448,
}

impl Asymmetric {
    pub(super) fn named(alg: &str) -> Option<Self> {
        Some(match alg {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" | "Ed25519" => Self::Ed25519,
            "Ed448" => Self::Ed448,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

struct RsaKey {
    sha256: ParsedPublicKey,
    sha384: ParsedPublicKey,
    sha512: ParsedPublicKey,
}

struct EcKey {
    curve: Curve,
    key: ParsedPublicKey,
}

/// Keys by kind and id. Spec: PROTOCOL.md §6.1, first table.
#[derive(Default)]
pub(super) struct KeySet {
    oct: BTreeMap<String, Vec<u8>>,
    rsa: BTreeMap<String, RsaKey>,
    ec: BTreeMap<String, EcKey>,
    okp: BTreeMap<String, ParsedPublicKey>,
    ignored: Vec<String>,
}

impl KeySet {
    pub(super) fn parse(json: &str) -> Result<Self, KeyError> {
        let set: Value = serde_json::from_str(json)
            .map_err(|error| KeyError::NotJson { line: error.line(), column: error.column() })?;
        let entries = set.get("keys").and_then(Value::as_array).ok_or(KeyError::NotAKeySet)?;
        let mut keys = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            let entry = entry.as_object().ok_or(KeyError::NotAKeySet)?;
            let kid = entry.get("kid").and_then(Value::as_str);
            match keys.add(entry, kid) {
                Ok(None) => {}
                Ok(Some(why)) => {
                    let name = named(kid.map(cut_kid).as_deref());
                    keys.ignored.push(format!("key {index}{name} of the key set: {why}"));
                }
                Err(problem) => {
                    return Err(KeyError::Key { index, kid: kid.map(cut_kid), problem });
                }
            }
        }
        Ok(keys)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.oct.is_empty() && self.rsa.is_empty() && self.ec.is_empty() && self.okp.is_empty()
    }

    pub(super) fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// The shared secret with this id.
    pub(super) fn secret(&self, kid: &str) -> Option<&[u8]> {
        self.oct.get(kid).map(Vec::as_slice)
    }

    /// The public key with this id, if it is of the kind and on the curve that the algorithm wants.
    pub(super) fn public(&self, algorithm: Asymmetric, kid: &str) -> Option<&ParsedPublicKey> {
        let on = |curve| self.ec.get(kid).filter(|key| key.curve == curve).map(|key| &key.key);
        match algorithm {
            Asymmetric::Rs256 => self.rsa.get(kid).map(|key| &key.sha256),
            Asymmetric::Rs384 => self.rsa.get(kid).map(|key| &key.sha384),
            Asymmetric::Rs512 => self.rsa.get(kid).map(|key| &key.sha512),
            Asymmetric::Es256 => on(Curve::P256),
            Asymmetric::Es384 => on(Curve::P384),
            Asymmetric::Es512 => on(Curve::P521),
            Asymmetric::Ed25519 => self.okp.get(kid),
            Asymmetric::Ed448 => None,
        }
    }

    /// `Some` is the reason why the key was set aside. Its `alg`, `use` and private members are not looked at.
    fn add(
        &mut self,
        entry: &Map<String, Value>,
        kid: Option<&str>,
    ) -> Result<Option<&'static str>, KeyProblem> {
        let text = |member: &str| entry.get(member).and_then(Value::as_str);
        let Some(kid) = kid else { return Ok(Some("it has no `kid`, so no token can name it")) };
        // Of two keys of one kind with one id the reference takes the first.
        let is_known = |known: bool| known.then_some("an earlier key of this type has the same `kid`");
        match text("kty").ok_or(KeyProblem::Member("kty"))? {
            "oct" => {
                let secret = bytes(entry, "k")?;
                if secret.len() < MIN_SECRET_BYTES {
                    return Err(KeyProblem::SecretSize { bytes: secret.len() });
                }
                let ignored = is_known(self.oct.contains_key(kid));
                self.oct.entry(kid.to_owned()).or_insert(secret);
                Ok(ignored)
            }
            "RSA" => {
                let key = rsa_key(&bytes(entry, "n")?, &bytes(entry, "e")?)?;
                let ignored = is_known(self.rsa.contains_key(kid));
                self.rsa.entry(kid.to_owned()).or_insert(key);
                Ok(ignored)
            }
            "EC" => {
                let curve = match text("crv").ok_or(KeyProblem::Member("crv"))? {
                    "P-256" => Curve::P256,
                    "P-384" => Curve::P384,
                    "P-521" => Curve::P521,
                    _ => return Ok(Some("its curve is not supported")),
                };
                let key = EcKey { curve, key: ec_key(curve, &bytes(entry, "x")?, &bytes(entry, "y")?)? };
                let ignored = is_known(self.ec.contains_key(kid));
                self.ec.entry(kid.to_owned()).or_insert(key);
                Ok(ignored)
            }
            "OKP" => {
                if text("crv").ok_or(KeyProblem::Member("crv"))? != "Ed25519" {
                    return Ok(Some("its curve is not supported"));
                }
                let key = ed25519_key(&bytes(entry, "x")?)?;
                let ignored = is_known(self.okp.contains_key(kid));
                self.okp.entry(kid.to_owned()).or_insert(key);
                Ok(ignored)
            }
            _ => Ok(Some("its key type is not supported")),
        }
    }
}

/// Padding is forgiven: it is wrong, common, and changes nothing.
fn bytes(entry: &Map<String, Value>, member: &'static str) -> Result<Vec<u8>, KeyProblem> {
    let text = entry.get(member).and_then(Value::as_str).ok_or(KeyProblem::Member(member))?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| KeyProblem::Base64(member))
}

fn rsa_key(n: &[u8], e: &[u8]) -> Result<RsaKey, KeyProblem> {
    let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(KeyProblem::ModulusSize { bits });
    }
    if n.last().is_none_or(|last| last % 2 == 0) {
        return Err(KeyProblem::ModulusEven);
    }
    let is_short = e.len() <= size_of::<u64>();
    let exponent = e.iter().take(size_of::<u64>()).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    if !is_short || exponent % 2 == 0 || !(3..=MAX_RSA_EXPONENT).contains(&exponent) {
        return Err(KeyProblem::Exponent);
    }
    let key = RsaPublicKeyComponents { n, e };
    let with = |hash| key.to_parsed_public_key(hash).map_err(|_| KeyProblem::Unusable);
    Ok(RsaKey {
        sha256: with(&RSA_PKCS1_2048_8192_SHA256)?,
        sha384: with(&RSA_PKCS1_2048_8192_SHA384)?,
        sha512: with(&RSA_PKCS1_2048_8192_SHA512)?,
    })
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

fn ec_key(curve: Curve, x: &[u8], y: &[u8]) -> Result<ParsedPublicKey, KeyProblem> {
    let (algorithm, wanted) = match curve {
        Curve::P256 => (&ECDSA_P256_SHA256_FIXED, 32),
        Curve::P384 => (&ECDSA_P384_SHA384_FIXED, 48),
        Curve::P521 => (&ECDSA_P521_SHA512_FIXED, 66),
    };
    for (member, coordinate) in [("x", x), ("y", y)] {
        if coordinate.len() != wanted {
            return Err(KeyProblem::CoordinateSize { member, bytes: coordinate.len(), wanted });
        }
    }
    // Uncompressed, as SEC 1 §2.3.3 writes a point. Parsing checks that it is on the curve.
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(algorithm, point).map_err(|_| KeyProblem::NotOnCurve)
}

fn ed25519_key(x: &[u8]) -> Result<ParsedPublicKey, KeyProblem> {
    let wanted = 32;
    let point: [u8; 32] =
        x.try_into().map_err(|_| KeyProblem::CoordinateSize { member: "x", bytes: x.len(), wanted })?;
    if has_small_order(&point) {
        return Err(KeyProblem::SmallOrder);
    }
    ParsedPublicKey::new(&ED25519, point).map_err(|_| KeyProblem::NotOnCurve)
}

/// With a key whose order divides eight, one signature fits one message in eight, or all of them.
///
/// All points of small order have one of these y coordinates; two have a second, unreduced spelling. The sign of x, the
/// highest bit, is free.
fn has_small_order(point: &[u8; 32]) -> bool {
    let low = |first: u8| {
        let mut y = [0; 32];
        y[0] = first;
        y
    };
    // p - 1, p, p + 1 with p = 2^255 - 19, little endian.
    let high = |first: u8| {
        let mut y = [0xff; 32];
        y[0] = first;
        y[31] = 0x7f;
        y
    };
    const ORDER_EIGHT: [u8; 32] = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ];
    const ORDER_EIGHT_NEGATED: [u8; 32] = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    let mut y = *point;
    y[31] &= 0x7f;
    [low(0), low(1), ORDER_EIGHT, ORDER_EIGHT_NEGATED, high(0xec), high(0xed), high(0xee)].contains(&y)
}
