//! The loop of the change task: commands from the shards, finished checks, and the stream.

use std::sync::Arc;
use std::time::Duration;

use tidewire_authz::Authenticator;
use tidewire_engine::{ChangeCommand, ChannelId, PeerMessage, Rates};
use tidewire_protocol::codes::OperationalCode;
use tidewire_replication::{
    Durability, Lsn, Retry, SlotPolicy, Start, StreamConfig, StreamError, WalRead, WalStream,
};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::Batcher;
use super::catalogue::Catalogue;
use super::registry::{self, Checked, Registry, printed};
use super::{ChangeReceiver, ChangeStatus, parse_url};
use crate::config::{DatabaseConfig, ServerConfig};
use crate::maintenance::Owner;
use crate::shard::Shards;

/// Messages of one batch. A batch shares its round trips to Postgres; larger ones only delay the first.
const BATCH_MESSAGES: usize = 512;

/// Bytes of one batch: with rows of a megabyte, memory shall not follow [`BATCH_MESSAGES`].
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// First and longest wait between two attempts to open the stream.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Streams that may end one after the other without having brought anything new. Walsenders are killed and
/// connections cut; but a message that cannot be read ends every stream at the same place, and from here on that
/// is treated like a stream that cannot be opened.
const FRUITLESS_STREAMS: u32 = 10;

/// Attempts that may fail before the channels are told: a Postgres restart takes a second or two, and a
/// stream that goes on from its slot has missed nothing.
const QUIET_ATTEMPTS: u32 = 5;

/// How often and how many times the stream is looked at for a channel that waits for it: a minute (§3.7).
const READY_INTERVAL: Duration = Duration::from_millis(500);
const READY_LOOKS: u32 = 120;

/// The tenant's database as this task uses it.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) authenticator: Authenticator,
    pub(super) catalogue: Catalogue,
    stream: StreamConfig,
    messages_publication: String,
    owner: Option<Owner>,
}

impl Database {
    pub(super) fn new(
        database: &DatabaseConfig,
        authenticator: Authenticator,
        owner: Option<Owner>,
    ) -> Result<Self, tokio_postgres::Error> {
        let stream = StreamConfig::new(
            parse_url(database.replication_url.expose())?,
            database.slot.clone(),
            vec![database.publication.clone(), database.messages_publication.clone()],
        );
        let catalogue = Catalogue::new(authenticator.clone(), &database.publication);
        let messages_publication = database.messages_publication.clone();
        Ok(Self { authenticator, catalogue, stream, messages_publication, owner })
    }
}

enum Stream {
    /// No database.
    Off,
    /// Waiting before the next attempt, then opening.
    Opening(JoinHandle<Result<(WalStream, bool), StreamError>>),
    Live(Box<WalStream>),
}

/// [`Stream`] without what it holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    Opening,
    Live,
}

impl Stream {
    fn state(&self) -> State {
        match self {
            Self::Off => State::Off,
            Self::Opening(_) => State::Opening,
            Self::Live(_) => State::Live,
        }
    }
}

pub(super) struct ChangeTask {
    database: Option<Database>,
    commands: ChangeReceiver,
    shards: Shards,
    status: watch::Sender<ChangeStatus>,
    resubscribe_after: Duration,
    registry: Registry,
    batcher: Batcher,
    checks: JoinSet<Checked>,
    /// Channels whose check could not be made; tried again together.
    retry_checks: JoinSet<ChannelId>,
    failed_attempts: u32,
    /// Where an interrupted durable stream goes on; `None` = afresh.
    resume_from: Option<Lsn>,
    last_error: Option<String>,
    /// Streams in a row that brought nothing new.
    fruitless_streams: u32,
    /// The live stream contains messages from the database.
    has_messages: bool,
    /// Channels that want to be told when it does (§3.7), looked at again and again.
    awaiting_messages: JoinSet<(ChannelId, u32)>,
}

