//! The diff against a model of what Lago does with what it is sent.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::wanted::WantedCharge;

fn wanted_plan(fields: Value, charges: Vec<WantedCharge>) -> Wanted {
    let fields = fields.as_object().unwrap().clone();
    Wanted { kind: Kind::Plan, identity: "p".to_owned(), fields, charges, entitlements: None }
}

fn ids() -> MetricIds {
    ["a", "b", "c"].into_iter().map(|code| (code.to_owned(), format!("id-{code}"))).collect()
}

/// What Lago makes of a plan's charges: those that are named by id are changed, those without are made, the rest goes.
///
/// Source: getlago/lago-api `app/services/plans/update_service.rb` at v1.16.0.
fn put_charges(actual: &[Value], sent: &Value, next_id: &mut u32) -> Vec<Value> {
    let mut after = Vec::new();
    for charge in sent.as_array().unwrap() {
        let mut charge = charge.clone();
        let known = actual.iter().find(|known| charge["id"].is_string() && known["lago_id"] == charge["id"]);
        let fields = charge.as_object_mut().unwrap();
        let metric = fields.remove("billable_metric_id").unwrap();
        let id = fields.remove("id");
        let mut made = match known {
            Some(known) => known.clone(),
            None => {
                assert!(id.is_none(), "an id that Lago does not know");
                *next_id += 1;
                json!({ "lago_id": format!("charge-{next_id}"), "taxes": [] })
            }
        };
        made["lago_billable_metric_id"] = metric.clone();
        made["billable_metric_code"] = json!(metric.as_str().unwrap().strip_prefix("id-").unwrap());
        for (name, value) in fields {
            made[name.as_str()] = value.clone();
        }
        after.push(made);
    }
    after
}

fn any_metric() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn any_price() -> impl Strategy<Value = (&'static str, Value)> {
    prop_oneof![
        (0..3u8).prop_map(|amount| ("standard", json!({ "amount": amount.to_string() }))),
        (0..3u8).prop_map(|free| ("package", json!({ "amount": "0", "free_units": free, "package_size": 1 }))),
    ]
}

fn any_wanted() -> impl Strategy<Value = WantedCharge> {
    (any_metric(), any_price(), any::<bool>()).prop_map(|(metric, (model, properties), advance)| {
        let fields =
            json!({ "charge_model": model, "properties": properties, "pay_in_advance": advance, "prorated": false });
        WantedCharge { metric: metric.to_owned(), fields: fields.as_object().unwrap().clone() }
    })
}

fn any_actual() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(any_wanted(), 0..5).prop_map(|charges| {
        let shown = charges.into_iter().enumerate().map(|(n, charge)| {
            let mut shown = Value::Object(charge.fields);
            shown["lago_id"] = json!(format!("old-{n}"));
            shown["lago_billable_metric_id"] = json!(format!("id-{}", charge.metric));
            shown["billable_metric_code"] = json!(charge.metric);
            shown["invoiceable"] = json!(true);
            shown["min_amount_cents"] = json!(0);
            shown["taxes"] = json!([]);
            shown
        });
        shown.collect()
    })
}

proptest! {
    /// One request is enough, it takes nothing that was not asked for, and keeps the charges that fit.
    #[test]
    fn what_is_sent_leaves_nothing_to_send(
        wanted in prop::collection::vec(any_wanted(), 0..5), actual in any_actual(), prune: bool
    ) {
        let wanted = wanted_plan(json!({ "code": "p", "interval": "monthly" }), wanted);
        let plan = json!({ "code": "p", "interval": "monthly", "charges": actual }).as_object().unwrap().clone();
        let comparison = compare(&wanted, &plan, None);
        let changes: Vec<&Change> = comparison.changes.iter().collect();

        let body = update(&wanted, &plan, &comparison, &changes, (prune, &ids())).unwrap();

        let is_needed = !changes.is_empty() || (prune && !comparison.extras.is_empty());
        prop_assert_eq!(body.is_some(), is_needed);
        let mut next_id = 0;
        let after = match &body {
            Some(body) => put_charges(&actual, &body["charges"], &mut next_id),
            None => actual.clone(),
        };
        let mut plan_after = plan.clone();
        plan_after.insert("charges".to_owned(), json!(after));
        let again = compare(&wanted, &plan_after, None);
        prop_assert!(again.changes.is_empty(), "{:?}", again.changes);
        if prune {
            prop_assert!(again.extras.is_empty());
            prop_assert_eq!(after.len(), wanted.charges.len());
        } else {
            prop_assert_eq!(again.extras.len(), comparison.extras.len());
            // Nothing that was there is gone.
            for old in &actual {
                prop_assert!(after.iter().any(|charge| charge["lago_id"] == old["lago_id"]));
            }
        }
        // What nobody wants stays as it was.
        for other in after.iter().filter(|charge| !actual.is_empty() && charge["lago_id"].as_str().unwrap().starts_with("old")) {
            let old = actual.iter().find(|old| old["lago_id"] == other["lago_id"]).unwrap();
            prop_assert_eq!(&other["billable_metric_code"], &old["billable_metric_code"], "a charge never changes its metric");
        }
        // As many new ones as there was nothing to make them of.
        let of = |metric: &str| {
            let wants = wanted.charges.iter().filter(|charge| charge.metric == metric).count();
            let had = actual.iter().filter(|charge| charge["billable_metric_code"] == metric).count();
            wants.saturating_sub(had)
        };
        prop_assert_eq!(next_id as usize, of("a") + of("b") + of("c"));
    }
}

