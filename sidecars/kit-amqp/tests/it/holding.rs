//! What cannot be taken for now: it waits here, as little as may be goes back to the queue, and nothing is thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSourceSection, Message, Taken};
use kit_journal::Health;
use kit_workbench::broker::Broker;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use prometheus_client::registry::Registry;

use crate::publishing::{channel, drain};
use crate::taking::{Running, first_of, publish, until};

pub(crate) async fn check(broker: &Broker) {
    nothing_is_taken_while_the_journal_takes_nothing(broker).await;
    what_comes_back_too_often_is_a_dead_letter(broker).await;
    one_that_always_waits_holds_up_nobody_else(broker).await;
    more_than_may_lie_here_does_not_end_the_connection(broker).await;
    many_that_are_on_their_way_when_all_are_given_back_go_back_in_time(broker).await;
    what_one_connection_has_found_out_counts_for_the_next(broker).await;
    a_message_that_ends_connections_takes_no_others_with_it(broker).await;
}

pub(crate) fn section(broker: &Broker, queue: &str) -> AmqpSourceSection {
    AmqpSourceSection {
        url: Some(Secret::from(broker.url())),
        queue: queue.to_owned(),
        retry_max_seconds: 0.6,
        ..AmqpSourceSection::default()
    }
}

/// Takes nothing until it is opened; what it took, and whether the broker had sent it before.
#[derive(Clone, Default)]
struct Door {
    is_open: Arc<AtomicBool>,
    taken: Arc<Mutex<BTreeMap<String, bool>>>,
    asked: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Door {
    fn take(&self, message: &Message) -> Taken {
        let id = message.message_id.clone().unwrap();
        *self.asked.lock().unwrap().entry(id.clone()).or_default() += 1;
        if !self.is_open.load(Ordering::SeqCst) {
            return Taken::TryLater("not yet".to_owned());
        }
        self.taken.lock().unwrap().insert(id, message.redelivered);
        Taken::Accepted
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }

    fn taken(&self) -> BTreeMap<String, bool> {
        self.taken.lock().unwrap().clone()
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn running(section: &AmqpSourceSection, metrics: &AmqpMetrics, door: &Door) -> Running {
    let door = door.clone();
    Running::start(section, metrics, move |message| door.take(message))
}

/// Messages that wait, and messages that were sent and not acknowledged.
pub(crate) async fn counts(broker: &Broker, queue: &str) -> (u64, u64) {
    let listed = broker.ctl(&["list_queues", "name", "messages_ready", "messages_unacknowledged"]).await.unwrap();
    let line = listed.lines().find(|line| line.split('\t').next() == Some(queue)).unwrap_or_default();
    let mut numbers = line.split('\t').skip(1).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(u64::MAX), numbers.next().unwrap_or(u64::MAX))
}

/// Waits for the queue: what is published before it is declared is lost.
pub(crate) async fn is_there(broker: &Broker, queue: &str) {
    until("the queue is there", async || counts(broker, queue).await != (u64::MAX, u64::MAX)).await;
}

/// Consumers of all channels; a quorum queue goes on counting one that was ended while something is not acknowledged.
async fn consumers(broker: &Broker) -> u64 {
    let listed = broker.ctl(&["list_channels", "consumer_count"]).await.unwrap();
    listed.lines().filter_map(|number| number.trim().parse::<u64>().ok()).sum()
}

async fn nothing_is_taken_while_the_journal_takes_nothing(broker: &Broker) {
    let door = Door::default();
    let running = running(&section(broker, "held"), &AmqpMetrics::default(), &door);
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "held").await;
    for n in 0..3 {
        publish(&channel, "held", &format!("before-{n}"), b"x").await;
    }
    until("three were looked at", async || door.asked() == 3).await;
    running.health.send_replace(Health::Failing("the disk is full".to_owned()));
    until("it is not consumed", async || consumers(broker).await == 0).await;
    for n in 0..5 {
        publish(&channel, "held", &format!("meanwhile-{n}"), b"x").await;
    }
    until("they wait there", async || counts(broker, "held").await == (5, 3)).await;
    assert_eq!(door.asked(), 3);

    door.open();
    running.health.send_replace(Health::Writable);
    until("all are taken", async || door.taken().len() == 8).await;
    assert!(door.taken().values().all(|again| !again), "something was sent twice: {:?}", door.taken());
    until("all are acknowledged", async || counts(broker, "held").await == (0, 0)).await;
    until("it is consumed again", async || consumers(broker).await == 1).await;
    running.end().await;
}

/// As with RabbitMQ 4.0 and later, where a quorum queue has a limit of 20 by itself.
async fn what_comes_back_too_often_is_a_dead_letter(broker: &Broker) {
    let policy = r#"{"delivery-limit":2}"#;
    broker.ctl(&["set_policy", "limited", "^limited$", policy, "--apply-to", "queues"]).await.unwrap();
    let door = Door::default();
    let section = AmqpSourceSection { hold_max_seconds: 0.2, ..section(broker, "limited") };
    let running = running(&section, &AmqpMetrics::default(), &door);
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "limited").await;
    for n in 0..5 {
        publish(&channel, "limited", &format!("{n}"), b"x").await;
    }
    let (first, headers) = first_of(&channel, "limited.dead").await;
    assert_eq!(headers["x-first-death-reason"], "delivery_limit");

