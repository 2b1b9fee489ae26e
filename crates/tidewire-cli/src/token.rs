//! `tidewire token`: claims, signed with a secret that never stands on the command line.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tidewire_authz::sign_hs256;

use crate::args::TokenArgs;
use crate::dev;
use crate::output::{self, Failure};

/// Prints the token.
pub(crate) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let secret = secret(args)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let claims = claims(args, now)?;
    output::print(&sign_hs256(secret.as_bytes(), &Value::Object(claims).to_string()));
    Ok(())
}

fn secret(args: &TokenArgs) -> Result<String, Failure> {
    let advice = "give --secret-file or TIDEWIRE_JWT_SECRET, or the --data-dir of a `tidewire dev`";
    if let Some(path) = &args.secret_file {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new("SecretMissing", format!("{} cannot be read: {error}", path.display()), advice)
        })?;
        return not_empty(text.trim(), advice);
    }
    if let Ok(text) = std::env::var("TIDEWIRE_JWT_SECRET") {
        return not_empty(&text, advice);
    }
    dev::secret_of(&args.data_dir)?.ok_or_else(|| {
        Failure::new("SecretMissing", format!("{} holds no keys", args.data_dir.display()), advice)
    })
}

fn not_empty(text: &str, advice: &str) -> Result<String, Failure> {
    if text.is_empty() {
        return Err(Failure::new("SecretMissing", "the secret is empty", advice));
    }
    Ok(text.to_owned())
}

fn claims(args: &TokenArgs, now: u64) -> Result<Map<String, Value>, Failure> {
    let mut claims = Map::new();
    claims.insert("iss".into(), json!("tidewire"));
    claims.insert("role".into(), json!(args.role));
    if args.role == "authenticated" {
        claims.insert("aud".into(), json!("authenticated"));
    }
    claims.extend(args.sub.as_ref().map(|sub| ("sub".to_owned(), json!(sub))));
    claims.extend(args.email.as_ref().map(|email| ("email".to_owned(), json!(email))));
    claims.insert("iat".into(), json!(now));
    claims.insert("exp".into(), json!(now + args.expires.as_secs()));
    for claim in &args.claim {
        let Some((name, value)) = claim.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            let message = "--claim needs the form NAME=VALUE";
            return Err(Failure::new(
                "Usage",
                message,
                "for example --claim level=3 or --claim team='\"red\"'",
            ));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        claims.insert(name.to_owned(), value);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn args() -> TokenArgs {
        TokenArgs {
            role: "authenticated".into(),
            sub: Some("alice".into()),
            email: None,
            claim: vec!["level=3".into(), "team=red".into(), "tags=[\"a\"]".into()],
            expires: Duration::from_secs(60),
            secret_file: None,
            data_dir: PathBuf::new(),
        }
    }

    #[test]
    fn claims_are_what_was_asked_for() {
        let claims = Value::Object(claims(&args(), 1_000).unwrap());
        let wanted = json!({
            "iss": "tidewire", "role": "authenticated", "aud": "authenticated", "sub": "alice", "iat": 1000,
            "exp": 1060, "level": 3, "team": "red", "tags": ["a"],
        });
        assert_eq!(claims, wanted);
    }

    #[test]
    fn a_claim_without_a_name_is_refused() {
        for wrong in ["level", "=3"] {
            assert!(claims(&TokenArgs { claim: vec![wrong.into()], ..args() }, 0).is_err(), "{wrong}");
        }
    }
}
