//! Ends of the process, asked for and not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Ledger, SentRequest};
use kit_workbench::load::{self, LoadControl};
use kit_workbench::raw::RawConnection;
use kit_workbench::{Digest, Moment};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, Mode, REQUEST_DEADLINE, Rig, STOP_LIMIT, UNSETTLED};
use outrigger_tests::strace::Injection;

use crate::syscalls::{SYNCS, start_traceable, until_accepted, webhook};

/// Ready again within this time, whatever the backlog: Lago's first retry comes after three seconds.
const READY_LIMIT: Duration = Duration::from_secs(2);

/// F1: eight clients never stop sending, the daemon is killed at a random time after each start, and
/// one ledger over all of it balances.
pub(crate) async fn a_kill_under_load_loses_nothing(trial: Trial) -> Result<Outcome> {
    killed_under_load(trial, Rig::started(Mode::Hmac, &[]).await?).await
}

/// The same for any daemon that takes webhooks.
pub(crate) async fn killed_under_load(mut trial: Trial, mut rig: Rig) -> Result<Outcome> {
    let mut ledger = Ledger::new();
    let control = LoadControl::new();
    let options = load::LoadOptions { duplicates_percent: 5.0, ..rig.load() };
    let sending = tokio::spawn({
        let (pool, control) = (rig.pool(64)?, control.clone());
        async move { load::run(options, pool, &control).await }
    });
    let mut slowest = Duration::ZERO;
    for kill in 0..trial.count {
        trial.progress(kill);
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(20, 400)).await;
        let ready = rig.crash(&mut ledger).await.with_context(|| format!("kill {}", kill + 1))?;
        slowest = slowest.max(ready);
        ensure!(ready <= READY_LIMIT, "ready {ready:?} after kill {}", kill + 1);
    }
    control.stop();
    let outcome = sending.await??;
    ledger.extend_sent(outcome.sent);
    let report = rig.settle(ledger, &format!("F1-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{} accepted, {} delivered, {} again, 0 lost, ready after {} ms at most",
            report.accepted,
            report.delivered_unique,
            report.redelivered,
            slowest.as_millis()
        ),
    ))
}

/// F27: SIGTERM, or SIGINT, at a random time under load: everything under way is answered, nothing
/// accepted is lost, the exit code is 0 within eight seconds, and no connection is reset.
pub(crate) async fn a_stop_under_load_answers_what_it_took(trial: Trial) -> Result<Outcome> {
    stopped_under_load(trial, Rig::started(Mode::Hmac, &[]).await?).await
}

