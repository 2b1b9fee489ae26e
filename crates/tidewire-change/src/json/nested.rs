//! Values made of values: arrays, composites, hstore.
//!
//! Owns the quoting rules of `array_out`, `record_out` and `hstore_out`, read back strictly: `None` means the
//! text is not what those functions print. What was written until then is the caller's to remove.

use memchr::memchr2;

use super::{Unescaped, write_nested, write_string};
use crate::shape::{CompositeField, Shape};

/// PostgreSQL's `MAXDIM`.
const DIMENSIONS_LIMIT: usize = 6;

/// `{1,NULL,"a\"b"}`, nested for dimensions, `[0:2]={…}` when the bounds are unusual (`to_jsonb` drops them).
pub(super) fn array(out: &mut Vec<u8>, element: &Shape, delimiter: u8, text: &str) -> Option<()> {
    let body = match text.strip_prefix('[') {
        Some(bounds) => bounds.split_once('=')?.1,
        None => text,
    };
    let mut cursor = Cursor { text: body, at: 0 };
    dimension(out, element, delimiter, &mut cursor, 1)?;
    cursor.is_at_end().then_some(())
}

fn dimension(
    out: &mut Vec<u8>,
    element: &Shape,
    delimiter: u8,
    cursor: &mut Cursor<'_>,
    depth: usize,
) -> Option<()> {
    cursor.expect(b'{')?;
    out.push(b'[');
    if cursor.peek()? == b'}' {
        cursor.at += 1;
        out.push(b']');
        return Some(());
    }
    loop {
        match cursor.peek()? {
            b'{' if depth < DIMENSIONS_LIMIT => dimension(out, element, delimiter, cursor, depth + 1)?,
            b'"' => write_nested(out, element, &cursor.quoted(false)?),
            _ => {
                let token = cursor.until(|byte| byte == delimiter || byte == b'}')?;
                if token.is_empty() || token.contains(['{', '"', '\\']) {
                    return None;
                }
                if token.eq_ignore_ascii_case("null") {
                    out.extend_from_slice(b"null");
                } else {
                    write_nested(out, element, token);
                }
            }
        }
        match cursor.next()? {
            b'}' => break,
            byte if byte == delimiter => out.push(b','),
            _ => return None,
        }
    }
    out.push(b']');
    Some(())
}

/// int2vector, oidvector: elements between spaces.
pub(super) fn vector(out: &mut Vec<u8>, element: &Shape, text: &str) {
    out.push(b'[');
    for (index, token) in text.split(' ').filter(|token| !token.is_empty()).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_nested(out, element, token);
    }
    out.push(b']');
}

/// `(1,,"a ""quoted"" text")`: an empty field is NULL.
pub(super) fn composite(out: &mut Vec<u8>, fields: &[CompositeField], text: &str) -> Option<()> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.expect(b'(')?;
    out.push(b'{');
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            cursor.expect(b',')?;
            out.push(b',');
        }
        write_string(out, &field.name);
        out.push(b':');
        match cursor.peek()? {
            b',' | b')' => out.extend_from_slice(b"null"),
            b'"' => write_nested(out, &field.shape, &cursor.quoted(true)?),
            _ => {
                let token = cursor.until(|byte| byte == b',' || byte == b')')?;
                write_nested(out, &field.shape, token);
            }
        }
    }
    cursor.expect(b')')?;
    out.push(b'}');
    cursor.is_at_end().then_some(())
}

/// `"a"=>"1", "b"=>NULL`.
pub(super) fn hstore(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let mut cursor = Cursor { text, at: 0 };
    out.push(b'{');
    while !cursor.is_at_end() {
        if cursor.at > 0 {
            cursor.expect(b',')?;
            cursor.expect(b' ')?;
            out.push(b',');
        }
        write_string(out, &cursor.quoted(false)?);
        out.push(b':');
        cursor.expect(b'=')?;
        cursor.expect(b'>')?;
        if cursor.peek()? == b'"' {
            write_string(out, &cursor.quoted(false)?);
        } else {
            b"NULL".iter().try_for_each(|&byte| cursor.expect(byte))?;
            out.extend_from_slice(b"null");
        }
    }
    out.push(b'}');
    Some(())
}

struct Cursor<'a> {
    text: &'a str,
    /// Always a character boundary: only ASCII is stepped over byte by byte.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// Up to an ASCII byte that `ends` the token and stays unread; `None` if there is none.
    fn until(&mut self, ends: impl Fn(u8) -> bool) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let length = rest.bytes().position(ends)?;
        self.at += length;
        Some(&rest[..length])
    }

    /// A token in double quotes, unescaped. `\c` is `c`; with `doubles`, `""` is a quote.
    fn quoted(&mut self, doubles: bool) -> Option<Unescaped<'a>> {
        self.expect(b'"')?;
        let mut copied = String::new();
        loop {
            let rest = &self.text[self.at..];
            let length = memchr2(b'"', b'\\', rest.as_bytes())?;
            let run = &rest[..length];
            let is_quote = rest.as_bytes()[length] == b'"';
            self.at += length + 1;
            if !is_quote {
                let escaped = self.text[self.at..].chars().next()?;
                self.at += escaped.len_utf8();
                copied.push_str(run);
                copied.push(escaped);
            } else if doubles && self.peek() == Some(b'"') {
                self.at += 1;
                copied.push_str(run);
                copied.push('"');
            } else if copied.is_empty() {
                return Some(Unescaped::Borrowed(run));
            } else {
                copied.push_str(run);
                return Some(Unescaped::Owned(copied));
            }
        }
    }
}
