//! What the kernel knows of a process: processor time, memory, children, descriptors. Linux only.
//!
//! `utime + stime` of `/proc/PID/stat` are scaled by the kernel to the precise run time of all threads, so
//! their sum is good to one tick (10 ms) whatever the sampling says; runs shorter than a second are not.

use std::collections::HashMap;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::failure::{Context as _, Failure};

/// Processor time and memory of a process at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and kernel time, seconds.
    pub(crate) cpu_s: f64,
    /// Resident set, bytes.
    pub(crate) rss: u64,
    /// Private anonymous part of it: without the program file and libraries.
    pub(crate) anonymous: u64,
    /// Largest resident set since the start or since [`reset_peak`].
    pub(crate) peak: u64,
}

/// Reads both; fails when the process is gone.
pub(crate) fn usage(pid: u32) -> Result<Usage, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the server process is gone")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server process is gone")?;
    let memory = |key| kilobytes(&status, key).unwrap_or(0) * 1024;
    Ok(Usage {
        cpu_s: cpu_of_stat(&stat).unwrap_or(0.0),
        rss: memory("VmRSS:"),
        anonymous: memory("RssAnon:"),
        peak: memory("VmHWM:"),
    })
}

/// Makes the peak start again from the present size. Without the right to do so the peak stays that of the
/// whole life of the process, which is larger: an error in the safe direction.
pub(crate) fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Processor time of all descendants, seconds; for the server of `tidewire dev` that is Postgres.
pub(crate) fn descendants_cpu_s(pid: u32) -> f64 {
    let mut parents = HashMap::new();
    let mut times = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(fields) = fields_of_stat(&stat) else { continue };
        let parent = fields.get(1).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
        parents.insert(id, parent);
        times.insert(id, cpu_of_stat(&stat).unwrap_or(0.0));
    }
    let is_descendant = |mut id: u32| {
        while let Some(&parent) = parents.get(&id) {
            if parent == pid {
                return true;
            }
            id = parent;
        }
        false
    };
    times.iter().filter(|(id, _)| is_descendant(**id)).map(|(_, time)| time).sum()
}

/// Processor time of everything on the machine, stolen time included, seconds.
pub(crate) fn machine_cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&stat) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// All but the idle and waiting times of the first line; guests are contained in the user time.
fn busy_ticks(stat: &str) -> u64 {
    let total = stat.lines().next().unwrap_or_default();
    let fields = total.split_whitespace().skip(1).take(8).enumerate();
    fields
        .filter(|(place, _)| !matches!(place, 3 | 4))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum()
}

/// Processor time of this process, seconds.
pub(crate) fn own_cpu_s() -> f64 {
    seconds_of(ClockId::ProcessCPUTime)
}

/// Processor time of the calling thread, seconds.
pub(crate) fn thread_cpu_s() -> f64 {
    seconds_of(ClockId::ThreadCPUTime)
}

fn seconds_of(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Raises the soft limit of open files to the hard one; the server that we start inherits it.
pub(crate) fn raise_descriptor_limit() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files")
}

/// How many files one process may have open.
pub(crate) fn descriptor_limit() -> usize {
    getrlimit(Resource::Nofile).current.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX)
}

/// Pages of TCP buffers in the kernel, both ends of every connection of the machine.
pub(crate) fn tcp_buffer_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// The kernel's object caches, where sockets, inodes and descriptors live.
pub(crate) fn slab_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "Slab:").unwrap_or(0) * 1024
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The fields behind the command, which may itself contain spaces and parentheses.
fn fields_of_stat(stat: &str) -> Option<Vec<&str>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().collect())
}

fn cpu_of_stat(stat: &str) -> Option<f64> {
    let fields = fields_of_stat(stat)?;
    // Fields 14 and 15 of proc_pid_stat(5); the state, field 3, is our first.
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_an_odd_command() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 9 9 20 0 8 0 1 1 1";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_of_stat(stat), Some(200.0 / ticks));
        assert_eq!(fields_of_stat(stat).and_then(|fields| fields.get(1).copied()), Some("1"));
    }

    #[test]
    fn idle_time_is_not_busy_and_guests_count_once() {
        assert_eq!(busy_ticks("cpu  1 2 4 800 900 8 16 32 5000 6000\ncpu0 7 7 7 7\n"), 63);
    }

    #[test]
    fn our_own_process_can_be_read() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss > 0 && usage.peak >= usage.rss);
    }
}
