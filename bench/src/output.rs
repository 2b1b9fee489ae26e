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

/// The command as it was given, for the record.
pub(crate) fn command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(first) = words.first_mut() {
        *first = "tidewire-bench".into();
    }
    words.join(" ")
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
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(0.0), "0");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(1_234_567.0), "1 234 567");
    }
}
