//! How soon a server serves, and what it holds and weighs before anybody comes.

use std::time::{Duration, Instant};

use tidewire_protocol::frame::Version;

use crate::args::StartArgs;
use crate::clock::Clock;
use crate::failure::{Context as _, Failure};
use crate::fleet::{Fleet, Role};
use crate::output::{self, Table, mib, seconds};
use crate::process::Usage;
use crate::server::{self, Server};

#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// The start that made the database.
    pub(crate) first: Duration,
    /// Later ones, to the line of JSON, sorted.
    pub(crate) ready: Vec<Duration>,
    /// The same, to the first joined WebSocket.
    pub(crate) joined: Vec<Duration>,
    /// Before anybody came, five seconds after the start.
    pub(crate) idle: Usage,
    pub(crate) binary_bytes: u64,
}

pub(crate) fn run(args: &StartArgs) -> Result<(), Failure> {
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    print(&measure(args)?);
    Ok(())
}

pub(crate) fn measure(args: &StartArgs) -> Result<Start, Failure> {
    if args.server.ws_url.is_some() {
        return Err(Failure::new(
            "`start` measures a server that it starts; it cannot be given a running one",
        ));
    }
    let binary = server::binary(&args.server)?;
    let folder = args.server.data_dir.clone().unwrap_or_else(server::temporary_folder);
    let result = measure_in(&binary, &folder, args.runs.max(1));
    if args.server.data_dir.is_none() {
        let _ = std::fs::remove_dir_all(&folder);
    }
    result
}

fn measure_in(binary: &std::path::Path, folder: &std::path::Path, runs: usize) -> Result<Start, Failure> {
    let binary_bytes = std::fs::metadata(binary).context("cannot look at the binary")?.len();
    let first = Server::start(binary, folder, None, &[])?.start_time;
    let (mut ready, mut joined) = (Vec::new(), Vec::new());
    let mut idle = Usage::default();
    for run in 0..runs {
        let server = Server::start(binary, folder, None, &[])?;
        ready.push(server.start_time);
        if run + 1 == runs {
            std::thread::sleep(Duration::from_secs(5));
            idle = server.usage()?;
        }
        let began = Instant::now();
        Fleet::connect(
            &server,
            Clock::start(),
            Version::V2,
            &[Role {
                topic: "realtime:first".into(),
                join: crate::fleet::PLAIN_JOIN.into(),
                has_bindings: false,
            }],
        )?;
        joined.push(server.start_time + began.elapsed());
    }
    ready.sort();
    joined.sort();
    Ok(Start { first, ready, joined, idle, binary_bytes })
}

fn print(start: &Start) {
    let table = Table::begin("start and footprint");
    let middle = |times: &[Duration]| seconds(times[(times.len() - 1) / 2]);
    let spread = |times: &[Duration]| format!("{} … {}", seconds(times[0]), seconds(times[times.len() - 1]));
    table.row("first start, with initdb", &seconds(start.first));
    table.row(
        &format!("later starts, with Postgres, to serving: median of {}", start.ready.len()),
        &format!("{} ({})", middle(&start.ready), spread(&start.ready)),
    );
    table.row("later starts, to the first joined client: median", &middle(&start.joined));
    table.row(
        "server RSS idle, of it anonymous, peak",
        &format!("{}, {}, {}", mib(start.idle.rss), mib(start.idle.anonymous), mib(start.idle.peak)),
    );
    table.row("binary", &mib(start.binary_bytes));
}