    // Every one is there, in one place or the other.
    door.open();
    let mut dead = BTreeSet::from([first]);
    until("the others are taken or there too", async || {
        dead.extend(drain(&channel, "limited.dead").await.into_iter().map(|(id, _)| id));
        dead.len() + door.taken().len() == 5
    })
    .await;
    assert!(door.taken().keys().all(|id| !dead.contains(id)), "{dead:?} and {:?}", door.taken());
    running.end().await;
}

/// The broker sends first what was given back, so that it must not be waited for alone: neither at all times, nor when it is
/// tried after an outage whether any message can be taken.
async fn one_that_always_waits_holds_up_nobody_else(broker: &Broker) {
    let section = AmqpSourceSection { hold_max_seconds: 0.3, ..section(broker, "stuck") };
    let door = Door::default();
    door.open();
    let taking = door.clone();
    let times = Arc::new(AtomicU32::new(0));
    let waits = Arc::clone(&times);
    let running = Running::start(&section, &AmqpMetrics::default(), move |message| {
        if message.message_id.as_deref().is_some_and(|id| id.starts_with("stuck")) {
            waits.fetch_add(u32::from(message.redelivered), Ordering::SeqCst);
            return Taken::TryLater("never".to_owned());
        }
        taking.take(message)
    });
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "stuck").await;
    for n in 0..3 {
        publish(&channel, "stuck", &format!("stuck-{n}"), b"x").await;
    }
    until("they came back", async || times.load(Ordering::SeqCst) >= 3).await;
    for n in 0..5 {
        publish(&channel, "stuck", &format!("good-{n}"), b"x").await;
    }
    until("the others are taken", async || door.taken().len() == 5).await;
    assert!(door.taken().values().all(|again| !again), "something was sent twice: {:?}", door.taken());

    running.health.send_replace(Health::Failing("the disk is full".to_owned()));
    until("all are given back", async || counts(broker, "stuck").await == (3, 0)).await;
    for n in 5..10 {
        publish(&channel, "stuck", &format!("good-{n}"), b"x").await;
    }
    running.health.send_replace(Health::Writable);
    until("the others are taken again", async || door.taken().len() == 10).await;
    running.end().await;
}

/// The broker's word that it sends no more comes behind all that it has sent before it was asked.
async fn many_that_are_on_their_way_when_all_are_given_back_go_back_in_time(broker: &Broker) {
    const MESSAGES: u64 = 200;
    /// So that those on their way, some forty at a time, would take longer than the broker's word is waited for.
    const SLOW: Duration = Duration::from_millis(2_500);
    let door = Door::default();
    let section = section(broker, "many");
    // Declares the queue.
    let declaring = running(&section, &AmqpMetrics::default(), &door);
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "many").await;
    declaring.end().await;
    let body = vec![b'x'; 400 << 10];
    for n in 0..MESSAGES {
        publish(&channel, "many", &format!("{n}"), &body).await;
    }
    let mut registry = Registry::default();
    let metrics = AmqpMetrics::register(&mut registry);
    let asking = door.clone();
    let running = Running::receiving(&section, &metrics, move |message| {
        let door = asking.clone();
        async move {
            if !door.is_open.load(Ordering::SeqCst) {
                tokio::time::sleep(SLOW).await;
            }
            door.take(&message)
        }
        .boxed()
    });
    // Many more than may lie here.
    until("many of those on their way have come", async || later(&registry) > MESSAGES / 2).await;

    // A quorum queue is counted every five seconds only, and by then some may be tried again: one, then two, then four …
    until("all are given back", async || counts(broker, "many").await.0 >= MESSAGES * 3 / 4).await;

    door.open();
    until("all are taken", async || door.taken().len() as u64 == MESSAGES).await;
    let text = encoded(&registry);
    assert!(text.contains("amqp_connects_total{connection=\"source\"} 1\n"), "{text}");
    running.end().await;
}

