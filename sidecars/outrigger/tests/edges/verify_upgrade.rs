//! `verify-upgrade`: every version that is stood in for passes, and each changed answer fails with the line that names it.

use jiff::{SignedDuration, Timestamp};
use kit::secret::Secret;
use kit_lago::LagoServer;
use kit_lago::sender::Signing;
use kit_lago::signature::LagoPrivateKey;
use kit_lago::stand_in::billing::{
    AggregationType, Effect, Fault, Faults, Invoice, Metric, On, Profile, Subscription, When,
};
use kit_workbench::scratch::Scratch;
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::{Bench, HMAC_KEY, Ran, outrigger};

const KEY: &str = "lago-api-key-0123456789";
const WEBHOOKS: &str = "http://lago-webhook-processor:8081/webhooks/lago";

/// A Lago in use: something of each kind, and a customer.
async fn lago(profile: Profile) -> LagoServer {
    let lago = LagoServer::start(profile, Secret::from(KEY.to_owned())).await.unwrap();
    lago.put_public_key(&LagoPrivateKey::generate(2048).unwrap().public_key().to_pem());
    let metric = Metric::new("ai_requests", AggregationType::Count, None);
    lago.put_metric(metric);
    let ago = |hours| Timestamp::now() - SignedDuration::from_hours(hours);
    lago.put_subscription(Subscription::active("acme-1", "acme", "starter", ago(24 * 90)));
    lago.put_invoice(Invoice { finalized_at: Some(ago(1)), ..Invoice::draft("acme-1", ago(24 * 31), ago(2)) });
    make(&lago, "plans", &json!({ "plan": { "name": "Starter", "code": "starter", "interval": "monthly", "amount_cents": 0, "amount_currency": "USD", "pay_in_advance": false } })).await;
    make(&lago, "taxes", &json!({ "tax": { "name": "VAT", "code": "vat", "rate": "20.0" } })).await;
    make(
        &lago,
        "webhook_endpoints",
        &json!({ "webhook_endpoint": { "webhook_url": WEBHOOKS, "signature_algo": "jwt" } }),
    )
    .await;
    lago
}

async fn make(lago: &LagoServer, path: &str, body: &Value) {
    let client = kit::client::http_client(&Default::default()).unwrap();
    let sent = client.post(format!("{}/api/v1/{path}", lago.url())).bearer_auth(KEY).json(body).send().await.unwrap();
    assert_eq!(sent.status(), 200, "{path}");
}

async fn verify(lago: &LagoServer, more: &[&str]) -> Ran {
    let url = lago.url();
    outrigger(&[&["verify-upgrade", "--api-url", &url][..], more].concat(), &[("LAGO_API_KEY", KEY)]).await
}

#[tokio::test]
async fn every_version_passes_and_nothing_is_left_in_it() {
    for profile in Profile::ALL {
        let lago = lago(profile).await;
        let writes = lago.counts().managed_writes;

        let ran = verify(&lago, &[]).await.ok();

        let last = ran.out.lines().last().unwrap();
        assert_eq!(last, format!("Lago {}: what the daemons rely on holds", profile.version()), "{ran:?}");
        assert!(!ran.out.contains("FAIL"), "{ran:?}");
        let unknown: Vec<&str> = ran.out.lines().filter(|line| line.starts_with('?')).collect();
        let expected = usize::from(profile == Profile::V1_16);
        assert_eq!(unknown.len(), expected, "only what this version does not have: {unknown:?}");
        assert_eq!((lago.ledger().len(), lago.counts().managed_writes), (0, writes), "{profile:?}");
        assert!(!ran.out.contains(KEY));
    }
}

/// Which answer is another: method, path, status, body; and what is said of it: fact, words, daemon.
type Case<'a> = (Method, &'a str, u16, Value, &'a str, &'a str, &'a str);

