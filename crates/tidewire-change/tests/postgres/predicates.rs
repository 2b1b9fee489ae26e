//! Predicates and SQL conditions against PostgreSQL's operators.

use proptest::strategy::{Strategy, ValueTree};
use proptest::string::string_regex;
use proptest::test_runner::TestRunner;
use tidewire_change::{Condition, Decision, Operator, Predicate, TypeTraits, predicate, sql};

use super::database::Database;

/// A type, hand-picked literals, and a pattern for generated ones. Literals are values too, where they are legal.
const TYPES: &[(&str, &[&str], &str)] = &[
    (
        "bool",
        &[
            "t", "f", "true", "FALSE", "y", "no", "on", "of", "off", "o", "1", "0", " Tr ", "yess", "", "10",
            "nul", "unknown",
        ],
        " ?([tfynTF1o][rRaeEufn]{0,3}) ?",
    ),
    (
        "int2",
        &[
            "0",
            "-0",
            "+7",
            " 7 ",
            "007",
            "32767",
            "32768",
            "-32768",
            "-32769",
            "",
            "1.5",
            "0x10",
            "1_0",
            "+-1",
            "- 1",
            "\t7\u{b}\n",
            "\u{a0}7",
        ],
        "[+-]?[0-9]{1,2}",
    ),
    ("int4", &["2147483647", "2147483648", "-2147483648", "9999999999", "1e3", "5 5"], " ?[+-]?[0-9]{1,3} ?"),
    (
        "int8",
        &[
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "9007199254740993",
            "99999999999999999999",
        ],
        " ?[+-]?[0-9]{1,3} ?",
    ),
    (
        "float4",
        &[
            "0.1",
            "1e-60",
            "1e60",
            "0e5",
            "0.0",
            "-0",
            "1e-40",
            "16777217",
            "NaN",
            "inf",
            "Infinity",
            ".5",
            "5.",
            "1e",
            "0x1p3",
            "3.4028235e38",
            "3.4028236e38",
            "1.17549435e-38",
            "1e-46",
        ],
        "[+-]?[0-9]{1,2}(\\.[0-9]{1,9})?([eE][+-]?[0-9])?",
    ),
    (
        "float8",
        &[
            "0.1",
            "1e-400",
            "1e400",
            "1e-320",
            "0e9999",
            "9007199254740993",
            "0.30000000000000004",
            "NaN",
            "-Infinity",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "2.2250738585072014e-308",
            "+1",
            " 1 ",
        ],
        "[+-]?[0-9]{1,2}(\\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?",
    ),
    (
        "numeric",
        &[
            "0",
            "-0",
            "-0.00",
            "0.10",
            "1.5",
            "+1.5",
            "+-1",
            "-+1",
            "1e3",
            ".5",
            "5.",
            "00012.50",
            "NaN",
            "Infinity",
            "-Infinity",
            " 1 ",
            "1_000",
            "123456789012345678901234567890.000000001",
            "123456789012345678901234567890",
        ],
        "[+-]?0?[0-9]{1,2}(\\.[0-3]{1,3})?",
    ),
    (
        "uuid",
        &[
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            " a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "-a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0eebc99--9c0b4ef8bb6d6bb9bd380a11",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
            "a0e-ebc999c0b4ef8bb6d6bb9bd380a11",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "00000000-0000-0000-0000-000000000000",
        ],
        "\\{?[0-9a-fA-F]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\\}?",
    ),
    (
        "text",
        &[
            "", " ", "a", "A", "a ", "NULL", "null", "a%", "%a", "%", "%%", "a%b%c", "_", "a_", "\\%", "a\\",
            "ü", "ü%", "e\u{301}", "é", "it's", "\"q\"", "x\0y", "{a}", "a,b",
        ],
        "[abü%]{0,4}",
    ),
    ("varchar", &["", "a", "a ", "%b", "a\\\\b", "NULL"], "[ab% ]{0,4}"),
    ("bpchar", &["", " ", "a", "a  ", " a", "a%", "ab"], "[ab ]{0,4}"),
    ("mood", &["ok", "so so", "NULL", "ok ", "OK"], "ok|so so"),
    (
        "date",
        &[
            "2024-01-02",
            "2024-02-29",
            "2023-02-29",
            "0001-01-01",
            "0000-01-01",
            "9999-12-31",
            "10000-01-01",
            "infinity",
            "-infinity",
            "today",
            "01/02/2024",
            "2024-1-2",
            "20240102",
            "0044-03-15 BC",
            "2024-01-02 10:00",
            "2024-13-01",
            "2024-01-32",
            "1900-02-29",
            "2000-02-29",
        ],
        "(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]",
    ),
    (
        "timestamp",
        &[
            "2024-01-02 03:04:05",
            "2024-01-02T03:04:05.5",
            "2024-01-02T03:04:05Z",
            "2024-01-02 24:00:00",
            "2024-01-02 23:59:60",
            "2024-01-02",
            "2024-01-02 03:04",
            "2024-01-02 03:04:05.1234567",
            "infinity",
            "0044-03-15 00:00:00 BC",
            "now",
            "2024-01-02  03:04:05",
            "2024-01-02t03:04:05",
            "294276-12-31 23:59:59",
            "0001-01-01 00:00:00",
            "4713-01-01 00:00:00 BC",
        ],
        "(19|20)[0-9]{2}-0[1-9]-[0-2][0-9][T ][01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?",
    ),
    (
        "timestamptz",
        &[
            "2024-01-02 03:04:05Z",
            "2024-01-02T03:04:05.5+00",
            "2024-01-02T03:04:05+02:00",
            "2024-01-02T03:04:05-05:30",
            "2024-01-02 03:04:05",
            "2024-01-02 03:04:05+15:59",
            "2024-01-02 03:04:05+16",
            "2024-01-02 03:04:05+0530",
            "2024-01-02 03:04:05 Europe/Berlin",
            "2024-01-02 03:04:05+00 BC",
            "2024-01-02T03:04:05.000Z",
            "2024-01-02 03:04:05.999999+00",
            "-infinity",
            "0001-01-01 00:00:00+14",
            "294276-12-31 23:59:59Z",
        ],
        "(19|20)[0-9]{2}-0[1-9]-[0-2][0-9][T ][01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-][01][0-9](:[0-5][0-9])?)",
    ),
    ("int4range", &["[1,2)", "empty"], "\\[1,[2-5]\\)"),
    ("jsonb", &["1", "{\"a\":1}"], "[1-5]"),
    ("pair", &["(1,a)", "(,)"], "\\([1-5],\\)"),
    ("positive", &["1", "2", "-1"], "[1-5]"),
];

