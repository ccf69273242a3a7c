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
use lapin::options::QueueDeleteOptions;

use crate::publishing::{channel, drain, event, failure, section, sink};
use crate::taking::until;

pub(crate) async fn check(broker: &Broker) {
    a_routing_key_that_is_forbidden_holds_up_nobody_else(broker).await;
    one_id_twice_has_two_outcomes(broker).await;
    a_deleted_queue_is_made_again(broker).await;
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
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
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
