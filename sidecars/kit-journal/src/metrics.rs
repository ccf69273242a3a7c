//! What the journal tells about itself.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::engine::Disk;

pub(crate) struct JournalMetrics {
    commit_seconds: Histogram,
    group_events: Histogram,
    pub(crate) queued: Gauge,
    pub(crate) refused_busy: Counter,
    pub(crate) refused_late: Counter,
    pub(crate) failures: Counter,
    pub(crate) writable: Gauge,
    pub(crate) read_failures: Counter,
    pub(crate) purged: Counter,
    pub(crate) used_bytes: Gauge,
    pub(crate) max_bytes: Gauge,
    pub(crate) disk_free_bytes: Gauge,
    pub(crate) disk_size_bytes: Gauge,
    pub(crate) dedupe_bytes: Gauge,
    pub(crate) dedupe_keys: Gauge,
}

impl JournalMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commit_seconds: Histogram::new([
                0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 5.0,
            ]),
            group_events: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]),
            queued: Gauge::default(),
            refused_busy: Counter::default(),
            refused_late: Counter::default(),
            failures: Counter::default(),
            writable: Gauge::default(),
            read_failures: Counter::default(),
            purged: Counter::default(),
            used_bytes: Gauge::default(),
            max_bytes: Gauge::default(),
            disk_free_bytes: Gauge::default(),
            disk_size_bytes: Gauge::default(),
            dedupe_bytes: Gauge::default(),
            dedupe_keys: Gauge::default(),
        };
        registry.register_with_unit(
            "journal_commit",
            "Duration of a durable commit",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register("journal_group_events", "Events in one durable commit", metrics.group_events.clone());
        registry.register("journal_queue", "Requests waiting for the next commit", metrics.queued.clone());
        registry.register(
            "journal_refused_busy",
            "Events refused because too many waited for the disk",
            metrics.refused_busy.clone(),
        );
        registry.register(
            "journal_refused_late",
            "Events refused because the disk took too long",
            metrics.refused_late.clone(),
        );
        registry.register("journal_failures", "Commits that failed", metrics.failures.clone());
        metrics.writable.set(1);
        registry.register("journal_writable", "1 while events are taken", metrics.writable.clone());
        registry.register(
            "journal_read_failures",
            "Reads that the store did not answer, or could not",
            metrics.read_failures.clone(),
        );
        registry.register(
            "journal_purged_events",
            "Delivered events removed after their retention",
            metrics.purged.clone(),
        );
        registry.register_with_unit(
            "journal_used",
            "Bytes in use within the journal",
            Unit::Bytes,
            metrics.used_bytes.clone(),
        );
        registry.register_with_unit(
            "journal_max",
            "Bytes in use from which on events are refused; 0 without such a limit",
            Unit::Bytes,
            metrics.max_bytes.clone(),
        );
        registry.register_with_unit(
            "journal_disk_free",
            "Bytes that the journal's file system has left; 0 where a server keeps the journal",
            Unit::Bytes,
            metrics.disk_free_bytes.clone(),
        );
        registry.register_with_unit(
            "journal_disk_size",
            "Bytes that the journal's file system has in all; 0 where a server keeps the journal",
            Unit::Bytes,
            metrics.disk_size_bytes.clone(),
        );
        registry.register_with_unit(
            "journal_dedupe_memory",
            "Memory that the deduplication keys take",
            Unit::Bytes,
            metrics.dedupe_bytes.clone(),
        );
        registry.register("journal_dedupe_keys", "Deduplication keys remembered", metrics.dedupe_keys.clone());
        metrics
    }

    pub(crate) fn disk(&self, disk: Disk) {
        self.disk_free_bytes.set(i64::try_from(disk.free_bytes).unwrap_or(i64::MAX));
        self.disk_size_bytes.set(i64::try_from(disk.size_bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn committed(&self, took: Duration, events: usize) {
        self.commit_seconds.observe(took.as_secs_f64());
        if events > 0 {
            #[expect(clippy::cast_precision_loss, reason = "at most 512")]
            self.group_events.observe(events as f64);
        }
    }
}