/// Types of which two legal literals in three must be decided in process; the others are always asked about.
const DECIDED: &[&str] = &[
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "uuid",
    "text",
    "varchar",
    "bpchar",
    "mood",
    "date",
    "timestamp",
    "timestamptz",
];

pub(crate) fn in_process_decisions_are_those_of_postgres(database: &Database) {
    for &(type_sql, picked, pattern) in TYPES {
        let mut runner = TestRunner::deterministic();
        let generated = string_regex(pattern).unwrap();
        let mut literals: Vec<String> = picked.iter().map(|text| (*text).to_owned()).collect();
        literals.extend((0..60).map(|_| generated.new_tree(&mut runner).unwrap().current()));

        database.run(&format!("create temp table p (id serial, c {type_sql})"));
        database.run("insert into p (c) values (null)");
        let mut legal = Vec::new();
        for literal in &literals {
            let inserted = format!("insert into p (c) values ({}::{type_sql})", sql::quote_literal(literal));
            if database.try_rows(&inserted).is_ok() {
                legal.push(literal.clone());
            }
        }
        let oid: u32 = database
            .rows("select atttypid from pg_attribute where attrelid = 'p'::regclass and attname = 'c'")[0][0]
            .as_deref()
            .unwrap()
            .parse()
            .unwrap();
        let traits = TypeTraits { is_enum: type_sql == "mood", is_deterministic: true };
        let values: Vec<Option<String>> =
            database.rows("select c from p order by id").into_iter().map(|mut row| row.remove(0)).collect();

        let mut counts = Counts::default();
        let mut check = |op: Operator, value: &str| {
            // Whether a word is a label is checked when the subscription is made.
            for negate in [false, true] {
                let condition = Condition { column: "c".into(), negate, op, value: value.into() };
                let is_decided = judge(database, &condition, oid, traits, type_sql, &values);
                if op == Operator::Eq && legal.iter().any(|literal| literal == value) {
                    counts.add(is_decided);
                }
            }
        };
        let asked = if type_sql == "mood" { &legal } else { &literals };
        for literal in asked {
            for op in Operator::ALL {
                if !matches!(op, Operator::In | Operator::Is) {
                    check(op, literal);
                }
            }
        }
        for value in ["null", "true", "false", "unknown", "NULL", ""] {
            check(Operator::Is, value);
        }
        for list in lists(asked) {
            check(Operator::In, &list);
        }
        if DECIDED.contains(&type_sql) {
            assert!(counts.decided > 2 * counts.asked, "{type_sql}: {counts:?}");
        } else {
            assert_eq!(counts.decided, 0, "{type_sql}");
        }
        database.run("drop table p");
    }
}

