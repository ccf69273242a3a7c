//! What is wrong with a catalogue, as far as it can be told without Lago.

use std::collections::BTreeSet;

use kit_lago::management::{Kind, Object};
use kit_lago::webhook_type;
use serde_json::Value;
use url::Url;

use super::{Catalogue, Charge, Coupon, Feature, Plan, WebhookEndpoint};

const AGGREGATIONS: [&str; 7] =
    ["count_agg", "sum_agg", "max_agg", "unique_count_agg", "weighted_sum_agg", "latest_agg", "custom_agg"];
const INTERVALS: [&str; 5] = ["weekly", "monthly", "quarterly", "semiannual", "yearly"];
const MODELS: [&str; 8] =
    ["standard", "graduated", "package", "percentage", "volume", "dynamic", "custom", "graduated_percentage"];
/// What a charge model cannot do without.
const NEEDED: [(&str, &[&str]); 6] = [
    ("standard", &["amount"]),
    ("package", &["amount", "free_units", "package_size"]),
    ("percentage", &["rate"]),
    ("graduated", &["graduated_ranges"]),
    ("volume", &["volume_ranges"]),
    ("graduated_percentage", &["graduated_percentage_ranges"]),
];
/// Numbers that Lago keeps as texts, wherever they stand in a charge's properties.
const DECIMALS: [&str; 7] = [
    "amount",
    "rate",
    "fixed_amount",
    "per_unit_amount",
    "flat_amount",
    "per_transaction_max_amount",
    "per_transaction_min_amount",
];

/// Mistakes, each with the thing it is about.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, about: &str, text: &str) {
        self.0.push(format!("{about}: {text}"));
    }

    fn one_of(&mut self, about: &str, field: &str, value: &str, known: &[&str]) {
        if !known.contains(&value) {
            self.add(about, &format!("{field} {value:?} is not one of {}", known.join(", ")));
        }
    }

    fn currency(&mut self, about: &str, value: &str) {
        if value.len() != 3 || !value.bytes().all(|byte| byte.is_ascii_uppercase()) {
            self.add(about, &format!("amount_currency {value:?} is not three capital letters such as USD"));
        }
    }

    /// Codes that are named must be in the catalogue.
    fn known<'a>(&mut self, about: &str, what: &str, named: impl IntoIterator<Item = &'a String>, known: &[&str]) {
        for code in named {
            if !known.contains(&code.as_str()) {
                self.add(about, &format!("there is no {what} {code:?} in the catalogue"));
            }
        }
    }
}

impl Catalogue {
    pub(super) fn mistakes(&self) -> Vec<String> {
        let mut found = Mistakes::default();
        for kind in Kind::ALL {
            let mut seen = BTreeSet::new();
            for identity in self.identities(kind) {
                let about = format!("{} {identity:?}", kind.noun());
                // The latter two would be another path.
                if identity.trim().is_empty() || matches!(identity, "." | "..") || identity.trim() != identity {
                    found.add(&about, &format!("this cannot be a {}", kind.identity()));
                }
                if !seen.insert(identity) {
                    found.add(&about, "it is there twice");
                }
            }
        }
        for tax in &self.taxes {
            if !(0.0..=100.0).contains(&tax.rate) {
                found.add(&format!("tax {:?}", tax.code), "rate is not from 0 to 100 per cent");
            }
        }
        for metric in &self.billable_metrics {
            let about = format!("metric {:?}", metric.code);
            found.one_of(&about, "aggregation_type", &metric.aggregation_type, &AGGREGATIONS);
            let aggregation = metric.aggregation_type.as_str();
            if metric.field_name.is_none() && !matches!(aggregation, "count_agg" | "custom_agg") {
                found.add(&about, &format!("{aggregation} needs field_name, the property that is counted"));
            }
            if metric.recurring && matches!(aggregation, "count_agg" | "max_agg" | "latest_agg") {
                found.add(&about, &format!("{aggregation} cannot be recurring"));
            }
            if (aggregation == "weighted_sum_agg") != (metric.weighted_interval.as_deref() == Some("seconds")) {
                found.add(&about, "weighted_interval = \"seconds\" belongs to weighted_sum_agg, and to it alone");
            }
            if let Some(name) = &metric.rounding_function {
                found.one_of(&about, "rounding_function", name, &["round", "ceil", "floor"]);
            }
        }
        self.features.iter().for_each(|feature| check_feature(feature, &mut found));
        self.plans.iter().for_each(|plan| self.check_plan(plan, &mut found));
        for add_on in &self.add_ons {
            let about = format!("add-on {:?}", add_on.code);
            found.currency(&about, &add_on.amount_currency);
            found.known(&about, "tax", add_on.tax_codes.iter().flatten(), &self.identities(Kind::Tax));
        }
        self.coupons.iter().for_each(|coupon| self.check_coupon(coupon, &mut found));
        self.webhook_endpoints.iter().for_each(|endpoint| check_endpoint(endpoint, &mut found));
        found.0
    }

