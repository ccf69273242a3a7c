//! Disks that are no good any more: everything is an error, or nothing can be written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::limits::turn_read_only;
use outrigger_tests::power::{Disk, FileSystem};
use outrigger_tests::rig::{DAEMON, Mode, REQUEST_DEADLINE, Rig, STOP_LIMIT, UNSETTLED};

use crate::full::Outage;
use crate::syscalls::until_accepted;

/// How long the daemon is watched on a dead disk: long enough for some attempts to reopen the store.
const WATCHED: Duration = Duration::from_secs(1);
/// Lines that it may log meanwhile, with a request every few milliseconds.
const LINES: usize = 50;

/// F8: while everything on the disk is an I/O error (ext4, xfs) or the file system has turned read-only (ext4),
/// nothing is accepted, the daemon is alive and not ready and says so once; it stops when it is asked to, does
/// not start on the dead disk, and has everything once the disk is back.
pub(crate) async fn a_dead_disk_is_answered_503_and_survived(mut trial: Trial) -> Result<Outcome> {
    let (mut refused, mut accepted, mut slowest_stop) = (0, 0, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let read_only = round % 3 == 2;
        let kind = if round % 3 == 1 { FileSystem::Xfs } else { FileSystem::Ext4 };
        let what = format!("round {round}, {kind}{}", if read_only { ", read-only" } else { "" });
        let disk = match tokio::task::block_in_place(|| Disk::create(kind)) {
            Ok(disk) => disk,
            Err(error) => return Outcome::skipped_if_refused(error.context(format!("no {kind} on a loop device"))),
        };
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        rig.place_journal(disk.folder());
        rig.start().await?;
        let mut outage = Outage::begin(rig).await?;
        for _ in 0..trial.random.usize(0..20) {
            ensure!(outage.send().await?, "{what}: refused by a disk in order");
        }

        let from = Moment::now();
        if read_only {
            if let Err(error) = tokio::task::block_in_place(|| turn_read_only(disk.folder())) {
                return Outcome::skipped_if_refused(error);
            }
        } else {
            tokio::task::block_in_place(|| disk.cut())?;
        }
        watch(&mut outage).await.with_context(|| what.clone())?;
        if round % 2 == 0 {
            let (exit, took) = outage.rig.stop().await.with_context(|| format!("{what}: stop"))?;
            ensure!(took <= STOP_LIMIT, "{what}: stopping took {took:?}");
            outage.ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Code(0), exit));
            slowest_stop = slowest_stop.max(took);
        } else {
            let exit = outage.rig.kill().await?;
            outage.ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Signal(9), exit));
        }
        does_not_start(&mut outage.rig).await.with_context(|| what.clone())?;

        tokio::task::block_in_place(|| disk.restore()).with_context(|| what.clone())?;
        outage.rig.gateway.restart_on_same_port().await?;
        outage.rig.start().await.with_context(|| format!("{what}: start on the disk that is back"))?;
        outage.ledger.crash(Crash { what: what.clone(), from, until: Moment::now(), in_flight: UNSETTLED });
        for (key, body) in std::mem::take(&mut outage.again) {
            outage.ledger.sent(until_accepted(&outage.rig, &key, &body).await?);
        }
        refused += outage.refusals;
        let report = outage.rig.settle(outage.ledger, &format!("F8-{}", trial.seed)).await.with_context(|| what)?;
        accepted += report.accepted;
    }
    Ok(Outcome::new(
        trial.count,
        format!(
            "{refused} times 503 and never 2xx, {accepted} accepted, 0 lost, slowest stop {} ms",
            slowest_stop.as_millis()
        ),
    ))
}

/// Nothing is accepted, and the daemon lives.
async fn watch(outage: &mut Outage) -> Result<()> {
    let begin = Instant::now();
    let mut reasons = 0;
    while begin.elapsed() < WATCHED {
        ensure!(!outage.send().await?, "a webhook is accepted {:?} after the disk died", begin.elapsed());
        // It follows the first refusal, and stays as it is.
        if reasons == 0 {
            ensure!(!outage.says_ready().await?, "ready on a dead disk");
        }
        let readiness = raw::get(outage.rig.admin, "/readyz", REQUEST_DEADLINE).await?;
        ensure!(readiness.status == 503, "ready on a dead disk: {}", readiness.text());
        let reason = readiness.json()?["parts"]["journal"].as_str().map(str::to_owned);
        ensure!(reason.as_ref().is_some_and(|reason| reason.len() > 2), "no reason: {}", readiness.text());
        reasons += 1;
        let liveness = raw::get(outage.rig.admin, "/livez", REQUEST_DEADLINE).await?;
        ensure!(liveness.status == 200, "not alive: {}", liveness.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ensure!(reasons > 10, "only {reasons} answers in {WATCHED:?}");
    // Whatever goes to the gateway now, reading may work or fail: nobody hangs and nothing breaks.
    outage.rig.gateway.restart_on_same_port().await?;
    ensure!(!outage.send().await?, "a webhook is accepted on a dead disk");
    let process = outage.rig.process()?;
    ensure!(process.try_exit()?.is_none(), "the daemon ended");
    // Its lines come a moment after its answers.
    process.wait_for_line(|line| line.contains("journal commit failed"), REQUEST_DEADLINE).await?;
    let log = process.stdout();
    let loud = log.lines().filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\"")).count();
    ensure!(loud <= LINES, "{loud} lines of warnings in {WATCHED:?}:\n{log}");
    let complaints = log.matches("journal commit failed").count();
    ensure!(complaints == 1, "{complaints} complaints about the journal in one outage:\n{log}");
    Ok(())
}

/// A start on the dead disk ends with a line that names the journal.
async fn does_not_start(rig: &mut Rig) -> Result<()> {
    let command = rig.command()?;
    rig.spawn(&command)?;
    let exit = rig.process()?.wait(REQUEST_DEADLINE).await.context("start on the dead disk")?;
    let said = rig.process()?.stderr();
    ensure!(matches!(exit.code, Some(1 | 78)), "{exit}: {said}");
    ensure!(said.lines().count() == 1 && said.contains("journal"), "not one line: {said}");
    Ok(())
}
