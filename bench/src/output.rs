//! Results go to standard output, as Markdown; what happens meanwhile goes to standard error.

use std::io::Write as _;
use std::time::Duration;

/// A line of the result.
pub(crate) fn line(text: &str) {
    // Whoever reads may have gone; there is nobody left to tell.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line about what is being done.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Options whose values must not be seen.
const SECRETS: [&str; 3] = ["--key", "--jwt-secret", "--db-url"];

/// The command as it was given, for the record; without secrets.
pub(crate) fn command() -> String {
    discreet(std::env::args().skip(1))
}

fn discreet(words: impl Iterator<Item = String>) -> String {
    let mut said = String::from("tidewire-bench");
    let mut is_secret = false;
    for word in words {
        said.push(' ');
        match word.split_once('=') {
            _ if is_secret => said.push('…'),
            Some((option, _)) if SECRETS.contains(&option) => {
                said.push_str(option);
                said.push_str("=…");
            }
            _ => said.push_str(&word),
        }
        is_secret = SECRETS.contains(&word.as_str());
    }
    said
}

/// A count with thousands separated by spaces.
pub(crate) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.char_indices() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Microseconds in milliseconds.
pub(crate) fn ms(micros: u64) -> String {
    let millis = micros as f64 / 1000.0;
    match micros {
        0..1_000 => format!("{millis:.3}"),
        1_000..10_000 => format!("{millis:.2}"),
        _ => format!("{millis:.1}"),
    }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// A Markdown table with two columns, printed as it grows.
pub(crate) struct Table;

impl Table {
    pub(crate) fn begin(title: &str) -> Self {
        line(&format!("\n### {title}\n"));
        line("| measure | value |");
        line("| --- | --- |");
        Table
    }

    pub(crate) fn row(&self, measure: &str, value: &str) {
        line(&format!("| {measure} | {value} |"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_shown_without_secrets() {
        let words = ["idle", "--key", "k", "--pid", "7", "--jwt-secret=s", "--db-url", "postgres://u:p@h"];
        assert_eq!(
            discreet(words.into_iter().map(str::to_owned)),
            "tidewire-bench idle --key … --pid 7 --jwt-secret=… --db-url …"
        );
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(0.0), "0");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(1_234_567.0), "1 234 567");
    }
}
