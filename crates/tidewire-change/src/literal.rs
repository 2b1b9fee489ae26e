//! Right-hand sides of conditions, read as PostgreSQL's input functions read them, or not read at all.
//!
//! Owns the rule that makes in-process decisions safe: a literal is accepted only in the spellings whose
//! meaning does not depend on a setting and is tested against PostgreSQL. Everything else (`None`) is asked
//! there, unusual but legal spellings and errors alike.
//!
//! The same type holds a column's value, read from the type's text output.

use std::cmp::Ordering;

/// A value of one of the types that are compared in process.
#[derive(Clone, Debug)]
pub(crate) enum Scalar {
    Bool(bool),
    Int(i64),
    Float4(f32),
    Float8(f64),
    Decimal(Decimal),
    /// Days or microseconds since 2000; the extremes are the infinities.
    Instant(i64),
    /// Text of which byte equality is equality of the type.
    Bytes(Box<str>),
}

/// The families of types; each variant is one input and one comparison function of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Bool,
    Int {
        min: i64,
        max: i64,
    },
    Float4,
    Float8,
    Numeric,
    Uuid,
    /// text, varchar, enum: equal if their bytes are equal; order is not decided here.
    Label,
    /// char(n): trailing blanks do not count.
    Padded,
    Date,
    Timestamp,
    Timestamptz,
}

impl Family {
    /// Whether `<` and its relatives are decided in process.
    pub(crate) fn is_ordered(self) -> bool {
        !matches!(self, Family::Label | Family::Padded)
    }

    /// A literal written by a client.
    pub(crate) fn literal(self, text: &str) -> Option<Scalar> {
        Some(match self {
            Family::Bool => Scalar::Bool(bool_literal(text)?),
            Family::Int { min, max } => {
                Scalar::Int(int_literal(text).filter(|value| (min..=max).contains(value))?)
            }
            // Overflow and underflow are errors there, and subnormal numbers are so on some platforms.
            Family::Float4 => {
                let (number, is_zero) = float_literal(text)?;
                let value: f32 = number.parse().ok()?;
                (value.is_normal() || is_zero).then_some(Scalar::Float4(value))?
            }
            Family::Float8 => {
                let (number, is_zero) = float_literal(text)?;
                let value: f64 = number.parse().ok()?;
                (value.is_normal() || is_zero).then_some(Scalar::Float8(value))?
            }
            Family::Numeric => Scalar::Decimal(Decimal::literal(text)?),
            Family::Uuid => Scalar::Bytes(uuid_literal(text)?),
            // A NUL is in no value, and PostgreSQL refuses it.
            Family::Label => (!text.contains('\0')).then(|| Scalar::Bytes(text.into()))?,
            Family::Padded => (!text.contains('\0')).then(|| Scalar::Bytes(unpadded(text).into()))?,
            Family::Date => Scalar::Instant(date_literal(text)?),
            Family::Timestamp => Scalar::Instant(timestamp_literal(text, false)?),
            Family::Timestamptz => Scalar::Instant(timestamp_literal(text, true)?),
        })
    }