#[tokio::test]
async fn a_changed_answer_fails_with_the_line_that_names_it_and_who_relies_on_it() {
    let lago = lago(Profile::V1_39).await;
    let details = |details: Value| json!({ "status": 422, "code": "validation_errors", "error_details": details });
    let meta = json!({ "current_page": 1, "next_page": null, "total_count": 1 });
    let list = |name: &str, entry: Value| json!({ name: [entry], "meta": meta });
    let by_index = details(json!({ "0": { "transaction_id": ["value_is_mandatory"] } }));
    let pem = LagoPrivateKey::generate(2048).unwrap().public_key().to_pem();
    let cases: Vec<Case> = vec![
        (Method::GET, "/api/v1/health", 200, json!({}), "unknown-path", "resource", "lago-seeder"),
        (
            Method::GET,
            "/api/v1/billable_metrics",
            200,
            json!({ "billable_metrics": [] }),
            "billable-metrics",
            "meta.next_page",
            "lago-usage-tracker",
        ),
        (Method::GET, "/api/v1/billable_metrics?per_page=1", 403, json!({}), "key-taken", "403 in place of 200", "all"),
        (
            Method::GET,
            "/api/v1/webhooks/json_public_key",
            200,
            json!({ "webhook": { "public_key": pem } }),
            "public-key",
            "the PEM itself",
            "lago-webhook-processor",
        ),
        (
            Method::GET,
            "/api/v1/webhooks/json_public_key",
            404,
            json!({}),
            "public-key",
            "404 in place of 200",
            "lago-webhook-processor",
        ),
        (
            Method::POST,
            "/api/v1/events",
            200,
            json!({ "event": {} }),
            "event-refused",
            "200 in place of 422",
            "lago-usage-tracker",
        ),
        (
            Method::POST,
            "/api/v1/events",
            422,
            details(json!({ "id": ["missing"] })),
            "event-refused",
            "value_is_mandatory",
            "lago-usage-tracker",
        ),
        (Method::POST, "/api/v1/events/batch", 422, by_index, "batch-refused", "index 99", "lago-usage-tracker"),
        (
            Method::POST,
            "/api/v1/events/batch",
            422,
            json!({ "events": ["too_many_events"] }),
            "batch-refused",
            "index 0",
            "lago-usage-tracker",
        ),
        (
            Method::GET,
            "/api/v1/plans",
            200,
            list("plans", json!({ "lago_id": "1", "name": "Starter" })),
            "plans",
            "no code",
            "lago-seeder",
        ),
        (
            Method::GET,
            "/api/v1/plans",
            200,
            list("plans", json!({ "lago_id": "1", "code": "starter", "charges": [{}] })),
            "plans",
            "does not understand it",
            "lago-usage-tracker",
        ),
        (Method::GET, "/api/v1/taxes", 500, json!({}), "taxes", "500 in place of 200", "lago-seeder"),
        (Method::GET, "/api/v1/coupons", 200, json!([]), "coupons", "not in the answer", "lago-seeder"),
        (
            Method::GET,
            "/api/v1/webhook_endpoints",
            200,
            list("webhook_endpoints", json!({ "lago_id": "1", "url": WEBHOOKS, "signature_algo": "jwt" })),
            "webhook-endpoints",
            "no webhook_url",
            "lago-seeder",
        ),
        (
            Method::GET,
            "/api/v1/subscriptions",
            200,
            list(
                "subscriptions",
                json!({ "lago_id": "1", "external_id": "acme-1", "status": "active", "plan_code": "p" }),
            ),
            "subscriptions",
            "no external_customer_id",
            "lago-usage-tracker",
        ),
        (
            Method::GET,
            "/api/v1/customers/acme/current_usage",
            200,
            json!({ "customer_usage": { "charges_usage": [] } }),
            "current-usage",
            "not Lago's JSON",
            "lago-usage-tracker",
        ),
        (
            Method::GET,
            "/api/v1/customers/acme/past_usage",
            200,
            json!({ "periods": [] }),
            "past-usage",
            "not Lago's JSON",
            "lago-usage-tracker",
        ),
        (
            Method::GET,
            "/api/v1/invoices/00000000-0000-4000-8000-000000000000",
            200,
            json!({ "invoice": null }),
            "invoice-unknown",
            "200 in place of 404",
            "lago-usage-tracker",
        ),
        (
            Method::GET,
            "/api/v1/customers/outrigger-verify-upgrade-nobody/current_usage",
            200,
            json!({}),
            "current-usage-unknown",
            "200 in place of 404",
            "lago-usage-tracker",
        ),
    ];
    for (method, path, status, body, id, text, daemon) in cases {
        lago.answer_as_usual();
        lago.answer_instead(method, path, status, body);

        let ran = verify(&lago, &[]).await;

        assert_eq!(ran.code, Some(1), "{id}: {ran:?}");
        let failed: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("FAIL")).collect();
        let own = failed.iter().find(|line| line.starts_with(&format!("FAIL {id} ")));
        let own = own.unwrap_or_else(|| panic!("{id} is not in {failed:?}"));
        assert!(own.contains(text) && own.contains(" → relied on by ") && own.contains(daemon), "{own}");
        assert!(failed.len() <= 2, "{id}: nothing else is blamed: {failed:?}");
    }
    lago.answer_as_usual();
    verify(&lago, &[]).await.ok();
}

