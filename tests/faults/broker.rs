//! A broker that dies, is silent, is full, or refuses: nothing is lost, and what comes twice comes under the same id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_lago::stand_in::billing::{Profile, Subscription};
use kit_workbench::broker::Broker;
use kit_workbench::chaos::{ChaosProxy, Direction, Fault};
use kit_workbench::database::Database;
use kit_workbench::ledger::SentRequest;
use kit_workbench::load::{self, LoadControl, LoadOptions, Pacing};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};
use outrigger_tests::rig::Rig;
use outrigger_tests::rig::amqp::{QUEUE, compare};
use tokio::task::JoinHandle;

/// From the first confirm that another client gets of the broker, which opens its port seconds before, to ours.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// From the last byte of a broker to the knowledge that it is gone, with the limits as they are by default.
pub(crate) const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// How long everything accepted may take to be published once the broker is well.
pub(crate) const DRAIN: Duration = Duration::from_secs(60);
/// Message of somebody else.
const PROBE: &str = "probe";
pub(crate) const PER_SECOND: f64 = 300.0;

/// Webhooks at a steady rate until it is stopped.
pub(crate) struct Load {
    control: LoadControl,
    task: JoinHandle<Result<load::LoadOutcome, load::LoadError>>,
}

impl Load {
    pub(crate) fn start(rig: &Rig, per_second: f64) -> Result<Self> {
        let (pool, control) = (rig.pool(64)?, LoadControl::new());
        let options = LoadOptions { pacing: Pacing::Open { per_second }, ..rig.load() };
        let task = tokio::spawn({
            let control = control.clone();
            async move { load::run(options, pool, &control).await }
        });
        Ok(Self { control, task })
    }

    pub(crate) async fn end(self) -> Result<Vec<SentRequest>> {
        self.control.stop();
        Ok(self.task.await??.sent)
    }
}

/// A skip, where there is no broker to be had.
pub(crate) fn installed() -> Option<Outcome> {
    (!Broker::is_installed()).then(|| Outcome::skipped("there is no RabbitMQ on this machine"))
}

