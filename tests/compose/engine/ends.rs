//! Containers that hang, are killed, are stopped, are switched off, and come back with another tag.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::ledger::{Crash, Ledger};
use kit_workbench::load::{self, LagoWebhooks, LoadControl, LoadOptions, LoadOutcome, Pacing, Pool};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::UNSETTLED;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::delivery::{billed, report_usage, send};
use crate::engine::{COMMAND_LINE, TAG, engine};
use crate::site::{ALL, PROCESSOR, Site, TRACKER};

/// `stop_grace_period`.
const GRACE: Duration = Duration::from_secs(15);
const PER_SECOND: f64 = 200.0;

/// Webhooks at a steady rate until it is stopped.
struct Load {
    control: LoadControl,
    task: JoinHandle<Result<LoadOutcome, load::LoadError>>,
}

impl Load {
    fn start(site: &Site) -> Result<Self> {
        let pool = std::sync::Arc::new(Pool::lago(&LagoWebhooks::new("default", site.jwt()?))?);
        let control = LoadControl::new();
        let options = LoadOptions { pacing: Pacing::Open { per_second: PER_SECOND }, ..site.load() };
        let task = tokio::spawn({
            let control = control.clone();
            async move { load::run(options, pool, &control).await }
        });
        Ok(Self { control, task })
    }

