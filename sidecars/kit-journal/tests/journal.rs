//! The handle that intakes and sinks share, over a real file: what is asked for together is answered together.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use kit::clock::SystemClock;
use kit_journal::engine::{Action, Settlement, SinkRow};
use kit_journal::{
    AppendError, BodyDigest, Dedupe, EventHead, EventId, Journal, JournalSection, JournalTask, NewEvent,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

const SINK: &str = "stage";

struct Bench {
    journal: Journal,
    task: Option<JournalTask>,
    _directory: TempDir,
}

impl Bench {
    async fn new(max_bytes: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("j.db");
        let section = JournalSection { path, max_bytes, ..JournalSection::default() };
        let (journal, task) = Journal::open(&section, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        journal.act(vec![Action::Register { sink: SINK.to_owned() }]).await.unwrap();
        Self { journal, task: Some(task), _directory: directory }
    }

    async fn sink(&self) -> SinkRow {
        self.journal.read(|reader| reader.sink(SINK)).await.unwrap()
    }

    async fn stored(&self) -> u64 {
        self.journal.read(|reader| Ok(reader.statistics()?.accepted)).await.unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Closing waits for the thread that writes.
        tokio::task::block_in_place(|| self.task.take().into_iter().for_each(JournalTask::close));
    }
}

fn usage(subscription: &str, transaction: &str, content: &[u8]) -> NewEvent {
    let id = EventId::derive_scoped("usage", transaction, subscription, &BodyDigest::of(content));
    let scope = Some(subscription.to_owned());
    let head = EventHead { scope, ..EventHead::new(id, "usage", "usage.event", subscription, transaction) };
    NewEvent { head, body: content.to_vec(), dedupe: Dedupe::Key }
}

fn up_to(cursor: i64) -> Settlement {
    Settlement { sink: SINK.to_owned(), cursor, ..Settlement::default() }
}

/// Single events, groups and group members that contradict each other share commits; everybody gets their own answer.
#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_the_answer_to_their_own_events() {
    let bench = Bench::new(0).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..60 {
        let journal = bench.journal.clone();
        tasks.spawn(async move {
            let key = |k: usize| format!("{n}-{k}");
            let event = |k: usize, content: &[u8]| usage("s", &key(k), content);
            match n % 3 {
                0 => {
                    let own = event(0, b"1");
                    let id = own.head.id;
                    assert_eq!(journal.append(own).await.unwrap().id, id);
                }
                1 => {
                    let appended = journal.append_together(vec![event(0, b"1"), event(1, b"2")]).await.unwrap();
                    assert_eq!(appended[0].seq + 1, appended[1].seq, "one after the other");
                    assert!(appended.iter().all(|appended| !appended.duplicate && !appended.withheld));
                }
                _ => {
                    let group = vec![event(0, b"1"), event(1, b"2"), event(0, b"other")];
                    let (first, third) = (group[0].head.id, group[2].head.id);
                    let appended = journal.append_together(group).await.unwrap();
                    assert!(appended.iter().all(|appended| appended.withheld));
                    assert!(appended[2].duplicate && appended[2].id == first && appended[2].id != third);
                    assert!(journal.known("usage", &key(0)).await.unwrap().is_empty());
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_eq!(bench.stored().await, 20 + 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_the_place_of_others_comes_with_their_settlement() {
    let bench = Bench::new(0).await;
    bench.journal.append_together((0..5).map(|n| usage("s", &n.to_string(), b"1")).collect()).await.unwrap();

    let appended = bench.journal.append_instead(vec![usage("s", "sum-1-5", b"5")], up_to(5)).await.unwrap();

    assert_eq!(appended[0].seq, 6);
    assert_eq!((bench.sink().await.cursor, bench.sink().await.delivered), (5, 5));
    // The same again, as after an answer that was lost.
    let again = bench.journal.append_instead(vec![usage("s", "sum-1-5", b"5")], up_to(5)).await.unwrap();
    assert_eq!((again[0].seq, again[0].duplicate), (6, true));
    assert_eq!((bench.stored().await, bench.sink().await.delivered), (6, 5));
    // Of a settlement that cannot be recorded the one who asked is told.
    let unknown = Settlement { sink: "nobody".to_owned(), ..up_to(6) };
    let refused = bench.journal.append_instead(vec![], unknown).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
}

/// A journal that is full takes nothing new, but what makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_still_takes_what_makes_room() {
    let bench = Bench::new(2 << 20).await;
    let mut last = 0;
    let refused = loop {
        match bench.journal.append_together(vec![usage("s", &format!("t-{last}"), &vec![b'x'; 100_000])]).await {
            Ok(appended) => last = appended[0].seq,
            Err(error) => break error,
        }
        assert!(last < 100, "it is never full");
    };
    assert!(matches!(refused, AppendError::Unavailable(_)), "{refused}");

    let (instead, beside) = tokio::join!(
        bench.journal.append_instead(vec![usage("s", "sum", b"1")], up_to(last)),
        bench.journal.append(usage("s", "beside", b"1")),
    );

    assert_eq!(instead.unwrap()[0].seq, last + 1);
    assert!(beside.is_err());
    assert_eq!(bench.sink().await.cursor, last);
}

/// How far a source has been read is recorded with what was read from it: both or neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_remembered_with_the_events_it_speaks_of_and_not_without_them() {
    let bench = Bench::new(2 << 20).await;
    let remembered = async |name: &'static str| bench.journal.read(move |reader| reader.value(name)).await.unwrap();
    let mark = |value: &str| vec![("mark".to_owned(), value.as_bytes().to_vec())];

    let events = vec![usage("s", "a", b"1"), usage("s", "a", b"1"), usage("s", "b", b"1")];
    let appended = bench.journal.append_recording(events, mark("1")).await.unwrap();

    let told: Vec<_> = appended.iter().map(|appended| (appended.seq, appended.duplicate)).collect();
    assert_eq!(told, [(1, false), (1, true), (2, false)], "each is judged for itself");
    assert_eq!(remembered("mark").await.as_deref(), Some(&b"1"[..]));
    assert!(bench.journal.append_recording(Vec::new(), mark("2")).await.unwrap().is_empty());
    assert_eq!(remembered("mark").await.as_deref(), Some(&b"2"[..]));

    let mut stored = 2;
    while bench.journal.append(usage("s", &format!("t-{stored}"), &vec![b'x'; 100_000])).await.is_ok() {
        stored += 1;
        assert!(stored < 100, "it is never full");
    }
    let refused = bench.journal.append_recording(vec![usage("s", "late", b"1")], mark("3")).await;

    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    // It is refused before whatever else was in its commit is written: a later commit has been made after that one.
    bench.journal.put_value("later", b"1".to_vec()).await.unwrap();
    assert_eq!(remembered("mark").await.as_deref(), Some(&b"2"[..]), "the journal is full: nothing of it was recorded");
    assert_eq!(bench.stored().await, stored);
}
