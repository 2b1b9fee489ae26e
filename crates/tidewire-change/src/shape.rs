//! How the text output of a PostgreSQL type becomes JSON: the plan that [`write_value`] follows.
//!
//! Owns the table of `pg_catalog` types. It knows nothing about user-defined types: for an unknown oid
//! the caller asks the catalogue and builds the shape (an enum is [`Shape::Text`], a domain its base type's
//! shape, a composite type lists its live attributes). Nothing here can fail.
//!
//! Spec: PROTOCOL.md §5.9; oids: `src/include/catalog/pg_type.dat` of PostgreSQL 12 to 18.
//!
//! [`write_value`]: crate::write_value

use std::sync::Arc;

/// How one type's text output becomes JSON. Cheap to clone.
///
/// Types that are not listed (enum, range, date, time, interval, money, oid, uuid, inet …) are
/// [`Shape::Text`]: their text is a JSON string.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shape {
    /// `t` or `f` → `true` or `false`.
    Bool,
    /// int2, int4, int8 → a number, whatever its size.
    Integer,
    /// float4, float8 → a number without exponent; NaN and infinities → null.
    Float,
    /// numeric → a number with its scale kept; NaN and infinities → null.
    Numeric,
    /// Anything whose text form is a JSON string.
    Text,
    /// json, jsonb → embedded as it is.
    Json,
    /// bytea in hex format → hex without `\x`; with it inside arrays and composites.
    Bytea,
    /// timestamp without time zone → ISO with `T`.
    Timestamp,
    /// timestamp with time zone → ISO with `T` and `+00:00`.
    Timestamptz,
    /// hstore → object of strings and nulls.
    Hstore,
    /// Arrays of any dimension → nested JSON arrays. A space as delimiter means the brace-less form of
    /// int2vector and oidvector.
    Array {
        /// Shape of one element.
        element: Arc<Shape>,
        /// `pg_type.typdelim` of the element type: `,`, for box `;`.
        delimiter: u8,
    },
    /// Composite types → object.
    Composite(Arc<[CompositeField]>),
}

/// One live attribute of a composite type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompositeField {
    /// Attribute name: the key in the JSON object.
    pub name: String,
    /// Shape of its value.
    pub shape: Shape,
}

impl Shape {
    /// The shape of a type of `pg_catalog`, its array types included; `None` for an oid that is not in the
    /// table, which only the catalogue of the database can explain.
    pub fn builtin(type_oid: u32) -> Option<Shape> {
        if let Some(shape) = scalar(type_oid) {
            return Some(shape);
        }
        let (element, delimiter) = match type_oid {
            INT2VECTOR => (Shape::Integer, b' '),
            OIDVECTOR => (Shape::Text, b' '),
            1006 => (Shape::builtin(INT2VECTOR)?, b','),
            1013 => (Shape::builtin(OIDVECTOR)?, b','),
            1020 => (Shape::Text, b';'),
            _ => (scalar(element_oid(type_oid)?)?, b','),
        };
        Some(Shape::Array { element: Arc::new(element), delimiter })
    }

    /// An array of `element` with the ordinary delimiter `,`.
    pub fn array_of(element: Shape) -> Shape {
        Shape::Array { element: Arc::new(element), delimiter: b',' }
    }
}

const INT2VECTOR: u32 = 22;
const OIDVECTOR: u32 = 30;

fn scalar(oid: u32) -> Option<Shape> {
    Some(match oid {
        16 => Shape::Bool,
        17 => Shape::Bytea,
        20 | 21 | 23 => Shape::Integer,
        114 | 3802 => Shape::Json,
        700 | 701 => Shape::Float,
        1114 => Shape::Timestamp,
        1184 => Shape::Timestamptz,
        1700 => Shape::Numeric,
        // char name regproc text oid tid xid cid, xml, pg_node_tree
        18 | 19 | 24..=29 | 142 | 194
        // point lseg path box polygon line circle, cidr inet macaddr macaddr8, money, aclitem
        | 600..=604 | 628 | 650 | 718 | 774 | 790 | 829 | 869 | 1033
        // bpchar varchar, date time timetz interval, bit varbit, refcursor
        | 1042 | 1043 | 1082 | 1083 | 1186 | 1266 | 1560 | 1562 | 1790
        // reg* types, uuid, txid_snapshot, pg_lsn, statistics
        | 2202..=2206 | 2950 | 2970 | 3220 | 3361 | 3402 | 4089 | 4096 | 4191 | 4600 | 4601 | 5017
        // text search, jsonpath, pg_snapshot, xid8
        | 3614 | 3615 | 3642 | 3734 | 3769 | 4072 | 5038 | 5069
        // ranges and multiranges
        | 3904 | 3906 | 3908 | 3910 | 3912 | 3926 | 4451 | 4532..=4536 => Shape::Text,
        _ => return None,
    })
}

/// Element type of an array type whose delimiter is a comma.
fn element_oid(array: u32) -> Option<u32> {
    Some(match array {
        143 => 142,
        199 => 114,
        271 => 5069,
        629 => 628,
        651 => 650,
        719 => 718,
        775 => 774,
        791 => 790,
        1000 => 16,
        1001 => 17,
        1002 => 18,
        1003 => 19,
        1005 => 21,
        1007 => 23,
        1008 => 24,
        1009 => 25,
        1010 => 27,
        1011 => 28,
        1012 => 29,
        1014 => 1042,
        1015 => 1043,
        1016 => 20,
        1017 => 600,
        1018 => 601,
        1019 => 602,
        1021 => 700,
        1022 => 701,
        1027 => 604,
        1028 => 26,
        1034 => 1033,
        1040 => 829,
        1041 => 869,
        1115 => 1114,
        1182 => 1082,
        1183 => 1083,
        1185 => 1184,
        1187 => 1186,
        1231 => 1700,
        1263 => 25, // cstring[]: its elements have the text form of text
        1270 => 1266,
        1561 => 1560,
        1563 => 1562,
        2201 => 1790,
        2207..=2211 => array - 5,
        2949 => 2970,
        2951 => 2950,
        3221 => 3220,
        3643 => 3614,
        3644 => 3642,
        3645 => 3615,
        3735 => 3734,
        3770 => 3769,
        3807 => 3802,
        3905 => 3904,
        3907 => 3906,
        3909 => 3908,
        3911 => 3910,
        3913 => 3912,
        3927 => 3926,
        4073 => 4072,
        4090 => 4089,
        4097 => 4096,
        4192 => 4191,
        5039 => 5038,
        6150 => 4451,
        6151 => 4532,
        6152 => 4533,
        6153 => 4534,
        6155 => 4535,
        6157 => 4536,
        _ => return None,
    })
}
