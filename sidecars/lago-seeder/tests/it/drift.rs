//! A Lago that somebody has changed: shown, mended, and nothing that is not ours lost with it.

use jiff::Timestamp;
use kit_lago::management::{Kind, Object};
use kit_lago::stand_in::billing::{Profile, Subscription};
use lago_seeder::{Mode, Outcome};
use serde_json::{Value, json};

use crate::bench::{Bench, all_are, catalogue, entry, fields, shipped};

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

async fn change(bench: &Bench, kind: Kind, id: &str, fields: Value) {
    bench.api.update(kind, id, &object(fields)).await.unwrap();
}

#[tokio::test]
async fn a_drifted_lago_is_shown_and_repaired() {
    for profile in Profile::ALL {
        let (bench, catalogue) = (Bench::start(profile).await, shipped("catalogue.toml"));
        bench.apply(&catalogue).await;
        let charge = bench.object(Kind::Plan, "growth").await["charges"][0].clone();
        let spoiled = json!({ "id": charge["lago_id"], "billable_metric_id": charge["lago_billable_metric_id"],
            "charge_model": "package", "properties": { "amount": "9", "free_units": 5, "package_size": 1 } });
        change(&bench, Kind::Plan, "growth", json!({ "amount_cents": 1, "interval": "monthly", "charges": [spoiled] }))
            .await;
        change(&bench, Kind::Plan, "scale", json!({ "interval": "yearly", "charges": [] })).await;
        change(&bench, Kind::BillableMetric, "ai_requests", json!({ "name": "something" })).await;
        let url = "http://lago-webhook-processor:8081/webhooks/lago";
        let endpoint = bench.object(Kind::WebhookEndpoint, url).await;
        let id = endpoint["lago_id"].as_str().unwrap();
        change(&bench, Kind::WebhookEndpoint, id, json!({ "webhook_url": url, "signature_algo": "hmac" })).await;
        bench.api.delete(Kind::Plan, "free").await.unwrap();

        let shown = bench.look(&catalogue).await;
        assert!(!shown.is_settled());
        assert_eq!(fields(entry(&shown, "growth")), ["amount_cents", "charges.ai_requests.properties"]);
        assert_eq!(fields(entry(&shown, "scale")), ["interval", "charges.ai_requests"]);
        assert_eq!(fields(entry(&shown, "ai_requests")), ["name"]);
        assert_eq!(fields(entry(&shown, url)), ["signature_algo"]);
        assert_eq!(entry(&shown, "free").outcome, Outcome::Missing);
        let text = entry(&shown, "growth").to_string();
        assert!(text.contains("~ plan growth differs") && text.contains("amount_cents: 1 → 19900"), "{text}");

        let repaired = bench.apply(&catalogue).await;
        assert!(repaired.is_settled(), "{profile:?}: {repaired:#?}");
        assert_eq!(entry(&repaired, "growth").outcome, Outcome::Updated);
        assert_eq!(fields(entry(&repaired, "growth")), ["amount_cents", "charges.ai_requests.properties"]);
        assert_eq!(entry(&repaired, "free").outcome, Outcome::Created);
        all_are(&bench.look(&catalogue).await, Outcome::Same);
        let after = &bench.object(Kind::Plan, "growth").await["charges"];
        assert_eq!(after.as_array().unwrap().len(), 1);
        assert_eq!(after[0]["lago_id"], charge["lago_id"], "the charge is the same one, with its history");
    }
}

