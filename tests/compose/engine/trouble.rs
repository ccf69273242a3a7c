//! What the one command says and does where something is in its way.

use anyhow::{Result, ensure};
use outrigger_tests::experiment::{Outcome, Trial};
use serde_json::json;

use crate::engine::{Engine, Said, TAG, engine};
use crate::site::{PROCESSOR, Site, TRACKER};

/// Adds a compose file to an installation that was made.
fn add(site: &Site, file: &str, services: &serde_json::Value) -> Result<()> {
    // JSON is YAML.
    std::fs::write(site.file(file), json!({"version": "3.9", "services": services}).to_string())?;
    site.set("COMPOSE_FILE", &format!("sidecars.yml:standins.yml:{file}"))
}

fn says(said: &Said, code: i32, words: &[&str]) -> Result<()> {
    let all = format!("{}{}", said.out, said.err);
    ensure!(said.code == Some(code), "compose/up ends with {:?}, not {code}: {all}", said.code);
    for word in words {
        ensure!(all.contains(word), "compose/up does not say '{word}': {all}");
    }
    Ok(())
}

async fn id(site: &Site, service: &'static str) -> Result<String> {
    Ok(site.sidecar(service).await?.seen["Id"].to_string())
}

/// C2: one-shots that others wait for, what is left over, what is only slow, what the engine would refuse: each is named with
/// its reason, and what runs is left alone.
pub(crate) async fn trouble_with_others_is_told_and_touches_nothing(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::new(engine, &[])?;
    site.up().await?;
    let before = [id(&site, PROCESSOR).await?, id(&site, TRACKER).await?];
    let image = format!("outrigger/lago-seeder:{TAG}");
    let base = |more: serde_json::Value| {
        let mut service = json!({"image": image, "networks": ["outrigger-internal"], "restart": "no"});
        service.as_object_mut().into_iter().zip(more.as_object()).for_each(|(into, from)| into.extend(from.clone()));
        service
    };

    // A one-shot ends with a reason, and what waits for it is never started.
    let waiting = json!({"depends_on": {"first": {"condition": "service_completed_successfully"}}});
    add(&site, "first.yml", &json!({"first": base(json!({})), "second": base(waiting)}))?;
    says(&site.try_up().await?, 1, &["not healthy", "first", "says:", "LAGO_API_KEY"])?;

    // Its file is taken out: what is left of it is named, and is nobody's failure.
    site.set("COMPOSE_FILE", "sidecars.yml:standins.yml")?;
    says(&site.try_up().await?, 0, &["first_1 is left over", "docker rm"])?;

    // Slow is another word than broken, and another code.
    let slow = json!({"slow": base(json!({
        "entrypoint": ["/usr/bin/outrigger", "listen"], "image": format!("outrigger/outrigger:{TAG}"),
        "healthcheck": {"test": ["CMD", "/usr/bin/outrigger", "--nonsense"], "start_period": "300s", "interval": "1s", "retries": 3},
    }))});
    add(&site, "slow.yml", &slow)?;
    says(&site.try_up().await?, 75, &["still starting", "slow_1", "OUTRIGGER_UP_SECONDS", "run compose/up again"])?;

    add(&site, "greedy.yml", &json!({"greedy": base(json!({"cpus": 1000}))}))?;
    says(&site.try_up().await?, 1, &["NEIGHBOUR_CPUS=1000", "processors of this host"])?;
    site.set("COMPOSE_FILE", "managed.yml:sidecars.yml:standins.yml")?;
    std::fs::write(site.file("managed.yml"), json!({"version": "3.9"}).to_string())?;
    says(&site.try_up().await?, 1, &["set POSTGRES_HOST and REDIS_HOST"])?;
    site.set("POSTGRES_HOST", "db.example.com")?;
    site.set("REDIS_HOST", "redis.example.com")?;
    says(&site.try_up().await?, 1, &["POSTGRES_SSLMODE=prefer"])?;
    // A managed Redis with TLS, said in one place only, or of one that has none.
    site.set("POSTGRES_SSLMODE", "require")?;
    site.set("REDIS_SCHEME", "tls")?;
    says(&site.try_up().await?, 1, &["REDIS_SCHEME=tls", "redis, or rediss"])?;
    site.set("REDIS_SCHEME", "rediss")?;
    for (file, words) in [("authentik.yml", "AUTHENTIK_REDIS_TLS=false"), ("infrastructure.yml", "speaks no TLS")] {
        std::fs::write(site.file(file), json!({"version": "3.9"}).to_string())?;
        site.set("COMPOSE_FILE", &format!("managed.yml:{file}:sidecars.yml:standins.yml"))?;
        says(&site.try_up().await?, 1, &["REDIS_SCHEME=rediss", words])?;
    }
    site.set("REDIS_SCHEME", "redis")?;
    site.set("COMPOSE_FILE", "sidecars.yml:standins.yml")?;

    // A checkout with a strict umask.
    mode(&site.file("sidecars.toml"), 0o600)?;
    says(&site.try_up().await?, 1, &["sidecars.toml cannot be read in containers", "chmod -R o+rX"])?;
    mode(&site.file("sidecars.toml"), 0o644)?;

    // Forms of .env that compose reads and scripts do not all read alike: never taken for an add-on that is off.
    let both = format!("{PROCESSOR},{TRACKER}");
    let environment = std::fs::read_to_string(site.file(".env"))?;
    let line = format!("COMPOSE_PROFILES={both}");
    ensure!(environment.contains(&line), "the line is not there");
    for wrong in [
        format!("{line}   # both"),
        format!("{line}\r"),
        format!("export {line}"),
        format!("COMPOSE_PROFILES=\"{PROCESSOR}, {TRACKER}\""),
    ] {
        std::fs::write(site.file(".env"), environment.replace(&line, &wrong))?;
        let said = site.try_up().await?;
        says(&said, 1, &["COMPOSE_PROFILES"])?;
        ensure!(!said.out.contains("stopping"), "{wrong:?}: {said:?}");
    }
    std::fs::write(site.file(".env"), environment.replace(&line, &format!("COMPOSE_PROFILES=\"{both}\"")))?;
    site.up().await?;
    ensure!(before == [id(&site, PROCESSOR).await?, id(&site, TRACKER).await?], "what was up has been made again");
    site.remove().await?;
    Ok(Outcome::new(14, ""))
}

