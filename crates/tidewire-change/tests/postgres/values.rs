//! Value by value against `to_jsonb`.

use std::sync::Arc;

use tidewire_change::{CompositeField, Shape, sql, write_value};

use super::database::Database;

const WORDS: &[&str] = &[
    "",
    " ",
    "a",
    "NULL",
    "null",
    "it's",
    "say \"hi\"",
    "back\\slash",
    "{a,b}",
    "(a,b)",
    "a,b",
    "a => b",
    "ü😀",
    "\t\n\r\u{8}\u{c}\u{1}\u{1f}\u{7f}",
    " padded ",
    "[1:2]={3}",
    "\\x00",
    "\"",
    "\\",
    "\\\"",
    "}",
    "=>",
    "a;b",
    "/",
    "\u{2028}",
];

const INTEGERS: &[&str] = &["0", "1", "-1", "32767", "-32768"];

const FLOATS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1.5",
    "0.1",
    "1e20",
    "-1e20",
    "1e15",
    "1e16",
    "123456789012345680",
    "1.5e-7",
    "-1e-7",
    "0.0001",
    "0.00001",
    "1.17549435e-38",
    "3.4028235e38",
    "1.2345678",
    "NaN",
    "Infinity",
    "-Infinity",
    "100000",
    "1000000",
    "16777216",
    "1.5e10",
    "2.5e-5",
];

const NUMERICS: &[&str] = &[
    "0",
    "-0",
    "0.00",
    "1234.50000",
    "-1.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e20",
    "1e-20",
    "123456789012345678901234567890.123456789",
    "-0.000",
    "00012.50",
];

const DAYS: &[&str] = &[
    "2024-01-02",
    "1999-12-31",
    "0044-03-15 BC",
    "12345-06-07",
    "infinity",
    "-infinity",
    "0001-01-01",
    "4713-01-01 BC",
];

const CLOCKS: &[&str] =
    &["00:00:00", "03:04:05.678", "23:59:59.999999", "12:00:00.100000", "03:04:05.000001", "24:00:00"];

const JSONS: &[&str] = &[
    "null",
    "1",
    "-1.50",
    "\"a\"",
    "[]",
    "{}",
    "[1, 2,{\"a\":null}]",
    "{\"b\": 1, \"a\": [true,\"x\\\"y\\u0001\"]}",
    "\" \"",
    "1e3",
    "{\"a\":1,\"a\":2}",
    "[[1],[2]]",
    "\"NULL\"",
    "{\"k\":\"{,}\"}",
];

