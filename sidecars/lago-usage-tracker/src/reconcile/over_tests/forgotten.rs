//! Subscriptions that ended so long ago that the ledger need not know them.

use kit_journal::engine::Settlement;

use super::*;
use crate::admit;

const DAY: i64 = 86_400_000;

#[tokio::test]
async fn subscriptions_that_ended_long_ago_are_forgotten_unless_something_of_them_waits() {
    let long_ago = Some("2025-03-10T00:00:00Z");
    let subscriptions =
        [("active", None), ("over", long_ago), ("parked", long_ago), ("waiting", long_ago), ("recent", long_ago)];
    let bench = Bench::new(Profile::V1_39, &subscriptions).await;
    let books = Arc::clone(&bench.reconciler.books);
    let now = bench.reconciler.clock.now();
    for (subscription, _) in subscriptions {
        let booked_at = now.plus_millis(if subscription == "recent" { -89 * DAY } else { -91 * DAY });
        bench.book_as_of(subscription, "2025-03-05T00:00:00Z", booked_at);
        bench.set_period(subscription, period("2025-03-01T00:00:00Z", "2025-03-31T23:59:59Z"));
    }
    for (seq, subscription) in [(1, "parked"), (2, "waiting")] {
        let event =
            format!(r#"{{"transaction_id":"{seq}","external_subscription_id":"{subscription}","code":"visits"}}"#);
        let event = admit::admit(serde_json::from_str(&event).unwrap(), None, now).unwrap();
        assert_eq!(bench.reconciler.journal.append(event).await.unwrap().seq, seq);
    }
    let journal = &bench.reconciler.journal;
    let park = |seq| Action::Park {
        sink: sender::SINK.to_owned(),
        seqs: vec![seq],
        reason: "unknown_metric: visits".to_owned(),
    };
    journal.act(vec![park(1)]).await.unwrap();
    let left = || -> Vec<String> { books.ledger().pairs(None).map(|((own, _), _)| own.clone()).collect() };

    bench.reconciler.forget().await;
    assert_eq!(left(), ["active", "parked", "recent", "waiting"]);
    bench.reconciler.forget().await;
    assert_eq!(left().len(), 4, "it is not looked for all the time");

    let settlement = Settlement { sink: sender::SINK.to_owned(), cursor: 2, ..Settlement::default() };
    journal.settle(vec![settlement]).await.unwrap();
    let drop = Action::Drop { sink: sender::SINK.to_owned(), seqs: vec![1], reason: "given up".to_owned() };
    journal.act(vec![drop]).await.unwrap();
    *bench.reconciler.looked_to_forget.lock().unwrap() = None;
    bench.reconciler.forget().await;
    assert_eq!(left(), ["active", "recent"]);

    // With the next event that is recorded they go from the journal.
    let recorded = books.record(vec![(3, (name("active"), now, None))], now);
    let forgotten = recorded.iter().filter(|(_, value)| value.is_empty()).count();
    assert_eq!((recorded.len(), forgotten), (4, 3));
}