    /// The order of a column's value, in the type's text output, relative to a literal of this family; for
    /// families without order only `Equal` means something. `None` if the text is not such output, which must
    /// not happen.
    pub(crate) fn compare(self, value: &str, literal: &Scalar) -> Option<Ordering> {
        match (self, literal) {
            (Family::Bool, Scalar::Bool(literal)) => Some(bool_output(value)?.cmp(literal)),
            (Family::Int { .. }, Scalar::Int(literal)) => Some(value.parse::<i64>().ok()?.cmp(literal)),
            // NaN equals itself and is greater than everything; a literal is never NaN.
            (Family::Float4, Scalar::Float4(literal)) => {
                let value: f32 = value.parse().ok()?;
                Some(value.partial_cmp(literal).unwrap_or(Ordering::Greater))
            }
            (Family::Float8, Scalar::Float8(literal)) => {
                let value: f64 = value.parse().ok()?;
                Some(value.partial_cmp(literal).unwrap_or(Ordering::Greater))
            }
            (Family::Numeric, Scalar::Decimal(literal)) => match value {
                "NaN" | "Infinity" => Some(Ordering::Greater),
                "-Infinity" => Some(Ordering::Less),
                _ => Some(Parts::of(value)?.compare(&literal.parts())),
            },
            // Canonical text: lower-case hex with hyphens in fixed places sorts like the bytes.
            (Family::Uuid, Scalar::Bytes(literal)) => Some(value.cmp(literal)),
            (Family::Label, Scalar::Bytes(literal)) => Some(value.cmp(literal)),
            (Family::Padded, Scalar::Bytes(literal)) => Some(unpadded(value).cmp(literal)),
            (Family::Date, Scalar::Instant(literal)) => Some(date_output(value)?.cmp(literal)),
            (Family::Timestamp | Family::Timestamptz, Scalar::Instant(literal)) => {
                Some(timestamp_output(value)?.cmp(literal))
            }
            _ => None,
        }
    }

    /// The one text that PostgreSQL prints for values equal to a literal, written `text`, if there is only one.
    pub(crate) fn key(self, literal: &Scalar, text: &str) -> Option<Box<str>> {
        match (self, literal) {
            (Family::Bool, Scalar::Bool(value)) => Some(if *value { "t" } else { "f" }.into()),
            (Family::Int { .. }, Scalar::Int(value)) => Some(value.to_string().into()),
            (Family::Uuid | Family::Label, Scalar::Bytes(canonical)) => Some(canonical.clone()),
            // The only accepted spelling of a date is the printed one.
            (Family::Date, _) => Some(text.into()),
            _ => None,
        }
    }
}

pub(crate) fn bool_output(text: &str) -> Option<bool> {
    match text {
        "t" | "true" => Some(true),
        "f" | "false" => Some(false),
        _ => None,
    }
}

/// What C's `isspace` calls a space in every locale.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn trim_space(text: &str) -> &str {
    text.trim_matches(|c: char| u8::try_from(c).is_ok_and(is_space))
}

fn unpadded(text: &str) -> &str {
    text.trim_end_matches(' ')
}

/// `boolin`: unique prefixes of true, false, yes, no, on, off, in any case; 1 and 0.
fn bool_literal(text: &str) -> Option<bool> {
    let word = trim_space(text).to_ascii_lowercase();
    let is_prefix_of = |full: &str| full.starts_with(&word);
    match word.len() {
        0 => None,
        1 if word == "1" => Some(true),
        1 if word == "0" => Some(false),
        1 if word == "o" => None,
        _ if is_prefix_of("true") || is_prefix_of("yes") || word == "on" => Some(true),
        _ if is_prefix_of("false") || is_prefix_of("no") || is_prefix_of("off") => Some(false),
        _ => None,
    }
}

/// Decimal integers; the hexadecimal and underscored spellings of PostgreSQL 16 are asked there.
fn int_literal(text: &str) -> Option<i64> {
    let text = trim_space(text);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    is_digits(digits).then_some(())?;
    text.parse().ok()
}

