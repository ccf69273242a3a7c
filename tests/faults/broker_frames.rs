//! What a broker says, byte by byte: returns that must be matched to their own messages, and nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt as _;
use kit::clock::{SystemClock, Timestamp};
use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSection, AmqpSink, AmqpSource, AmqpSourceSection, Taken};
use kit_delivery::{Failure, Sink as _, Verdict};
use kit_journal::{EventHead, EventId, StoredEvent};
use kit_workbench::broker::Broker;
use kit_workbench::chaos::{ChaosProxy, Direction, Fault};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::queue::{Client, Found};

/// Messages that one count of the first experiment stands for.
const MESSAGES: usize = 640;
const WINDOWS: [usize; 6] = [1, 16, 64, 256, 640, 1024];
const QUEUE: &str = "all";

fn event(number: u64, event_type: &str) -> Arc<StoredEvent> {
    let id = EventId::derive("lago/a", &number.to_string(), None);
    Arc::new(StoredEvent {
        seq: i64::try_from(number).unwrap_or_default(),
        at: Timestamp::from_millis(1_700_000_000_000),
        head: EventHead {
            json: true,
            ..EventHead::new(id, "lago/a", event_type, format!("invoice/{number}"), number.to_string())
        },
        body: bytes::Bytes::from(format!("{{\"number\": {number}}}")),
    })
}

fn section(url: String) -> AmqpSection {
    AmqpSection {
        url: Some(Secret::from(url)),
        queues: BTreeMap::from([(QUEUE.to_owned(), vec!["lago.#".to_owned()])]),
        ..AmqpSection::default()
    }
}

fn sink(section: &AmqpSection) -> Result<AmqpSink> {
    AmqpSink::new("rabbitmq", "test", section, &AmqpMetrics::default())
        .map_err(|errors| anyhow::anyhow!("{}", errors[0]))
}

/// F15: windows from 1 to 1,024 with some messages that have no route, in random places: each of those is said to be
/// undelivered, and no other one. A window whose confirms are taken as they come misses one to three in a hundred.
pub(crate) async fn every_return_is_matched_to_its_own_message(mut trial: Trial) -> Result<Outcome> {
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let broker = Broker::start().await?;
    let sink = sink(&section(broker.url()))?;
    let client = Client::connect(&broker).await?;
    ensure!(sink.deliver(&event(u64::MAX >> 1, "lago.x")).await.verdict == Verdict::Delivered, "no first message");
    client.purge(QUEUE).await?;
    let (mut number, mut unroutable, mut took) = (0_u64, 0_usize, Duration::ZERO);
    let total = MESSAGES * trial.count as usize;
    let mut window = 0;
    while number < total as u64 {
        trial.progress(u32::try_from(number as usize / MESSAGES).unwrap_or(u32::MAX));
        let size = WINDOWS[window % WINDOWS.len()].min(total - number as usize);
        window += 1;
        // From a few to most of them.
        let share = [8, 64, 200][window % 3];
        let events: Vec<_> = (0..size as u64)
            .map(|place| event(number + place, if trial.random.u8(..) < share { "other.x" } else { "lago.x" }))
            .collect();
        number += size as u64;
        let begin = Instant::now();
        let outcomes = sink.deliver_all(&events).await;
        took += begin.elapsed();
        let mut expected = BTreeSet::new();
        let (mut missed, mut blamed) = (0, 0);
        for (event, outcome) in events.iter().zip(&outcomes) {
            let has_route = event.head.event_type == "lago.x";
            match outcome.verdict {
                Verdict::Delivered if has_route => drop(expected.insert(event.head.id.to_string())),
                Verdict::Failed(Failure::Unroutable) if !has_route => unroutable += 1,
                Verdict::Delivered => missed += 1,
                Verdict::Failed(Failure::Unroutable) => blamed += 1,
                Verdict::Failed(_) | Verdict::PassedBy(_) => anyhow::bail!("{outcome:?}"),
            }
        }
        ensure!(missed == 0 && blamed == 0, "window of {size}: {missed} returns missed, {blamed} good ones blamed");
        let mut found = Found::new();
        // One by one is slow, and what lies there is the same for all sizes.
        if window <= WINDOWS.len() {
            client.drain(QUEUE, &mut found).await?;
            ensure!(found.keys().eq(expected.iter()), "window of {size}: the queue holds something else");
        } else if window.is_multiple_of(50) {
            client.purge(QUEUE).await?;
        }
    }
    let rate = total as f64 / took.as_secs_f64();
    Ok(Outcome::new(
        total,
        format!("{unroutable} had no route, 0 missed, 0 others blamed, {rate:.0} messages a second"),
    ))
}

