//! What a search of the journal brings along, and what it leaves out.

use kit_journal::EventFilter;
use kit_workbench::gateway::Behaviour;

use crate::bench::*;

/// 500 entries of 4 MiB each would be 2 GiB for one request.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_knows_the_length_of_a_body_and_leaves_the_body_out() {
    let body = vec![b'x'; 1 << 20];
    let mut bench = Bench::new(Behaviour::Ok, |_| {}).await;
    let seq = bench.append_body("a/1", &body).await;

    let page = bench.journal.browse(|reader| reader.search(&EventFilter::default(), None, 500, 1_000)).await.unwrap();
    let alone = bench.journal.browse(move |reader| reader.found(seq)).await.unwrap().unwrap();

    assert_eq!((page.found[0].body_bytes, page.found[0].event.body.len()), (1 << 20, 0));
    assert_eq!((alone.body_bytes, &alone.event.body[..]), (1 << 20, &body[..]), "one event is shown whole");
}
