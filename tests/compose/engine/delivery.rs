//! From an empty host to delivered webhooks, by the path that the README tells.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::api::LagoApi;
use kit_lago::management::Kind;
use kit_workbench::broker::Broker;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::load::{self, LagoWebhooks, LoadControl, LoadOptions, Pool, Signing};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::REQUEST_DEADLINE;
use outrigger_tests::rig::amqp::{QUEUE, compare};
use serde_json::json;

use crate::engine::{HOST, engine, try_run};
use crate::site::{PROCESSOR, SUBSCRIPTIONS, Site, TRACKER};

/// As in `.env.example`.
pub(crate) const BROKER_URL: &str = "amqp://outrigger@rabbitmq:5672/%2F";
const WEBHOOKS: u64 = 500;
/// A configuration file of an operator's own.
const QUEUES: &str = "[amqp.queues]\nall = [\"lago.#\"]\n";
/// Usage events in one run.
const USAGE: u64 = 300;

/// A broker that containers reach, with the user of `.env.example`.
pub(crate) async fn broker(site: &Site) -> Result<Broker> {
    let broker = Broker::start_with(&[format!("listeners.tcp.2 = {HOST}:5672")]).await?;
    broker.ctl(&["add_user", "outrigger", &site.secret("rabbitmq-password")?]).await?;
    broker.ctl(&["set_permissions", "outrigger", ".*", ".*", ".*"]).await?;
    Ok(broker)
}

/// An installation that publishes to RabbitMQ as well.
pub(crate) fn publishing(engine: &'static crate::engine::Engine) -> Result<Site> {
    let settings = [
        ("SIDECAR_HEALTH_INTERVAL", "10s"),
        ("AMQP_URL", BROKER_URL),
        ("AMQP_PASSWORD_FILE", "/run/secrets/rabbitmq-password"),
        ("LAGO_WEBHOOK_PROCESSOR_CONFIG", "./webhooks.toml"),
    ];
    let site = Site::new(engine, &settings)?;
    std::fs::write(site.file("webhooks.toml"), QUEUES)?;
    Ok(site)
}

/// Sends so many webhooks, each until it is taken.
pub(crate) async fn send(site: &Site, signing: Signing, count: u64) -> Result<Vec<SentRequest>> {
    let pool = Arc::new(Pool::lago(&LagoWebhooks::new("default", signing))?);
    let options = LoadOptions { requests: Some(count), ..site.load() };
    let outcome = load::run(options, pool, &LoadControl::new()).await?;
    ensure!(outcome.report.ok == count, "{} of {count} were taken: {:?}", outcome.report.ok, outcome.report.errors);
    Ok(outcome.sent)
}

/// C1: `cp .env.example .env`, `compose/up`, and signed webhooks arrive at the gateway and in RabbitMQ, under a signature
/// that holds; in both algorithms. Forged ones do not.
pub(crate) async fn the_documented_path_delivers_signed_webhooks(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let mut notes = Vec::new();
    for _ in 0..trial.count {
        notes.push(by_token(engine, &trial).await.context("jwt")?);
        notes.push(by_hmac(engine, &trial).await.context("hmac")?);
    }
    Ok(Outcome::new(2 * u64::from(trial.count) * WEBHOOKS, notes.join("; ")))
}

async fn by_token(engine: &'static crate::engine::Engine, trial: &Trial) -> Result<String> {
    let mut site = publishing(engine)?;
    let begin = Instant::now();
    let said = site.up().await?;
    let up = begin.elapsed();
    for service in [PROCESSOR, TRACKER] {
        let line = said.lines().find(|line| line.contains(service) && line.ends_with("running healthy"));
        ensure!(line.is_some(), "compose/up does not say that {service} is healthy:\n{said}");
    }
    secrets_are_kept_from_others(&site)?;
    // Started before there was a gateway, a broker or a Lago.
    let broker = broker(&site).await?;
    site.neighbours().await?;
    site.ready().await?;

    let before = (site.secret("lago-rsa")?, site.sidecar(PROCESSOR).await?.seen["Id"].clone());
    let sent = send(&site, site.jwt()?, WEBHOOKS).await?;
    refused(&site).await?;
    let said = site.up().await?;
    ensure!(!said.contains("made secrets/"), "a second compose/up makes secrets again:\n{said}");
    let after = (site.secret("lago-rsa")?, site.sidecar(PROCESSOR).await?.seen["Id"].clone());
    ensure!(before == after, "a second compose/up changes what is there");

    site.drained().await?;
    let mut found = Found::new();
    Client::connect(&broker).await?.drain(QUEUE, &mut found).await?;
    ensure!(compare(&sent, &found)? == 0, "RabbitMQ has some more than once");
    let mut ledger = Ledger::new();
    ledger.extend_sent(sent);
    let report = site.settle(ledger, &format!("C1-{}", trial.seed)).await?;
    ensure!(report.redelivered == 0, "{} were delivered again", report.redelivered);
    site.remove().await?;
    Ok(format!(
        "healthy {:.1} s after compose/up, jwt: {} delivered, {} in RabbitMQ",
        up.as_secs_f64(),
        report.delivered_unique,
        found.len()
    ))
}