/// Waits until the broker has confirmed more than `before`; returns how long that took.
async fn confirms_more_than(rig: &Rig, before: u64, limit: Duration) -> Result<Duration> {
    let begin = Instant::now();
    while rig.confirmed().await? <= before {
        ensure!(begin.elapsed() <= limit, "nothing is confirmed {limit:?} after the broker is back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(begin.elapsed())
}

/// Waits until the broker confirms something new.
pub(crate) async fn confirms_again(rig: &Rig, limit: Duration) -> Result<Duration> {
    let before = rig.confirmed().await?;
    confirms_more_than(rig, before, limit).await
}

/// Waits until the broker keeps a message of somebody else in the same queue: a quorum queue that was killed takes seconds
/// to find its leader after the port is open, and confirms nothing until then.
async fn works_for_others(broker: &Broker) -> Result<()> {
    let begin = Instant::now();
    loop {
        let works = async {
            let client = Client::connect(broker).await?;
            client.publish(QUEUE, PROBE, "text/plain", b"x").await
        };
        // What was published before there was a leader is not confirmed any more: another connection is.
        match tokio::time::timeout(Duration::from_secs(2), works).await {
            Ok(Ok(())) => return Ok(()),
            other => ensure!(begin.elapsed() < DRAIN, "the broker does not work: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// F12: kill -9 of the broker, its application stopped and started, all its connections closed, in turns under load:
/// published again with the same ids, nothing lost, first confirm at most five seconds after anybody gets one.
pub(crate) async fn a_broker_that_dies_gets_everything_once_it_is_back(mut trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let mut broker = Broker::start().await?;
    let mut rig = Rig::publishing(&broker.url(), &[]).await?;
    rig.start().await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    // No client can bring back a queue that the broker itself has forgotten.
    broker.write_down_queues().await?;
    let (mut found, mut slowest, mut slowest_broker) = (Found::new(), Duration::ZERO, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        tokio::time::sleep(trial.millis(50, 500)).await;
        let before = match round % 5 {
            0 | 3 => {
                broker.kill().await?;
                let before = rig.confirmed().await?;
                broker.start_again().await?;
                before
            }
            1 => {
                broker.ctl(&["stop_app"]).await?;
                let before = rig.confirmed().await?;
                broker.ctl(&["start_app"]).await?;
                before
            }
            _ => {
                broker.ctl(&["close_all_connections", "test"]).await?;
                rig.confirmed().await?
            }
        };
        let begin = Instant::now();
        works_for_others(&broker).await.with_context(|| format!("round {round}"))?;
        slowest_broker = slowest_broker.max(begin.elapsed());
        let waited = confirms_more_than(&rig, before, BACK_WITHIN).await.with_context(|| format!("round {round}"))?;
        slowest = slowest.max(waited);
    }
    let sent = load.end().await?;
    rig.published_all(DRAIN).await?;
    Client::connect(&broker).await?.drain(QUEUE, &mut found).await?;
    found.remove(PROBE);
    let again = compare(&sent, &found)?;
    finish(rig).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{} published, {again} of them again, 0 lost; the queue is there {slowest_broker:.1?} after the port at most, \
             our first confirm {slowest:.1?} after that at most",
            found.len()
        ),
    ))
}

/// F13: the way to the broker goes silent, is reset or half closed at any byte, or the broker freezes: noticed, and what
/// had no outcome is published again with the same id.
pub(crate) async fn a_silent_broker_is_noticed_and_sent_everything_again(mut trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let broker = Broker::start().await?;
    let proxy = ChaosProxy::start(broker.addr()).await?;
    let url = format!("amqp://{}", proxy.addr());
    let mut rig = Rig::publishing(&url, &[]).await?;
    rig.start().await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    let client = Client::connect(&broker).await?;
    let (mut found, mut slowest) = (Found::new(), Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        // A connection that has passed more is hit at once, one that is made meanwhile in its greeting or soon after.
        let at = trial.random.u64(0..2_000);
        match round % 5 {
            0 => proxy.set(Direction::Down, Fault::Stall(at)),
            1 => proxy.set(Direction::Up, Fault::Stall(at)),
            2 => proxy.set(Direction::Up, Fault::Reset(at)),
            3 => proxy.set(Direction::Down, Fault::HalfClose(at)),
            _ => broker.freeze()?,
        }
        let begin = Instant::now();
        let failures = async || -> Result<f64> {
            let metrics = rig.metrics().await?;
            Ok(metrics.sum("amqp_connects_total", &[]) + metrics.sum("amqp_connect_failures_total", &[]))
        };
        let before = failures().await?;
        while failures().await? <= before {
            ensure!(begin.elapsed() <= NOTICED_WITHIN, "round {round}: not noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        slowest = slowest.max(begin.elapsed());
        proxy.heal();
        broker.thaw()?;
        confirms_again(&rig, DRAIN).await.with_context(|| format!("round {round}"))?;
    }
    let again = account(rig, load, &client, &mut found).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{} published, {again} of them again, 0 lost, noticed after {slowest:.1?} at most", found.len()),
    ))
}

/// F14: a memory or disk alarm: the metrics say that the broker blocks, webhooks are accepted and the gateway gets its events as
/// before, no thread is left over, and everything is published once it is over.
pub(crate) async fn an_alarm_holds_up_the_broker_alone(trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let broker = Broker::start().await?;
    let mut rig = Rig::publishing(&broker.url(), &[]).await?;
    rig.start().await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    let mut slowest = Duration::ZERO;
    for round in 0..trial.count {
        trial.progress(round);
        let is_of_disk = round % 2 == 1;
        if is_of_disk {
            broker.disk_alarm(true).await?
        } else {
            broker.alarm(true).await?
        }
        let begin = Instant::now();
        while rig.metrics().await?.sum("amqp_blocked", &[]) < 1.0 {
            ensure!(begin.elapsed() < NOTICED_WITHIN, "the metrics do not say that the broker blocks");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (taken, got) = (rig.taken().await?, rig.gateway.counts().unique);
        tokio::time::sleep(Duration::from_secs(4)).await;
        let (taken, got) = (rig.taken().await? - taken, rig.gateway.counts().unique - got);
        ensure!(taken > 600 && got > 600, "in four seconds {taken} were accepted and {got} brought to the gateway");
        if is_of_disk {
            broker.disk_alarm(false).await?
        } else {
            broker.alarm(false).await?
        }
        slowest = slowest.max(confirms_again(&rig, DRAIN).await?);
        let threads = threads(&mut rig)?;
        ensure!(threads == 1, "{threads} threads for one connection");
    }
    let sent = load.end().await?;
    rig.published_all(DRAIN).await?;
    let mut found = Found::new();
    Client::connect(&broker).await?.drain(QUEUE, &mut found).await?;
    let again = compare(&sent, &found)?;
    ensure!(rig.metrics().await?.sum("amqp_blocked", &[]) < 1.0, "it still says that the broker blocks");
    finish(rig).await?;
    Ok(Outcome::new(
        trial.count,
        format!("{} published, {again} of them again, 0 lost, {slowest:.1?} to the first confirm", found.len()),
    ))
}

/// Threads of connections: each has one, and one that was given up leaves none.
fn threads(rig: &mut Rig) -> Result<usize> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", rig.process()?.pid()))?;
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|name| name.starts_with("lapin")).count())
}

/// F15: the exchange or the queue is deleted under load, or a full queue rejects: what cannot be kept waits, what has no
/// route becomes a dead letter after the schedule, everything else arrives.
pub(crate) async fn what_the_broker_refuses_is_told_and_tried_again(trial: Trial) -> Result<Outcome> {
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let broker = Broker::start().await?;
    let settings =
        [("SIDECAR_AMQP__RETRY__SCHEDULE_SECONDS", "0.2,0.2,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,1,1,1,1,1,1,1,1,1,1")];
    let mut rig = Rig::publishing(&broker.url(), &settings).await?;
    rig.start().await?;
    let load = Load::start(&rig, PER_SECOND)?;
    confirms_again(&rig, DRAIN).await?;
    let client = Client::connect(&broker).await?;
    let mut found = Found::new();
    for round in 0..trial.count {
        trial.progress(round);
        match round % 3 {
            // Declared again before the next window.
            0 => client.delete_exchange("events").await?,
            // Confirmed and then purged messages would be nobody's loss: only the way to the queue is cut.
            1 => {
                client.unbind(QUEUE, "events", "lago.#").await?;
                tokio::time::sleep(Duration::from_millis(700)).await;
                client.bind(QUEUE, "events", "lago.#").await?;
            }
            _ => {
                let policy = r#"{"max-length":1,"overflow":"reject-publish"}"#;
                broker.ctl(&["set_policy", "narrow", "^all$", policy, "--apply-to", "queues"]).await?;
                let begin = Instant::now();
                while rig.metrics().await?.sum("amqp_nacked_total", &[]) < 1.0 {
                    ensure!(begin.elapsed() < NOTICED_WITHIN, "a full queue refuses nothing");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                broker.ctl(&["clear_policy", "narrow"]).await?;
            }
        }
        confirms_again(&rig, DRAIN).await.with_context(|| format!("round {round}"))?;
    }
    let sent = load.end().await?;
    let sink = rig.published_all(DRAIN).await?;
    ensure!(sink["parked"] == 0, "something was given up: {sink}");
    client.drain(QUEUE, &mut found).await?;
    let again = compare(&sent, &found)?;
    let metrics = rig.metrics().await?;
    let (returned, nacked) = (metrics.sum("amqp_returned_total", &[]), metrics.sum("amqp_nacked_total", &[]));
    finish(rig).await?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{} published, {again} again, 0 lost; {returned} returned and {nacked} refused on the way",
            found.len()
        ),
    ))
}

