//! Row images: what is in them, and whether a policy can be decided on them. Pure.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::table::{Column, RoleAccess, Table};
use super::{AccessError, RowImage};

/// `json` and `jsonb`. PostgreSQL: `pg_type.dat`.
const JSON_OIDS: [u32; 2] = [114, 3802];

/// An image whose columns are known.
#[derive(Debug)]
pub(super) struct Image<'a> {
    json: &'a str,
    /// For each column of the table.
    columns: Vec<Presence>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Not in the image: unchanged TOAST, generated, or outside the publication's column list.
    Missing,
    Null,
    Value,
}

impl<'a> Image<'a> {
    pub(super) fn read(image: &'a RowImage, table: &Table) -> Result<Self, AccessError> {
        let object: HashMap<String, Option<IgnoredAny>> = serde_json::from_str(&image.json)
            .map_err(|_| AccessError::Protocol { what: "a row image is not a json object" })?;
        let columns = table.columns.iter().map(|column| match object.get(&column.name) {
            None => Presence::Missing,
            Some(None) => Presence::Null,
            Some(Some(_)) => Presence::Value,
        });
        Ok(Self { json: &image.json, columns: columns.collect() })
    }

    /// The policies of this role read nothing that the image does not tell.
    ///
    /// JSON has one `null` for SQL NULL and for the JSON value null, so such a value of a JSON column tells nothing.
    pub(super) fn tells(&self, access: &RoleAccess, table: &Table) -> bool {
        let facts = self.columns.iter().zip(&table.columns).zip(&access.policy_columns);
        let all = facts.len() == table.columns.len();
        all && facts.into_iter().all(|((presence, column), is_read)| match (is_read, presence) {
            (false, _) | (true, Presence::Value) => true,
            (true, Presence::Missing) => false,
            (true, Presence::Null) => !is_json(column),
        })
    }

    fn has(&self, index: usize) -> bool {
        self.columns.get(index).is_some_and(|presence| *presence != Presence::Missing)
    }

    /// The columns that identify a by-key query for this image under this role: the primary key, and what the role
    /// may select of the rest of the image. `None` if the key is not in the image.
    pub(super) fn compared(&self, access: &RoleAccess, table: &Table) -> Option<Vec<bool>> {
        let mut has_key = false;
        for (index, column) in table.columns.iter().enumerate() {
            if column.is_primary_key {
                has_key = true;
                if !self.has(index) {
                    return None;
                }
            }
        }
        let compared = |index: usize| self.has(index) && access.selectable.get(index) == Some(&true);
        has_key.then(|| (0..table.columns.len()).map(compared).collect())
    }
}

pub(super) fn is_json(column: &Column) -> bool {
    JSON_OIDS.contains(&column.kind.oid)
}

/// Several images as one JSON array.
pub(super) fn array<'a>(images: impl Iterator<Item = &'a Image<'a>>) -> String {
    let mut text = String::from("[");
    for (index, image) in images.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(image.json);
    }
    text.push(']');
    text
}
