//! Clients that others wrote, against the usage tracker and against Lago itself: a producer changes its base URL and its
//! key, and nothing else; and what the seeder has made is found by them. `./test clients` makes the environment they need.

#![allow(clippy::unwrap_used)]

mod authentik;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kit::secret::Secret;
use kit_lago::stand_in::billing::{LagoServer, LagoState, Profile};
use outrigger_tests::binaries::{repository, seeder};
use outrigger_tests::rig::Rig;
use serde_json::{Value, json};
use tokio::process::Command;

/// Name of the variable that says where the Python environment is.
const ENVIRONMENT: &str = "OUTRIGGER_CLIENTS_VENV";
/// Far above what a run of the client takes.
const DEADLINE: Duration = Duration::from_secs(60);
const API_KEY: &str = "lago-api-key-0123456789";
/// The one call whose answer differs on purpose: a producer that sends again is told that all is well.
const AGAIN: &str = "create the same again";

/// What a script with the published client prints.
async fn run_script(name: &str, url: &str, key: &str) -> String {
    let venv = std::env::var_os(ENVIRONMENT).expect("the Python environment is made by: ./test clients");
    let mut command = Command::new(Path::new(&venv).join("bin/python"));
    command.arg(repository().join("tests/clients").join(name)).args([url, key]).env_clear().kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("the client ends in time").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What each call of the client came to, by its name.
async fn run_client(url: &str, key: &str) -> BTreeMap<String, Value> {
    let text = run_script("lago_client.py", url, key).await;
    let told = text.lines().map(|line| {
        let mut told: Value = serde_json::from_str(line).unwrap();
        (told["call"].take().as_str().unwrap().to_owned(), told)
    });
    told.collect()
}

/// What would be billed, each event with its time in microseconds.
fn billed(lago: &LagoState) -> Vec<(String, String, i64, String)> {
    let ledger = lago.ledger().into_iter();
    let mut billed: Vec<_> = ledger
        .map(|event| {
            let id = format!("{}/{}", event.external_subscription_id.unwrap_or_default(), event.transaction_id);
            (id, event.code, event.timestamp_micros, event.properties)
        })
        .collect();
    billed.sort();
    billed
}

/// An answer without what each side makes up itself.
fn comparable(told: &Value) -> Value {
    let mut told = told.clone();
    for name in ["lago_id", "created_at"] {
        if let Some(value) = told["answer"].get_mut(name) {
            assert!(value.is_string(), "{name} is missing: {value}");
            *value = Value::Null;
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_python_client_sees_no_difference_between_lago_and_the_tracker() {
    let settings = [("SIDECAR_CHECKS__UNKNOWN_METRIC", "pass"), ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass")];
    let mut rig = Rig::tracker(Profile::V1_39, &settings).await.unwrap();
    rig.start().await.unwrap();
    let direct = LagoServer::start(Profile::V1_39, Secret::from(API_KEY.to_owned())).await.unwrap();

    let by_tracker = run_client(&format!("http://{}", rig.public), &rig.producer).await;
    let by_lago = run_client(&direct.url(), API_KEY).await;

    // What the client's documentation says about errors, and Lago's about these.
    let refused = |name: &str, status: u16, detail: &Value| {
        let told = &by_tracker[name];
        assert_eq!(told["status"], status, "{name}: {told}");
        assert_eq!(&told["response"]["error_details"], detail, "{name}: {told}");
    };
    refused("create without a code", 422, &json!({"code": ["value_is_mandatory"]}));
    refused("batch_create with a wrong one", 422, &json!({"1": {"code": ["value_is_mandatory"]}}));
    refused("create another under the same id", 422, &json!({"transaction_id": ["value_already_exist"]}));
    refused("find an unknown one", 404, &Value::Null);
    refused("create with a wrong key", 401, &Value::Null);
    refused("find with a wrong key", 401, &Value::Null);
    assert_eq!(by_tracker["find"]["answer"]["properties"], json!({"gb": "1.50", "region": "r-1"}));

    assert!(by_tracker.keys().eq(by_lago.keys()));
    for (name, told) in by_tracker.iter().filter(|(name, _)| *name != AGAIN) {
        assert_eq!(comparable(told), comparable(&by_lago[name]), "{name}");
    }
    assert_eq!(by_lago[AGAIN]["status"], 422);
    assert_eq!(comparable(&by_tracker[AGAIN]), comparable(&by_tracker["create"]));

    let lago = rig.lago.as_ref().unwrap();
    assert!(lago.wait_until(DEADLINE, |counts| counts.stored >= 102).await.is_ok(), "{:?}", lago.counts());
    assert_eq!(billed(lago.state()), billed(direct.state()));
    assert_eq!(lago.counts().stored, 102);
    let (exit, _) = rig.stop().await.unwrap();
    assert_eq!(exit.code, Some(0));
}

/// Runs the seeder to its end, which must be a good one.
async fn seed(url: &str, catalogue: &str) {
    let mut command = Command::new(seeder().unwrap());
    command.env_clear().envs([
        ("LAGO_API_URL", url),
        ("LAGO_API_KEY", API_KEY),
        ("SIDECAR_WAIT__ENDPOINT_SECONDS", "0"),
    ]);
    command.env("SIDECAR_CATALOGUE__FILE", repository().join("config/lago").join(catalogue)).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("the seeder ends in time").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn codes(list: &Value) -> Vec<&str> {
    let mut codes: Vec<&str> = list.as_array().unwrap().iter().map(|entry| entry["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_seeder_has_made_is_found_by_the_published_python_client() {
    for profile in Profile::ALL {
        let lago = LagoServer::start(profile, Secret::from(API_KEY.to_owned())).await.unwrap();
        seed(&lago.url(), "catalogue.toml").await;
        let writes = lago.counts().managed_writes;
        seed(&lago.url(), "catalogue.toml").await;
        assert_eq!(lago.counts().managed_writes, writes, "the second run changed something");

        let text = run_script("lago_catalogue.py", &lago.url(), API_KEY).await;
        let found: Value = serde_json::from_str(&text).unwrap();

        assert_eq!(codes(&found["billable_metrics"]), ["ai_requests"], "{profile:?}");
        assert_eq!(found["billable_metrics"][0]["aggregation_type"], "sum_agg");
        assert_eq!(codes(&found["plans"]), ["enterprise", "free", "growth", "scale", "starter"]);
        let growth = &found["plan"];
        assert_eq!((&growth["amount_cents"], &growth["amount_currency"]), (&json!(19_900), &json!("USD")));
        let charge = &growth["charges"][0];
        assert_eq!(
            (&charge["billable_metric_code"], &charge["charge_model"]),
            (&json!("ai_requests"), &json!("package"))
        );
        assert_eq!(charge["properties"], json!({ "amount": "0", "free_units": 10_000, "package_size": 1 }));
        for empty in ["taxes", "add_ons", "coupons"] {
            assert_eq!(found[empty], json!([]));
        }
        let endpoints = &found["webhook_endpoints"];
        if profile == Profile::ClickHouse {
            let url = "http://lago-webhook-processor:8081/webhooks/lago";
            assert_eq!((&endpoints[0]["webhook_url"], &endpoints[0]["signature_algo"]), (&json!(url), &json!("jwt")));
            assert_eq!(
                (&endpoints[0]["name"], &endpoints[0]["event_types"]),
                (&json!("lago-webhook-processor"), &json!(null))
            );
        } else {
            // This version of the client wants to know since when an endpoint is there, which older ones do not say.
            assert_eq!(endpoints, "ValidationError");
        }
    }
}
