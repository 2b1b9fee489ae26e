//! What a client is told about a token that is refused, exactly.
//!
//! Owns the reasons and their texts in the three places where clients see them. Knows nothing of how tokens are
//! checked.
//!
//! A key id is a stranger's text that comes back in an answer and gets into logs: it is cut to a bound when the error
//! is made, and everything that is not plainly printable is escaped when it is shown.

/// Why a token was refused. Variants are facts; each has its text for the three places where clients see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not three decodable parts, header or claims are not JSON objects, or far too long.
    #[error("token is not a json web token")]
    Malformed,
    /// No usable algorithm or key.
    #[error("no key for the algorithm of the token")]
    Signer,
    /// There is a key set, and no key of this id in it that fits the algorithm.
    #[error("no key {kid:?} for the algorithm of the token")]
    SignerForKid {
        /// The key id as the token has it, cut to [`KID_SHOWN_CHARS`] characters. Foreign text, not escaped yet.
        kid: String,
    },
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
    /// `exp` or `iat` of another type, a fractional `exp` that is over, or a claim other than the validators want it.
    #[error("claims of the token are not valid")]
    Invalid,
}

/// Characters of a key id that are told and logged. Key ids in use are UUIDs and thumbprints of 43 characters; a token
/// can carry one of several thousand.
pub const KID_SHOWN_CHARS: usize = 128;

/// A key id as errors show it: quoted, control and other unprintable characters escaped, `…` where it was cut.
pub(super) fn cut_kid(kid: &str) -> String {
    match kid.char_indices().nth(KID_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &kid[..end]),
        None => kid.to_owned(),
    }
}

impl TokenError {
    pub(super) fn signer_for_kid(kid: &str) -> Self {
        Self::SignerForKid { kid: cut_kid(kid) }
    }

    /// Operational code, as existing clients and logs know it. Spec: PROTOCOL.md §7.4.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "MalformedJWT",
            Self::Signer | Self::SignerForKid { .. } => "JwtSignerError",
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
            Self::Invalid => INVALID_TEXT.to_owned(),
            Self::Signer => format!("{}: {SIGNER_TEXT}", self.code()),
            Self::Signature => format!("{}: {SIGNATURE_TEXT}", self.code()),
            Self::Malformed
            | Self::SignerForKid { .. }
            | Self::Expired { .. }
            | Self::ExpirationInvalid
            | Self::ClaimsMissing
            | Self::RoleNotAllowed { .. } => format!("{}: {}", self.code(), self.push_message()),
        }
    }

    /// HTTP status and `error` text of a refused WebSocket handshake. Spec: PROTOCOL.md §1.2.
    #[must_use]
    pub fn connect_answer(&self) -> (u16, String) {
        let (status, text) = match self {
            Self::Malformed => (401, MALFORMED_TEXT),
            Self::Signer => (401, SIGNER_TEXT),
            Self::SignerForKid { kid } => return (401, signer_for_kid_text(kid)),
            Self::Signature => (401, SIGNATURE_TEXT),
            Self::Expired { .. } | Self::ExpirationInvalid => (401, "Token has expired"),
            Self::ClaimsMissing => (401, CLAIMS_TEXT),
            Self::RoleNotAllowed { .. } => (401, ROLE_TEXT),
            Self::Invalid => (500, "Error connecting to Realtime"),
        };
        (status, text.to_owned())
    }

    /// `message` of the `system` error that ends a channel whose token was replaced by this one, or expired.
    /// The atoms are the reference's. Spec: PROTOCOL.md §6.3, §6.4.
    #[must_use]
    pub fn push_message(&self) -> String {
        match self {
            Self::Malformed => MALFORMED_TEXT.to_owned(),
            Self::Signer => ":error_generating_signer".to_owned(),
            Self::SignerForKid { kid } => signer_for_kid_text(kid),
            Self::Signature => ":signature_error".to_owned(),
            Self::Expired { seconds_ago } => format!("Token has expired {seconds_ago} seconds ago"),
            Self::ExpirationInvalid => "Token expiration time is invalid".to_owned(),
            Self::ClaimsMissing => CLAIMS_TEXT.to_owned(),
            Self::RoleNotAllowed { .. } => ROLE_TEXT.to_owned(),
            Self::Invalid => INVALID_TEXT.to_owned(),
        }
    }
}

const MALFORMED_TEXT: &str = "The token provided is not a valid JWT";
const SIGNER_TEXT: &str = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
const SIGNATURE_TEXT: &str = "Failed to validate JWT signature";
const CLAIMS_TEXT: &str = "Fields `role` and `exp` are required in JWT";
const INVALID_TEXT: &str = "Unknown Error on Channel";
/// Ours: the reference has no list of roles. Spec: DESIGN.md §10.
const ROLE_TEXT: &str = "The role of this token is not allowed";

/// `{:?}` quotes and escapes as the reference's `inspect` does for printable text.
fn signer_for_kid_text(kid: &str) -> String {
    format!(
        "Failed to generate JWT signer for key ID (kid) {kid:?}, check your JWT secret or JWKS configuration"
    )
}