    fn check_plan(&self, plan: &Plan, found: &mut Mistakes) {
        let about = format!("plan {:?}", plan.code);
        let taxes = self.identities(Kind::Tax);
        found.one_of(&about, "interval", &plan.interval, &INTERVALS);
        found.currency(&about, &plan.amount_currency);
        found.known(&about, "tax", plan.tax_codes.iter().flatten(), &taxes);
        if plan.bill_charges_monthly.is_some() && !matches!(plan.interval.as_str(), "yearly" | "semiannual") {
            found.add(&about, "bill_charges_monthly is for yearly and semiannual plans");
        }
        if !plan.trial_period.is_finite() || plan.trial_period < 0.0 {
            found.add(&about, "trial_period is a number of days, 0 or more");
        }
        for charge in &plan.charges {
            let about = format!("{about}, charge for {:?}", charge.billable_metric);
            found.known(&about, "metric", [&charge.billable_metric], &self.identities(Kind::BillableMetric));
            found.known(&about, "tax", charge.tax_codes.iter().flatten(), &taxes);
            found.one_of(&about, "charge_model", &charge.charge_model, &MODELS);
            check_properties(&about, charge, &charge.properties, found);
            for filter in charge.filters.iter().flatten() {
                check_properties(&format!("{about}, filter"), charge, &filter.properties, found);
            }
        }
        for (code, values) in plan.entitlements.iter().flatten() {
            let Some(feature) = self.features.iter().find(|feature| feature.code == *code) else {
                found.known(&about, "feature", [code], &[]);
                continue;
            };
            for (privilege, value) in values {
                let about = format!("{about}, entitlement {code}.{privilege}");
                match feature.privileges.iter().find(|known| known.code == *privilege) {
                    None => found.add(&about, "the feature has no such privilege"),
                    Some(known) => {
                        let fits = match known.value_type.as_str() {
                            "integer" => value.is_i64() || value.is_u64(),
                            "boolean" => value.is_boolean(),
                            "select" => known.select_options.iter().any(|option| value == option.as_str()),
                            _ => value.is_string(),
                        };
                        if !fits {
                            found.add(&about, &format!("{value} is no value of type {}", known.value_type));
                        }
                    }
                }
            }
        }
    }

