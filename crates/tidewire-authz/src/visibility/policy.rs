//! Several policies as one boolean expression. Pure.
//!
//! Follows `get_row_security_policies()` of the server: permissive policies are alternatives, each restrictive one is a
//! further condition, and without a permissive one nothing is visible. Spec: PostgreSQL manual, CREATE POLICY.

use super::table::Column;

/// One stored policy for SELECT.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) is_permissive: bool,
    pub(crate) expression: String,
    pub(crate) reads_whole_row: bool,
    pub(crate) attnums: Vec<i16>,
    /// Allowed roles that it applies to.
    pub(crate) roles: Vec<String>,
}

/// What a role has to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Combined {
    pub(crate) expression: Option<String>,
    /// For each column: read by one of the policies.
    pub(crate) columns: Vec<bool>,
}

/// `policies` come in the order of their names.
///
/// The order of the parts is the server's own (`RelationBuildRowSecurity()` reverses the list, restrictive policies are
/// sorted again and come first), so that a policy that raises does so for the same rows as in a SELECT.
pub(crate) fn combine(policies: &[Policy], role: &str, columns: &[Column]) -> Combined {
    let applying = || policies.iter().filter(|policy| policy.roles.iter().any(|to| to == role));
    let reads = columns
        .iter()
        .map(|column| {
            applying().any(|policy| policy.reads_whole_row || policy.attnums.contains(&column.attnum))
        })
        .collect();
    // A line break behind each expression ends any comment it might contain.
    let joined = |is_permissive: bool, glue: &str| {
        let parts = applying().filter(|policy| policy.is_permissive == is_permissive);
        let mut parts: Vec<_> = parts.map(|policy| format!("({}\n)", policy.expression)).collect();
        if is_permissive {
            parts.reverse();
        }
        if parts.is_empty() { None } else { Some(parts.join(glue)) }
    };
    let expression = joined(true, " OR ").map(|permissive| match joined(false, " AND ") {
        Some(restrictive) => format!("{restrictive} AND ({permissive})"),
        None => permissive,
    });
    Combined { expression, columns: reads }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(is_permissive: bool, expression: &str, role: &str) -> Policy {
        Policy {
            is_permissive,
            expression: expression.to_owned(),
            reads_whole_row: false,
            attnums: vec![],
            roles: vec![role.to_owned()],
        }
    }

    #[test]
    fn permissive_policies_are_alternatives_and_restrictive_ones_conditions() {
        let policies =
            [policy(true, "a", "x"), policy(false, "b", "x"), policy(true, "c", "x"), policy(true, "d", "y")];
        assert_eq!(combine(&policies, "x", &[]).expression.as_deref(), Some("(b\n) AND ((c\n) OR (a\n))"));
        assert_eq!(combine(&policies, "y", &[]).expression.as_deref(), Some("(d\n)"));
    }

    #[test]
    fn without_a_permissive_policy_there_is_nothing_to_pass() {
        assert_eq!(combine(&[policy(false, "true", "x")], "x", &[]).expression, None);
        assert_eq!(combine(&[], "x", &[]).expression, None);
        assert_eq!(combine(&[policy(true, "true", "y")], "x", &[]).expression, None);
    }
}
