//! What the measuring programs of the decision records share: processor time, memory, medians.
//!
//! Owns the counting allocator, so that a number of allocations and of bytes is exact. It may not decide what
//! is measured. Everything here fails loudly: a program that cannot measure prints nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Any error; these are programs, not libraries.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);
static FREED_BYTES: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted. Costs two uncontended atomic additions per call, for every variant alike.
struct Counting;

#[global_allocator]
static GLOBAL: Counting = Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting
// touches atomics only and cannot allocate or unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on. Not `alloc` and zeroing, which would touch
        // pages that the system gives out zeroed.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        FREED_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(new_size as u64, Ordering::Relaxed);
        FREED_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise about all three is passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Calls that took memory since the process began.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes taken and not given back, as asked for (without the allocator's own).
pub fn live_bytes() -> u64 {
    let freed = FREED_BYTES.load(Ordering::Relaxed);
    ALLOCATED_BYTES.load(Ordering::Relaxed).saturating_sub(freed)
}

/// Processor time of this process, user and system, nanoseconds.
pub fn cpu_ns() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

/// Processor time of this thread, user and system, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Anonymous resident memory of this process, bytes: what it touched itself, without files mapped.
///
/// # Errors
/// The system has no `/proc`.
pub fn resident_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Processor time of a process and all its children that are alive, nanoseconds.
///
/// # Errors
/// The system does not tell.
pub fn tree_cpu_ns(pid: u32) -> Result<u64, Failure> {
    let own = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let mut total: u64 = own.split_whitespace().next().ok_or("empty schedstat")?.parse()?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        // A child may end between the two lines.
        let Ok(text) = std::fs::read_to_string(format!("/proc/{child}/schedstat")) else { continue };
        total += text.split_whitespace().next().ok_or("empty schedstat")?.parse::<u64>()?;
    }
    Ok(total)
}

/// Keeps this thread, and what it starts, on one processor.
///
/// # Errors
/// There is no such processor.
pub fn pin(processor: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

/// The middle one of several runs, with the least and the greatest.
pub fn median(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    let (least, greatest) = (values.first().copied(), values.last().copied());
    let digits = match middle {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let (least, greatest) = (least.unwrap_or(f64::NAN), greatest.unwrap_or(f64::NAN));
    format!("{middle:.digits$} ({least:.digits$} to {greatest:.digits$})")
}

/// One line on the standard output.
///
/// # Errors
/// Nobody reads it.
pub fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The n-th argument, or what to use without it.
///
/// # Errors
/// It cannot be read as what it should be.
pub fn argument<T>(position: usize, default: T) -> Result<T, Failure>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::args().nth(position) {
        Some(text) => Ok(text.parse()?),
        None => Ok(default),
    }
}

/// The machine, as far as it explains a figure.
///
/// # Errors
/// The system has no `/proc`.
pub fn machine() -> Result<String, Failure> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).unwrap_or("model name: unknown");
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let congestion = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "{cores} × {}, Linux {}, {} by default, load {}",
        model.split(':').nth(1).unwrap_or_default().trim(),
        kernel.trim(),
        congestion.trim(),
        load.split_whitespace().next().unwrap_or_default()
    ))
}
