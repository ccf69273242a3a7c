//! A catalogue with something of everything.

use kit_lago::management::{Kind, Object};
use kit_lago::stand_in::billing::Profile;
use lago_seeder::{Mode, Outcome};
use serde_json::json;

use crate::bench::{Bench, catalogue, entry, fields};

const FULL: &str = r#"
[[taxes]]
code = "vat"
name = "VAT"
rate = 20.0

[[taxes]]
code = "city"
name = "City"
rate = 1.5

[[billable_metrics]]
code = "seats.v1/x"
name = "Seats"
aggregation_type = "weighted_sum_agg"
weighted_interval = "seconds"
field_name = "seats"
recurring = true
filters = [{ key = "region", values = ["eu", "us"] }]

[[features]]
code = "support"
name = "Support"
privileges = [
  { code = "hours", value_type = "integer" },
  { code = "level", value_type = "select", select_options = ["mail", "phone"] },
  { code = "weekend", value_type = "boolean" },
]

[[features]]
code = "sso"

[[plans]]
code = "pro"
name = "Pro"
invoice_display_name = "Professional"
interval = "yearly"
bill_charges_monthly = true
amount_cents = 120000
amount_currency = "EUR"
trial_period = 14
pay_in_advance = true
tax_codes = ["vat"]
entitlements.support = { hours = 8, level = "phone", weekend = false }
entitlements.sso = {}

[[plans.charges]]
billable_metric = "seats.v1/x"
charge_model = "graduated"
prorated = true
tax_codes = ["city"]
filters = [{ values = { region = ["eu"] }, properties = { graduated_ranges = [{ from_value = 0, per_unit_amount = "4", flat_amount = "0" }] } }]
[[plans.charges.properties.graduated_ranges]]
from_value = 0
to_value = 10
per_unit_amount = "5"
flat_amount = "0"
[[plans.charges.properties.graduated_ranges]]
from_value = 11
per_unit_amount = "4.5"
flat_amount = "1"

[[plans.charges]]
billable_metric = "seats.v1/x"
charge_model = "percentage"
properties = { rate = "1.5" }

[[add_ons]]
code = "setup"
name = "Set-up"
amount_cents = 5000
amount_currency = "EUR"
tax_codes = ["vat", "city"]

[[coupons]]
code = "half"
name = "Half"
coupon_type = "percentage"
percentage_rate = 50.0
frequency = "recurring"
frequency_duration = 3
expiration = "time_limit"
expiration_at = "2099-01-01T00:00:00Z"
applies_to = { plan_codes = ["pro"] }

[[coupons]]
code = "ten"
name = "Ten"
coupon_type = "fixed_amount"
amount_cents = 1000
amount_currency = "EUR"
frequency = "once"
reusable = false

[[webhook_endpoints]]
webhook_url = "http://a.test/hook"
signature_algo = "hmac"
name = "first"
event_types = ["invoice.created", "subscription.started"]

[[webhook_endpoints]]
webhook_url = "https://b.test/hook?x=1"
signature_algo = "jwt"
"#;

#[tokio::test]
async fn something_of_everything_is_made_and_found_as_it_was_made() {
    for profile in Profile::ALL {
        let (bench, full) = (Bench::start(profile).await, catalogue(FULL));

        let first = bench.apply(&full).await;
        assert!(first.is_settled(), "{profile:?}: {first:#?}");
        let writes = bench.writes();
        let second = bench.apply(&full).await;

        assert!(second.is_settled());
        assert_eq!(bench.writes(), writes, "{profile:?}: {second:#?}");
        assert!(second.entries.iter().all(|entry| matches!(entry.outcome, Outcome::Same | Outcome::Unavailable)));
        let plan = bench.object(Kind::Plan, "pro").await;
        assert_eq!(plan["charges"].as_array().unwrap().len(), 2);
        assert_eq!(plan["taxes"][0]["code"], "vat");
        assert_eq!(plan["charges"][0]["taxes"][0]["code"], "city");
        let half = bench.object(Kind::Coupon, "half").await;
        assert_eq!((&half["percentage_rate"], &half["plan_codes"]), (&json!("50.0"), &json!(["pro"])));
        let (first, has_filter) = (entry(&first, "http://a.test/hook"), profile == Profile::ClickHouse);
        assert_eq!(first.notes.is_empty(), has_filter, "{first:#?}");
        assert!(has_filter || first.notes[0].contains("v1.44.0"));
    }
}

