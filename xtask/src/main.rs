//! Developer tasks behind `./x`. No dependencies: on a fresh machine this is the first thing that is built.

mod codegen;
mod counts;
mod postgres;
mod run;
mod steps;
mod system;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
./x run [FLAGS]    build and start everything: a private PostgreSQL, keys, the server, a page to open.
                   Installs PostgreSQL's programs when they are missing. FLAGS go to `tidewire dev`:
                   --port 0 for a free port, --data-dir DIR for another database; see `./x run --help`
./x test [STEP…]   everything that continuous integration runs; with names, only those steps
./x bench [FLAGS]  measure; see `./x bench --help`
./x fmt            format the code
./x codegen        write docs/generated from the code
./x setup          only install what `./x run` needs
./x help           this text

The first `./x run` takes minutes (it builds), the second less than two seconds.
Settings: TIDEWIRE_PG_BIN names a folder with initdb and postgres; TIDEWIRE_CACHE the folder for downloads.";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_else(|| "help".into());
    let rest: Vec<String> = args.collect();
    let result = match verb.as_str() {
        "run" => run::run(&rest),
        "setup" => postgres::ensure().map(|found| steps::say(&format!("PostgreSQL {found} is there"))),
        "test" => return test::test(&rest),
        "bench" => run::bench(&rest),
        "fmt" => run::format(),
        "codegen" => codegen::codegen(),
        "help" | "--help" | "-h" => {
            steps::say(HELP);
            Ok(())
        }
        other => Err(system::Trouble::new(
            format!("there is no verb {other:?}"),
            "run `./x help` to see the verbs",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}
