//! What is taken from a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SystemClock;
use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSource, AmqpSourceSection, Message, Taken};
use kit_journal::Health;
use kit_workbench::broker::Broker;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::publishing::{channel, drain};

/// Asking the broker takes seconds by itself.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn publish(channel: &Channel, queue: &str, id: &str, body: &[u8]) {
    publish_with(channel, queue, id, body, &[]).await;
}

async fn publish_with(channel: &Channel, queue: &str, id: &str, body: &[u8], more: &[(&str, usize)]) {
    let mut headers = FieldTable::default();
    headers.insert("number".into(), AMQPValue::LongInt(7));
    for (name, bytes) in more {
        headers.insert((*name).into(), AMQPValue::LongString("x".repeat(*bytes).into()));
    }
    let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

/// A source that runs.
pub(crate) struct Running {
    pub(crate) health: watch::Sender<Health>,
    pub(crate) stop: StopToken,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(
        section: &AmqpSourceSection,
        metrics: &AmqpMetrics,
        take: impl Fn(&Message) -> Taken + Clone + Send + Sync + 'static,
    ) -> Self {
        let receive = move |message: Arc<Message>| {
            let take = take.clone();
            async move { take(&message) }.boxed()
        };
        Self::receiving(section, metrics, receive)
    }

    pub(crate) fn receiving(
        section: &AmqpSourceSection,
        metrics: &AmqpMetrics,
        receive: impl Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    ) -> Self {
        let source = AmqpSource::new("source", "test", section, metrics, Arc::new(SystemClock)).unwrap();
        let (stop, health) = (StopToken::new(), watch::Sender::new(Health::Writable));
        let (token, seen) = (stop.clone(), health.subscribe());
        let task = tokio::spawn(async move { source.run(token, seen, receive).await.unwrap() });
        Self { health, stop, task }
    }

    pub(crate) async fn end(self) {
        self.stop.stop();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap();
    }
}

/// The headers of the one message that comes to a queue, as texts, and its id.
pub(crate) async fn first_of(channel: &Channel, queue: &str) -> (String, BTreeMap<String, String>) {
    let mut found = None;
    until("a message is there", async || {
        found = match channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await {
            Ok(found) => found,
            Err(error) => panic!("{queue}: {error}"),
        };
        found.is_some()
    })
    .await;
    let properties = found.unwrap().delivery.properties;
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => text.to_string(),
        other => format!("{other:?}"),
    };
    let headers = properties.headers().clone().unwrap();
    let headers = headers.inner().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    (properties.message_id().as_ref().unwrap().to_string(), headers)
}

