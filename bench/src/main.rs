//! The project's load tool: an open-loop generator, and the raw-socket ceiling of the machine it runs on.
//!
//! It owns clients and clocks. It never looks inside the server: what it knows of it are its sockets, its line
//! of JSON and its files in `/proc`. Everything that is delivered is verified (count, order, content), and
//! latency counts from the moment a message *should* have been sent.
//!
//! It fails with one sentence and a non-zero exit code. A run that lost messages is not a failure of the tool:
//! the loss is part of its result.
//!
//! | room | owns |
//! | --- | --- |
//! | [`server`] | starting, finding and stopping the server under test |
//! | [`fleet`] | many WebSocket clients on one thread |
//! | [`publish`] | the open-loop sender |
//! | [`tally`] | verification and latency |
//! | [`process`], [`machine`] | what the kernel knows of processes and of the machine |
//! | `fanout`, `idle`, `changes`, `slow`, `joins`, `start`, `ceiling`, `report` | one subcommand each |
#![forbid(unsafe_code)]

mod args;
mod ceiling;
mod changes;
mod clock;
mod failure;
mod fanout;
mod fleet;
mod idle;
mod joins;
mod machine;
mod output;
mod process;
mod publish;
mod report;
mod server;
mod slow;
mod stamp;
mod start;
mod tally;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};
use failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    let result = process::raise_descriptor_limit().and_then(|()| run(args.verb));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&format!("tidewire-bench: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Fanout(args) => fanout::run(&args),
        Verb::Idle(args) => idle::run(&args),
        Verb::Changes(args) => changes::run(&args),
        Verb::SlowReaders(args) => slow::run(&args),
        Verb::Joins(args) => joins::run(&args),
        Verb::Start(args) => start::run(&args),
        Verb::Ceiling(args) => ceiling::run(&args),
        Verb::Report(args) => report::run(&args),
    }
}
