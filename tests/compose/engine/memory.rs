//! What the containers cost, idle and under load.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit_workbench::ledger::Ledger;
use kit_workbench::load::{LagoWebhooks, LoadControl, LoadOptions, LoadReport, Pacing, Pool};
use outrigger_tests::experiment::{Outcome, Trial};

use crate::containers::{Accounted, Sidecar};
use crate::delivery::{billed, report_usage, send};
use crate::engine::{Engine, TAG, engine};
use crate::load;
use crate::site::{ALL, PROCESSOR, Site};

const MIB: f64 = 1_048_576.0;
/// What an idle container may cost, as the engine reports it.
const IDLE_LIMIT: u64 = 16 << 20;
const LIMIT: u64 = 128 << 20;
const PER_SECOND: f64 = 500.0;
/// Webhooks of nearly 4 MiB, and how many at the same time.
const LARGE: u64 = 64;
const LARGE_BYTES: usize = 4_100_000;
const LARGE_AT_ONCE: usize = 8;

/// C8: a container that has done a little work and has nothing to do. Its binary was not in the page cache when it
/// started, so that its pages are accounted to it and to nobody before it.
pub(crate) async fn idle_containers_stay_small(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    for daemon in ALL {
        forget_binary(engine, daemon).await?;
    }
    let site =
        Site::started(engine, &[("SIDECAR_HEALTH_INTERVAL", "10s"), ("COMPOSE_PROFILES", &ALL.join(","))]).await?;
    send(&site, site.jwt()?, 200).await?;
    report_usage(&site, "t-idle", 1).await?;
    site.drained().await?;
    billed(&site, 1).await?;
    let (mut notes, mut too_large) = (Vec::new(), Vec::new());
    for service in ALL {
        let sidecar = site.sidecar(service).await?;
        // Two health checks have passed: they are part of being idle.
        let begin = std::time::Instant::now();
        let from = checks(&sidecar).await?;
        while checks(&sidecar).await?.1 == from.1 {
            ensure!(begin.elapsed() < Duration::from_secs(60), "{service} is not asked for its health");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let (reported, kernel) = (sidecar.memory().await?, sidecar.accounted().await?);
        notes.push(format!("{service} {}", shown(reported, kernel)));
        if reported > IDLE_LIMIT {
            too_large.push(service);
        }
    }
    ensure!(too_large.is_empty(), "more than 16 MiB while idle: {}", notes.join(", "));
    site.remove().await?;
    Ok(Outcome::new(notes.len(), notes.join(", ")))
}

/// How many health checks are remembered, and when the last one ended.
async fn checks(sidecar: &Sidecar) -> Result<(usize, String)> {
    let seen = sidecar.look().await?;
    let log = seen["State"]["Health"]["Log"].as_array().cloned().unwrap_or_default();
    Ok((log.len(), log.last().map(|last| last["End"].to_string()).unwrap_or_default()))
}

fn shown(reported: u64, kernel: Accounted) -> String {
    format!(
        "{:.1} MiB as docker stats says ({:.1} with all page cache, {:.1} without any)",
        reported as f64 / MIB,
        kernel.total as f64 / MIB,
        kernel.anonymous as f64 / MIB
    )
}

/// Lets the kernel forget what it has read of the binary in an image.
async fn forget_binary(engine: &Engine, daemon: &str) -> Result<()> {
    let seen = engine.inspect(&format!("outrigger/{daemon}:{TAG}")).await?;
    let data = &seen["GraphDriver"]["Data"];
    let layers = [&data["UpperDir"], &data["LowerDir"]].map(|value| value.as_str().unwrap_or_default().to_owned());
    let layers = layers.join(":");
    let mut files = layers.split(':').map(|layer| PathBuf::from(layer).join("usr/bin").join(daemon));
    let file = files.find(|file| file.is_file()).context("the image has no binary")?;
    let file = std::fs::File::open(file)?;
    rustix::fs::fdatasync(&file)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// The most that was seen of a container.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    reported: u64,
    anonymous: u64,
}

impl Peak {
    async fn look(&mut self, sidecar: &Sidecar) -> Result<()> {
        let kernel = sidecar.accounted().await?;
        ensure!(kernel.kills == 0, "{} processes were killed for want of memory", kernel.kills);
        ensure!(kernel.total <= LIMIT, "{} bytes are accounted", kernel.total);
        self.reported = self.reported.max(sidecar.memory().await?);
        self.anonymous = self.anonymous.max(kernel.anonymous);
        Ok(())
    }
}

impl std::fmt::Display for Peak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.1} MiB as docker stats says, {:.1} without page cache",
            self.reported as f64 / MIB,
            self.anonymous as f64 / MIB
        )
    }
}

