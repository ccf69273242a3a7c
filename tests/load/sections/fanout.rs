//! The figures of routes and of RabbitMQ as a sink, beside a plain publisher and beside mq-bridge.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kit_workbench::broker::Broker;
use kit_workbench::scratch::free_address;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use outrigger_tests::queue::Client;
use serde_json::{Value, json};

use super::{Bench, GATEWAY, MIB};
use crate::backlog;
use crate::measure::median;
use crate::record::{Bar, rounded};
use crate::servers::{Receiver, Variant, python};
use crate::wrk::{self, Seen};

/// Routes whose globs are all looked at, because none matches.
const ROUTES: usize = 100;
const RABBITMQ: &str = "rabbitmq";
const EXCHANGE: &str = "events";
/// Events of `amqp-forward` at most.
const FORWARDED: u64 = 50_000;
/// Messages in flight of either side: the processor's default window.
const WINDOW: usize = 256;
/// How long the sender goes on in the run in which the broker is killed …
const KILLED_SECONDS: u64 = 24;
/// … and how long before that.
const KILLED_AFTER: Duration = Duration::from_secs(4);

impl Bench<'_> {
    /// Accepts while delivering, with a long table of routes and without one.
    pub(super) async fn routes(&mut self) -> Result<()> {
        let (mut ratios, mut through) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let without = self.ran("routes", Variant::DELIVERING, 64, false).await?;
            let (folder, journal) = self.empty("routes")?;
            let table: String = (0..ROUTES)
                .map(|number| {
                    format!("[[route]]\nname = \"r{number}\"\ntypes = [\"lago.*.kind_{number}\"]\nto = [\"gateway\"]\n")
                })
                .chain(std::iter::once("[routes]\ndefault_route = [\"gateway\"]\n".to_owned()))
                .collect();
            let file = folder.join("config.toml");
            std::fs::write(&file, table)?;
            let settings = [("SIDECAR_CONFIG", file.display().to_string())];
            let receiver = self.stage.start_with(Variant::DELIVERING, folder, &journal, &settings).await?;
            let (begin, webhooks) = (Instant::now(), self.stage.webhooks(Variant::DELIVERING));
            let seen = wrk::drive(receiver.address, self.webhooks(&webhooks, 64, false)).await?;
            ensure!(seen.not_2xx == 0 && seen.broken == 0, "{seen:?}");
            receiver.drained(seen.requests as f64).await?;
            let end_to_end = seen.requests as f64 / begin.elapsed().as_secs_f64();
            receiver.end().await?;
            let mut figures = figures(&seen);
            figures["end_to_end_rate"] = json!(rounded(end_to_end));
            self.records.put("routes", "outrigger, delivering, with routes", figures)?;
            ratios.push(seen.rate() / without.seen.rate());
            through.push(end_to_end / without.end_to_end);
        }
        let what = format!("end to end with {ROUTES} routes over end to end without");
        self.records.put("routes", "ratio", json!({ "what": what, "seen": rounded(median(through)) }))?;
        let what = format!("accept with {ROUTES} routes by glob over accept without, delivering");
        self.records.bar("routes", &what, median(ratios), Bar::AtLeast(0.95))
    }

    /// A backlog on its way to a quorum queue, confirmed, beside a publisher that has nothing else to do.
    pub(super) async fn amqp_forward(&mut self) -> Result<()> {
        let queued = self.options.queued.min(FORWARDED);
        let mut ratios = Vec::new();
        for _ in 0..self.options.rounds {
            // A broker each: what one has written is not the other's work.
            let broker = Broker::start().await?;
            let folder = self.stage.scratch.file("forward");
            std::fs::create_dir(&folder)?;
            let (journal, pool) = (folder.join("journal.db"), self.stage.pool(false)?);
            let path = journal.clone();
            let sinks = [GATEWAY, RABBITMQ];
            tokio::task::spawn_blocking(move || backlog::make(&path, &pool, queued, &sinks)).await??;
            let receiver = self
                .stage
                .start_with(Variant::ALONE, folder.clone(), &journal, &settings(&broker, &folder, 1)?)
                .await?;
            receiver.counted("amqp_connected", &[], 1.0).await?;
            let (before, begin) = (receiver.usage()?, Instant::now());
            receiver.resume_sink(&self.stage, RABBITMQ).await?;
            let delivered = [("sink", RABBITMQ), ("outcome", "delivered")];
            receiver.counted("delivery_attempts_total", &delivered, queued as f64).await?;
            let ours = queued as f64 / begin.elapsed().as_secs_f64();
            let used = receiver.usage()?.since(before);
            receiver.end().await?;
            let client = Client::connect(&broker).await?;
            ensure!(messages(&client, "q0").await? == queued, "not {queued} messages in the queue");
            let got = client.channel.basic_get("q0".into(), BasicGetOptions { no_ack: true }).await?;
            let message = got.context("no message in the queue")?;
            drop(broker);
            let figures = json!({
                "events": queued, "events_per_second": rounded(ours), "body_bytes": message.data.len(),
                "cpu_us_per_event": rounded(used.cpu_seconds * 1e6 / queued as f64), "rss_mib": rounded(used.rss_bytes as f64 / MIB),
            });
            self.records.put("amqp-forward", "outrigger", figures)?;

            let broker = Broker::start().await?;
            let (data, properties) = (message.delivery.data, message.delivery.properties);
            let plain = publish(&broker, message.delivery.routing_key.as_str(), &data, &properties, queued).await?;
            self.records.put(
                "amqp-forward",
                "plain lapin publisher",
                json!({ "events_per_second": rounded(plain) }),
            )?;
            ratios.push(ours / plain);
        }
        let what = format!("confirmed to a quorum queue over a plain publisher, {WINDOW} in flight");
        self.records.bar("amqp-forward", &what, median(ratios), Bar::AtLeast(0.6))
    }

    /// What it costs the intake that everything goes to the gateway and to two queues meanwhile.
    pub(super) async fn amqp_accept(&mut self) -> Result<()> {
        let broker = Broker::start().await?;
        let (mut ratios, mut http) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let alone = self.ran("amqp-accept", Variant::ALONE, 64, false).await?.seen.rate();
            let (seen, receiver) = self.fanned_out(&broker, 64).await?;
            receiver.end().await?;
            let figures = json!({ "rate": rounded(seen.rate()), "p50_ms": seen.p50_ms, "p99_ms": seen.p99_ms });
            self.records.put("amqp-accept", "outrigger, delivering to the gateway and two queues", figures)?;
            ratios.push(seen.rate() / alone);
            http.push(self.ran("amqp-accept", Variant::DELIVERING, 64, false).await?.seen.rate() / alone);
        }
        let figures = json!({ "what": "accept while delivering to the gateway only over accept alone", "seen": rounded(median(http)) });
        self.records.put("amqp-accept", "ratio", figures)?;
        let what = "accept with a gateway and two queues over accept alone";
        self.records.bar("amqp-accept", what, median(ratios), Bar::AtLeast(0.85))?;

        // At a rate that leaves the processors time, what a sender sees of it.
        let (mut alone, mut fanned) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let receiver = self.stage.start(Variant::ALONE).await?;
            alone.push(self.paced(&receiver, 1_000, 10_000).await?.latency_ms.p50);
            receiver.end().await?;
            let (folder, journal) = self.empty("paced")?;
            let settings = settings(&broker, &folder, 2)?;
            let receiver = self.stage.start_with(Variant::DELIVERING, folder, &journal, &settings).await?;
            receiver.counted("amqp_connected", &[], 1.0).await?;
            let latency = self.paced(&receiver, 1_000, 10_000).await?.latency_ms;
            receiver.end().await?;
            let figures =
                json!({ "per_second": 1_000, "p50_ms": rounded(latency.p50), "p99_ms": rounded(latency.p99) });
            self.records.put("amqp-accept", "outrigger, delivering to the gateway and two queues", figures)?;
            fanned.push(latency.p50);
        }
        let figures = json!({
            "what": "p50 in ms at 1,000/s, alone and with a gateway and two queues",
            "seen": [rounded(median(alone)), rounded(median(fanned))],
        });
        self.records.put("amqp-accept", "median", figures)
    }

    /// Resident memory with a connection to a broker and nothing to do.
    pub(super) async fn amqp_memory(&mut self) -> Result<()> {
        let broker = Broker::start().await?;
        let (folder, journal) = self.empty("idle")?;
        let settings = settings(&broker, &folder, 2)?;
        let receiver = self.stage.start_with(Variant::DELIVERING, folder, &journal, &settings).await?;
        receiver.counted("amqp_connected", &[], 1.0).await?;
        let idle = receiver.usage()?.rss_bytes as f64 / MIB;
        receiver.end().await?;
        self.records.bar("amqp-memory", "MiB idle, connected to a broker", idle, Bar::AtMost(16.0))
    }

    /// mq-bridge on the same broker with the same sender, and what either has answered for when the broker is killed.
    pub(super) async fn amqp_peer(&mut self) -> Result<()> {
        let Some(python) = python() else {
            let why = "there is no environment with mq-bridge: use tests/load/run";
            return self.records.put("amqp-peer", "missing", json!({ "why": why }));
        };
        for _ in 0..self.options.rounds {
            let broker = Broker::start().await?;
            let (seen, receiver) = self.fanned_out(&broker, 64).await?;
            receiver.end().await?;
            self.records.put("amqp-peer", "outrigger, delivering to the gateway and two queues", figures(&seen))?;
            for verifies in [true, false] {
                let queue = if verifies { "verified" } else { "unverified" };
                declare(&Client::connect(&broker).await?, queue).await?;
                let receiver =
                    self.stage.start_bridge(&python, free_address()?, &broker.url(), queue, verifies).await?;
                let webhooks = self.stage.webhooks(Variant::ALONE);
                let seen = wrk::drive(receiver.address, self.webhooks(&webhooks, 64, false)).await?;
                let used = receiver.usage()?;
                receiver.end().await?;
                let mut figures = figures(&seen);
                figures["rss_mib"] = json!(rounded(used.rss_bytes as f64 / MIB));
                self.records.put("amqp-peer", &format!("mq-bridge, {queue}"), figures)?;
            }
        }
        let mut broker = Broker::start().await?;
        let (folder, journal) = self.empty("killed")?;
        let settings = settings(&broker, &folder, 1)?;
        let receiver = self.stage.start_with(Variant::DELIVERING, folder, &journal, &settings).await?;
        receiver.counted("amqp_connected", &[], 1.0).await?;
        let seen = self.killed(&mut broker, &receiver).await?;
        let delivered = [("sink", RABBITMQ), ("outcome", "delivered")];
        receiver.counted("delivery_attempts_total", &delivered, (seen.requests - seen.not_2xx) as f64).await?;
        receiver.end().await?;
        self.survived("outrigger", &broker, "q0", &seen).await?;

        let mut broker = Broker::start().await?;
        declare(&Client::connect(&broker).await?, "bridged").await?;
        let receiver = self.stage.start_bridge(&python, free_address()?, &broker.url(), "bridged", false).await?;
        let seen = self.killed(&mut broker, &receiver).await?;
        receiver.end().await?;
        self.survived("mq-bridge", &broker, "bridged", &seen).await
    }

    /// Sends while the broker is killed and comes back.
    async fn killed(&mut self, broker: &mut Broker, receiver: &Receiver) -> Result<Seen> {
        broker.write_down_queues().await?;
        let webhooks = self.stage.webhooks(Variant::ALONE);
        let drive = wrk::Drive { seconds: KILLED_SECONDS, ..self.webhooks(&webhooks, 16, false) };
        let outage = async {
            tokio::time::sleep(KILLED_AFTER).await;
            broker.kill().await?;
            broker.start_again().await?;
            anyhow::Ok(())
        };
        let (seen, outage) = tokio::join!(wrk::drive(receiver.address, drive), outage);
        outage?;
        seen
    }

    /// What was answered 2xx, and what of it is in the queue in the end.
    async fn survived(&mut self, who: &str, broker: &Broker, queue: &str, seen: &Seen) -> Result<()> {
        let found = messages(&Client::connect(broker).await?, queue).await?;
        let answered = seen.requests - seen.not_2xx;
        let figures = json!({
            "answered_2xx": answered, "answered_otherwise": seen.not_2xx, "unanswered": seen.broken, "in_the_queue": found,
            "missing": answered.saturating_sub(found),
        });
        self.records.put("amqp-peer", &format!("{who}, the broker killed and started again"), figures)
    }

    async fn fanned_out(&mut self, broker: &Broker, connections: u32) -> Result<(Seen, Receiver)> {
        let (folder, journal) = self.empty("fan")?;
        let settings = settings(broker, &folder, 2)?;
        let receiver = self.stage.start_with(Variant::DELIVERING, folder, &journal, &settings).await?;
        receiver.counted("amqp_connected", &[], 1.0).await?;
        let webhooks = self.stage.webhooks(Variant::DELIVERING);
        let seen = wrk::drive(receiver.address, self.webhooks(&webhooks, connections, false)).await?;
        ensure!(seen.not_2xx == 0 && seen.broken == 0, "{seen:?}");
        Ok((seen, receiver))
    }
}

