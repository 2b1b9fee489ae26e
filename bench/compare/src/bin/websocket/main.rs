//! Fan-out and idle connections: our codec in an event loop against WebSocket libraries.
//!
//! ```text
//! websocket fan  [runs] [connections] [deliveries per run, in thousands]
//! websocket idle [runs] [connections]
//! ```
//!
//! Each measurement starts this program again as the server (`serve <variant> <batch>`), on processor 0; the
//! reader, the same for all variants, stays on processor 1. The reader checks every byte. A round is *publish a
//! batch to everybody, wait until all of it has arrived*, so that exactly `batch` frames wait per connection.
//! The HTTP handshake is left out: it is the same for everybody.
//!
//! Processor time is the server process's alone, kernel time included, from the first publish to the last
//! acknowledgement. On loopback the sender also pays for the receiver's side of TCP.

mod event_loop;
mod reader;
mod tasks;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use reader::Reader;
use tidewire_compare::{Failure, argument, machine, median, pin, say};

/// Length of the message that is fanned out.
const MESSAGE_BYTES: usize = 256;

/// Each connection of these is in no other variant's way; the order is that of the tables.
const VARIANTS: [&str; 6] =
    ["bare", "own", "tungstenite-loop", "tungstenite-task", "tungstenite-task-4k", "fastwebsockets-task"];

/// What the congestion control of the machine may be is no part of the question; BBR paces, with timers.
const CONGESTION: &str = "cubic";

/// From the reader: publish one batch.
const PUBLISH: u8 = b'p';
/// From the reader: say how much memory and time was used since the last time.
const REPORT: u8 = b'r';

fn message() -> String {
    "0123456789abcdef".repeat(MESSAGE_BYTES / 16)
}

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => {
            pin(0)?;
            let variant = std::env::args().nth(2).ok_or("which variant?")?;
            serve(&variant, argument(3, 1)?)
        }
        Some("fan") => fan(argument(2, 5)?, argument(3, 1_000)?, argument(4, 300)?),
        Some("idle") => idle(argument(2, 3)?, argument(3, 5_000)?),
        _ => Err(
            "websocket fan [runs] [connections] [thousand deliveries] | websocket idle [runs] [connections]"
                .into(),
        ),
    }
}

fn serve(variant: &str, batch: usize) -> Result<(), Failure> {
    match variant {
        "bare" => event_loop::run::<event_loop::Bare>(batch),
        "own" => event_loop::run::<event_loop::Own>(batch),
        "tungstenite-loop" => event_loop::run::<event_loop::Tungstenite>(batch),
        "tungstenite-task" => {
            tasks::run(tasks::Library::Tungstenite { read_buffer_bytes: 128 * 1024 }, batch)
        }
        "tungstenite-task-4k" => {
            tasks::run(tasks::Library::Tungstenite { read_buffer_bytes: 4 * 1024 }, batch)
        }
        "fastwebsockets-task" => tasks::run(tasks::Library::Fastwebsockets, batch),
        _ => Err(format!("no variant {variant}").into()),
    }
}

/// A server process and the connections to it.
fn start(variant: &str, batch: usize, connections: usize) -> Result<(std::process::Child, Reader), Failure> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", variant, &batch.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut port = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut port)?;
    let reader = Reader::connect(port.trim().parse()?, connections);
    if reader.is_err() {
        server.kill()?;
    }
    Ok((server, reader?))
}

fn fan(runs: usize, connections: usize, thousands: usize) -> Result<(), Failure> {
    pin(1)?;
    say(&format!("{connections} connections, {MESSAGE_BYTES} bytes, {CONGESTION}; {}", machine()?))?;
    for batch in [1, 16] {
        let rounds = (thousands * 1_000 / connections / batch).max(20);
        let mut cpu = vec![Vec::new(); VARIANTS.len()];
        let mut taken = vec![Vec::new(); VARIANTS.len()];
        for run in 0..runs {
            for step in 0..VARIANTS.len() {
                // A different one begins each time.
                let variant = (run + step) % VARIANTS.len();
                let (mut server, mut reader) = start(VARIANTS[variant], batch, connections)?;
                let outcome = reader.fan(batch, rounds);
                // Closing the control connection ends the server.
                drop(reader);
                server.wait()?;
                let report = outcome.map_err(|error| format!("{}: {error}", VARIANTS[variant]))?;
                let deliveries = (rounds * batch * connections) as f64;
                cpu[variant].push(report.cpu_ns as f64 / deliveries / 1e3);
                taken[variant].push(report.allocations as f64 / deliveries);
            }
        }
        for (variant, (cpu, taken)) in VARIANTS.iter().zip(cpu.into_iter().zip(taken)) {
            say(&format!(
                "batch {batch:>2} {variant:<20} {} µs of server CPU per delivery, {} allocations",
                median(cpu),
                median(taken)
            ))?;
        }
    }
    Ok(())
}

fn idle(runs: usize, connections: usize) -> Result<(), Failure> {
    pin(1)?;
    say(&format!("{connections} idle connections; {}", machine()?))?;
    let mut live = vec![Vec::new(); VARIANTS.len()];
    let mut resident = vec![Vec::new(); VARIANTS.len()];
    for _ in 0..runs {
        for (variant, name) in VARIANTS.iter().enumerate() {
            let (mut server, mut reader) = start(name, 1, connections)?;
            let report = reader.report();
            drop(reader);
            server.wait()?;
            let report = report?;
            live[variant].push(report.live_bytes as f64 / connections as f64);
            resident[variant].push(report.resident_bytes as f64 / connections as f64);
        }
    }
    for (variant, (live, resident)) in VARIANTS.iter().zip(live.into_iter().zip(resident)) {
        say(&format!(
            "{variant:<20} {} bytes allocated, {} bytes resident per connection",
            median(live),
            median(resident)
        ))?;
    }
    Ok(())
}
