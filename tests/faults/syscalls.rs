//! Faults in single system calls of the daemon: a kill at each of them, syncs and writes that fail.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Ledger, SentRequest};
use kit_workbench::load::{self, LoadControl, LoadOptions};
use kit_workbench::process::ProcessError;
use kit_workbench::raw::RawResponse;
use kit_workbench::{Digest, Moment};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::journal_file;
use outrigger_tests::rig::{DAEMON, Mode, REQUEST_DEADLINE, Rig, START_DEADLINE, UNSETTLED};
use outrigger_tests::strace::{CHANGED, Injection};

/// Every call that changes a file or tells a neighbour something.
const CALLS: [&str; 10] =
    ["openat", "write", "pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "sendto", "writev"];
/// A release kills at about so many calls.
const ALL_POINTS: u32 = 600;
/// Requests in the script, one after the other on each of two connections.
const SCRIPT: u64 = 40;
/// No script and no start makes so many calls of one kind in one thread.
const MOST_CALLS: usize = 20_000;
/// What SQLite may be built to sync with.
pub(crate) const SYNCS: &str = "fdatasync,fsync";
/// The thread that copies the log back.
const COPYING: &str = "journal-copy";
/// How soon a failed store must be open again.
const REOPENED_WITHIN: Duration = Duration::from_secs(2);

/// F2: killed at every call, one after the other, that forty requests make it do: nothing accepted is lost.
pub(crate) async fn a_kill_at_any_call_under_load_loses_nothing(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let mut ledger = Ledger::new();
    let mut points = Points::new(&mut trial);
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    for call in CALLS {
        let mut at = points.first();
        loop {
            let strace = Injection::new(call, format!("signal=KILL:when={at}")).attach(rig.process()?).await?;
            let from = Moment::now();
            let options =
                LoadOptions { connections: 2, requests: Some(SCRIPT), duplicates_percent: 10.0, ..rig.load() };
            let sending = tokio::spawn({
                let pool = rig.pool(8)?;
                async move { load::run(options, pool, &LoadControl::new()).await }
            });
            // Either the script comes to its end, or the daemon to its own.
            while rig.process()?.try_exit()?.is_none() && !sending.is_finished() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            strace.detach().await?;
            // It may also have been killed just after the last answer. What answers now is not being killed.
            let killed = rig.metrics().await.is_err();
            if killed {
                ledger.end(EndRecord::new(DAEMON, ExpectedEnd::Signal(9), rig.kill().await?));
                rig.start().await.with_context(|| format!("killed at {call} {at}"))?;
                let what = format!("kill at {call} {at}");
                ledger.crash(Crash { what, from, until: Moment::now(), in_flight: UNSETTLED });
            }
            ledger.extend_sent(sending.await??.sent);
            if !killed {
                break;
            }
            points.killed(&trial);
            at = points.next(at)?;
        }
    }
    let report = rig.settle(ledger, &format!("F2-{}", trial.seed)).await?;
    Ok(Outcome::new(
        points.killed,
        format!("{} accepted, 0 lost, {} delivered again", report.accepted, report.redelivered),
    ))
}

/// F2: killed at every call of a start – the first one ever, and one that recovers after a kill – it starts
/// at the next try and has every event.
pub(crate) async fn a_kill_at_any_call_of_a_start_is_recovered_from(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    // A journal as a kill leaves it: events that are in the write-ahead log only.
    pause(&rig, true).await?;
    let control = LoadControl::new();
    let options = LoadOptions { requests: Some(SCRIPT), ..rig.load() };
    let sent = load::run(options, rig.pool(8)?, &control).await?.sent;
    rig.kill().await?;
    let crashed = rig.scratch.file("crashed");
    std::fs::rename(rig.scratch.file("state"), &crashed)?;
    let accepted: BTreeSet<String> = sent.into_iter().filter_map(|request| request.event_id).collect();
    ensure!(accepted.len() as u64 == SCRIPT, "{} of {SCRIPT} were accepted", accepted.len());
    let empty = rig.scratch.file("empty");
    std::fs::create_dir(&empty)?;

    let mut points = Points::new(&mut trial);
    let all = points.stride;
    for (origin, expected) in [(&crashed, &accepted), (&empty, &BTreeSet::new())] {
        for call in CALLS {
            // There are few of most calls and many of this: a start reads every certificate.
            points.stride = if call == "openat" { all } else { all.div_ceil(5) };
            let mut at = points.first();
            loop {
                copy_folder(origin, &rig.scratch.file("state"))?;
                let injection = Injection::new(call, format!("signal=KILL:when={at}"));
                rig.spawn(&injection.wrap(rig.command()?))?;
                let admin = rig.admin;
                match rig.process()?.wait_ready(admin, START_DEADLINE).await {
                    Ok(_) => break,
                    Err(ProcessError::Ended { exit, .. }) if exit.signal == Some(9) => {}
                    Err(error) => return Err(error).with_context(|| format!("to be killed at {call} {at}")),
                }
                rig.start().await.with_context(|| format!("killed at {call} {at} of a start"))?;
                rig.kill().await?;
                let path = rig.journal_path();
                journal_file::check_store(&path, rig.scratch.path())?;
                let found = journal_file::read(&path).await?.event_ids.into_iter().collect::<BTreeSet<_>>();
                ensure!(found == *expected, "{} events after a kill at {call} {at} of a start", found.len());
                points.killed(&trial);
                at = points.next(at)?;
            }
            rig.kill().await?;
        }
    }
    Ok(Outcome::new(points.killed, format!("started again each time, with all of {SCRIPT} events or none")))
}

/// F5: a sync that fails is answered with 503 to whoever waits for it and to nobody else; the store is
/// opened anew and goes on without a restart.
pub(crate) async fn a_failed_sync_is_refused_and_the_store_reopened(trial: Trial) -> Result<Outcome> {
    a_failed_call_is_refused(trial, SYNCS, SCRIPT).await
}

/// F5: the same for a write that fails.
pub(crate) async fn a_failed_write_is_refused_and_the_store_reopened(trial: Trial) -> Result<Outcome> {
    a_failed_call_is_refused(trial, "pwrite64", 2 * SCRIPT).await
}

/// `points`: that many calls are certainly made while the script is accepted.
async fn a_failed_call_is_refused(mut trial: Trial, calls: &str, points: u64) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    // No results of deliveries: every commit is one request's.
    pause(&rig, true).await?;
    let mut ledger = Ledger::new();
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    let first = trial.random.u64(0..points);
    for round in 0..trial.count {
        trial.progress(round);
        let at = 1 + (first + u64::from(round) * points / u64::from(trial.count.min(40))) % points;
        // Now and then the disk fails a little longer, so that reopening fails as well.
        let until = if round % 3 == 2 { at + trial.random.u64(1..=4) } else { at };
        let before = rig.metrics().await?;
        let failing = Injection::new(calls, format!("error=EIO:when={at}..{until}")).watching("openat");
        let strace = failing.attach(rig.process()?).await?;
        let mut affected = 0;
        for number in 0..SCRIPT {
            let (key, body) = webhook(&format!("{round}-{number}"));
            let begin = Instant::now();
            let mut attempts = 0;
            loop {
                let (request, answer) = post(&rig, &key, &body).await?;
                let accepted = request.is_accepted();
                ledger.sent(request);
                if accepted {
                    break;
                }
                attempts += 1;
                ensure!(answer.status == 503, "{} when a {calls} failed", answer.status);
                ensure!(answer.header("retry-after").is_some(), "a 503 that does not say when to come again");
                ensure!(begin.elapsed() < REOPENED_WITHIN, "still refused after {:?}", begin.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            affected += u64::from(attempts > 0);
            refused += attempts;
            if attempts > 0 {
                slowest = slowest.max(begin.elapsed());
            }
        }
        let notes = strace.notes()?;
        let changed = strace.detach().await?;
        let after = rig.metrics().await?;
        let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
        ensure!(changed > 0, "round {round}: there is no {calls} number {at}\n{notes}");
        ensure!(grown("journal_failures_total") >= 1.0, "round {round}: a {calls} failed and no commit did");
        // The one whose commit failed; nobody where the journal wrote on its own account, to tidy up. If the
        // disk goes on failing after that, perhaps others.
        let lasting = until > at;
        let committed = grown("journal_group_events_sum");
        ensure!(
            (affected <= 1 || lasting) && as_float(SCRIPT - affected) <= committed,
            "round {round}: {affected} of {SCRIPT} requests were refused and {committed} committed when {calls} {at} to \
             {until} failed\n{notes}"
        );
        ensure!(is_reopened(&notes), "round {round}: the failed store is still in use\n{notes}");
        ensure!(rig.process()?.try_exit()?.is_none(), "round {round}: the daemon ended");
    }
    ensure!(refused > 0, "nobody was ever refused");
    pause(&rig, false).await?;
    let report = rig.settle(ledger, &format!("F5-{calls}-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{refused} times 503, {} accepted, 0 lost, taken again within {} ms",
            report.accepted,
            slowest.as_millis()
        ),
    ))
}

/// Whether the thread that writes opened the write-ahead log anew after the last call that failed: the kernel
/// tells of a failed sync once, and the old connection remembers what may never have reached the disk.
fn is_reopened(notes: &str) -> bool {
    let mut after = notes.lines().skip_while(|line| !line.contains(CHANGED));
    let thread = after.next().and_then(|line| line.split(' ').next()).unwrap_or_default();
    let last = notes.lines().rev().take_while(|line| !line.contains(CHANGED));
    last.into_iter()
        .any(|line| line.starts_with(thread) && line.contains("openat(") && line.contains("/journal.db-wal"))
}

/// F5: copying the log back into the main file fails. After a sync that failed, what was copied by then may not
/// be on the disk: the store is reopened and copies the whole log again. What could not be written was not copied,
/// and the log has it.
pub(crate) async fn a_failed_copy_is_made_again_from_the_beginning(mut trial: Trial) -> Result<Outcome> {
    /// Of one load: several times what fills the log.
    const REQUESTS: u64 = 6_000;
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    let mut ledger = Ledger::new();
    let mut refused = 0;
    for round in 0..trial.count {
        trial.progress(round);
        // Its syncs: of the log before it copies, of the main file after; and a write between them. The second
        // sync of all is the folder's, whose failure SQLite does not look at.
        let (calls, at) = match round % 3 {
            0 => (SYNCS, 3),
            1 => (SYNCS, [1, 4, 5, 6][trial.random.usize(0..4)]),
            _ => ("pwrite64", 1 + trial.random.u64(0..400)),
        };
        let before = rig.metrics().await?.sum("journal_failures_total", &[]);
        let failing = Injection::new(calls, format!("error=EIO:when={at}"));
        let strace = failing.attach_thread(rig.process()?, COPYING).await?;
        let options = LoadOptions { connections: 16, requests: Some(REQUESTS), ..rig.load() };
        let sent = load::run(options, rig.pool(64)?, &LoadControl::new()).await?.sent;
        let notes = strace.end().await?;
        ensure!(
            notes.contains(CHANGED),
            "round {round}: the log was not copied often enough for {calls} {at}\n{notes}"
        );
        refused += sent.iter().filter(|request| !request.is_accepted()).count();
        ledger.extend_sent(sent);
        let (key, body) = webhook(&format!("after-{round}"));
        ledger.sent(until_accepted(&rig, &key, &body).await?);
        let failures = rig.metrics().await?.sum("journal_failures_total", &[]) - before;
        ensure!(
            failures >= 1.0 || calls != SYNCS,
            "round {round}: {calls} {at} failed, and the store was used as if nothing were\n{notes}"
        );
    }
    let report = rig.settle(ledger, &format!("F5-copy-{}", trial.seed)).await?;
    Ok(Outcome::new(trial.count, format!("{} accepted, 0 lost, {refused} refused meanwhile", report.accepted)))
}

/// F5: of a group of requests whose commit fails none is accepted: what is accepted is what the commits that
/// succeeded held.
pub(crate) async fn no_member_of_a_failed_group_is_accepted(trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    pause(&rig, true).await?;
    let mut ledger = Ledger::new();
    let (mut refused, mut largest) = (0, 0);
    for round in 0..trial.count {
        trial.progress(round);
        let before = rig.metrics().await?.sum("journal_group_events_sum", &[]);
        // The second: while the first is under way the others gather behind it.
        let strace = Injection::new(SYNCS, "error=EIO:when=2").attach(rig.process()?).await?;
        let webhooks: Vec<_> = (0..32).map(|number| webhook(&format!("{round}-{number}"))).collect();
        let answers = join_all(webhooks.iter().map(|(key, body)| post(&rig, key, body))).await;
        let mut accepted = 0;
        let mut failed = 0;
        for answer in answers {
            let (request, answer) = answer?;
            ensure!(matches!(answer.status, 200 | 503), "answered {}", answer.status);
            accepted += u64::from(request.is_accepted());
            failed += u64::from(!request.is_accepted());
            ledger.sent(request);
        }
        // They may all fit into the first.
        strace.detach().await?;
        let committed = rig.metrics().await?.sum("journal_group_events_sum", &[]) - before;
        ensure!(as_float(accepted) <= committed, "round {round}: {accepted} accepted, {committed} committed");
        refused += failed;
        largest = largest.max(failed);
        for (key, body) in &webhooks {
            ledger.sent(until_accepted(&rig, key, body).await?);
        }
    }
    ensure!(refused > 0, "nobody was ever refused");
    pause(&rig, false).await?;
    let report = rig.settle(ledger, &format!("F5-groups-{}", trial.seed)).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{refused} refused, up to {largest} at once, {} accepted when they came again", report.accepted),
    ))
}

