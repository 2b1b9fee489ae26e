//! Broadcast: what a rate costs, and the highest that is sustained.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidewire_protocol::frame::Version;

use crate::args::{FanoutArgs, FrameArgs, Publish, Serializer, ShapeArgs};
use crate::ceiling;
use crate::clock::{Clock, nanos};
use crate::failure::Failure;
use crate::fleet::{Fleet, PLAIN_JOIN, Role};
use crate::output::{self, Table, count, mib, ms};
use crate::process;
use crate::publish::{Schedule, Sent, Template, publish};
use crate::server::Server;
use crate::tally::{Counts, Expect, Latency, Tally, percentiles};

/// p99 above this is not sustained, in microseconds. `PERFORMANCE.md` §8 uses the same bound.
const SUSTAINED_P99_US: u64 = 250_000;

/// Less than this part delivered is not sustained.
const SUSTAINED_PART: f64 = 0.999;

/// The last delivery is waited for as long as deliveries keep coming at least this often.
const QUIET: Duration = Duration::from_secs(3);

/// From the decision to begin to the first message: both threads are ready by then.
const HEAD_START: Duration = Duration::from_millis(100);

/// What one run showed.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Deliveries per second that were asked for.
    pub(crate) offered: f64,
    pub(crate) expected: u64,
    pub(crate) counts: Counts,
    pub(crate) latency: Latency,
    pub(crate) sent: Sent,
    /// From the first message due to the last delivery.
    pub(crate) elapsed_s: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) server_cores: f64,
    pub(crate) generator_cores: f64,
    /// What else ran on the machine meanwhile: the noise of this run.
    pub(crate) other_cores: f64,
    pub(crate) rss_before: u64,
    pub(crate) rss_connected: u64,
    pub(crate) rss_after: u64,
    pub(crate) rss_peak: u64,
    /// The run was given up because of this.
    pub(crate) given_up: Option<String>,
}

impl Outcome {
    pub(crate) fn deliveries_per_s(&self) -> f64 {
        self.counts.delivered as f64 / self.elapsed_s.max(1e-9)
    }

    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.server_cpu_s * 1e6 / (self.counts.delivered.max(1) as f64)
    }

    pub(crate) fn p(&self, quantile: f64) -> u64 {
        self.latency.value_at_quantile(quantile)
    }

    /// Why this rate is not sustained.
    pub(crate) fn shortfall(&self) -> Option<String> {
        if let Some(reason) = &self.given_up {
            return Some(reason.clone());
        }
        if !self.sent.is_complete {
            return Some("the server did not take everything that was sent".into());
        }
        if let Some(ending) = self.sent.ended.first() {
            return Some(format!("{} publishers were ended: {ending}", self.sent.ended.len()));
        }
        if self.counts.wrong() > 0 {
            return Some(format!("{} wrong deliveries: {:?}", self.counts.wrong(), self.counts));
        }
        let part = self.counts.delivered as f64 / self.expected.max(1) as f64;
        if part < SUSTAINED_PART {
            return Some(format!(
                "only {:.2} % delivered ({} skipped, {} ended)",
                part * 100.0,
                self.counts.skipped,
                self.counts.ended
            ));
        }
        if self.p(0.99) >= SUSTAINED_P99_US {
            return Some(format!("p99 {} ms", ms(self.p(0.99))));
        }
        None
    }
}

/// What else a run does.
pub(crate) struct Plan<'a> {
    pub(crate) memory_limit: u64,
    /// So many subscribers, the last ones, stop reading when sending begins.
    pub(crate) paused: usize,
    /// Called about every 50 ms while the run goes on.
    pub(crate) watch: &'a mut dyn FnMut(&mut Fleet, &mut Tally),
}

pub(crate) fn run(args: &FanoutArgs) -> Result<(), Failure> {
    check(&args.shape, args.frames)?;
    let server = Server::of(&args.server)?;
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    if args.search {
        return search(&server, args);
    }
    let mut outcomes = Vec::new();
    for _ in 0..args.runs.max(1) {
        outcomes.push(measure_plain(&server, args.shape, args.frames, args.memory_limit)?);
    }
    print(&args.shape, args.frames, &outcomes);
    if !args.no_ceiling {
        ceiling::print_paced(&ShapeArgs { seconds: args.shape.seconds.min(3.0), ..args.shape })?;
    }
    Ok(())
}

