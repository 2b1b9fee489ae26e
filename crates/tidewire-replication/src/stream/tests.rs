//! The reader against bytes of a server that is played by the test.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::*;

fn config(publications: &[&str]) -> StreamConfig {
    let names = publications.iter().map(|&name| name.to_owned()).collect();
    StreamConfig::new(tokio_postgres::Config::new(), "slot_1", names)
}

/// A stream without a status task, and the server's end of its connection.
fn stream(max_message_bytes: usize) -> (WalStream, DuplexStream) {
    let (server, client) = tokio::io::duplex(1 << 20);
    let (stop, _stopped) = oneshot::channel();
    let stream = WalStream {
        read: Box::new(client),
        buffer: BytesMut::new(),
        max_message_bytes,
        positions: Arc::new(Positions::starting_at(Lsn(1))),
        started_at: Lsn(1),
        durability: Durability::Temporary,
        stop,
        status: tokio::spawn(async {}),
    };
    (stream, server)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn data(lsn: u64, body: &[u8]) -> Vec<u8> {
    let mut copy = vec![b'w'];
    copy.extend(lsn.to_be_bytes());
    copy.extend(lsn.to_be_bytes());
    copy.extend(5_i64.to_be_bytes());
    copy.extend(body);
    message(b'd', &copy)
}

fn keepalive(lsn: u64, reply: bool) -> Vec<u8> {
    let mut copy = vec![b'k'];
    copy.extend(lsn.to_be_bytes());
    copy.extend(0_i64.to_be_bytes());
    copy.push(u8::from(reply));
    message(b'd', &copy)
}

fn error(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0C{sqlstate}\0M{text}\0\0").as_bytes())
}

fn bodies(reads: &[WalRead]) -> Vec<String> {
    let show = |read: &WalRead| match read {
        WalRead::Data(data) => format!("{} {}", data.start, String::from_utf8_lossy(&data.body)),
        WalRead::Idle(lsn) => format!("idle {lsn}"),
    };
    reads.iter().map(show).collect()
}

async fn read_to_end(stream: &mut WalStream) -> (Vec<WalRead>, StreamError) {
    let mut reads = Vec::new();
    loop {
        match stream.read().await {
            Ok(read) => reads.push(read),
            Err(error) => return (reads, error),
        }
    }
}

#[tokio::test]
async fn messages_come_in_order_and_what_is_buffered_needs_no_waiting() {
    let (mut stream, mut server) = stream(1 << 20);
    server.write_all(&[data(10, b"one"), data(20, b"two"), data(30, b"")].concat()).await.unwrap();
    assert_eq!(stream.read_buffered(), None);
    let WalRead::Data(first) = stream.read().await.unwrap() else { panic!() };
    assert_eq!((first.start, first.end, first.sent_unix_us), (Lsn(10), Lsn(10), 946_684_800_000_005));
    assert_eq!(first.body, "one");
    let buffered: Vec<WalRead> = std::iter::from_fn(|| stream.read_buffered()).collect();
    assert_eq!(bodies(&buffered), ["0/14 two", "0/1E "]);
    drop(server);
    assert_eq!(stream.read().await.unwrap_err().code(), "ChangeStreamInterrupted");
}

#[tokio::test]
async fn keepalives_are_merged_surfaced_once_and_in_their_place() {
    let (mut stream, mut server) = stream(1 << 20);
    let bytes = [
        data(10, b"a"),
        keepalive(10, false),
        data(20, b"b"),
        keepalive(25, false),
        keepalive(30, false),
        data(40, b"c"),
        keepalive(50, false),
        message(b'N', b"\0"),
        keepalive(50, false),
    ];
    server.write_all(&bytes.concat()).await.unwrap();
    drop(server);
    let (reads, _) = read_to_end(&mut stream).await;
    assert_eq!(bodies(&reads), ["0/A a", "0/14 b", "idle 0/1E", "0/28 c", "idle 0/32"]);
}

#[tokio::test]
async fn an_answer_is_asked_of_the_status_task_only_when_requested() {
    let (mut stream, mut server) = stream(1 << 20);
    server.write_all(&[keepalive(5, false), data(6, b"x")].concat()).await.unwrap();
    stream.read().await.unwrap();
    let positions = Arc::clone(&stream.positions);
    let is_notified = || {
        let notified = std::pin::pin!(positions.answer.notified());
        notified.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    assert!(!is_notified());
    server.write_all(&[keepalive(7, true), data(8, b"y")].concat()).await.unwrap();
    stream.read().await.unwrap();
    stream.read().await.unwrap();
    assert!(is_notified());
}

#[tokio::test]
async fn an_error_comes_after_what_preceded_it_and_stays() {
    let (mut stream, mut server) = stream(1 << 20);
    server.write_all(&[data(10, b"a"), error("57P01", "terminating")].concat()).await.unwrap();
    stream.read().await.unwrap();
    assert_eq!(stream.read_buffered(), None);
    for _ in 0..2 {
        let error = stream.read().await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        assert_eq!(cause.to_string(), "terminating (SQLSTATE 57P01)");
        assert_eq!(error.code(), "ChangeStreamInterrupted");
    }
}

#[tokio::test]
async fn what_does_not_belong_into_a_stream_is_an_error() {
    let cases = [
        (message(b'd', b"w too short"), "ChangeStreamProtocolViolation"),
        (message(b'd', b"k"), "ChangeStreamProtocolViolation"),
        (message(b'd', b"?"), "ChangeStreamProtocolViolation"),
        (message(b'd', b""), "ChangeStreamProtocolViolation"),
        (message(b'Z', b"I"), "ChangeStreamProtocolViolation"),
        (message(b'E', b"no end"), "ChangeStreamProtocolViolation"),
        (vec![b'd', 0, 0, 0, 3], "ChangeStreamProtocolViolation"),
        (vec![b'd', 0, 16, 0, 0], "ChangeStreamMessageTooLarge"),
        (vec![b'd', 0xff, 0xff, 0xff, 0xff], "ChangeStreamMessageTooLarge"),
        (message(b'c', b""), "ChangeStreamInterrupted"),
        (message(b'C', b"COPY 0\0"), "ChangeStreamInterrupted"),
        (error("58P01", "requested WAL segment is gone"), "ReplicationSlotLost"),
        (error("42704", "publication \"p\" does not exist"), "PublicationMissing"),
    ];
    for (bytes, code) in cases {
        let (mut stream, mut server) = stream(1 << 20);
        server.write_all(&bytes).await.unwrap();
        assert_eq!(stream.read().await.unwrap_err().code(), code, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_very_large_message_does_not_leave_its_block_behind() {
    let (mut stream, mut server) = stream(8 << 20);
    let body = vec![b'x'; 5 << 20];
    let writer = tokio::spawn(async move {
        server.write_all(&[data(10, &body), data(20, b"small")].concat()).await.unwrap();
        server
    });
    let WalRead::Data(large) = stream.read().await.unwrap() else { panic!() };
    assert_eq!(large.body.len(), 5 << 20);
    drop(large);
    assert!(stream.buffer.capacity() <= 2 * READ_BYTES, "{}", stream.buffer.capacity());
    let WalRead::Data(small) = stream.read().await.unwrap() else { panic!() };
    assert_eq!(small.body, "small");
    drop(writer.await.unwrap());
}

proptest! {
    /// However the bytes are cut, and however often a waiting read is given up, the same is read.
    #[test]
    fn reads_do_not_depend_on_how_the_bytes_arrive(cuts in prop::collection::vec(1_usize..40, 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reads = runtime.block_on(async {
            let (mut stream, mut server) = stream(1 << 20);
            let bytes = [data(10, b"one"), keepalive(11, true), data(20, b"two"), data(30, &[b'x'; 100])].concat();
            let mut reads = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                server.write_all(now).await.unwrap();
                rest = later;
                loop {
                    // Polled once and dropped when it would wait.
                    let waiting = std::pin::pin!(stream.read());
                    match waiting.poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(read) => reads.push(read.unwrap()),
                        Poll::Pending => break,
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
            reads
        });
        let long = format!("0/1E {}", "x".repeat(100));
        prop_assert_eq!(bodies(&reads), ["0/A one", "idle 0/B", "0/14 two", &long]);
    }

    #[test]
    fn arbitrary_bytes_of_a_server_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), copy in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut stream, mut server) = stream(1 << 10);
            let bytes = if copy { message(b'd', &bytes) } else { bytes };
            server.write_all(&bytes).await.unwrap();
            drop(server);
            read_to_end(&mut stream).await;
        });
    }
}

#[test]
fn a_stream_may_move_between_tasks_and_be_confirmed_from_any() {
    fn assert_shared<T: Send + Sync + 'static>() {}
    assert_shared::<WalStream>();
    assert_shared::<Confirmer>();
}

#[test]
fn names_are_quoted_for_the_replication_grammar() {
    let command = start_command(&config(&["plain", "od\"d, 'name\\"]), Lsn(0x1_0000_00ff));
    assert_eq!(
        command,
        "START_REPLICATION SLOT \"slot_1\" LOGICAL 1/FF (proto_version '1', \
         publication_names '\"plain\",\"od\"\"d, ''name\\\"')"
    );
}

#[test]
fn unusable_settings_are_refused_before_connecting() {
    assert!(config(&["p"]).validate().is_ok());
    assert!(config(&[]).validate().is_err());
    for slot in ["", "UPPER", "with space", "quote'", "ümlaut", &"x".repeat(64)] {
        let config = StreamConfig { slot: slot.to_owned(), ..config(&["p"]) };
        assert_eq!(config.validate().unwrap_err().code(), "ReplicationConfigInvalid", "{slot:?}");
    }
}

#[test]
fn the_status_interval_fits_into_the_patience_of_the_server() {
    let five = Duration::from_secs(5);
    assert_eq!(status_interval(five, 60_000), five);
    assert_eq!(status_interval(five, 0), five);
    assert_eq!(status_interval(five, 2_000), Duration::from_millis(666));
    assert_eq!(status_interval(five, 1), Duration::from_millis(10));
}
