//! Hours of work with a fault every minute: what grows?

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::Moment;
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::{Crash, EndRecord, Expectations, ExpectedEnd, Ledger};
use kit_workbench::load::{self, LoadControl, LoadOptions, Pacing, Pool};
use kit_workbench::raw::RawConnection;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, Mode, Rig, UNSETTLED};

/// From so many seconds on it is the long one.
const LONG: u64 = 1_800;
/// Webhooks a second.
const PER_SECOND: f64 = 500.0;
/// The same where the machine does other things at the same time.
const SHORT_PER_SECOND: f64 = 200.0;
/// Growth of memory that the long one allows, in MiB an hour …
const SLOPE: f64 = 1.0;
/// … and the short one altogether: caches, buffers and the deduplication memory fill up first.
const SHORT_RISE: f64 = 32.0;
/// Files may be open for idle connections to the gateway and for reads.
const FILES: usize = 32;
/// Connections that send next to nothing.
const SLOW_CLIENTS: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Fault {
    GatewayErrors,
    Kill,
    SlowClients,
    GatewayAway,
    SlowGateway,
    Restart,
}

const FAULTS: [Fault; 6] =
    [Fault::GatewayErrors, Fault::Kill, Fault::SlowClients, Fault::GatewayAway, Fault::SlowGateway, Fault::Restart];

/// What the process holds when nothing is going on.
#[derive(Clone, Copy, Debug)]
struct Quiet {
    hours: f64,
    memory_mib: f64,
    files: usize,
}

/// F33: webhooks all the time and a fault in every minute: every segment's ledger balances, memory and
/// open files do not grow.
pub(crate) async fn hours_of_faults_leave_nothing_behind(mut trial: Trial) -> Result<Outcome> {
    let seconds = u64::from(trial.count);
    let long = seconds >= LONG;
    // A segment ends with a quiet moment, for its ledger and for a look at the process.
    let (segment, every, rate) = match long {
        true => (Duration::from_secs(300), Duration::from_secs(60), PER_SECOND),
        false => (Duration::from_secs(seconds.div_ceil(3)), Duration::from_secs(4), SHORT_PER_SECOND),
    };
    let settings = [
        ("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", &*vec!["1"; 500].join(",")),
        // So that removing goes on all the time, and the disk is not filled.
        ("SIDECAR_JOURNAL__RETENTION__MAX_BYTES", "67108864"),
    ];
    let mut rig = Rig::started(Mode::Hmac, &settings).await?;
    let pool = rig.pool(512)?;
    let begin = Instant::now();
    let mut quiet: Vec<Quiet> = Vec::new();
    let (mut accepted, mut faults, mut repeated) = (0, 0_usize, 0);
    while begin.elapsed().as_secs() < seconds {
        let mut ledger = Ledger::new();
        let control = LoadControl::new();
        let options = LoadOptions { pacing: Pacing::Open { per_second: rate }, ..rig.load() };
        let sending = tokio::spawn({
            let (pool, control): (Arc<Pool>, _) = (Arc::clone(&pool), control.clone());
            async move { load::run(options, pool, &control).await }
        });
        let start = Instant::now();
        while start.elapsed() < segment {
            tokio::time::sleep(every / 2).await;
            // In the second half of a long run the process is left alone: its memory is looked at.
            let soft = long && begin.elapsed().as_secs() * 2 > seconds;
            let fault = FAULTS.into_iter().cycle().nth(faults).unwrap_or(Fault::Kill);
            let fault = if soft && matches!(fault, Fault::Kill | Fault::Restart) { Fault::SlowClients } else { fault };
            one_fault(&mut rig, &mut ledger, fault, every / 4).await.with_context(|| format!("{fault:?}"))?;
            faults += 1;
            trial.progress(u32::try_from(begin.elapsed().as_secs())?);
            tokio::time::sleep(every / 4 + trial.millis(0, 200)).await;
        }
        control.stop();
        let outcome = sending.await??;
        ensure!(outcome.report.ok == outcome.report.requests, "gave up: {:?}", outcome.report.errors);
        ledger.extend_sent(outcome.sent);
        accepted += outcome.report.ok;
        rig.drained().await?;
        repeated += balance(&rig, ledger, trial.seed, quiet.len())?;
        let process = rig.process()?;
        quiet.push(Quiet {
            hours: begin.elapsed().as_secs_f64() / 3_600.0,
            memory_mib: process.rss_bytes()? as f64 / f64::from(1 << 20),
            files: process.open_fds()?,
        });
    }
    let growth = judge(&quiet, long)?;
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "{exit}");
    let mut ledger = Ledger::new();
    rig.scan(&mut ledger)?;
    let report = ledger.check(&Expectations::default());
    ensure!(report.is_clean(), "{report}");
    Ok(Outcome::new(
        seconds,
        format!("seconds, {accepted} webhooks, {faults} faults, {repeated} delivered again; {growth}"),
    ))
}

