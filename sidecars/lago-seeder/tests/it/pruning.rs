//! What `--prune` leaves alone, and that it comes to an end.

use jiff::Timestamp;
use kit_lago::management::Kind;
use kit_lago::stand_in::billing::{Profile, Subscription};
use lago_seeder::{Mode, Outcome};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::{Bench, SOON, catalogue, entry};

/// One of each kind that others may be pruned of.
const LIST: &str = "[[taxes]]\ncode='own'\nname='T'\nrate=1.0\n[[coupons]]\ncode='own'\nname='C'\ncoupon_type='percentage'\npercentage_rate=10.0\nfrequency='once'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'\n[[add_ons]]\ncode='own'\nname='A'\namount_cents=1\namount_currency='USD'";

async fn make(bench: &Bench, kind: Kind, fields: Value) {
    bench.api.create(kind, fields.as_object().unwrap()).await.unwrap();
}

#[tokio::test]
async fn discounts_and_taxes_that_somebody_has_stay() {
    for profile in Profile::ALL {
        let (bench, list) = (Bench::start(profile).await, catalogue(LIST));
        bench.apply(&list).await;
        for code in ["by-hand", "nobodys"] {
            let coupon = json!({ "code": code, "name": "C", "coupon_type": "percentage", "percentage_rate": 5,
                "frequency": "forever", "expiration": "no_expiration" });
            make(&bench, Kind::Coupon, coupon).await;
        }
        bench.lago.note_coupon_applied("by-hand");
        for code in ["vat", "city", "unused"] {
            make(&bench, Kind::Tax, json!({ "code": code, "name": "Tax", "rate": 20 })).await;
        }
        // The catalogue says nothing of the plan's taxes, nor of the add-on's.
        let taxed = |code: &str| json!({ "interval": "monthly", "tax_codes": [code] }).as_object().unwrap().clone();
        bench.api.update(Kind::Plan, "p", &taxed("vat")).await.unwrap();
        let taxed = json!({ "tax_codes": ["city"] }).as_object().unwrap().clone();
        bench.api.update(Kind::AddOn, "own", &taxed).await.unwrap();

        let pruned = bench.prune(&list, Mode::Apply).await;

        for (id, word) in [("by-hand", "discounts"), ("vat", "untaxed"), ("city", "untaxed")] {
            let kept = entry(&pruned, id);
            assert_eq!(kept.outcome, Outcome::Extra, "{profile:?}: {kept:#?}");
            assert!(kept.notes[0].contains(word), "{kept:#?}");
        }
        for id in ["nobodys", "unused"] {
            assert_eq!(entry(&pruned, id).outcome, Outcome::Deleted, "{profile:?}: {pruned:#?}");
        }
        assert_eq!(bench.object(Kind::Plan, "p").await["taxes"][0]["code"], "vat");
    }
}