async fn by_hmac(engine: &'static crate::engine::Engine, trial: &Trial) -> Result<String> {
    let key = uuid::Uuid::new_v4().to_string();
    let mut site = Site::new(engine, &[("LAGO_WEBHOOK_SIGNATURE", "hmac")])?;
    // As the operator copies it from Lago.
    let file = site.file("secrets/lago-hmac-key");
    std::fs::write(&file, format!("{key}\n"))?;
    // With a strict umask, which no container could read.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
    site.up().await?;
    site.neighbours().await?;
    site.ready().await?;
    let mut ledger = Ledger::new();
    ledger.extend_sent(send(&site, Signing::Hmac(Secret::from(key)), WEBHOOKS).await?);
    refused(&site).await?;
    let report = site.settle(ledger, &format!("C1-{}", trial.seed)).await?;
    site.remove().await?;
    Ok(format!("hmac: {} delivered", report.delivered_unique))
}

/// Only the owner of the folder gets at them; the mode of each is what the container's user needs.
fn secrets_are_kept_from_others(site: &Site) -> Result<()> {
    let mode = |name: &str| -> Result<u32> { Ok(std::fs::metadata(site.file(name))?.permissions().mode() & 0o777) };
    ensure!(mode("secrets")? == 0o700, "compose/secrets has the mode {:o}", mode("secrets")?);
    ensure!(mode("secrets/lago-rsa")? == 0o644, "secrets/lago-rsa has the mode {:o}", mode("secrets/lago-rsa")?);
    Ok(())
}

/// A webhook that nobody has signed.
async fn refused(site: &Site) -> Result<()> {
    let headers = [("X-Lago-Unique-Key", "forged"), ("X-Lago-Signature", "AAAA")];
    let answer =
        raw::request(site.target().address, "POST", "/webhooks/lago", &headers, b"{}", REQUEST_DEADLINE).await?;
    ensure!(answer.status == 401, "a forged webhook is answered {}", answer.status);
    Ok(())
}

/// C1: producers report to the container as they would to Lago, and Lago has each event once.
pub(crate) async fn usage_in_a_container_reaches_lago_once(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let mut total = 0;
    for _ in 0..trial.count {
        let site = Site::started(engine, &[]).await?;
        for n in 0..USAGE {
            report_usage(&site, &format!("t-{n}"), n).await?;
        }
        // A producer that has seen no answer comes again.
        for n in (0..USAGE).step_by(3) {
            report_usage(&site, &format!("t-{n}"), n).await?;
        }
        billed(&site, USAGE).await?;
        total += USAGE;
        site.remove().await?;
    }
    Ok(Outcome::new(total, "each billed once"))
}

/// C1: what docs/compose tells an operator to type: a webhook is sent, delivered and listed by the command line's image.
pub(crate) async fn the_command_line_sends_and_sees_the_first_webhook(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::started(engine, &[]).await?;
    let key = format!("{}:/lago-rsa:ro", site.file("secrets/lago-rsa").display());
    let url = "http://lago-webhook-processor:8081/webhooks/lago";
    let words = ["run", "--rm", "-T", "-v", &key, "outrigger", "send", "--url", url, "--rsa-key-file", "/lago-rsa"];
    site.compose(&words).await?;
    let received = site.gateway()?.wait_for(1, Duration::from_secs(30)).await?;
    ensure!(received[0].signature_ok == Some(true), "it is signed {:?}", received[0].signature_ok);
    site.drained().await?;
    let listed = site.compose(&["run", "--rm", "-T", "outrigger", "events", "list"]).await?;
    ensure!(listed.contains("lago.invoice.created") && listed.contains("delivered"), "it is listed as {listed}");
    // What the doctor wants to see of Lago: an endpoint that leads to the processor.
    let endpoint = json!({ "webhook_url": url, "signature_algo": "jwt" });
    let endpoint = endpoint.as_object().context("an object")?;
    let key = Secret::from(site.secret("lago-api-key")?);
    let api = LagoApi::new(http_client(&ClientOptions::default())?, &format!("http://{HOST}:3000"), &key)?;
    api.create(Kind::WebhookEndpoint, endpoint).await?;
    let said = site.compose(&["run", "--rm", "-T", "outrigger", "doctor"]).await?;
    for part in ["http://lago-usage-tracker:9082", "ok   lago ", "ok   lago-key", "ok   webhook-endpoint"] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    ensure!(
        !said.contains("authentik-server") && !said.contains("redis:6379"),
        "what is not installed is missed: {said}"
    );
    let reconciled = site.compose(&["run", "--rm", "-T", "outrigger", "usage", "reconcile"]).await;
    ensure!(!format!("{reconciled:?}").contains("401"), "usage asks another daemon: {reconciled:?}");
    let metrics = site.compose(&["run", "--rm", "-T", "outrigger", "metrics"]).await?;
    ensure!(metrics.contains("lago_webhooks_refused"), "metrics are {metrics}");
    let tracker = ["--admin", "http://lago-usage-tracker:9082", "--token-file", "/run/secrets/usage-admin-token"];
    site.compose(&[&["run", "--rm", "-T", "outrigger", "doctor"][..], &tracker].concat()).await?;
    site.remove().await?;
    Ok(Outcome::new(1, ""))
}

