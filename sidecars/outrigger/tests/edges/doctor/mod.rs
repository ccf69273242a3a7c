//! `doctor`: a set-up in which all is well, and then each finding of its table provoked in turn.

mod stand_ins;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use kit::secret::Secret;
use kit_lago::LagoServer;
use kit_lago::signature::LagoPrivateKey;
use kit_lago::stand_in::billing::{Effect, Fault, Faults, Invoice, Latency, On, Profile, Subscription, When};
use kit_workbench::database::Database;
use kit_workbench::scratch::{Scratch, free_address};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bench::{Ran, TOKEN, outrigger};
use stand_ins::{Authority, Ends, Grpc, Http, Redis, Tls};

const KEY: &str = "lago-api-key-0123456789";
const REDIS_PASSWORD: &str = "redis-password-0123456789";
const AUTHENTIK_TOKEN: &str = "authentik-token-0123456789";
const MEMORY: &str = "used_memory:1000000\r\nmaxmemory:200000000\r\nmaxmemory_policy:noeviction\r\n";
const WEBHOOKS: &str = "http://lago-webhook-processor:8081/webhooks/lago";
/// Calls of Temporal's frontend, and what `grpc.health.v1.HealthCheckResponse` says with status 1 and 2.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const NAMESPACE: &str = "/temporal.api.workflowservice.v1.WorkflowService/DescribeNamespace";
const SERVING: &[u8] = &[0x08, 1];
const NOT_SERVING: &[u8] = &[0x08, 2];
/// Nobody's, and nobody can be asked at it.
const NOBODY: &str = "http://127.0.0.1:1";

/// A set-up in which all is well.
struct Site {
    scratch: Scratch,
    sidecar: Http,
    lago: LagoServer,
    worker: Http,
    authentik: Http,
    redis: Redis,
    database: Database,
    temporal: Grpc,
    authority: Authority,
    public: Tls,
    key: LagoPrivateKey,
}

fn ago(hours: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(hours)
}

/// As `openssl ca` wants it.
fn in_days(days: i64) -> String {
    (Timestamp::now() + SignedDuration::from_hours(24 * days)).strftime("%Y%m%d%H%M%SZ").to_string()
}

fn statistics(sinks: &Value) -> String {
    json!({ "accepted": 3, "journal_bytes": 4096, "sinks": sinks }).to_string()
}

fn sink(change: impl Fn(&mut Value)) -> Value {
    let mut sink = json!({
        "name": "gateway", "accepted": 3, "delivered": 3, "pending": 0, "retrying": 0, "parked": 0, "dropped": 0,
        "filtered": 0, "paused": false,
        "status": { "circuit": "closed", "in_flight": 0, "stalled": false, "last_error": null, "last_error_at": null },
    });
    change(&mut sink);
    json!([sink])
}

