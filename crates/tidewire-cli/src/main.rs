//! The `tidewire` command: parse, load, run, exit code. Everything else is in the rooms beside.

#![forbid(unsafe_code)]

mod args;
mod dev;
mod output;
mod serve;
mod settings;
mod token;

use std::process::ExitCode;

use args::{Args, Verb};
use clap::Parser;
use output::{Failure, Mode};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let mode = match &args.verb {
        Verb::Dev(dev) if dev.json => Mode::Json,
        Verb::Dev(_) => Mode::Human,
        _ => Mode::Plain,
    };
    output::start_logging(mode);
    let result = match args.verb {
        Verb::Dev(dev) => on_runtime(dev::run(dev, mode)),
        Verb::Serve(serve) => serve::load(&serve).and_then(|config| on_runtime(serve::run(config))),
        Verb::Config(config) => serve::config(&config),
        Verb::Token(token) => token::run(&token),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(mode);
            ExitCode::FAILURE
        }
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Failure::system("start the runtime", &source))?;
    let result = runtime.block_on(work);
    // Whatever had to end in order has ended; what is left may not hold up the exit.
    runtime.shutdown_background();
    result
}

/// Help and version are answers; anything else is a mistake, told to scripts the way they asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        Failure::usage(error).report(Mode::Json);
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
