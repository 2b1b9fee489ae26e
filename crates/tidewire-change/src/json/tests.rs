use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::shape::CompositeField;

fn written(shape: &Shape, text: &str) -> String {
    let mut out = b"before".to_vec();
    write_value(&mut out, shape, text);
    let out = String::from_utf8(out).unwrap();
    out.strip_prefix("before").unwrap().to_owned()
}

fn pair() -> Shape {
    let field = |name: &str, shape| CompositeField { name: name.into(), shape };
    Shape::Composite(Arc::from([field("x", Shape::Integer), field("y", Shape::Text)]))
}

/// The table of PROTOCOL.md §5.9, by the oid of the type.
#[test]
fn every_line_of_the_specification_holds() {
    let vectors = [
        (20, "9007199254740993", "9007199254740993"),
        (701, "1.5", "1.5"),
        (701, "NaN", "null"),
        (700, "-Infinity", "null"),
        (1700, "1234.50000", "1234.50000"),
        (1700, "NaN", "null"),
        (16, "t", "true"),
        (25, "a\"b", r#""a\"b""#),
        (1042, "hello", r#""hello""#),
        (1560, "101", r#""101""#),
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", r#""a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11""#),
        (17, r"\xdeadbeef", r#""deadbeef""#),
        (1001, r#"{"\\xde"}"#, r#"["\\xde"]"#),
        (114, r#"{"a":1}"#, r#"{"a":1}"#),
        (3802, r#"{"a": 1}"#, r#"{"a": 1}"#),
        (1114, "2024-01-02 03:04:05.678", r#""2024-01-02T03:04:05.678""#),
        (1184, "2024-01-02 01:04:05.678+00", r#""2024-01-02T01:04:05.678+00:00""#),
        (1184, "0044-03-15 00:00:00+05:30 BC", r#""0044-03-15T00:00:00+05:30 BC""#),
        (1184, "infinity", r#""infinity""#),
        (1082, "2024-01-02", r#""2024-01-02""#),
        (1266, "03:04:05+02", r#""03:04:05+02""#),
        (1186, "1 day 02:03:04", r#""1 day 02:03:04""#),
        (790, "$12.50", r#""$12.50""#),
        (869, "10.0.0.1", r#""10.0.0.1""#),
        (3904, "[1,5)", r#""[1,5)""#),
        (26, "42", r#""42""#),
        (1007, "{{1,2},{3,NULL}}", "[[1,2],[3,null]]"),
        (1007, "[0:1]={1,2}", "[1,2]"),
        (1022, "{NaN,1e+20}", r#"["NaN",100000000000000000000]"#),
        (1020, "{(3,4),(1,2);(7,8),(5,6)}", r#"["(3,4),(1,2)","(7,8),(5,6)"]"#),
        (22, "1 2", "[1,2]"),
    ];
    for (oid, text, expected) in vectors {
        assert_eq!(written(&Shape::builtin(oid).unwrap(), text), expected, "{oid}");
    }
    assert_eq!(written(&pair(), "(1,a)"), r#"{"x":1,"y":"a"}"#);
    assert_eq!(written(&Shape::Hstore, r#""a"=>"1", "b"=>NULL"#), r#"{"a":"1","b":null}"#);
}

#[test]
fn text_that_is_not_of_its_type_becomes_a_string() {
    let array = Shape::array_of(Shape::Integer);
    let vectors = [
        (Shape::Bool, "maybe"),
        (Shape::Integer, ""),
        (Shape::Integer, "007"),
        (Shape::Integer, "1.5"),
        (Shape::Float, "1e"),
        (Shape::Float, "1e999999999"),
        (Shape::Float, "12e-1"),
        (Shape::Float, "inf"),
        (Shape::Numeric, ".5"),
        (Shape::Numeric, "1e5"),
        (Shape::Json, "{"),
        (Shape::Bytea, "\\xzz"),
        (Shape::Bytea, "abc"),
        (Shape::Timestamp, "2024-01-02"),
        (Shape::Timestamp, "a b"),
        (Shape::Timestamptz, "2024-01-02 03:04:05"),
        (array.clone(), "{1"),
        (array.clone(), "{1,}"),
        (array.clone(), "{1}2"),
        (array.clone(), "[0:1]"),
        (array, "{{{{{{{1}}}}}}}"),
        (pair(), "(1)"),
        (pair(), "(1,2,3)"),
        (pair(), "1,2"),
        (pair(), "(1,\"a)"),
        (Shape::Hstore, "\"a\"=>1"),
        (Shape::Hstore, "\"a\"=>\"1\","),
        (Shape::Hstore, "a=>\"1\""),
    ];
    for (shape, text) in vectors {
        let mut expected = Vec::new();
        write_string(&mut expected, text);
        assert_eq!(written(&shape, text).as_bytes(), expected, "{shape:?} {text}");
    }
    // Only the element is wrong, so only the element is a string.
    assert_eq!(written(&Shape::array_of(Shape::Integer), "{1,x}"), r#"[1,"x"]"#);
}

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Bool),
        Just(Shape::Integer),
        Just(Shape::Float),
        Just(Shape::Numeric),
        Just(Shape::Text),
        Just(Shape::Json),
        Just(Shape::Bytea),
        Just(Shape::Timestamp),
        Just(Shape::Timestamptz),
        Just(Shape::Hstore),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), prop_oneof![Just(b','), Just(b';'), Just(b' ')])
                .prop_map(|(element, delimiter)| Shape::Array { element: Arc::new(element), delimiter }),
            proptest::collection::vec((any::<String>(), inner), 0..4).prop_map(|fields| {
                Shape::Composite(
                    fields.into_iter().map(|(name, shape)| CompositeField { name, shape }).collect(),
                )
            }),
        ]
    })
}

/// Text that resembles output of the nested types.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), r#"[{}()\[\]",;:=>\\ NUL0-9a.ex+TZü-]{0,30}"#, "[0-9.e+-]{0,12}"]
}

/// `text` as array_out prints it, quoted or not.
fn array_element(text: &str) -> String {
    let needs_quotes = text.is_empty()
        || text.eq_ignore_ascii_case("null")
        || text.contains(|c: char| "{},\"\\".contains(c) || c.is_ascii_whitespace() || c == '\u{b}');
    if needs_quotes {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

/// `text` as record_out prints it.
fn record_field(text: &str) -> String {
    let needs_quotes = text.is_empty()
        || text.contains(|c: char| "(),\"\\".contains(c) || c.is_ascii_whitespace() || c == '\u{b}');
    if needs_quotes {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

proptest! {
    #[test]
    fn whatever_comes_in_the_output_is_valid_json(shape in shapes(), text in texts()) {
        let out = written(&shape, &text);
        prop_assert!(is_json(&out), "{out}");
        // Numbers may exceed what the parser holds, and embedded JSON may nest too deep for it; syntax is the claim.
        let parsed = serde_json::from_str::<&serde_json::value::RawValue>(&out);
        prop_assert!(parsed.is_ok(), "{out}");
    }

    #[test]
    fn strings_come_back(text in any::<String>()) {
        let out = written(&Shape::Text, &text);
        prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn numbers_come_back(whole in any::<i64>(), float in any::<f64>()) {
        prop_assert_eq!(written(&Shape::Integer, &whole.to_string()), whole.to_string());
        // Shortest scientific form, as float8out prints large and small numbers, never zero.
        let text = format!("{float:e}");
        if float.is_finite() && float != 0.0 {
            let out = written(&Shape::Float, &text);
            prop_assert_eq!(out.parse::<f64>().unwrap(), float, "{}", out);
            prop_assert!(!out.contains('e'));
        }
    }

    #[test]
    fn elements_of_arrays_come_back(rows in proptest::collection::vec(proptest::collection::vec(proptest::option::of(texts()), 1..4), 1..4)) {
        let element = |element: &Option<String>| element.as_deref().map_or("NULL".to_owned(), array_element);
        let row = |row: &Vec<Option<String>>| format!("{{{}}}", row.iter().map(element).collect::<Vec<_>>().join(","));
        let shape = Shape::array_of(Shape::Text);
        let flat: Value = serde_json::from_str(&written(&shape, &row(&rows[0]))).unwrap();
        prop_assert_eq!(flat, json!(rows[0]));
        let nested = format!("{{{}}}", rows.iter().map(row).collect::<Vec<_>>().join(","));
        let nested: Value = serde_json::from_str(&written(&shape, &nested)).unwrap();
        prop_assert_eq!(nested, json!(rows));
    }

    #[test]
    fn fields_of_composites_come_back(fields in proptest::collection::vec(proptest::option::of(texts()), 1..5)) {
        let shape = Shape::Composite(
            (0..fields.len()).map(|index| CompositeField { name: index.to_string(), shape: Shape::Text }).collect(),
        );
        let text: Vec<String> =
            fields.iter().map(|field| field.as_deref().map_or(String::new(), record_field)).collect();
        let out: Value = serde_json::from_str(&written(&shape, &format!("({})", text.join(",")))).unwrap();
        let expected: serde_json::Map<String, Value> =
            fields.iter().enumerate().map(|(index, field)| (index.to_string(), json!(field))).collect();
        prop_assert_eq!(out, Value::Object(expected));
    }

    #[test]
    fn pairs_of_hstore_come_back(pairs in proptest::collection::btree_map(texts(), proptest::option::of(texts()), 0..5)) {
        let quoted = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let text: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{}=>{}", quoted(key), value.as_ref().map_or("NULL".to_owned(), quoted)))
            .collect();
        let out: Value = serde_json::from_str(&written(&Shape::Hstore, &text.join(", "))).unwrap();
        prop_assert_eq!(out, json!(pairs));
    }
}
