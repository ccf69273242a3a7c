//! What Lago would take and never bill: found before it is sent. Decisions over values, without I/O.
//!
//! Lago answers 200 to an event of an unknown subscription or metric, and to one whose field is missing or no number,
//! and mentions the latter two in an hourly webhook at best.
//!
//! Source: getlago/lago-api `app/services/events/validate_creation_service.rb` and `db/views/last_hour_events_mv_v04.sql`.

use std::collections::BTreeSet;
use std::fmt;

use kit::clock::Timestamp;
use kit_lago::api::Subscription;
use kit_lago::usage::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admit::{NOBODY, Stored};
use crate::catalogue::Catalogue;
use crate::config::ChecksSection;

/// So many subscriptions are named in a reason.
const NAMED: usize = 5;

/// What happens to an event that does not pass a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// It is refused at once, 422, where the catalogue is known; what got in before is parked.
    Reject,
    /// It is taken, and parked with the reason instead of being sent.
    #[default]
    Park,
    /// It is sent all the same, and counted.
    Pass,
}

/// What is wrong with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    UnknownMetric,
    Property,
    NoSubscription,
    AmbiguousSubscription,
    Time,
    Late,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::UnknownMetric,
        Self::Property,
        Self::NoSubscription,
        Self::AmbiguousSubscription,
        Self::Time,
        Self::Late,
    ];

    /// The word in metrics, and at the beginning of a parked event's reason.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::UnknownMetric => "unknown_metric",
            Self::Property => "property",
            Self::NoSubscription => "no_subscription",
            Self::AmbiguousSubscription => "ambiguous_subscription",
            Self::Time => "time",
            Self::Late => "late",
        }
    }

    /// Whether a newer catalogue may say otherwise.
    pub(crate) fn may_change(self) -> bool {
        match self {
            Self::UnknownMetric | Self::Property | Self::NoSubscription | Self::AmbiguousSubscription => true,
            Self::Time | Self::Late => false,
        }
    }

    pub(crate) fn policy(self, checks: &ChecksSection) -> Policy {
        match self {
            Self::UnknownMetric => checks.unknown_metric,
            Self::Property => checks.property,
            Self::NoSubscription => checks.no_subscription,
            Self::AmbiguousSubscription => checks.ambiguous_subscription,
            Self::Time => checks.time,
            Self::Late => checks.late,
        }
    }
}

/// A check that was not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    /// The field and the code, in Lago's way.
    pub(crate) field: &'static str,
    pub(crate) code: &'static str,
    sentence: String,
}

impl Finding {
    /// Of an event that names only its customer, where Lago does not tell whose its subscriptions are.
    pub(crate) fn untold(customer: &str) -> Self {
        let sentence =
            format!("Lago does not tell its subscriptions, so that the customer {customer:?}'s is not known");
        let (field, code) = ("external_customer_id", "subscription_not_found");
        Self { kind: Kind::NoSubscription, field, code, sentence }
    }
}

/// As a parked event's reason: the kind, then a sentence for a person.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.word(), self.sentence)
    }
}

/// The first thing that is wrong with an event, if anything is; what may pass only where there is nothing else.
pub(crate) fn check(
    event: &Stored<'_>,
    catalogue: &Catalogue,
    checks: &ChecksSection,
    now: Timestamp,
) -> Option<Finding> {
    let passes = |finding: &Finding| finding.kind.policy(checks) == Policy::Pass;
    match metric(event, catalogue) {
        Some(finding) if !passes(&finding) => Some(finding),
        first => {
            subscription(event, catalogue, checks, now).filter(|second| first.is_none() || !passes(second)).or(first)
        }
    }
}

fn metric(event: &Stored<'_>, catalogue: &Catalogue) -> Option<Finding> {
    let code = &event.code;
    let Some(metric) = catalogue.metric(code) else {
        let sentence = format!("Lago has no billable metric with the code {code:?}");
        return Some(Finding { kind: Kind::UnknownMetric, field: "code", code: "billable_metric_not_found", sentence });
    };
    // Of some metrics Lago computes the property itself (v1.17 on: `expression`).
    let field = metric.counted_field()?;
    let wrong = |code, sentence| Some(Finding { kind: Kind::Property, field: "properties", code, sentence });
    match event.property(field) {
        None => {
            wrong("value_is_mandatory", format!("{code} counts the property {field:?}, which the event does not have"))
        }
        Some(value) if metric.aggregation_type.wants_a_number() && Quantity::of_json(value).is_err() => wrong(
            "value_is_invalid",
            format!(
                "{code} counts the property {field:?}, which is not a number in the event{}",
                if value.get().starts_with('"') { ": a text must hold plain digits, such as \"-1.5\"" } else { "" }
            ),
        ),
        Some(_) => None,
    }
}

