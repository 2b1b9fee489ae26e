//! One running postmaster: spawned, watched, stopped. And the remains of earlier ones.
//!
//! A keeper thread spawns the postmaster and lives exactly as long as it: the kernel's parent-death signal
//! is tied to the *thread* that spawned, so a short-lived one would end the server. The keeper also reaps
//! it; signals are sent only while it is known not to be reaped, so they never reach a stranger.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process};

use crate::DevDbError;

/// How a postmaster is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are cut, a checkpoint is written (SIGINT).
    Fast,
    /// Everything ends at once; the next start recovers from the log (SIGQUIT), like a crash.
    Immediate,
}

/// A log file keeps at most this much, and one predecessor of the same size.
const LOG_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// What an error message may quote.
const TAIL_BYTES: usize = 4096;
/// A fast shutdown writes a checkpoint; after this long it becomes an immediate one. `tidewire dev`
/// promises to be gone within 10 s.
const FAST_SHUTDOWN: Duration = Duration::from_secs(3);
const IMMEDIATE_SHUTDOWN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Postmaster {
    pid: Pid,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: Mutex<Option<String>>,
    change: Condvar,
    tail: Mutex<VecDeque<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Postmaster {
    /// Spawns `command`; its standard error goes to `log`.
    pub(crate) fn spawn(mut command: Command, log: PathBuf) -> Result<Self, DevDbError> {
        // Its own process group: Ctrl-C in a terminal is for us, and we end the server in our order.
        command.process_group(0);
        die_with_parent(&mut command);
        let shared = Arc::new(Shared::default());
        let (tell, told) = mpsc::channel();
        let keeper = Arc::clone(&shared);
        thread::Builder::new()
            .name("postmaster".into())
            .spawn(move || match command.spawn() {
                Ok(child) => {
                    let _ = tell.send(Ok(child.id()));
                    keep(child, &keeper, &log);
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            })
            .map_err(|source| DevDbError::System { action: "start a thread", source })?;
        let failed = |source| DevDbError::System { action: "run postgres", source };
        let id = told.recv().map_err(|_| failed(std::io::ErrorKind::BrokenPipe.into()))?.map_err(failed)?;
        let pid =
            i32::try_from(id).ok().and_then(Pid::from_raw).expect("invariant: a child's id is positive");
        Ok(Self { pid, shared })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.shared.ended).is_none()
    }

    /// The end of what the server logged.
    pub(crate) fn log_tail(&self) -> String {
        let bytes: Vec<u8> = lock(&self.shared.tail).iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the server accepts connections. `Ok(false)`: it ended.
    pub(crate) fn wait_ready(&self, data: &Path, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.wait_end(Duration::from_millis(5)) {
                return false;
            }
            // The last line of postmaster.pid says "ready" once connections are accepted.
            let Some(file) = PidFile::read(data) else { continue };
            if file.pid == self.pid() && file.status.as_deref() == Some("ready") {
                return true;
            }
        }
        false
    }

    /// Ends the server, in the asked way first and harder when that takes too long.
    pub(crate) fn stop(&self, how: Shutdown) {
        if how == Shutdown::Fast {
            self.signal(Signal::INT);
            if self.wait_end(FAST_SHUTDOWN) {
                return;
            }
            tracing::warn!(pid = self.pid(), "postgres did not end in time, ending it at once");
        }
        self.signal(Signal::QUIT);
        if !self.wait_end(IMMEDIATE_SHUTDOWN) {
            self.signal(Signal::KILL);
            self.wait_end(IMMEDIATE_SHUTDOWN);
        }
    }

    fn signal(&self, signal: Signal) {
        // The keeper marks the end under this lock before it reaps.
        let ended = lock(&self.shared.ended);
        if ended.is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }

    fn wait_end(&self, limit: Duration) -> bool {
        let ended = lock(&self.shared.ended);
        let (ended, _) = self
            .shared
            .change
            .wait_timeout_while(ended, limit, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.is_some()
    }
}

/// The keeper's life: log until the server and its children are gone, then reap.
fn keep(mut child: Child, shared: &Arc<Shared>, log: &Path) {
    let pump = child.stderr.take().and_then(|stderr| {
        let (shared, log) = (Arc::clone(shared), log.to_owned());
        thread::Builder::new().name("postgres-log".into()).spawn(move || pump_log(stderr, &shared, &log)).ok()
    });
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("invariant: a child's id is positive");
    // Wait without reaping: until `ended` is set, the id still belongs to our child.
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
    // A backend that outlives a killed postmaster keeps the pipe open for a moment; the last words of the
    // server itself are in the pipe already. So wait for the pump, but not for ever.
    let deadline = Instant::now() + Duration::from_millis(500);
    while pump.as_ref().is_some_and(|pump| !pump.is_finished()) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    let mut ended = lock(&shared.ended);
    let status = child.wait().map(|status| status.to_string());
    *ended = Some(status.unwrap_or_else(|error| error.to_string()));
    shared.change.notify_all();
}

fn pump_log(mut from: impl Read, shared: &Shared, path: &Path) {
    let mut log = BoundedLog::open(path);
    let mut buffer = [0_u8; 8192];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        log.write(bytes);
        let mut tail = lock(&shared.tail);
        tail.extend(bytes);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
}

/// A file that never grows beyond a limit: it becomes `….1`, and a new one begins.
struct BoundedLog {
    path: PathBuf,
    file: Option<File>,
    length: u64,
}

impl BoundedLog {
    fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).ok();
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        Self { path: path.to_owned(), file, length }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.length > LOG_LIMIT_BYTES {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            let _ = fs::rename(&self.path, old);
            *self = Self::open(&self.path);
        }
        // A full disk costs the log, never the server.
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    }
}

