//! JSON Web Tokens: from the text a client sent to an [`Identity`].
//!
//! Pure: no clock, no network, no randomness; the caller says what time it is. Owns the order of checks, which decides
//! what a client is told, and the exact texts of each refusal. It may not know about channels or sockets.
//!
//! Symmetric signatures only in this version (HS256, HS384, HS512). The algorithm of the *token* is looked up in a
//! closed list and every other name, `none` and the asymmetric ones included, has no key: a token can never choose how
//! the secret is used. Signatures are compared in constant time.
//!
//! Fails with a [`TokenError`], one variant for each answer that clients can see; never panics whatever the bytes.
//!
//! Spec: PROTOCOL.md §1.2, §2.5, §6.1, §6.3, §6.4.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::value::RawValue;
use sha2::{Sha256, Sha384, Sha512};

use crate::identity::Identity;

/// Why a token was refused. Variants are facts; each has its text for the three places where clients see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not three decodable parts, or header or claims are not JSON objects.
    #[error("token is not a json web token")]
    Malformed,
    /// No usable algorithm or key.
    #[error("no key for the algorithm of the token")]
    Signer,
    /// The signature does not belong to the token.
    #[error("signature of the token does not verify")]
    Signature,
    /// Integer `exp` is not in the future.
    #[error("token expired {seconds_ago} seconds ago")]
    Expired {
        /// Seconds between `exp` and the time given, never negative.
        seconds_ago: i64,
    },
    /// A fractional `exp` in the future that rounds to the current second.
    #[error("token expires within the current second")]
    ExpirationInvalid,
    /// Claim `role` or `exp` does not exist.
    #[error("claims `role` and `exp` are required")]
    ClaimsMissing,
    /// Claim `role` is not on the list of allowed roles (or is not a string).
    #[error("role of the token is not allowed")]
    RoleNotAllowed {
        /// The role as claimed; empty if the claim is not a string. Foreign text: not for logs.
        role: String,
    },
    /// `exp` or `iat` of another type, or a fractional `exp` that is over.
    #[error("claims of the token are not valid")]
    Invalid,
}

impl TokenError {
    /// Operational code, as existing clients and logs know it. Spec: PROTOCOL.md §7.4.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "MalformedJWT",
            Self::Signer => "JwtSignerError",
            Self::Signature => "JwtSignatureError",
            Self::Expired { .. } | Self::ExpirationInvalid | Self::ClaimsMissing => "InvalidJWTToken",
            Self::RoleNotAllowed { .. } => "Unauthorized",
            Self::Invalid => "UnknownErrorOnChannel",
        }
    }

    /// `reason` of the error reply to a join. Spec: PROTOCOL.md §2.5.
    #[must_use]
    pub fn join_reason(&self) -> String {
        match self {
            // The reference has no prefix here either.
            Self::Invalid => "Unknown Error on Channel".to_owned(),
            Self::Signer => format!("{}: {SIGNER_TEXT}", self.code()),
            Self::Signature => format!("{}: {SIGNATURE_TEXT}", self.code()),
            Self::Malformed
            | Self::Expired { .. }
            | Self::ExpirationInvalid
            | Self::ClaimsMissing
            | Self::RoleNotAllowed { .. } => format!("{}: {}", self.code(), self.push_message()),
        }
    }

    /// HTTP status and `error` text of a refused WebSocket handshake. Spec: PROTOCOL.md §1.2.
    #[must_use]
    pub fn connect_answer(&self) -> (u16, &'static str) {
        match self {
            Self::Malformed => (401, MALFORMED_TEXT),
            Self::Signer => (401, SIGNER_TEXT),
            Self::Signature => (401, SIGNATURE_TEXT),
            Self::Expired { .. } | Self::ExpirationInvalid => (401, "Token has expired"),
            Self::ClaimsMissing => (401, CLAIMS_TEXT),
            Self::RoleNotAllowed { .. } => (401, ROLE_TEXT),
            Self::Invalid => (500, "Error connecting to Realtime"),
        }
    }

    /// `message` of the `system` error that ends a channel whose token was replaced by this one, or expired.
    /// The atoms are the reference's. Spec: PROTOCOL.md §6.3, §6.4.
    #[must_use]
    pub fn push_message(&self) -> String {
        match self {
            Self::Malformed => MALFORMED_TEXT.to_owned(),
            Self::Signer => ":error_generating_signer".to_owned(),
            Self::Signature => ":signature_error".to_owned(),
            Self::Expired { seconds_ago } => format!("Token has expired {seconds_ago} seconds ago"),
            Self::ExpirationInvalid => "Token expiration time is invalid".to_owned(),
            Self::ClaimsMissing => CLAIMS_TEXT.to_owned(),
            Self::RoleNotAllowed { .. } => ROLE_TEXT.to_owned(),
            Self::Invalid => "Unknown Error on Channel".to_owned(),
        }
    }
}

