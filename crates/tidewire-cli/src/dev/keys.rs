//! `keys.json` in the data folder: the signing secret, the two keys made with it, and the passwords of the
//! database logins. Written once, 0600, whole or not at all; deleting it makes new ones.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidewire_authz::sign_hs256;

use crate::output::Failure;

/// The tenant of `dev`.
pub(crate) const TENANT: &str = "realtime-dev";
/// Ten years: long enough to paste a key into a project and forget it.
const KEY_LIFE_S: u64 = 10 * 31_557_600;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) jwt_secret: String,
    pub(crate) anon_key: String,
    pub(crate) service_key: String,
    pub(crate) authenticator_password: String,
    pub(crate) replication_password: String,
    /// Changes whenever the passwords do, so that the database is told.
    pub(crate) generation: String,
}

impl Keys {
    /// Reads the keys of a data folder, or makes them.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, Failure> {
        match Self::load(dir)? {
            Some(keys) => Ok(keys),
            None => {
                let keys = Self::create()?;
                let path = dir.join("keys.json");
                keys.store(&path).map_err(|error| not_writable(&path, &error))?;
                Ok(keys)
            }
        }
    }

    /// Reads the keys of a data folder; `None`: it has none yet.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join("keys.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(not_writable(&path, &error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            // The position, not the text: this file holds secrets.
            let message =
                format!("{} is damaged (line {}, column {})", path.display(), error.line(), error.column());
            Failure::new("KeysDamaged", message, "remove the file; new keys are made at the next start")
        })
    }

    fn create() -> Result<Self, Failure> {
        let jwt_secret = random_hex(32)?;
        let key = |role: &str| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let claims = serde_json::json!({
                "iss": "tidewire", "ref": TENANT, "role": role, "iat": now, "exp": now + KEY_LIFE_S,
            });
            sign_hs256(jwt_secret.as_bytes(), &claims.to_string())
        };
        Ok(Self {
            anon_key: key("anon"),
            service_key: key("service_role"),
            authenticator_password: random_hex(16)?,
            replication_password: random_hex(16)?,
            generation: random_hex(8)?,
            jwt_secret,
        })
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        let unfinished = path.with_extension("json.tmp");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    }
}

fn not_writable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{} cannot be used: {error}", path.display());
    Failure::new("DataDirNotWritable", message, "choose a folder that you own, or correct its permissions")
}

fn random_hex(bytes: usize) -> Result<String, Failure> {
    let mut random = vec![0_u8; bytes];
    getrandom::fill(&mut random).map_err(|error| Failure::system("get random bytes", &error))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