impl Site {
    async fn start(profile: Profile) -> Self {
        let scratch = Scratch::new("outrigger-doctor").unwrap();
        let sidecar = Http::start(&[
            ("/livez", 200, "ok"),
            ("/readyz", 200, r#"{"ready":true,"parts":{"journal":"ready"}}"#),
            ("/metrics", 200, ""),
            ("/api/v1/statistics", 200, &statistics(&sink(|_| {}))),
        ])
        .await;
        let lago = LagoServer::start(profile, Secret::from(KEY.to_owned())).await.unwrap();
        let key = LagoPrivateKey::generate(2048).unwrap();
        lago.put_public_key(&key.public_key().to_pem());
        lago.put_subscription(Subscription::active("acme-1", "acme", "starter", ago(24 * 90)));
        lago.put_invoice(Invoice { finalized_at: Some(ago(1)), ..Invoice::draft("acme-1", ago(24 * 31), ago(2)) });
        let worker = Http::start(&[("/", 200, "Live!")]).await;
        let authentik = Http::start(&[
            ("/-/health/live/", 200, ""),
            ("/-/health/ready/", 204, ""),
            ("/api/v3/core/users/me/", 200, "{}"),
        ])
        .await;
        let redis = Redis::start(REDIS_PASSWORD, MEMORY).await;
        let database = Database::start(&[]).unwrap();
        let temporal = Grpc::start(&[(HEALTH, Ends::With(SERVING)), (NAMESPACE, Ends::With(&[]))]).await;
        let authority = Authority::new(scratch.path());
        let public = Tls::start(authority.identity("localhost", &in_days(-1), &in_days(60))).await;
        let site =
            Self { scratch, sidecar, lago, worker, authentik, redis, database, temporal, authority, public, key };
        site.register(WEBHOOKS, "jwt").await;
        site.file("private.pem", site.key.pem().expose());
        site.file("public.pem", &site.key.public_key().to_pem());
        site
    }

    /// Adds a webhook endpoint.
    async fn register(&self, url: &str, algorithm: &str) {
        let client = kit::client::http_client(&Default::default()).unwrap();
        let body = json!({ "webhook_endpoint": { "webhook_url": url, "signature_algo": algorithm } });
        let sent =
            client.post(format!("{}/api/v1/webhook_endpoints", self.lago.url())).bearer_auth(KEY).json(&body).send();
        assert_eq!(sent.await.unwrap().status(), 200);
    }

    fn file(&self, name: &str, content: &str) -> String {
        self.scratch.write(name, content).unwrap().display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }

    /// Everything that is asked about, with these in the place of the usual ones; an empty one is unset.
    async fn ask(&self, changes: &[(&str, &str)], more: &[&str]) -> Ran {
        let usual = [
            ("OUTRIGGER_ADMIN", self.sidecar.url()),
            ("OUTRIGGER_TOKEN", TOKEN.to_owned()),
            ("LAGO_API_URL", self.lago.url()),
            ("LAGO_API_KEY", KEY.to_owned()),
            ("OUTRIGGER_LAGO_WORKER_URL", self.worker.url()),
            ("LAGO_WEBHOOK_SIGNATURE", "jwt".to_owned()),
            ("LAGO_WEBHOOK_ATTEMPTS", "15".to_owned()),
            ("OUTRIGGER_LAGO_RSA_KEY_FILE", self.path("private.pem")),
            ("LAGO_RSA_PRIVATE_KEY", self.key.variable().expose().to_owned()),
            ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", self.path("public.pem")),
            ("DATABASE_URL", self.database.url("postgres")),
            ("REDIS_URL", format!("redis://{}/5", self.redis.address)),
            ("REDIS_PASSWORD", REDIS_PASSWORD.to_owned()),
            ("AUTHENTIK_URL", self.authentik.url()),
            ("AUTHENTIK_TOKEN", AUTHENTIK_TOKEN.to_owned()),
            ("TEMPORAL_ADDRESS", self.temporal.address.to_string()),
            ("TEMPORAL_NAMESPACE", "billing".to_owned()),
            ("DYNAMIC_CONFIG_FILE_PATH", "config/dynamicconfig/outrigger.yaml".to_owned()),
            ("OUTRIGGER_PUBLIC_URLS", self.public.url()),
        ];
        let changed = |name: &str| changes.iter().find(|(changed, _)| *changed == name).map(|(_, value)| *value);
        let mut environment: Vec<(&str, &str)> = changes.to_vec();
        environment.extend(usual.iter().filter(|(name, _)| changed(name).is_none()).map(|(n, v)| (*n, v.as_str())));
        environment.retain(|(_, value)| !value.is_empty());
        let authority = self.authority.certificate();
        outrigger(&[&["doctor", "--ca-file", &authority][..], more].concat(), &environment).await
    }

    /// What is found, by name.
    async fn found(&self, changes: &[(&str, &str)]) -> (Vec<String>, Ran) {
        let ran = self.ask(changes, &["--json"]).await;
        let report = ran.json();
        let found = report["findings"].as_array().unwrap().iter().filter_map(|finding| finding["id"].as_str());
        let found: Vec<String> = found.map(str::to_owned).collect();
        assert_eq!(ran.code, Some(i32::from(!found.is_empty())), "{ran:?}");
        assert_eq!(report["healthy"], found.is_empty());
        for secret in [KEY, REDIS_PASSWORD, AUTHENTIK_TOKEN, TOKEN, "workbench", &self.key.variable().expose()[..60]] {
            assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{secret} is in {ran:?}");
        }
        (found, ran)
    }
}

/// What has been found so far, beside the table.
struct Provoked<'a> {
    site: &'a Site,
    seen: BTreeSet<String>,
}

impl Provoked<'_> {
    /// With these settings exactly these are found, whatever their order, and each says what mends it.
    async fn check(&mut self, changes: &[(&str, &str)], expected: &[&str]) {
        let (mut found, ran) = self.site.found(changes).await;
        found.sort();
        found.dedup();
        let mut wanted: Vec<&str> = expected.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{changes:?}: {ran:?}");
        let report = ran.json();
        for finding in report["findings"].as_array().unwrap().iter().filter(|finding| finding["id"].is_string()) {
            assert!(finding["fix"].as_str().is_some_and(|fix| fix.len() > 10), "{finding}");
            assert!(finding["text"].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        }
        self.seen.extend(found);
    }
}

#[tokio::test]
async fn a_set_up_in_which_all_is_well_has_no_findings() {
    for profile in Profile::ALL {
        let site = Site::start(profile).await;

        let (found, ran) = site.found(&[]).await;

        assert!(found.is_empty(), "{ran:?}");
        let report = ran.json();
        for finding in report["findings"].as_array().unwrap() {
            assert_eq!(finding["state"], "ok", "{profile:?}: {finding}");
        }
        let text = site.ask(&[], &[]).await.ok().out;
        assert!(text.lines().last().unwrap().starts_with("0 wrong, 0 to look at, 0 unknown"), "{text}");
    }
}

