//! The raw-socket ceiling: the frames of a measurement written to plain sockets by one thread that does nothing
//! else. The receiving half is the one that measures servers, so both pay the same for it.

use std::io::{IoSlice, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tidewire_protocol::frame::{self, NULL, Version};
use tidewire_protocol::websocket::{self, Opcode};

use crate::args::{CeilingArgs, FrameArgs, Publish, Serializer, ShapeArgs};
use crate::clock::{Clock, nanos};
use crate::failure::{Context as _, Failure};
use crate::fleet::Fleet;
use crate::output::{self, Table, count};
use crate::process;
use crate::publish::{Schedule, Template};
use crate::stamp::{self, Stamp};
use crate::tally::{Expect, Latency, Tally, latency, percentiles};

/// Most frames of one vectored write.
const MOST: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// One write per delivery.
    Direct,
    /// One vectored write per so many frames of a socket, at most 64.
    Coalesced(usize),
}

/// What is measured flat out.
pub(crate) const FLAT_OUT: [Writing; 3] = [Writing::Direct, Writing::Coalesced(16), Writing::Coalesced(64)];

/// What one run showed.
pub(crate) struct Ceiling {
    pub(crate) deliveries: u64,
    pub(crate) elapsed_s: f64,
    /// Processor time of the writing thread; on loopback it includes the receiver's part of TCP.
    pub(crate) cpu_s: f64,
    pub(crate) latency: Latency,
}

impl Ceiling {
    pub(crate) fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.elapsed_s.max(1e-9)
    }

    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu_s * 1e6 / self.deliveries.max(1) as f64
    }
}

pub(crate) fn run(args: &CeilingArgs) -> Result<(), Failure> {
    let frames = FrameArgs { serializer: Serializer::V2, publish: Publish::Text };
    crate::fanout::check(&args.shape, frames)?;
    output::line(&format!("`{}`  \n{}", output::command(), crate::machine::describe()));
    print_paced(&args.shape)?;
    for writing in FLAT_OUT {
        print_flat_out(&args.shape, writing)?;
    }
    let trips = round_trips(20_000)?;
    let table = Table::begin("ceiling: round trip of 64 B between two threads");
    table.row("p50 / p90 / p99 / p99.9 / max", &percentiles(&trips));
    Ok(())
}

/// At the shape's rate.
pub(crate) fn print_paced(shape: &ShapeArgs) -> Result<(), Failure> {
    let table = Table::begin(&format!(
        "ceiling: raw sockets, {} × {}, {} messages/s",
        shape.topics,
        shape.subscribers / shape.topics,
        count(shape.rate)
    ));
    for writing in [Writing::Direct, Writing::Coalesced(16)] {
        let ceiling = measure(shape, writing, true)?;
        table.row(&format!("{writing:?}: deliveries/s"), &count(ceiling.per_second()));
        table.row(
            &format!("{writing:?}: CPU-seconds per million"),
            &format!("{:.2}", ceiling.cpu_per_million()),
        );
        if writing == Writing::Direct {
            table.row("Direct: p50 / p90 / p99 / p99.9 / max", &percentiles(&ceiling.latency));
        }
    }
    Ok(())
}

/// As fast as the sockets take it.
pub(crate) fn print_flat_out(shape: &ShapeArgs, writing: Writing) -> Result<(), Failure> {
    let ceiling = measure(shape, writing, false)?;
    let table = Table::begin(&format!(
        "ceiling: raw sockets flat out, {} × {}, {writing:?}",
        shape.topics,
        shape.subscribers / shape.topics
    ));
    table.row("deliveries/s", &count(ceiling.per_second()));
    table.row("CPU-seconds per million", &format!("{:.2}", ceiling.cpu_per_million()));
    Ok(())
}

