//! The server under test: starts `tidewire dev --json` in a folder, or attaches to one that runs.
//!
//! A started server ends with this value: SIGTERM, then a wait. Its log is kept in the folder and read by
//! whoever wants to know what the server said.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::args::ServerArgs;
use crate::failure::{Context as _, Failure};
use crate::process::{self, Usage};

/// `dev` promises to end within ten seconds of SIGTERM.
const GRACE: Duration = Duration::from_secs(15);

/// A server that can be connected to.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Host header.
    pub(crate) host: String,
    /// Path below which `/websocket` is.
    pub(crate) path: String,
    pub(crate) anon_key: String,
    pub(crate) jwt_secret: Option<String>,
    pub(crate) db_url: Option<String>,
    pub(crate) pid: u32,
    /// From the start of the process to its line of JSON; zero when attached.
    pub(crate) start_time: Duration,
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    child: Child,
    log: PathBuf,
    /// Removed at the end.
    temporary: Option<PathBuf>,
}

impl Server {
    /// As the arguments say.
    pub(crate) fn of(args: &ServerArgs) -> Result<Self, Failure> {
        Self::with_settings(args, &[])
    }

    /// The same, with settings of `serve` as environment variables; they have no effect on a server that runs.
    pub(crate) fn with_settings(args: &ServerArgs, settings: &[(&str, String)]) -> Result<Self, Failure> {
        if let (Some(ws_url), Some(key), Some(pid)) = (&args.ws_url, &args.key, args.pid) {
            let (address, host, path) = parse_url(ws_url)?;
            return Ok(Self {
                address,
                host,
                path,
                anon_key: key.clone(),
                jwt_secret: args.jwt_secret.clone(),
                db_url: args.db_url.clone(),
                pid,
                start_time: Duration::ZERO,
                started: None,
            });
        }
        match &args.data_dir {
            Some(folder) => Self::start(&binary(args)?, folder, None, settings),
            None => {
                let folder = temporary_folder();
                Self::start(&binary(args)?, &folder, Some(folder.clone()), settings)
            }
        }
    }

    /// Starts a server in a folder and waits until it serves.
    pub(crate) fn start(
        binary: &Path,
        folder: &Path,
        temporary: Option<PathBuf>,
        settings: &[(&str, String)],
    ) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder).context("cannot make the data folder")?;
        let log = folder.join("bench-server.log");
        let stderr = std::fs::File::create(&log).context("cannot make the server's log")?;
        let began = Instant::now();
        let mut child = Command::new(binary)
            .args(["dev", "--json", "--port", "0", "--data-dir"])
            .arg(folder.join("data"))
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .context(format!("cannot start {}", binary.display()))?;
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut text).context("cannot read the server's line of JSON")?;
        }
        let start_time = began.elapsed();
        // From here on the guard stops what was started, whatever goes wrong.
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            host: String::new(),
            path: String::new(),
            anon_key: String::new(),
            jwt_secret: None,
            db_url: None,
            pid: child.id(),
            start_time,
            started: Some(Started { child, log, temporary }),
        };
        let said: Value = serde_json::from_str(&text).context("the server did not print a line of JSON")?;
        if let Some(error) = said.get("error") {
            return Err(Failure::new(format!("the server did not start: {error}")));
        }
        let field = |name: &str| said.get(name).and_then(Value::as_str).map(str::to_owned);
        let ws_url = field("ws_url").ok_or_else(|| Failure::new("the server's line lacks ws_url"))?;
        (server.address, server.host, server.path) = parse_url(&ws_url)?;
        server.anon_key =
            field("anon_key").ok_or_else(|| Failure::new("the server's line lacks anon_key"))?;
        server.jwt_secret = field("jwt_secret");
        server.db_url = field("db_url");
        if let Some(pid) = said.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()) {
            server.pid = pid;
        }
        Ok(server)
    }

    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        process::usage(self.pid)
    }

    /// What the server has logged so far; nothing when it was not started by us.
    pub(crate) fn log(&self) -> String {
        self.started.as_ref().and_then(|it| std::fs::read_to_string(&it.log).ok()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(started) = &mut self.started else { return };
        if let Some(pid) = i32::try_from(started.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while started.child.try_wait().is_ok_and(|status| status.is_none()) {
            if began.elapsed() > GRACE {
                crate::output::note("the server did not end in time and is killed");
                let _ = started.child.kill();
                let _ = started.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(folder) = &started.temporary {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// The binary of the arguments, or the one beside this program.
pub(crate) fn binary(args: &ServerArgs) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.binary {
        return Ok(path.clone());
    }
    let own = std::env::current_exe().context("cannot find this program's folder")?;
    let beside = own.with_file_name("tidewire");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Failure::new(format!(
        "there is no {}; build it with `cargo build --release --bin tidewire` or name it with --binary",
        beside.display()
    )))
}

/// A folder of our own; Postgres refuses one that others can read, so it makes its own inside.
pub(crate) fn temporary_folder() -> PathBuf {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    std::env::temp_dir().join(format!("tidewire-bench-{}-{serial}", std::process::id()))
}

/// `ws://host:port/path` → address, host, path.
fn parse_url(url: &str) -> Result<(SocketAddr, String, String), Failure> {
    let wrong = || Failure::new(format!("`{url}` is not of the form ws://host:port/path"));
    let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let address = host
        .to_socket_addrs()
        .context(format!("`{host}` is not host:port"))?
        .find(SocketAddr::is_ipv4)
        .ok_or_else(wrong)?;
    let path = if path.is_empty() { String::new() } else { format!("/{}", path.trim_end_matches('/')) };
    Ok((address, host.to_owned(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_url_is_taken_apart() {
        let (address, host, path) = parse_url("ws://127.0.0.1:4000/realtime/v1/").unwrap();
        assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], 4000)));
        assert_eq!((host.as_str(), path.as_str()), ("127.0.0.1:4000", "/realtime/v1"));
        assert!(parse_url("http://127.0.0.1:4000").is_err());
        assert!(parse_url("ws://nothing").is_err());
    }
}
