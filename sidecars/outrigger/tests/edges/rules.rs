//! `rule test`: no daemon, no Temporal, nothing sent.

use kit_workbench::scratch::Scratch;
use serde_json::{Value, json};

use crate::bench::{Ran, outrigger};

const CONFIG: &str = r#"
[temporal]
namespace = "billing"
[[rule]]
name = "test-customers"
types = ["lago.*"]
filter = '.data.customer | startswith("test-")'
action = "ignore"
[[rule]]
name = "dunning"
types = ["lago.invoice.payment_failure"]
when = [{ field = "data.currency", equals = "EUR" }]
action = "signal_with_start"
workflow_id = "dunning-{data.invoice}"
workflow_type = "Dunning"
task_queue = "billing"
signal = "payment_failed"
transform = "{invoice: .data.invoice}"
signal_input = "data"
memo = { customer = "{data.customer}" }
execution_timeout_seconds = 3600
[[rule]]
name = "provision"
types = ["lago.subscription.*"]
workflow_id = "subscription-{data.missing}"
workflow_type = "Provision"
task_queue = "q"
[[rule]]
name = "onboard"
types = ["lago.customer.created"]
workflow_type = "Onboard"
task_queue = "q"
retry = { max_attempts = 3 }
"#;

async fn test(config: &str, event: &Value, more: &[&str]) -> Ran {
    let scratch = Scratch::new("outrigger-rule").unwrap();
    let config = scratch.write("config.toml", config).unwrap().display().to_string();
    let event = scratch.write("event.json", event.to_string()).unwrap().display().to_string();
    let arguments = [more, &["rule", "test", "--event", &event, "--config", &config]].concat();
    outrigger(&arguments, &[]).await
}

fn event(kind: &str, data: Value) -> Value {
    json!({ "specversion": "1.0", "id": "e-1", "source": "lago/default", "type": kind, "subject": "invoice/1", "data": data })
}

#[tokio::test]
async fn the_rule_that_matches_and_its_request_are_shown() {
    let failure = json!({ "invoice": "i/1", "customer": "acme", "currency": "EUR" });
    let told = test(CONFIG, &event("lago.invoice.payment_failure", failure), &["--json"]).await.ok().json();

    assert_eq!(told["result"], "asked of Temporal by rule dunning");
    assert_eq!(
        told["rules"][0],
        json!({ "rule": "test-customers", "matches": false, "why_not": "its filter does not give true" })
    );
    assert_eq!((&told["rules"][1]["matches"], &told["rules"][2]["matches"]), (&json!(true), &json!(false)));
    let request = &told["request"];
    assert_eq!(request["call"], "SignalWithStartWorkflowExecution");
    let fields = &request["fields"];
    for (name, expected) in [
        ("namespace", json!("billing")),
        ("workflow_id", json!("dunning-i%2F1")),
        ("workflow_type", json!("Dunning")),
        ("input", json!([{ "invoice": "i/1" }])),
        ("signal_input", json!([{ "invoice": "i/1", "customer": "acme", "currency": "EUR" }])),
        ("memo", json!({ "customer": "acme" })),
        ("workflow_execution_timeout", json!(3600.0)),
        ("workflow_id_reuse_policy", json!("WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE")),
        ("request_id", told["id"].clone()),
    ] {
        assert_eq!(fields[name], expected, "{name}: {fields}");
    }
    let shown = test(CONFIG, &event("lago.customer.created", json!({ "customer": "acme" })), &[]).await.ok().out;
    for line in [
        "rule dunning: no: type lago.customer.created matches none of its types",
        "  StartWorkflowExecution",
        "  task_queue: \"q\"",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
}

#[tokio::test]
async fn what_is_sent_nowhere_says_why() {
    let result = async |kind, data| {
        let told = test(CONFIG, &event(kind, data), &["--json"]).await.ok().json();
        assert_eq!(told["request"], Value::Null);
        told["result"].as_str().unwrap().to_owned()
    };
    let dollars = json!({ "invoice": "i", "customer": "acme", "currency": "USD" });
    assert_eq!(result("lago.invoice.payment_failure", dollars).await, "filtered: no rule is for it");
    let tester = json!({ "customer": "test-1" });
    assert_eq!(result("lago.invoice.voided", tester).await, "filtered: rule test-customers ignores it");
    let lacking = result("lago.subscription.started", json!({ "customer": "acme" })).await;
    assert_eq!(lacking, "parked: rule provision: workflow_id: the event has no {data.missing}");
    let failing = result("lago.subscription.started", json!({ "customer": 1 })).await;
    assert!(failing.starts_with("parked: jq: filter of rule test-customers:"), "{failing}");
}

#[tokio::test]
async fn what_cannot_be_tried_is_named() {
    test(CONFIG, &json!({ "webhook_type": "x" }), &[]).await.failed(1, "it is no CloudEvent 1.0 in JSON");
    let wrong = CONFIG.replace("{invoice: .data.invoice}", "{invoice: |");
    test(&wrong, &event("x", json!({})), &[]).await.failed(1, "rule 2 (dunning): transform: jq:");
    let wrong = CONFIG.replace("task_queue = \"billing\"\n", "");
    test(&wrong, &event("x", json!({})), &[]).await.failed(1, "task_queue must be set for signal_with_start");
}
