//! The open-loop sender: message `k` is due at `k / rate`, whatever happened to the ones before it.
//!
//! A sender that falls behind does not slow down, it catches up in larger writes, and the delay is part of every
//! latency because a message carries the time at which it was due. What the server refuses to take waits here,
//! up to [`MAX_UNSENT`]; past that the run is over, since no more can be sustained.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidewire_protocol::frame::{self, Encoding, Version};
use tidewire_protocol::websocket::Opcode;

use crate::args::Publish;
use crate::clock::Clock;
use crate::failure::Failure;
use crate::fleet::{Fleet, Ignore};
use crate::stamp::{self, Stamp};

/// Bytes that may wait for the server in all. At 400 bytes a message this is more than a second of any rate
/// that could be sustained.
const MAX_UNSENT: usize = 256 * 1024 * 1024;

/// What is sent when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Clock at which the first message is due.
    pub(crate) start: u64,
    /// Messages per second in all.
    pub(crate) rate: f64,
    /// How many in all.
    pub(crate) messages: u64,
    /// Shortest sleep: below some, waking up costs more than the messages.
    pub(crate) tick: Duration,
}

impl Schedule {
    /// When message `k` is due.
    pub(crate) fn due(&self, k: u64) -> u64 {
        self.start + (k as f64 * 1e9 / self.rate) as u64
    }
}

/// The payload of a message: an object with one string, so many bytes in all.
pub(crate) struct Template {
    /// The whole object; the mark is at [`Template::MARK`].
    pub(crate) object: Vec<u8>,
}

impl Template {
    /// `{"m":"`
    pub(crate) const MARK: usize = 6;

    /// At least as long as a mark and its object.
    pub(crate) fn new(bytes: usize) -> Self {
        let padding = bytes.saturating_sub(Self::MARK + stamp::LEN + 2);
        let mut object = br#"{"m":""#.to_vec();
        object.resize(Self::MARK + stamp::LEN, b'0');
        object.extend((0..padding).map(|position| b'a' + (position % 26) as u8));
        object.extend_from_slice(br#""}"#);
        Self { object }
    }

    /// What follows the mark.
    pub(crate) fn padding(&self) -> &[u8] {
        &self.object[Self::MARK + stamp::LEN..]
    }
}

/// A frame to be sent again and again, with the place of its mark.
struct Frame {
    opcode: Opcode,
    bytes: Vec<u8>,
    mark: usize,
}

impl Frame {
    fn new(kind: Publish, version: Version, topic: &str, template: &Template) -> Result<Self, Failure> {
        let object = String::from_utf8_lossy(&template.object);
        let mut bytes = Vec::new();
        let opcode = match kind {
            Publish::Text => {
                let payload = format!(r#"{{"type":"broadcast","event":"bench","payload":{object}}}"#);
                frame::write_client_text(&mut bytes, version, "\"1\"", "\"2\"", topic, "broadcast", &payload);
                Opcode::Text
            }
            Publish::Binary => {
                let payload = object.as_bytes();
                frame::write_user_broadcast_push(
                    &mut bytes,
                    "1",
                    "2",
                    topic,
                    "bench",
                    "",
                    Encoding::Json,
                    payload,
                )
                .map_err(|error| Failure::new(error.to_string()))?;
                Opcode::Binary
            }
        };
        let digits = [b'0'; stamp::LEN];
        let mark = bytes
            .windows(stamp::LEN)
            .position(|window| window == digits)
            .ok_or_else(|| Failure::new("the frame lost its mark"))?;
        Ok(Self { opcode, bytes, mark })
    }
}

/// What the sender did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent {
    /// Messages per topic.
    pub(crate) per_topic: Vec<u32>,
    /// Most that one message was late when it was handed to its socket, microseconds.
    pub(crate) latest_us: u64,
    /// Everything due was sent and taken by the server.
    pub(crate) is_complete: bool,
    /// Processor time of the sending thread, seconds.
    pub(crate) cpu_s: f64,
    /// Publishers whose connection ended; what they would have sent is counted as sent and lost.
    pub(crate) ended: Vec<String>,
}

/// Sends on `fleet`, whose member `i` publishes to `topics[i]`, until everything is sent or `stop` is set.
///
/// The fleet is returned and must outlive the last delivery: what is still in the sockets' send queues would be
/// thrown away as soon as the server answered a heartbeat on a closed one.
pub(crate) fn publish(
    mut fleet: Fleet,
    topics: &[String],
    kind: Publish,
    template: &Template,
    schedule: Schedule,
    clock: Clock,
    stop: &AtomicBool,
) -> Result<(Sent, Fleet), Failure> {
    // The default slack of 50 µs would be added to every wake-up.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    let mut frames = topics
        .iter()
        .map(|topic| Frame::new(kind, Version::V2, topic, template))
        .collect::<Result<Vec<_>, _>>()?;
    let mut sent = Sent { per_topic: vec![0; topics.len()], ..Sent::default() };
    let mut k = 0;
    let mut turns = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        let mut burst = 0;
        while k < schedule.messages && burst < 8192 {
            let due = schedule.due(k);
            if due > now {
                break;
            }
            let topic = (k % topics.len() as u64) as usize;
            let frame = &mut frames[topic];
            Stamp { at: due, by: topic as u16, no: sent.per_topic[topic] }
                .write(&mut frame.bytes[frame.mark..]);
            fleet.send(topic, frame.opcode, &frame.bytes);
            sent.per_topic[topic] += 1;
            sent.latest_us = sent.latest_us.max((now - due) / 1000);
            k += 1;
            burst += 1;
        }
        fleet.flush();
        turns = turns.wrapping_add(1);
        let unsent = fleet.unsent_bytes();
        if unsent > MAX_UNSENT {
            break;
        }
        if k == schedule.messages && unsent == 0 {
            sent.is_complete = true;
            break;
        }
        if unsent > 0 {
            fleet.pump(Duration::from_millis(1), &mut Ignore)?;
        } else {
            if turns.is_multiple_of(256) {
                fleet.pump(Duration::ZERO, &mut Ignore)?;
                fleet.beat();
            }
            let wait = Duration::from_nanos(schedule.due(k).saturating_sub(clock.now()));
            std::thread::sleep(wait.max(schedule.tick).min(Duration::from_millis(100)));
        }
    }
    fleet.pump(Duration::ZERO, &mut Ignore)?;
    sent.ended = fleet.endings();
    sent.cpu_s = crate::process::thread_cpu_s();
    Ok((sent, fleet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_the_size_asked_for_and_is_json() {
        for bytes in [64, 256, 4096] {
            let template = Template::new(bytes);
            assert_eq!(template.object.len(), bytes);
            assert!(serde_json::from_slice::<serde_json::Value>(&template.object).is_ok());
        }
    }

    #[test]
    fn messages_are_due_at_even_distances() {
        let schedule = Schedule { start: 1000, rate: 1000.0, messages: 10, tick: Duration::ZERO };
        assert_eq!((schedule.due(0), schedule.due(3)), (1000, 3_001_000));
    }

    #[test]
    fn both_frames_contain_the_mark() {
        let template = Template::new(256);
        for kind in [Publish::Text, Publish::Binary] {
            let mut frame = Frame::new(kind, Version::V2, "realtime:bench-0", &template).unwrap();
            let stamp = Stamp { at: 5, by: 6, no: 7 };
            stamp.write(&mut frame.bytes[frame.mark..]);
            let start = stamp::find(&frame.bytes, 0).unwrap();
            assert_eq!(Stamp::read(&frame.bytes[start..]), Some(stamp));
        }
    }
}
