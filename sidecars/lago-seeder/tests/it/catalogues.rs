//! The shipped catalogues, into an empty Lago of each version.

use kit_lago::management::Kind;
use kit_lago::stand_in::billing::Profile;
use lago_seeder::Outcome;
use serde_json::json;

use crate::bench::{Bench, all_are, entry, shipped};

#[tokio::test]
async fn an_empty_lago_of_each_version_gets_the_price_list_and_a_second_run_changes_nothing() {
    for profile in Profile::ALL {
        let (bench, catalogue) = (Bench::start(profile).await, shipped("catalogue.toml"));

        let before = bench.look(&catalogue).await;
        all_are(&before, Outcome::Missing);
        assert!(!before.is_settled());
        assert_eq!(bench.writes(), 0, "looking changes nothing");

        let first = bench.apply(&catalogue).await;
        all_are(&first, Outcome::Created);
        assert!(first.is_settled(), "{first:#?}");
        assert_eq!(first.lago, profile.version());
        // A metric, five plans and an endpoint, each with one request.
        assert_eq!(bench.writes(), 7, "{profile:?}");

        let second = bench.apply(&catalogue).await;
        all_are(&second, Outcome::Same);
        assert!(second.is_settled());
        assert_eq!(bench.writes(), 7, "{profile:?}: the second run changed something");
        all_are(&bench.look(&catalogue).await, Outcome::Same);

        for (code, name, cents, free) in [
            ("free", "Free", 0, 100),
            ("starter", "Starter", 4_900, 1_000),
            ("growth", "Growth", 19_900, 10_000),
            ("scale", "Scale", 49_900, 50_000),
        ] {
            let plan = bench.object(Kind::Plan, code).await;
            assert_eq!((&plan["name"], &plan["amount_cents"]), (&json!(name), &json!(cents)));
            assert_eq!((&plan["interval"], &plan["amount_currency"]), (&json!("monthly"), &json!("USD")));
            let charge = &plan["charges"][0];
            assert_eq!(
                (&charge["billable_metric_code"], &charge["charge_model"]),
                (&json!("ai_requests"), &json!("package"))
            );
            assert_eq!(charge["properties"], json!({ "amount": "0", "free_units": free, "package_size": 1 }));
        }
        assert_eq!(bench.object(Kind::Plan, "enterprise").await["amount_cents"], 0);
        let url = "http://lago-webhook-processor:8081/webhooks/lago";
        assert_eq!(bench.object(Kind::WebhookEndpoint, url).await["signature_algo"], "jwt");
    }
}

#[tokio::test]
async fn an_empty_lago_of_each_version_gets_the_modules_and_older_ones_do_without_features() {
    for profile in Profile::ALL {
        let (bench, catalogue) = (Bench::start(profile).await, shipped("catalogue-modules.toml"));
        let has_features = profile != Profile::V1_16;

        let first = bench.apply(&catalogue).await;

        assert!(first.is_settled(), "{first:#?}");
        let feature = entry(&first, "modules");
        assert_eq!(feature.outcome, if has_features { Outcome::Created } else { Outcome::Unavailable });
        let pro = entry(&first, "pro");
        assert_eq!(pro.outcome, Outcome::Created);
        let left_out = pro.notes.iter().any(|note| note.contains("no features") && note.contains("v1.32.0"));
        assert_eq!(left_out, !has_features, "{pro:#?}");
        if has_features {
            let granted = bench.api.entitlements("pro").await.unwrap();
            assert_eq!(granted[0]["privileges"]["included"]["value"], 3);
        }
        for (code, cents) in [
            ("starter", 9_900),
            ("pro", 29_900),
            ("scale", 99_900),
            ("module-ai-sales-assistant", 3_900),
            ("module-crm-sync", 4_900),
            ("module-advanced-analytics", 5_900),
            ("module-white-label", 9_900),
            ("module-ai-chat-bot", 4_500),
            ("module-email-automation", 3_500),
        ] {
            assert_eq!(bench.object(Kind::Plan, code).await["amount_cents"], cents, "{code}");
        }
        let writes = bench.writes();
        let second = bench.apply(&catalogue).await;
        assert!(second.is_settled());
        assert_eq!(bench.writes(), writes, "{profile:?}: the second run changed something: {second:#?}");
    }
}
