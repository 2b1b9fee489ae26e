use proptest::prelude::*;

use super::*;

fn one(filter: &str) -> Condition {
    let mut conditions = parse(filter).unwrap();
    assert_eq!(conditions.len(), 1, "{filter}");
    conditions.remove(0)
}

#[test]
fn blank_text_is_no_filter() {
    assert_eq!(parse(""), Ok(vec![]));
    assert_eq!(parse(" \n\t"), Ok(vec![]));
}

#[test]
fn a_condition_is_split_at_the_first_equals_and_the_first_dot() {
    let vectors: &[(&str, &str, bool, Operator, &str)] = &[
        ("id=eq.1", "id", false, Operator::Eq, "1"),
        ("  id=eq.1  ", "id", false, Operator::Eq, "1"),
        ("a b.c=neq.x=y.z", "a b.c", false, Operator::Neq, "x=y.z"),
        ("id=not.eq.1", "id", true, Operator::Eq, "1"),
        ("id=not.is.null", "id", true, Operator::Is, "null"),
        ("id=isdistinct.null", "id", false, Operator::IsDistinct, "null"),
        ("t=eq.", "t", false, Operator::Eq, ""),
        ("=eq.1", "", false, Operator::Eq, "1"),
        ("t=like.%a_", "t", false, Operator::Like, "%a_"),
        ("t=ilike.%a_", "t", false, Operator::Ilike, "%a_"),
        ("t=match.^(a|b),c=eq.1", "t", false, Operator::Match, "^(a|b)"),
        ("t=imatch.x", "t", false, Operator::Imatch, "x"),
        ("n=lt.1", "n", false, Operator::Lt, "1"),
        ("n=lte.1", "n", false, Operator::Lte, "1"),
        ("n=gt.1", "n", false, Operator::Gt, "1"),
        ("n=gte.1.5", "n", false, Operator::Gte, "1.5"),
        ("t=in.(a,\"b,c\")", "t", false, Operator::In, "a,\"b,c\""),
        ("t=not.in.()", "t", true, Operator::In, ""),
        ("t=eq.ü", "t", false, Operator::Eq, "ü"),
        // Only the first `not.` is a prefix; a second would be an operator.
        ("t=eq.not.x", "t", false, Operator::Eq, "not.x"),
    ];
    for &(filter, column, negate, op, value) in vectors {
        let expected = Condition { column: column.into(), negate, op, value: value.into() };
        assert_eq!(parse(filter).unwrap()[0], expected, "{filter}");
    }
}

#[test]
fn quotes_around_the_whole_value_are_removed() {
    let vectors = [
        (r#"t=eq."a,b""#, "a,b"),
        (r#"t=eq."a\"b""#, "a\"b"),
        (r#"t=eq."a\\b""#, "a\\b"),
        (r#"t=eq."a\xb""#, "axb"),
        (r#"t=eq."ü)(""#, "ü)("),
        (r#"t=eq."""#, ""),
        (r#"t=eq."a"b"#, "\"a\"b"),
        (r#"t=eq.a"b""#, "a\"b\""),
        (r#"t=eq."a"#, "\"a"),
        (r#"t=eq."a\""#, "\"a\\\""),
        (r#"t=eq."a\"#, "\"a\\"),
        (r#"t=eq.""#, "\""),
    ];
    for (filter, value) in vectors {
        assert_eq!(one(filter).value, value, "{filter}");
    }
}

#[test]
fn commas_split_only_outside_parentheses_and_quotes() {
    let columns = |filter: &str| -> Vec<String> {
        parse(filter)
            .unwrap()
            .into_iter()
            .map(|condition| format!("{}|{}", condition.column, condition.value))
            .collect()
    };
    assert_eq!(columns("a=eq.1,b=eq.2"), ["a|1", "b|2"]);
    assert_eq!(columns("a=eq.1 , b=eq.2 "), ["a|1", "b|2"]);
    assert_eq!(columns("a=eq.\"1,2\",b=eq.2"), ["a|1,2", "b|2"]);
    assert_eq!(columns("a=in.(1,2),b=eq.2"), ["a|1,2", "b|2"]);
    assert_eq!(columns("a=in.(\"x)\",y),b=eq.2"), ["a|\"x)\",y", "b|2"]);
    assert_eq!(columns("a=in.(x,\"y,)\\\"\"),b=eq.2"), ["a|x,\"y,)\\\"\"", "b|2"]);
    // An unopened parenthesis closes nothing.
    assert_eq!(columns("a=eq.1),b=eq.2"), ["a|1)", "b|2"]);
    // A quote in the middle of a value opens nothing.
    assert_eq!(columns("a=eq.x\"1,b=eq.2"), ["a|x\"1", "b|2"]);
    // An unclosed parenthesis or quote swallows the rest.
    assert_eq!(columns("a=eq.(1,b=eq.2"), ["a|(1,b=eq.2"]);
    assert_eq!(columns("a=eq.\"1,b=eq.2"), ["a|\"1,b=eq.2"]);
}

#[test]
fn errors_have_the_sentences_of_the_reference() {
    let vectors = [
        ("undefined", r#"["undefined"]"#),
        ("id=foo.1", r#"["foo", "1"]"#),
        ("id=not.foo.1", r#"["foo", "1"]"#),
        ("id=not.eq", r#"["eq"]"#),
        ("id=EQ.1", r#"["EQ", "1"]"#),
        ("id=eq", r#"["eq"]"#),
        ("id=", r#"[""]"#),
        ("id=foo.a\"b#{c}", r#"["foo", "a\"b\#{c}"]"#),
        ("id=eq.1,,t=eq.b", "filter must not contain empty segments (check for extra commas)"),
        ("id=eq.1,", "filter must not contain empty segments (check for extra commas)"),
        (",", "filter must not contain empty segments (check for extra commas)"),
        ("id=in.1", "`in` filter value must be wrapped by parentheses"),
        ("id=in.(", "`in` filter value must be wrapped by parentheses"),
        ("id=in.(1", "`in` filter value must be wrapped by parentheses"),
        ("id=in.1)", "`in` filter value must be wrapped by parentheses"),
        // The first error from the left wins.
        ("id=in.1,undefined", "`in` filter value must be wrapped by parentheses"),
    ];
    for (filter, sentence) in vectors {
        assert_eq!(parse(filter).unwrap_err().to_string(), sentence, "{filter}");
    }
}

#[test]
fn sentences_show_conditions_in_elixir_notation() {
    assert_eq!(elixir(&parse("id=eq.hey").unwrap()), r#"[{"id", "eq", "hey", false}]"#);
    assert_eq!(
        elixir(&parse("id=not.in.(1,\"2\"),t=is.null").unwrap()),
        r#"[{"id", "in", "{1,\"2\"}", true}, {"t", "is", "null", false}]"#
    );
    assert_eq!(elixir(&[]), "[]");
    assert_eq!(elixir_string("a\nb\0\u{1}\u{7f}ü"), r#""a\nb\0\x01\dü""#);
}

proptest! {
    #[test]
    fn any_text_parses_or_fails_without_panic(text in r#"[a-z=.,()"\\ üin]{0,40}|\PC{0,20}"#) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn a_quoted_value_comes_back(value in any::<String>(), more in any::<bool>()) {
        let quoted = value.replace('\\', r"\\").replace('"', "\\\"");
        let filter = format!("t=eq.\"{quoted}\"{}", if more { ",b=is.null" } else { "" });
        let conditions = parse(&filter).unwrap();
        prop_assert_eq!(conditions.len(), 1 + usize::from(more));
        prop_assert_eq!(&conditions[0].value, &value);
    }
}
