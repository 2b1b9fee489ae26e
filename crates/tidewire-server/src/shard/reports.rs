//! Operational events into the log, at most so many of one code per second: a client that misbehaves in
//! a loop must not turn the log into the bottleneck.

use rustc_hash::FxHashMap;
use tidewire_engine::{Now, Report};

/// Lines of one code per second and shard; the rest is counted and summed up.
const LINES_PER_SECOND: u32 = 20;

#[derive(Debug, Default)]
pub(super) struct Reports {
    second: u64,
    counts: FxHashMap<&'static str, u32>,
}

impl Reports {
    pub(super) fn log(&mut self, now: Now, report: &Report) {
        let second = now.mono_ms / 1000;
        if second != self.second {
            self.second = second;
            for (code, count) in self.counts.drain() {
                if count > LINES_PER_SECOND {
                    tracing::warn!(code, suppressed = count - LINES_PER_SECOND, "more events of this code");
                }
            }
        }
        let code = report.code.as_str();
        let count = self.counts.entry(code).or_default();
        *count += 1;
        if *count <= LINES_PER_SECOND {
            let topic = report.topic.as_deref().unwrap_or_default();
            tracing::warn!(code, socket = report.socket.index, topic, "{code}: {}", report.detail);
        }
    }
}
