//! The private PostgreSQL of `dev`, behind a thread of its own.
//!
//! Starting and stopping a cluster block, so one thread owns it from start to stop; the rest holds a handle.
//! While it runs, a server that ended by itself (killed, out of memory) is started again: the change stream
//! reconnects by its own means.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tidewire_devdb::{Cluster, ClusterOptions, DevDbError};
use tokio::sync::oneshot;

use crate::output::{Failure, chain};

/// How soon a server that ended by itself is noticed.
const WATCH: Duration = Duration::from_millis(250);

/// What the rest needs to know about a started cluster.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) superuser_url: String,
    pub(super) version: String,
    pub(super) port: u16,
}

impl Facts {
    /// The URL of a login whose name and password need no escaping.
    pub(super) fn url(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", self.port)
    }
}

#[derive(Debug)]
pub(super) struct Database {
    started: Mutex<Option<oneshot::Receiver<Result<Facts, DevDbError>>>>,
    /// Dropping it is the request to stop.
    keep: Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Database {
    /// Begins to start a cluster.
    pub(super) fn start(options: ClusterOptions) -> Self {
        let (tell_started, started) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        let (keep, kept) = channel();
        let thread = std::thread::Builder::new().name("database".into()).spawn(move || {
            match Cluster::start(options) {
                Ok(cluster) => {
                    let facts = Facts {
                        superuser_url: cluster.superuser_url(),
                        version: cluster.version().to_owned(),
                        port: cluster.port(),
                    };
                    let _ = tell_started.send(Ok(facts));
                    watch(cluster, &kept);
                }
                Err(error) => {
                    let _ = tell_started.send(Err(error));
                }
            }
            let _ = tell_ended.send(());
        });
        if let Err(error) = thread {
            // The receivers below learn of it: both senders went with the closure.
            tracing::error!(%error, "cannot start the thread of the database");
        }
        Self { started: Mutex::new(Some(started)), keep, ended }
    }

    /// Waits until the cluster accepts connections. The answer is given once.
    pub(super) async fn ready(&self) -> Result<Facts, Failure> {
        let started = self.started.lock().ok().and_then(|mut started| started.take());
        let gone = || Failure::new("SystemError", "the database's thread ended", "look at the log above");
        Ok(started.ok_or_else(gone)?.await.map_err(|_| gone())??)
    }

    /// Stops the cluster, also one that is still starting.
    pub(super) async fn stop(self) {
        drop(self.keep);
        let _ = self.ended.await;
    }
}

fn watch(mut cluster: Cluster, kept: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = kept.recv_timeout(WATCH) {
        if cluster.pid().is_some() {
            continue;
        }
        tracing::warn!(
            said = cluster.log_tail().lines().last().unwrap_or_default(),
            "postgres ended, starting it again"
        );
        match cluster.resume() {
            Ok(()) => tracing::info!("postgres runs again"),
            Err(error) => tracing::error!(
                code = error.code(),
                error = chain(&error),
                advice = error.advice(),
                "postgres does not start"
            ),
        }
    }
    cluster.stop();
}