/// Refuses what cannot be measured before a server is started for it.
pub(crate) fn check(shape: &ShapeArgs, frames: FrameArgs) -> Result<(), Failure> {
    if shape.topics == 0 || shape.topics > usize::from(u16::MAX) {
        return Err(Failure::new("--topics must be between 1 and 65535"));
    }
    if shape.subscribers < shape.topics || !shape.subscribers.is_multiple_of(shape.topics) {
        return Err(Failure::new("--subscribers must be a multiple of --topics"));
    }
    if shape.rate <= 0.0 || shape.seconds <= shape.warmup {
        return Err(Failure::new("--rate must be positive and --seconds longer than --warmup"));
    }
    if shape.subscribers + shape.topics + 100 > process::descriptor_limit() {
        return Err(Failure::new(format!(
            "{} connections need more files than the limit of {}",
            shape.subscribers + shape.topics,
            process::descriptor_limit()
        )));
    }
    if shape.bytes < 48 {
        return Err(Failure::new("--bytes must be at least 48: the mark needs them"));
    }
    if frames.serializer == Serializer::V1 && frames.publish == Publish::Binary {
        output::note("V1 subscribers receive binary user broadcasts as text");
    }
    Ok(())
}

pub(crate) fn measure_plain(
    server: &Server,
    shape: ShapeArgs,
    frames: FrameArgs,
    memory_limit_mib: u64,
) -> Result<Outcome, Failure> {
    let plan = Plan { memory_limit: memory_limit_mib << 20, paused: 0, watch: &mut |_, _| {} };
    measure(server, shape, frames, plan)
}

/// One run: connect, send, receive, verify.
pub(crate) fn measure(
    server: &Server,
    shape: ShapeArgs,
    frames: FrameArgs,
    plan: Plan<'_>,
) -> Result<Outcome, Failure> {
    let clock = Clock::start();
    let topics: Vec<String> = (0..shape.topics).map(|topic| format!("realtime:bench-{topic}")).collect();
    let join: Arc<str> = PLAIN_JOIN.into();
    let role = |topic: &String| Role::broadcast(&topic.as_str().into(), &join);
    let rss_before = server.usage()?.rss;

    let of: Vec<u16> = (0..shape.subscribers).map(|member| (member % shape.topics) as u16).collect();
    let roles: Vec<Role> = of.iter().map(|topic| role(&topics[usize::from(*topic)])).collect();
    let version = if frames.serializer == Serializer::V1 { Version::V1 } else { Version::V2 };
    let mut fleet = Fleet::connect(server, clock, version, &roles)?;
    let publishers =
        Fleet::connect(server, clock, Version::V2, &topics.iter().map(role).collect::<Vec<_>>())?;

    let template = Template::new(shape.bytes);
    let mut tally = Tally::new(Expect::One(of), shape.subscribers, template.padding());
    tally.excluded_from = shape.subscribers - plan.paused;
    for member in tally.excluded_from..shape.subscribers {
        fleet.pause(member);
    }
    let rss_connected = server.usage()?.rss;
    process::reset_peak(server.pid);
    let cpu_before = server.usage()?.cpu_s;
    let own_before = process::own_cpu_s();
    let machine_before = process::machine_cpu_s();
    let began = Instant::now();
    let schedule = Schedule {
        start: clock.now() + nanos(HEAD_START),
        rate: shape.rate,
        messages: (shape.rate * shape.seconds).round().max(1.0) as u64,
        tick: Duration::from_micros(shape.tick),
    };
    tally.measure_from = schedule.start + (shape.warmup * 1e9) as u64;

    let stop = AtomicBool::new(false);
    let mut given_up = None;
    let (sent, publishers) = std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .name("publisher".into())
            .spawn_scoped(scope, || {
                publish(publishers, &topics, frames.publish, &template, schedule, clock, &stop)
            })
            .map_err(|error| Failure::new(format!("cannot start the sending thread: {error}")))?;
        let outcome = receive(server, &mut fleet, &mut tally, &sender, &shape, clock, plan);
        stop.store(true, Ordering::Relaxed);
        given_up = outcome?;
        sender.join().map_err(|_| Failure::new("the sending thread failed"))?
    })?;

    drop(publishers);
    let usage = server.usage()?;
    let wall_s = began.elapsed().as_secs_f64();
    let server_cpu_s = usage.cpu_s - cpu_before;
    let own_cpu_s = process::own_cpu_s() - own_before;
    let other_cpu_s = process::machine_cpu_s() - machine_before - server_cpu_s - own_cpu_s;
    let per_topic = (shape.subscribers / shape.topics) as u64;
    let all: u64 = sent.per_topic.iter().map(|sent| u64::from(*sent) * per_topic).sum();
    let excluded: u64 = (tally.excluded_from..shape.subscribers)
        .map(|member| u64::from(sent.per_topic[member % shape.topics]))
        .sum();
    Ok(Outcome {
        offered: shape.rate * per_topic as f64,
        expected: all - excluded,
        counts: tally.counts,
        latency: tally.latency,
        sent,
        elapsed_s: tally.last_at.saturating_sub(schedule.start) as f64 / 1e9,
        server_cpu_s,
        server_cores: server_cpu_s / wall_s,
        generator_cores: own_cpu_s / wall_s,
        other_cores: other_cpu_s.max(0.0) / wall_s,
        rss_before,
        rss_connected,
        rss_after: usage.rss,
        rss_peak: usage.peak,
        given_up,
    })
}

