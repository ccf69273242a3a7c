//! The way to the server: encrypted, with a certificate of our own, with tokens, and through a proxy that answers itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_workbench::temporal::{TemporalOptions, TemporalServer};
use outrigger_tests::grpc::{Does, GrpcProxy};
use outrigger_tests::temporal::{Bench, Release};
use outrigger_tests::tls::{Authority, Identity, TlsFront, Validity};
use serde_json::{Value, json};

use crate::observer::SOON;

const SETTINGS: [(&str, &str); 6] = [
    (
        "SIDECAR_RULE",
        r#"[{name="each", types=["order.*"], workflow_id="w-{key}", workflow_type="Wait", task_queue="nobody"}]"#,
    ),
    ("SIDECAR_OBSERVER__IDLE_SECONDS", "0.3"),
    ("SIDECAR_OBSERVER__BUSY_SECONDS", "0.3"),
    ("SIDECAR_CALLS__CIRCUIT__PROBE_SECONDS", "0.1"),
    ("SIDECAR_CALLS__CIRCUIT__PROBE_MAX_SECONDS", "0.3"),
    // What uses up the schedule is a dead letter within a second; five failures open the circuit before.
    ("SIDECAR_CALLS__RETRY_SCHEDULE_SECONDS", "0.1,0.1,0.1,0.1,0.1,0.1"),
];

async fn bench(release: Release, address: impl FnOnce(&TemporalServer) -> String) -> Bench {
    let options = TemporalOptions { binary: release.binary().unwrap(), ..TemporalOptions::default() };
    let server = TemporalServer::start(options).await.unwrap();
    let address = address(&server);
    let settings: Vec<_> = SETTINGS.into_iter().chain([("TEMPORAL_ADDRESS", address.as_str())]).collect();
    Bench::over(server, &settings).await.unwrap()
}

async fn order(bench: &Bench, id: &str) {
    let event = json!({ "specversion": "1.0", "id": id, "source": "shop", "type": "order.placed", "data": {} });
    bench.taken(&event).await.unwrap();
}

async fn attempts(bench: &Bench, outcome: &str) -> f64 {
    let metrics = bench.rig.metrics().await.unwrap();
    metrics.sum("delivery_attempts_total", &[("sink", "temporal"), ("outcome", outcome)])
}

