//! What comes out of the daemon beside deliveries: nothing that a sender could forge a line with, and
//! no secret.

mod memory;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit::secret::Secret;
use kit_lago::sample::{Shape, sample};
use kit_lago::signature::{RsaSigner, sign_jwt};
use kit_lago::stand_in::PublicKeyServer;
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::{Expectations, Invariant, Ledger};
use kit_workbench::process::DaemonCommand;
use kit_workbench::raw;
use outrigger_tests::api::{self, Route, ask, ask_with_token};
use outrigger_tests::binaries;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, ISSUER, Mode, REQUEST_DEADLINE, Rig, forwarder};
use serde_json::json;

/// One value of a log line, decoded, and the whole line, escapes included.
const VALUE_LIMIT: usize = 8 * 1024;
const LINE_LIMIT: usize = 128 * 1024;

/// Marks of what must not be seen in a log, by where it was put.
const BODY_MARK: &str = "mark-of-a-body-7f3a";
const HEADER_MARK: &str = "mark-of-a-header-7f3a";
const PATH_MARK: &str = "mark-of-a-path-7f3a";
const ANSWER_MARK: &str = "mark-of-an-answer-7f3a";
/// A line that somebody would like to see in the log.
const FORGED: &str = r#"{"timestamp":"2026-01-01T00:00:00.000Z","level":"ERROR","message":"forged","logger":"x"}"#;

/// What a line of a log must not be broken by.
fn nasty(mark: &str) -> Vec<String> {
    vec![
        format!("{mark}\n{FORGED}\n"),
        format!("{mark}\r\n{FORGED}\r\n"),
        format!("{mark}\u{1b}[2J\u{1b}[31m\u{1b}]0;title\u{7}"),
        format!("{mark}\u{202e}\u{2066}desrever\u{2069}\u{200f}\u{61c}"),
        format!("{mark}\u{0}\u{8}\u{7f}\u{9b}31m\u{85}\u{2028}\u{2029}"),
        format!("{mark}\",\"level\":\"ERROR\",\"message\":\"forged"),
        format!("{mark}%n%s${{jndi:ldap://x}}\u{feff}\u{fffd}\u{10ffff}"),
        mark.to_owned() + &"A".repeat(1 << 20),
        mark.to_owned() + &"\u{1b}\n".repeat(1 << 19),
    ]
}

/// Every field that a tenant can fill, with the same text.
fn body(text: &str, seq: usize) -> String {
    json!({
        "webhook_type": text, "object_type": "customer", "organization_id": text, "seq": seq,
        "customer": {"lago_id": text, "external_id": text, "name": text, "created_at": text, text: text},
        text: text,
    })
    .to_string()
}

/// One log line: a JSON object with the four fields, short enough, and nothing in it that a terminal
/// or another reader would act upon.
fn judge_line(line: &str) -> Result<serde_json::Value> {
    ensure!(line.len() <= LINE_LIMIT, "a line of {} bytes", line.len());
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || c == '\u{feff}'
    };
    if let Some(found) = line.chars().find(|c| acts(*c)) {
        bail!("holds U+{:04X}", u32::from(found));
    }
    let value: serde_json::Value = serde_json::from_str(line).context("is no JSON")?;
    let fields = value.as_object().context("is no object")?;
    for name in ["timestamp", "level", "message", "logger"] {
        ensure!(fields.get(name).is_some_and(serde_json::Value::is_string), "has no {name}");
    }
    // A name twice would let two readers read two things.
    let names = line.matches("\"level\":").count() + line.matches("\"message\":").count();
    ensure!(names == 2, "has a field twice");
    for (name, field) in fields {
        let length = field.as_str().map_or(0, str::len);
        ensure!(length <= VALUE_LIMIT, "its {name} has {length} bytes");
    }
    ensure!(fields["message"] != "forged", "was forged");
    Ok(value)
}

