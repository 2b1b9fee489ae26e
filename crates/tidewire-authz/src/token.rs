//! JSON Web Tokens: from the text a client sent to an [`Identity`].
//!
//! Pure: no clock, no network, no randomness; the caller says what time it is. Owns the order of checks, which decides
//! what a client is told; `refusal` has the words, `keys` the keys, `claims` the times and validators. It may not
//! know about channels or sockets.
//!
//! The algorithm of the *token* is looked up in a closed list, and it decides in which kind of key its `kid` is looked
//! up. Every other name, `none` included, has no key: a token can never choose how a key is used, and a public key is
//! never a secret. What a key says of its own `alg` and `use` does not count, as in the reference.
//!
//! Stricter than the reference, on purpose: a header with a name twice and tokens beyond [`MAX_TOKEN_BYTES`] are
//! malformed; a header with `crit` has no signer, because whoever wrote it wants something that we do not understand
//! (RFC 7515 §4.1.11); an EC key serves only the algorithm of its curve.
//!
//! **Cryptography.** HMAC is `hmac` with `sha2`, compared in constant time. All else is `aws-lc-rs`, the provider that
//! `rustls` has by default, so that TLS will not bring a second one. It covers the whole list but Ed448, checks points
//! when a key is parsed, and adds three crates at run time under ISC, Apache-2.0, MIT and BSD licences. Considered, with
//! microseconds for one ES256 verification on the same machine: `p256`/`p384`/`p521`/`ed25519-dalek` (372; pure Rust, 24
//! crates, and RSA only in `rsa`, a release candidate or a second set of big numbers, under RUSTSEC-2023-0071), `ring`
//! (57; no P-521, cannot check a key before it is used), `aws-lc-rs` (53; 50 seconds of one core for the first build,
//! and a C compiler). Supabase signs with ES256 by default, and after a restart every client joins at once: there the
//! factor of seven counts.
//!
//! **Ed448** has no released, maintained implementation here: a key of that curve is set aside
//! ([`Verifier::ignored_keys`]) and such a token is told that its key id has no signer. A listed difference.
//!
//! Fails with a [`TokenError`], one variant for each answer that clients can see; never panics whatever the bytes.
//!
//! Spec: PROTOCOL.md §1.2, §2.5, §6.1, §6.3, §6.4.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::de::{self, Deserialize, Deserializer, MapAccess};
use serde_json::value::RawValue;
use sha2::{Sha256, Sha384, Sha512};

use crate::identity::Identity;

mod claims;
mod keys;
mod refusal;

use claims::{ClaimValidators, Exp, validate_times};
use keys::{Asymmetric, KeySet};
pub use keys::{KeyError, KeyProblem};
pub use refusal::{KID_SHOWN_CHARS, TokenError};

/// Longest token that is looked at, as it was sent. Real ones have one or two thousand bytes and must fit a header of
/// 4096 on other ways in; without a bound, every join could make the server decode and hash megabytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// What a [`Verifier`] is made of. At least one of `secret` and `jwks` is needed.
#[derive(Clone, Default)]
pub struct VerifierConfig<'a> {
    /// Secret of the tenant, for HS256, HS384 and HS512. Empty is none.
    pub secret: Option<&'a [u8]>,
    /// Key set, `{"keys":[…]}` (RFC 7517), static: it is never fetched. Blank is none.
    pub jwks: Option<&'a str>,
    /// JSON object of what claims must equal where a token has them. Blank is none.
    pub claim_validators: Option<&'a str>,
    /// Roles that tokens may name.
    pub roles: Vec<String>,
}

/// Secrets are not printed, and key sets may hold some. Spec: DESIGN.md §10.
impl fmt::Debug for VerifierConfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifierConfig")
            .field("has_secret", &self.secret.is_some())
            .field("has_jwks", &self.jwks.is_some())
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// Verifies tokens of one tenant: its secret, its keys, the roles its tokens may name. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    secret: Option<Arc<[u8]>>,
    keys: Option<Arc<KeySet>>,
    validators: ClaimValidators,
    roles: Vec<String>,
}

/// Neither secret nor keys are printed. Spec: DESIGN.md §10.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("roles", &self.roles).finish_non_exhaustive()
    }
}

impl Verifier {
    /// With a secret and without a key set. An empty `secret` is no secret: every token then fails with
    /// [`TokenError::Signer`].
    #[must_use]
    pub fn new(secret: &[u8], roles: Vec<String>) -> Self {
        Self { secret: secret_of(Some(secret)), keys: None, validators: ClaimValidators::default(), roles }
    }

    /// Parses and checks every key, once.
    ///
    /// # Errors
    /// The first key that is not usable as it is written, by index and key id; a key set or validators of another
    /// shape; neither a secret nor a usable key. No error holds key material.
    pub fn from_config(config: VerifierConfig<'_>) -> Result<Self, KeyError> {
        let secret = secret_of(config.secret);
        let keys = match config.jwks {
            Some(json) if !json.trim().is_empty() => Some(Arc::new(KeySet::parse(json)?)),
            _ => None,
        };
        if secret.is_none() && keys.as_ref().is_none_or(|keys| keys.is_empty()) {
            return Err(KeyError::Nothing);
        }
        let validators = ClaimValidators::parse(config.claim_validators.unwrap_or_default())?;
        Ok(Self { secret, keys, validators, roles: config.roles })
    }

    /// Keys of the key set that no token can use, one sentence each, for the log of the server when it starts.
    #[must_use]
    pub fn ignored_keys(&self) -> &[String] {
        self.keys.as_ref().map_or(&[], |keys| keys.ignored())
    }

