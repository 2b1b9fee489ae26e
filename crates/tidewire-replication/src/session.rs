//! One connection to Postgres as far as the start of streaming: sockets, startup, authentication, simple
//! queries, and the switch to streaming.
//!
//! Owns the bytes of both directions until [`Session::into_parts`] hands them to the stream. It may not know
//! what a slot or a publication is. Fails with [`StreamError`]; every message has a size bound.
//!
//! Spec: PostgreSQL, "Message Flow" and "SASL Authentication".

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{ErrorFields, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{ChannelBinding, Host, SslMode};

use crate::error::{Phase, ServerError, StreamError, classify};
use crate::stream::StreamConfig;

pub(crate) type ReadHalf = Box<dyn AsyncRead + Send + Sync + Unpin>;
pub(crate) type WriteHalf = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Tag of CopyBothResponse, which postgres-protocol does not know.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// Seen as `application_name` in `pg_stat_activity` and `pg_stat_replication`.
const APPLICATION_NAME: &str = "tidewire_changes";

/// Text output must not depend on settings of the role or the database: the change encoder reads these forms
/// only. `extra_float_digits` 3 means shortest exact output; a role's `statement_timeout` must not end us.
const FIXED_SETTINGS: [(&str, &str); 9] = [
    ("application_name", APPLICATION_NAME),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
];

/// A silent peer is noticed after 30 s + 3 × 10 s, and unacknowledged bytes after 60 s. An answer of the
/// *server* is deliberately not demanded: decoding a huge transaction may keep a healthy walsender silent.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);

/// What a connection is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Plain SQL.
    Sql,
    /// `replication=database`.
    Replication,
}

pub(crate) type Row = Vec<Option<String>>;

pub(crate) struct Session {
    read: ReadHalf,
    write: WriteHalf,
    buffer: BytesMut,
    out: BytesMut,
    max_message_bytes: usize,
}

enum Reply {
    Message(Message),
    CopyBoth,
}

