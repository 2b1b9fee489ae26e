//! What is known of a published table: the catalogue's view joined with the stream's.
//!
//! The stream names the cells of a row by position and gives type oids; the catalogue knows type names,
//! keys, privileges and policies. They are joined by column name. A column that the catalogue no longer
//! has is not shown; a column that the row does not have yet is listed but has no value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tidewire_authz::{RoleAccess, Table, TypeShape, TypeTree};
use tidewire_change::{CompositeField, Shape, TypeTraits};
use tidewire_engine::Value;
use tidewire_replication::{Cell, Relation, ReplicaIdentity, Tuple};

/// A column as both sides know it.
#[derive(Debug)]
pub(super) struct TableColumn {
    pub(super) name: String,
    pub(super) type_name: String,
    pub(super) shape: Shape,
    pub(super) is_primary_key: bool,
    /// Position of the cell in a streamed row.
    pub(super) cell: Option<usize>,
    /// Part of the replica identity.
    pub(super) is_identity: bool,
}

/// Role and selection.
type HeadKey = (Box<str>, Option<Vec<String>>);

/// A published table.
#[derive(Debug)]
pub(super) struct PublishedTable {
    pub(super) catalogue: Arc<Table>,
    pub(super) columns: Vec<TableColumn>,
    pub(super) identity: ReplicaIdentity,
    /// `columns` of the change frames, by role and selection: always the same bytes.
    heads: Mutex<HashMap<HeadKey, Arc<Columns>>>,
}

/// The columns that one role sees under one selection.
#[derive(Debug)]
pub(super) struct Columns {
    /// Per table column.
    pub(super) shown: Vec<bool>,
    /// The JSON array of the frame.
    pub(super) json: Bytes,
}

impl PublishedTable {
    pub(super) fn new(catalogue: Arc<Table>, relation: &Relation) -> Self {
        let columns = catalogue
            .columns
            .iter()
            .map(|column| {
                let cell = relation.columns.iter().position(|streamed| streamed.name == column.name);
                TableColumn {
                    name: column.name.clone(),
                    type_name: column.type_name.clone(),
                    shape: shape_of(&column.kind),
                    is_primary_key: column.is_primary_key,
                    cell,
                    is_identity: cell.is_some_and(|cell| relation.columns[cell].is_key),
                }
            })
            .collect();
        Self { catalogue, columns, identity: relation.replica_identity, heads: Mutex::default() }
    }

    pub(super) fn access(&self, role: &str) -> Option<&RoleAccess> {
        self.catalogue.roles.get(role)
    }

    pub(super) fn has_primary_key(&self) -> bool {
        self.columns.iter().any(|column| column.is_primary_key)
    }

    /// Whether a role may select every primary key column (`PROTOCOL.md` §5.8, point 3).
    pub(super) fn key_is_selectable(&self, access: &RoleAccess) -> bool {
        self.columns
            .iter()
            .zip(&access.selectable)
            .all(|(column, selectable)| *selectable || !column.is_primary_key)
    }

    /// The columns of a frame: what the role may select and the selection keeps, the primary key always
    /// (§5.4, §5.6).
    pub(super) fn columns_for(
        &self,
        role: &str,
        access: &RoleAccess,
        select: Option<&Vec<String>>,
    ) -> Arc<Columns> {
        let key = (Box::from(role), select.cloned());
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(heads.entry(key).or_insert_with(|| {
            let shown: Vec<bool> = self
                .columns
                .iter()
                .zip(&access.selectable)
                .map(|(column, selectable)| {
                    *selectable
                        && (column.is_primary_key || select.is_none_or(|names| names.contains(&column.name)))
                })
                .collect();
            let mut json = Vec::with_capacity(32 * self.columns.len());
            json.push(b'[');
            for (column, _) in self.columns.iter().zip(&shown).filter(|(_, shown)| **shown) {
                if json.len() > 1 {
                    json.push(b',');
                }
                json.extend_from_slice(b"{\"name\":");
                tidewire_change::write_string(&mut json, &column.name);
                json.extend_from_slice(b",\"type\":");
                tidewire_change::write_string(&mut json, &column.type_name);
                json.push(b'}');
            }
            json.push(b']');
            Arc::new(Columns { shown, json: json.into() })
        }))
    }
}

