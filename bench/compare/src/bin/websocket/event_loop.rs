//! One epoll loop for all connections, as a shard of the server is: drain, mark, flush.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tidewire_compare::{Failure, allocations, cpu_ns, live_bytes, resident_bytes, say};
use tidewire_engine::Outbox;
use tidewire_protocol::websocket::{self, Decoder, Event, Opcode, Role};
use tokio_tungstenite::tungstenite::protocol::{Role as TungsteniteRole, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::{CONGESTION, PUBLISH, REPORT, message};

/// Frames of one vectored write, as in the server.
const SLICES: usize = 64;
const SCRATCH_BYTES: usize = 64 * 1024;

/// One message in every form that a variant wants, made once per message.
pub(crate) struct Prepared {
    frame: Bytes,
    text: Utf8Bytes,
}

/// A connection, and how it speaks WebSocket.
pub(crate) trait Connection {
    fn new(stream: TcpStream) -> Self;
    fn stream(&mut self) -> &mut TcpStream;
    /// Reads what is there and echoes each message.
    fn read(&mut self, scratch: &mut [u8]) -> Result<(), Failure>;
    fn queue(&mut self, messages: &[Prepared]) -> Result<(), Failure>;
    fn flush(&mut self, messages: &[Prepared]) -> Result<(), Failure>;
}

/// The ceiling: the bytes are there, and are written.
pub(crate) struct Bare(Own);

impl Connection for Bare {
    fn new(stream: TcpStream) -> Bare {
        Bare(Own::new(stream))
    }

    fn stream(&mut self) -> &mut TcpStream {
        self.0.stream()
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<(), Failure> {
        self.0.read(scratch)
    }

    fn queue(&mut self, _: &[Prepared]) -> Result<(), Failure> {
        Ok(())
    }

    fn flush(&mut self, messages: &[Prepared]) -> Result<(), Failure> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut total = 0;
        for (slice, message) in slices.iter_mut().zip(messages) {
            *slice = IoSlice::new(&message.frame);
            total += message.frame.len();
        }
        let written = self.0.stream.write_vectored(&slices[..messages.len()])?;
        if written == total { Ok(()) } else { Err("the socket's buffer is full".into()) }
    }
}

/// The server's codec and outbox.
pub(crate) struct Own {
    stream: TcpStream,
    decoder: Decoder,
    #[expect(clippy::box_collection, reason = "as in the server: at rest 8 bytes instead of 24")]
    partial: Option<Box<Vec<u8>>>,
    outbox: Outbox,
}

impl Connection for Own {
    fn new(stream: TcpStream) -> Own {
        let decoder = Decoder::new(Role::Server, 1 << 20);
        Own { stream, decoder, partial: None, outbox: Outbox::default() }
    }

    fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    fn read(&mut self, scratch: &mut [u8]) -> Result<(), Failure> {
        let count = self.stream.read(scratch)?;
        let mut buffer = self.partial.take().map_or_else(Vec::new, |partial| *partial);
        let bytes = if buffer.is_empty() {
            &mut scratch[..count]
        } else {
            buffer.extend_from_slice(&scratch[..count]);
            &mut buffer[..]
        };
        let mut used = 0;
        while let Some(decoded) = self.decoder.decode(&mut bytes[used..])? {
            used += decoded.consumed;
            if let Event::Text(text) = decoded.event {
                let echo = websocket::frame(Opcode::Text, text);
                self.outbox.push(echo, 1 << 20).map_err(|_| "the outbox is full")?;
            }
        }
        let rest = &bytes[used..];
        self.partial = (!rest.is_empty()).then(|| Box::new(rest.to_vec()));
        self.flush(&[])
    }

    fn queue(&mut self, messages: &[Prepared]) -> Result<(), Failure> {
        for message in messages {
            self.outbox.push(message.frame.clone(), 1 << 20).map_err(|_| "the outbox is full")?;
        }
        Ok(())
    }

    fn flush(&mut self, _: &[Prepared]) -> Result<(), Failure> {
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.outbox.slices(&mut slices);
            let written = self.stream.write_vectored(&slices[..filled])?;
            self.outbox.advance(written);
        }
        Ok(())
    }
}

