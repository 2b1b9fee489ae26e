//! One instance per data folder: `tidewire.lock`, held while we live, naming our process and our URL.
//!
//! The kernel releases the lock with the process, so a file left by `kill -9` means nothing.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::output::Failure;

/// A process that was just killed holds its lock until the kernel has taken it apart.
const LAST_BREATH: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Instance {
    file: File,
}

impl Instance {
    /// Makes the folder if necessary and takes its lock.
    pub(crate) fn take(dir: &Path) -> Result<Self, Failure> {
        let not_writable = |error: io::Error| {
            let message = format!("the data folder {} cannot be used: {error}", dir.display());
            Failure::new(
                "DataDirNotWritable",
                message,
                "choose a folder that you can write to with --data-dir",
            )
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(not_writable)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(dir.join("tidewire.lock")).map_err(not_writable)?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < LAST_BREATH => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    return Err(in_use(dir, &text));
                }
                Err(TryLockError::Error(error)) => return Err(not_writable(error)),
            }
        }
        let mut instance = Self { file };
        instance.write(&format!("{}\n", std::process::id())).map_err(not_writable)?;
        Ok(instance)
    }

    /// Tells a later second instance where we are.
    pub(crate) fn announce(&mut self, url: &str) {
        if let Err(error) = self.write(&format!("{}\n{url}\n", std::process::id())) {
            tracing::warn!(%error, "cannot write the url into the lock file");
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Closing alone leaves the lock to a process that is being forked at this moment.
        let _ = self.file.unlock();
    }
}

fn in_use(dir: &Path, text: &str) -> Failure {
    let mut lines = text.lines();
    let pid = lines.next().unwrap_or("unknown");
    let dir = dir.display();
    let other = "start with another --data-dir and --port for a second one";
    match lines.next() {
        Some(url) => Failure::new(
            "DataDirInUse",
            format!("tidewire already runs in {dir}: process {pid}, {url}"),
            format!("use {url}, or stop it with `kill {pid}`; {other}"),
        ),
        None => Failure::new(
            "DataDirInUse",
            format!("tidewire is already starting in {dir}: process {pid}"),
            format!("wait for it, or stop it with `kill {pid}`; {other}"),
        ),
    }
}
