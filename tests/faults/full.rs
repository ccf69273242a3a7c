//! No room: the volume of the journal is full, a quota or the largest file is reached.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::Digest;
use kit_workbench::ledger::{Ledger, SentRequest};
use kit_workbench::load::{self, LoadControl, LoadOptions};
use kit_workbench::process::ProcessError;
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::limits::{self, Volume};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, START_DEADLINE};
use outrigger_tests::strace::Injection;

use crate::syscalls::{post, start_traceable, until_accepted, webhook};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Webhooks are taken again so soon after there is room.
const RECOVERED_WITHIN: Duration = Duration::from_secs(2);
/// About what one webhook of a load weighs.
const WEBHOOK_BYTES: u64 = 2 * KIB;
/// How long it may take until a volume is full.
const FULL_WITHIN: Duration = Duration::from_secs(30);

/// F7: a volume in memory of 256 KiB to 4 MiB gets full under a load that never gives up, sometimes even
/// before the daemon has started.
pub(crate) async fn a_full_volume_in_memory_is_refused_until_there_is_room(trial: Trial) -> Result<Outcome> {
    let make = |left: u64| Volume::tmpfs(left + 64 * MIB);
    a_full_volume_is_refused_until_there_is_room(trial, make, true).await
}

/// F7: the same on ext4.
pub(crate) async fn a_full_ext4_is_refused_until_there_is_room(trial: Trial) -> Result<Outcome> {
    a_full_volume_is_refused_until_there_is_room(trial, |_| Volume::ext4(80 * MIB), false).await
}

