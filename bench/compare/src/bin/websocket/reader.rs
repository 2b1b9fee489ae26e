//! The clients: one thread, one epoll set, the same for every variant.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use mio::{Events, Interest, Poll, Token};
use tidewire_compare::Failure;
use tidewire_protocol::websocket::{self, Opcode};

use super::{PUBLISH, REPORT, message};

/// What a server says of itself, since it was started or last asked.
#[derive(Clone, Copy)]
pub(crate) struct Report {
    pub(crate) cpu_ns: u64,
    pub(crate) allocations: u64,
    pub(crate) live_bytes: u64,
    pub(crate) resident_bytes: u64,
}

pub(crate) struct Reader {
    control: TcpStream,
    poll: Poll,
    streams: Vec<mio::net::TcpStream>,
    /// Where in the frame each stream is.
    offsets: Vec<usize>,
}

impl Reader {
    /// Connects everybody, with one message each way, as a join would be.
    pub(crate) fn connect(port: u16, connections: usize) -> Result<Reader, Failure> {
        let control = TcpStream::connect(("127.0.0.1", port))?;
        let poll = Poll::new()?;
        let mut streams = Vec::with_capacity(connections);
        let mut join = Vec::new();
        websocket::write_masked(&mut join, Opcode::Text, message().as_bytes(), [7, 11, 13, 17]);
        let mut answer = vec![0; websocket::frame(Opcode::Text, message().as_bytes()).len()];
        for index in 0..connections {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.write_all(&join)?;
            stream.read_exact(&mut answer)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            streams.push(stream);
        }
        Ok(Reader { control, poll, offsets: vec![0; connections], streams })
    }

    pub(crate) fn report(&mut self) -> Result<Report, Failure> {
        self.control.write_all(&[REPORT])?;
        let mut bytes = [0; 32];
        self.control.read_exact(&mut bytes)?;
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        let mut next = || words.next().ok_or("a short report");
        Ok(Report { cpu_ns: next()?, allocations: next()?, live_bytes: next()?, resident_bytes: next()? })
    }

    /// A few rounds to warm up, then the measured ones.
    pub(crate) fn fan(&mut self, batch: usize, rounds: usize) -> Result<Report, Failure> {
        let frame = websocket::frame(Opcode::Text, message().as_bytes());
        let expected = frame.repeat(1_024);
        let mut scratch = vec![0; 256 * 1024];
        for _ in 0..5 {
            self.round(batch * frame.len(), &expected, &mut scratch)?;
        }
        self.report()?;
        for _ in 0..rounds {
            self.round(batch * frame.len(), &expected, &mut scratch)?;
        }
        self.report()
    }

    fn round(&mut self, each: usize, expected: &[u8], scratch: &mut [u8]) -> Result<(), Failure> {
        self.control.write_all(&[PUBLISH])?;
        let frame_bytes = expected.len() / 1_024;
        let mut missing = each * self.streams.len();
        let mut events = Events::with_capacity(1_024);
        while missing > 0 {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            for event in &events {
                let index = event.token().0;
                loop {
                    match self.streams[index].read(scratch) {
                        Ok(0) => return Err("the server closed a connection".into()),
                        Ok(count) => {
                            let offset = self.offsets[index];
                            if scratch[..count] != expected[offset..offset + count] {
                                return Err("the server sent something else".into());
                            }
                            self.offsets[index] = (offset + count) % frame_bytes;
                            missing = missing.checked_sub(count).ok_or("the server sent too much")?;
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }
}
