//! What exists besides events: metrics, customers and subscriptions, put there by the test.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use uuid::Uuid;

use super::profile::Profile;
use super::timestamp::{iso_millis, iso_seconds};

/// How the events of a metric become units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AggregationType {
    /// The number of events.
    Count,
    /// The sum of a property.
    Sum,
    /// The largest value of a property.
    Max,
    /// The number of different values of a property.
    UniqueCount,
    /// The last value of a property, by timestamp.
    Latest,
    /// The sum of a property, each weighted by how long it held. The stand-in reports 0 units.
    WeightedSum,
    /// Whatever the operator's own code makes of it. The stand-in reports 0 units.
    Custom,
}

impl AggregationType {
    const ALL: [Self; 7] =
        [Self::Count, Self::Sum, Self::Max, Self::UniqueCount, Self::Latest, Self::WeightedSum, Self::Custom];

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|aggregation| aggregation.as_str() == name)
    }

    /// Lago's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count_agg",
            Self::Sum => "sum_agg",
            Self::Max => "max_agg",
            Self::UniqueCount => "unique_count_agg",
            Self::Latest => "latest_agg",
            Self::WeightedSum => "weighted_sum_agg",
            Self::Custom => "custom_agg",
        }
    }
}

/// A billable metric. Every plan of the stand-in charges every metric, at price 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Lago's id of it.
    pub lago_id: Uuid,
    /// What events name it by.
    pub code: String,
    /// What people name it by.
    pub name: String,
    /// How events become units.
    pub aggregation_type: AggregationType,
    /// The property that is aggregated.
    pub field_name: Option<String>,
    /// Whether units are carried over into the next billing period.
    pub recurring: bool,
    /// What people are told about it.
    pub description: Option<String>,
    /// What Lago computes the property from. The stand-in counts the property itself.
    pub expression: Option<String>,
    /// How units are rounded. The stand-in does not.
    pub rounding_function: Option<String>,
    /// To how many digits.
    pub rounding_precision: Option<i64>,
    /// Properties that charges may tell apart by, as Lago writes them: `{"key", "values"}`.
    pub filters: Vec<Value>,
    /// Whether its charges are paid in advance: no invoice of a period has them.
    pub pay_in_advance: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Metric {
    /// A metric that aggregates a property; `field_name` says which, except for counts.
    pub fn new(code: &str, aggregation_type: AggregationType, field_name: Option<&str>) -> Self {
        Self {
            lago_id: Uuid::new_v4(),
            code: code.to_owned(),
            name: code.to_owned(),
            aggregation_type,
            field_name: field_name.map(str::to_owned),
            recurring: false,
            description: None,
            expression: None,
            rounding_function: None,
            rounding_precision: None,
            filters: Vec::new(),
            pay_in_advance: false,
            created_at: Timestamp::now(),
        }
    }

    /// Source: getlago/lago-api `app/serializers/v1/billable_metric_serializer.rb` at v1.16.0.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "lago_id": self.lago_id,
            "name": self.name,
            "code": self.code,
            "description": self.description,
            "aggregation_type": self.aggregation_type.as_str(),
            "weighted_interval": (self.aggregation_type == AggregationType::WeightedSum).then_some("seconds"),
            "recurring": self.recurring,
            "rounding_function": self.rounding_function,
            "rounding_precision": self.rounding_precision,
            "created_at": seconds(self.created_at),
            "field_name": self.field_name,
            "expression": self.expression,
            "active_subscriptions_count": 0,
            "draft_invoices_count": 0,
            "plans_count": 0,
            "filters": self.filters,
        })
    }
}

/// The plan with this code, of which only what says what it charges.
///
/// Source: getlago/lago-api `app/serializers/v1/plan_serializer.rb` and `charge_serializer.rb` at v1.16.0.
pub(super) fn plan_to_json(code: &str, metrics: &[Metric]) -> Value {
    let charge = |metric: &Metric| {
        json!({
            "lago_id": metric.lago_id,
            "lago_billable_metric_id": metric.lago_id,
            "billable_metric_code": metric.code,
            "charge_model": "standard",
            "pay_in_advance": metric.pay_in_advance,
        })
    };
    json!({ "code": code, "interval": "monthly", "charges": metrics.iter().map(charge).collect::<Vec<_>>() })
}

