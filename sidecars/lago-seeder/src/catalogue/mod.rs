//! The catalogue file: what an organisation in Lago is to have. Fields are called as Lago calls them.
//!
//! What a field's absence means is said with it; most are then left as they are. `check` looks at the whole of it, before
//! Lago is asked anything, and `reference` writes the page about it.

mod check;
mod reference;

use std::collections::BTreeMap;
use std::path::Path;

use kit_lago::management::{Kind, Object};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use reference::reference;

/// Largest file that is read: some ten thousand plans.
const FILE_BYTES: u64 = 8 << 20;

/// What an organisation in Lago is to have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Catalogue {
    /// Taxes. Plans, charges and add-ons name them by code.
    pub taxes: Vec<Tax>,
    /// What usage is counted by. Events and charges name them by code.
    pub billable_metrics: Vec<BillableMetric>,
    /// What plans grant, beside what they charge. From Lago v1.32.0 on; older ones do without, and it is said.
    pub features: Vec<Feature>,
    /// What is subscribed to.
    pub plans: Vec<Plan>,
    /// What is billed once.
    pub add_ons: Vec<AddOn>,
    /// Discounts.
    pub coupons: Vec<Coupon>,
    /// Where Lago sends webhooks.
    pub webhook_endpoints: Vec<WebhookEndpoint>,
}

/// A tax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tax {
    /// What others name it by.
    pub code: String,
    /// Stands on invoices.
    pub name: String,
    /// Per cent, for example `20.0`.
    pub rate: f64,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether it is on everything that names no taxes of its own. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_to_organization: Option<bool>,
}

/// What usage is counted by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BillableMetric {
    /// What events and charges name it by.
    pub code: String,
    /// For people.
    pub name: String,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `count_agg` (events), `sum_agg`, `max_agg`, `unique_count_agg`, `weighted_sum_agg`, `latest_agg` (of `field_name`) or
    /// `custom_agg`.
    pub aggregation_type: String,
    /// The property of an event that is counted; needed for all but `count_agg` and `custom_agg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_name: Option<String>,
    /// Whether units go on into the next billing period; not with `count_agg`, `max_agg` and `latest_agg`.
    #[serde(default)]
    pub recurring: bool,
    /// `seconds`, and only for `weighted_sum_agg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_interval: Option<String>,
    /// What Lago computes the property from, in its own language. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// `round`, `ceil` or `floor`. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding_function: Option<String>,
    /// Digits that are kept. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding_precision: Option<i64>,
    /// Properties by whose values charges may have different prices: `[{ key = "region", values = ["eu", "us"] }]`. Left as
    /// they are where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<MetricFilter>>,
}

/// A property by whose values charges may have different prices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricFilter {
    /// The property.
    pub key: String,
    /// Its values.
    pub values: Vec<String>,
}

/// What plans grant, beside what they charge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// What plans name it by.
    pub code: String,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// How much of it, or which: each plan gives them a value.
    #[serde(default)]
    pub privileges: Vec<Privilege>,
}

/// A value that belongs to a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Privilege {
    /// What plans name it by.
    pub code: String,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `integer`, `boolean`, `string` or `select`. Lago never changes it afterwards.
    pub value_type: String,
    /// What may be chosen from; for `select`. Lago adds to them and never takes one out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub select_options: Vec<String>,
}

/// What is subscribed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What subscriptions name it by.
    pub code: String,
    /// For people.
    pub name: String,
    /// Stands on invoices in the place of the name. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_display_name: Option<String>,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// How often it is billed: `weekly`, `monthly`, `quarterly`, `yearly`; newer versions also `semiannual`.
    pub interval: String,
    /// Its price, in the smallest unit of the currency: 4900 are 49 dollars. A change is for those who subscribe already, too.
    pub amount_cents: u64,
    /// Three letters, for example `USD`.
    pub amount_currency: String,
    /// Days that are not billed at the beginning.
    #[serde(default)]
    pub trial_period: f64,
    /// Whether the price is billed at the beginning of a period, not at its end.
    #[serde(default)]
    pub pay_in_advance: bool,
    /// Of a yearly plan, or of a semiannual one: whether usage is billed every month. Nothing for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill_charges_monthly: Option<bool>,
    /// Taxes by code. Left as they are where absent; `[]` takes all off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tax_codes: Option<Vec<String>>,
    /// What usage costs.
    #[serde(default)]
    pub charges: Vec<Charge>,
    /// What it grants: features by code, and in each the values of privileges by code, as in
    /// `entitlements.modules = { included = 3 }`. Left as they are where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlements: Option<BTreeMap<String, BTreeMap<String, Value>>>,
}

/// What the usage of a metric costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// Code of the metric. Lago's API wants its id there; the seeder finds it.
    pub billable_metric: String,
    /// `standard`, `graduated`, `package`, `percentage`, `volume`, `dynamic`, `custom`; with a licence `graduated_percentage`.
    pub charge_model: String,
    /// What the model needs, with amounts and rates as texts: `{ amount = "0.02" }` for `standard`;
    /// `{ amount = "5", free_units = 1000, package_size = 100 }` for `package`; `{ rate = "1.5" }` for `percentage`;
    /// `{ graduated_ranges = […] }`; `{ volume_ranges = […] }`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Value>")]
    pub properties: Object,
    /// Stands on invoices in the place of the metric's name. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_display_name: Option<String>,
    /// Whether each event is billed at once.
    #[serde(default)]
    pub pay_in_advance: bool,
    /// Whether a part of a period costs a part of the price; for recurring metrics.
    #[serde(default)]
    pub prorated: bool,
    /// Taxes by code. Left as they are where absent; `[]` takes all off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tax_codes: Option<Vec<String>>,
    /// Other prices for some values of the metric's filters. Left as they are where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<ChargeFilter>>,
}