impl ChangeTask {
    pub(super) fn new(
        config: &ServerConfig,
        database: Option<Database>,
        commands: ChangeReceiver,
        shards: Shards,
        rates: Arc<Rates>,
        status: watch::Sender<ChangeStatus>,
    ) -> Self {
        Self {
            database,
            commands,
            batcher: Batcher::new(shards.clone(), &config.limits, rates),
            shards,
            status,
            resubscribe_after: Duration::from_millis(config.timers.resubscribe_ms),
            registry: Registry::default(),
            checks: JoinSet::new(),
            retry_checks: JoinSet::new(),
            failed_attempts: 0,
            resume_from: None,
            last_error: None,
            fruitless_streams: 0,
            has_messages: false,
            awaiting_messages: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut stream = self.open();
        loop {
            stream = tokio::select! {
                biased;
                // Stopping comes first, whatever else is ready.
                () = shutdown.cancelled() => break,
                // Commands before changes: a channel that has ended wants nothing more.
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.on_command(command, stream.state());
                        stream
                    }
                    None => break,
                },
                Some(Ok(checked)) = self.checks.join_next() => {
                    self.on_checked(checked, stream.state());
                    stream
                }
                Some(Ok(channel)) = self.retry_checks.join_next() => {
                    if stream.state() == State::Live {
                        self.begin_check(channel, false);
                    }
                    stream
                }
                Some(Ok((channel, looks))) = self.awaiting_messages.join_next() => {
                    self.tell_when_ready(channel, looks, stream.state());
                    stream
                }
                next = Self::advance(&mut stream) => self.on_stream(next, stream).await,
            };
        }
        if let Stream::Live(stream) = stream {
            stream.close().await;
        }
    }

    /// What the stream has next. Cancel safe.
    async fn advance(stream: &mut Stream) -> Advance {
        match stream {
            Stream::Off => std::future::pending().await,
            Stream::Opening(opening) => match opening.await {
                Ok(result) => {
                    Advance::Opened(result.map(|(stream, has_messages)| (Box::new(stream), has_messages)))
                }
                Err(_) => Advance::OpeningLost,
            },
            Stream::Live(stream) => Advance::Read(stream.read().await),
        }
    }

    async fn on_stream(&mut self, next: Advance, stream: Stream) -> Stream {
        match (next, stream) {
            (Advance::Opened(Ok((opened, has_messages))), _) => {
                self.has_messages = has_messages;
                self.on_live(&opened);
                Stream::Live(opened)
            }
            (Advance::Opened(Err(error)), _) => self.on_failure(&error),
            (Advance::OpeningLost, _) => self.open(),
            (Advance::Read(Ok(first)), Stream::Live(mut stream)) => {
                match self.handle_batch(first, &mut stream).await {
                    Ok(()) => Stream::Live(stream),
                    Err(error) => self.on_interruption(&stream, &error),
                }
            }
            (Advance::Read(Err(error)), Stream::Live(stream)) => self.on_interruption(&stream, &error),
            (Advance::Read(_), stream) => stream,
        }
    }

    /// Opens the stream in the background, after a wait that grows with the failures.
    fn open(&mut self) -> Stream {
        let Some(database) = &self.database else { return Stream::Off };
        let mut config = database.stream.clone();
        let (messages_publication, owner) = (database.messages_publication.clone(), database.owner.clone());
        let start = self.resume_from.map_or(Start::Fresh, Start::From);
        let wait = match self.failed_attempts {
            0 => Duration::ZERO,
            attempts => FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(10)).min(LAST_RETRY),
        };
        Stream::Opening(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(owner) = owner {
                owner.prepare().await;
            }
            // Without the publication of `realtime.messages` there is no broadcast from the database, and
            // nothing else is missing.
            let found = tidewire_replication::probe(&config).await?;
            let has_messages = !found.missing_publications.contains(&messages_publication);
            if !has_messages {
                tracing::warn!(
                    code = "PublicationMissing",
                    publication = messages_publication,
                    "no broadcast from the database: apply the schema `realtime` and restart the stream"
                );
                config.publications.retain(|publication| *publication != messages_publication);
            }
            let stream = WalStream::open(&config, SlotPolicy::Auto, start).await?;
            Ok((stream, has_messages))
        }))
    }

    fn on_live(&mut self, stream: &WalStream) {
        let resumed = self.resume_from.is_some();
        let durability = stream.durability();
        tracing::info!(started_at = %stream.started_at(), ?durability, resumed, "the change stream is live");
        if self.fruitless_streams < FRUITLESS_STREAMS {
            self.failed_attempts = 0;
            self.last_error = None;
        }
        self.batcher.on_stream_opened(resumed);
        if !resumed {
            self.batcher.start_at(stream.started_at());
            self.shards.metrics().begin_log(stream.started_at());
            self.registry.forget_positions();
        }
        self.status.send_replace(ChangeStatus::Live);
        // Whoever is not live yet is checked now, and whoever got a new token meanwhile. Whoever was told an
        // error is told the good news; after a new beginning everybody is, because there may be a gap (§5.11).
        let channels: Vec<ChannelId> = self
            .registry
            .channels
            .iter()
            .filter(|(_, entry)| !resumed || !entry.is_live || entry.was_told_error || entry.has_new_token)
            .map(|(channel, _)| *channel)
            .collect();
        for channel in channels {
            self.begin_check(channel, false);
        }
    }

    /// The connection ended. A durable slot goes on from what was delivered; anything else begins anew.
    fn on_interruption(&mut self, stream: &WalStream, error: &StreamError) -> Stream {
        self.fruitless_streams += 1;
        self.resume_from = (stream.durability() == Durability::Durable && !error.is_continuity_lost())
            .then(|| self.batcher.resume_position());
        self.on_failure(error)
    }

    fn on_failure(&mut self, error: &StreamError) -> Stream {
        self.failed_attempts += 1;
        self.shards.metrics().count_code_named(error.code());
        if error.is_continuity_lost() {
            tracing::error!(
                code = error.code(),
                "the slot is gone: changes may have been missed, starting afresh"
            );
            self.resume_from = None;
        }
        let text = printed(error.code(), error);
        let is_news = self.last_error.as_ref() != Some(&text);
        let advice = OperationalCode::ALL
            .iter()
            .find(|code| code.as_str() == error.code())
            .map_or("", |code| code.advice());
        if is_news || self.failed_attempts.is_multiple_of(60) {
            tracing::error!(code = error.code(), advice, attempt = self.failed_attempts, "{text}");
        }
        if error.retry() == Retry::Never && is_news {
            tracing::error!(code = error.code(), "this does not mend itself; trying again all the same");
        }
        self.status.send_replace(ChangeStatus::Down { code: error.code(), message: text.clone() });
        if self.failed_attempts == QUIET_ATTEMPTS {
            let live: Vec<ChannelId> = self.registry.channels.keys().copied().collect();
            for channel in live {
                self.tell_error(channel, &text);
            }
        }
        self.last_error = Some(text);
        self.open()
    }

    fn on_command(&mut self, command: ChangeCommand, state: State) {
        match command {
            ChangeCommand::Subscribe { channel, topic, credential, is_legacy, bindings } => {
                self.registry.join(channel, topic, is_legacy, bindings, credential);
                self.check_or_explain(channel, state);
            }
            ChangeCommand::Reauthorize { channel, credential } => {
                self.registry.replace_credential(channel, credential);
                self.check_or_explain(channel, state);
            }
            ChangeCommand::Unsubscribe { channel } => self.registry.leave(channel),
            ChangeCommand::TellWhenReady { channel } => self.tell_when_ready(channel, 0, state),
        }
    }

    /// §3.7: told as soon as messages from the database flow; after a minute without, shut down.
    fn tell_when_ready(&mut self, channel: ChannelId, looks: u32, state: State) {
        if state == State::Live && self.has_messages {
            let text = "Replication connection established".into();
            let message = PeerMessage::System { channel, extension: "system", ok: true, text };
            self.shards.send(channel.hub(), message);
        } else if looks >= READY_LOOKS {
            let text = "Replication connection was not established in time".into();
            self.shards.send(channel.hub(), PeerMessage::ShutDown { channel, text });
        } else {
            self.awaiting_messages.spawn(async move {
                tokio::time::sleep(READY_INTERVAL).await;
                (channel, looks + 1)
            });
        }
    }

    fn check_or_explain(&mut self, channel: ChannelId, state: State) {
        match state {
            State::Live => self.begin_check(channel, false),
            State::Off => {
                let text = "UnableToSubscribeToPostgres: this server has no database configured";
                self.tell_error(channel, text);
            }
            // The stream is on its way; a failure that is known already is told at once.
            State::Opening => {
                if self.failed_attempts >= QUIET_ATTEMPTS
                    && let Some(text) = self.last_error.clone()
                {
                    self.tell_error(channel, &text);
                }
            }
        }
    }

    fn begin_check(&mut self, channel: ChannelId, is_fresh: bool) {
        let Some(database) = &self.database else { return };
        if let Some(job) = self.registry.begin_check(channel) {
            self.checks.spawn(registry::check(database.catalogue.clone(), job, is_fresh));
        }
    }

    fn on_checked(&mut self, checked: Checked, state: State) {
        // While the stream is down a result is worth nothing: everybody is checked again when it is back.
        if state != State::Live || !self.registry.is_current(&checked) {
            return;
        }
        let channel = checked.channel;
        if self.registry.has_missed_a_table(&checked) {
            self.begin_check(channel, true);
            return;
        }
        match checked.outcome {
            Ok(live) => {
                self.registry.go_live(channel, &live);
                self.tell(channel, true, "Subscribed to PostgreSQL".into());
            }
            Err(error) => {
                let code = if error.is_transient {
                    OperationalCode::UnableToSubscribeToPostgres
                } else {
                    OperationalCode::RealtimeDisabledForConfiguration
                };
                self.shards.metrics().count_channel_code(code);
                tracing::warn!(code = code.as_str(), "{}", error.message);
                self.tell_error(channel, &error.message);
                if error.is_transient {
                    let wait = self.resubscribe_after;
                    self.retry_checks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        channel
                    });
                }
            }
        }
    }

    fn tell_error(&mut self, channel: ChannelId, text: &str) {
        if let Some(entry) = self.registry.channels.get_mut(&channel) {
            entry.was_told_error = true;
            self.tell(channel, false, text.to_owned());
        }
    }

    fn tell(&self, channel: ChannelId, ok: bool, text: String) {
        self.shards
            .send(channel.hub(), PeerMessage::System { channel, extension: "postgres_changes", ok, text });
    }

    /// Handles what the stream has ready, up to the bounds of a batch.
    async fn handle_batch(&mut self, first: WalRead, stream: &mut WalStream) -> Result<(), StreamError> {
        let mut batch = Vec::with_capacity(16);
        let mut bytes = 0;
        let mut next = Some(first);
        let metrics = Arc::clone(self.shards.metrics());
        while let Some(read) = next.take() {
            metrics.receive_log(match &read {
                WalRead::Data(data) => data.end,
                WalRead::Idle(lsn) => *lsn,
            });
            if let WalRead::Data(data) = &read {
                bytes += data.body.len();
            }
            batch.push(read);
            if batch.len() < BATCH_MESSAGES && bytes < BATCH_BYTES {
                next = stream.read_buffered();
            }
        }
        self.shards.uncongested().await;
        // Commands that came with or before these changes are handled first: a channel whose socket has
        // gone costs no work, and one that was told "Subscribed" is in the index already.
        while let Some(command) = self.commands.try_recv() {
            self.on_command(command, State::Live);
        }
        let Some(database) = &self.database else { return Ok(()) };
        let began = Instant::now();
        let before = self.batcher.position();
        if let Some(lsn) = self.batcher.handle(&batch, &mut self.registry, database).await? {
            stream.confirm(lsn);
            metrics.confirm_log(lsn);
        }
        // What is only sent again is nothing new.
        if self.batcher.position() > before {
            self.fruitless_streams = 0;
        }
        metrics.count_batch(began.elapsed());
        // Whoever may have missed a change is told so, and told again when it listens again (§5.11).
        for disturbed in self.batcher.take_disturbed() {
            self.tell_error(disturbed.channel, &disturbed.text);
            if disturbed.is_transient {
                self.begin_check(disturbed.channel, true);
            }
        }
        Ok(())
    }
}

enum Advance {
    /// With whether messages from the database are part of it.
    Opened(Result<(Box<WalStream>, bool), StreamError>),
    /// The opening task panicked or was cancelled; it is started again.
    OpeningLost,
    Read(Result<WalRead, StreamError>),
}
