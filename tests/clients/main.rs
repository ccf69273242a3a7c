//! Clients that others wrote, against the usage tracker and against Lago itself: a producer changes its base URL and its
//! key, and nothing else. `./test clients` makes the environment they need.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kit::secret::Secret;
use kit_lago::stand_in::billing::{LagoServer, LagoState, Profile};
use outrigger_tests::binaries::repository;
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

/// What each call of the client came to, by its name.
async fn run_client(url: &str, key: &str) -> BTreeMap<String, Value> {
    let venv = std::env::var_os(ENVIRONMENT).expect("the Python environment is made by: ./test clients");
    let mut command = Command::new(Path::new(&venv).join("bin/python"));
    command.arg(repository().join("tests/clients/lago_client.py")).args([url, key]).env_clear().kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("the client ends in time").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
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