async fn a_full_volume_is_refused_until_there_is_room(
    mut trial: Trial,
    make: impl Fn(u64) -> Result<Volume>,
    resizable: bool,
) -> Result<Outcome> {
    let mut totals = Totals::default();
    for round in 0..trial.count {
        trial.progress(round);
        // The smallest and the largest in every run.
        let left = match round {
            0 => 256 * KIB,
            1 => 4 * MIB,
            _ => trial.random.u64(256 * KIB..=4 * MIB),
        };
        let volume = match make(left) {
            Ok(volume) => volume,
            Err(error) => return Outcome::skipped_if_refused(error),
        };
        volume.fill_up_to(left)?;
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        rig.place_journal(volume.folder());
        let room = || if resizable && round % 2 == 1 { volume.resize(256 * MIB) } else { volume.empty() };
        fill_and_recover(&mut rig, left, room, &mut trial, &mut totals)
            .await
            .with_context(|| format!("round {round}, {} KiB", left / KIB))?;
        let ledger = std::mem::take(&mut totals.ledger);
        totals.accepted += rig.settle(ledger, &format!("F7-{}-{round}", trial.seed)).await?.accepted;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F7: a journal that may not grow above a largest file is no different, and the signal that the kernel sends
/// then does not end the daemon.
pub(crate) async fn a_largest_file_is_refused_until_it_is_raised(mut trial: Trial) -> Result<Outcome> {
    let mut totals = Totals::default();
    for round in 0..trial.count {
        trial.progress(round);
        let limit = trial.random.u64(512 * KIB..=4 * MIB);
        let mut rig = Rig::started(Mode::Hmac, &[]).await?;
        let pid = rig.process()?.pid();
        if let Err(error) = limits::limit_file_size(pid, Some(limit)) {
            return Outcome::skipped_if_refused(error);
        }
        let room = || limits::limit_file_size(pid, None);
        fill_and_recover(&mut rig, limit, room, &mut trial, &mut totals)
            .await
            .with_context(|| format!("round {round}, {} KiB", limit / KIB))?;
        let ledger = std::mem::take(&mut totals.ledger);
        totals.accepted += rig.settle(ledger, &format!("F7-file-{}-{round}", trial.seed)).await?.accepted;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F7: the disk or a quota is full from any write on.
pub(crate) async fn a_write_without_room_is_refused_until_there_is_some(trial: Trial) -> Result<Outcome> {
    /// A commit has a handful of writes; each of them must be the first that fails.
    const FIRST_WRITES: u32 = 24;
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = Ledger::new();
    let (mut refused, mut slowest) = (0_u64, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let error = if round % 2 == 0 { "ENOSPC" } else { "EDQUOT" };
        let at = 1 + (round / 2 + trial.offset) % FIRST_WRITES;
        let strace = Injection::new("pwrite64", format!("error={error}:when={at}+")).attach(rig.process()?).await?;
        let begin = Instant::now();
        let mut number = 0;
        // Until the first is refused, and some more.
        let mut left = 5;
        while left > 0 {
            let (key, body) = webhook(&format!("{round}-{number}"));
            let (request, answer) = post(&rig, &key, &body).await?;
            number += 1;
            if !request.is_accepted() {
                ensure!(answer.status == 503, "answered {} at {error}", answer.status);
                ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
                (left, refused) = (left - 1, refused + 1);
            } else {
                ensure!(left == 5, "round {round}: accepted while every write fails with {error}");
            }
            ledger.sent(request);
            ensure!(begin.elapsed() < REQUEST_DEADLINE, "round {round}: {error} at {at} refuses nobody");
        }
        ensure!(strace.detach().await? > 0, "round {round}: no write was changed");
        let room = Instant::now();
        for number in 0..number {
            let (key, body) = webhook(&format!("{round}-{number}"));
            ledger.sent(until_accepted(&rig, &key, &body).await?);
            slowest = slowest.max(if number == 0 { room.elapsed() } else { Duration::ZERO });
        }
        ensure!(slowest <= RECOVERED_WITHIN, "round {round}: taken again {slowest:?} after there is room");
    }
    let report = rig.settle(ledger, &format!("F7-write-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{refused} times 503, {} accepted, taken again within {} ms", report.accepted, slowest.as_millis()),
    ))
}

/// What many volumes went through.
#[derive(Default)]
struct Totals {
    ledger: Ledger,
    accepted: u64,
    refused: u64,
    not_started: u32,
    slowest: Duration,
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, refused, not_started, slowest, .. } = self;
        write!(
            f,
            "{refused} times 503, {accepted} accepted, 0 lost, taken again within {} ms, \
             {not_started} times no room for a start",
            slowest.as_millis()
        )
    }
}

/// Lets a load run until there is no room, looks at what the daemon does then, and gives room.
async fn fill_and_recover(
    rig: &mut Rig,
    left: u64,
    room: impl Fn() -> Result<()>,
    trial: &mut Trial,
    totals: &mut Totals,
) -> Result<()> {
    let mut roomy = false;
    if rig.process().is_err() && !start_in(rig).await? {
        totals.not_started += 1;
        room()?;
        roomy = true;
        rig.start().await.context("start now that there is room")?;
    }
    // As many bytes as there is room, so that it cannot hold them all.
    let requests = (left / WEBHOOK_BYTES).max(64);
    let control = LoadControl::new();
    let sending = tokio::spawn({
        let (options, pool, control) =
            (LoadOptions { requests: Some(requests), ..rig.load() }, rig.pool(64)?, control.clone());
        async move { load::run(options, pool, &control).await }
    });
    if !roomy {
        let begin = Instant::now();
        while readiness(rig).await? != 503 {
            ensure!(begin.elapsed() < FULL_WITHIN, "not full: {} of {requests} accepted", control.ok());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        look_while_full(rig, trial.millis(200, 800), totals).await?;
        room()?;
    }
    let begin = Instant::now();
    totals.ledger.sent(accept(rig, "after", RECOVERED_WITHIN).await?);
    while readiness(rig).await? != 200 {
        ensure!(begin.elapsed() < RECOVERED_WITHIN, "not ready {:?} after there is room", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    totals.slowest = totals.slowest.max(begin.elapsed());
    // It never gives up and ends by itself.
    let outcome =
        tokio::time::timeout(Duration::from_secs(60), sending).await.context("the load does not end")???;
    ensure!(outcome.report.ok == requests, "{} of {requests}: {:?}", outcome.report.ok, outcome.report.errors);
    for kind in outcome.report.errors.keys() {
        ensure!(kind == "status 503", "answered otherwise than with 503: {:?}", outcome.report.errors);
    }
    totals.refused += outcome.report.errors.values().sum::<u64>();
    totals.ledger.extend_sent(outcome.sent);
    Ok(())
}

/// Starts the daemon; false when there is no room for that, which it must say itself.
async fn start_in(rig: &mut Rig) -> Result<bool> {
    rig.spawn(&rig.command()?)?;
    let admin = rig.admin;
    match rig.process()?.wait_ready(admin, START_DEADLINE).await {
        Ok(_) => Ok(true),
        Err(ProcessError::Ended { exit, .. }) => {
            ensure!(matches!(exit.code, Some(1 | 78)), "without room for a start it ended with {exit}");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// While there is no room: alive and not ready, the admin API answers, and whoever is refused is told when to
/// come again. Deliveries may wait, since their results cannot be recorded: those are there once there is room.
async fn look_while_full(rig: &Rig, time: Duration, totals: &mut Totals) -> Result<()> {
    let begin = Instant::now();
    let (mut refused, mut number) = (0, 0);
    while begin.elapsed() < time || refused == 0 {
        ensure!(begin.elapsed() < FULL_WITHIN, "nobody is refused");
        let alive = raw::get(rig.admin, "/livez", REQUEST_DEADLINE).await?.status;
        ensure!(alive == 200, "/livez says {alive} while there is no room");
        rig.api("/api/v1/statistics").await.context("while there is no room")?;
        rig.api("/api/v1/events?limit=5").await.context("while there is no room")?;
        // Larger than what may still fit somewhere.
        let (sent, answer) = post_large(rig, &format!("full-{number}")).await?;
        number += 1;
        match answer.status {
            200 => {}
            503 => {
                ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
                let ready = readiness(rig).await?;
                ensure!(ready == 503, "ready ({ready}) while there is no room");
                refused += 1;
            }
            other => bail!("answered {other} while there is no room"),
        }
        totals.ledger.sent(sent);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    totals.refused += refused;
    Ok(())
}

async fn readiness(rig: &Rig) -> Result<u16> {
    Ok(raw::get(rig.admin, "/readyz", REQUEST_DEADLINE).await?.status)
}

async fn post_large(rig: &Rig, name: &str) -> Result<(SentRequest, raw::RawResponse)> {
    let padding = "x".repeat(100_000);
    let body = format!(r#"{{"webhook_type":"fee.created","name":"{name}","padding":"{padding}"}}"#);
    let key = uuid::Uuid::new_v4().to_string();
    let mut request = SentRequest::begin("default", key.as_str(), "", Digest::of(body.as_bytes()));
    let answer = rig.post(&key, &body).await?;
    request.finish(answer.status, &answer.body);
    Ok((request, answer))
}

/// Posts a webhook of its own until it is accepted, for at most this time.
async fn accept(rig: &Rig, name: &str, within: Duration) -> Result<SentRequest> {
    let begin = Instant::now();
    loop {
        let (request, answer) = post_large(rig, name).await?;
        if request.is_accepted() {
            return Ok(request);
        }
        ensure!(begin.elapsed() < within, "answered {} {:?} after there is room", answer.status, begin.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
