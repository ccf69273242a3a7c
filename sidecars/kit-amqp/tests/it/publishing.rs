//! What is published, and what the broker says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kit::clock::Timestamp;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSection, AmqpSink};
use kit_delivery::{Failure, Outcome, Sink as _, Verdict};
use kit_journal::{EventHead, EventId, StoredEvent};
use kit_workbench::broker::Broker;
use lapin::options::{BasicGetOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};

use crate::taking::until;

pub(crate) async fn channel(broker: &Broker) -> (Connection, Channel) {
    let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

pub(crate) fn event(number: usize, event_type: &str) -> Arc<StoredEvent> {
    let id = EventId::derive("lago/a", &number.to_string(), None);
    Arc::new(StoredEvent {
        seq: i64::try_from(number).unwrap(),
        at: Timestamp::from_millis(1_700_000_000_000),
        head: EventHead {
            json: true,
            ..EventHead::new(id, "lago/a", event_type, format!("invoice/{number}"), number.to_string())
        },
        body: Bytes::from(format!("{{\"number\": {number}}}")),
    })
}

pub(crate) fn section(broker: &Broker, exchange: &str, queue: &str) -> AmqpSection {
    AmqpSection {
        url: Some(Secret::from(broker.url())),
        exchange: exchange.to_owned(),
        queues: BTreeMap::from([(queue.to_owned(), vec!["lago.#".to_owned()])]),
        ..AmqpSection::default()
    }
}

pub(crate) fn sink(section: &AmqpSection) -> AmqpSink {
    AmqpSink::new("rabbitmq", "test", section, &AmqpMetrics::default()).unwrap()
}

/// Everything in a queue: ids and bodies.
pub(crate) async fn drain(channel: &Channel, queue: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap() {
        let id = message.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
        found.push((id, message.delivery.data));
    }
    found
}

pub(crate) fn failure(outcome: &Outcome) -> Option<Failure> {
    match outcome.verdict {
        Verdict::Delivered | Verdict::PassedBy(_) => None,
        Verdict::Failed(failure) => Some(failure),
    }
}

pub(crate) async fn check(broker: &mut Broker) {
    each_message_has_its_own_outcome(broker).await;
    what_is_missing_is_said_or_made(broker).await;
    one_message_that_closes_the_channel_is_found(broker).await;
    a_full_queue_refuses(broker).await;
    a_wrong_password_is_said(broker).await;
    a_restart_is_survived(broker).await;
}

async fn each_message_has_its_own_outcome(broker: &Broker) {
    let sink = sink(&section(broker, "own", "own.q"));
    let (_connection, channel) = channel(broker).await;
    let mut random = fastrand::Rng::with_seed(7);
    for window in [1, 2, 16, 256, 1024] {
        let events: Vec<_> =
            (0..window).map(|n| event(n, if random.u8(..) < 80 { "other.x" } else { "lago.x" })).collect();
        let outcomes = sink.deliver_all(&events).await;
        let expected = |event: &StoredEvent| (event.head.event_type == "other.x").then_some(Failure::Unroutable);
        for (event, outcome) in events.iter().zip(&outcomes) {
            assert_eq!(failure(outcome), expected(event), "window {window}: {outcome:?}");
        }
        let kept: BTreeSet<String> = drain(&channel, "own.q").await.into_iter().map(|(id, _)| id).collect();
        let routable = events.iter().filter(|event| expected(event).is_none());
        assert_eq!(kept, routable.map(|event| event.head.id.to_string()).collect(), "window {window}");
    }
    let outcome = sink.deliver(&event(1, "other.x")).await;
    let text = outcome.error.unwrap();
    assert!(text.contains("exchange own") && text.contains("other.x") && text.contains("NO_ROUTE"), "{text}");
}

async fn what_is_missing_is_said_or_made(broker: &Broker) {
    let (_connection, channel) = channel(broker).await;
    let passive = AmqpSection { declare: false, ..section(broker, "gone", "gone.q") };
    let outcome = sink(&passive).deliver(&event(1, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Denied));
    let text = outcome.error.unwrap();
    assert!(text.contains("'gone'") && text.contains("amqp.declare=true"), "{text}");

    let declaring = sink(&section(broker, "gone", "gone.q"));
    assert_eq!(failure(&declaring.deliver(&event(1, "lago.x")).await), None);
    // Deleted while there is a connection: noticed with the next window, made again before the one after.
    channel.exchange_delete("gone".into(), ExchangeDeleteOptions::default()).await.unwrap();
    let outcome = declaring.deliver(&event(2, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Unavailable), "{outcome:?}");
    assert_eq!(failure(&declaring.deliver(&event(2, "lago.x")).await), None);

    // Somebody else's queue of that name.
    let mut classic = section(broker, "clash", "clash.q");
    classic.queues.insert("gone.q".to_owned(), Vec::new());
    classic.queue_kind = kit_amqp::QueueKind::Classic;
    let outcome = sink(&classic).deliver(&event(1, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Denied));
    assert!(outcome.error.unwrap().contains("x-queue-type"));
}

/// A broker that takes smaller messages than we may send closes the channel, and all of the window with it.
async fn one_message_that_closes_the_channel_is_found(broker: &Broker) {
    broker.ctl(&["eval", "persistent_term:put(max_message_size, 2000)."]).await.unwrap();
    broker.ctl(&["eval", "application:set_env(rabbit, max_message_size, 2000)."]).await.unwrap();
    let sink = sink(&section(broker, "own", "own.q"));
    let mut events: Vec<_> = (0..64).map(|n| event(n, "lago.x")).collect();
    let mut large = (*events[17]).clone();
    large.body = Bytes::from(format!("\"{}\"", "x".repeat(3000)));
    events[17] = Arc::new(large);
    let outcomes = sink.deliver_all(&events).await;
    let failures: Vec<_> = outcomes.iter().enumerate().filter_map(|(n, o)| Some((n, failure(o)?))).collect();
    assert_eq!(failures, [(17, Failure::Refused)], "{:?}", outcomes[17]);
    assert!(outcomes[17].error.as_ref().unwrap().contains("2000"), "{:?}", outcomes[17]);
    broker.ctl(&["eval", "persistent_term:put(max_message_size, 134217728)."]).await.unwrap();
    broker.ctl(&["eval", "application:set_env(rabbit, max_message_size, 134217728)."]).await.unwrap();
    // Ours comes before theirs.
    let limited = AmqpSection { message_limit_bytes: 1024, ..section(broker, "own", "own.q") };
    let outcome = AmqpSink::new("r", "test", &limited, &AmqpMetrics::default()).unwrap().deliver(&events[17]).await;
    assert_eq!(failure(&outcome), Some(Failure::Unsendable), "{outcome:?}");
}

async fn a_full_queue_refuses(broker: &Broker) {
    let (_connection, channel) = channel(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(3));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("full.q".into(), options, arguments).await.unwrap();
    let mut narrow = section(broker, "full", "unused.q");
    narrow.queues.clear();
    let sink = sink(&narrow);
    sink.deliver(&event(0, "x")).await;
    channel
        .queue_bind(
            "full.q".into(),
            "full".into(),
            "#".into(),
            lapin::options::QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let mut kept = 0;
    let mut nacked = 0;
    for number in 0..20 {
        match failure(&sink.deliver(&event(number, "lago.x")).await) {
            None => kept += 1,
            Some(Failure::Busy) => nacked += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(kept >= 3 && nacked >= 10, "{kept} kept, {nacked} refused");
    assert_eq!(drain(&channel, "full.q").await.len(), kept);
}

async fn a_wrong_password_is_said(broker: &Broker) {
    let url = broker.url().replace("guest:guest", "guest:topsecret");
    let wrong = AmqpSection { url: Some(Secret::from(url)), ..section(broker, "own", "own.q") };
    let outcome = sink(&wrong).deliver(&event(1, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Denied), "{outcome:?}");
    let text = outcome.error.unwrap();
    assert!(text.contains("user guest") && !text.contains("topsecret"), "{text}");
    let url = broker.url().replace("%2F", "nowhere");
    let wrong = AmqpSection { url: Some(Secret::from(url)), ..section(broker, "own", "own.q") };
    let outcome = sink(&wrong).deliver(&event(1, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Denied), "{outcome:?}");
}

async fn a_restart_is_survived(broker: &mut Broker) {
    let sink = sink(&section(broker, "own", "own.q"));
    assert_eq!(failure(&sink.deliver(&event(1, "lago.x")).await), None);
    broker.write_down_queues().await.unwrap();
    broker.kill().await.unwrap();
    let outcome = sink.deliver(&event(2, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Unreachable), "{outcome:?}");
    broker.start_again().await.unwrap();
    until("it is delivered", async || failure(&sink.deliver(&event(2, "lago.x")).await).is_none()).await;
    let (_connection, channel) = channel(broker).await;
    let ids: BTreeSet<String> = drain(&channel, "own.q").await.into_iter().map(|(id, _)| id).collect();
    assert!(ids.contains(&event(1, "x").head.id.to_string()) && ids.contains(&event(2, "x").head.id.to_string()));
}
