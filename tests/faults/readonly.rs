//! A filesystem that takes nothing: turned read-only by the kernel, or failing at every access.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Ledger};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::limits::cpu_seconds;
use outrigger_tests::power::{Disk, FileSystem};
use outrigger_tests::rig::{DAEMON, Mode, REQUEST_DEADLINE, Rig, STOP_LIMIT, UNSETTLED};
use outrigger_tests::strace::Injection;

use crate::power::{PoweredRig, Sending};
use crate::syscalls::{post, start_traceable, until_accepted, webhook};

/// How long the daemon is looked at while nothing can be stored.
const FAULTY: Duration = Duration::from_secs(2);
/// What it may use of a processor meanwhile.
const CPU_SHARE: f64 = 0.25;
/// Webhooks are taken again so soon after the filesystem takes them.
const RECOVERED_WITHIN: Duration = Duration::from_secs(2);
/// Every call that changes a file. Opening one for reading goes on.
const WRITES: &str = "write,pwrite64,ftruncate,fallocate,fsync,fdatasync";

/// F8: the filesystem fails under load, every access with EIO (ext4 and xfs in turn) or every write because the
/// kernel has made it read-only (ext4): nothing is accepted, the daemon stays and says so, ends when it is
/// told to, and has everything accepted once the filesystem is mounted anew.
pub(crate) async fn a_failed_filesystem_is_refused_until_it_is_mounted_anew(mut trial: Trial) -> Result<Outcome> {
    let (mut accepted, mut most, mut slowest) = (0, 0.0_f64, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let (kind, read_only) = match round % 3 {
            0 => (FileSystem::Ext4, false),
            1 => (FileSystem::Xfs, false),
            _ => (FileSystem::Ext4, true),
        };
        let disk = match Disk::create(kind) {
            Ok(disk) => disk,
            Err(error) => return Outcome::skipped_if_refused(error.context(format!("no {kind} on a loop device"))),
        };
        let mut powered = PoweredRig::new(&disk, Rig::new(Mode::Hmac, &[]).await?)?;
        powered.start().await?;
        let sending = Sending::start(&powered.rig, |options| options)?;
        sending.wait_for(50 + trial.random.u64(0..=200)).await?;
        powered.fail(read_only).await.with_context(|| format!("round {round}, {kind}"))?;
        // The load never gives up; here it is the processor's time that is looked at.
        let sent = sending.stop().await?;
        let from = Moment::now();
        let share = look_while_faulty(&mut powered.rig, &mut powered.ledger, &format!("{round}"))
            .await
            .with_context(|| format!("round {round}, {kind}, read-only: {read_only}"))?;
        most = most.max(share);
        ensure!(
            !sent.iter().any(|request| request.is_accepted() && request.answered.is_some_and(|at| at >= from)),
            "round {round}: accepted while the filesystem fails"
        );
        let asked = round % 2 == 0;
        if asked {
            let (exit, took) = powered.rig.stop().await?;
            ensure!(took <= STOP_LIMIT, "round {round}: stopping took {took:?}");
            ensure!(matches!(exit.code, Some(0 | 124)), "round {round}: {exit} after a stop");
            slowest = slowest.max(took);
        } else {
            let exit = powered.rig.kill().await?;
            powered.ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Signal(9), exit));
        }
        powered.mount_anew()?;
        powered.start().await.with_context(|| format!("round {round}: start on the filesystem mounted anew"))?;
        accepted += powered.settle(sent, &format!("F8-{round}-{}", trial.seed)).await?.accepted;
    }
    Ok(Outcome::new(
        trial.count,
        format!(
            "{accepted} accepted, 0 lost, at most {:.0} % of a processor, stopped within {} ms",
            most * 100.0,
            slowest.as_millis()
        ),
    ))
}

