//! Clients that stop reading: what they do to the others, to memory, and what becomes of them.

use std::time::{Duration, Instant};

use crate::args::{FrameArgs, Publish, Serializer, ServerArgs, ShapeArgs, SlowArgs};
use crate::failure::Failure;
use crate::fanout::{self, Outcome, Plan};
use crate::fleet::{Fleet, Phase};
use crate::output::{self, Table, count, mib, ms};
use crate::server::Server;
use crate::tally::{Tally, percentiles};

/// What the server logs when it closes a slow reader: `PROTOCOL.md` has no name for it, `codes.rs` does.
const LOGGED: &str = "SlowReader";

pub(crate) struct Slow {
    pub(crate) base: Outcome,
    pub(crate) again: Outcome,
    pub(crate) slow: Outcome,
    pub(crate) stopped: usize,
    /// From the first message to the first time the server said that it closed one.
    pub(crate) closed_after: Option<Duration>,
    /// Stopped readers that then found the close frame 4008.
    pub(crate) told: usize,
    /// That found the end of the stream without it.
    pub(crate) dropped: usize,
}

pub(crate) fn run(args: &SlowArgs) -> Result<(), Failure> {
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    print(&args.shape, &measure(&args.shape, args.percent, args.outbox, &args.server)?);
    Ok(())
}

pub(crate) fn measure(
    shape: &ShapeArgs,
    percent: f64,
    outbox_kib: Option<u64>,
    server: &ServerArgs,
) -> Result<Slow, Failure> {
    let frames = FrameArgs { serializer: Serializer::V2, publish: Publish::Text };
    fanout::check(shape, frames)?;
    let stopped = (shape.subscribers as f64 * percent / 100.0).round() as usize;
    if stopped == 0 || stopped >= shape.subscribers {
        return Err(Failure::new("--percent must stop at least one subscriber and leave at least one"));
    }
    let settings: Vec<(&str, String)> = outbox_kib
        .map(|kib| ("TIDEWIRE__LIMITS__MAX_OUTBOX_BYTES", (kib * 1024).to_string()))
        .into_iter()
        .collect();
    let server = Server::with_settings(server, &settings)?;
    let base = fanout::measure_plain(&server, *shape, frames, 8192)?;
    let again = fanout::measure_plain(&server, *shape, frames, 8192)?;

    let began = Instant::now();
    let first = shape.subscribers - stopped;
    let mut closed_after = None;
    let mut last_codes = (0, 0);
    let mut watch = |fleet: &mut Fleet, tally: &mut Tally| {
        if closed_after.is_none() && server.log().contains(LOGGED) {
            closed_after = Some(began.elapsed());
            // They wake up in time: a client that never reads again cannot be told anything.
            for member in first..fleet.len() {
                fleet.resume(member, tally);
            }
        }
        let ended = |wanted: fn(&Option<u16>) -> bool| {
            (first..fleet.len())
                .filter(|&member| matches!(fleet.phase(member), Phase::Ended(code) if wanted(code)))
                .count()
        };
        last_codes = (ended(|code| *code == Some(4008)), ended(|code| *code != Some(4008)));
    };
    let plan = Plan { memory_limit: 8 << 30, paused: stopped, watch: &mut watch };
    let slow = fanout::measure(&server, *shape, frames, plan)?;
    let (told, dropped) = last_codes;
    Ok(Slow { base, again, slow, stopped, closed_after, told, dropped })
}

fn print(shape: &ShapeArgs, slow: &Slow) {
    let table = Table::begin(&format!(
        "slow readers: {} × {}, {} messages/s of {} B, {} of {} stop reading",
        shape.topics,
        shape.subscribers / shape.topics,
        count(shape.rate),
        shape.bytes,
        slow.stopped,
        shape.subscribers
    ));
    let p = "p50 / p90 / p99 / p99.9 / max";
    table.row(&format!("nobody stops: {p}"), &percentiles(&slow.base.latency));
    table.row(&format!("nobody stops, again: {p}"), &percentiles(&slow.again.latency));
    table.row(&format!("some stop, the others: {p}"), &percentiles(&slow.slow.latency));
    let (a, b, c) = (slow.base.p(0.99), slow.again.p(0.99), slow.slow.p(0.99));
    let worst = a.max(b) as f64;
    table.row(
        "p99 against the worse of the equal runs",
        &format!("{:+.1} % ({} against {} and {} ms)", (c as f64 / worst - 1.0) * 100.0, ms(c), ms(a), ms(b)),
    );
    table.row(
        "the others: delivered of expected, wrong",
        &format!("{} of {}, {}", slow.slow.counts.delivered, slow.slow.expected, slow.slow.counts.wrong()),
    );
    table.row(
        "server RSS: peak without, peak with, at the end",
        &format!(
            "{}, {}, {}",
            mib(slow.base.rss_peak.max(slow.again.rss_peak)),
            mib(slow.slow.rss_peak),
            mib(slow.slow.rss_after)
        ),
    );
    table.row(
        "first one closed after",
        &slow.closed_after.map_or_else(
            || "none was closed in this run: send longer or larger".into(),
            |after| format!("{:.1} s", after.as_secs_f64()),
        ),
    );
    table.row(
        "stopped readers told 4008, ended without, still connected",
        &format!("{}, {}, {}", slow.told, slow.dropped, slow.stopped - slow.told - slow.dropped),
    );
}
