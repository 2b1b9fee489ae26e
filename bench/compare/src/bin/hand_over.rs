//! What it costs to hand one message to another event loop.
//!
//! `hand_over [runs]`
//!
//! The receiver is a loop as a shard has it: a queue under a short lock, one wake-up per batch. One sender, which
//! either pauses until the receiver sleeps again (the worst case: each message is a wake-up) or goes on (the
//! wake-ups are shared). Processor time of both threads together, nanoseconds for one message.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mio::{Events, Poll, Token, Waker};
use tidewire_compare::{Failure, argument, cpu_ns, machine, median, say};

struct Inbox {
    queue: Mutex<Vec<Bytes>>,
    is_signalled: AtomicBool,
    taken: AtomicU64,
    is_over: AtomicBool,
    waker: Waker,
}

impl Inbox {
    fn push(&self, message: Bytes) -> std::io::Result<()> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        if self.is_signalled.swap(true, Ordering::AcqRel) { Ok(()) } else { self.waker.wake() }
    }

    fn wait_taken(&self, count: u64) {
        while self.taken.load(Ordering::Acquire) < count {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn receive(inbox: &Inbox, mut poll: Poll) -> std::io::Result<()> {
    let mut events = Events::with_capacity(16);
    let mut batch = Vec::new();
    while !inbox.is_over.load(Ordering::Acquire) {
        poll.poll(&mut events, None)?;
        inbox.is_signalled.store(false, Ordering::Release);
        std::mem::swap(&mut *inbox.queue.lock().unwrap_or_else(PoisonError::into_inner), &mut batch);
        let count = batch.drain(..).count() as u64;
        inbox.taken.fetch_add(count, Ordering::AcqRel);
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let runs: usize = argument(1, 7)?;
    say(&machine()?)?;
    let message = Bytes::from(vec![b'x'; 256]);
    // Messages between two looks at the receiver.
    for burst in [1, 64, 4_096] {
        let mut times = Vec::new();
        for _ in 0..runs {
            let poll = Poll::new()?;
            let inbox = Arc::new(Inbox {
                queue: Mutex::new(Vec::new()),
                is_signalled: AtomicBool::new(false),
                taken: AtomicU64::new(0),
                is_over: AtomicBool::new(false),
                waker: Waker::new(poll.registry(), Token(0))?,
            });
            let receiver = {
                let inbox = Arc::clone(&inbox);
                std::thread::spawn(move || receive(&inbox, poll))
            };
            let bursts = if burst == 4_096 { 500 } else { 3_000 };
            let cpu = cpu_ns();
            let mut sent = 0;
            for _ in 0..bursts {
                for _ in 0..burst {
                    inbox.push(message.clone())?;
                }
                sent += burst;
                inbox.wait_taken(sent);
            }
            times.push((cpu_ns() - cpu) as f64 / sent as f64);
            inbox.is_over.store(true, Ordering::Release);
            inbox.waker.wake()?;
            receiver.join().map_err(|_| "the receiver panicked")??;
        }
        say(&format!("{burst:>5} at a time: {} ns for one message, both threads", median(times)))?;
    }
    Ok(())
}
