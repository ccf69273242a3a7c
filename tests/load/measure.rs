//! What the operating system says about a process, and what a sync costs here.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

/// Consumption of a process since it started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// User and system time in seconds.
    pub(crate) cpu_seconds: f64,
    /// Bytes that were sent to storage.
    pub(crate) written_bytes: u64,
    /// Resident memory in bytes.
    pub(crate) rss_bytes: u64,
    /// The most it ever was.
    pub(crate) peak_rss_bytes: u64,
}

impl Usage {
    /// Reads `/proc`; the process must belong to this user, or this user be root.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| path)
        };
        let stat = read("stat")?;
        // After the name in parentheses, which may hold anything: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat.rsplit_once(')').context("stat has no name")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at - 3).and_then(|text| text.parse::<f64>().ok()).context("stat is short");
        let number = |text: &str, name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
        };
        let status = read("status")?;
        let memory = |name: &str| anyhow::Ok(number(&status, name).context("status is short")? * 1024);
        Ok(Self {
            // Clock ticks are a hundredth of a second on every Linux that Rust runs on.
            cpu_seconds: (ticks(14)? + ticks(15)?) / 100.0,
            written_bytes: number(&read("io")?, "write_bytes:").context("io is short")?,
            rss_bytes: memory("VmRSS:")?,
            peak_rss_bytes: memory("VmHWM:")?,
        })
    }

    /// What was consumed since `earlier`; memory as it is now.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
            ..self
        }
    }
}

/// Median and 99th percentile, in milliseconds, of appending 4 KiB and syncing it, `count` times.
pub(crate) fn sync_ms(folder: &Path, count: usize) -> Result<(f64, f64)> {
    let path = folder.join("sync-probe");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
    let block = [7_u8; 4096];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok((quantile(&times, 0.5), quantile(&times, 0.99)))
}

/// The median; 0 of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The value below which this share of them lies; 0 of nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within a short list")]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or_default()
}
