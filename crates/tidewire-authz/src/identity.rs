//! Who a subscriber is, as far as Postgres is concerned.
//!
//! Owns the pair (role, claims) that every decision is made for. Two tokens with the same role and the same claims are
//! the same identity: what one may see, the other may see, and one question to Postgres serves both.

use std::fmt;
use std::hash::{Hash, Hasher};

/// The unit of authorisation: a role and the claims that policies read.
///
/// Equality and hashing look at `role` and `claims_json` only, because the other fields are derived from the claims.
#[derive(Clone)]
pub struct Identity {
    /// Claim `role`: the Postgres role that queries run under. On the list of allowed roles.
    pub role: String,
    /// All claims as one JSON object, keys sorted and unique, values as they were written in the token.
    /// Policies read it as `request.jwt.claims`.
    pub claims_json: String,
    /// Claim `sub` if it is a string. Policies read it as `request.jwt.claim.sub`.
    pub sub: Option<String>,
    /// Claim `exp`, seconds since 1970-01-01 UTC. The token is no longer valid in that second.
    pub exp: i64,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.role == other.role && self.claims_json == other.claims_json
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.role.hash(state);
        self.claims_json.hash(state);
    }
}

/// Claims may hold mail addresses and names, so they are not printed. Spec: DESIGN.md §10.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("role", &self.role).field("exp", &self.exp).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_claim() {
        let identity = Identity {
            role: "authenticated".into(),
            claims_json: r#"{"email":"canary@example.org"}"#.into(),
            sub: Some("canary-sub".into()),
            exp: 7,
        };
        assert!(!format!("{identity:?}").contains("canary"));
    }

    #[test]
    fn identities_with_equal_role_and_claims_are_equal() {
        let one = Identity { role: "anon".into(), claims_json: "{}".into(), sub: None, exp: 1 };
        let other = Identity { exp: 2, ..one.clone() };
        assert_eq!(one, other);
        assert_ne!(one, Identity { role: "authenticated".into(), ..one.clone() });
        assert_ne!(one, Identity { claims_json: r#"{"a":1}"#.into(), ..one.clone() });
    }
}
