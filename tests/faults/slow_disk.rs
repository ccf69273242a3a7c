//! A disk that takes its time: every sync is held up.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use kit_workbench::load::{self, LoadControl, LoadOptions, Pacing};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, Rig};
use outrigger_tests::strace::Injection;

use crate::syscalls::{SYNCS, post, start_traceable, until_accepted, webhook};

/// Events that are on their way at any time, whatever the delay.
const ON_THE_WAY: f64 = 60.0;
/// What a request may take on top of the syncs it waits for. Tracing slows every call of the daemon.
const ON_TOP: Duration = Duration::from_millis(250);
/// How much memory may grow while events wait for the disk.
const GROWTH_BYTES: u64 = 16 << 20;
/// A refusal must come at once: the sender has other things to do than to wait for it.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// F9: with syncs of 0.3 to 5 s events are accepted in larger groups, each after two syncs at most – the one
/// under way when it came, and its own –, and memory stays flat. Where the log begins anew, once in some thousand
/// events, there are three more; that is not looked at here.
pub(crate) async fn a_slow_disk_makes_larger_groups(mut trial: Trial) -> Result<Outcome> {
    let (mut slowest_above, mut largest_group, mut growth) = (Duration::ZERO, 0.0_f64, 0);
    for round in 0..trial.count {
        trial.progress(round);
        let delay = match round {
            0 => Duration::from_millis(300),
            _ => trial.millis(300, if trial.count > 10 { 5_000 } else { 1_000 }),
        };
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        if let Err(error) = start_traceable(&mut rig).await {
            return Outcome::skipped_if_refused(error);
        }
        let mut ledger = kit_workbench::ledger::Ledger::new();
        let pool = rig.pool(64)?;
        // Few, so that the log does not fill meanwhile.
        let warm = LoadOptions { requests: Some(100), connections: 64, ..rig.load() };
        ledger.extend_sent(load::run(warm, pool.clone(), &LoadControl::new()).await?.sent);
        rig.drained().await?;
        let before = rig.rss_bytes()?;
        let groups = group_figures(&rig).await?;

        let slow = Injection::new(SYNCS, format!("delay_exit={}", delay.as_micros()));
        let strace = slow.attach(rig.process()?).await?;
        let options = LoadOptions {
            connections: 128,
            pacing: Pacing::Open { per_second: ON_THE_WAY / (2.0 * delay.as_secs_f64()) },
            duration: Some(delay * 8),
            timeout: Duration::from_secs(30),
            ..rig.load()
        };
        let outcome = load::run(options, pool, &LoadControl::new()).await?;
        let after = rig.rss_bytes()?;
        strace.detach().await?;

        let p99 = Duration::from_secs_f64(outcome.report.latency_ms.p99 / 1000.0);
        ensure!(outcome.report.errors.is_empty(), "refused at {delay:?}: {:?}", outcome.report.errors);
        ensure!(p99 <= 2 * delay + ON_TOP, "p99 {p99:?} with syncs of {delay:?}: {:?}", outcome.report.latency_ms);
        ensure!(after <= before + GROWTH_BYTES, "memory grew from {before} to {after} bytes");
        slowest_above = slowest_above.max(p99.saturating_sub(2 * delay));
        growth = growth.max(after.saturating_sub(before));
        let (commits, events) = group_figures(&rig).await?;
        let mean = (events - groups.1) / (commits - groups.0);
        ensure!(mean >= ON_THE_WAY / 8.0, "groups of {mean:.1} events with syncs of {delay:?}");
        largest_group = largest_group.max(mean);
        ledger.extend_sent(outcome.sent);
        rig.settle(ledger, &format!("F9-{}", trial.seed)).await?;
    }
    Ok(Outcome::new(
        trial.count,
        format!(
            "p99 at most two syncs + {} ms, groups of up to {largest_group:.0} events on average, RSS + {} KiB",
            slowest_above.as_millis(),
            growth >> 10
        ),
    ))
}

/// F9: the queue for the disk is bounded: what does not fit is answered 503 at once, and nothing is lost.
pub(crate) async fn a_full_queue_is_refused_at_once(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[("SIDECAR_JOURNAL__QUEUE", "16")]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = kit_workbench::ledger::Ledger::new();
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let counted = rig.metrics().await?.sum("journal_refused_busy_total", &[]);
        let strace = Injection::new(SYNCS, "delay_exit=2000000").attach(rig.process()?).await?;
        let webhooks: Vec<_> = (0..96).map(|number| webhook(&format!("{round}-{number}"))).collect();
        let timed = webhooks.iter().map(|(key, body)| async {
            let begin = Instant::now();
            (post(&rig, key, body).await, begin.elapsed())
        });
        let mut now = 0;
        for (answer, took) in join_all(timed).await {
            let (request, answer) = answer?;
            if answer.status == 503 {
                now += 1;
                ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
                ensure!(took <= REFUSED_WITHIN, "refused after {took:?}");
                slowest = slowest.max(took);
            }
            ledger.sent(request);
        }
        strace.detach().await?;
        ensure!(now > 0, "round {round}: 96 requests fitted into a queue of 16");
        let counted = rig.metrics().await?.sum("journal_refused_busy_total", &[]) - counted;
        ensure!(counted == f64::from(now), "round {round}: {now} were refused, {counted} are counted");
        refused += now;
        for (key, body) in &webhooks {
            ledger.sent(until_accepted(&rig, key, body).await?);
        }
    }
    rig.settle(ledger, &format!("F9-queue-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, format!("{refused} refused within {} ms, 0 lost", slowest.as_millis())))
}

/// F9: a disk that does not answer at all: the sender gets its 503 before it gives up by itself, and what
/// was stored in the end is known when it comes again.
pub(crate) async fn a_hanging_disk_is_answered_503_in_time(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[("SIDECAR_JOURNAL__WAIT_SECONDS", "1.0")]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = kit_workbench::ledger::Ledger::new();
    let mut slowest = Duration::ZERO;
    for round in 0..trial.count {
        trial.progress(round);
        let strace = Injection::new(SYNCS, "delay_exit=4000000:when=1").attach(rig.process()?).await?;
        let webhooks: Vec<_> = (0..8).map(|number| webhook(&format!("{round}-{number}"))).collect();
        let timed = webhooks.iter().map(|(key, body)| async {
            let begin = Instant::now();
            (post(&rig, key, body).await, begin.elapsed())
        });
        for (answer, took) in join_all(timed).await {
            let (request, answer) = answer?;
            ensure!(answer.status == 503, "answered {} after {took:?} by a disk that hangs", answer.status);
            ensure!(took < Duration::from_secs(2), "refused only after {took:?}");
            ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
            slowest = slowest.max(took);
            ledger.sent(request);
        }
        for (key, body) in &webhooks {
            ledger.sent(until_accepted(&rig, key, body).await?);
        }
        strace.detach().await?;
    }
    let late = rig.metrics().await?.sum("journal_refused_late_total", &[]);
    ensure!(late >= f64::from(8 * trial.count), "only {late} are counted as late");
    let report = rig.settle(ledger, &format!("F9-hanging-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!("503 within {} ms, {} known when they came again", slowest.as_millis(), report.duplicates_answered),
    ))
}

/// Commits with events in them so far, and the events in them.
async fn group_figures(rig: &Rig) -> Result<(f64, f64)> {
    let metrics = rig.metrics().await?;
    Ok((metrics.sum("journal_group_events_count", &[]), metrics.sum("journal_group_events_sum", &[])))
}
