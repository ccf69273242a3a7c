//! The `[journal]` section of every daemon's configuration.

use std::path::PathBuf;

use kit::config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where and how events are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JournalSection {
    /// The journal file. Its directory must exist, be writable and lie on a local file system
    /// (not a network mount, not a container's writable layer).
    pub path: PathBuf,
    /// Largest size in bytes of what the journal holds; above it webhooks are answered 503 until
    /// deliveries and the retention make room. 0 means no limit but the disk's.
    pub max_bytes: u64,
    /// How long a deduplication key is remembered, in days that the journal was open; at least as long
    /// as `retention.days`.
    pub dedupe_days: f64,
    /// How many appends may wait for the disk before further ones are answered 503.
    pub queue: usize,
    /// How long a webhook waits for the disk before it is answered 503, in seconds. Below the sender's own
    /// patience, Lago's being 30 s; what is stored all the same is known when it comes again.
    pub wait_seconds: f64,
    /// How long what has been delivered stays.
    pub retention: RetentionSection,
}

impl Default for JournalSection {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/outrigger/journal.db"),
            max_bytes: 0,
            dedupe_days: 90.0,
            queue: 4096,
            wait_seconds: 20.0,
            retention: RetentionSection::default(),
        }
    }
}

/// How long what has been delivered stays. Undelivered and parked events are never removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Days that a delivered body and its attempts stay readable and replayable, counted while the
    /// journal is open. Audit records stay as long as deduplication keys do.
    pub days: f64,
    /// Bytes of journal above which the oldest delivered bodies go earlier.
    pub max_bytes: u64,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { days: 7.0, max_bytes: 1 << 30 }
    }
}

impl JournalSection {
    /// Above this many bytes delivered events go early: in time for new ones where the journal has a
    /// maximum.
    pub(crate) fn bytes_to_keep(&self) -> u64 {
        match self.max_bytes {
            0 => self.retention.max_bytes,
            maximum => self.retention.max_bytes.min(maximum / 5 * 4),
        }
    }

    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        if self.path.as_os_str().is_empty() || self.path.file_name().is_none() {
            problems.add(&format!("{prefix}.path"), "must name a file, for example /var/lib/outrigger/journal.db");
        }
        for (name, days) in [("dedupe_days", self.dedupe_days), ("retention.days", self.retention.days)] {
            if !days.is_finite() || days <= 0.0 || days > 36_500.0 {
                problems.add(&format!("{prefix}.{name}"), "must be a number of days above 0 and at most 36500");
            }
        }
        if !(1..=1_000_000).contains(&self.queue) {
            problems.add(&format!("{prefix}.queue"), "must be between 1 and 1000000");
        }
        if !(0.1..=3600.0).contains(&self.wait_seconds) {
            problems.add(&format!("{prefix}.wait_seconds"), "must be a number of seconds from 0.1 to 3600");
        }
        if self.max_bytes != 0 && self.max_bytes < 4 << 20 {
            problems.add(&format!("{prefix}.max_bytes"), "must be 0 (no limit) or at least 4194304");
        }
    }
}
