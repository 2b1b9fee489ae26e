//! Row changes: from issuing the INSERT to every client that may see the row.
//!
//! The rows carry the mark of [`crate::stamp`] in a text column, so the receiving half is the one of broadcasts.
//! One writer is one database connection; its INSERTs are pipelined and commit in order, which is why a stream
//! of numbers belongs to a writer (or, with RLS, to an owner, who always has the same writer).

mod database;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidewire_protocol::frame::Version;

use crate::args::{ChangesArgs, ServerArgs};
use crate::clock::{Clock, nanos};
use crate::failure::Failure;
use crate::fleet::{Fleet, Role};
use crate::output::{self, Table, count, mib};
use crate::process;
use crate::server::Server;
use crate::tally::{Counts, Expect, Latency, Tally, percentiles};
use database::{Inserted, Load};

pub(crate) use database::{TABLE, owner};

/// What one run showed.
pub(crate) struct Changes {
    pub(crate) expected: u64,
    pub(crate) counts: Counts,
    /// INSERT issued → client.
    pub(crate) latency: Latency,
    /// The same for lone changes after a pause.
    pub(crate) lone: Latency,
    /// INSERT issued → its own answer.
    pub(crate) round_trip: Latency,
    pub(crate) lone_round_trip: Latency,
    pub(crate) changes: u64,
    pub(crate) elapsed_s: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) database_cpu_s: f64,
    pub(crate) generator_cpu_s: f64,
    pub(crate) rss_before: u64,
    pub(crate) rss_peak: u64,
    pub(crate) settings: String,
}

/// The load, without the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) subscribers: usize,
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    pub(crate) bytes: usize,
    pub(crate) writers: usize,
    pub(crate) rls: bool,
    pub(crate) lone: usize,
    pub(crate) pause: f64,
}

pub(crate) fn run(args: &ChangesArgs) -> Result<(), Failure> {
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    let shape = Shape {
        subscribers: args.subscribers,
        rate: args.rate,
        seconds: args.seconds,
        bytes: args.bytes,
        writers: args.writers.max(1),
        rls: args.rls,
        lone: args.lone,
        pause: args.pause,
    };
    print(&shape, &measure(&shape, &args.server)?);
    Ok(())
}

pub(crate) fn measure(shape: &Shape, server: &ServerArgs) -> Result<Changes, Failure> {
    if shape.subscribers == 0 || shape.subscribers > usize::from(u16::MAX) || shape.rate <= 0.0 {
        return Err(Failure::new("--subscribers must be between 1 and 65535 and --rate positive"));
    }
    let server = Server::of(server)?;
    let url = server.db_url.clone().ok_or_else(|| Failure::new("give the database with --db-url"))?;
    let settings = database::prepare(&url, shape.rls)?;
    let result = measure_on(shape, &server, &url, settings);
    database::clean_up(&url);
    result
}

fn measure_on(shape: &Shape, server: &Server, url: &str, settings: String) -> Result<Changes, Failure> {
    let clock = Clock::start();
    let roles = roles(shape, server)?;
    let mut fleet = Fleet::connect(server, clock, Version::V2, &roles)?;
    let expect = if shape.rls {
        Expect::One((0..shape.subscribers).map(|member| member as u16).collect())
    } else {
        Expect::All(shape.writers as u16)
    };
    let padding = database::padding(shape.bytes);
    let mut tally = Tally::new(expect, shape.subscribers, padding.as_bytes());

    let usage = server.usage()?;
    process::reset_peak(server.pid);
    let database_before = process::descendants_cpu_s(server.pid);
    let own = process::own_cpu_s();
    let lone_from = Arc::new(AtomicU64::new(u64::MAX));
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load {
        url: url.to_owned(),
        shape: *shape,
        padding,
        clock,
        lone_from: Arc::clone(&lone_from),
        stop: Arc::clone(&stop),
    };
    let began = clock.now();
    let writer = std::thread::Builder::new()
        .name("writers".into())
        .spawn(move || database::insert(&load))
        .map_err(|error| Failure::new(format!("cannot start the inserting thread: {error}")))?;
    let mut busy: Option<(f64, f64, f64, u64)> = None;
    let mut finished: Option<Instant> = None;
    let outcome: Result<(), Failure> = loop {
        if let Err(failure) = fleet.pump(Duration::from_millis(5), &mut tally) {
            break Err(failure);
        }
        fleet.beat();
        tally.lone_from = lone_from.load(Ordering::Acquire);
        // The pauses would dilute what the load costs: it ends where they begin.
        if tally.lone_from != u64::MAX && busy.is_none() {
            let now = server.usage()?;
            busy = Some((
                now.cpu_s - usage.cpu_s,
                process::descendants_cpu_s(server.pid) - database_before,
                process::own_cpu_s() - own,
                clock.now() - began,
            ));
        }
        if writer.is_finished() {
            let since = *finished.get_or_insert_with(Instant::now);
            // Deliveries of the last change need milliseconds; a server in trouble gets seconds.
            let quiet = clock.now().saturating_sub(tally.last_at);
            if since.elapsed() > Duration::from_secs(1) && quiet > nanos(Duration::from_secs(2)) {
                break Ok(());
            }
        }
    };
    stop.store(true, Ordering::Release);
    let inserted = writer.join().map_err(|_| Failure::new("the inserting thread failed"))?;
    outcome?;
    let Inserted { round_trip, lone_round_trip, changes } = inserted?;
    let end = server.usage()?;
    let (server_cpu_s, database_cpu_s, generator_cpu_s, elapsed) = busy.unwrap_or((0.0, 0.0, 0.0, 0));
    let per_change = if shape.rls { 1 } else { shape.subscribers as u64 };
    Ok(Changes {
        expected: changes * per_change,
        counts: tally.counts,
        latency: tally.latency,
        lone: tally.lone,
        round_trip,
        lone_round_trip,
        changes,
        elapsed_s: elapsed as f64 / 1e9,
        server_cpu_s,
        database_cpu_s,
        generator_cpu_s,
        rss_before: usage.rss,
        rss_peak: end.peak,
        settings,
    })
}

