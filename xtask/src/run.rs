//! `./x run`, `./x bench`, `./x fmt`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::postgres;
use crate::steps::Step;
use crate::system::{Trouble, cargo, root, succeeds, target_dir};

/// Everything from nothing to a page to open.
pub(crate) fn run(args: &[String]) -> Result<(), Trouble> {
    if !args.iter().any(|arg| arg == "--help" || arg == "-h") {
        postgres::ensure()?;
    }
    build_release()?;
    let mut command = Command::new(target_dir().join("release/tidewire"));
    command.args(["dev", "--demo"]).args(args).current_dir(root());
    command.env("TIDEWIRE_CACHE", crate::system::cache_dir());
    // Becoming the server, rather than starting it: signals reach it without a middleman.
    let error = command.exec();
    Err(Trouble::new(format!("tidewire could not be started: {error}"), "build it: cargo build --release"))
}

/// Builds the binary; Cargo shows its progress.
pub(crate) fn build_release() -> Result<(), Trouble> {
    let is_first = !target_dir().join("release/tidewire").exists();
    let step = is_first.then(|| Step::begin("building tidewire (the first time takes minutes)"));
    let mut command = cargo();
    command.args(["build", "--release", "--bin", "tidewire"]);
    if !is_first {
        // A build that has nothing to do should say nothing; errors are still shown.
        command.arg("--quiet");
    }
    if !succeeds(&mut command) {
        return Err(Trouble::new("tidewire could not be built", "the compiler's messages stand above"));
    }
    if let Some(step) = step {
        step.end();
    }
    Ok(())
}

/// The load generator, which starts what it needs.
pub(crate) fn bench(args: &[String]) -> Result<(), Trouble> {
    postgres::ensure()?;
    build_release()?;
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "--package", "tidewire-bench", "--"]).args(args);
    command.env("TIDEWIRE_BIN", target_dir().join("release/tidewire"));
    command.env("TIDEWIRE_CACHE", crate::system::cache_dir());
    let error = command.exec();
    Err(Trouble::new(format!("cargo could not be started: {error}"), "check that cargo is in PATH"))
}

pub(crate) fn format() -> Result<(), Trouble> {
    if succeeds(cargo().args(["fmt", "--all"])) {
        Ok(())
    } else {
        Err(Trouble::new("formatting failed", "rustup component add rustfmt"))
    }
}
