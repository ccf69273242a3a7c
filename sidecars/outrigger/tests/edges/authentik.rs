//! `authentik doctor` and `authentik blueprint`: every finding is provoked once, against the stand-in.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use kit::secret::Secret;
use kit_authentik::blueprint::{self, Authentication, TokenFrom};
use kit_authentik::emulator::{AuthentikServer, Configuration, Fault, Generation, Kind};
use kit_workbench::process::{DaemonCommand, DaemonProcess};
use kit_workbench::scratch::Scratch;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::bench::{BINARY, DEADLINE, Ran, outrigger};

const SECRET: &str = "webhook-secret-0123456789abcdef0123456789";

/// What stands at the transport's URL, with an admin listener beside it, in the manner of the event forwarder.
struct Receiver {
    address: String,
    webhook: String,
    manner: Arc<Mutex<Manner>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Manner {
    status: u16,
    counts: bool,
    taken: u64,
    refused: u64,
    unusable: u64,
    /// Why it refuses; or `unmapped`, `unreadable` for what it answers with 200 and cannot use.
    reason: &'static str,
}

impl Receiver {
    async fn start() -> Self {
        let manner = Arc::new(Mutex::new(Manner {
            status: 200,
            counts: true,
            taken: 0,
            refused: 0,
            unusable: 0,
            reason: "mismatch",
        }));
        let router = Router::new()
            .route("/webhooks/authentik", post(take))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&manner));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { webhook: format!("{address}/webhooks/authentik"), address, manner, task }
    }

    fn url(&self) -> String {
        self.webhook.clone()
    }

    /// Another one takes its place.
    fn url_is(&mut self, webhook: String, admin: String) {
        (self.webhook, self.address) = (webhook, admin);
    }

    fn set(&self, status: u16, counts: bool) {
        let mut manner = self.manner.lock().unwrap();
        (manner.status, manner.counts) = (status, counts);
    }

    fn refuses_with(&self, reason: &'static str) {
        self.manner.lock().unwrap().reason = reason;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(manner): State<Arc<Mutex<Manner>>>) -> StatusCode {
    let mut manner = manner.lock().unwrap();
    let is_good = manner.status < 300;
    let usable = !matches!(manner.reason, "unmapped" | "unreadable");
    manner.taken += u64::from(manner.counts && is_good && usable);
    manner.unusable += u64::from(manner.counts && is_good && !usable);
    manner.refused += u64::from(manner.counts && !is_good);
    StatusCode::from_u16(manner.status).unwrap()
}

async fn metrics(State(manner): State<Arc<Mutex<Manner>>>) -> String {
    let Manner { taken, refused, unusable, reason, .. } = *manner.lock().unwrap();
    let unmapped = if reason == "unmapped" { unusable } else { 0 };
    let unreadable = if reason == "unreadable" { unusable } else { 0 };
    format!(
        "# TYPE authentik_events counter\nauthentik_events_total{{by=\"webhook\",result=\"accepted\"}} {taken}\n\
         authentik_events_total{{by=\"webhook\",result=\"unreadable\"}} {unreadable}\n\
         # TYPE authentik_webhooks_unmapped counter\nauthentik_webhooks_unmapped_total {unmapped}\n\
         # TYPE authentik_webhooks_refused counter\nauthentik_webhooks_refused_total{{reason=\"{reason}\"}} {refused}\n# EOF\n"
    )
}

/// Authentik with the blueprint applied, its transport pointed at a receiver.
struct Site {
    authentik: AuthentikServer,
    receiver: Receiver,
}

impl Site {
    async fn start(generation: Generation) -> Self {
        let authentik = AuthentikServer::start(generation).await.unwrap();
        let receiver = Receiver::start().await;
        authentik.set_webhook_secret(Some(Secret::from(SECRET.to_owned())));
        let url = receiver.url();
        authentik.configure(|configuration| configuration.objects_mut(Kind::Transport)[0]["webhook_url"] = json!(url));
        Self { authentik, receiver }
    }

    async fn doctor(&self, more: &[&str]) -> Ran {
        self.doctor_with(&self.authentik.token(), &self.authentik.admin_token(), more).await
    }

