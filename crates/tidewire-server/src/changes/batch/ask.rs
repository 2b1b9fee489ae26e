//! What only Postgres can decide: filters that are not proven equal in process, and policies.
//!
//! Questions are put per *version* of a table: policies may change in the middle of a batch, and a change
//! committed after that is judged by the new ones. An image is known by its version and its position there
//! ([`Asked`]); an answer about one table can never be taken for an answer about another.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tidewire_authz::RowImage;
use tidewire_change::write_string;
use tidewire_engine::{Action, Value};
use tidewire_protocol::codes::OperationalCode;

use super::{Pending, VISIBILITY_TIMEOUT, patiently};
use crate::changes::registry::Registry;
use crate::changes::table::PublishedTable;
use crate::changes::task::Database;

/// An image that Postgres was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    /// Position of the table's version in [`Answers`].
    table: usize,
    /// Position among its images.
    image: usize,
}

/// What Postgres is asked about one version of a table in one batch.
struct Questions {
    table: Arc<PublishedTable>,
    images: Vec<RowImage>,
    expressions: Vec<String>,
    /// identity → images it may have to see.
    identities: FxHashMap<u32, Vec<usize>>,
}

/// The answers about one version of a table; what is not in here is *no*.
#[derive(Default)]
struct TableAnswers {
    /// expression → images for which it holds.
    holds: HashMap<String, FxHashSet<usize>>,
    /// (identity, image).
    visible: FxHashSet<(u32, usize)>,
}

/// All answers of a batch.
#[derive(Default)]
pub(super) struct Answers {
    tables: Vec<TableAnswers>,
    /// Tables of which something could not be decided, and why.
    pub(super) undecided: Vec<(u32, String)>,
}

impl Answers {
    /// Nothing was asked: everything could be decided here.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.undecided.is_empty()
    }

    fn about(&self, change: &Pending<'_>) -> Option<(&TableAnswers, usize)> {
        let asked = change.asked?;
        Some((self.tables.get(asked.table)?, asked.image))
    }

    /// Whether all these expressions hold for the change's row.
    pub(super) fn filter_holds<'t>(
        &self,
        change: &Pending<'_>,
        mut expressions: impl Iterator<Item = &'t str>,
    ) -> bool {
        let Some((answers, image)) = self.about(change) else { return false };
        expressions
            .all(|expression| answers.holds.get(expression).is_some_and(|images| images.contains(&image)))
    }

    /// Whether the identity may see the change's row.
    pub(super) fn is_visible(&self, change: &Pending<'_>, identity: u32) -> bool {
        self.about(change).is_some_and(|(answers, image)| answers.visible.contains(&(identity, image)))
    }
}

