//! A bounded pool of sessions of the authenticator.
//!
//! Owns opening, checking, lending and discarding. A borrowed session goes back only when its borrower says that
//! nothing went wrong ([`Lease::give_back`]); dropped in any other way, by an error or a cancelled future, it is
//! closed, because nobody knows in which state it is. Waiting for a session is the policy when all are lent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls, Statement};

use super::{AccessError, AuthenticatorConfig};

/// Statements kept prepared per session. More than the policies of a large project; beyond it we start afresh,
/// which costs one parse for each statement in use.
const STATEMENTS_MAX: usize = 512;

/// How long a text that could not be parsed is not tried again. Shorter asks Postgres in vain for each batch; longer
/// delays the effect of the GRANT that makes it parse.
const REFUSAL_KEPT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Pool {
    config: AuthenticatorConfig,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Session>>>,
}

/// A logged-in connection with its settings made and its statements prepared.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    statements: HashMap<String, Statement>,
    /// (role, text) that could not be parsed, why, and when that was found.
    refusals: HashMap<(String, String), (String, Instant)>,
    driver: JoinHandle<()>,
    is_sound: bool,
}

/// A borrowed session.
#[derive(Debug)]
pub(crate) struct Lease {
    session: Option<Session>,
    idle: Arc<Mutex<Vec<Session>>>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(config: AuthenticatorConfig) -> Self {
        let size = config.pool_size.max(1);
        Self { config, permits: Arc::new(Semaphore::new(size)), idle: Arc::default() }
    }

    pub(crate) fn config(&self) -> &AuthenticatorConfig {
        &self.config
    }

    pub(crate) async fn lease(&self) -> Result<Lease, AccessError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        self.lend(permit.expect("invariant: the semaphore is never closed")).await
    }

    /// Like [`lease`](Self::lease); `None` if all sessions are lent for longer than `patience`.
    pub(crate) async fn lease_within(&self, patience: Duration) -> Result<Option<Lease>, AccessError> {
        let Ok(permit) = timeout(patience, Arc::clone(&self.permits).acquire_owned()).await else {
            return Ok(None);
        };
        self.lend(permit.expect("invariant: the semaphore is never closed")).await.map(Some)
    }

    async fn lend(&self, permit: OwnedSemaphorePermit) -> Result<Lease, AccessError> {
        let idle = loop {
            let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match waiting {
                // Postgres may have been restarted since.
                Some(session) if session.client.is_closed() => drop(session),
                other => break other,
            }
        };
        let session = match idle {
            Some(session) => session,
            None => Session::open(&self.config).await?,
        };
        Ok(Lease { session: Some(session), idle: Arc::clone(&self.idle), _permit: permit })
    }
}

impl Lease {
    pub(crate) fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("invariant: a lease holds its session until it is given back")
    }

    /// The session is clean: outside a transaction, no error seen.
    pub(crate) fn give_back(mut self) {
        if let Some(session) = self.session.take() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            session.is_sound = false;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A sound session says goodbye by itself once its client is gone. Another may have work under way in
        // Postgres, which ends with the socket.
        if !self.is_sound {
            self.driver.abort();
        }
    }
}

impl Session {
    async fn open(config: &AuthenticatorConfig) -> Result<Self, AccessError> {
        let (client, connection) = config.postgres.connect(NoTls).await.map_err(AccessError::Connect)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "authenticator_connection_ended");
            }
        });
        let session =
            Self { client, statements: HashMap::new(), refusals: HashMap::new(), driver, is_sound: true };
        session.refuse_unsafe_login().await?;
        session.settle(config).await.map_err(AccessError::Query)?;
        Ok(session)
    }

    /// A policy function can undo `SET ROLE`; what it falls back to must have nothing. Spec: DESIGN.md §10.
    async fn refuse_unsafe_login(&self) -> Result<(), AccessError> {
        // Before Postgres 16 there is no `inherit_option`, and the JSON has no such key.
        let row = self
            .client
            .query_one(
                "select rolname::text, rolsuper, rolreplication, rolbypassrls, rolinherit, exists (
                     select from pg_catalog.pg_auth_members m
                     where m.member = r.oid and pg_catalog.to_jsonb(m) ->> 'inherit_option' = 'true')
                 from pg_catalog.pg_roles r where rolname = session_user",
                &[],
            )
            .await
            .map_err(AccessError::Query)?;
        let login: String = row.try_get(0).map_err(AccessError::Query)?;
        let problems = [
            (1, "it is a superuser", "nosuperuser"),
            (2, "it may replicate", "noreplication"),
            (3, "it bypasses row-level security", "nobypassrls"),
            (4, "it inherits the rights of its roles", "noinherit"),
            (5, "it inherits the rights of a role granted to it", ""),
        ];
        for (index, problem, attribute) in problems {
            if row.try_get::<_, bool>(index).map_err(AccessError::Query)? {
                let name = super::sql::identifier(&login);
                let advice = if attribute.is_empty() {
                    format!("grant each role again: grant <role> to {name} with inherit false, set true")
                } else {
                    format!("alter role {name} {attribute}, or log in as another role made for this")
                };
                return Err(AccessError::AuthenticatorUnsafe { login, problem, advice });
            }
        }
        Ok(())
    }

    /// Settings that hold for the life of the session. What policies could depend on (time zone, date style) stays
    /// as the database has it, because that is what a query of the subscriber would see.
    async fn settle(&self, config: &AuthenticatorConfig) -> Result<(), tokio_postgres::Error> {
        // 0 would mean "no timeout".
        let timeout_ms = config.statement_timeout.as_millis().clamp(1, 3_600_000);
        self.client
            .batch_execute(&format!(
                "set default_transaction_read_only = on;
                 set statement_timeout = {timeout_ms};
                 set lock_timeout = {timeout_ms};
                 set idle_in_transaction_session_timeout = '60s';
                 set row_security = on;
                 set standard_conforming_strings = on;
                 set jit = off;
                 set max_parallel_workers_per_gather = 0;
                 set client_min_messages = error;
                 -- A generic plan would freeze the value of a function that says IMMUTABLE and reads the claims:
                 -- the first subscriber's id would then stand for everybody's.
                 set plan_cache_mode = force_custom_plan"
            ))
            .await?;
        self.client.execute("select set_config('search_path', $1, false)", &[&config.search_path]).await?;
        Ok(())
    }

    /// The prepared statement for this text. It is parsed as whoever is the current role now.
    pub(crate) async fn prepare(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    pub(crate) fn is_prepared(&self, sql: &str) -> bool {
        self.statements.contains_key(sql)
    }

    /// Why this role could not have this text parsed, if that is known and recent.
    pub(crate) fn refusal(&self, role: &str, sql: &str) -> Option<String> {
        // Built for each lookup: this path is for policies that are slow anyway.
        let (why, since) = self.refusals.get(&(role.to_owned(), sql.to_owned()))?;
        (since.elapsed() < REFUSAL_KEPT).then(|| why.clone())
    }

    pub(crate) fn refuse(&mut self, role: &str, sql: &str, why: &str) {
        if self.refusals.len() >= STATEMENTS_MAX {
            self.refusals.clear();
        }
        self.refusals.insert((role.to_owned(), sql.to_owned()), (why.to_owned(), Instant::now()));
    }
}
