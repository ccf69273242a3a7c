//! What leaves the daemon, where to, and whom it trusts.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::chaos::ChaosProxy;
use kit_workbench::ledger::{Crash, Ledger};
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_port};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::named;
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use outrigger_tests::strict::{self, Reply, StrictGateway, StrictRequest};
use outrigger_tests::tls::{Authority, TlsFront, Validity};
use serde_json::json;

/// Every shape of request.
const FORMATS: [&str; 4] = ["cloudevents-structured", "cloudevents-binary", "envelope", "raw"];
/// What every outgoing request carries …
const ALWAYS: [&str; 9] = [
    "host",
    "user-agent",
    "accept",
    "content-length",
    "content-type",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "x-sent-by",
];
/// … and what it may carry beside.
const SOMETIMES: [&str; 18] = [
    "traceparent",
    "tracestate",
    "x-lago-signature",
    "x-lago-signature-algorithm",
    "x-lago-unique-key",
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-subject",
    "ce-time",
    "ce-tenantid",
    "ce-typealias",
    "ce-traceparent",
    "ce-tracestate",
    "ce-sequence",
    "ce-keyconflict",
    "ce-unattributed",
];
/// What an attacker would like to see in the outgoing request.
const WISHES: [&str; 14] = [
    "\r\nX-Injected: yes",
    "\nX-Injected: yes",
    "\r\n\r\nPOST /admin HTTP/1.1\r\nHost: x\r\n\r\n",
    " HTTP/1.1\r\nX-Injected: yes\r\n",
    "..",
    ".",
    "../../../admin",
    "%2e%2e",
    "%2e%2e/%2e%2e/admin",
    "//evil.example/",
    "?x=1#y",
    "@evil.example",
    "\\..\\..",
    "\u{2028}\u{202e}\u{feff}\u{10ffff}",
];

/// A text of any characters, an attacker's wish, or both.
fn any_text(random: &mut fastrand::Rng) -> String {
    let mut text = String::new();
    if random.bool() {
        text.push_str(WISHES[random.usize(..WISHES.len())]);
        if random.bool() {
            return text;
        }
    }
    for _ in 0..random.usize(0..24) {
        text.push(match random.u32(0..6) {
            0 => char::from(random.u8(0..0x20)),
            1 => char::from(random.u8(0x7f..=0xff)),
            2 => random.char('\u{100}'..=char::MAX),
            _ => char::from(random.u8(0x20..0x7f)),
        });
    }
    text
}

/// Bytes that may be sent as the value of a header; CR, LF and NUL would end it here already.
fn any_value(random: &mut fastrand::Rng) -> Vec<u8> {
    let text = any_text(random);
    let mut bytes: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)).collect();
    // Other control characters are refused at the door as well: few, so that the rest gets in.
    if random.u32(0..50) > 0 {
        bytes.retain(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f));
    }
    if random.u32(0..4) == 0 {
        bytes.extend((0..random.usize(0..8)).map(|_| random.u8(0x80..=0xff)));
    }
    bytes
}

/// A body whose every field is the sender's choice; now and then not JSON at all.
fn any_body(random: &mut fastrand::Rng) -> String {
    if random.u32(0..16) == 0 {
        return any_text(random);
    }
    let object_type = if random.bool() { "invoice".to_owned() } else { any_text(random) };
    let mut text = || any_text(random);
    let mut payload = json!({
        "lago_id": text(),
        "external_id": text(),
        "number": text(),
        "external_customer_id": text(),
        "customer": { "external_id": text(), "lago_id": text(), "email": text() },
        "created_at": text(),
        "issuing_date": text(),
    });
    if random.bool() {
        // The names in it decide what the subject is.
        for name in ["external_id", "lago_id", "external_customer_id"] {
            if random.bool() {
                payload.as_object_mut().map(|payload| payload.remove(name));
            }
        }
    }
    let mut body = json!({
        "webhook_type": if random.u32(0..4) == 0 { "invoice.created".to_owned() } else { any_text(random) },
        "object_type": object_type,
        "organization_id": any_text(random),
    });
    body[object_type.as_str()] = payload;
    body.to_string()
}

