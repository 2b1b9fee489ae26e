//! `tidewire dev`: a private database, keys and the server, from nothing to ready.
//!
//! ```text
//! lock the folder ─▶ keys ─▶ is the port free? ─▶ PostgreSQL ─▶ objects ─▶ server ─▶ say so ─▶ wait
//! ```
//!
//! Owns the order of beginning and end, and the line that scripts read. What fails, fails with a code and
//! advice, and everything begun until then is ended. A first SIGINT or SIGTERM ends in order, within ten
//! seconds; a second one ends at once (the kernel then ends PostgreSQL).

mod banner;
mod database;
mod instance;
pub(crate) mod keys;
mod objects;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tidewire_devdb::ClusterOptions;
use tidewire_server::config::Secret;
use tidewire_server::{ChangeStatus, Server, ServerConfig};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::args::DevArgs;
use crate::output::{self, Failure, Mode, Steps};
use crate::serve::stop_on_signals;
use crate::settings;
use database::{Database, Facts};
use instance::Instance;
use keys::{Keys, TENANT};

/// The change stream is live within milliseconds, or something is wrong and the log says what. Either way
/// the server serves, so we say that we are ready.
const SETTLE_LIMIT: Duration = Duration::from_secs(8);
/// The server's share of the ten seconds in which everything ends.
const SERVER_GRACE: Duration = Duration::from_millis(3_000);

/// The line of JSON. Stable: scripts and test suites read it.
#[derive(Debug, Serialize)]
struct Ready<'a> {
    url: String,
    ws_url: String,
    anon_key: &'a str,
    service_key: &'a str,
    jwt_secret: &'a str,
    db_url: String,
    tenant: String,
    pid: u32,
}

/// Runs until a signal says stop.
pub(crate) async fn run(args: DevArgs, mode: Mode) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let steps = Steps::new(mode);
    let dir =
        std::path::absolute(&args.data_dir).map_err(|error| Failure::system("find the folder", &error))?;
    let instance = Instance::take(&dir)?;
    let keys = Keys::load_or_create(&dir)?;
    let config = config(&args, &keys)?;
    check_port(args.port)?;
    if !dir.join("pg").exists() && !dir.join("postgres-id").exists() {
        steps.begin("first start: making a database in the data folder …");
    }
    let database = Database::start(ClusterOptions::new(&dir));
    let mut start = Start { has_demo: args.demo, mode, dir, keys, instance, steps, stop: stop.clone() };
    let result = start.serve(config, &database).await;
    // Also after a failure: nothing that was begun may stay behind.
    stop.cancel();
    database.stop().await;
    result
}

/// What a start knows and holds.
struct Start {
    has_demo: bool,
    mode: Mode,
    dir: PathBuf,
    keys: Keys,
    instance: Instance,
    steps: Steps,
    stop: CancellationToken,
}

impl Start {
    /// From a database that is starting to a server that has ended.
    async fn serve(&mut self, config: ServerConfig, database: &Database) -> Result<(), Failure> {
        let facts = self.unless_stopped(database.ready()).await??;
        self.steps.done(&format!("PostgreSQL {} on port {}", facts.version, facts.port));
        let applied = objects::apply(&facts.superuser_url, &self.keys, self.has_demo);
        let verb = if self.unless_stopped(applied).await?? { "made" } else { "there" };
        self.steps.done(&format!("roles, schemas auth and realtime, publications: {verb}"));

        let tenant = config.tenant.id.clone();
        let server = Server::start(self.with_logins(config, &facts), self.stop.clone()).await?;
        let ready = self.announce(&server, &facts, tenant).await;
        if ready.is_ok() {
            self.stop.cancelled().await;
        }
        self.stop.cancel();
        if timeout(SERVER_GRACE + Duration::from_millis(500), server.finished()).await.is_err() {
            tracing::warn!("the server did not end in time and is cut off");
        }
        ready
    }

