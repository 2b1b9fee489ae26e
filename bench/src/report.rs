//! The whole set with short runs, as one Markdown page: each figure with its ceiling of the same session, its
//! target, and what the existing server showed elsewhere.

use crate::args::{FrameArgs, Publish, ReportArgs, Serializer, ServerArgs, ShapeArgs, StartArgs};
use crate::ceiling::{self, Writing};
use crate::changes;
use crate::failure::Failure;
use crate::fanout::{self, Outcome};
use crate::idle;
use crate::joins;
use crate::output::{self, count, mib, ms, note, seconds};
use crate::server::{self, Server};
use crate::slow;
use crate::start;
use crate::tally::Latency;

const FRAMES: FrameArgs = FrameArgs { serializer: Serializer::V2, publish: Publish::Text };

/// A run whose server grows beyond this is given up.
const MEMORY_LIMIT_MIB: u64 = 6144;

/// One line of the page.
struct Row {
    what: &'static str,
    measured: String,
    ceiling: String,
    target: &'static str,
    peer: &'static str,
}

pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let mut server = args.server.clone();
    // One database for all: making it anew would take longer than most measurements.
    let folder = server::temporary_folder();
    let is_ours = server.ws_url.is_none() && server.data_dir.is_none();
    if is_ours {
        server.data_dir = Some(folder.clone());
    }
    let result = rows(args, &server);
    if is_ours {
        let _ = std::fs::remove_dir_all(&folder);
    }
    print(args, &result?);
    Ok(())
}

fn rows(args: &ReportArgs, server: &ServerArgs) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let shape = |topics: usize, rate: f64, tick: u64| ShapeArgs {
        topics,
        tick,
        subscribers: 1000,
        rate,
        bytes: 256,
        seconds: args.seconds.max(2.0),
        warmup: 1.0,
    };
    most(args, server, shape(1, 800.0, 1000), "P1 most deliveries/s, 1 × 1,000", "103 k", &mut rows)?;
    most(args, server, shape(100, 40_000.0, 1000), "P1 most deliveries/s, 100 × 10", "64 k", &mut rows)?;
    let one = Fixed {
        cpu: "P2 CPU-s per million at 100 k/s, 1 × 1,000",
        cpu_target: "≤ 4.5",
        cpu_peer: "13.1",
        tail: "P4 p50 / p99 at 100 k/s, 1 × 1,000",
        tail_target: "p99 ≤ 15 ms",
        tail_peer: "25.7 / 191 ms",
    };
    fixed(args, server, shape(1, 100.0, 50), &one, &mut rows)?;
    let many = Fixed {
        cpu: "P2 CPU-s per million at 100 k/s, 100 × 10",
        cpu_target: "≤ 6.5",
        cpu_peer: "24.2 (at 57 k/s)",
        tail: "P4 p50 / p99 at 100 k/s, 100 × 10",
        tail_target: "p99 ≤ 4 ms",
        tail_peer: "4.9 / 27.9 ms (at 57 k/s)",
    };
    fixed(args, server, shape(100, 10_000.0, 50), &many, &mut rows)?;
    resting(server, &mut rows)?;
    changing(args, server, &mut rows)?;
    joining(server, &mut rows)?;
    stopping(server, &mut rows)?;
    starting(args, server, &mut rows)?;
    Ok(rows)
}

fn most(
    args: &ReportArgs,
    server: &ServerArgs,
    shape: ShapeArgs,
    what: &'static str,
    peer: &'static str,
    rows: &mut Vec<Row>,
) -> Result<(), Failure> {
    note(what);
    let mut found = Vec::new();
    for _ in 0..args.runs.max(1) {
        let server = Server::of(server)?;
        found
            .extend(fanout::find_most(&server, shape, FRAMES, MEMORY_LIMIT_MIB)?.map(|(_, outcome)| outcome));
    }
    let measured = if found.is_empty() {
        "less than the first rate".to_owned()
    } else {
        let middle = fanout::median(&found, Outcome::deliveries_per_s);
        format!(
            "{} (p99 {} ms, {:.2} CPU-s per million, peak RSS {}; runs: {}; other processes {} cores)",
            count(middle.deliveries_per_s()),
            ms(middle.p(0.99)),
            middle.cpu_per_million(),
            mib(middle.rss_peak),
            each(&found, |it| count(it.deliveries_per_s())),
            each(&found, |it| format!("{:.2}", it.other_cores)),
        )
    };
    let mut ceilings = Vec::new();
    for writing in ceiling::FLAT_OUT {
        let flat = ceiling::measure(&ShapeArgs { seconds: 2.0, ..shape }, writing, false)?;
        ceilings.push(format!("{writing:?} {}", count(flat.per_second())));
    }
    rows.push(Row { what, measured, ceiling: ceilings.join(", "), target: "≥ 2.5 M", peer });
    Ok(())
}

