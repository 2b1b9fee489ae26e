//! Channel tokens: which one counts (§2.3), expiry (§6.3), replacement (§6.4).

use tidewire_engine::ChangeCommand;
use tidewire_protocol::frame::Version;

use super::server::{CONNECTION, Client, Server};

const ROOM: &str = "realtime:room";

fn joined(token: Option<&str>, expires_in_s: i64) -> (Server, Client) {
    let mut server = Server::with(1, |config| config.idle_timeout_ms = u64::MAX / 2);
    server.allow("first.token.a", "authenticated", expires_in_s);
    server.allow("second.token.a", "service_role", 1_000);
    let client = server.open(0, Version::V2);
    let token = token.map_or_else(|| "null".to_owned(), |token| format!(r#""{token}""#));
    let payload =
        format!(r#"{{"config":{{"postgres_changes":[{{"schema":"public"}}]}},"access_token":{token}}}"#);
    server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", &payload);
    assert_eq!(server.take(client).len(), 1);
    (server, client)
}

fn push(server: &mut Server, client: Client, payload: &str) {
    server.push(client, r#""1""#, "null", ROOM, "access_token", payload);
}

#[track_caller]
fn expect_shut_down(server: &mut Server, client: Client, message: &str) {
    server.expect(
        client,
        &[
            &format!(
                r#"["1",null,"realtime:room","system",{{"extension":"system","status":"error","message":"{message}","channel":"room"}}]"#
            ),
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
    assert_eq!(server.hubs[0].channel_count(), 0);
    assert!(matches!(server.changes.last(), Some(ChangeCommand::Unsubscribe { .. })));
}

fn role_of(command: &ChangeCommand) -> &str {
    match command {
        ChangeCommand::Subscribe { credential, .. } | ChangeCommand::Reauthorize { credential, .. } => {
            &credential.role
        }
        ChangeCommand::Unsubscribe { .. } | ChangeCommand::TellWhenReady { .. } => "",
    }
}

#[test]
fn the_channel_token_counts_and_opaque_keys_mean_the_connection() {
    for (token, role) in
        [(Some("first.token.a"), "authenticated"), (None, "anon"), (Some("sb_publishable_x"), "anon")]
    {
        let (server, _) = joined(token, 60);
        assert_eq!(role_of(&server.changes[0]), role);
    }
}

#[test]
fn a_refreshed_token_replaces_the_claims_and_is_never_answered() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    push(&mut server, client, r#"{"access_token":"second.token.a"}"#);
    server.expect_nothing(client);
    let [ChangeCommand::Subscribe { channel, .. }, ChangeCommand::Reauthorize { channel: same, .. }] =
        &server.changes[..]
    else {
        panic!("{:?}", server.changes)
    };
    assert_eq!(channel, same);
    assert_eq!(role_of(&server.changes[1]), "service_role");
    // The old expiry means nothing any more.
    server.advance(600_000);
    server.expect_nothing(client);
    server.advance(400_000);
    expect_shut_down(&mut server, client, "Token has expired 0 seconds ago");
}

#[test]
fn a_channel_without_bindings_tells_the_change_stream_nothing() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    server.changes.clear();
    server.push(client, r#""1""#, r#""1""#, "realtime:plain", "phx_join", r#"{"config":{}}"#);
    server.push(
        client,
        r#""1""#,
        "null",
        "realtime:plain",
        "access_token",
        r#"{"access_token":"second.token.a"}"#,
    );
    server.push(client, r#""1""#, "null", "realtime:plain", "phx_leave", "{}");
    assert!(server.changes.is_empty());
}

#[test]
fn tokens_that_say_nothing_new_are_ignored() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    for payload in [
        r#"{"access_token":"first.token.a"}"#,
        r#"{"access_token":"sb_secret_x"}"#,
        r#"{"access_token":null}"#,
        r#"{"access_token":7}"#,
        r#"{"access_token":{}}"#,
        r#"{}"#,
        r#"[]"#,
        "null",
    ] {
        push(&mut server, client, payload);
        server.expect_nothing(client);
    }
    assert_eq!((server.changes.len(), server.hubs[0].channel_count()), (1, 1));
}

#[test]
fn a_token_that_is_not_good_enough_ends_the_channel_in_the_words_of_the_table() {
    for (token, message) in [
        ("garbage", "The token provided is not a valid JWT"),
        ("", "The token provided is not a valid JWT"),
        ("un.known.a", ":signature_error"),
        ("expired.token.a", "Token has expired 7 seconds ago"),
        ("no.claims.a", "Fields `role` and `exp` are required in JWT"),
        ("no.key.a", ":error_generating_signer"),
    ] {
        let (mut server, client) = joined(Some("first.token.a"), 60);
        server.allow("expired.token.a", "anon", -7);
        server.allow("no.claims.a", "", 60);
        server.allow("no.key.a", "anon", 60);
        server.revoke("no.key.a");
        push(&mut server, client, &format!(r#"{{"access_token":"{token}"}}"#));
        expect_shut_down(&mut server, client, message);
        // The channel may be joined again on the same socket.
        server.join(client, ROOM, "{}");
    }
}

#[test]
fn a_channel_ends_when_its_token_expires_and_not_before() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    server.advance(59_999);
    server.expect_nothing(client);
    server.advance(1);
    expect_shut_down(&mut server, client, "Token has expired 0 seconds ago");
}

/// The verifier decides, and it may be more patient than the claim; the hub must not ask without end.
#[test]
fn a_token_that_outlives_its_claim_is_asked_about_once_a_second() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    server.set_leeway(10);
    server.advance(69_999);
    server.expect_nothing(client);
    server.advance(1);
    assert_eq!(server.take(client).len(), 2);
}

#[test]
fn each_channel_watches_its_own_token() {
    let (mut server, client) = joined(Some("first.token.a"), 60);
    server.join(client, "realtime:other", "{}");
    server.advance(60_000);
    expect_shut_down_one(&mut server, client);
    server.advance(600_000);
    assert_eq!(server.hubs[0].channel_count(), 1);
    server.expect_nothing(client);
}

#[track_caller]
fn expect_shut_down_one(server: &mut Server, client: Client) {
    assert_eq!(server.take(client).len(), 2);
    assert_eq!(server.hubs[0].channel_count(), 1);
}

/// §6.3: verified again at least every five minutes, key changes included.
#[test]
fn a_key_that_is_withdrawn_is_noticed_at_the_next_check() {
    let (mut server, client) = joined(Some("first.token.a"), 10_000);
    server.advance(300_000);
    server.revoke("first.token.a");
    server.advance(299_999);
    server.expect_nothing(client);
    server.advance(1);
    expect_shut_down(&mut server, client, ":error_generating_signer");
}

#[test]
fn the_connection_token_is_not_checked_again_for_its_own_sake() {
    let (mut server, client) = joined(Some("first.token.a"), 10_000);
    server.revoke(CONNECTION);
    server.advance(900_000);
    server.expect_nothing(client);
    assert_eq!(server.hubs[0].channel_count(), 1);
}

/// Whatever clients do with tokens, one channel has one deadline.
#[test]
fn replacing_tokens_and_rejoining_leave_no_deadlines_behind() {
    let (mut server, client) = joined(Some("first.token.a"), 10_000);
    let quiet = server.hubs[0].timer_count();
    for round in 0..1_000 {
        let token = if round % 2 == 0 { "second.token.a" } else { "first.token.a" };
        push(&mut server, client, &format!(r#"{{"access_token":"{token}"}}"#));
        server.join(client, "realtime:other", "{}");
        server.push(client, r#""1""#, r#""2""#, "realtime:other", "phx_leave", "{}");
        server.push(client, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
        server.join(client, ROOM, "{}");
        server.take(client);
    }
    // One more at most: the sweep looks once for a socket that had no channel for a moment.
    assert!(server.hubs[0].timer_count() <= quiet + 1, "{} deadlines", server.hubs[0].timer_count());
}
