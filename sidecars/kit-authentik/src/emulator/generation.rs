//! What differs between the versions of Authentik.
//!
//! Source: goauthentik/authentik at 2024.10.1 and 2026.2.2, and the versions in which a distinguishing string appears first.

use std::time::Duration;

/// A version of Authentik, standing for those up to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// 2024.10.1, which the reference platform pins: Celery, no header mapping, no timeout of webhooks.
    V2024_10,
    /// 2025.4.0: header mappings, and a timeout of webhooks.
    V2025_4,
    /// 2025.8.4: tasks in PostgreSQL, `destination_group`, `actions=`.
    V2025_8,
    /// 2026.2.2: pages of 20 by default and of 100 at most (since 2025.12).
    V2026_2,
    /// 2026.8.5.
    V2026_8,
}

/// When a notification that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// How often, after the first attempt.
    pub retries: u32,
    /// The longest wait before the first retry; it doubles.
    pub first: Duration,
    /// The share of the longest wait that is always waited, in hundredths.
    pub certain_percent: u32,
    /// No wait is longer.
    pub cap: Duration,
}

impl RetrySchedule {
    /// The wait before the nth retry, from 1; `random` lies between 0 and 1.
    pub fn wait_before(&self, retry: u32, random: f64) -> Duration {
        let longest = self.first.saturating_mul(2_u32.saturating_pow(retry.saturating_sub(1))).min(self.cap);
        let certain = longest * self.certain_percent / 100;
        certain + (longest - certain).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// What the router says while the server behind it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starting {
    /// The status.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// The body's type.
    pub content_type: &'static str,
    /// The body.
    pub body: &'static str,
}

impl Generation {
    /// All of them, the oldest first.
    pub const ALL: [Self; 5] = [Self::V2024_10, Self::V2025_4, Self::V2025_8, Self::V2026_2, Self::V2026_8];

    /// What `admin/version/` says.
    pub const fn version(self) -> &'static str {
        match self {
            Self::V2024_10 => "2024.10.1",
            Self::V2025_4 => "2025.4.0",
            Self::V2025_8 => "2025.8.4",
            Self::V2026_2 => "2026.2.2",
            Self::V2026_8 => "2026.8.5",
        }
    }

    /// Whether transports have a mapping of headers.
    pub fn has_header_mapping(self) -> bool {
        self >= Self::V2025_4
    }

    /// The transport's field with the mapping of bodies.
    pub fn body_mapping_field(self) -> &'static str {
        if self.has_header_mapping() { "webhook_mapping_body" } else { "webhook_mapping" }
    }

    /// The rule's field with whom it notifies.
    pub fn target_field(self) -> &'static str {
        if self >= Self::V2025_8 { "destination_group" } else { "group" }
    }

    /// Entries of a page where nothing is said.
    pub(super) fn default_page_size(self) -> usize {
        if self >= Self::V2026_2 { 20 } else { 100 }
    }

    /// The most that a page may have.
    pub(super) fn max_page_size(self) -> usize {
        if self >= Self::V2026_2 { 100 } else { usize::MAX }
    }

    /// Whether `actions=` is a filter; else it is ignored, as everything unknown is.
    pub(super) fn has_actions_filter(self) -> bool {
        self >= Self::V2025_8
    }

    /// How long a webhook may take; for ever, where there is none.
    pub(super) fn http_timeout(self) -> Option<Duration> {
        self.has_header_mapping().then_some(Duration::from_secs(30))
    }

    /// When a task is cut off, with the webhook in it.
    pub(super) fn task_limit(self) -> Duration {
        Duration::from_secs(600)
    }

    /// When failed notifications are tried again: by Celery with full jitter, by Dramatiq with half of it.
    pub fn retry_schedule(self) -> RetrySchedule {
        if self >= Self::V2025_8 {
            let (first, cap) = (Duration::from_secs(15), Duration::from_secs(3600));
            RetrySchedule { retries: 5, first, certain_percent: 50, cap }
        } else {
            let (first, cap) = (Duration::from_secs(1), Duration::from_secs(600));
            RetrySchedule { retries: 3, first, certain_percent: 0, cap }
        }
    }

    /// Whether everything that goes wrong in a task is tried again, and not only what the receiver answered.
    pub(super) fn retries_everything(self) -> bool {
        self >= Self::V2025_8
    }

    /// Whether the last failure of a notification becomes an event itself.
    pub(super) fn reports_failed_tasks(self) -> bool {
        self < Self::V2025_8
    }

    /// Whether a notification waits for the transaction that its event is made in; else it may come before, finds nothing
    /// and is dropped.
    pub(super) fn notifies_after_commit(self) -> bool {
        self >= Self::V2025_8
    }

    /// What is answered while the server starts.
    pub fn starting(self) -> Starting {
        if self >= Self::V2026_2 {
            let body = r#"{"error": "authentik starting"}"#;
            Starting { status: 503, retry_after: Some(5), content_type: "application/json", body }
        } else {
            let body = "<html><body>authentik is starting</body></html>";
            Starting { status: 502, retry_after: None, content_type: "text/html; charset=utf-8", body }
        }
    }
}