/// Puts all questions of a batch.
pub(super) async fn ask(pending: &mut [Pending<'_>], registry: &Registry, database: &Database) -> Answers {
    let (questions, mut xids) = gather(pending, registry);
    if questions.is_empty() {
        return Answers::default();
    }
    xids.sort_unstable();
    xids.dedup();
    // The stream is ahead of what other sessions can see: ask only about what is visible.
    let authenticator = &database.authenticator;
    let visible = patiently("visibility", || authenticator.wait_visible(&xids, VISIBILITY_TIMEOUT)).await;
    let mut answers = Answers::default();
    if let Err(text) = visible {
        let all = questions.iter().map(|asked| (asked.table.catalogue.relid, text.clone()));
        answers.undecided.extend(all);
        return answers;
    }
    for asked in &questions {
        let mut about = TableAnswers::default();
        for outcome in [
            ask_filters(asked, database, &mut about).await,
            ask_policies(asked, registry, database, &mut about).await,
        ] {
            answers.undecided.extend(outcome.err().map(|text| (asked.table.catalogue.relid, text)));
        }
        answers.tables.push(about);
    }
    answers
}

fn gather(pending: &mut [Pending<'_>], registry: &Registry) -> (Vec<Questions>, Vec<u32>) {
    let mut questions: Vec<Questions> = Vec::new();
    let mut xids = Vec::new();
    for change in pending {
        let mut expressions: Vec<&str> = Vec::new();
        let mut identities: Vec<u32> = Vec::new();
        for found in &change.matches {
            let group = registry.index.group(found.group);
            let Some(access) = change.table.access(&group.key.role) else { continue };
            if found.needs_sql {
                expressions.extend(group.sql_tests());
            }
            if change.action != Action::Delete && !access.sees_all_rows && access.policy.is_some() {
                let wanting =
                    group.members.iter().filter(|member| member.wants(change.action, change.commit));
                identities.extend(wanting.map(|member| member.identity));
            }
        }
        if expressions.is_empty() && identities.is_empty() {
            continue;
        }
        let Some(image) = row_image(change) else { continue };
        let table = match questions.iter().position(|asked| Arc::ptr_eq(&asked.table, &change.table)) {
            Some(table) => table,
            None => {
                questions.push(Questions {
                    table: Arc::clone(&change.table),
                    images: Vec::new(),
                    expressions: Vec::new(),
                    identities: FxHashMap::default(),
                });
                questions.len() - 1
            }
        };
        let asked = &mut questions[table];
        change.asked = Some(Asked { table, image: asked.images.len() });
        identities.sort_unstable();
        identities.dedup();
        for identity in identities {
            asked.identities.entry(identity).or_default().push(asked.images.len());
        }
        for expression in expressions {
            if !asked.expressions.iter().any(|known| known == expression) {
                asked.expressions.push(expression.to_owned());
            }
        }
        asked.images.push(image);
        xids.push(change.xid);
    }
    (questions, xids)
}

async fn ask_filters(
    asked: &Questions,
    database: &Database,
    answers: &mut TableAnswers,
) -> Result<(), String> {
    if asked.expressions.is_empty() {
        return Ok(());
    }
    let authenticator = &database.authenticator;
    let evaluated = patiently("filters", || {
        authenticator.evaluate(&asked.table.catalogue, &asked.expressions, &asked.images)
    })
    .await?;
    for (expression, holds) in asked.expressions.iter().zip(evaluated) {
        let images = holds.iter().enumerate().filter(|(_, holds)| **holds).map(|(image, _)| image);
        answers.holds.insert(expression.clone(), images.collect());
    }
    Ok(())
}

/// Identities that want the same images are judged together, so that nobody is asked about rows that its
/// filter has excluded.
async fn ask_policies(
    asked: &Questions,
    registry: &Registry,
    database: &Database,
    answers: &mut TableAnswers,
) -> Result<(), String> {
    let mut by_images: HashMap<&[usize], Vec<u32>> = HashMap::new();
    for (identity, images) in &asked.identities {
        by_images.entry(images).or_default().push(*identity);
    }
    let (authenticator, table) = (&database.authenticator, &asked.table.catalogue);
    for (images, identities) in by_images {
        let rows: Vec<RowImage> = images.iter().map(|image| asked.images[*image].clone()).collect();
        let subscribers: Vec<_> =
            identities.iter().map(|identity| Arc::clone(registry.identity(*identity))).collect();
        let judged = patiently("policies", || authenticator.judge(table, &subscribers, &rows)).await;
        let judgement = judged?;
        if let Some((_, error)) = judgement.errors.first() {
            tracing::warn!(
                code = OperationalCode::AuthorizationFailed.as_str(),
                table = %table.name,
                identities = judgement.errors.len(),
                error,
                "a policy failed; these subscribers get nothing of this batch"
            );
        }
        for (identity, visible) in identities.iter().zip(&judgement.visible) {
            let seen = images.iter().zip(visible).filter(|(_, visible)| **visible);
            answers.visible.extend(seen.map(|(image, _)| (*identity, *image)));
        }
    }
    Ok(())
}

/// The row as policies and SQL filters see it: exactly the columns it has.
fn row_image(change: &Pending<'_>) -> Option<RowImage> {
    /// `json` and `jsonb` are embedded; a string would become a JSON string, not the value.
    const JSON_TYPES: [u32; 2] = [114, 3802];
    let row = change.judged()?;
    let mut json = Vec::with_capacity(256);
    json.push(b'{');
    let described = change.table.columns.iter().zip(&change.table.catalogue.columns);
    for ((column, described), value) in described.zip(row.values()) {
        if *value == Value::Missing {
            continue;
        }
        if json.len() > 1 {
            json.push(b',');
        }
        write_string(&mut json, &column.name);
        json.push(b':');
        match value {
            Value::Text(text) if JSON_TYPES.contains(&described.kind.oid) => {
                json.extend_from_slice(text.as_bytes())
            }
            Value::Text(text) => write_string(&mut json, text),
            Value::Null | Value::Missing => json.extend_from_slice(b"null"),
        }
    }
    json.push(b'}');
    Some(RowImage { json: String::from_utf8(json).ok()? })
}
