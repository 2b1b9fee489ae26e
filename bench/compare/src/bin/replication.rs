//! The change stream: our walsender session against the crate `pgwire-replication`.
//!
//! ```text
//! replication stream [runs] [rows]
//! replication live [runs] [rows]
//! replication stop
//! ```
//!
//! `stream`: both read the same inserts, each from its own slot of the same private Postgres, taking turns at
//! being first. Both decode with the same decoder, or neither decodes. A relay collects what Postgres sends and
//! hands it over in one go: Postgres is slower than either reader, and waking up for every packet of it would be
//! most of what is measured, and all of its noise. Processor time is that of the reading thread, on which
//! everything of either library runs, from connecting to the last row.
//!
//! `live`: the same without the relay, at the pace of Postgres.
//!
//! `stop`: how long Postgres needs for a fast shutdown while a consumer has received everything but has not yet
//! confirmed it, as is always the case with a resume window.

use std::hint::black_box;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgwire_replication::{ReplicationClient, ReplicationConfig, ReplicationEvent, TlsConfig};
use tidewire_compare::{Failure, allocations, argument, machine, median, pin, say, thread_cpu_ns};
use tidewire_devdb::{Cluster, Shutdown};
use tidewire_replication::{
    Cell, Lsn, Message, SlotPolicy, Start, StreamConfig, Tuple, WalRead, WalStream, decode,
};

const VARIANTS: [(&str, bool); 4] =
    [("own", true), ("pgwire-replication", true), ("own", false), ("pgwire-replication", false)];

fn main() -> Result<(), Failure> {
    // One thread for both: the crate's worker task and its consumer share it, which saves it wake-ups.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match std::env::args().nth(1).as_deref() {
        Some("stream") => runtime.block_on(stream(true, argument(2, 5)?, argument(3, 300_000)?)),
        Some("live") => runtime.block_on(stream(false, argument(2, 5)?, argument(3, 300_000)?)),
        Some("stop") => stop(&runtime),
        _ => Err("replication stream|live [runs] [rows] | replication stop".into()),
    }
}

struct Run {
    cpu_ns: u64,
    allocations: u64,
}

