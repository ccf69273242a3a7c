//! What is different between what is wanted and what Lago has, and what has to be sent to mend it. Values in, decisions
//! out: Lago is asked elsewhere.

mod charges;
mod same;

use kit_lago::management::{Kind, Object};
use serde::Serialize;
use serde_json::{Value, json};

use crate::wanted::{Entitlements, Wanted};
use charges::Pairing;
use same::same;

pub(crate) use charges::MetricIds;

/// One field that is not as it is wanted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Which, for example `amount_cents` or `charges.ai_requests.properties`.
    pub field: String,
    /// What Lago has.
    pub lago: Value,
    /// What the catalogue says.
    pub wanted: Value,
    /// Where in the object it is.
    #[serde(skip)]
    pub(crate) part: Part,
    /// Lago passes a change of it over in silence once the object is in use.
    #[serde(skip)]
    pub(crate) is_locked: bool,
}

/// Which request changes a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object's own.
    Own,
    Charges,
    Entitlements,
}

/// An object beside what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) changes: Vec<Change>,
    /// Parts of it that the catalogue does not have; they stay unless asked otherwise.
    pub(crate) extras: Vec<Extra>,
    /// What this Lago does not have at all.
    pub(crate) missing_ability: Option<&'static str>,
    pairing: Pairing,
}

/// A part of an object that the catalogue does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extra {
    /// A charge of a plan, by its metric and model.
    Charge(String),
    /// The same as a charge that is wanted, a second time: the same usage is billed twice.
    Twin(String),
    /// A feature that a plan grants, or a privilege of one.
    Entitlement { feature: String, privilege: Option<String> },
}

impl Extra {
    /// What it is called in a sentence.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Charge(what) => format!("charge for {what}"),
            Self::Twin(what) => format!("second charge for {what}"),
            Self::Entitlement { feature, privilege: None } => format!("entitlement {feature}"),
            Self::Entitlement { feature, privilege: Some(privilege) } => format!("entitlement {feature}.{privilege}"),
        }
    }
}

/// Compares an object, and of a plan what it grants, with what is wanted.
pub(crate) fn compare(wanted: &Wanted, actual: &Object, granted: Option<&Entitlements>) -> Comparison {
    let requested = as_requested(wanted.kind, actual);
    let (mut changes, mut extras) = (Vec::new(), Vec::new());
    let mut missing_ability = None;
    for (name, value) in &wanted.fields {
        if name == "privileges" {
            compare_privileges(value, &requested, &mut changes);
            continue;
        }
        // Older versions show neither.
        if wanted.kind == Kind::WebhookEndpoint
            && !actual.contains_key(name)
            && matches!(name.as_str(), "name" | "event_types")
        {
            missing_ability =
                Some("names and event types of webhook endpoints (from v1.44.0): it sends everything there");
            continue;
        }
        let found = requested.get(name).cloned().unwrap_or_default();
        if !same(name, value, &found) {
            let is_locked = is_locked(wanted.kind, name);
            changes.push(Change {
                field: name.clone(),
                lago: found,
                wanted: value.clone(),
                part: Part::Own,
                is_locked,
            });
        }
    }
    let pairing = if wanted.kind == Kind::Plan {
        let actual = actual.get("charges").and_then(Value::as_array).cloned().unwrap_or_default();
        charges::pair(&wanted.charges, &actual)
    } else {
        Pairing::default()
    };
    pairing.changes(&mut changes);
    extras.extend(pairing.extras());
    if let (Some(wanted), Some(granted)) = (&wanted.entitlements, granted) {
        compare_entitlements(wanted, granted, &mut changes, &mut extras);
    }
    Comparison { changes, extras, missing_ability, pairing }
}

