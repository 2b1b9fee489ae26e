use proptest::prelude::*;

use super::*;
use crate::filter;

const INT4: u32 = 23;
const DETERMINISTIC: TypeTraits = TypeTraits { is_enum: false, is_deterministic: true };
const ENUM: TypeTraits = TypeTraits { is_enum: true, is_deterministic: false };

fn decision(filter: &str, type_oid: u32, traits: TypeTraits) -> Decision {
    Predicate::compile(&filter::parse(filter).unwrap()[0], type_oid, traits)
}

fn compiled(filter: &str, type_oid: u32) -> Predicate {
    match decision(filter, type_oid, DETERMINISTIC) {
        Decision::InProcess(predicate) => predicate,
        Decision::AskPostgres => panic!("{filter} is asked"),
    }
}

fn is_asked(filter: &str, type_oid: u32, traits: TypeTraits) -> bool {
    matches!(decision(filter, type_oid, traits), Decision::AskPostgres)
}

#[test]
fn null_satisfies_nothing_but_is_and_isdistinct() {
    for filter in [
        "c=eq.1",
        "c=not.eq.1",
        "c=neq.1",
        "c=not.neq.1",
        "c=lt.1",
        "c=not.gte.1",
        "c=in.(1)",
        "c=not.in.(1)",
        "c=in.()",
        "c=not.in.()",
        "c=not.in.(NULL)",
        "c=not.is.null",
        "c=not.isdistinct.1",
    ] {
        assert!(!compiled(filter, INT4).matches(None), "{filter}");
    }
    for filter in ["c=is.null", "c=isdistinct.1"] {
        assert!(compiled(filter, INT4).matches(None), "{filter}");
    }
    for filter in ["c=is.unknown", "c=not.is.true", "c=not.is.false"] {
        assert!(compiled(filter, BOOL).matches(None), "{filter}");
    }
}

#[test]
fn a_null_element_leaves_not_found_undecided() {
    let found = compiled("c=in.(1,NULL)", INT4);
    assert!(found.matches(Some("1")) && !found.matches(Some("2")));
    let negated = compiled("c=not.in.(1,NULL)", INT4);
    assert!(!negated.matches(Some("1")) && !negated.matches(Some("2")));
}