/// T10: line breaks, escape sequences, reversed text and megabytes in every field that a tenant, a
/// stranger, the gateway or an operator fills: each log line is one JSON object of bounded size, none
/// is forged, and no body, header, path or answer is in them, at the most talkative level.
pub(crate) async fn no_text_from_outside_forges_or_floods_the_log(trial: Trial) -> Result<Outcome> {
    let settings =
        [("SIDECAR_LAGO__BODY_LIMIT_BYTES", "67108864"), ("SIDECAR_LISTEN__MEMORY_BUDGET_BYTES", "134217728")];
    none_forges_or_floods(trial, Rig::new(Mode::Hmac, &settings).await?).await
}

/// The same for any daemon that takes webhooks, not started yet, with room for large bodies.
pub(crate) async fn none_forges_or_floods(trial: Trial, mut rig: Rig) -> Result<Outcome> {
    // The judge sees what it should.
    for bad in [
        "plain text",
        FORGED,
        r#"{"timestamp":"","level":"INFO","message":"m"}"#,
        "{\"timestamp\":\"\",\"level\":\"INFO\",\"message\":\"\u{202e}\",\"logger\":\"\"}",
        r#"{"timestamp":"","level":"INFO","message":"m","logger":"","level":"INFO"}"#,
    ] {
        ensure!(judge_line(bad).is_err(), "the judge lets {bad:?} pass");
    }
    rig.set("LOG_LEVEL", "trace");
    rig.set("SIDECAR_GATEWAY__PATH", "/hook/{tenant}/{type}");
    rig.start().await?;
    let mut sent = 0_u64;
    for _ in 0..trial.count {
        sent += fill_every_field(&rig).await?;
    }
    rig.drained().await?;
    rig.stop().await?;

    let log = std::fs::read(rig.scratch.file("daemon.log"))?;
    let log = String::from_utf8(log).context("the log is no UTF-8")?;
    for mark in [BODY_MARK, HEADER_MARK, PATH_MARK, ANSWER_MARK, "QUFBQUFBQUFB"] {
        if let Some(line) = log.lines().find(|line| line.contains(mark)) {
            bail!("{mark} is in the log: {}", line.chars().take(400).collect::<String>());
        }
    }
    ensure!(!log.contains("panic"), "it panicked: {}", log.lines().find(|l| l.contains("panic")).unwrap_or_default());
    let mut longest = 0;
    for line in log.lines() {
        let shown: String = line.chars().take(300).collect();
        judge_line(line).with_context(|| format!("{shown:?}"))?;
        longest = longest.max(line.len());
    }
    let lines = log.lines().count();
    Ok(Outcome::new(sent, format!("requests; {lines} lines at level trace, the longest {longest} bytes")))
}