/// The body that makes an object.
///
/// # Errors
/// The code of a metric that Lago does not have.
pub(crate) fn creation(wanted: &Wanted, metric_ids: &MetricIds) -> Result<Object, String> {
    let mut body = wanted.fields.clone();
    if wanted.kind == Kind::Plan {
        body.insert("charges".to_owned(), charges::creation(&wanted.charges, metric_ids)?);
    }
    Ok(body)
}

/// The body that mends these changes of an object, `None` where none of them is in it. With `prune` what the catalogue does not have goes.
///
/// # Errors
/// The code of a metric that Lago does not have.
pub(crate) fn update(
    wanted: &Wanted,
    actual: &Object,
    comparison: &Comparison,
    changes: &[&Change],
    (prune, metric_ids): (bool, &MetricIds),
) -> Result<Option<Object>, String> {
    let own: Vec<&str> =
        changes.iter().filter(|change| change.part == Part::Own).map(|change| change.field.as_str()).collect();
    let removes_charges =
        prune && comparison.extras.iter().any(|extra| matches!(extra, Extra::Charge(_) | Extra::Twin(_)));
    let has_charges = removes_charges || changes.iter().any(|change| change.part == Part::Charges);
    if own.is_empty() && !has_charges {
        return Ok(None);
    }
    let mut body: Object =
        wanted.fields.iter().filter(|(name, _)| is_sent(name, &own)).map(|(n, v)| (n.clone(), v.clone())).collect();
    match wanted.kind {
        // v1.16.0 writes NULL into what is not sent, and fails.
        Kind::WebhookEndpoint => {
            for name in ["webhook_url", "signature_algo"] {
                body.insert(name.to_owned(), wanted.fields.get(name).cloned().unwrap_or_default());
            }
        }
        // What is not sent here counts as not monthly, and as not yearly.
        Kind::Plan => {
            for name in ["interval", "bill_charges_monthly"] {
                let value = body.get(name).or_else(|| actual.get(name)).cloned().unwrap_or_default();
                body.insert(name.to_owned(), value);
            }
            // Newer versions only; the catalogue does not have it.
            if let Some(value) = actual.get("bill_fixed_charges_monthly") {
                body.insert("bill_fixed_charges_monthly".to_owned(), value.clone());
            }
        }
        _ => {}
    }
    if has_charges {
        let stays = |field: &str| changes.iter().all(|change| change.field != field);
        body.insert("charges".to_owned(), comparison.pairing.update(stays, prune, metric_ids)?);
    }
    Ok(Some(body))
}

