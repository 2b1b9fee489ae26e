//! The command line: what can be measured, and the help that teaches how.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Measure a Tidewire server: open-loop load, verified deliveries, processor time and memory beside each
/// latency, and the raw-socket ceiling of the same machine in the same run.
#[derive(Debug, Parser)]
#[command(name = "tidewire-bench", max_term_width = 100)]
#[command(
    after_help = "Each subcommand starts its own `tidewire dev --json` in a temporary folder and stops it.
Build first:  cargo build --release --bin tidewire -p tidewire-bench
Then:         target/release/tidewire-bench fanout
What the figures mean and how they deceive: bench/README.md"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Broadcast: latency and processor time at a rate, or the most that is sustained
    Fanout(FanoutArgs),
    /// Memory and processor time of connections that only exist
    Idle(IdleArgs),
    /// Row changes: from issuing the INSERT to every client
    Changes(ChangesArgs),
    /// What clients that stop reading do to the others
    SlowReaders(SlowArgs),
    /// Joins of public channels per second, and how long one takes
    Joins(JoinsArgs),
    /// Time from start to serving, idle memory, size of the binary
    Start(StartArgs),
    /// The same frames written to raw sockets: what no server on this machine can beat
    Ceiling(CeilingArgs),
    /// The whole set with short runs, as Markdown
    Report(ReportArgs),
}

/// Which server is measured.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Binary to start [default: `tidewire` beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
    /// Data folder to keep and use again [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Measure a server that runs already: its ws_url
    #[arg(long, value_name = "URL", requires_all = ["key", "pid"])]
    pub(crate) ws_url: Option<String>,
    /// Its anon key
    #[arg(long, value_name = "JWT", requires = "ws_url")]
    pub(crate) key: Option<String>,
    /// Its process id
    #[arg(long, requires = "ws_url")]
    pub(crate) pid: Option<u32>,
    /// Its secret; needed for `changes --rls`
    #[arg(long, value_name = "SECRET", requires = "ws_url")]
    pub(crate) jwt_secret: Option<String>,
    /// Its database; needed for `changes`
    #[arg(long, value_name = "URL", requires = "ws_url")]
    pub(crate) db_url: Option<String>,
}

/// How many topics, subscribers and messages.
#[derive(Debug, Clone, Copy, ClapArgs)]
#[command(next_help_heading = "Shape")]
pub(crate) struct ShapeArgs {
    /// Topics; each has one publisher of its own
    #[arg(long, default_value_t = 1)]
    pub(crate) topics: usize,
    /// Subscribers in all, spread evenly over the topics
    #[arg(long, default_value_t = 1000)]
    pub(crate) subscribers: usize,
    /// Messages per second in all; times subscribers per topic, that is the deliveries per second
    #[arg(long, default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// Bytes of each message's payload (the user's JSON object)
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Seconds of sending
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// The sender wakes at most this often, in microseconds; what falls due in between is sent together, and its
    /// latency counts from when it fell due
    #[arg(long, value_name = "MICROS", default_value_t = 50)]
    pub(crate) tick: u64,
    /// Seconds at the start whose latency does not count; their deliveries are verified all the same
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warmup: f64,
}

