//! A wall clock that jumps: by an hour, by years, to 1970, forwards and back, while the daemon runs and
//! between two lives of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit::clock::{Clock as _, SystemClock, Timestamp};
use kit_lago::sample::{Shape, sample};
use kit_workbench::gateway::{Behaviour, Gateway, GatewayOptions};
use kit_workbench::ledger::{Crash, EndRecord, ExpectedEnd, Ledger, SentRequest};
use kit_workbench::{Digest, Moment};
use outrigger_tests::api::ask_with_token;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, Mode, Rig, UNSETTLED};
use serde_json::json;

/// Webhooks of one round: some are delivered at once, the rest waits for its retry.
const WEBHOOKS: u64 = 20;
/// Webhooks of earlier rounds that are sent again in each.
const AGAIN: usize = 40;
/// The longest that the daemon puts off anything in this configuration: what a gateway may ask for.
const RETRY_AFTER_MAX: &str = "2";
/// For that, for what it waits between two looks at what operators asked for, and a busy machine.
const SLACK: Duration = Duration::from_secs(30);

const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

/// Where libfaketime lies, if it is installed.
pub(crate) fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join("faketime"));
    let names = folders.chain([PathBuf::from("/usr/lib/faketime"), PathBuf::from("/usr/local/lib/faketime")]);
    names.map(|folder| folder.join("libfaketimeMT.so.1")).find(|file| file.is_file())
}

/// One jump of the clock, as an offset in seconds from the true time, and when it happens.
#[derive(Clone, Copy, Debug)]
struct Jump {
    offset: i64,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The daemon runs on.
    Running,
    /// It is stopped, and started again under the other time.
    Stopped,
    /// It is killed.
    Killed,
}

/// The jumps of one trial: every kind within the first rounds, then any.
fn jumps(trial: &mut Trial) -> Vec<Jump> {
    let to_1970 = 10 - SystemClock.now().as_millis() / 1000;
    let offsets = [10 * YEAR, HOUR, to_1970, 0, -10 * YEAR, -HOUR];
    let lives = [Life::Running, Life::Stopped, Life::Running, Life::Killed, Life::Running, Life::Stopped];
    (0..trial.count)
        .map(|nth| {
            let nth = nth as usize;
            match nth {
                0..6 => Jump { offset: offsets[nth], life: lives[nth] },
                _ => Jump { offset: offsets[trial.random.usize(..6)], life: lives[trial.random.usize(..6)] },
            }
        })
        .collect()
}

struct Clocked {
    rig: Rig,
    ledger: Ledger,
    file: PathBuf,
    /// Everything sent so far, with its event's id.
    sent: Vec<(String, String, String)>,
}