/// The library's codec in our loop, without a task: it copies each frame into the connection's own buffer.
pub(crate) struct Tungstenite(tungstenite::WebSocket<TcpStream>);

impl Connection for Tungstenite {
    fn new(stream: TcpStream) -> Tungstenite {
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
        Tungstenite(tungstenite::WebSocket::from_raw_socket(stream, TungsteniteRole::Server, Some(config)))
    }

    fn stream(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }

    fn read(&mut self, _: &mut [u8]) -> Result<(), Failure> {
        match self.0.read() {
            Ok(message) => Ok(self.0.send(message)?),
            Err(tungstenite::Error::Io(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn queue(&mut self, messages: &[Prepared]) -> Result<(), Failure> {
        for message in messages {
            self.0.write(Message::Text(message.text.clone()))?;
        }
        Ok(())
    }

    fn flush(&mut self, _: &[Prepared]) -> Result<(), Failure> {
        Ok(self.0.flush()?)
    }
}

const LISTENER: Token = Token(usize::MAX);
/// The first connection is the reader's control connection.
const CONTROL: Token = Token(usize::MAX - 1);

pub(crate) fn run<C: Connection>(batch: usize) -> Result<(), Failure> {
    let mut listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    rustix::net::sockopt::set_tcp_congestion(&listener, CONGESTION)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    say(&listener.local_addr()?.port().to_string())?;
    let mut control: Option<TcpStream> = None;
    let mut connections: Vec<C> = Vec::new();
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut events = Events::with_capacity(1_024);
    let mut before = (cpu_ns(), allocations(), live_bytes(), resident_bytes()?);
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(60)))?;
        for event in &events {
            match event.token() {
                LISTENER => {
                    while let Some((mut stream, _)) = ready(listener.accept())? {
                        let token = if control.is_none() { CONTROL } else { Token(connections.len()) };
                        // Both directions, as in the server: a full socket must be noticed.
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        poll.registry().register(&mut stream, token, interest)?;
                        stream.set_nodelay(true)?;
                        if control.is_none() {
                            control = Some(stream);
                        } else {
                            connections.push(C::new(stream));
                        }
                    }
                }
                CONTROL => {
                    let Some(control) = control.as_mut() else { continue };
                    let mut command = [0];
                    while let Some(count) = ready(control.read(&mut command))? {
                        match (count, command[0]) {
                            (0, _) => return Ok(()),
                            (_, PUBLISH) => publish(&mut connections, batch)?,
                            (_, REPORT) => {
                                let now = (cpu_ns(), allocations(), live_bytes(), resident_bytes()?);
                                control.write_all(&report(before, now))?;
                                before = (cpu_ns(), allocations(), now.2, now.3);
                            }
                            _ => return Err("unknown command".into()),
                        }
                    }
                }
                Token(index) => {
                    if event.is_readable() {
                        // Until there is nothing: the poller tells only of what is new.
                        while connections[index].stream().peek(&mut [0]).is_ok_and(|count| count > 0) {
                            connections[index].read(&mut scratch)?;
                        }
                    }
                }
            }
        }
    }
}

fn publish<C: Connection>(connections: &mut [C], batch: usize) -> Result<(), Failure> {
    let messages: Vec<Prepared> = (0..batch)
        .map(|_| {
            let text = message();
            Prepared { frame: websocket::frame(Opcode::Text, text.as_bytes()), text: text.into() }
        })
        .collect();
    for connection in connections.iter_mut() {
        connection.queue(&messages)?;
    }
    for connection in connections.iter_mut() {
        connection.flush(&messages)?;
    }
    Ok(())
}

/// What changed between two looks: processor time, allocations, live bytes, resident bytes.
pub(crate) fn report(before: (u64, u64, u64, u64), now: (u64, u64, u64, u64)) -> Vec<u8> {
    let changes =
        [now.0 - before.0, now.1 - before.1, now.2.saturating_sub(before.2), now.3.saturating_sub(before.3)];
    changes.iter().flat_map(|change| change.to_be_bytes()).collect()
}

fn ready<T>(outcome: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