/// `-1.5e10` and the like, and whether it is zero. Rust and PostgreSQL both round to the nearest, ties to
/// even.
fn float_literal(text: &str) -> Option<(&str, bool)> {
    let text = trim_space(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let mantissa = mantissa.strip_prefix(['+', '-']).unwrap_or(mantissa);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let is_zero = !mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    (is_digits(exponent) && is_digits(whole) && is_digits(fraction)).then_some((text, is_zero))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// 32 hex digits, hyphens after any group of four, braces around: canonical form.
fn uuid_literal(text: &str) -> Option<Box<str>> {
    let inside = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut canonical = String::with_capacity(36);
    let mut digits = 0;
    let mut after_hyphen = true;
    for c in inside.chars() {
        if c == '-' {
            // Legal between groups of four, not at either end and not twice.
            if after_hyphen || digits % 4 != 0 || digits == 32 {
                return None;
            }
            after_hyphen = true;
            continue;
        }
        if !c.is_ascii_hexdigit() || digits == 32 {
            return None;
        }
        if matches!(digits, 8 | 12 | 16 | 20) {
            canonical.push('-');
        }
        canonical.push(c.to_ascii_lowercase());
        digits += 1;
        after_hyphen = false;
    }
    (digits == 32).then(|| canonical.into())
}

/// A decimal number, compared exactly.
#[derive(Clone, Debug)]
pub(crate) struct Decimal(Box<str>);

/// More digits than this may be more than numeric has; PostgreSQL is asked.
const DECIMAL_LIMIT_BYTES: usize = 1000;

impl Decimal {
    fn literal(text: &str) -> Option<Decimal> {
        let text = trim_space(text);
        let text = match text.strip_prefix('+') {
            Some(digits) if digits.starts_with('-') => return None,
            Some(digits) => digits,
            None => text,
        };
        Parts::of(text)?;
        (text.len() <= DECIMAL_LIMIT_BYTES).then(|| Decimal(text.into()))
    }

    fn parts(&self) -> Parts<'_> {
        Parts::of(&self.0).expect("invariant: a Decimal is made of text that has parts")
    }
}

/// Sign and digits without superfluous zeros.
struct Parts<'a> {
    is_negative: bool,
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Option<Parts<'a>> {
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        if !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        // There is no negative zero.
        let is_negative = is_negative && !(whole.is_empty() && fraction.is_empty());
        Some(Parts { is_negative, whole, fraction })
    }

    fn compare(&self, other: &Parts<'_>) -> Ordering {
        let magnitude = || {
            let whole = self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(other.whole));
            whole.then_with(|| self.fraction.cmp(other.fraction))
        };
        match (self.is_negative, other.is_negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(),
            (true, true) => magnitude().reverse(),
        }
    }
}

const DAY_MICROS: i64 = 86_400_000_000;

/// `YYYY-MM-DD`, the one spelling that no DateStyle reads otherwise.
fn date_literal(text: &str) -> Option<i64> {
    (text.len() == 10).then_some(())?;
    days(text)
}

/// ISO output: `YYYY-MM-DD`, more digits for late years, ` BC` for early ones, infinities.
fn date_output(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        _ => match text.strip_suffix(" BC") {
            Some(date) => days_of(date, true),
            None => days(text),
        },
    }
}

fn days(date: &str) -> Option<i64> {
    days_of(date, false)
}

/// 2000-01-01 in days since the first of March of the year 0. Counting from the year 0 itself would overflow
/// the microseconds of the last timestamps PostgreSQL has.
const DAYS_TO_2000: i64 = 730_425;

/// Days since 2000-01-01, in the proleptic Gregorian calendar.
fn days_of(date: &str, is_before_christ: bool) -> Option<i64> {
    // From the right, because the year may have more than four digits.
    let mut parts = date.rsplitn(3, '-');
    let (day, month, year) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, parts.next()?);
    let year = if year.len() == 4 { number(year, 4)? } else { number(year, year.len().clamp(5, 7))? };
    if year == 0 || !(1..=12).contains(&month) {
        return None;
    }
    let year = if is_before_christ { 1 - year } else { year };
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let month_days = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    (1..=month_days).contains(&day).then_some(())?;
    // Years begin in March, so that the leap day is the last: days before the month follow a line.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    Some(year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - DAYS_TO_2000)
}

