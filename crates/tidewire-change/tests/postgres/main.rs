//! PostgreSQL judges: values against `to_jsonb`, predicates and SQL conditions against its operators, the table of
//! built-in types against its catalogue.
//!
//! One private cluster for the whole file; without PostgreSQL binaries the tests fail and say so.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failed step is a failed test")]

mod database;
mod predicates;
mod types;
mod values;

use database::Database;

#[test]
fn postgres_agrees() {
    // One cluster, one test: three tests would be three clusters under a runner with a process per test.
    let database = Database::start();
    types::the_table_of_builtin_types_is_that_of_the_catalogue(&database);
    values::values_are_what_to_jsonb_prints(&database);
    predicates::in_process_decisions_are_those_of_postgres(&database);
    predicates::asked_conditions_have_sql_that_means_what_the_grammar_says(&database);
    predicates::literals_and_identifiers_survive_quoting(&database);
}