/// Messages that could not be taken, so far.
fn later(registry: &Registry) -> u64 {
    let text = encoded(registry);
    let line = text.lines().find(|line| line.starts_with("amqp_consumed_total{") && line.contains("\"later\""));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn encoded(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

/// A connection that ends when nothing could be taken is no reason to take as much as ever on the next one.
async fn what_one_connection_has_found_out_counts_for_the_next(broker: &Broker) {
    const MESSAGES: u64 = 20;
    let door = Door::default();
    let section = AmqpSourceSection { hold_max_seconds: 4.0, ..section(broker, "careful") };
    let mut registry = Registry::default();
    let running = running(&section, &AmqpMetrics::register(&mut registry), &door);
    {
        let (_connection, channel) = channel(broker).await;
        is_there(broker, "careful").await;
        for n in 0..MESSAGES {
            publish(&channel, "careful", &format!("{n}"), b"x").await;
        }
    }
    until("all are looked at", async || door.asked() as u64 == MESSAGES).await;
    running.health.send_replace(Health::Failing("the disk is full".to_owned()));
    until("all are given back", async || counts(broker, "careful").await == (MESSAGES, 0)).await;
    broker.ctl(&["close_all_connections", "a test"]).await.unwrap();
    until("there is another one", async || {
        encoded(&registry).contains("amqp_connects_total{connection=\"source\"} 2\n")
    })
    .await;
    door.asked.lock().unwrap().clear();

    running.health.send_replace(Health::Writable);

    until("one is looked at twice", async || door.asked.lock().unwrap().values().any(|times| *times > 1)).await;
    assert_eq!(door.asked(), 1);
    door.open();
    until("all are taken", async || door.taken().len() as u64 == MESSAGES).await;
    running.end().await;
}

/// Nothing is read while too much lies here, and then nobody hears the broker's heartbeats.
async fn more_than_may_lie_here_does_not_end_the_connection(broker: &Broker) {
    const MESSAGES: usize = 40;
    const HEARTBEAT: u16 = 3;
    let door = Door::default();
    let mut registry = Registry::default();
    let metrics = AmqpMetrics::register(&mut registry);
    let section = AmqpSourceSection { heartbeat_seconds: HEARTBEAT, ..section(broker, "large") };
    let running = running(&section, &metrics, &door);
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "large").await;
    let body = vec![b'x'; 900 << 10];
    for n in 0..MESSAGES {
        publish(&channel, "large", &format!("{n}"), &body).await;
    }
    until("more than it takes was sent", async || door.asked() >= 10).await;
    // Much longer than it takes to miss two heartbeats.
    tokio::time::sleep(Duration::from_secs(u64::from(HEARTBEAT) * 3)).await;
    door.open();
    until("all are taken", async || door.taken().len() == MESSAGES).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("amqp_connects_total{connection=\"source\"} 1\n"), "{text}");
    running.end().await;
}

/// A broker gives up what it has sent too often, as one of version 4 does by itself. What comes back comes in any order, so
/// that some are sent several times with the bad one.
async fn a_message_that_ends_connections_takes_no_others_with_it(broker: &Broker) {
    const GOOD: usize = 6;
    /// More than a message may have here, so that the connection ends before it is read.
    const TOO_LARGE: usize = 17 << 20;
    let (_connection, channel) = channel(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(6));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in ["poisoned", "poisoned.dead"] {
        channel.queue_declare(queue.into(), options, arguments.clone()).await.unwrap();
    }
    // Some before it, and the rest behind it.
    for n in 0..=GOOD {
        let body = vec![b'x'; if n == GOOD / 3 { TOO_LARGE } else { 1 }];
        publish(&channel, "poisoned", &format!("{n}"), &body).await;
    }
    let door = Door::default();
    door.open();
    let section = AmqpSourceSection { declare: false, ..section(broker, "poisoned") };
    let running = running(&section, &AmqpMetrics::default(), &door);

    until("the good ones are taken", async || door.taken().len() == GOOD).await;

    running.end().await;
}
