//! The seeder beside the sidecars: it runs once, and what it registers works.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit::client::{ClientOptions, http_client};
use kit::secret::Secret;
use kit_lago::api::LagoApi;
use kit_lago::management::{Kind, Object};
use kit_lago::stand_in::billing::LagoServer;
use outrigger_tests::binaries::SEEDER;
use outrigger_tests::experiment::{Outcome, Trial};
use serde_json::{Value, json};

use crate::engine::{Engine, HOST, engine, run, try_run};
use crate::site::{PROCESSOR, Site, TRACKER};

/// Of `config/lago/catalogue.toml`.
const PLANS: [&str; 5] = ["free", "starter", "growth", "scale", "enterprise"];
/// Longer than `compose/up` takes to look after it has started everything, shorter than it waits for what runs once.
const LATER: Duration = Duration::from_secs(3);
/// How long it may take once Lago is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// The seeder's container, as the engine sees it now.
pub(crate) async fn container(site: &Site) -> Result<Value> {
    site.container(SEEDER).await
}

/// Waits until it has ended, and says with which code.
pub(crate) async fn ended(site: &Site) -> Result<i64> {
    let begin = Instant::now();
    loop {
        let seen = container(site).await?;
        if seen["State"]["Status"] == "exited" {
            return seen["State"]["ExitCode"].as_i64().context("no exit code");
        }
        ensure!(begin.elapsed() < PATIENCE, "it goes on: {}; {}", seen["State"], log(site).await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn log(site: &Site) -> Result<String> {
    let mut command = site.engine.command("docker");
    command.args(["logs", container(site).await?["Name"].as_str().unwrap_or_default().trim_start_matches('/')]);
    let said = try_run(command).await?;
    Ok(said.out + &said.err)
}

/// Everything that Lago has of a kind.
async fn objects(site: &Site, kind: Kind) -> Result<Vec<Object>> {
    let client = http_client(&ClientOptions::default())?;
    let key = Secret::from(site.secret("lago-api-key")?);
    Ok(LagoApi::new(client, &format!("http://{HOST}:3000"), &key)?.objects(kind).await?)
}

/// All of it that a second run could change.
async fn everything(site: &Site) -> Result<Value> {
    let mut all = Vec::new();
    for kind in [Kind::BillableMetric, Kind::Plan, Kind::WebhookEndpoint] {
        all.push(json!(objects(site, kind).await?));
    }
    Ok(Value::from(all))
}

/// C10: the add-on `lago-seeder` runs once beside the others, waits for a Lago that comes later, ends with 0, and Lago has
/// the catalogue. What it has registered takes a signed webhook. Started again it changes nothing.
pub(crate) async fn the_seeder_runs_once_and_what_it_registers_works(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let mut slowest = Duration::ZERO;
    for _ in 0..trial.count {
        slowest = slowest.max(once(engine).await?);
    }
    Ok(Outcome::new(trial.count, format!("ended {:.1} s after Lago came, at most", slowest.as_secs_f64())))
}

async fn once(engine: &'static Engine) -> Result<Duration> {
    let profiles = format!("{PROCESSOR},{TRACKER},{SEEDER}");
    let mut site = Site::new(engine, &[("COMPOSE_PROFILES", &profiles)])?;
    // There is no Lago yet: that is no failure, for `compose/up` either.
    let said = site.up().await?;
    ensure!(said.lines().any(|line| line.contains(SEEDER) && line.contains("running")), "compose/up says\n{said}");
    locked_in(&container(&site).await?)?;

    let begin = Instant::now();
    site.neighbours().await?;
    let code = ended(&site).await?;
    let took = begin.elapsed();
    ensure!(code == 0, "it ends with {code}: {}", log(&site).await?);
    let plans = objects(&site, Kind::Plan).await?;
    let has = |plan: &str| plans.iter().any(|one| one.get("code").and_then(Value::as_str) == Some(plan));
    ensure!(PLANS.into_iter().all(has), "Lago has the plans {plans:?}");
    let endpoints = objects(&site, Kind::WebhookEndpoint).await?;
    let [endpoint] = &endpoints[..] else { anyhow::bail!("Lago has the endpoints {endpoints:?}") };
    ensure!(endpoint.get("signature_algo") == Some(&json!("jwt")), "it is registered as {endpoint:?}");
    let url = endpoint.get("webhook_url").and_then(Value::as_str).context("no address")?;

    // From within, at the address that is registered and signed as it is registered.
    site.ready().await?;
    let key = format!("{}:/lago-rsa:ro", site.file("secrets/lago-rsa").display());
    site.compose(&["run", "--rm", "-T", "-v", &key, "outrigger", "send", "--url", url, "--rsa-key-file", "/lago-rsa"])
        .await
        .context("the processor does not take a webhook at the registered address")?;
    let received = site.gateway()?.wait_for(1, Duration::from_secs(30)).await?;
    ensure!(received[0].signature_ok == Some(true), "it is delivered unsigned");

    let before = everything(&site).await?;
    let said = site.up().await?;
    ensure!(ended(&site).await? == 0, "the second time it ends with {}", ended(&site).await?);
    ensure!(said.lines().any(|line| line.contains(SEEDER)), "compose/up does not say what became of it:\n{said}");
    ensure!(everything(&site).await? == before, "the second time it changes something");

    // A mistake that does not go away is told by the one command, also where it takes some seconds to show.
    site.stop_lago().await;
    let mut rewrite = engine.command("sh");
    rewrite.args(["-c", "printf wrong >\"$1\"", "sh"]).arg(site.file("secrets/lago-api-key"));
    run(rewrite).await?;
    let (said, lago) = tokio::join!(site.try_up(), lago_after_the_start(&site));
    let said = said?;
    site.put_lago(lago?);
    ensure!(said.code == Some(1) && said.err.contains(SEEDER), "compose/up is content with a wrong key: {said:?}");
    ensure!(ended(&site).await? == 78, "with a wrong key it ends with {}", ended(&site).await?);
    let log = log(&site).await?;
    ensure!(!log.contains("wrong\""), "its log holds the key: {log}");
    site.remove().await?;
    Ok(took)
}

/// Lago, some seconds after the seeder has been started again.
async fn lago_after_the_start(site: &Site) -> Result<LagoServer> {
    let begin = Instant::now();
    while container(site).await?["State"]["Status"] != "running" {
        ensure!(begin.elapsed() < PATIENCE, "compose/up does not start the seeder again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    site.lago_later(LATER).await
}

/// As the other sidecars, and it is not started again by the engine.
fn locked_in(seen: &Value) -> Result<()> {
    let host = &seen["HostConfig"];
    ensure!(host["RestartPolicy"]["Name"] == "no", "its restart policy is {}", host["RestartPolicy"]);
    ensure!(seen["Config"]["User"] == "65532:65532", "it runs as {}", seen["Config"]["User"]);
    ensure!(host["ReadonlyRootfs"] == true && host["CapDrop"] == json!(["ALL"]), "it is not locked in: {host}");
    let mounts = seen["Mounts"].as_array().context("no mounts")?;
    let writable: Vec<&Value> = mounts.iter().filter(|mount| mount["RW"] == true).collect();
    ensure!(writable.is_empty(), "it can write {writable:?}");
    let environment = seen["Config"]["Env"].to_string();
    ensure!(!environment.contains("LAGO_API_KEY="), "its key is in the environment: {environment}");
    Ok(())
}
