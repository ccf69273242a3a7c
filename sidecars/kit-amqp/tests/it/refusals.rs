//! What is refused for one message or one user, what is deleted or comes twice, and a way to the broker that is cut at
//! once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::lifecycle::StopToken;
use kit::secret::Secret;
use kit_amqp::AmqpSection;
use kit_delivery::{Failure, Sink as _};
use kit_workbench::broker::Broker;
use kit_workbench::chaos::{ChaosProxy, Direction, Fault};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use crate::publishing::{channel, drain, event, failure, section, sink};
use crate::taking::until;

pub(crate) async fn check(broker: &Broker) {
    a_routing_key_that_is_forbidden_holds_up_nobody_else(broker).await;
    one_id_twice_has_two_outcomes(broker).await;
    a_deleted_queue_is_made_again(broker).await;
    a_deleted_queue_is_made_again_also_while_another_one_takes_all(broker).await;
    who_may_only_write_publishes_to_what_is_there(broker).await;
    a_slow_way_to_the_broker_takes_everything_and_little_of_it_twice(broker).await;
    a_connection_that_is_lost_at_once_is_made_again_after_a_pause(broker).await;
}

async fn a_routing_key_that_is_forbidden_holds_up_nobody_else(broker: &Broker) {
    let own = section(broker, "topics", "topics.q");
    sink(&own).deliver(&event(1, "lago.x")).await;
    let (_connection, channel) = channel(broker).await;
    drain(&channel, "topics.q").await;
    broker.ctl(&["add_user", "topical", "topical"]).await.unwrap();
    broker.ctl(&["set_permissions", "topical", ".*", ".*", ".*"]).await.unwrap();
    broker.ctl(&["set_topic_permissions", "topical", "topics", r"^lago\.(x|y)$", ".*"]).await.unwrap();
    let url = broker.url().replace("guest:guest", "topical:topical");
    let topical = AmqpSection { url: Some(Secret::from(url)), ..own };
    let sink = sink(&topical);

    let forbidden = |n: usize| match n {
        20 | 40 => Some("lago.secret"),
        41 => Some("lago.other"),
        _ => None,
    };
    let events: Vec<_> = (0..64).map(|n| event(n, forbidden(n).unwrap_or("lago.x"))).collect();
    let outcomes = sink.deliver_all(&events).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(failure(outcome), forbidden(n).map(|_| Failure::Unroutable), "{n}: {outcome:?}");
    }
    let text = outcomes[20].error.as_ref().unwrap();
    assert!(text.contains("'lago.secret'") && text.contains("set_topic_permissions"), "{text}");
    let kept: BTreeSet<String> = drain(&channel, "topics.q").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(kept.len(), 61);
    // Alone it says nothing about the others either.
    assert_eq!(failure(&sink.deliver(&events[20]).await), Some(Failure::Unroutable));

    // The whole exchange is another matter: no event is at fault.
    broker.ctl(&["set_permissions", "topical", ".*", "^$", ".*"]).await.unwrap();
    let passive = AmqpSection { declare: false, ..topical };
    let begin = Instant::now();
    let outcomes = crate::publishing::sink(&passive).deliver_all(&events).await;
    assert!(outcomes.iter().all(|outcome| failure(outcome) == Some(Failure::Denied)), "{outcomes:?}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// As after a replay of what another sender has sent under the same id.
async fn one_id_twice_has_two_outcomes(broker: &Broker) {
    let sink = sink(&section(broker, "own", "own.q"));
    for types in [["lago.x", "other.x", "lago.x"], ["other.x", "lago.x", "other.x"]] {
        let events: Vec<_> = types.iter().map(|event_type| event(7, event_type)).collect();
        let outcomes = sink.deliver_all(&events).await;
        for (event, outcome) in events.iter().zip(&outcomes) {
            let expected = (event.head.event_type == "other.x").then_some(Failure::Unroutable);
            assert_eq!(failure(outcome), expected, "{types:?}: {outcome:?}");
        }
    }
    let (_connection, channel) = channel(broker).await;
    assert_eq!(drain(&channel, "own.q").await.len(), 3);
}

async fn a_deleted_queue_is_made_again(broker: &Broker) {
    let sink = sink(&section(broker, "fleeting", "fleeting.q"));
    assert_eq!(failure(&sink.deliver(&event(1, "lago.x")).await), None);
    let (_connection, channel) = channel(broker).await;
    channel.queue_delete("fleeting.q".into(), QueueDeleteOptions::default()).await.unwrap();
    until("the queue is there again", async || failure(&sink.deliver(&event(2, "lago.x")).await).is_none()).await;
    assert_eq!(drain(&channel, "fleeting.q").await.len(), 1);
}

/// Everything is confirmed, and nothing returned: nobody else says that one of the queues is gone.
async fn a_deleted_queue_is_made_again_also_while_another_one_takes_all(broker: &Broker) {
    let own = section(broker, "two", "two.q");
    let queues = [("two.q", "lago.#"), ("two.all", "#")].map(|(name, all)| (name.to_owned(), vec![all.to_owned()]));
    let sink = sink(&AmqpSection { queues: queues.into(), ..own });
    assert_eq!(failure(&sink.deliver(&event(1, "lago.x")).await), None);
    let (_connection, other) = channel(broker).await;
    other.queue_delete("two.q".into(), QueueDeleteOptions::default()).await.unwrap();
    let mut number = 1;
    until("the queue is there again", async || {
        number += 1;
        assert_eq!(failure(&sink.deliver(&event(number, "lago.x")).await), None);
        let (_connection, looking) = channel(broker).await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        looking.queue_declare("two.q".into(), passive, FieldTable::default()).await.is_ok()
    })
    .await;
    assert!(!drain(&other, "two.q").await.is_empty());
    assert_eq!(drain(&other, "two.all").await.len(), number);
}

/// One administrator makes everything, services may write.
async fn who_may_only_write_publishes_to_what_is_there(broker: &Broker) {
    let own = section(broker, "theirs", "theirs.q");
    assert_eq!(failure(&sink(&own).deliver(&event(1, "lago.x")).await), None);
    broker.ctl(&["add_user", "writer", "writer"]).await.unwrap();
    broker.ctl(&["set_permissions", "writer", "^$", ".*", "^$"]).await.unwrap();
    let url = broker.url().replace("guest:guest", "writer:writer");
    let writing = AmqpSection { url: Some(Secret::from(url)), ..own };
    assert!(writing.declare, "by default");

    let outcome = sink(&writing).deliver(&event(2, "lago.x")).await;

    assert_eq!(failure(&outcome), None, "{outcome:?}");
    let (_connection, other) = channel(broker).await;
    assert_eq!(drain(&other, "theirs.q").await.len(), 2);
    // What is not there cannot be made.
    let missing = AmqpSection { exchange: "nobodys".to_owned(), ..writing };
    let outcome = sink(&missing).deliver(&event(3, "lago.x")).await;
    let text = outcome.error.clone().unwrap_or_default();
    assert_eq!(failure(&outcome), Some(Failure::Denied));
    assert!(text.contains("ACCESS_REFUSED") && text.contains("NOT_FOUND"), "{text}");
}

/// A window takes several times as long as a broker that says nothing is waited for.
async fn a_slow_way_to_the_broker_takes_everything_and_little_of_it_twice(broker: &Broker) {
    const MESSAGES: usize = 64;
    const WINDOW: usize = 32;
    let proxy = ChaosProxy::start(broker.addr()).await.unwrap();
    let own = section(broker, "slow", "slow.q");
    let sink = sink(&AmqpSection {
        url: Some(Secret::from(format!("amqp://{}", proxy.addr()))),
        window: WINDOW,
        publish_timeout_seconds: 1.0,
        confirm_timeout_seconds: 1.0,
        ..own
    });
    assert_eq!(failure(&sink.deliver(&event(0, "lago.x")).await), None);
    let body = bytes::Bytes::from(vec![b'x'; 32 << 10]);
    let mut left: Vec<_> = (1..=MESSAGES)
        .map(|number| {
            let event = event(number, "lago.x");
            Arc::new(kit_journal::StoredEvent { body: body.clone(), ..(*event).clone() })
        })
        .collect();
    // A window takes more than three seconds.
    proxy.set(Direction::Up, Fault::Rate(300_000));
    let begin = Instant::now();
    while !left.is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} are left", left.len());
        let window: Vec<_> = left.iter().take(WINDOW).cloned().collect();
        let outcomes = sink.deliver_all(&window).await;
        let mut kept = outcomes.iter().map(|outcome| failure(outcome).is_none());
        left.retain(|_| !kept.next().unwrap_or(false));
    }
    let (_connection, other) = channel(broker).await;
    let found = drain(&other, "slow.q").await;
    let ids: BTreeSet<&String> = found.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), MESSAGES + 1);
    assert!(found.len() < ids.len() + 2 * WINDOW, "{} messages of {} events", found.len(), ids.len());
}