/// Sends every nasty text everywhere; returns how many requests that were.
async fn fill_every_field(rig: &Rig) -> Result<u64> {
    let mut sent = 0;
    let answers: Vec<Behaviour> = nasty(ANSWER_MARK)
        .into_iter()
        .map(|text| Behaviour::Status(422, vec![("x-mark".to_owned(), ANSWER_MARK.to_owned())], text.into_bytes()))
        .collect();
    rig.gateway.set_behaviour(Behaviour::Script(answers));
    for (nth, text) in nasty(BODY_MARK).iter().enumerate() {
        let (key, body) = (format!("{HEADER_MARK}-{sent}"), body(text, nth));
        let answer = rig.post(&key, &body).await?;
        ensure!(answer.status == 200, "text {nth}: {} {}", answer.status, answer.text());
        if rig.daemon == forwarder::DAEMON {
            let answer = rig.post_event(&forwarder::full_of(&format!("{key}-full"), text)).await?;
            ensure!(answer.status == 200, "text {nth} everywhere: {} {}", answer.status, answer.text());
            sent += 1;
        }
        // The same unsigned, and with the body as the signature.
        let answer = if rig.daemon == forwarder::DAEMON {
            rig.post_envelope(body.as_bytes(), HEADER_MARK).await?
        } else {
            rig.post_signed(HEADER_MARK, &body, HEADER_MARK).await?
        };
        ensure!(answer.status == 401, "unsigned text {nth}: {}", answer.status);
        sent += 2;
    }
    // What no HTTP library sends: bytes in names, values, targets and methods.
    let small = "{}";
    let right = match rig.daemon {
        forwarder::DAEMON => forwarder::signature(rig.webhook_secret(), small.as_bytes()),
        _ => rig.sign(small)?,
    };
    for text in nasty(HEADER_MARK) {
        let text = &text[..text.floor_char_boundary(70_000)];
        for request in [
            format!(
                "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-Lago-Signature: {right}\r\nX-Lago-Unique-Key: {text}\r\nContent-Length: 2\r\n\r\n{small}"
            ),
            format!(
                "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-Lago-Signature: {text}\r\nContent-Length: 2\r\n\r\n{small}"
            ),
            format!(
                "POST /webhooks/lago HTTP/1.1\r\nHost: {text}\r\nUser-Agent: {text}\r\ntraceparent: {text}\r\ntracestate: {text}\r\nX-Forwarded-For: {text}\r\nContent-Type: {text}\r\nContent-Length: {text}\r\n\r\n{small}"
            ),
            format!("POST /webhooks/lago HTTP/1.1\r\nHost: a\r\n{text}: {text}\r\nContent-Length: 2\r\n\r\n{small}"),
            format!("POST /webhooks/lago/{PATH_MARK}{text} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{small}"),
            format!("{PATH_MARK}{text} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{small}"),
        ] {
            // Any answer will do, also none: the log is looked at.
            let _ = raw::exchange(rig.public, rig.as_own(&request).as_bytes(), REQUEST_DEADLINE).await;
            sent += 1;
        }
    }
    for path in ["%0a", "%0d%0a", "%1b%5b31m", "%e2%80%ae", "%00", "%ff"] {
        let path = format!("{}/{PATH_MARK}{path}", rig.path());
        let headers = [("X-Lago-Signature", right.as_str())];
        let answer = raw::request(rig.public, "POST", &path, &headers, b"{}", REQUEST_DEADLINE).await?;
        ensure!(answer.status == 404, "{path}: {}", answer.status);
        let path = format!("/api/v1/sinks/{PATH_MARK}{}/pause", &path[path.len() - 3..]);
        let answer = ask_with_token(rig, "POST", &path, None).await?;
        ensure!(matches!(answer.status, 400 | 404), "{path}: {} {}", answer.status, answer.text());
        sent += 2;
    }
    // An operator's own words may be logged, in one bounded line.
    for text in nasty("operator") {
        for (path, body) in [
            ("/api/v1/deliveries/drop", json!({"select": {"subject": text, "state": "parked"}, "reason": text})),
            ("/api/v1/deliveries/replay", json!({"select": {"tenant": text, "state": "parked"}})),
            ("/api/v1/deliveries/replay", json!({"select": {"type": text, "state": "parked"}})),
            ("/api/v1/deliveries/drop", json!({"select": {"ids": [text]}, "reason": text})),
        ] {
            let answer = ask_with_token(rig, "POST", path, Some(&body.to_string())).await?;
            ensure!(matches!(answer.status, 200 | 400 | 413), "{path}: {}", answer.status);
            sent += 1;
        }
    }
    Ok(sent)
}

/// Everything secret that a daemon is given, each told from the other.
struct Canaries {
    /// Name and text.
    known: Vec<(&'static str, String)>,
}

impl Canaries {
    fn new() -> Self {
        Self { known: Vec::new() }
    }

    fn add(&mut self, name: &'static str) -> String {
        let text = format!("canary-{}-{}", name.replace(' ', "-"), uuid::Uuid::new_v4());
        self.known.push((name, text.clone()));
        text
    }

    /// Searches one artefact for each of them, as text and as Base64.
    fn search(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let found = self.found(name, bytes);
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    }