/// The one subscription that a customer had at that time.
pub(crate) fn whose<'a>(customer: &'a str, at: Timestamp, catalogue: &'a Catalogue) -> Result<&'a str, Finding> {
    let having = |had: fn(&Subscription, Timestamp) -> bool| -> BTreeSet<&str> {
        let own = catalogue.subscriptions_of(customer).filter(|own| had(own, at));
        own.map(|own| own.external_id.as_str()).collect()
    };
    let exactly = having(|own, at| {
        own.started_at.is_none_or(|started| started <= at) && own.terminated_at.is_none_or(|ended| at < ended)
    });
    // Where one ends and the next begins, both are near.
    let found = if exactly.is_empty() { having(|own, at| began(own, at) && lasts(own, at)) } else { exactly };
    let field = "external_customer_id";
    let mut names = found.iter().copied();
    match (names.next(), found.len()) {
        (Some(id), 1) => Ok(id),
        (None, _) => {
            let sentence = if catalogue.subscriptions_of(customer).next().is_none() {
                format!("Lago has no active subscription of the customer {customer:?}")
            } else {
                format!("the customer {customer:?} had no active subscription at its time, {at}")
            };
            Err(Finding { kind: Kind::NoSubscription, field, code: "subscription_not_found", sentence })
        }
        (Some(_), count) => {
            let names: Vec<String> = found.iter().take(NAMED).map(|id| format!("{id:?}")).collect();
            let more = if count > NAMED { ", …" } else { "" };
            let sentence = format!(
                "the customer {customer:?} had {count} subscriptions at its time, {at}, and the event does not say which is meant: {}{more}",
                names.join(", ")
            );
            Err(Finding { kind: Kind::AmbiguousSubscription, field, code: "subscription_is_ambiguous", sentence })
        }
    }
}

/// Whether a subscription had begun at that time; Lago's times are whole seconds.
pub(crate) fn began(own: &Subscription, at: Timestamp) -> bool {
    own.started_at.is_none_or(|started| at.plus_millis(1_000) > started)
}

fn lasts(own: &Subscription, at: Timestamp) -> bool {
    own.terminated_at.is_none_or(|ended| at.plus_millis(-1_000) < ended)
}

fn subscription(event: &Stored<'_>, catalogue: &Catalogue, checks: &ChecksSection, now: Timestamp) -> Option<Finding> {
    let at = event.time()?;
    let id = match (event.external_subscription_id.as_deref(), event.external_customer_id.as_deref()) {
        (None, Some(customer)) => match whose(customer, at, catalogue) {
            Ok(id) => id,
            Err(finding) => return Some(finding),
        },
        (id, _) => id.unwrap_or_default(),
    };
    let none = |sentence| {
        let (field, code) = ("external_subscription_id", "subscription_not_found");
        Some(Finding { kind: Kind::NoSubscription, field, code, sentence })
    };
    let all = catalogue.subscriptions(id);
    if all.is_empty() {
        return none(format!("Lago has no active subscription {id:?}"));
    }
    let wrong = |kind, sentence| Some(Finding { kind, field: "timestamp", code: "value_is_out_of_range", sentence });
    #[expect(clippy::cast_possible_truncation, reason = "validated to at most 30 days")]
    let latest = now.plus_millis((checks.future_seconds * 1000.0) as i64);
    if at > latest {
        return wrong(Kind::Time, format!("its time, {at}, is in the future"));
    }
    let Some(subscription) = all.iter().find(|own| began(own, at) && lasts(own, at)) else {
        let first = all.iter().filter_map(|own| own.started_at).min();
        return match all.iter().filter(|own| began(own, at)).filter_map(|own| own.terminated_at).max() {
            Some(ended) => none(format!("its time, {at}, is after the subscription {id:?} ended, {ended}")),
            None => wrong(
                Kind::Time,
                format!("its time, {at}, is before the subscription began, {}", first.unwrap_or_default()),
            ),
        };
    };
    let customer = subscription.external_customer_id.as_str();
    if NOBODY.contains(&customer) {
        return none(format!("the subscription {id:?} is of the customer {customer:?}, who is nobody"));
    }
    if let Some(period) =
        subscription.current_billing_period_started_at.filter(|period| at.plus_millis(1_000) <= *period)
    {
        return Some(late(at, period));
    }
    None
}