#[tokio::test]
async fn features_are_never_pruned() {
    let feature = "[[features]]\ncode='own'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'";
    let (bench, list) = (Bench::start(Profile::ClickHouse).await, catalogue(feature));
    bench.apply(&list).await;
    make(&bench, Kind::Feature, json!({ "code": "sold", "privileges": [] })).await;
    bench.api.grant("p", json!({ "sold": {} }).as_object().unwrap()).await.unwrap();

    let pruned = bench.prune(&list, Mode::Apply).await;

    let kept = entry(&pruned, "sold");
    assert!(kept.outcome == Outcome::Extra && kept.notes[0].contains("every plan and subscription"), "{kept:#?}");
    assert_eq!(bench.api.entitlements("p").await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_lago_does_not_take_away_is_said_and_not_tried_for_ever() {
    let granted = "[[features]]\ncode='own'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=1\namount_currency='USD'\nentitlements={own={}}";
    let (bench, list) = (Bench::start(Profile::ClickHouse).await, catalogue(granted));
    bench.apply(&list).await;
    make(&bench, Kind::Feature, json!({ "code": "v1.5", "privileges": [] })).await;
    bench.api.grant("p", json!({ "v1.5": {} }).as_object().unwrap()).await.unwrap();
    // Rails takes what follows the dot for a format, and finds no such feature.
    let not_found = json!({ "status": 404, "code": "entitlement_not_found" });
    bench.lago.answer_instead(Method::DELETE, "/api/v1/plans/p/entitlements/v1.5", 404, not_found);

    let pruned = tokio::time::timeout(SOON, bench.prune(&list, Mode::Apply)).await.expect("it comes to an end");

    let plan = entry(&pruned, "p");
    assert_eq!(plan.outcome, Outcome::Failed, "{plan:#?}");
    assert!(plan.problems[0].text.contains("entitlement v1.5 is still there"), "{plan:#?}");
    assert!(!pruned.is_settled());
}

#[tokio::test]
async fn a_plan_that_lago_is_deleting_is_neither_as_it_should_be_nor_a_reason() {
    let (bench, list) = (Bench::start(Profile::ClickHouse).await, catalogue(LIST));
    bench.apply(&list).await;
    let going = |code: &str, charges: Value| {
        let mut plan = json!({ "lago_id": code, "code": code, "name": "P", "interval": "monthly", "amount_cents": 1,
            "amount_currency": "USD", "pay_in_advance": false, "pending_deletion": true });
        plan["charges"] = charges;
        plan
    };
    bench.lago.answer_instead(Method::GET, "/api/v1/plans/p", 200, json!({ "plan": going("p", json!([])) }));

    for mode in [Mode::Look, Mode::Apply] {
        let report = bench.run(&list, mode).await;
        let plan = entry(&report, "p");
        assert!(plan.outcome == Outcome::Waiting && plan.problems[0].text.contains("deleting"), "{plan:#?}");
        assert!(report.only_waits());
    }

    // The metric that only such a plan charges goes with it, and the plan is not deleted again.
    let list = catalogue("[[billable_metrics]]\ncode='own'\nname='M'\naggregation_type='count_agg'");
    bench.lago.answer_as_usual();
    bench.apply(&list).await;
    make(&bench, Kind::BillableMetric, json!({ "code": "old", "name": "M", "aggregation_type": "count_agg" })).await;
    let plans =
        json!({ "plans": [going("gone", json!([{ "billable_metric_code": "old" }]))], "meta": { "total_count": 1 } });
    bench.lago.answer_instead(Method::GET, "/api/v1/plans", 200, plans);
    let pruned = bench.prune(&list, Mode::Apply).await;
    assert_eq!(entry(&pruned, "old").outcome, Outcome::Deleted, "{pruned:#?}");
}

#[tokio::test]
async fn a_charge_that_is_there_twice_bills_twice_and_is_said_until_one_is_gone() {
    for profile in Profile::ALL {
        let text = "[[billable_metrics]]\ncode='gb'\nname='GB'\naggregation_type='count_agg'\n[[plans]]\ncode='p'\nname='P'\ninterval='monthly'\namount_cents=100\namount_currency='USD'\n[[plans.charges]]\nbillable_metric='gb'\ncharge_model='standard'\nproperties={amount='3'}";
        let (bench, list) = (Bench::start(profile).await, catalogue(text));
        bench.apply(&list).await;
        // What two requests leave behind of which neither has seen what the other makes.
        let charge = bench.object(Kind::Plan, "p").await["charges"][0].clone();
        let twin = |id: Option<&Value>| {
            let mut sent = json!({ "billable_metric_id": charge["lago_billable_metric_id"], "charge_model": "standard",
                "properties": { "amount": "3" } });
            if let Some(id) = id {
                sent["id"] = id.clone();
            }
            sent
        };
        let both = json!({ "interval": "monthly", "charges": [twin(Some(&charge["lago_id"])), twin(None)] });
        bench.api.update(Kind::Plan, "p", both.as_object().unwrap()).await.unwrap();

        for mode in [Mode::Look, Mode::Apply] {
            let report = bench.run(&list, mode).await;
            assert!(!report.is_settled(), "{profile:?} {mode:?}: {report:#?}");
            let problem = &entry(&report, "p").problems[0];
            assert!(problem.text.contains("second charge for gb (standard) bills the same usage twice"), "{problem:?}");
            assert!(problem.fix.contains("--prune"), "{problem:?}");
        }

        let pruned = bench.prune(&list, Mode::Apply).await;
        assert!(pruned.is_settled(), "{profile:?}: {pruned:#?}");
        let left = bench.object(Kind::Plan, "p").await["charges"].clone();
        assert_eq!((left.as_array().unwrap().len(), &left[0]["lago_id"]), (1, &charge["lago_id"]), "the first stays");
        assert!(bench.look(&list).await.is_settled());
    }
}

#[tokio::test]
async fn a_new_price_says_what_becomes_of_subscriptions_that_are_about_to_begin() {
    let (bench, list) = (Bench::start(Profile::V1_39).await, catalogue(LIST));
    bench.apply(&list).await;
    let dearer = catalogue(&LIST.replace("interval='monthly'\namount_cents=1", "interval='monthly'\namount_cents=2"));
    assert!(entry(&bench.look(&dearer).await, "p").notes.is_empty(), "nobody waits for it");
    let awaited = Subscription {
        status: kit_lago::stand_in::billing::SubscriptionStatus::Pending,
        started_at: None,
        ..Subscription::active("s", "c", "p", Timestamp::now())
    };
    bench.lago.put_subscription(awaited);

    let shown = bench.look(&dearer).await;

    let plan = entry(&shown, "p");
    assert!(plan.notes[0].contains("subscriptions are pending on it"), "{plan:#?}");
}
