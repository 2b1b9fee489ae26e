//! Who may see a change: policies evaluated on row images, against a SELECT by key as of now.
//!
//! `authorise [runs] [identities] [rows]`
//!
//! A private Postgres; a table whose rows belong to users; identities with a claim `sub` each. One question is
//! "which of these rows may each of these identities see".
//!
//! | way | statements |
//! | --- | --- |
//! | `image` | the server's: one execution per identity over all images, pipelined |
//! | `image, looked up` | the server's fallback for images in which the policy's column is missing (unchanged TOAST): the row with this key, if what is shown is equal to it |
//! | `select all` | one `SELECT … WHERE id = ANY` per identity, pipelined the same way: the rows as they are now |
//! | `select each` | one prepared `SELECT … WHERE id = $1` per identity and row, inside one function in the database, as the reference does |
//!
//! Wall time, and processor time of all processes of Postgres, per question. The answers are compared.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewire_authz::{Authenticator, AuthenticatorConfig, Identity, RowImage};
use tidewire_compare::{Failure, argument, cpu_ns, machine, median, say, tree_cpu_ns};
use tidewire_devdb::Cluster;
use tokio_postgres::{Client, Config, NoTls};

/// Questions per measurement; one alone is too short for the clock of the scheduler.
const QUESTIONS: u32 = 20;

const WAYS: [&str; 4] = ["image", "image, looked up", "select all", "select each"];

const SETUP: &str = "
    create role authenticated nologin noinherit;
    create role authenticator login password 'secret' nosuperuser noreplication nobypassrls noinherit;
    grant authenticated to authenticator;
    create schema auth;
    grant usage on schema auth to authenticated;
    create function auth.uid() returns uuid language sql stable as
        $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
    create table notes (id int primary key, owner uuid, team int, body text, done bool);
    create table members (team int, member uuid, primary key (team, member));
    alter table notes enable row level security;
    grant select on notes, members to authenticated;
    insert into notes select n, ('00000000-0000-4000-8000-' || lpad((n % 100)::text, 12, '0'))::uuid, n % 50,
        'a note of about forty characters, number ' || n, n % 2 = 0 from generate_series(1, 100000) n;
    insert into members select n % 50, ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid
        from generate_series(0, 999) n;
    analyze;
    -- For each row and each identity: become it, look, note. The statement is prepared once per session.
    create function by_key(ids int[], subs uuid[]) returns bigint language plpgsql as $$
    declare
        row_id int; who uuid; seen bigint := 0; found_one int;
    begin
        if not exists (select from pg_prepared_statements where name = 'one_row') then
            execute 'prepare one_row as select 1 from public.notes where id = $1';
        end if;
        foreach row_id in array ids loop
            foreach who in array subs loop
                perform set_config('role', 'authenticated', true),
                    set_config('request.jwt.claims', format('{\"role\":\"authenticated\",\"sub\":\"%s\"}', who), true),
                    set_config('request.jwt.claim.sub', who::text, true);
                execute format('execute one_row(%s)', row_id) into found_one;
                if found_one is not null then seen := seen + 1; end if;
            end loop;
        end loop;
        return seen;
    end $$;";

const POLICIES: [(&str, &str); 2] = [
    ("own rows", "owner = (select auth.uid())"),
    (
        "membership",
        "exists (select from members m where m.team = notes.team and m.member = (select auth.uid()))",
    ),
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let (runs, identities, rows): (usize, u32, i32) = (argument(1, 7)?, argument(2, 100)?, argument(3, 20)?);
    let cluster = Cluster::temporary()?;
    let postmaster = cluster.pid().ok_or("the cluster is not running")?;
    let superuser: Config = cluster.superuser_url().parse()?;
    let admin = connect(&superuser).await?;
    admin.batch_execute(SETUP).await?;
    say(&format!("{identities} identities × {rows} rows, PostgreSQL {}; {}", cluster.version(), machine()?))?;
    let login: Config = cluster.url("authenticator", "secret").parse()?;

    for (name, policy) in POLICIES {
        admin
            .batch_execute(&format!(
                "drop policy if exists p on notes; create policy p on notes for select using ({policy})"
            ))
            .await?;
        let work = Work::new(&superuser, &login, identities, rows).await?;
        let mut wall = [const { Vec::new() }; WAYS.len()];
        let mut theirs = [const { Vec::new() }; WAYS.len()];
        let mut ours = [const { Vec::new() }; WAYS.len()];
        let mut expected = None;
        for run in 0..=runs {
            for step in 0..WAYS.len() {
                let way = (run + step) % WAYS.len();
                let (begun, database, own) = (Instant::now(), tree_cpu_ns(postmaster)?, cpu_ns());
                let mut seen = 0;
                for _ in 0..QUESTIONS {
                    seen = match way {
                        0 => work.image(&work.images).await?,
                        1 => work.image(&work.incomplete).await?,
                        2 => work.select_all().await?,
                        _ => work.select_each().await?,
                    };
                }
                let each = |ns: f64| ns / f64::from(QUESTIONS) / 1e6;
                if *expected.get_or_insert(seen) != seen {
                    return Err(format!("{name}: the ways disagree").into());
                }
                // The first round connects and prepares.
                if run > 0 {
                    wall[way].push(each(begun.elapsed().as_nanos() as f64));
                    theirs[way].push(each((tree_cpu_ns(postmaster)? - database) as f64));
                    ours[way].push(each((cpu_ns() - own) as f64));
                }
            }
        }
        for (way, label) in WAYS.iter().enumerate() {
            say(&format!(
                "{name:<12} {label:<16} {} ms, Postgres CPU {} ms, own CPU {} ms; {} visible",
                median(std::mem::take(&mut wall[way])),
                median(std::mem::take(&mut theirs[way])),
                median(std::mem::take(&mut ours[way])),
                expected.unwrap_or(0)
            ))?;
        }
    }
    Ok(())
}

