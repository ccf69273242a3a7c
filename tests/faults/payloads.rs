//! What a genuine sender may put into a body, what a stranger may put into a target, and what is
//! counted of both.

mod traps;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use kit::secret::Secret;
use kit_lago::signature::sign_hmac;
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::raw::{self, RawConnection, RawError};
use outrigger_tests::api::ask_with_token;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use traps::{fee, traps};

/// T15: JSON that readers stumble over, signed by the sender: each is answered 200 and is one event,
/// its bytes at the gateway are the sender's, in every format; what cannot be read for certain has the
/// type `lago.unknown`; and nothing panics.
pub(crate) async fn every_genuine_body_is_delivered_as_it_is(trial: Trial) -> Result<Outcome> {
    let mut events = 0;
    for round in 0..trial.count {
        for format in ["cloudevents-structured", "cloudevents-binary", "envelope", "raw"] {
            let seed = format!("T15-{round}-{format}-{}", trial.seed);
            events += deliver_traps(format, &seed).await.with_context(|| format.to_owned())?;
        }
    }
    events += tokens_of_traps().await?;
    Ok(Outcome::new(events, format!("{} traps; bytes equal by SHA-256, 0 panics", traps().len())))
}

async fn deliver_traps(format: &str, evidence: &str) -> Result<u64> {
    let rig = Rig::started(Mode::Hmac, &[("SIDECAR_GATEWAY__FORMAT", format)]).await?;
    let key = Secret::from(std::fs::read_to_string(rig.scratch.file("hmac"))?);
    let embedded = matches!(format, "cloudevents-structured" | "envelope");
    let mut ledger = Ledger::new();
    let mut expected = BTreeMap::new();
    for trap in traps().iter().filter(|trap| !(embedded && trap.blanks)) {
        let signature = sign_hmac(&key, &trap.body);
        let name = trap.name.replace(' ', "-");
        let headers = [("X-Lago-Unique-Key", name.as_str()), ("X-Lago-Signature", &signature)];
        let mut sent = SentRequest::begin("default", name.as_str(), "", Digest::of(&trap.body));
        let answer = raw::request(rig.public, "POST", "/webhooks/lago", &headers, &trap.body, REQUEST_DEADLINE).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(answer.status == 200, "{}: answered {} {}", trap.name, answer.status, answer.text());
        let id = sent.event_id.clone().with_context(|| format!("{}: no id", trap.name))?;
        expected.insert(id, (trap.name, trap.event_type));
        ledger.sent(sent);
    }
    rig.drained().await?;
    // The raw format tells no type; the API does.
    for (id, (name, event_type)) in &expected {
        let shown = rig.api(&format!("/api/v1/events/{id}")).await.with_context(|| (*name).to_owned())?;
        let found = shown["type"].as_str().or(shown["event"]["type"].as_str()).unwrap_or_default();
        ensure!(found == *event_type, "{name}: its type is {found}, not {event_type}");
    }
    rig.gateway.with_received(|received| {
        for one in received.iter().filter(|one| one.event_type.is_some() && format != "raw") {
            let (name, event_type) =
                one.event_id.as_ref().and_then(|id| expected.get(id)).context("an unknown event")?;
            ensure!(one.event_type.as_deref() == Some(*event_type), "{name}: delivered as {:?}", one.event_type);
        }
        Ok(())
    })?;
    let types = rig.metrics().await?.series("lago_webhooks_by_type_total").count();
    ensure!(types <= 2, "{types} types were counted, two were sent");
    let report = rig.settle(ledger, evidence).await?;
    ensure!(report.accepted == expected.len() as u64, "{} accepted of {}", report.accepted, expected.len());
    Ok(report.accepted)
}

/// The same within tokens, which hold texts only.
async fn tokens_of_traps() -> Result<u64> {
    let rig = Rig::started(Mode::Jwt, &[("SIDECAR_GATEWAY__FORMAT", "cloudevents-binary")]).await?;
    let mut ledger = Ledger::new();
    let mut events = 0;
    for trap in traps() {
        let Ok(body) = String::from_utf8(trap.body) else { continue };
        let mut sent = SentRequest::begin("default", trap.name, "", Digest::of(body.as_bytes()));
        let answer = rig.post(trap.name, &body).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(answer.status == 200, "{} in a token: {} {}", trap.name, answer.status, answer.text());
        ledger.sent(sent);
        events += 1;
    }
    let report = rig.settle(ledger, "T15-tokens").await?;
    ensure!(report.accepted == events, "{} accepted of {events}", report.accepted);
    Ok(events)
}

