//! Connection lifetime (§1.11): idleness, the sweep, shutdown, slow readers, ids that come again.

use std::sync::Arc;

use tidewire_engine::{Body, ChangeCommand, Drain, Input, Message, PeerMessage};
use tidewire_protocol::codes::OperationalCode;
use tidewire_protocol::frame::{Encoding, Version};

use super::server::{Client, Frame, Server, kind_3, parts};

const ROOM: &str = "realtime:room";

#[test]
fn a_socket_without_frames_for_a_minute_is_closed() {
    let mut server = Server::new(1);
    let (idle, busy, pinging) =
        (server.open(0, Version::V2), server.open(0, Version::V2), server.open(0, Version::V2));
    for client in [idle, busy, pinging] {
        server.join(client, ROOM, "{}");
    }
    for _ in 0..2 {
        server.advance(29_999);
        // Any frame counts, even a broken one; so does a ping.
        server.text(busy, "?");
        let id = server.id(pinging);
        server.handle(0, Input::Alive(id));
    }
    server.advance(1);
    assert!(!server.is_disconnected(idle), "60 s are counted from the last frame");
    server.advance(1);
    server.expect_close(idle, 1000);
    assert!(server.reports.iter().any(|one| one.code == OperationalCode::IdleTimeout));
    for client in [busy, pinging] {
        server.expect_nothing(client);
    }
    server.advance(60_000);
    server.expect_close(busy, 1000);
    server.expect_close(pinging, 1000);
    server.expect_empty();
}

