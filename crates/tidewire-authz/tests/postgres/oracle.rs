//! The oracle: random policies, roles, claims and rows. What `judge` says is what the identity's own `SELECT` says.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidewire_authz::{Identity, RowImage};

use super::fixture::{Database, identity, keys, member, user};

const SCHEMA: &str = r#"
    create type mood as enum ('happy', 'sad');
    create domain score as int check (value >= 0);
    create table members (user_id uuid, room int, primary key (user_id, room));
    create table guarded (user_id uuid primary key);
    alter table guarded enable row level security;
    create policy own on guarded using (user_id = auth.uid());
    create table docs (
        id bigint primary key, gone text, owner uuid, room int, title text, level int, public bool, tags text[],
        meta jsonb, raw json, amount numeric(10,2), at timestamptz, kind mood, code char(3), points score,
        "odd ""name" text, "docs" text, gen text generated always as ('g' || room) stored);
    alter table docs drop column gone;
    alter table docs enable row level security;
    create schema private;
    create function private.is_member(of int) returns bool language sql stable security definer set search_path = '' as
        $$ select exists (select from public.members where room = of and user_id = auth.uid()) $$;
    create function whole(d docs) returns bool language sql stable as $$ select d.level > 2 and d.title <> 'x' $$;
    create function frozen_uid() returns uuid language sql immutable as $$ select auth.uid() $$;
    create function may_raise(i int) returns bool language plpgsql stable as
        $$ begin if i = 3 then raise exception 'three'; end if; return true; end $$;
    grant select on members, guarded to anon, authenticated, editor, assumer, owner_role, service_role;
    grant select on docs to authenticated, service_role, editor, assumer, outsider;
    grant select (id, title) on docs to anon;
    alter table docs owner to owner_role;
    alter table members owner to owner_role;
"#;

/// Shapes of policies. Each is an expression over `docs`.
const SHAPES: [&str; 40] = [
    "true",
    "false",
    "owner = auth.uid()",
    "owner = (select auth.uid())",
    "public",
    "not public",
    "exists (select 1 from members m where m.user_id = auth.uid() and m.room = docs.room)",
    "room in (select room from members where user_id = (select auth.uid()))",
    "exists (select 1 from guarded where user_id = docs.owner)",
    "private.is_member(room)",
    "whole(docs.*)",
    "whole(docs.*) or docs.* is null",
    "\"docs\" = 'yes'",
    "\"odd \"\"name\" like 'a%'",
    "tags && array['x', 'y']",
    "title = (auth.jwt() ->> 'team')",
    "(meta ->> 'owner') = auth.uid()::text",
    "meta is null",
    "raw is not null",
    "coalesce(meta, '{}') ? 'a'",
    "gen = 'g1'",
    "gen is null",
    "kind = 'happy'",
    "level > 3 and amount >= 10.50",
    "current_user = 'authenticated'",
    "session_user = 'authenticator' and current_role <> 'anon'",
    "current_setting('request.jwt.claim.sub', true) = owner::text",
    "10 / level > 2",
    "auth.role() = 'authenticated' and at > '2024-06-01'",
    "code = 'abc'",
    "(select count(*) from members where members.room = docs.room) > 1",
    "exists (select 1 from members docs where docs.room = 1 and docs.user_id = auth.uid())",
    "title collate \"C\" < 'm'",
    "tableoid = 'docs'::regclass and public",
    "owner = frozen_uid()",
    "pg_has_role(current_user, 'moderators', 'usage')",
    "random() >= 0 and public",
    "exists (select 1 from docs d where d.id = docs.id)",
    "may_raise(room)",
    "points between 1 and 5 and (title, level) is distinct from ('a', 1) and extract(year from at) = 2024",
];

const TO: [&str; 8] = [
    "public",
    "public",
    "authenticated",
    "anon",
    "moderators",
    "authenticated, editor",
    "owner_role",
    "anon, moderators",
];

/// A small generator with a printed seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).expect("small")
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }
}

