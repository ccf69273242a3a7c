//! A primary and a standby of PostgreSQL under two replicas: the primary is killed and the standby promoted under load.
//! With synchronous replication nothing is lost and nobody restarts; without it, what the standby did not have is gone, and
//! that is said.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Digest;
use kit_workbench::database::{Database, End};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::Rig;

use crate::replicas::{Account, Fleet, gathered, longest_silence};

const REPLICAS: usize = 2;
/// From the kill of the primary until webhooks are taken and delivered again, the second or so included in which nobody was
/// promoted: a commit is looked after on one host after the other, and a lease lasts five seconds.
const RESUMES_WITHIN: Duration = Duration::from_secs(12);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A primary and its standby.
struct Pair {
    primary: Database,
    standby: Database,
}

impl Pair {
    async fn start() -> Result<Self> {
        aside(|| {
            let primary = Database::start(&[])?;
            primary.create("journal")?;
            let standby = primary.standby(None)?;
            Ok(Self { primary, standby })
        })
        .await
    }

    /// The address of both, as a daemon is given it.
    fn url(&self) -> String {
        self.primary.url_of_both(&self.standby, "journal")
    }

    /// Kills the primary; a while later the standby takes its place. Returns the one that is the primary now, and the port
    /// that is free.
    async fn fail_over(mut self, after: Duration) -> Result<(Database, u16)> {
        aside(move || {
            let port = self.primary.port();
            self.primary.end(End::Kill)?;
            std::thread::sleep(after);
            self.standby.promote()?;
            Ok((self.standby, port))
        })
        .await
    }

    /// A new standby, where the primary was that was killed.
    async fn again(primary: Database, port: u16) -> Result<Self> {
        aside(move || {
            let standby = primary.standby(Some(port))?;
            Ok(Self { primary, standby })
        })
        .await
    }
}

/// Runs what blocks.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// F1: the primary is killed under load and its synchronous standby promoted, again and again.
pub(crate) async fn a_promoted_standby_has_everything_and_nobody_restarts(mut trial: Trial) -> Result<Outcome> {
    let mut pair = Pair::start().await?;
    let mut fleet = Fleet::over(&pair.url(), REPLICAS, |_| Vec::new()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders = fleet.send(&stop)?;
    let begin = Instant::now();
    let mut longest = Duration::ZERO;
    let mut primary = None;
    for failover in 0..trial.count {
        trial.progress(failover);
        pair = aside(move || {
            pair.primary.wait_for_standbys()?;
            Ok(pair)
        })
        .await?;
        tokio::time::sleep(trial.millis(500, 2_000)).await;
        let since = Instant::now();
        let (promoted, port) = pair.fail_over(trial.millis(0, 1_000)).await?;
        for (replica, rig) in fleet.replicas.iter().enumerate() {
            let key = format!("after-{failover}-{replica}");
            let signature = fleet.replicas[0].sign(&body(&key))?;
            taken_again(rig, &key, &signature, since).await?;
        }
        longest = longest.max(since.elapsed());
        if failover + 1 == trial.count {
            primary = Some(promoted);
            break;
        }
        pair = Pair::again(promoted, port).await?;
    }
    // What was delivered last is not the end of a silence.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut accounts = gathered(senders).await?;
    let silence = longest_silence(&fleet, begin, Instant::now());
    accounts.push(told_of(&fleet, trial.count).await?);
    fleet.server = primary;
    let (total, again, refused) = fleet.check(accounts).await?;
    ensure!(longest < RESUMES_WITHIN, "a replica took nothing for {longest:?}");
    ensure!(silence < RESUMES_WITHIN, "nobody delivered for {silence:?}");
    let note = format!(
        "{total} accepted by {REPLICAS} replicas that went on running, 0 lost, in order, {again} delivered again, {refused} \
         requests sent again; both took again {} ms after the kill, longest silence at the gateway {} ms",
        longest.as_millis(),
        silence.as_millis()
    );
    Ok(Outcome::new(trial.count, note))
}

fn body(key: &str) -> String {
    format!(r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{{"lago_id":"{key}"}}}}"#)
}

