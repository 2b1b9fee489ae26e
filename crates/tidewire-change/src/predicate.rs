//! What is decided in process because it is *proven equal* to PostgreSQL; everything else is asked there.
//!
//! Owns the table of type × operator below. It may not guess: a condition whose meaning depends on a
//! collation, a setting, a user-defined type or an unusual spelling is [`Decision::AskPostgres`], and so is a
//! condition PostgreSQL would refuse, so that the refusal comes from there.
//!
//! | type | `eq neq` `in` `isdistinct` | `lt lte gt gte` | `like` | `is` |
//! | --- | --- | --- | --- | --- |
//! | bool | yes | yes | – | null, true, false, unknown |
//! | int2 int4 int8, float4 float8, numeric, uuid, date | yes | yes | – | null |
//! | timestamp, timestamptz (the literal with a zone exactly in the second) | yes | yes | – | null |
//! | text, varchar with a deterministic collation | yes | ask | `%` only | null |
//! | char(n) with a deterministic collation, enum | yes | ask | ask | null |
//! | other types of `pg_catalog` | ask | ask | ask | null |
//! | everything else (domain, composite, extension) | ask | ask | ask | ask |
//!
//! `ilike`, `match` and `imatch` are always asked.
//!
//! NULL: a NULL column satisfies nothing but `is` and `isdistinct`, not even a negated condition, and a NULL
//! among the elements of `in` makes *not found* NULL as well. (PostgreSQL itself holds `NOT NULL = ANY ('{}')`
//! true; [`crate::sql`] says otherwise on purpose.)
//!
//! Spec: PROTOCOL.md §5.3; DESIGN.md §3. The table is checked against PostgreSQL by `tests/postgres`.

use crate::filter::{Condition, Operator};
use crate::literal::{self, Family, Scalar};
use crate::shape::Shape;

/// What the catalogue knows about a column beyond its type's oid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeTraits {
    /// The type is an enum (`pg_type.typtype = 'e'`).
    pub is_enum: bool,
    /// The column's collation is deterministic (`pg_collation.collisdeterministic`). Matters for text types
    /// only. When in doubt, false.
    pub is_deterministic: bool,
}

/// Who decides a condition.
#[derive(Clone, Debug)]
pub enum Decision {
    /// This process, with the same result as PostgreSQL.
    InProcess(Predicate),
    /// PostgreSQL, with [`crate::sql::condition_sql`].
    AskPostgres,
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub struct Predicate {
    negate: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    IsNull,
    /// `IS TRUE`, `IS FALSE`.
    IsBool(bool),
    Compare {
        op: Compare,
        family: Family,
        literal: Scalar,
        key: Option<Box<str>>,
    },
    Distinct {
        family: Family,
        literal: Scalar,
    },
    /// Elements with one printed form each, sorted by it.
    InKeys {
        keys: Box<[Box<str>]>,
        has_null: bool,
    },
    In {
        family: Family,
        literals: Box<[Scalar]>,
        has_null: bool,
    },
    Like(Box<[Box<str>]>),
}

#[derive(Clone, Copy, Debug)]
enum Compare {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}

impl Predicate {
    /// Compiles a condition on a column of this type. `type_oid` is the column's own type: the oid of a
    /// domain is unknown here, and a condition on it is asked.
    ///
    /// The condition is one that PostgreSQL accepted when the subscription was made: whether a word is a label
    /// of an enum is not known here.
    pub fn compile(cond: &Condition, type_oid: u32, traits: TypeTraits) -> Decision {
        match test(cond, type_oid, traits) {
            Some(test) => Decision::InProcess(Predicate { negate: cond.negate, test }),
            None => Decision::AskPostgres,
        }
    }

    /// Whether a value (text output; `None` is NULL) satisfies the condition. What PostgreSQL calls NULL is
    /// false. Text that is not output of the type, which must not happen, satisfies nothing.
    pub fn matches(&self, value: Option<&str>) -> bool {
        self.outcome(value).is_some_and(|holds| holds != self.negate)
    }

    /// The result before negation; `None` is NULL.
    fn outcome(&self, value: Option<&str>) -> Option<bool> {
        match &self.test {
            Test::IsNull => Some(value.is_none()),
            Test::IsBool(expected) => Some(match value {
                Some(text) => literal::bool_output(text)? == *expected,
                None => false,
            }),
            Test::Distinct { family, literal } => {
                let Some(text) = value else { return Some(true) };
                Some(family.compare(text, literal)?.is_ne())
            }
            Test::Compare { op, family, literal, key } => {
                let value = value?;
                if let (Compare::Eq, Some(key)) = (op, key) {
                    return Some(value == &**key);
                }
                let order = family.compare(value, literal)?;
                Some(match op {
                    Compare::Eq => order.is_eq(),
                    Compare::Neq => order.is_ne(),
                    Compare::Lt => order.is_lt(),
                    Compare::Lte => order.is_le(),
                    Compare::Gt => order.is_gt(),
                    Compare::Gte => order.is_ge(),
                })
            }
            Test::InKeys { keys, has_null } => {
                let value = value?;
                found(keys.binary_search_by(|key| (**key).cmp(value)).is_ok(), *has_null)
            }
            Test::In { family, literals, has_null } => {
                let value = value?;
                let mut is_found = false;
                for literal in literals {
                    is_found |= family.compare(value, literal)?.is_eq();
                }
                found(is_found, *has_null)
            }
            Test::Like(pieces) => Some(is_like(value?, pieces)),
        }
    }