/// F8: read-only and then writable again, as after `mount -o remount,rw`: taken again without a restart. The
/// kernel does not let a filesystem be made read-only by hand while a file on it is open for writing, so that
/// its answer is given in its place.
pub(crate) async fn a_filesystem_that_is_writable_again_needs_no_restart(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = Ledger::new();
    let (mut most, mut slowest) = (0.0_f64, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let error = if round % 2 == 0 { "EROFS" } else { "EIO" };
        // The daemon writes its log with `write`; only files of the journal are to fail.
        let calls = WRITES.trim_start_matches("write,");
        let strace = Injection::new(calls, format!("error={error}")).attach(rig.process()?).await?;
        let share = look_while_faulty(&mut rig, &mut ledger, &format!("{round}")).await?;
        most = most.max(share);
        ensure!(strace.detach().await? > 0, "round {round}: no call was changed");
        let begin = Instant::now();
        let (key, body) = webhook(&format!("{round}-after"));
        ledger.sent(until_accepted(&rig, &key, &body).await?);
        while raw::get(rig.admin, "/readyz", REQUEST_DEADLINE).await?.status != 200 {
            ensure!(begin.elapsed() < RECOVERED_WITHIN, "round {round}: not ready after {:?}", begin.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        slowest = slowest.max(begin.elapsed());
        ensure!(slowest <= RECOVERED_WITHIN, "round {round}: taken again after {slowest:?}");
    }
    let report = rig.settle(ledger, &format!("F8-again-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{} accepted, at most {:.0} % of a processor while it failed, taken again within {} ms",
            report.accepted,
            most * 100.0,
            slowest.as_millis()
        ),
    ))
}

/// Nothing is accepted, the daemon is alive and not ready, and does not spin. Returns its share of a processor.
async fn look_while_faulty(rig: &mut Rig, ledger: &mut Ledger, name: &str) -> Result<f64> {
    let pid = rig.process()?.pid();
    let (cpu, begin) = (cpu_seconds(pid)?, Instant::now());
    let mut number = 0;
    while begin.elapsed() < FAULTY {
        let (key, body) = webhook(&format!("{name}-faulty-{number}"));
        let (request, answer) = post(rig, &key, &body).await?;
        ledger.sent(request);
        ensure!(answer.status == 503, "answered {} by a filesystem that fails", answer.status);
        ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
        let alive = raw::get(rig.admin, "/livez", REQUEST_DEADLINE).await?.status;
        let ready = raw::get(rig.admin, "/readyz", REQUEST_DEADLINE).await?.status;
        ensure!((alive, ready) == (200, 503), "/livez says {alive}, /readyz {ready}");
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let share = (cpu_seconds(pid)? - cpu) / begin.elapsed().as_secs_f64();
    ensure!(share <= CPU_SHARE, "{:.0} % of a processor while the filesystem fails", share * 100.0);
    ensure!(rig.process()?.try_exit()?.is_none(), "the daemon ended");
    Ok(share)
}

impl PoweredRig<'_> {
    /// Lets the filesystem fail under the running daemon.
    async fn fail(&mut self, read_only: bool) -> Result<()> {
        let from = Moment::now();
        tokio::task::block_in_place(|| if read_only { self.disk.abort() } else { self.disk.cut() })?;
        // What was under way when it failed may or may not be stored.
        let deadline = Instant::now() + REQUEST_DEADLINE;
        while raw::get(self.rig.admin, "/readyz", REQUEST_DEADLINE).await?.status != 503 {
            ensure!(Instant::now() < deadline, "ready on a filesystem that fails");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.blind.push((from, Moment::now()));
        self.unsettled.get_or_insert(from);
        Ok(())
    }

    /// Mounts it anew, with the checks that belong to that.
    fn mount_anew(&mut self) -> Result<()> {
        self.restore()?;
        // A restart: what had been delivered and not been recorded is delivered again.
        let from = self.unsettled.take().unwrap_or_else(Moment::now);
        let what = "failed filesystem".to_owned();
        self.ledger.crash(Crash { what, from, until: Moment::now(), in_flight: UNSETTLED });
        Ok(())
    }
}
