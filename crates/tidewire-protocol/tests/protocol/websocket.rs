//! RFC 6455: literal frames, violations, limits, and memory that follows what arrived.

use tidewire_protocol::websocket::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame built by hand, so that the writers are not their own judges.
pub(crate) fn raw(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = vec![first];
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        len @ 0..=125 => out.push(bit | len as u8),
        len @ 126..=65535 => {
            out.push(bit | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(bit | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.extend_from_slice(payload),
        Some(mask) => {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
        }
    }
    out
}

fn server() -> Decoder {
    Decoder::new(Role::Server, 1_000)
}

fn violation(decoder: &mut Decoder, mut bytes: Vec<u8>) -> u16 {
    decoder.decode(&mut bytes).expect_err("should be a violation").code
}

#[test]
fn the_accept_key_of_the_rfc() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn the_examples_of_the_rfc() {
    assert_eq!(&frame(Opcode::Text, b"Hello")[..], b"\x81\x05Hello");
    let mut out = Vec::new();
    write_masked(&mut out, Opcode::Text, b"Hello", MASK);
    assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    let decoded = server().decode(&mut out.clone()).unwrap().map(|d| d.consumed);
    assert_eq!(decoded, Some(11));
    assert_eq!(server().decode(&mut out).unwrap().unwrap().event, Event::Text(b"Hello"));

    let mut client = Decoder::new(Role::Client, 1_000_000);
    let mut first = b"\x01\x03Hel".to_vec();
    let mut second = b"\x80\x02lo".to_vec();
    assert_eq!(client.decode(&mut first).unwrap().unwrap().event, Event::Fragment);
    assert_eq!(client.decode(&mut second).unwrap().unwrap().event, Event::Text(b"Hello"));

    let mut head = Vec::new();
    write_header(&mut head, Opcode::Binary, 256);
    assert_eq!(head, b"\x82\x7e\x01\x00");
    head.clear();
    write_header(&mut head, Opcode::Binary, 65536);
    assert_eq!(head, b"\x82\x7f\0\0\0\0\0\x01\0\0");
}

#[test]
fn lengths_use_their_shortest_form_at_every_boundary() {
    for len in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, 65_537] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut bytes = frame(Opcode::Binary, &payload).to_vec();
        assert_eq!(bytes, raw(0x82, &payload, None));
        assert_eq!(Decoder::needed(&bytes), Some(bytes.len()));
        let mut client = Decoder::new(Role::Client, 100_000);
        assert_eq!(client.decode(&mut bytes).unwrap().unwrap().event, Event::Binary(&payload));

        let mut masked = Vec::new();
        write_masked(&mut masked, Opcode::Binary, &payload, MASK);
        assert_eq!(masked, raw(0x82, &payload, Some(MASK)));
    }
}

#[test]
fn an_idle_decoder_is_small() {
    assert!(size_of::<Decoder>() <= 32);
}

#[test]
fn an_incomplete_frame_is_left_as_it_is() {
    let whole = raw(0x81, &[b'x'; 300], Some(MASK));
    for cut in 0..whole.len() {
        let mut part = whole[..cut].to_vec();
        assert_eq!(server().decode(&mut part), Ok(None));
        assert_eq!(part, whole[..cut], "bytes were changed at {cut}");
        let announced = Decoder::needed(&part);
        assert_eq!(announced, (cut >= 8).then_some(whole.len()), "at {cut}");
    }
}

#[test]
fn violations_of_the_protocol() {
    let table: &[(&str, Vec<u8>)] = &[
        ("unmasked text", raw(0x81, b"a", None)),
        ("unmasked ping", raw(0x89, b"", None)),
        ("rsv1", raw(0xc1, b"a", Some(MASK))),
        ("rsv2", raw(0xa1, b"a", Some(MASK))),
        ("rsv3", raw(0x91, b"a", Some(MASK))),
        ("reserved data opcode", raw(0x83, b"a", Some(MASK))),
        ("reserved control opcode", raw(0x8b, b"a", Some(MASK))),
        ("control beyond 125", raw(0x89, &[0; 126], Some(MASK))),
        ("fragmented ping", raw(0x09, b"", Some(MASK))),
        ("fragmented close", raw(0x08, b"", Some(MASK))),
        ("continuation of nothing", raw(0x80, b"a", Some(MASK))),
        ("length 5 in sixteen bits", b"\x81\xfe\0\x05".to_vec()),
        ("length 5 in sixty-four bits", b"\x81\xff\0\0\0\0\0\0\0\x05".to_vec()),
        ("length with the top bit", b"\x81\xff\x80\0\0\0\0\0\0\0".to_vec()),
        ("close code of one byte", raw(0x88, b"\x03", Some(MASK))),
        ("close code 999", raw(0x88, &999u16.to_be_bytes(), Some(MASK))),
        ("close code 1005", raw(0x88, &1005u16.to_be_bytes(), Some(MASK))),
        ("close code 1006", raw(0x88, &1006u16.to_be_bytes(), Some(MASK))),
        ("close code 2999", raw(0x88, &2999u16.to_be_bytes(), Some(MASK))),
        ("close code 5000", raw(0x88, &5000u16.to_be_bytes(), Some(MASK))),
    ];
    for (name, bytes) in table {
        assert_eq!(violation(&mut server(), bytes.clone()), 1002, "{name}");
    }
    let mut client = Decoder::new(Role::Client, 1_000);
    assert_eq!(violation(&mut client, raw(0x81, b"a", Some(MASK))), 1002);
}

