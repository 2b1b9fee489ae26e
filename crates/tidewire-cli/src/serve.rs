//! `tidewire serve` and `tidewire config`: a server for a database that somebody else keeps.

use tidewire_server::{Server, ServerConfig, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{ConfigArgs, ConfigVerb, ServeArgs, SourceArgs};
use crate::output::{self, Failure};
use crate::settings;

/// Every setting with its default; `config default` prints it, and a test keeps it complete.
const DEFAULT_FILE: &str = include_str!("serve/default.toml");

/// Secrets that are printed in other people's documentation. Whoever knows them can sign any token.
const PUBLISHED_SECRETS: &[&str] = &[
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "your-super-secret-jwt-token-with-at-least-32-characters-long",
];

/// Reads and checks the configuration.
pub(crate) fn load(args: &ServeArgs) -> Result<ServerConfig, Failure> {
    let mut config = settings::load("", args.source.config.as_deref(), std::env::vars_os())?;
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(shards) = args.shards {
        config.shards = shards;
    }
    config.validate().map_err(StartError::Config)?;
    Ok(config)
}

/// Serves until a signal says stop.
pub(crate) async fn run(config: ServerConfig) -> Result<(), Failure> {
    if PUBLISHED_SECRETS.contains(&config.tenant.jwt_secret.expose()) {
        tracing::warn!(
            code = "PublishedSecret",
            "tenant.jwt_secret is a published example: anybody can sign tokens; make one with `openssl rand -hex 32`"
        );
    }
    if config.database.is_none() {
        tracing::info!("no database is configured: broadcast and presence only");
    }
    let stop = stop_on_signals()?;
    let server = Server::start(config, stop.clone()).await?;
    tracing::info!(address = %server.local_addr(), "serving");
    server.finished().await;
    tracing::info!("ended");
    Ok(())
}

/// `tidewire config …`
pub(crate) fn config(args: &ConfigArgs) -> Result<(), Failure> {
    match &args.verb {
        ConfigVerb::Default => output::print(DEFAULT_FILE.trim_end()),
        ConfigVerb::Check(SourceArgs { config }) => {
            let config = settings::load("", config.as_deref(), std::env::vars_os())?;
            config.validate().map_err(StartError::Config)?;
            output::print("the configuration is valid");
        }
    }
    Ok(())
}

/// A token that the first SIGINT, SIGTERM or SIGHUP cancels. The second one ends the process at once.
pub(crate) fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::system("listen for signals", &error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            if token.is_cancelled() {
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            }
            tracing::info!("stopping");
            token.cancel();
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_says_what_the_defaults_are() {
        let written = settings::load(DEFAULT_FILE, None, []).unwrap();
        let nothing = settings::load("", None, []).unwrap();
        assert_eq!(format!("{written:#?}"), format!("{nothing:#?}"));
    }

    /// An unknown setting's refusal lists the known ones; each must stand in the file, if only as a comment.
    #[test]
    fn the_default_file_knows_every_setting() {
        for section in ["", "tenant", "database", "limits", "timers", "metrics", "demo"] {
            let text = if section.is_empty() { "zz = 1".to_owned() } else { format!("[{section}]\nzz = 1") };
            let refusal = format!("{:?}", settings::load(&text, None, []).unwrap_err());
            let known: Vec<&str> = refusal.split('`').skip(3).step_by(2).collect();
            let known: Vec<&str> =
                known.into_iter().filter(|name| *name != "tidewire config default").collect();
            assert!(!known.is_empty(), "{refusal}");
            for name in known {
                let is_there = DEFAULT_FILE.lines().any(|line| {
                    let line = line.trim_start_matches("# ");
                    line.starts_with(&format!("{name} =")) || line.starts_with(&format!("[{name}]"))
                });
                assert!(is_there, "{section}.{name} is missing in serve/default.toml");
            }
        }
    }
}