/// The body of one usage event.
pub(crate) fn usage(transaction: &str, n: u64) -> String {
    format!(
        r#"{{"event":{{"transaction_id":"{transaction}","external_subscription_id":"s-{}","code":"gb","timestamp":{},"properties":{{"gb":{n}}}}}}}"#,
        n % SUBSCRIPTIONS,
        1_790_000_000 + n % 1000
    )
}

/// One event, as a producer reports it.
pub(crate) async fn report_usage(site: &Site, transaction: &str, n: u64) -> Result<()> {
    let body = usage(transaction, n);
    let bearer = format!("Bearer {}", site.secret("usage-producer-token")?);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let address = SocketAddr::from(([127, 0, 0, 1], 8082));
    let answer = raw::request(address, "POST", "/api/v1/events", &headers, body.as_bytes(), REQUEST_DEADLINE).await?;
    ensure!(answer.status == 200, "usage is answered {}: {}", answer.status, answer.text());
    Ok(())
}

/// Waits until Lago has so many events, and checks that it has none twice.
pub(crate) async fn billed(site: &Site, count: u64) -> Result<()> {
    let lago = site.lago()?;
    let begin = Instant::now();
    while (lago.ledger().len() as u64) < count {
        if begin.elapsed() > Duration::from_secs(60) {
            let said = site.sidecar(TRACKER).await?.api("/api/v1/statistics").await?;
            anyhow::bail!("Lago has {} of {count} events: {said}", lago.ledger().len());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut transactions: Vec<String> = lago.ledger().into_iter().map(|event| event.transaction_id).collect();
    transactions.sort_unstable();
    transactions.dedup();
    ensure!(transactions.len() as u64 == count, "Lago has {} events, not {count}", transactions.len());
    ensure!(lago.ledger().len() as u64 == count, "Lago has some twice: {}", lago.ledger().len());
    Ok(())
}

/// C2: whatever is wrong, the one command says it in a line that names the thing and the fix, and does not end with 0.
pub(crate) async fn what_is_wrong_is_told_by_the_one_command(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let check = async |site: &Site, said: crate::engine::Said, words: &[&str]| -> Result<()> {
        ensure!(said.code != Some(0), "compose/up is content: {said:?}");
        for word in words {
            ensure!(said.err.contains(word), "compose/up does not say '{word}': {said:?}");
        }
        site.compose(&["down", "--volumes", "--timeout", "1"]).await.map(drop)
    };
    let site = Site::new(engine, &[])?;
    let environment = std::fs::read(site.file(".env"))?;
    std::fs::remove_file(site.file(".env"))?;
    let said = site.try_up().await?;
    std::fs::write(site.file(".env"), environment)?;
    check(&site, said, &["compose/.env is missing", "cp compose/.env.example compose/.env"]).await?;

    let mut command = engine.command(site.file("up"));
    command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let said = try_run(command).await?;
    ensure!(said.err.lines().count() == 1, "more than a line: {}", said.err);
    check(&site, said, &["no Docker Engine answers"]).await?;

    // The key that only Lago knows was not copied.
    site.set("LAGO_WEBHOOK_SIGNATURE", "hmac")?;
    let said = site.try_up().await?;
    check(&site, said, &["LAGO_WEBHOOK_HMAC_KEY_FILE", "is empty", PROCESSOR]).await?;
    site.set("LAGO_WEBHOOK_SIGNATURE", "jwt")?;

    std::fs::write(site.file("secrets/generated"), "lago-rsa ras\n")?;
    std::fs::remove_file(site.file("secrets/lago-rsa"))?;
    let said = site.try_up().await?;
    check(&site, said, &["lago-rsa", "'ras'", "must be hex32"]).await?;
    site.remove().await?;
    Ok(Outcome::new(4, ""))
}
