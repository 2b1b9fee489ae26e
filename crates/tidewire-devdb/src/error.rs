//! What can go wrong with a private PostgreSQL, as facts with a stable code and advice.

use std::path::PathBuf;

/// Why a private PostgreSQL could not be found, made, started or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevDbError {
    /// No usable PostgreSQL server programs were found.
    #[error("no usable PostgreSQL server programs were found ({})", tried.join("; "))]
    PostgresMissing {
        /// Where we looked, and why a candidate was refused.
        tried: Vec<String>,
    },
    /// `initdb` did not make a cluster.
    #[error("PostgreSQL's initdb failed: {}", last_line(log_tail))]
    InitFailed {
        /// The end of what `initdb` said.
        log_tail: String,
    },
    /// The port asked for is taken.
    #[error("port {port} is in use")]
    PortInUse {
        /// The port asked for.
        port: u16,
    },
    /// Another process keeps a cluster in this folder.
    #[error("the data folder {} is in use{}", dir.display(), pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    DataDirInUse {
        /// The data folder.
        dir: PathBuf,
        /// The process that holds it, when it is known.
        pid: Option<u32>,
    },
    /// The folder cannot be made, or not be written to.
    #[error("the data folder {} cannot be used", dir.display())]
    DataDirNotWritable {
        /// The folder or file concerned.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cluster was made by another major version, and no programs of that version are there.
    #[error("the data folder was made by PostgreSQL {found}, but the programs found are version {available}")]
    DataDirOtherVersion {
        /// Major version that made the cluster.
        found: String,
        /// Version of the programs that were found.
        available: String,
    },
    /// The cluster's folder is not a complete cluster.
    #[error("{} is not a complete PostgreSQL cluster", dir.display())]
    DataDirDamaged {
        /// The cluster's folder.
        dir: PathBuf,
    },
    /// The server ended, or did not become ready in time.
    #[error("PostgreSQL did not start: {}", last_line(log_tail))]
    StartFailed {
        /// The end of the server's log.
        log_tail: String,
    },
    /// A statement failed, or `psql` is not there to run it.
    #[error("the statement failed: {}", last_line(message))]
    SqlFailed {
        /// What `psql` said.
        message: String,
    },
    /// The system refused something that has nothing to do with the folder.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl DevDbError {
    /// The error's stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PostgresMissing { .. } => "PostgresMissing",
            Self::InitFailed { .. } => "InitFailed",
            Self::PortInUse { .. } => "PortInUse",
            Self::DataDirInUse { .. } => "DataDirInUse",
            Self::DataDirNotWritable { .. } => "DataDirNotWritable",
            Self::DataDirOtherVersion { .. } => "DataDirOtherVersion",
            Self::DataDirDamaged { .. } => "DataDirDamaged",
            Self::StartFailed { .. } => "StartFailed",
            Self::SqlFailed { .. } => "SqlFailed",
            Self::System { .. } => "SystemError",
        }
    }

    /// One sentence that says what to do.
    pub fn advice(&self) -> String {
        match self {
            Self::PostgresMissing { .. } => {
                "install the PostgreSQL server (Debian: `apt-get install postgresql`; or let `./x run` fetch it), \
                 or set TIDEWIRE_PG_BIN to the folder that holds initdb and postgres"
                    .into()
            }
            Self::InitFailed { .. } => {
                "check that the disk has space and that initdb works by itself; nothing half-made was left behind".into()
            }
            Self::PortInUse { .. } => "stop the program that uses the port, or let the port be chosen".into(),
            Self::DataDirInUse { pid: Some(pid), .. } => {
                format!("use the instance that runs already, stop it with `kill {pid}`, or choose another folder")
            }
            Self::DataDirInUse { pid: None, .. } => "stop the other instance, or choose another folder".into(),
            Self::DataDirNotWritable { .. } => {
                "choose a folder that you own, or correct its owner and permissions".into()
            }
            Self::DataDirOtherVersion { found, .. } => format!(
                "install PostgreSQL {found}, or start with a new folder (the old one keeps its data until you remove it)"
            ),
            Self::DataDirDamaged { dir } => {
                format!("move {} away or remove it; a new cluster is made at the next start", dir.display())
            }
            Self::StartFailed { .. } => {
                "read the end of postgres.log in the data folder; removing the folder starts over with an empty database"
                    .into()
            }
            Self::SqlFailed { .. } => "check the statement; psql must be installed beside the server programs".into(),
            Self::System { .. } => "check the system's limits and permissions".into(),
        }
    }
}

/// The last line that says something: tools explain first and fail last.
fn last_line(text: &str) -> &str {
    let meaningful = |line: &&str| !line.trim().is_empty();
    text.lines()
        .rev()
        .filter(meaningful)
        .find(|line| line.contains("FATAL") || line.contains("PANIC") || line.contains("error:"))
        .or_else(|| text.lines().rev().find(meaningful))
        .unwrap_or("it said nothing")
        .trim()
}
