//! Finding PostgreSQL's server programs, and making sure that they work.
//!
//! A candidate counts only when `initdb --version` and `postgres --version` answer under the account that
//! will run them, agree, are new enough, and the files that `initdb` copies from are where the program
//! looks for them. So a wrapper without its server, a client-only installation, a folder that the
//! account cannot enter, or a package unpacked without its libraries is passed over with a reason.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::DevDbError;
use crate::account::Account;

/// Oldest major version accepted: the change stream relies on what version 14 logs and reports.
const OLDEST_MAJOR: u32 = 14;

/// PostgreSQL's server programs: a folder with `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Binaries {
    /// The folder that holds them.
    pub dir: PathBuf,
    /// Their version, for example `15.14`.
    pub version: String,
    /// `LD_LIBRARY_PATH` for programs that came with their own libraries (unpacked into the cache folder).
    pub library_path: Option<OsString>,
}

impl Binaries {
    /// Finds programs that really work. With `TIDEWIRE_PG_BIN` set, only that folder counts; else `extra`,
    /// the system's usual places (newest version first), `PATH`, and the cache folder.
    ///
    /// # Errors
    /// [`DevDbError::PostgresMissing`] with every candidate and why it was refused.
    pub fn find(extra: &[PathBuf]) -> Result<Self, DevDbError> {
        Self::find_for(extra, Account::for_new_cluster(), None)
    }

    /// The major version, for example `15`.
    pub fn major(&self) -> &str {
        self.version.split('.').next().unwrap_or_default()
    }

    /// Like [`Binaries::find`], for an account, and preferring the major version that made a cluster.
    pub(crate) fn find_for(
        extra: &[PathBuf],
        account: Account,
        major: Option<&str>,
    ) -> Result<Self, DevDbError> {
        let mut tried = Vec::new();
        let mut fallback = None;
        for dir in candidates(extra) {
            match Self::probe(&dir, account) {
                Ok(found) if major.is_none_or(|major| found.major() == major) => return Ok(found),
                Ok(found) => fallback = fallback.or(Some(found)),
                Err(reason) => tried.push(format!("{}: {reason}", dir.display())),
            }
        }
        fallback.ok_or_else(|| {
            if tried.is_empty() {
                tried.push("looked in /usr/lib/postgresql, PATH and the cache folder".into());
            }
            DevDbError::PostgresMissing { tried }
        })
    }

    /// A command for one of the programs: clean environment, neutral working folder.
    pub(crate) fn command(&self, program: &str, account: Account) -> Command {
        let mut command = Command::new(self.dir.join(program));
        // Nothing of the caller's environment may reach the cluster: PGDATA, PGPORT or a locale would
        // change what it is.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        if let Some(libraries) = &self.library_path {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        account.apply(&mut command);
        command
    }

    /// Whether a program (for example `psql`) lies beside the server programs.
    pub(crate) fn has(&self, program: &str) -> bool {
        self.dir.join(program).is_file()
    }

    fn probe(dir: &Path, account: Account) -> Result<Self, String> {
        // A link in PATH points to the folder that also holds the rest.
        let initdb = fs::canonicalize(dir.join("initdb")).map_err(|_| "no initdb".to_owned())?;
        let dir = initdb.parent().ok_or("no folder")?.to_owned();
        let mut found = Self { library_path: bundled_libraries(&dir), dir, version: String::new() };
        found.version = found.version_of("initdb", account)?;
        let server = found.version_of("postgres", account)?;
        if server != found.version {
            return Err(format!("initdb is {} but postgres is {server}", found.version));
        }
        let major: u32 = found.major().parse().map_err(|_| format!("unknown version {server}"))?;
        if major < OLDEST_MAJOR {
            return Err(format!("version {server} is older than {OLDEST_MAJOR}"));
        }
        let share = share_dirs(&found.dir, major);
        if !share.iter().any(|share| share.join("postgres.bki").is_file()) {
            return Err("its share folder (postgres.bki) is missing".into());
        }
        Ok(found)
    }

    fn version_of(&self, program: &str, account: Account) -> Result<String, String> {
        let output = self
            .command(program, account)
            .arg("--version")
            .output()
            .map_err(|error| format!("{program} does not run: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program} does not work: {}", said.trim()));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "initdb (PostgreSQL) 18beta1"
        let version = said.split("(PostgreSQL)").nth(1).and_then(|rest| rest.split_whitespace().next());
        version.map(str::to_owned).ok_or_else(|| format!("{program} does not tell its version"))
    }
}

/// The cache folder of this project: `TIDEWIRE_CACHE`, else the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TIDEWIRE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tidewire")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/tidewire")))
}

fn candidates(extra: &[PathBuf]) -> Vec<PathBuf> {
    if let Some(only) = env::var_os("TIDEWIRE_PG_BIN").filter(|value| !value.is_empty()) {
        return vec![PathBuf::from(only)];
    }
    let mut found: Vec<PathBuf> = extra.to_vec();
    for (parent, tail) in [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "bin"),
    ] {
        found.extend(
            versioned(Path::new(parent), |name| {
                name.chars().next().is_some_and(|first| first.is_ascii_digit())
                    || name.starts_with("postgresql")
            })
            .into_iter()
            .map(|dir| dir.join(tail)),
        );
    }
    found.extend(
        versioned(Path::new("/usr"), |name| name.starts_with("pgsql-"))
            .into_iter()
            .map(|dir| dir.join("bin")),
    );
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    found.extend(env::split_paths(&path));
    if let Some(cache) = cache_dir() {
        // <cache>/postgres/<what was unpacked>/usr/lib/postgresql/<major>/bin
        for unpacked in versioned(&cache.join("postgres"), |name| !name.contains(".partial")) {
            found.extend(
                versioned(&unpacked.join("usr/lib/postgresql"), |_| true)
                    .into_iter()
                    .map(|dir| dir.join("bin")),
            );
            found.push(unpacked.join("bin"));
        }
    }
    found.retain(|dir| dir.join("initdb").exists());
    found.dedup();
    found
}

/// The folders in `parent` whose name is `wanted`, highest number first.
fn versioned(parent: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let digits: String =
                name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
            (wanted(&name) && entry.path().is_dir()).then(|| (digits.parse().unwrap_or(0), entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Where a server in `bin` looks for its files: relative to itself, so a moved installation works.
fn share_dirs(bin: &Path, major: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(prefix) = bin.parent() {
        found.extend([prefix.join("share/postgresql"), prefix.join("share")]);
    }
    // Debian: /usr/lib/postgresql/15/bin and /usr/share/postgresql/15.
    if let Some(root) = bin.ancestors().nth(4) {
        found.push(root.join("share/postgresql").join(major.to_string()));
    }
    // Homebrew: …/opt/postgresql@15/bin and …/share/postgresql@15.
    if let Some(root) = bin.ancestors().nth(4) {
        found.push(root.join(format!("share/postgresql@{major}")));
    }
    found
}

/// Packages unpacked into `<root>` bring their own shared libraries; whoever unpacked them leaves a file
/// `<root>/libraries` that names the folders, relative to `<root>`, one in a line.
fn bundled_libraries(bin: &Path) -> Option<OsString> {
    let root = bin.ancestors().nth(5)?;
    let named = fs::read_to_string(root.join("libraries")).ok()?;
    env::join_paths(named.lines().map(|dir| root.join(dir.trim()))).ok()
}
