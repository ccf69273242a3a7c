//! What is stored comes back as it was.

use kit_journal::engine::{ExceptionState, Settlement};
use kit_journal::{DeliveryState, EventFilter, Seq};

use crate::bench::*;

crate::of_every_engine!(
    bodies_come_back_byte_for_byte,
    a_batch_is_bounded_by_bytes_but_never_empty,
    searches_page_through_everything_once,
    the_oldest_that_waits_is_found,
    unknown_sinks_and_positions_are_told,
);

fn bodies_come_back_byte_for_byte(mut bench: Bench) {
    let large = "x".repeat(3 << 20);
    let bodies = ["", "{\"a\":1.10,\"b\":\"\\u0026\"}", "\u{0}\u{1}\\ \"ü\u{10ffff}", &large];
    bench.append(bodies.iter().enumerate().map(|(n, body)| append(&format!("nul \u{0} {n}"), body)).collect());
    bench.restart();
    let (events, _) = bench.reader().events_after(SINK, 0, 10, 1 << 30).unwrap();
    for (event, body) in events.iter().zip(bodies) {
        assert_eq!(event.body, body.as_bytes());
        assert!(event.head.subject.starts_with("invoice/nul \u{0}"));
        assert_eq!(event.at.as_millis(), bench.now);
    }
    assert_eq!(events.len(), bodies.len());
    let found = bench.reader().found(4).unwrap().unwrap();
    assert_eq!((found.body_bytes, found.event.body.len()), (large.len() as u64, large.len()));
}

fn a_batch_is_bounded_by_bytes_but_never_empty(mut bench: Bench) {
    bench.append((0..6).map(|n| append(&n.to_string(), &"x".repeat(1_000))).collect());
    let read = |after: Seq, limit, bytes| {
        let (events, _) = bench.reader().events_after(SINK, after, limit, bytes).unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    assert_eq!(read(0, 10, 1), [1]);
    assert_eq!(read(0, 10, 2_000), [1, 2]);
    assert_eq!(read(0, 10, 2_001), [1, 2, 3]);
    assert_eq!(read(2, 2, 1 << 20), [3, 4]);
    assert_eq!(read(6, 10, 1 << 20), [] as [Seq; 0]);
}

fn searches_page_through_everything_once(mut bench: Bench) {
    bench.append((0..450).map(|n| append(&n.to_string(), "{}")).collect());
    bench.settle(Settlement {
        cursor: 440,
        set: (1..=450).step_by(3).take(100).map(|seq| row(seq, ExceptionState::Parked)).collect(),
        ..Settlement::default()
    });
    let filter = |change: fn(&mut EventFilter)| {
        let mut filter = EventFilter::default();
        change(&mut filter);
        filter
    };
    let parked = filter(|filter| filter.state = Some(DeliveryState::Parked));
    let pending = filter(|filter| filter.state = Some(DeliveryState::Pending));
    let one = filter(|filter| filter.ids = vec![append("7", "{}").head().id]);
    let subject = filter(|filter| filter.subject = Some("invoice/11".to_owned()));
    let glob = EventFilter::default().with_type("lago.invoice.*").unwrap();
    let none = EventFilter::default().with_type("lago.customer.*").unwrap();
    for (filter, limit, examine, expected) in [
        (&parked, 7, 10_000, 100),
        (&parked, 1_000, 13, 100),
        (&pending, 3, 10_000, 10),
        (&one, 10, 10_000, 1),
        (&subject, 10, 60, 1),
        (&glob, 33, 10_000, 450),
        (&glob, 10_000, 64, 450),
        (&none, 500, 100, 0),
    ] {
        let (mut before, mut seen) = (None, Vec::new());
        for round in 0.. {
            assert!(round < 500, "it never ends");
            let page = bench.reader().search(filter, before, limit, examine).unwrap();
            assert!(page.examined <= examine && page.found.len() <= limit as usize);
            assert!(page.found.iter().all(|found| found.event.body.is_empty() && found.body_bytes == 2));
            let is_wanted = |state| filter.state.is_none_or(|wanted| wanted == state);
            assert!(page.found.iter().all(|found| is_wanted(found.deliveries[SINK].state)), "{filter:?}");
            seen.extend(page.found.iter().map(|found| found.event.seq));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), expected, "{filter:?}");
        assert!(seen.is_sorted_by(|a, b| a > b), "newest first, none twice");
    }
}

fn the_oldest_that_waits_is_found(mut bench: Bench) {
    let begin = bench.now;
    for n in 0..4 {
        bench.now = begin + n;
        bench.append(vec![append(&n.to_string(), "{}")]);
    }
    let mut settled = |cursor, set| {
        bench.settle(Settlement { cursor, set, ..Settlement::default() });
        bench.reader().oldest_pending(SINK).unwrap().map(|at| at.as_millis() - begin)
    };
    assert_eq!(settled(0, vec![]), Some(0));
    assert_eq!(settled(2, vec![]), Some(2));
    assert_eq!(settled(3, vec![row(2, ExceptionState::Retrying)]), Some(1));
    assert_eq!(settled(4, vec![row(2, ExceptionState::Parked)]), None);
}

fn unknown_sinks_and_positions_are_told(mut bench: Bench) {
    let mut reader = bench.reader();
    assert!(reader.sink("nobody").is_err() && reader.events_after("nobody", 0, 1, 1).is_err());
    assert!(reader.event(1).unwrap().is_none() && reader.found(1).unwrap().is_none());
    assert_eq!(reader.find(append("k", "{}").head().id).unwrap(), None);
    let stranger = Settlement { sink: "nobody".to_owned(), ..Settlement::default() };
    let committed = bench.commit(kit_journal::engine::Commit { settlements: vec![stranger], ..Default::default() });
    assert_eq!(committed.refused.len(), 1);
}
