//! What can never be taken, and queues that are there already.

use std::collections::BTreeMap;

use kit_amqp::{AmqpMetrics, Taken};
use kit_workbench::broker::Broker;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use prometheus_client::registry::Registry;

use crate::holding::{counts, is_there, section};
use crate::publishing::{channel, drain};
use crate::taking::{Running, first_of, publish, until};

pub(crate) async fn check(broker: &Broker) {
    many_at_once_are_each_buried_once(broker).await;
    one_without_a_name_gets_one(broker).await;
    a_queue_that_was_made_otherwise_is_taken(broker).await;
}

fn rejecting(broker: &Broker, queue: &str, metrics: &AmqpMetrics) -> Running {
    Running::start(&section(broker, queue), metrics, |_| Taken::Rejected("poison".to_owned()))
}

/// More of them than a connection has channels.
async fn many_at_once_are_each_buried_once(broker: &Broker) {
    const MESSAGES: u64 = 200;
    let declaring = rejecting(broker, "plague", &AmqpMetrics::default());
    is_there(broker, "plague").await;
    declaring.end().await;
    let (_connection, channel) = channel(broker).await;
    for n in 0..MESSAGES {
        publish(&channel, "plague", &format!("{n}"), b"x").await;
    }
    let mut registry = Registry::default();
    let running = rejecting(broker, "plague", &AmqpMetrics::register(&mut registry));
    until("all were taken", async || counts(broker, "plague").await == (0, 0)).await;
    running.end().await;
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    drain(&channel, "plague.dead").await.into_iter().for_each(|(id, _)| *times.entry(id).or_default() += 1);
    assert_eq!(times.len() as u64, MESSAGES);
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("amqp_connects_total{connection=\"source-dead\"} 1\n"), "{text}");
}

async fn one_without_a_name_gets_one(broker: &Broker) {
    let running = rejecting(broker, "nameless", &AmqpMetrics::default());
    let (_connection, channel) = channel(broker).await;
    is_there(broker, "nameless").await;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let confirm = channel.basic_publish("".into(), "nameless".into(), options, b"x", properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
    let (id, headers) = first_of(&channel, "nameless.dead").await;
    assert_eq!((id.len(), &headers["x-generated-message-id"]), (32, &id));
    running.end().await;
}

async fn a_queue_that_was_made_otherwise_is_taken(broker: &Broker) {
    let (_connection, channel) = channel(broker).await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("plain".into(), options, FieldTable::default()).await.unwrap();
    publish(&channel, "plain", "first", b"x").await;
    let running = rejecting(broker, "plain", &AmqpMetrics::default());
    is_there(broker, "plain.dead").await;
    let (id, headers) = first_of(&channel, "plain.dead").await;
    assert_eq!((id.as_str(), headers["x-original-queue"].as_str()), ("first", "plain"));
    running.end().await;
}