/// The words of one shape at a fixed rate.
struct Fixed {
    cpu: &'static str,
    cpu_target: &'static str,
    cpu_peer: &'static str,
    tail: &'static str,
    tail_target: &'static str,
    tail_peer: &'static str,
}

fn fixed(
    args: &ReportArgs,
    server: &ServerArgs,
    shape: ShapeArgs,
    words: &Fixed,
    rows: &mut Vec<Row>,
) -> Result<(), Failure> {
    note(words.cpu);
    let server = Server::of(server)?;
    let (mut outcomes, mut ceilings) = (Vec::new(), Vec::new());
    // Alternating, so that whatever else the machine does meets both.
    for _ in 0..args.runs.max(1) {
        outcomes.push(fanout::measure_plain(&server, shape, FRAMES, MEMORY_LIMIT_MIB)?);
        ceilings.push(ceiling::measure(&shape, Writing::Direct, true)?);
    }
    let lost: u64 = outcomes
        .iter()
        .map(|it| it.expected - it.counts.delivered.min(it.expected) + it.counts.wrong())
        .sum();
    let void = if lost > 0 { format!(" — VOID, {lost} lost or wrong") } else { String::new() };
    let cpu = fanout::median(&outcomes, Outcome::cpu_per_million);
    let tail = fanout::median(&outcomes, |it| it.p(0.99) as f64);
    ceilings.sort_by(|a, b| a.cpu_per_million().total_cmp(&b.cpu_per_million()));
    let raw_cpu = ceilings[(ceilings.len() - 1) / 2].cpu_per_million();
    ceilings.sort_by_key(|it| it.latency.value_at_quantile(0.99));
    let raw_tail = &ceilings[(ceilings.len() - 1) / 2].latency;
    rows.push(Row {
        what: words.cpu,
        measured: format!(
            "{:.2} (runs: {}){void}",
            cpu.cpu_per_million(),
            each(&outcomes, |it| format!("{:.2}", it.cpu_per_million()))
        ),
        ceiling: format!("direct write {raw_cpu:.2}"),
        target: words.cpu_target,
        peer: words.cpu_peer,
    });
    rows.push(Row {
        what: words.tail,
        measured: format!(
            "{} / {} ms (p99 of runs: {}; other processes {} cores)",
            ms(tail.p(0.5)),
            ms(tail.p(0.99)),
            each(&outcomes, |it| ms(it.p(0.99))),
            each(&outcomes, |it| format!("{:.2}", it.other_cores))
        ),
        ceiling: format!("direct write {}", two(raw_tail)),
        target: words.tail_target,
        peer: words.tail_peer,
    });
    Ok(())
}

fn resting(server: &ServerArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    note("P3 idle connections");
    let idle = idle::measure(5000, 25.0, server)?;
    let kernel = idle.kernel as f64 / idle.connections as f64;
    rows.push(Row {
        what: "P3 memory per idle connection, 5,000",
        measured: format!("{:.0} B", idle.bytes_per_connection()),
        ceiling: format!("kernel objects, both ends: {kernel:.0} B"),
        target: "≤ 3.5 KB",
        peer: "35.4 KB",
    });
    rows.push(Row {
        what: "P3 CPU of 5,000 idle connections",
        measured: format!(
            "{:.2} % of a core ({:.2} µs per connection and second)",
            idle.cores * 100.0,
            idle.cpu_us_per_connection_s
        ),
        ceiling: "–".into(),
        target: "≤ 0.5 %",
        peer: "6.6 %",
    });
    Ok(())
}

fn changing(args: &ReportArgs, server: &ServerArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    for (rls, what, lone, target, peer) in [
        (
            false,
            "P5 INSERT issued → client, p50 / p99, 100 subscribers, 100/s",
            "P5 the same, lone change after 2 s of silence, p50 / max",
            "1.5 / 5 ms",
            "246 / 511 ms (at 30/s)",
        ),
        (true, "RLS, each sees its own rows: the same", "RLS: lone change", "–", "–"),
    ] {
        note(what);
        let shape = changes::Shape {
            subscribers: 100,
            rate: 100.0,
            seconds: args.seconds.max(2.0),
            bytes: 256,
            writers: 4,
            rls,
            lone: 5,
            pause: 2.0,
        };
        let mut found = Vec::new();
        for _ in 0..args.runs.max(1) {
            found.push(changes::measure(&shape, server)?);
        }
        found.sort_by_key(|it| it.latency.value_at_quantile(0.99));
        let tails =
            found.iter().map(|it| ms(it.latency.value_at_quantile(0.99))).collect::<Vec<_>>().join(" · ");
        let lost: u64 =
            found.iter().map(|it| it.expected.saturating_sub(it.counts.delivered) + it.counts.wrong()).sum();
        let void = if lost > 0 { format!(" — VOID, {lost} lost or wrong") } else { String::new() };
        let middle = &found[(found.len() - 1) / 2];
        let per = |cpu_s: f64| cpu_s * 1e6 / (middle.changes - 5).max(1) as f64;
        rows.push(Row {
            what,
            measured: format!(
                "{} (p99 of runs: {tails}; CPU per change: server {:.0} µs, Postgres {:.0} µs){void}",
                two(&middle.latency),
                per(middle.server_cpu_s),
                per(middle.database_cpu_s)
            ),
            ceiling: format!("the INSERT's own answer {}; {}", two(&middle.round_trip), middle.settings),
            target,
            peer,
        });
        rows.push(Row {
            what: lone,
            measured: format!("{} / {} ms", ms(middle.lone.value_at_quantile(0.5)), ms(middle.lone.max())),
            ceiling: format!(
                "the INSERT's own answer {} / {} ms",
                ms(middle.lone_round_trip.value_at_quantile(0.5)),
                ms(middle.lone_round_trip.max())
            ),
            target,
            peer,
        });
    }
    Ok(())
}