async fn a_connection_that_is_lost_at_once_is_made_again_after_a_pause(broker: &Broker) {
    const CONNECTIONS: u64 = 4;
    let proxy = ChaosProxy::start(broker.addr()).await.unwrap();
    let url = format!("amqp://{}", proxy.addr());
    let sink = Arc::new(sink(&AmqpSection { url: Some(Secret::from(url)), ..section(broker, "own", "own.q") }));
    let keep = |stop: &StopToken| {
        let (sink, stop) = (Arc::clone(&sink), stop.clone());
        tokio::spawn(async move { sink.keep_connected(stop).await })
    };
    // As many bytes as it takes to connect and to declare.
    let first = StopToken::new();
    let kept = keep(&first);
    let mut passed = 0;
    until("there is a connection", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = std::mem::replace(&mut passed, proxy.passed(Direction::Down));
        passed > 0 && before == passed
    })
    .await;
    first.stop();
    kept.await.unwrap();
    proxy.set(Direction::Down, Fault::Reset(passed));
    let (begin, before) = (Instant::now(), proxy.connections());
    let second = StopToken::new();
    let kept = keep(&second);
    until("it is tried on", async || proxy.connections() >= before + CONNECTIONS).await;
    // Waits of 0.5, 1 and 2 seconds, each a fifth shorter at least.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(2700), "{CONNECTIONS} connections within {took:?}");
    second.stop();
    kept.await.unwrap();
}