/// T19: a broker whose bytes are changed, cut off or never end, from the greeting to the deliveries: whoever publishes
/// and whoever consumes gives that connection up within the limits, takes no more memory, and works again afterwards.
pub(crate) async fn a_broker_that_sends_nonsense_is_survived(mut trial: Trial) -> Result<Outcome> {
    const LIMIT: Duration = Duration::from_secs(30);
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let broker = Broker::start().await?;
    let proxy = ChaosProxy::start(broker.addr()).await?;
    let mut own = section(format!("amqp://{}", proxy.addr()));
    (own.publish_timeout_seconds, own.confirm_timeout_seconds) = (0.3, 0.5);
    (own.connect_timeout_seconds, own.heartbeat_seconds) = (0.5, 1);
    let sink = sink(&own)?;
    let taken = Arc::new(AtomicU64::new(0));
    let source = AmqpSourceSection {
        url: own.url.clone(),
        queue: "work".to_owned(),
        connect_timeout_seconds: 0.5,
        heartbeat_seconds: 1,
        ..AmqpSourceSection::default()
    };
    let source = AmqpSource::new("source", "test", &source, &AmqpMetrics::default(), Arc::new(SystemClock))
        .map_err(|errors| anyhow::anyhow!("{}", errors[0]))?;
    let (stop, counted) = (StopToken::new(), Arc::clone(&taken));
    let token = stop.clone();
    let consuming = tokio::spawn(async move {
        let receive = move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Taken::Accepted).boxed()
        };
        let (_health, healthy) = tokio::sync::watch::channel(kit_journal::Health::Writable);
        source.run(token, healthy, receive).await
    });
    let client = Client::connect(&broker).await?;
    ensure!(sink.deliver(&event(1, "lago.x")).await.verdict == Verdict::Delivered, "no first message");
    let begin = Instant::now();
    while client.publish("work", "first", "text/plain", b"x").await.is_err() {
        ensure!(begin.elapsed() < LIMIT, "the queue is not declared");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = own_memory()?;
    let (mut given_up, mut slowest) = (0, Duration::ZERO);
    for case in 0..trial.count {
        trial.progress(case);
        // The greeting has about 500 bytes; what follows are answers to declarations, confirms and returns.
        let at = if case % 3 == 0 { trial.random.u64(0..600) } else { trial.random.u64(0..3_000) };
        let fault = match case % 4 {
            0 | 1 => Fault::Corrupt(at),
            2 => Fault::Stall(at),
            _ => Fault::HalfClose(at),
        };
        // Connections that are there are ended first: every case begins with a greeting.
        proxy.set(Direction::Down, Fault::Reset(0));
        let events: Vec<_> =
            (0..64).map(|n| event(u64::from(case) * 64 + n, if n % 5 == 0 { "other.x" } else { "lago.x" })).collect();
        sink.deliver(&events[1]).await;
        proxy.set(Direction::Down, fault);
        let begin = Instant::now();
        let outcomes = sink.deliver_all(&events).await;
        slowest = slowest.max(begin.elapsed());
        given_up += u32::from(outcomes.iter().any(|outcome| outcome.verdict == Verdict::Failed(Failure::Unreachable)));
        if case % 20 == 19 {
            proxy.heal();
            let so_far = taken.load(Ordering::Relaxed);
            client.publish("work", &format!("case-{case}"), "text/plain", b"x").await?;
            let begin = Instant::now();
            while taken.load(Ordering::Relaxed) <= so_far {
                ensure!(begin.elapsed() < LIMIT, "case {case}: nothing is taken any more");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            while sink.deliver(&events[1]).await.verdict != Verdict::Delivered {
                ensure!(begin.elapsed() < LIMIT, "case {case}: nothing is published any more");
            }
            client.purge(QUEUE).await?;
        }
    }
    proxy.heal();
    stop.stop();
    tokio::time::timeout(LIMIT, consuming).await.context("the source does not stop")??.ok();
    let grown = own_memory()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "{} MiB more than before", grown >> 20);
    ensure!(given_up > 0, "nothing was spoilt");
    Ok(Outcome::new(
        trial.count,
        format!("{given_up} windows given up, after {slowest:.1?} at most; {} MiB more", grown >> 20),
    ))
}

/// This process's resident memory without what is mapped from files: a panic of the library reads this program's own
/// symbols.
fn own_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