/// F22: one event in a hundred makes a message larger than is taken: it is parked with its size, the others arrive.
pub(crate) async fn a_message_too_large_for_the_broker_holds_nobody_up(trial: Trial) -> Result<Outcome> {
    const EVENTS: usize = 400;
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let broker = Broker::start().await?;
    let mut rig = Rig::publishing(&broker.url(), &[]).await?;
    rig.start().await?;
    confirms_one(&rig).await?;
    let (mut parked, mut slowest) = (0_u64, Duration::ZERO);
    for round in 0..trial.count {
        trial.progress(round);
        let limit =
            "application:set_env(rabbit, max_message_size, 20000), persistent_term:put(max_message_size, 20000).";
        broker.ctl(&["eval", limit]).await?;
        // A channel keeps the limit that it began with.
        broker.ctl(&["close_all_connections", "test"]).await?;
        let client = Client::connect(&broker).await?;
        let mut found = Found::new();
        client.drain(QUEUE, &mut found).await?;
        found.clear();
        let begin = Instant::now();
        let mut poison = 0;
        for number in 0..EVENTS {
            let filler = if number % 100 == 50 { 30_000 } else { 100 };
            poison += u64::from(number % 100 == 50);
            let body = format!(
                r#"{{"webhook_type":"invoice.created","object_type":"invoice","invoice":{{"lago_id":"{round}-{number}","filler":"{}"}}}}"#,
                "x".repeat(filler)
            );
            let answer = rig.post(&format!("poison-{round}-{number}"), &body).await?;
            ensure!(answer.status == 200, "answered {}", answer.status);
        }
        let sink = rig.published_all(DRAIN).await?;
        slowest = slowest.max(begin.elapsed());
        parked += poison;
        ensure!(sink["parked"] == parked, "{parked} are poison: {sink}");
        client.drain(QUEUE, &mut found).await?;
        let good = EVENTS as u64 - poison;
        ensure!(found.len() as u64 == good, "{} of {good} good ones arrived", found.len());
    }
    finish(rig).await?;
    Ok(Outcome::new(trial.count, format!("{parked} parked, the others published; {EVENTS} took {slowest:.1?} at most")))
}

