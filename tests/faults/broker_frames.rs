//! What a broker says, byte by byte: returns that must be matched to their own messages, and nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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
use tokio::task::JoinSet;

/// Messages that one count of the first experiment stands for.
const MESSAGES: usize = 640;
const WINDOWS: [usize; 6] = [1, 16, 64, 256, 640, 1024];
const QUEUE: &str = "all";
/// How many go through the cases of the second experiment at once.
const LANES: u32 = 20;
/// The longest that one of them may wait for a window on a connection that is spoilt: it is tried twice, and the broker has
/// five seconds for each answer while it declares, also for the one that nobody needs. The rest is for a busy machine.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// And for everything to go on once nothing is spoilt any more.
const WORKS_AGAIN_WITHIN: Duration = Duration::from_secs(30);

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
///
/// A case mostly waits for a limit to pass: several go on side by side, each with connections, a proxy and queues of its
/// own.
pub(crate) async fn a_broker_that_sends_nonsense_is_survived(mut trial: Trial) -> Result<Outcome> {
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let broker = Broker::start().await?;
    let lanes = LANES.min(trial.count.max(1));
    let mut peers = Vec::new();
    for lane in 0..lanes {
        peers.push(Peer::start(&broker, lane, trial.random.fork()).await?);
    }
    let before = own_memory()?;
    let (trial, finished) = (Arc::new(trial), Arc::new(AtomicU32::new(0)));
    let mut running = JoinSet::new();
    for peer in peers {
        let cases = (peer.lane..trial.count).step_by(lanes as usize);
        let (trial, finished) = (Arc::clone(&trial), Arc::clone(&finished));
        running.spawn(peer.hear_nonsense(cases, move || trial.progress(finished.fetch_add(1, Ordering::Relaxed))));
    }
    let (mut given_up, mut slowest) = (0, Duration::ZERO);
    while let Some(lane) = running.join_next().await {
        let of_lane = lane??;
        given_up += of_lane.0;
        slowest = slowest.max(of_lane.1);
    }
    let grown = own_memory()?.saturating_sub(before);
    ensure!(grown < 64 << 20, "{} MiB more than before", grown >> 20);
    ensure!(given_up > 0, "nothing was spoilt");
    ensure!(slowest < GIVEN_UP_WITHIN, "a window was given up after {slowest:.1?}");
    Ok(Outcome::new(
        trial.count,
        format!("{given_up} windows given up, after {slowest:.1?} at most; {} MiB more", grown >> 20),
    ))
}

/// One that publishes to a broker and consumes from it, both through a proxy that spoils what the broker says.
struct Peer {
    lane: u32,
    random: fastrand::Rng,
    proxy: ChaosProxy,
    client: Client,
    sink: AmqpSink,
    taken: Arc<AtomicU64>,
    stop: StopToken,
    consuming: tokio::task::JoinHandle<Result<(), Infallible>>,
}

impl Peer {
    async fn start(broker: &Broker, lane: u32, random: fastrand::Rng) -> Result<Self> {
        let proxy = ChaosProxy::start(broker.addr()).await?;
        let mut own = section(format!("amqp://{}", proxy.addr()));
        own.queues = BTreeMap::from([(own_queue(lane), vec![format!("lago.{lane}.#")])]);
        (own.publish_timeout_seconds, own.confirm_timeout_seconds) = (0.3, 0.5);
        (own.connect_timeout_seconds, own.heartbeat_seconds) = (0.5, 1);
        let taken = Arc::new(AtomicU64::new(0));
        let source = AmqpSourceSection {
            url: own.url.clone(),
            queue: work_queue(lane),
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
        let peer = Self {
            lane,
            random,
            proxy,
            client: Client::connect(broker).await?,
            sink: sink(&own)?,
            taken,
            stop,
            consuming,
        };
        ensure!(peer.sink.deliver(&peer.event(1, true)).await.verdict == Verdict::Delivered, "no first message");
        let begin = Instant::now();
        while peer.client.publish(&work_queue(lane), "first", "text/plain", b"x").await.is_err() {
            ensure!(begin.elapsed() < WORKS_AGAIN_WITHIN, "the queue is not declared");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(peer)
    }

    fn event(&self, number: u64, has_route: bool) -> Arc<StoredEvent> {
        let lane = self.lane;
        event(number, &if has_route { format!("lago.{lane}.x") } else { format!("other.{lane}.x") })
    }

    /// Goes through these cases: how many windows were given up, and the longest that one took.
    async fn hear_nonsense(
        mut self,
        cases: impl ExactSizeIterator<Item = u32>,
        finished: impl Fn(),
    ) -> Result<(u32, Duration)> {
        let (mut given_up, mut slowest) = (0, Duration::ZERO);
        let last = cases.len().saturating_sub(1);
        for (nth, case) in cases.enumerate() {
            // The greeting has about 500 bytes; what follows are answers to declarations, confirms and returns.
            let at = if nth % 3 == 0 { self.random.u64(0..600) } else { self.random.u64(0..3_000) };
            let fault = match nth % 4 {
                0 | 1 => Fault::Corrupt(at),
                2 => Fault::Stall(at),
                _ => Fault::HalfClose(at),
            };
            // Connections that are there are ended first: every case begins with a greeting.
            self.proxy.set(Direction::Down, Fault::Reset(0));
            let events: Vec<_> = (0..64).map(|n| self.event(u64::from(case) * 64 + n, n % 5 != 0)).collect();
            self.sink.deliver(&events[1]).await;
            self.proxy.set(Direction::Down, fault);
            let begin = Instant::now();
            let outcomes = self.sink.deliver_all(&events).await;
            slowest = slowest.max(begin.elapsed());
            let unreachable = Verdict::Failed(Failure::Unreachable);
            given_up += u32::from(outcomes.iter().any(|outcome| outcome.verdict == unreachable));
            if nth % 10 == 9 || nth == last {
                self.works_again().await.with_context(|| format!("case {case}, {fault:?}"))?;
            }
            finished();
        }
        self.stop.stop();
        tokio::time::timeout(WORKS_AGAIN_WITHIN, self.consuming).await.context("the source does not stop")??.ok();
        Ok((given_up, slowest))
    }

    /// Nothing is spoilt any more: a message is taken, and one is published.
    async fn works_again(&self) -> Result<()> {
        self.proxy.heal();
        let so_far = self.taken.load(Ordering::Relaxed);
        self.client.publish(&work_queue(self.lane), "again", "text/plain", b"x").await?;
        let begin = Instant::now();
        while self.taken.load(Ordering::Relaxed) <= so_far {
            ensure!(begin.elapsed() < WORKS_AGAIN_WITHIN, "nothing is taken any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while self.sink.deliver(&self.event(1, true)).await.verdict != Verdict::Delivered {
            ensure!(begin.elapsed() < WORKS_AGAIN_WITHIN, "nothing is published any more");
        }
        self.client.purge(&own_queue(self.lane)).await
    }
}

fn own_queue(lane: u32) -> String {
    format!("{QUEUE}-{lane}")
}

fn work_queue(lane: u32) -> String {
    format!("work-{lane}")
}

/// This process's resident memory without what is mapped from files: a panic of the library reads this program's own
/// symbols.
fn own_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
