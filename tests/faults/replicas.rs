//! Several replicas over one journal in PostgreSQL: killed, cut off from it, behind a pooler, and with clocks that are
//! hours apart. One checker for all: every event that was accepted arrives, in the order of its subject, and what
//! arrives twice has the same id and the same bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::Digest;
use kit_workbench::database::{Database, End, Pooler};
use kit_workbench::raw;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};

/// Replicas, and subjects whose order is watched: each has a sender of its own.
const REPLICAS: usize = 3;
const SUBJECTS: usize = 12;
/// A lease lasts five seconds; another replica asks twice a second.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(8);
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// Replicas of one daemon, their database and the one gateway that all deliver to.
pub(crate) struct Fleet {
    pub(crate) server: Option<Database>,
    _pooler: Option<Pooler>,
    pub(crate) replicas: Vec<Rig>,
}

/// What senders have been told.
#[derive(Default)]
pub(crate) struct Account {
    /// By subject, in the order of sending: event id and the digest of the body.
    pub(crate) accepted: BTreeMap<String, Vec<(String, Digest)>>,
    refused: u64,
}

impl Fleet {
    /// `variables` has those of each replica beside the usual ones.
    async fn start(pooled: bool, variables: impl Fn(usize) -> Vec<(&'static str, String)>) -> Result<Self> {
        let server = tokio::task::spawn_blocking(|| Database::start(&[])).await??;
        server.create("journal")?;
        let pooler = if pooled { Some(Pooler::start(&server, "transaction")?) } else { None };
        let url = pooler.as_ref().map_or_else(|| server.url("journal"), |pooler| pooler.url("journal"));
        let mut fleet = Self::over(&url, REPLICAS, variables).await?;
        (fleet.server, fleet._pooler) = (Some(server), pooler);
        Ok(fleet)
    }

    /// So many replicas over the journal in this database.
    pub(crate) async fn over(
        url: &str,
        count: usize,
        variables: impl Fn(usize) -> Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let mut replicas: Vec<Rig> = Vec::new();
        for number in 0..count {
            let mut rig = Rig::new(Mode::Hmac, &[("SIDECAR_JOURNAL__ENGINE", "postgres")]).await?;
            rig.set("DATABASE_URL", url);
            if let Some(first) = replicas.first() {
                // One organisation and one gateway for all of them.
                for shared in
                    ["BRAIN_GATEWAY_URL", "SIDECAR_GATEWAY__SIGNING_SECRET_FILE", "LAGO_WEBHOOK_HMAC_KEY_FILE"]
                {
                    let known = first.environment().iter().find(|(name, _)| name == shared);
                    let value = known.with_context(|| format!("the rig has no {shared}"))?.1.clone();
                    rig.set(shared, &value);
                }
            }
            for (name, value) in variables(number) {
                rig.set(name, &value);
            }
            rig.start().await?;
            replicas.push(rig);
        }
        Ok(Self { server: None, _pooler: None, replicas })
    }

    /// Sends until it is told to stop, to whichever replica takes it; the next of a subject only when the one before
    /// was accepted.
    pub(crate) fn send(&self, stop: &Arc<AtomicBool>) -> Result<Vec<tokio::task::JoinHandle<Result<Account>>>> {
        let addresses: Arc<Vec<_>> = Arc::new(self.replicas.iter().map(|rig| rig.public).collect());
        let senders = (0..SUBJECTS).map(|number| {
            let (stop, addresses) = (Arc::clone(stop), Arc::clone(&addresses));
            let subject = uuid::Uuid::new_v4().to_string();
            let bodies: Vec<String> = (0..4_000)
                .map(|n| {
                    format!(r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{{"lago_id":"{subject}","n":{n}}}}}"#)
                })
                .collect();
            let signed = bodies.iter().map(|body| self.replicas[0].sign(body)).collect::<Result<Vec<_>>>()?;
            Ok(tokio::spawn(async move {
                let mut account = Account::default();
                let mut at = number;
                for (n, (body, signature)) in bodies.iter().zip(&signed).enumerate() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{subject}-{n}");
                    let begin = Instant::now();
                    let id = loop {
                        ensure!(begin.elapsed() < DRAIN_LIMIT, "{key} is never accepted");
                        let headers = [
                            ("Content-Type", "application/json"),
                            ("X-Lago-Unique-Key", key.as_str()),
                            ("X-Lago-Signature", signature.as_str()),
                        ];
                        let address = addresses[at % addresses.len()];
                        let path = "/webhooks/lago";
                        let answer = raw::request(address, "POST", path, &headers, body.as_bytes(), REQUEST_DEADLINE).await;
                        match answer {
                            Ok(answer) if answer.status == 200 => {
                                let told = answer.json()?;
                                break told["id"].as_str().context("an answer without an id")?.to_owned();
                            }
                            Ok(answer) => ensure!(answer.status == 503, "{key} is answered {}", answer.status),
                            Err(_) => {}
                        }
                        account.refused += 1;
                        at += 1;
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    };
                    // Now and then another replica, and the same webhook once more.
                    at += usize::from(n % 7 == 0);
                    account.accepted.entry(subject.clone()).or_default().push((id, Digest::of(body.as_bytes())));
                }
                Ok(account)
            }))
        });
        senders.collect()
    }

    /// Waits until everything has arrived, and checks what and in which order.
    pub(crate) async fn check(self, accounts: Vec<Account>) -> Result<(usize, usize, u64)> {
        let gateway = &self.replicas[0].gateway;
        let total: usize = accounts.iter().flat_map(|account| account.accepted.values()).map(Vec::len).sum();
        let begin = Instant::now();
        while (gateway.counts().unique as usize) < total {
            ensure!(begin.elapsed() < DRAIN_LIMIT, "{} of {total} arrived", gateway.counts().unique);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (mut first, mut again) = (HashMap::new(), 0);
        for received in gateway.received().iter().filter(|received| received.taken) {
            let id = received.event_id.clone().context("a delivery without an id")?;
            ensure!(received.signature_ok == Some(true), "{id} is not signed");
            let place = first.len();
            match first.get(&id) {
                None => drop(first.insert(id, (place, received.data_sha256))),
                Some((_, digest)) => {
                    ensure!(*digest == received.data_sha256, "{id} arrived with other bytes");
                    again += 1;
                }
            }
        }
        let mut ids = HashSet::new();
        for (subject, events) in accounts.iter().flat_map(|account| &account.accepted) {
            let mut last = None;
            for (n, (id, digest)) in events.iter().enumerate() {
                ensure!(ids.insert(id.clone()), "{id} is two events");
                let (place, bytes) = first.get(id).with_context(|| format!("{n} of {subject} never arrived"))?;
                ensure!(bytes == digest, "{n} of {subject} arrived with other bytes");
                ensure!(last < Some(*place), "{n} of {subject} arrived before the one before it");
                last = Some(*place);
            }
        }
        ensure!(first.len() == total, "{} arrived that nobody was told of", first.len() - total);
        // What a replica says of the one journal.
        let begin = Instant::now();
        loop {
            let statistics = self.replicas[1].api("/api/v1/statistics").await?;
            let sink = &statistics["sinks"][0];
            if statistics["accepted"] == total && sink["delivered"] == total && sink["pending"] == 0 {
                break;
            }
            ensure!(begin.elapsed() < DRAIN_LIMIT, "the journal says {statistics}, and {total} arrived");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let server = self.server.context("no server")?;
        let compared = tokio::task::spawn_blocking(move || -> Result<(Database, Vec<Account>)> {
            compare_with_the_database(&server, &accounts, total)?;
            Ok((server, accounts))
        });
        let (_server, accounts) = compared.await??;
        let refused = accounts.iter().map(|account| account.refused).sum();
        let mut replicas = self.replicas;
        for rig in &mut replicas {
            let (exit, _) = rig.stop().await?;
            ensure!(exit.code == Some(0), "a replica stopped with {exit}");
        }
        Ok((total, again, refused))
    }
}

/// A fourth reader, which is none of those that took, delivered and were killed: the database itself has every event once,
/// each subject's in the order in which they were sent, and all of them delivered.
fn compare_with_the_database(server: &Database, accounts: &[Account], total: usize) -> Result<()> {
    let ids = "SELECT k.id FROM outrigger.events e JOIN outrigger.keys k USING (seq) ORDER BY e.seq";
    let said = server.sql("journal", ids)?;
    let places: HashMap<&str, usize> = said.lines().enumerate().map(|(place, id)| (id, place)).collect();
    ensure!(said.lines().count() == total && places.len() == total, "the database has {} of {total}", places.len());
    for (subject, events) in accounts.iter().flat_map(|account| &account.accepted) {
        let mut last = None;
        for (n, (id, _)) in events.iter().enumerate() {
            let place = places.get(id.as_str()).with_context(|| format!("{n} of {subject} is not in the database"))?;
            ensure!(last < Some(*place), "{n} of {subject} lies before the one before it");
            last = Some(*place);
        }
    }
    let sums = "SELECT h.last_seq, s.cursor, s.delivered, (SELECT count(*) FROM outrigger.exceptions)
        FROM outrigger.head h, outrigger.sinks s";
    let said = server.sql("journal", sums)?;
    ensure!(said == format!("{total}|{total}|{total}|0"), "the database says {said}, and {total} arrived");
    Ok(())
}

pub(crate) async fn gathered(senders: Vec<tokio::task::JoinHandle<Result<Account>>>) -> Result<Vec<Account>> {
    let mut accounts = Vec::new();
    for sender in senders {
        accounts.push(sender.await??);
    }
    Ok(accounts)
}

/// The longest time in which the gateway took nothing.
pub(crate) fn longest_silence(fleet: &Fleet, since: Instant, until: Instant) -> Duration {
    let span = until.duration_since(since);
    let mut taken: Vec<_> = fleet.replicas[0].gateway.received().iter().filter(|r| r.taken).map(|r| r.at).collect();
    taken.sort_unstable();
    let gaps = taken.windows(2).map(|pair| pair[1].since(pair[0]));
    gaps.max().unwrap_or(span)
}

/// F1: three replicas take webhooks and deliver; one after the other is killed at a random time and started again.
pub(crate) async fn killed_replicas_lose_nothing_and_keep_the_order(mut trial: Trial) -> Result<Outcome> {
    let mut fleet = Fleet::start(false, |_| Vec::new()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders = fleet.send(&stop)?;
    let begin = Instant::now();
    for kill in 0..trial.count {
        trial.progress(kill);
        // Not waiting for luck: the random moment is the experiment.
        tokio::time::sleep(trial.millis(50, 1_500)).await;
        let victim = trial.random.usize(0..REPLICAS);
        let rig = &mut fleet.replicas[victim];
        rig.kill().await?;
        // Sometimes at once, sometimes only after somebody else has had to take over.
        tokio::time::sleep(trial.millis(0, 6_000)).await;
        fleet.replicas[victim].start().await.with_context(|| format!("kill {}", kill + 1))?;
    }
    stop.store(true, Ordering::Relaxed);
    let accounts = gathered(senders).await?;
    let silence = longest_silence(&fleet, begin, Instant::now());
    let kills = trial.count;
    let (total, again, refused) = fleet.check(accounts).await?;
    ensure!(silence < TAKEOVER_LIMIT, "nobody delivered for {silence:?}");
    let note = format!(
        "{total} accepted by {REPLICAS} replicas, 0 lost, in order, {again} delivered again, {refused} requests sent \
         again, longest silence {} ms",
        silence.as_millis()
    );
    Ok(Outcome::new(kills, note))
}

/// F1: the database is ended and started again under load.
pub(crate) async fn a_restarted_database_loses_nothing(mut trial: Trial) -> Result<Outcome> {
    let mut fleet = Fleet::start(false, |_| Vec::new()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders = fleet.send(&stop)?;
    for restart in 0..trial.count {
        trial.progress(restart);
        tokio::time::sleep(trial.millis(500, 2_000)).await;
        let mut server = fleet.server.take().context("no server")?;
        let how = if trial.random.bool() { End::Crash } else { End::Fast };
        let away = trial.millis(0, 3_000);
        fleet.server = Some(
            tokio::task::spawn_blocking(move || -> Result<Database> {
                server.end(how)?;
                std::thread::sleep(away);
                server.run()?;
                Ok(server)
            })
            .await??,
        );
    }
    stop.store(true, Ordering::Relaxed);
    let accounts = gathered(senders).await?;
    let restarts = trial.count;
    let (total, again, refused) = fleet.check(accounts).await?;
    let note = format!("{total} accepted, 0 lost, in order, {again} delivered again, {refused} requests sent again");
    Ok(Outcome::new(restarts, note))
}

/// F1: as many replicas behind a pooler that gives every transaction another connection.
pub(crate) async fn replicas_behind_a_pooler_lose_nothing(mut trial: Trial) -> Result<Outcome> {
    let mut fleet = Fleet::start(true, |_| Vec::new()).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders = fleet.send(&stop)?;
    for kill in 0..trial.count {
        trial.progress(kill);
        tokio::time::sleep(trial.millis(500, 2_000)).await;
        let victim = trial.random.usize(0..REPLICAS);
        fleet.replicas[victim].kill().await?;
        fleet.replicas[victim].start().await?;
    }
    stop.store(true, Ordering::Relaxed);
    let accounts = gathered(senders).await?;
    let kills = trial.count;
    let (total, again, refused) = fleet.check(accounts).await?;
    let note = format!("{total} accepted, 0 lost, in order, {again} delivered again, {refused} requests sent again");
    Ok(Outcome::new(kills, note))
}

/// F11: replicas whose clocks are more than a day apart take over from each other while the gateway refuses now and
/// then: nothing is lost or waits for hours.
pub(crate) async fn replicas_with_other_clocks_take_over_from_each_other(mut trial: Trial) -> Result<Outcome> {
    let Some(library) = crate::clock::library() else { return Ok(Outcome::skipped("libfaketime is not installed")) };
    let variables = |number: usize| {
        let offset = ["-30h", "+0", "+30h"][number];
        vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME", offset.to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("SIDECAR_GATEWAY__RETRY__SCHEDULE_SECONDS", "[0.2, 0.5, 1, 1, 1, 1, 1, 1]".to_owned()),
        ]
    };
    let mut fleet = Fleet::start(false, variables).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let senders = fleet.send(&stop)?;
    for kill in 0..trial.count {
        trial.progress(kill);
        fleet.replicas[0].gateway.set_behaviour(kit_workbench::gateway::Behaviour::status(500));
        tokio::time::sleep(trial.millis(300, 900)).await;
        let victim = usize::try_from(kill)? % REPLICAS;
        fleet.replicas[victim].kill().await?;
        fleet.replicas[0].gateway.set_behaviour(kit_workbench::gateway::Behaviour::Ok);
        tokio::time::sleep(trial.millis(5_500, 6_500)).await;
        fleet.replicas[victim].start().await?;
    }
    stop.store(true, Ordering::Relaxed);
    let accounts = gathered(senders).await?;
    let kills = trial.count;
    let (total, again, _) = fleet.check(accounts).await?;
    Ok(Outcome::new(kills, format!("{total} accepted, 0 lost, in order, {again} delivered again, clocks 60 h apart")))
}