#[tokio::test]
async fn what_was_recorded_before_is_compared_after() {
    let before = lago(Profile::V1_16).await;
    let scratch = Scratch::new("outrigger-upgrade").unwrap();
    let file = scratch.file("before.json").display().to_string();
    verify(&before, &["--record", &file]).await.ok();
    let recorded = std::fs::read_to_string(&file).unwrap();
    assert!(recorded.contains("plans starter") && !recorded.contains(KEY), "{recorded}");

    let printed = verify(&before, &["--record", "-"]).await.ok();
    let [one, other]: [Value; 2] = [&recorded, &printed.out].map(|text| serde_json::from_str(text).unwrap());
    assert_eq!(one["facts"], other["facts"], "the same without a file");
    // Nothing is written over: it may be the only one from before.
    verify(&before, &["--record", &file]).await.failed(1, "writes over nothing");
    let same = verify(&before, &["--compare", &file]).await.ok();
    assert!(same.out.ends_with("Lago v1.16.0, v1.16.0 before: what the daemons rely on holds\n"), "{same:?}");

    // The new one has another key, and its migration has lost an endpoint.
    let after = LagoServer::start(Profile::V1_39, Secret::from(KEY.to_owned())).await.unwrap();
    after.put_public_key(&LagoPrivateKey::generate(2048).unwrap().public_key().to_pem());
    after.put_metric(Metric::new("ai_requests", AggregationType::Count, None));
    let ran = verify(&after, &["--compare", &file, "--json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report = ran.json();
    assert_eq!(
        (&report["version"], &report["version_before"], &report["holds"]),
        (&json!("v1.39.0"), &json!("v1.16.0"), &json!(false))
    );
    let fact = |id: &str| report["facts"].as_array().unwrap().iter().find(|fact| fact["id"] == id).unwrap().clone();
    assert_eq!(fact("webhook-endpoints")["gone"], json!([format!("webhook endpoint {WEBHOOKS} (jwt)")]));
    assert_eq!(fact("plans")["gone"], json!(["plans starter"]));
    assert_eq!(fact("public-key")["gone"].as_array().unwrap().len(), 1);
    assert_eq!(fact("billable-metrics")["gone"], json!([]));
    assert_eq!((&fact("current-usage")["holds"], &fact("current-usage")["before"]), (&json!("unknown"), &json!("yes")));
    let text = verify(&after, &["--compare", &file]).await.out;
    assert!(text.contains("it was seen before, and cannot be seen now"), "{text}");
}

#[tokio::test]
async fn where_it_may_an_event_and_a_webhook_go_all_the_way_and_nothing_is_left() {
    let bench = Bench::start().await;
    let [admin, token] = bench.environment();
    for profile in Profile::ALL {
        let lago = LagoServer::start(profile, Secret::from(KEY.to_owned())).await.unwrap();
        lago.put_public_key(&LagoPrivateKey::generate(2048).unwrap().public_key().to_pem());
        lago.put_signing(Signing::Hmac(Secret::from(HMAC_KEY.to_owned())));
        make(
            &lago,
            "webhook_endpoints",
            &json!({ "webhook_endpoint": { "webhook_url": bench.url(), "signature_algo": "hmac" } }),
        )
        .await;
        let url = lago.url();
        let write = async |environment: &[(&str, &str)]| {
            let arguments = ["verify-upgrade", "--api-url", &url, "--allow-writes", "--json"];
            outrigger(&arguments, &[&[("LAGO_API_KEY", KEY)][..], environment].concat()).await
        };

        let ran = write(&[admin, token]).await.ok();

        let report = ran.json();
        let fact = |id: &str| report["facts"].as_array().unwrap().iter().find(|fact| fact["id"] == id).unwrap().clone();
        for id in ["objects-made", "event-taken", "event-again", "event-counted", "webhook-arrives", "objects-removed"]
        {
            assert_eq!(fact(id)["holds"], "yes", "{profile:?}: {}", fact(id));
        }
        let is_clickhouse = profile == Profile::ClickHouse;
        assert_eq!(fact("event-again")["text"].as_str().unwrap().starts_with("200"), is_clickhouse, "{profile:?}");
        assert_eq!(lago.ledger().len(), 1, "{profile:?}");
        let left = verify(&lago, &["--json"]).await.ok().json();
        let plans = left["facts"].as_array().unwrap().iter().find(|fact| fact["id"] == "plans").unwrap().clone();
        assert_eq!(plans["text"], "200, 0 of them", "{profile:?}");

        // What was asked for and could not be looked at is not good, whoever's fault that is.
        for nobody in [vec![("OUTRIGGER_ADMIN", "http://127.0.0.1:1"), token], vec![admin]] {
            let unknown = write(&nobody).await;
            assert_eq!(unknown.code, Some(1), "{unknown:?}");
            let unknown = unknown.json();
            let mut facts = unknown["facts"].as_array().unwrap().iter();
            let webhook = facts.find(|fact| fact["id"] == "webhook-arrives").unwrap().clone();
            let text = webhook["text"].as_str().unwrap();
            assert!(webhook["holds"] == "no" && text.contains("--token-file"), "{webhook}");
        }
    }
}

#[tokio::test]
async fn what_lago_refuses_to_make_or_to_remove_is_told_and_the_rest_is_removed() {
    let lago = lago(Profile::V1_39).await;
    let write = async || {
        let url = lago.url();
        let arguments = ["verify-upgrade", "--api-url", &url, "--allow-writes"];
        outrigger(&arguments, &[("LAGO_API_KEY", KEY), ("OUTRIGGER_ADMIN", "http://127.0.0.1:1")]).await
    };
    let invalid =
        json!({ "status": 422, "code": "validation_errors", "error_details": { "currency": ["value_is_mandatory"] } });
    lago.answer_instead(Method::POST, "/api/v1/customers", 422, invalid);

    let ran = write().await;

    assert_eq!(ran.code, Some(1), "{ran:?}");
    let line = |name: &str| ran.out.lines().find(|line| line.contains(&format!(" {name} "))).unwrap().to_owned();
    assert!(line("objects-made").starts_with("FAIL") && line("objects-made").contains("currency"), "{ran:?}");
    assert!(line("objects-removed").starts_with("ok") && line("objects-removed").contains("2 removed"), "{ran:?}");
    assert!(line("event-taken").starts_with('?'), "{ran:?}");
    lago.answer_as_usual();
    lago.set_faults(Faults::just(Effect::Answer(500), When::Always));
    let ran = write().await;
    let failed: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(failed.iter().any(|line| line.contains("event-taken") && line.contains("500")), "{failed:?}");
}

#[tokio::test]
async fn mistakes_are_told() {
    let lago = lago(Profile::V1_16).await;
    let scratch = Scratch::new("outrigger-upgrade").unwrap();
    let other = scratch.write("other.json", "{}").unwrap().display().to_string();
    verify(&lago, &["--compare", &other]).await.failed(1, "is no record");
    verify(&lago, &["--compare", "/nonexistent"]).await.failed(1, "--compare");
    verify(&lago, &["--compare", &other, "--record", &other]).await.failed(2, "--record");
    let nobody = ["verify-upgrade", "--api-url", "http://127.0.0.1:1", "--wait", "0"];
    outrigger(&nobody, &[("LAGO_API_KEY", KEY)]).await.failed(1, "--wait");
    outrigger(&nobody, &[]).await.failed(1, "no API key");
}

#[tokio::test]
async fn more_than_a_page_is_compared_as_a_whole() {
    let lago = LagoServer::start(Profile::V1_39, Secret::from(KEY.to_owned())).await.unwrap();
    lago.put_public_key(&LagoPrivateKey::generate(2048).unwrap().public_key().to_pem());
    let add = async |number: u32| {
        let code = format!("tax-{number}");
        make(&lago, "taxes", &json!({ "tax": { "name": code, "code": code, "rate": "20.0" } })).await;
    };
    for number in 0..99 {
        add(number).await;
    }
    let scratch = Scratch::new("outrigger-upgrade").unwrap();
    let few = scratch.file("few.json").display().to_string();
    verify(&lago, &["--record", &few]).await.ok();

    // Two more make a second page, and nothing is gone.
    add(99).await;
    add(100).await;
    let ran = verify(&lago, &["--compare", &few]).await.ok();
    assert!(!ran.out.contains("gone since"), "{ran:?}");

    // What goes from any page is missed.
    let many = scratch.file("many.json").display().to_string();
    verify(&lago, &["--record", &many]).await.ok();
    let client = kit::client::http_client(&Default::default()).unwrap();
    let gone = client.delete(format!("{}/api/v1/taxes/tax-0", lago.url())).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(gone.status(), 200);
    let ran = verify(&lago, &["--compare", &many]).await;
    assert!(ran.code == Some(1) && ran.out.contains("gone since: taxes tax-0"), "{ran:?}");
}

#[tokio::test]
async fn what_lago_made_without_an_answer_is_removed_too() {
    let lago = lago(Profile::V1_39).await;
    // The second that is made, which is the plan: made, and the answer is lost.
    let lost = Fault::new(Effect::DoneThenClosed, When::Nth(2)).on(On::Managing);
    lago.set_faults(Faults { rules: vec![lost], ..Faults::default() });
    let url = lago.url();
    let arguments = ["verify-upgrade", "--api-url", &url, "--allow-writes"];

    let ran = outrigger(&arguments, &[("LAGO_API_KEY", KEY), ("OUTRIGGER_ADMIN", "http://127.0.0.1:1")]).await;

    assert_eq!(ran.code, Some(1), "{ran:?}");
    let line = ran.out.lines().find(|line| line.contains(" objects-removed ")).unwrap();
    assert!(line.starts_with("ok") && line.contains("2 removed"), "{line}");
    let left = verify(&lago, &[]).await.ok();
    assert!(left.out.lines().any(|line| line.contains(" plans ") && line.contains("200, 1 of them")), "{left:?}");
}