/// Another price for some values of the metric's filters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChargeFilter {
    /// Values by key: `{ region = ["eu"] }`.
    pub values: BTreeMap<String, Vec<String>>,
    /// As the charge's.
    #[schemars(with = "BTreeMap<String, Value>")]
    pub properties: Object,
    /// Stands on invoices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_display_name: Option<String>,
}

/// What is billed once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddOn {
    /// What invoices name it by.
    pub code: String,
    /// For people.
    pub name: String,
    /// Stands on invoices in the place of the name. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice_display_name: Option<String>,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its price, in the smallest unit of the currency.
    pub amount_cents: u64,
    /// Three letters, for example `USD`.
    pub amount_currency: String,
    /// Taxes by code. Left as they are where absent; `[]` takes all off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tax_codes: Option<Vec<String>>,
}

/// A discount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Coupon {
    /// What customers are given it by.
    pub code: String,
    /// Stands on invoices.
    pub name: String,
    /// For people. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `fixed_amount` or `percentage`.
    pub coupon_type: String,
    /// Of a `fixed_amount`, in the smallest unit of the currency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_cents: Option<u64>,
    /// Of a `fixed_amount`, three letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount_currency: Option<String>,
    /// Of a `percentage`, for example `12.5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage_rate: Option<f64>,
    /// `once`, `recurring` (for `frequency_duration` periods) or `forever`.
    pub frequency: String,
    /// Billing periods of `recurring`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_duration: Option<u64>,
    /// `no_expiration` or `time_limit` (until `expiration_at`).
    #[serde(default = "no_expiration")]
    pub expiration: String,
    /// A time such as `2027-01-01T00:00:00Z`, in the future when the coupon is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_at: Option<String>,
    /// Whether one customer may have it more than once.
    #[serde(default = "yes")]
    pub reusable: bool,
    /// Only for these plans or metrics, by code: `{ plan_codes = ["growth"] }` or `{ billable_metric_codes = […] }`. Left as
    /// it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applies_to: Option<AppliesTo>,
}

/// What a coupon is limited to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AppliesTo {
    /// Plans by code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_codes: Option<Vec<String>>,
    /// Metrics by code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billable_metric_codes: Option<Vec<String>>,
}

/// Where Lago sends webhooks. One is known by its address: another address is another endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookEndpoint {
    /// Its address, as Lago's worker reaches it. It is registered once something answers there.
    pub webhook_url: String,
    /// `hmac` or `jwt`. A `jwt` carries the whole body a second time in a header, half as large again.
    pub signature_algo: String,
    /// For people; from v1.44.0 on. Left as it is where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Types that are sent there, from v1.44.0 on; `["*"]` is all of them, `[]` none. Older versions send everything. Left as
    /// they are where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_types: Option<Vec<String>>,
}

fn no_expiration() -> String {
    "no_expiration".to_owned()
}

fn yes() -> bool {
    true
}

/// Why a catalogue cannot be used: every mistake, a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct CatalogueErrors(pub Vec<String>);

impl Catalogue {
    /// Reads a file and looks at the whole of it.
    ///
    /// # Errors
    /// Every mistake there is, where the file can be read at all.
    pub fn read(path: &Path) -> Result<Self, CatalogueErrors> {
        use std::io::Read as _;
        let shown = path.display();
        let failed = |error: std::io::Error| CatalogueErrors(vec![format!("{shown}: cannot be read: {error}")]);
        let mut text = String::new();
        std::fs::File::open(path).map_err(failed)?.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > FILE_BYTES {
            return Err(CatalogueErrors(vec![format!("{shown}: is larger than {FILE_BYTES} bytes")]));
        }
        Self::parse(&text)
            .map_err(|errors| CatalogueErrors(errors.0.into_iter().map(|line| format!("{shown}: {line}")).collect()))
    }

    /// Takes the text of a file.
    ///
    /// # Errors
    /// Every mistake there is; where it is no TOML, or not of this form, the first.
    pub fn parse(text: &str) -> Result<Self, CatalogueErrors> {
        let catalogue: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            CatalogueErrors(vec![format!("{place}{}", error.message().replace('\n', " "))])
        })?;
        let mistakes = catalogue.mistakes();
        if mistakes.is_empty() { Ok(catalogue) } else { Err(CatalogueErrors(mistakes)) }
    }

    /// Codes, or addresses, of everything of a kind.
    pub fn identities(&self, kind: Kind) -> Vec<&str> {
        match kind {
            Kind::Tax => self.taxes.iter().map(|one| one.code.as_str()).collect(),
            Kind::BillableMetric => self.billable_metrics.iter().map(|one| one.code.as_str()).collect(),
            Kind::Feature => self.features.iter().map(|one| one.code.as_str()).collect(),
            Kind::Plan => self.plans.iter().map(|one| one.code.as_str()).collect(),
            Kind::AddOn => self.add_ons.iter().map(|one| one.code.as_str()).collect(),
            Kind::Coupon => self.coupons.iter().map(|one| one.code.as_str()).collect(),
            Kind::WebhookEndpoint => self.webhook_endpoints.iter().map(|one| one.webhook_url.as_str()).collect(),
        }
    }
}
