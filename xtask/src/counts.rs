//! Reading how many tests passed and failed from what the test runners print.

/// Tests that passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Which runner printed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Nextest,
    /// `cargo test`; with `--doc`, none may be right.
    CargoTest,
    Node,
    Pytest,
}

impl Runner {
    /// The sum of all summaries in `text`; `None`: there is none.
    pub(crate) fn read(self, text: &str) -> Option<Counts> {
        let mut sum: Option<Counts> = None;
        for line in text.lines() {
            let line = strip_colours(line);
            let found = match self {
                Self::Nextest => nextest(&line),
                Self::CargoTest => cargo_test(&line),
                Self::Node => node(&line),
                Self::Pytest => pytest(&line),
            };
            if let Some(found) = found {
                sum.get_or_insert_default().add(found);
            }
        }
        sum
    }
}

/// `Summary [  5.089s] 20 tests run: 19 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
fn nextest(line: &str) -> Option<Counts> {
    let line = line.trim_start();
    if !line.starts_with("Summary [") {
        return None;
    }
    let (_, results) = line.split_once(" run: ")?;
    Some(count_words(results, &["passed"], &["failed", "timed", "exec"]))
}

/// `test result: ok. 19 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 5.19s`
fn cargo_test(line: &str) -> Option<Counts> {
    let (_, results) = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?;
    Some(count_words(results, &["passed"], &["failed"]))
}

/// `# pass 12` (TAP) or `ℹ pass 12` (spec); likewise `fail` and `cancelled`.
fn node(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("# ").or_else(|| line.strip_prefix("ℹ "))?;
    let (word, count) = rest.split_once(' ')?;
    let count = count.trim().parse().ok()?;
    match word {
        "pass" => Some(Counts { passed: count, failed: 0 }),
        "fail" | "cancelled" => Some(Counts { passed: 0, failed: count }),
        _ => None,
    }
}

/// `=== 3 passed, 1 failed, 2 skipped, 1 error in 2.31s ===`, also without the frame
fn pytest(line: &str) -> Option<Counts> {
    let line = line.trim_matches(|c| c == '=' || c == ' ');
    let (results, took) = line.rsplit_once(" in ")?;
    if !took.starts_with(|c: char| c.is_ascii_digit()) || !results.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let known =
        ["passed", "failed", "error", "errors", "skipped", "deselected", "warning", "warnings", "xfailed"];
    if !results.split([' ', ',']).any(|word| known.contains(&word)) {
        return None;
    }
    Some(count_words(results, &["passed"], &["failed", "error", "errors"]))
}

/// Sums the numbers before certain words, outside of parentheses.
fn count_words(text: &str, passed: &[&str], failed: &[&str]) -> Counts {
    let mut plain = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth > 0 => {}
            ',' | ';' => plain.push(' '),
            _ => plain.push(c),
        }
    }
    let words: Vec<&str> = plain.split_whitespace().collect();
    let mut counts = Counts::default();
    for pair in words.windows(2) {
        let Ok(count) = pair[0].parse::<u64>() else { continue };
        if passed.contains(&pair[1]) {
            counts.passed += count;
        } else if failed.contains(&pair[1]) {
            counts.failed += count;
        }
    }
    counts
}

fn strip_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // ESC [ … letter
            for c in chars.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64) -> Option<Counts> {
        Some(Counts { passed, failed })
    }

    #[test]
    fn nextest_summaries() {
        let read = |text: &str| Runner::Nextest.read(text);
        assert_eq!(read("     Summary [   5.089s] 20 tests run: 20 passed, 0 skipped"), counts(20, 0));
        assert_eq!(
            read(
                "     Summary [   5.1s] 18/20 tests run: 15 passed (2 slow, 1 flaky), 2 failed, 1 timed out, 9 skipped"
            ),
            counts(15, 3)
        );
        assert_eq!(
            read("\u{1b}[32m     Summary\u{1b}[0m [  0.1s] \u{1b}[1m1\u{1b}[0m test run: 1 passed"),
            counts(1, 0)
        );
        assert_eq!(read("error: could not compile"), None);
    }

    #[test]
    fn cargo_test_results_are_summed() {
        let text = "test result: ok. 19 passed; 0 failed; 0 ignored; finished in 5.19s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; finished in 1s";
        assert_eq!(Runner::CargoTest.read(text), counts(20, 2));
    }

    #[test]
    fn node_reporters() {
        assert_eq!(Runner::Node.read("# tests 5\n# pass 4\n# fail 1\n# cancelled 0"), counts(4, 1));
        assert_eq!(Runner::Node.read("ℹ tests 7\nℹ pass 5\nℹ fail 1\nℹ cancelled 1\nℹ todo 0"), counts(5, 2));
        assert_eq!(Runner::Node.read("# Subtest: pass 3 things"), None);
    }

    #[test]
    fn pytest_summaries() {
        assert_eq!(
            Runner::Pytest.read("==== 3 passed, 1 failed, 2 skipped, 1 error in 2.31s ===="),
            counts(3, 2)
        );
        assert_eq!(Runner::Pytest.read("12 passed in 0.5s"), counts(12, 0));
        assert_eq!(Runner::Pytest.read("12 passed, 1 warning in 65.20s (0:01:05)"), counts(12, 0));
        assert_eq!(Runner::Pytest.read("collected 12 items in 3 files"), None);
    }
}
