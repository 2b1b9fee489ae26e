//! `./x test`: everything that continuous integration runs, step by step, and one line at the end.
//!
//! The last line on standard output is exactly `N passed, N failed`. A step that fails without a failed
//! test counts as one, and so does a test step that ran nothing. A step is left out only when a tool is
//! missing that cannot be had without rights or a download of its own, and then loudly; in continuous
//! integration (`CI` is set) what can be installed must be there.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use crate::counts::{Counts, Runner};
use crate::postgres;
use crate::steps::say;
use crate::system::{cargo, has, is_root, output, root, succeeds, target_dir};

/// Crates that promise to build for the browser.
const PURE: &[&str] = &["tidewire-protocol", "tidewire-change", "tidewire-presence", "tidewire-engine"];

/// What became of a step.
enum Outcome {
    Done(Counts),
    /// Left out, and why.
    Skipped(String),
}

type StepResult = Result<Outcome, String>;
type RunStep = fn() -> StepResult;

/// The steps in their order: cheap and telling first.
const STEPS: &[(&str, RunStep)] = &[
    ("fmt", || check(cargo().args(["fmt", "--all", "--check"]))),
    ("clippy", || check(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("deny", deny),
    ("wasm", wasm),
    ("docs", docs),
    ("rust", rust),
    ("doctests", || tests(cargo().args(["test", "--workspace", "--doc"]), Runner::CargoTest)),
    ("build", || check(cargo().args(["build", "--release", "--bin", "tidewire"]))),
    ("js", || node("js")),
    ("python", python),
    ("browser", browser),
];

/// Runs all steps, or those that are named.
pub(crate) fn test(names: &[String]) -> ExitCode {
    if let Some(unknown) = names.iter().find(|name| !STEPS.iter().any(|(step, _)| step == name)) {
        let known: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        say(&format!("error: there is no step {unknown:?}\n  what to do: choose from {}", known.join(", ")));
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    let mut sum = Counts::default();
    let mut lines = Vec::new();
    if let Err(trouble) = postgres::ensure() {
        say(&trouble.to_string());
        lines.push("setup      FAILED   PostgreSQL's programs are missing".to_owned());
        sum.failed += 1;
    }
    for (name, step) in STEPS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        say(&format!("\n==> {name}"));
        let step_began = Instant::now();
        let result = step();
        let took = step_began.elapsed().as_secs_f64();
        let line = match result {
            Ok(Outcome::Done(counts)) => {
                sum.add(counts);
                let verdict = if counts.failed == 0 { "ok" } else { "FAILED" };
                let tests = if counts == Counts::default() {
                    String::new()
                } else {
                    format!("{} passed, {} failed", counts.passed, counts.failed)
                };
                format!("{name:<10} {verdict:<8} {took:>6.1} s   {tests}")
            }
            Ok(Outcome::Skipped(reason)) => format!("{name:<10} SKIPPED  {took:>6.1} s   {reason}"),
            Err(reason) => {
                sum.failed += 1;
                format!("{name:<10} FAILED   {took:>6.1} s   {reason}")
            }
        };
        let line = line.trim_end().to_owned();
        say(&format!("    {line}"));
        lines.push(line);
    }
    say(&format!("\n==> all steps, {:.0} s", began.elapsed().as_secs_f64()));
    for line in lines {
        let line = line.trim_end().to_owned();
        say(&format!("    {line}"));
    }
    let _ = writeln!(std::io::stdout(), "{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}

/// A command that has no tests to count.
fn check(command: &mut Command) -> StepResult {
    let (is_ok, _) = run(command)?;
    if is_ok { Ok(Outcome::Done(Counts::default())) } else { Err("see above".into()) }
}

/// A command that runs tests.
fn tests(command: &mut Command, runner: Runner) -> StepResult {
    let (is_ok, text) = run(command)?;
    match runner.read(&text) {
        Some(counts) if !is_ok && counts.failed == 0 => {
            // The tests passed and something around them did not.
            Ok(Outcome::Done(Counts { failed: 1, ..counts }))
        }
        Some(counts) if counts == Counts::default() && runner != Runner::CargoTest => {
            Err("no test ran".into())
        }
        Some(counts) => Ok(Outcome::Done(counts)),
        None => Err(if is_ok { "no summary was printed".into() } else { "see above".into() }),
    }
}

/// Runs a command, showing and keeping what it prints.
fn run(command: &mut Command) -> Result<(bool, String), String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| format!("{name} cannot be run: {error}"))?;
    let (lines, kept) = channel();
    let readers = [
        child.stdout.take().map(|from| tee(from, lines.clone())),
        child.stderr.take().map(|from| tee(from, lines.clone())),
    ];
    drop(lines);
    let mut text = String::new();
    for line in kept {
        text.push_str(&line);
    }
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    let status = child.wait().map_err(|error| format!("{name} cannot be waited for: {error}"))?;
    Ok((status.success(), text))
}

fn tee(from: impl Read + Send + 'static, lines: Sender<String>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            // Standard output is kept for the last line.
            let _ = std::io::stderr().lock().write_all(&bytes);
            let _ = lines.send(String::from_utf8_lossy(&bytes).into_owned());
            bytes.clear();
        }
    })
}

fn rust() -> StepResult {
    if output("cargo", ["nextest", "--version"]).is_some() {
        let profile = if in_ci() { "ci" } else { "default" };
        let mut command = cargo();
        tests(command.args(["nextest", "run", "--workspace", "--profile", profile]), Runner::Nextest)
    } else {
        say("    cargo-nextest is not installed: using cargo test");
        tests(cargo().args(["test", "--workspace", "--all-targets", "--no-fail-fast"]), Runner::CargoTest)
    }
}