    async fn doctor_with(&self, service: &str, reader: &str, more: &[&str]) -> Ran {
        let (url, webhook, admin) = (self.authentik.url(), self.receiver.url(), self.receiver.address.clone());
        let arguments = [&["authentik", "doctor", "--wait", "1", "--json"][..], more].concat();
        let environment = [
            ("AUTHENTIK_URL", url.as_str()),
            ("OUTRIGGER_WEBHOOK_URL", &webhook),
            ("OUTRIGGER_FORWARDER", &admin),
            // As compose has it: another daemon's.
            ("OUTRIGGER_ADMIN", "http://127.0.0.1:1"),
            ("AUTHENTIK_TOKEN", service),
            ("AUTHENTIK_ADMIN_TOKEN", reader),
        ];
        outrigger(&arguments, &environment).await
    }
}

/// What was found, as ids.
fn ids(ran: &Ran) -> BTreeSet<String> {
    let report = ran.json();
    let findings = report["findings"].as_array().unwrap();
    for finding in findings.iter().filter(|finding| finding["state"] != "ok") {
        assert!(finding["fix"].is_string(), "nothing mends {finding}");
    }
    findings.iter().filter_map(|finding| finding["id"].as_str()).map(str::to_owned).collect()
}

fn only(id: &str) -> BTreeSet<String> {
    BTreeSet::from([id.to_owned()])
}

#[tokio::test]
async fn what_the_blueprint_makes_is_as_it_should_be_in_every_version() {
    for generation in Generation::ALL {
        let site = Site::start(generation).await;

        let ran = site.doctor(&[]).await;

        if generation == Generation::V2024_10 {
            assert_eq!((ran.code, ids(&ran)), (Some(1), only("authentik-unsafe")));
        } else {
            assert_eq!((ran.code, ids(&ran)), (Some(0), BTreeSet::new()), "{generation:?} {ran:?}");
            assert_eq!(ran.json()["healthy"], true);
        }
        let checks: Vec<Value> =
            ran.json()["findings"].as_array().unwrap().iter().map(|finding| finding["check"].clone()).collect();
        assert!(checks.contains(&json!("notification")) && checks.len() == 9, "{checks:?}");
    }
}

