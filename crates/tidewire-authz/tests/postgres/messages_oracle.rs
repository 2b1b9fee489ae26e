//! The oracle of private channels: what is granted is what the reference would find, which inserts rows as a superuser,
//! becomes the subscriber and selects them; and which inserts as the subscriber.

use std::sync::Arc;

use tidewire_authz::{Grants, Identity, ProbeError};
use tokio_postgres::{Client, Error};

use super::fixture::{Database, identity, member, user};
use super::messages::{BOTH, NONE, prepared};

const SCHEMA: &str = r#"
    create table members (user_id uuid, topic text, is_admin bool default false);
    insert into members values
      ('00000000-0000-4000-8000-000000000001', 'room', true), ('00000000-0000-4000-8000-000000000002', 'room', false),
      ('00000000-0000-4000-8000-000000000002', 'other', true);
    create table guarded (user_id uuid, topic text);
    alter table guarded enable row level security;
    create policy own on guarded using (user_id = auth.uid());
    insert into guarded select user_id, topic from members;
    grant select on members, guarded to anon, authenticated, editor, service_role;
    create table unreadable (topic text);
    create schema hidden;
    create function hidden.is_member() returns bool language sql stable security definer set search_path = '' as
      $$ select exists (select from public.members where user_id = auth.uid() and topic = realtime.topic()) $$;
    create function hidden.secret() returns bool language sql stable as $$ select true $$;
    revoke execute on function hidden.secret() from public;
    create table visits (topic text);
    grant insert on visits to public;
    create function note_visit() returns bool language plpgsql as
      $$ begin insert into public.visits values (realtime.topic()); return true; end $$;
    create function raises() returns bool language plpgsql as
      $$ begin if realtime.topic() = 'other' then raise exception 'no'; end if; return true; end $$;
    create function denies() returns bool language plpgsql as
      $$ begin raise insufficient_privilege using message = 'not you'; end $$;
    create function whole(m realtime.messages) returns bool language sql stable as
      $$ select m.topic = 'room' and m.extension = 'presence' $$;
    grant usage on schema realtime to editor, assumer, owner_role;
    grant select, insert on realtime.messages to editor;
    grant select on realtime.messages to owner_role;
    -- A function that the subscriber's search path finds first must not stand in for one of ours.
    create function public.json_build_object(variadic "any") returns json language internal as 'json_build_object';
"#;

/// Shapes of conditions, each used for reading and for writing.
const SHAPES: [&str; 36] = [
    "true",
    "false",
    "null",
    "extension in ('broadcast', 'presence')",
    "extension in ('broadcast')",
    "extension = 'presence' and topic = 'room'",
    "realtime.topic() = 'room'",
    "realtime.topic() like 'ro%' and topic = realtime.topic()",
    "topic = 'other' or messages.topic = 'nothing'",
    "exists (select 1 from members m where m.user_id = auth.uid() and m.topic = realtime.topic())",
    "exists (select 1 from members m where m.user_id = (select auth.uid()) and m.topic = messages.topic
       and (messages.extension = 'broadcast' or m.is_admin))",
    "realtime.topic() in (select topic from members where user_id = (select auth.uid()))",
    "exists (select from guarded g where g.topic = (select realtime.topic()))",
    "hidden.is_member()",
    "(select hidden.is_member()) and extension = 'broadcast'",
    "hidden.secret()",
    "exists (select from unreadable)",
    "private = true",
    "private",
    "private = false and event is null and payload is null",
    "payload ->> 'a' = 'b'",
    "event = 'x' or inserted_at > now() at time zone 'UTC' - interval '1 hour'",
    "current_setting('request.headers', true)::json ->> 'x-team' = 'blue'",
    "(current_setting('request.headers')::json ->> 'x-level')::int > 2",
    "auth.jwt() ->> 'team' = 'blue'",
    "auth.role() = 'authenticated' and auth.uid() is not null",
    "current_setting('request.jwt.claim.role', true) = current_user",
    "raises()",
    "1 / (case when extension = 'presence' then 0 else 1 end) = 1",
    "split_part(realtime.topic(), ':', 2)::int = 3",
    "denies()",
    "note_visit()",
    "whole(messages)",
    "tableoid <> 0",
    "extra is null",
    "pg_has_role(current_user, 'moderators', 'usage') or current_user = 'anon'",
];

/// Policies that say more than a condition.
const COMBINED: [&str; 7] = [
    "",
    "create policy a on realtime.messages to authenticated using (true) with check (true);
     create policy b on realtime.messages to moderators using (extension = 'presence')",
    "create policy a on realtime.messages using (true);
     create policy b on realtime.messages as restrictive to authenticated using (topic = 'room')",
    "create policy b on realtime.messages as restrictive using (true) with check (true)",
    "create policy a on realtime.messages for update using (true) with check (true);
     create policy b on realtime.messages for delete using (true)",
    "create policy a on realtime.messages for select using (topic = 'room');
     create policy b on realtime.messages for select using (extension = 'presence');
     create policy c on realtime.messages for insert with check (extension = 'broadcast');
     create policy d on realtime.messages as restrictive for insert to anon with check (topic = 'other')",
    "create policy a on realtime.messages using (exists (select from realtime.messages m where m.topic = topic))",
];