    fn check_coupon(&self, coupon: &Coupon, found: &mut Mistakes) {
        let about = format!("coupon {:?}", coupon.code);
        found.one_of(&about, "coupon_type", &coupon.coupon_type, &["fixed_amount", "percentage"]);
        found.one_of(&about, "frequency", &coupon.frequency, &["once", "recurring", "forever"]);
        found.one_of(&about, "expiration", &coupon.expiration, &["no_expiration", "time_limit"]);
        let is_fixed = coupon.coupon_type == "fixed_amount";
        if is_fixed != (coupon.amount_cents.is_some_and(|cents| cents > 0) && coupon.amount_currency.is_some()) {
            found.add(&about, "amount_cents, above 0, and amount_currency belong to a fixed_amount, and to it alone");
        }
        if let Some(currency) = &coupon.amount_currency {
            found.currency(&about, currency);
        }
        let has_rate = coupon.percentage_rate.is_some_and(|rate| rate > 0.0 && rate <= 100.0);
        if (coupon.coupon_type == "percentage") != has_rate {
            found.add(&about, "percentage_rate, up to 100, belongs to a percentage, and to it alone");
        }
        if (coupon.frequency == "recurring") != coupon.frequency_duration.is_some_and(|periods| periods > 0) {
            found.add(&about, "frequency_duration, above 0, belongs to recurring, and to it alone");
        }
        let expires = coupon.expiration_at.as_deref().map(|at| at.parse::<jiff::Timestamp>().is_ok());
        if (coupon.expiration == "time_limit") != (expires == Some(true)) {
            found.add(
                &about,
                "expiration_at, a time such as 2027-01-01T00:00:00Z, belongs to time_limit, and to it alone",
            );
        }
        if let Some(only) = &coupon.applies_to {
            found.known(&about, "plan", only.plan_codes.iter().flatten(), &self.identities(Kind::Plan));
            let metrics = self.identities(Kind::BillableMetric);
            found.known(&about, "metric", only.billable_metric_codes.iter().flatten(), &metrics);
            if only.plan_codes.is_some() && only.billable_metric_codes.is_some() {
                found.add(&about, "applies_to names plans or metrics, not both");
            }
        }
    }
}

fn check_feature(feature: &Feature, found: &mut Mistakes) {
    let mut seen = BTreeSet::new();
    for privilege in &feature.privileges {
        let about = format!("feature {:?}, privilege {:?}", feature.code, privilege.code);
        found.one_of(&about, "value_type", &privilege.value_type, &["integer", "boolean", "string", "select"]);
        if (privilege.value_type == "select") == privilege.select_options.is_empty() {
            found.add(&about, "select_options belong to select, and to it alone");
        }
        if privilege.code.trim().is_empty() || !seen.insert(&privilege.code) {
            found.add(&about, "its code is empty, or there twice");
        }
    }
}

fn check_properties(about: &str, charge: &Charge, properties: &Object, found: &mut Mistakes) {
    let model = charge.charge_model.as_str();
    let needed = NEEDED.iter().find(|(known, _)| *known == model).map_or(&[][..], |(_, needed)| needed);
    for name in needed.iter().filter(|name| !properties.contains_key(**name)) {
        found.add(about, &format!("{model} needs properties.{name}"));
    }
    check_decimals(about, properties, found);
}

/// Lago takes decimals as texts: a binary fraction is not what was written.
fn check_decimals(about: &str, properties: &Object, found: &mut Mistakes) {
    for (name, value) in properties {
        let is_decimal = DECIMALS.contains(&name.as_str());
        let written = value.as_str().is_some_and(|text| text.parse::<f64>().is_ok_and(|number| number >= 0.0));
        if is_decimal && !value.is_null() && !written {
            found.add(about, &format!("properties: {name} is a decimal in quotes, such as \"0.02\""));
        }
        for inner in value.as_array().into_iter().flatten().filter_map(Value::as_object) {
            check_decimals(about, inner, found);
        }
    }
}

fn check_endpoint(endpoint: &WebhookEndpoint, found: &mut Mistakes) {
    let about = format!("webhook endpoint {:?}", endpoint.webhook_url);
    found.one_of(&about, "signature_algo", &endpoint.signature_algo, &["hmac", "jwt"]);
    match Url::parse(&endpoint.webhook_url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
        _ => found.add(&about, "webhook_url is not an http or https address"),
    }
    for name in endpoint.event_types.iter().flatten() {
        let is_known = webhook_type::find(name).is_some_and(|known| known.name == name);
        if name != "*" && !is_known {
            // This name is only in the body; with it as a filter nothing is ever sent.
            let catalogue = webhook_type::catalogue_alias(name).map(|alias| format!(", it is called {alias}"));
            found.add(&about, &format!("there is no event type {name:?}{}", catalogue.unwrap_or_default()));
        }
        // Lago filters by the one name and sends the other (getlago/lago-api
        // `app/services/webhooks/credit_notes/payment_provider_refund_failure_service.rb`).
        if is_known && webhook_type::body_name(name) != name {
            let other = webhook_type::body_name(name);
            found.add(&about, &format!("Lago sends {name} as {other}, which its own filter holds back: take [\"*\"]"));
        }
    }
}