/// A change of what is there, and what is found then.
type Case = (&'static str, fn(&mut Configuration));

fn first(configuration: &mut Configuration, kind: Kind) -> &mut Value {
    &mut configuration.objects_mut(kind)[0]
}

fn of_outrigger(configuration: &mut Configuration) -> &mut Value {
    configuration.objects_mut(Kind::User).iter_mut().find(|user| user["username"] == "outrigger").unwrap()
}

const CASES: &[Case] = &[
    ("account-missing", |c| c.objects_mut(Kind::User).retain(|user| user["username"] != "outrigger")),
    ("account-inactive", |c| of_outrigger(c)["is_active"] = json!(false)),
    ("token-missing", |c| c.objects_mut(Kind::Token).clear()),
    ("token-expires", |c| first(c, Kind::Token)["expiring"] = json!(true)),
    ("token-intent", |c| first(c, Kind::Token)["intent"] = json!("app_password")),
    ("token-owner", |c| first(c, Kind::Token)["user"] = json!(4)),
    ("group-empty", |c| first(c, Kind::Group)["users"] = json!([])),
    ("body-mapping-differs", |c| first(c, Kind::Mapping)["expression"] = json!("return {}")),
    ("headers-mapping-differs", |c| c.objects_mut(Kind::Mapping)[1]["expression"] = json!("return {}")),
    ("headers-mapping-missing", |c| drop(c.objects_mut(Kind::Mapping).remove(1))),
    ("transport-missing", |c| c.objects_mut(Kind::Transport).clear()),
    ("transport-mode", |c| first(c, Kind::Transport)["mode"] = json!("webhook_slack")),
    ("transport-body", |c| first(c, Kind::Transport)["webhook_mapping_body"] = json!(null)),
    ("transport-headers", |c| first(c, Kind::Transport)["webhook_mapping_headers"] = json!(null)),
    ("transport-fans-out", |c| first(c, Kind::Transport)["send_once"] = json!(false)),
    ("policy-differs", |c| first(c, Kind::Policy)["expression"] = json!("return True")),
    ("rule-missing", |c| c.objects_mut(Kind::Rule).clear()),
    ("rule-disabled", |c| first(c, Kind::Rule)["enabled"] = json!(false)),
    // An upgrade across 2025.8 without the other name.
    ("rule-target", |c| first(c, Kind::Rule)["destination_group"] = json!(null)),
    ("rule-transport", |c| first(c, Kind::Rule)["transports"] = json!([])),
    ("binding-missing", |c| c.objects_mut(Kind::Binding).clear()),
    ("binding-off", |c| first(c, Kind::Binding)["enabled"] = json!(false)),
    ("binding-off", |c| first(c, Kind::Binding)["negate"] = json!(true)),
    ("binding-other", |c| {
        let mut other = first(c, Kind::Binding).clone();
        (other["pk"], other["policy"]) = (json!("another"), json!("another"));
        c.objects_mut(Kind::Binding).push(other);
    }),
    ("token-lacks-permission", |c| c.set_permissions(&["authentik_events.view_event"])),
    ("token-superuser", |c| c.set_superuser(true)),
];

#[tokio::test]
async fn each_finding_is_made_once() {
    let mut provoked = BTreeSet::new();
    for (id, change) in CASES {
        let site = Site::start(Generation::V2026_2).await;
        site.authentik.configure(change);

        let ran = site.doctor(&[]).await;

        assert_eq!((ran.code, ids(&ran)), (Some(1), only(id)), "{ran:?}");
        provoked.insert((*id).to_owned());
    }
    provoked.extend(missing_with_what_hangs_on_it().await);
    provoked.extend(versions().await);
    provoked.extend(tokens().await);
    provoked.extend(addresses().await);
    provoked.extend(notifications().await);
    let page = outrigger(&["authentik", "doctor", "--reference"], &[]).await.ok();
    let table: BTreeSet<String> =
        page.out.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect();
    assert_eq!(provoked, table, "what the table has and nothing provokes, or the other way round");
}

async fn missing_with_what_hangs_on_it() -> Vec<String> {
    let cases: [(Kind, &str); 3] =
        [(Kind::Group, "group-missing"), (Kind::Mapping, "body-mapping-missing"), (Kind::Policy, "policy-missing")];
    let mut provoked = Vec::new();
    for (kind, id) in cases {
        let site = Site::start(Generation::V2025_8).await;
        site.authentik.configure(|configuration| drop(configuration.objects_mut(kind).remove(0)));
        let found = ids(&site.doctor(&["--no-test"]).await);
        assert!(found.contains(id), "{id}: {found:?}");
        provoked.push(id.to_owned());
    }
    provoked
}

async fn versions() -> Vec<String> {
    let old = Site::start(Generation::V2024_10).await;
    assert_eq!(ids(&old.doctor(&[]).await), only("authentik-unsafe"));
    // A version that nobody has seen yet, by what it says of itself.
    let newer = axum_that_says(json!({ "version_current": "2026.11.0", "results": [] })).await;
    let site = Site::start(Generation::V2026_8).await;
    let url = newer.clone();
    let environment = [("AUTHENTIK_URL", url.as_str()), ("AUTHENTIK_ADMIN_TOKEN", "any")];
    let ran = outrigger(&["authentik", "doctor", "--json", "--no-test"], &environment).await;
    assert!(ids(&ran).contains("authentik-too-new"), "{ran:?}");
    drop(site);
    vec!["authentik-unsafe".to_owned(), "authentik-too-new".to_owned()]
}

async fn axum_that_says(value: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(move || std::future::ready(axum::Json(value.clone())));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn tokens() -> Vec<String> {
    let site = Site::start(Generation::V2026_2).await;
    let (service, reader) = (site.authentik.token(), site.authentik.admin_token());
    assert_eq!(ids(&site.doctor_with("of-yesterday", &reader, &[]).await), only("token-refused"));
    assert_eq!(ids(&site.doctor_with(&service, "another", &[]).await), only("reader-refused"));
    // It may ask for the version, as everybody, and not for transports.
    assert_eq!(ids(&site.doctor_with(&service, &service, &[]).await), only("reader-refused"));
    vec!["token-refused".to_owned(), "reader-refused".to_owned()]
}

async fn addresses() -> Vec<String> {
    let site = Site::start(Generation::V2026_2).await;
    for wrong in ["/", "/x", "?x=1"] {
        let url = site.receiver.url() + wrong;
        site.authentik
            .configure(|configuration| configuration.objects_mut(Kind::Transport)[0]["webhook_url"] = json!(url));
        assert_eq!(ids(&site.doctor(&["--no-test"]).await), only("transport-url"), "{wrong}");
    }
    let secret = "http://user:canary-password@elsewhere/hook?token=canary-token";
    site.authentik
        .configure(|configuration| configuration.objects_mut(Kind::Transport)[0]["webhook_url"] = json!(secret));
    let ran = site.doctor(&["--no-test"]).await;
    assert!(!ran.out.contains("canary") && !ran.err.contains("canary"), "{ran:?}");

    site.authentik.set_starting(true);
    assert_eq!(ids(&site.doctor(&[]).await), only("authentik-away"));
    site.authentik.set_starting(false);
    site.authentik.fail_next([Fault::Answer(404)]);
    let ran = site.doctor(&["--no-test"]).await;
    assert!(ids(&ran).contains("authentik-other"), "{ran:?}");
    let nobody =
        [("AUTHENTIK_URL", "http://127.0.0.1:1"), ("AUTHENTIK_TOKEN", "any"), ("AUTHENTIK_ADMIN_TOKEN", "any")];
    let ran = outrigger(&["authentik", "doctor", "--json"], &nobody).await;
    assert_eq!((ran.code, ids(&ran)), (Some(1), only("authentik-away")));
    assert_eq!(ran.json()["findings"].as_array().unwrap().len(), 1, "it is said once: {ran:?}");
    vec!["transport-url".to_owned(), "authentik-away".to_owned(), "authentik-other".to_owned()]
}

async fn notifications() -> Vec<String> {
    let site = Site::start(Generation::V2026_2).await;
    let by_reason = [
        ("mismatch", "test-refused"),
        ("malformed_proof", "test-refused"),
        ("missing_proof", "test-unproven"),
        ("not_an_envelope", "test-unproven"),
        ("journal", "test-unavailable"),
        ("stopping", "test-unavailable"),
        ("too_large", "test-failed"),
    ];
    for (reason, id) in by_reason {
        site.receiver.set(401, true);
        site.receiver.refuses_with(reason);
        assert_eq!(ids(&site.doctor(&[]).await), only(id), "{reason}");
    }
    for (counts, id) in [("unmapped", "test-unmapped"), ("unreadable", "test-unreadable")] {
        site.receiver.set(200, true);
        site.receiver.refuses_with(counts);
        assert_eq!(ids(&site.doctor(&[]).await), only(id), "{counts}");
    }
    site.receiver.refuses_with("mismatch");
    site.receiver.set(404, false);
    assert_eq!(ids(&site.doctor(&[]).await), only("test-failed"));
    // Something answers, and it is not the event forwarder.
    site.receiver.set(200, false);
    assert_eq!(ids(&site.doctor(&[]).await), only("test-lost"));
    let provoked = [
        "test-refused",
        "test-unproven",
        "test-unavailable",
        "test-unmapped",
        "test-unreadable",
        "test-failed",
        "test-lost",
    ];
    provoked.map(str::to_owned).to_vec()
}

/// The event forwarder itself, which takes what this secret signs.
async fn forwarder(scratch: &Scratch, authentik: &AuthentikServer, secret: &str) -> (DaemonProcess, String, String) {
    let environment = [
        ("AUTHENTIK_WEBHOOK_SECRET", secret.to_owned()),
        ("SIDECAR_AUTHENTIK__AUTHENTICATION", "hmac-header".to_owned()),
        ("AUTHENTIK_URL", authentik.url()),
        ("AUTHENTIK_TOKEN", authentik.token()),
        ("BRAIN_GATEWAY_URL", "http://127.0.0.1:1".to_owned()),
        ("SIDECAR_JOURNAL__PATH", scratch.file("journal.db").display().to_string()),
        ("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0".to_owned()),
        ("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let mut daemon =
        DaemonCommand::new(BINARY).args(["run-authentik-event-forwarder"]).envs(environment).spawn().unwrap();
    let public = daemon.address("public", DEADLINE).await.unwrap();
    let admin = daemon.address("admin", DEADLINE).await.unwrap();
    (daemon, format!("http://{public}/webhooks/authentik"), format!("http://{admin}"))
}

#[tokio::test]
async fn a_test_notification_arrives_at_the_real_daemon() {
    let other = "another-secret-0123456789abcdef0123456789";
    for (secret, mapped, expected) in [
        (SECRET, true, &[][..]),
        (other, true, &["test-refused"]),
        // Authentik's own body is answered with a 200 and cannot be used: only the daemon says so.
        (SECRET, false, &["test-unmapped", "transport-body"]),
    ] {
        let scratch = Scratch::new("outrigger-authentik").unwrap();
        let mut site = Site::start(Generation::V2026_2).await;
        let (_daemon, webhook, admin) = forwarder(&scratch, &site.authentik, secret).await;
        site.receiver.url_is(webhook, admin);
        site.authentik.configure(|c| {
            let transport = first(c, Kind::Transport);
            transport["webhook_url"] = json!(site.receiver.url());
            if !mapped {
                transport["webhook_mapping_body"] = json!(null);
            }
        });

        let ran = site.doctor(&[]).await;

        assert_eq!(ids(&ran), expected.iter().map(|id| (*id).to_owned()).collect(), "{ran:?}");
        assert_eq!(ran.code, Some(i32::from(!expected.is_empty())));
    }
}

#[tokio::test]
async fn what_could_not_be_seen_is_said_and_is_not_called_healthy() {
    let site = Site::start(Generation::V2026_2).await;
    let (url, webhook) = (site.authentik.url(), site.receiver.url());
    let (service, reader) = (site.authentik.token(), site.authentik.admin_token());
    let forwarder = site.receiver.address.clone();
    let base = [
        ("AUTHENTIK_URL", url.as_str()),
        ("OUTRIGGER_WEBHOOK_URL", &webhook),
        ("OUTRIGGER_FORWARDER", "http://127.0.0.1:1"),
    ];
    let both = [("AUTHENTIK_TOKEN", service.as_str()), ("AUTHENTIK_ADMIN_TOKEN", reader.as_str())];
    let incomplete = |ran: Ran, says: &[&str]| {
        assert_eq!(ran.code, Some(3), "{ran:?}");
        for text in says {
            assert!(ran.out.contains(text), "{text:?} is not in {ran:?}");
        }
    };

    // Nobody at the event forwarder's address.
    let ran = outrigger(&["authentik", "doctor"], &[&base[..], &both].concat()).await;
    incomplete(ran, &["?    notification", "does not answer at http://127.0.0.1:1"]);
    // Somebody, and not the event forwarder.
    let other = axum_that_says(json!({})).await;
    let named = [("OUTRIGGER_FORWARDER", other.as_str())];
    let ran = outrigger(&["authentik", "doctor"], &[&base[..2], &both, &named].concat()).await;
    incomplete(ran, &["?    notification", "is not the event forwarder"]);
    // One token only.
    let ran = outrigger(&["authentik", "doctor"], &[&base[..], &both[1..]].concat()).await;
    incomplete(ran, &["-    token         not checked → give --service-token-file"]);
    let only_service = [&base[..], &both[..1]].concat();
    let ran = outrigger(&["authentik", "doctor"], &only_service).await;
    incomplete(ran, &["-    configuration not checked → give --reader-token-file"]);
    let ran = outrigger(&["authentik", "doctor", "--json"], &only_service).await;
    assert_eq!((ran.code, &ran.json()["healthy"]), (Some(3), &json!(null)));
    // Who asks for no test gets none, and that is all right.
    let ran = site.doctor(&["--no-test"]).await;
    assert_eq!((ran.code, &ran.json()["healthy"]), (Some(0), &json!(true)));
    // --admin is enough where nothing else names the event forwarder.
    let named = [("OUTRIGGER_ADMIN", forwarder.as_str())];
    outrigger(&["authentik", "doctor"], &[&base[..2], &both, &named].concat()).await.ok();

    outrigger(&["authentik", "doctor"], &base).await.failed(1, "no token: give --service-token-file");
    outrigger(&["authentik", "doctor"], &[]).await.failed(1, "which Authentik?");
    let missing = ["authentik", "doctor", "--service-token-file", "/nowhere/token"];
    outrigger(&missing, &base).await.failed(1, "/nowhere/token");
}

#[tokio::test]
async fn a_receiver_that_takes_its_time_is_waited_for() {
    let site = Site::start(Generation::V2026_2).await;
    site.authentik.fail_next(std::iter::repeat_n(Fault::Wait(Duration::from_millis(20)), 10));
    assert_eq!(site.doctor(&[]).await.code, Some(0));
}

#[tokio::test]
async fn the_blueprint_is_printed_in_every_variant() {
    for (arguments, text) in [
        (&[][..], blueprint::render(Authentication::Hmac, TokenFrom::Variable)),
        (&["--token-from", "file"], blueprint::render(Authentication::Hmac, TokenFrom::File)),
        (&["--authentication", "bearer"], blueprint::render(Authentication::Bearer, TokenFrom::Variable)),
        (
            &["--authentication", "body-secret", "--token-from", "file"],
            blueprint::render(Authentication::BodySecret, TokenFrom::File),
        ),
        (&["--tenant-claim"], blueprint::render_tenant_claim()),
    ] {
        let printed = outrigger(&[&["authentik", "blueprint"], arguments].concat(), &[]).await.ok();
        assert_eq!(printed.out, text, "{arguments:?}");
    }
    outrigger(&["authentik", "blueprint", "--tenant-claim", "--authentication", "bearer"], &[])
        .await
        .failed(2, "cannot be used with");
}