/// How the points of a run are chosen: every one in a release, every tenth from a random one on otherwise.
struct Points {
    stride: usize,
    first: usize,
    killed: u32,
}

impl Points {
    fn new(trial: &mut Trial) -> Self {
        let stride = usize::try_from((ALL_POINTS / trial.count.max(1)).max(1)).unwrap_or(1);
        Self { stride, first: trial.random.usize(1..=stride), killed: 0 }
    }

    /// Of each kind of call a different one, so that rare ones have their turn too.
    fn first(&mut self) -> usize {
        self.first = self.first % self.stride + 1;
        self.first
    }

    fn next(&self, at: usize) -> Result<usize> {
        let next = at + self.stride;
        ensure!(next < MOST_CALLS, "killed at more than {MOST_CALLS} calls and still no end");
        Ok(next)
    }

    fn killed(&mut self, trial: &Trial) {
        self.killed += 1;
        trial.progress(self.killed);
    }
}

/// Starts the rig, and makes sure that it can be traced.
pub(crate) async fn start_traceable(rig: &mut Rig) -> Result<()> {
    rig.start().await?;
    // A fault that does not come.
    let attached = Injection::new("fsync", "error=EIO:when=60000").attach(rig.process()?).await;
    attached.context("trace the daemon")?.detach().await?;
    Ok(())
}

