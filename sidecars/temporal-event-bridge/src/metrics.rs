//! What the daemon tells. Every label comes from the configuration or from fixed words.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

/// What became of an event that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Accepted,
    Duplicate,
    /// The journal could not take it; the sender was told to come again.
    Unavailable,
}

impl Taken {
    const ALL: [Self; 3] = [Self::Accepted, Self::Duplicate, Self::Unavailable];

    fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Metrics of what comes in.
#[derive(Clone, Debug, Default)]
pub(crate) struct IntakeMetrics {
    taken: Family<Result, Counter>,
    refused: Family<Refusal, Counter>,
}

impl IntakeMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("bridge_events", "Verified events by what became of them", metrics.taken.clone());
        registry.register("bridge_events_refused", "Requests that were not taken, by reason", metrics.refused.clone());
        // A series that is there from the start shows its first event.
        for taken in Taken::ALL {
            drop(metrics.taken.get_or_create(&Result { result: taken.word() }));
        }
        metrics
    }

    pub(crate) fn taken(&self, taken: Taken) {
        self.taken.get_or_create(&Result { result: taken.word() }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refusal { reason }).inc();
    }
}

/// What a call to Temporal has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Started,
    Signalled,
    Cancelled,
    Terminated,
    /// It was done before, by an attempt whose answer nobody has recorded.
    Known,
    /// The workflow was running, which is what the rule wants.
    Existing,
    /// The workflow's id is another event's.
    Conflict,
    /// The workflow is not running.
    Missing,
}

impl Done {
    const ALL: [Self; 8] = [
        Self::Started,
        Self::Signalled,
        Self::Cancelled,
        Self::Terminated,
        Self::Known,
        Self::Existing,
        Self::Conflict,
        Self::Missing,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Signalled => "signalled",
            Self::Cancelled => "cancelled",
            Self::Terminated => "terminated",
            Self::Known => "known",
            Self::Existing => "existing",
            Self::Conflict => "conflict",
            Self::Missing => "missing",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    rule: String,
    result: &'static str,
}

/// Metrics of what is asked of Temporal.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallMetrics {
    calls: Family<Call, Counter>,
}

impl CallMetrics {
    pub(crate) fn register<'a>(registry: &mut Registry, rules: impl Iterator<Item = &'a str>) -> Self {
        let metrics = Self::default();
        registry.register("bridge_calls", "Calls that Temporal has answered, by what they did", metrics.calls.clone());
        for rule in rules {
            for done in Done::ALL {
                drop(metrics.calls.get_or_create(&Call { rule: rule.to_owned(), result: done.word() }));
            }
        }
        metrics
    }

    pub(crate) fn done(&self, rule: &str, done: Done) {
        self.calls.get_or_create(&Call { rule: rule.to_owned(), result: done.word() }).inc();
    }
}