/// Receives until everything that was sent has arrived, or nothing arrives any more. `Some` says why the run
/// was given up.
fn receive(
    server: &Server,
    fleet: &mut Fleet,
    tally: &mut Tally,
    sender: &std::thread::ScopedJoinHandle<'_, Result<(Sent, Fleet), Failure>>,
    shape: &ShapeArgs,
    clock: Clock,
    plan: Plan<'_>,
) -> Result<Option<String>, Failure> {
    let per_topic = (shape.subscribers / shape.topics) as u64;
    let readers = tally.excluded_from as f64 / shape.subscribers as f64;
    let total = ((shape.rate * shape.seconds).round().max(1.0) * per_topic as f64 * readers) as u64;
    let mut next_look = Instant::now();
    let mut sender_ended: Option<Instant> = None;
    loop {
        fleet.pump(Duration::from_millis(20), tally)?;
        fleet.beat();
        if Instant::now() < next_look {
            continue;
        }
        next_look = Instant::now() + Duration::from_millis(50);
        (plan.watch)(fleet, tally);
        let rss = server.usage()?.rss;
        if rss > plan.memory_limit {
            return Ok(Some(format!("the server grew to {}", mib(rss))));
        }
        if sender.is_finished() {
            let ended = *sender_ended.get_or_insert_with(Instant::now);
            let quiet = clock.now().saturating_sub(tally.last_at);
            let is_quiet = quiet > nanos(QUIET) && ended.elapsed() > QUIET;
            if tally.counts.delivered >= total || is_quiet || fleet.live_count() == 0 {
                return Ok(None);
            }
        }
    }
}