/// A row's cells by table column, with what an old row of identity `full` adds.
#[derive(Debug, Clone)]
pub(super) struct Row<'a> {
    values: Vec<Value<'a>>,
}

impl<'a> Row<'a> {
    /// The new row of an insert or update. A large value that did not change is not in the stream; the
    /// old row has it under identity `full` (§5.7).
    pub(super) fn new(table: &PublishedTable, new: Tuple<'a>, old: Option<Tuple<'a>>) -> Self {
        let cells: Vec<Cell<'a>> = new.cells().collect();
        let old: Option<Vec<Cell<'a>>> = old.map(|old| old.cells().collect());
        let values = table
            .columns
            .iter()
            .map(|column| {
                let Some(position) = column.cell else { return Value::Missing };
                let before = || {
                    old.as_ref().and_then(|old| old.get(position)).map_or(Value::Missing, |cell| value(*cell))
                };
                match cells.get(position) {
                    Some(Cell::Unchanged) | None => before(),
                    Some(cell) => value(*cell),
                }
            })
            .collect();
        Self { values }
    }

    /// An old row: all columns under identity `full`, otherwise those of the identity.
    pub(super) fn old(table: &PublishedTable, old: Tuple<'a>, is_full: bool) -> Self {
        let cells: Vec<Cell<'a>> = old.cells().collect();
        let values = table
            .columns
            .iter()
            .map(|column| match column.cell.and_then(|position| cells.get(position)) {
                Some(cell) if is_full || column.is_identity => value(*cell),
                _ => Value::Missing,
            })
            .collect();
        Self { values }
    }

    /// The identity columns of a new row: the old ones when the identity did not change (§5.7).
    pub(super) fn identity_of(table: &PublishedTable, new: &Row<'a>) -> Self {
        let values = table
            .columns
            .iter()
            .zip(&new.values)
            .map(|(column, value)| if column.is_identity { *value } else { Value::Missing })
            .collect();
        Self { values }
    }

    pub(super) fn values(&self) -> &[Value<'a>] {
        &self.values
    }

    pub(super) fn by_name(&self, table: &PublishedTable, name: &str) -> Value<'a> {
        let position = table.columns.iter().position(|column| column.name == name);
        position.map_or(Value::Missing, |position| self.values[position])
    }

    /// Bytes of text, for the size rule (§5.9).
    pub(super) fn text_bytes(&self) -> usize {
        self.values.iter().map(|value| if let Value::Text(text) = value { text.len() } else { 4 }).sum()
    }
}

fn value(cell: Cell<'_>) -> Value<'_> {
    match cell {
        Cell::Null => Value::Null,
        Cell::Text(text) => Value::Text(text),
        // Binary text of an SQL_ASCII database cannot become JSON; it counts as not sent.
        Cell::Unchanged | Cell::Binary(_) => Value::Missing,
    }
}

/// The JSON shape of a type that the catalogue has described.
pub(super) fn shape_of(tree: &TypeTree) -> Shape {
    match &tree.shape {
        TypeShape::Hstore => Shape::Hstore,
        TypeShape::Array { element, delimiter } => {
            Shape::Array { element: Arc::new(shape_of(element)), delimiter: *delimiter as u8 }
        }
        TypeShape::Composite { fields } => Shape::Composite(
            fields
                .iter()
                .map(|(name, tree)| CompositeField { name: name.clone(), shape: shape_of(tree) })
                .collect(),
        ),
        _ => Shape::builtin(tree.oid).unwrap_or(Shape::Text),
    }
}

/// What decides whether a filter on a column may be decided in process.
pub(super) fn traits_of(column: &tidewire_authz::Column) -> TypeTraits {
    TypeTraits {
        is_enum: matches!(column.kind.shape, TypeShape::Enum),
        is_deterministic: column.deterministic_collation,
    }
}