    /// Waits until the change stream has settled, then tells everybody that we are ready.
    async fn announce(&mut self, server: &Server, facts: &Facts, tenant: String) -> Result<(), Failure> {
        let address = server.local_addr();
        let url = format!("http://{address}");
        self.instance.announce(&url);
        match self.unless_stopped(timeout(SETTLE_LIMIT, server.database_settled())).await? {
            Ok(ChangeStatus::Down { code, message }) => {
                tracing::warn!(
                    code,
                    error = message,
                    "the change stream is not there yet; it is tried again"
                );
                self.steps.done("server (without a change stream)");
            }
            Ok(_) => self.steps.done("server, change stream"),
            Err(_) => self.steps.done("server (the change stream takes its time)"),
        }
        let ready = Ready {
            url,
            ws_url: format!("ws://{address}/realtime/v1"),
            anon_key: &self.keys.anon_key,
            service_key: &self.keys.service_key,
            jwt_secret: &self.keys.jwt_secret,
            db_url: facts.superuser_url.clone(),
            tenant,
            pid: std::process::id(),
        };
        match self.mode {
            Mode::Json => output::print_json(&ready),
            _ => output::print(&banner::text(&ready, self.has_demo, &self.dir, self.steps.total())),
        }
        Ok(())
    }

    fn with_logins(&self, mut config: ServerConfig, facts: &Facts) -> ServerConfig {
        if let Some(database) = &mut config.database {
            let url = |user, password| Secret::new(facts.url(user, password));
            database.replication_url = url("tidewire_replication", &self.keys.replication_password);
            database.authenticator_url = url("authenticator", &self.keys.authenticator_password);
            // The owner of everything here, used for the upkeep of `realtime.messages` alone.
            database.maintenance_url = Some(Secret::new(facts.superuser_url.clone()));
        }
        config
    }

    /// A signal during the start is a failure: whoever waits for the line must not wait on.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        self.stop.run_until_cancelled(work).await.ok_or_else(|| {
            Failure::new(
                "Interrupted",
                "stopped before it was ready",
                "start it again; nothing was left behind",
            )
        })
    }
}

/// The server's settings: those of `dev`, then the environment's, then the flags'.
fn config(args: &DevArgs, keys: &Keys) -> Result<ServerConfig, Failure> {
    let mut defaults = format!(
        "pages = true
         [tenant]
         id = '{TENANT}'
         [limits]
         presence_calls = 60       # DESIGN.md §5: the reference's 5 would cut an example off after 15 s
         presence_window_ms = 30_000
         max_joins_per_second = 'unlimited'
         max_events_per_second = 'unlimited'
         max_presence_events_per_second = 'unlimited'
         [timers]
         shutdown_grace_ms = {}
         [metrics]
         without_secret = 'loopback'
         [database]
         replication_url = 'postgres://known@127.0.0.1/later'
         authenticator_url = 'postgres://known@127.0.0.1/later'
        ",
        SERVER_GRACE.as_millis()
    );
    if args.demo {
        defaults += "[demo]\nanon_key = ''\n";
    }
    let mut config = settings::load(&defaults, None, std::env::vars_os())?;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    config.tenant.jwt_secret = Secret::new(&keys.jwt_secret);
    if let Some(demo) = &mut config.demo {
        demo.anon_key.clone_from(&keys.anon_key);
    }
    if let Some(shards) = args.shards {
        config.shards = shards;
    }
    config.validate().map_err(tidewire_server::StartError::Config)?;
    Ok(config)
}

/// Says at once, before PostgreSQL is started, that the server will not get its port.
fn check_port(port: u16) -> Result<(), Failure> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Failure::port_in_use(port)),
        Err(source) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            Err(tidewire_server::StartError::Listen { address, source }.into())
        }
    }
}

/// The secret of a data folder, for `tidewire token`.
pub(crate) fn secret_of(dir: &Path) -> Result<Option<String>, Failure> {
    Ok(Keys::load(dir)?.map(|keys| keys.jwt_secret))
}
