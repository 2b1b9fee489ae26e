//! Joins of public channels: alone, one after the other, and as many as the server takes.

use std::time::{Duration, Instant};

use tidewire_protocol::frame::{self, Version};
use tidewire_protocol::websocket::Opcode;

use crate::args::{JoinsArgs, ServerArgs};
use crate::clock::Clock;
use crate::failure::Failure;
use crate::fleet::{Fleet, PLAIN_JOIN, Role, Sink};
use crate::output::{self, Table, count};
use crate::process;
use crate::server::Server;
use crate::tally::{Latency, latency, percentiles};

/// Joins one after the other.
const ALONE: usize = 1000;

/// Joins of one connection that may be unanswered in the crowd.
const WINDOW: usize = 4;

#[derive(Debug, Clone)]
pub(crate) struct Joins {
    /// Connections made and joined per second, handshake included.
    pub(crate) connects_per_s: f64,
    /// One at a time.
    pub(crate) alone: Latency,
    /// All connections at once.
    pub(crate) crowd: Latency,
    pub(crate) per_s: f64,
    pub(crate) server_cpu_us: f64,
    pub(crate) bytes_per_channel: f64,
}

/// Notes when each join was answered.
struct Answers {
    clock: Clock,
    /// When the joins of a member were sent, by their number.
    sent: Vec<Vec<u64>>,
    latency: Latency,
    answered: usize,
    refused: usize,
    /// Members with room for another join.
    free: Vec<usize>,
}

impl Sink for Answers {
    fn message(&mut self, member: usize, bytes: &[u8], at: u64) {
        let Ok(frame) = frame::decode_text(Version::V2, bytes) else { return };
        if frame.event != "phx_reply" {
            return;
        }
        let number = frame.reference.trim_matches('"').parse::<usize>().ok();
        let Some(sent) = number.and_then(|number| self.sent[member].get(number)) else { return };
        self.latency.saturating_record((at.saturating_sub(*sent) / 1000).max(1));
        self.answered += 1;
        let is_ok = matches!(frame.payload, frame::Payload::Json(text) if text.contains(r#""status":"ok""#));
        self.refused += usize::from(!is_ok);
        self.free.push(member);
    }
}

impl Answers {
    fn new(clock: Clock, members: usize) -> Self {
        Self {
            clock,
            sent: vec![Vec::new(); members],
            latency: latency(),
            answered: 0,
            refused: 0,
            free: Vec::new(),
        }
    }

    fn join(&mut self, fleet: &mut Fleet, member: usize, name: &str) {
        let number = self.sent[member].len();
        let mut text = Vec::new();
        let reference = format!("\"{number}\"");
        let topic = format!("realtime:{name}-{member}-{number}");
        frame::write_client_text(
            &mut text,
            Version::V2,
            &reference,
            &reference,
            &topic,
            "phx_join",
            PLAIN_JOIN,
        );
        fleet.send(member, Opcode::Text, &text);
        self.sent[member].push(self.clock.now());
    }
}

pub(crate) fn run(args: &JoinsArgs) -> Result<(), Failure> {
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    print(args.connections, args.channels, &measure(args.connections, args.channels, &args.server)?);
    Ok(())
}

pub(crate) fn measure(connections: usize, channels: usize, server: &ServerArgs) -> Result<Joins, Failure> {
    if connections == 0 || channels == 0 {
        return Err(Failure::new("--connections and --channels must be positive"));
    }
    let server = Server::of(server)?;
    let clock = Clock::start();
    let until = Instant::now() + Duration::from_secs(120);
    let patience = |answered: usize| {
        if Instant::now() < until {
            return Ok(());
        }
        Err(Failure::new(format!("only {answered} joins were answered in two minutes")))
    };

    let alone = {
        let members = ALONE.div_ceil(channels);
        let mut fleet = Fleet::connect(&server, clock, Version::V2, &vec![Role::bare(); members])?;
        let mut answers = Answers::new(clock, members);
        for serial in 0..ALONE {
            answers.join(&mut fleet, serial / channels, "alone");
            fleet.flush();
            while answers.answered <= serial {
                fleet.pump(Duration::from_millis(100), &mut answers)?;
                patience(answers.answered)?;
            }
        }
        answers.latency
    };

    let join: std::sync::Arc<str> = PLAIN_JOIN.into();
    let began = Instant::now();
    let roles: Vec<Role> = (0..1000)
        .map(|serial| Role::broadcast(&format!("realtime:connect-{serial}").into(), &join))
        .collect();
    drop(Fleet::connect(&server, clock, Version::V2, &roles)?);
    let connects_per_s = roles.len() as f64 / began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(500));

    let mut fleet = Fleet::connect(&server, clock, Version::V2, &vec![Role::bare(); connections])?;
    let mut answers = Answers::new(clock, connections);
    let before = server.usage()?;
    let began = Instant::now();
    let total = connections * channels;
    let mut sent = 0;
    answers.free = (0..connections).flat_map(|member| std::iter::repeat_n(member, WINDOW)).collect();
    while answers.answered < total {
        for member in std::mem::take(&mut answers.free) {
            if answers.sent[member].len() < channels {
                answers.join(&mut fleet, member, "crowd");
                sent += 1;
            }
        }
        fleet.flush();
        fleet.pump(Duration::from_millis(100), &mut answers)?;
        all_connected(&fleet, sent)?;
        patience(answers.answered)?;
    }
    let wall = began.elapsed().as_secs_f64();
    let after = server.usage()?;
    if answers.refused > 0 {
        return Err(Failure::new(format!("{} of {total} joins were refused", answers.refused)));
    }
    Ok(Joins {
        connects_per_s,
        alone,
        crowd: answers.latency,
        per_s: total as f64 / wall,
        server_cpu_us: (after.cpu_s - before.cpu_s) * 1e6 / total as f64,
        bytes_per_channel: after.rss.saturating_sub(before.rss) as f64 / total as f64,
    })
}

fn all_connected(fleet: &Fleet, sent: usize) -> Result<(), Failure> {
    if fleet.live_count() < fleet.len() {
        return Err(Failure::new(format!("the server ended connections after {sent} joins were sent")));
    }
    Ok(())
}

fn print(connections: usize, channels: usize, joins: &Joins) {
    let table = Table::begin(&format!("joins of public channels: {connections} × {channels}"));
    table.row("one at a time: p50 / p90 / p99 / p99.9 / max", &percentiles(&joins.alone));
    table.row("**joins per second**", &count(joins.per_s));
    table.row(
        &format!("then, {WINDOW} under way per connection: p50 / p90 / p99 / p99.9 / max"),
        &percentiles(&joins.crowd),
    );
    table.row("server CPU per join", &format!("{:.1} µs", joins.server_cpu_us));
    table.row("server memory per joined channel", &format!("{:.0} B", joins.bytes_per_channel));
    table.row("connections per second, handshake and one join", &count(joins.connects_per_s));
    if let Ok(trips) = crate::ceiling::round_trips(5000) {
        table.row("ceiling: round trip of 64 B, raw sockets", &percentiles(&trips));
    }
    table.row("generator CPU so far", &format!("{:.2} s", process::own_cpu_s()));
}