async fn one_fault(rig: &mut Rig, ledger: &mut Ledger, fault: Fault, lasting: Duration) -> Result<()> {
    match fault {
        Fault::GatewayErrors => {
            rig.gateway.set_behaviour(Behaviour::status(500));
            tokio::time::sleep(lasting).await;
            rig.gateway.set_behaviour(Behaviour::Ok);
        }
        Fault::SlowGateway => {
            rig.gateway.set_behaviour(Behaviour::Ok.after(Duration::from_millis(200)));
            tokio::time::sleep(lasting).await;
            rig.gateway.set_behaviour(Behaviour::Ok);
        }
        Fault::GatewayAway => {
            let from = Moment::now();
            rig.gateway.stop().await;
            tokio::time::sleep(lasting).await;
            rig.gateway.restart_on_same_port().await?;
            // Answers that broke off leave the daemon in doubt: what was in flight may come again.
            ledger.crash(Crash { what: "gateway away".to_owned(), from, until: Moment::now(), in_flight: 16 });
        }
        Fault::Kill => {
            rig.crash(ledger).await?;
        }
        Fault::Restart => {
            let from = Moment::now();
            let (exit, _) = rig.stop().await?;
            ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Code(0), exit));
            rig.start().await?;
            ledger.crash(Crash { what: "restart".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
        }
        Fault::SlowClients => {
            let mut slow = Vec::new();
            for nth in 0..SLOW_CLIENTS {
                let Ok(mut connection) = RawConnection::open(rig.public).await else { break };
                let beginning: &[u8] = match nth % 3 {
                    0 => b"POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-",
                    1 => b"POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
                    _ => b"",
                };
                let _ = connection.send(beginning).await;
                slow.push(connection);
            }
            tokio::time::sleep(lasting).await;
        }
    }
    Ok(())
}

/// Checks one segment; returns how often an event was delivered again.
fn balance(rig: &Rig, mut ledger: Ledger, seed: u64, segment: usize) -> Result<u64> {
    rig.gateway.with_received(|received| ledger.extend_received(received));
    rig.gateway.forget();
    // Later segments begin with a journal that holds the earlier ones.
    let expectations = Expectations { signed: true, whole_history: false, ..Expectations::default() };
    let report = ledger.check(&expectations);
    if !report.is_clean() {
        let file = std::env::temp_dir().join(format!("outrigger-F33-{seed}-{segment}.jsonl"));
        ledger.write_jsonl(&file)?;
        bail!("segment {segment} is broken, see {}\n{report}", file.display());
    }
    Ok(report.redelivered)
}

fn judge(quiet: &[Quiet], long: bool) -> Result<String> {
    let first = quiet.first().context("there was a quiet moment")?;
    let last = quiet.last().context("there was a quiet moment")?;
    let most = quiet.iter().map(|one| one.files).max().unwrap_or_default();
    ensure!(most <= first.files + FILES, "{most} files are open, {} in the beginning: {quiet:?}", first.files);
    if !long {
        let rise = last.memory_mib - first.memory_mib;
        ensure!(rise <= SHORT_RISE, "memory rose by {rise:.1} MiB: {quiet:?}");
        return Ok(format!("{:.0} MiB after {:.0}, at most {most} files", last.memory_mib, first.memory_mib));
    }
    // The deduplication memory is full after half an hour; from the middle on nothing may grow.
    let later = &quiet[quiet.len() / 2..];
    let memory = slope(later, |one| one.memory_mib);
    let files = slope(later, |one| one.files as f64);
    ensure!(memory < SLOPE, "memory grows by {memory:.2} MiB an hour: {quiet:?}");
    ensure!(files < 1.0, "{files:.2} more files are open every hour: {quiet:?}");
    Ok(format!("{memory:.2} MiB and {files:.2} files an hour, {:.0} MiB at the end", last.memory_mib))
}

/// Least squares: by how much a value grows in an hour.
fn slope(samples: &[Quiet], value: impl Fn(&Quiet) -> f64) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&Quiet) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (hours, values) = (mean(&|one| one.hours), mean(&|one| value(one)));
    let both: f64 = samples.iter().map(|one| (one.hours - hours) * (value(one) - values)).sum();
    let squares: f64 = samples.iter().map(|one| (one.hours - hours).powi(2)).sum();
    both / squares.max(f64::MIN_POSITIVE)
}