async fn connect(config: &Config) -> Result<Client, Failure> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

struct Work {
    authenticator: Authenticator,
    table: tidewire_authz::Table,
    identities: Vec<Arc<Identity>>,
    images: Vec<RowImage>,
    /// Without the columns that the policies read.
    incomplete: Vec<RowImage>,
    ids: Vec<i32>,
    subs: Vec<String>,
    /// Logged in as the authenticator.
    plain: Client,
    set: tokio_postgres::Statement,
    select: tokio_postgres::Statement,
    undo: tokio_postgres::Statement,
    /// A superuser's session, as the reference has it.
    root: Client,
}

type Pending<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>> + 'a>>;

impl Work {
    async fn new(superuser: &Config, login: &Config, identities: u32, rows: i32) -> Result<Work, Failure> {
        let authenticator = Authenticator::new(AuthenticatorConfig {
            postgres: login.clone(),
            // One connection for every way.
            pool_size: 1,
            search_path: "public".to_owned(),
            statement_timeout: Duration::from_secs(10),
            roles: vec!["authenticated".to_owned()],
        });
        let admin = connect(superuser).await?;
        let relid: u32 = admin.query_one("select 'notes'::regclass::oid", &[]).await?.get(0);
        let table = authenticator.table(relid).await?;
        let ids: Vec<i32> = (1..=rows).map(|n| n * 37).collect();
        let found = admin
            .query(
                "select json_build_object('id', id::text, 'owner', owner::text, 'team', team::text, 'body', body,
                    'done', case when done then 't' else 'f' end)::text,
                    json_build_object('id', id::text, 'body', body)::text
                 from notes where id = any($1) order by id",
                &[&ids],
            )
            .await?;
        let images = |column| found.iter().map(move |row| RowImage { json: row.get(column) }).collect();
        let subs: Vec<String> = (0..identities).map(|n| format!("00000000-0000-4000-8000-{n:012}")).collect();
        let identity = |sub: &String| {
            Arc::new(Identity {
                role: "authenticated".to_owned(),
                claims_json: format!("{{\"role\":\"authenticated\",\"sub\":\"{sub}\"}}"),
                sub: Some(sub.clone()),
                exp: 4_000_000_000,
            })
        };
        let plain = connect(login).await?;
        let set = plain
            .prepare(
                "select set_config('role', 'authenticated', true), set_config('request.jwt.claims', $1, true),
                        set_config('request.jwt.claim.sub', $2, true)",
            )
            .await?;
        // Prepared as the role that will ask.
        plain.batch_execute("begin; set local role authenticated").await?;
        let select = plain.prepare("select id from notes where id = any($1)").await?;
        plain.batch_execute("rollback").await?;
        let undo = plain.prepare("rollback to savepoint s").await?;
        Ok(Work {
            table,
            identities: subs.iter().map(identity).collect(),
            images: images(0),
            incomplete: images(1),
            ids,
            authenticator,
            set,
            select,
            undo,
            plain,
            subs,
            root: connect(superuser).await?,
        })
    }

    async fn image(&self, images: &[RowImage]) -> Result<usize, Failure> {
        let judgement = self.authenticator.judge(&self.table, &self.identities, images).await?;
        if let Some((_, error)) = judgement.errors.first() {
            return Err(error.clone().into());
        }
        Ok(judgement.visible.iter().flatten().filter(|seen| **seen).count())
    }

    async fn select_all(&self) -> Result<usize, Failure> {
        self.plain.batch_execute("begin read only; savepoint s").await?;
        let mut pending: Vec<Pending<'_>> = Vec::new();
        for identity in &self.identities {
            pending.push(Box::pin(async move {
                self.plain.query(&self.set, &[&identity.claims_json, &identity.sub]).await
            }));
            pending.push(Box::pin(async move { self.plain.query(&self.select, &[&self.ids]).await }));
            pending.push(Box::pin(async move { self.plain.query(&self.undo, &[]).await }));
        }
        let mut seen = 0;
        for (index, rows) in futures_util::future::try_join_all(pending).await?.iter().enumerate() {
            if index % 3 == 1 {
                seen += rows.len();
            }
        }
        self.plain.batch_execute("rollback").await?;
        Ok(seen)
    }

    async fn select_each(&self) -> Result<usize, Failure> {
        let sql = "select by_key($1, $2::text[]::uuid[])";
        let seen: i64 = self.root.query_one(sql, &[&self.ids, &self.subs]).await?.get(0);
        // What was set inside is gone with the statement's transaction.
        Ok(usize::try_from(seen)?)
    }
}
