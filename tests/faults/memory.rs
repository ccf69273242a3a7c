//! Little memory: what the daemon is sized for does not get it killed, and a kill loses nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Ledger};
use kit_workbench::load::{self, LagoWebhooks, LoadControl, LoadOptions, Pool};
use kit_workbench::raw::RawConnection;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::limits::MemoryLimit;
use outrigger_tests::named;
use outrigger_tests::rig::{DAEMON, Mode, Rig, UNSETTLED};

const MIB: u64 = 1 << 20;
/// What a container is given, by the documentation of the daemon.
const GIVEN: u64 = 128 * MIB;
/// Below what the same load needs.
const TOO_LITTLE: u64 = 24 * MIB;
/// With it the daemon starts and drains whatever there is.
const PLENTY: u64 = 512 * MIB;
/// How large the bodies are.
const BODY_BYTES: usize = 1 << 20;
/// Of the journal nothing is to be purged before it has been looked at.
const KEEP_ALL: (&str, &str) = ("SIDECAR_JOURNAL__RETENTION__MAX_BYTES", "1099511627776");
/// Kills that one journal goes through: it grows by hundreds of megabytes until each.
const KILLS_PER_JOURNAL: u32 = 1;
/// How long the load goes on where nobody is to be killed.
const LOAD: Duration = Duration::from_secs(6);
/// How long it may take until the kernel has to kill.
const KILLED_WITHIN: Duration = Duration::from_secs(30);
/// Connections that say nothing, and that do not end their bodies.
const IDLE: usize = 2_000;
const UNFINISHED: usize = 200;

/// F28: with 128 MiB a crowd of idle connections, bodies of a megabyte on many connections and bodies that do
/// not end get nobody killed, and every webhook is taken in the end.
pub(crate) async fn a_crowd_with_large_bodies_does_not_exhaust_the_memory(trial: Trial) -> Result<Outcome> {
    let (mut highest, mut accepted, mut small) = (0, 0, 0);
    for round in 0..trial.count {
        trial.progress(round);
        let group = match MemoryLimit::create(GIVEN) {
            Ok(group) => group,
            Err(error) => return Outcome::skipped_if_refused(error),
        };
        let mut rig = Rig::new(Mode::Hmac, &[KEEP_ALL]).await?;
        rig.wrap(&group.wrapper().iter().map(String::as_str).collect::<Vec<_>>());
        rig.start().await?;
        let mut crowd = Vec::new();
        for number in 0..IDLE + UNFINISHED {
            let mut connection = RawConnection::open(rig.public).await?;
            if number >= IDLE {
                let mut begun =
                    b"POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-Lago-Signature: a\r\nContent-Length: 1000000\r\n\r\n"
                        .to_vec();
                begun.resize(256 << 10, b'x');
                // Blocks where the daemon does not read on, which it need not.
                let _ = tokio::time::timeout(Duration::from_millis(20), connection.send(&begun)).await;
            }
            crowd.push(connection);
        }
        let control = LoadControl::new();
        let sending = sending(&rig, &control)?;
        let mut ledger = Ledger::new();
        let begin = Instant::now();
        while begin.elapsed() < LOAD {
            // Large bodies wait for those that do not end; ordinary webhooks do not.
            named::send(&rig, &mut ledger, &format!("small-{small}")).await.context("beside the crowd")?;
            small += 1;
            highest = highest.max(rig.rss_bytes().unwrap_or(0));
            if let Some(exit) = rig.process()?.try_exit()? {
                anyhow::bail!("round {round}: {exit} with {} MiB", GIVEN / MIB);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(crowd);
        control.stop();
        ledger.extend_sent(sending.await??.sent);
        ensure!(control.ok() > 0, "round {round}: no large body was accepted");
        accepted += rig.settle(ledger, &format!("F28-{}-{round}", trial.seed)).await?.accepted;
    }
    Ok(Outcome::new(
        trial.count,
        format!(
            "{accepted} accepted, {small} of them small ones beside the crowd, at most {} MiB resident, none killed",
            highest / MIB
        ),
    ))
}

/// F28: with too little memory the kernel kills the daemon under load, and nothing accepted is lost.
pub(crate) async fn a_kill_for_lack_of_memory_loses_nothing(mut trial: Trial) -> Result<Outcome> {
    let (mut accepted, mut redelivered, mut slowest, mut done) = (0, 0, Duration::ZERO, 0);
    while done < trial.count {
        let group = match MemoryLimit::create(PLENTY) {
            Ok(group) => group,
            Err(error) => return Outcome::skipped_if_refused(error),
        };
        let mut rig = Rig::new(Mode::Hmac, &[KEEP_ALL]).await?;
        rig.wrap(&group.wrapper().iter().map(String::as_str).collect::<Vec<_>>());
        rig.start().await?;
        let mut ledger = Ledger::new();
        let last = trial.count.min(done + KILLS_PER_JOURNAL);
        for kill in done..last {
            trial.progress(kill);
            let moment = trial.millis(0, 200);
            let ready = kill_once(&mut rig, &group, &mut ledger, moment).await;
            slowest = slowest.max(ready.with_context(|| format!("kill {}", kill + 1))?);
        }
        done = last;
        let report = rig.settle(ledger, &format!("F28-killed-{}", trial.seed)).await?;
        accepted += report.accepted;
        redelivered += report.redelivered;
    }
    Ok(Outcome::new(
        trial.count,
        format!(
            "{accepted} accepted, 0 lost, {redelivered} delivered again, ready again after {} ms at most",
            slowest.as_millis()
        ),
    ))
}

/// Takes the memory away under load until the kernel kills, and starts again with plenty; returns how long that
/// took to be ready.
async fn kill_once(rig: &mut Rig, group: &MemoryLimit, ledger: &mut Ledger, moment: Duration) -> Result<Duration> {
    let control = LoadControl::new();
    let sending = sending(rig, &control)?;
    let begin = Instant::now();
    while control.ok() < 4 {
        ensure!(begin.elapsed() < KILLED_WITHIN, "nothing is accepted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(moment).await;
    let from = Moment::now();
    let (begin, mut limit) = (Instant::now(), TOO_LITTLE);
    let exit = loop {
        // Refused for as long as more is in use than can be taken away; a little more then.
        if group.set(limit).is_err() {
            limit += MIB;
        }
        if let Some(exit) = rig.process()?.try_exit()? {
            break exit;
        }
        ensure!(begin.elapsed() < KILLED_WITHIN, "alive with {} MiB", limit / MIB);
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    ensure!(exit.signal == Some(9), "{exit} for lack of memory");
    ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Signal(9), exit));
    group.set(PLENTY)?;
    let ready = rig.start().await?;
    let what = "killed for lack of memory".to_owned();
    ledger.crash(Crash { what, from, until: Moment::now(), in_flight: UNSETTLED });
    control.stop();
    ledger.extend_sent(sending.await??.sent);
    Ok(ready)
}

/// Large webhooks on many connections, until the control stops it.
fn sending(
    rig: &Rig,
    control: &LoadControl,
) -> Result<tokio::task::JoinHandle<Result<load::LoadOutcome, load::LoadError>>> {
    let webhooks =
        LagoWebhooks { count: 4, body_bytes: Some(BODY_BYTES), ..LagoWebhooks::new("default", rig.signing()) };
    let pool = std::sync::Arc::new(Pool::lago(&webhooks)?);
    let options = LoadOptions { connections: 48, ..rig.load() };
    let control = control.clone();
    Ok(tokio::spawn(async move { load::run(options, pool, &control).await }))
}