/// Of the `eq` conditions with a legal literal.
#[derive(Debug, Default)]
struct Counts {
    decided: usize,
    asked: usize,
}

impl Counts {
    fn add(&mut self, is_decided: bool) {
        if is_decided {
            self.decided += 1;
        } else {
            self.asked += 1;
        }
    }
}

/// Lists of one to three literals in several spellings, and malformed ones.
fn lists(literals: &[String]) -> Vec<String> {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut lists: Vec<String> =
        vec!["".into(), "  ".into(), "NULL".into(), ",".into(), "{}".into(), "a},{b".into()];
    for three in literals.chunks(3) {
        lists.push(three.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(","));
        lists.push(three.join(", "));
        lists.push(format!("{}, nUll", quoted(&three[0])));
        lists.push(format!("{},", three[0]));
    }
    lists
}

/// True if it was decided in process; panics if PostgreSQL disagrees.
fn judge(
    database: &Database,
    condition: &Condition,
    oid: u32,
    traits: TypeTraits,
    type_sql: &str,
    values: &[Option<String>],
) -> bool {
    let Decision::InProcess(predicate) = Predicate::compile(condition, oid, traits) else {
        return false;
    };
    let expression = sql::condition_sql(condition, "p.c", type_sql);
    let theirs = database
        .try_rows(&format!("select coalesce({expression}, false) from p order by id"))
        .unwrap_or_else(|error| panic!("{type_sql} {condition}: decided here, refused there: {error}"));
    for (value, row) in values.iter().zip(theirs) {
        let ours = predicate.matches(value.as_deref());
        assert_eq!(ours, row[0].as_deref() == Some("t"), "{type_sql} {condition} on {value:?}");
        // The keys of the index find exactly what the predicate finds.
        if let Some(key) = predicate.equality_key() {
            assert_eq!(value.as_deref() == Some(key), ours, "key of {type_sql} {condition} on {value:?}");
        }
        if let Some(keys) = predicate.in_keys() {
            let is_key = value.as_deref().is_some_and(|value| keys.iter().any(|key| **key == *value));
            assert_eq!(is_key, ours, "keys of {type_sql} {condition} on {value:?}");
        }
    }
    if let (Operator::In, Some(elements)) = (condition.op, predicate::in_elements(&condition.value)) {
        let array = sql::quote_literal(&format!("{{{}}}", condition.value));
        let theirs = database.rows(&format!("select unnest({array}::text[])"));
        let theirs: Vec<_> = theirs.into_iter().map(|mut row| row.remove(0)).collect();
        assert_eq!(elements, theirs, "{}", condition.value);
    }
    true
}

