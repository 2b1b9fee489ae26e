//! `Shape::builtin` against `pg_type`.

use tidewire_change::Shape;

use super::database::Database;

pub(crate) fn the_table_of_builtin_types_is_that_of_the_catalogue(database: &Database) {
    // Base types, ranges and multiranges; no pseudo types, no row types of catalogue tables, no arrays of these.
    let rows = database.rows(
        "select t.oid, t.typname, t.typsubscript = 'array_subscript_handler'::regproc, t.typelem, t.typdelim
         from pg_type t left join pg_type e on e.oid = t.typelem
         where t.typnamespace = 'pg_catalog'::regnamespace and t.oid < 16384 and t.typtype in ('b', 'r', 'm')
           and t.typrelid = 0 and coalesce(e.typrelid, 0) = 0",
    );
    assert!(rows.len() > 150);
    for row in rows {
        let column = |index: usize| row[index].clone().unwrap();
        let (oid, name): (u32, _) = (column(0).parse().unwrap(), column(1));
        let shape = Shape::builtin(oid).unwrap_or_else(|| panic!("{name} ({oid}) is missing"));
        let is_array = column(2) == "t";
        match shape {
            Shape::Array { element, delimiter } => {
                assert!(is_array, "{name} is no array");
                let element_oid = column(3).parse().unwrap();
                let expected = Shape::builtin(element_oid).unwrap_or(Shape::Text); // cstring
                assert_eq!(*element, expected, "{name}");
                if name.ends_with("vector") && !name.starts_with('_') {
                    assert_eq!(delimiter, b' ', "{name}");
                } else {
                    assert_eq!(delimiter, column(4).as_bytes()[0], "{name}");
                }
            }
            _ => assert!(!is_array, "{name} is an array"),
        }
    }
    let unknown = database.rows(
        "select oid from pg_type where (typtype in ('c', 'p') or typrelid <> 0 or oid >= 16384) and typname <> '_cstring'",
    );
    for row in unknown {
        let oid = row[0].clone().unwrap().parse().unwrap();
        assert_eq!(Shape::builtin(oid), None, "{oid}");
    }
}