impl Clocked {
    async fn new(library: &Path) -> Result<Self> {
        let settings = [
            // Attempts enough for every round, and a schedule whose times are known.
            ("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", &*vec!["0.5"; 1000].join(",")),
            ("SIDECAR_GATEWAY__RETRY__RETRY_AFTER_MAX_SECONDS", RETRY_AFTER_MAX),
            ("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "1"),
        ];
        let mut rig = Rig::new(Mode::Hmac, &settings).await?;
        // This gateway knows what time it is, and would refuse deliveries signed in another year.
        let secret = std::fs::read_to_string(rig.scratch.file("signing"))?;
        let options = GatewayOptions { secrets: vec![secret], signature_tolerance: None, ..GatewayOptions::default() };
        rig.gateway = Gateway::start(options).await?;
        rig.set("BRAIN_GATEWAY_URL", &rig.gateway.url());
        let file = rig.scratch.file("clock");
        rig.set("LD_PRELOAD", &library.display().to_string());
        rig.set("FAKETIME_TIMESTAMP_FILE", &file.display().to_string());
        rig.set("FAKETIME_NO_CACHE", "1");
        rig.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let clocked = Self { rig, ledger: Ledger::new(), file, sent: Vec::new() };
        clocked.turn(0)?;
        Ok(clocked)
    }

    /// Turns the clock; a reader sees the old text or the new one.
    fn turn(&self, offset: i64) -> Result<()> {
        let other = self.file.with_extension("new");
        std::fs::write(&other, format!("{offset:+}\n"))?;
        std::fs::rename(&other, &self.file)?;
        Ok(())
    }

    async fn post(&mut self, key: &str, body: &str) -> Result<SentRequest> {
        let mut sent = SentRequest::begin("default", key, "", Digest::of(body.as_bytes()));
        let answer = self.rig.post(key, body).await?;
        sent.finish(answer.status, &answer.body);
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        self.ledger.sent(sent.clone());
        Ok(sent)
    }

    /// Sends new webhooks.
    async fn send(&mut self, trial: &mut Trial, count: u64) -> Result<()> {
        for _ in 0..count {
            let key = uuid::Uuid::from_u128(trial.random.u128(..)).to_string();
            let body = sample("invoice.created", &Shape { seq: self.sent.len() as u64, ..Shape::default() });
            let sent = self.post(&key, &body).await?;
            ensure!(sent.duplicate == Some(false), "a new webhook is called a duplicate");
            let id = sent.event_id.context("an accepted webhook has an id")?;
            self.sent.push((key, body, id));
        }
        Ok(())
    }

    /// Sends earlier ones again: the very first, and some of all ages.
    async fn send_again(&mut self, trial: &mut Trial) -> Result<()> {
        let mut which: Vec<usize> = (0..AGAIN).map(|_| trial.random.usize(..self.sent.len())).collect();
        which.push(0);
        for nth in which {
            let (key, body, id) = self.sent[nth].clone();
            let sent = self.post(&key, &body).await?;
            ensure!(sent.duplicate == Some(true), "webhook {nth} of {} has been forgotten", self.sent.len());
            ensure!(sent.event_id.as_deref() == Some(&*id), "webhook {nth} has another id");
        }
        Ok(())
    }

    /// Ends the daemon, turns the clock, and starts it again.
    async fn new_life(&mut self, jump: Jump) -> Result<()> {
        let from = Moment::now();
        let (exit, expected) = match jump.life {
            Life::Killed => (self.rig.process()?.kill9().await?, ExpectedEnd::Signal(9)),
            _ => (self.rig.stop().await?.0, ExpectedEnd::Code(0)),
        };
        self.ledger.end(EndRecord::new(DAEMON, expected, exit));
        self.turn(jump.offset)?;
        self.rig.start().await?;
        self.ledger.crash(Crash { what: format!("{jump:?}"), from, until: Moment::now(), in_flight: UNSETTLED });
        Ok(())
    }

    /// The daemon's own idea of the time must be the turned one, or nothing is proven.
    async fn time_is(&self, offset: i64) -> Result<()> {
        let (_, _, id) = self.sent.last().context("something was sent")?;
        let shown = self.rig.api(&format!("/api/v1/events/{id}")).await?;
        let received = shown["received_at"].as_str().context("an event has a receipt time")?;
        let received: Timestamp = received.parse()?;
        let expected = SystemClock.now().plus_millis(offset * 1000);
        let apart = (received.as_millis() - expected.as_millis()).abs();
        ensure!(apart < 120_000, "the daemon thinks that it is {received}, it should be {expected}");
        Ok(())
    }

    /// Waits until a step of forgetting and removing has been made since the last webhook: it reads the
    /// gauge anew.
    async fn purged(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let known = self.rig.metrics().await?.sum("journal_dedupe_keys", &[]);
            if known >= self.sent.len() as f64 {
                return Ok(());
            }
            ensure!(begin.elapsed() < SLACK, "{known} keys are remembered of {}", self.sent.len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn api_write(&self, path: &str, body: &str) -> Result<serde_json::Value> {
        let answer = ask_with_token(&self.rig, "POST", path, Some(body)).await?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        Ok(answer.json()?)
    }
}

/// F11: the wall clock jumps while retries wait, in a running daemon and between two lives: nothing is
/// lost, no retry waits longer than the longest wait, no key is forgotten and no delivered body removed
/// before its time, and what an operator asked for again is delivered.
pub(crate) async fn no_jump_of_the_clock_loses_or_forgets_anything(mut trial: Trial) -> Result<Outcome> {
    let Some(library) = library() else { return Ok(Outcome::skipped("libfaketime is not installed")) };
    let mut clocked = Clocked::new(&library).await?;
    clocked.rig.start().await?;
    let mut slowest = Duration::ZERO;
    let jumps = jumps(&mut trial);
    let mut replayed = 0;
    for (nth, jump) in jumps.iter().enumerate() {
        trial.progress(u32::try_from(nth)?);
        let (waited, again) =
            one_jump(&mut clocked, &mut trial, *jump).await.with_context(|| format!("{nth}: {jump:?}"))?;
        slowest = slowest.max(waited);
        replayed += again;
    }
    let Clocked { rig, ledger, sent, .. } = clocked;
    // The longest ago is still there to be looked at: a day has not passed.
    let first = rig.api(&format!("/api/v1/events/{}/body", sent[0].2)).await;
    ensure!(first.is_ok(), "the first body has been removed: {first:?}");
    let report = rig.settle(ledger, &format!("F11-{}", trial.seed)).await?;
    ensure!(report.accepted == sent.len() as u64, "{} accepted of {}", report.accepted, sent.len());
    Ok(Outcome::new(
        jumps.len(),
        format!(
            "{} accepted, {} known again, {replayed} replayed, slowest drain {:.1} s",
            report.accepted,
            report.duplicates_answered,
            slowest.as_secs_f64()
        ),
    ))
}

/// Returns how long it took until everything was delivered, and how many an operator asked for again.
async fn one_jump(clocked: &mut Clocked, trial: &mut Trial, jump: Jump) -> Result<(Duration, usize)> {
    clocked.send(trial, WEBHOOKS / 2).await?;
    clocked.rig.drained().await?;
    // Half of a round's webhooks, and some delivered ones asked for again, wait when the clock jumps.
    clocked.rig.gateway.set_behaviour(Behaviour::status(500));
    clocked.send(trial, WEBHOOKS / 2).await?;
    let ids: Vec<String> = clocked.sent.iter().rev().skip(10).take(3).map(|(_, _, id)| id.clone()).collect();
    let asked = clocked.api_write("/api/v1/deliveries/replay", &json!({"select": {"ids": ids}}).to_string()).await?;
    ensure!(asked["changed"] == ids.len(), "a replay changed {asked}");
    ids.iter().for_each(|id| clocked.ledger.replayed(id));
    let begin = Instant::now();
    while clocked.rig.api("/api/v1/deliveries?state=retrying&limit=500").await?["deliveries"]
        .as_array()
        .map_or(0, Vec::len)
        < 8
    {
        ensure!(begin.elapsed() < SLACK, "nothing is being retried");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    match jump.life {
        Life::Running => clocked.turn(jump.offset)?,
        Life::Stopped | Life::Killed => clocked.new_life(jump).await?,
    }
    clocked.send(trial, 2).await?;
    clocked.time_is(jump.offset).await?;
    clocked.purged().await?;
    clocked.send_again(trial).await?;

    clocked.rig.gateway.set_behaviour(Behaviour::Ok);
    let begin = Instant::now();
    clocked.rig.drained().await?;
    let waited = begin.elapsed();
    ensure!(waited <= SLACK, "it took {waited:?} until everything was delivered");
    Ok((waited, ids.len()))
}
