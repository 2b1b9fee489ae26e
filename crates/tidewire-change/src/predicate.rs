//! What is decided in process because it is proven equal to PostgreSQL.

use crate::filter::Condition;

/// What the catalogue knows about a column's type beyond its oid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeTraits {
    /// The type is an enum.
    pub is_enum: bool,
    /// The column's collation is deterministic (`pg_collation.collisdeterministic`), or it has none.
    pub is_deterministic: bool,
}

/// Who decides a condition.
#[derive(Clone, Debug)]
pub enum Decision {
    /// This process.
    InProcess(Predicate),
    /// PostgreSQL, with [`crate::sql::condition_sql`].
    AskPostgres,
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub struct Predicate {}

impl Predicate {
    /// Compiles a condition.
    pub fn compile(cond: &Condition, type_oid: u32, traits: TypeTraits) -> Decision {
        let _ = (cond, type_oid, traits);
        Decision::AskPostgres
    }

    /// Whether the value (`None` is NULL) satisfies the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let _ = value;
        false
    }

    /// The text PostgreSQL prints for the only value that satisfies an `eq`.
    pub fn equality_key(&self) -> Option<&str> {
        None
    }

    /// The same for `in`.
    pub fn in_keys(&self) -> Option<&[Box<str>]> {
        None
    }
}
