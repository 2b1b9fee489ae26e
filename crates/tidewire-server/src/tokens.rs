//! The verifier of this server: `tidewire-authz` decides, this room translates for the engine.

use tidewire_authz::{Identity, KeyError, TokenError, Verifier, VerifierConfig};
use tidewire_engine::{Credential, Now, TokenRefusal, VerifyToken};
use tidewire_protocol::codes::OperationalCode;

use crate::config::{Secret, TenantConfig};

/// Verifies tokens of the one tenant.
pub(crate) struct TenantTokens {
    verifier: Verifier,
}

impl TenantTokens {
    /// # Errors
    /// When the keys cannot be used; the text names them, never their content.
    pub(crate) fn new(tenant: &TenantConfig) -> Result<Self, KeyError> {
        let secret = tenant.jwt_secret.expose();
        let verifier = Verifier::from_config(VerifierConfig {
            secret: (!secret.is_empty()).then_some(secret.as_bytes()),
            jwks: tenant.jwks.as_ref().map(Secret::expose),
            claim_validators: tenant.claim_validators.as_deref(),
            roles: tenant.roles.clone(),
        })?;
        Ok(Self { verifier })
    }

    /// Verifies, with the error still in the words of `tidewire-authz` (the handshake has its own).
    pub(crate) fn check(&self, token: &str, now_unix_s: i64) -> Result<Credential, TokenError> {
        let identity = self.verifier.verify(token, now_unix_s)?;
        Ok(Credential {
            token: token.into(),
            role: identity.role.into(),
            claims: identity.claims_json.into(),
            expires_unix_s: identity.exp,
        })
    }
}

impl VerifyToken for TenantTokens {
    fn verify(&self, token: &str, now: Now) -> Result<Credential, TokenRefusal> {
        self.check(token, now.unix_s()).map_err(|error| TokenRefusal {
            code: code_of(&error),
            join_reason: error.join_reason(),
            push_message: error.push_message(),
        })
    }
}

/// The operational code that a token error names.
pub(crate) fn code_of(error: &TokenError) -> OperationalCode {
    OperationalCode::ALL
        .iter()
        .copied()
        .find(|code| code.as_str() == error.code())
        .unwrap_or(OperationalCode::UnknownErrorOnChannel)
}

/// The unit of authorisation: role and claims.
pub(crate) fn identity_of(credential: &Credential) -> Identity {
    #[derive(serde::Deserialize)]
    struct Subject {
        sub: Option<String>,
    }
    let sub = serde_json::from_str::<Subject>(&credential.claims).ok().and_then(|claims| claims.sub);
    Identity {
        role: credential.role.to_string(),
        claims_json: credential.claims.to_string(),
        sub,
        exp: credential.expires_unix_s,
    }
}