/// T8: whatever bytes a sender puts into its headers and into every field of a body, each outgoing
/// request is right to the letter, has the daemon's own headers only, and goes to the configured path.
pub(crate) async fn nothing_in_a_webhook_bends_the_outgoing_request(mut trial: Trial) -> Result<Outcome> {
    /// Sent before the gateway is waited for.
    const BATCH: u32 = 250;
    strict::check_parser()?;
    let gateway = StrictGateway::start(|_| Reply::Keep(strict::TAKEN.to_vec())).await?;
    let mut rigs = Vec::new();
    for format in FORMATS {
        let settings = [
            ("BRAIN_GATEWAY_URL", gateway.url()),
            ("SIDECAR_GATEWAY__FORMAT", format.to_owned()),
            ("SIDECAR_GATEWAY__PATH", "/in/{source}/{type}/{tenant}/end".to_owned()),
            ("SIDECAR_GATEWAY__HEADERS__X_SENT_BY", "outrigger".to_owned()),
        ];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        rigs.push(Rig::started(Mode::Hmac, &settings).await?);
    }
    let (mut accepted, mut fresh, mut refused, mut checked) = (0, 0, 0, 0);
    let mut ids = BTreeSet::new();
    for number in 0..trial.count {
        trial.progress(number);
        let rig = &rigs[number as usize % rigs.len()];
        // An empty body still has its length said: some servers want one of every POST (411).
        let body = if (number as usize) < rigs.len() { String::new() } else { any_body(&mut trial.random) };
        let request = hostile_request(rig, &body, &mut trial.random)?;
        let answer = raw::exchange(rig.public, &request, REQUEST_DEADLINE).await;
        let answer = answer.with_context(|| String::from_utf8_lossy(&request).into_owned())?;
        match answer.status {
            200 => {
                accepted += 1;
                let answer = answer.json()?;
                // Short bodies without a usable key repeat now and then.
                fresh += u64::from(answer["duplicate"] == false);
                ids.insert(answer["id"].as_str().unwrap_or_default().to_owned());
            }
            // Control characters in a header are refused at the door.
            400 => refused += 1,
            other => anyhow::bail!("answered {other}: {}", String::from_utf8_lossy(&request)),
        }
        if number % BATCH == BATCH - 1 || number + 1 == trial.count {
            gateway.wait_for(fresh, REQUEST_DEADLINE).await?;
            for request in gateway.take_requests() {
                check_outgoing(&request, &ids).with_context(|| format!("{} {:?}", request.target, request.headers))?;
                checked += 1;
            }
        }
    }
    ensure!(refused < accepted, "{refused} of {} requests were refused: too few were tried", trial.count);
    for rig in &mut rigs {
        let (exit, _) = rig.stop().await?;
        ensure!(exit.code == Some(0), "{exit}");
        let mut ledger = Ledger::new();
        rig.scan(&mut ledger)?;
    }
    ensure!(checked == fresh && gateway.count() == fresh, "{checked} requests for {fresh} events");
    Ok(Outcome::new(trial.count, format!("{accepted} accepted, {refused} refused at the door, all requests right")))
}