fn joining(server: &ServerArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    note("P11 joins");
    let joins = joins::measure(100, 90, server)?;
    let trips = ceiling::round_trips(20_000)?;
    rows.push(Row {
        what: "P11 one join, p50 / p99",
        measured: two(&joins.alone),
        ceiling: format!("round trip of 64 B {}", two(&trips)),
        target: "–",
        peer: "0.64 / 1.9 ms",
    });
    rows.push(Row {
        what: "P11 public joins per second, 100 connections",
        measured: format!("{} ({:.1} µs of server CPU each)", count(joins.per_s), joins.server_cpu_us),
        ceiling: "–".into(),
        target: "≥ 5 × peer",
        peer: "not measured",
    });
    Ok(())
}

fn stopping(server: &ServerArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    note("P13 slow readers");
    let shape = ShapeArgs {
        topics: 1,
        subscribers: 500,
        rate: 200.0,
        bytes: 4096,
        seconds: 15.0,
        tick: 50,
        warmup: 1.0,
    };
    let slow = slow::measure(&shape, 1.0, Some(1024), server)?;
    rows.push(Row {
        what: "P13 1 % stop reading: p99 of the others (outbox bound 1 MiB, 500 × 4 KiB × 200/s)",
        measured: format!(
            "{} ms; closed after {}, told 4008: {} of {}; peak RSS {}",
            ms(slow.slow.p(0.99)),
            slow.closed_after.map_or_else(|| "never".into(), seconds),
            slow.told,
            slow.stopped,
            mib(slow.slow.rss_peak)
        ),
        ceiling: format!(
            "two equal runs without: {} and {} ms",
            ms(slow.base.p(0.99)),
            ms(slow.again.p(0.99))
        ),
        target: "within max(10 %, spread)",
        peer: "not measured",
    });
    Ok(())
}

fn starting(args: &ReportArgs, server: &ServerArgs, rows: &mut Vec<Row>) -> Result<(), Failure> {
    note("P14 start");
    let start = start::measure(&StartArgs { runs: args.runs.max(3), server: server.clone() })?;
    rows.push(Row {
        what: "P14 second start to serving, Postgres included",
        measured: seconds(start.ready[(start.ready.len() - 1) / 2]),
        ceiling: "–".into(),
        target: "≤ 0.3 s",
        peer: "4 s",
    });
    rows.push(Row {
        what: "P14 idle RSS of the server, binary",
        measured: format!(
            "{} (of it {} anonymous), {}",
            mib(start.idle.rss),
            mib(start.idle.anonymous),
            mib(start.binary_bytes)
        ),
        ceiling: "–".into(),
        target: "≤ 20 MB, ≤ 30 MB",
        peer: "217 MB, –",
    });
    Ok(())
}

fn each(outcomes: &[Outcome], value: impl Fn(&Outcome) -> String) -> String {
    outcomes.iter().map(value).collect::<Vec<_>>().join(" · ")
}

fn two(latency: &Latency) -> String {
    format!("{} / {} ms", ms(latency.value_at_quantile(0.5)), ms(latency.value_at_quantile(0.99)))
}

fn print(args: &ReportArgs, rows: &[Row]) {
    output::line(&format!("`{}`  \n{}\n", output::command(), crate::machine::describe()));
    output::line(&format!(
        "Medians of {} runs of {} s. Server, Postgres, generator and whatever else runs share these cores. The \
         ceiling was measured in the same session; the existing server was measured earlier, on another 2-core \
         machine, and is comparable in order of magnitude only.\n",
        args.runs.max(1),
        args.seconds
    ));
    output::line("| figure | measured | ceiling, same session | target | existing server, elsewhere |");
    output::line("| --- | --- | --- | --- | --- |");
    for row in rows {
        let Row { what, measured, ceiling, target, peer } = row;
        output::line(&format!("| {what} | {measured} | {ceiling} | {target} | {peer} |"));
    }
}