/// The text of each sample is a literal of the type.
fn families() -> Vec<(&'static str, Vec<String>)> {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let timestamps: Vec<String> = DAYS
        .iter()
        .flat_map(|day| {
            CLOCKS.iter().map(move |clock| match (day.strip_suffix(" BC"), day.contains("infinity")) {
                (_, true) => (*day).to_owned(),
                (Some(date), _) => format!("{date} {clock} BC"),
                (None, _) => format!("{day} {clock}"),
            })
        })
        .collect();
    let nuls = |texts: &[&str]| own(texts);
    let mut families = vec![
        ("bool", own(&["true", "false"])),
        ("int2", own(INTEGERS)),
        ("int4", [own(INTEGERS), own(&["2147483647", "-2147483648"])].concat()),
        (
            "int8",
            [own(INTEGERS), own(&["9007199254740993", "9223372036854775807", "-9223372036854775808"])]
                .concat(),
        ),
        ("float4", own(FLOATS)),
        (
            "float8",
            [
                own(FLOATS),
                own(&["1.7976931348623157e308", "2.2250738585072014e-308", "5e-324", "0.30000000000000004"]),
            ]
            .concat(),
        ),
        ("numeric", own(NUMERICS)),
        ("numeric(12,5)", own(&["1.5", "-0", "1234567.1", "NaN"])),
        ("text", nuls(WORDS)),
        ("varchar(40)", nuls(WORDS)),
        ("name", nuls(WORDS)),
        ("\"char\"", own(&["a", "", "\"", "\\"])),
        ("char(20)", own(&["hello", "", "a  b", "ü"])),
        ("bit(3)", own(&["101"])),
        ("varbit", own(&["", "1", "0101"])),
        ("uuid", own(&["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"])),
        ("bytea", own(&["\\x", "\\x00", "\\xDEADbeef", "a\\\\b"])),
        ("json", own(JSONS)),
        ("jsonb", own(JSONS)),
        ("date", own(DAYS)),
        ("timestamp", timestamps.clone()),
        ("timestamptz", timestamps),
        ("timestamp(0)", own(&["2024-01-02 03:04:05.5"])),
        ("time", own(CLOCKS)),
        ("timetz", own(&["03:04:05+02", "03:04:05.5-05:30", "00:00:00+00"])),
        ("interval", own(&["1 day 02:03:04", "-1 year 2 mons", "0", "1.5 seconds", "-00:00:01"])),
        ("money", own(&["12.50", "-1234567.89"])),
        ("inet", own(&["10.0.0.1", "10.0.0.0/8", "::1", "fe80::1/64"])),
        ("cidr", own(&["10.0.0.0/8", "::/0"])),
        ("macaddr", own(&["08:00:2b:01:02:03"])),
        ("macaddr8", own(&["08:00:2b:01:02:03:04:05"])),
        ("point", own(&["(1,2)", "(1e20,-0.5)"])),
        ("lseg", own(&["[(1,2),(3,4)]"])),
        ("line", own(&["{1,2,3}"])),
        ("box", own(&["(1,2),(3,4)"])),
        ("path", own(&["[(1,2),(3,4)]", "((1,2),(3,4))"])),
        ("polygon", own(&["((1,2),(3,4))"])),
        ("circle", own(&["<(1,2),3>"])),
        ("oid", own(&["42", "4294967295"])),
        ("regclass", own(&["pg_type"])),
        ("xid", own(&["7"])),
        ("tid", own(&["(0,1)"])),
        ("pg_lsn", own(&["16/B374D848"])),
        ("xml", own(&["<a b=\"c\">d</a>"])),
        ("tsvector", own(&["a fat cat", "'it''s':1A"])),
        ("tsquery", own(&["fat & (rat | !cat)"])),
        ("jsonpath", own(&["$.a[*] ? (@ > 1)"])),
        ("int4range", own(&["[1,5)", "empty", "(,3]"])),
        ("tstzrange", own(&["[2024-01-01 00:00+00,2024-01-02 00:00+00)"])),
        ("numrange", own(&["(1.5,)"])),
        ("datemultirange", own(&["{}", "{[2024-01-01,2024-02-01),[2024-03-01,2024-04-01)}"])),
        ("int2vector", own(&["", "1", "1 2 -3"])),
        ("oidvector", own(&["", "1 4294967295"])),
        ("int2vector[]", own(&["{}", "{\"1 2\",NULL}"])),
        ("mood", own(&["ok", "so so", "say \"hi\"", "NULL"])),
        ("email", own(&["a@b.c"])),
        ("positive", own(&["1", "2147483647"])),
        ("pair", own(&["(1,a)", "(,)", "(1,)", "(,\"\")"])),
        ("everything", own(&["(,,,,,,)"])),
        ("bytea[]", own(&["{\"\\\\xDE\",NULL}"])),
        (
            "int4[]",
            own(&[
                "{}",
                "{1}",
                "{1,NULL,-3}",
                "{{1,2},{3,NULL}}",
                "[0:2]={1,2,3}",
                "[-1:0][2:3]={{1,2},{3,4}}",
                "{{{1}},{{2}}}",
            ]),
        ),
        ("bool[]", own(&["{t,f,NULL}"])),
        ("float8[]", own(&["{NaN,Infinity,-Infinity,1e20,-0,1.5e-7,NULL}"])),
        ("numeric[]", own(&["{NaN,Infinity,-Infinity,1.50,NULL}"])),
        ("box[]", own(&["{(1,2),(3,4);(5,6),(7,8)}"])),
        ("point[]", own(&["{\"(1,2)\",NULL}"])),
        ("timestamp[]", own(&["{2024-01-02 03:04:05.5,infinity,0044-03-15 00:00:00 BC,NULL}"])),
        ("timestamptz[]", own(&["{2024-01-02 03:04:05.5+02,infinity,0044-03-15 00:00:00 BC}"])),
        ("date[]", own(&["{2024-01-02,infinity}"])),
        ("uuid[]", own(&["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"])),
        ("mood[]", own(&["{ok,so so,\"NULL\",NULL}"])),
        ("int4range[]", own(&["{\"[1,2)\",empty}"])),
        ("oid[]", own(&["{1,2}"])),
        ("char(5)[]", own(&["{a,bcd}"])),
    ];
    for (array, words) in [("text[]", WORDS), ("varchar[]", WORDS), ("json[]", JSONS), ("jsonb[]", JSONS)] {
        let all = words.iter().map(|word| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")));
        let all: Vec<String> = all.collect();
        families
            .push((array, vec![format!("{{{}}}", all.join(",")), format!("{{{{{}}},{{NULL}}}}", all[2])]));
    }
    families
}

/// Values that are easier to write as expressions.
fn expressions() -> Vec<(&'static str, Vec<String>)> {
    let words: Vec<String> = WORDS.iter().map(|word| sql::quote_literal(word)).collect();
    let pairs = words.iter().map(|word| format!("row(1, {word})::pair")).collect::<Vec<_>>();
    let everything = words
        .iter()
        .map(|word| {
            format!(
                "row('NaN', {word}::bytea_of, '2024-01-02 03:04:05+00', array[{word}, null], row(7, {word})::pair, \
                 jsonb_build_object('k', {word}::text), array[row(1, {word})::pair, null])::everything"
            )
            .replace(&format!("{word}::bytea_of"), &format!("convert_to({word}, 'UTF8')"))
        })
        .collect();
    let maps = words
        .iter()
        .map(|word| format!("hstore(array['k', {word}], array[{word}, null])"))
        .chain(["''::hstore".to_owned(), "hstore(array['a','b','c'], array['1',null,'x'])".to_owned()])
        .collect();
    vec![
        ("pair", pairs.clone()),
        ("pair[]", vec![format!("array[{}, null]", pairs.join(","))]),
        ("everything", everything),
        ("nothing", vec!["row()::nothing".to_owned()]),
        (
            "lonely",
            vec!["row(null)::lonely".to_owned(), "row('')::lonely".to_owned(), "row(')')::lonely".to_owned()],
        ),
        ("hstore", maps),
        ("hstore[]", vec!["array[hstore('a', 'say \"hi\"'), null]".to_owned()]),
    ]
}

pub(crate) fn values_are_what_to_jsonb_prints(database: &Database) {
    database.run(
        "create extension hstore;
         create type mood as enum ('ok', 'so so', 'say \"hi\"', 'NULL');
         create domain email as text check (value like '%@%');
         create domain positive as int4 check (value > 0);
         create type pair as (x int4, \"say \"\"y\"\"\" text);
         create type everything as (f float8, b bytea, t timestamptz, a text[], p pair, j jsonb, ps pair[]);
         create type nothing as ();
         create type lonely as (one text);",
    );
    let literals = families().into_iter().map(|(name, texts)| {
        let base = name.to_owned();
        (name, texts.iter().map(|text| format!("{}::{base}", sql::quote_literal(text))).collect::<Vec<_>>())
    });
    let mut compared = 0;
    for (name, values) in literals.chain(expressions()) {
        compared += compare(database, name, &values);
    }
    assert!(compared >= 500, "{compared}");
}

fn compare(database: &Database, type_sql: &str, values: &[String]) -> usize {
    database.run(&format!("create temp table v (id serial, c {type_sql})"));
    for value in values {
        database.run(&format!("insert into v (c) values ({value})"));
    }
    let oid: u32 = database
        .rows("select atttypid from pg_attribute where attrelid = 'v'::regclass and attname = 'c'")[0][0]
        .as_deref()
        .unwrap()
        .parse()
        .unwrap();
    let shape = shape_of(database, oid);
    let rows = database.rows("select c, to_jsonb(c)::text from v order by id");
    assert_eq!(rows.len(), values.len());
    for row in &rows {
        let (text, theirs) = (row[0].as_deref().unwrap(), row[1].as_deref().unwrap());
        let mut ours = Vec::new();
        write_value(&mut ours, &shape, text);
        let ours = String::from_utf8(ours).unwrap();
        let expected = match shape {
            Shape::Float | Shape::Numeric if theirs.starts_with('"') => "null".to_owned(),
            Shape::Bytea => theirs.replace("\\\\x", ""),
            _ => theirs.to_owned(),
        };
        match shape {
            // jsonb sorts keys and puts spaces; it must be the judge of its own form.
            Shape::Json | Shape::Hstore | Shape::Array { .. } | Shape::Composite(_) => {
                let normal = database.rows(&format!("select ({}::jsonb)::text", sql::quote_literal(&ours)));
                assert_eq!(normal[0][0].as_deref(), Some(&*expected), "{type_sql}: {text} gave {ours}");
            }
            _ => assert_eq!(ours, expected, "{type_sql}: {text}"),
        }
    }
    database.run("drop table v");
    rows.len()
}

/// What the server's catalogue reader does for unknown oids.
fn shape_of(database: &Database, oid: u32) -> Shape {
    if let Some(shape) = Shape::builtin(oid) {
        return shape;
    }
    let row = &database.rows(&format!(
        "select typtype, typelem, typdelim, typbasetype, typrelid, typname,
                typsubscript = 'array_subscript_handler'::regproc from pg_type where oid = {oid}"
    ))[0];
    let column = |index: usize| row[index].clone().unwrap();
    let number = |index: usize| column(index).parse::<u32>().unwrap();
    match column(0).as_str() {
        "d" => shape_of(database, number(3)),
        "c" => {
            let attributes = database.rows(&format!(
                "select attname, atttypid from pg_attribute
                 where attrelid = {} and attnum > 0 and not attisdropped order by attnum",
                number(4)
            ));
            let fields = attributes.iter().map(|attribute| CompositeField {
                name: attribute[0].clone().unwrap(),
                shape: shape_of(database, attribute[1].as_deref().unwrap().parse().unwrap()),
            });
            Shape::Composite(fields.collect())
        }
        _ if column(5) == "hstore" => Shape::Hstore,
        _ if column(6) == "t" => Shape::Array {
            element: Arc::new(shape_of(database, number(1))),
            delimiter: column(2).as_bytes()[0],
        },
        _ => Shape::Text,
    }
}