/// Waits until so many attempts have ended so, which has cost no event anything.
async fn wait_attempts(bench: &Bench, outcome: &str, wanted: f64) {
    let begin = Instant::now();
    while attempts(bench, outcome).await < wanted {
        assert!(begin.elapsed() < SOON, "no {wanted} attempts are {outcome}: {}", bench.rig.end_of_log(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.at_temporal("parked").await.unwrap(), 0, "{outcome}");
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn show(bench: &mut Bench, client: Option<&Identity>) {
    let [certificate, key] = client.map_or_else(Default::default, |own| [shown(&own.certificate), shown(&own.key)]);
    bench.rig.set("TEMPORAL_TLS_CLIENT_CERT_PATH", &certificate);
    bench.rig.set("TEMPORAL_TLS_CLIENT_KEY_PATH", &key);
}

/// The server itself can be given no certificates without a configuration of its own: they are shown before it.
pub(crate) async fn a_server_is_believed_by_its_certificate_and_believes_ours(release: Release) {
    let folder = kit_workbench::scratch::Scratch::new("temporal-tls").unwrap();
    let authority = Authority::new(&folder.file("authority")).unwrap();
    let stranger = Authority::new(&folder.file("stranger")).unwrap();
    let server = authority.identity("IP:127.0.0.1", Validity::NOW).unwrap();
    let ours = authority.client("DNS:bridge", Validity::NOW).unwrap();
    let theirs = stranger.client("DNS:bridge", Validity::NOW).unwrap();
    let mut bench = bench(release, TemporalServer::address).await;
    let front = TlsFront::http2(&server, bench.server.addr(), Some(&authority)).await.unwrap();
    bench.rig.set("TEMPORAL_ADDRESS", &front.addr().to_string());
    bench.rig.set("TEMPORAL_TLS", "true");

    // Nothing of this is a connection: the event waits, and nobody is asked in the clear.
    let own = shown(&authority.certificate());
    let other = shown(&stranger.certificate());
    for (nth, (trusted, client, named)) in [
        (&own, None, ""),
        (&own, Some(&theirs), ""),
        (&other, Some(&ours), ""),
        (&own, Some(&ours), "temporal.example"),
    ]
    .into_iter()
    .enumerate()
    {
        bench.rig.set("TEMPORAL_TLS_SERVER_CA_CERT_PATH", trusted);
        show(&mut bench, client);
        bench.rig.set("TEMPORAL_TLS_SERVER_NAME", if named.is_empty() { "127.0.0.1" } else { named });
        bench.rig.start().await.unwrap();
        order(&bench, &format!("case-{nth}")).await;
        wait_attempts(&bench, "unreachable", 2.0).await;
        assert_eq!(bench.at_temporal("delivered").await.unwrap(), 0, "case {nth}");
        bench.rig.stop().await.unwrap();
    }

    // As files, and as what is in them; and ends are told over the same connection.
    bench.rig.set("TEMPORAL_TLS_SERVER_NAME", "127.0.0.1");
    show(&mut bench, Some(&ours));
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    bench.wait_at_temporal("delivered", 4, SOON).await.unwrap();
    bench.rig.stop().await.unwrap();
    let named = authority.identity("DNS:temporal.example", Validity::NOW).unwrap();
    let front = TlsFront::http2(&named, bench.server.addr(), Some(&authority)).await.unwrap();
    bench.rig.set("TEMPORAL_ADDRESS", &front.addr().to_string());
    bench.rig.set("TEMPORAL_TLS_SERVER_NAME", "temporal.example");
    for (name, file) in
        [("SERVER_CA_CERT", authority.certificate()), ("CLIENT_CERT", ours.certificate), ("CLIENT_KEY", ours.key)]
    {
        bench.rig.set(&format!("TEMPORAL_TLS_{name}_PATH"), "");
        bench.rig.set(&format!("TEMPORAL_TLS_{name}_DATA"), &std::fs::read_to_string(file).unwrap());
    }
    bench.rig.start().await.unwrap();
    bench.observed().await.unwrap();
    order(&bench, "data").await;
    bench.wait_at_temporal("delivered", 5, SOON).await.unwrap();
    bench.terminate("w-data", "over").await.unwrap();
    let told = bench.wait_told(1, SOON).await.unwrap();
    assert_eq!(told[0].workflow(), "w-data");
    assert!(front.handshakes().0 >= 1);
}

/// An endpoint for tokens: `t-1`, `t-2` and so on to whoever shows the client's secret.
#[derive(Debug, Default)]
struct Tokens {
    given: AtomicU64,
    /// Answered in the place of a token; 0 for none.
    status: AtomicU16,
}

async fn token(State(tokens): State<Arc<Tokens>>, headers: HeaderMap, form: String) -> (StatusCode, String) {
    let status = tokens.status.load(Ordering::SeqCst);
    let basic = format!("Basic {}", STANDARD.encode("bridge:s3cret"));
    let is_known = headers.get("authorization").is_some_and(|shown| *shown == basic);
    if status != 0 {
        return (StatusCode::from_u16(status).unwrap(), String::new());
    }
    if !is_known || form != "grant_type=client_credentials&scope=temporal&audience=frontend" {
        return (StatusCode::UNAUTHORIZED, json!({ "error": "invalid_client" }).to_string());
    }
    let nth = tokens.given.fetch_add(1, Ordering::SeqCst) + 1;
    (
        StatusCode::OK,
        json!({ "access_token": format!("t-{nth}"), "token_type": "Bearer", "expires_in": 3600 }).to_string(),
    )
}

pub(crate) async fn tokens_are_fetched_and_fetched_anew_when_they_are_refused(release: Release) {
    let tokens = Arc::new(Tokens::default());
    tokens.status.store(503, Ordering::SeqCst);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/token", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/token", post(token)).with_state(Arc::clone(&tokens));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut bench = bench(release, TemporalServer::address).await;
    let proxy = GrpcProxy::start(bench.server.addr(), Does::Authorize("Bearer t-1".to_owned())).await.unwrap();
    for (name, value) in [
        ("TEMPORAL_ADDRESS", proxy.addr().to_string()),
        ("SIDECAR_TEMPORAL__OAUTH__TOKEN_URL", endpoint),
        ("SIDECAR_TEMPORAL__OAUTH__CLIENT_ID", "bridge".to_owned()),
        ("SIDECAR_TEMPORAL__OAUTH__CLIENT_SECRET", "s3cret".to_owned()),
        ("SIDECAR_TEMPORAL__OAUTH__SCOPE", "temporal".to_owned()),
        ("SIDECAR_TEMPORAL__OAUTH__AUDIENCE", "frontend".to_owned()),
    ] {
        bench.rig.set(name, &value);
    }
    bench.rig.start().await.unwrap();

    // Without a token nothing is asked, and the event waits.
    order(&bench, "1").await;
    wait_attempts(&bench, "denied", 5.0).await;
    assert_eq!(proxy.authorizations(), [""; 0]);
    tokens.status.store(0, Ordering::SeqCst);
    bench.wait_at_temporal("delivered", 1, SOON).await.unwrap();
    let given = tokens.given.load(Ordering::SeqCst);
    assert_eq!(given, 1, "one token is for many calls");
    // A key was rotated: the server refuses what it has given.
    proxy.set(Does::Authorize("Bearer t-2".to_owned()));
    order(&bench, "2").await;
    bench.wait_at_temporal("delivered", 2, SOON).await.unwrap();
    let seen = proxy.authorizations();
    assert_eq!(
        (seen.first().map(String::as_str), seen.last().map(String::as_str)),
        (Some("Bearer t-1"), Some("Bearer t-2"))
    );
    assert_eq!(tokens.given.load(Ordering::SeqCst), 2);
    // One that is refused for good costs the event nothing either.
    proxy.set(Does::Authorize("Bearer nobody's".to_owned()));
    order(&bench, "3").await;
    let before = attempts(&bench, "denied").await;
    wait_attempts(&bench, "denied", before + 6.0).await;
    let next = tokens.given.load(Ordering::SeqCst);
    assert!(next > 2, "a token that is refused is fetched anew");
    proxy.set(Does::Forward);
    bench.wait_at_temporal("delivered", 3, SOON).await.unwrap();
    assert!(!bench.rig.end_of_log(10_000).contains("s3cret") && !bench.rig.end_of_log(10_000).contains("t-1"));
}

/// A page of HTML in the place of gRPC is everybody's trouble, and no event's.
pub(crate) async fn a_proxy_that_answers_itself_costs_no_event_anything(release: Release) {
    let mut bench = bench(release, TemporalServer::address).await;
    let proxy = GrpcProxy::start(bench.server.addr(), Does::Page(502)).await.unwrap();
    bench.rig.set("TEMPORAL_ADDRESS", &proxy.addr().to_string());
    bench.rig.start().await.unwrap();
    for (nth, (status, outcome)) in [
        (502, "unavailable"),
        (503, "unavailable"),
        (429, "unavailable"),
        (404, "denied"),
        (200, "denied"),
        (401, "denied"),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.set(Does::Page(status));
        order(&bench, &format!("page-{status}")).await;
        let before = attempts(&bench, outcome).await;
        // More often than the schedule has attempts.
        wait_attempts(&bench, outcome, before + 10.0).await;
        let said: Value = bench.rig.api("/api/v1/sinks").await.unwrap();
        assert!(said.to_string().contains(&format!("HTTP {status} (text/html) instead of gRPC")), "{said}");
        proxy.set(Does::Forward);
        bench.wait_at_temporal("delivered", u64::try_from(nth).unwrap() + 1, SOON).await.unwrap();
    }
    // Ends are looked for again as well.
    bench.observed().await.unwrap();
    bench.terminate("w-page-404", "over").await.unwrap();
    assert_eq!(bench.wait_told(1, SOON).await.unwrap()[0].workflow(), "w-page-404");
    assert!(proxy.paged() > 60);
}