#[tokio::test]
async fn what_is_not_in_the_catalogue_stays_until_pruning_is_asked_for() {
    for profile in Profile::ALL {
        let (bench, catalogue) = (Bench::start(profile).await, shipped("catalogue.toml"));
        bench.apply(&catalogue).await;
        let metric = json!({ "code": "gb", "name": "GB", "aggregation_type": "sum_agg", "field_name": "gb" });
        let metric = bench.api.create(Kind::BillableMetric, &object(metric)).await.unwrap();
        let own = bench.object(Kind::Plan, "growth").await["charges"][0].clone();
        let kept = json!({ "id": own["lago_id"], "billable_metric_id": own["lago_billable_metric_id"],
            "charge_model": own["charge_model"],
            "properties": { "amount": "9", "free_units": 1, "package_size": 1 } });
        let added = json!({ "billable_metric_id": metric["lago_id"], "charge_model": "standard",
            "properties": { "amount": "0.5" }, "invoice_display_name": "Traffic" });
        // A charge of the same plan is to be mended as well: all of them are sent then.
        let spoiled = json!({ "interval": "monthly", "amount_cents": 7, "charges": [kept, added] });
        change(&bench, Kind::Plan, "growth", spoiled).await;
        let extra = json!({ "code": "old", "name": "Old", "interval": "monthly", "amount_cents": 5,
            "amount_currency": "USD", "pay_in_advance": false });
        bench.api.create(Kind::Plan, &object(extra)).await.unwrap();
        let used = json!({ "code": "used", "name": "Used", "interval": "monthly", "amount_cents": 5,
            "amount_currency": "USD", "pay_in_advance": false });
        bench.api.create(Kind::Plan, &object(used)).await.unwrap();
        bench.lago.put_subscription(Subscription::active("s", "c", "used", Timestamp::now()));

        let applied = bench.apply(&catalogue).await;
        assert!(applied.is_settled(), "{applied:#?}");
        assert_eq!(entry(&applied, "growth").extras, ["charge for gb (standard)"]);
        assert_eq!(entry(&applied, "old").outcome, Outcome::Extra);
        assert_eq!(bench.object(Kind::Plan, "growth").await["amount_cents"], 19_900);
        let charges = bench.object(Kind::Plan, "growth").await["charges"].clone();
        let traffic = charges.as_array().unwrap().iter().find(|charge| charge["billable_metric_code"] == "gb").unwrap();
        assert_eq!(
            (&traffic["properties"], &traffic["invoice_display_name"]),
            (&json!({ "amount": "0.5" }), &json!("Traffic"))
        );

        let planned = bench.prune(&catalogue, Mode::Look).await;
        assert_eq!(entry(&planned, "old").outcome, Outcome::ToDelete);
        assert_eq!(entry(&planned, "growth").outcome, Outcome::Differs);
        assert!(bench.api.find(Kind::Plan, "old").await.unwrap().is_some(), "looking deletes nothing");

        let pruned = bench.prune(&catalogue, Mode::Apply).await;
        assert!(pruned.is_settled(), "{pruned:#?}");
        assert_eq!(entry(&pruned, "old").outcome, Outcome::Deleted);
        assert_eq!(entry(&pruned, "gb").outcome, Outcome::Deleted);
        let used = entry(&pruned, "used");
        assert!(used.outcome == Outcome::Extra && used.notes[0].contains("has subscriptions"), "{used:#?}");
        let charges = bench.object(Kind::Plan, "growth").await["charges"].clone();
        assert_eq!(charges.as_array().unwrap().len(), 1);
        assert_eq!(charges[0]["lago_id"], own["lago_id"]);
        assert!(bench.api.find(Kind::Plan, "used").await.unwrap().is_some());
        let writes = bench.writes();
        bench.prune(&catalogue, Mode::Apply).await;
        assert_eq!(bench.writes(), writes, "a second pruning finds nothing");
    }
}

#[tokio::test]
async fn kinds_that_the_catalogue_has_none_of_are_not_pruned() {
    let bench = Bench::start(Profile::V1_39).await;
    let coupon = json!({ "code": "c", "name": "C", "coupon_type": "fixed_amount", "amount_cents": 1,
        "amount_currency": "USD", "frequency": "once", "expiration": "no_expiration" });
    bench.api.create(Kind::Coupon, &object(coupon)).await.unwrap();

    let report = bench.prune(&shipped("catalogue.toml"), Mode::Apply).await;

    assert!(report.entries.iter().all(|entry| entry.kind != Kind::Coupon));
    assert!(bench.api.find(Kind::Coupon, "c").await.unwrap().is_some());
}

#[tokio::test]
async fn what_lago_never_changes_in_a_plan_with_subscriptions_is_said_and_not_sent() {
    for profile in Profile::ALL {
        let bench = Bench::start(profile).await;
        let old = "[[billable_metrics]]\ncode='gb'\nname='GB'\naggregation_type='count_agg'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=100\namount_currency='USD'\n[[plans.charges]]\nbillable_metric='gb'\ncharge_model='standard'\nproperties={amount='3'}";
        bench.apply(&catalogue(old)).await;
        bench.lago.put_subscription(Subscription::active("s", "c", "p", Timestamp::now()));
        let new = old.replace("monthly", "yearly").replace("=100", "=200").replace(
            "charge_model='standard'\nproperties={amount='3'}",
            "charge_model='package'\nproperties={amount='0', free_units=9, package_size=1}",
        );

        let shown = bench.look(&catalogue(&new)).await;
        let report = bench.apply(&catalogue(&new)).await;

        assert!(shown.entries.iter().any(|entry| !entry.problems.is_empty()), "it is said beforehand: {shown:#?}");
        let failed = entry(&report, "p");
        assert_eq!(failed.outcome, Outcome::Failed, "{failed:#?}");
        let said: Vec<&str> = failed.problems.iter().map(|problem| problem.text.as_str()).collect();
        assert!(said.iter().any(|text| text.starts_with("interval stays \"monthly\"")), "{said:?}");
        assert!(said.iter().any(|text| text.starts_with("charges.gb.charge_model stays \"standard\"")), "{said:?}");
        assert!(failed.problems.iter().all(|problem| problem.fix.contains("a plan with a new code")));
        let plan = bench.object(Kind::Plan, "p").await;
        assert_eq!((&plan["amount_cents"], &plan["interval"]), (&json!(200), &json!("monthly")));
        // With the properties of another model Lago would have kept the amount and nothing else: a price of 0.
        assert_eq!(plan["charges"][0]["properties"], json!({ "amount": "3" }));
    }
}

