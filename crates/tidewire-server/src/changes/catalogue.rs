//! What the catalogue said a moment ago, for the checks of bindings.
//!
//! A thousand clients that come back after a restart ask the same questions within a second; each question is
//! put to Postgres once and the askers share the answer. Answers are at most [`MAX_AGE`] old, failures are not
//! kept, and a binding that a kept answer would refuse is checked again with fresh ones: *no* is final for a
//! client, so it must be true now. Who may see a change is not decided from here (see [`super::batch`]).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidewire_authz::{AccessError, Authenticator, Table};
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Long enough to cover a wave of joins, short enough that nobody notices a change of a publication late.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Entries above which the old ones are thrown out at the next question.
const MAX_ENTRIES: usize = 1_024;

/// Schema and table pattern.
type Names = (Option<String>, Option<String>);

/// Answers by question, each with its age and its one asker.
#[derive(Debug)]
struct Answers<K, V>(Mutex<HashMap<K, Answer<V>>>);

/// When it was asked, and what came, once it has come.
type Answer<V> = (Instant, Arc<OnceCell<V>>);

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Answers<K, V> {
    async fn get(
        &self,
        question: K,
        is_fresh: bool,
        ask: impl Future<Output = Result<V, AccessError>>,
    ) -> Result<V, AccessError> {
        let cell = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() > MAX_ENTRIES {
                kept.retain(|_, (at, _)| at.elapsed() < MAX_AGE);
            }
            let (at, cell) = kept.entry(question).or_insert_with(|| (Instant::now(), Arc::default()));
            if is_fresh || at.elapsed() >= MAX_AGE {
                (*at, *cell) = (Instant::now(), Arc::default());
            }
            Arc::clone(cell)
        };
        cell.get_or_try_init(|| ask).await.cloned()
    }
}

/// See the module documentation. A cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Catalogue {
    pub(super) authenticator: Authenticator,
    publication: Arc<str>,
    tables: Arc<Answers<u32, Arc<Table>>>,
    published: Arc<Answers<Names, Arc<[u32]>>>,
    position: Arc<SharedPosition>,
}

/// One look at the log for everybody who had asked when it began.
#[derive(Debug, Default)]
struct SharedPosition {
    askers: AtomicU64,
    /// The last asker that the last look covers, and what it saw.
    seen: tokio::sync::Mutex<(u64, u64)>,
}

impl Catalogue {
    pub(super) fn new(authenticator: Authenticator, publication: &str) -> Self {
        Self {
            authenticator,
            publication: publication.into(),
            tables: Arc::default(),
            published: Arc::default(),
            position: Arc::default(),
        }
    }

    /// Published tables whose names match.
    pub(super) async fn published(
        &self,
        schema: Option<String>,
        table: Option<String>,
        is_fresh: bool,
    ) -> Result<Arc<[u32]>, AccessError> {
        let question = (schema.clone(), table.clone());
        let ask = async {
            let found =
                self.authenticator.resolve(&self.publication, schema.as_deref(), table.as_deref()).await?;
            Ok(found.into())
        };
        self.published.get(question, is_fresh, ask).await
    }

    /// The position of the log, read after this call began.
    pub(super) async fn position(&self) -> Result<u64, AccessError> {
        let ticket = self.position.askers.fetch_add(1, Ordering::AcqRel) + 1;
        let mut seen = self.position.seen.lock().await;
        if seen.0 >= ticket {
            return Ok(seen.1);
        }
        let covers = self.position.askers.load(Ordering::Acquire);
        let position = self.authenticator.log_position().await?;
        *seen = (covers, position);
        Ok(position)
    }

    /// A table.
    pub(super) async fn table(&self, relid: u32, is_fresh: bool) -> Result<Arc<Table>, AccessError> {
        let ask = async { Ok(Arc::new(self.authenticator.table(relid).await?)) };
        self.tables.get(relid, is_fresh, ask).await
    }
}
