//! What the intake tells. Every label comes from the configuration or from fixed words.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::exclude::Excluded;

/// Actions that are counted by their name; all others as `other`.
///
/// Source: goauthentik/authentik `authentik/events/models.py` (`EventAction`) at 2024.10.1 and 2026.2.2; goauthentik/client-rust
/// `src/models/event_actions.rs` at 2026.8.
const ACTIONS: [&str; 37] = [
    "login",
    "login_failed",
    "logout",
    "user_write",
    "suspicious_request",
    "password_set",
    "secret_view",
    "secret_rotate",
    "invitation_used",
    "authorize_application",
    "source_linked",
    "impersonation_started",
    "impersonation_ended",
    "flow_execution",
    "policy_execution",
    "policy_exception",
    "property_mapping_exception",
    "system_task_execution",
    "system_task_exception",
    "system_exception",
    "configuration_error",
    "model_created",
    "model_updated",
    "model_deleted",
    "email_sent",
    "update_available",
    "export_ready",
    "configuration_warning",
    "review_initiated",
    "review_overdue",
    "review_attested",
    "review_completed",
    "user_offboarded",
    "access_request_created",
    "access_request_approved",
    "access_request_denied",
    "access_request_revoked",
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    by: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Business {
    event_type: &'static str,
    status: &'static str,
}

/// By which way an event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Webhook,
    Poll,
}

impl By {
    const ALL: [Self; 2] = [Self::Webhook, Self::Poll];

    fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Poll => "poll",
        }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Accepted,
    Duplicate,
    Excluded,
    /// Proven, and not our envelope: parked for a person to look at where the API does not bring the event.
    Unreadable,
    /// The journal could not take it.
    Unavailable,
}

impl Taken {
    const ALL: [Self; 5] = [Self::Accepted, Self::Duplicate, Self::Excluded, Self::Unreadable, Self::Unavailable];

    fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Excluded => "excluded",
            Self::Unreadable => "unreadable",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct IntakeMetrics {
    events: Family<Event, Counter>,
    excluded: Family<Reason, Counter>,
    refused: Family<Reason, Counter>,
    actions: Family<Action, Counter>,
    business: Family<Business, Counter>,
    pub(crate) unmapped: Counter,
    pub(crate) unenriched: Counter,
    pub(crate) polls: PollMetrics,
}

/// What the poller tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct PollMetrics {
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) skipped: Counter,
    pub(crate) watermark: Gauge,
    pub(crate) succeeded: Gauge,
}

impl IntakeMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { events, excluded, refused, actions, business, unmapped, unenriched, polls } = metrics.clone();
        registry.register("authentik_events", "Events by the way they came and what became of them", events);
        registry.register("authentik_events_excluded", "Events that are not taken, by reason", excluded);
        registry.register("authentik_webhooks_refused", "Requests that were not taken, by reason", refused);
        registry.register(
            "authentik_webhooks_unmapped",
            "Webhooks with Authentik's own body: the blueprint is not applied",
            unmapped,
        );
        registry.register("authentik_events_by_action", "Accepted events by action", actions);
        registry.register(
            "authentik_events_unenriched",
            "Accepted events about a user of whom nothing was known, yet or since a change",
            unenriched,
        );
        registry.register("business_events", "Accepted events by what they mean for the business", business);
        registry.register("authentik_api_requests", "Requests to Authentik's API", polls.requests);
        registry.register("authentik_api_failures", "Requests to Authentik's API that failed", polls.failures);
        registry.register(
            "authentik_api_unreadable",
            "Events of Authentik's API that cannot be read",
            polls.unreadable,
        );
        registry.register(
            "authentik_api_skipped",
            "Events that Authentik's API cannot give, stepped over",
            polls.skipped,
        );
        registry.register(
            "authentik_poll_watermark_seconds",
            "Time up to which every event of Authentik's API has been taken, since 1970",
            polls.watermark,
        );
        registry.register(
            "authentik_poll_succeeded_seconds",
            "Time of the last look that succeeded, since 1970",
            polls.succeeded,
        );
        // Alert rules on a rate need a series that begins at 0.
        for by in By::ALL {
            for taken in Taken::ALL {
                drop(metrics.events.get_or_create(&Event { by: by.word(), result: taken.word() }));
            }
        }
        for excluded in Excluded::ALL {
            drop(metrics.excluded.get_or_create(&Reason { reason: excluded.word() }));
        }
        for status in ["succeeded", "failed"] {
            drop(metrics.business.get_or_create(&Business { event_type: "login", status }));
        }
        metrics
    }

    pub(crate) fn taken(&self, by: By, taken: Taken) {
        self.events.get_or_create(&Event { by: by.word(), result: taken.word() }).inc();
    }

    pub(crate) fn excluded(&self, by: By, excluded: Excluded) {
        self.taken(by, Taken::Excluded);
        self.excluded.get_or_create(&Reason { reason: excluded.word() }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an event that is new; an action that Authentik does not have itself counts as `other`.
    pub(crate) fn accepted(&self, by: By, action: &str) {
        self.taken(by, Taken::Accepted);
        let known = ACTIONS.iter().find(|known| **known == action);
        self.actions.get_or_create(&Action { action: known.copied().unwrap_or("other") }).inc();
        let status = match action {
            "login" => "succeeded",
            "login_failed" => "failed",
            _ => return,
        };
        self.business.get_or_create(&Business { event_type: "login", status }).inc();
    }
}