/// Asks the kernel to end `command`'s process when the thread that spawned it is gone, however that
/// happened: after `kill -9` of ours, no server is left behind.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let arm = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::INT))?;
        // The parent may have died between fork and the line above.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    };
    #[expect(unsafe_code, reason = "a hook between fork and exec has no safe form")]
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed. It makes
    // two system calls (prctl, getppid) and builds errors that do not allocate.
    unsafe {
        command.pre_exec(arm);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}

/// What a server says about itself in `postmaster.pid`.
struct PidFile {
    pid: u32,
    status: Option<String>,
}

impl PidFile {
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        // Line 1 is the id (negative for a single-user session), line 8 the status.
        let pid = lines.next()?.trim().parse::<i64>().ok()?.unsigned_abs();
        let status = lines.nth(6).map(|line| line.trim().to_owned());
        Some(Self { pid: u32::try_from(pid).ok()?, status })
    }
}

/// The process of a server that runs in `data`, if there is one.
pub(crate) fn running_in(data: &Path) -> Option<u32> {
    let file = PidFile::read(data)?;
    let command = command_line(file.pid)?;
    let ours = command.contains("postgres") && command.contains(data.to_str()?);
    ours.then_some(file.pid)
}

/// Ends a server that an earlier life of ours left in `data`, and removes a lock file that names a process
/// which is gone or a stranger (PostgreSQL itself refuses to start when the number was reused).
///
/// The caller holds the folder's lock, so nobody else's server can be meant.
pub(crate) fn clear_remains(data: &Path) {
    if let Some(pid) = running_in(data).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        tracing::info!(
            pid = pid.as_raw_nonzero().get(),
            "ending the postgres that an earlier run left behind"
        );
        for (signal, limit) in [(Signal::INT, 2500), (Signal::QUIT, 1000), (Signal::KILL, 1000)] {
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + Duration::from_millis(limit);
            while running_in(data).is_some() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
            if running_in(data).is_none() {
                break;
            }
        }
    }
    if running_in(data).is_none() {
        let _ = fs::remove_file(data.join("postmaster.pid"));
    }
}

#[cfg(target_os = "linux")]
fn command_line(pid: u32) -> Option<String> {
    // A zombie has an empty command line: it runs no more.
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).replace('\0', " "))
}

#[cfg(not(target_os = "linux"))]
fn command_line(pid: u32) -> Option<String> {
    let output = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
