//! The machine: where the workspace is, who we are, which programs are there, and running them.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What went wrong, and what to do.
#[derive(Debug)]
pub(crate) struct Trouble {
    message: String,
    advice: String,
}

impl Trouble {
    pub(crate) fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { message: message.into(), advice: advice.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  what to do: {}", self.message, self.advice)
    }
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    // Set when this program was built; the folder may have been moved since, so ask Cargo first.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where Cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    let named = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"].iter().find_map(std::env::var_os);
    named.map_or_else(|| root().join("target"), |named| root().join(named))
}

/// Cargo itself.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // `cargo run` sets these for this program; they would make the inner Cargo rebuild.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn is_root() -> bool {
    // The owner of our own process, as the kernel shows it; elsewhere `id` knows.
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata.uid() == 0,
        Err(_) => output("id", ["-u"]).is_some_and(|id| id.trim() == "0"),
    }
}

/// Whether a program is in PATH.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// What a program says, if it succeeds.
pub(crate) fn output(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program whose output the developer should see. `false`: it failed or could not be run.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    // Standard output is for results: `./x run --json` promises one line there and nothing else.
    let out = std::io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
    command.stdin(Stdio::null()).stdout(out).status().is_ok_and(|status| status.success())
}

/// This project's cache folder; the same rule as in `tidewire-devdb`.
pub(crate) fn cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TIDEWIRE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tidewire")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/tidewire")))
        .unwrap_or_else(|| target_dir().join("cache"))
}