fn docs() -> StepResult {
    check(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn deny() -> StepResult {
    if output("cargo", ["deny", "--version"]).is_none() {
        return Ok(Outcome::Skipped(
            "cargo-deny is not installed (cargo install --locked cargo-deny)".into(),
        ));
    }
    check(cargo().args(["deny", "check"]))
}

/// The pure crates build for the browser, with an installed target or with Debian's compiler for the web, which
/// builds the standard library from its source.
fn wasm() -> StepResult {
    const TARGET: &str = "wasm32-unknown-unknown";
    let sysroot = output("rustc", ["--print", "sysroot"]).unwrap_or_default();
    let mut command = if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir() {
        let mut command = cargo();
        command.args(["check", "--target", TARGET]);
        command
    } else {
        let source = Path::new("/usr/lib/rustlib/src/rust/library/std");
        if !source.is_dir() && in_ci() && is_root() {
            apt_install(&["rustc-web", "cargo-web", "rust-web-src", "lld"]);
        }
        if !source.is_dir() || !has("wasm-ld") {
            let reason = "no wasm target (rustup target add wasm32-unknown-unknown), nor Debian's rustc-web, \
                          cargo-web, rust-web-src and lld";
            return Ok(Outcome::Skipped(reason.into()));
        }
        let mut command = Command::new("/usr/bin/cargo");
        command
            .args(["check", "-Zbuild-std=std,panic_abort", "--target", TARGET])
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld")
            .env("CARGO_TARGET_DIR", target_dir().join("wasm"))
            .current_dir(root());
        command
    };
    for name in PURE {
        command.args(["--package", name]);
    }
    check(&mut command)
}

/// A folder of tests with official clients. `Ok(None)`: this checkout has no such folder.
fn conformance(name: &str) -> Result<Option<PathBuf>, String> {
    let path = format!("conformance/{name}");
    let folder = root().join(&path);
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    let mut git = Command::new("git");
    git.args(["ls-files", "--", &path]).current_dir(root()).stderr(Stdio::null());
    let is_in_git = git.output().is_ok_and(|output| !output.stdout.is_empty());
    if is_in_git { Err(format!("{path} is in git but not here")) } else { Ok(None) }
}

/// The release binary that the clients talk to; built when the step runs alone.
fn server() -> Result<PathBuf, String> {
    let mut build = cargo();
    if !succeeds(build.args(["build", "--release", "--quiet", "--bin", "tidewire"])) {
        return Err("tidewire could not be built".into());
    }
    Ok(target_dir().join("release/tidewire"))
}

fn node(name: &str) -> StepResult {
    let Some(folder) = conformance(name)? else {
        return Ok(Outcome::Skipped(format!("conformance/{name} is not in this checkout")));
    };
    if !(has("node") && has("npm")) {
        return Err("node and npm are missing: install Node 20 or newer".into());
    }
    let server = server()?;
    // A failure of the network is the usual reason, and passes.
    let install =
        || succeeds(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder));
    if !(install() || install()) {
        return Err("npm ci failed".into());
    }
    tests(
        Command::new("npm").args(["test", "--silent"]).current_dir(&folder).env("TIDEWIRE_BIN", server),
        Runner::Node,
    )
}

fn python() -> StepResult {
    let Some(folder) = conformance("python")? else {
        return Ok(Outcome::Skipped("conformance/python is not in this checkout".into()));
    };
    if !has("python3") {
        return Err("python3 is missing: install Python 3.11 or newer".into());
    }
    let server = server()?;
    let venv = target_dir().join("python");
    let python = venv.join("bin/python");
    let works = || output(&python.to_string_lossy(), ["-m", "pip", "--version"]).is_some();
    let make = || succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    if !works() && !make() {
        // Debian keeps a part of the standard library in a package of its own.
        apt_install(&["python3-venv"]);
        if !make() {
            return Err("a virtual environment cannot be made: apt-get install python3-venv".into());
        }
    }
    let install = || {
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            "requirements.txt",
        ]);
        succeeds(pip.current_dir(&folder))
    };
    if !(install() || install()) {
        return Err("pip install failed".into());
    }
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "-p", "no:cacheprovider"]).current_dir(&folder);
    tests(pytest.env("TIDEWIRE_BIN", server).env("PYTHONDONTWRITEBYTECODE", "1"), Runner::Pytest)
}

fn browser() -> StepResult {
    let has_browser = || {
        std::env::var_os("TIDEWIRE_CHROMIUM").is_some()
            || ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
                .iter()
                .any(|name| has(name))
    };
    if conformance("browser")?.is_some() && !has_browser() {
        apt_install(&["chromium"]);
        if !has_browser() {
            let reason = "chromium is not installed (apt-get install chromium)".to_owned();
            return if in_ci() { Err(reason) } else { Ok(Outcome::Skipped(reason)) };
        }
    }
    node("browser")
}

/// As root on Debian: installs packages. Whether it helped shows in what is tried next.
fn apt_install(packages: &[&str]) {
    if !is_root() || !has("apt-get") {
        return;
    }
    say(&format!("    installing {} (apt-get)", packages.join(" ")));
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"])
            .args(packages);
        succeeds(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if !install() {
        let _ = succeeds(Command::new("apt-get").arg("update"));
        install();
    }
}