#[tokio::test]
async fn what_is_not_configured_is_not_checked_and_says_what_would() {
    let site = Site::start(Profile::V1_16).await;
    let sidecar = site.sidecar.url();

    let ran = outrigger(&["doctor"], &[("OUTRIGGER_ADMIN", &sidecar), ("OUTRIGGER_TOKEN", TOKEN)]).await.ok();

    for variable in [
        "LAGO_API_URL",
        "LAGO_API_KEY_FILE",
        "OUTRIGGER_LAGO_WORKER_URL",
        "LAGO_WEBHOOK_ATTEMPTS",
        "OUTRIGGER_LAGO_RSA_KEY_FILE",
        "DATABASE_URL_FILE",
        "REDIS_URL",
        "AUTHENTIK_URL",
        "TEMPORAL_ADDRESS",
        "OUTRIGGER_PUBLIC_URLS",
    ] {
        let said = ran.out.lines().any(|line| line.starts_with("-   ") && line.contains(variable));
        assert!(said, "{variable} is not in {}", ran.out);
    }
    // As compose has it: a file with the same names.
    let file = site.file(
        ".env",
        &format!(
            "# mine\nREDIS_HOST=127.0.0.1\nREDIS_PORT={}\nREDIS_PASSWORD='{REDIS_PASSWORD}'\n",
            site.redis.address.port()
        ),
    );
    let ran = outrigger(&["doctor", "--env-file", &file], &[("OUTRIGGER_ADMIN", &sidecar), ("OUTRIGGER_TOKEN", TOKEN)])
        .await
        .ok();
    assert!(ran.out.contains("ok   redis"), "{ran:?}");
}

#[tokio::test]
async fn nothing_to_be_seen_of_the_clock_is_said_and_is_not_taken_for_well() {
    let site = Site::start(Profile::V1_39).await;
    let empty = LagoServer::start(Profile::V1_39, Secret::from(KEY.to_owned())).await.unwrap();
    empty.put_public_key(&site.key.public_key().to_pem());
    let url = empty.url();

    let ran = site.ask(&[("LAGO_API_URL", &url)], &["--json"]).await;

    let report = ran.json();
    let clock = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "lago-clock").unwrap();
    assert_eq!(clock["state"], "unknown", "{clock}");
    assert!(clock["fix"].as_str().unwrap().contains("lago-clock"), "{clock}");
}

#[tokio::test]
async fn the_worst_comes_first_and_a_party_that_says_nothing_holds_up_nobody() {
    let site = Site::start(Profile::V1_16).await;
    // Takes connections and answers none.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let (http, redis, postgres) =
        (format!("http://{address}"), format!("redis://{address}"), format!("postgres://u:p@{address}/d"));
    let public = format!("https://localhost:{}", mute.local_addr().unwrap().port());
    let begun = std::time::Instant::now();

    let changes = [
        ("LAGO_API_URL", http.as_str()),
        ("OUTRIGGER_LAGO_WORKER_URL", &http),
        ("AUTHENTIK_URL", &http),
        ("OUTRIGGER_ADMIN", &http),
        ("REDIS_URL", &redis),
        ("DATABASE_URL", &postgres),
        ("OUTRIGGER_PUBLIC_URLS", &public),
        ("TEMPORAL_ADDRESS", &address),
        ("LAGO_WEBHOOK_ATTEMPTS", "3"),
    ];
    let ran = site.ask(&changes, &[]).await;

    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    let marks: Vec<&str> = ran.out.lines().filter_map(|line| line.get(..4)).collect();
    let first = |mark: &str| marks.iter().position(|known| *known == mark);
    assert_eq!(marks.iter().filter(|mark| **mark == "FAIL").count(), 8, "{}", ran.out);
    assert!(first("FAIL") == Some(0) && first("warn") == Some(8) && first("?   ") > first("warn"), "{}", ran.out);
}

#[tokio::test]
async fn every_finding_of_the_table_is_provoked_and_says_what_mends_it() {
    let site = Site::start(Profile::ClickHouse).await;
    let mut provoked = Provoked { site: &site, seen: BTreeSet::new() };

    sidecars(&mut provoked).await;
    lago(&mut provoked).await;
    endpoints_and_keys(&mut provoked).await;
    stores(&mut provoked).await;
    names(&mut provoked).await;

    let (found, ran) = site.found(&[]).await;
    assert!(found.is_empty(), "everything is well again: {ran:?}");
    let page = outrigger(&["doctor", "--reference"], &[]).await.ok().out;
    let (_, table) = page.split_once("## Found").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let known: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(provoked.seen, known, "what the table has is what can be found");
}