fn row(dice: &mut Dice, id: usize) -> String {
    let owner = match dice.roll(5) {
        0 => "null".to_owned(),
        n => format!("'{}'", user(u32::try_from(n).expect("small"))),
    };
    let meta = match dice.roll(5) {
        0 => "null".to_owned(),
        1 => "'null'".to_owned(),
        2 => format!("'{{\"owner\": \"{}\"}}'", user(1)),
        3 => "'{\"a\": [1, \"it''s\"]}'".to_owned(),
        _ => "'\"text\"'".to_owned(),
    };
    let columns = [
        id.to_string(),
        owner,
        dice.pick(&["null", "1", "2", "3"]).to_owned(),
        dice.pick(&["null", "'a'", "'x'", "'blue'", "E'q\"uo\\\\te'", "'zzz'", "''"]).to_owned(),
        dice.pick(&["null", "1", "2", "3", "4", "9", "0"]).to_owned(),
        dice.pick(&["null", "true", "false"]).to_owned(),
        dice.pick(&["null", "'{}'", "'{x}'", "'{\"a,b\",null,y}'"]).to_owned(),
        meta,
        dice.pick(&["null", "'null'", "' {\"b\" :1}'", "'[]'"]).to_owned(),
        dice.pick(&["null", "10.50", "1", "99999.99"]).to_owned(),
        dice.pick(&["null", "'2024-01-02 03:04:05.678+02'", "'2024-12-31'", "'2025-01-01'"]).to_owned(),
        dice.pick(&["null", "'happy'", "'sad'"]).to_owned(),
        dice.pick(&["null", "'abc'", "'a'"]).to_owned(),
        dice.pick(&["null", "0", "3", "7"]).to_owned(),
        dice.pick(&["null", "'abc'", "'b'"]).to_owned(),
        dice.pick(&["null", "'yes'", "'no'"]).to_owned(),
    ];
    format!("({})", columns.join(", "))
}

