//! A library and a task per connection, each with a bounded queue: how such servers are usually written.
//!
//! One thread, which favours this side: no wake-up crosses to another processor, and the publisher runs between
//! the tasks. A task takes everything that waits before it flushes.

use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload};
use futures_util::{SinkExt as _, StreamExt as _};
use tidewire_compare::{Failure, allocations, cpu_ns, live_bytes, resident_bytes, say};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{CONGESTION, PUBLISH, REPORT, event_loop, message};

/// Messages that may wait for one connection.
const QUEUE: usize = 64;
/// Of a library that writes each frame by itself; holds one batch.
const WRITE_BUFFER_BYTES: usize = 8 * 1024;

#[derive(Clone, Copy)]
pub(crate) enum Library {
    Tungstenite { read_buffer_bytes: usize },
    Fastwebsockets,
}

pub(crate) fn run(library: Library, batch: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(serve(library, batch)))
}

async fn serve(library: Library, batch: usize) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    rustix::net::sockopt::set_tcp_congestion(&listener, CONGESTION)?;
    say(&listener.local_addr()?.port().to_string())?;
    let (mut control, _) = listener.accept().await?;
    let mut senders: Vec<mpsc::Sender<Utf8Bytes>> = Vec::new();
    let mut before = (cpu_ns(), allocations(), live_bytes(), resident_bytes()?);
    loop {
        let mut command = [0];
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (sender, receiver) = mpsc::channel(QUEUE);
                senders.push(sender);
                tokio::task::spawn_local(async move {
                    // The end of a connection is the end of the measurement.
                    let _ended = match library {
                        Library::Tungstenite { read_buffer_bytes } => tungstenite(stream, receiver, read_buffer_bytes).await,
                        Library::Fastwebsockets => fastwebsockets(stream, receiver).await,
                    };
                });
            }
            read = control.read(&mut command) => match (read?, command[0]) {
                (0, _) => return Ok(()),
                (_, PUBLISH) => {
                    let messages: Vec<Utf8Bytes> = (0..batch).map(|_| message().into()).collect();
                    for sender in &senders {
                        for message in &messages {
                            sender.try_send(message.clone())?;
                        }
                    }
                }
                (_, REPORT) => {
                    let now = (cpu_ns(), allocations(), live_bytes(), resident_bytes()?);
                    control.write_all(&event_loop::report(before, now)).await?;
                    before = (cpu_ns(), allocations(), now.2, now.3);
                }
                _ => return Err("unknown command".into()),
            }
        }
    }
}

async fn tungstenite(
    stream: TcpStream,
    mut queue: mpsc::Receiver<Utf8Bytes>,
    read_buffer_bytes: usize,
) -> Result<(), Failure> {
    let config = WebSocketConfig::default().read_buffer_size(read_buffer_bytes);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    loop {
        tokio::select! {
            biased;
            text = queue.recv() => {
                let Some(text) = text else { return Ok(()) };
                socket.feed(Message::Text(text)).await?;
                while let Ok(text) = queue.try_recv() {
                    socket.feed(Message::Text(text)).await?;
                }
                socket.flush().await?;
            }
            message = socket.next() => {
                let Some(message) = message else { return Ok(()) };
                socket.send(message?).await?;
            }
        }
    }
}

async fn fastwebsockets(stream: TcpStream, mut queue: mpsc::Receiver<Utf8Bytes>) -> Result<(), Failure> {
    // The library writes each frame at once; without a buffer, 16 frames would be 16 system calls.
    let stream = BufWriter::with_capacity(WRITE_BUFFER_BYTES, stream);
    let mut socket = fastwebsockets::WebSocket::after_handshake(stream, fastwebsockets::Role::Server);
    loop {
        tokio::select! {
            biased;
            text = queue.recv() => {
                let Some(text) = text else { return Ok(()) };
                let text = Bytes::from(text);
                socket.write_frame(Frame::text(Payload::Borrowed(&text))).await?;
                while let Ok(text) = queue.try_recv() {
                    let text = Bytes::from(text);
                    socket.write_frame(Frame::text(Payload::Borrowed(&text))).await?;
                }
                socket.flush().await?;
            }
            frame = socket.read_frame() => {
                let frame = frame?;
                if frame.opcode == OpCode::Text {
                    // A frame that was read keeps the mask of its sender.
                    socket.write_frame(Frame::text(frame.payload)).await?;
                    socket.flush().await?;
                }
            }
        }
    }
}
