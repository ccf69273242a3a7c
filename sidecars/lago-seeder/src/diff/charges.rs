//! Charges of a plan: which of Lago's is which of the catalogue's, and what to send. A plan's charges are sent all together,
//! and what is not among them Lago deletes: so what is not ours goes along as it is.
//!
//! Source: getlago/lago-api `app/services/plans/update_service.rb` (`process_charges`, `sanitize_charges`) at v1.16.0.

use std::collections::BTreeMap;

use kit_lago::management::Object;
use serde_json::{Value, json};

use super::same::same;
use super::{Change, Extra, Part};
use crate::wanted::WantedCharge;

/// Lago's ids of metrics by code.
pub(crate) type MetricIds = BTreeMap<String, String>;

/// What an existing charge is sent with when it is to stay as it is.
const KEPT: [&str; 7] = [
    "charge_model",
    "properties",
    "invoice_display_name",
    "pay_in_advance",
    "prorated",
    "invoiceable",
    "min_amount_cents",
];
/// What Lago no longer changes once somebody subscribes to the plan.
const LOCKED: [&str; 3] = ["charge_model", "pay_in_advance", "prorated"];

/// Which of Lago's charges is which of the catalogue's.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pairing {
    /// Each wanted one with a name for people, and Lago's where there is one.
    pairs: Vec<(String, WantedCharge, Option<Object>)>,
    /// Lago's that nobody wants.
    others: Vec<Object>,
}

/// Finds for each wanted charge the one of Lago's that is most like it: of the same metric, and best with nothing to change,
/// or at least of the same model.
pub(super) fn pair(wanted: &[WantedCharge], actual: &[Value]) -> Pairing {
    let mut left: Vec<Object> = actual.iter().filter_map(|charge| charge.as_object().map(as_requested)).collect();
    let mut found: Vec<Option<Object>> = vec![None; wanted.len()];
    let likenesses: [fn(&WantedCharge, &Object) -> bool; 3] = [
        |wanted, actual| differing(wanted, actual).next().is_none(),
        |wanted, actual| wanted.fields.get("charge_model") == actual.get("charge_model"),
        |_, _| true,
    ];
    for is_like in likenesses {
        for (wanted, found) in wanted.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
            let of_metric = |actual: &Object| actual.get("billable_metric_code") == Some(&json!(wanted.metric));
            let at = left.iter().position(|actual| of_metric(actual) && is_like(wanted, actual));
            *found = at.map(|at| left.remove(at));
        }
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let pairs = wanted.iter().zip(found).map(|(wanted, found)| {
        let count = seen.entry(&wanted.metric).or_default();
        *count += 1;
        let name = if *count == 1 { wanted.metric.clone() } else { format!("{}#{count}", wanted.metric) };
        (name, wanted.clone(), found)
    });
    Pairing { pairs: pairs.collect(), others: left }
}

/// The charges of a new plan.
pub(super) fn creation(wanted: &[WantedCharge], ids: &MetricIds) -> Result<Value, String> {
    wanted.iter().map(|wanted| new(wanted, ids)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

impl Pairing {
    pub(super) fn changes(&self, into: &mut Vec<Change>) {
        let part = Part::Charges;
        for (name, wanted, found) in &self.pairs {
            let Some(found) = found else {
                let (lago, wanted) = (Value::Null, Value::Object(wanted.fields.clone()));
                into.push(Change { field: field(name, ""), lago, wanted, part, is_locked: false });
                continue;
            };
            let model_differs = wanted.fields.get("charge_model") != found.get("charge_model");
            for (inner, value) in differing(wanted, found) {
                let lago = found.get(inner).cloned().unwrap_or_default();
                let is_locked = LOCKED.contains(&inner.as_str()) || (model_differs && is_of_model(inner));
                into.push(Change { field: field(name, inner), lago, wanted: value.clone(), part, is_locked });
            }
        }
    }

    pub(super) fn extras(&self) -> impl Iterator<Item = Extra> {
        self.others.iter().map(|charge| {
            let text = |name: &str| charge.get(name).and_then(Value::as_str).unwrap_or("?");
            let what = format!("{} ({})", text("billable_metric_code"), text("charge_model"));
            let is_wanted = |wanted: &WantedCharge| {
                wanted.metric == text("billable_metric_code") && differing(wanted, charge).next().is_none()
            };
            let has_twin = self.pairs.iter().any(|(_, wanted, found)| found.is_some() && is_wanted(wanted));
            if has_twin { Extra::Twin(what) } else { Extra::Charge(what) }
        })
    }

    /// All charges of the plan as they are to be; `stays` tells fields that are not to be changed.
    pub(super) fn update(&self, stays: impl Fn(&str) -> bool, prune: bool, ids: &MetricIds) -> Result<Value, String> {
        let mut all = Vec::new();
        for (name, wanted, found) in &self.pairs {
            let Some(found) = found else {
                if !stays(&field(name, "")) {
                    all.push(new(wanted, ids)?);
                }
                continue;
            };
            let mut charge = kept(found);
            // Properties belong to a model: with another one that stays, Lago would keep what it knows of them.
            let model_stays =
                wanted.fields.get("charge_model") != found.get("charge_model") && stays(&field(name, "charge_model"));
            for (inner, value) in differing(wanted, found) {
                let is_kept = stays(&field(name, inner)) || (model_stays && is_of_model(inner));
                if !is_kept {
                    charge.insert(inner.clone(), value.clone());
                }
            }
            all.push(Value::Object(charge));
        }
        if !prune {
            all.extend(self.others.iter().map(|other| Value::Object(kept(other))));
        }
        Ok(Value::Array(all))
    }
}

/// What means something only with the model that it is for.
fn is_of_model(field: &str) -> bool {
    matches!(field, "properties" | "filters")
}

/// How a field of a charge is called, or the whole of it.
fn field(charge: &str, inner: &str) -> String {
    let dot = if inner.is_empty() { "" } else { "." };
    format!("charges.{charge}{dot}{inner}")
}

/// The fields of a charge that are not as they are wanted.
fn differing<'a>(wanted: &'a WantedCharge, actual: &Object) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let is_same = |(name, value): &(&String, &Value)| same(name, value, actual.get(*name).unwrap_or(&Value::Null));
    wanted.fields.iter().filter(move |pair| !is_same(pair)).collect::<Vec<_>>().into_iter()
}

/// A charge as Lago shows it, in the words in which it is told.
fn as_requested(actual: &Object) -> Object {
    let mut charge = actual.clone();
    let taxes = actual.get("taxes").and_then(Value::as_array).into_iter().flatten();
    let codes = taxes.filter_map(|tax| tax.get("code").cloned()).collect();
    charge.insert("tax_codes".to_owned(), Value::Array(codes));
    charge
}

fn kept(actual: &Object) -> Object {
    let mut charge = Object::new();
    for (from, to) in [("lago_id", "id"), ("lago_billable_metric_id", "billable_metric_id")] {
        charge.insert(to.to_owned(), actual.get(from).cloned().unwrap_or_default());
    }
    for name in KEPT {
        if let Some(value) = actual.get(name) {
            charge.insert(name.to_owned(), value.clone());
        }
    }
    charge
}

fn new(wanted: &WantedCharge, ids: &MetricIds) -> Result<Value, String> {
    let id = ids.get(&wanted.metric).ok_or_else(|| wanted.metric.clone())?;
    let mut charge = wanted.fields.clone();
    charge.insert("billable_metric_id".to_owned(), json!(id));
    Ok(Value::Object(charge))
}
