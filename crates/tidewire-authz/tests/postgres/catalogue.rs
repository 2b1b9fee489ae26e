//! What the catalogue says.

use tidewire_authz::{AccessError, TypeShape};

use super::fixture::Database;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_have_their_types_shapes_and_privileges() {
    let database = Database::new(
        "create extension hstore; create type mood as enum ('a');
         create type pair as (x int, \"the y\" mood[]);
         create domain pairs as pair[]; create domain small as int;
         create collation loose (provider = icu, locale = 'und', deterministic = false);
         create table t (a int, gone int, b small not null, c pairs, d hstore, e text collate loose, f varchar(5),
                         g box[], h int generated always as (a + 1) stored, i oidvector, primary key (b, a));
         alter table t drop column gone;
         grant select (a, b) on t to anon; grant select on t to authenticated, outsider;",
    )
    .await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "t").await;
    assert_eq!((table.schema.as_str(), table.name.as_str(), table.rls_enabled), ("public", "t", false));
    let column = |name: &str| table.columns.iter().find(|column| column.name == name).unwrap();
    let names: Vec<_> = table.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    let numbers: Vec<_> = table.columns.iter().map(|column| column.attnum).collect();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7, 8, 9, 10]);
    let key: Vec<_> = table.columns.iter().filter(|c| c.is_primary_key).map(|c| c.name.as_str()).collect();
    assert_eq!(key, ["a", "b"]);
    assert_eq!((column("b").type_name.as_str(), column("b").type_sql.as_str()), ("small", "public.small"));
    assert_eq!((column("b").kind.oid, &column("b").kind.shape), (23, &TypeShape::Scalar));
    assert_eq!(
        (column("f").type_name.as_str(), column("f").type_sql.as_str()),
        ("varchar", "character varying")
    );
    assert_eq!(column("d").kind.shape, TypeShape::Hstore);
    assert_eq!(column("i").kind.shape, TypeShape::Scalar);
    assert!(!column("e").deterministic_collation && column("f").deterministic_collation);
    assert!(column("h").generated && !column("a").generated);
    let TypeShape::Array { delimiter: ';', .. } = &column("g").kind.shape else {
        panic!("box has its own delimiter")
    };
    let TypeShape::Array { element, delimiter: ',' } = &column("c").kind.shape else {
        panic!("a domain over an array")
    };
    let TypeShape::Composite { fields } = &element.shape else { panic!("of composites") };
    assert_eq!(fields[0].0, "x");
    assert_eq!(fields[1].0, "the y");
    let TypeShape::Array { element, .. } = &fields[1].1.shape else { panic!("of arrays") };
    assert_eq!(element.shape, TypeShape::Enum);

    let anon = &table.roles["anon"];
    assert!(anon.sees_all_rows && anon.selectable[0] && anon.selectable[1] && !anon.selectable[2]);
    assert!(table.roles["authenticated"].selectable.iter().all(|can| *can));
    assert!(!table.roles["editor"].can_select(), "no privilege");
    assert!(!table.roles["outsider"].can_select(), "no USAGE on the schema");
    assert!(!table.roles.contains_key("postgres"));
    assert!(matches!(authenticator.table(1).await, Err(AccessError::NoTable { relid: 1 })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_policies_are_qualified_whatever_the_search_path() {
    let database = Database::new(
        "create function is_fine(t text) returns bool language sql as $$ select true $$;
         create table t (id int primary key, x text); alter table t enable row level security;
         create policy p on t to authenticated using (is_fine(x));
         create policy q on t as restrictive using (id > 0);
         create policy r on t for update using (false);
         grant select on t to authenticated, anon",
    )
    .await;
    let authenticator = database.authenticator(1);
    let table = database.table(&authenticator, "t").await;
    let access = &table.roles["authenticated"];
    assert_eq!(access.policy.as_deref(), Some("((id > 0)\n) AND ((public.is_fine(x)\n))"));
    assert_eq!(access.policy_columns, [true, true]);
    assert!(!access.sees_all_rows);
    assert_eq!(table.roles["anon"].policy, None);
    assert!(table.roles["service_role"].sees_all_rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_tables_are_found_by_like() {
    let database = Database::new(
        "create schema other; create table my_table (id int); create table myxtable (id int); create table other.t (id int);
         create table unpublished (id int);
         create publication pub for table my_table, myxtable, other.t",
    )
    .await;
    let authenticator = database.authenticator(1);
    let find = async |schema, table| authenticator.resolve("pub", schema, table).await.unwrap();
    let (one, two, three) =
        (database.relid("my_table").await, database.relid("myxtable").await, database.relid("other.t").await);
    assert_eq!(find(None, None).await, [one, two, three]);
    assert_eq!(find(Some("public"), Some("my_table")).await, [one, two]);
    assert_eq!(find(Some("oth%"), None).await, [three]);
    assert_eq!(find(Some("public"), Some("unpublished")).await, [0; 0]);
    // No escape character: the backslash is itself.
    assert_eq!(find(None, Some("my\\_table")).await, [0; 0]);
    assert_eq!(find(None, Some("my\\")).await, [0; 0]);
    assert_eq!(find(None, Some("a\0b")).await, [0; 0]);
    assert_eq!(authenticator.resolve("nope", None, None).await.unwrap(), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fingerprint_changes_with_what_roles_are() {
    let database = Database::new("create schema later").await;
    let authenticator = database.authenticator(1);
    let mut last = authenticator.roles_fingerprint().await.unwrap();
    assert_eq!(authenticator.roles_fingerprint().await.unwrap(), last);
    // Roles belong to the cluster, which other tests share: these are this test's own, but for the membership.
    for change in [
        "create role fp_group; grant fp_group to outsider",
        "alter role fp_group bypassrls",
        "create role fp_super; grant fp_super to fp_group",
        "grant usage on schema later to anon",
        "revoke fp_super from fp_group",
        "revoke usage on schema later from anon",
        "drop role fp_group; drop role fp_super",
    ] {
        database.admin.batch_execute(change).await.unwrap();
        let now = authenticator.roles_fingerprint().await.unwrap();
        assert_ne!(now, last, "{change}");
        last = now;
    }
}
