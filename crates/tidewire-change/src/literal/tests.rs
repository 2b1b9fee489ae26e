use super::*;

#[test]
fn days_count_from_2000_without_gaps() {
    assert_eq!(days("2000-01-01"), Some(0));
    assert_eq!(days("1999-12-31"), Some(-1));
    assert_eq!(days("2000-03-01"), Some(60));
    assert_eq!(days("1900-03-01").unwrap() - days("1900-02-28").unwrap(), 1);
    assert_eq!(date_output("0001-12-31 BC").unwrap() + 1, days("0001-01-01").unwrap());
    // The first and the last that PostgreSQL has.
    assert_eq!(date_output("4714-11-24 BC"), Some(-2_451_545));
    assert_eq!(date_output("5874897-12-31"), Some(2_145_031_948));
    assert!(timestamp_output("294276-12-31 23:59:59.999999+00").is_some());
    for wrong in
        ["2023-02-29", "2024-13-01", "2024-00-01", "2024-01-00", "0000-01-01", "24-01-01", "2024-1-01", "x"]
    {
        assert_eq!(date_literal(wrong), None, "{wrong}");
    }
}

#[test]
fn instants_are_read_only_in_spellings_that_no_setting_changes() {
    let at = |text| timestamp_literal(text, true);
    assert_eq!(at("2000-01-01T00:00:01Z"), Some(1_000_000));
    assert_eq!(at("2000-01-01 01:00:00.5+01"), Some(500_000));
    assert_eq!(at("2000-01-01 00:00:00-00:30"), Some(1_800_000_000));
    assert_eq!(timestamp_output("2000-01-01 00:00:00.000001+00"), Some(1));
    assert_eq!(timestamp_output("2000-01-01 00:00:00.1"), Some(100_000));
    for asked in [
        "2000-01-01T00:00:00",
        "2000-01-01",
        "2000-01-01T00:00Z",
        "2000-01-01T24:00:00Z",
        "2000-01-01T00:00:60Z",
        "2000-01-01T00:00:00.1234567Z",
        "2000-01-01T00:00:00.Z",
        "2000-01-01T00:00:00+16",
        "2000-01-01T00:00:00 UTC",
        "now",
        "2000-01-0\u{1F600}",
    ] {
        assert_eq!(at(asked), None, "{asked}");
    }
    assert_eq!(timestamp_literal("2000-01-01 00:00:00", false), Some(0));
    assert_eq!(timestamp_literal("2000-01-01 00:00:00Z", false), None);
}

#[test]
fn lists_follow_the_rules_of_array_literals() {
    let parsed = |body: &str| {
        list(body).map(|elements| {
            elements
                .into_iter()
                .map(|element| element.unwrap_or("<null>".into()))
                .collect::<Vec<_>>()
                .join("|")
        })
    };
    for (body, elements) in [
        ("", Some("")),
        ("  ", Some("")),
        ("a", Some("a")),
        (" a , b c ,d", Some("a|b c|d")),
        ("a,\"b,c\"", Some("a|b,c")),
        ("\" a \" , \"\"", Some(" a |")),
        ("\"a\\\"\\\\b\"", Some("a\"\\b")),
        ("NULL,null,\"NULL\",nullx", Some("<null>|<null>|NULL|nullx")),
        ("a,", None),
        (",a", None),
        ("a,,b", None),
        ("{a}", None),
        ("a}", None),
        ("a\\b", None),
        ("a\"b\"", None),
        ("\"a\"b", None),
        ("\"a", None),
        ("\"a\\", None),
    ] {
        assert_eq!(parsed(body).as_deref(), elements, "{body}");
    }
}
