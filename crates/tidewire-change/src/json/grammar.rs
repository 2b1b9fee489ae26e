//! Is this text JSON? One pass, no recursion: hostile nesting costs a byte per level, not a stack frame.
//!
//! Grammar: RFC 8259. Like PostgreSQL's `json`, it does not look into the meaning of `\u` escapes.

use memchr::memchr2;

/// Whether `text` is exactly one JSON value, white space around it allowed.
pub fn is_json(text: &str) -> bool {
    Scanner { bytes: text.as_bytes(), at: 0 }.document().is_some()
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    /// `Some` if the whole text is one value.
    fn document(&mut self) -> Option<()> {
        // Closing brackets that are awaited, innermost last.
        let mut open: Vec<u8> = Vec::new();
        loop {
            // A value is expected here.
            self.space();
            match self.next()? {
                b'{' => {
                    self.space();
                    if self.peek() != Some(b'}') {
                        open.push(b'}');
                        self.key()?;
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.space();
                    if self.peek() != Some(b']') {
                        open.push(b']');
                        continue;
                    }
                    self.at += 1;
                }
                b'"' => self.string()?,
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                first @ (b'-' | b'0'..=b'9') => self.number(first)?,
                _ => return None,
            }
            // A value has ended here.
            loop {
                self.space();
                let Some(&closing) = open.last() else {
                    return (self.at == self.bytes.len()).then_some(());
                };
                match self.next()? {
                    b',' => {
                        if closing == b'}' {
                            self.space();
                            self.key()?;
                        }
                        break;
                    }
                    byte if byte == closing => _ = open.pop(),
                    _ => return None,
                }
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, rest: &[u8]) -> Option<()> {
        self.bytes[self.at..].starts_with(rest).then(|| self.at += rest.len())
    }

    fn key(&mut self) -> Option<()> {
        (self.next()? == b'"').then_some(())?;
        self.string()?;
        self.space();
        (self.next()? == b':').then_some(())
    }

    /// After the opening quote.
    fn string(&mut self) -> Option<()> {
        loop {
            let run = memchr2(b'"', b'\\', &self.bytes[self.at..])?;
            if self.bytes[self.at..self.at + run].iter().any(|&byte| byte < 0x20) {
                return None;
            }
            self.at += run + 1;
            if self.bytes[self.at - 1] == b'"' {
                return Some(());
            }
            match self.next()? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                b'u' => {
                    let digits = self.bytes.get(self.at..self.at + 4)?;
                    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                    self.at += 4;
                }
                _ => return None,
            }
        }
    }

    fn number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.next()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => _ = self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// At least one digit.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_is_told_from_what_only_looks_like_it() {
        for yes in [
            "null",
            " true ",
            "false",
            "0",
            "-0",
            "-1.5e+10",
            "1E5",
            "\"\"",
            r#""\u12aB\n\/""#,
            "[]",
            "{}",
            "[ ]",
            r#"{"a":[1,{"b":null}],"":"}"}"#,
            " [ 1 , [ ] , { \"a\" : { } } ]\n",
        ] {
            assert!(is_json(yes), "{yes}");
        }
        for no in [
            "",
            " ",
            "nul",
            "nullx",
            "01",
            "1.",
            ".5",
            "-",
            "1e",
            "+1",
            "\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"a\nb\"",
            "[",
            "]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{",
            "{1:2}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1}",
            "{\"a\":1]",
            "1 2",
            "[] []",
            "NaN",
        ] {
            assert!(!is_json(no), "{no}");
        }
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let deep = "[".repeat(1_000_000);
        assert!(!is_json(&deep));
        assert!(is_json(&(deep + &"]".repeat(1_000_000))));
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_parser(text in r#"[\[\]{}:,"\\a0-9.eE+\- tru]{0,12}"#) {
            let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(is_json(&text), theirs, "{}", text);
        }
    }
}
