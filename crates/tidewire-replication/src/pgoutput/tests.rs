//! Literal messages, captured from PostgreSQL 15 with `pg_logical_slot_get_binary_changes`, and bytes that are
//! no messages at all. The vectors are never edited, only added to.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// `-` NULL, `~` unchanged, else the text.
fn cells(tuple: Tuple<'_>) -> Vec<String> {
    let cells = tuple.cells().map(|cell| match cell {
        Cell::Null => "-".to_owned(),
        Cell::Unchanged => "~".to_owned(),
        Cell::Text(text) => text.to_owned(),
        Cell::Binary(bytes) => format!("{bytes:?}"),
    });
    cells.collect()
}

const BEGIN: &str = "4200000000015401b8000303b1551061ae000002e2";
const COMMIT: &str = "430000000000015401b800000000015401e8000303b1551061ae";
const TYPE: &str = "59000040027075626c6963006d6f6f6400";
const RELATION_DEFAULT: &str = "520000400761707000706c61696e006400040169640000000017ffffffff006e616d650000000019ffffffff00666c61670000000010ffffffff006d0000004002ffffffff";
const RELATION_FULL: &str =
    "520000400e6170700077686f6c650066000201610000000017ffffffff01620000000019ffffffff";
const RELATION_INDEX: &str = "520000401361707000696478006900030069640000000017ffffffff01636f646500000004130000000e00760000000019ffffffff";
const RELATION_NOTHING: &str = "5200004019617070006c6f676f6e6c79006e000100780000000017ffffffff";
const INSERT: &str = "49000040074e000474000000013174000000045a6fc3ab74000000017474000000026f6b";
const INSERT_WITH_NULL: &str = "49000040074e00047400000001326e7400000001667400000003736164";
const UPDATE_KEY_UNCHANGED: &str = "55000040074e000474000000013174000000017874000000017474000000026f6b";
const UPDATE_KEY_CHANGED: &str =
    "55000040074b00047400000001326e6e6e4e00047400000001336e7400000001667400000003736164";
const UPDATE_FULL: &str = "550000400e4f000274000000013174000000036f6e654e00027400000001317400000003756e6f";
const UPDATE_INDEX_CHANGED: &str =
    "55000040134b00036e740000000263316e4e000374000000013174000000026332740000000177";
const UPDATE_TOAST_UNCHANGED: &str = "550000401c4e000374000000013175740000000132";
const DELETE_KEY: &str = "44000040074b00047400000001316e6e6e";
const DELETE_FULL: &str = "440000400e4f00026e6e";
const TRUNCATE: &str = "540000000203000040070000400e";
const LOGICAL_MESSAGE: &str = "4d010000000001542d787469646577697265000000000568656c6c6f";
const ORIGIN: &str = "4f0000000000aabbcc656c7365776865726500";

const ALL: [&str; 19] = [
    BEGIN,
    COMMIT,
    TYPE,
    RELATION_DEFAULT,
    RELATION_FULL,
    RELATION_INDEX,
    RELATION_NOTHING,
    INSERT,
    INSERT_WITH_NULL,
    UPDATE_KEY_UNCHANGED,
    UPDATE_KEY_CHANGED,
    UPDATE_FULL,
    UPDATE_INDEX_CHANGED,
    UPDATE_TOAST_UNCHANGED,
    DELETE_KEY,
    DELETE_FULL,
    TRUNCATE,
    LOGICAL_MESSAGE,
    ORIGIN,
];

#[test]
fn begin_and_commit_carry_position_time_and_xid() {
    let bytes_begin = bytes(BEGIN);
    let Message::Begin(begin) = decode(&bytes_begin).unwrap() else { panic!() };
    let bytes_commit = bytes(COMMIT);
    let Message::Commit(commit) = decode(&bytes_commit).unwrap() else { panic!() };
    assert_eq!(begin.final_lsn, Lsn(0x0154_01b8));
    assert_eq!(begin.xid, 738);
    assert_eq!(commit.commit_lsn, begin.final_lsn);
    assert_eq!(commit.end_lsn, Lsn(0x0154_01e8));
    assert_eq!(commit.commit_unix_us, begin.commit_unix_us);
}

#[test]
fn times_count_from_the_unix_epoch_and_saturate() {
    assert_eq!(unix_us(0), 946_684_800_000_000);
    // 2026-01-02T03:04:05.678901Z, set by `pg_replication_origin_xact_setup`.
    let message = bytes("420000000001543b200002ea5dbb1f6f35000002f3");
    let Message::Begin(begin) = decode(&message).unwrap() else { panic!() };
    assert_eq!(begin.commit_unix_us, 1_767_323_045_678_901);
    assert_eq!(unix_us(i64::MAX), i64::MAX);
}

