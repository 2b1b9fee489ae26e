//! Connections that only exist: what they hold in memory, and what their heartbeats cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewire_protocol::frame::Version;

use crate::args::{IdleArgs, ServerArgs};
use crate::clock::Clock;
use crate::failure::Failure;
use crate::fleet::{Fleet, HEARTBEAT, Ignore, PLAIN_JOIN, Role};
use crate::output::{self, Table, mib};
use crate::process;
use crate::server::Server;

/// Connections made and dropped before the first reading, so that code, tables and the allocator's first pages
/// are not counted as connections.
const WARM: usize = 50;

/// What was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    pub(crate) connect_s: f64,
    pub(crate) rss_before: u64,
    pub(crate) rss_joined: u64,
    pub(crate) rss_end: u64,
    pub(crate) rss_peak: u64,
    pub(crate) rss_left: u64,
    pub(crate) kernel: i64,
    pub(crate) kernel_buffers: i64,
    pub(crate) cores: f64,
    pub(crate) cpu_us_per_connection_s: f64,
    pub(crate) database_cores: f64,
    pub(crate) generator_cores: f64,
    pub(crate) live: usize,
}

impl Idle {
    pub(crate) fn bytes_per_connection(&self) -> f64 {
        self.rss_end.saturating_sub(self.rss_before) as f64 / self.connections as f64
    }
}

pub(crate) fn run(args: &IdleArgs) -> Result<(), Failure> {
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    print(&measure(args.connections, args.seconds, &args.server)?);
    Ok(())
}

pub(crate) fn measure(connections: usize, seconds: f64, server: &ServerArgs) -> Result<Idle, Failure> {
    if connections + 100 > process::descriptor_limit() {
        return Err(Failure::new(format!(
            "{connections} connections need more files than the limit of {} allows, at each end",
            process::descriptor_limit()
        )));
    }
    let server = Server::of(server)?;
    let clock = Clock::start();
    let join: Arc<str> = PLAIN_JOIN.into();
    let role = |serial: usize| Role::broadcast(&format!("realtime:idle-{serial}").into(), &join);

    drop(Fleet::connect(&server, clock, Version::V2, &(0..WARM).map(role).collect::<Vec<_>>())?);
    settle();
    let before = server.usage()?;
    let (slab, buffers) = (process::slab_bytes(), process::tcp_buffer_bytes());
    process::reset_peak(server.pid);

    let began = Instant::now();
    let mut fleet =
        Fleet::connect(&server, clock, Version::V2, &(0..connections).map(role).collect::<Vec<_>>())?;
    let connect_s = began.elapsed().as_secs_f64();
    settle();
    let joined = server.usage()?;
    let kernel = process::slab_bytes() as i64 - slab as i64;
    let kernel_buffers = process::tcp_buffer_bytes() as i64 - buffers as i64;

    let own = process::own_cpu_s();
    let database = process::descendants_cpu_s(server.pid);
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        fleet.beat();
        fleet.pump(Duration::from_millis(5), &mut Ignore)?;
    }
    let wall = began.elapsed().as_secs_f64();
    let end = server.usage()?;
    let own = process::own_cpu_s() - own;
    let database = process::descendants_cpu_s(server.pid) - database;
    let live = fleet.live_count();
    drop(fleet);
    settle();
    let left = server.usage()?;
    let cpu = end.cpu_s - joined.cpu_s;
    Ok(Idle {
        connections,
        connect_s,
        rss_before: before.rss,
        rss_joined: joined.rss,
        rss_end: end.rss,
        rss_peak: end.peak,
        rss_left: left.rss,
        kernel,
        kernel_buffers,
        cores: cpu / wall,
        cpu_us_per_connection_s: cpu * 1e6 / wall / connections as f64,
        database_cores: database / wall,
        generator_cores: own / wall,
        live,
    })
}

/// Lets the server finish what the last connections began. There is nothing to wait for: it says nothing.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}

fn print(idle: &Idle) {
    let table = Table::begin(&format!(
        "idle: {} connections, one joined channel each, a heartbeat every {} s",
        idle.connections,
        HEARTBEAT.as_secs()
    ));
    table.row("still connected at the end", &idle.live.to_string());
    table.row("connected and joined in", &format!("{:.2} s", idle.connect_s));
    table.row(
        "server RSS before, joined, at the end, peak, after they left",
        &format!(
            "{}, {}, {}, {}, {}",
            mib(idle.rss_before),
            mib(idle.rss_joined),
            mib(idle.rss_end),
            mib(idle.rss_peak),
            mib(idle.rss_left)
        ),
    );
    table.row("**server memory per connection**", &format!("{:.0} B", idle.bytes_per_connection()));
    table.row(
        "kernel memory per connection, both ends: objects, buffers",
        &format!(
            "{:.0} B, {:.0} B",
            idle.kernel as f64 / idle.connections as f64,
            idle.kernel_buffers as f64 / idle.connections as f64
        ),
    );
    table.row("**server CPU**", &format!("{:.2} % of a core", idle.cores * 100.0));
    table.row("per connection", &format!("{:.2} µs/s", idle.cpu_us_per_connection_s));
    table.row(
        "Postgres, generator",
        &format!("{:.2} %, {:.2} % of a core", idle.database_cores * 100.0, idle.generator_cores * 100.0),
    );
}