async fn sidecars(provoked: &mut Provoked<'_>) {
    let sidecar = &provoked.site.sidecar;
    let nobody = format!("http://{}", free_address().unwrap());
    provoked.check(&[("OUTRIGGER_ADMIN", &nobody)], &["sidecar-away"]).await;
    let other = provoked.site.authentik.url();
    provoked.check(&[("OUTRIGGER_ADMIN", &other)], &["sidecar-other"]).await;
    provoked.check(&[("OUTRIGGER_TOKEN", "")], &["token"]).await;
    sidecar.answer("/api/v1/statistics", 401, r#"{"error":"unauthorized"}"#);
    provoked.check(&[], &["token"]).await;
    // What the daemon cannot tell is no matter of the token, and its metrics tell of the sinks all the same.
    sidecar.answer("/api/v1/statistics", 500, r#"{"error":"the journal cannot be read"}"#);
    let stalled = "# TYPE delivery_pending gauge\ndelivery_pending{sink=\"gateway\"} 5\n\
        # TYPE delivery_stalled gauge\ndelivery_stalled{sink=\"gateway\"} 1\n# EOF\n";
    sidecar.answer("/metrics", 200, stalled);
    provoked.check(&[], &["part-not-ready", "sink-stalled"]).await;
    let (_, ran) = provoked.site.found(&[]).await;
    assert!(
        ran.out.contains("the journal cannot be read") && ran.out.contains("is stalled: deliveries wait"),
        "{ran:?}"
    );
    sidecar.answer("/metrics", 200, "");
    sidecar.answer("/api/v1/statistics", 200, &statistics(&sink(|_| {})));

    let parts = r#"{"parts":{"journal":"failing","routes":"wrong","key":"missing","listener":"gone"}}"#;
    sidecar.answer("/readyz", 503, parts);
    let not_ready = ["journal-not-ready", "routes-not-ready", "key-not-ready", "part-not-ready"];
    provoked.check(&[], &not_ready).await;
    sidecar.answer("/readyz", 200, r#"{"ready":true,"parts":{"journal":"ready"}}"#);

    type Change = fn(&mut Value);
    let cases: [(&str, Change); 5] = [
        ("sink-paused", |sink| sink["paused"] = true.into()),
        ("sink-closed", |sink| sink["status"]["circuit"] = "open".into()),
        ("sink-stalled", |sink| sink["status"]["stalled"] = true.into()),
        ("sink-unconfigured", |sink| sink["status"] = Value::Null),
        ("dead-letters", |sink| sink["parked"] = 2.into()),
    ];
    for (id, change) in cases {
        sidecar.answer("/api/v1/statistics", 200, &statistics(&sink(change)));
        provoked.check(&[], &[id]).await;
    }
    sidecar.answer("/api/v1/statistics", 200, &statistics(&sink(|_| {})));
    let slow =
        "# TYPE delivery_oldest_pending_seconds gauge\ndelivery_oldest_pending_seconds{sink=\"gateway\"} 1800\n# EOF\n";
    sidecar.answer("/metrics", 200, slow);
    provoked.check(&[], &["sink-slow"]).await;
    sidecar.answer("/metrics", 200, "");

    // A further one has no token here: its metrics tell.
    let metrics = "# TYPE delivery_pending gauge\ndelivery_pending{sink=\"lago\"} 5\n\
        # TYPE delivery_parked gauge\ndelivery_parked{sink=\"lago\"} 1\n\
        # TYPE delivery_circuit_open gauge\ndelivery_circuit_open{sink=\"lago\"} 1\n# EOF\n";
    let further =
        Http::start(&[("/livez", 200, ""), ("/readyz", 200, r#"{"parts":{}}"#), ("/metrics", 200, metrics)]).await;
    provoked.check(&[("OUTRIGGER_SIDECARS", &further.url())], &["dead-letters", "sink-closed"]).await;

    sidecar.date(Some("Sun, 01 Nov 2020 00:00:00 GMT"));
    provoked.check(&[], &["clock-skew"]).await;
    sidecar.date(None);
}

async fn lago(provoked: &mut Provoked<'_>) {
    let site = provoked.site;
    let unhealthy = Faults { unhealthy: true, ..Faults::default() };
    provoked.check(&[("LAGO_API_URL", NOBODY)], &["lago-away"]).await;
    site.lago.set_faults(unhealthy);
    provoked.check(&[], &["lago-unhealthy"]).await;
    site.lago.set_faults(Faults::default());
    // A front end answers everything with its page; a proxy may let only /api pass.
    let front = Http::start(&[("/health", 200, "<html></html>")]).await;
    provoked.check(&[("LAGO_API_URL", &front.url())], &["lago-other"]).await;
    site.lago.answer_instead(Method::GET, "/health", 404, json!({ "error": "no route" }));
    provoked.check(&[], &["lago-health-hidden"]).await;
    site.lago.answer_as_usual();

    provoked.check(&[("LAGO_API_KEY", "another")], &["lago-key-refused"]).await;
    let refused =
        json!({ "status": 403, "error": "Forbidden", "code": "read_action_not_allowed_for_webhook_endpoint" });
    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 403, refused);
    provoked.check(&[], &["lago-key-lacks-permission"]).await;
    site.lago.answer_as_usual();
    let missing = site.path("no-such-file");
    provoked.check(&[("LAGO_API_KEY", ""), ("LAGO_API_KEY_FILE", &missing)], &["setting"]).await;

    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 500, json!({ "status": 500 }));
    provoked.check(&[], &["lago-fails"]).await;
    site.lago.answer_as_usual();
    // A proxy for a Lago that is not there is no wrong address, and neither is an error of Lago's own.
    for (path, status, id) in [
        ("/health", 502, "lago-away"),
        ("/health", 503, "lago-away"),
        ("/health", 504, "lago-away"),
        ("/health", 500, "lago-fails"),
        ("/api/v1/webhook_endpoints", 502, "lago-away"),
    ] {
        site.lago.answer_instead(Method::GET, path, status, Value::Null);
        provoked.check(&[], &[id]).await;
        site.lago.answer_as_usual();
    }

    let pending = json!({ "subscriptions": [{ "external_id": "acme-2", "subscription_at": ago(5).to_string(), "previous_plan_code": null }] });
    site.lago.answer_instead(Method::GET, "/api/v1/subscriptions?status[]=pending&per_page=100", 200, pending);
    provoked.check(&[], &["lago-clock-silent"]).await;
    // What another question does not tell takes nothing away from it.
    let denied = json!({ "status": 403, "error": "Forbidden", "code": "read_action_not_allowed_for_invoice" });
    site.lago.answer_instead(Method::GET, "/api/v1/invoices", 403, denied);
    provoked.check(&[], &["lago-clock-silent"]).await;
    site.lago.answer_as_usual();
    let draft = json!({ "invoices": [{ "lago_id": "1", "number": "A-1", "issuing_date": "2020-01-01" }] });
    site.lago.answer_instead(Method::GET, "/api/v1/invoices?status=draft&per_page=100", 200, draft);
    provoked.check(&[], &["lago-clock-silent"]).await;
    site.lago.answer_as_usual();
    let unpaid =
        json!({ "invoices": [{ "lago_id": "1", "payment_due_date": "2020-01-01", "payment_overdue": false }] });
    let query = "/api/v1/invoices?status=finalized&payment_status=pending&per_page=100&payment_overdue=false";
    site.lago.answer_instead(Method::GET, query, 200, unpaid);
    provoked.check(&[], &["lago-clock-silent"]).await;
    site.lago.answer_as_usual();

    provoked.check(&[("OUTRIGGER_LAGO_WORKER_URL", NOBODY)], &["lago-worker-away"]).await;
    site.worker.answer("/", 500, "");
    provoked.check(&[], &["lago-worker-unhealthy"]).await;
    site.worker.answer("/", 200, "Live!");
    provoked.check(&[("LAGO_WEBHOOK_ATTEMPTS", "3")], &["webhook-attempts-few"]).await;
}

async fn endpoints_and_keys(provoked: &mut Provoked<'_>) {
    let site = provoked.site;
    let elsewhere = "http://lago-webhook-processor:9999/webhooks/lago";
    provoked.check(&[("LAGO_WEBHOOK_URL", elsewhere)], &["webhook-endpoint-missing"]).await;
    // A slash at the end is another path, and none that the processor takes; two lead there, and one is refused.
    let with_slash = format!("{WEBHOOKS}/");
    let endpoints = |listed: &[(&str, &str)]| {
        let one = |(nth, (url, algorithm)): (usize, &(&str, &str))| json!({ "lago_id": nth.to_string(), "webhook_url": url, "signature_algo": algorithm });
        let all: Vec<Value> = listed.iter().enumerate().map(one).collect();
        json!({ "webhook_endpoints": all, "meta": { "current_page": 1, "next_page": null, "total_count": all.len() } })
    };
    for changes in [vec![], vec![("LAGO_WEBHOOK_URL", WEBHOOKS)], vec![("LAGO_WEBHOOK_URL", with_slash.as_str())]] {
        site.lago.answer_instead(
            Method::GET,
            "/api/v1/webhook_endpoints",
            200,
            endpoints(&[(with_slash.as_str(), "jwt")]),
        );
        provoked.check(&changes, &["webhook-endpoint-path"]).await;
    }
    provoked
        .check(&[("LAGO_WEBHOOK_URL", "http://lago-webhook-processor:8081/hooks")], &["webhook-endpoint-missing"])
        .await;
    let other = "https://localhost/webhooks/lago";
    let two = endpoints(&[(WEBHOOKS, "jwt"), (other, "hmac")]);
    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 200, two);
    provoked.check(&[], &["webhook-endpoint-algorithm", "webhook-endpoint-twice"]).await;
    // Where it is is only known of compose's own name, of public ones, and of the one that is named.
    let old = endpoints(&[("http://old-host:8081/webhooks/lago", "jwt")]);
    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 200, old);
    let (found, ran) = site.found(&[]).await;
    assert!(found.is_empty() && ran.out.contains("nobody says whether old-host is where that listens"), "{ran:?}");
    site.lago.answer_as_usual();
    // Somebody else's endpoint may have its secret in its address.
    site.register("http://elsewhere/hook?token=hunter2", "hmac").await;
    let (_, ran) = site.found(&[("LAGO_WEBHOOK_URL", elsewhere)]).await;
    assert!(ran.out.contains("http://elsewhere/hook?…") && !ran.out.contains("hunter2"), "{ran:?}");
    provoked.check(&[("LAGO_WEBHOOK_URL", WEBHOOKS)], &[]).await;
    // The processor's own file says what it takes: of one organisation only, with another signature, or something impossible.
    let config = |text: &str| site.file("processor.toml", text);
    let named = config("[lago.organizations.acme]\nsignature = 'jwt'\n");
    let own_file = [
        ("LAGO_WEBHOOK_PROCESSOR_CONFIG", named.as_str()),
        ("LAGO_WEBHOOK_SIGNATURE", ""),
        ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", ""),
    ];
    provoked.check(&own_file, &["webhook-endpoint-missing"]).await;
    provoked.check(&[("LAGO_WEBHOOK_SIGNATURE", "hmac")], &["webhook-endpoint-algorithm"]).await;
    provoked.check(&[("LAGO_WEBHOOK_SIGNATURE", "rsa")], &["setting"]).await;
    let nothing = json!({
        "webhook_endpoints": [{ "lago_id": "1", "webhook_url": WEBHOOKS, "signature_algo": "jwt", "event_types": [] }],
        "meta": { "current_page": 1, "next_page": null, "total_count": 1 },
    });
    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 200, nothing);
    provoked.check(&[], &["webhook-endpoint-takes-nothing"]).await;
    site.lago.answer_as_usual();

    // The PEM itself in the variable keeps Lago from starting.
    let raw = site.key.pem().expose().to_owned();
    provoked.check(&[("LAGO_RSA_PRIVATE_KEY", &raw)], &["rsa-key-form"]).await;
    let other = LagoPrivateKey::generate(2048).unwrap();
    let (other_file, other_public) =
        (site.file("other.pem", other.pem().expose()), site.file("other-public.pem", &other.public_key().to_pem()));
    provoked.check(&[("OUTRIGGER_LAGO_RSA_KEY_FILE", &other_file)], &["rsa-key-not-served", "rsa-key-two"]).await;
    provoked.check(&[("LAGO_WEBHOOK_PUBLIC_KEY_FILE", &other_public)], &["rsa-key-not-verified"]).await;
    let refused = json!({ "status": 403, "error": "Forbidden" });
    site.lago.answer_instead(Method::GET, "/api/v1/webhooks/json_public_key", 403, refused);
    provoked.check(&[], &["lago-key-lacks-permission"]).await;
    site.lago.answer_as_usual();
}

async fn stores(provoked: &mut Provoked<'_>) {
    let site = provoked.site;
    let nobody = free_address().unwrap();
    provoked.check(&[("DATABASE_URL", &format!("postgres://u:p@{nobody}/d"))], &["postgres-away"]).await;
    let port = site.database.port();
    provoked
        .check(
            &[("DATABASE_URL", &format!("postgres://outrigger:no@127.0.0.1:{port}/postgres"))],
            &["postgres-refused"],
        )
        .await;
    provoked.check(&[("DATABASE_URL", &site.database.url("no_such_database"))], &["postgres-refused"]).await;
    provoked.check(&[("DATABASE_URL", "mysql://u:p@db/d")], &["setting"]).await;
    let url = site.database.url("postgres");
    let separator = if url.contains('?') { '&' } else { '?' };
    let read_only = format!("{url}{separator}options=-c%20default_transaction_read_only%3Don");
    provoked.check(&[("DATABASE_URL", &read_only)], &["postgres-read-only"]).await;

    provoked.check(&[("REDIS_URL", &format!("redis://{nobody}"))], &["redis-away"]).await;
    provoked.check(&[("REDIS_PASSWORD", "")], &["redis-password"]).await;
    provoked.check(&[("REDIS_PASSWORD", "wrong")], &["redis-password"]).await;
    let url = |redis: &Redis| format!("redis://{}", redis.address);
    let loading = Redis::answering(|words, _| match words {
        ["AUTH", ..] => (b"+OK\r\n".to_vec(), true),
        _ => (b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(), true),
    })
    .await;
    provoked.check(&[("REDIS_URL", &url(&loading))], &["redis-other"]).await;
    let says = |said: &'static [u8]| Redis::answering(move |_, _| (said.to_vec(), true));
    let full_up = says(b"-ERR max number of clients reached\r\n").await;
    provoked.check(&[("REDIS_URL", &url(&full_up))], &["redis-crowded"]).await;
    let web = says(b"HTTP/1.1 400 Bad Request\r\n").await;
    provoked.check(&[("REDIS_URL", &url(&web))], &["redis-other"]).await;
    let limited = Redis::answering(|words, _| match words {
        ["AUTH", ..] => (b"+OK\r\n".to_vec(), true),
        ["PING"] => (b"+PONG\r\n".to_vec(), true),
        _ => (b"-NOPERM this user has no permissions to run the 'info' command\r\n".to_vec(), true),
    })
    .await;
    let (found, ran) = site.found(&[("REDIS_URL", &url(&limited))]).await;
    assert!(found.is_empty() && ran.out.contains("INFO is not for this user"), "{ran:?}");
    let evicts =
        Redis::start(REDIS_PASSWORD, "used_memory:10\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n").await;
    provoked.check(&[("REDIS_URL", &url(&evicts))], &["redis-evicts"]).await;
    let full = Redis::start(REDIS_PASSWORD, "used_memory:99\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\n").await;
    provoked.check(&[("REDIS_URL", &url(&full))], &["redis-full"]).await;

    provoked.check(&[("AUTHENTIK_URL", NOBODY)], &["authentik-away"]).await;
    site.authentik.answer("/-/health/ready/", 503, "");
    provoked.check(&[], &["authentik-not-ready"]).await;
    site.authentik.answer("/-/health/ready/", 200, "");
    site.authentik.answer("/api/v3/core/users/me/", 403, "{}");
    provoked.check(&[], &["authentik-token"]).await;
    site.authentik.answer("/api/v3/core/users/me/", 200, "{}");

    provoked.check(&[("TEMPORAL_ADDRESS", &nobody.to_string())], &["temporal-away"]).await;
    provoked.check(&[("TEMPORAL_ADDRESS", "http://temporal")], &["setting"]).await;
    let temporal = &site.temporal;
    temporal.answer(HEALTH, Ends::With(NOT_SERVING));
    provoked.check(&[], &["temporal-not-serving"]).await;
    temporal.answer(HEALTH, Ends::With(SERVING));
    temporal.answer(NAMESPACE, Ends::Refused(5, "Namespace billing is not found."));
    provoked.check(&[], &["temporal-namespace"]).await;
    temporal.answer(NAMESPACE, Ends::Refused(7, "Request unauthorized."));
    provoked.check(&[], &["temporal-refused"]).await;
    temporal.answer(NAMESPACE, Ends::With(&[]));
    let shipped = "config/dynamicconfig/docker.yaml";
    provoked.check(&[("DYNAMIC_CONFIG_FILE_PATH", shipped)], &["temporal-dynamic-config"]).await;
}

async fn names(provoked: &mut Provoked<'_>) {
    let site = provoked.site;
    // RFC 6761: a name that is nobody's.
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", "https://outrigger.invalid")], &["name-unknown"]).await;
    let nobody = format!("https://{}", free_address().unwrap());
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &nobody)], &["name-away"]).await;
    let plain = format!("https://localhost:{}", site.worker.address.port());
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &plain)], &["certificate-none"]).await;

    let show = async |identity: (PathBuf, PathBuf)| Tls::start(identity).await;
    let expired = show(site.authority.identity("localhost", "20200101000000Z", "20201231235959Z")).await;
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &expired.url())], &["certificate-expired"]).await;
    let soon = show(site.authority.identity("localhost", &in_days(-80), &in_days(5))).await;
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &soon.url())], &["certificate-expires-soon"]).await;
    let other = show(site.authority.identity("example.test", &in_days(-1), &in_days(60))).await;
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &other.url())], &["certificate-name"]).await;
    let alone = show(site.authority.self_signed()).await;
    provoked.check(&[("OUTRIGGER_PUBLIC_URLS", &alone.url())], &["certificate-untrusted"]).await;
}

