//! What the catalogue says about one table: its shape, and what each role may see of it.
//!
//! Plain data, valid for the moment it was read. Freshness is the caller's: a `Relation` message in the stream or a
//! changed [`roles_fingerprint`](super::Authenticator::roles_fingerprint) means "read it again". Spec: DESIGN.md §3.

use std::collections::HashMap;

/// A published table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `pg_class.oid`.
    pub relid: u32,
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub name: String,
    /// Row-level security is enabled.
    pub rls_enabled: bool,
    /// Live columns in attribute order.
    pub columns: Vec<Column>,
    /// Access of each allowed role that exists. A role that is not here sees nothing.
    pub roles: HashMap<String, RoleAccess>,
}

/// A live column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, unquoted.
    pub name: String,
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// `pg_attribute.atttypid`.
    pub type_oid: u32,
    /// `pg_type.typname`: `int4`, `_text`, `my_domain`.
    pub type_name: String,
    /// `format_type` without type modifier, qualified where it is not in `pg_catalog`: `integer`, `public.mood`.
    pub type_sql: String,
    /// Shape of the values, through domains.
    pub kind: TypeTree,
    /// Part of the primary key.
    pub is_primary_key: bool,
    /// A stored generated column. The stream of Postgres before 18 does not contain it.
    pub generated: bool,
    /// Equality is bytewise: true for types without collation.
    pub deterministic_collation: bool,
}

/// The shape of a type: enough to turn its text form into JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeTree {
    /// Type oid, base type of a domain.
    pub oid: u32,
    /// Structure.
    pub shape: TypeShape,
}

/// Structure of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TypeShape {
    /// Anything without inner structure that matters: decide by oid.
    Scalar,
    /// An enum; values are labels.
    Enum,
    /// Extension type `hstore`: an object of strings.
    Hstore,
    /// A true array (`'{…}'` in text form).
    Array {
        /// Element type.
        element: Box<TypeTree>,
        /// `,` for nearly all types, `;` for `box`.
        delimiter: char,
    },
    /// A composite type; fields in attribute order, dropped ones excluded.
    Composite {
        /// Name and type of each field.
        fields: Vec<(String, TypeTree)>,
    },
}

/// What one role may see of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoleAccess {
    /// No policy applies: row security is off, or the role bypasses it, or owns the table without `FORCE`.
    pub sees_all_rows: bool,
    /// For each of [`Table::columns`]: the role may SELECT it. All false without USAGE on the schema.
    pub selectable: Vec<bool>,
    /// The policies that apply as one boolean SQL expression: (OR of the permissive ones) AND each restrictive one.
    /// `None`: no permissive policy, nothing is visible. Names are qualified; columns are as in `pg_get_expr`.
    /// Meaningless if `sees_all_rows`.
    pub policy: Option<String>,
    /// For each of [`Table::columns`]: the policy reads it, so an image without it cannot be judged by itself.
    pub policy_columns: Vec<bool>,
}

impl RoleAccess {
    /// At least one column may be selected.
    #[must_use]
    pub fn can_select(&self) -> bool {
        self.selectable.contains(&true)
    }
}