#[tokio::test]
async fn what_lago_passes_over_in_silence_is_noticed() {
    let bench = Bench::start(Profile::V1_16).await;
    let old = "[[billable_metrics]]\ncode='gb'\nname='GB'\naggregation_type='sum_agg'\nfield_name='gb'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=100\namount_currency='USD'\n[[plans.charges]]\nbillable_metric='gb'\ncharge_model='standard'\nproperties={amount='3'}\n[[coupons]]\ncode='c'\nname='C'\ncoupon_type='percentage'\npercentage_rate=10.0\nfrequency='once'";
    bench.apply(&catalogue(old)).await;
    bench.lago.note_coupon_applied("c");
    let new =
        old.replace("field_name='gb'", "field_name='gigabytes'").replace("'GB'", "'Gigabytes'").replace("10.0", "20.0");

    let report = bench.apply(&catalogue(&new)).await;

    assert!(!report.is_settled());
    let metric = entry(&report, "gb");
    assert!(metric.problems[0].text.contains("field_name stays \"gb\""), "{metric:#?}");
    assert!(metric.problems[0].fix.contains("a metric with a new code"));
    assert_eq!(bench.object(Kind::BillableMetric, "gb").await["name"], "Gigabytes", "the rest of it is done");
    let coupon = entry(&report, "c");
    assert!(coupon.problems[0].text.contains("percentage_rate stays \"10.0\""), "{coupon:#?}");
    assert!(!entry(&report, "p").is_open());
}

#[tokio::test]
async fn a_yearly_plan_keeps_its_monthly_usage_when_something_else_is_changed() {
    let bench = Bench::start(Profile::V1_16).await;
    let plan = "[[plans]]\ncode='p'\nname='P'\ninterval='yearly'\nbill_charges_monthly=true\namount_cents=100\namount_currency='USD'";
    bench.apply(&catalogue(plan)).await;

    let report = bench.apply(&catalogue(&plan.replace("=100", "=200"))).await;

    assert!(report.is_settled(), "{report:#?}");
    let plan = bench.object(Kind::Plan, "p").await;
    assert_eq!((&plan["amount_cents"], &plan["bill_charges_monthly"]), (&json!(200), &json!(true)));
    // Where the catalogue says nothing of it, it stays, too.
    let silent = catalogue("[[plans]]\ncode='p'\nname='P'\ninterval='yearly'\namount_cents=300\namount_currency='USD'");
    bench.apply(&silent).await;
    assert_eq!(bench.object(Kind::Plan, "p").await["bill_charges_monthly"], true);
}

#[tokio::test]
async fn what_newer_versions_bill_monthly_of_a_longer_plan_stays() {
    for interval in ["yearly", "semiannual"] {
        let bench = Bench::start(Profile::ClickHouse).await;
        let text = format!(
            "[[plans]]\ncode='p'\nname='P'\ninterval='{interval}'\nbill_charges_monthly=true\namount_cents=100\namount_currency='USD'"
        );
        bench.apply(&catalogue(&text)).await;
        let by_hand = json!({ "interval": interval, "bill_charges_monthly": true, "bill_fixed_charges_monthly": true });
        change(&bench, Kind::Plan, "p", by_hand).await;

        let report = bench.apply(&catalogue(&text.replace("'P'", "'Q'"))).await;

        assert!(report.is_settled(), "{report:#?}");
        let plan = bench.object(Kind::Plan, "p").await;
        assert_eq!((&plan["name"], &plan["bill_fixed_charges_monthly"]), (&json!("Q"), &json!(true)), "{interval}");
        assert_eq!(plan["bill_charges_monthly"], true);
    }
}
