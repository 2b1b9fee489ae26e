//! Signed tokens, as an authentication service would make them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// The secret that every [`TestServer`](crate::TestServer) verifies with.
pub const SECRET: &str = "a secret of tests, at least thirty-two bytes long";

/// An HS256 token with exactly these claims.
#[must_use]
pub fn sign(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A token of a role that stays valid for the whole test.
#[must_use]
pub fn of_role(role: &str) -> String {
    sign(&json!({"role": role, "exp": FAR_AWAY}))
}

/// A token of a signed-in user.
#[must_use]
pub fn of_user(sub: &str) -> String {
    sign(&json!({"role": "authenticated", "aud": "authenticated", "sub": sub, "exp": FAR_AWAY}))
}

/// In the year 2096.
pub const FAR_AWAY: i64 = 4_000_000_000;
