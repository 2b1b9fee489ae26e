//! What the catalogue says about `realtime.messages`, and what to ask for a role because of it. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::visibility::policy::{self, Policy};

/// Reads what [`Access`] is made of. `$1`: names of the allowed roles.
pub(super) const ACCESS: &str = include_str!("access.sql");

/// The catalogue at one moment.
#[derive(Debug)]
pub(super) struct Access {
    /// The answer of Postgres, by which a later one is known to say the same.
    pub(super) text: String,
    /// `binary_payload` exists: the reference added it in 2026.
    pub(super) has_binary: bool,
    roles: BTreeMap<String, RoleFacts>,
    /// For each role, its policies as one expression.
    readers: BTreeMap<String, Reader>,
}

/// How a role's permission to read is established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reader {
    /// Everything is visible.
    All,
    /// Nothing is.
    Nothing,
    /// The policies, evaluated on an image.
    Image {
        /// For the extension `broadcast`.
        broadcast: String,
        /// For `broadcast`, then `presence`.
        both: String,
    },
    /// An image does not tell what a policy reads: a row has to be there.
    Row,
    /// The role may not even try.
    Refused(&'static str),
}

#[derive(Debug, Deserialize)]
struct Answer {
    roles: Option<BTreeMap<String, RoleFacts>>,
    policies: Option<Vec<PolicyFacts>>,
    has_binary: bool,
}

#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts of the catalogue")]
struct RoleFacts {
    sees_all_rows: bool,
    can_select: bool,
    can_select_all: bool,
    can_insert: bool,
}

#[derive(Debug, Deserialize)]
struct PolicyFacts {
    is_permissive: bool,
    expression: String,
    reads_more: bool,
    roles: Vec<String>,
}

impl Access {
    /// `None` if it is not what [`ACCESS`] answers.
    pub(super) fn read(text: String) -> Option<Self> {
        let answer: Answer = serde_json::from_str(&text).ok()?;
        let roles = answer.roles.unwrap_or_default();
        let facts = answer.policies.unwrap_or_default();
        let policies: Vec<Policy> = facts
            .iter()
            .map(|facts| Policy {
                is_permissive: facts.is_permissive,
                expression: facts.expression.clone(),
                reads_whole_row: false,
                attnums: Vec::new(),
                roles: facts.roles.clone(),
            })
            .collect();
        let readers = roles.iter().map(|(name, role)| {
            let reads_more = || facts.iter().any(|policy| policy.reads_more && policy.roles.contains(name));
            let reader = if !role.can_select {
                Reader::Refused("the role may not select from realtime.messages")
            } else if role.sees_all_rows {
                Reader::All
            } else {
                match policy::combine(&policies, name, &[]).expression {
                    None => Reader::Nothing,
                    Some(_) if reads_more() => Reader::Row,
                    Some(expression) => Reader::Image {
                        broadcast: on_image(&expression, &["broadcast"]),
                        both: on_image(&expression, &["broadcast", "presence"]),
                    },
                }
            };
            (name.clone(), reader)
        });
        let readers = readers.collect();
        Some(Self { text, has_binary: answer.has_binary, roles, readers })
    }

    pub(super) fn reader(&self, role: &str) -> Reader {
        const UNKNOWN: Reader = Reader::Refused("the role does not exist or is not allowed");
        self.readers.get(role).cloned().unwrap_or(UNKNOWN)
    }

    /// The role exists, is allowed, and somebody may speak for it.
    pub(super) fn is_fit(&self, role: &str) -> bool {
        self.roles.contains_key(role)
    }

    /// A role that sees and may select everything. `preferred` if it is one, then `service_role`, then any other.
    pub(super) fn bypassing(&self, preferred: Option<&str>, must_insert: bool) -> Option<&str> {
        let fits = |name: &str| {
            let facts = self.roles.get_key_value(name);
            let (name, facts) = facts.filter(|(_, role)| role.sees_all_rows && role.can_select_all)?;
            (facts.can_insert || !must_insert).then_some(name.as_str())
        };
        match preferred {
            Some(name) => fits(name),
            None => fits("service_role").or_else(|| self.roles.keys().find_map(|name| fits(name))),
        }
    }
}

/// The policies of a role, evaluated on a row as the reference would insert it: `$1` is the topic.
///
/// The alias is the table's name because stored expressions call it so. Names of functions are qualified: the
/// subscriber's role may have functions of its own in the search path.
fn on_image(expression: &str, extensions: &[&str]) -> String {
    let images: Vec<_> = extensions
        .iter()
        .map(|extension| {
            format!(
                "pg_catalog.json_build_object('id', pg_catalog.gen_random_uuid(), 'topic', $1::text, \
                 'extension', '{extension}', 'private', false, \
                 'inserted_at', pg_catalog.timezone('UTC', pg_catalog.now()), \
                 'updated_at', pg_catalog.timezone('UTC', pg_catalog.now()))"
            )
        })
        .collect();
    format!(
        "SELECT coalesce(({expression}\n), false) FROM pg_catalog.json_populate_recordset(\
         null::realtime.messages, pg_catalog.json_build_array({})) AS messages",
        images.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(policies: &str) -> Access {
        let role = |all: bool, select: bool| {
            format!(
                r#"{{"sees_all_rows":{all},"can_select":{select},"can_select_all":{select},"can_insert":{select}}}"#
            )
        };
        let text = format!(
            r#"{{"roles":{{"anon":{},"locked":{},"service_role":{},"backup":{}}},"policies":{policies},"has_binary":true}}"#,
            role(false, true),
            role(false, false),
            role(true, true),
            role(true, true),
        );
        Access::read(text).expect("readable")
    }

    #[test]
    fn who_has_no_policy_reads_nothing_and_who_is_unknown_is_refused() {
        let access = access("null");
        assert_eq!(access.reader("anon"), Reader::Nothing);
        assert_eq!(access.reader("service_role"), Reader::All);
        assert!(matches!(access.reader("locked"), Reader::Refused(_)));
        assert!(matches!(access.reader("nobody"), Reader::Refused(_)));
    }

    #[test]
    fn a_policy_that_reads_more_than_an_image_has_needs_a_row() {
        let policy = |more: bool| {
            format!(r#"[{{"is_permissive":true,"expression":"x","reads_more":{more},"roles":["anon"]}}]"#)
        };
        assert_eq!(access(&policy(true)).reader("anon"), Reader::Row);
        assert!(matches!(access(&policy(false)).reader("anon"), Reader::Image { .. }));
    }

    #[test]
    fn the_bypassing_role_is_the_configured_one_or_none() {
        let access = access("[]");
        assert_eq!(access.bypassing(None, true), Some("service_role"));
        assert_eq!(access.bypassing(Some("backup"), true), Some("backup"));
        assert_eq!(access.bypassing(Some("anon"), false), None);
    }
}
