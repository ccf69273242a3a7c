//! Plans and their charges.
//!
//! Source: getlago/lago-api `app/services/plans/create_service.rb` and `update_service.rb` at v1.16.0.

use serde_json::{Value, json};

use super::params::{Params, VALUE_IS_INVALID, Wrong};
use super::{Answer, Desk, Kind, Object, Outcome, new_object, refused, text};

const EVER: [&str; 4] = ["name", "invoice_display_name", "description", "amount_cents"];
/// What may no longer be changed once somebody subscribes to it.
const FREE: [&str; 5] = ["code", "interval", "pay_in_advance", "amount_currency", "trial_period"];
const CHARGE: [&str; 3] = ["pay_in_advance", "prorated", "invoice_display_name"];

impl Desk<'_> {
    pub(super) fn create_plan(&mut self, params: &Params) -> Outcome {
        let mut plan = new_object();
        params.copy_all(&EVER, &mut plan);
        params.copy_all(&FREE, &mut plan);
        self.bill_monthly(params, &mut plan);
        for count in ["customers_count", "active_subscriptions_count", "draft_invoices_count"] {
            plan.insert(count.to_owned(), json!(0));
        }
        plan.insert("parent_id".to_owned(), Value::Null);
        self.judge_plan(&plan, None)?;
        self.put_taxes(params, &mut plan)?;
        self.known_metrics(params)?;
        let mut charges = Vec::new();
        for charge in params.list("charges").into_iter().flatten() {
            charges.push(self.new_charge(charge)?);
        }
        plan.insert("charges".to_owned(), Value::Array(charges));
        self.managed.plans.push(plan);
        Ok(self.show_plan(self.managed.plans.len() - 1))
    }

    /// What is refused to a plan with subscriptions is passed over in silence.
    pub(super) fn update_plan(&mut self, at: usize, params: &Params) -> Outcome {
        let mut plan = self.managed.plans[at].clone();
        let is_subscribed = self.is_subscribed(&plan);
        params.copy(&EVER, &mut plan);
        if !is_subscribed {
            params.copy(&FREE, &mut plan);
            self.bill_monthly(params, &mut plan);
        }
        self.judge_plan(&plan, Some(at))?;
        self.put_taxes(params, &mut plan)?;
        self.known_metrics(params)?;
        if let Some(wanted) = params.list("charges") {
            let old = plan.get("charges").and_then(Value::as_array).cloned().unwrap_or_default();
            let mut charges = Vec::new();
            // What is not named is deleted.
            for wanted in wanted {
                let known = old.iter().find(|known| wanted["id"].is_string() && known["lago_id"] == wanted["id"]);
                charges.push(match known {
                    Some(known) => self.changed_charge(known, wanted, is_subscribed)?,
                    None => self.new_charge(wanted)?,
                });
            }
            plan.insert("charges".to_owned(), Value::Array(charges));
        }
        self.managed.plans[at] = plan;
        Ok(self.show_plan(at))
    }

    pub(super) fn show_plan(&mut self, at: usize) -> Value {
        let mut plan = self.managed.plans[at].clone();
        let granted = plan.remove("entitlements");
        let charges = plan.remove("charges");
        let charges = charges.as_ref().and_then(Value::as_array).into_iter().flatten();
        let charges: Vec<Value> =
            charges.filter_map(|charge| Some(self.with_taxes(charge.as_object()?.clone()))).collect();
        plan.insert("charges".to_owned(), Value::Array(charges));
        plan.insert("usage_thresholds".to_owned(), json!([]));
        if self.profile.has_features() {
            let granted = granted.and_then(|granted| granted.as_object().map(|granted| granted.len()));
            // Only how many: the whole of them is at the plan's entitlements.
            plan.insert("entitlements".to_owned(), json!(vec![json!({}); granted.unwrap_or_default()]));
        }
        self.with_taxes(plan)
    }

    /// Source: getlago/lago-api `app/services/plans/update_service.rb` at v1.16.0 and at the head of 2026-08-21: what is not
    /// sent counts as no.
    fn bill_monthly(&self, params: &Params, plan: &mut Object) {
        let is_head = self.profile.has_semiannual();
        plan.insert("bill_charges_monthly".to_owned(), monthly(params, "bill_charges_monthly", is_head));
        if is_head {
            plan.insert("bill_fixed_charges_monthly".to_owned(), monthly(params, "bill_fixed_charges_monthly", true));
        }
    }

    fn is_subscribed(&self, plan: &Object) -> bool {
        let code = text(plan, "code");
        self.catalogue.subscriptions.iter().any(|subscription| Some(subscription.plan_code.as_str()) == code)
    }

    fn judge_plan(&mut self, plan: &Object, own: Option<usize>) -> Result<(), Box<Answer>> {
        let mut wrong = Wrong::default();
        wrong.mandatory(plan, &["name", "code"]);
        let intervals = ["weekly", "monthly", "quarterly", "yearly", "semiannual"];
        let known = if self.profile.has_semiannual() { &intervals[..] } else { &intervals[..4] };
        wrong.one_of(plan, "interval", known);
        wrong.cents(plan, "amount_cents", 0);
        wrong.currency(plan, "amount_currency");
        if !plan.get("pay_in_advance").is_some_and(Value::is_boolean) {
            wrong.add("pay_in_advance", VALUE_IS_INVALID);
        }
        let code = text(plan, "code").unwrap_or_default();
        let other = self.position(Kind::Plan, code);
        wrong.taken("code", other.is_some() && other != own);
        wrong.done()
    }

    fn known_metrics(&self, params: &Params) -> Result<(), Box<Answer>> {
        let mut wanted = params.list("charges").into_iter().flatten();
        if wanted.all(|charge| self.metric_code(charge).is_some()) {
            return Ok(());
        }
        refused(Answer::not_found("billable_metrics_not_found"))
    }

    fn metric_code(&self, charge: &Value) -> Option<String> {
        let id = charge["billable_metric_id"].as_str()?;
        let metric = self.catalogue.metrics.iter().find(|metric| metric.lago_id.to_string() == id)?;
        Some(metric.code.clone())
    }

    fn new_charge(&mut self, wanted: &Value) -> Outcome {
        let mut charge = new_object();
        let params = Params(wanted.as_object().cloned().unwrap_or_default());
        charge.insert("lago_billable_metric_id".to_owned(), wanted["billable_metric_id"].clone());
        charge.insert("billable_metric_code".to_owned(), json!(self.metric_code(wanted)));
        params.copy_all(&CHARGE, &mut charge);
        for name in ["pay_in_advance", "prorated"] {
            charge.insert(name.to_owned(), json!(params.bool(name) == Some(true)));
        }
        // Without a licence these stay as they are whatever is sent.
        charge.insert("invoiceable".to_owned(), json!(true));
        charge.insert("min_amount_cents".to_owned(), json!(0));
        charge.insert("regroup_paid_fees".to_owned(), Value::Null);
        let model = params.text("charge_model").unwrap_or_default().to_owned();
        charge.insert("charge_model".to_owned(), json!(model));
        charge.insert("properties".to_owned(), properties(&model, params.get("properties"))?);
        charge.insert("filters".to_owned(), params.get("filters").cloned().unwrap_or_else(|| json!([])));
        self.put_taxes(&params, &mut charge)?;
        Ok(Value::Object(charge))
    }

    fn changed_charge(&mut self, known: &Value, wanted: &Value, is_subscribed: bool) -> Outcome {
        let mut charge = known.as_object().cloned().unwrap_or_default();
        let params = Params(wanted.as_object().cloned().unwrap_or_default());
        charge.insert("invoice_display_name".to_owned(), wanted["invoice_display_name"].clone());
        if !is_subscribed {
            params.copy(&["charge_model", "pay_in_advance", "prorated"], &mut charge);
        }
        let model = text(&charge, "charge_model").unwrap_or_default().to_owned();
        charge.insert("properties".to_owned(), properties(&model, params.get("properties"))?);
        params.copy(&["filters"], &mut charge);
        self.put_taxes(&params, &mut charge)?;
        Ok(Value::Object(charge))
    }
}