/// The first event of all: the topology is there afterwards.
async fn confirms_one(rig: &Rig) -> Result<()> {
    let answer =
        rig.post("first", r#"{"webhook_type":"invoice.created","object_type":"invoice","invoice":{}}"#).await?;
    ensure!(answer.status == 200, "answered {}", answer.status);
    rig.published_all(DRAIN).await?;
    Ok(())
}

/// F12: usage comes from a queue while the daemon and the broker are killed: each event is billed once, as it was
/// published, and what is no usage lies in the queue of dead letters.
pub(crate) async fn usage_from_a_queue_is_billed_once_whatever_dies(trial: Trial) -> Result<Outcome> {
    usage_from_a_queue(trial, None).await
}

/// F12: the same with the journal in PostgreSQL, whose lease the killed daemon leaves behind.
pub(crate) async fn usage_from_a_queue_is_billed_once_from_a_journal_in_postgresql(trial: Trial) -> Result<Outcome> {
    let server = tokio::task::spawn_blocking(|| Database::start(&[])).await??;
    server.create("journal")?;
    usage_from_a_queue(trial, Some(server.url("journal"))).await
}

/// In SQLite, or in the database at a URL.
async fn usage_from_a_queue(mut trial: Trial, database: Option<String>) -> Result<Outcome> {
    const BETWEEN: u64 = 150;
    if let Some(skipped) = installed() {
        return Ok(skipped);
    }
    let mut broker = Broker::start().await?;
    let settings = [
        ("SIDECAR_AMQP_SOURCE__QUEUE", "usage"),
        ("SIDECAR_AMQP_SOURCE__HEARTBEAT_SECONDS", "2"),
        ("SIDECAR_CHECKS__UNKNOWN_METRIC", "pass"),
        ("SIDECAR_CHECKS__NO_SUBSCRIPTION", "pass"),
        ("SIDECAR_LAGO__LINGER_SECONDS", "0.02"),
    ];
    let profile = Profile::ALL.into_iter().next().context("a kind of Lago")?;
    let mut rig = Rig::tracker(profile, &settings).await?;
    rig.set("AMQP_URL", &broker.url());
    if let Some(url) = database {
        rig.set("SIDECAR_JOURNAL__ENGINE", "postgres");
        rig.set("DATABASE_URL", &url);
    }
    let lago = rig.lago.take().context("a tracker's rig has a Lago")?;
    lago.put_subscription(Subscription::active("s-1", "c-1", "plan", "2025-01-01T00:00:00Z".parse()?));
    let state = Arc::clone(lago.state());
    rig.start().await?;
    let begin = Instant::now();
    while rig.metrics().await?.sum("amqp_connected", &[("connection", "usage")]) < 1.0 {
        ensure!(begin.elapsed() < DRAIN, "no connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    broker.write_down_queues().await?;
    let mut published = 0;
    for round in 0..trial.count {
        trial.progress(round);
        let client = Client::connect(&broker).await?;
        for _ in 0..BETWEEN {
            publish_usage(&client, published).await?;
            published += 1;
        }
        client.publish("usage", &format!("poison-{round}"), "application/json", b"{\"event\":{}}").await?;
        tokio::time::sleep(trial.millis(0, 150)).await;
        if round % 3 == 1 {
            broker.kill().await?;
            broker.start_again().await?;
        } else {
            rig.kill().await?;
            rig.start().await?;
        }
    }
    let begin = Instant::now();
    while state.counts().stored < published {
        ensure!(begin.elapsed() < DRAIN, "{} of {published} billed", state.counts().stored);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut dead, mut left) = (Found::new(), Found::new());
    let client = Client::connect(&broker).await?;
    let begin = Instant::now();
    while dead.len() < trial.count as usize {
        ensure!(begin.elapsed() < DRAIN, "{} dead letters of {}", dead.len(), trial.count);
        client.drain("usage.dead", &mut dead).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (exit, _) = rig.stop().await?;
    ensure!(exit.code == Some(0), "ended with {exit:?}");
    client.drain("usage", &mut left).await?;
    ensure!(left.is_empty(), "{} messages are still in the queue", left.len());
    let counts = state.counts();
    ensure!(counts.stored == published && counts.distinct_events == published, "{published} published: {counts:?}");
    ensure!(counts.differing_retries == 0 && counts.in_batch_duplicates == 0, "{counts:?}");
    Ok(Outcome::new(trial.count, format!("{published} events billed once, {} dead letters", dead.len())))
}

/// Each in one of the shapes that there are.
async fn publish_usage(client: &Client, n: u64) -> Result<()> {
    let usage = format!(
        r#"{{"transaction_id":"q-{n}","external_subscription_id":"s-1","code":"gb","timestamp":1790000000,"properties":{{"gb":{n}.50}}}}"#
    );
    match n % 3 {
        0 => {
            client
                .publish("usage", &format!("m-{n}"), "application/json", format!(r#"{{"event":{usage}}}"#).as_bytes())
                .await
        }
        1 => {
            let bare = usage.replace(&format!(r#""transaction_id":"q-{n}","#), "");
            client.publish("usage", &format!("m-{n}"), "application/json", bare.as_bytes()).await
        }
        _ => {
            let event = format!(
                r#"{{"specversion":"1.0","id":"e-{n}","source":"/apps/a","type":"gb","subject":"s-1","data":{{"gb":{n}.50}}}}"#
            );
            client.publish("usage", &format!("m-{n}"), "application/cloudevents+json", event.as_bytes()).await
        }
    }
}

/// Everything for the gateway is delivered too, and the daemon ends as it should, without a panic.
/// Ends the load, waits until everything is published, and compares it with what lies in the queue; returns how much of it came
/// more than once.
pub(crate) async fn account(rig: Rig, load: Load, client: &Client, found: &mut Found) -> Result<usize> {
    let sent = load.end().await?;
    rig.published_all(DRAIN).await?;
    client.drain(QUEUE, found).await?;
    let again = compare(&sent, found)?;
    finish(rig).await?;
    Ok(again)
}

/// Stops the daemon, which must have nothing to say.
pub(crate) async fn finish(mut rig: Rig) -> Result<()> {
    let (exit, took) = rig.stop().await?;
    ensure!(exit.code == Some(0) && took <= outrigger_tests::rig::STOP_LIMIT, "ended with {exit} after {took:?}");
    let log = std::fs::read_to_string(rig.scratch.file("daemon.log"))?;
    ensure!(!log.contains("panic"), "there was a panic: {log}");
    Ok(())
}