impl Session {
    /// Connects and authenticates, trying each host in turn until one answers.
    pub(crate) async fn connect(config: &StreamConfig, purpose: Purpose) -> Result<Session, StreamError> {
        let postgres = &config.postgres;
        if matches!(postgres.get_ssl_mode(), SslMode::Require)
            || matches!(postgres.get_channel_binding(), ChannelBinding::Require)
        {
            return Err(StreamError::TlsUnsupported);
        }
        let mut last = StreamError::InvalidConfig("no database host is given".to_owned());
        for (host, port) in targets(&config.postgres)? {
            let attempt = Session::connect_to(config, &host, port, purpose);
            match tokio::time::timeout(config.connect_timeout, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error @ StreamError::Unreachable { .. })) => last = error,
                // A server answered: another host would not make a wrong password right.
                Ok(Err(error)) => return Err(error),
                Err(_) => last = StreamError::Unreachable { source: io::ErrorKind::TimedOut.into() },
            }
        }
        Err(last)
    }

    async fn connect_to(
        config: &StreamConfig,
        host: &Host,
        port: u16,
        purpose: Purpose,
    ) -> Result<Session, StreamError> {
        let (read, write) = dial(host, port).await.map_err(|source| StreamError::Unreachable { source })?;
        let mut session = Session {
            read,
            write,
            buffer: BytesMut::with_capacity(8 * 1024),
            out: BytesMut::new(),
            max_message_bytes: config.max_message_bytes,
        };
        session.authenticate(config, purpose).await.map_err(|error| match error {
            // Cut off before we were let in: nothing was streaming yet, so nothing was interrupted.
            StreamError::Interrupted { source } => StreamError::Unreachable { source },
            error => error,
        })?;
        Ok(session)
    }

    async fn authenticate(&mut self, config: &StreamConfig, purpose: Purpose) -> Result<(), StreamError> {
        let postgres = &config.postgres;
        let user = postgres
            .get_user()
            .ok_or_else(|| StreamError::InvalidConfig("no database user is given".to_owned()))?;
        let mut parameters = vec![("user", user), ("database", postgres.get_dbname().unwrap_or(user))];
        if purpose == Purpose::Replication {
            parameters.push(("replication", "database"));
        }
        if let Some(options) = postgres.get_options() {
            parameters.push(("options", options));
        }
        parameters.extend(FIXED_SETTINGS);
        frontend::startup_message(parameters, &mut self.out).map_err(unsendable)?;
        self.flush().await?;

        let password = || {
            postgres.get_password().ok_or_else(|| StreamError::AuthenticationFailed {
                reason: "the server asks for a password and none is set".to_owned(),
            })
        };
        loop {
            match self.message(Phase::Connect).await? {
                Message::AuthenticationOk => break,
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password()?, &mut self.out).map_err(unsendable)?;
                    self.flush().await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.out).map_err(unsendable)?;
                    self.flush().await?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut can_scram = false;
                    while let Some(mechanism) = mechanisms.next().map_err(malformed)? {
                        can_scram |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !can_scram {
                        return Err(unsupported_authentication());
                    }
                    self.scram(password()?).await?;
                }
                _ => return Err(unsupported_authentication()),
            }
        }
        loop {
            match self.message(Phase::Connect).await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::BackendKeyData(_) => {}
                _ => return Err(unexpected("while starting the session")),
            }
        }
    }

    async fn scram(&mut self, password: &[u8]) -> Result<(), StreamError> {
        let mut scram = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut self.out)
            .map_err(unsendable)?;
        self.flush().await?;
        let Message::AuthenticationSaslContinue(body) = self.message(Phase::Connect).await? else {
            return Err(unexpected("during SCRAM authentication"));
        };
        scram.update(body.data()).map_err(unproven)?;
        frontend::sasl_response(scram.message(), &mut self.out).map_err(unsendable)?;
        self.flush().await?;
        let Message::AuthenticationSaslFinal(body) = self.message(Phase::Connect).await? else {
            return Err(unexpected("during SCRAM authentication"));
        };
        scram.finish(body.data()).map_err(unproven)
    }

    /// Runs one statement or replication command and returns its rows as text.
    pub(crate) async fn query(&mut self, sql: &str, phase: Phase) -> Result<Vec<Row>, StreamError> {
        frontend::query(sql, &mut self.out).map_err(unsendable)?;
        self.flush().await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.reply(phase).await {
                Ok(Reply::Message(Message::ReadyForQuery(_))) => break,
                Ok(Reply::Message(Message::DataRow(body))) => {
                    let mut row = Row::new();
                    let mut ranges = body.ranges();
                    while let Some(range) = ranges.next().map_err(malformed)? {
                        row.push(range.map(|r| String::from_utf8_lossy(&body.buffer()[r]).into_owned()));
                    }
                    rows.push(row);
                }
                Ok(Reply::Message(
                    Message::RowDescription(_) | Message::CommandComplete(_) | Message::EmptyQueryResponse,
                )) => {}
                Ok(_) => return Err(unexpected("in answer to a query")),
                // These end the conversation. After an error that the server reported it goes on to ReadyForQuery,
                // and the session stays usable.
                Err(
                    error @ (StreamError::Interrupted { .. }
                    | StreamError::Protocol(_)
                    | StreamError::MessageTooLarge { .. }),
                ) => return Err(failure.unwrap_or(error)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(rows), Err)
    }

    /// Sends START_REPLICATION and waits for the switch to streaming.
    pub(crate) async fn start_streaming(&mut self, command: &str) -> Result<(), StreamError> {
        frontend::query(command, &mut self.out).map_err(unsendable)?;
        self.flush().await?;
        match self.reply(Phase::Start).await? {
            Reply::CopyBoth => Ok(()),
            Reply::Message(_) => Err(unexpected("in answer to START_REPLICATION")),
        }
    }

    /// Says goodbye; failures do not matter, the connection is over either way.
    pub(crate) async fn terminate(mut self) {
        frontend::terminate(&mut self.out);
        drop(self.flush().await);
    }

    /// The halves of the connection, and what was received but not read yet.
    pub(crate) fn into_parts(self) -> (ReadHalf, WriteHalf, BytesMut) {
        (self.read, self.write, self.buffer)
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        let sent = self.write.write_all_buf(&mut self.out).await;
        sent.map_err(|source| StreamError::Interrupted { source })
    }

    /// The next message that belongs to the conversation, with errors of the server as errors.
    async fn message(&mut self, phase: Phase) -> Result<Message, StreamError> {
        match self.reply(phase).await? {
            Reply::Message(message) => Ok(message),
            Reply::CopyBoth => Err(unexpected("outside of START_REPLICATION")),
        }
    }

    async fn reply(&mut self, phase: Phase) -> Result<Reply, StreamError> {
        loop {
            while let Some(frame) = Frame::peek(&self.buffer, self.max_message_bytes)? {
                if frame.tag == COPY_BOTH_RESPONSE_TAG {
                    self.buffer.advance(frame.total_bytes);
                    return Ok(Reply::CopyBoth);
                }
                match Message::parse(&mut self.buffer).map_err(malformed)? {
                    Some(Message::ErrorResponse(body)) => {
                        return Err(classify(server_error(body.fields())?, phase));
                    }
                    Some(Message::NoticeResponse(body)) => {
                        let notice = server_error(body.fields())?;
                        tracing::debug!(message = notice.message, "notice from the database");
                    }
                    Some(Message::ParameterStatus(_) | Message::NotificationResponse(_)) => {}
                    Some(message) => return Ok(Reply::Message(message)),
                    None => break,
                }
            }
            let read = self.read.read_buf(&mut self.buffer).await;
            match read.map_err(|source| StreamError::Interrupted { source })? {
                0 => return Err(StreamError::Interrupted { source: io::ErrorKind::UnexpectedEof.into() }),
                _ => continue,
            }
        }
    }
}