#[test]
fn two_bytes_are_enough_to_refuse() {
    for bytes in [b"\x81\x05", b"\x83\x85", b"\xc1\x85", b"\x89\xfe", b"\x00\x85"] {
        assert_eq!(violation(&mut server(), bytes.to_vec()), 1002, "{bytes:?}");
    }
}

#[test]
fn a_message_may_not_begin_inside_a_message() {
    for first in [0x81, 0x82, 0x01, 0x02] {
        let mut decoder = server();
        assert!(decoder.decode(&mut raw(0x01, b"a", Some(MASK))).is_ok());
        assert_eq!(violation(&mut decoder, raw(first, b"b", Some(MASK))), 1002);
    }
}

#[test]
fn too_big_is_said_as_soon_as_the_header_announces_it() {
    assert_eq!(violation(&mut server(), b"\x82\xfe\x03\xe9\0\0\0\0".to_vec()), 1009);
    assert_eq!(violation(&mut server(), b"\x82\xff\0\0\0\x80\0\0\0\0\0\0\0\0".to_vec()), 1009);
    let exactly = raw(0x82, &[1; 1_000], Some(MASK));
    assert!(server().decode(&mut exactly.clone()).unwrap().is_some());
}

#[test]
fn fragments_count_together() {
    let mut decoder = server();
    assert!(decoder.decode(&mut raw(0x02, &[1; 600], Some(MASK))).unwrap().is_some());
    assert!(decoder.decode(&mut raw(0x00, &[1; 400], Some(MASK))).unwrap().is_some());
    assert!(decoder.decode(&mut raw(0x00, &[], Some(MASK))).unwrap().is_some());
    assert_eq!(violation(&mut decoder, raw(0x80, &[1; 1], Some(MASK))), 1009);
}

#[test]
fn control_frames_pass_between_fragments() {
    let mut decoder = server();
    let mut buf = raw(0x02, b"ab", Some(MASK));
    buf.extend(raw(0x89, b"ping", Some(MASK)));
    buf.extend(raw(0x00, b"", Some(MASK)));
    buf.extend(raw(0x8a, b"pong", Some(MASK)));
    buf.extend(raw(0x80, b"cd", Some(MASK)));
    buf.extend(raw(0x81, b"next", Some(MASK)));
    buf.extend(raw(0x88, b"\x03\xe8bye", Some(MASK)));
    buf.extend(raw(0x88, b"", Some(MASK)));
    let expected = [
        Event::Fragment,
        Event::Ping(b"ping"),
        Event::Fragment,
        Event::Pong(b"pong"),
        Event::Binary(b"abcd"),
        Event::Text(b"next"),
        Event::Close { code: Some(1000), reason: b"bye" },
        Event::Close { code: None, reason: b"" },
    ];
    let mut rest = &mut buf[..];
    for event in expected {
        let decoded = decoder.decode(rest).unwrap().unwrap();
        assert_eq!(decoded.event, event);
        let consumed = decoded.consumed;
        rest = &mut rest[consumed..];
    }
    assert_eq!(decoder.decode(rest), Ok(None));
}

#[test]
fn bad_utf8_is_not_this_rooms_business() {
    let mut bytes = raw(0x81, b"\xff\xfe", Some(MASK));
    assert_eq!(server().decode(&mut bytes).unwrap().unwrap().event, Event::Text(b"\xff\xfe"));
}

#[test]
fn a_close_reason_is_cut_at_a_character() {
    let frame = close_frame(4008, &"é".repeat(100));
    assert_eq!(frame[..4], [0x88, 2 + 122, 0x0f, 0xa8]);
    assert_eq!(std::str::from_utf8(&frame[4..]).unwrap(), "é".repeat(61));
    assert_eq!(&close_frame(1000, "")[..], b"\x88\x02\x03\xe8");
}

#[test]
fn close_codes_that_may_travel_are_reported() {
    for code in [1000u16, 1001, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4008, 4999] {
        let mut bytes = raw(0x88, &code.to_be_bytes(), Some(MASK));
        let mut decoder = server();
        let event = decoder.decode(&mut bytes).unwrap().unwrap().event;
        assert_eq!(event, Event::Close { code: Some(code), reason: b"" });
    }
}