/// Targets that are not the intake's path, however much they look like it.
const TARGETS: [&str; 50] = [
    "/",
    "/webhooks",
    "/webhooks/",
    "/webhooks/lago/",
    "/webhooks//lago",
    "//webhooks/lago",
    "///webhooks/lago",
    "/webhooks/lago//",
    "/webhooks/lago/default/",
    "/webhooks/lago/default/more",
    "/webhooks/lago/./default",
    "/./webhooks/lago",
    "/webhooks/./lago",
    "/webhooks/x/../lago",
    "/../webhooks/lago",
    "/webhooks/lago/../lago",
    "/webhooks/lago/..",
    "/webhooks/lago/.",
    "/webhooks/lago/..%2flago",
    "/webhooks/..%2fwebhooks/lago",
    "/%2e%2e/webhooks/lago",
    "/webhooks/%2e/lago",
    "/webhooks%2flago",
    "/webhooks%2Flago",
    "/webhooks/lago%2fdefault",
    "/webhooks/lag%6f",
    "/webhooks/%6cago",
    "/webhooks/%256cago",
    "/webhooks/lago%00",
    "/webhooks/lago%00.html",
    "/webhooks/lago%20",
    "/webhooks/lago%0a",
    "/webhooks/lago%0d%0aX:%20y",
    "/webhooks/lago%3fx",
    "/webhooks/lago%23",
    "/webhooks/lago;x=1",
    "/webhooks;x/lago",
    "/webhooks/lago/%",
    "/webhooks/lago/%zz",
    "/webhooks/lago/%ff",
    "/webhooks/lago/%c0%af",
    "/Webhooks/lago",
    "/webhooks/Lago",
    "/WEBHOOKS/LAGO",
    "/webhooks\\lago",
    "/webhooks/lago\\..",
    "/webhook/lago",
    "/webhooks/lago.json",
    "/api/v1/events",
    "/metrics",
];

/// Targets of other forms, and what is no target at all.
const FORMS: [&str; 16] = [
    "http://daemon/webhooks/lago",
    "HTTP://daemon/webhooks/lago",
    "https://daemon/webhooks/lago",
    "http://user:word@daemon/webhooks/lago",
    "http://other:80/webhooks/lago",
    "file:///webhooks/lago",
    "daemon:80",
    "*",
    "webhooks/lago",
    "webhooks",
    "?",
    "/webhooks/lago#part",
    "/webhooks/lago /webhooks/lago",
    "/webhooks/\tlago",
    "/webhooks/lago\u{a0}",
    "",
];

/// Methods of which none takes a webhook.
const METHODS: [&str; 17] = [
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "post",
    "Post",
    "PROPFIND",
    "POSTX",
    "PRI",
    "POST\u{a0}",
    "M-SEARCH",
    "PO ST",
    "",
];