/// Exactly `width` digits.
fn number(text: &str, width: usize) -> Option<i64> {
    (text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
    text.parse().ok()
}

/// `YYYY-MM-DD[T ]HH:MM:SS[.ffffff]`, with an explicit zone exactly if the type has one: otherwise the
/// meaning would hang on the session's zone, or a zone would be ignored silently.
fn timestamp_literal(text: &str, has_zone: bool) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let clock = rest.strip_prefix(['T', ' '])?;
    let (clock, zone) = match clock.find(['Z', '+', '-']) {
        Some(at) => clock.split_at(at),
        None => (clock, ""),
    };
    (zone.is_empty() != has_zone).then_some(())?;
    let offset = if zone == "Z" || zone.is_empty() { 0 } else { offset_micros(zone)? };
    Some(date_literal(date)? * DAY_MICROS + clock_micros(clock)? - offset)
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff][+00][ BC]` and infinities.
fn timestamp_output(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (date, rest) = text.split_once(' ')?;
    let (rest, is_before_christ) = match rest.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (clock, offset) = match rest.find(['+', '-']) {
        Some(at) => (&rest[..at], offset_micros(&rest[at..])?),
        None => (rest, 0),
    };
    days_of(date, is_before_christ)?.checked_mul(DAY_MICROS)?.checked_add(clock_micros(clock)? - offset)
}

/// `HH:MM:SS[.f…]` with at most six digits: more would be rounded.
fn clock_micros(clock: &str) -> Option<i64> {
    let (whole, fraction) = match clock.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (clock, "0"),
    };
    let mut parts = whole.split(':');
    let mut next = |limit: i64| number(parts.next()?, 2).filter(|&part| part < limit);
    let seconds = next(24)? * 3600 + next(60)? * 60 + next(60)?;
    if parts.next().is_some() || !(1..=6).contains(&fraction.len()) {
        return None;
    }
    let scale = 10i64.pow(6 - fraction.len() as u32);
    Some(seconds * 1_000_000 + number(fraction, fraction.len())? * scale)
}

/// `+HH` or `+HH:MM`; PostgreSQL accepts up to 15:59.
fn offset_micros(zone: &str) -> Option<i64> {
    let (sign, digits) = match zone.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, zone.strip_prefix('+')?),
    };
    let (hours, minutes) = digits.split_once(':').unwrap_or((digits, "00"));
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours <= 15 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60_000_000)
}

/// The elements of the array literal `{body}` by the rules of `array_in` for a one-dimensional array; NULL is
/// `None`. `None` for everything that is malformed, nested or spelled so that versions disagree.
pub(crate) fn list(body: &str) -> Option<Vec<Option<String>>> {
    let bytes = body.as_bytes();
    let mut elements = Vec::new();
    let mut at = skip_space(bytes, 0);
    if at == bytes.len() {
        return Some(elements);
    }
    loop {
        at = skip_space(bytes, at);
        let (element, end) = if bytes.get(at) == Some(&b'"') {
            let (text, end) = quoted_element(body, at + 1)?;
            (Some(text), end)
        } else {
            bare_element(body, at)?
        };
        elements.push(element);
        at = skip_space(bytes, end);
        match bytes.get(at) {
            None => return Some(elements),
            Some(b',') => at += 1,
            Some(_) => return None,
        }
    }
}

fn skip_space(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|byte| is_space(**byte)).count()
}

/// From after the opening quote; the position is after the closing one.
fn quoted_element(body: &str, start: usize) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut chars = body[start..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, start + at + 1)),
            '\\' => text.push(chars.next()?.1),
            _ => text.push(c),
        }
    }
    None
}

/// Up to a comma or the end, trailing space dropped. Braces, quotes and backslashes are legal or not
/// depending on what surrounds them: PostgreSQL is asked.
fn bare_element(body: &str, start: usize) -> Option<(Option<String>, usize)> {
    let length = body[start..].find(',').unwrap_or(body.len() - start);
    let text = trim_space(&body[start..start + length]);
    if text.is_empty() || text.contains(['{', '}', '"', '\\']) {
        return None;
    }
    let element = (!text.eq_ignore_ascii_case("null")).then(|| text.to_owned());
    Some((element, start + length))
}

#[cfg(test)]
mod tests;