    fn found(&self, name: &str, bytes: &[u8]) -> Vec<String> {
        let mut ledger = Ledger::new();
        let secrets: Vec<(&str, &[u8])> = self.known.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        ledger.scan_output(name, bytes, &secrets);
        let report = ledger.check(&Expectations::default());
        let found =
            report.violations.iter().filter(|one| one.invariant == Invariant::I9 || one.invariant == Invariant::I10);
        found.map(|one| one.text.clone()).collect()
    }
}

/// The rig of T11: every secret that there is, and neighbours that make the daemon use and mention
/// them. Returns what keeps the neighbours alive.
async fn full_of_secrets(canaries: &mut Canaries, by_file: bool) -> Result<(Rig, RsaSigner, PublicKeyServer)> {
    let mut rig = Rig::new(Mode::Hmac, &[("LOG_LEVEL", "trace")]).await?;
    for (name, file) in [("hmac key", "hmac"), ("admin token", "token"), ("signing secret", "signing")] {
        let text = std::fs::read_to_string(rig.scratch.file(file))?;
        canaries.known.push((name, text));
    }
    let signer = tokio::task::spawn_blocking(RsaSigner::generate).await??;
    let api_key = canaries.add("lago api key");
    let lago = PublicKeyServer::start(signer.public_pem(), Secret::from(api_key.clone())).await?;
    rig.set("LAGO_API_URL", &lago.url());
    rig.set("SIDECAR_LAGO__ORGANIZATIONS__ACME__SIGNATURE", "jwt");
    rig.set("SIDECAR_LAGO__ORGANIZATIONS__ACME__ISSUER", ISSUER);
    rig.set("SIDECAR_GATEWAY__OAUTH__TOKEN_URL", &format!("{}/oauth/token", rig.gateway.url()));
    rig.set("SIDECAR_GATEWAY__OAUTH__CLIENT_ID", "outrigger");
    rig.set("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", "0.1,0.1");
    for (variable, text) in [
        ("LAGO_API_KEY", api_key),
        ("SIDECAR_GATEWAY__OAUTH__CLIENT_SECRET", canaries.add("oauth client secret")),
        ("SIDECAR_GATEWAY__HEADERS__X_API_KEY", canaries.add("gateway api key")),
    ] {
        if by_file {
            let file = rig.scratch.write(variable, &text)?;
            rig.set(&format!("{variable}_FILE"), &file.display().to_string());
        } else {
            rig.set(variable, &text);
        }
    }
    if !by_file {
        for (file, variable) in [
            ("hmac", "LAGO_WEBHOOK_HMAC_KEY"),
            ("token", "SIDECAR_ADMIN__TOKEN"),
            ("signing", "SIDECAR_GATEWAY__SIGNING_SECRET"),
        ] {
            let text = std::fs::read_to_string(rig.scratch.file(file))?;
            rig.set(&format!("{variable}_FILE"), "");
            rig.set(variable, &text);
        }
    }
    let access_token = canaries.add("access token");
    rig.gateway.set_behaviour(Behaviour::by_request(move |head| {
        if head.path == "/oauth/token" {
            return Behaviour::json(&json!({"access_token": access_token, "token_type": "Bearer"}).to_string());
        }
        // Some of everything: taken, refused for its token, failing, parked.
        match head.number % 5 {
            0 => Behaviour::status(401),
            1 => Behaviour::status(500),
            2 => Behaviour::Reset,
            3 => Behaviour::status(400),
            _ => Behaviour::Ok,
        }
    }));
    Ok((rig, signer, lago))
}

/// T11: secrets of every kind, by file and by value, through a busy daemon, and none of them is in its
/// log at the most talkative level, metrics, API, answers, command line, checks of the configuration,
/// text of a panic, or files; no core is written, and its memory is not for other processes.
pub(crate) async fn no_secret_is_in_any_output(trial: Trial) -> Result<Outcome> {
    let mut artefacts = 0;
    for round in 0..trial.count {
        for by_file in [true, false] {
            artefacts += one_life(by_file).await.with_context(|| format!("round {round}, by file: {by_file}"))?;
        }
    }
    artefacts += no_panic_tells_what_it_was_about()?;
    let memory = memory::memory_is_closed().await?;
    Ok(Outcome::new(artefacts, format!("artefacts without a secret; {memory}")))
}

async fn one_life(by_file: bool) -> Result<u64> {
    let mut canaries = Canaries::new();
    let (mut rig, signer, _lago) = full_of_secrets(&mut canaries, by_file).await?;
    let mut artefacts = 0_u64;
    let mut search = |canaries: &Canaries, name: &str, bytes: &[u8]| -> Result<()> {
        artefacts += 1;
        canaries.search(name, bytes)
    };
    // What finds nothing must be able to find: each canary as it is and in a basic credential.
    for (name, text) in &canaries.known {
        use base64::Engine as _;
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("user:{text}"));
        for output in [text.clone(), basic] {
            ensure!(canaries.found("control", output.as_bytes()).len() == 1, "the search does not find the {name}");
        }
    }