/// The header of a complete message at the front of a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    /// Tag and length included.
    pub(crate) total_bytes: usize,
}

impl Frame {
    /// `None` while the message is incomplete. The announced size is checked before anyone reserves memory.
    pub(crate) fn peek(buffer: &[u8], limit_bytes: usize) -> Result<Option<Frame>, StreamError> {
        Ok(Frame::announced(buffer, limit_bytes)?.filter(|frame| buffer.len() >= frame.total_bytes))
    }

    /// The header alone, whether or not the message is complete.
    pub(crate) fn announced(buffer: &[u8], limit_bytes: usize) -> Result<Option<Frame>, StreamError> {
        let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(StreamError::Protocol(format!("message length {length} is impossible")));
        }
        let bytes = u64::from(length) + 1;
        match usize::try_from(bytes) {
            Ok(total_bytes) if total_bytes <= limit_bytes => Ok(Some(Frame { tag, total_bytes })),
            _ => Err(StreamError::MessageTooLarge { bytes, limit_bytes }),
        }
    }
}

/// SQLSTATE and primary message; detail and hint may quote row values and are left behind.
pub(crate) fn server_error(mut fields: ErrorFields<'_>) -> Result<ServerError, StreamError> {
    let mut error = ServerError { sqlstate: String::new(), message: String::new() };
    while let Some(field) = fields.next().map_err(malformed)? {
        let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => error.sqlstate = value(),
            b'M' => error.message = value(),
            _ => {}
        }
    }
    Ok(error)
}

/// Pairs of host and port, as libpq pairs them: one port for all, or one each. `hostaddr` replaces names.
fn targets(postgres: &tokio_postgres::Config) -> Result<Vec<(Host, u16)>, StreamError> {
    let hosts: Vec<Host> = if postgres.get_hostaddrs().is_empty() {
        postgres.get_hosts().to_vec()
    } else {
        postgres.get_hostaddrs().iter().map(|address| Host::Tcp(address.to_string())).collect()
    };
    let ports = postgres.get_ports();
    if ports.len() > 1 && ports.len() != hosts.len() {
        return Err(StreamError::InvalidConfig("the number of ports differs from that of hosts".to_owned()));
    }
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
    Ok(hosts.into_iter().enumerate().map(|(index, host)| (host, port(index))).collect())
}

async fn dial(host: &Host, port: u16) -> io::Result<(ReadHalf, WriteHalf)> {
    match host {
        Host::Tcp(name) => {
            // Tries every address that the name resolves to.
            let stream = TcpStream::connect((name.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let socket = socket2::SockRef::from(&stream);
            let keepalive = socket2::TcpKeepalive::new()
                .with_time(KEEPALIVE_IDLE)
                .with_interval(KEEPALIVE_INTERVAL)
                .with_retries(KEEPALIVE_RETRIES);
            socket.set_tcp_keepalive(&keepalive)?;
            #[cfg(target_os = "linux")]
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
            let (read, write) = stream.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
        Host::Unix(folder) => {
            let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?;
            let (read, write) = stream.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
    }
}

fn malformed(error: io::Error) -> StreamError {
    StreamError::Protocol(error.to_string())
}

fn unexpected(place: &str) -> StreamError {
    StreamError::Protocol(format!("unexpected message {place}"))
}

/// A frontend message cannot be built: a NUL in a setting.
fn unsendable(error: io::Error) -> StreamError {
    StreamError::InvalidConfig(error.to_string())
}

fn unproven(error: io::Error) -> StreamError {
    StreamError::AuthenticationFailed { reason: format!("SCRAM: {error}") }
}

fn unsupported_authentication() -> StreamError {
    StreamError::AuthenticationFailed {
        reason:
            "the server asks for an authentication method other than trust, password, md5 or scram-sha-256"
                .to_owned(),
    }
}
