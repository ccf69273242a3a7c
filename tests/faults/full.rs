//! No room: a full disk, a limit on the size of files, writes that are refused for lack of space or quota.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::ledger::Ledger;
use kit_workbench::process::ProcessError;
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::journal_file;
use outrigger_tests::limits::{SmallDisk, set_file_limit, with_file_limit};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, START_DEADLINE};
use outrigger_tests::strace::{Attached, Injection};

use crate::syscalls::{post, start_traceable, until_accepted, webhook};

const KIB: u64 = 1024;
/// Taken again within this time after there is room.
const RECOVERY_LIMIT: Duration = Duration::from_secs(2);
/// Readiness follows what was answered within this time.
const TOLD_WITHIN: Duration = Duration::from_millis(500);
/// Events that wait for the gateway when the room runs out.
const BACKLOG: u64 = 40;
/// Bodies of the size that fills a small disk in a few requests.
const BODY_BYTES: usize = 20_000;
/// Room that a disk has again after an outage.
const PLENTY: u64 = 64 * KIB * KIB;

/// F7: a disk between half a mebibyte and four that fills up.
pub(crate) async fn a_full_disk_refuses_and_recovers_without_a_restart(mut trial: Trial) -> Result<Outcome> {
    let mut totals = Totals::default();
    for round in 0..trial.count {
        trial.progress(round);
        let disk = match SmallDisk::create(PLENTY) {
            Ok(disk) => disk,
            Err(error) => return Outcome::skipped_if_refused(error),
        };
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        rig.place_journal(disk.folder());
        rig.start().await?;
        let mut outage = Outage::begin(rig).await?;
        // Sometimes there is room for a webhook or two more, sometimes for not even a page of the log.
        let leave = trial.random.u64(0..=64) * 4 * KIB;
        if round % 2 == 0 {
            // The file system is as large as that and full by what the journal itself writes.
            let size = trial.random.u64(1_500..=4_096) * KIB;
            disk.resize(size).with_context(|| format!("make the disk {size} bytes small"))?;
        } else {
            disk.fill(leave)?;
        }
        outage.refused().await.with_context(|| format!("round {round}"))?;
        if round % 2 == 0 {
            disk.resize(PLENTY)?;
        } else {
            disk.free()?;
        }
        outage.over(&mut totals, &format!("F7-disk-{}", trial.seed)).await.with_context(|| format!("round {round}"))?;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F7: a limit on the size of files.
pub(crate) async fn a_file_size_limit_refuses_and_recovers_without_a_restart(mut trial: Trial) -> Result<Outcome> {
    let mut totals = Totals::default();
    for round in 0..trial.count {
        trial.progress(round);
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        let command = with_file_limit(rig.command()?, PLENTY);
        rig.spawn(&command)?;
        let admin = rig.admin;
        rig.process()?.wait_ready(admin, START_DEADLINE).await?;
        let pid = rig.process()?.pid();
        let mut outage = Outage::begin(rig).await?;
        // Above what the log has by now, or below.
        let limit = trial.random.u64(1..=3_000) * KIB;
        set_file_limit(pid, Some(limit))?;
        outage.refused().await.with_context(|| format!("round {round}, limit {limit}"))?;
        set_file_limit(pid, None)?;
        outage
            .over(&mut totals, &format!("F7-limit-{}", trial.seed))
            .await
            .with_context(|| format!("round {round}"))?;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F7: the Nth write and all after it are refused for lack of space, or of quota.
pub(crate) async fn writes_without_room_are_refused_and_the_journal_recovers(trial: Trial) -> Result<Outcome> {
    let mut totals = Totals::default();
    for round in 0..trial.count {
        trial.progress(round);
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        if let Err(error) = start_traceable(&mut rig).await {
            return Outcome::skipped_if_refused(error);
        }
        let mut outage = Outage::begin(rig).await?;
        let error = if round % 2 == 0 { "ENOSPC" } else { "EDQUOT" };
        let at = 1 + (trial.offset + round) / 2 % 60;
        // Space for a file is taken in more than one way.
        let injection = Injection::new("pwrite64,ftruncate,fallocate", format!("error={error}:when={at}+"));
        let strace: Attached = injection.attach(outage.rig.process()?).await?;
        outage.refused().await.with_context(|| format!("{error} at write {at}"))?;
        strace.detach().await?;
        let evidence = format!("F7-writes-{}", trial.seed);
        outage.over(&mut totals, &evidence).await.with_context(|| format!("{error} at write {at}"))?;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F7: a start on a disk from 64 KiB upwards either works or ends with one line that says why, and what it
/// leaves behind is good enough for a start with room.
pub(crate) async fn a_start_without_room_says_so_and_leaves_nothing_broken(trial: Trial) -> Result<Outcome> {
    let (mut refused, mut running) = (0, 0);
    for round in 0..trial.count {
        trial.progress(round);
        // From a disk on which not even the tables have room to one that is full a little later.
        let size = (16 + (u64::from(trial.offset + round) * 12) % 240) * 4 * KIB;
        let disk = match SmallDisk::create(size) {
            Ok(disk) => disk,
            Err(error) => return Outcome::skipped_if_refused(error),
        };
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        rig.place_journal(disk.folder());
        let command = rig.command()?;
        rig.spawn(&command)?;
        let admin = rig.admin;
        match rig.process()?.wait_ready(admin, START_DEADLINE).await {
            Ok(_) => {
                running += 1;
                let (exit, _) = rig.stop().await?;
                ensure!(exit.code == Some(0), "{size} bytes: {exit} after a stop");
            }
            Err(ProcessError::Ended { exit, .. }) => {
                refused += 1;
                let said = rig.process()?.stderr();
                ensure!(exit.code == Some(1), "{size} bytes: {exit}: {said}");
                ensure!(said.lines().count() == 1, "{size} bytes: not one line: {said}");
                ensure!(said.contains("SIDECAR_JOURNAL__PATH") || said.contains("journal"), "{size} bytes: {said}");
            }
            Err(error) => return Err(error).with_context(|| format!("start with {size} bytes")),
        }
        disk.resize(PLENTY)?;
        rig.start().await.with_context(|| format!("start with room after one with {size} bytes"))?;
        let (key, body) = webhook("first");
        let accepted = until_accepted(&rig, &key, &body).await?;
        let (exit, _) = rig.stop().await?;
        ensure!(exit.code == Some(0), "{exit}");
        let stored = journal_file::read(&rig.journal_path()).await?.event_ids;
        ensure!(accepted.event_id.as_ref() == stored.first() && stored.len() == 1, "{accepted:?}, stored: {stored:?}");
    }
    ensure!(trial.count < 20 || refused > 0 && running > 0, "{refused} starts refused, {running} not");
    Ok(Outcome::new(trial.count, format!("{refused} refused with one line, {running} ran, all started with room")))
}

/// One outage of a running daemon and the account of it.
pub(crate) struct Outage {
    pub(crate) rig: Rig,
    pub(crate) ledger: Ledger,
    /// Webhooks that were sent so far.
    sent: u64,
    /// Those that were refused and come again.
    pub(crate) again: Vec<(String, String)>,
    pub(crate) refusals: u64,
}

impl Outage {
    /// Lets a backlog pile up before the outage.
    pub(crate) async fn begin(rig: Rig) -> Result<Self> {
        rig.gateway.stop().await;
        let mut outage = Self { rig, ledger: Ledger::new(), sent: 0, again: Vec::new(), refusals: 0 };
        while outage.sent < BACKLOG {
            let (key, body) = webhook(&outage.sent.to_string());
            outage.ledger.sent(until_accepted(&outage.rig, &key, &body).await?);
            outage.sent += 1;
        }
        Ok(outage)
    }

    /// Sends a webhook of some size; whether it was accepted. What is refused must be refused in form.
    pub(crate) async fn send(&mut self) -> Result<bool> {
        let (key, body) = webhook(&format!("{}-{}", self.sent, "x".repeat(BODY_BYTES)));
        let key = key.get(..20).unwrap_or(&key).to_owned();
        self.sent += 1;
        let (request, answer) = post(&self.rig, &key, &body).await?;
        let accepted = request.is_accepted();
        self.ledger.sent(request);
        if !accepted {
            ensure!(answer.status == 503, "{} {}", answer.status, answer.text());
            ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
            self.again.push((key, body));
            self.refusals += 1;
        }
        Ok(accepted)
    }

    /// Whether it still says that it is ready, a moment after it has refused a webhook. It may be: what was refused has
    /// made it empty its log, and there is room again.
    pub(crate) async fn says_ready(&self) -> Result<bool> {
        let begin = Instant::now();
        while begin.elapsed() < TOLD_WITHIN {
            if raw::get(self.rig.admin, "/readyz", REQUEST_DEADLINE).await?.status == 503 {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    /// Waits until webhooks are refused and looks at everything else that must go on meanwhile.
    pub(crate) async fn refused(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.send().await? || self.says_ready().await? {
            ensure!(begin.elapsed() < REQUEST_DEADLINE, "it is never not ready for good after {} webhooks", self.sent);
        }
        let liveness = raw::get(self.rig.admin, "/livez", REQUEST_DEADLINE).await?;
        ensure!(liveness.status == 200, "not alive: {}", liveness.text());
        let statistics = self.rig.api("/api/v1/statistics").await.context("read without room")?;
        ensure!(statistics["accepted"].as_u64().is_some_and(|count| count >= BACKLOG), "{statistics}");
        let event = self.rig.api("/api/v1/events?limit=1").await.context("read an event without room")?;
        ensure!(event["events"].as_array().is_some_and(|events| events.len() == 1), "{event}");

        self.rig.gateway.restart_on_same_port().await?;
        self.rig.gateway.wait_for_unique(BACKLOG, REQUEST_DEADLINE).await.context("deliver without room")?;
        for _ in 0..5 {
            self.send().await?;
        }
        ensure!(self.rig.process()?.try_exit()?.is_none(), "the daemon ended");
        Ok(())
    }

    /// There is room again: webhooks are taken soon, and what was refused comes again.
    pub(crate) async fn over(mut self, totals: &mut Totals, evidence: &str) -> Result<()> {
        let begin = Instant::now();
        while !self.send().await? {
            ensure!(begin.elapsed() < RECOVERY_LIMIT, "still refused {:?} after there is room", begin.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let recovered = begin.elapsed();
        ensure!(recovered < RECOVERY_LIMIT, "taken again after {recovered:?}");
        let admin = self.rig.admin;
        self.rig.process()?.wait_ready(admin, RECOVERY_LIMIT).await?;
        for (key, body) in std::mem::take(&mut self.again) {
            self.ledger.sent(until_accepted(&self.rig, &key, &body).await?);
        }
        let report = self.rig.settle(self.ledger, evidence).await?;
        totals.refused += self.refusals;
        totals.accepted += report.accepted;
        totals.slowest = totals.slowest.max(recovered);
        Ok(())
    }
}

/// What many outages came to.
#[derive(Default)]
pub(crate) struct Totals {
    refused: u64,
    accepted: u64,
    slowest: Duration,
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { refused, accepted, slowest } = self;
        write!(f, "{refused} times 503, {accepted} accepted, 0 lost, taken again within {} ms", slowest.as_millis())
    }
}
