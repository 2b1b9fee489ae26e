//! The sessions of `PROTOCOL.md` appendix A, word for word: on one hub, and with the topic's presence kept
//! by another hub than the client's (of two hubs, one is the topic's home, so both are tried).

use tidewire_protocol::frame::Version;

use super::server::{Frame, Server};

/// Every way to place one client.
fn placements() -> Vec<(Server, usize)> {
    vec![
        (Server::new(1), 0),
        (Server::new(2), 0),
        (Server::new(2), 1),
        (Server::new(3), 0),
        (Server::new(3), 1),
        (Server::new(3), 2),
    ]
}

#[test]
fn the_v2_session_of_appendix_a() {
    for (mut server, hub) in placements() {
        let ada = server.open(hub, Version::V2);
        server.text(
            ada,
            r#"["1","1","realtime:room","phx_join",{"config":{"broadcast":{"ack":true,"self":true},"presence":{"enabled":true,"key":"ada"}}}]"#,
        );
        server.expect(
            ada,
            &[
                r#"["1","1","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
                r#"["1",null,"realtime:room","presence_state",{}]"#,
            ],
        );
        server.text(
            ada,
            r#"["1","2","realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{"a":1},"extra":5}]"#,
        );
        server.expect(
            ada,
            &[
                r#"[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{"a":1},"extra":5}]"#,
                r#"["1","2","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            ],
        );
        // A stale join ref is accepted and answered with the channel's own.
        server.text(
            ada,
            r#"["77","3","realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{}}]"#,
        );
        server.expect(
            ada,
            &[
                r#"[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"ping","payload":{}}]"#,
                r#"["1","3","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
            ],
        );
        // A stale leave is not.
        server.text(ada, r#"["77","4","realtime:room","phx_leave",{}]"#);
        server.expect_nothing(ada);
        server.text(
            ada,
            r#"["1","5","realtime:room","presence",{"type":"presence","event":"track","payload":{"n":1}}]"#,
        );
        server.expect(
            ada,
            &[
                r#"["1","5","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
                r#"[null,null,"realtime:room","presence_diff",{"joins":{"ada":{"metas":[{"phx_ref":"…","n":1}]}},"leaves":{}}]"#,
            ],
        );
        server.text(
            ada,
            r#"["6","7","realtime:room","phx_join",{"config":{"presence":{"enabled":true,"key":"ada"}}}]"#,
        );
        server.expect(
            ada,
            &[
                r#"["6","7","realtime:room","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#,
                r#"["1","1","realtime:room","phx_close",{}]"#,
                r#"["6",null,"realtime:room","presence_state",{}]"#,
            ],
        );
        server.text(ada, r#"["6","8","realtime:room","phx_leave",{}]"#);
        server.expect(
            ada,
            &[
                r#"["6","8","realtime:room","phx_reply",{"status":"ok","response":{}}]"#,
                r#"["6","6","realtime:room","phx_close",{}]"#,
            ],
        );
        server.close(ada);
        server.expect_empty();
    }
}

#[test]
fn the_v1_session_of_appendix_a_in_the_manner_of_realtime_py() {
    for (mut server, hub) in placements() {
        let client = server.open(hub, Version::V1);
        server.text(
            client,
            r#"{"event":"phx_join","payload":{"config":{}},"topic":"realtime:room","ref":"1","join_ref":null}"#,
        );
        server.expect(
            client,
            &[
                r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{"postgres_changes":[]}},"ref":"1"}"#,
            ],
        );
        server.text(
            client,
            r#"{"event":"phx_leave","payload":{},"topic":"realtime:room","ref":"2","join_ref":null}"#,
        );
        server.expect(
            client,
            &[
                r#"{"topic":"realtime:room","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"2"}"#,
                r#"{"topic":"realtime:room","event":"phx_close","payload":{},"ref":null}"#,
            ],
        );
        server.close(client);
        server.expect_empty();
    }
}

/// The vectors of kinds 3 and 4, byte for byte.
#[test]
fn a_user_broadcast_is_delivered_as_the_bytes_of_appendix_a() {
    let push = hex(
        "03 01 01 0D 04 00 01 31 32 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D",
    );
    let delivery =
        hex("04 0D 04 00 01 72 65 61 6C 74 69 6D 65 3A 72 6F 6F 6D 70 69 6E 67 7B 22 61 22 3A 31 7D");
    for (mut server, hub) in placements() {
        let sender = server.open(hub, Version::V2);
        let near = server.open(hub, Version::V2);
        let far = server.open(0, Version::V2);
        for client in [sender, near, far] {
            server.join(client, "realtime:room", "{}");
        }
        server.binary(sender, &push);
        server.expect_nothing(sender);
        assert_eq!(server.take(near), [Frame::Binary(delivery.clone())]);
        assert_eq!(server.take(far), [Frame::Binary(delivery.clone())]);
    }
}

fn hex(text: &str) -> Vec<u8> {
    text.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("two hexadecimal digits")).collect()
}
