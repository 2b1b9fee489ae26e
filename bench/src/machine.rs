//! The machine that a figure belongs to. A figure without it is a rumour.

use std::fs;

/// One line: processors, kernel, congestion control, load.
pub(crate) fn describe() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(0.0, |kilobytes| kilobytes / 1_048_576.0);
    format!(
        "{cores} cores ({model}), {memory:.0} GiB, Linux {}, tcp_congestion_control = {}, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        congestion_control(),
        read("/proc/loadavg").split_whitespace().next().unwrap_or("?"),
    )
}

pub(crate) fn congestion_control() -> String {
    read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