/// T16: no path but the plain one is the intake: encoded, doubled, dotted, absolute or in another
/// case, with a right signature, it is 404 (or 400 where it is no HTTP, 405 for other methods), and no
/// event.
pub(crate) async fn no_odd_path_or_method_is_the_intake(trial: Trial) -> Result<Outcome> {
    let acme = format!("canary-acme-{}", uuid::Uuid::new_v4());
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let file = rig.scratch.write("acme", &acme)?;
    // With and without a name in the path, so that every shape of route is there.
    rig.set("SIDECAR_LAGO__ORGANIZATIONS__ACME__HMAC_KEY_FILE", &file.display().to_string());
    rig.start().await?;
    let body = r#"{"webhook_type":"fee.created"}"#;
    let (own, named) = (rig.sign(body)?, sign_hmac(&Secret::from(acme), body.as_bytes()));
    let request = |method: &str, target: &str, signature: &str, more: &str| {
        format!(
            "{method} {target} HTTP/1.1\r\nHost: daemon\r\nX-Lago-Signature: {signature}\r\nX-Lago-Unique-Key: k\r\n\
             {more}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut asked = 0_u64;
    for _ in 0..trial.count {
        for target in TARGETS.into_iter().chain(FORMS) {
            for (target, signature) in [(target.to_owned(), &own), (target.replacen("/lago", "/lago/acme", 1), &named)]
            {
                // An unknown organisation has a route of its own: there the signature decides.
                let status = status_of(&rig, &request("POST", &target, signature, "")).await?;
                let plain = TARGETS.contains(&target.as_str())
                    || target.starts_with('/') && !target.contains([' ', '#', '\t', '\u{a0}']);
                let expected: &[u16] = if plain { &[404] } else { &[400, 404] };
                let unknown = target
                    .strip_prefix("/webhooks/lago/")
                    .is_some_and(|name| !name.contains(['/', '%', '\\']) && !name.is_empty() && !name.contains(".."));
                ensure!(expected.contains(&status) || unknown && status == 401, "{target:?} is answered {status}");
                asked += 1;
            }
        }
        for method in METHODS {
            for target in ["/webhooks/lago", "/webhooks/lago/acme"] {
                let signature = if target.ends_with("acme") { &named } else { &own };
                for more in
                    ["", "X-HTTP-Method-Override: POST\r\nX-HTTP-Method: POST\r\nX-Original-URL: /webhooks/lago\r\n"]
                {
                    let status = status_of(&rig, &request(method, target, signature, more)).await?;
                    ensure!(matches!(status, 400 | 404 | 405), "{method:?} {target} is answered {status}");
                    asked += 1;
                }
            }
        }
    }
    let refused = rig.taken().await?;
    ensure!(refused == 0, "{refused} webhooks were taken at odd paths");
    ensure!(rig.api("/api/v1/statistics").await?["accepted"] == 0, "something was stored");
    // And the plain ones are what they should be, a query included, which means nothing here.
    for (target, signature) in
        [("/webhooks/lago", &own), ("/webhooks/lago?x=%2f..", &own), ("/webhooks/lago/acme", &named)]
    {
        let status = status_of(&rig, &request("POST", target, signature, "")).await?;
        ensure!(status == 200, "{target} is answered {status}");
    }
    ensure!(rig.taken().await? == 2, "one event for each organisation");
    Ok(Outcome::new(asked, "400, 404 or 405; 0 taken"))
}

/// The status of the answer, whatever else came; a HEAD has no body to wait for.
async fn status_of(rig: &Rig, request: &str) -> Result<u16> {
    match raw::exchange(rig.public, request.as_bytes(), REQUEST_DEADLINE).await {
        Ok(answer) => Ok(answer.status),
        Err(RawError::Closed { received } | RawError::Malformed { received, .. })
            if received.starts_with(b"HTTP/1.1 ") && received.len() > 12 =>
        {
            Ok(std::str::from_utf8(&received[9..12])?.parse()?)
        }
        Err(error) => bail!("{request:?}: {error}"),
    }
}

/// Kinds of requests that T25 sends.
const KINDS: u32 = 7;

/// T25: webhooks of types that nobody knows, organisations, paths, methods, keys and headers by the
/// hundred thousand: the metrics have the same series afterwards as before.
pub(crate) async fn no_sender_makes_the_metrics_grow(mut trial: Trial) -> Result<Outcome> {
    const SENDERS: usize = 16;
    let rig = Rig::started(Mode::Hmac, &[]).await?;
    // Everything that is counted is counted once before: series begin with their first event.
    let mut first: Vec<fastrand::Rng> = vec![trial.random.fork()];
    send_random(&rig, first.remove(0), KINDS * 20).await?;
    rig.drained().await?;
    let before = series(&rig).await?;

    let share = trial.count / u32::try_from(SENDERS)?;
    let senders = (0..SENDERS).map(|_| send_random(&rig, trial.random.fork(), share)).collect::<Vec<_>>();
    let sent: u64 = try_join_all(senders).await?.into_iter().sum();
    rig.drained().await?;

    let after = series(&rig).await?;
    let grown: Vec<&String> = after.difference(&before).take(10).collect();
    ensure!(grown.is_empty(), "{} series before, {} after: {grown:?}", before.len(), after.len());
    let rss = rig.rss_bytes()? >> 20;
    Ok(Outcome::new(sent, format!("requests; {} series before and after; {rss} MiB", after.len())))
}

async fn series(rig: &Rig) -> Result<BTreeSet<String>> {
    let metrics = rig.metrics().await?;
    let mut all = BTreeSet::new();
    for name in metrics.names() {
        for (labels, _) in metrics.series(name) {
            all.insert(format!("{name}{labels:?}"));
        }
    }
    Ok(all)
}

/// Sends so many requests over a connection that is opened again whenever the daemon closes it.
async fn send_random(rig: &Rig, mut random: fastrand::Rng, count: u32) -> Result<u64> {
    let mut connection = RawConnection::open(rig.public).await?;
    for nth in 0..count {
        let word: String = (0..random.usize(1..40)).map(|_| random.alphanumeric()).collect();
        let body = match nth % KINDS {
            0 => {
                format!(r#"{{"webhook_type":"{word}.created","object_type":"{word}","{word}":{{"lago_id":"{word}"}}}}"#)
            }
            // A known object of an unknown kind, with a status of its own.
            1 => format!(
                r#"{{"webhook_type":"invoice.payment_status_updated","object_type":"invoice","invoice":{{"payment_status":"{word}"}}}}"#
            ),
            _ => "{}".to_owned(),
        };
        let signature = if nth % KINDS <= 1 { rig.sign(&body)? } else { word.clone() };
        let (method, target) = match nth % KINDS {
            2 => ("POST", format!("/webhooks/lago/{}", word.to_lowercase())),
            3 => ("GET", format!("/{word}/{word}")),
            4 => (word.as_str(), "/webhooks/lago".to_owned()),
            _ => ("POST", "/webhooks/lago".to_owned()),
        };
        let encoding = if nth % KINDS == 5 { format!("Content-Encoding: {word}\r\n") } else { String::new() };
        let key = uuid::Uuid::from_u128(random.u128(..));
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {word}\r\nUser-Agent: {word}\r\nX-{word}: {word}\r\nX-Lago-Unique-Key: {key}\r\n\
             X-Lago-Signature: {signature}\r\nX-Lago-Signature-Algorithm: {word}\r\n{encoding}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = connection.exchange(request.as_bytes(), REQUEST_DEADLINE).await;
        let expected: &[u16] = match nth % KINDS {
            0 | 1 => &[200],
            3 => &[404],
            4 => &[405],
            5 => &[415],
            _ => &[401],
        };
        let answer = answer.with_context(|| format!("{method} {target}"))?;
        ensure!(expected.contains(&answer.status), "{method} {target}: {} {}", answer.status, answer.text());
        if !answer.keep_alive {
            connection = RawConnection::open(rig.public).await?;
        }
    }
    Ok(u64::from(count))
}

/// Bytes that hostile requests are made of, beside random ones.
const PIECES: [&str; 24] = [
    "POST ",
    "GET ",
    "/webhooks/lago",
    "/webhooks/lago/x",
    "/api/v1/events",
    "/api/v1/deliveries?type=",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "\r\n",
    "\r\n\r\n",
    "Host: a\r\n",
    "Content-Length: 10\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Transfer-Encoding: chunked\r\n",
    "ffffffffffffffff\r\n",
    "0\r\n\r\n",
    "X-Lago-Signature: ",
    "eyJhbGciOiJSUzI1NiJ9.e30.AA",
    "X-Lago-Unique-Key: k\r\n",
    "Authorization: Bearer ",
    "Expect: 100-continue\r\n",
    "Connection: upgrade\r\n",
    "{\"webhook_type\":",
    "%00",
];

/// Questions to the admin API that an operator's mistakes could make.
const QUESTIONS: [&str; 22] = [
    "/api/v1/events?limit=0",
    "/api/v1/events?limit=-1",
    "/api/v1/events?limit=99999999999999999999",
    "/api/v1/events?cursor=-9223372036854775808",
    "/api/v1/events?cursor=9223372036854775807",
    "/api/v1/events?cursor=x",
    "/api/v1/events?type=[",
    "/api/v1/events?type={a,{b,{c",
    "/api/v1/events?type=**/**/**/**/**/**",
    "/api/v1/events?type=%ff%fe",
    "/api/v1/events?since=9999-12-31T23:59:59Z",
    "/api/v1/events?since=-009999-01-01T00:00:00Z",
    "/api/v1/events?until=0000-01-01T00:00:00Z",
    "/api/v1/events?state=",
    "/api/v1/events?sink=&state=parked",
    "/api/v1/events?a=b",
    "/api/v1/events/x",
    "/api/v1/events/00000000-0000-0000-0000-000000000000",
    "/api/v1/deliveries?limit=500&cursor=0",
    "/api/v1/audit?cursor=9223372036854775807&limit=500",
    "/api/v1/audit?cursor=-1",
    "/api/v1/sinks",
];

/// Writes of the same kind.
const WRITES: [&str; 16] = [
    "",
    "{",
    "null",
    "[]",
    "{}",
    r#"{"select":{}}"#,
    r#"{"select":null}"#,
    r#"{"select":{"ids":[]}}"#,
    r#"{"select":{"ids":["x"]}}"#,
    r#"{"select":{"state":"parked"},"rate_per_second":1e-308}"#,
    r#"{"select":{"state":"parked"},"rate_per_second":1e308}"#,
    r#"{"select":{"state":"delivered"},"rate_per_second":1e-300}"#,
    r#"{"select":{"state":"parked"},"rate_per_second":-1}"#,
    r#"{"select":{"state":"parked"},"rate_per_second":null}"#,
    r#"{"select":{"state":"parked","sink":"x"},"reason":"x"}"#,
    r#"{"select":{"since":"9999-12-31T23:59:59.999999999Z"},"dry_run":true,"reason":"x"}"#,
];

/// T24: random and hostile bytes to both listeners, and every mistake an operator could make with the
/// API: no handler panics, the daemon lives, answers a webhook afterwards and ends with 0.
pub(crate) async fn nothing_from_outside_makes_a_panic(mut trial: Trial) -> Result<Outcome> {
    let mut rig =
        Rig::started(Mode::Jwt, &[("SIDECAR_LISTEN__HEAD_TIMEOUT_SECONDS", "1"), ("LOG_LEVEL", "debug")]).await?;
    for nth in 0..3 {
        let answer = rig.post(&format!("k-{nth}"), &fee(&format!(r#""n":{nth}"#))).await?;
        ensure!(answer.status == 200, "{}", answer.status);
    }
    let right = rig.sign("{}")?;
    let mut asked = 0_u64;
    for _ in 0..trial.count / 32 {
        let requests: Vec<(bool, Vec<u8>)> = (0..32)
            .map(|_| {
                let mut bytes = Vec::new();
                for _ in 0..trial.random.usize(1..12) {
                    match trial.random.u8(..8) {
                        0 => bytes.extend((0..trial.random.usize(..40)).map(|_| trial.random.u8(..))),
                        1 => bytes.extend_from_slice(right.as_bytes()),
                        2 => bytes.extend(std::iter::repeat_n(b'A', trial.random.usize(..20_000))),
                        _ => bytes.extend_from_slice(PIECES[trial.random.usize(..PIECES.len())].as_bytes()),
                    }
                }
                (trial.random.bool(), bytes)
            })
            .collect();
        let addresses = [rig.public, rig.admin];
        let sending = requests.iter().map(|(admin, bytes)| async move {
            let mut connection = RawConnection::open(addresses[usize::from(*admin)]).await?;
            // Whatever is answered, or nothing: what counts is that the daemon lives.
            let _ = connection.send(bytes).await;
            let _ = connection.half_close().await;
            let _ = connection.wait_closed(std::time::Duration::from_secs(10)).await;
            Ok::<(), RawError>(())
        });
        try_join_all(sending).await.context("the daemon takes no connections")?;
        asked += 32;
    }
    for question in QUESTIONS {
        let answer = ask_with_token(&rig, "GET", question, None).await?;
        ensure!(answer.status < 500, "{question}: {} {}", answer.status, answer.text());
        asked += 1;
    }
    for path in ["/api/v1/deliveries/replay", "/api/v1/deliveries/drop", "/api/v1/sinks/x/pause"] {
        for body in WRITES {
            let answer = ask_with_token(&rig, "POST", path, Some(body)).await?;
            ensure!(answer.status < 500, "{path} {body}: {} {}", answer.status, answer.text());
            asked += 1;
        }
    }
    let panics = rig.metrics().await?.sum("http_panics_total", &[]);
    ensure!(panics == 0.0, "{panics} handlers panicked");
    let answer = rig.post("afterwards", &fee(r#""n":4"#)).await?;
    ensure!(answer.status == 200, "afterwards a webhook is answered {}", answer.status);
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "{exit}");
    let log = std::fs::read_to_string(rig.scratch.file("daemon.log"))?;
    if let Some(line) = log.lines().find(|line| line.contains("panic")) {
        bail!("{line}");
    }
    Ok(Outcome::new(asked, "0 panics, exit 0"))
}