fn figures(seen: &Seen) -> Value {
    json!({
        "rate": rounded(seen.rate()), "requests": seen.requests, "not_2xx": seen.not_2xx, "broken": seen.broken,
        "p50_ms": seen.p50_ms, "p99_ms": seen.p99_ms,
    })
}

/// The processor publishes to this broker, to so many queues of everything.
fn settings(broker: &Broker, folder: &Path, queues: usize) -> Result<[(&'static str, String); 2]> {
    let file = folder.join("config.toml");
    let queues: String = (0..queues).map(|number| format!("q{number} = [\"lago.#\"]\n")).collect();
    std::fs::write(&file, format!("[amqp.queues]\n{queues}"))?;
    Ok([("AMQP_URL", broker.url()), ("SIDECAR_CONFIG", file.display().to_string())])
}

async fn declare(client: &Client, queue: &str) -> Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    client.channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(())
}

/// How many messages lie there, once that number stands still.
async fn messages(client: &Client, queue: &str) -> Result<u64> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let begin = Instant::now();
    let mut last = None;
    loop {
        let found = client.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.message_count();
        if last == Some(found) || begin.elapsed() > Duration::from_secs(30) {
            return Ok(u64::from(found));
        }
        last = Some(found);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Messages a second that lapin publishes by itself: the same message over and over, so many of them not confirmed yet.
async fn publish(broker: &Broker, key: &str, body: &[u8], properties: &BasicProperties, count: u64) -> Result<f64> {
    let client = Client::connect(broker).await?;
    let channel = &client.channel;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    declare(&client, "plain").await?;
    let bound = QueueBindOptions::default();
    channel.queue_bind("plain".into(), EXCHANGE.into(), "lago.#".into(), bound, FieldTable::default()).await?;
    let (begin, mut waiting) = (Instant::now(), FuturesUnordered::new());
    for _ in 0..count {
        if waiting.len() >= WINDOW {
            confirmed(waiting.next().await)?;
        }
        let options = BasicPublishOptions::default();
        waiting.push(channel.basic_publish(EXCHANGE.into(), key.into(), options, body, properties.clone()).await?);
    }
    while let Some(confirm) = waiting.next().await {
        confirmed(Some(confirm))?;
    }
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    ensure!(messages(&client, "plain").await? == count, "not {count} messages in the queue");
    channel.queue_delete("plain".into(), QueueDeleteOptions::default()).await?;
    Ok(rate)
}

fn confirmed(confirm: Option<lapin::Result<lapin::Confirmation>>) -> Result<()> {
    let confirm = confirm.context("nothing waits for a confirm")??;
    ensure!(confirm.is_ack(), "not confirmed: {confirm:?}");
    Ok(())
}