/// One run of the shape; without `is_paced` the sender writes as fast as the sockets take it.
pub(crate) fn measure(shape: &ShapeArgs, writing: Writing, is_paced: bool) -> Result<Ceiling, Failure> {
    let clock = Clock::start();
    let (near, far) = pairs(shape.subscribers)?;
    let mut fleet = Fleet::of_raw_sockets(clock, far)?;
    let template = Template::new(shape.bytes);
    let of: Vec<u16> = (0..shape.subscribers).map(|member| (member % shape.topics) as u16).collect();
    let mut tally = Tally::new(Expect::One(of), shape.subscribers, template.padding());
    let schedule = Schedule {
        start: clock.now() + nanos(Duration::from_millis(50)),
        rate: if is_paced { shape.rate } else { 1e9 },
        messages: if is_paced { (shape.rate * shape.seconds).round().max(1.0) as u64 } else { u64::MAX },
        tick: Duration::from_micros(shape.tick),
    };
    let stop = AtomicBool::new(false);
    let (sent, cpu_s) = std::thread::scope(|scope| {
        let sender = std::thread::Builder::new()
            .name("ceiling".into())
            .spawn_scoped(scope, || send(near, shape, writing, &template, schedule, clock, &stop))
            .map_err(|error| Failure::new(format!("cannot start the sending thread: {error}")))?;
        let end = Instant::now() + Duration::from_secs_f64(shape.seconds);
        while !sender.is_finished() {
            fleet.pump(Duration::from_millis(20), &mut tally)?;
            if !is_paced && Instant::now() > end {
                stop.store(true, Ordering::Relaxed);
            }
        }
        sender.join().map_err(|_| Failure::new("the sending thread failed"))?
    })?;
    let quiet = nanos(Duration::from_secs(2));
    let ended = clock.now();
    while tally.counts.delivered < sent && clock.now() - tally.last_at.max(ended) < quiet {
        fleet.pump(Duration::from_millis(20), &mut tally)?;
    }
    if tally.counts.delivered != sent || tally.counts.wrong() > 0 {
        return Err(Failure::new(format!(
            "raw sockets lost something, which must not be: {sent} sent, {:?}",
            tally.counts
        )));
    }
    Ok(Ceiling {
        deliveries: sent,
        elapsed_s: tally.last_at.saturating_sub(schedule.start) as f64 / 1e9,
        cpu_s,
        latency: tally.latency,
    })
}

/// Returns deliveries and the thread's processor time.
fn send(
    mut sockets: Vec<TcpStream>,
    shape: &ShapeArgs,
    writing: Writing,
    template: &Template,
    schedule: Schedule,
    clock: Clock,
    stop: &AtomicBool,
) -> Result<(u64, f64), Failure> {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
    let frames = (0..shape.topics).map(|topic| delivery(topic, template)).collect::<Vec<_>>();
    let batch = match writing {
        Writing::Direct => 1,
        Writing::Coalesced(frames) => frames.clamp(1, MOST),
    };
    let mut waiting: Vec<Vec<Vec<u8>>> = vec![Vec::new(); shape.topics];
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut numbers = vec![0u32; shape.topics];
    let mut deliveries = 0;
    let mut k = 0;
    while k < schedule.messages && !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        let due = schedule.due(k);
        if due > now {
            std::thread::sleep(Duration::from_nanos(due - now).max(schedule.tick));
            continue;
        }
        let topic = (k % shape.topics as u64) as usize;
        k += 1;
        let mut bytes = spare.pop().unwrap_or_default();
        bytes.clone_from(&frames[topic].0);
        let mark = frames[topic].1;
        Stamp { at: due, by: topic as u16, no: numbers[topic] }.write(&mut bytes[mark..]);
        numbers[topic] += 1;
        waiting[topic].push(bytes);
        if waiting[topic].len() == batch {
            deliveries += write_to(&mut sockets, topic, shape.topics, &waiting[topic])?;
            spare.append(&mut waiting[topic]);
        }
    }
    for (topic, rest) in waiting.iter().enumerate() {
        deliveries += write_to(&mut sockets, topic, shape.topics, rest)?;
    }
    Ok((deliveries, process::thread_cpu_s()))
}

