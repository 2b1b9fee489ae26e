//! The command line: what can be said, and the help that teaches it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Realtime for Postgres: row changes, broadcast and presence, for the clients you already use.
#[derive(Debug, Parser)]
#[command(name = "tidewire", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Begin with `tidewire dev --demo`, then open the page it prints.")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Dev(DevArgs),
    Serve(ServeArgs),
    Config(ConfigArgs),
    Token(TokenArgs),
}

/// Start everything for development: a private PostgreSQL, keys, and the server.
///
/// The database, its data and the keys live in the data folder and stay there between runs. Ctrl-C ends
/// everything. Nothing outside the folder is touched; nothing listens beyond this machine.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  tidewire dev --demo                  with a table to play with on the page
  tidewire dev --port 0                on any free port
  tidewire dev --json --port 0         for scripts: one line of JSON when ready
  tidewire dev --data-dir /tmp/try     with another database and other keys

The line of JSON:
  {\"url\",\"ws_url\",\"anon_key\",\"service_key\",\"jwt_secret\",\"db_url\",\"tenant\",\"pid\"}
or, with a non-zero exit code:
  {\"error\":{\"code\",\"message\",\"advice\"}}

Settings of `serve` can be given as environment variables here too, for example
  TIDEWIRE__LIMITS__PRESENCE_CALLS=5 tidewire dev")]
pub(crate) struct DevArgs {
    /// Print one line of JSON on standard output when ready, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
    /// Port to listen on, 127.0.0.1 only; 0 picks a free one
    #[arg(long, short, default_value_t = 4000)]
    pub(crate) port: u16,
    /// Folder for the database and the keys
    #[arg(long, short, value_name = "DIR", default_value = ".tidewire")]
    pub(crate) data_dir: PathBuf,
    /// Add a table to play with (public.demo_notes) and show it on the page
    #[arg(long)]
    pub(crate) demo: bool,
    /// Event loops that own connections; 0 is one per core
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<usize>,
}

/// Serve a database of your own.
///
/// Settings come from the file, then from environment variables TIDEWIRE__SECTION__KEY, then from flags;
/// the later wins. A setting that does not exist is an error, wherever it stands.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  tidewire config default > tidewire.toml
  tidewire config check --config tidewire.toml
  tidewire serve --config tidewire.toml --listen 0.0.0.0:4000
  TIDEWIRE__TENANT__JWT_SECRET=… TIDEWIRE__DATABASE__REPLICATION_URL=… \\
  TIDEWIRE__DATABASE__AUTHENTICATOR_URL=… tidewire serve")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Address to listen on, for example 0.0.0.0:4000
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Event loops that own connections; 0 is one per core
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<usize>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SourceArgs {
    /// Configuration file (TOML)
    #[arg(long, short, value_name = "FILE", env = "TIDEWIRE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// Look at the configuration of `serve`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say everything that is wrong with the file and the environment
    Check(SourceArgs),
    /// Print a configuration file with every setting and its default
    Default,
}

/// Make a token, for example for a signed-in user.
///
/// It is signed (HS256) with the secret in --secret-file, in the environment variable TIDEWIRE_JWT_SECRET, or
/// of the data folder of `tidewire dev`, whichever is given first.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  tidewire token --sub 6f9a1c1e-2f2c-4f0e-9b8f-3f6f6f1d2a10
  tidewire token --role authenticated --sub alice --email a@example.com --expires 15m
  tidewire token --role anon --claim room='\"lobby\"' --claim level=3")]
pub(crate) struct TokenArgs {
    /// The database role it speaks for
    #[arg(long, default_value = "authenticated")]
    pub(crate) role: String,
    /// The user's id; policies read it as auth.uid(), which must be a UUID
    #[arg(long)]
    pub(crate) sub: Option<String>,
    /// The user's e-mail address
    #[arg(long)]
    pub(crate) email: Option<String>,
    /// A further claim; the value is JSON, or else text
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) claim: Vec<String>,
    /// How long it is valid: 90s, 15m, 1h, 7d, 10y
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// File that holds the secret
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Data folder of `tidewire dev` that holds the secret
    #[arg(long, short, value_name = "DIR", default_value = ".tidewire")]
    pub(crate) data_dir: PathBuf,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or("a unit is missing: s, m, h, d or y")?;
    let (count, unit) = text.split_at(split);
    let count: u64 = count.parse().map_err(|_| "it begins with a number: 1h".to_owned())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "y" => 31_557_600,
        _ => return Err("the unit is one of s, m, h, d, y".into()),
    };
    // Beyond a thousand years, dates stop being useful.
    match count.checked_mul(seconds) {
        Some(total) if total > 0 && total <= 31_557_600_000 => Ok(Duration::from_secs(total)),
        _ => Err("it must be more than nothing and less than a thousand years".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit_and_an_amount() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "1", "h", "0s", "1w", "-1h", "99999999999999999999y", "1001y", "1 h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
