//! The cells of one row, read where they lie.
//!
//! Owns the walk over the bytes of a row. A [`Tuple`] is a slice and a count: copying it is free, and no
//! memory is taken per cell. Its lengths are checked once, when it is read from the message, so that walking
//! it later cannot fail; text is checked to be UTF-8 only when a cell is looked at.

use std::fmt;

use super::{DecodeError, Input};

/// One value of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL; in a key-only old row also "not part of the key".
    Null,
    /// A large (TOASTed) value that the update did not touch, so that Postgres did not log it.
    Unchanged,
    /// The value's text output, in the session's fixed formats (ISO dates, UTC, hex bytea).
    Text(&'a str),
    /// Bytes that are not UTF-8 text: binary format, which this crate never asks for, or the text of a database
    /// with encoding `SQL_ASCII`, which Postgres passes on unchecked.
    Binary(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// The text, if this is text.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        match self {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Unchanged | Cell::Binary(_) => None,
        }
    }
}

/// Shows kinds and lengths, never values: rows must not end up in a log.
impl fmt::Debug for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Null => f.write_str("Null"),
            Cell::Unchanged => f.write_str("Unchanged"),
            Cell::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Cell::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// The cells of one row, in the order of the columns of its relation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    /// Exactly `count` well-formed cells.
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Takes one row from the front of `input`, checking every length.
    #[inline]
    pub(super) fn read(input: &mut Input<'a>) -> Result<Tuple<'a>, DecodeError> {
        let count = input.u16("the column count of a row")?;
        let start = input.0;
        for _ in 0..count {
            match input.u8("a cell")? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let length = input.length("cell length")?;
                    input.take(length, "a cell")?;
                }
                found => return Err(DecodeError::UnknownByte { what: "cell kind", found }),
            }
        }
        Ok(Tuple { count, bytes: &start[..start.len() - input.0.len()] })
    }

    /// The number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the row has no cells (a table without columns).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The cells in order.
    #[must_use]
    pub fn cells(&self) -> Cells<'a> {
        Cells { left: self.count, bytes: self.bytes }
    }

    /// Cell number `index`. Walks over the cells before it (without looking into them).
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Cell<'a>> {
        self.cells().nth(index)
    }

    /// Size of the row on the wire, in bytes: an upper bound for the sum of its values.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;

    fn into_iter(self) -> Cells<'a> {
        self.cells()
    }
}

impl<'a> IntoIterator for &Tuple<'a> {
    type Item = Cell<'a>;
    type IntoIter = Cells<'a>;

    fn into_iter(self) -> Cells<'a> {
        self.cells()
    }
}

/// Shows kinds and lengths, as [`Cell`] does.
impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}

/// Iterator over the cells of a [`Tuple`].
#[derive(Clone)]
pub struct Cells<'a> {
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Cells<'a> {
    /// The kind and the bytes of the next cell. `None` at the end; a malformed cell cannot be met, because
    /// [`Tuple::read`] has walked the same bytes, and would end the iteration instead of panicking.
    #[inline]
    fn step(&mut self) -> Option<(u8, &'a [u8])> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.bytes.split_first()?;
        if kind == b'n' || kind == b'u' {
            self.bytes = rest;
            return Some((kind, &[]));
        }
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.bytes = rest;
        Some((kind, value))
    }
}

#[inline]
fn cell((kind, value): (u8, &[u8])) -> Cell<'_> {
    match kind {
        b'n' => Cell::Null,
        b'u' => Cell::Unchanged,
        b't' => std::str::from_utf8(value).map_or(Cell::Binary(value), Cell::Text),
        _ => Cell::Binary(value),
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        self.step().map(cell)
    }

    /// Skips without checking the text it skips.
    #[inline]
    fn nth(&mut self, count: usize) -> Option<Cell<'a>> {
        for _ in 0..count {
            self.step()?;
        }
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Cells<'_> {}