/// One subscriber each; with RLS each with a token of its own.
fn roles(shape: &Shape, server: &Server) -> Result<Vec<Role>, Failure> {
    let binding = format!(r#"[{{"event":"*","schema":"public","table":"{TABLE}"}}]"#);
    let config = |token: &str| {
        format!(
            r#"{{"config":{{"broadcast":{{"ack":false,"self":false}},"presence":{{"enabled":false}},"postgres_changes":{binding},"private":false}}{token}}}"#
        )
    };
    let plain: Arc<str> = config("").into();
    let secret = server.jwt_secret.as_deref();
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) + 86_400;
    (0..shape.subscribers)
        .map(|member| {
            let join = if shape.rls {
                let secret = secret.ok_or_else(|| Failure::new("give the secret with --jwt-secret"))?;
                let claims =
                    format!(r#"{{"role":"authenticated","sub":"{}","exp":{expires}}}"#, owner(member as u16));
                let token = tidewire_authz::sign_hs256(secret.as_bytes(), &claims);
                config(&format!(r#","access_token":"{token}""#)).into()
            } else {
                Arc::clone(&plain)
            };
            Ok(Role { topic: format!("realtime:changes-{member}").into(), join, has_bindings: true })
        })
        .collect()
}

fn print(shape: &Shape, changes: &Changes) {
    let table = Table::begin(&format!(
        "changes: {} subscribers, {} INSERTs/s, {}",
        shape.subscribers,
        count(shape.rate),
        if shape.rls { "RLS: every subscriber sees its own rows" } else { "no RLS: everybody sees all" }
    ));
    table.row("Postgres", &changes.settings);
    table.row(
        "delivered of expected, wrong",
        &format!("{} of {}, {}", changes.counts.delivered, changes.expected, changes.counts.wrong()),
    );
    let p = "p50 / p90 / p99 / p99.9 / max";
    table.row(&format!("**INSERT issued → client**: {p}"), &percentiles(&changes.latency));
    table.row(&format!("ceiling, INSERT issued → its own answer: {p}"), &percentiles(&changes.round_trip));
    table.row(
        &format!("{} lone changes after {} s: {p}", shape.lone, shape.pause),
        &percentiles(&changes.lone),
    );
    table.row(&format!("their INSERTs' own answers: {p}"), &percentiles(&changes.lone_round_trip));
    let per = |seconds: f64| seconds * 1e6 / (changes.changes as f64 - shape.lone as f64).max(1.0);
    table.row(
        "CPU per change: server, Postgres",
        &format!("{:.0} µs, {:.0} µs", per(changes.server_cpu_s), per(changes.database_cpu_s)),
    );
    table.row(
        "cores: server, Postgres, generator",
        &format!(
            "{:.3}, {:.3}, {:.3}",
            changes.server_cpu_s / changes.elapsed_s.max(1e-9),
            changes.database_cpu_s / changes.elapsed_s.max(1e-9),
            changes.generator_cpu_s / changes.elapsed_s.max(1e-9)
        ),
    );
    table.row("server RSS before, peak", &format!("{}, {}", mib(changes.rss_before), mib(changes.rss_peak)));
}
