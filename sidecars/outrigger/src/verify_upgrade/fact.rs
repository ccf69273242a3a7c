//! What is known of Lago and relied on: a list of facts, and what was seen of each.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A fact about Lago's API that daemons rely on.
#[derive(Debug)]
pub(crate) struct Fact {
    /// Its name, which stays.
    pub(crate) id: &'static str,
    /// Who relies on it.
    pub(crate) daemons: &'static str,
    /// What it says.
    pub(crate) says: &'static str,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Holds {
    /// It does not hold: the daemons that are named do not work with this Lago.
    No,
    /// There was nothing to see it by, such as no active subscription.
    Unknown,
    /// It holds.
    Yes,
}

/// What was seen of a fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) holds: Holds,
    pub(crate) text: String,
    /// What has to be there after an upgrade too: codes, endpoints, a key's fingerprint.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) keeps: BTreeSet<String>,
    /// The fields of the answer, `charges[].properties: object`: news of what changed, whether anybody relies on it or not.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) fields: BTreeSet<String>,
}

impl Seen {
    pub(crate) fn of(fact: &Fact, holds: Holds, text: impl Into<String>) -> Self {
        Self { id: fact.id.to_owned(), holds, text: text.into(), keeps: BTreeSet::new(), fields: BTreeSet::new() }
    }

    pub(crate) fn keeping(mut self, keeps: impl IntoIterator<Item = String>) -> Self {
        self.keeps = keeps.into_iter().collect();
        self
    }

    pub(crate) fn with_fields(mut self, answer: &Value) -> Self {
        fields(answer, "", 0, &mut self.fields);
        self
    }
}

/// Deeper than that nobody looks.
const DEEPEST: usize = 6;
/// More fields than that are not noted: some objects have keys of their owners' choosing.
const MOST_FIELDS: usize = 300;

/// The fields of a document with their types; `null` has none.
fn fields(value: &Value, path: &str, depth: usize, into: &mut BTreeSet<String>) {
    if depth > DEEPEST || into.len() >= MOST_FIELDS {
        return;
    }
    let kind = match value {
        Value::Null => return,
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(items) => {
            items.iter().take(3).for_each(|item| fields(item, &format!("{path}[]"), depth + 1, into));
            "list"
        }
        Value::Object(object) => {
            for (name, value) in object {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                fields(value, &path, depth + 1, into);
            }
            "object"
        }
    };
    if !path.is_empty() {
        into.insert(format!("{path}: {kind}"));
    }
}

/// The rows by name, and all of them.
macro_rules! facts {
    ($($name:ident = $id:literal, $daemons:literal: $says:literal;)*) => {
        $(pub(crate) const $name: Fact = Fact { id: $id, daemons: $daemons, says: $says };)*
        /// Every row.
        pub(crate) const FACTS: &[Fact] = &[$($name),*];
    };
}

facts! {
    HEALTH = "health", "all":
        "`GET /health` answers 200 without a key, with `version` and `message: Success`";
    UNKNOWN_PATH = "unknown-path", "lago-usage-tracker, lago-seeder":
        "an unknown path below `/api/v1` is 404 with the code `resource_not_found`";
    KEY_REFUSED = "key-refused", "all":
        "a wrong key is 401, so that usage waits and is not given up";
    KEY_TAKEN = "key-taken", "all":
        "the key in LAGO_API_KEY is taken";
    PUBLIC_KEY = "public-key", "lago-webhook-processor":
        "`GET /api/v1/webhooks/json_public_key` gives the Base64 of a PEM with an RSA key of 2048 bits or more";
    EVENT_REFUSED = "event-refused", "lago-usage-tracker":
        "`POST /api/v1/events` without `transaction_id` is 422 with `error_details.transaction_id: [value_is_mandatory]`";
    BATCH_REFUSED = "batch-refused", "lago-usage-tracker":
        "`POST /api/v1/events/batch` takes 100 events, and tells of each that is wrong under its index in `error_details`";
    METRICS = "billable-metrics", "lago-usage-tracker, lago-seeder":
        "`GET /api/v1/billable_metrics` lists `code` and `aggregation_type`, in pages with `meta`";
    SUBSCRIPTIONS = "subscriptions", "lago-usage-tracker":
        "`GET /api/v1/subscriptions?status[]=` lists `external_id`, `external_customer_id` and times";
    PLANS = "plans", "lago-usage-tracker, lago-seeder":
        "`GET /api/v1/plans` lists `code` and `charges[]` with `billable_metric_code` and `pay_in_advance`";
    TAXES = "taxes", "lago-seeder": "`GET /api/v1/taxes` lists `code`";
    COUPONS = "coupons", "lago-seeder": "`GET /api/v1/coupons` lists `code`";
    ADD_ONS = "add-ons", "lago-seeder": "`GET /api/v1/add_ons` lists `code`";
    FEATURES = "features", "lago-seeder":
        "`GET /api/v1/features` lists `code`, from v1.32.0 on; before it is 404";
    ENDPOINTS = "webhook-endpoints", "lago-seeder, outrigger doctor":
        "`GET /api/v1/webhook_endpoints` lists `lago_id`, `webhook_url` and `signature_algo`";
    USAGE = "current-usage", "lago-usage-tracker":
        "`current_usage` of an active subscription has the period's bounds, and `units` and `events_count` of each charge";
    USAGE_REFUSED = "current-usage-unknown", "lago-usage-tracker":
        "`current_usage` of a customer that is not there is 404";
    PAST_USAGE = "past-usage", "lago-usage-tracker":
        "`past_usage` of a subscription lists periods with their invoices";
    INVOICE = "invoice-unknown", "lago-usage-tracker":
        "an invoice that is not there is 404, so that it is not taken for one that is final";
    WRITES = "objects-made", "lago-seeder":
        "a metric, a plan with a charge for it, a customer and a subscription are made with 200";
    EVENT_TAKEN = "event-taken", "lago-usage-tracker":
        "a batch with one event is 200 and shows it with its `transaction_id`";
    EVENT_AGAIN = "event-again", "lago-usage-tracker":
        "the same event again is 422 with `value_already_exist` under its index; with ClickHouse 200";
    EVENT_COUNTED = "event-counted", "lago-usage-tracker":
        "`current_usage` counts the event once, within `--wait`";
    WEBHOOK = "webhook-arrives", "lago-webhook-processor":
        "`customer.created` arrives at the registered endpoint, and its signature is good";
    CLEANED = "objects-removed", "lago-seeder":
        "what was made is removed with 200";
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_told_by_place_and_kind() {
        let mut seen = BTreeSet::new();

        fields(
            &json!({ "plans": [{ "code": "a", "charges": [] }, { "code": "b", "trial": 1.5 }], "meta": null }),
            "",
            0,
            &mut seen,
        );

        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert_eq!(
            seen,
            ["plans: list", "plans[].charges: list", "plans[].code: text", "plans[].trial: number", "plans[]: object"]
        );
    }

    #[test]
    fn every_fact_has_a_name_of_its_own() {
        let mut ids: Vec<&str> = FACTS.iter().map(|fact| fact.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), FACTS.len());
    }
}
