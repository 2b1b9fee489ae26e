//! A private PostgreSQL in a folder of one's own: found, initialised, started, stopped.
//!
//! Owns: the programs it finds ([`Binaries`]), one folder per cluster, and the processes it started
//! ([`Cluster`]). It never touches a system cluster, needs no Tokio, and knows nothing of what the
//! database is for: roles, schemas and publications are the caller's business.
//!
//! How it fails: every error is a fact with a stable code and advice ([`DevDbError`]). A cluster is made
//! beside its final name and renamed, so an interrupted start leaves nothing half-made; a server that an
//! earlier life left behind is ended first; when this process dies, however it dies, the kernel ends the
//! server (Linux). Dropping a [`Cluster`] stops it.

#![deny(unsafe_code)]

mod account;
mod binaries;
mod error;
mod place;
mod postmaster;

use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use binaries::{Binaries, cache_dir};
pub use error::DevDbError;
pub use postmaster::Shutdown;

use place::{Place, write_private};
use postmaster::Postmaster;

/// Recovery after a crash takes time; a server that is silent for longer than this will not come.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Processes of a killed server hold its memory for a moment; a start is tried again for this long.
const MEMORY_LIMIT: Duration = Duration::from_secs(4);
/// A free port can be taken between finding and using it.
const PORT_ATTEMPTS: usize = 8;

/// The superuser of every cluster, and the database that it has from the start.
const SUPERUSER: &str = "postgres";

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The folder that holds the cluster, its password and its log. Made when it is not there.
    pub dir: PathBuf,
    /// The port on 127.0.0.1; `None`: the remembered one if it is free, else any.
    pub port: Option<u16>,
    /// Settings on top of the defaults (`wal_level=logical`, UTC, and so on), as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// For tests: nothing is synced to the disk, and stopping does not take care of the data.
    pub ephemeral: bool,
    /// Folders in which the server programs are looked for first.
    pub binaries: Vec<PathBuf>,
}

impl ClusterOptions {
    /// A lasting cluster in `dir`, everything else as it is by default.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), port: None, settings: Vec::new(), ephemeral: false, binaries: Vec::new() }
    }
}

/// A running cluster. Dropping it stops the server; a temporary one is also removed.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    place: Place,
    binaries: Binaries,
    password: String,
    port: u16,
    /// `None` only between [`Cluster::halt`] and [`Cluster::resume`].
    postmaster: Option<Postmaster>,
    is_temporary: bool,
}

impl Cluster {
    /// Finds the programs, makes the cluster if the folder has none, starts it, and returns when it accepts
    /// connections. Blocks; the first start takes a second or two.
    ///
    /// # Errors
    /// See [`DevDbError`].
    pub fn start(options: ClusterOptions) -> Result<Self, DevDbError> {
        let place = Place::take(&options.dir)?;
        place.remove_leftovers();
        let made_by = made_by(&place.data)?;
        let binaries = Binaries::find_for(&options.binaries, place.account, made_by.as_deref())?;
        if let Some(found) = made_by.as_ref().filter(|made_by| *made_by != binaries.major()) {
            return Err(DevDbError::DataDirOtherVersion {
                found: found.clone(),
                available: binaries.version.clone(),
            });
        }
        postmaster::clear_remains(&place.data);
        let password = match read_password(&place.dir) {
            Some(password) => {
                if made_by.is_none() {
                    initialise(&place, &binaries, &password, options.ephemeral)?;
                }
                password
            }
            None => {
                let password = random_hex(16)?;
                if made_by.is_none() {
                    initialise(&place, &binaries, &password, options.ephemeral)?;
                } else {
                    // Somebody removed the file; the folder is ours, so its password is ours to set.
                    set_password(&place, &binaries, &password)?;
                }
                let path = place.dir.join("postgres-password");
                write_private(&path, &password)
                    .map_err(|source| DevDbError::DataDirNotWritable { dir: path.clone(), source })?;
                password
            }
        };
        let mut cluster =
            Self { options, place, binaries, password, port: 0, postmaster: None, is_temporary: false };
        cluster.launch(cluster.options.port)?;
        Ok(cluster)
    }

    /// A cluster for a test: a new folder, a free port, no syncing; gone without trace when dropped.
    ///
    /// # Errors
    /// See [`DevDbError`].
    pub fn temporary() -> Result<Self, DevDbError> {
        Self::temporary_with(Vec::new())
    }

