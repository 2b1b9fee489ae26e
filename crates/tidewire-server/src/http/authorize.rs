//! Private broadcasts over HTTP: every request asks anew what its token may write (`PROTOCOL.md` §3.8).

use std::sync::Arc;

use axum::http::HeaderMap;
use tidewire_authz::ProbeError;
use tidewire_engine::Credential;

use super::App;
use crate::tokens::identity_of;

/// Whether the token may send to a private topic.
pub(super) async fn may_send(
    app: &App,
    credential: &Credential,
    headers: &HeaderMap,
    topic: &str,
) -> Result<bool, ProbeError> {
    let Some(authenticator) = &app.authenticator else { return Err(ProbeError::Unavailable) };
    let identity = Arc::new(identity_of(credential));
    let headers = super::headers_json(headers.iter());
    Ok(authenticator.write_grants(&identity, topic, &headers).await?.broadcast)
}