fn change_fields(kind: Kind, fields: Value, actual: Value) -> Vec<String> {
    let fields = fields.as_object().unwrap().clone();
    let wanted = Wanted { kind, identity: "x".to_owned(), fields, charges: Vec::new(), entitlements: None };
    let comparison = compare(&wanted, actual.as_object().unwrap(), None);
    comparison
        .changes
        .into_iter()
        .map(|change| format!("{}{}", change.field, if change.is_locked { "!" } else { "" }))
        .collect()
}

#[test]
fn only_what_the_catalogue_names_is_compared() {
    let check = |kind, fields: Value, actual: Value, expected: &[&str]| {
        assert_eq!(change_fields(kind, fields.clone(), actual.clone()), expected, "{fields} beside {actual}");
    };
    let shown = json!({ "code": "x", "name": "X", "rate": 20.0, "description": "d", "lago_id": "1" });
    check(Kind::Tax, json!({ "code": "x", "rate": 20.0 }), shown.clone(), &[]);
    check(Kind::Tax, json!({ "rate": 19.0, "description": "e" }), shown.clone(), &["description", "rate"]);
    check(Kind::BillableMetric, json!({ "name": "Y", "field_name": "f" }), shown, &["field_name!", "name"]);
    let plan = json!({ "interval": "monthly", "amount_cents": 1, "taxes": [{ "code": "vat" }] });
    check(Kind::Plan, json!({ "interval": "yearly", "amount_cents": 2 }), plan.clone(), &["amount_cents", "interval!"]);
    check(Kind::Plan, json!({ "tax_codes": ["vat"] }), plan.clone(), &[]);
    check(Kind::Plan, json!({ "tax_codes": [] }), plan, &["tax_codes"]);
    let coupon = json!({ "plans": [{ "code": "p" }], "percentage_rate": "10.0" });
    check(Kind::Coupon, json!({ "applies_to": { "plan_codes": ["p"] }, "percentage_rate": 10.0 }), coupon.clone(), &[]);
    check(
        Kind::Coupon,
        json!({ "applies_to": { "plan_codes": ["q"] }, "percentage_rate": 9.5 }),
        coupon,
        &["applies_to!", "percentage_rate!"],
    );
    let endpoint = json!({ "webhook_url": "u", "signature_algo": "jwt", "event_types": null, "name": "n" });
    check(Kind::WebhookEndpoint, json!({ "event_types": ["*"], "name": "n" }), endpoint.clone(), &[]);
    check(Kind::WebhookEndpoint, json!({ "event_types": [] }), endpoint, &["event_types"]);
}

#[test]
fn an_update_sends_what_has_changed_and_what_lago_cannot_do_without() {
    let sent = |kind, fields: Value, actual: Value| {
        let fields = fields.as_object().unwrap().clone();
        let wanted = Wanted { kind, identity: "x".to_owned(), fields, charges: Vec::new(), entitlements: None };
        let actual = actual.as_object().unwrap().clone();
        let comparison = compare(&wanted, &actual, None);
        let changes: Vec<&Change> = comparison.changes.iter().collect();
        json!(update(&wanted, &actual, &comparison, &changes, (false, &ids())).unwrap())
    };
    let endpoint = json!({ "webhook_url": "u", "signature_algo": "hmac" });
    assert_eq!(
        sent(Kind::WebhookEndpoint, endpoint.clone(), json!({ "webhook_url": "u", "signature_algo": "jwt" })),
        endpoint
    );
    let plan = json!({ "interval": "yearly", "bill_charges_monthly": true, "amount_cents": 1 });
    assert_eq!(
        sent(Kind::Plan, json!({ "interval": "yearly", "amount_cents": 2 }), plan),
        json!({ "interval": "yearly", "bill_charges_monthly": true, "amount_cents": 2 })
    );
    assert_eq!(
        sent(Kind::Tax, json!({ "name": "a", "rate": 1.0 }), json!({ "name": "a", "rate": 2.0 })),
        json!({ "rate": 1.0 })
    );
    assert_eq!(sent(Kind::Tax, json!({ "name": "a" }), json!({ "name": "a" })), Value::Null);
}

#[test]
fn entitlements_are_read_from_a_table_and_from_a_list() {
    let object = |value: Value| value.as_object().unwrap().clone();
    let table = object(json!({ "code": "f", "privileges": { "p": { "code": "p", "value": 3 } } }));
    let list = object(json!({ "code": "f", "privileges": [{ "code": "p", "value": 3 }] }));
    for shown in [table, list] {
        assert_eq!(json!(entitlements_of(&[shown])), json!({ "f": { "p": 3 } }));
    }
}