    // Asked about its configuration, right and wrong.
    let binary = binaries::daemon(DAEMON)?;
    for (arguments, wrong) in
        [(&["--check-config"][..], false), (&["--print-config-reference"], false), (&["--help"], false), (&[], true)]
    {
        let mut command = DaemonCommand::new(&binary).args(arguments.iter().copied()).envs(rig.environment().to_vec());
        if wrong {
            // Mistakes beside a secret, and where people put secrets by mistake.
            command = command
                .env("SIDECAR_GATEWAY__SIGNING_SECRET", canaries.known[0].1.as_str())
                .env("BRAIN_GATEWAY_URL", format!("http://user:{}@gateway", canaries.known[1].1))
                .env("SIDECAR_LAGO__ORGANIZATIONS", canaries.known[2].1.as_str())
                .env("LAGO_API_URL", format!("http://lago/?key={}", canaries.known[3].1));
        }
        let mut process = command.spawn()?;
        let exit = process.wait(REQUEST_DEADLINE).await?;
        ensure!(exit.code == Some(if wrong { 78 } else { 0 }), "{arguments:?}: {exit}: {}", process.stderr());
        search(&canaries, &format!("{arguments:?}"), (process.stdout() + &process.stderr()).as_bytes())?;
    }

    rig.start().await?;
    let mut bodies = Vec::new();
    for seq in 0..30 {
        let body = sample("invoice.created", &Shape { seq, ..Shape::default() });
        let (signature, path) = match seq % 3 {
            0 => (sign_jwt(&signer, &body, ISSUER)?, "/webhooks/lago/acme"),
            1 => (rig.sign(&body)?, "/webhooks/lago"),
            // Somebody who knows the key and has no idea where it goes.
            _ => (canaries.known[0].1.clone(), "/webhooks/lago"),
        };
        let key = format!("k-{seq}");
        let headers = [("X-Lago-Unique-Key", key.as_str()), ("X-Lago-Signature", &signature)];
        let answer = raw::request(rig.public, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
        ensure!(answer.status == if seq % 3 == 2 { 401 } else { 200 }, "{path}: {}", answer.status);
        search(&canaries, "an answer", &whole(&answer))?;
        bodies.push(body);
    }
    until_settled(&rig).await?;

    let (token, process) = (rig.token.clone(), rig.process()?.pid());
    for name in ["cmdline", "comm", "status"] {
        search(&canaries, name, &std::fs::read(format!("/proc/{process}/{name}"))?)?;
    }
    if by_file {
        search(&canaries, "environ", &std::fs::read(format!("/proc/{process}/environ"))?)?;
    }
    // Every route, with the token where it belongs and where it does not.
    let events = rig.api("/api/v1/events").await?;
    let id = events["events"][0]["id"].as_str().context("an event has an id")?.to_owned();
    for route in api::routes(&rig).await? {
        let path = route.filled("gateway", &id);
        let body = body_for(&route);
        let bare = format!("Basic {token}");
        for (path, authorization) in [
            (path.clone(), Some(format!("Bearer {token}"))),
            (format!("{path}?token={token}"), Some(bare)),
            (format!("{path}?access_token={token}"), None),
            (format!("{path}?nonsense={token}"), Some(format!("Bearer {token}"))),
        ] {
            let answer = ask(&rig, &route.method, &path, authorization.as_deref(), body.as_deref()).await?;
            let bytes = whole(&answer);
            // A question's own words may come back to who asked; here they are the token.
            if answer.status != 400 {
                search(&canaries, &format!("{} {path}", route.method), &bytes)?;
            }
        }
    }
    for path in ["/metrics", "/readyz", "/livez", "/api/v1/openapi.json", "/", "/debug", "/config", "/api/v1/config"] {
        search(&canaries, path, &whole(&ask(&rig, "GET", path, Some(&format!("Bearer {token}")), None).await?))?;
    }
    // While it runs, after it was killed, and after a stop in order.
    search_files(&rig, &mut search, &canaries)?;
    rig.process()?.kill9().await?;
    search_files(&rig, &mut search, &canaries)?;
    rig.start().await?;
    rig.stop().await?;
    search_files(&rig, &mut search, &canaries)?;
    Ok(artefacts)
}

fn body_for(route: &Route) -> Option<String> {
    if !route.writes() {
        return None;
    }
    Some(match route.path.as_str() {
        path if path.ends_with("/replay") => r#"{"select":{"state":"parked"}}"#.to_owned(),
        path if path.ends_with("/drop") => r#"{"select":{"state":"parked"},"reason":"test"}"#.to_owned(),
        _ => String::new(),
    })
}

fn whole(answer: &raw::RawResponse) -> Vec<u8> {
    let mut bytes = answer.body.clone();
    for (name, value) in &answer.headers {
        bytes.extend_from_slice(format!("\n{name}: {value}").as_bytes());
    }
    bytes
}

/// Waits until nothing is pending: everything is delivered or parked.
async fn until_settled(rig: &Rig) -> Result<()> {
    let begin = Instant::now();
    loop {
        let sink = rig.api("/api/v1/statistics").await?["sinks"][0].clone();
        if sink["pending"] == 0 {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(60), "not settled: {sink}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn search_files(
    rig: &Rig,
    search: &mut impl FnMut(&Canaries, &str, &[u8]) -> Result<()>,
    canaries: &Canaries,
) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(rig.scratch.file("state"))? {
        files.push(entry?.path());
    }
    ensure!(files.iter().any(|file| file.ends_with("journal.db")), "the journal is not where it is looked for");
    files.push(rig.scratch.file("daemon.log"));
    for file in files {
        search(canaries, &file.display().to_string(), &std::fs::read(&file)?)?;
    }
    Ok(())
}

/// Name of the variable that makes this very program panic with its value, as a daemon would.
pub(crate) const PANIC_PROBE: &str = "OUTRIGGER_PANIC_PROBE";

/// What the program does when it is asked to: logs as a daemon does, and panics.
pub(crate) fn panic_with(text: &str) {
    kit::telemetry::init_logs(&kit::config::LogSection::default());
    let text = text.to_owned();
    // On a thread, so that the program ends by itself afterwards.
    let _ = std::thread::spawn(move || panic!("about {text}")).join();
}

/// A panic says where and not what: run in a process of its own, because its hook is the process's.
fn no_panic_tells_what_it_was_about() -> Result<u64> {
    let mut canaries = Canaries::new();
    let text = canaries.add("text of a panic");
    let output = std::process::Command::new(std::env::current_exe()?).env(PANIC_PROBE, &text).output()?;
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8(said)?;
    ensure!(said.contains("panic at tests/faults/leaks.rs"), "the panic was not told: {said}");
    ensure!(!said.contains(&text), "the panic tells what it was about: {said}");
    judge_line(said.trim_end()).context("the panic's line")?;
    Ok(1)
}
