//! What leaves the daemon, and where to.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kit_workbench::chaos::ChaosProxy;
use kit_workbench::ledger::Ledger;
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, forwarder};
use outrigger_tests::strict::{self, Reply, StrictGateway, StrictRequest};
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
pub(crate) fn any_text(random: &mut fastrand::Rng) -> String {
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
pub(crate) async fn nothing_in_a_webhook_bends_the_outgoing_request(trial: Trial) -> Result<Outcome> {
    nothing_bends(trial, async |settings| Rig::started(Mode::Hmac, settings).await, any_request).await
}

/// The same for any daemon that takes webhooks; `any` makes a request of a number, genuine and full of an attacker's wishes.
pub(crate) async fn nothing_bends(
    mut trial: Trial,
    start: impl AsyncFn(&[(&str, &str)]) -> Result<Rig>,
    any: impl Fn(&Rig, u32, &mut fastrand::Rng) -> Result<Vec<u8>>,
) -> Result<Outcome> {
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
        rigs.push(start(&settings).await?);
    }
    let source = if rigs[0].path() == forwarder::PATH { "authentik/default" } else { "lago/default" };
    let (mut accepted, mut fresh, mut refused, mut checked) = (0, 0, 0, 0);
    let mut ids = BTreeSet::new();
    for number in 0..trial.count {
        trial.progress(number);
        let rig = &rigs[number as usize % rigs.len()];
        let request = any(rig, number, &mut trial.random)?;
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
                check_outgoing(&request, &ids, source)
                    .with_context(|| format!("{} {:?}", request.target, request.headers))?;
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

fn any_request(rig: &Rig, number: u32, random: &mut fastrand::Rng) -> Result<Vec<u8>> {
    // An empty body still has its length said: some servers want one of every POST (411).
    let body = if (number as usize) < FORMATS.len() { String::new() } else { any_body(random) };
    let signature = rig.sign(&body)?;
    let key = any_value(random);
    Ok(hostile_request(
        rig.path(),
        &body,
        &[("X-Lago-Signature", signature.as_bytes()), ("X-Lago-Unique-Key", &key)],
        random,
    ))
}

/// A request with these headers, and with others of any kind.
pub(crate) fn hostile_request(path: &str, body: &str, own: &[(&str, &[u8])], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n").into_bytes();
    let mut header = |name: &str, value: &[u8]| {
        request.extend_from_slice(format!("{name}: ").as_bytes());
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    own.iter().for_each(|(name, value)| header(name, value));
    header("Content-Length", body.len().to_string().as_bytes());
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
    request
}

fn check_outgoing(request: &StrictRequest, ids: &BTreeSet<String>, source: &str) -> Result<()> {
    let segments: Vec<&str> = request.target.split('/').collect();
    let ["", "in", from, event_type, tenant, "end"] = segments[..] else {
        anyhow::bail!("the path was left");
    };
    ensure!(from == source.replace('/', "%2F"), "the path was left");
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
        ensure!(one("ce-id") == id && one("ce-source") == source && one("ce-specversion") == "1.0", "attributes");
        let printable = |(name, value): &(String, Vec<u8>)| !name.starts_with("ce-") || value.is_ascii();
        ensure!(request.headers.iter().all(printable), "an attribute that is not encoded");
    }
    if one("content-type").starts_with("application/cloudevents+json") {
        let event: serde_json::Value = serde_json::from_slice(&request.body).context("the body is no JSON")?;
        ensure!(event["id"] == id.as_str() && event["source"] == source, "attributes: {event}");
    }
    Ok(())
}

/// T7: where events go is said by the configuration and by nothing else: not by a URL of another kind,
/// not by a proxy in the environment, not by anything in a webhook, not by a redirect.
pub(crate) async fn destinations_come_from_the_configuration_only(_: Trial) -> Result<Outcome> {
    let names = ["BRAIN_GATEWAY_URL", "SIDECAR_GATEWAY__OAUTH__TOKEN_URL"];
    let mut cases = wrong_urls_are_refused(&Rig::new(Mode::Hmac, &[]).await?, &names).await?;
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let canary = lure(&mut rig).await?;
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

/// Proxies in the environment of the daemon that nobody has configured; they notice whoever comes.
pub(crate) async fn lure(rig: &mut Rig) -> Result<ChaosProxy> {
    let canary = ChaosProxy::start(rig.gateway.addr()).await?;
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        rig.set(name, &canary.url());
    }
    rig.set("NO_PROXY", "");
    Ok(canary)
}

/// No URL of another kind is taken for any of these variables; how many were tried.
pub(crate) async fn wrong_urls_are_refused(rig: &Rig, names: &[&str]) -> Result<u64> {
    let mut cases = 0;
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
        for name in names {
            // Only the gateway's must be there.
            if url.is_empty() && *name != "BRAIN_GATEWAY_URL" {
                continue;
            }
            let oauth = ["ID", "SECRET"].map(|what| (format!("SIDECAR_GATEWAY__OAUTH__CLIENT_{what}"), "x".to_owned()));
            let mut process = rig.command()?.envs(oauth).env(*name, url).spawn()?;
            let exit = process.wait(REQUEST_DEADLINE).await.with_context(|| format!("{name}={url:?} is taken"))?;
            let said = process.stderr();
            ensure!(exit.code == Some(78), "{name}={url:?}: {exit}: {said}");
            ensure!(said.lines().count() == 1 && said.contains(name), "{name}={url:?}: {said}");
            ensure!(!said.contains("secret"), "{name}={url:?}: a secret is shown: {said}");
            cases += 1;
        }
    }
    Ok(cases)
}