#[tokio::test]
async fn the_page_is_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/doctor.md");

    let printed = outrigger(&["doctor", "--reference"], &[]).await.ok().out;

    assert_eq!(
        std::fs::read_to_string(page).unwrap(),
        printed,
        "outrigger doctor --reference > docs/reference/doctor.md"
    );
}

#[tokio::test]
async fn a_slow_lago_costs_nothing_of_what_is_known_of_it() {
    let site = Site::start(Profile::V1_39).await;
    site.lago.set_faults(Faults { latency: Latency::Fixed(std::time::Duration::from_secs(2)), ..Faults::default() });

    let ran = site.ask(&[], &["--json"]).await;

    let report = ran.json();
    let state = |check: &str| {
        let mut all = report["findings"].as_array().unwrap().iter();
        all.find(|finding| finding["check"] == check).unwrap()["state"].clone()
    };
    assert_eq!(
        (state("lago"), state("lago-key"), state("rsa-key")),
        (json!("ok"), json!("ok"), json!("ok")),
        "{ran:?}"
    );
    assert_eq!((state("webhook-endpoint"), state("lago-clock")), (json!("ok"), json!("unknown")), "{ran:?}");
}

#[tokio::test]
async fn a_fault_in_between_is_unknown_and_not_well() {
    let site = Site::start(Profile::V1_39).await;
    let rules = vec![Fault::new(Effect::Answer(500), When::Always).on(On::Reading)];
    site.lago.set_faults(Faults { rules, ..Faults::default() });

    let ran = site.ask(&[], &["--json"]).await;

    let report = ran.json();
    let states: Vec<&Value> =
        report["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "lago-clock").collect();
    assert!(states.iter().all(|finding| finding["state"] != "ok"), "{states:?}");
}

#[tokio::test]
async fn paths_of_an_env_file_begin_beside_it() {
    let site = Site::start(Profile::V1_39).await;
    std::fs::create_dir(site.path("compose")).unwrap();
    site.file("compose/sidecars.toml", "[lago]\nsignature = 'hmac'\n");
    let env = site.file("compose/.env", "LAGO_WEBHOOK_PROCESSOR_CONFIG=./sidecars.toml\n");
    let unset = [("LAGO_WEBHOOK_SIGNATURE", ""), ("LAGO_WEBHOOK_PUBLIC_KEY_FILE", "")];

    let ran = site.ask(&unset, &["--env-file", &env]).await;

    // It is read: it is what says that the endpoint's algorithm is wrong.
    assert!(ran.out.contains("signed with jwt, the webhook processor checks hmac"), "{ran:?}");
    let missing = [&unset[..], &[("LAGO_WEBHOOK_PROCESSOR_CONFIG", "./sidecars.toml")]].concat();
    let ran = site.ask(&missing, &["--env-file", &env]).await;
    assert!(ran.out.contains("FAIL setting"), "what the environment says begins where we are: {ran:?}");
}

#[tokio::test]
async fn a_key_that_is_not_compared_is_said() {
    let site = Site::start(Profile::V1_39).await;
    let only_public = [("LAGO_API_URL", ""), ("OUTRIGGER_LAGO_RSA_KEY_FILE", ""), ("LAGO_RSA_PRIVATE_KEY", "")];

    let ran = site.ask(&only_public, &[]).await;

    let line = ran.out.lines().find(|line| line.contains(" rsa-key ")).unwrap_or_else(|| panic!("{ran:?}"));
    assert!(line.starts_with('?') && line.contains("not compared"), "{line}");
}

#[tokio::test]
async fn a_key_without_one_permission_is_asked_what_it_may_tell() {
    let site = Site::start(Profile::V1_39).await;
    let refused =
        json!({ "status": 403, "error": "Forbidden", "code": "read_action_not_allowed_for_webhook_endpoint" });
    site.lago.answer_instead(Method::GET, "/api/v1/webhook_endpoints", 403, refused);

    let (found, ran) = site.found(&[]).await;

    assert_eq!(found, ["lago-key-lacks-permission"], "{ran:?}");
    let report = ran.json();
    let state = |check: &str| {
        let mut all = report["findings"].as_array().unwrap().iter();
        all.find(|finding| finding["check"] == check).unwrap()["state"].clone()
    };
    assert_eq!((state("lago-clock"), state("rsa-key")), (json!("ok"), json!("ok")), "{ran:?}");
}

#[tokio::test]
async fn in_compose_what_is_not_installed_is_not_missed() {
    let site = Site::start(Profile::V1_39).await;
    let sidecar = site.sidecar.url();
    let nowhere = [
        ("OUTRIGGER_ADMIN", "http://lago-webhook-processor:9081"),
        ("LAGO_API_URL", "http://lago-api.invalid:3000"),
        ("OUTRIGGER_LAGO_WORKER_URL", NOBODY),
        ("REDIS_URL", ""),
        ("REDIS_HOST", "redis.invalid"),
        ("REDIS_PASSWORD", ""),
        ("AUTHENTIK_URL", "http://authentik.invalid:9000"),
        ("AUTHENTIK_TOKEN", ""),
        ("TEMPORAL_ADDRESS", "temporal.invalid:7233"),
        ("LAGO_RSA_PRIVATE_KEY", ""),
        ("OUTRIGGER_LAGO_RSA_KEY_FILE", ""),
    ];
    let nothing =
        [&nowhere[..], &[("OUTRIGGER_COMPOSE_FILE", "sidecars.yml"), ("OUTRIGGER_SIDECARS", sidecar.as_str())]];

    let (found, ran) = site.found(&nothing.concat()).await;

    assert!(found.is_empty(), "nothing is installed, and nothing is missed: {ran:?}");
    let on = ("OUTRIGGER_COMPOSE_PROFILES", "lago-usage-tracker");
    let (found, ran) = site.found(&[&nothing.concat()[..], &[on]].concat()).await;
    // The names are compose's, and nobody's here.
    assert_eq!(found, ["lago-away", "sidecar-away"], "{ran:?}");
    assert!(ran.out.contains("http://lago-usage-tracker:9082") && !ran.out.contains("redis.invalid"), "{ran:?}");
}