const HEADERS: &str = r#"{"x-team":"blue","x-level":"3"}"#;

const CLEAR: &str = "
    do $$ declare p text; begin
      for p in select polname from pg_policy where polrelid = 'realtime.messages'::regclass
      loop execute format('drop policy %I on realtime.messages', p); end loop;
    end $$;";

fn cast() -> Vec<Arc<Identity>> {
    let mut all: Vec<_> = (1..=3).map(member).collect();
    all.push(identity("authenticated", None, r#","team":"blue""#));
    all.push(identity("authenticated", Some("no uuid"), ""));
    for role in ["anon", "editor", "assumer", "owner_role", "service_role", "outsider"] {
        all.push(identity(role, Some(&user(2)), ""));
    }
    all
}

/// What the reference finds, told as it tells it apart.
#[derive(Debug, PartialEq)]
enum Found {
    Granted(Grants),
    Policy,
    Partition,
    Canceled,
}

impl From<Result<Grants, ProbeError>> for Found {
    fn from(answer: Result<Grants, ProbeError>) -> Self {
        match answer {
            Ok(grants) => Self::Granted(grants),
            Err(ProbeError::Policy(_)) => Self::Policy,
            Err(ProbeError::MissingPartition) => Self::Partition,
            Err(ProbeError::Canceled(_)) => Self::Canceled,
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn found(error: &Error) -> Found {
    let db = error.as_db_error().expect("an error of Postgres");
    match db.code().code() {
        "57014" => Found::Canceled,
        "23514" if db.table() == Some("messages") => Found::Partition,
        _ => Found::Policy,
    }
}

/// Asks as the reference does, over a superuser's session.
struct Reference {
    session: Client,
}

impl Reference {
    async fn become_subscriber(&self, who: &Identity, topic: &str) -> Result<(), Error> {
        let sub = who.sub.clone().unwrap_or_default();
        let set = "select set_config('role', $1, true), set_config('realtime.topic', $2, true),
                          set_config('request.jwt.claims', $3, true), set_config('request.jwt.claim.sub', $4, true),
                          set_config('request.jwt.claim.role', $1, true), set_config('request.headers', $5, true)";
        self.session.query(set, &[&who.role, &topic, &who.claims_json, &sub, &HEADERS]).await.map(drop)
    }

    async fn reads(&self, who: &Identity, topic: &str, with_presence: bool) -> Found {
        self.session.batch_execute("begin").await.expect("begin");
        let extensions: &[&str] = if with_presence { &["broadcast", "presence"] } else { &["broadcast"] };
        let insert = "insert into realtime.messages (id, topic, extension, inserted_at, updated_at)
                      select ('10000000-0000-4000-8000-00000000000' || n)::uuid, $1, e,
                             timezone('UTC', now()), timezone('UTC', now())
                      from unnest($2::text[]) with ordinality as t(e, n)";
        let answer = async {
            self.session.execute(insert, &[&topic, &extensions]).await?;
            self.become_subscriber(who, topic).await?;
            let select = "select id::text from realtime.messages where id in
                ('10000000-0000-4000-8000-000000000001', '10000000-0000-4000-8000-000000000002')";
            self.session.query(select, &[]).await
        };
        let answer = answer.await;
        self.session.batch_execute("rollback").await.expect("rollback");
        match answer {
            Ok(rows) => {
                let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                let has = |end: &str| ids.iter().any(|id| id.ends_with(end));
                Found::Granted(Grants { broadcast: has("1"), presence: has("2") })
            }
            Err(error) => found(&error),
        }
    }

    async fn writes(&self, who: &Identity, topic: &str) -> Found {
        self.session.batch_execute("begin").await.expect("begin");
        let answer = async {
            self.become_subscriber(who, topic).await?;
            let mut may = [false; 2];
            for (may, extension) in may.iter_mut().zip(["broadcast", "presence"]) {
                self.session.batch_execute("savepoint s").await?;
                let insert = format!(
                    "insert into realtime.messages (topic, extension, inserted_at, updated_at)
                     values ('{topic}', '{extension}', timezone('UTC', now()), timezone('UTC', now()))"
                );
                match self.session.batch_execute(&insert).await {
                    Ok(()) => *may = true,
                    Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {
                        self.session.batch_execute("rollback to savepoint s").await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(Grants { broadcast: may[0], presence: may[1] })
        };
        let answer = answer.await;
        self.session.batch_execute("rollback").await.expect("rollback");
        answer.map_or_else(|error| found(&error), Found::Granted)
    }
}

/// The three questions: for both extensions, for one, and for writing.
const ALL: [&str; 3] = ["both", "broadcast", "write"];

/// How often each answer was given, so that the oracle cannot fall silent.
#[derive(Debug, Default)]
struct Tally {
    granted: usize,
    denied: usize,
    mixed: usize,
    failed: usize,
}

impl Tally {
    fn count(&mut self, found: &Found) {
        match found {
            Found::Granted(grants) if *grants == BOTH => self.granted += 1,
            Found::Granted(grants) if *grants == NONE => self.denied += 1,
            Found::Granted(_) => self.mixed += 1,
            _ => self.failed += 1,
        }
    }
}

/// `what`: which of the three questions are compared.
async fn compare(
    database: &Database,
    reference: &Reference,
    policies: &str,
    what: &[&str],
    tally: &mut Tally,
) {
    let clear = format!("{CLEAR}{policies}");
    database.admin.batch_execute(&clear).await.unwrap_or_else(|error| panic!("{policies}: {error:?}"));
    let authenticator = database.authenticator(2);
    let mut asked = Vec::new();
    for who in cast() {
        for topic in ["room", "other", "room:3"] {
            let (authenticator, who) = (authenticator.clone(), Arc::clone(&who));
            asked.push(tokio::spawn(async move {
                let both = authenticator.read_grants(&who, topic, HEADERS, true).await;
                let broadcast = authenticator.read_grants(&who, topic, HEADERS, false).await;
                let write = authenticator.write_grants(&who, topic, HEADERS).await;
                (who, topic, [both, broadcast, write])
            }));
        }
    }
    for asked in asked {
        let (who, topic, answers) = asked.await.expect("no panic");
        let expected = [
            reference.reads(&who, topic, true).await,
            reference.reads(&who, topic, false).await,
            reference.writes(&who, topic).await,
        ];
        for ((answer, expected), question) in answers.into_iter().zip(expected).zip(ALL) {
            if what.contains(&question) {
                let story = format!("{policies}\n{question} {topic} {who:?} {:?}: {answer:?}", who.sub);
                tally.count(&expected);
                assert_eq!(Found::from(answer), expected, "{story}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_granted_is_what_the_reference_finds() {
    let database = prepared(SCHEMA).await;
    database
        .admin
        .batch_execute("alter table realtime.messages add column extra int")
        .await
        .expect("a column");
    let reference = Reference { session: database.session().await };
    reference.session.batch_execute("set search_path = public").await.expect("search path");
    let mut tally = Tally::default();
    for shape in SHAPES {
        let policies = format!(
            "create policy r on realtime.messages for select using ({shape});
             create policy w on realtime.messages for insert with check ({shape})"
        );
        compare(&database, &reference, &policies, &ALL, &mut tally).await;
    }
    for policies in COMBINED {
        compare(&database, &reference, policies, &ALL, &mut tally).await;
    }
    println!("{tally:?}");
    assert!(
        tally.granted > 500 && tally.denied > 500 && tally.mixed > 200 && tally.failed > 200,
        "{tally:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_defaults_checks_and_ownership_count_as_they_do_for_the_reference() {
    let database = prepared(SCHEMA).await;
    let reference = Reference { session: database.session().await };
    reference.session.batch_execute("set search_path = public").await.expect("search path");
    let open = "create policy a on realtime.messages using (true) with check (topic <> 'elsewhere');";
    // Triggers and constraints are about rows; on an image they have nothing to say.
    const WRITE: [&str; 1] = ["write"];
    let mut tally = Tally::default();
    for (sql, what) in [
        (
            "create function refuse() returns trigger language plpgsql as $$ begin
               if new.extension = 'presence' then raise insufficient_privilege; end if; return new; end $$;
             create trigger t before insert on realtime.messages for each row execute function refuse()",
            &WRITE[..],
        ),
        (
            "create or replace function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$",
            &WRITE,
        ),
        (
            "create or replace function refuse() returns trigger language plpgsql as $$ begin return null; end $$",
            &WRITE,
        ),
        (
            "create or replace function refuse() returns trigger language plpgsql as
               $$ begin new.topic := 'elsewhere'; return new; end $$",
            &WRITE,
        ),
        (
            "drop trigger t on realtime.messages;
             alter table realtime.messages add constraint c check (topic <> 'other') not valid",
            &WRITE,
        ),
        (
            "alter table realtime.messages drop constraint c;
             alter table realtime.messages owner to owner_role",
            &ALL,
        ),
        ("alter table realtime.messages force row level security", &ALL),
        ("alter table realtime.messages disable row level security", &ALL),
        (
            "alter table realtime.messages no force row level security, enable row level security;
             revoke select on realtime.messages from authenticated;
             grant select (id, topic) on realtime.messages to authenticated",
            &ALL,
        ),
        (
            "revoke all on realtime.messages from authenticated;
             grant select (topic), insert (topic, extension) on realtime.messages to authenticated",
            &ALL,
        ),
        ("revoke usage on schema realtime from editor, anon", &ALL),
    ] {
        compare(&database, &reference, &format!("{sql};{open}"), what, &mut tally).await;
    }
    assert!(tally.granted > 50 && tally.denied > 20 && tally.mixed > 20 && tally.failed > 50, "{tally:?}");
}