    /// Checks a token as a client sent it, percent-encoded or with stray whitespace.
    ///
    /// `now_unix_s` is the wall clock, seconds since 1970-01-01 UTC. `nbf`, `aud` and `iss` are not looked at unless
    /// the configuration has validators for them. Spec: PROTOCOL.md §6.1.
    ///
    /// # Errors
    /// The first check that fails, in the order of the variants of [`TokenError`] in PROTOCOL.md §1.2: form, key,
    /// signature, times, validators, required claims, role.
    pub fn verify(&self, token: &str, now_unix_s: i64) -> Result<Identity, TokenError> {
        let token = clean(token)?;
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let signed = &token[..header.len() + 1 + claims.len()];
        let Header(header) = decode(header)?;
        let claims: Object = decode(claims)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;

        self.verify_signature(&header, signed.as_bytes(), &signature)?;
        let exp = validate_times(&claims, now_unix_s)?;
        self.validators.check(&claims)?;
        let (Some(role), Some(exp)) = (claims.get("role"), exp) else {
            return Err(TokenError::ClaimsMissing);
        };
        let exp = match exp {
            Exp::Whole(exp) => exp,
            Exp::Rounded(exp) if exp <= now_unix_s => return Err(TokenError::ExpirationInvalid),
            Exp::Rounded(exp) => exp,
        };
        let role = string(role).unwrap_or_default();
        // `none` would mean "no SET ROLE" to Postgres, whatever a list says.
        if role.is_empty() || role.eq_ignore_ascii_case("none") || !self.roles.contains(&role) {
            return Err(TokenError::RoleNotAllowed { role });
        }
        let sub = claims.get("sub").and_then(|raw| string(raw));
        let claims_json = serde_json::to_string(&claims).map_err(|_| TokenError::Malformed)?;
        Ok(Identity { role, claims_json, sub, exp })
    }

    fn verify_signature(&self, header: &Object, signed: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        if header.contains_key("crit") {
            return Err(TokenError::Signer);
        }
        let alg = header.get("alg").and_then(|raw| string(raw)).ok_or(TokenError::Signer)?;
        // A key id only means something where there is a key set to look it up in.
        let kid = header.get("kid").and_then(|raw| string(raw));
        let named = self.keys.as_deref().zip(kid.as_deref());
        let is_good = match alg.as_str() {
            "HS256" => is_hmac::<Hmac<Sha256>>(self.secret_for(named)?, signed, signature),
            "HS384" => is_hmac::<Hmac<Sha384>>(self.secret_for(named)?, signed, signature),
            "HS512" => is_hmac::<Hmac<Sha512>>(self.secret_for(named)?, signed, signature),
            alg => {
                let algorithm = Asymmetric::named(alg).ok_or(TokenError::Signer)?;
                let (keys, kid) = named.ok_or(TokenError::Signer)?;
                let key = keys.public(algorithm, kid).ok_or_else(|| TokenError::signer_for_kid(kid))?;
                key.verify_sig(signed, signature).is_ok()
            }
        };
        if is_good { Ok(()) } else { Err(TokenError::Signature) }
    }

    /// The key of the set with that id, else the tenant's: tokens of Supabase Auth have a `kid` and are signed with the
    /// tenant's secret.
    fn secret_for<'a>(&'a self, named: Option<(&'a KeySet, &str)>) -> Result<&'a [u8], TokenError> {
        let of_set = named.and_then(|(keys, kid)| keys.secret(kid));
        of_set.or(self.secret.as_deref()).ok_or_else(|| match named {
            Some((_, kid)) => TokenError::signer_for_kid(kid),
            None => TokenError::Signer,
        })
    }
}

fn secret_of(secret: Option<&[u8]>) -> Option<Arc<[u8]>> {
    secret.filter(|secret| !secret.is_empty()).map(Arc::from)
}

/// Signs claims with HS256. For `tidewire token`, `dev` and tests; nothing is checked about the claims.
#[must_use]
pub fn sign_hs256(secret: &[u8], claims_json: &str) -> String {
    let mut token = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(claims_json));
    let mac =
        <Hmac<Sha256> as Mac>::new_from_slice(secret).expect("invariant: hmac takes keys of any length");
    let signature = mac.chain_update(token.as_bytes()).finalize().into_bytes();
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(signature));
    token
}

/// Keys unique and sorted, values as written. Numbers beyond 2^53 and the scale of decimals survive.
type Object = BTreeMap<String, Box<RawValue>>;

/// A header, in which a name stands once: software that reads the first of two and software that reads the last would
/// verify with different keys. Spec: RFC 7515 §4.
struct Header(Object);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> de::Visitor<'de> for Once {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object without repeated names")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Header, M::Error> {
                let mut header = Object::new();
                while let Some((name, value)) = members.next_entry()? {
                    if header.insert(name, value).is_some() {
                        return Err(de::Error::custom("a name is repeated"));
                    }
                }
                Ok(Header(header))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

fn decode<T: de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// `verify_slice` compares in constant time and refuses a signature of another length.
fn is_hmac<M: Mac + hmac::digest::KeyInit>(secret: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    <M as Mac>::new_from_slice(secret)
        .is_ok_and(|mac| mac.chain_update(signed).verify_slice(signature).is_ok())
}

/// Percent-decoding and whitespace, in that order. Malformed escapes stay and fail as base64 does.
fn clean(token: &str) -> Result<String, TokenError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Malformed);
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let (byte, behind) = match behind {
            [high, low, tail @ ..] if first == b'%' => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, tail),
                _ => (first, behind),
            },
            _ => (first, behind),
        };
        bytes.push(byte);
        rest = behind;
    }
    let text = String::from_utf8(bytes).map_err(|_| TokenError::Malformed)?;
    Ok(text.chars().filter(|c| !c.is_whitespace()).collect())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests;
