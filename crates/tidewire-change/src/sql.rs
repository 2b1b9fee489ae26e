//! Conditions as SQL text, for the batch evaluator and for validating a binding.
//!
//! Owns quoting and the operator table. It runs nothing. Whatever the client wrote ends up inside a quoted
//! identifier or a string literal, so the worst it can cause is an error of that one condition.
//!
//! The text assumes `standard_conforming_strings = on`, the default since PostgreSQL 9.1.
//!
//! Spec: PROTOCOL.md §5.3.

use crate::filter::{Condition, Operator};

/// `text` as a quoted identifier.
///
/// A NUL cannot be in any name; it becomes an escape that PostgreSQL refuses, rather than the end of the
/// statement on the wire.
pub fn quote_ident(text: &str) -> String {
    if text.contains('\0') {
        let inside = text.replace('\\', r"\\").replace('"', "\"\"").replace('\0', r"\0000");
        return format!("U&\"{inside}\"");
    }
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// `text` as a string literal; the `E''` form when it contains a backslash, so the meaning does not depend
/// on any setting.
///
/// A NUL becomes `\000`, which PostgreSQL refuses with the error the reference's clients would see
/// (`invalid byte sequence for encoding "UTF8": 0x00`).
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains(['\\', '\0']) {
        return format!("E'{}'", doubled.replace('\\', r"\\").replace('\0', r"\000"));
    }
    format!("'{doubled}'")
}

/// One condition as a boolean expression in parentheses. NULL means *fails*: wrap it in
/// `coalesce(…, false)`. An illegal `is` value becomes `NULL::boolean`, which never holds.
///
/// `column_sql` is any expression of the column's type. `type_sql` must name the type **without** a length:
/// schema-qualified and quoted, as in `"pg_catalog"."bpchar"`. The bare words `character` and `bit` would
/// mean `character(1)` and `bit(1)` and cut the literal (the reference does; see §5.9).
pub fn condition_sql(cond: &Condition, column_sql: &str, type_sql: &str) -> String {
    let not = if cond.negate { "NOT " } else { "" };
    let simple = |operator: &str| {
        let literal = quote_literal(&cond.value);
        format!("({not}({column_sql} {operator} {literal}::{type_sql}))")
    };
    match cond.op {
        Operator::Eq => simple("="),
        Operator::Neq => simple("<>"),
        Operator::Lt => simple("<"),
        Operator::Lte => simple("<="),
        Operator::Gt => simple(">"),
        Operator::Gte => simple(">="),
        Operator::Like => simple("~~"),
        Operator::Ilike => simple("~~*"),
        Operator::Match => simple("~"),
        Operator::Imatch => simple("~*"),
        Operator::In => {
            let array = quote_literal(&format!("{{{}}}", cond.value));
            let found = format!("{column_sql} = ANY ({array}::{type_sql}[])");
            if cond.negate {
                // Over an empty array ANY is false, not NULL, even for NULL; but NULL satisfies no negation.
                format!("({column_sql} IS DISTINCT FROM NULL AND NOT ({found}))")
            } else {
                format!("({found})")
            }
        }
        Operator::Is => match is_keyword(&cond.value) {
            Some(keyword) => format!("({column_sql} IS {not}{keyword})"),
            None => "(NULL::boolean)".to_owned(),
        },
        Operator::IsDistinct => {
            let literal = quote_literal(&cond.value);
            format!("({column_sql} IS {not}DISTINCT FROM {literal}::{type_sql})")
        }
    }
}

/// The SQL keyword of a legal `is` value: exactly `null`, `true`, `false` or `unknown`.
pub fn is_keyword(value: &str) -> Option<&'static str> {
    match value {
        "null" => Some("NULL"),
        "true" => Some("TRUE"),
        "false" => Some("FALSE"),
        "unknown" => Some("UNKNOWN"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(filter: &str) -> String {
        condition_sql(&crate::filter::parse(filter).unwrap()[0], "r.\"c\"", "\"pg_catalog\".\"int4\"")
    }

    #[test]
    fn quoting_survives_quotes_backslashes_and_nul() {
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_ident("a\\\0"), r#"U&"a\\\0000""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(quote_literal("\0"), r"E'\000'");
    }

    #[test]
    fn every_operator_has_its_expression() {
        let cast = r#"::"pg_catalog"."int4""#;
        for (name, operator) in [
            ("eq", "="),
            ("neq", "<>"),
            ("lt", "<"),
            ("lte", "<="),
            ("gt", ">"),
            ("gte", ">="),
            ("like", "~~"),
            ("ilike", "~~*"),
            ("match", "~"),
            ("imatch", "~*"),
        ] {
            assert_eq!(sql(&format!("c={name}.1")), format!(r#"((r."c" {operator} '1'{cast}))"#));
            assert_eq!(sql(&format!("c=not.{name}.1")), format!(r#"(NOT (r."c" {operator} '1'{cast}))"#));
        }
        assert_eq!(sql("c=in.(1,2)"), format!(r#"(r."c" = ANY ('{{1,2}}'{cast}[]))"#));
        assert_eq!(
            sql("c=not.in.(1)"),
            format!(r#"(r."c" IS DISTINCT FROM NULL AND NOT (r."c" = ANY ('{{1}}'{cast}[])))"#)
        );
        assert_eq!(sql("c=is.null"), r#"(r."c" IS NULL)"#);
        assert_eq!(sql("c=not.is.unknown"), r#"(r."c" IS NOT UNKNOWN)"#);
        assert_eq!(sql("c=is.NULL"), "(NULL::boolean)");
        assert_eq!(sql("c=isdistinct.1"), format!(r#"(r."c" IS DISTINCT FROM '1'{cast})"#));
        assert_eq!(sql("c=not.isdistinct.1"), format!(r#"(r."c" IS NOT DISTINCT FROM '1'{cast})"#));
    }
}
