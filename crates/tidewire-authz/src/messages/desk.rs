//! Where questions wait for each other.
//!
//! Owns two lines, one for reading and one for writing. A question waits in its line until a worker takes it together
//! with the others that have come meanwhile; one transaction answers them all, in one round trip. A question that is
//! already waiting is not asked twice. One that has been *sent* is never joined: its answer could be older than the
//! question. A worker lives as long as there is something in its line.
//!
//! Fails per question, or for all that wait when no session can be had. A caller that goes away is forgotten; what was
//! asked for it alone is not sent any more. The lines are bounded by [`WAITING_MAX`]; beyond it a question is refused.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::access::Access;
use super::probe::{self, Outcome};
use super::{Grants, ProbeError};
use crate::identity::Identity;
use crate::visibility::AccessError;
use crate::visibility::pool::{Lease, Pool};

/// Questions answered in one transaction. More would make all of them wait for the slowest policy among them; fewer
/// would pay the round trip more often.
const BATCH_MAX: usize = 32;
/// Different questions that may wait in one line: a second of work for one session (0.2 to 0.5 ms each were measured).
/// With policies so slow that it fills, refusing is kinder than waiting.
const WAITING_MAX: usize = 4096;
/// How long a free session is waited for. The reference's queue target is the same. Spec: PROTOCOL.md §8.5.
const PATIENCE: Duration = Duration::from_secs(5);
/// A session that is being opened for longer than this will not come.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Waiting in vain is counted for this long. Spec: PROTOCOL.md §7.1, authorization errors.
const VAIN_WINDOW: Duration = Duration::from_secs(30);

/// Something to be asked. Equal questions have equal answers at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) identity: Arc<Identity>,
    pub(super) topic: String,
    pub(super) headers: String,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Read { with_presence: bool },
    Write,
}

type Answer = Result<Grants, ProbeError>;

/// A question and those who wait for its answer.
#[derive(Debug)]
struct Asked {
    question: Question,
    callers: Vec<oneshot::Sender<Answer>>,
    /// It did not get its turn among others and is asked by itself.
    is_alone: bool,
}

#[derive(Debug, Default)]
struct Line {
    order: VecDeque<Question>,
    /// Callers of each question in `order`.
    callers: HashMap<Question, Vec<oneshot::Sender<Answer>>>,
    /// Questions that had no turn; before all others.
    again: VecDeque<Asked>,
    workers: usize,
}

