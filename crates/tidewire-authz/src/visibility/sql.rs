//! Text that goes to Postgres: quoting, and the names of its errors.

use tokio_postgres::error::DbError;

/// `"quoted"`, whatever the name.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `E'quoted'` where a backslash occurs, `'quoted'` otherwise; valid under any `standard_conforming_strings`.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// An error in the words of the reference's driver: `ERROR 22P02 (invalid_text_representation) …`.
/// Spec: PROTOCOL.md §5.10. The text may hold a value that the client itself has sent.
pub(crate) fn spoken(error: &DbError) -> String {
    let code = error.code().code();
    format!("ERROR {code} ({}) {}", condition_name(code), error.message())
}

/// An error without what a row may have put into it. Messages of class 42 speak of names, not of values.
pub(crate) fn discreet(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) if db.code().code().starts_with("42") => spoken(db),
        Some(db) => format!("ERROR {} ({})", db.code().code(), condition_name(db.code().code())),
        None => "connection lost".to_owned(),
    }
}

/// PostgreSQL manual, appendix A, the conditions that casts, policies and privileges raise.
fn condition_name(code: &str) -> &'static str {
    match code {
        "21000" => "cardinality_violation",
        "22000" => "data_exception",
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22004" => "null_value_not_allowed",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22009" => "invalid_time_zone_displacement_value",
        "2200M" => "invalid_xml_document",
        "2200N" => "invalid_xml_content",
        "22012" => "division_by_zero",
        "22015" => "interval_field_overflow",
        "2201B" => "invalid_regular_expression",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22025" => "invalid_escape_sequence",
        "22026" => "string_data_length_mismatch",
        "2202E" => "array_subscript_error",
        "22P02" => "invalid_text_representation",
        "22P03" => "invalid_binary_representation",
        "22P05" => "untranslatable_character",
        "23514" => "check_violation",
        "25006" => "read_only_sql_transaction",
        "25P02" => "in_failed_sql_transaction",
        "42501" => "insufficient_privilege",
        "42601" => "syntax_error",
        "42702" => "ambiguous_column",
        "42703" => "undefined_column",
        "42704" => "undefined_object",
        "42804" => "datatype_mismatch",
        "42846" => "cannot_coerce",
        "42883" => "undefined_function",
        "42P01" => "undefined_table",
        "42P17" => "invalid_object_definition",
        "42P18" => "indeterminate_datatype",
        "54001" => "statement_too_complex",
        "57014" => "query_canceled",
        "P0001" => "raise_exception",
        _ => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
    }
}
