//! The whole server against a real Postgres, seen by raw clients.
//!
//! Each test has a cluster of its own: slots, roles and restarts concern all of it. What must *not* arrive
//! is shown by something that is sent after it and does arrive.

mod end;
mod frames;
mod interruption;
mod load;
mod rows;
mod schema;
mod start;
mod visibility;

use serde_json::{Value, json};

/// The table that most tests use.
const GAMES: &str = "
    create table games (id int primary key, status text);
    alter publication supabase_realtime add table games";

/// One binding: everything of a table in schema `public`.
fn all_of(table: &str) -> Value {
    json!([{"event": "*", "schema": "public", "table": table}])
}

/// One binding with a filter.
fn filtered(table: &str, filter: &str) -> Value {
    json!([{"event": "*", "schema": "public", "table": table, "filter": filter}])
}

/// A column of the new rows of some changes.
fn of_records(changes: &[Value], column: &str) -> Vec<Value> {
    changes.iter().map(|change| change["record"][column].clone()).collect()
}

/// Whether a change is a row with this id.
fn has_id(id: i64) -> impl Fn(&Value) -> bool {
    move |data| data["record"]["id"] == id
}
