//! `route test`: no daemon, nothing sent.

use kit_workbench::scratch::Scratch;
use serde_json::{Value, json};

use crate::bench::outrigger;

const CONFIG: &str = r#"
[gateway]
url = "http://127.0.0.1:9/base"
headers.x-key = "a-secret-of-the-gateway"
signing_secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"
[sinks.audit]
type = "http"
url = "http://127.0.0.1:9"
path = "/{tenant}"
format = "cloudevents-binary"
[routes]
default_route = ["gateway"]
[[route]]
name = "large"
types = ["lago.fee.*"]
when = [{ field = "data.fee.currency", equals = "EUR" }]
filter = ".data.fee.cents > 10"
to = ["audit"]
transform = { audit = "{id: .data.fee.lago_id}" }
[[route]]
name = "noise"
types = ["lago.event.*"]
drop = true
"#;

async fn test(body: &Value, more: &[&str]) -> Value {
    let scratch = Scratch::new("outrigger-route").unwrap();
    let config = scratch.write("config.toml", CONFIG).unwrap();
    let event = scratch.write("event.json", body.to_string()).unwrap();
    let (config, event) = (config.display().to_string(), event.display().to_string());
    let arguments = ["--json", "route", "test", "--event", &event, "--config", &config];
    outrigger(&[&arguments[..], more].concat(), &[("LAGO_WEBHOOK_HMAC_KEY", "k")]).await.ok().json()
}

fn fee(cents: u32, currency: &str) -> Value {
    json!({ "webhook_type": "fee.created", "object_type": "fee",
        "fee": { "lago_id": "f1", "cents": cents, "currency": currency, "external_customer_id": "acme" } })
}

#[tokio::test]
async fn what_each_sink_would_get_is_shown_with_the_reasons_and_without_secrets() {
    let told = test(&fee(11, "EUR"), &[]).await;
    assert_eq!(told["routes"][0], json!({ "route": "large", "matches": true, "why_not": null }));
    assert_eq!(told["routes"][1]["why_not"], "type lago.fee.created matches none of its types");
    assert_eq!(told["sinks"][0]["result"], "filtered: the routes lead it to other sinks");
    let audit = &told["sinks"][1];
    assert_eq!((&audit["sink"], &audit["result"]), (&json!("audit"), &json!("delivered, changed by route large")));
    assert_eq!(audit["request"]["body"], r#"{"id":"f1"}"#);
    let headers = audit["request"]["headers"].to_string();
    assert!(headers.contains(r#"["ce-type","lago.fee.created"]"#), "{headers}");

    let told = test(&fee(9, "EUR"), &[]).await;
    assert_eq!(told["routes"][0]["why_not"], "its filter does not give true");
    assert_eq!(told["sinks"][0]["result"], "delivered, by the default route");
    assert_eq!(told["sinks"][0]["request"]["target"], "POST http://127.0.0.1:9/base");
    let headers = told["sinks"][0]["request"]["headers"].to_string();
    assert!(headers.contains(r#"["x-key","(secret)"]"#) && headers.contains("webhook-signature"), "{headers}");
    assert!(!headers.contains("a-secret-of-the-gateway"));

    let told = test(&fee(11, "USD"), &[]).await;
    assert_eq!(told["routes"][0]["why_not"], r#"data.fee.currency must be "EUR", it is "USD""#);
}

#[tokio::test]
async fn a_cloudevent_can_be_tried_as_well_and_other_routes_than_the_configured_ones() {
    let event =
        json!({ "specversion": "1.0", "id": "1", "source": "lago/default", "type": "lago.event.error", "data": {} });
    let told = test(&event, &[]).await;
    assert_eq!(told["sinks"][0]["result"], "dropped by route noise");
    assert_eq!(told["sinks"][1]["request"], Value::Null);

    let scratch = Scratch::new("outrigger-route").unwrap();
    let wrong = "[[route]]\nname = \"a\"\nto = [\"audit\"]\ntransform = { audit = \".type.x\" }\n";
    let routes = scratch.write("routes.toml", wrong).unwrap().display().to_string();
    let told = test(&event, &["--routes", &routes]).await;
    let result = told["sinks"][1]["result"].as_str().unwrap();
    assert!(result.starts_with("parked: jq: transform of route a: cannot index"), "{result}");
}

#[tokio::test]
async fn routes_that_cannot_be_used_are_told_all_at_once() {
    let scratch = Scratch::new("outrigger-route").unwrap();
    let config = scratch.write("config.toml", CONFIG).unwrap().display().to_string();
    let event = scratch.write("event.json", fee(1, "EUR").to_string()).unwrap().display().to_string();
    let wrong = "[[route]]\nname = \"a\"\nto = [\"nowhere\"]\nfilter = \". |\"\n";
    let routes = scratch.write("routes.toml", wrong).unwrap().display().to_string();
    let arguments = ["route", "test", "--event", &event, "--config", &config, "--routes", &routes];
    let ran = outrigger(&arguments, &[("LAGO_WEBHOOK_HMAC_KEY", "k")]).await;
    ran.failed(1, "\"nowhere\" is not a sink; there is gateway, audit");
}

#[tokio::test]
async fn each_daemon_that_has_routes_is_asked_by_its_name() {
    const CONFIG: &str = "[gateway]\nurl = \"http://127.0.0.1:9\"\n[sinks.audit]\ntype = \"http\"\nurl = \"http://127.0.0.1:9\"\n\
        [routes]\ndefault_route = [\"gateway\"]\n[[route]]\nname = \"failed\"\ntypes = [\"*.failed\"]\nto = [\"audit\"]\n";
    let scratch = Scratch::new("outrigger-route").unwrap();
    let config = scratch.write("config.toml", CONFIG).unwrap().display().to_string();
    let environment = [
        ("AUTHENTIK_WEBHOOK_SECRET", "0123456789abcdef0123456789abcdef"),
        ("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-header"),
    ];
    let of_bridge =
        [("TEMPORAL_ADDRESS", "127.0.0.1:9"), ("BRIDGE_WEBHOOK_SECRET", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3")];
    for (daemon, kind, environment) in [
        ("authentik-event-forwarder", "authentik.login.failed", environment),
        ("temporal-event-bridge", "temporal.workflow.failed", of_bridge),
    ] {
        let event = json!({ "specversion": "1.0", "id": "1", "source": "x", "type": kind, "data": {} });
        let file = scratch.write("event.json", event.to_string()).unwrap().display().to_string();
        let arguments = ["--json", "route", "test", "--daemon", daemon, "--event", &file, "--config", &config];
        let told = outrigger(&arguments, &environment).await.ok().json();
        assert_eq!(told["sinks"][0]["result"], "filtered: the routes lead it to other sinks", "{daemon}");
        assert_eq!(told["sinks"][1]["result"], "delivered, by route failed", "{daemon}");

        scratch.write("event.json", fee(1, "EUR").to_string()).unwrap();
        outrigger(&arguments[1..], &environment).await.failed(1, "is no CloudEvent");
    }
}