/// Sends a webhook to this replica until it is taken.
async fn taken_again(rig: &Rig, key: &str, signature: &str, since: Instant) -> Result<()> {
    loop {
        let answer = rig.post_signed(key, &body(key), signature).await;
        if answer.as_ref().is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        ensure!(since.elapsed() < PATIENCE, "{key} is never taken, the last answer: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The webhooks that [`taken_again`] has sent, as senders' account: each is known by now, whoever is asked.
async fn told_of(fleet: &Fleet, failovers: u32) -> Result<Account> {
    let mut account = Account::default();
    for key in
        (0..failovers).flat_map(|failover| (0..REPLICAS).map(move |replica| format!("after-{failover}-{replica}")))
    {
        let answer = fleet.replicas[0].post(&key, &body(&key)).await?;
        ensure!(answer.status == 200, "{key} is answered {}", answer.status);
        let told = answer.json()?;
        ensure!(told["duplicate"] == true, "{key} was lost: {told}");
        let id = told["id"].as_str().context("an answer without an id")?.to_owned();
        account.accepted.insert(key.clone(), vec![(id, Digest::of(body(&key).as_bytes()))]);
    }
    Ok(account)
}

/// F1: the standby has not received the last commits. Each replica notices, says what is gone and ends with 1; the next ones
/// go on with what is there.
pub(crate) async fn a_standby_that_lagged_is_told_of_and_gone_on_with(mut trial: Trial) -> Result<Outcome> {
    let (mut lost, mut slowest) = (0, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let pair = Pair::start().await?;
        let mut fleet = Fleet::over(&pair.url(), REPLICAS, |_| Vec::new()).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let senders = fleet.send(&stop)?;
        tokio::time::sleep(trial.millis(500, 1_500)).await;
        let pair = aside(move || {
            // It receives nothing any more, and nobody waits for it.
            pair.standby.set("primary_conninfo", "")?;
            Ok(pair)
        })
        .await?;
        let gateway = fleet.replicas[0].gateway.counts().unique;
        let since = Instant::now();
        while fleet.replicas[0].gateway.counts().unique < gateway + 50 {
            ensure!(since.elapsed() < PATIENCE, "nothing is delivered beside a standby that receives nothing");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let since = Instant::now();
        let (primary, _) = pair.fail_over(trial.millis(0, 500)).await?;
        for rig in &mut fleet.replicas {
            let process = rig.process()?;
            let exit =
                process.wait(PATIENCE).await.context("a replica goes on with a database that has lost something")?;
            slowest = slowest.max(since.elapsed());
            ensure!(exit.code == Some(1), "a replica ended with {exit}");
            let said = process.stdout();
            let is_told = said.contains("the database has lost") || said.contains("the database knows");
            ensure!(is_told && said.contains("synchronous replication"), "it says: {}", rig.end_of_log(5));
        }
        // As their supervisor would do it.
        for rig in &mut fleet.replicas {
            rig.start().await?;
        }
        let signature = fleet.replicas[0].sign(&body("after"))?;
        for rig in &fleet.replicas {
            taken_again(rig, "after", &signature, since).await?;
        }
        stop.store(true, Ordering::Relaxed);
        let accounts = gathered(senders).await?;
        lost += what_is_there_arrives(&fleet, primary, &accounts).await?;
        for rig in &mut fleet.replicas {
            let (exit, _) = rig.stop().await?;
            ensure!(exit.code == Some(0), "a replica stopped with {exit}");
        }
    }
    ensure!(lost > 0, "nothing was lost, and so nothing was shown");
    let note = format!(
        "the standby lacked {lost} accepted events: every replica ended with 1 and said so within {} ms of the kill; the next \
         ones delivered all that it has, in order",
        slowest.as_millis()
    );
    Ok(Outcome::new(trial.count, note))
}

/// All that the database has arrives, each subject's in the order in which they were sent; how many of those that were
/// accepted it does not have.
async fn what_is_there_arrives(fleet: &Fleet, server: Database, accounts: &[Account]) -> Result<usize> {
    let (said, _server) = aside(move || {
        let ids = server.sql("journal", "SELECT k.id FROM outrigger.events e JOIN outrigger.keys k USING (seq)")?;
        Ok((ids, server))
    })
    .await?;
    let there: HashSet<&str> = said.lines().collect();
    let gateway = &fleet.replicas[0].gateway;
    let since = Instant::now();
    let places = loop {
        let mut places: HashMap<String, usize> = HashMap::new();
        for (place, received) in gateway.received().iter().filter(|received| received.taken).enumerate() {
            if let Some(id) = &received.event_id {
                places.entry(id.clone()).or_insert(place);
            }
        }
        let missing = there.iter().filter(|id| !places.contains_key(**id)).count();
        if missing == 0 {
            break places;
        }
        ensure!(since.elapsed() < PATIENCE, "{missing} of {} that are there never arrive", there.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let mut lost = 0;
    for (subject, events) in accounts.iter().flat_map(|account| &account.accepted) {
        let mut last = None;
        for (n, (id, _)) in events.iter().enumerate() {
            lost += usize::from(!there.contains(id.as_str()));
            let Some(place) = places.get(id) else { continue };
            ensure!(last < Some(*place), "{n} of {subject} arrived before the one before it");
            last = Some(*place);
        }
    }
    Ok(lost)
}