#[test]
fn a_relation_has_its_identity_and_its_columns() {
    let column = |name: &str, type_oid, type_modifier, is_key| RelationColumn {
        name: name.to_owned(),
        type_oid,
        type_modifier,
        is_key,
    };
    let relation = |hex| {
        let Message::Relation(relation) = decode(&bytes(hex)).unwrap() else { panic!() };
        relation
    };
    let plain = relation(RELATION_DEFAULT);
    assert_eq!((plain.oid, plain.schema.as_str(), plain.name.as_str()), (16391, "app", "plain"));
    assert_eq!(plain.replica_identity, ReplicaIdentity::Default);
    assert_eq!(
        plain.columns,
        [
            column("id", 23, -1, true),
            column("name", 25, -1, false),
            column("flag", 16, -1, false),
            column("m", 16386, -1, false),
        ]
    );
    let full = relation(RELATION_FULL);
    assert_eq!(full.replica_identity, ReplicaIdentity::Full);
    assert_eq!(full.columns, [column("a", 23, -1, true), column("b", 25, -1, true)]);
    let index = relation(RELATION_INDEX);
    assert_eq!(index.replica_identity, ReplicaIdentity::Index);
    assert_eq!(
        index.columns,
        [column("id", 23, -1, false), column("code", 1043, 14, true), column("v", 25, -1, false)]
    );
    let nothing = relation(RELATION_NOTHING);
    assert_eq!(nothing.replica_identity, ReplicaIdentity::Nothing);
    assert_eq!(nothing.columns, [column("x", 23, -1, false)]);
}

#[test]
fn an_empty_schema_means_pg_catalog() {
    let message = bytes("5900000017007800");
    let expected = TypeName { oid: 23, schema: "pg_catalog".to_owned(), name: "x".to_owned() };
    assert_eq!(decode(&message).unwrap(), Message::Type(expected));
}

#[test]
fn a_type_has_its_name() {
    let expected = TypeName { oid: 16386, schema: "public".to_owned(), name: "mood".to_owned() };
    assert_eq!(decode(&bytes(TYPE)).unwrap(), Message::Type(expected));
}

#[test]
fn inserts_carry_the_row() {
    let message = bytes(INSERT);
    let Message::Insert { relation: 16391, new } = decode(&message).unwrap() else { panic!() };
    assert_eq!(cells(new), ["1", "Zoë", "t", "ok"]);
    assert_eq!(new.len(), 4);
    assert_eq!(new.get(1), Some(Cell::Text("Zoë")));
    assert_eq!(new.get(4), None);
    assert_eq!(new.get(usize::MAX), None);
    let message = bytes(INSERT_WITH_NULL);
    let Message::Insert { new, .. } = decode(&message).unwrap() else { panic!() };
    assert_eq!(cells(new), ["2", "-", "f", "sad"]);
}

#[test]
fn updates_carry_what_is_known_of_the_old_row() {
    let read = |hex: &str| {
        let message = bytes(hex);
        let Message::Update { old, new, .. } = decode(&message).unwrap() else { panic!() };
        let kind = match old {
            OldTuple::None => "none",
            OldTuple::Key(_) => "key",
            OldTuple::Full(_) => "full",
        };
        (kind, old.tuple().map(cells).unwrap_or_default(), cells(new))
    };
    let row = |cells: &[&str]| cells.iter().map(|&cell| cell.to_owned()).collect::<Vec<String>>();
    assert_eq!(read(UPDATE_KEY_UNCHANGED), ("none", vec![], row(&["1", "x", "t", "ok"])));
    assert_eq!(read(UPDATE_KEY_CHANGED), ("key", row(&["2", "-", "-", "-"]), row(&["3", "-", "f", "sad"])));
    assert_eq!(read(UPDATE_FULL), ("full", row(&["1", "one"]), row(&["1", "uno"])));
    assert_eq!(read(UPDATE_INDEX_CHANGED), ("key", row(&["-", "c1", "-"]), row(&["1", "c2", "w"])));
    assert_eq!(read(UPDATE_TOAST_UNCHANGED), ("none", vec![], row(&["1", "~", "2"])));
}

#[test]
fn deletes_carry_the_key_or_the_whole_row() {
    let message = bytes(DELETE_KEY);
    let Message::Delete { relation: 16391, old: OldTuple::Key(key) } = decode(&message).unwrap() else {
        panic!()
    };
    assert_eq!(cells(key), ["1", "-", "-", "-"]);
    let message = bytes(DELETE_FULL);
    let Message::Delete { old: OldTuple::Full(row), .. } = decode(&message).unwrap() else { panic!() };
    assert_eq!(cells(row), ["-", "-"]);
}