    /// Like [`Cluster::temporary`], with settings of its own.
    ///
    /// # Errors
    /// See [`DevDbError`].
    pub fn temporary_with(settings: Vec<(String, String)>) -> Result<Self, DevDbError> {
        let dir = place::temporary_dir()?;
        let mut options = ClusterOptions::new(&dir);
        options.settings = settings;
        options.ephemeral = true;
        match Self::start(options) {
            Ok(mut cluster) => {
                cluster.is_temporary = true;
                Ok(cluster)
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    /// The URL of the superuser. A secret: it opens everything.
    pub fn superuser_url(&self) -> String {
        self.url(SUPERUSER, &self.password)
    }

    /// The URL of another login.
    pub fn url(&self, user: &str, password: &str) -> String {
        let (user, password) = (percent_encode(user), percent_encode(password));
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", self.port)
    }

    /// The port on 127.0.0.1. It stays the same when the cluster is stopped and started again.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().filter(|postmaster| postmaster.is_running()).map(Postmaster::pid)
    }

    /// The version of the server, for example `15.14`.
    pub fn version(&self) -> &str {
        &self.binaries.version
    }

    /// The end of what the server logged.
    pub fn log_tail(&self) -> String {
        self.postmaster.as_ref().map(Postmaster::log_tail).unwrap_or_default()
    }

    /// Stops the server and starts it on the same port.
    ///
    /// # Errors
    /// As [`Cluster::resume`].
    pub fn restart(&mut self, how: Shutdown) -> Result<(), DevDbError> {
        self.halt(how);
        self.resume()
    }

    /// Stops the server and keeps everything else. Nothing happens when it is stopped already.
    pub fn halt(&mut self, how: Shutdown) {
        if let Some(postmaster) = self.postmaster.take() {
            postmaster.stop(how);
        }
    }

    /// Starts a stopped server, on the same port.
    ///
    /// # Errors
    /// [`DevDbError::PortInUse`] when somebody took the port meanwhile, and whatever a start can run into.
    pub fn resume(&mut self) -> Result<(), DevDbError> {
        if self.pid().is_some() {
            return Ok(());
        }
        self.postmaster = None;
        postmaster::clear_remains(&self.place.data);
        self.launch(Some(self.port))
    }

    /// Stops the server. Dropping does the same.
    pub fn stop(self) {
        drop(self);
    }

    /// Runs statements as the superuser with `psql` and returns the rows, unaligned, without headings.
    ///
    /// # Errors
    /// [`DevDbError::SqlFailed`] with what `psql` said.
    pub fn run_sql(&self, sql: &str) -> Result<String, DevDbError> {
        let program = if self.binaries.has("psql") { self.binaries.dir.join("psql") } else { "psql".into() };
        let mut command = Command::new(program);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", SUPERUSER]);
        command.args(["-d", "postgres", "-p", &self.port.to_string(), "-c", sql]);
        // The environment, unlike the arguments, is not shown to other users.
        command.env("PGPASSWORD", &self.password).env("LC_ALL", "C").stdin(Stdio::null());
        if let Some(libraries) = &self.binaries.library_path {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let output =
            command.output().map_err(|error| DevDbError::SqlFailed { message: error.to_string() })?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(DevDbError::SqlFailed { message: String::from_utf8_lossy(&output.stderr).into_owned() })
        }
    }

    fn launch(&mut self, asked: Option<u16>) -> Result<(), DevDbError> {
        self.write_settings()?;
        let port_file = self.place.dir.join("postgres-port");
        let remembered = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
        let mut wish = asked.or(remembered);
        let began = Instant::now();
        let mut attempts = 0;
        loop {
            let port = match wish.take() {
                Some(port) if is_free(port) => port,
                Some(port) if asked == Some(port) => return Err(DevDbError::PortInUse { port }),
                _ => free_port()?,
            };
            let postmaster = Postmaster::spawn(self.server(port), self.place.dir.join("postgres.log"))?;
            if postmaster.wait_ready(&self.place.data, START_LIMIT) {
                self.postmaster = Some(postmaster);
                self.port = port;
                if remembered != Some(port) {
                    // Losing this file only costs a stable port.
                    let _ = write_private(&port_file, &format!("{port}\n"));
                }
                return Ok(());
            }
            let log_tail = postmaster.log_tail();
            postmaster.stop(Shutdown::Immediate);
            if log_tail.contains("pre-existing shared memory block") && began.elapsed() < MEMORY_LIMIT {
                std::thread::sleep(Duration::from_millis(100));
                wish = Some(port);
            } else if log_tail.contains("Address already in use") && attempts < PORT_ATTEMPTS {
                if let Some(port) = asked {
                    return Err(DevDbError::PortInUse { port });
                }
                attempts += 1;
            } else {
                return Err(DevDbError::StartFailed { log_tail });
            }
        }
    }

    fn server(&self, port: u16) -> Command {
        let mut command = self.binaries.command("postgres", self.place.account);
        command.arg("-D").arg(&self.place.data).args(["-p", &port.to_string()]);
        // On the command line, so that nothing written into the folder can open the server to others.
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        command.stdout(Stdio::null());
        command
    }

    /// Writes the settings beside `postgresql.conf`, which includes them. `ALTER SYSTEM` still wins.
    fn write_settings(&self) -> Result<(), DevDbError> {
        let mut text = String::from("# Written at each start; use ALTER SYSTEM for settings of your own.\n");
        let mut add = |name: &str, value: &str| {
            let value = value.replace('\\', "\\\\").replace('\'', "''");
            text.push_str(&format!("{name} = '{value}'\n"));
        };
        for (name, value) in DEFAULT_SETTINGS {
            add(name, value);
        }
        if self.options.ephemeral {
            for (name, value) in EPHEMERAL_SETTINGS {
                add(name, value);
            }
        }
        for (name, value) in &self.options.settings {
            add(name, value);
        }
        let path = self.place.data.join("tidewire.conf");
        write_private(&path, &text)
            .and_then(|()| self.place.account.give(&path))
            .map_err(|source| DevDbError::DataDirNotWritable { dir: path, source })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.halt(if self.options.ephemeral { Shutdown::Immediate } else { Shutdown::Fast });
        if self.is_temporary {
            self.place.remove();
        }
    }
}

/// What every cluster gets. The server reads the log of changes, so `wal_level` is not a choice.
const DEFAULT_SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    // A slot that nobody reads gives up rather than fill the disk.
    ("max_slot_wal_keep_size", "1GB"),
    ("max_connections", "100"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("password_encryption", "scram-sha-256"),
    ("ssl", "off"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    // Compiling queries pays off in seconds-long ones only, and unpacked packages come without LLVM.
    ("jit", "off"),
];

/// On top of those, for data that nobody will miss.
const EPHEMERAL_SETTINGS: &[(&str, &str)] =
    &[("fsync", "off"), ("full_page_writes", "off"), ("shared_buffers", "32MB"), ("max_wal_size", "256MB")];

/// The major version that made the cluster in `data`; `None`: there is none yet.
fn made_by(data: &Path) -> Result<Option<String>, DevDbError> {
    match fs::read_to_string(data.join("PG_VERSION")) {
        Ok(version) if data.join("global/pg_control").is_file() => Ok(Some(version.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(DevDbError::DataDirNotWritable { dir: data.to_owned(), source: error })
        }
        // An empty folder holds nothing to lose.
        _ if !data.exists() || fs::remove_dir(data).is_ok() => Ok(None),
        _ => Err(DevDbError::DataDirDamaged { dir: data.to_owned() }),
    }
}

/// Makes the cluster beside its final name, then renames it: it is whole or not there.
fn initialise(place: &Place, binaries: &Binaries, password: &str, ephemeral: bool) -> Result<(), DevDbError> {
    let token = random_hex(6)?;
    let unfinished = place.base().join(format!("pg.tmp-{token}"));
    let password_file = place.base().join(format!("pw.tmp-{token}"));
    let at = |dir: &Path| {
        let dir = dir.to_owned();
        move |source| DevDbError::DataDirNotWritable { dir, source }
    };
    let result = (|| {
        write_private(&password_file, password).map_err(at(&password_file))?;
        place.account.give(&password_file).map_err(at(&password_file))?;
        let mut failure = String::new();
        // Not every system has C.UTF-8; C sorts the same, by byte, in a database that is UTF-8 either way.
        for locale in ["C.UTF-8", "C"] {
            let _ = fs::remove_dir_all(&unfinished);
            DirBuilder::new().mode(0o700).create(&unfinished).map_err(at(&unfinished))?;
            place.account.give(&unfinished).map_err(at(&unfinished))?;
            let mut command = binaries.command("initdb", place.account);
            command.arg("-D").arg(&unfinished).arg(format!("--pwfile={}", password_file.display()));
            command.args(["-U", SUPERUSER, "-E", "UTF8", "--auth=scram-sha-256", "--locale", locale]);
            if ephemeral {
                command.arg("--no-sync");
            }
            let output =
                command.output().map_err(|source| DevDbError::System { action: "run initdb", source })?;
            if output.status.success() {
                let main = unfinished.join("postgresql.conf");
                let mut text = fs::read_to_string(&main).map_err(at(&main))?;
                text.push_str("\ninclude_if_exists = 'tidewire.conf'\n");
                fs::write(&main, text).map_err(at(&main))?;
                return fs::rename(&unfinished, &place.data).map_err(at(&place.data));
            }
            failure = String::from_utf8_lossy(&output.stderr).into_owned();
            if !failure.contains("locale") {
                break;
            }
        }
        Err(DevDbError::InitFailed { log_tail: failure })
    })();
    let _ = fs::remove_file(&password_file);
    if result.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    result
}

/// Sets the superuser's password without knowing the old one: a single-user session needs none.
fn set_password(place: &Place, binaries: &Binaries, password: &str) -> Result<(), DevDbError> {
    let run = || {
        let mut command = binaries.command("postgres", place.account);
        command.arg("--single").arg("-D").arg(&place.data).arg("postgres").stdin(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            std::io::Write::write_all(
                &mut input,
                format!("ALTER ROLE {SUPERUSER} PASSWORD '{password}'\n").as_bytes(),
            )?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|source| DevDbError::System { action: "run postgres", source })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && !said.contains("ERROR:") {
        Ok(())
    } else {
        Err(DevDbError::StartFailed { log_tail: said })
    }
}

fn read_password(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("postgres-password")).ok()?;
    let text = text.trim();
    // It goes into a statement and a URL; what we wrote ourselves is hexadecimal.
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| text.to_owned())
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_port() -> Result<u16, DevDbError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|source| DevDbError::System { action: "find a free port", source })
}

/// `bytes` random bytes as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String, DevDbError> {
    let mut random = vec![0_u8; bytes];
    getrandom::fill(&mut random)
        .map_err(|error| DevDbError::System { action: "get random bytes", source: error.into() })?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
