//! A broker at several hosts, one whose frames are small, and one that blocks whoever comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::secret::Secret;
use kit_amqp::AmqpSection;
use kit_delivery::format::Format;
use kit_delivery::{Failure, Sink as _};
use kit_journal::{EventHead, StoredEvent};
use kit_workbench::broker::Broker;
use kit_workbench::chaos::ChaosProxy;
use kit_workbench::scratch::free_port;

use crate::publishing::{channel, drain, event, failure, section, sink};
use crate::taking::until;

pub(crate) async fn check(broker: &Broker) {
    dead_hosts_leave_time_for_one_that_is_well(broker).await;
    after_a_lost_connection_the_next_host_is_asked(broker).await;
    an_event_that_no_frame_of_this_broker_takes_holds_up_nobody_else(broker).await;
    who_comes_while_the_broker_blocks_publishes_when_it_does_not(broker).await;
}

fn at(ports: &[u16], own: AmqpSection) -> AmqpSection {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    AmqpSection { url: Some(Secret::from(format!("amqp://guest:guest@{}/%2F", hosts.join(",")))), ..own }
}

/// Of three hosts one is not there, one takes connections and says nothing, and one is the broker.
async fn dead_hosts_leave_time_for_one_that_is_well(broker: &Broker) {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dead, silent) = (free_port().unwrap(), mute.local_addr().unwrap().port());
    let own = AmqpSection { connect_timeout_seconds: 3.0, ..section(broker, "own", "own.q") };
    for ports in [[dead, silent, broker.addr().port()], [silent, broker.addr().port(), dead]] {
        let sink = sink(&at(&ports, own.clone()));
        let begin = Instant::now();
        let outcome = sink.deliver(&event(1, "lago.x")).await;
        assert_eq!(failure(&outcome), None, "{ports:?}: {outcome:?}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }

    let outcome = sink(&at(&[dead, silent], own)).deliver(&event(1, "lago.x")).await;
    assert_eq!(failure(&outcome), Some(Failure::Unreachable));
    let error = outcome.error.unwrap();
    assert!([dead, silent].iter().all(|port| error.contains(&format!("127.0.0.1:{port}"))), "each is named: {error}");
}

async fn after_a_lost_connection_the_next_host_is_asked(broker: &Broker) {
    let (one, two) = (ChaosProxy::start(broker.addr()).await.unwrap(), ChaosProxy::start(broker.addr()).await.unwrap());
    let sink = sink(&at(&[one.addr().port(), two.addr().port()], section(broker, "own", "own.q")));
    let is_taken = async || failure(&sink.deliver(&event(1, "lago.x")).await).is_none();
    for round in 1..=3 {
        until("it is taken", is_taken).await;
        assert_eq!(one.connections() + two.connections(), round, "each host is well");
        assert!(one.connections().abs_diff(two.connections()) <= 1, "{} and {}", one.connections(), two.connections());
        broker.ctl(&["close_all_connections", "round"]).await.unwrap();
        until("it is lost", async || one.open() + two.open() == 0).await;
    }
    // The one that is next is gone.
    let (gone, left) = if one.connections() < two.connections() { (one, two) } else { (two, one) };
    drop(gone);
    until("the other one takes it", is_taken).await;
    assert_eq!(left.open(), 1);
}

/// The properties of a message are one frame, whatever was agreed: a larger one ends the connection.
async fn an_event_that_no_frame_of_this_broker_takes_holds_up_nobody_else(broker: &Broker) {
    let of_frames = async |bytes: u32| {
        let set = format!("application:set_env(rabbit, frame_max, {bytes}).");
        broker.ctl(&["eval", &set]).await.unwrap();
    };
    let own = AmqpSection { format: Format::CloudeventsBinary, ..section(broker, "frames", "frames.q") };
    of_frames(8192).await;
    let wide = |number: usize| {
        let event = event(number, "lago.x");
        let head = EventHead { subject: "s".repeat(10_000), ..event.head.clone() };
        Arc::new(StoredEvent { head, ..(*event).clone() })
    };
    let events: Vec<_> =
        (0..20).map(|number| if number == 7 { wide(number) } else { event(number, "lago.x") }).collect();

    let outcomes = sink(&own).deliver_all(&events).await;

    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(failure(outcome), (number == 7).then_some(Failure::Unsendable), "{number}: {outcome:?}");
    }
    let error = outcomes[7].error.as_ref().unwrap();
    assert!(error.contains("8192") && error.contains("cloudevents-structured"), "{error}");
    let (_connection, channel) = channel(broker).await;
    assert_eq!(drain(&channel, "frames.q").await.len(), 19);
    of_frames(131_072).await;
    // Where a frame is as large as is usual, it goes.
    assert_eq!(failure(&sink(&own).deliver(&wide(7)).await), None);
}

/// A daemon that starts during an alarm: the broker lets it in, and tells it when it has begun to publish.
async fn who_comes_while_the_broker_blocks_publishes_when_it_does_not(broker: &Broker) {
    let (_connection, channel) = channel(broker).await;
    drain(&channel, "own.q").await;
    broker.alarm(true).await.unwrap();
    let own =
        AmqpSection { publish_timeout_seconds: 1.0, confirm_timeout_seconds: 1.0, ..section(broker, "own", "own.q") };
    let sink = sink(&own);
    for number in 1..=2 {
        let outcome = sink.deliver(&event(number, "lago.x")).await;
        assert_eq!(failure(&outcome), Some(Failure::Unreachable), "{number}: {outcome:?}");
    }
    let outcome = sink.deliver(&event(3, "lago.x")).await;
    assert!(outcome.error.as_ref().unwrap().contains("blocks what is published"), "{outcome:?}");

    broker.alarm(false).await.unwrap();

    for number in 1..=3 {
        until("it is taken", async || failure(&sink.deliver(&event(number, "lago.x")).await).is_none()).await;
    }
    // What it had taken before without a word comes twice, under the same id.
    let ids: BTreeSet<String> = drain(&channel, "own.q").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 3);
}
