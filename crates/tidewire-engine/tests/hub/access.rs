//! Private channels: what is asked, what the answers mean, and what waits for them (§3.6, §4.4, §6.4, §6.5).

use serde_json::json;
use tidewire_engine::{AccessRefusal, Answer, Question, StoredMessage, StoredPayload};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::Version;

use super::server::{Client, Server, parts};

const ROOM: &str = "realtime:room";

fn read(broadcast: bool, presence: bool) -> Answer {
    Answer::Read { broadcast, presence, replayed: Vec::new() }
}

fn write(broadcast: bool, presence: bool) -> Answer {
    Answer::Write { broadcast, presence, presence_read: false }
}

/// Joins the private room and lets the database answer.
fn join(server: &mut Server, client: Client, config: &str, answer: Answer) {
    let payload = format!(r#"{{"config":{{"private":true{config}}}}}"#);
    server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", &payload);
    server.answer(answer);
    server.settle();
}

fn member(server: &mut Server, hub: usize, config: &str, answer: Answer) -> Client {
    let client = server.open(hub, Version::V2);
    join(server, client, config, answer);
    let frames = server.take(client);
    let (.., reply) = parts(&frames[0]);
    assert_eq!(reply["status"], "ok", "{frames:?}");
    client
}

#[test]
fn a_join_waits_for_the_database_and_pushes_wait_behind_it() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.handle_text(
        client,
        br#"["1","1","realtime:room","phx_join",{"config":{"private":true,"broadcast":{"self":true,"ack":true}}}]"#,
    );
    server.handle_text(client, br#"["1","2","realtime:room","broadcast",{"n":1}]"#);
    server.settle();
    server.expect_nothing(client);
    assert!(matches!(&server.asked[..], [(_, _, Question::Read { topic, .. })] if &**topic == "room"));
    server.answer(read(true, false));
    server.settle();
    server.expect(
        client,
        &[r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#],
    );
    assert!(matches!(&server.asked[..], [(_, _, Question::Write { .. })]));
    server.answer(write(true, false));
    server.settle();
    server.expect(
        client,
        &[
            r#"[null,null,"realtime:room","broadcast",{"n":1}]"#,
            r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
        ],
    );
}

#[test]
fn whatever_follows_a_push_that_is_being_decided_comes_after_it() {
    let mut server = Server::new(1);
    let listener = member(&mut server, 0, "", read(true, true));
    let client = member(&mut server, 0, r#","presence":{"enabled":true,"key":"k"}"#, read(true, true));
    server.push(client, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track","payload":{}}"#);
    server.push(client, r#""1""#, r#""3""#, ROOM, "presence", r#"{"event":"untrack"}"#);
    server.push(client, r#""1""#, r#""4""#, ROOM, "broadcast", r#"{"last":"words"}"#);
    server.push(client, r#""1""#, r#""5""#, ROOM, "phx_leave", "{}");
    server.settle();
    server.expect_nothing(client);
    server.answer(write(true, true));
    server.settle();
    let replies: Vec<_> = server
        .take(client)
        .iter()
        .map(parts)
        .filter(|(_, _, _, event, _)| event == "phx_reply")
        .map(|(_, reference, ..)| reference)
        .collect();
    assert_eq!(replies, ["2", "3", "5"]);
    let heard: Vec<_> = server.take(listener).iter().map(parts).map(|(.., payload)| payload).collect();
    assert_eq!(heard, [json!({ "last": "words" })]);

    // Nobody is left over.
    let late = server.open(0, Version::V2);
    join(&mut server, late, r#","presence":{"enabled":true}"#, read(true, true));
    let (.., event, state) = parts(&server.take(late)[1]);
    assert_eq!((event.as_str(), state), ("presence_state", json!({})));
}

#[test]
fn neither_permission_is_a_refusal_after_the_backoff() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    join(&mut server, client, "", read(false, false));
    server.expect_nothing(client);
    server.advance(5_000);
    let (.., payload) = parts(&server.take(client)[0]);
    assert_eq!(
        payload["response"]["reason"],
        "Unauthorized: You do not have permissions to read from this Channel topic: room"
    );
}

#[test]
fn a_refusal_of_the_database_is_told_in_its_words() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    let refusal = AccessRefusal {
        code: OperationalCode::Unauthorized,
        join_reason: "QueryCanceled: too slow".into(),
        push_message: String::new(),
    };
    join(&mut server, client, "", Answer::Refused(refusal));
    server.advance(5_000);
    let (.., payload) = parts(&server.take(client)[0]);
    assert_eq!(payload["response"]["reason"], "QueryCanceled: too slow");
}

#[test]
fn public_and_private_members_of_one_name_do_not_hear_each_other() {
    let mut server = Server::new(2);
    let private = member(&mut server, 0, "", read(true, true));
    let other = member(&mut server, 1, "", read(true, true));
    let public = server.open(1, Version::V2);
    server.join(public, ROOM, "{}");
    server.push(public, r#""1""#, r#""2""#, ROOM, "broadcast", r#"{"from":"public"}"#);
    server.expect_nothing(private);
    server.expect_nothing(other);
    server.push(private, r#""1""#, r#""3""#, ROOM, "broadcast", r#"{"from":"private"}"#);
    server.answer(write(true, true));
    server.settle();
    server.expect(other, &[r#"[null,null,"realtime:room","broadcast",{"from":"private"}]"#]);
    server.expect_nothing(public);
}

#[test]
fn who_may_not_read_broadcasts_hears_none_and_who_may_not_write_is_not_answered() {
    let mut server = Server::new(1);
    let deaf = member(&mut server, 0, "", read(false, true));
    let mute = member(&mut server, 0, r#","broadcast":{"ack":true}"#, read(true, true));
    let speaker = member(&mut server, 0, "", read(true, true));
    server.push(mute, r#""1""#, r#""2""#, ROOM, "broadcast", r#"{"n":1}"#);
    server.answer(write(false, false));
    server.settle();
    server.expect_nothing(mute);
    server.push(
        mute,
        r#""1""#,
        r#""3""#,
        ROOM,
        "presence",
        r#"{"type":"presence","event":"track","payload":{}}"#,
    );
    server.expect(mute, &[r#"["1","3","realtime:room","phx_reply",{"status":"error","response":{}}]"#]);
    server.push(speaker, r#""1""#, r#""2""#, ROOM, "broadcast", r#"{"n":2}"#);
    server.answer(write(true, false));
    server.settle();
    server.expect_nothing(deaf);
    server.expect(mute, &[r#"[null,null,"realtime:room","broadcast",{"n":2}]"#]);
}

#[test]
fn replayed_messages_follow_the_reply_and_do_not_come_twice() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    let replayed = vec![
        StoredMessage {
            id: "a".into(),
            event: "old".into(),
            payload: StoredPayload::Json(r#"{"n": 1}"#.into()),
        },
        StoredMessage { id: "b".into(), event: "new".into(), payload: StoredPayload::Json("null".into()) },
    ];
    join(
        &mut server,
        client,
        r#","broadcast":{"replay":{"since":0,"limit":10}}"#,
        Answer::Read { broadcast: true, presence: true, replayed },
    );
    server.expect(
        client,
        &[
            r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
            r#"["1",null,"realtime:room","broadcast",{"type":"broadcast","event":"old","payload":{"n":1},"meta":{"replayed":true,"id":"a"}}]"#,
            r#"["1",null,"realtime:room","broadcast",{"type":"broadcast","event":"new","payload":null,"meta":{"replayed":true,"id":"b"}}]"#,
        ],
    );
    for (id, is_new) in [("b", false), ("c", true)] {
        let body = tidewire_engine::Body::Json { event: "broadcast", payload: r#"{"n":3}"#.into() };
        let message =
            tidewire_engine::Message::in_domain(tidewire_engine::Domain::Private, ROOM, body).with_id(id);
        server
            .publish(&tidewire_engine::PeerMessage::Publish { message: message.into(), is_presence: false });
        server.settle();
        assert_eq!(server.take(client).len(), usize::from(is_new));
    }
}

#[test]
fn bad_replay_parameters_are_refused_and_null_means_none() {
    let mut server = Server::new(1);
    for (replay, is_asked) in [
        ("null", true),
        ("5", true),
        (r#"{"since":1,"limit":null}"#, true),
        (r#"{"since":1,"limit":900}"#, true),
        (r#"{"limit":1}"#, false),
        (r#"{"since":"1"}"#, false),
        (r#"{"since":1,"limit":"1"}"#, false),
        (r#"{"since":1.5}"#, false),
        (r#"{"since":99999999999999999}"#, false),
    ] {
        let client = server.open(0, Version::V2);
        let payload = format!(r#"{{"config":{{"private":true,"broadcast":{{"replay":{replay}}}}}}}"#);
        server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", &payload);
        assert_eq!(!server.asked.is_empty(), is_asked, "{replay}");
        server.asked.clear();
        if !is_asked {
            server.advance(5_000);
            let (.., payload) = parts(&server.take(client)[0]);
            let reason = "UnableToReplayMessages: Replay params are not valid";
            assert_eq!(payload["response"], json!({ "reason": reason }));
        }
        server.close(client);
    }
}

#[test]
fn a_new_token_asks_again_and_a_lost_permission_shuts_the_channel() {
    let mut server = Server::new(1);
    server.allow("first.token.a", "authenticated", 1_000);
    let token = r#"{"access_token":"first.token.a"}"#;
    for (answer, message) in [
        (read(false, false), "You do not have permissions to read from this Channel topic: room"),
        (read(true, false), "You no longer have permission to read from this Channel topic: room"),
    ] {
        let client = member(&mut server, 0, "", read(true, true));
        server.push(client, r#""1""#, "null", ROOM, "access_token", token);
        server.expect_nothing(client);
        server.answer(answer);
        server.settle();
        let frames = server.take(client);
        let (.., system) = parts(&frames[0]);
        assert_eq!(system["message"], message);
        assert_eq!(frames.len(), 2, "then the close: {frames:?}");
        server.close(client);
    }
    let client = member(&mut server, 0, "", read(true, false));
    server.push(client, r#""1""#, "null", ROOM, "access_token", token);
    server.answer(read(true, true));
    server.settle();
    server.expect_nothing(client);
}

#[test]
fn a_socket_that_goes_while_its_join_waits_leaves_nothing_behind() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", r#"{"config":{"private":true}}"#);
    server.close(client);
    assert_eq!(server.hubs[0].asked_count(), 0);
    server.answer(read(true, true));
    server.settle();
    server.expect_empty();
}

#[test]
fn a_private_channel_that_tracks_without_presence_gets_diffs_as_its_own_pushes() {
    let mut server = Server::new(1);
    let client = member(&mut server, 0, r#","presence":{"key":"me"}"#, read(true, false));
    server.push(client, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track","payload":{"n":1}}"#);
    server.answer(Answer::Write { broadcast: true, presence: true, presence_read: true });
    server.settle();
    let frames = server.take(client);
    let diffs: Vec<_> =
        frames.iter().map(parts).filter(|(_, _, _, event, _)| event == "presence_diff").collect();
    assert_eq!(diffs.len(), 1, "{frames:?}");
    assert_eq!(diffs[0].0, json!("1"), "a push of the channel carries its join ref");
}