/// Usage of before the current billing period.
pub(crate) fn late(at: Timestamp, period: Timestamp) -> Finding {
    let sentence = format!(
        "its time, {at}, is before the current billing period, which began {period}: if that invoice is final, Lago never bills it"
    );
    Finding { kind: Kind::Late, field: "timestamp", code: "value_is_out_of_range", sentence }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit_lago::api::{Aggregation, BillableMetric};

    use super::*;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn catalogue() -> Catalogue {
        let metric = |code: &str, aggregation_type, field: Option<&str>| BillableMetric {
            code: code.to_owned(),
            aggregation_type,
            field_name: field.map(str::to_owned),
            expression: (code == "computed").then(|| "event.properties.a * 2".to_owned()),
            recurring: false,
            rounding_function: None,
        };
        let subscription = |id: &str, started: &str, ended: Option<&str>, period: Option<&str>| Subscription {
            external_id: id.to_owned(),
            external_customer_id: "c".to_owned(),
            plan_code: None,
            started_at: Some(started.parse().unwrap()),
            terminated_at: ended.map(|ended| ended.parse().unwrap()),
            current_billing_period_started_at: period.map(|period| period.parse().unwrap()),
            current_billing_period_ending_at: None,
        };
        Catalogue::new(
            vec![
                metric("calls", Aggregation::CountAgg, None),
                metric("gb", Aggregation::SumAgg, Some("gb")),
                metric("users", Aggregation::UniqueCountAgg, Some("user")),
                metric("odd", Aggregation::Custom, Some("")),
                metric("computed", Aggregation::SumAgg, Some("result")),
            ],
            vec![
                subscription("s", "2026-01-01T00:00:00Z", None, Some("2026-11-01T00:00:00Z")),
                subscription("old", "2026-01-01T00:00:00Z", None, None),
                subscription("up", "2026-10-01T00:00:00Z", Some("2026-11-20T00:00:00Z"), None),
                subscription("up", "2026-11-20T00:00:00Z", None, None),
                subscription("over", "2026-01-01T00:00:00Z", Some("2026-11-20T00:00:00Z"), None),
                Subscription {
                    external_customer_id: "global".to_owned(),
                    ..subscription("nobody's", "2026-01-01T00:00:00Z", None, None)
                },
            ],
            NOW.parse().unwrap(),
        )
    }

    #[test]
    fn a_customers_subscription_is_the_one_it_had_at_that_time() {
        let of = |id: &str, customer: &str, started: &str, ended: Option<&str>| Subscription {
            external_id: id.to_owned(),
            external_customer_id: customer.to_owned(),
            plan_code: None,
            started_at: Some(started.parse().unwrap()),
            terminated_at: ended.map(|ended| ended.parse().unwrap()),
            current_billing_period_started_at: None,
            current_billing_period_ending_at: None,
        };
        let catalogue = Catalogue::new(
            vec![],
            vec![
                // Upgraded: the same id twice. Then another one.
                of("a", "one", "2026-10-01T00:00:00Z", Some("2026-10-20T00:00:00Z")),
                of("a", "one", "2026-10-20T00:00:00Z", Some("2026-11-01T00:00:00Z")),
                of("b", "one", "2026-11-01T00:00:00Z", None),
                of("c", "two", "2026-10-01T00:00:00Z", None),
                of("d", "two", "2026-11-01T00:00:00Z", None),
            ],
            NOW.parse().unwrap(),
        );
        let none =
            "no_subscription: the customer \"one\" had no active subscription at its time, 2026-09-30T23:59:58.000Z";
        let several = "ambiguous_subscription: the customer \"two\" had 2 subscriptions at its time, 2026-11-21T12:00:00.000Z, and the event does not say which is meant: \"c\", \"d\"";
        for (customer, at, expected) in [
            ("one", "2026-10-19T23:59:59Z", Ok("a")),
            ("one", "2026-10-20T00:00:00Z", Ok("a")),
            ("one", "2026-11-01T00:00:00Z", Ok("b")),
            ("one", "2026-10-31T23:59:59.5Z", Ok("a")),
            ("one", "2026-09-30T23:59:59.5Z", Ok("a")),
            ("one", "2026-09-30T23:59:58Z", Err(none)),
            ("two", "2026-10-02T00:00:00Z", Ok("c")),
            ("two", NOW, Err(several)),
            ("a", NOW, Err("no_subscription: Lago has no active subscription of the customer \"a\"")),
        ] {
            let found = whose(customer, at.parse().unwrap(), &catalogue).map_err(|finding| finding.to_string());
            assert_eq!(
                found.as_deref().map_err(String::as_str),
                expected.as_ref().map(|id| *id).map_err(|text| *text),
                "{customer} {at}"
            );
        }
    }

    fn found(subscription: &str, code: &str, time: &str, properties: &str) -> Option<String> {
        let seconds = time.parse::<Timestamp>().unwrap().as_millis() / 1000;
        let event = format!(
            r#"{{"transaction_id":"t","external_subscription_id":"{subscription}","code":"{code}","timestamp":{seconds},"properties":{properties}}}"#
        );
        let event = Stored::read(event.as_bytes()).unwrap();
        check(&event, &catalogue(), &ChecksSection::default(), NOW.parse().unwrap()).map(|finding| finding.to_string())
    }

    #[test]
    fn what_lago_bills_passes() {
        for (subscription, code, time, properties) in [
            ("s", "calls", NOW, "{}"),
            ("s", "gb", NOW, r#"{"gb":1.5}"#),
            ("s", "gb", NOW, r#"{"gb":"1.5"}"#),
            ("s", "gb", NOW, r#"{"gb":1E3}"#),
            ("s", "users", NOW, r#"{"user":"u-1"}"#),
            ("s", "odd", NOW, "{}"),
            ("s", "computed", NOW, r#"{"a":1}"#),
            ("s", "calls", "2026-11-01T00:00:00Z", "{}"),
            // Upgraded, or ended: what happened before is billed.
            ("up", "calls", "2026-11-19T23:59:59Z", "{}"),
            ("up", "calls", "2026-11-20T00:00:00Z", "{}"),
            ("over", "calls", "2026-11-19T23:59:59Z", "{}"),
            // An older Lago does not say which period it is.
            ("old", "calls", "2026-02-01T00:00:00Z", "{}"),
            ("s", "calls", "2026-11-21T12:59:59Z", "{}"),
        ] {
            assert_eq!(found(subscription, code, time, properties), None, "{subscription} {code} {time} {properties}");
        }
    }

    #[test]
    fn what_may_pass_does_not_hide_what_may_not() {
        let event = r#"{"transaction_id":"t","external_subscription_id":"x","code":"cals","timestamp":1790000000}"#;
        let event = Stored::read(event.as_bytes()).unwrap();
        for (unknown_metric, no_subscription, expected) in [
            (Policy::Park, Policy::Park, Kind::UnknownMetric),
            (Policy::Pass, Policy::Park, Kind::NoSubscription),
            (Policy::Pass, Policy::Reject, Kind::NoSubscription),
            (Policy::Pass, Policy::Pass, Kind::UnknownMetric),
        ] {
            let checks = ChecksSection { unknown_metric, no_subscription, ..ChecksSection::default() };
            let found = check(&event, &catalogue(), &checks, NOW.parse().unwrap()).unwrap();
            assert_eq!(found.kind, expected, "{checks:?}");
        }
    }

    #[test]
    fn what_lago_would_never_bill_is_found_and_told_to_a_person() {
        for (subscription, code, time, properties, expected) in [
            ("s", "cals", NOW, "{}", "unknown_metric: Lago has no billable metric with the code \"cals\""),
            ("s", "gb", NOW, "{}", "property: gb counts the property \"gb\", which the event does not have"),
            ("s", "gb", NOW, r#"{"gb":"much"}"#, "property: gb counts the property \"gb\", which is not a number"),
            // Lago takes these and never counts them.
            (
                "s",
                "gb",
                NOW,
                r#"{"gb":"1e3"}"#,
                "property: gb counts the property \"gb\", which is not a number in the event: a text must hold plain digits, such as \"-1.5\"",
            ),
            ("s", "gb", NOW, r#"{"gb":" 5 "}"#, "property: "),
            ("s", "gb", NOW, r#"{"gb":null}"#, "property: "),
            ("s", "users", NOW, r#"{"usr":1}"#, "property: users counts the property \"user\""),
            ("x", "calls", NOW, "{}", "no_subscription: Lago has no active subscription \"x\""),
            (
                "nobody's",
                "calls",
                NOW,
                "{}",
                "no_subscription: the subscription \"nobody's\" is of the customer \"global\", who is nobody",
            ),
            (
                "over",
                "calls",
                NOW,
                "{}",
                "no_subscription: its time, 2026-11-21T12:00:00.000Z, is after the subscription \"over\" ended",
            ),
            (
                "up",
                "calls",
                "2026-09-01T00:00:00Z",
                "{}",
                "time: its time, 2026-09-01T00:00:00.000Z, is before the sub",
            ),
            ("s", "calls", "2026-11-21T13:00:01Z", "{}", "time: its time, 2026-11-21T13:00:01.000Z, is in the future"),
            (
                "old",
                "calls",
                "2025-12-31T23:59:59Z",
                "{}",
                "time: its time, 2025-12-31T23:59:59.000Z, is before the sub",
            ),
            (
                "s",
                "calls",
                "2026-10-31T23:59:59Z",
                "{}",
                "late: its time, 2026-10-31T23:59:59.000Z, is before the curr",
            ),
        ] {
            let found = found(subscription, code, time, properties).unwrap();
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
