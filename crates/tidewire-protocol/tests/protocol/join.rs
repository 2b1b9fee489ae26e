//! PROTOCOL.md §2.2, §2.3, §2.6, §2.7, §5.2, §5.4, §5.10, §6.4.

use tidewire_protocol::frame::Status;
use tidewire_protocol::join::{self, *};

fn parsed(payload: &str) -> JoinPayload<'_> {
    parse(payload).unwrap()
}

fn problems(payload: &str) -> Vec<String> {
    parsed(payload).problems.iter().map(ToString::to_string).collect()
}

fn binding(raw: &str) -> Binding {
    Binding::parse(raw).unwrap()
}

fn echo(binding: &Binding) -> String {
    let mut out = Vec::new();
    binding.write_echo(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_whole_payload_of_the_specification() {
    let join = parsed(
        r#"{
  "config": {
    "broadcast": {"ack": true, "self": true, "replication_ready": true,
                  "replay": {"since": 1767225600000, "limit": 10}},
    "presence": {"enabled": true, "key": "user-1"},
    "postgres_changes": [
      {"event": "*", "schema": "public", "table": "games", "filter": "id=eq.1", "select": ["id", "status"]}
    ],
    "private": true
  },
  "access_token": "jwt-a",
  "user_token": "jwt-u",
  "version": "realtime-js/2"
}"#,
    );
    assert!(!join.legacy && join.private && join.ack && join.receives_own && join.replication_ready);
    assert_eq!(join.replay.unwrap().get(), r#"{"since": 1767225600000, "limit": 10}"#);
    assert_eq!((join.presence_enabled, join.presence_key.as_deref()), (Some(true), Some("user-1")));
    assert_eq!(join.token(), Some("jwt-u"));
    assert!(join.problems.is_empty());
    let [only] = &join.bindings[..] else { panic!("{:?}", join.bindings) };
    let target = only.target().unwrap();
    assert_eq!(target.schema, Pattern::Like("public".into()));
    assert_eq!(target.table, Pattern::Like("games".into()));
    assert_eq!(target.filter.as_deref(), Some("id=eq.1"));
    assert_eq!(target.select.unwrap(), ["id", "status"]);
}

#[test]
fn defaults() {
    let join = parsed(r#"{"config":{}}"#);
    assert!(!join.legacy && !join.private && !join.ack && !join.receives_own && !join.replication_ready);
    assert!(join.replay.is_none() && join.presence_enabled.is_none() && join.presence_key.is_none());
    assert!(join.bindings.is_empty() && join.problems.is_empty() && join.token().is_none());
    assert!(parsed("{}").legacy);
}

#[test]
fn a_config_of_any_kind_is_not_legacy() {
    for config in ["null", "5", "[]", "\"x\"", "{}"] {
        assert!(!parsed(&format!(r#"{{"config":{config}}}"#)).legacy, "{config}");
    }
}

#[test]
fn only_a_payload_that_is_no_object_is_refused() {
    for payload in ["null", "[]", "1", "\"{}\"", "", "{"] {
        assert_eq!(parse(payload).err(), Some(NotAnObject), "{payload}");
    }
}

#[test]
fn flexible_booleans() {
    let table = [
        ("true", true, false),
        ("false", false, false),
        ("\"true\"", true, false),
        ("\"TRUE\"", true, false),
        ("\"False\"", false, false),
        ("null", false, false),
        ("\"yes\"", false, true),
        ("\"\"", false, true),
        ("\" true\"", false, true),
        ("1", false, true),
        ("0", false, true),
        ("{}", false, true),
        ("[true]", false, true),
    ];
    for (raw, value, is_problem) in table {
        let payload = format!(r#"{{"config":{{"private":{raw}}}}}"#);
        assert_eq!(parsed(&payload).private, value, "{raw}");
        let expected: &[&str] =
            if is_problem { &["config.private: unable to parse, expected boolean"] } else { &[] };
        assert_eq!(problems(&payload), expected, "{raw}");
    }
}

#[test]
fn an_invalid_part_does_not_spoil_its_neighbours() {
    let payload = r#"{"config":{
        "broadcast":{"ack":"maybe","self":"True","replay":7},
        "presence":{"enabled":3,"key":["x"]},
        "postgres_changes":{"schema":"public"},
        "private":"true"},"access_token":5,"user_token":{}}"#;
    let join = parsed(payload);
    assert!(!join.ack && join.receives_own && join.private && join.bindings.is_empty());
    assert_eq!((join.presence_enabled, join.presence_key.as_deref()), (None, None));
    assert_eq!(
        problems(payload),
        [
            "access_token: unable to parse, expected string",
            "user_token: unable to parse, expected string",
            "config.broadcast.ack: unable to parse, expected boolean",
            "config.broadcast.replay: unable to parse, expected a map",
            "config.presence.enabled: unable to parse, expected boolean",
            "config.presence.key: unable to parse, expected string",
            "config.postgres_changes: unable to parse, expected an array of maps",
        ]
    );
}

#[test]
fn parts_of_the_wrong_kind_are_named() {
    assert_eq!(problems(r#"{"config":[]}"#), ["config: unable to parse, expected a map"]);
    assert_eq!(
        problems(r#"{"config":{"broadcast":true,"presence":"x"}}"#),
        [
            "config.broadcast: unable to parse, expected a map",
            "config.presence: unable to parse, expected a map"
        ]
    );
    let nulls = r#"{"config":{"broadcast":null,"presence":null,"postgres_changes":null,"private":null}}"#;
    assert!(problems(nulls).is_empty());
}

#[test]
fn replication_ready_is_truthy_rather_than_boolean() {
    for (raw, expected) in
        [("true", true), ("\"false\"", true), ("0", true), ("{}", true), ("false", false), ("null", false)]
    {
        let payload = format!(r#"{{"config":{{"broadcast":{{"replication_ready":{raw}}}}}}}"#);
        assert_eq!(parsed(&payload).replication_ready, expected, "{raw}");
        assert!(problems(&payload).is_empty());
    }
}

#[test]
fn the_replay_key_is_seen_even_as_null() {
    assert_eq!(parsed(r#"{"config":{"broadcast":{"replay":null}}}"#).replay.unwrap().get(), "null");
    assert!(parsed(r#"{"config":{"broadcast":{}}}"#).replay.is_none());
}

#[test]
fn presence_keys() {
    let table = [
        ("\"ada\"", Some("ada")),
        ("\"\\u00e9\"", Some("é")),
        ("7", Some("7")),
        ("-7", Some("-7")),
        ("\"\"", None),
        ("null", None),
        ("{}", None),
        ("true", None),
    ];
    for (raw, expected) in table {
        let payload = format!(r#"{{"config":{{"presence":{{"key":{raw}}}}}}}"#);
        assert_eq!(parsed(&payload).presence_key.as_deref(), expected, "{raw}");
    }
}

#[test]
fn which_token_counts() {
    let table = [
        (r#"{}"#, None),
        (r#"{"access_token":"a"}"#, Some("a")),
        (r#"{"user_token":"u"}"#, Some("u")),
        (r#"{"access_token":"a","user_token":"u"}"#, Some("u")),
        (r#"{"access_token":"a","user_token":null}"#, Some("a")),
        (r#"{"access_token":"a","user_token":5}"#, Some("a")),
        (r#"{"access_token":null,"user_token":"u"}"#, Some("u")),
        (r#"{"access_token":5,"user_token":"u"}"#, Some("u")),
        (r#"{"access_token":5}"#, None),
        (r#"{"access_token":"sb_publishable_1"}"#, None),
        (r#"{"access_token":"sb_publishable_1","user_token":"u"}"#, None),
        (r#"{"access_token":null,"user_token":"sb_secret_1"}"#, None),
        (r#"{"user_token":"sb_secret_1"}"#, None),
        // Only the field that rule 1 looks at is searched for the prefix.
        (r#"{"access_token":"a","user_token":"sb_1"}"#, Some("sb_1")),
        (r#"{"access_token":""}"#, Some("")),
    ];
    for (payload, expected) in table {
        assert_eq!(parsed(payload).token(), expected, "{payload}");
    }
}

#[test]
fn tokens_do_not_reach_debug_output() {
    let join = parsed(r#"{"access_token":"canary","user_token":"canary"}"#);
    assert!(!format!("{join:?}").contains("canary"));
    let push = parse_access_token(r#"{"access_token":"canary"}"#);
    assert!(!format!("{push:?}").contains("canary"));
}

#[test]
fn access_token_pushes() {
    let table = [
        (r#"{"access_token":"jwt"}"#, AccessTokenPush::Token("jwt".into())),
        (r#"{"access_token":null}"#, AccessTokenPush::Ignored),
        (r#"{"access_token":"sb_secret_x"}"#, AccessTokenPush::Ignored),
        (r#"{}"#, AccessTokenPush::Unknown),
        (r#"{"access_token":5}"#, AccessTokenPush::Unknown),
        (r#"{"access_token":{}}"#, AccessTokenPush::Unknown),
        (r#"[]"#, AccessTokenPush::Unknown),
        (r#"null"#, AccessTokenPush::Unknown),
    ];
    for (payload, expected) in table {
        assert_eq!(parse_access_token(payload), expected, "{payload}");
    }
}

#[test]
fn null_bindings_are_dropped_and_order_is_kept() {
    let join =
        parsed(r#"{"config":{"postgres_changes":[null,{"table":"a"},null,{"table":"b"},{"table":"a"}]}}"#);
    let raws: Vec<_> = join.bindings.iter().map(Binding::raw).collect();
    assert_eq!(raws, [r#"{"table":"a"}"#, r#"{"table":"b"}"#, r#"{"table":"a"}"#]);
    assert_eq!(join.bindings[0].id(), join.bindings[2].id());
    assert!(join.problems.is_empty());
}

#[test]
fn one_binding_that_is_no_object_invalidates_the_list() {
    for element in ["1", "\"x\"", "[]", "true"] {
        let payload = format!(r#"{{"config":{{"postgres_changes":[{{"table":"a"}},{element}]}}}}"#);
        assert!(parsed(&payload).bindings.is_empty());
        assert_eq!(
            problems(&payload),
            ["config.postgres_changes: unable to parse, expected an array of maps"]
        );
    }
}

#[test]
fn a_flood_of_bindings_is_cut_but_noticed() {
    let payload = format!(r#"{{"config":{{"postgres_changes":[{{}}{}]}}}}"#, ",{}".repeat(100_000));
    assert_eq!(parsed(&payload).bindings.len(), MAX_BINDINGS + 1);
}

#[test]
fn the_extension_block_is_handed_on_raw() {
    let join = parsed(r#"{"config":{"tidewire":{"v":1,"resume":null}}}"#);
    assert_eq!(join.tidewire.unwrap().get(), r#"{"v":1,"resume":null}"#);
}

#[test]
fn binding_events() {
    let table = [
        ("\"*\"", BindingEvent::All),
        ("\"INSERT\"", BindingEvent::Insert),
        ("\"update\"", BindingEvent::Update),
        ("\"Delete\"", BindingEvent::Delete),
        ("\"TRUNCATE\"", BindingEvent::All),
        ("\"\"", BindingEvent::All),
        ("null", BindingEvent::All),
        ("5", BindingEvent::All),
    ];
    for (raw, expected) in table {
        assert_eq!(binding(&format!(r#"{{"event":{raw}}}"#)).event, expected, "{raw}");
    }
    assert_eq!(binding("{}").event, BindingEvent::All);
}

#[test]
fn the_echo_is_the_clients_object_with_an_id() {
    let b = binding(r#"{"event":"*", "schema":"public","x":{"y":[1.0]},"select":["id"]}"#);
    let id = b.id();
    assert_eq!(
        echo(&b),
        format!(r#"{{"event":"*", "schema":"public","x":{{"y":[1.0]}},"select":["id"],"id":{id}}}"#)
    );
    let b = binding("{ }");
    assert_eq!(echo(&b), format!(r#"{{"id":{}}}"#, b.id()));
    let b = binding(" {\"a\":1 } ");
    assert_eq!(echo(&b), format!(r#"{{"a":1,"id":{}}}"#, b.id()));
}

#[test]
fn ids_depend_on_the_parameters_alone() {
    let a = binding(r#"{"event":"*","schema":"public","table":"todos","n":{"x":1,"y":[null,true]}}"#);
    let b = binding(
        "{ \"n\" : {\"y\":[ null,true],\"x\":1}, \"table\":\"t\\u006fdos\",\n\"schema\":\"public\",\"event\":\"*\"}",
    );
    assert_eq!(a.id(), b.id());
    let others = [
        r#"{"event":"*","schema":"public"}"#,
        r#"{"event":"*","schema":"public","table":"todos"}"#,
        r#"{"event":"INSERT","schema":"public","table":"todos"}"#,
        r#"{"event":"insert","schema":"public","table":"todos"}"#,
        r#"{"event":"*","schema":"todos","table":"public"}"#,
        r#"{"event":"*","schema":"public","table":"todos","filter":null}"#,
        r#"{"event":"*","schema":"public","table":"todos","filter":""}"#,
        r#"{}"#,
        r#"{"a":["b","c"]}"#,
        r#"{"a":["bc"]}"#,
        r#"{"a":[["b"],"c"]}"#,
    ];
    let ids: std::collections::HashSet<_> = others.iter().map(|raw| binding(raw).id()).collect();
    assert_eq!(ids.len(), others.len());
}

/// Frozen: a server that computed other ids than its neighbour would confuse clients that move between them.
#[test]
fn ids_are_the_same_in_every_version() {
    assert_eq!(binding(r#"{"event":"*","schema":"public","table":"todos"}"#).id(), ID_TODOS);
    assert_eq!(binding("{}").id(), ID_EMPTY);
}
const ID_TODOS: u32 = 95_326_604;
const ID_EMPTY: u32 = 86_091_934;

#[test]
fn targets_follow_the_keys_that_are_present() {
    let any = || Pattern::Any;
    let like = |text: &str| Pattern::Like(text.into());
    let table = [
        (r#"{"schema":"s","table":"t"}"#, like("s"), like("t"), None),
        (r#"{"schema":"s","table":"t","filter":"a=eq.1"}"#, like("s"), like("t"), Some("a=eq.1")),
        (r#"{"schema":"s","table":"t","filter":""}"#, like("s"), like("t"), Some("")),
        (r#"{"schema":"s"}"#, like("s"), any(), None),
        (r#"{"table":"t"}"#, like("public"), like("t"), None),
        (r#"{"schema":"*"}"#, any(), any(), None),
        (r#"{"schema":"*","table":"*"}"#, any(), any(), None),
        (r#"{"schema":"s%","table":"my_table"}"#, like("s%"), like("my_table"), None),
        (r#"{"schema":"","table":""}"#, like(""), like(""), None),
    ];
    for (raw, schema, table, filter) in table {
        let target = binding(raw).target().unwrap();
        assert_eq!(
            (&target.schema, &target.table, target.filter.as_deref()),
            (&schema, &table, filter),
            "{raw}"
        );
        assert_eq!(target.select, None);
    }
}

#[test]
fn parameters_that_name_nothing_are_shown_in_elixir_notation() {
    const HEAD: &str =
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: ";
    let table = [
        (r#"{"event":"*"}"#, r#"%{"event" => "*"}"#),
        (r#"{}"#, "%{}"),
        (r#"{"schema":"s","filter":"a=eq.1"}"#, r#"%{"filter" => "a=eq.1", "schema" => "s"}"#),
        (r#"{"table":"t","filter":"a=eq.1"}"#, r#"%{"filter" => "a=eq.1", "table" => "t"}"#),
        (
            r#"{"table":"t","schema":"s","filter":null}"#,
            r#"%{"filter" => nil, "schema" => "s", "table" => "t"}"#,
        ),
        (r#"{"schema":1,"table":"t"}"#, r#"%{"schema" => 1, "table" => "t"}"#),
        (r#"{"schema":null}"#, r#"%{"schema" => nil}"#),
        (
            r#"{"b":[1,-2.5,true,{}],"a":"q\"\\\n#{x}é"}"#,
            r#"%{"a" => "q\"\\\n\#{x}é", "b" => [1, -2.5, true, %{}]}"#,
        ),
        (r#"{"event":"*","user_token":"t"}"#, "<redacted>"),
        (r#"{"auth_token":null}"#, "<redacted>"),
    ];
    for (raw, printed) in table {
        assert_eq!(binding(raw).target().unwrap_err().to_string(), format!("{HEAD}{printed}"));
    }
}

#[test]
fn a_printed_parameter_map_is_bounded() {
    let many: Vec<String> = (0..60).map(|i| format!("{i}")).collect();
    let raw = format!(r#"{{"a":[{}],"b":"{}"}}"#, many.join(","), "x".repeat(10_000));
    let text = binding(&raw).target().unwrap_err().to_string();
    assert!(text.contains(", 49, ...]"), "{text}");
    assert!(text.ends_with("x\" <> ...}"), "{text}");
}

#[test]
fn select() {
    let ok = |raw: &str| binding(raw).target().unwrap().select;
    assert_eq!(ok(r#"{"schema":"s","table":"t","select":["b","a","b"]}"#).unwrap(), ["b", "a", "b"]);
    assert_eq!(ok(r#"{"schema":"s","table":"t","select":["a",5,null,{"x":1}]}"#).unwrap(), ["a"]);
    for nothing in ["[]", "[5]", "null", "{}", "true"] {
        assert_eq!(ok(&format!(r#"{{"table":"*","select":{nothing}}}"#)), None, "{nothing}");
    }
    let error = |raw: &str| binding(raw).target().unwrap_err().to_string();
    assert_eq!(
        error(r#"{"table":"t","select":"id"}"#),
        r#"Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]"#
    );
    // The reference looks at `select` first.
    assert!(error(r#"{"select":"id"}"#).starts_with("Error parsing `select`"));
    for wildcard in [
        r#"{"schema":"s","select":["a"]}"#,
        r#"{"schema":"*","table":"t","select":["a"]}"#,
        r#"{"table":"*","select":["a"]}"#,
    ] {
        assert_eq!(
            error(wildcard),
            "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
        );
    }
}

#[test]
fn select_is_bounded_by_what_a_table_can_have() {
    let raw = format!(r#"{{"table":"t","select":["a"{}]}}"#, ",\"b\"".repeat(100_000));
    assert_eq!(binding(&raw).target().unwrap().select.unwrap().len(), 1_600);
}

#[test]
fn raw_parameters_do_not_reach_debug_output() {
    assert!(!format!("{:?}", binding(r#"{"table":"t","user_token":"canary"}"#)).contains("canary"));
}

#[test]
fn legacy_topics_make_one_binding() {
    let table = [
        ("room", r#"{"schema":"room"}"#),
        ("public:games", r#"{"schema":"public","table":"games"}"#),
        ("public:games:id=eq.1", r#"{"schema":"public","table":"games","filter":"id=eq.1"}"#),
        ("public:games:a=eq.x:y", r#"{"schema":"public","table":"games","filter":"a=eq.x:y"}"#),
        ("*", r#"{"schema":"*"}"#),
        ("a\"b", r#"{"schema":"a\"b"}"#),
    ];
    for (sub_topic, raw) in table {
        let b = legacy_binding(sub_topic);
        assert_eq!((b.raw(), b.event), (raw, BindingEvent::All));
        assert!(b.target().is_ok());
    }
}

#[test]
fn parameters_too_deep_for_a_tree_are_still_a_binding() {
    let raw = format!(r#"{{"table":"t","x":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
    let b = binding(&raw);
    assert!(b.target().is_ok());
    assert!((1..1 << 27).contains(&b.id()));
    let raw = format!(r#"{{"x":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
    assert!(binding(&raw).target().unwrap_err().to_string().ends_with("<redacted>"));
}

#[test]
fn system_messages_escape_what_they_quote() {
    let mut out = Vec::new();
    join::write_system(&mut out, "postgres_changes", Status::Ok, "a \"b\"\n", "room:é");
    assert_eq!(
        String::from_utf8(out).unwrap(),
        r#"{"extension":"postgres_changes","status":"ok","message":"a \"b\"\n","channel":"room:é"}"#
    );
}
