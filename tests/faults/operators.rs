//! Operators who pause, resume and replay while everything around them breaks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Moment;
use kit_workbench::gateway::Behaviour;
use kit_workbench::ledger::Ledger;
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::power::{Disk, FileSystem};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::power::{PoweredRig, Sending};

/// One event of so many is refused by the gateway at first, and becomes a dead letter.
const DEAD_LETTERS: u64 = 8;
/// Delivered events of which an operator chooses: the latest.
const CHOICE: usize = 200;
/// A journal goes through so many faults before everything is settled.
const FAULTS_PER_JOURNAL: u32 = 25;
/// How long replaying all dead letters may take in the end.
const DEADLINE: Duration = Duration::from_secs(60);

/// F31: whatever operators do while the daemon is killed again and again: nothing is lost, what was done is
/// in the audit trail, and a sink that was paused stays paused.
pub(crate) async fn operators_may_act_while_the_daemon_is_killed(mut trial: Trial) -> Result<Outcome> {
    let mut totals = Totals::default();
    let mut done = 0;
    while done < trial.count {
        let last = trial.count.min(done + FAULTS_PER_JOURNAL);
        let mut rig = Rig::started(Mode::Hmac, &[]).await?;
        rig.gateway.set_behaviour(refusing_some());
        let mut ledger = Ledger::new();
        let sending = Sending::start(&rig, |options| options)?;
        let mut acted = 0;
        for kill in done..last {
            trial.progress(kill);
            let operator = Operator::start(&rig, &mut trial);
            // Not waiting for luck: the random moment is the experiment.
            tokio::time::sleep(trial.millis(20, 300)).await;
            rig.crash(&mut ledger).await.with_context(|| format!("kill {}", kill + 1))?;
            let shift = operator.end().await?;
            shift.check_pause(&rig, |_| false).await.with_context(|| format!("kill {}", kill + 1))?;
            acted += shift.acted.len() as u64;
            totals.add(&shift);
            shift.tell(&mut ledger);
        }
        done = last;
        ledger.extend_sent(sending.stop().await?);
        totals.audited += clear_up(&rig, &mut ledger, acted).await?;
        let report = rig.settle(ledger, &format!("F31-kills-{}", trial.seed)).await?;
        totals.accepted += report.accepted;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// F31: the same while the power is cut.
pub(crate) async fn operators_may_act_while_the_power_is_cut(mut trial: Trial) -> Result<Outcome> {
    let disk = match Disk::create(FileSystem::Ext4) {
        Ok(disk) => disk,
        Err(error) => return Outcome::skipped_if_refused(error.context("no filesystem on a loop device")),
    };
    let mut totals = Totals::default();
    let mut done = 0;
    while done < trial.count {
        let last = trial.count.min(done + FAULTS_PER_JOURNAL);
        let mut powered = PoweredRig::new(&disk, Rig::new(Mode::Hmac, &[]).await?)?;
        powered.rig.gateway.set_behaviour(refusing_some());
        powered.start().await?;
        let sending = Sending::start(&powered.rig, |options| options)?;
        let mut acted = 0;
        for cut in done..last {
            trial.progress(cut);
            let operator = Operator::start(&powered.rig, &mut trial);
            tokio::time::sleep(trial.millis(20, 300)).await;
            powered.cut().await.with_context(|| format!("cut {}", cut + 1))?;
            let shift = operator.end().await?;
            powered.start().await?;
            let blind = |at| powered.is_blind(at);
            shift.check_pause(&powered.rig, blind).await.with_context(|| format!("cut {}", cut + 1))?;
            acted += shift.acted.iter().filter(|at| !powered.is_blind(**at)).count() as u64;
            totals.add(&shift);
            shift.tell(&mut powered.ledger);
        }
        done = last;
        let sent = sending.stop().await?;
        totals.audited += clear_up(&powered.rig, &mut powered.ledger, acted).await?;
        totals.accepted += powered.settle(sent, &format!("F31-cuts-{}", trial.seed)).await?.accepted;
    }
    Ok(Outcome::new(trial.count, totals.to_string()))
}

/// A gateway that refuses some events the first time they come.
fn refusing_some() -> Behaviour {
    Behaviour::by_request(|head| {
        // The id's last digits, so that the same event is meant every time.
        let id = head.event_id.as_deref().unwrap_or_default();
        let number = id.get(id.len().saturating_sub(8)..).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let chosen = number.is_some_and(|number| number % DEAD_LETTERS == 0);
        if chosen && head.attempt == 1 { Behaviour::status(400) } else { Behaviour::Ok }
    })
}

/// Lets deliveries go on, replays what is dead, and makes sure that everything acknowledged is in the audit
/// trail; returns how much is in there.
async fn clear_up(rig: &Rig, ledger: &mut Ledger, acted: u64) -> Result<u64> {
    let audited = audit_records(rig).await?;
    ensure!(audited >= acted, "{acted} actions were acknowledged and {audited} are in the audit trail");
    rig.gateway.set_behaviour(Behaviour::Ok);
    act(rig, "/api/v1/sinks/gateway/resume", &json!({})).await?;
    let begin = Instant::now();
    loop {
        rig.drained().await?;
        let statistics = rig.api("/api/v1/statistics").await?;
        if statistics["sinks"][0]["parked"] == 0 {
            break;
        }
        ensure!(begin.elapsed() < DEADLINE, "dead letters are left: {statistics}");
        act(rig, "/api/v1/deliveries/replay", &json!({"select": {"state": "parked"}})).await?;
    }
    // Whoever was a dead letter has let others go first.
    rig.gateway.with_received(|received| {
        for refused in received.iter().filter(|received| !received.taken) {
            if let Some(id) = &refused.event_id {
                ledger.replayed(id);
            }
        }
    });
    Ok(audited)
}

async fn act(rig: &Rig, path: &str, body: &serde_json::Value) -> Result<()> {
    let answer = rig.act(path, body).await?;
    ensure!(answer.status == 200, "{path} is answered {}: {}", answer.status, answer.text());
    Ok(())
}

async fn audit_records(rig: &Rig) -> Result<u64> {
    let mut path = "/api/v1/audit?limit=100".to_owned();
    let mut records = 0;
    loop {
        let page = rig.api(&path).await?;
        records += page["records"].as_array().context("no audit records")?.len() as u64;
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/audit?limit=100&cursor={cursor}"),
            None => return Ok(records),
        }
    }
}

/// Someone who does this and that as fast as it is answered.
struct Operator {
    stop: tokio::sync::watch::Sender<bool>,
    task: JoinHandle<Result<Shift>>,
}

/// What an operator did.
#[derive(Default)]
struct Shift {
    /// When each action was acknowledged.
    acted: Vec<Moment>,
    /// Actions that were not: the daemon was gone, or could not write.
    failed: u64,
    /// Delivered events that were asked for again.
    replayed: Vec<String>,
    /// The last word about pausing and when it came; `None` where an unanswered one came after it.
    paused: Option<(bool, Moment)>,
}

impl Operator {
    fn start(rig: &Rig, trial: &mut Trial) -> Self {
        let (admin, token) = (rig.admin, rig.token.clone());
        let delivered: Vec<String> = rig.gateway.with_received(|received| {
            let taken = received.iter().rev().filter(|received| received.taken);
            taken.take(CHOICE).filter_map(|received| received.event_id.clone()).collect()
        });
        let random = trial.random.fork();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(work(admin, token, delivered, random, stopped));
        Self { stop, task }
    }

    /// Sends them home; the action under way is finished.
    async fn end(self) -> Result<Shift> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

async fn work(
    admin: SocketAddr,
    token: String,
    delivered: Vec<String>,
    mut random: fastrand::Rng,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Result<Shift> {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let mut shift = Shift::default();
    while !*stopped.borrow() {
        let pausing = match random.u8(0..6) {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        };
        let (path, body) = match pausing {
            Some(true) => ("/api/v1/sinks/gateway/pause", json!({})),
            Some(false) => ("/api/v1/sinks/gateway/resume", json!({})),
            None if delivered.is_empty() || random.bool() => {
                ("/api/v1/deliveries/replay", json!({"select": {"state": "parked"}}))
            }
            None => {
                let many = random.usize(1..=5);
                let ids: Vec<String> = (0..many).map(|_| delivered[random.usize(..delivered.len())].clone()).collect();
                shift.replayed.extend(ids.iter().cloned());
                ("/api/v1/deliveries/replay", json!({"select": {"ids": ids}}))
            }
        };
        if pausing.is_some() {
            shift.paused = None;
        }
        let body = body.to_string();
        match raw::request(admin, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await {
            Ok(answer) if answer.status == 200 => {
                let now = Moment::now();
                shift.acted.push(now);
                shift.paused = pausing.map(|paused| (paused, now)).or(shift.paused);
            }
            Ok(answer) => {
                ensure!(answer.status == 503, "{path} is answered {}: {}", answer.status, answer.text());
                shift.failed += 1;
            }
            // Nobody is there, or was there long enough.
            Err(_) => shift.failed += 1,
        }
        tokio::time::sleep(Duration::from_millis(random.u64(1..=10))).await;
    }
    Ok(shift)
}

impl Shift {
    /// What was acknowledged last about pausing holds, unless it was acknowledged at a time that is not to
    /// be believed.
    async fn check_pause(&self, rig: &Rig, doubted: impl Fn(Moment) -> bool) -> Result<()> {
        let Some((paused, _)) = self.paused.filter(|(_, at)| !doubted(*at)) else { return Ok(()) };
        let statistics = rig.api("/api/v1/statistics").await?;
        let found = &statistics["sinks"][0]["paused"];
        ensure!(*found == paused, "paused was acknowledged as {paused} and is {found}");
        Ok(())
    }

    fn tell(&self, ledger: &mut Ledger) {
        for id in &self.replayed {
            ledger.replayed(id);
        }
    }
}

#[derive(Default)]
struct Totals {
    accepted: u64,
    acted: usize,
    failed: u64,
    replayed: usize,
    audited: u64,
}

impl Totals {
    fn add(&mut self, shift: &Shift) {
        self.acted += shift.acted.len();
        self.failed += shift.failed;
        self.replayed += shift.replayed.len();
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, acted, failed, replayed, audited } = self;
        write!(
            f,
            "{accepted} accepted, 0 lost, {acted} actions done and {failed} cut off, {replayed} asked for again, \
             {audited} audited"
        )
    }
}
