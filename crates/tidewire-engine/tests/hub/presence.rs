//! Presence: pushes (§4.2), state (§4.3), diffs (§4.4), the window limit (§7.2).

use tidewire_engine::Input;
use tidewire_protocol::frame::Version;
use tidewire_protocol::websocket::{Opcode, frame};

use super::server::{Client, Server, parts};

const ROOM: &str = "realtime:room";
const OK: &str = r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#;

/// Two clients on different hubs (if there are two), `ada` and a watcher, both in the room.
fn room(hubs: usize) -> (Server, Client, Client) {
    let mut server = Server::with(hubs, |config| config.presence_calls = None);
    let ada = server.open(0, Version::V2);
    let watcher = server.open(hubs - 1, Version::V2);
    server.join(ada, ROOM, r#"{"presence":{"enabled":true,"key":"ada"}}"#);
    server.join(watcher, ROOM, r#"{"presence":{"enabled":true,"key":"watcher"}}"#);
    (server, ada, watcher)
}

fn push(server: &mut Server, client: Client, payload: &str) {
    server.push(client, r#""1""#, r#""2""#, ROOM, "presence", payload);
}

#[test]
fn the_first_track_is_a_join_for_everybody() {
    for hubs in 1..=3 {
        let (mut server, ada, watcher) = room(hubs);
        push(&mut server, ada, r#"{"type":"presence","event":"track","payload":{"name":"Ada"}}"#);
        let diff = r#"[null,null,"realtime:room","presence_diff",{"joins":{"ada":{"metas":[{"phx_ref":"…","name":"Ada"}]}},"leaves":{}}]"#;
        server.expect(ada, &[OK, diff]);
        server.expect(watcher, &[diff]);
    }
}

#[test]
fn the_same_payload_again_is_answered_and_says_nothing() {
    for hubs in 1..=2 {
        let (mut server, ada, watcher) = room(hubs);
        push(&mut server, ada, r#"{"event":"track","payload":{"n":1}}"#);
        server.take(ada);
        server.take(watcher);
        push(&mut server, ada, r#"{"event":"track","payload":{"n":1}}"#);
        server.expect(ada, &[OK]);
        server.expect_nothing(watcher);
    }
}

#[test]
fn another_payload_is_one_diff_with_both_sides() {
    for hubs in 1..=2 {
        let (mut server, ada, watcher) = room(hubs);
        push(&mut server, ada, r#"{"event":"track","payload":{"n":1}}"#);
        let (.., first) = parts(&server.take(watcher)[0]);
        push(&mut server, ada, r#"{"event":"TRACK","payload":{"n":2}}"#);
        let frames = server.take(watcher);
        assert_eq!(frames.len(), 1);
        let (.., diff) = parts(&frames[0]);
        let (joined, left) = (&diff["joins"]["ada"]["metas"][0], &diff["leaves"]["ada"]["metas"][0]);
        assert_eq!(*left, first["joins"]["ada"]["metas"][0]);
        assert_eq!(joined["n"], 2);
        assert_eq!(joined["phx_ref_prev"], left["phx_ref"]);
        assert_ne!(joined["phx_ref"], left["phx_ref"]);
    }
}

#[test]
fn an_untrack_is_a_leave_and_a_second_one_is_nothing() {
    for hubs in 1..=2 {
        let (mut server, ada, watcher) = room(hubs);
        push(&mut server, ada, r#"{"event":"track"}"#);
        server.take(ada);
        server.take(watcher);
        push(&mut server, ada, r#"{"event":"untrack"}"#);
        let diff = r#"[null,null,"realtime:room","presence_diff",{"joins":{},"leaves":{"ada":{"metas":[{"phx_ref":"…"}]}}}]"#;
        server.expect(ada, &[OK, diff]);
        server.expect(watcher, &[diff]);
        push(&mut server, ada, r#"{"event":"untrack"}"#);
        server.expect(ada, &[OK]);
        server.expect_nothing(watcher);
    }
}

#[test]
fn what_is_no_track_is_answered_by_the_table() {
    let error = r#"["1","2","realtime:room","phx_reply",{"status":"error","response":{}}]"#;
    let no_map = r#"["1","2","realtime:room","phx_reply",{"status":"error","response":{"reason":"Presence track payload must be a map"}}]"#;
    let rows = [
        // No `event` key: nothing, ok.
        (r#"{}"#, OK),
        (r#"{"type":"presence","payload":{}}"#, OK),
        // Unknown events, of whatever type.
        (r#"{"event":"dance"}"#, error),
        (r#"{"event":7}"#, error),
        (r#"{"event":""}"#, error),
        // A payload that is not an object, null included.
        (r#"{"event":"track","payload":[]}"#, no_map),
        (r#"{"event":"track","payload":"x"}"#, no_map),
        (r#"{"event":"track","payload":7}"#, no_map),
        (r#"{"event":"track","payload":null}"#, no_map),
    ];
    for (payload, reply) in rows {
        let (mut server, ada, watcher) = room(2);
        push(&mut server, ada, payload);
        server.expect(ada, &[reply]);
        server.expect_nothing(watcher);
    }
}

#[test]
fn refs_that_a_client_forges_are_overwritten() {
    let (mut server, ada, watcher) = room(1);
    push(
        &mut server,
        ada,
        r#"{"event":"track","payload":{"phx_ref":"forged","phx_ref_prev":"forged too","n":1}}"#,
    );
    let (.., diff) = parts(&server.take(watcher)[0]);
    let meta = &diff["joins"]["ada"]["metas"][0];
    assert_eq!(meta["phx_ref"].as_str().unwrap().len(), 16);
    assert_eq!((meta.get("phx_ref_prev"), &meta["n"]), (None, &1.into()));
}

#[test]
fn a_payload_over_the_limit_ends_the_channel() {
    let mut server = Server::with(1, |config| config.max_payload_bytes = 100);
    let ada = server.open(0, Version::V2);
    server.join(ada, ROOM, "{}");
    let large = format!(r#"{{"event":"track","payload":{{"a":"{}"}}}}"#, "x".repeat(100));
    push(&mut server, ada, &large);
    server.expect(
        ada,
        &[
            r#"["1",null,"realtime:room","system",{"extension":"system","status":"error","message":"Track message size exceeded","channel":"room"}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
    assert_eq!(server.hubs[0].channel_count(), 0);
}

/// Q13: per channel, a fixed window, untrack and unknown events count, a push without `event` does not.
#[test]
fn too_many_calls_in_a_window_end_the_channel() {
    let mut server = Server::new(1);
    let (ada, watcher) = (server.open(0, Version::V2), server.open(0, Version::V2));
    server.join(ada, ROOM, r#"{"presence":{"key":"ada"}}"#);
    server.join(ada, "realtime:other", "{}");
    server.join(watcher, ROOM, "{}");
    for payload in [
        r#"{"event":"track"}"#,
        r#"{}"#,
        r#"{"event":"untrack"}"#,
        r#"{"event":"dance"}"#,
        r#"{"event":"track"}"#,
        r#"{"event":"track","payload":{"n":2}}"#,
    ] {
        push(&mut server, ada, payload);
        assert_eq!(server.hubs[0].channel_count(), 3, "after {payload}");
    }
    // Another channel of the same socket has its own count.
    server.push(ada, r#""1""#, r#""3""#, "realtime:other", "presence", r#"{"event":"track"}"#);
    server.take(ada);
    server.take(watcher);
    push(&mut server, ada, r#"{"event":"track","payload":{"n":3}}"#);
    server.expect(
        ada,
        &[
            r#"["1",null,"realtime:room","system",{"extension":"system","status":"error","message":"Client presence rate limit exceeded","channel":"room"}]"#,
            r#"["1","1","realtime:room","phx_close",{}]"#,
        ],
    );
    server.expect(
        watcher,
        &[
            r#"[null,null,"realtime:room","presence_diff",{"joins":{},"leaves":{"ada":{"metas":[{"phx_ref":"…","phx_ref_prev":"…","n":2}]}}}]"#,
        ],
    );
}

#[test]
fn a_new_window_begins_thirty_seconds_after_the_last_one() {
    let mut server = Server::new(1);
    let ada = server.open(0, Version::V2);
    server.join(ada, ROOM, "{}");
    for _ in 0..3 {
        for _ in 0..5 {
            push(&mut server, ada, r#"{"event":"untrack"}"#);
        }
        server.advance(30_000);
    }
    assert_eq!(server.hubs[0].channel_count(), 1);
}

#[test]
fn a_channel_without_presence_tracks_and_sees_diffs_but_never_a_state() {
    for hubs in 1..=2 {
        let mut server = Server::new(hubs);
        let ada = server.open(0, Version::V2);
        server.push(ada, r#""1""#, r#""1""#, ROOM, "phx_join", r#"{"config":{"presence":{"key":"ada"}}}"#);
        assert_eq!(server.take(ada).len(), 1);
        push(&mut server, ada, r#"{"event":"track"}"#);
        let events: Vec<_> = server.take(ada).iter().map(|frame| parts(frame).3).collect();
        assert_eq!(events, ["phx_reply", "presence_diff"]);
    }
}

#[test]
fn the_state_shows_everybody_who_tracks_and_keys_can_be_shared() {
    for hubs in 1..=3 {
        let mut server = Server::with(hubs, |config| config.presence_calls = None);
        for n in 0..3 {
            let client = server.open(n % hubs, Version::V2);
            server.join(client, ROOM, r#"{"presence":{"key":"shared"}}"#);
            push(&mut server, client, &format!(r#"{{"event":"track","payload":{{"n":{n}}}}}"#));
        }
        let odd = server.open(0, Version::V2);
        server.join(odd, ROOM, r#"{"presence":{"key":"o\"dd\\ key"}}"#);
        push(&mut server, odd, r#"{"event":"track"}"#);

        let newcomer = server.open(hubs - 1, Version::V2);
        server.push(
            newcomer,
            r#""4""#,
            r#""4""#,
            ROOM,
            "phx_join",
            r#"{"config":{"presence":{"enabled":true,"key":""}}}"#,
        );
        let frames = server.take(newcomer);
        let (join_ref, reference, _, event, state) = parts(&frames[1]);
        assert_eq!((join_ref, reference, &*event), ("4".into(), ().into(), "presence_state"));
        assert_eq!(state.as_object().unwrap().keys().collect::<Vec<_>>(), ["o\"dd\\ key", "shared"]);
        let metas = state["shared"]["metas"].as_array().unwrap();
        let mut numbers: Vec<_> = metas.iter().map(|meta| meta["n"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(frames.len(), 2);
    }
}

/// Every way for a channel to end.
#[test]
fn a_channel_that_ends_leaves() {
    let leave =
        |server: &mut Server, ada: Client| server.push(ada, r#""1""#, r#""3""#, ROOM, "phx_leave", "{}");
    let close = |server: &mut Server, ada: Client| server.close(ada);
    let shut_down = |server: &mut Server, ada: Client| {
        server.push(ada, r#""1""#, r#""3""#, ROOM, "access_token", r#"{"access_token":"bad"}"#);
    };
    let peer_close = |server: &mut Server, ada: Client| {
        let (hub, id) = (server.hub_of(ada), server.id(ada));
        server.hubs[hub].close_socket(id, 1000, "");
        server.settle();
    };
    let ways: [fn(&mut Server, Client); 4] = [leave, close, shut_down, peer_close];
    for hubs in 1..=2 {
        for way in ways {
            let (mut server, ada, watcher) = room(hubs);
            push(&mut server, ada, r#"{"event":"track"}"#);
            server.take(watcher);
            way(&mut server, ada);
            server.expect(
                watcher,
                &[
                    r#"[null,null,"realtime:room","presence_diff",{"joins":{},"leaves":{"ada":{"metas":[{"phx_ref":"…"}]}}}]"#,
                ],
            );
        }
    }
}

#[test]
fn the_changes_of_one_turn_are_one_diff() {
    let (mut server, ada, watcher) = room(1);
    let bob = server.open(0, Version::V2);
    server.join(bob, ROOM, r#"{"presence":{"key":"bob"}}"#);
    let call = |event: &str, n: u32| {
        format!(r#"["1","2","realtime:room","presence",{{"event":"{event}","payload":{{"n":{n}}}}}]"#)
    };
    server.handle_text(ada, call("track", 1).as_bytes());
    server.handle_text(bob, call("track", 1).as_bytes());
    server.handle_text(ada, call("track", 2).as_bytes());
    server.handle_text(bob, call("untrack", 0).as_bytes());
    server.settle();
    server.expect(
        watcher,
        &[
            r#"[null,null,"realtime:room","presence_diff",{"joins":{"ada":{"metas":[{"phx_ref":"…","n":2}]}},"leaves":{}}]"#,
        ],
    );
}

#[test]
fn a_track_taken_back_within_a_turn_leaves_nothing_behind() {
    let mut server = Server::new(1);
    let ada = server.open(0, Version::V2);
    server.join(ada, ROOM, "{}");
    server.handle_text(ada, br#"["1","2","realtime:room","presence",{"event":"track"}]"#);
    server.handle_closed(ada);
    server.settle();
    server.expect_empty();
}

/// The home hub keeps a topic that none of its own sockets has joined, for as long as somebody tracks.
#[test]
fn a_home_without_members_forgets_the_topic_with_its_last_presence() {
    let mut server = Server::new(3);
    let clients: Vec<_> = (0..3).map(|hub| server.open(hub, Version::V2)).collect();
    for round in 0..20 {
        let topic = format!("realtime:{round}");
        for &client in &clients {
            server.join(client, &topic, r#"{"presence":{"enabled":true}}"#);
            server.push(client, r#""1""#, r#""2""#, &topic, "presence", r#"{"event":"track"}"#);
            server.push(client, r#""1""#, r#""3""#, &topic, "phx_leave", "{}");
        }
    }
    for hub in &server.hubs {
        assert_eq!((hub.topic_count(), hub.channel_count()), (0, 0));
    }
}

/// Ending a slow reader's channels is itself a change of presence, which can fill the next outbox, and so
/// on. All of it belongs to the same turn: nothing may have to wait for somebody else's next frame.
#[test]
fn a_cascade_of_slow_readers_ends_within_its_turn() {
    const BOUND: usize = 10_000;
    let mut server = Server::with(1, |config| config.max_outbox_bytes = BOUND);
    let speaker = server.open(0, Version::V2);
    server.join(speaker, ROOM, "{}");
    let key = "k".repeat(1_000);
    let slow: Vec<Client> = (0..6)
        .map(|n| {
            let client = server.open(0, Version::V2);
            server.join(client, ROOM, &format!(r#"{{"presence":{{"key":"{key}{n}"}}}}"#));
            push(&mut server, client, r#"{"event":"track"}"#);
            client
        })
        .collect();
    server.take(speaker);
    // The broadcast, some 1,600 bytes, is too much for the first; its leave, some 1,150, for the second;
    // that leave for the third, and so on.
    for (n, &client) in slow.iter().enumerate() {
        server.stop_reading(client);
        let free = if n == 0 { 1_000 } else { 1_650 + 650 + 1_180 * (n - 1) };
        let id = server.id(client);
        server.hubs[0].push_raw(id, frame(Opcode::Ping, &vec![0; BOUND - free]));
    }
    let payload = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_550));
    server.handle_text(speaker, format!(r#"["1","2","realtime:room","broadcast",{payload}]"#).as_bytes());
    let gone = |server: &Server| slow.iter().filter(|&&client| server.is_disconnected(client)).count();
    assert_eq!(gone(&server), 1);
    server.finish_turn(0);
    assert_eq!((gone(&server), server.hubs[0].channel_count()), (slow.len(), 1));
    let leaves: Vec<_> = server.take(speaker).iter().map(|frame| parts(frame).4["leaves"].clone()).collect();
    assert_eq!(leaves.len(), slow.len());
    assert!(leaves.iter().all(|leaves| leaves.as_object().unwrap().len() == 1));
    assert!(!server.finish_turn(0), "a second turn has nothing to add");
}

#[test]
fn a_state_that_arrives_for_an_older_incarnation_is_dropped() {
    // Of two hubs, one is the topic's home; the client is tried on both.
    for hub in 0..2 {
        let mut server = Server::new(2);
        let client = server.open(hub, Version::V2);
        let join = |reference: u32| {
            format!(
                r#"["{reference}","{reference}","realtime:room","phx_join",{{"config":{{"presence":{{"enabled":true}}}}}}]"#
            )
        };
        server.handle_text(client, join(1).as_bytes());
        server.handle_text(client, join(2).as_bytes());
        server.settle();
        let states: Vec<_> = server
            .take(client)
            .iter()
            .map(parts)
            .filter(|(.., event, _)| event == "presence_state")
            .map(|(join_ref, ..)| join_ref)
            .collect();
        // On the home hub the first state is there before the second join.
        assert_eq!(states.last().unwrap(), "2");
        assert!(states.len() <= 2);
    }
}

#[test]
fn presence_of_v1_clients_has_the_same_content() {
    let mut server = Server::new(2);
    let ada = server.open(0, Version::V1);
    server.push(
        ada,
        "null",
        r#""1""#,
        ROOM,
        "phx_join",
        r#"{"config":{"presence":{"enabled":true,"key":"ada"}}}"#,
    );
    server.push(ada, "null", r#""2""#, ROOM, "presence", r#"{"event":"track","payload":{"n":1}}"#);
    server.expect(
        ada,
        &[
            r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{"postgres_changes":[]}},"ref":"1"}"#,
            r#"{"topic":"realtime:room","event":"presence_state","payload":{},"ref":null}"#,
            r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"2"}"#,
            r#"{"topic":"realtime:room","event":"presence_diff","payload":{"joins":{"ada":{"metas":[{"phx_ref":"…","n":1}]}},"leaves":{}},"ref":null}"#,
        ],
    );
    let id = server.id(ada);
    server.handle(0, Input::Alive(id));
}
