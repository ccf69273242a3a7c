//! The blueprint, as Authentik meets it: CPython runs its expressions with what Authentik gives them, `requests` sends what
//! they make, and the daemon takes it. Authentik's part is `authentik_side.py`, written from the contract.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kit::secret::Secret;
use kit_authentik::blueprint::{self, Authentication, TokenFrom};
use kit_authentik::envelope::Envelope;
use kit_authentik::signature::Secrets;
use kit_workbench::gateway::{Gateway, GatewayOptions};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries::{daemon, repository};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::{DEADLINE, ENVIRONMENT};

const SECRET: &str = "webhook-secret-0123456789abcdef0123456789";
const EVENTS: [&str; 5] = ["login", "model_created", "custom", "test", "anonymous"];
/// Those in which something about tags, fields or tasks has changed.
const VERSIONS: [&str; 8] = ["2024.10", "2025.4", "2025.8", "2025.10", "2025.12", "2026.2", "2026.5", "2026.8"];

fn committed(name: &str) -> PathBuf {
    repository().join("config/authentik").join(name)
}

fn fixtures() -> PathBuf {
    repository().join("sidecars/kit-authentik/tests/fixtures/golden")
}

fn event(name: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join("events.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[name].take()
}

/// The blueprint of a variant, in a file.
fn variant(scratch: &Scratch, authentication: Authentication) -> PathBuf {
    let text = blueprint::render(authentication, TokenFrom::Variable);
    scratch.write(&format!("{authentication:?}.yaml"), &text).unwrap()
}

fn python(arguments: &[&str]) -> Command {
    let venv = std::env::var_os(ENVIRONMENT).expect("the Python environment is made by: ./test clients");
    let mut command = Command::new(Path::new(&venv).join("bin/python"));
    command.arg(repository().join("tests/clients/authentik_side.py")).args(arguments).env_clear().kill_on_drop(true);
    command
}

/// Has Authentik's side do something each; what it told on standard error is the second.
async fn run(blueprint: &Path, requests: &[Value]) -> (Vec<Value>, String) {
    let mut command = python(&["run", blueprint.to_str().unwrap()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let write = async move { stdin.write_all(lines.as_bytes()).await };
    let both = async { tokio::join!(write, child.wait_with_output()) };
    let (_, output) = tokio::time::timeout(DEADLINE, both).await.expect("CPython ends in time");
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let text = String::from_utf8(output.stdout).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), told)
}

/// A file with the secret, as a container has it.
fn environment(scratch: &Scratch) -> Value {
    let file = scratch.write("webhook-secret", format!("{SECRET}\n")).unwrap();
    json!({ "OUTRIGGER_WEBHOOK_SECRET_FILE": file })
}

#[tokio::test]
async fn every_tag_and_field_of_the_blueprints_is_known_to_every_version() {
    let check = async |name: &str, version: &str| {
        let path = committed(name);
        let output = python(&["check", path.to_str().unwrap(), version]).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for version in VERSIONS {
        assert_eq!(check("outrigger.yaml", version).await, "", "{version}");
        assert_eq!(check("outrigger-tenant.yaml", version).await, "", "{version}");
        let found = check("outrigger-files.yaml", version).await;
        let reads_files = !matches!(version, "2024.10" | "2025.4");
        assert_eq!(found.is_empty(), reads_files, "{version}: {found}");
    }
    // What this file does not reach, and says so.
    assert!(check("outrigger.yaml", "2026.11").await.contains("webhook_url is not known to this version"));
}

#[tokio::test]
async fn cpython_and_requests_send_the_golden_bytes() {
    let scratch = Scratch::new("authentik-golden").unwrap();
    let env = environment(&scratch);
    for (name, version, mapping, authentication) in [
        ("hmac-2026.2", "2026.2.2", "", Authentication::Hmac),
        ("hmac-2024.10", "2024.10.1", "", Authentication::Hmac),
        ("bearer-2026.2", "2026.2.2", "", Authentication::Bearer),
        ("body-secret-2024.10", "2024.10.1", "", Authentication::BodySecret),
        ("unmapped-2026.2", "2026.2.2", "unmapped", Authentication::Hmac),
        ("none-2026.2", "2026.2.2", "none", Authentication::Hmac),
    ] {
        let blueprint = variant(&scratch, authentication);
        let request = |event_name: &&str| json!({ "event": event(event_name), "env": env, "version": version, "mapping": mapping, "capture": true });

        let (told, stderr) = run(&blueprint, &EVENTS.iter().map(request).collect::<Vec<_>>()).await;

        assert_eq!(stderr, "");
        for (event_name, told) in EVENTS.iter().zip(&told) {
            let bytes = told["bytes"].as_str().unwrap();
            let golden = std::fs::read_to_string(fixtures().join(name).join(format!("{event_name}.http"))).unwrap();
            assert_eq!(without_nonce(bytes), golden, "{name} {event_name}");
            if mapping.is_empty() && authentication == Authentication::Hmac {
                prove(bytes, version);
            }
        }
    }
}

#[tokio::test]
async fn a_missing_secret_is_said_once_a_webhook_and_a_logger_that_fails_loses_nothing() {
    let scratch = Scratch::new("authentik-secretless").unwrap();
    for (authentication, version) in [
        (Authentication::Hmac, "2024.10.1"),
        (Authentication::Bearer, "2026.2.2"),
        (Authentication::BodySecret, "2024.10.1"),
    ] {
        let request = json!({ "event": event("login"), "version": version, "capture": true });
        let broken = json!({ "event": event("login"), "version": version, "capture": true, "broken_logger": true });

        let (told, stderr) = run(&variant(&scratch, authentication), &[request, broken]).await;

        assert_eq!(stderr.lines().count(), 1, "{authentication:?}: {stderr}");
        assert!(stderr.contains("outrigger: there is no secret"), "{stderr}");
        for told in &told {
            assert_eq!(told["body"]["event"]["action"], "login", "{authentication:?}");
        }
    }
}

/// What CPython signs is what we check.
fn prove(request: &str, version: &str) {
    let secrets = Secrets::new(&[Secret::from(SECRET.to_owned())]).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    secrets.verify_body(&Envelope::read(body.as_bytes()).unwrap()).unwrap();
    let header = head.lines().find_map(|line| line.strip_prefix("X-Outrigger-Signature: "));
    assert_eq!(header.is_some(), version != "2024.10.1");
    if let Some(header) = header {
        secrets.verify_header(Some(header.as_bytes()), body.as_bytes()).unwrap();
    }
}

/// The nonce is another one each time; so are the signatures with it.
fn without_nonce(request: &str) -> String {
    let mut request = request.to_owned();
    for (before, length) in [("\"nonce\": \"", 32), ("\"signature\": \"", 64), ("X-Outrigger-Signature: sha256=", 64)] {
        if let Some(at) = request.find(before) {
            let from = at + before.len();
            request.replace_range(from..from + length, &"0".repeat(length));
        }
    }
    request
}

#[tokio::test]
async fn a_secret_that_is_changed_counts_at_once_and_one_that_is_missing_signs_nothing() {
    let scratch = Scratch::new("authentik-rotation").unwrap();
    let two = scratch.write("two", "the-new-one-0123456789abcdef0123456789\nthe-old-one\n").unwrap();
    let login = event("login");
    let request = |env: Value| json!({ "event": login, "env": env, "capture": true });

    let (told, stderr) = run(
        &committed("outrigger.yaml"),
        &[
            request(json!({ "OUTRIGGER_WEBHOOK_SECRET_FILE": two })),
            request(json!({ "OUTRIGGER_WEBHOOK_SECRET_FILE": "/nowhere", "OUTRIGGER_WEBHOOK_SECRET": SECRET })),
            request(json!({})),
        ],
    )
    .await;

    // Once for a webhook, so that somebody who looks at Authentik's log finds it.
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("outrigger: there is no secret to sign with"), "{stderr}");
    let envelope = |told: &Value| told["body"].to_string();
    for (told, secret) in told.iter().zip(["the-new-one-0123456789abcdef0123456789", SECRET]) {
        let secrets = Secrets::new(&[Secret::from(secret.to_owned())]).unwrap();
        let body = told["bytes"].as_str().unwrap().split_once("\r\n\r\n").unwrap().1;
        secrets.verify_body(&Envelope::read(body.as_bytes()).unwrap()).unwrap();
    }
    assert!(!envelope(&told[2]).contains("signature") && told[2]["headers"] == json!({}), "{}", told[2]);
}

#[tokio::test]
async fn no_event_makes_the_mappings_raise() {
    let odd = |change: &dyn Fn(&mut Value)| {
        let mut event = event("login");
        change(&mut event);
        json!({ "event": event, "env": { "OUTRIGGER_WEBHOOK_SECRET": SECRET }, "capture": true })
    };
    // As deep as JSON is read here; Authentik's own sanitiser goes through it before.
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let requests = [
        odd(&|event| event["context"] = json!({})),
        odd(&|event| event["context"] = Value::Null),
        odd(&|event| event["user"] = Value::Null),
        odd(&|event| event["brand"] = Value::Null),
        odd(&|event| event["context"] = json!({ "deep": deep })),
        odd(&|event| {
            event["context"] = json!({ "n": [1e308, -0.0, 123_456_789_012_345_678_i64], "\u{0}": "\u{202e}" })
        }),
        odd(&|event| event["action"] = json!("custom_\n\"'\\")),
        // What cannot be: it is logged, the body stays empty, and the poller brings the event.
        odd(&|event| event["action"] = Value::Null),
    ];

    let (told, stderr) = run(&committed("outrigger.yaml"), &requests).await;

    assert_eq!(told.len(), requests.len());
    let secrets = Secrets::new(&[Secret::from(SECRET.to_owned())]).unwrap();
    for told in &told[..requests.len() - 1] {
        let body = told["bytes"].as_str().unwrap().split_once("\r\n\r\n").unwrap().1;
        secrets.verify_body(&Envelope::read(body.as_bytes()).unwrap()).unwrap();
        let header = told["headers"]["X-Outrigger-Signature"].as_str().unwrap();
        secrets.verify_header(Some(header.as_bytes()), body.as_bytes()).unwrap();
    }
    let last = told.last().unwrap();
    assert_eq!((&last["body"], &last["headers"]), (&Value::Null, &json!({})));
    assert_eq!(stderr.lines().count(), 2, "one of each mapping: {stderr}");
    assert!(stderr.contains("outrigger: the envelope cannot be made"), "{stderr}");
}

#[tokio::test]
async fn the_policy_lets_through_what_is_wanted_and_nothing_that_loops() {
    let mut cases = Vec::new();
    let mut case = |action: &str, user: Value, passes: bool| {
        let mut event = event("login");
        event["action"] = json!(action);
        event["user"] = user;
        cases.push((event, passes));
    };
    let ada = json!({ "pk": 5, "username": "ada" });
    for action in blueprint::ACTIONS {
        case(action, ada.clone(), true);
    }
    case("custom_anything", json!({}), true);
    case("custom_notification_test", json!({}), true);
    for loops in [
        "system_task_exception",
        "system_task_execution",
        "property_mapping_exception",
        "policy_exception",
        "policy_execution",
        "flow_execution",
        "system_exception",
        "configuration_error",
        "update_available",
    ] {
        case(loops, json!({}), false);
    }
    let own = json!({ "pk": 7, "username": "outrigger" });
    for action in ["model_created", "model_updated", "model_deleted"] {
        case(action, own.clone(), false);
    }
    // Somebody who logs in as the service account is another matter.
    case("login", own, true);
    case("model_updated", Value::Null, true);
    let requests: Vec<Value> = cases.iter().map(|(event, _)| json!({ "policy": event })).collect();

    let (told, _) = run(&committed("outrigger.yaml"), &requests).await;

    assert_eq!(told.len(), cases.len());
    for ((event, passes), told) in cases.iter().zip(told) {
        assert_eq!(told["passes"], json!(passes), "{event}");
    }
}

#[tokio::test]
async fn a_tenant_is_claimed_where_there_is_exactly_one() {
    let user = |attributes: Value, groups: &[(&str, Value)]| json!({ "claim": { "attributes": attributes, "groups": groups } });
    let none = json!({});
    let cases = [
        (
            user(json!({ "tenant_id": "acme" }), &[("tenant_other_admins", none.clone())]),
            json!({ "tenant_id": "acme" }),
        ),
        (
            user(none.clone(), &[("tenant_6f1e-2_admins", none.clone()), ("staff", none.clone())]),
            json!({ "tenant_id": "6f1e-2" }),
        ),
        (user(none.clone(), &[("tenant_acme_", none.clone())]), json!({ "tenant_id": "acme" })),
        (
            user(none.clone(), &[("staff", json!({ "tenant_id": "acme" })), ("tenant_acme_x", none.clone())]),
            json!({ "tenant_id": "acme" }),
        ),
        (user(none.clone(), &[("tenant_acme_a", none.clone()), ("tenant_other_a", none.clone())]), none.clone()),
        (user(none.clone(), &[("tenants_acme", none.clone()), ("tenant_", none.clone())]), none.clone()),
        (user(Value::Null, &[]), none.clone()),
        (user(json!({ "tenant_id": ["acme"] }), &[]), none),
    ];
    let requests: Vec<Value> = cases.iter().map(|(request, _)| request.clone()).collect();

    let (told, _) = run(&committed("outrigger-tenant.yaml"), &requests).await;

    for ((request, claim), told) in cases.iter().zip(told) {
        assert_eq!(&told["claim"], claim, "{request}");
    }
}

/// A daemon that takes these proofs, and its gateway.
struct Forwarder {
    daemon: DaemonProcess,
    gateway: Gateway,
    url: String,
    _scratch: Scratch,
}

impl Forwarder {
    async fn start(proofs: &str) -> Self {
        let scratch = Scratch::new("authentik-forwarder").unwrap();
        let gateway = Gateway::start(GatewayOptions { keep_bodies: true, ..GatewayOptions::default() }).await.unwrap();
        let environment = [
            ("AUTHENTIK_WEBHOOK_SECRET", SECRET.to_owned()),
            ("SIDECAR_AUTHENTIK__AUTHENTICATION", proofs.to_owned()),
            ("BRAIN_GATEWAY_URL", gateway.url()),
            ("SIDECAR_JOURNAL__PATH", scratch.file("journal.db").display().to_string()),
            ("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
            ("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let binary = daemon("authentik-event-forwarder").unwrap();
        let mut daemon = DaemonCommand::new(binary).envs(environment).spawn().unwrap();
        let public = daemon.address("public", DEADLINE).await.unwrap();
        let url = format!("http://{public}/webhooks/authentik");
        Self { daemon, gateway, url, _scratch: scratch }
    }

    /// What the gateway was sent once nothing more was to come, by its type.
    async fn delivered(&self, wanted: usize) -> BTreeMap<String, Value> {
        let received = self.gateway.wait_for(wanted, DEADLINE).await.unwrap();
        assert_eq!(received.len(), wanted);
        let event = |body: &[u8]| {
            let event: Value = serde_json::from_slice(body).unwrap();
            (event["type"].as_str().unwrap().to_owned(), event)
        };
        received.iter().map(|received| event(received.body.as_deref().unwrap())).collect()
    }

    async fn stop(mut self) {
        self.daemon.term().unwrap();
        assert_eq!(self.daemon.wait(DEADLINE).await.unwrap().code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_blueprints_send_is_taken_by_the_daemon_and_delivered() {
    let scratch = Scratch::new("authentik-accepted").unwrap();
    let env = environment(&scratch);
    for (proofs, authentication, version) in [
        ("hmac-header", Authentication::Hmac, "2026.2.2"),
        ("hmac-body", Authentication::Hmac, "2024.10.1"),
        // A daemon that is told of both goes through the upgrade.
        ("hmac-header,hmac-body", Authentication::Hmac, "2024.10.1"),
        ("bearer", Authentication::Bearer, "2025.4.0"),
        ("body-secret", Authentication::BodySecret, "2024.10.1"),
    ] {
        let forwarder = Forwarder::start(proofs).await;
        let blueprint = variant(&scratch, authentication);
        let request =
            |name: &str| json!({ "event": event(name), "env": env, "version": version, "url": forwarder.url });
        // The first one twice: as two users of the group get it, or a second attempt.
        let mut requests: Vec<Value> = EVENTS.iter().map(|name| request(name)).collect();
        requests.push(request("login"));

        let (told, stderr) = run(&blueprint, &requests).await;

        assert_eq!(stderr, "");
        for told in &told {
            assert_eq!((&told["status"], &told["redirects"]), (&json!(200), &json!(0)), "{proofs}: {told}");
        }
        let answer = |n: usize| serde_json::from_str::<Value>(told[n]["text"].as_str().unwrap()).unwrap();
        assert_eq!((&answer(0)["duplicate"], &answer(5)["duplicate"]), (&json!(false), &json!(true)));
        assert_eq!(answer(0)["id"], answer(5)["id"]);
        let delivered = forwarder.delivered(EVENTS.len()).await;
        for name in EVENTS {
            let sent = event(name);
            let got = &delivered[&format!("authentik.{}", sent["action"].as_str().unwrap())];
            let data = &got["data"];
            for field in ["pk", "action", "app", "client_ip", "user", "brand"] {
                assert_eq!(data[field], sent[field], "{proofs} {name} {field}");
            }
            let context: Value = if name == "model_created" {
                // What Authentik's sanitiser drops on the way; the API would have it.
                let mut context = sent["context"].clone();
                context["diff"]["users"]["add"] = json!([7, { "a": 0 }]);
                context
            } else {
                sent["context"].clone()
            };
            assert_eq!(data["context"], context, "{proofs} {name}");
            assert!(!got.to_string().contains(SECRET), "the secret is passed on: {got}");
        }
        forwarder.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_on_the_way_is_refused() {
    let scratch = Scratch::new("authentik-tampered").unwrap();
    let env = environment(&scratch);
    let other = json!({ "OUTRIGGER_WEBHOOK_SECRET": "another-secret-0123456789abcdef0123456789" });
    let flipped = "0".repeat(64);
    let other_bearer = "Bearer another-secret-0123456789abcdef0123456789";
    for (proofs, authentication, tampers) in [
        (
            "hmac-header",
            Authentication::Hmac,
            vec![
                json!({ "event.context.auth_method": "token" }),
                json!({ "event.user.pk": 1 }),
                json!({ "recipient": "x" }),
                json!({ "signature": null }),
                json!({ "headers.X-Outrigger-Signature": null }),
                json!({ "headers.X-Outrigger-Signature": flipped }),
                json!({ "headers.X-Outrigger-Signature": format!("sha256={flipped}") }),
            ],
        ),
        (
            "hmac-body",
            Authentication::Hmac,
            vec![
                json!({ "event.pk": "0194c2a0-9999-4222-8333-444455556666" }),
                json!({ "event.action": "logout" }),
                json!({ "event.created": "2026-11-22T13:00:00.123457Z" }),
                json!({ "event.context.auth_method": "token" }),
                json!({ "event.context.http_request.args.next": "/elsewhere" }),
                json!({ "event.context": null }),
                json!({ "event.user.pk": 1 }),
                json!({ "event.user.username": "akadmin" }),
                json!({ "event.client_ip": "203.0.113.8" }),
                json!({ "event.client_ip": null }),
                json!({ "event.brand.name": "x" }),
                json!({ "event.enriched": { "user": {} } }),
                json!({ "nonce": flipped[..32] }),
                json!({ "signature": flipped }),
                json!({ "signature": null }),
                json!({ "nonce": null }),
            ],
        ),
        (
            "bearer",
            Authentication::Bearer,
            vec![json!({ "headers.Authorization": null }), json!({ "headers.Authorization": other_bearer })],
        ),
        (
            "body-secret",
            Authentication::BodySecret,
            vec![json!({ "secret": null }), json!({ "secret": "another-secret-0123456789abcdef0123456789" })],
        ),
    ] {
        let forwarder = Forwarder::start(proofs).await;
        let request = |env: &Value, tamper: &Value| json!({ "event": event("login"), "env": env, "tamper": tamper, "url": forwarder.url });
        let mut requests: Vec<Value> = tampers.iter().map(|tamper| request(&env, tamper)).collect();
        // Another secret, and none at all.
        requests.extend([request(&other, &json!({})), request(&json!({}), &json!({}))]);
        // Last of all one that is genuine: it is the only one that is delivered.
        let mut genuine = request(&env, &json!({}));
        genuine["event"] = event("custom");
        requests.push(genuine);

        let (told, _) = run(&variant(&scratch, authentication), &requests).await;

        let (last, refused) = told.split_last().unwrap();
        let taken: Vec<_> = refused.iter().zip(&requests).filter(|(told, _)| told["status"] != 401).collect();
        assert!(
            taken.is_empty(),
            "{proofs}: {:#?}",
            taken.iter().map(|(_, request)| &request["tamper"]).collect::<Vec<_>>()
        );
        for told in refused {
            assert_eq!(told["text"], r#"{"error":"unauthorized"}"#);
        }
        assert_eq!(last["status"], 200, "{proofs}");
        let delivered = forwarder.delivered(1).await;
        assert!(delivered.contains_key("authentik.custom_invoice_viewed"), "{proofs}: {delivered:?}");
        forwarder.stop().await;
    }
}