/// Where a subscription is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SubscriptionStatus {
    /// It begins later.
    Pending,
    /// It runs.
    #[default]
    Active,
    /// It has ended.
    Terminated,
    /// It never began.
    Canceled,
}

impl SubscriptionStatus {
    const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Terminated, Self::Canceled];

    /// Lago's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Terminated => "terminated",
            Self::Canceled => "canceled",
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// What the months of a subscription are counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BillingTime {
    /// The first of the month.
    #[default]
    Calendar,
    /// The day of `subscription_at`.
    Anniversary,
}

impl BillingTime {
    /// Lago's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calendar => "calendar",
            Self::Anniversary => "anniversary",
        }
    }
}

/// A subscription. An upgrade leaves two with the same external id: one terminated, one active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Lago's id of it.
    pub lago_id: Uuid,
    /// What events name it by.
    pub external_id: String,
    /// Whose it is.
    pub external_customer_id: String,
    /// The plan that is billed.
    pub plan_code: String,
    /// Where it is in its life.
    pub status: SubscriptionStatus,
    /// What its months are counted from. All plans of the stand-in are monthly.
    pub billing_time: BillingTime,
    /// When it was to begin.
    pub subscription_at: Timestamp,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it is to end.
    pub ending_at: Option<Timestamp>,
    /// When it ended.
    pub terminated_at: Option<Timestamp>,
    /// When the present billing period began; `None` works it out from `billing_time`.
    pub current_billing_period_started_at: Option<Timestamp>,
    /// When it ends; `None` works it out from `billing_time`.
    pub current_billing_period_ending_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Subscription {
    /// An active subscription, counted by the calendar, since `started_at`.
    pub fn active(external_id: &str, external_customer_id: &str, plan_code: &str, started_at: Timestamp) -> Self {
        Self {
            lago_id: Uuid::new_v4(),
            external_id: external_id.to_owned(),
            external_customer_id: external_customer_id.to_owned(),
            plan_code: plan_code.to_owned(),
            status: SubscriptionStatus::Active,
            billing_time: BillingTime::Calendar,
            subscription_at: started_at,
            started_at: Some(started_at),
            ending_at: None,
            terminated_at: None,
            current_billing_period_started_at: None,
            current_billing_period_ending_at: None,
            created_at: started_at,
        }
    }

    /// Source: getlago/lago-api `app/serializers/v1/subscription_serializer.rb` at v1.16.0 and at the
    /// head of 2026-08-21.
    pub(super) fn to_json(&self, profile: Profile, customer: &Customer, period: (i64, i64)) -> Value {
        // Only the head tells milliseconds here.
        let started_at = match profile {
            Profile::ClickHouse => self.started_at.map(|time| iso_millis(time.as_microsecond())),
            Profile::V1_16 | Profile::V1_39 => self.started_at.map(seconds),
        };
        let mut subscription = json!({
            "lago_id": self.lago_id,
            "external_id": self.external_id,
            "lago_customer_id": customer.lago_id,
            "external_customer_id": self.external_customer_id,
            "name": null,
            "plan_code": self.plan_code,
            "status": self.status.as_str(),
            "billing_time": self.billing_time.as_str(),
            "subscription_at": seconds(self.subscription_at),
            "started_at": started_at,
            "trial_ended_at": null,
            "ending_at": self.ending_at.map(seconds),
            "terminated_at": self.terminated_at.map(seconds),
            "canceled_at": null,
            "created_at": seconds(self.created_at),
            "previous_plan_code": null,
            "next_plan_code": null,
            "downgrade_plan_date": null,
        });
        if profile.tells_billing_period() {
            subscription["current_billing_period_started_at"] = json!(iso_seconds(period.0));
            subscription["current_billing_period_ending_at"] = json!(iso_seconds(period.1));
        }
        subscription
    }
}

/// The invoice of a billing period that has ended: what it holds is counted anew as long as it is a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// Lago's id of it.
    pub lago_id: Uuid,
    /// Of which subscription's usage, also of one that was upgraded or has ended.
    pub external_subscription_id: String,
    /// The first moment whose events it counts.
    pub charges_from: Timestamp,
    /// The last.
    pub charges_to: Timestamp,
    /// Since when nothing is counted any more; a draft without.
    pub finalized_at: Option<Timestamp>,
}

