//! What is taken from a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use kit::clock::SystemClock;
use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSource, AmqpSourceSection, Message, Taken};
use kit_workbench::broker::Broker;
use lapin::options::{BasicGetOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::publishing::{channel, drain};

const DEADLINE: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(channel: &Channel, queue: &str, id: &str, body: &[u8]) {
    let mut headers = FieldTable::default();
    headers.insert("number".into(), AMQPValue::LongInt(7));
    let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
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
        assert_eq!(message.headers, [("number".to_owned(), "7".to_owned())]);
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
    let start = || {
        let source = AmqpSource::new("source", "test", &section, &metrics, Arc::new(SystemClock)).unwrap();
        let (stop, receiver) = (StopToken::new(), receiver.clone());
        let token = stop.clone();
        let receive = move |message: Arc<Message>| {
            let receiver = receiver.clone();
            async move { receiver.take(&message) }.boxed()
        };
        (stop, tokio::spawn(async move { source.run(token, receive).await }))
    };
    let (stop, task) = start();
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

    // The broker goes and comes: what was acknowledged does not come again.
    broker.write_down_queues().await.unwrap();
    broker.kill().await.unwrap();
    broker.start_again().await.unwrap();
    let (_connection, second) = channel(broker).await;
    publish(&second, "work", "after", b"good").await;
    until("the one after the restart", async || receiver.seen("after") >= 1).await;
    assert!((0..20).all(|n| receiver.seen(&format!("good-{n}")) == 1));

    stop.stop();
    tokio::time::timeout(Duration::from_secs(8), task).await.unwrap().unwrap().unwrap();
    publish(&second, "work", "late", b"good").await;
    assert_eq!(drain(&second, "work").await, [("late".to_owned(), b"good".to_vec())]);
}