    /// For an `eq` without `not.`: the text that PostgreSQL prints for every value that satisfies it, and for
    /// no other. The key of a hash index. `None` if there is no such text.
    pub fn equality_key(&self) -> Option<&str> {
        match &self.test {
            Test::Compare { op: Compare::Eq, key, .. } if !self.negate => key.as_deref(),
            _ => None,
        }
    }

    /// The same for an `in` without `not.`: all keys, sorted, without duplicates. An empty slice means that
    /// nothing satisfies it. `None` if there are no such texts.
    pub fn in_keys(&self) -> Option<&[Box<str>]> {
        match &self.test {
            Test::InKeys { keys, .. } if !self.negate => Some(keys),
            _ => None,
        }
    }
}

/// `= ANY`: a NULL element leaves *not found* undecided.
fn found(is_found: bool, has_null: bool) -> Option<bool> {
    (is_found || !has_null).then_some(is_found)
}

/// The elements of an `in` list ([`Condition::value`]) as PostgreSQL reads them, NULL as `None`; `None` for
/// spellings that are left to PostgreSQL, malformed ones included.
pub fn in_elements(body: &str) -> Option<Vec<Option<String>>> {
    literal::list(body)
}

fn test(cond: &Condition, type_oid: u32, traits: TypeTraits) -> Option<Test> {
    if cond.op == Operator::Is {
        return is_test(&cond.value, type_oid, traits);
    }
    let family = family(type_oid, traits)?;
    let compare = |op: Compare| {
        let literal = family.literal(&cond.value)?;
        Some(Test::Compare { op, family, key: family.key(&literal, &cond.value), literal })
    };
    match cond.op {
        Operator::Eq => compare(Compare::Eq),
        Operator::Neq => compare(Compare::Neq),
        Operator::Lt if family.is_ordered() => compare(Compare::Lt),
        Operator::Lte if family.is_ordered() => compare(Compare::Lte),
        Operator::Gt if family.is_ordered() => compare(Compare::Gt),
        Operator::Gte if family.is_ordered() => compare(Compare::Gte),
        Operator::IsDistinct => Some(Test::Distinct { family, literal: family.literal(&cond.value)? }),
        Operator::In => in_test(&cond.value, family),
        Operator::Like if matches!(type_oid, TEXT | VARCHAR) => like(&cond.value),
        Operator::Lt | Operator::Lte | Operator::Gt | Operator::Gte | Operator::Like => None,
        Operator::Is | Operator::Ilike | Operator::Match | Operator::Imatch => None,
    }
}

fn is_test(value: &str, type_oid: u32, traits: TypeTraits) -> Option<Test> {
    match value {
        // A composite is also NULL when all its fields are, so the type must be known to be none.
        "null" => (traits.is_enum || Shape::builtin(type_oid).is_some()).then_some(Test::IsNull),
        "true" if type_oid == BOOL => Some(Test::IsBool(true)),
        "false" if type_oid == BOOL => Some(Test::IsBool(false)),
        "unknown" if type_oid == BOOL => Some(Test::IsNull),
        _ => None,
    }
}

fn in_test(body: &str, family: Family) -> Option<Test> {
    let elements = literal::list(body)?;
    let has_null = elements.iter().any(Option::is_none);
    let mut literals = Vec::new();
    let mut keys = Some(Vec::new());
    for element in elements.iter().flatten() {
        let literal = family.literal(element)?;
        keys = keys.zip(family.key(&literal, element)).map(|(mut keys, key)| {
            keys.push(key);
            keys
        });
        literals.push(literal);
    }
    Some(match keys {
        Some(mut keys) => {
            keys.sort_unstable();
            keys.dedup();
            Test::InKeys { keys: keys.into(), has_null }
        }
        None => Test::In { family, literals: literals.into(), has_null },
    })
}

/// Patterns of `%` and literal text. `_` counts characters of the database's encoding and `\` may end a
/// pattern in an error: asked.
fn like(pattern: &str) -> Option<Test> {
    (!pattern.contains(['_', '\\', '\0'])).then_some(())?;
    Some(Test::Like(pattern.split('%').map(Into::into).collect()))
}

/// `pieces` are what stands between the `%`; one piece means none.
fn is_like(value: &str, pieces: &[Box<str>]) -> bool {
    let Some((first, rest)) = pieces.split_first() else {
        return false;
    };
    let Some((last, middle)) = rest.split_last() else {
        return value == &**first;
    };
    let Some(mut value) = value.strip_prefix(&**first).and_then(|value| value.strip_suffix(&**last)) else {
        return false;
    };
    // The leftmost place for each piece leaves the most for the next.
    for piece in middle {
        match value.find(&**piece) {
            Some(at) => value = &value[at + piece.len()..],
            None => return false,
        }
    }
    true
}

const BOOL: u32 = 16;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

fn family(type_oid: u32, traits: TypeTraits) -> Option<Family> {
    Some(match type_oid {
        _ if traits.is_enum => Family::Label,
        BOOL => Family::Bool,
        20 => Family::Int { min: i64::MIN, max: i64::MAX },
        21 => Family::Int { min: i16::MIN.into(), max: i16::MAX.into() },
        23 => Family::Int { min: i32::MIN.into(), max: i32::MAX.into() },
        TEXT | VARCHAR if traits.is_deterministic => Family::Label,
        700 => Family::Float4,
        701 => Family::Float8,
        1042 if traits.is_deterministic => Family::Padded,
        1082 => Family::Date,
        1114 => Family::Timestamp,
        1184 => Family::Timestamptz,
        1700 => Family::Numeric,
        2950 => Family::Uuid,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