fn hostile_request(rig: &Rig, body: &str, random: &mut fastrand::Rng) -> Result<Vec<u8>> {
    let mut request = b"POST /webhooks/lago HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n".to_vec();
    let mut header = |name: &str, value: &[u8]| {
        request.extend_from_slice(format!("{name}: ").as_bytes());
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    header("X-Lago-Signature", rig.sign(body)?.as_bytes());
    header("Content-Length", body.len().to_string().as_bytes());
    header("X-Lago-Unique-Key", &any_value(random));
    for name in [
        "X-Lago-Unique-Key",
        "X-Lago-Signature-Algorithm",
        "Content-Type",
        "traceparent",
        "tracestate",
        "webhook-id",
        "webhook-signature",
        "ce-id",
        "ce-type",
        "x-sent-by",
        "authorization",
        "cookie",
        "x-forwarded-for",
        "forwarded",
        "te",
        "trailer",
        "proxy-authorization",
    ] {
        if random.u32(0..4) == 0 {
            header(name, &any_value(random));
        }
    }
    if random.u32(0..4) == 0 {
        header("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.as_bytes());
    Ok(request)
}

fn check_outgoing(request: &StrictRequest, ids: &BTreeSet<String>) -> Result<()> {
    let segments: Vec<&str> = request.target.split('/').collect();
    let ["", "in", "lago%2Fdefault", event_type, tenant, "end"] = segments[..] else {
        anyhow::bail!("the path was left");
    };
    ensure!(!event_type.is_empty() && !tenant.is_empty(), "an empty part of the path");
    ensure!(!request.target.contains(['?', '#']), "a query");
    let names: BTreeSet<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(names.len() == request.headers.len(), "a header twice");
    for name in ALWAYS {
        ensure!(names.contains(name), "no header {name}");
    }
    let known = |name: &&str| ALWAYS.contains(name) || SOMETIMES.contains(name);
    ensure!(names.iter().all(known), "a header of the sender's making");
    let one = |name| String::from_utf8_lossy(request.header(name).next().unwrap_or_default()).into_owned();
    let id = one("webhook-id");
    ensure!(ids.contains(&id), "the id is not one that was answered");
    ensure!(
        one("x-sent-by") == "outrigger" && one("webhook-signature").starts_with("v1,"),
        "an own header was replaced"
    );
    if names.contains("ce-id") {
        ensure!(
            one("ce-id") == id && one("ce-source") == "lago/default" && one("ce-specversion") == "1.0",
            "attributes"
        );
        let printable = |(name, value): &(String, Vec<u8>)| !name.starts_with("ce-") || value.is_ascii();
        ensure!(request.headers.iter().all(printable), "an attribute that is not encoded");
    }
    if one("content-type").starts_with("application/cloudevents+json") {
        let event: serde_json::Value = serde_json::from_slice(&request.body).context("the body is no JSON")?;
        ensure!(event["id"] == id.as_str() && event["source"] == "lago/default", "attributes: {event}");
    }
    Ok(())
}

/// T7: where events go is said by the configuration and by nothing else: not by a URL of another kind,
/// not by a proxy in the environment, not by anything in a webhook, not by a redirect.
pub(crate) async fn destinations_come_from_the_configuration_only(_: Trial) -> Result<Outcome> {
    let mut cases = 0;
    let rig = Rig::new(Mode::Hmac, &[]).await?;
    for url in [
        "",
        "gateway:8000",
        "//gateway:8000",
        "/webhooks",
        "ftp://gateway/x",
        "file:///etc/passwd",
        "gopher://gateway:70/_x",
        "unix:/var/run/docker.sock",
        "ws://gateway",
        "javascript:alert(1)",
        "data:text/plain,x",
        "jar:http://gateway!/",
        "http://",
        "http://:8000",
        "http://user@gateway:8000",
        "http://user:secret@gateway:8000",
        "http://gateway@169.254.169.254/",
        "http://:secret@gateway:8000",
        "http://gateway:8000/?key=secret",
        "http://gateway:8000/#part",
        "http://gateway:99999",
        "http://gateway:-1",
        "http://gateway:port",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://0x100000000/",
        "http://gate way/",
        "http://gate\\@way:8000/x?",
        "http://gate%00way/",
        "http://gate\tway/ x?y",
        "http://xn--/",
        "http://%zz/",
        "http://gate<way/",
        "http://gate^way/",
    ] {
        for name in ["BRAIN_GATEWAY_URL", "SIDECAR_GATEWAY__OAUTH__TOKEN_URL"] {
            // No token URL is no mistake.
            if url.is_empty() && name != "BRAIN_GATEWAY_URL" {
                continue;
            }
            let oauth = ["ID", "SECRET"].map(|what| (format!("SIDECAR_GATEWAY__OAUTH__CLIENT_{what}"), "x".to_owned()));
            let mut process = rig.command()?.envs(oauth).env(name, url).spawn()?;
            let exit = process.wait(REQUEST_DEADLINE).await.with_context(|| format!("{name}={url:?} is taken"))?;
            let said = process.stderr();
            ensure!(exit.code == Some(78), "{name}={url:?}: {exit}: {said}");
            ensure!(said.lines().count() == 1 && said.contains(name), "{name}={url:?}: {said}");
            ensure!(!said.contains("secret"), "{name}={url:?}: a secret is shown: {said}");
            cases += 1;
        }
    }
    let canary = ChaosProxy::start(rig.gateway.addr()).await?;
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        rig.set(name, &canary.url());
    }
    rig.set("NO_PROXY", "");
    rig.start().await?;
    let mut ledger = Ledger::new();
    let elsewhere = canary.url();
    for name in ["webhook_url", "url", "callback", "location", "file_url", "redirect_uri", "dataref"] {
        let body = json!({
            "webhook_type": &elsewhere, "object_type": "invoice", name: &elsewhere, "source": &elsewhere,
            "invoice": { "lago_id": &elsewhere, name: &elsewhere, "customer": { "external_id": &elsewhere } },
        });
        let (key, body) = (format!("{elsewhere}/{name}"), body.to_string());
        let digest = kit_workbench::Digest::of(body.as_bytes());
        let mut sent = kit_workbench::ledger::SentRequest::begin("default", key.as_str(), "", digest);
        let headers = [
            ("X-Lago-Signature", &rig.sign(&body)?),
            ("X-Lago-Unique-Key", &key),
            ("Location", &elsewhere),
            ("X-Forwarded-Host", &elsewhere),
            ("Origin", &elsewhere),
        ];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer =
            raw::request(rig.public, "POST", "/webhooks/lago", &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        ledger.sent(sent);
        cases += 1;
    }
    rig.settle(ledger, "T7").await?;
    ensure!(canary.connections() == 0, "{} connections to somebody who was not configured", canary.connections());
    Ok(Outcome::new(cases, "exit 78 for each URL, 0 connects to proxies and to addresses in webhooks"))
}

/// T20: a gateway with an expired, future, foreign, self-signed or otherwise wrong certificate, with an
/// old protocol or with none, gets not one request; the events wait, and go to the right one.
pub(crate) async fn a_gateway_that_cannot_prove_itself_gets_nothing(trial: Trial) -> Result<Outcome> {
    let keys = Scratch::new("outrigger-keys")?;
    let (authority, stranger) = (Authority::new(&keys.file("own"))?, Authority::new(&keys.file("other"))?);
    let port = free_port()?;
    let mut notes = String::new();
    let mut cases = 0;
    for round in 0..trial.count {
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        let authorities = authority.certificate().display().to_string();
        // By the platform's variable, or by the setting.
        let by = if round % 2 == 0 { "SSL_CERT_FILE" } else { "SIDECAR_GATEWAY__CA_FILE" };
        rig.set(by, &authorities);
        rig.set("BRAIN_GATEWAY_URL", &format!("https://localhost:{port}"));
        rig.set("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "1");
        rig.start().await?;
        let mut ledger = Ledger::new();
        let wrong = [
            ("expired", authority.identity("DNS:localhost", Validity::PAST)?),
            ("not yet valid", authority.identity("DNS:localhost", Validity::FUTURE)?),
            ("of another host", authority.identity("DNS:gateway.example", Validity::NOW)?),
            ("of an address", authority.identity("IP:127.0.0.1", Validity::NOW)?),
            ("of a wider domain", authority.identity("DNS:*.localhost", Validity::NOW)?),
            ("self-signed", authority.self_signed("DNS:localhost")?),
            ("by a stranger", stranger.identity("DNS:localhost", Validity::NOW)?),
        ];
        for (what, identity) in &wrong {
            free(port).await?;
            let front = TlsFront::start(identity, port, rig.gateway.addr()).await?;
            refused(&rig, &mut ledger, what).await?;
            let (_, broken_off) = front.handshakes();
            ensure!(broken_off > 0, "{what}: nobody tried");
            cases += 1;
        }
        for version in ["-tls1", "-tls1_1"] {
            free(port).await?;
            let Some(_server) = old_server(&authority, port, version).await? else {
                let _ = write!(notes, "openssl cannot speak {version}; ");
                continue;
            };
            refused(&rig, &mut ledger, version).await?;
            cases += 1;
        }
        // No TLS at all, on the port where it should be.
        free(port).await?;
        let plain = ChaosProxy::start_on(SocketAddr::from(([127, 0, 0, 1], port)), rig.gateway.addr()).await?;
        refused(&rig, &mut ledger, "in the clear").await?;
        ensure!(plain.connections() > 0, "in the clear: nobody tried");
        drop(plain);
        cases += 1;
        let waiting = rig.api("/api/v1/statistics").await?["sinks"][0]["pending"].as_u64();
        ensure!(waiting == Some(ledger.sent_requests().len() as u64), "not all are waiting: {waiting:?}");

        free(port).await?;
        let right = authority.identity("DNS:localhost", Validity::NOW)?;
        let front = TlsFront::start(&right, port, rig.gateway.addr()).await?;
        let wanted = ledger.sent_requests().len() as u64;
        rig.gateway.wait_for_unique(wanted, REQUEST_DEADLINE).await.with_context(|| format!("by {by}"))?;
        ensure!(front.handshakes().0 > 0, "delivered, but not through the right gateway");
        rig.drained().await?;
        let from = kit_workbench::Moment::from_micros(0);
        ledger.crash(Crash { what: "none".to_owned(), from, until: from, in_flight: 0 });
        rig.settle(ledger, &format!("T20-{}-{round}", trial.seed)).await?;
        let _ = write!(notes, "{wanted} events waited and went to the right one, trusted by {by}; ");
    }
    Ok(Outcome::new(cases, notes.trim_end_matches("; ")))
}

/// Waits until nobody listens on the port: whoever was just dropped takes a moment.
async fn free(port: u16) -> Result<()> {
    let deadline = Instant::now() + REQUEST_DEADLINE;
    while tokio::net::TcpListener::bind(("127.0.0.1", port)).await.is_err() {
        ensure!(Instant::now() < deadline, "port {port} stays taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Sends an event, waits until it has been tried in vain, and sees that the gateway has not got it.
async fn refused(rig: &Rig, ledger: &mut Ledger, what: &str) -> Result<()> {
    let tried =
        || async { anyhow::Ok(rig.metrics().await?.sum("delivery_attempts_total", &[("outcome", "unreachable")])) };
    let before = tried().await?;
    named::send(rig, ledger, &what.replace(' ', "-")).await?;
    let deadline = Instant::now() + REQUEST_DEADLINE;
    // Two: the first may have begun with the gateway before.
    while tried().await? < before + 2.0 {
        ensure!(Instant::now() < deadline, "{what}: no attempt has failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counts = rig.gateway.counts();
    ensure!(counts.received == 0, "{what}: {} requests reached the gateway", counts.received);
    Ok(())
}

/// A server that speaks an old version only, with a certificate that would be right; `None` where
/// openssl is missing or no longer knows the version.
async fn old_server(authority: &Authority, port: u16, version: &str) -> Result<Option<tokio::process::Child>> {
    let identity = authority.identity("DNS:localhost", Validity::NOW)?;
    let server = tokio::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-www", version, "-cipher", "ALL:@SECLEVEL=0"])
        .args(["-accept", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(&identity.certificate)
        .arg("-key")
        .arg(&identity.key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut server) = server else { return Ok(None) };
    let deadline = Instant::now() + REQUEST_DEADLINE;
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if server.try_wait()?.is_some() {
            return Ok(None);
        }
        ensure!(Instant::now() < deadline, "openssl does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Some(server))
}