impl Invoice {
    /// A draft.
    pub fn draft(external_subscription_id: &str, charges_from: Timestamp, charges_to: Timestamp) -> Self {
        let external_subscription_id = external_subscription_id.to_owned();
        Self { lago_id: Uuid::new_v4(), external_subscription_id, charges_from, charges_to, finalized_at: None }
    }

    /// Source: getlago/lago-api `app/serializers/v1/invoice_serializer.rb` at v1.16.0, of which only what says how it
    /// stands.
    pub(super) fn to_json(&self) -> Value {
        let status = if self.finalized_at.is_some() { "finalized" } else { "draft" };
        json!({
            "lago_id": self.lago_id,
            "invoice_type": "subscription",
            "issuing_date": self.charges_to.to_zoned(TimeZone::UTC).date().to_string(),
            "status": status,
        })
    }
}

/// A customer: exists because a subscription names it, or because it was put there.
#[derive(Clone, Debug)]
pub(super) struct Customer {
    pub(super) lago_id: Uuid,
    pub(super) external_id: String,
    pub(super) created_at: Timestamp,
}

impl Customer {
    /// Source: getlago/lago-api `app/serializers/v1/customer_serializer.rb` at v1.16.0.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "lago_id": self.lago_id,
            "external_id": self.external_id,
            "name": null,
            "email": null,
            "currency": super::usage::CURRENCY,
            "timezone": null,
            "applicable_timezone": "UTC",
            "billing_configuration": { "payment_provider": null, "document_locale": null },
            "metadata": [],
            "created_at": seconds(self.created_at),
            "updated_at": seconds(self.created_at),
        })
    }
}

/// All of it, in order of creation.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalogue {
    pub(super) metrics: Vec<Metric>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) invoices: Vec<Invoice>,
    customers: Vec<Customer>,
}

impl Catalogue {
    /// Adds a metric, or replaces the one with this code.
    pub(super) fn put_metric(&mut self, metric: Metric) {
        match self.metrics.iter_mut().find(|known| known.code == metric.code) {
            Some(known) => *known = metric,
            None => self.metrics.push(metric),
        }
    }

    pub(super) fn remove_metric(&mut self, code: &str) {
        self.metrics.retain(|known| known.code != code);
    }

    /// Adds a subscription and its customer, or replaces the one with this Lago id.
    pub(super) fn put_subscription(&mut self, subscription: Subscription) {
        self.put_customer(&subscription.external_customer_id);
        match self.subscriptions.iter_mut().find(|known| known.lago_id == subscription.lago_id) {
            Some(known) => *known = subscription,
            None => self.subscriptions.push(subscription),
        }
    }

    /// Adds an invoice, or replaces the one with this Lago id.
    pub(super) fn put_invoice(&mut self, invoice: Invoice) {
        match self.invoices.iter_mut().find(|known| known.lago_id == invoice.lago_id) {
            Some(known) => *known = invoice,
            None => self.invoices.push(invoice),
        }
    }

    pub(super) fn put_customer(&mut self, external_id: &str) {
        if self.customer(external_id).is_none() {
            let (lago_id, created_at) = (Uuid::new_v4(), Timestamp::now());
            self.customers.push(Customer { lago_id, external_id: external_id.to_owned(), created_at });
        }
    }

    pub(super) fn remove_customer(&mut self, external_id: &str) {
        self.customers.retain(|known| known.external_id != external_id);
    }

    pub(super) fn end_subscription(&mut self, external_id: &str, at: Timestamp) -> bool {
        let active =
            |known: &&mut Subscription| known.external_id == external_id && known.status == SubscriptionStatus::Active;
        let Some(subscription) = self.subscriptions.iter_mut().find(active) else {
            return false;
        };
        subscription.status = SubscriptionStatus::Terminated;
        subscription.terminated_at = Some(at);
        true
    }

    pub(super) fn customer(&self, external_id: &str) -> Option<&Customer> {
        self.customers.iter().find(|customer| customer.external_id == external_id)
    }
}

pub(super) fn seconds(time: Timestamp) -> String {
    iso_seconds(time.as_microsecond())
}