/// One write (vectored if there are several frames) to each socket of a topic.
fn write_to(
    sockets: &mut [TcpStream],
    topic: usize,
    topics: usize,
    frames: &[Vec<u8>],
) -> Result<u64, Failure> {
    let total: usize = frames.iter().map(Vec::len).sum();
    if total == 0 {
        return Ok(0);
    }
    let mut slices = [IoSlice::new(&[]); MOST];
    for (slice, frame) in slices.iter_mut().zip(frames) {
        *slice = IoSlice::new(frame);
    }
    let slices = &slices[..frames.len()];
    let mut deliveries = 0;
    for socket in sockets.iter_mut().skip(topic).step_by(topics) {
        let mut written = match slices {
            [one] => socket.write(one),
            many => socket.write_vectored(many),
        }
        .context("cannot write to a raw socket")?;
        // A blocking socket takes everything unless a signal came; finish frame by frame then.
        for frame in frames {
            let skip = written.min(frame.len());
            written -= skip;
            if skip < frame.len() {
                socket.write_all(&frame[skip..]).context("cannot write to a raw socket")?;
            }
        }
        deliveries += frames.len() as u64;
    }
    Ok(deliveries)
}

/// The frame that a server sends for a text push, and where its mark is.
fn delivery(topic: usize, template: &Template) -> (Vec<u8>, usize) {
    let object = String::from_utf8_lossy(&template.object);
    let payload = format!(r#"{{"type":"broadcast","event":"bench","payload":{object}}}"#);
    let mut text = Vec::new();
    let topic = format!("realtime:bench-{topic}");
    frame::write_text(&mut text, Version::V2, NULL, NULL, &topic, "broadcast", &payload);
    let mut bytes = Vec::new();
    websocket::write_header(&mut bytes, Opcode::Text, text.len());
    bytes.extend_from_slice(&text);
    let digits = [b'0'; stamp::LEN];
    let mark = bytes
        .windows(stamp::LEN)
        .position(|window| window == digits)
        .expect("invariant: the template contains a mark of zeros");
    (bytes, mark)
}

/// Connected loopback sockets: the sender's ends and the receivers'.
fn pairs(many: usize) -> Result<(Vec<TcpStream>, Vec<TcpStream>), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address = listener.local_addr().context("cannot learn the listener's address")?;
    let (mut near, mut far) = (Vec::with_capacity(many), Vec::with_capacity(many));
    for serial in 0..many {
        let socket =
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).context("cannot make a socket")?;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + (serial % 8) as u8), 0));
        socket.bind(&source.into()).context("cannot bind to a loopback address")?;
        socket.connect(&address.into()).context("cannot connect to the raw listener")?;
        let (accepted, _) = listener.accept().context("cannot accept")?;
        accepted.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        near.push(accepted);
        far.push(socket.into());
    }
    Ok((near, far))
}

/// Round trips of 64 bytes between two blocking threads.
pub(crate) fn round_trips(many: usize) -> Result<Latency, Failure> {
    use std::io::Read as _;
    let (mut near, mut far) = pairs(1)?;
    let (Some(mut here), Some(mut there)) = (near.pop(), far.pop()) else {
        return Err(Failure::new("no pair of sockets"));
    };
    there.set_nodelay(true).context("cannot set TCP_NODELAY")?;
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while there.read_exact(&mut bytes).is_ok() && there.write_all(&bytes).is_ok() {}
    });
    let mut trips = latency();
    let mut bytes = [7; 64];
    for _ in 0..many {
        let began = Instant::now();
        here.write_all(&bytes).context("cannot write to a raw socket")?;
        here.read_exact(&mut bytes).context("cannot read from a raw socket")?;
        trips.saturating_record((began.elapsed().as_micros() as u64).max(1));
    }
    drop(here);
    echo.join().map_err(|_| Failure::new("the echo thread failed"))?;
    Ok(trips)
}