#[test]
fn the_rarer_messages_are_read() {
    assert_eq!(
        decode(&bytes(TRUNCATE)).unwrap(),
        Message::Truncate { relations: vec![16391, 16398], cascade: true, restart_identity: true }
    );
    assert_eq!(
        decode(&bytes(LOGICAL_MESSAGE)).unwrap(),
        Message::LogicalMessage {
            transactional: true,
            lsn: Lsn(0x0154_2d78),
            prefix: "tidewire",
            content: b"hello"
        }
    );
    assert_eq!(decode(&bytes(ORIGIN)).unwrap(), Message::Origin);
}

#[test]
fn text_that_is_not_utf8_is_handed_over_as_bytes() {
    // One row of two cells, the first of them Latin-1.
    let message = bytes("49000040074e00027400000002e4f674000000016b");
    let Message::Insert { new, .. } = decode(&message).unwrap() else { panic!() };
    assert_eq!(new.get(0), Some(Cell::Binary(&[0xe4, 0xf6])));
    assert_eq!(new.get(1), Some(Cell::Text("k")));
}

#[test]
fn debug_output_shows_no_values() {
    let message = bytes(INSERT);
    let shown = format!("{:?}", decode(&message).unwrap());
    assert!(shown.contains("Text(4 bytes)") && !shown.contains("Zo"), "{shown}");
}

#[test]
fn malformed_messages_are_refused_with_a_reason() {
    let refused = [
        ("", "the message ends inside the message tag"),
        ("53", "unknown message tag 0x53"),
        ("49000040074f0000", "unknown new row marker 0x4f"),
        ("49000040074e000178", "unknown cell kind 0x78"),
        ("49000040074e000174ffffffff", "negative cell length"),
        ("49000040074e00017400000002ff", "the message ends inside a cell"),
        ("44000040074e0000", "unknown old row marker 0x4e"),
        ("540000000103000040", "the message ends inside a truncate"),
        ("547fffffff03", "the message ends inside a truncate"),
        ("54ffffffff03", "negative count of truncated relations"),
        ("52000040076100620078ffff", "unknown replica identity 0x78"),
        ("52000040076100ff0064ffff", "a relation name is not UTF-8"),
        ("52000040076100620064ffff", "the message ends inside a column"),
    ];
    for (hex, reason) in refused {
        assert_eq!(decode(&bytes(hex)).unwrap_err().to_string(), reason, "{hex}");
    }
    for vector in ALL {
        let mut message = bytes(vector);
        message.push(0);
        assert_eq!(decode(&message), Err(DecodeError::TrailingBytes(1)), "{vector}");
    }
}

#[test]
fn every_vector_decodes_and_every_truncation_is_refused() {
    for vector in ALL {
        let message = bytes(vector);
        decode(&message).unwrap();
        for end in 0..message.len() {
            assert!(decode(&message[..end]).is_err(), "{vector} cut at {end}");
        }
    }
}

/// Walks over everything a message offers, so that a panic anywhere is found.
fn walk(bytes: &[u8]) {
    let Ok(message) = decode(bytes) else { return };
    let tuples = match &message {
        Message::Insert { new, .. } => vec![*new],
        Message::Update { old, new, .. } => old.tuple().into_iter().chain([*new]).collect(),
        Message::Delete { old, .. } => old.tuple().into_iter().collect(),
        _ => vec![],
    };
    for tuple in tuples {
        assert_eq!(tuple.cells().count(), tuple.len());
        assert_eq!(tuple.get(tuple.len()), None);
        for (index, cell) in tuple.cells().enumerate() {
            assert_eq!(tuple.get(index), Some(cell));
        }
    }
    assert!(!format!("{message:?}").is_empty());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        walk(&bytes);
    }

    #[test]
    fn bytes_that_begin_like_a_message_never_panic(
        tag in prop::sample::select(b"BCORYIUDTM".to_vec()),
        rest in prop::collection::vec(prop::sample::select(vec![0, 1, 2, 4, b'N', b'K', b'O', b't', b'n', b'u', b'b', 0xff]), 0..64),
    ) {
        let mut bytes = vec![tag];
        bytes.extend(rest);
        walk(&bytes);
    }

    #[test]
    fn a_damaged_message_never_panics(
        vector in prop::sample::select(ALL.to_vec()),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut message = bytes(vector);
        let at = at.index(message.len());
        message[at] = to;
        walk(&message);
        walk(&message[..cut.index(message.len())]);
    }
}
