//! The JSON of a change (`PROTOCOL.md` §5.5–5.9), written straight into bytes.

use tidewire_change::{write_string, write_value};
use tidewire_engine::{Action, Value};

use super::table::{Columns, PublishedTable, Row};

/// A value whose JSON text is longer than this is left out of a frame that is too large (§5.9).
const SHORT_VALUE_BYTES: usize = 64;

/// What one frame is made of.
pub(super) struct Change<'c, 'r> {
    pub(super) table: &'c PublishedTable,
    pub(super) action: Action,
    pub(super) commit_unix_us: i64,
    /// Absent for DELETE.
    pub(super) record: Option<&'c Row<'r>>,
    /// Absent for INSERT.
    pub(super) old_record: Option<&'c Row<'r>>,
    /// The change exceeds the size limit: short values only, and an error that says so.
    pub(super) is_too_large: bool,
}

/// Which columns of an old row are shown beside the role's and the selection's rule.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OldColumns {
    /// Whatever the identity gave.
    Identity,
    /// Only the primary key: a DELETE under row-level security (§5.7).
    PrimaryKey,
}

impl Change<'_, '_> {
    /// The `data` object.
    pub(super) fn write(&self, out: &mut Vec<u8>, columns: &Columns, old_columns: OldColumns) {
        self.write_head(out);
        out.extend_from_slice(b",\"commit_timestamp\":\"");
        write_timestamp(out, self.commit_unix_us);
        out.extend_from_slice(b"\",\"columns\":");
        out.extend_from_slice(&columns.json);
        if let Some(row) = self.record {
            out.extend_from_slice(b",\"record\":");
            self.write_row(out, row, columns, OldColumns::Identity);
        }
        if let Some(row) = self.old_record {
            out.extend_from_slice(b",\"old_record\":");
            self.write_row(out, row, columns, old_columns);
        }
        out.extend_from_slice(if self.is_too_large {
            b",\"errors\":[\"Error 413: Payload Too Large\"]}".as_slice()
        } else {
            b",\"errors\":null}".as_slice()
        });
    }

    /// The `data` object of a change that this role is told of, but nothing about (§5.8, points 2 and 3).
    pub(super) fn write_refusal(&self, out: &mut Vec<u8>, error: &str) {
        self.write_head(out);
        out.extend_from_slice(b",\"commit_timestamp\":null,\"columns\":[],\"record\":{}");
        if self.action == Action::Update {
            out.extend_from_slice(b",\"old_record\":{}");
        }
        out.extend_from_slice(b",\"errors\":[");
        write_string(out, error);
        out.extend_from_slice(b"]}");
    }

    fn write_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"schema\":");
        write_string(out, &self.table.catalogue.schema);
        out.extend_from_slice(b",\"table\":");
        write_string(out, &self.table.catalogue.name);
        out.extend_from_slice(b",\"type\":\"");
        out.extend_from_slice(self.action.as_str().as_bytes());
        out.push(b'"');
    }

    fn write_row(&self, out: &mut Vec<u8>, row: &Row<'_>, columns: &Columns, which: OldColumns) {
        let start = out.len();
        out.push(b'{');
        for ((column, value), shown) in self.table.columns.iter().zip(row.values()).zip(&columns.shown) {
            if !shown || (which == OldColumns::PrimaryKey && !column.is_primary_key) {
                continue;
            }
            let before = out.len();
            if before > start + 1 {
                out.push(b',');
            }
            write_string(out, &column.name);
            out.push(b':');
            let value_start = out.len();
            match value {
                Value::Missing => {
                    out.truncate(before);
                    continue;
                }
                // The reference drops nulls along with long values (Q32).
                Value::Null if self.is_too_large => {
                    out.truncate(before);
                    continue;
                }
                Value::Null => out.extend_from_slice(b"null"),
                // A text that long cannot have a short JSON form worth the work of encoding megabytes.
                Value::Text(text) if self.is_too_large && text.len() > 4 * SHORT_VALUE_BYTES => {
                    out.truncate(before);
                    continue;
                }
                Value::Text(text) => write_value(out, &column.shape, text),
            }
            if self.is_too_large && out.len() - value_start > SHORT_VALUE_BYTES {
                out.truncate(before);
            }
        }
        if out.len() == start + 1 {
            // Nothing can be shown of this row (§5.7, §5.9).
            out.truncate(start);
            out.extend_from_slice(b"null");
        } else {
            out.push(b'}');
        }
    }
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ` (§5.6) from microseconds since the Unix epoch.
pub(super) fn write_timestamp(out: &mut Vec<u8>, unix_us: i64) {
    use std::io::Write as _;
    let ms = unix_us.div_euclid(1000);
    let (days, ms_of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms_of_day / 3_600_000, ms_of_day / 60_000 % 60);
    let (second, milli) = (ms_of_day / 1000 % 60, ms_of_day % 1000);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
        .expect("invariant: writing into a Vec does not fail");
}

/// Days since 1970-01-01 as a proleptic Gregorian date: count from 0000-03-01, where the leap day is the
/// last of its year, in eras of 400 years.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp(unix_us: i64) -> String {
        let mut out = Vec::new();
        write_timestamp(&mut out, unix_us);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_are_utc_with_milliseconds() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_787_307_330_123_999), "2026-08-21T10:15:30.123Z");
        assert_eq!(timestamp(951_782_400_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999Z");
    }
}
