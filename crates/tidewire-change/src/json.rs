//! PostgreSQL text output → JSON bytes, streamed into the caller's buffer. No JSON tree.
//!
//! Owns the meaning of a value in `record` and `old_record`. Input is the text output of the type under the
//! settings that the replication session and the evaluator fix: DateStyle ISO, TimeZone UTC, IntervalStyle
//! postgres, bytea_output hex, extra_float_digits ≥ 1. Output is what `to_jsonb` prints for that value, except
//! that no space follows `:` and `,`, the keys of a composite stay in attribute order, and at the top level
//!
//! * NaN and infinities of float and numeric are `null` (inside arrays and composites they are strings);
//! * bytea has no `\x` (inside arrays and composites it has);
//! * json and jsonb are embedded as they are, white space included;
//! * char(n) and bit(n) are complete, where the reference cuts them to one character.
//!
//! It cannot fail: text that does not look like its type, which must not happen, becomes a JSON string. The
//! output is valid JSON whatever comes in.
//!
//! Spec: PROTOCOL.md §5.9, quirk Q27.

mod grammar;
mod nested;

use std::borrow::Cow;

use crate::shape::Shape;

pub use grammar::is_json;

/// Writes one value that is not NULL (for NULL write `null`).
pub fn write_value(out: &mut Vec<u8>, shape: &Shape, text: &str) {
    match shape {
        Shape::Float | Shape::Numeric if is_not_finite(text) => out.extend_from_slice(b"null"),
        Shape::Bytea => match text.strip_prefix("\\x") {
            Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => quote(out, hex),
            _ => write_string(out, text),
        },
        _ => write_nested(out, shape, text),
    }
}

/// Writes one value as `to_jsonb` prints it inside an array or a composite.
fn write_nested(out: &mut Vec<u8>, shape: &Shape, text: &str) {
    let start = out.len();
    let is_written = match shape {
        Shape::Bool => boolean(out, text),
        Shape::Integer => integer(out, text),
        Shape::Float => float(out, text),
        Shape::Numeric => copy_if(out, text, is_decimal(text)),
        Shape::Text | Shape::Bytea => false,
        Shape::Json => copy_if(out, text, is_json(text)),
        Shape::Timestamp => timestamp(out, text, false),
        Shape::Timestamptz => timestamp(out, text, true),
        Shape::Hstore => nested::hstore(out, text).is_some(),
        Shape::Array { element, delimiter: b' ' } => {
            nested::vector(out, element, text);
            true
        }
        Shape::Array { element, delimiter } => nested::array(out, element, *delimiter, text).is_some(),
        Shape::Composite(fields) => nested::composite(out, fields, text).is_some(),
    };
    if !is_written {
        out.truncate(start);
        write_string(out, text);
    }
}

/// Writes `s` as a JSON string. Escapes what JSON demands, in the forms PostgreSQL uses.
pub fn write_string(out: &mut Vec<u8>, s: &str) {
    out.reserve(s.len() + 2);
    out.push(b'"');
    let mut rest = s.as_bytes();
    loop {
        let (clean, tail) = rest.split_at(clean_length(rest));
        out.extend_from_slice(clean);
        let Some((&byte, tail)) = tail.split_first() else { break };
        rest = tail;
        match byte {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            0x08 => out.extend_from_slice(br"\b"),
            0x0c => out.extend_from_slice(br"\f"),
            _ => {
                let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                out.extend_from_slice(br"\u00");
                out.extend([hex(byte >> 4), hex(byte & 0x0f)]);
            }
        }
    }
    out.push(b'"');
}