#[tokio::test]
async fn something_of_everything_that_drifts_is_mended_and_the_rest_is_pruned() {
    let (bench, full) = (Bench::start(Profile::ClickHouse).await, catalogue(FULL));
    bench.apply(&full).await;
    let object = |value: serde_json::Value| -> Object { value.as_object().unwrap().clone() };
    let change = async |kind: Kind, id: &str, value| bench.api.update(kind, id, &object(value)).await.unwrap();
    change(Kind::Tax, "vat", json!({ "rate": 19 })).await;
    change(Kind::AddOn, "setup", json!({ "tax_codes": ["city"], "amount_cents": 1 })).await;
    change(Kind::Coupon, "half", json!({ "percentage_rate": 49.5, "applies_to": {} , "name": "x" })).await;
    change(
        Kind::Feature,
        "support",
        json!({ "name": "x", "privileges": [{ "code": "extra", "value_type": "integer" }] }),
    )
    .await;
    let endpoint = bench.object(Kind::WebhookEndpoint, "http://a.test/hook").await;
    let id = endpoint["lago_id"].as_str().unwrap().to_owned();
    change(Kind::WebhookEndpoint, &id, json!({ "event_types": ["invoice.created"], "name": "x" })).await;
    let charges = bench.object(Kind::Plan, "pro").await["charges"].clone();
    let kept: Vec<_> = charges
        .as_array()
        .unwrap()
        .iter()
        .map(|charge| {
            let properties = if charge["charge_model"] == "percentage" {
                json!({ "rate": "9" })
            } else {
                charge["properties"].clone()
            };
            json!({ "id": charge["lago_id"], "billable_metric_id": charge["lago_billable_metric_id"],
            "charge_model": charge["charge_model"], "properties": properties, "tax_codes": [] })
        })
        .collect();
    change(
        Kind::Plan,
        "pro",
        json!({ "interval": "yearly", "bill_charges_monthly": false, "tax_codes": [], "charges": kept }),
    )
    .await;
    bench.api.grant("pro", &object(json!({ "support": { "hours": 1, "extra": 5 } }))).await.unwrap();
    bench.api.revoke("pro", "sso", None).await.unwrap();

    let shown = bench.look(&full).await;
    assert_eq!(fields(entry(&shown, "vat")), ["rate"]);
    assert_eq!(fields(entry(&shown, "setup")), ["amount_cents", "tax_codes"]);
    assert_eq!(fields(entry(&shown, "half")), ["name", "percentage_rate"]);
    assert_eq!(fields(entry(&shown, "support")), ["name"]);
    assert_eq!(fields(entry(&shown, "http://a.test/hook")), ["event_types", "name"]);
    let plan = entry(&shown, "pro");
    assert_eq!(
        fields(plan),
        [
            "bill_charges_monthly",
            "tax_codes",
            "charges.seats.v1/x.tax_codes",
            "charges.seats.v1/x#2.properties",
            "entitlements.sso",
            "entitlements.support.hours",
        ]
    );
    assert_eq!(plan.extras, ["entitlement support.extra"]);

    let applied = bench.apply(&full).await;
    assert!(applied.is_settled(), "{applied:#?}");
    let granted = bench.api.entitlements("pro").await.unwrap();
    let support = granted.iter().find(|granted| granted["code"] == "support").unwrap();
    assert_eq!(support["privileges"]["extra"]["value"], 5, "what is not ours stays");
    assert_eq!(support["privileges"]["hours"]["value"], 8);

    let pruned = bench.prune(&full, Mode::Apply).await;
    assert!(pruned.is_settled(), "{pruned:#?}");
    let granted = bench.api.entitlements("pro").await.unwrap();
    let support = granted.iter().find(|granted| granted["code"] == "support").unwrap();
    assert!(support["privileges"].get("extra").is_none());
    let last = bench.prune(&full, Mode::Look).await;
    assert!(last.entries.iter().all(|entry| entry.outcome == Outcome::Same && entry.extras.is_empty()), "{last:#?}");
}

#[tokio::test]
async fn the_type_of_a_privilege_and_lost_options_are_told() {
    let bench = Bench::start(Profile::ClickHouse).await;
    bench.apply(&catalogue(FULL)).await;
    let new = FULL
        .replace("{ code = \"weekend\", value_type = \"boolean\" }", "{ code = \"weekend\", value_type = \"string\" }")
        .replace("weekend = false", "weekend = \"no\"")
        .replace("[\"mail\", \"phone\"]", "[\"phone\", \"visit\"]");

    let report = bench.apply(&catalogue(&new)).await;

    let feature = entry(&report, "support");
    assert_eq!(feature.outcome, Outcome::Failed);
    assert_eq!(feature.problems.len(), 1, "{feature:#?}");
    assert!(feature.problems[0].text.contains("privileges.weekend.value_type stays \"boolean\""));
    let options = bench.object(Kind::Feature, "support").await["privileges"][1]["config"]["select_options"].clone();
    assert_eq!(options, json!(["mail", "phone", "visit"]), "one is added, and none taken out");
    // Lago refuses the plan's value, which is said with its own words.
    let plan = entry(&report, "pro");
    assert!(plan.problems[0].text.contains("422"), "{plan:#?}");
}
