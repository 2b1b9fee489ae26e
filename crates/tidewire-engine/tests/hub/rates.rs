//! Rate counters and what being over them means (§7.1, Q18).

use std::sync::Arc;

use serde_json::json;
use tidewire_engine::Rates;
use tidewire_protocol::frame::Version;

use super::server::{Server, parts};

const ROOM: &str = "realtime:room";

fn limited(joins: Option<u32>, events: Option<u32>, presence: Option<u32>) -> (Server, Arc<Rates>) {
    let rates = Arc::new(Rates::new(joins, events, presence));
    let shared = Arc::clone(&rates);
    (Server::with(1, move |config| config.rates = Arc::clone(&shared)), rates)
}

#[test]
fn a_tenant_over_its_events_loses_the_receivers_and_keeps_the_sender() {
    let (mut server, rates) = limited(None, Some(1), None);
    let (sender, receiver) = (server.open(0, Version::V2), server.open(0, Version::V2));
    server.join(sender, ROOM, "{}");
    server.join(receiver, ROOM, "{}");
    for reference in 0..10 {
        server.push(sender, r#""1""#, &reference.to_string(), ROOM, "broadcast", r#"{"n":1}"#);
    }
    assert_eq!(server.take(receiver).len(), 10);
    assert_eq!(rates.events.total(), 20, "one for each broadcast and one for each delivery");
    rates.tick();
    server.push(sender, r#""1""#, r#""99""#, ROOM, "broadcast", r#"{"n":2}"#);
    let frames = server.take(receiver);
    let (.., system) = parts(&frames[0]);
    assert_eq!(system["message"], "Too many messages per second");
    assert_eq!(parts(&frames[1]).3, "phx_close");
    assert_eq!(frames.len(), 2);
    server.expect_nothing(sender);
}

#[test]
fn a_join_over_the_rate_is_refused_and_the_socket_closed() {
    let (mut server, rates) = limited(Some(1), None, None);
    let client = server.open(0, Version::V2);
    for room in 0..10 {
        server.join(client, &format!("realtime:{room}"), "{}");
    }
    rates.tick();
    server.push(client, r#""1""#, r#""1""#, ROOM, "phx_join", r#"{"config":{}}"#);
    server.advance(5_000);
    let frames = server.take(client);
    let (.., reply) = parts(&frames[0]);
    assert_eq!(reply["response"], json!({"reason": "ClientJoinRateLimitReached: Too many joins per second"}));
    assert_eq!(server.hubs[0].channel_count(), 0, "the socket was closed");
}

#[test]
fn presence_over_the_rate_shuts_the_tracking_channel() {
    let (mut server, rates) = limited(None, None, Some(1));
    let client = server.open(0, Version::V2);
    server.join(client, ROOM, "{}");
    rates.presence.add(100);
    rates.tick();
    server.push(client, r#""1""#, r#""2""#, ROOM, "presence", r#"{"event":"track","payload":{}}"#);
    let frames = server.take(client);
    let (.., system) = parts(&frames[0]);
    assert_eq!(system["message"], "Too many presence messages per second");
}