fn mode(path: &std::path::Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// C11: an image that is not on the host is built from here and asked of nobody; with a registry of the operator's own it is
/// pulled from there and never built.
pub(crate) async fn images_are_built_here_or_pulled_from_where_the_operator_says(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::new(engine, &[("COMPOSE_PROFILES", PROCESSOR)])?;
    // In place of the one that builds from source, which takes a toolchain from a registry.
    let from = |name: &str| {
        format!(
            "FROM outrigger/{name}:{TAG} AS {name}\nARG REVISION=unknown\nLABEL built=here revision=\"$REVISION\"\n"
        )
    };
    std::fs::write(site.file("Dockerfile"), from(PROCESSOR) + &from("outrigger"))?;

    site.set("SIDECAR_REGISTRY", "127.0.0.1:9/mine")?;
    let said = site.try_up().await?;
    says(&said, 1, &["pulling 127.0.0.1:9/mine/lago-webhook-processor", "SIDECAR_REGISTRY", "docker login"])?;
    ensure!(!is_there(engine, &format!("127.0.0.1:9/mine/{PROCESSOR}:{TAG}")).await, "it was built all the same");

    site.set("SIDECAR_REGISTRY", "outrigger")?;
    site.set("SIDECAR_TAG", "0.0.9")?;
    let said = site.up().await?;
    ensure!(said.contains("building outrigger/lago-webhook-processor:0.0.9"), "{said}");
    for name in [PROCESSOR, "outrigger"] {
        let labels = engine.inspect(&format!("outrigger/{name}:0.0.9")).await?["Config"]["Labels"].clone();
        ensure!(labels["built"] == "here", "{name} has the labels {labels}");
    }
    ensure!(!is_there(engine, &format!("outrigger/{TRACKER}:0.0.9")).await, "an add-on that is off was built");
    let said = site.up().await?;
    ensure!(!said.contains("building"), "a second compose/up builds again: {said}");
    site.remove().await?;
    Ok(Outcome::new(4, ""))
}

async fn is_there(engine: &Engine, image: &str) -> bool {
    engine.inspect(image).await.is_ok()
}