fn cast() -> Vec<Arc<Identity>> {
    let mut all: Vec<_> = (1..=4).map(member).collect();
    all.push(identity("authenticated", None, ""));
    all.push(identity("authenticated", Some(&user(1)), r#","team":"blue""#));
    all.push(identity("authenticated", Some("no uuid"), ""));
    for role in ["anon", "editor", "assumer", "owner_role", "service_role", "outsider"] {
        all.push(identity(role, Some(&user(2)), ""));
    }
    all
}

/// Some columns as if they were unchanged TOAST values.
fn without_columns(dice: &mut Dice, image: &RowImage) -> RowImage {
    let mut object: BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(&image.json).expect("an object");
    let names: Vec<String> = object.keys().filter(|name| *name != "id").cloned().collect();
    for name in names {
        if dice.roll(3) == 0 {
            object.remove(&name);
        }
    }
    RowImage { json: serde_json::to_string(&object).expect("json") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_judged_is_what_a_select_of_the_identity_returns() {
    let seed: u64 = std::env::var("TIDEWIRE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let rounds: usize =
        std::env::var("TIDEWIRE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut dice = Dice(seed);
    let database = Database::new(SCHEMA).await;
    let authenticator = database.authenticator(2);
    let cast = cast();
    let (mut shown, mut hidden, mut failed, mut unexplained, mut still_shown) = (0, 0, 0, 0, 0);

    for round in 0..rounds {
        let mut sql = String::from("truncate docs, members, guarded;");
        sql.push_str("do $$ declare p text; begin for p in select polname from pg_policy where polrelid = 'docs'::regclass
                      loop execute format('drop policy %I on docs', p); end loop; end $$;");
        // The first rounds take each shape alone, so that none hides behind another.
        let mut policies = Vec::new();
        if let Some(shape) = SHAPES.get(round) {
            policies.push(format!("create policy p0 on docs for select using ({shape})"));
        } else {
            for n in 0..1 + dice.roll(4) {
                let kind = dice.pick(&["permissive", "permissive", "restrictive"]);
                let command = dice.pick(&["select", "all", "select", "update"]);
                let (to, shape) = (dice.pick(&TO), dice.pick(&SHAPES));
                policies.push(format!(
                    "create policy p{n} on docs as {kind} for {command} to {to} using ({shape})"
                ));
            }
        }
        for policy in &policies {
            sql.push_str(policy);
            sql.push(';');
        }
        sql.push_str(dice.pick(&[
            "alter table docs force row level security;",
            "alter table docs no force row level security;",
        ]));
        let rows: Vec<_> = (1..=12).map(|id| row(&mut dice, id)).collect();
        sql.push_str(&format!("insert into docs values {};", rows.join(", ")));
        for n in 1..=4 {
            sql.push_str(&format!(
                "insert into members values ('{}', {}) on conflict do nothing;",
                user(n),
                1 + dice.roll(3)
            ));
        }
        sql.push_str(&format!("insert into guarded values ('{}')", user(1)));
        database.admin.batch_execute(&sql).await.expect("round is set up");

        let table = database.table(&authenticator, "docs").await;
        let whole = database.images(&table).await;
        let partial: Vec<_> = whole.iter().map(|image| without_columns(&mut dice, image)).collect();
        let keys = keys(&whole);
        let mut before = Vec::new();
        for (form, images) in [("whole", &whole), ("partial", &partial)] {
            let judgement = authenticator.judge(&table, &cast, images).await.expect("judged");
            for (index, identity) in cast.iter().enumerate() {
                let judged = &judgement.visible[index];
                let error = judgement.errors.iter().find(|(of, _)| *of == index).map(|(_, text)| text);
                let story = format!(
                    "seed {seed}, round {round}, {form}, {policies:#?}, {identity:?} {:?}, {error:?}",
                    identity.sub
                );
                let selected = database.selects(&table, identity, &keys).await;
                match selected {
                    // Some row makes a policy raise. The others can still be selected by themselves.
                    None => {
                        let selected = database.selects_one_by_one(&table, identity, &keys).await;
                        for (image, (judged, selected)) in judged.iter().zip(&selected).enumerate() {
                            assert!(
                                !judged || *selected,
                                "LEAK of image {image}: {story}\n{}",
                                images[image].json
                            );
                        }
                        failed += 1;
                        before.push(selected);
                    }
                    Some(selected) => {
                        for (image, (judged, selected)) in judged.iter().zip(&selected).enumerate() {
                            assert!(
                                !judged || *selected,
                                "LEAK of image {image}: {story}\n{}",
                                images[image].json
                            );
                        }
                        if error.is_some() {
                            unexplained += 1;
                        } else {
                            assert_eq!(judged, &selected, "not shown: {story}");
                        }
                        before.push(selected.clone());
                        shown += selected.iter().filter(|seen| **seen).count();
                        hidden += selected.iter().filter(|seen| !**seen).count();
                    }
                }
            }
        }

        // The rows are gone. An image that tells enough is still judged as it was written, and no other is shown.
        database.admin.batch_execute("truncate docs").await.expect("truncated");
        let judgement = authenticator.judge(&table, &cast, &whole).await.expect("judged");
        for (judged, selected) in judgement.visible.iter().zip(&before) {
            for (judged, selected) in judged.iter().zip(selected) {
                assert!(
                    !judged || *selected,
                    "LEAK of a deleted row: seed {seed}, round {round}, {policies:#?}"
                );
                still_shown += usize::from(*judged);
            }
        }
    }
    println!(
        "shown {shown}, hidden {hidden}, failing selects {failed}, errors where a select succeeds {unexplained}"
    );
    // The oracle has seen both sides of every question, and nobody is denied by an error of ours.
    assert!(shown > 1000 && hidden > 1000 && failed > 50);
    assert!(still_shown * 3 > shown, "images are judged by themselves, each was judged twice above");
    assert!(
        unexplained * 100 < shown,
        "{unexplained} identities were denied by errors that a SELECT does not have"
    );
}