    /// Waits until so many more were taken.
    async fn goes_on(&self, more: u64) -> Result<()> {
        let (from, begin) = (self.control.ok(), Instant::now());
        while self.control.ok() < from + more {
            ensure!(begin.elapsed() < Duration::from_secs(60), "no webhook is taken any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn end(self, ledger: &mut Ledger) -> Result<()> {
        self.control.stop();
        ledger.extend_sent(self.task.await??.sent);
        Ok(())
    }
}

fn health(seen: &Value) -> &Value {
    &seen["State"]["Health"]["Status"]
}

/// C3: the health check says healthy while the process answers, unhealthy while it hangs, and healthy again; nobody is
/// restarted for it, and a gateway that is away does not count.
pub(crate) async fn health_follows_the_process(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::new(engine, &[("COMPOSE_PROFILES", &ALL.join(","))])?;
    // Without any neighbour.
    site.up().await?;
    for _ in 0..trial.count {
        for service in ALL {
            let sidecar = site.sidecar(service).await?;
            sidecar.until("healthy", |seen| health(seen) == "healthy").await?;
            sidecar.signal(Signal::STOP).await?;
            let seen = sidecar.until("unhealthy", |seen| health(seen) == "unhealthy").await?;
            ensure!(seen["State"]["Running"] == true && seen["RestartCount"] == 0, "{service}: {}", seen["State"]);
            sidecar.signal(Signal::CONT).await?;
            let seen = sidecar.until("healthy again", |seen| health(seen) == "healthy").await?;
            ensure!(seen["State"]["StartedAt"] == sidecar.seen["State"]["StartedAt"], "{service} was restarted");
        }
    }
    site.remove().await?;
    Ok(Outcome::new(ALL.len() as u64 * u64::from(trial.count), ""))
}

/// C4: the process is killed under load, the engine starts it again, and one ledger over all of it balances.
pub(crate) async fn a_killed_process_is_started_again_and_loses_nothing(mut trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::started(engine, &[]).await?;
    let mut ledger = Ledger::new();
    let load = Load::start(&site)?;
    let mut slowest = Duration::ZERO;
    for kill in 0..trial.count {
        trial.progress(kill);
        let sidecar = site.sidecar(PROCESSOR).await?;
        load.goes_on(50).await?;
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(0, 300)).await;
        let (from, begin) = (Moment::now(), Instant::now());
        let started = sidecar.look().await?["State"]["StartedAt"].clone();
        sidecar.signal(Signal::KILL).await?;
        let again = |seen: &Value| seen["State"]["Running"] == true && seen["State"]["StartedAt"] != started;
        sidecar.until("started again", again).await?;
        // The engine may give it another address.
        site.sidecar(PROCESSOR).await?.ready().await?;
        slowest = slowest.max(begin.elapsed());
        ledger.crash(Crash { what: "kill -9".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
    }
    let restarts = site.sidecar(PROCESSOR).await?.seen["RestartCount"].clone();
    ensure!(restarts == trial.count, "{} kills and {restarts} restarts", trial.count);
    load.end(&mut ledger).await?;
    let report = site.settle(ledger, &format!("C4-{}", trial.seed)).await?;
    site.remove().await?;
    let note = format!(
        "{} accepted, {} delivered, {} again, 0 lost; ready {:.1} s after a kill at most, the engine's pause included",
        report.accepted,
        report.delivered_unique,
        report.redelivered,
        slowest.as_secs_f64()
    );
    Ok(Outcome::new(trial.count, note))
}

/// C5: `docker-compose stop` under load ends with code 0 within the grace, and what was delivered before is not
/// delivered again.
pub(crate) async fn a_stop_is_within_the_grace_and_repeats_nothing(mut trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::started(engine, &[]).await?;
    let mut ledger = Ledger::new();
    let load = Load::start(&site)?;
    let mut slowest = Duration::ZERO;
    for stop in 0..trial.count {
        trial.progress(stop);
        load.goes_on(50).await?;
        tokio::time::sleep(trial.millis(0, 300)).await;
        let sidecars = [site.sidecar(PROCESSOR).await?, site.sidecar(TRACKER).await?];
        let begin = Instant::now();
        site.compose(&["stop"]).await?;
        let took = begin.elapsed();
        slowest = slowest.max(took);
        ensure!(took < GRACE, "stopping took {took:?}");
        for sidecar in sidecars {
            let state = sidecar.look().await?["State"].clone();
            ensure!(state["Status"] == "exited" && state["ExitCode"] == 0, "{} ended with {state}", sidecar.name);
            ensure!(state["OOMKilled"] == false, "{}: {state}", sidecar.name);
        }
        site.up().await?;
        site.ready().await?;
    }
    load.end(&mut ledger).await?;
    // No crash in the ledger: not one repetition is forgiven.
    let report = site.settle(ledger, &format!("C5-{}", trial.seed)).await?;
    ensure!(report.redelivered == 0, "{} were delivered again", report.redelivered);
    site.remove().await?;
    let note =
        format!("{} delivered, 0 again; stopped after {:.1} s at most", report.delivered_unique, slowest.as_secs_f64());
    Ok(Outcome::new(trial.count, note))
}

/// C6: an add-on whose profile is taken out of `.env` is stopped and removed by `compose/up`; the other one is not
/// touched; switched on again it has what it had.
pub(crate) async fn an_add_on_is_switched_off_without_touching_the_rest(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let mut site = Site::started(engine, &[]).await?;
    let mut events = 0;
    for round in 0..trial.count {
        for (off, stays) in [(TRACKER, PROCESSOR), (PROCESSOR, TRACKER)] {
            // Something that waits in the journal of the one that goes.
            site.stop_lago().await;
            report_usage(&site, &format!("t-{round}-{off}"), 1).await?;
            events += 1;
            let before = site.sidecar(stays).await?.seen;
            site.set("COMPOSE_PROFILES", stays)?;
            site.up().await?;
            let gone = site.compose(&["ps", "--quiet", off]).await;
            ensure!(gone.as_ref().map_or(true, |ids| ids.trim().is_empty()), "{off} is still there: {gone:?}");
            untouched(&before, &site.sidecar(stays).await?.seen).context(stays)?;
            ensure!(engine.volume(&site.name(off)).is_dir(), "the volume of {off} is gone");

            site.set("COMPOSE_PROFILES", &format!("{PROCESSOR},{TRACKER}"))?;
            site.up().await?;
            untouched(&before, &site.sidecar(stays).await?.seen).context(stays)?;
            site.ready().await?;
            site.start_lago().await?;
            billed(&site, events).await?;
        }
    }
    site.remove().await?;
    Ok(Outcome::new(2 * trial.count, "same container, same start time"))
}

fn untouched(before: &Value, after: &Value) -> Result<()> {
    ensure!(before["Id"] == after["Id"], "is another container");
    ensure!(before["State"]["StartedAt"] == after["State"]["StartedAt"], "was started again");
    ensure!(before["State"]["Pid"] == after["State"]["Pid"], "is another process");
    Ok(())
}

/// C7: what was accepted while the gateway was away outlives `down`, a new tag, and the way back to the old one.
pub(crate) async fn volumes_outlive_their_containers_and_tags(trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    const NEXT: &str = "0.1.1";
    for daemon in [PROCESSOR, TRACKER, COMMAND_LINE] {
        engine.docker(["tag", &format!("outrigger/{daemon}:{TAG}"), &format!("outrigger/{daemon}:{NEXT}")]).await?;
    }
    let site = Site::started(engine, &[]).await?;
    site.gateway()?.stop().await;
    let mut ledger = Ledger::new();
    let mut accepted = 0;
    for round in 0..2 * trial.count {
        ledger.extend_sent(send(&site, site.jwt()?, 200).await?);
        accepted += 200;
        site.compose(&["down"]).await?;
        site.set("SIDECAR_TAG", if round % 2 == 0 { NEXT } else { TAG })?;
        site.up().await?;
        site.ready().await?;
        let sidecar = site.sidecar(PROCESSOR).await?;
        let image = sidecar.seen["Config"]["Image"].as_str().unwrap_or_default();
        ensure!(image.ends_with(if round % 2 == 0 { NEXT } else { TAG }), "it runs {image}");
        let statistics = sidecar.api("/api/v1/statistics").await?;
        ensure!(statistics["accepted"] == accepted, "of {accepted} accepted the journal has {statistics}");
    }
    site.gateway()?.restart_on_same_port().await?;
    let report = site.settle(ledger, &format!("C7-{}", trial.seed)).await?;
    site.remove().await?;
    Ok(Outcome::new(
        2 * trial.count,
        format!("{} accepted, {} delivered, 0 lost", report.accepted, report.delivered_unique),
    ))
}