/// Which frames.
#[derive(Debug, Clone, Copy, ClapArgs)]
#[command(next_help_heading = "Frames")]
pub(crate) struct FrameArgs {
    /// Serializer of the subscribers
    #[arg(long, value_enum, default_value_t = Serializer::V2)]
    pub(crate) serializer: Serializer,
    /// How messages are published: as a text push, or as a binary user broadcast (kind 3, JSON)
    #[arg(long, value_enum, default_value_t = Publish::Text)]
    pub(crate) publish: Publish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Serializer {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Publish {
    Text,
    Binary,
}

/// Broadcast: latency and processor time at a rate, or the most that is sustained.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "Examples:
  tidewire-bench fanout                                         1 topic × 1,000, 100 k deliveries/s
  tidewire-bench fanout --topics 100 --rate 10000               100 topics × 10, 100 k deliveries/s
  tidewire-bench fanout --search --seconds 4                    the most that is sustained
  tidewire-bench fanout --publish binary --serializer v2

`sustained` means: p99 below 250 ms, at least 99.9 % delivered, nothing out of order, every message sent.
Latency counts from the moment a message should have been sent, so a sender that falls behind counts too.")]
pub(crate) struct FanoutArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    #[command(flatten)]
    pub(crate) frames: FrameArgs,
    /// Look for the highest sustained rate, beginning at --rate
    #[arg(long)]
    pub(crate) search: bool,
    /// Equal runs; the median is given with its spread
    #[arg(long, default_value_t = 1)]
    pub(crate) runs: usize,
    /// Do not measure the raw-socket ceiling beside it
    #[arg(long)]
    pub(crate) no_ceiling: bool,
    /// Give up a run when the server's memory grows beyond this
    #[arg(long, value_name = "MIB", default_value_t = 6144)]
    pub(crate) memory_limit: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Memory and processor time of connections that only exist.
///
/// Each has one joined channel and sends a heartbeat every 25 s, spread evenly. Memory is the growth of the
/// server's resident set; what the kernel holds for the sockets is given apart.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct IdleArgs {
    /// Connections; each end needs a descriptor, so the limit of open files bounds them
    #[arg(long, default_value_t = 5000)]
    pub(crate) connections: usize,
    /// Seconds of watching; a whole heartbeat period is 25
    #[arg(long, default_value_t = 25.0)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Row changes: from issuing the INSERT to every client.
///
/// Makes the table public.tidewire_bench, adds it to the publication, and removes it afterwards. Postgres keeps
/// its own fsync and synchronous_commit, which are printed.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "Examples:
  tidewire-bench changes                            100 subscribers see all of 100 changes/s
  tidewire-bench changes --rls --subscribers 1000   each sees the rows it owns, by policy")]
pub(crate) struct ChangesArgs {
    /// Subscribers of the table
    #[arg(long, default_value_t = 100)]
    pub(crate) subscribers: usize,
    /// INSERTs per second, each its own transaction
    #[arg(long, default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// Seconds of inserting
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Bytes of the row's text column
    #[arg(long, default_value_t = 256)]
    pub(crate) bytes: usize,
    /// Database connections that insert
    #[arg(long, default_value_t = 4)]
    pub(crate) writers: usize,
    /// Row-level security: every subscriber has its own claims and may see its own rows only
    #[arg(long)]
    pub(crate) rls: bool,
    /// Lone changes after a pause, to see what waking up costs
    #[arg(long, default_value_t = 5)]
    pub(crate) lone: usize,
    /// Seconds of each pause
    #[arg(long, default_value_t = 2.0)]
    pub(crate) pause: f64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What clients that stop reading do to the others.
///
/// Three equal runs: nobody stops, nobody stops again (their difference is the noise), and some stop. Those must
/// be closed with 4008 and must cost a bounded amount of memory.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// How many of a hundred subscribers stop reading
    #[arg(long, default_value_t = 1.0)]
    pub(crate) percent: f64,
    /// Bound of an outbox in a server that we start [default: the server's own]
    #[arg(long, value_name = "KIB")]
    pub(crate) outbox: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Joins of public channels per second, and how long one takes.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct JoinsArgs {
    /// Connections that join
    #[arg(long, default_value_t = 100)]
    pub(crate) connections: usize,
    /// Different topics that each connection joins; a server allows 100 by default
    #[arg(long, default_value_t = 90)]
    pub(crate) channels: usize,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Time from start to serving, idle memory, size of the binary.
///
/// The first start makes the database and does not count.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct StartArgs {
    /// Starts that count
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The same frames written to raw sockets: what no server on this machine can beat.
///
/// One thread writes to N loopback sockets, another reads and verifies them with the code that `fanout` uses.
/// `direct` is one write per delivery; `coalesced` is one vectored write per 16 frames of a socket.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct CeilingArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
}

/// The whole set with short runs, as Markdown.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "Example:
  tidewire-bench report > bench/reports/today.md")]
pub(crate) struct ReportArgs {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Equal runs of each; medians are given
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: usize,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
