//! What the daemon tells of its intake and of Lago. Every label is one of fixed words.

use std::sync::atomic::AtomicU64;

use kit::clock::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::check::{Kind, Policy};
use crate::reconcile::State;
use crate::refusal::REASONS;

/// What becomes of an event whose metric is rolled up.
const ROLLED: [&str; 3] = ["summed", "sums", "alone"];
/// What is done with an event that fails a check.
const POLICIES: [&str; 3] = ["reject", "park", "pass"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What became of a producer's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Accepted,
    /// It was there already.
    Duplicate,
    /// Another one was there already under its id.
    Contradiction,
    /// It was not stored because of another event in its request.
    Withheld,
    Invalid,
    /// The journal could not take it; the producer was told to come again.
    Unavailable,
}

impl Taken {
    const ALL: [Self; 6] =
        [Self::Accepted, Self::Duplicate, Self::Contradiction, Self::Withheld, Self::Invalid, Self::Unavailable];

    fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Contradiction => "contradiction",
            Self::Withheld => "withheld",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What Lago said of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Billed {
    Taken,
    /// It was there already: an earlier request had got through after all.
    Known,
    Refused,
}

impl Billed {
    const ALL: [Self; 3] = [Self::Taken, Self::Known, Self::Refused];

    fn word(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Known => "known",
            Self::Refused => "refused",
        }
    }
}

/// What followed from another daemon's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    Counted,
    /// A rule wants it and cannot use it.
    Unusable,
    /// Lago complains about usage events in it.
    Complaint,
    Nothing,
}

impl Followed {
    const ALL: [Self; 4] = [Self::Counted, Self::Unusable, Self::Complaint, Self::Nothing];

    fn word(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Unusable => "unusable",
            Self::Complaint => "complaint",
            Self::Nothing => "nothing",
        }
    }
}

/// What became of an event that Lago complains about after it has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complained {
    Parked,
    /// Lago says only that it has it already.
    Known,
    /// It is not in the journal.
    Unknown,
    /// Several subscriptions have one under that id.
    Ambiguous,
    /// It is parked or dropped already, or being tried.
    Unchanged,
}

impl Complained {
    const ALL: [Self; 5] = [Self::Parked, Self::Known, Self::Unknown, Self::Ambiguous, Self::Unchanged];

