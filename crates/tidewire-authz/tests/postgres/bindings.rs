//! Filters: their values, and what a client is told when a binding is refused.

use tidewire_authz::{BindingCondition, RowImage};

use super::fixture::Database;

const SCHEMA: &str = "
    create table t (id int primary key, name text, vc varchar, ok bool, day date, tags text[], doc json, hidden text, \"o dd\" text);
    grant select (id, name, vc, ok, day, tags, doc, \"o dd\") on t to authenticated;";

fn condition(column: &str, op: &str, value: &str) -> BindingCondition {
    BindingCondition {
        column: column.into(),
        op: op.into(),
        value: value.into(),
        ..BindingCondition::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_the_texts_that_clients_know() {
    let database = Database::new(SCHEMA).await;
    let authenticator = database.authenticator(1);
    let relid = database.relid("t").await;
    let many = (0..101).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let raised = "ERROR P0001 (raise_exception)";
    let cases = [
        (condition("nope", "eq", "1"), format!("{raised} invalid column for filter nope")),
        (condition("hidden", "eq", "1"), format!("{raised} invalid column for filter hidden")),
        (
            condition("id", "eq", "hey"),
            "ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: \"hey\""
                .to_owned(),
        ),
        (
            condition("id", "gt", "99999999999"),
            "ERROR 22003 (numeric_value_out_of_range) value \"99999999999\" is out of range for type integer"
                .to_owned(),
        ),
        (condition("id", "in", &many), format!("{raised} too many values for `in` filter. Maximum 100")),
        (
            condition("id", "in", "1,x"),
            "ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: \"x\""
                .to_owned(),
        ),
        (
            condition("id", "is", "nothing"),
            format!("{raised} invalid value for is filter: must be null, true, false, or unknown"),
        ),
        (
            condition("id", "is", "true"),
            format!("{raised} is true filter requires a boolean column, got integer"),
        ),
        (
            condition("id", "like", "1%"),
            format!("{raised} operator like requires a text-compatible column type, got integer"),
        ),
        (
            condition("day", "imatch", "1"),
            format!("{raised} operator imatch requires a text-compatible column type, got date"),
        ),
        (
            condition("name", "match", "("),
            format!(
                "{raised} invalid regular expression for match filter: invalid regular expression: parentheses () not balanced"
            ),
        ),
        (
            condition("name", "eq", "a\0"),
            "ERROR 22021 (character_not_in_repertoire) invalid byte sequence for encoding \"UTF8\": 0x00"
                .to_owned(),
        ),
    ];
    for (condition, message) in cases {
        let refused =
            authenticator.check_binding("authenticated", relid, std::slice::from_ref(&condition), None).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.message, message, "{condition:?}");
        assert!(!refused.is_transient);
    }
    let unknown = authenticator.check_binding("x", relid, &[], None).await.unwrap_err();
    assert_eq!(unknown.message, "ERROR 42704 (undefined_object) role \"x\" does not exist");
    let hidden = ["id".to_owned(), "hidden".to_owned()];
    let refused = authenticator.check_binding("authenticated", relid, &[], Some(&hidden)).await.unwrap_err();
    assert_eq!(refused.message, format!("{raised} invalid column for select hidden"));
    let no_operator = BindingCondition { sql: "\"doc\" < '{}'::json".into(), ..condition("doc", "lt", "{}") };
    let refused =
        authenticator.check_binding("authenticated", relid, &[no_operator], None).await.unwrap_err();
    assert_eq!(refused.message, "ERROR 42883 (undefined_function) operator does not exist: json < json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_bindings_pass() {
    let database = Database::new(SCHEMA).await;
    let authenticator = database.authenticator(1);
    let relid = database.relid("t").await;
    let good = [
        BindingCondition { sql: "\"id\" = '5'::integer".into(), ..condition("id", "eq", "5") },
        condition("id", "in", "1, 2,NULL"),
        condition("name", "in", "a,\"b,c\""),
        condition("tags", "eq", "{a,b}"),
        condition("ok", "is", "unknown"),
        condition("id", "is", "null"),
        condition("name", "match", "^a.*\\d$"),
        condition("name", "like", "it's \\ %"),
        condition("name", "eq", "'; drop table t; --\\"),
        condition("o dd", "isdistinct", "null"),
        condition("day", "lte", "2024-01-01"),
    ];
    let select = ["id".to_owned(), "o dd".to_owned()];
    authenticator.check_binding("authenticated", relid, &good, Some(&select)).await.unwrap();
    authenticator.check_binding("anon", relid, &[], None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_are_false_for_null_and_for_failures() {
    let database = Database::new(SCHEMA).await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "t").await;
    let image = |json: &str| RowImage { json: json.to_owned() };
    let images = [
        image(r#"{"id":"1","name":"Ärger","tags":"{a,\"b c\"}","doc":{"a": [1]}}"#),
        image(r#"{"id":"0","name":null,"tags":"{}","doc":null}"#),
    ];
    let expressions = [
        "id > 0",
        "name ilike 'ÄRG%'",
        "10 / id = 10",
        "tags @> '{b c}'",
        "doc is not null -- comment",
        "nonsense(",
    ]
    .map(str::to_owned);
    let results = authenticator.evaluate(&table, &expressions, &images).await.unwrap();
    assert_eq!(
        results,
        [[true, false], [true, false], [false, false], [true, false], [true, false], [false, false]]
    );
    assert_eq!(authenticator.evaluate(&table, &expressions, &[]).await.unwrap(), vec![Vec::<bool>::new(); 6]);
}