const MALFORMED_TEXT: &str = "The token provided is not a valid JWT";
const SIGNER_TEXT: &str = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
const SIGNATURE_TEXT: &str = "Failed to validate JWT signature";
const CLAIMS_TEXT: &str = "Fields `role` and `exp` are required in JWT";
/// Ours: the reference has no list of roles. Spec: DESIGN.md §10.
const ROLE_TEXT: &str = "The role of this token is not allowed";

/// Verifies tokens of one tenant: its secret and the roles its tokens may name.
#[derive(Clone)]
pub struct Verifier {
    secret: Vec<u8>,
    roles: Vec<String>,
}

/// The secret is not printed. Spec: DESIGN.md §10.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("roles", &self.roles).finish_non_exhaustive()
    }
}

impl Verifier {
    /// An empty `secret` is no secret: every token then fails with [`TokenError::Signer`].
    #[must_use]
    pub fn new(secret: &[u8], roles: Vec<String>) -> Self {
        Self { secret: secret.to_vec(), roles }
    }

    /// Checks a token as a client sent it, percent-encoded or with stray whitespace.
    ///
    /// `now_unix_s` is the wall clock, seconds since 1970-01-01 UTC. A `kid` in the header is ignored as long as there
    /// is no key set; `nbf`, `aud` and `iss` are not looked at. Spec: PROTOCOL.md §6.1.
    ///
    /// # Errors
    /// The first check that fails, in the order of the variants of [`TokenError`] in PROTOCOL.md §1.2: form, key,
    /// signature, times, required claims, role.
    pub fn verify(&self, token: &str, now_unix_s: i64) -> Result<Identity, TokenError> {
        let token = clean(token)?;
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let signed = &token[..header.len() + 1 + claims.len()];
        let header = object(header)?;
        let claims = object(claims)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;

        self.verify_signature(&header, signed.as_bytes(), &signature)?;
        let exp = validate_times(&claims, now_unix_s)?;
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
        let alg = header.get("alg").and_then(|raw| string(raw)).ok_or(TokenError::Signer)?;
        if self.secret.is_empty() {
            return Err(TokenError::Signer);
        }
        let good = match alg.as_str() {
            "HS256" => is_hmac::<Hmac<Sha256>>(&self.secret, signed, signature),
            "HS384" => is_hmac::<Hmac<Sha384>>(&self.secret, signed, signature),
            "HS512" => is_hmac::<Hmac<Sha512>>(&self.secret, signed, signature),
            _ => return Err(TokenError::Signer),
        };
        if good { Ok(()) } else { Err(TokenError::Signature) }
    }
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

fn object(part: &str) -> Result<Object, TokenError> {
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

enum Exp {
    Whole(i64),
    Rounded(i64),
}

/// Times, as the reference validates them. Spec: PROTOCOL.md §6.1.
fn validate_times(claims: &Object, now: i64) -> Result<Option<Exp>, TokenError> {
    if let Some(iat) = claims.get("iat")
        && !is_number(iat)
    {
        return Err(TokenError::Invalid);
    }
    let Some(exp) = claims.get("exp") else { return Ok(None) };
    if let Ok(whole) = exp.get().parse::<i64>() {
        if whole <= now {
            return Err(TokenError::Expired { seconds_ago: now.saturating_sub(whole) });
        }
        return Ok(Some(Exp::Whole(whole)));
    }
    if !is_number(exp) {
        return Err(TokenError::Invalid);
    }
    let fractional: f64 = exp.get().parse().map_err(|_| TokenError::Invalid)?;
    // Seconds of any year people live in are exact in an f64.
    #[expect(clippy::cast_precision_loss, reason = "compared with a fraction, exact below 2^53")]
    if fractional <= now as f64 || !fractional.is_finite() {
        return Err(TokenError::Invalid);
    }
    #[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate")]
    Ok(Some(Exp::Rounded(fractional.round() as i64)))
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