/// Whether a field is sent because one of these changes is in it.
fn is_sent(name: &str, changed: &[&str]) -> bool {
    changed.iter().any(|field| *field == name || field.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// What Lago stops changing once the object is in use: a metric that a plan charges, a plan that somebody subscribes to, a
/// coupon that a customer has.
///
/// Source: getlago/lago-api `app/services/{billable_metrics,plans,coupons}/update_service.rb` at v1.16.0.
fn is_locked(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::BillableMetric => !matches!(name, "name" | "description"),
        Kind::Plan => {
            matches!(name, "interval" | "pay_in_advance" | "amount_currency" | "trial_period" | "bill_charges_monthly")
        }
        Kind::Coupon => !matches!(name, "name" | "description" | "expiration" | "expiration_at"),
        _ => false,
    }
}

/// An object as Lago shows it, in the words in which it is told.
fn as_requested(kind: Kind, actual: &Object) -> Object {
    let mut object = actual.clone();
    let codes = |name: &str| {
        let list = actual.get(name).and_then(Value::as_array).into_iter().flatten();
        Value::Array(list.filter_map(|one| one.get("code").cloned()).collect())
    };
    match kind {
        Kind::Plan | Kind::AddOn => {
            object.insert("tax_codes".to_owned(), codes("taxes"));
        }
        Kind::Coupon => {
            let plans = actual.get("plan_codes").cloned().unwrap_or_else(|| codes("plans"));
            let metrics = actual.get("billable_metric_codes").cloned().unwrap_or_else(|| codes("billable_metrics"));
            object.insert("applies_to".to_owned(), json!({ "plan_codes": plans, "billable_metric_codes": metrics }));
        }
        // Without a list everything is sent.
        Kind::WebhookEndpoint if actual.get("event_types").is_some_and(Value::is_null) => {
            object.insert("event_types".to_owned(), json!(["*"]));
        }
        _ => {}
    }
    object
}

fn compare_privileges(wanted: &Value, actual: &Object, changes: &mut Vec<Change>) {
    let known = actual.get("privileges").and_then(Value::as_array).cloned().unwrap_or_default();
    for wanted in wanted.as_array().into_iter().flatten() {
        let code = wanted["code"].as_str().unwrap_or_default();
        let mut add = |field: String, lago: Value, wanted: Value, is_locked: bool| {
            changes.push(Change { field, lago, wanted, part: Part::Own, is_locked });
        };
        let Some(found) = known.iter().find(|known| known["code"] == code) else {
            add(format!("privileges.{code}"), Value::Null, wanted.clone(), false);
            continue;
        };
        if wanted.get("name").is_some_and(|name| !same("name", name, &found["name"])) {
            add(format!("privileges.{code}.name"), found["name"].clone(), wanted["name"].clone(), false);
        }
        if found["value_type"] != wanted["value_type"] {
            let (lago, wanted) = (found["value_type"].clone(), wanted["value_type"].clone());
            add(format!("privileges.{code}.value_type"), lago, wanted, true);
        }
        let options = |of: &Value| of["config"]["select_options"].as_array().cloned().unwrap_or_default();
        let (had, want) = (options(found), options(wanted));
        // Lago never takes one out, so that one too many is none of ours.
        if want.iter().any(|option| !had.contains(option)) {
            add(format!("privileges.{code}.select_options"), json!(had), json!(want), false);
        }
    }
}

fn compare_entitlements(
    wanted: &Entitlements,
    granted: &Entitlements,
    changes: &mut Vec<Change>,
    extras: &mut Vec<Extra>,
) {
    let mut add = |field: String, lago: Value, wanted: Value| {
        changes.push(Change { field, lago, wanted, part: Part::Entitlements, is_locked: false });
    };
    for (feature, values) in wanted {
        let Some(found) = granted.get(feature) else {
            add(format!("entitlements.{feature}"), Value::Null, json!(values));
            continue;
        };
        for (privilege, value) in values {
            let lago = found.get(privilege).cloned().unwrap_or_default();
            if lago != *value {
                add(format!("entitlements.{feature}.{privilege}"), lago, value.clone());
            }
        }
        extras.extend(
            found
                .keys()
                .filter(|privilege| !values.contains_key(*privilege))
                .map(|privilege| Extra::Entitlement { feature: feature.clone(), privilege: Some(privilege.clone()) }),
        );
    }
    extras.extend(
        granted
            .keys()
            .filter(|feature| !wanted.contains_key(*feature))
            .map(|feature| Extra::Entitlement { feature: feature.clone(), privilege: None }),
    );
}

/// What a plan grants, as Lago shows it: privileges in a table by code, or in a list.
pub(crate) fn entitlements_of(shown: &[Object]) -> Entitlements {
    let mut granted = Entitlements::new();
    for entitlement in shown {
        let Some(code) = entitlement.get("code").and_then(Value::as_str) else { continue };
        let privileges: Vec<&Value> = match entitlement.get("privileges") {
            Some(Value::Object(by_code)) => by_code.values().collect(),
            Some(Value::Array(list)) => list.iter().collect(),
            _ => Vec::new(),
        };
        let values = privileges
            .into_iter()
            .filter_map(|privilege| Some((privilege["code"].as_str()?.to_owned(), privilege["value"].clone())));
        granted.insert(code.to_owned(), values.collect());
    }
    granted
}

#[cfg(test)]
mod tests;