/// What is never decided in process still has one meaning: the SQL text of `condition_sql`.
pub(crate) fn asked_conditions_have_sql_that_means_what_the_grammar_says(database: &Database) {
    // type, value (SQL), filter, expected
    let vectors = [
        ("text", "'Apple'", "c=ilike.a%E", true),
        ("text", "'Apple'", "c=not.ilike.a%E", false),
        ("text", "'Apple'", "c=like.A____", true),
        ("text", "'a%'", "c=like.a\\%", true),
        ("text", "'ab'", "c=like.a\\%", false),
        ("text", "'Apple'", "c=match.^A(p|q)+le$", true),
        ("text", "'Apple'", "c=match.^a", false),
        ("text", "'Apple'", "c=not.imatch.^a", false),
        ("text", "'b'", "c=gt.a", true),
        ("text", "null", "c=not.imatch.^a", false),
        ("text", "null", "c=gt.a", false),
        // Quoted, without a length, char(n) and bit(n) literals are complete.
        ("\"bpchar\"", "'hello'", "c=eq.hello", true),
        ("\"bpchar\"", "'hello'", "c=eq.h", false),
        ("\"bit\"", "B'101'", "c=eq.101", true),
        ("mood", "'so so'", "c=gt.ok", true),
        ("interval", "'1 day'", "c=lt.25 hours", true),
        ("inet", "'10.0.0.1'", "c=in.(10.0.0.1,10.0.0.2)", true),
        ("positive", "2", "c=gte.2", true),
        ("pair", "row(null, null)", "c=is.null", true),
        ("pair", "row(1, null)", "c=not.in.(\"(2,)\")", true),
        ("int4", "null", "c=not.in.()", false),
        ("int4", "1", "c=not.in.()", true),
        ("bool", "null", "c=not.is.unknown", false),
        ("int4", "null", "c=isdistinct.1", true),
        ("int4", "1", "c=not.isdistinct.1", true),
        ("int4", "1", "c=is.NULL", false),
    ];
    for (type_sql, value, filter, expected) in vectors {
        let condition = &tidewire_change::filter::parse(filter).unwrap()[0];
        let expression = sql::condition_sql(condition, "p.c", type_sql);
        let row = database
            .rows(&format!("select coalesce({expression}, false) from (select {value}::{type_sql} as c) p"));
        assert_eq!(row[0][0].as_deref() == Some("t"), expected, "{type_sql} {value} {filter}");
    }
}

pub(crate) fn literals_and_identifiers_survive_quoting(database: &Database) {
    for text in ["a", "it's", "\\", "a\\'b", "\"q\"", "ü", "E'x'", "$$", "--", "';select 1;--", "\n"] {
        let literal = database.rows(&format!("select {}", sql::quote_literal(text)));
        assert_eq!(literal[0][0].as_deref(), Some(text));
        let name = database.rows(&format!(
            "select row_to_json(x)::jsonb = jsonb_build_object({}, 1) from (select 1 as {}) x",
            sql::quote_literal(text),
            sql::quote_ident(text)
        ));
        assert_eq!(name[0][0].as_deref(), Some("t"), "{text}");
    }
    // A NUL is refused by the server, with the sentence the reference's clients see, and ends no message.
    let error = database.try_rows(&format!("select {}", sql::quote_literal("a\0b"))).unwrap_err();
    assert_eq!(error, "22021: invalid byte sequence for encoding \"UTF8\": 0x00");
    let error = database.try_rows(&format!("select 1 as {}", sql::quote_ident("a\0b"))).unwrap_err();
    assert!(error.contains("Unicode escape"), "{error}");
}