/// Only for plans of a year, and later of half a year; of others it is nothing.
fn monthly(params: &Params, name: &str, also_semiannual: bool) -> Value {
    match params.text("interval") {
        Some("yearly") => json!(params.bool(name) == Some(true)),
        Some("semiannual") if also_semiannual => json!(params.bool(name) == Some(true)),
        _ => Value::Null,
    }
}

/// What a model keeps of what it was given: nothing that it does not know.
///
/// Source: getlago/lago-api `app/services/charges/filter_charge_model_properties_service.rb`,
/// `app/services/charges/validators/`.
fn properties(model: &str, given: Option<&Value>) -> Outcome {
    let names: &[&str] = match model {
        "standard" => &["amount"],
        "graduated" => &["graduated_ranges"],
        "package" => &["amount", "free_units", "package_size"],
        "percentage" => &[
            "fixed_amount",
            "free_units_per_events",
            "free_units_per_total_aggregation",
            "per_transaction_max_amount",
            "per_transaction_min_amount",
            "rate",
        ],
        "volume" => &["volume_ranges"],
        "dynamic" | "custom" => &[],
        // Among them graduated_percentage, which needs a licence.
        _ => return refused(Answer::invalid(json!({ "charge_model": ["value_is_mandatory"] }))),
    };
    let mut kept = Object::new();
    let default = json!({ "amount": "0" });
    let given = given.filter(|given| given.as_object().is_some_and(|given| !given.is_empty())).unwrap_or(&default);
    for name in names.iter().chain(&["grouped_by", "pricing_group_keys"]) {
        if let Some(value) = given.get(*name) {
            kept.insert((*name).to_owned(), value.clone());
        }
    }
    let decimal = |name: &str| {
        kept.get(name).and_then(Value::as_str).is_some_and(|text| text.parse::<f64>().is_ok_and(|amount| amount >= 0.0))
    };
    let whole = |name: &str, least: u64| kept.get(name).and_then(Value::as_u64).is_some_and(|number| number >= least);
    let listed = |name: &str| kept.get(name).and_then(Value::as_array).is_some_and(|ranges| !ranges.is_empty());
    let wrong = match model {
        "standard" if !decimal("amount") => Some("invalid_amount"),
        "package" if !decimal("amount") => Some("invalid_amount"),
        "package" if !whole("free_units", 0) => Some("invalid_free_units"),
        "package" if !whole("package_size", 1) => Some("invalid_package_size"),
        "percentage" if !decimal("rate") => Some("invalid_rate"),
        "graduated" if !listed("graduated_ranges") => Some("missing_graduated_ranges"),
        "volume" if !listed("volume_ranges") => Some("missing_volume_ranges"),
        _ => None,
    };
    match wrong {
        Some(code) => refused(Answer::invalid(json!({ "properties": [code] }))),
        None => Ok(Value::Object(kept)),
    }
}