/// §1.11: the connection is dropped, without a close frame. Clients come back after that; after a close
/// with code 1000 realtime-py would not.
#[test]
fn a_socket_that_lost_its_channels_is_swept_after_ten_minutes() {
    let mut server = Server::with(1, |config| config.idle_timeout_ms = u64::MAX / 2);
    let (never, once, again) =
        (server.open(0, Version::V2), server.open(0, Version::V2), server.open(0, Version::V2));
    for client in [once, again] {
        server.join(client, ROOM, "{}");
        server.push(client, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
        server.take(client);
    }
    server.advance(300_000);
    // Whoever joins in between starts again.
    server.join(again, ROOM, "{}");
    server.push(again, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
    server.take(again);
    server.advance(299_999);
    assert!(!server.is_disconnected(once));
    server.advance(1);
    assert!(server.is_disconnected(once));
    server.expect_nothing(once);
    assert!(!server.is_disconnected(again));
    server.advance(300_000);
    assert!(server.is_disconnected(again));
    server.expect_nothing(again);
    server.advance(6_000_000);
    assert!(!server.is_disconnected(never), "a socket that never joined is not swept");
}

#[test]
fn a_socket_that_lost_its_channel_to_a_refused_rejoin_is_swept_too() {
    let mut server = Server::with(1, |config| config.idle_timeout_ms = u64::MAX);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.push(client, r#""2""#, r#""2""#, ROOM, "phx_join", r#"{"config":{},"access_token":"bad"}"#);
    server.advance(599_999);
    assert!(!server.is_disconnected(client));
    server.advance(1);
    assert!(server.is_disconnected(client));
}

#[test]
fn a_joined_socket_is_not_swept() {
    let mut server = Server::with(1, |config| {
        config.idle_timeout_ms = u64::MAX / 2;
        config.token_check_ms = 1_000_000_000;
    });
    let client = server.open(0, Version::V2);
    server.join(client, "realtime:a", "{}");
    server.join(client, "realtime:b", "{}");
    server.push(client, r#""1""#, r#""2""#, "realtime:a", "phx_leave", "{}");
    server.advance(6_000_000);
    assert!(!server.is_disconnected(client));
    // Nor is one that was without a channel for a moment only.
    server.push(client, r#""1""#, r#""2""#, "realtime:b", "phx_leave", "{}");
    server.take(client);
    server.join(client, "realtime:a", "{}");
    server.advance(6_000_000);
    assert!(!server.is_disconnected(client));
}

#[test]
fn draining_refuses_joins_first_and_closes_with_1012_then() {
    let mut server = Server::new(2);
    let clients = [server.open(0, Version::V2), server.open(1, Version::V1)];
    for client in clients {
        server.join(
            client,
            ROOM,
            r#"{"presence":{"enabled":true},"postgres_changes":[{"schema":"public"}]}"#,
        );
        server.push(client, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track"}"#);
    }
    server.drain(Drain::Refuse);
    let restarting = r#"{"config":{}}"#;
    server.push(clients[0], r#""8""#, r#""8""#, "realtime:new", "phx_join", restarting);
    server.advance(5_000);
    let refusal = server.take(clients[0]).pop().unwrap();
    assert_eq!(
        parts(&refusal).4["response"]["reason"],
        "RealtimeRestarting: Realtime is restarting, please standby"
    );
    // What is joined works on.
    server.push(clients[0], r#""1""#, r#""3""#, ROOM, "broadcast", "{}");
    assert_eq!(parts(&server.take(clients[1]).pop().unwrap()).3, "broadcast");
    server.drain(Drain::Close);
    for client in clients {
        server.expect_close(client, 1012);
    }
    server.expect_empty();
    let ended = server.changes.iter().filter(|one| matches!(one, ChangeCommand::Unsubscribe { .. })).count();
    assert_eq!(ended, 2);
}

/// A room of one sender, one reader and one client that does not read.
fn with_slow_reader(bound: usize) -> (Server, Client, Client, Client) {
    let mut server = Server::with(1, |config| config.max_outbox_bytes = bound);
    let (sender, reader, slow) =
        (server.open(0, Version::V2), server.open(0, Version::V2), server.open(0, Version::V2));
    server.join(sender, ROOM, r#"{"broadcast":{"ack":true}}"#);
    server.join(reader, ROOM, "{}");
    server.join(slow, ROOM, r#"{"presence":{"key":"slow"},"postgres_changes":[{"schema":"public"}]}"#);
    server.push(slow, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track"}"#);
    for client in [sender, reader, slow] {
        server.take(client);
    }
    server.stop_reading(slow);
    (server, sender, reader, slow)
}

#[test]
fn a_slow_reader_is_closed_at_its_bound_and_nobody_else_notices() {
    let (mut server, sender, reader, slow) = with_slow_reader(10_000);
    let (hub, id) = (server.hub_of(slow), server.id(slow));
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(900));
    let mut sent = 0;
    while !server.is_disconnected(slow) {
        server.handle_text(
            sender,
            format!(r#"["1","{sent}","realtime:room","broadcast",{payload}]"#).as_bytes(),
        );
        sent += 1;
        assert!(sent < 100, "the bound was never reached");
        let pending = server.hubs[hub].outbox(id).unwrap().pending_bytes();
        assert!(pending <= 10_000, "{pending} bytes wait");
        server.finish_turn(0);
    }
    assert!((9..=11).contains(&sent), "{sent} frames of about a kilobyte fit");
    // Unread frames are dropped; what is left is the close frame.
    assert!(server.hubs[hub].outbox(id).unwrap().pending_bytes() < 100);
    assert_eq!(server.hubs[0].channel_count(), 2);
    assert!(matches!(server.changes.last(), Some(ChangeCommand::Unsubscribe { .. })));
    assert!(server.reports.iter().any(|one| one.code == OperationalCode::SlowReader));

    let count = |frames: &[Frame], event: &str| frames.iter().filter(|one| parts(one).3 == event).count();
    let read = server.take(reader);
    assert_eq!((count(&read, "broadcast"), count(&read, "presence_diff")), (sent, 1));
    assert_eq!(parts(read.last().unwrap()).4["leaves"]["slow"]["metas"].as_array().unwrap().len(), 1);
    let acknowledged = server.take(sender);
    assert_eq!(count(&acknowledged, "phx_reply"), sent);

    server.start_reading(slow);
    server.settle();
    server.expect_close(slow, 4008);
    server.push(sender, r#""1""#, r#""2""#, ROOM, "broadcast", "{}");
    assert_eq!(server.take(reader).len(), 1);
}

#[test]
fn a_frame_larger_than_the_bound_passes_an_empty_outbox() {
    let (mut server, sender, reader, slow) = with_slow_reader(1_000);
    server.binary(sender, &kind_3(ROOM, "big", Encoding::Bytes, &[7; 50_000]));
    assert_eq!(server.take(reader).len(), 1);
    assert!(!server.is_disconnected(slow));
    server.binary(sender, &kind_3(ROOM, "small", Encoding::Bytes, &[7]));
    assert!(server.is_disconnected(slow));
    assert_eq!(server.take(reader).iter().filter(|one| matches!(one, Frame::Binary(_))).count(), 1);
}

/// An answer of two bytes takes far more room than two bytes until it is read.
#[test]
fn small_frames_count_for_the_room_they_take() {
    const BOUND: usize = 64 * 1024;
    let mut server = Server::with(1, |config| config.max_outbox_bytes = BOUND);
    let client = server.open(0, Version::V2);
    server.stop_reading(client);
    let id = server.id(client);
    for _ in 0..=BOUND / 64 {
        server.handle(0, Input::Alive(id));
        server.hubs[0].push_raw(id, vec![0x8A, 0].into());
    }
    server.settle();
    assert!(server.is_disconnected(client));
    let report = server.reports.last().unwrap();
    assert_eq!(report.code, OperationalCode::SlowReader);
    assert!(report.detail.contains("frames"), "{}", report.detail);
}

/// "Never" is a setting, not an overflow.
#[test]
fn the_longest_delays_do_not_overflow() {
    let mut server = Server::with(1, |config| {
        config.idle_timeout_ms = u64::MAX;
        config.no_channel_timeout_ms = u64::MAX;
        config.join_error_backoff_ms = u64::MAX;
        config.token_check_ms = u64::MAX;
    });
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    server.push(client, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
    server.push(client, r#""1""#, r#""3""#, "realtime:", "phx_join", "{}");
    assert_eq!(server.take(client).len(), 2);
    server.advance(1_000_000_000);
    server.expect_nothing(client);
}

#[test]
fn a_sender_that_does_not_read_its_own_copies_is_a_slow_reader_too() {
    let mut server = Server::with(1, |config| config.max_outbox_bytes = 2_000);
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, r#"{"broadcast":{"self":true,"ack":true}}"#);
    server.stop_reading(client);
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(900));
    for _ in 0..4 {
        let text = server.encode(client, r#""1""#, r#""2""#, ROOM, "broadcast", &payload);
        server.handle_text(client, text.as_bytes());
    }
    assert!(server.is_disconnected(client));
    assert_eq!(server.hubs[0].channel_count(), 0);
    server.settle();
    server.expect_empty();
}

#[test]
fn a_socket_that_ends_takes_no_more_input() {
    let mut server = Server::new(1);
    let (client, other) = (server.open(0, Version::V2), server.open(0, Version::V2));
    server.join(other, ROOM, "{}");
    server.join(client, ROOM, "{}");
    let id = server.id(client);
    server.hubs[0].close_socket(id, 1002, "reserved bits are set");
    server.handle_text(client, br#"["1","2","realtime:room","broadcast",{}]"#);
    server.handle_text(client, br#"["1","3","realtime:other","phx_join",{"config":{}}]"#);
    server.handle_text(client, br#"["1","4","realtime:","phx_join",{"config":{}}]"#);
    server.handle_binary(client, &kind_3(ROOM, "e", Encoding::Json, b"{}"));
    server.handle(0, Input::Alive(id));
    server.hubs[0].close_socket(id, 1000, "");
    server.hubs[0].push_raw(id, vec![0x8A, 0].into());
    assert_eq!(server.hubs[0].channel_count(), 1);
    server.settle();
    server.expect_nothing(other);
    assert_eq!(server.take(client), [Frame::Close(1002, "reserved bits are set".into())]);
}

#[test]
fn a_refusal_that_waits_for_a_socket_that_is_gone_reaches_nobody() {
    let mut server = Server::new(1);
    let first = server.open(0, Version::V2);
    server.push(first, r#""1""#, r#""1""#, "realtime:", "phx_join", "{}");
    server.close(first);
    let second = server.open(0, Version::V2);
    assert_eq!(server.id(first).index, server.id(second).index);
    assert_ne!(server.id(first), server.id(second));
    server.advance(5_000);
    server.expect_nothing(second);
}

#[test]
fn a_position_used_again_within_one_turn_belongs_to_the_newcomer() {
    let mut server = Server::new(1);
    let first = server.open(0, Version::V2);
    server.join(first, ROOM, "{}");
    server.handle_text(first, br#"[null,"1","phoenix","heartbeat",{}]"#);
    server.handle_closed(first);
    let second = server.open(0, Version::V2);
    assert_eq!(server.id(first).index, server.id(second).index);
    server.handle_text(second, br#"[null,"2","phoenix","heartbeat",{}]"#);
    // Input that was read before the end was noticed.
    server.handle_text(first, br#"["1","2","realtime:late","phx_join",{"config":{}}]"#);
    server.handle_closed(first);
    server.settle();
    server.expect_nothing(first);
    server.expect(second, &[r#"[null,"2","phoenix","phx_reply",{"status":"ok","response":{}}]"#]);
    assert_eq!((server.hubs[0].socket_count(), server.hubs[0].channel_count()), (1, 0));
    // Its dirty mark was not lost either.
    server.text(second, r#"[null,"3","phoenix","heartbeat",{}]"#);
    assert_eq!(server.take(second).len(), 1);
}

#[test]
fn messages_for_channels_that_are_gone_are_dropped() {
    let mut server = Server::new(1);
    let (client, other) = (server.open(0, Version::V2), server.open(0, Version::V2));
    let config = r#"{"postgres_changes":[{"schema":"public"}]}"#;
    server.join(client, ROOM, config);
    server.join(other, ROOM, config);
    let channels: Vec<_> = server
        .changes
        .iter()
        .map(|command| match command {
            ChangeCommand::Subscribe { channel, .. } => *channel,
            other => panic!("{other:?}"),
        })
        .collect();
    let body = Body::Json { event: "postgres_changes", payload: r#"{"ids":[1],"data":{}}"#.into() };
    let message = Arc::new(Message::new(ROOM, body));
    let deliver = PeerMessage::Deliver { message, channels: channels.clone().into() };
    let system = PeerMessage::System {
        channel: channels[0],
        extension: "postgres_changes",
        ok: true,
        text: "Subscribed to PostgreSQL".into(),
    };
    let state = PeerMessage::State { channel: channels[0], payload: "{}".into() };
    server.publish(&system);
    server.publish(&deliver);
    server.expect(
        client,
        &[
            r#"["1",null,"realtime:room","system",{"extension":"postgres_changes","status":"ok","message":"Subscribed to PostgreSQL","channel":"room"}]"#,
            r#"[null,null,"realtime:room","postgres_changes",{"ids":[1],"data":{}}]"#,
        ],
    );
    server.take(other);
    server.close(client);
    for message in [&system, &deliver, &state] {
        server.publish(message);
    }
    server.expect_nothing(client);
    server.expect(other, &[r#"[null,null,"realtime:room","postgres_changes",{"ids":[1],"data":{}}]"#]);
}

/// Clients that join and leave in a loop for ever.
#[test]
fn joining_and_leaving_leave_no_deadlines_behind() {
    let mut server = Server::new(1);
    let client = server.open(0, Version::V2);
    for _ in 0..1_000 {
        server.join(client, ROOM, "{}");
        server.push(client, r#""1""#, r#""2""#, ROOM, "phx_leave", "{}");
        server.take(client);
    }
    assert!(server.hubs[0].timer_count() <= 2, "{} timers", server.hubs[0].timer_count());
    for _ in 0..1_000 {
        let passer_by = server.open(0, Version::V2);
        server.close(passer_by);
    }
    assert!(server.hubs[0].timer_count() <= 2, "{} timers", server.hubs[0].timer_count());
}
