//! Everything the command says: failures, progress, and where logs go.
//!
//! Standard output belongs to results, standard error to progress and logs. In JSON mode the only bytes on
//! standard output are one line. A reader that went away is no reason to fail.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use tidewire_devdb::DevDbError;
use tidewire_server::StartError;
use tracing_subscriber::EnvFilter;

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `dev` for a person: progress and a banner; only warnings are logged.
    Human,
    /// `dev` for a script.
    Json,
    /// Every other verb.
    Plain,
}

/// Why the command failed: a stable code, a sentence, and what to do.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    code: String,
    message: String,
    advice: String,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), advice: advice.into() }
    }

    pub(crate) fn system(action: &str, source: &dyn Error) -> Self {
        let message = format!("cannot {action}: {}", chain(source));
        Self::new("SystemError", message, "check the system's limits and permissions")
    }

    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Self::new("Usage", first.trim_start_matches("error: "), "run `tidewire help` to see what can be said")
    }

    pub(crate) fn port_in_use(port: u16) -> Self {
        let advice = "stop the program that listens there, or start with `--port 0` to get a free port";
        Self::new("PortInUse", format!("port {port} on 127.0.0.1 is in use"), advice)
    }

    /// Says it where the mode's reader looks.
    pub(crate) fn report(&self, mode: Mode) {
        if mode == Mode::Json {
            print_json(&serde_json::json!({ "error": self }));
        }
        let mut err = io::stderr().lock();
        let _ = writeln!(err, "error: {} ({})\n  what to do: {}", self.message, self.code, self.advice);
    }
}

impl From<DevDbError> for Failure {
    fn from(error: DevDbError) -> Self {
        Self { code: error.code().into(), message: chain(&error), advice: error.advice() }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let message = match &error {
            StartError::Config(problems) => {
                let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
                all.join("; ")
            }
            other => chain(other),
        };
        Self::new(error.code(), message, error.advice())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// One line of JSON on standard output.
pub(crate) fn print_json(value: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(value) {
        print(&line);
    }
}

/// A text on standard output.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Logs go to standard error, filtered by `TIDEWIRE_LOG` (`info`, `tidewire_server=debug`, …).
pub(crate) fn start_logging(mode: Mode) {
    let level = if mode == Mode::Human { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("TIDEWIRE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let is_terminal = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
}

/// Progress of a start, with the time each step took.
#[derive(Debug)]
pub(crate) struct Steps {
    is_shown: bool,
    began: Instant,
    step: Instant,
}

impl Steps {
    pub(crate) fn new(mode: Mode) -> Self {
        let now = Instant::now();
        Self { is_shown: mode == Mode::Human, began: now, step: now }
    }

    /// A step is done.
    pub(crate) fn done(&mut self, what: &str) {
        let took = self.step.elapsed();
        self.step = Instant::now();
        if self.is_shown {
            let _ = writeln!(io::stderr().lock(), "  {what:<52} {:>6.2} s", took.as_secs_f64());
        } else {
            tracing::info!(elapsed_ms = took.as_millis(), "{what}");
        }
    }

    /// Something takes its time; say what.
    pub(crate) fn begin(&self, what: &str) {
        if self.is_shown {
            let _ = writeln!(io::stderr().lock(), "  {what}");
        }
    }

    pub(crate) fn total(&self) -> Duration {
        self.began.elapsed()
    }
}