/// The same for any daemon that takes webhooks.
pub(crate) async fn stopped_under_load(mut trial: Trial, mut rig: Rig) -> Result<Outcome> {
    let pool = rig.pool(64)?;
    let mut ledger = Ledger::new();
    let mut slowest = Duration::ZERO;
    let mut broken = BTreeMap::new();
    for stop in 0..trial.count {
        trial.progress(stop);
        let control = LoadControl::new();
        // Lago opens a connection for every webhook; a proxy in between keeps them.
        let keep_alive = stop % 2 == 1;
        let options = load::LoadOptions { attempts: 1, keep_alive, ..rig.load() };
        let sending = tokio::spawn({
            let (pool, control) = (Arc::clone(&pool), control.clone());
            async move { load::run(options, pool, &control).await }
        });
        tokio::time::sleep(trial.millis(20, 400)).await;
        let from = Moment::now();
        let (exit, took) = if stop % 5 == 4 { rig.interrupt().await? } else { rig.stop().await? };
        control.stop();
        let outcome = sending.await??;
        ledger.end(EndRecord::new(rig.daemon, ExpectedEnd::Code(0), exit));
        ensure!(took <= STOP_LIMIT, "stop {} took {took:?}", stop + 1);
        slowest = slowest.max(took);
        for (kind, count) in outcome.report.errors {
            let way = if keep_alive { "kept" } else { "fresh" };
            *broken.entry((way, kind)).or_insert(0) += count;
        }
        ledger.extend_sent(outcome.sent);
        rig.start().await?;
        // What was in flight to the gateway when the drain ended may come again.
        ledger.crash(Crash { what: "stop".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
    }
    // A connection that the closed port turned away is an answer: nothing was taken.
    broken.retain(|(_, kind), _| kind != "refused");
    ensure!(broken.is_empty(), "requests were cut off: {broken:?}");
    let report = rig.settle(ledger, &format!("F27-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{} accepted, 0 lost, {} delivered again, slowest stop {} ms",
            report.accepted,
            report.redelivered,
            slowest.as_millis()
        ),
    ))
}

/// F27: a second signal ends the daemon at once with 130, and without one a body that does not end
/// is answered 503 after five seconds.
pub(crate) async fn a_second_signal_ends_at_once_and_an_unfinished_body_does_not_hold_up(
    trial: Trial,
) -> Result<Outcome> {
    signalled_twice(trial, Rig::new(Mode::Hmac, &[]).await?).await
}

/// The same for any daemon that takes webhooks; the rig is not started.
pub(crate) async fn signalled_twice(trial: Trial, mut rig: Rig) -> Result<Outcome> {
    let path = rig.path();
    let unfinished = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{\"begun\":");
    for round in 0..trial.count {
        rig.start().await?;
        let mut stuck = RawConnection::open(rig.public).await?;
        stuck.send(unfinished.as_bytes()).await?;
        wait_until_read(&rig).await?;
        let process = rig.process()?;
        process.term()?;
        process.wait_for_line(|line| line.contains("received, stopping"), REQUEST_DEADLINE).await?;
        if round == 0 {
            let answer = stuck.read_response(STOP_LIMIT).await?;
            ensure!(answer.status == 503, "an unfinished body was answered {}", answer.status);
            let exit = rig.process()?.wait(STOP_LIMIT).await?;
            ensure!(exit.code == Some(0), "{exit} after an unfinished body");
        } else {
            let process = rig.process()?;
            if round % 2 == 0 {
                process.term()?
            } else {
                process.interrupt()?
            }
            let exit = process.wait(Duration::from_secs(1)).await?;
            ensure!(exit.code == Some(130), "{exit} after a second signal");
        }
    }
    Ok(Outcome::new(trial.count, "503 for the unfinished body, then exit 130"))
}

/// F27: stopped while the disk does not answer: it ends in time all the same, says by its exit code that
/// something was cut off, and what it had accepted is there at the next start.
pub(crate) async fn a_hanging_disk_does_not_hold_up_a_stop(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = Ledger::new();
    let mut slowest = Duration::ZERO;
    for round in 0..trial.count {
        trial.progress(round);
        let (key, body) = webhook(&format!("{round}-before"));
        ledger.sent(until_accepted(&rig, &key, &body).await?);
        let from = Moment::now();
        let strace = Injection::new(SYNCS, "delay_exit=30000000").attach(rig.process()?).await?;
        let (key, body) = webhook(&format!("{round}-hanging"));
        let mut under_way = RawConnection::open(rig.public).await?;
        let signature = rig.sign(&body)?;
        let request = format!(
            "POST /webhooks/lago HTTP/1.1\r\nHost: a\r\nX-Lago-Unique-Key: {key}\r\nX-Lago-Signature: {signature}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        under_way.send(request.as_bytes()).await?;
        // Of unknown outcome.
        ledger.sent(SentRequest::begin("default", key.as_str(), "", Digest::of(body.as_bytes())));
        let process = rig.process()?;
        process.term()?;
        let begin = Instant::now();
        // The tracer holds the ended process back for as long as it delays its call.
        while !has_ended(process.pid())? {
            ensure!(begin.elapsed() <= STOP_LIMIT, "round {round}: not ended {STOP_LIMIT:?} after SIGTERM");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        slowest = slowest.max(begin.elapsed());
        strace.detach().await?;
        let exit = rig.process()?.wait(REQUEST_DEADLINE).await?;
        ensure!(exit.code == Some(124), "round {round}: {exit} though the disk hangs");
        ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Code(124), exit));
        rig.start().await?;
        ledger.crash(Crash { what: "hanging disk".to_owned(), from, until: Moment::now(), in_flight: UNSETTLED });
        ledger.sent(until_accepted(&rig, &key, &body).await?);
    }
    rig.settle(ledger, &format!("F27-hanging-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, format!("exit 124 within {} ms, 0 lost", slowest.as_millis())))
}

/// Whether a process has come to its end, waited for or not.
fn has_ended(pid: u32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(status.lines().any(|line| line.starts_with("State:\tZ")))
}

/// Waits until the daemon holds one open connection whose bytes it has read.
async fn wait_until_read(rig: &Rig) -> Result<()> {
    // The answer to a request on a second connection comes after the first one's bytes were taken up:
    // both arrived before, and the first one was first.
    for _ in 0..3 {
        rig.post("probe", "{}").await?;
    }
    Ok(())
}
