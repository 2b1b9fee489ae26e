//! The database's side: the table, and the writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::Shape;
use crate::clock::Clock;
use crate::failure::{Context as _, Failure};
use crate::stamp::{self, Stamp};
use crate::tally::{Latency, latency};

/// In schema `public`, removed afterwards.
pub(crate) const TABLE: &str = "tidewire_bench";

/// The user whose number this is.
pub(crate) fn owner(number: u16) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// What follows the mark in the text column.
pub(super) fn padding(bytes: usize) -> String {
    (0..bytes.saturating_sub(stamp::LEN)).map(|position| char::from(b'a' + (position % 26) as u8)).collect()
}

/// What the writers do.
pub(super) struct Load {
    pub(super) url: String,
    pub(super) shape: Shape,
    pub(super) padding: String,
    pub(super) clock: Clock,
    /// Set to the clock when the lone changes begin.
    pub(super) lone_from: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
}

/// What they did.
pub(super) struct Inserted {
    pub(super) round_trip: Latency,
    /// The same for the lone changes.
    pub(super) lone_round_trip: Latency,
    pub(super) changes: u64,
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

async fn connect(url: &str, tasks: &mut JoinSet<()>) -> Result<Client, Failure> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("cannot connect to the database")?;
    tasks.spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// Makes the table; says which Postgres it is and how durable.
pub(super) fn prepare(url: &str, rls: bool) -> Result<String, Failure> {
    let policy = if rls {
        format!(
            "alter table public.{TABLE} enable row level security;
             create policy own on public.{TABLE} for select to authenticated using (owner = (select auth.uid()));"
        )
    } else {
        String::new()
    };
    let script = format!(
        "drop table if exists public.{TABLE};
         create table public.{TABLE} (
           id bigint primary key generated always as identity, owner uuid not null, note text not null);
         grant select on public.{TABLE} to anon, authenticated, service_role;
         {policy}
         alter publication supabase_realtime add table public.{TABLE};"
    );
    runtime()?.block_on(async {
        let mut tasks = JoinSet::new();
        let client = connect(url, &mut tasks).await?;
        client.batch_execute(&script).await.context("cannot make the table")?;
        let row = client
            .query_one(
                "select current_setting('server_version'), current_setting('fsync'),
                        current_setting('synchronous_commit')",
                &[],
            )
            .await
            .context("cannot read the settings")?;
        Ok(format!(
            "{}, fsync {}, synchronous_commit {}",
            row.get::<_, &str>(0),
            row.get::<_, &str>(1),
            row.get::<_, &str>(2)
        ))
    })
}

/// Removes the table; a failure is of no consequence.
pub(super) fn clean_up(url: &str) {
    let Ok(runtime) = runtime() else { return };
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        if let Ok(client) = connect(url, &mut tasks).await {
            let _ = client.batch_execute(&format!("drop table if exists public.{TABLE}")).await;
        }
    });
}

/// The paced load, then the lone changes. Blocks until all INSERTs are answered.
pub(super) fn insert(load: &Load) -> Result<Inserted, Failure> {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
    runtime()?.block_on(insert_all(load))
}

struct Writers {
    clients: Vec<(Arc<Client>, tokio_postgres::Statement)>,
    numbers: Vec<u32>,
    answers: JoinSet<Result<u64, tokio_postgres::Error>>,
}

impl Writers {
    /// Issues one INSERT; the answer comes into `answers`.
    fn issue(&mut self, load: &Load, k: u64) {
        let streams = self.numbers.len() as u64;
        let by = (k % streams) as u16;
        let writer = usize::from(by) % self.clients.len();
        let (client, statement) = self.clients[writer].clone();
        let no = self.numbers[usize::from(by)];
        self.numbers[usize::from(by)] += 1;
        let clock = load.clock;
        let issued = clock.now();
        let mut mark = [0; stamp::LEN];
        Stamp { at: issued, by, no }.write(&mut mark);
        let note = format!("{}{}", String::from_utf8_lossy(&mark), load.padding);
        self.answers.spawn(async move {
            client.execute(&statement, &[&owner(by), &note]).await?;
            Ok((clock.now() - issued) / 1000)
        });
    }
}

async fn insert_all(load: &Load) -> Result<Inserted, Failure> {
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..load.shape.writers {
        let client = connect(&load.url, &mut tasks).await?;
        let statement = client
            .prepare(&format!("insert into public.{TABLE} (owner, note) values (($1::text)::uuid, $2)"))
            .await
            .context("cannot prepare the INSERT")?;
        clients.push((Arc::new(client), statement));
    }
    // With RLS a stream is an owner, and a writer serves every so-many-th owner; else a stream is a writer.
    let streams = if load.shape.rls { load.shape.subscribers } else { load.shape.writers };
    let mut writers = Writers { clients, numbers: vec![0; streams], answers: JoinSet::new() };
    let mut round_trip = latency();
    let total = (load.shape.rate * load.shape.seconds).round() as u64;
    let start = tokio::time::Instant::now() + Duration::from_millis(100);
    let mut k = 0;
    while k < total && !load.stop.load(Ordering::Relaxed) {
        let due = start + Duration::from_secs_f64(k as f64 / load.shape.rate);
        tokio::select! {
            biased;
            Some(answer) = writers.answers.join_next() => note(answer, &mut round_trip)?,
            () = tokio::time::sleep_until(due) => {
                writers.issue(load, k);
                k += 1;
            }
        }
    }
    while let Some(answer) = writers.answers.join_next().await {
        note(answer, &mut round_trip)?;
    }
    let mut lone_round_trip = latency();
    for _ in 0..load.shape.lone {
        // The last deliveries of the load are under way for a moment: they are not lone ones.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if load.lone_from.load(Ordering::Relaxed) == u64::MAX {
            load.lone_from.store(load.clock.now(), Ordering::Release);
        }
        tokio::time::sleep(Duration::from_secs_f64(load.shape.pause)).await;
        writers.issue(load, k);
        k += 1;
        while let Some(answer) = writers.answers.join_next().await {
            note(answer, &mut lone_round_trip)?;
        }
    }
    if load.shape.lone == 0 {
        load.lone_from.store(load.clock.now(), Ordering::Release);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(Inserted { round_trip, lone_round_trip, changes: k })
}

fn note(
    answer: Result<Result<u64, tokio_postgres::Error>, tokio::task::JoinError>,
    round_trip: &mut Latency,
) -> Result<(), Failure> {
    let micros = answer.context("an INSERT was not finished")?.context("an INSERT failed")?;
    round_trip.saturating_record(micros.max(1));
    Ok(())
}