/// What is taken, how often, and what is said of it by its body.
#[derive(Clone, Default)]
struct Receiver {
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Receiver {
    fn seen(&self, id: &str) -> u32 {
        self.seen.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    fn take(&self, message: &Message) -> Taken {
        let id = message.message_id.clone().unwrap();
        assert!(message.headers.contains(&("number".to_owned(), "7".to_owned())), "{:?}", message.headers);
        let mut seen = self.seen.lock().unwrap();
        let times = seen.entry(id).or_default();
        *times += 1;
        match message.body.as_slice() {
            b"poison" => Taken::Rejected("poison".to_owned()),
            b"later" if *times < 3 => Taken::TryLater("not yet".to_owned()),
            _ => Taken::Accepted,
        }
    }
}

pub(crate) async fn check(broker: &mut Broker) {
    let section = AmqpSourceSection {
        url: Some(Secret::from(broker.url())),
        queue: "work".to_owned(),
        prefetch: 4,
        message_limit_bytes: 2048,
        retry_max_seconds: 0.6,
        ..AmqpSourceSection::default()
    };
    let metrics = AmqpMetrics::default();
    let receiver = Receiver::default();
    let taking = receiver.clone();
    let running = Running::start(&section, &metrics, move |message| taking.take(message));
    let (_connection, first) = channel(broker).await;
    // The queue is declared by the source: a publish before that would be lost.
    until("the queue is there", async || broker.ctl(&["list_queues", "name"]).await.unwrap().contains("work.dead"))
        .await;
    for number in 0..20 {
        publish(&first, "work", &format!("good-{number}"), b"good").await;
    }
    publish(&first, "work", "poison", b"poison").await;
    publish(&first, "work", "later", b"later").await;
    publish(&first, "work", "large", &[b'x'; 4096]).await;
    until("all are taken", async || {
        (0..20).all(|n| receiver.seen(&format!("good-{n}")) == 1) && receiver.seen("later") == 3
    })
    .await;
    let mut dead = BTreeMap::new();
    until("dead letters are there", async || {
        while let Some(message) = first.basic_get("work.dead".into(), BasicGetOptions { no_ack: true }).await.unwrap() {
            let headers = message.properties.headers().clone().unwrap();
            let text = |name: &str| match headers.inner().get(name) {
                Some(AMQPValue::LongString(text)) => text.to_string(),
                other => format!("{other:?}"),
            };
            assert_eq!((text("x-original-queue"), text("x-original-routing-key")), ("work".into(), "work".into()));
            let id = message.properties.message_id().as_ref().unwrap().to_string();
            dead.insert(id, (text("x-rejected-reason"), message.delivery.data.len()));
        }
        dead.len() == 2
    })
    .await;
    assert_eq!(dead["poison"], ("poison".to_owned(), 6));
    assert_eq!((dead["large"].0.contains("4096 bytes"), dead["large"].1), (true, 4096));
    assert_eq!(receiver.seen("large"), 0);

    headers_that_others_may_send_are_taken(&first, &receiver).await;
    a_deleted_queue_of_dead_letters_is_made_again(broker, &first).await;

    // The broker goes and comes: what was acknowledged does not come again.
    broker.write_down_queues().await.unwrap();
    broker.kill().await.unwrap();
    broker.start_again().await.unwrap();
    let (_connection, second) = channel(broker).await;
    publish(&second, "work", "after", b"good").await;
    until("the one after the restart", async || receiver.seen("after") >= 1).await;
    assert!((0..20).all(|n| receiver.seen(&format!("good-{n}")) == 1));

    running.end().await;
    publish(&second, "work", "late", b"good").await;
    assert_eq!(drain(&second, "work").await, [("late".to_owned(), b"good".to_vec())]);
}

/// The properties of a message are one frame, of up to 128 KiB whatever we agreed to.
async fn headers_that_others_may_send_are_taken(channel: &Channel, receiver: &Receiver) {
    publish_with(channel, "work", "wide", b"good", &[("large", 120_000)]).await;
    until("a message with large headers is taken", async || receiver.seen("wide") == 1).await;

    // With why and where from it is too much for a frame: what has no room is named.
    publish_with(channel, "work", "wide-poison", b"poison", &[("large", 40_000), ("largest", 90_800)]).await;
    let (id, headers) = first_of(channel, "work.dead").await;
    assert_eq!((id.as_str(), headers["x-rejected-reason"].as_str()), ("wide-poison", "poison"));
    assert_eq!((headers["large"].len(), headers.contains_key("largest")), (40_000, false));
    assert!(headers["x-dropped-headers"].starts_with("largest (90"), "{}", headers["x-dropped-headers"]);
}

async fn a_deleted_queue_of_dead_letters_is_made_again(broker: &Broker, channel: &Channel) {
    channel.queue_delete("work.dead".into(), QueueDeleteOptions::default()).await.unwrap();
    publish(channel, "work", "orphan", b"poison").await;
    until("the queue is there again", async || {
        broker.ctl(&["list_queues", "name"]).await.unwrap().contains("work.dead")
    })
    .await;
    assert_eq!(first_of(channel, "work.dead").await.0, "orphan");
}