#[test]
fn keys_are_the_text_that_postgres_prints() {
    assert_eq!(compiled("c=eq. +007 ", INT4).equality_key(), Some("7"));
    assert_eq!(compiled("c=eq.-0", INT4).equality_key(), Some("0"));
    assert_eq!(compiled("c=eq.YES", BOOL).equality_key(), Some("t"));
    let uuid = compiled("c=eq.{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", 2950);
    assert_eq!(uuid.equality_key(), Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"));
    assert_eq!(compiled("c=eq.2024-01-02", 1082).equality_key(), Some("2024-01-02"));
    assert_eq!(compiled("c=eq. a ", TEXT).equality_key(), Some(" a"), "conditions are trimmed at the end");
    let keys = compiled("c=in.(2, 1,\" 01\")", INT4);
    assert_eq!(keys.in_keys(), Some(&["1".into(), "2".into()][..]));
    assert_eq!(compiled("c=in.()", 1700).in_keys(), Some(&[][..]));
}

#[test]
fn conditions_without_one_printed_form_have_no_key() {
    for (filter, oid) in [
        ("c=not.eq.1", INT4),
        ("c=neq.1", INT4),
        ("c=gt.1", INT4),
        ("c=not.in.(1)", INT4),
        ("c=eq.1.0", 1700),
        ("c=in.(1.0)", 1700),
        ("c=eq.a", 1042),
        ("c=eq.1.0", 701),
        ("c=eq.2024-01-02T00:00:00Z", 1184),
        ("c=isdistinct.1", INT4),
    ] {
        let predicate = compiled(filter, oid);
        assert_eq!((predicate.equality_key(), predicate.in_keys()), (None, None), "{filter}");
    }
}

#[test]
fn what_is_not_proven_is_asked() {
    for (filter, oid, traits) in [
        // Collations.
        ("c=eq.a", TEXT, TypeTraits::default()),
        ("c=like.a%", TEXT, TypeTraits::default()),
        ("c=lt.a", TEXT, DETERMINISTIC),
        ("c=gte.a", VARCHAR, DETERMINISTIC),
        ("c=lt.a", 1042, DETERMINISTIC),
        ("c=ilike.a", TEXT, DETERMINISTIC),
        ("c=match.a", TEXT, DETERMINISTIC),
        ("c=imatch.a", TEXT, DETERMINISTIC),
        ("c=like.a_", TEXT, DETERMINISTIC),
        ("c=like.a\\%", TEXT, DETERMINISTIC),
        ("c=like.a%", 1042, DETERMINISTIC),
        ("c=lt.ok", 50_000, ENUM),
        // Refused by PostgreSQL, with its own sentence.
        ("c=eq.hey", INT4, DETERMINISTIC),
        ("c=eq.2147483648", INT4, DETERMINISTIC),
        ("c=eq.32768", 21, DETERMINISTIC),
        ("c=is.true", INT4, DETERMINISTIC),
        ("c=is.NULL", INT4, DETERMINISTIC),
        ("c=like.1", INT4, DETERMINISTIC),
        ("c=in.(1,)", INT4, DETERMINISTIC),
        ("c=in.(1,x)", INT4, DETERMINISTIC),
        // Settings: DateStyle, TimeZone.
        ("c=eq.01/02/2024", 1082, DETERMINISTIC),
        ("c=gt.2024-01-02T00:00:00", 1184, DETERMINISTIC),
        ("c=gt.2024-01-02T00:00:00Z", 1114, DETERMINISTIC),
        // Types we know nothing about: `is null` of a composite looks at its fields.
        ("c=is.null", 50_000, DETERMINISTIC),
        ("c=eq.a", 50_000, DETERMINISTIC),
        ("c=eq.{1}", 1007, DETERMINISTIC),
        ("c=eq.1", 3802, DETERMINISTIC),
    ] {
        assert!(is_asked(filter, oid, traits), "{filter} on {oid}");
    }
    assert!(!is_asked("c=is.null", 3802, TypeTraits::default()));
    assert!(!is_asked("c=is.null", 50_000, ENUM));
    assert!(!is_asked("c=eq.ok", 50_000, ENUM));
}

#[test]
fn text_that_is_not_of_its_type_satisfies_nothing() {
    for (filter, oid) in [
        ("c=lt.1", INT4),
        ("c=not.lt.1", INT4),
        ("c=neq.1", INT4),
        ("c=not.gt.1.5", 1700),
        ("c=isdistinct.1", INT4),
        ("c=not.in.(1.5)", 1700),
        ("c=is.true", BOOL),
        ("c=not.is.true", BOOL),
        ("c=gt.2024-01-02", 1082),
    ] {
        assert!(!compiled(filter, oid).matches(Some("nonsense")), "{filter}");
    }
}

#[test]
fn like_without_wildcards_of_one_character() {
    for (pattern, value, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("", "", true),
        ("", "a", false),
        ("%", "", true),
        ("a%", "a", true),
        ("a%a", "a", false),
        ("a%a", "aa", true),
        ("%ab%ab%", "abab", true),
        ("%ab%ab%", "aba", false),
        ("%ab", "abab", true),
        ("a%b%c", "a\nb\nc", true),
        ("ü%ß", "üß", true),
        ("%%", "x", true),
    ] {
        let predicate = compiled(&format!("c=like.{pattern}"), TEXT);
        assert_eq!(predicate.matches(Some(value)), expected, "{pattern} {value}");
    }
}

proptest! {
    #[test]
    fn any_condition_on_any_value_is_survived(
        op in proptest::sample::select(&Operator::ALL[..]),
        negate in any::<bool>(),
        literal in prop_oneof![any::<String>(), "[0-9a-fNUL,\"{}%. T:Z+-]{0,30}"],
        value in prop_oneof![any::<String>(), "[0-9a-f. :+-]{0,30}"],
        type_oid in proptest::sample::select(vec![16, 20, 21, 23, 25, 700, 701, 1042, 1043, 1082, 1114, 1184, 1700, 2950]),
    ) {
        let condition = Condition { column: "c".into(), negate, op, value: literal };
        if let Decision::InProcess(predicate) = Predicate::compile(&condition, type_oid, DETERMINISTIC) {
            predicate.matches(Some(&value));
            predicate.matches(None);
            if let Some(key) = predicate.equality_key() {
                prop_assert!(predicate.matches(Some(key)));
            }
            for key in predicate.in_keys().unwrap_or_default() {
                prop_assert!(predicate.matches(Some(key)));
            }
        }
    }

    #[test]
    fn like_agrees_with_a_plain_definition(pattern in "[ab%]{0,6}", value in "[ab]{0,8}") {
        fn plain(pattern: &[u8], value: &[u8]) -> bool {
            match pattern.split_first() {
                None => value.is_empty(),
                Some((b'%', rest)) => (0..=value.len()).any(|skip| plain(rest, &value[skip..])),
                Some((c, rest)) => value.first() == Some(c) && plain(rest, &value[1..]),
            }
        }
        let predicate = compiled(&format!("c=like.{pattern}"), TEXT);
        prop_assert_eq!(predicate.matches(Some(&value)), plain(pattern.as_bytes(), value.as_bytes()));
    }
}
