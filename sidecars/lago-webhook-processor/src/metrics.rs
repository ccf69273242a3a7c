//! What the intake tells. Every label comes from the configuration or from fixed words.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use kit_lago::signature::Rejected;
use kit_lago::webhook_type::{self, BusinessEvent};

use crate::http::REASONS;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    organization: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Organization {
    organization: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Business {
    event_type: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Type {
    webhook_type: &'static str,
}

/// What became of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Accepted,
    Duplicate,
    Conflict,
    /// The journal could not take it; Lago was told to come again.
    Unavailable,
}

impl Taken {
    const ALL: [Self; 4] = [Self::Accepted, Self::Duplicate, Self::Conflict, Self::Unavailable];

    fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct IntakeMetrics {
    webhooks: Family<Webhook, Counter>,
    refused: Family<Refusal, Counter>,
    repeated_bodies: Family<Organization, Counter>,
    business: Family<Business, Counter>,
    types: Family<Type, Counter>,
}

fn reasons() -> impl Iterator<Item = &'static str> {
    Rejected::REASONS.into_iter().chain(REASONS)
}

impl IntakeMetrics {
    pub(crate) fn register<'a>(registry: &mut Registry, organizations: impl Iterator<Item = &'a str>) -> Self {
        let metrics = Self::default();
        registry.register("lago_webhooks", "Verified webhooks by what became of them", metrics.webhooks.clone());
        registry.register("lago_webhooks_refused", "Requests that were not taken, by reason", metrics.refused.clone());
        registry.register(
            "lago_webhooks_repeated_body",
            "Webhooks whose body came before under another key: a second endpoint, or a replay",
            metrics.repeated_bodies.clone(),
        );
        registry.register("lago_webhooks_by_type", "Accepted webhooks by type", metrics.types.clone());
        registry.register(
            "business_events",
            "Accepted events by what they mean for the business",
            metrics.business.clone(),
        );
        // Alert rules on a rate need a series that begins at 0.
        for organization in organizations {
            drop(metrics.repeated_bodies.get_or_create(&Organization { organization: organization.to_owned() }));
            for taken in Taken::ALL {
                drop(
                    metrics
                        .webhooks
                        .get_or_create(&Webhook { organization: organization.to_owned(), result: taken.word() }),
                );
            }
        }
        for reason in reasons() {
            drop(metrics.refused.get_or_create(&Refusal { reason }));
        }
        let statuses = [None, Some("succeeded"), Some("failed"), Some("pending"), Some("other")];
        for webhook_type in webhook_type::all() {
            for status in statuses {
                if let Some(BusinessEvent { event_type, status }) =
                    webhook_type::business_event(webhook_type.name, status)
                {
                    drop(metrics.business.get_or_create(&Business { event_type, status }));
                }
            }
        }
        metrics
    }

    pub(crate) fn taken(&self, organization: &str, taken: Taken) {
        self.webhooks.get_or_create(&Webhook { organization: organization.to_owned(), result: taken.word() }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        debug_assert!(reasons().any(|known| known == reason), "{reason} is not among the reasons");
        self.refused.get_or_create(&Refusal { reason }).inc();
    }

    pub(crate) fn repeated_body(&self, organization: &str) {
        self.repeated_bodies.get_or_create(&Organization { organization: organization.to_owned() }).inc();
    }

    /// Counts an accepted webhook; a type that is not in Lago's catalogue counts as `other`.
    pub(crate) fn accepted(&self, webhook_type: Option<&str>, business: Option<BusinessEvent>) {
        let webhook_type = webhook_type.and_then(webhook_type::find).map_or("other", |known| known.name);
        self.types.get_or_create(&Type { webhook_type }).inc();
        if let Some(BusinessEvent { event_type, status }) = business {
            self.business.get_or_create(&Business { event_type, status }).inc();
        }
    }
}
