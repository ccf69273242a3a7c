//! The catalogue as a list of what is wanted, in the order in which one needs the other, in the words of Lago's API.

use std::collections::BTreeMap;

use kit_lago::management::{Kind, Object};
use serde::Serialize;
use serde_json::{Value, json};

use crate::catalogue::{Catalogue, Charge, Feature, Plan};

/// What a plan grants: the values of privileges by feature.
pub(crate) type Entitlements = BTreeMap<String, BTreeMap<String, Value>>;

/// One object that Lago is to have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    /// Its code, or its address.
    pub(crate) identity: String,
    /// As they are sent. What is not here is left as it is.
    pub(crate) fields: Object,
    /// Of a plan.
    pub(crate) charges: Vec<WantedCharge>,
    /// Of a plan, where the catalogue names them.
    pub(crate) entitlements: Option<Entitlements>,
}

/// A charge, without the ids that are only known once Lago was asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WantedCharge {
    /// Code of the metric.
    pub(crate) metric: String,
    pub(crate) fields: Object,
}

/// Everything in a catalogue.
pub(crate) fn wanted(catalogue: &Catalogue) -> Vec<Wanted> {
    let Catalogue { taxes, billable_metrics, features, plans, add_ons, coupons, webhook_endpoints } = catalogue;
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let fields: Vec<Object> = match kind {
            Kind::Tax => taxes.iter().map(object).collect(),
            Kind::BillableMetric => billable_metrics.iter().map(object).collect(),
            Kind::Feature => features.iter().map(feature).collect(),
            Kind::Plan => plans.iter().map(plan).collect(),
            Kind::AddOn => add_ons.iter().map(object).collect(),
            Kind::Coupon => coupons.iter().map(object).collect(),
            Kind::WebhookEndpoint => webhook_endpoints.iter().map(object).collect(),
        };
        let identities = catalogue.identities(kind);
        for (position, (identity, fields)) in identities.into_iter().zip(fields).enumerate() {
            let own = plans.get(position).filter(|_| kind == Kind::Plan);
            all.push(Wanted {
                kind,
                identity: identity.to_owned(),
                fields,
                charges: own.map(|plan| plan.charges.iter().map(charge).collect()).unwrap_or_default(),
                entitlements: own.and_then(|plan| plan.entitlements.clone()),
            });
        }
    }
    all
}

fn object(entry: &impl Serialize) -> Object {
    match serde_json::to_value(entry) {
        Ok(Value::Object(object)) => object,
        // Structs of texts and numbers are nothing else.
        _ => Object::new(),
    }
}

fn plan(entry: &Plan) -> Object {
    let mut fields = object(entry);
    fields.retain(|name, _| !matches!(name.as_str(), "charges" | "entitlements"));
    fields
}

fn charge(entry: &Charge) -> WantedCharge {
    let mut fields = object(entry);
    fields.remove("billable_metric");
    WantedCharge { metric: entry.billable_metric.clone(), fields }
}

/// Options of a selection stand in a table of their own at Lago.
fn feature(entry: &Feature) -> Object {
    let mut fields = object(entry);
    for privilege in fields.get_mut("privileges").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(privilege) = privilege.as_object_mut() else { continue };
        if let Some(options) = privilege.remove("select_options") {
            privilege.insert("config".to_owned(), json!({ "select_options": options }));
        }
    }
    fields
}