fn print(shape: &ShapeArgs, frames: FrameArgs, outcomes: &[Outcome]) {
    let title = format!(
        "fan-out: {} × {}, {} messages/s of {} B, {:?} {:?}, {} run(s) of {} s",
        shape.topics,
        shape.subscribers / shape.topics,
        count(shape.rate),
        shape.bytes,
        frames.serializer,
        frames.publish,
        outcomes.len(),
        shape.seconds
    );
    let table = Table::begin(&title);
    let middle = median(outcomes, |outcome| outcome.p(0.99) as f64);
    let all = |value: &dyn Fn(&Outcome) -> String| outcomes.iter().map(value).collect::<Vec<_>>().join(" · ");
    table.row(
        "deliveries/s offered, achieved",
        &format!("{}, {}", count(middle.offered), all(&|it| count(it.deliveries_per_s()))),
    );
    table.row("delivered of expected", &all(&|it| format!("{} of {}", it.counts.delivered, it.expected)));
    table.row("wrong deliveries", &all(&|it| it.counts.wrong().to_string()));
    table.row("p50 / p90 / p99 / p99.9 / max (median run)", &percentiles(&middle.latency));
    if outcomes.len() > 1 {
        table.row("p99 of each run", &all(&|it| format!("{} ms", ms(it.p(0.99)))));
    }
    table
        .row("server CPU-seconds per million deliveries", &all(&|it| format!("{:.2}", it.cpu_per_million())));
    table.row(
        "cores used by server, by generator, by everything else",
        &all(&|it| format!("{:.2}, {:.2}, {:.2}", it.server_cores, it.generator_cores, it.other_cores)),
    );
    table.row(
        "server RSS before, connected, after, peak",
        &all(&|it| {
            format!(
                "{}, {}, {}, {}",
                mib(it.rss_before),
                mib(it.rss_connected),
                mib(it.rss_after),
                mib(it.rss_peak)
            )
        }),
    );
    table.row("latest send", &all(&|it| format!("{} ms", ms(it.sent.latest_us))));
    table.row("sustained", &all(&|it| it.shortfall().unwrap_or_else(|| "yes".into())));
}

/// The run in the middle by some measure; of an even number the lower one.
pub(crate) fn median(outcomes: &[Outcome], by: impl Fn(&Outcome) -> f64) -> &Outcome {
    let mut order: Vec<&Outcome> = outcomes.iter().collect();
    order.sort_by(|a, b| by(a).total_cmp(&by(b)));
    order[(order.len() - 1) / 2]
}

fn search(server: &Server, args: &FanoutArgs) -> Result<(), Failure> {
    let best = find_most(server, args.shape, args.frames, args.memory_limit)?;
    match &best {
        Some((shape, outcome)) => print(shape, args.frames, std::slice::from_ref(outcome)),
        None => output::line("\nNot even the first rate is sustained; begin lower with --rate."),
    }
    if !args.no_ceiling {
        let seconds = args.shape.seconds.min(3.0);
        for writing in ceiling::FLAT_OUT {
            ceiling::print_flat_out(&ShapeArgs { seconds, ..args.shape }, writing)?;
        }
    }
    Ok(())
}

/// Doubles the rate until it fails twice, then halves the distance three times. Every step has new
/// connections: with BBR, an overloaded one can stay slow for the rest of its life.
pub(crate) fn find_most(
    server: &Server,
    shape: ShapeArgs,
    frames: FrameArgs,
    memory_limit_mib: u64,
) -> Result<Option<(ShapeArgs, Outcome)>, Failure> {
    let mut best: Option<(ShapeArgs, Outcome)> = None;
    let mut failed: Option<f64> = None;
    let mut rate = shape.rate;
    let mut steps_left = 3;
    loop {
        let step = ShapeArgs { rate, ..shape };
        let mut passed = None;
        for _ in 0..2 {
            let outcome = measure_plain(server, step, frames, memory_limit_mib)?;
            let verdict = outcome.shortfall();
            output::note(&format!(
                "{} deliveries/s offered: {} (p99 {} ms, {:.2} CPU-s per million, peak {}, others {:.2} cores)",
                count(outcome.offered),
                verdict.as_deref().unwrap_or("sustained"),
                ms(outcome.p(0.99)),
                outcome.cpu_per_million(),
                mib(outcome.rss_peak),
                outcome.other_cores,
            ));
            // What is still under way belongs to this step.
            std::thread::sleep(Duration::from_millis(500));
            if verdict.is_none() {
                passed = Some(outcome);
                break;
            }
        }
        match passed {
            Some(outcome) => best = Some((step, outcome)),
            None => failed = Some(rate),
        }
        rate = match (&best, failed) {
            (Some((step, _)), Some(failed)) => {
                if steps_left == 0 || failed / step.rate < 1.08 {
                    return Ok(best);
                }
                steps_left -= 1;
                (step.rate * failed).sqrt()
            }
            (Some((step, _)), None) => step.rate * 2.0,
            (None, _) => return Ok(None),
        };
    }
}