    fn word(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::Unchanged => "unchanged",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct UsageMetrics {
    events: Family<Result, Counter>,
    refused: Family<Reason, Counter>,
    lago: Family<Result, Counter>,
    lago_requests: Counter,
    findings: Family<Check, Counter>,
    pairs: Family<Stands, Gauge>,
    missing: Gauge,
    uninvoiced: Gauge<f64, AtomicU64>,
    catalogue_told: Gauge<f64, AtomicU64>,
    catalogue_subscriptions: Gauge,
    catalogue_partial: Gauge,
    canary_events: Counter,
    canary_waits: Gauge<f64, AtomicU64>,
    rollup: Family<Result, Counter>,
    webhooks: Family<Result, Counter>,
    complaints: Family<Result, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stands {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    check: &'static str,
    policy: &'static str,
}

impl UsageMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("usage_events", "Events of producers by what became of them", metrics.events.clone());
        registry.register(
            "usage_requests_refused",
            "Producers' requests not taken, by reason",
            metrics.refused.clone(),
        );
        registry.register("usage_lago_events", "Events sent to Lago by what it said of them", metrics.lago.clone());
        registry.register("usage_lago_requests", "Requests to Lago's events API", metrics.lago_requests.clone());
        registry.register(
            "usage_checks_failed",
            "Events that Lago would take and not bill, by what is wrong and what was done",
            metrics.findings.clone(),
        );
        registry.register(
            "usage_ledger_pairs",
            "Subscriptions and metrics by how what Lago has counted compares with what it has confirmed",
            metrics.pairs.clone(),
        );
        registry.register(
            "usage_missing_events",
            "Events that Lago has confirmed and not counted at the last comparison",
            metrics.missing.clone(),
        );
        registry.register(
            "usage_uninvoiced_seconds",
            "How long ago the first of the billing periods ended that Lago has put on no invoice, at the last comparison",
            metrics.uninvoiced.clone(),
        );
        registry.register(
            "usage_catalogue_told_timestamp_seconds",
            "When Lago was asked for what the last whole list of its metrics and subscriptions says; 0 where it never told",
            metrics.catalogue_told.clone(),
        );
        registry.register(
            "usage_catalogue_subscriptions",
            "External ids of subscriptions that are known, of active ones and of those that ended lately",
            metrics.catalogue_subscriptions.clone(),
        );
        registry.register(
            "usage_catalogue_partial",
            "Whether Lago has too many subscriptions to read those that have ended",
            metrics.catalogue_partial.clone(),
        );
        registry.register("usage_canary_events", "Canary events stored", metrics.canary_events.clone());
        registry.register(
            "usage_canary_unbilled_seconds",
            "How long the oldest canary event that Lago has confirmed waits to be counted",
            metrics.canary_waits.clone(),
        );
        registry.register(
            "usage_rollup_events",
            "Events rolled up (summed), what came out (sums), and those that went on as they are (alone)",
            metrics.rollup.clone(),
        );
        registry.register("usage_webhooks", "Other daemons' events by what followed", metrics.webhooks.clone());
        registry.register(
            "usage_lago_complaints",
            "Events that Lago complains about after it has taken them, by what became of them",
            metrics.complaints.clone(),
        );
        // Of a series that begins with its first failure no rate tells that failure.
        for reason in REASONS {
            drop(metrics.refused.get_or_create(&Reason { reason }));
        }
        for (kind, policy) in Kind::ALL.into_iter().flat_map(|kind| POLICIES.map(|policy| (kind, policy))) {
            drop(metrics.findings.get_or_create(&Check { check: kind.word(), policy }));
        }
        for state in State::ALL {
            drop(metrics.pairs.get_or_create(&Stands { state: state.word() }));
        }
        for result in ROLLED {
            drop(metrics.rollup.get_or_create(&Result { result }));
        }
        for followed in Followed::ALL {
            drop(metrics.webhooks.get_or_create(&Result { result: followed.word() }));
        }
        for complained in Complained::ALL {
            drop(metrics.complaints.get_or_create(&Result { result: complained.word() }));
        }
        for taken in Taken::ALL {
            drop(metrics.events.get_or_create(&Result { result: taken.word() }));
        }
        for billed in Billed::ALL {
            drop(metrics.lago.get_or_create(&Result { result: billed.word() }));
        }
        metrics
    }

    pub(crate) fn taken(&self, taken: Taken, count: u64) {
        self.events.get_or_create(&Result { result: taken.word() }).inc_by(count);
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason} is not among the reasons");
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn billed(&self, billed: Billed, count: usize) {
        self.lago.get_or_create(&Result { result: billed.word() }).inc_by(count as u64);
    }

    pub(crate) fn followed(&self, followed: Followed) {
        self.webhooks.get_or_create(&Result { result: followed.word() }).inc();
    }

    pub(crate) fn complained(&self, complained: Complained, count: u64) {
        self.complaints.get_or_create(&Result { result: complained.word() }).inc_by(count);
    }

    pub(crate) fn found(&self, kind: Kind, policy: Policy) {
        let policy = match policy {
            Policy::Reject => POLICIES[0],
            Policy::Park => POLICIES[1],
            Policy::Pass => POLICIES[2],
        };
        self.findings.get_or_create(&Check { check: kind.word(), policy }).inc();
    }

    pub(crate) fn rolled_up(&self, summed: u64, sums: u64, alone: u64) {
        for (result, count) in ROLLED.into_iter().zip([summed, sums, alone]) {
            self.rollup.get_or_create(&Result { result }).inc_by(count);
        }
    }

    pub(crate) fn compared(&self, state: State, pairs: usize) {
        self.pairs.get_or_create(&Stands { state: state.word() }).set(i64::try_from(pairs).unwrap_or(i64::MAX));
    }

    pub(crate) fn missing(&self, events: u64) {
        self.missing.set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    pub(crate) fn uninvoiced(&self, seconds: f64) {
        self.uninvoiced.set(seconds);
    }

    /// What Lago has told at that time.
    pub(crate) fn catalogue(&self, told_at: Timestamp, subscriptions: usize, partial: bool) {
        #[expect(clippy::cast_precision_loss, reason = "a time of this age")]
        self.catalogue_told.set(told_at.as_millis() as f64 / 1_000.0);
        self.catalogue_subscriptions.set(i64::try_from(subscriptions).unwrap_or(i64::MAX));
        self.catalogue_partial.set(i64::from(partial));
    }

    pub(crate) fn canary_sent(&self) {
        self.canary_events.inc();
    }

    pub(crate) fn canary_waits(&self, seconds: f64) {
        self.canary_waits.set(seconds);
    }

    pub(crate) fn asked_lago(&self) {
        self.lago_requests.inc();
    }
}