/// C8: 500 webhooks a second, and tokens with bodies of 4 MiB, within the container's 128 MiB: nothing is killed, nothing
/// lost. The count is the length of the first part in seconds.
pub(crate) async fn the_limit_holds_under_load_and_with_large_tokens(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::started(engine, &[]).await?;
    let sidecar = site.sidecar(PROCESSOR).await?;
    let mut ledger = Ledger::new();
    let (steady, report) = steadily(&site, &sidecar, PROCESSOR, trial.count, &mut ledger).await?;
    let rate = report.rps;

    let large = LagoWebhooks {
        count: LARGE_AT_ONCE,
        body_bytes: Some(LARGE_BYTES),
        ..LagoWebhooks::new("default", site.jwt()?)
    };
    let pool = Arc::new(tokio::task::spawn_blocking(move || Pool::lago(&large)).await??);
    let options = LoadOptions {
        connections: LARGE_AT_ONCE,
        requests: Some(LARGE),
        keep_alive: false,
        timeout: Duration::from_secs(60),
        ..site.load()
    };
    let (tokens, report) = watched(&sidecar, options, pool, &mut ledger).await?;
    ensure!(report.ok == LARGE && report.body_bytes > LARGE * LARGE_BYTES as u64, "of {LARGE} tokens {report:?}");

    site.drained().await?;
    survived(&sidecar).await?;
    let settled = site.settle(ledger, &format!("C8-{}", trial.seed)).await?;
    site.remove().await?;
    let note = format!("{rate:.0}/s: {steady}; 4 MiB tokens: {tokens}; {} delivered", settled.delivered_unique);
    Ok(Outcome::new(settled.accepted, note))
}

/// C8: the same rate of what each of the others is sent – usage events, webhooks of Authentik, events for a Temporal that is
/// away – within the same memory, one after the other; everything taken is where it belongs. The count is the length of each
/// load in seconds.
pub(crate) async fn the_limit_holds_for_the_others_under_load(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let mut site = Site::new(engine, &[("COMPOSE_PROFILES", &ALL.join(",")), load::WITH_RULES])?;
    load::write_rules(&site)?;
    site.up().await?;
    site.neighbours().await?;
    site.ready().await?;
    let (mut notes, mut taken) = (Vec::new(), 0);
    for service in ALL.into_iter().filter(|service| *service != PROCESSOR) {
        let sidecar = site.sidecar(service).await?;
        let (peak, report) = steadily(&site, &sidecar, service, trial.count, &mut Ledger::new()).await?;
        load::done(&site, service, report.ok).await?;
        survived(&sidecar).await?;
        notes.push(format!("{service} {:.0}/s: {peak}", report.rps));
        taken += report.ok;
    }
    site.remove().await?;
    Ok(Outcome::new(taken, notes.join("; ")))
}

/// The rate that every sidecar takes, for so many seconds, and the most that the container held meanwhile.
async fn steadily(
    site: &Site,
    sidecar: &Sidecar,
    service: &str,
    seconds: u32,
    ledger: &mut Ledger,
) -> Result<(Peak, LoadReport)> {
    let options = LoadOptions {
        pacing: Pacing::Open { per_second: PER_SECOND },
        duration: Some(Duration::from_secs(u64::from(seconds))),
        ..load::options(site, service)
    };
    let (peak, report) = watched(sidecar, options, Arc::new(load::pool(site, service)?), ledger).await?;
    let rate = report.rps;
    ensure!(rate > 0.95 * PER_SECOND, "{service}: {rate:.0}/s were taken of {PER_SECOND}/s: {report:?}");
    Ok((peak, report))
}

/// The container is the one that was started, and none of its processes had to go.
async fn survived(sidecar: &Sidecar) -> Result<()> {
    let seen = sidecar.look().await?;
    ensure!(seen["RestartCount"] == 0 && seen["State"]["OOMKilled"] == false, "{}", seen["State"]);
    Ok(())
}

/// A load, and the most that the container held meanwhile.
async fn watched(
    sidecar: &Sidecar,
    options: LoadOptions,
    pool: Arc<Pool>,
    ledger: &mut Ledger,
) -> Result<(Peak, LoadReport)> {
    let mut peak = Peak::default();
    let load = tokio::spawn(async move { kit_workbench::load::run(options, pool, &LoadControl::new()).await });
    loop {
        peak.look(sidecar).await?;
        if load.is_finished() {
            break;
        }
    }
    let outcome = load.await??;
    ledger.extend_sent(outcome.sent);
    Ok((peak, outcome.report))
}