/// How many bytes at the front need no escape. Whole chunks are judged without a branch per byte, which
/// compilers turn into vector instructions: most text has nothing to escape.
fn clean_length(bytes: &[u8]) -> usize {
    let needs_escape = |byte: &u8| (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    let (chunks, _) = bytes.as_chunks::<16>();
    let is_clean = |chunk: &&[u8; 16]| !chunk.iter().fold(false, |any, byte| any | needs_escape(byte));
    let clean = 16 * chunks.iter().take_while(is_clean).count();
    clean + bytes[clean..].iter().position(needs_escape).unwrap_or(bytes.len() - clean)
}

/// `text`, which needs no escapes, in quotes.
fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn copy_if(out: &mut Vec<u8>, text: &str, is_valid: bool) -> bool {
    if is_valid {
        out.extend_from_slice(text.as_bytes());
    }
    is_valid
}

fn is_not_finite(text: &str) -> bool {
    matches!(text, "NaN" | "Infinity" | "-Infinity")
}

fn boolean(out: &mut Vec<u8>, text: &str) -> bool {
    let word: &[u8] = match text {
        "t" | "true" => b"true",
        "f" | "false" => b"false",
        _ => return false,
    };
    out.extend_from_slice(word);
    true
}

fn integer(out: &mut Vec<u8>, text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    copy_if(out, text, is_whole(digits))
}

/// Digits without a superfluous leading zero, as JSON wants them.
fn is_whole(digits: &str) -> bool {
    let digits = digits.as_bytes();
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0')
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.split_once('.') {
        None => is_whole(digits),
        Some((whole, fraction)) => {
            is_whole(whole) && !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit())
        }
    }
}

/// Digits that a float4 or float8 can need on either side of the point.
const FLOAT_EXPONENT_LIMIT: usize = 400;

/// `to_jsonb` goes through numeric: no exponent, no negative zero.
fn float(out: &mut Vec<u8>, text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return copy_if(out, if text == "-0" { "0" } else { text }, is_decimal(text));
    };
    let Ok(exponent) = exponent.parse::<i32>() else {
        return false;
    };
    let shift = exponent.unsigned_abs() as usize;
    if !is_decimal(mantissa) || shift > FLOAT_EXPONENT_LIMIT {
        return false;
    }
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.as_bytes(), fraction.as_bytes());
    out.extend_from_slice(sign.as_bytes());
    let zeros = |out: &mut Vec<u8>, count: usize| out.resize(out.len() + count, b'0');
    if exponent < 0 {
        // The mantissa has one digit before the point, so all of it moves behind.
        if whole.len() != 1 || shift == 0 {
            return false;
        }
        out.extend_from_slice(b"0.");
        zeros(out, shift - 1);
        out.extend_from_slice(whole);
        out.extend_from_slice(fraction);
    } else {
        let moved = shift.min(fraction.len());
        if whole == b"0" {
            return false;
        }
        out.extend_from_slice(whole);
        out.extend_from_slice(&fraction[..moved]);
        zeros(out, shift - moved);
        if moved < fraction.len() {
            out.push(b'.');
            out.extend_from_slice(&fraction[moved..]);
        }
    }
    true
}

/// `2024-01-02 03:04:05.678[+00][ BC]` with `T`, and the zone with minutes. `infinity` and anything else
/// without a space is left to the caller: a plain string.
fn timestamp(out: &mut Vec<u8>, text: &str, has_zone: bool) -> bool {
    let Some((date, rest)) = text.split_once(' ') else {
        return false;
    };
    let (time, era) = match rest.strip_suffix(" BC") {
        Some(time) => (time, " BC"),
        None => (rest, ""),
    };
    let is_clock = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b'.' | b'+' | b'-');
    if !date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') || !time.bytes().all(is_clock) {
        return false;
    }
    out.push(b'"');
    out.extend_from_slice(date.as_bytes());
    out.push(b'T');
    out.extend_from_slice(time.as_bytes());
    if has_zone {
        match time.rfind(['+', '-']).map(|at| time.len() - at) {
            Some(3) => out.extend_from_slice(b":00"),
            Some(_) => {}
            None => return false,
        }
    }
    out.extend_from_slice(era.as_bytes());
    out.push(b'"');
    true
}

/// The text of a quoted token: borrowed unless something was escaped.
type Unescaped<'a> = Cow<'a, str>;

#[cfg(test)]
mod tests;