/// Stops deliveries, or lets them go on.
async fn pause(rig: &Rig, paused: bool) -> Result<()> {
    let word = if paused { "pause" } else { "resume" };
    let answer = rig.act(&format!("/api/v1/sinks/gateway/{word}"), &serde_json::json!({})).await?;
    ensure!(answer.status == 200, "{word} is answered {}: {}", answer.status, answer.text());
    Ok(())
}

/// A webhook of its own: key and body.
pub(crate) fn webhook(name: &str) -> (String, String) {
    (format!("key-{name}"), format!(r#"{{"webhook_type":"fee.created","name":"{name}"}}"#))
}

/// Posts it and keeps an account of it.
pub(crate) async fn post(rig: &Rig, key: &str, body: &str) -> Result<(SentRequest, RawResponse)> {
    let mut request = SentRequest::begin("default", key, "", Digest::of(body.as_bytes()));
    let answer = rig.post(key, body).await?;
    request.finish(answer.status, &answer.body);
    Ok((request, answer))
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// Posts it until it is accepted.
pub(crate) async fn until_accepted(rig: &Rig, key: &str, body: &str) -> Result<SentRequest> {
    let begin = Instant::now();
    loop {
        let (request, answer) = post(rig, key, body).await?;
        if request.is_accepted() {
            return Ok(request);
        }
        if begin.elapsed() > REQUEST_DEADLINE {
            bail!("still answered {} after {:?}", answer.status, begin.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes `to` a copy of the folder `from`, whatever it was before.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