#[derive(Debug)]
pub(crate) struct Desk {
    pub(super) pool: Arc<Pool>,
    pub(super) replay_role: Option<String>,
    access: Mutex<Option<Arc<Access>>>,
    reading: Mutex<Line>,
    writing: Mutex<Line>,
    in_vain: Mutex<VecDeque<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            replay_role: None,
            access: Mutex::default(),
            reading: Mutex::default(),
            writing: Mutex::default(),
            in_vain: Mutex::default(),
        }
    }

    pub(super) fn with_replay_role(&self, role: &str) -> Self {
        Self { replay_role: Some(role.to_owned()), ..Self::new(Arc::clone(&self.pool)) }
    }

    pub(super) fn access(&self) -> Option<Arc<Access>> {
        lock(&self.access).clone()
    }

    pub(super) fn set_access(&self, access: Arc<Access>) {
        *lock(&self.access) = Some(access);
    }

    fn line(&self, what: What) -> &Mutex<Line> {
        match what {
            What::Read { .. } => &self.reading,
            What::Write => &self.writing,
        }
    }

    /// Waits for the answer of one of the next transactions.
    pub(super) async fn ask(self: &Arc<Self>, question: Question) -> Answer {
        self.refuse_if_exhausted()?;
        let (sender, receiver) = oneshot::channel();
        let what = question.what;
        {
            let mut line = lock(self.line(what));
            if let Some(callers) = line.callers.get_mut(&question) {
                callers.push(sender);
            } else if line.order.len() >= WAITING_MAX {
                return Err(ProbeError::PoolExhausted);
            } else {
                line.callers.insert(question.clone(), vec![sender]);
                line.order.push_back(question);
            }
            // Half of the pool at most: judging changes goes on while a crowd joins.
            let workers_max = self.pool.config().pool_size.max(1).div_ceil(2);
            if line.workers < workers_max && line.order.len() > line.workers * BATCH_MAX {
                line.workers += 1;
                let desk = Arc::clone(self);
                tokio::spawn(async move { desk.work(what).await });
            }
        }
        // A worker that vanished with its runtime has not answered.
        receiver.await.unwrap_or(Err(ProbeError::Unavailable))
    }

    async fn work(self: Arc<Self>, what: What) {
        let mut attendance = Attendance { desk: &self, what, is_present: true };
        loop {
            // First the session, then the questions: what comes while we wait for it goes along.
            let lease = self.lease().await;
            let (batch, answers) = match lease {
                Ok(lease) => {
                    let batch = self.take(what, &mut attendance, BATCH_MAX);
                    if batch.is_empty() {
                        lease.give_back();
                        return;
                    }
                    let questions: Vec<_> = batch.iter().map(|asked| &asked.question).collect();
                    // Postgres ends its statements by itself; this ends waiting for one that is not there any more.
                    let limit = self.pool.config().statement_timeout.saturating_mul(10) + CONNECT_LIMIT;
                    let answers = timeout(limit, probe::answer(&self, lease, what, &questions)).await;
                    let answers =
                        answers.unwrap_or_else(|_| probe::everybody(&questions, &ProbeError::Unavailable));
                    (batch, answers)
                }
                Err(error) => {
                    let batch = self.take(what, &mut attendance, usize::MAX);
                    if batch.is_empty() {
                        return;
                    }
                    let answers = batch.iter().map(|_| Outcome::Answer(Err(error.clone()))).collect();
                    (batch, answers)
                }
            };
            for (asked, outcome) in batch.into_iter().zip(answers) {
                match outcome {
                    Outcome::NoTurn if !asked.is_alone => {
                        lock(self.line(what)).again.push_back(Asked { is_alone: true, ..asked });
                    }
                    Outcome::NoTurn => {
                        asked.answer(&Err(ProbeError::Canceled("policies took too long".to_owned())));
                    }
                    Outcome::Answer(answer) => asked.answer(&answer),
                }
            }
        }
    }

    /// The next questions somebody still waits for. If there are none, the worker has left the line: from then on the
    /// next question brings a new one.
    fn take(&self, what: What, attendance: &mut Attendance<'_>, limit: usize) -> Vec<Asked> {
        let mut line = lock(self.line(what));
        let mut taken = Vec::new();
        while taken.len() < limit {
            let asked = match line.again.pop_front() {
                Some(asked) => asked,
                None => {
                    let Some(question) = line.order.pop_front() else { break };
                    let callers = line.callers.remove(&question).unwrap_or_default();
                    Asked { question, callers, is_alone: false }
                }
            };
            if asked.callers.iter().all(oneshot::Sender::is_closed) {
                continue;
            }
            let is_alone = asked.is_alone;
            if is_alone && !taken.is_empty() && limit == BATCH_MAX {
                line.again.push_front(asked);
                break;
            }
            taken.push(asked);
            if is_alone && limit == BATCH_MAX {
                break;
            }
        }
        if taken.is_empty() {
            line.workers -= 1;
            attendance.is_present = false;
        }
        taken
    }

    pub(super) async fn lease(&self) -> Result<Lease, ProbeError> {
        let Ok(lease) = timeout(PATIENCE + CONNECT_LIMIT, self.pool.lease_within(PATIENCE)).await else {
            return Err(ProbeError::Unavailable);
        };
        match lease {
            Ok(Some(lease)) => Ok(lease),
            Ok(None) => {
                lock(&self.in_vain).push_back(Instant::now());
                Err(ProbeError::PoolExhausted)
            }
            Err(error @ AccessError::AuthenticatorUnsafe { .. }) => Err(ProbeError::Other(error.to_string())),
            Err(_) => Err(ProbeError::Unavailable),
        }
    }

    /// After as many waits in vain as there are sessions, nobody waits for a while. Spec: PROTOCOL.md §6.5, §7.1.
    pub(super) fn refuse_if_exhausted(&self) -> Result<(), ProbeError> {
        let mut in_vain = lock(&self.in_vain);
        while in_vain.front().is_some_and(|since| since.elapsed() >= VAIN_WINDOW) {
            in_vain.pop_front();
        }
        if in_vain.len() >= self.pool.config().pool_size.max(1) {
            return Err(ProbeError::PoolExhausted);
        }
        Ok(())
    }
}

impl Asked {
    fn answer(self, answer: &Answer) {
        for caller in self.callers {
            // Who has gone away does not want to know.
            let _ = caller.send(answer.clone());
        }
    }
}

/// A worker that ends in any other way than by an empty line (a panic, an ending runtime) leaves it as well.
struct Attendance<'a> {
    desk: &'a Desk,
    what: What,
    is_present: bool,
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if self.is_present {
            lock(self.desk.line(self.what)).workers -= 1;
        }
    }
}