async fn stream(is_collected: bool, runs: usize, rows: u64) -> Result<(), Failure> {
    let settings = [("max_wal_size", "8GB"), ("max_replication_slots", "10")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::temporary_with(settings)?;
    cluster.run_sql("create table t (id int primary key, at timestamptz, name text, n numeric, ok bool)")?;
    cluster.run_sql("create publication p for table t")?;
    say(&format!("{rows} rows in one transaction, PostgreSQL {}; {}", cluster.version(), machine()?))?;
    // After the server has started, which would inherit it.
    pin(1)?;
    let mut cpu = vec![Vec::new(); VARIANTS.len()];
    let mut taken = vec![Vec::new(); VARIANTS.len()];
    for run in 0..runs {
        for number in 0..VARIANTS.len() {
            cluster
                .run_sql(&format!("select pg_create_logical_replication_slot('s{number}', 'pgoutput')"))?;
        }
        cluster.run_sql("truncate t")?;
        let insert = format!(
            "insert into t select n, now(), 'name ' || n, n / 7.0, true from generate_series(1, {rows}) n"
        );
        cluster.run_sql(&insert)?;
        for step in 0..VARIANTS.len() {
            let number = (run + step) % VARIANTS.len();
            let (library, decodes) = VARIANTS[number];
            let slot = format!("s{number}");
            let port = if is_collected { relay(cluster.port(), rows)? } else { cluster.port() };
            let outcome = match library {
                "own" => own(&cluster, port, &slot, rows, decodes).await?,
                _ => theirs(&cluster, port, &slot, rows, decodes).await?,
            };
            cpu[number].push(rows as f64 / (outcome.cpu_ns as f64 / 1e9) / 1e6);
            taken[number].push(outcome.allocations as f64 / rows as f64);
            drop_slot(&cluster, &slot)?;
        }
    }
    for (number, (library, decodes)) in VARIANTS.iter().enumerate() {
        let what = if *decodes { "read and decode" } else { "read" };
        say(&format!(
            "{library:<20} {what:<16} {} million rows per core-second, {} allocations per row",
            median(std::mem::take(&mut cpu[number])),
            median(std::mem::take(&mut taken[number])),
        ))?;
    }
    Ok(())
}

/// The walsender lets go of its slot a moment after the connection has ended.
fn drop_slot(cluster: &Cluster, slot: &str) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        match cluster.run_sql(&format!("select pg_drop_replication_slot('{slot}')")) {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > Duration::from_secs(10) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Less than one row takes in the stream; more than the handshake and a few keepalives do.
const ROW_BYTES_AT_LEAST: u64 = 100;

/// A port that leads to the server's. What the server streams is held back until all of it is there.
fn relay(server_port: u16, rows: u64) -> Result<u16, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = TcpStream::connect(("127.0.0.1", server_port))?;
    std::thread::spawn(move || -> Result<(), Failure> {
        pin(0)?;
        let (client, _) = listener.accept()?;
        let has_started = Arc::new(AtomicBool::new(false));
        let upwards = {
            let (mut client, mut server) = (client.try_clone()?, server.try_clone()?);
            let has_started = Arc::clone(&has_started);
            std::thread::spawn(move || -> Result<(), Failure> {
                let mut chunk = [0; 4_096];
                while let Ok(count @ 1..) = client.read(&mut chunk) {
                    if chunk[..count].windows(17).any(|part| part == b"START_REPLICATION") {
                        has_started.store(true, Ordering::Release);
                    }
                    server.write_all(&chunk[..count])?;
                }
                Ok(server.shutdown(std::net::Shutdown::Both)?)
            })
        };
        let (mut client, mut server) = (client, server);
        server.set_read_timeout(Some(Duration::from_millis(300)))?;
        let (mut chunk, mut held) = (vec![0; 256 * 1024], Vec::new());
        loop {
            match server.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => held.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let is_quiet = server.peek(&mut [0]).is_err();
            let is_complete = held.len() as u64 > rows * ROW_BYTES_AT_LEAST && is_quiet;
            if !has_started.load(Ordering::Acquire) || is_complete {
                client.write_all(&held)?;
                held.clear();
            }
        }
        client.shutdown(std::net::Shutdown::Both)?;
        upwards.join().map_err(|_| "the relay panicked")?
    });
    Ok(port)
}

fn text_bytes(tuple: Tuple<'_>) -> usize {
    tuple.cells().map(|cell| if let Cell::Text(text) = cell { text.len() } else { 0 }).sum()
}

/// Counts rows; `true` at the commit. Without decoding, the first byte tells.
fn visit(body: &Bytes, decodes: bool, rows: &mut u64) -> Result<bool, Failure> {
    if !decodes {
        *rows += u64::from(body.first() == Some(&b'I'));
        return Ok(body.first() == Some(&b'C'));
    }
    match decode(body)? {
        Message::Insert { new, .. } => {
            *rows += 1;
            black_box(text_bytes(new));
            Ok(false)
        }
        Message::Commit(_) => Ok(true),
        _ => Ok(false),
    }
}

fn stream_config(cluster: &Cluster, port: u16, slot: &str) -> Result<StreamConfig, Failure> {
    let url = cluster.superuser_url().replace(&format!(":{}/", cluster.port()), &format!(":{port}/"));
    Ok(StreamConfig::new(url.parse()?, slot, vec!["p".to_owned()]))
}

async fn own(cluster: &Cluster, port: u16, slot: &str, rows: u64, decodes: bool) -> Result<Run, Failure> {
    let config = stream_config(cluster, port, slot)?;
    let (cpu, taken) = (thread_cpu_ns(), allocations());
    let mut stream = WalStream::open(&config, SlotPolicy::Durable, Start::From(Lsn::ZERO)).await?;
    let mut seen = 0;
    while seen < rows {
        let mut next = Some(stream.read().await?);
        while let Some(read) = next {
            if let WalRead::Data(data) = read {
                visit(&data.body, decodes, &mut seen)?;
            }
            next = stream.read_buffered();
        }
    }
    let run = Run { cpu_ns: thread_cpu_ns() - cpu, allocations: allocations() - taken };
    stream.close().await;
    Ok(run)
}

fn their_config(cluster: &Cluster, port: u16, slot: &str) -> Result<ReplicationConfig, Failure> {
    let url: tokio_postgres::Config = cluster.superuser_url().parse()?;
    let password = String::from_utf8(url.get_password().ok_or("no password")?.to_vec())?;
    Ok(ReplicationConfig::new("127.0.0.1", "postgres", password, "postgres", slot, "p")
        .with_port(port)
        .with_tls(TlsConfig::disabled())
        .with_status_interval(Duration::from_secs(5)))
}

async fn theirs(cluster: &Cluster, port: u16, slot: &str, rows: u64, decodes: bool) -> Result<Run, Failure> {
    let config = their_config(cluster, port, slot)?;
    let (cpu, taken) = (thread_cpu_ns(), allocations());
    let mut client = ReplicationClient::connect(config).await?;
    let mut seen = 0;
    while seen < rows {
        match client.recv().await?.ok_or("the stream ended")? {
            ReplicationEvent::XLogData { data, .. } => {
                visit(&data, decodes, &mut seen)?;
            }
            _ => continue,
        }
    }
    let run = Run { cpu_ns: thread_cpu_ns() - cpu, allocations: allocations() - taken };
    client.shutdown().await?;
    Ok(run)
}

/// A private cluster that does not stop when asked is ended the hard way after this long.
const PATIENCE: Duration = Duration::from_secs(3);

fn stop(runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    say(&machine()?)?;
    for library in ["own", "pgwire-replication"] {
        let mut cluster = Cluster::temporary()?;
        cluster.run_sql("create table t (id int primary key)")?;
        cluster.run_sql("create publication p for table t")?;
        cluster.run_sql("select pg_create_logical_replication_slot('s', 'pgoutput')")?;
        cluster.run_sql("insert into t values (1)")?;
        let (received, is_received) = tokio::sync::oneshot::channel();
        let own_config = stream_config(&cluster, cluster.port(), "s")?;
        let their_config = their_config(&cluster, cluster.port(), "s")?;
        let is_own = library == "own";
        // On a thread of its own: stopping the cluster blocks this one.
        let consumer = std::thread::spawn(move || -> Result<(), Failure> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut received = Some(received);
                let mut seen = 0;
                if is_own {
                    let mut stream =
                        WalStream::open(&own_config, SlotPolicy::Durable, Start::From(Lsn::ZERO)).await?;
                    while let Ok(read) = stream.read().await {
                        if let WalRead::Data(data) = read
                            && visit(&data.body, true, &mut seen)?
                            && let Some(received) = received.take()
                        {
                            received.send(()).map_err(|()| "nobody waits")?;
                        }
                    }
                } else {
                    // The crate turns transaction boundaries into events of their own.
                    let mut client = ReplicationClient::connect(their_config).await?;
                    while let Ok(Some(event)) = client.recv().await {
                        if matches!(event, ReplicationEvent::Commit { .. })
                            && let Some(received) = received.take()
                        {
                            received.send(()).map_err(|()| "nobody waits")?;
                        }
                    }
                }
                Ok(())
            })
        });
        runtime.block_on(is_received)?;
        let begun = Instant::now();
        cluster.halt(Shutdown::Fast);
        let seconds = begun.elapsed().as_secs_f64();
        let end = if seconds < PATIENCE.as_secs_f64() { "done" } else { "given up" };
        say(&format!(
            "{library:<20} fast shutdown with a transaction received, not confirmed: {end} after {seconds:.2} s"
        ))?;
        drop(consumer.join());
    }
    Ok(())
}
