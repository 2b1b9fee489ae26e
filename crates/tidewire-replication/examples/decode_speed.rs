//! How fast messages are decoded, from memory and from a private Postgres.
//!
//! `cargo run --release -p tidewire-replication --example decode_speed [rows]`

use std::hint::black_box;
use std::io::{Write, stdout};
use std::time::Instant;

use tidewire_devdb::Cluster;
use tidewire_replication::{
    Cell, Message, SlotPolicy, Start, StreamConfig, Tuple, WalRead, WalStream, decode,
};

type Failure = Box<dyn std::error::Error>;

fn text_bytes(tuple: Tuple<'_>) -> usize {
    tuple.cells().map(|cell| if let Cell::Text(text) = cell { text.len() } else { 0 }).sum()
}

/// Decodes and looks at every cell, as an encoder would.
fn visit(bytes: &[u8]) -> Result<usize, Failure> {
    Ok(match decode(bytes)? {
        Message::Insert { new, .. } => text_bytes(new),
        Message::Update { old, new, .. } => old.tuple().map_or(0, text_bytes) + text_bytes(new),
        _ => 0,
    })
}

/// An update with a key and a new row of ten columns, about 200 bytes.
fn update() -> Vec<u8> {
    let mut message = b"U\0\0\x40\x07K\0\x0a".to_vec();
    let mut text = |kind: u8, parts: &[Option<&str>]| {
        if kind == b'N' {
            message.extend(b"N\0\x0a");
        }
        for part in parts {
            match part {
                Some(part) => {
                    message.push(b't');
                    message.extend(u32::try_from(part.len()).unwrap_or(0).to_be_bytes());
                    message.extend(part.as_bytes());
                }
                None => message.push(b'n'),
            }
        }
    };
    let key = [Some("1234567"), None, None, None, None, None, None, None, None, None];
    text(b'K', &key);
    text(
        b'N',
        &[
            Some("1234568"),
            Some("6f1e0c1a-2b5d-4a53-9d0e-0a1b2c3d4e5f"),
            Some("in progress"),
            Some("t"),
            None,
            Some("2026-01-02 03:04:05.678901+00"),
            Some("{\"priority\": 3, \"labels\": [\"a\", \"b\"]}"),
            Some("12.50"),
            Some("Zoë writes a short sentence here"),
            Some("42"),
        ],
    );
    message
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let rows: u64 = std::env::args().nth(1).map_or(Ok(500_000), |rows| rows.parse())?;

    let message = update();
    let started = Instant::now();
    let rounds = 5_000_000_u64;
    for _ in 0..rounds {
        black_box(visit(black_box(&message))?);
    }
    let seconds = started.elapsed().as_secs_f64();
    writeln!(
        stdout(),
        "memory: {:.0} ns for an update of {} bytes, {:.1} million/s",
        seconds * 1e9 / rounds as f64,
        message.len(),
        rounds as f64 / seconds / 1e6
    )?;

    let cluster = Cluster::temporary_with(vec![("max_wal_size".to_owned(), "4GB".to_owned())])?;
    cluster.run_sql("create table t (id int primary key, at timestamptz, name text, n numeric, ok bool)")?;
    cluster.run_sql("create publication p for table t")?;
    let config = StreamConfig::new(cluster.superuser_url().parse()?, "speed", vec!["p".to_owned()]);
    let mut stream = WalStream::open(&config, SlotPolicy::Temporary, Start::Fresh).await?;
    let insert = format!(
        "insert into t select n, now(), 'name ' || n, n / 7.0, true from generate_series(1, {rows}) n"
    );
    cluster.run_sql(&insert)?;
    let before = cpu_seconds()?;
    let (mut changes, mut reads, mut started) = (0, 0_u64, None);
    while changes < rows {
        let mut next = Some(stream.read().await?);
        reads += 1;
        while let Some(read) = next {
            if let WalRead::Data(data) = read {
                started.get_or_insert_with(Instant::now);
                changes += u64::from(visit(&data.body)? > 0);
            }
            next = stream.read_buffered();
        }
    }
    let seconds = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    let cpu = cpu_seconds()? - before;
    writeln!(
        stdout(),
        "stream: {rows} rows in {seconds:.2} s of which {cpu:.2} s of our processor: {:.2} million rows per core-second, {:.0} per batch",
        rows as f64 / cpu / 1e6,
        rows as f64 / reads as f64
    )?;
    stream.close().await;
    Ok(())
}

/// User and system time of this process; Linux counts it in hundredths.
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}
