//! A journal whose file the disk has changed: what is damaged is refused or reported, never served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit::clock::{ManualClock, Timestamp};
use kit_journal::engine::{
    self, Action, Append, Attempt, AuditRecord, Commit, DedupeBounds, Engine, ExceptionRow, ExceptionState, Reader,
    Settlement, Statistics,
};
use kit_journal::{
    BodyDigest, Dedupe, DeliveryState, EventFilter, EventHead, EventId, Journal, JournalError, JournalSection,
    NewEvent, Seq, StoredEvent,
};
use outrigger_tests::experiment::{CAMPAIGN_VARIABLE, Outcome, Trial};

const SINK: &str = "gateway";
/// Receipt time of the first event; each later one comes a second after.
const BEGIN: i64 = 1_700_000_000_000;
/// Events in the specimen; the last four are still to be delivered.
const EVENTS: Seq = 10;
const CURSOR: Seq = 6;
/// Positions that a delivery may take for missing before it counts as running away.
const MISSING_LIMIT: Seq = 1_000;
/// Nothing that is done to one small journal takes so long.
const CASE_DEADLINE: Duration = Duration::from_secs(20);
/// The unit of a disk, and the journal's page.
const SECTOR: usize = 512;
const PAGE: usize = 16_384;

/// Panics anywhere in this process: one inside a journal's thread is turned into an error on its way out.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// F10: one bit flipped, the file cut at an offset, a sector or a page zeroed, another journal's side files in
/// its folder: the journal is refused, or says what is damaged, or serves exactly what was stored.
///
/// One thing is counted only: a write-ahead log does not say whose it is, so that SQLite takes another
/// journal's whole log for this one's. Each record is then still one that somebody stored, byte for byte.
pub(crate) async fn a_damaged_journal_never_serves_wrong_bytes(mut trial: Trial) -> Result<Outcome> {
    count_panics();
    let folder = Folder::new()?;
    let specimen = Specimen::make(&folder.0.join("made"), "a")?;
    let strangers = Strangers::make(&folder.0, &specimen)?;
    let cases = Cases { bytes: &specimen.bytes, foreign: strangers.cases.iter().map(|(name, _)| *name).collect() };
    let whole = std::env::var_os(CAMPAIGN_VARIABLE).is_some() || trial.count as usize >= cases.total();
    let (mut refused, mut reported, mut unharmed, mut mistaken) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut violations = Violations::default();
    for round in 0..trial.count {
        if round % 100 == 0 {
            trial.progress(round);
        }
        let damage = if whole {
            cases.listed((trial.offset + round) as usize, &mut trial.random)
        } else {
            cases.any(&mut trial.random)
        };
        let place = folder.0.join("case");
        damage.apply(&specimen, &strangers, &place)?;
        let examined =
            tokio::time::timeout(CASE_DEADLINE, examine(&place, &specimen, &strangers, damage.is_a_log())).await;
        match examined.context("it hangs").flatten() {
            Ok(Verdict::Refused) => refused += 1,
            Ok(Verdict::Reported) => reported += 1,
            Ok(Verdict::Unharmed) => unharmed += 1,
            Ok(Verdict::Mistaken) => mistaken += 1,
            Err(error) => violations.add(&damage, &error),
        }
    }
    violations.none()?;
    Ok(Outcome::new(
        trial.count,
        format!(
            "{refused} refused, {reported} reported, {unharmed} unharmed, 0 wrong bodies, 0 panics; \
             {mistaken} times another journal's log was taken for its own"
        ),
    ))
}

fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            previous(info);
        }));
    });
}

/// What went wrong, at most a handful of it in words.
#[derive(Default)]
struct Violations {
    count: u64,
    first: Vec<String>,
}

impl Violations {
    fn add(&mut self, damage: &Damage, error: &anyhow::Error) {
        self.count += 1;
        if self.first.len() < 40 {
            self.first.push(format!("{damage:?}: {error:#}"));
        }
    }

    fn none(&self) -> Result<()> {
        ensure!(self.count == 0, "{} cases went wrong\n{}", self.count, self.first.join("\n"));
        Ok(())
    }
}

/// A folder in memory, so that a sync costs nothing.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("outrigger-rot-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A small journal that holds one of everything, closed as a daemon closes it.
struct Specimen {
    bytes: Vec<u8>,
    events: Vec<StoredEvent>,
    statistics: Statistics,
}

impl Specimen {
    /// The same bytes every time, so that a case can be named by its number.
    fn make(folder: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("journal.db");
        let mut engine = fill(&path, name)?;
        engine.idle()?;
        engine.close();
        let bytes = std::fs::read(&path)?;
        ensure!(!folder.join("journal.db-wal").exists(), "the specimen was not closed cleanly");
        let mut reader = engine::open_reader(&path)?;
        let mut events = Vec::new();
        for (seq, wanted) in (1..).zip(STATES) {
            events.push(reader.event(seq)?.context("an event is missing")?);
            let found = reader.found(seq)?.context("an event is missing")?;
            let state = found.deliveries.get(SINK).map(|delivery| delivery.state);
            ensure!(state == Some(wanted), "the specimen's event {seq} is {state:?}, not {wanted:?}");
        }
        let statistics = reader.statistics()?;
        Ok(Self { bytes, events, statistics })
    }
}

/// What became of each event of the specimen.
const STATES: [DeliveryState; 10] = [
    DeliveryState::Delivered,
    DeliveryState::Parked,
    DeliveryState::Retrying,
    DeliveryState::Dropped,
    DeliveryState::Delivered,
    DeliveryState::Delivered,
    DeliveryState::Pending,
    DeliveryState::Pending,
    DeliveryState::Pending,
    DeliveryState::Pending,
];

fn fill(path: &Path, name: &str) -> Result<Box<dyn Engine>> {
    // So few keys in memory that some have moved to blocks.
    let mut engine = engine::open(path, DedupeBounds { recent_keys: 6, run_keys: 4, filter_bytes: 1 << 20 })?;
    let mut now = BEGIN;
    let mut commit = |commit: Commit| {
        now += 1_000;
        engine.commit(&mut Commit { at: Timestamp::from_millis(now), ..commit })
    };
    commit(Commit { actions: vec![Action::Register { sink: SINK.to_owned() }], ..Commit::default() })?;
    for number in [1..=3, 4..=6, 7..=7, 8..=10] {
        let appends = number.map(|number| append(name, number)).collect();
        commit(Commit { appends, ..Commit::default() })?;
    }
    let row = |seq, state, next_at| ExceptionRow {
        seq,
        state,
        lane: 7,
        attempts: 3,
        first_at: Some(Timestamp::from_millis(BEGIN)),
        next_at,
        reason: "answered 500".to_owned(),
    };
    let attempt = |seq, outcome: &str| Attempt {
        seq,
        at: Timestamp::from_millis(BEGIN),
        ms: 12,
        status: Some(500),
        outcome: outcome.to_owned(),
        error: Some("answered 500".to_owned()),
        response: None,
    };
    commit(Commit {
        settlements: vec![Settlement {
            sink: SINK.to_owned(),
            cursor: CURSOR,
            set: vec![
                row(2, ExceptionState::Parked, None),
                row(3, ExceptionState::Retrying, Some(Timestamp::from_millis(BEGIN + 60_000))),
                row(4, ExceptionState::Parked, None),
            ],
            attempts: vec![attempt(1, "delivered"), attempt(2, "rejected"), attempt(3, "busy")],
            ..Settlement::default()
        }],
        values: vec![("probe".to_owned(), vec![7; 100])],
        ..Commit::default()
    })?;
    commit(Commit {
        actions: vec![
            Action::Drop { sink: SINK.to_owned(), seqs: vec![4], reason: "not wanted".to_owned() },
            Action::Audit(AuditRecord {
                at: Timestamp::from_millis(BEGIN),
                actor: "127.0.0.1".to_owned(),
                action: "deliveries.drop".to_owned(),
                detail: serde_json::json!({ "changed": 1 }),
            }),
        ],
        ..Commit::default()
    })?;
    Ok(engine)
}

fn append(name: &str, number: Seq) -> Append {
    let event = new_event(name, number);
    let digest = BodyDigest::of(&event.body);
    Append { head: event.head, body: event.body, digest, dedupe: event.dedupe }
}

fn new_event(name: &str, number: Seq) -> NewEvent {
    // One is larger than a page, so that it has pages of its own.
    let filler =
        if number == 8 { "0123456789".repeat(2_000) } else { "x".repeat(usize::try_from(number).unwrap_or(0)) };
    let body = format!(r#"{{"webhook_type":"fee.created","name":"{name}-{number}","filler":"{filler}"}}"#).into_bytes();
    let (source, key) = ("lago/acme", format!("{name}-{number}"));
    let head = EventHead {
        id: EventId::derive(source, &key, Some(&BodyDigest::of(&body))),
        source: source.to_owned(),
        event_type: "lago.fee.created".to_owned(),
        subject: format!("fee/{number}"),
        key,
        tenant: Some("acme".to_owned()),
        unattributed: false,
        time: None,
        alias: None,
        conflict: false,
        json: true,
        traceparent: None,
        tracestate: None,
        headers: Vec::new(),
    };
    NewEvent { head, body, dedupe: Dedupe::KeyAndBody }
}

/// A file beside the journal: what is added to its name, and its content.
type SideFile = (&'static str, Vec<u8>);

/// Side files that belong to another journal, or to no journal.
struct Strangers {
    cases: Vec<(&'static str, Vec<SideFile>)>,
    events: Vec<StoredEvent>,
}

impl Strangers {
    fn make(folder: &Path, specimen: &Specimen) -> Result<Self> {
        // A journal of the same shape, as a kill leaves it: everything still in its write-ahead log.
        let path = folder.join("stranger");
        std::fs::create_dir_all(&path)?;
        let engine = fill(&path.join("journal.db"), "b")?;
        let (wal, index) = (std::fs::read(path.join("journal.db-wal"))?, std::fs::read(path.join("journal.db-shm"))?);
        let mut reader = engine::open_reader(&path.join("journal.db"))?;
        let events: Result<Vec<_>, JournalError> = (1..=EVENTS).map(|seq| reader.event(seq)).collect();
        drop((reader, engine));
        let noise: Vec<u8> = (0..40_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let mut cases = vec![
            ("another's log", vec![("-wal", wal.clone())]),
            ("another's log and index", vec![("-wal", wal.clone()), ("-shm", index.clone())]),
            ("another's index", vec![("-shm", index)]),
            ("noise for a log", vec![("-wal", noise.clone())]),
            ("noise for an index", vec![("-shm", noise.clone())]),
            ("noise for a rollback journal", vec![("-journal", noise)]),
            ("the journal for a log", vec![("-wal", specimen.bytes.clone())]),
        ];
        // The other's log cut after each of its frames: only some of its pages take the place of ours.
        let (header, frame) = (32, PAGE + 24);
        for frames in 1..wal.len() / frame {
            let part = wal.get(..header + frames * frame).context("the log is shorter than its frames")?;
            cases.push(("a part of another's log", vec![("-wal", part.to_vec())]));
        }
        Ok(Self { cases, events: events?.into_iter().flatten().collect() })
    }
}

#[derive(Debug)]
enum Damage {
    Bit(usize),
    TwoBits(usize, usize),
    Cut(usize),
    Zeroed(usize, usize),
    Foreign(&'static str, usize),
}

impl Damage {
    /// Whether SQLite cannot know that this log is not the journal's own.
    fn is_a_log(&self) -> bool {
        matches!(self, Self::Foreign(name, _) if name.contains("another's log"))
    }

    fn apply(&self, specimen: &Specimen, strangers: &Strangers, place: &Path) -> Result<()> {
        let _ = std::fs::remove_dir_all(place);
        std::fs::create_dir(place)?;
        let mut bytes = specimen.bytes.clone();
        match self {
            Self::Bit(bit) => bytes[bit / 8] ^= 1 << (bit % 8),
            Self::TwoBits(first, second) => {
                bytes[first / 8] ^= 1 << (first % 8);
                bytes[second / 8] ^= 1 << (second % 8);
            }
            Self::Cut(at) => bytes.truncate(*at),
            Self::Zeroed(at, size) => bytes[*at..*at + *size].fill(0),
            Self::Foreign(_, number) => {
                for (suffix, content) in &strangers.cases[*number].1 {
                    std::fs::write(place.join(format!("journal.db{suffix}")), content)?;
                }
            }
        }
        std::fs::write(place.join("journal.db"), bytes)?;
        Ok(())
    }
}

/// All single faults, by number.
struct Cases<'a> {
    bytes: &'a [u8],
    foreign: Vec<&'static str>,
}

impl Cases<'_> {
    fn total(&self) -> usize {
        self.bytes.len() * 9 + self.bytes.len() / SECTOR + self.bytes.len() / PAGE + self.foreign.len()
    }

    /// Case `number` in an order that mixes the kinds; beyond the list, two bits at once.
    fn listed(&self, number: usize, random: &mut fastrand::Rng) -> Damage {
        let total = self.total();
        if number >= total {
            return Damage::TwoBits(random.usize(0..self.bytes.len() * 8), random.usize(0..self.bytes.len() * 8));
        }
        // A prime larger than any factor of the list's length: every case has its turn, and only once.
        self.numbered(number * 1_000_000_007 % total)
    }

    fn numbered(&self, number: usize) -> Damage {
        let length = self.bytes.len();
        let mut number = number;
        for (count, make) in [
            (length * 8, Damage::Bit as fn(usize) -> Damage),
            (length, Damage::Cut),
            (length / SECTOR, |n| Damage::Zeroed(n * SECTOR, SECTOR)),
            (length / PAGE, |n| Damage::Zeroed(n * PAGE, PAGE)),
        ] {
            if number < count {
                return make(number);
            }
            number -= count;
        }
        Damage::Foreign(self.foreign[number], number)
    }

    /// One by chance; most of the file is empty, which says little.
    fn any(&self, random: &mut fastrand::Rng) -> Damage {
        let length = self.bytes.len();
        match random.u32(0..100) {
            0..70 => loop {
                let at = random.usize(0..length);
                if self.bytes[at] != 0 || random.u32(0..50) == 0 {
                    break Damage::Bit(at * 8 + random.usize(0..8));
                }
            },
            70..80 => Damage::Cut(random.usize(0..length)),
            80..93 => Damage::Zeroed(random.usize(0..length / SECTOR) * SECTOR, SECTOR),
            93..96 => Damage::Zeroed(random.usize(0..length / PAGE) * PAGE, PAGE),
            _ => {
                let number = random.usize(0..self.foreign.len());
                Damage::Foreign(self.foreign[number], number)
            }
        }
    }
}

#[derive(Debug)]
enum Verdict {
    /// It is not opened.
    Refused,
    /// It is opened, and some of it is said to be damaged.
    Reported,
    /// It is as it was, as far as anybody can see.
    Unharmed,
    /// It goes on from another journal's log.
    Mistaken,
}

/// Opens the journal in `place` as a daemon does, reads it in every way there is and writes to it.
async fn examine(place: &Path, specimen: &Specimen, strangers: &Strangers, mistakable: bool) -> Result<Verdict> {
    let panics = PANICS.load(Ordering::Relaxed);
    let section = JournalSection { path: place.join("journal.db"), ..JournalSection::default() };
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(BEGIN + 100_000)));
    let open = move || Journal::open(&section, clock, &mut prometheus_client::registry::Registry::default());
    let opened = tokio::task::spawn_blocking(open).await.context("opening panics")?;
    let Ok((journal, task)) = opened else { return Ok(Verdict::Refused) };
    let result = if mistakable {
        examine_mistaken(&journal, specimen, strangers).await
    } else {
        examine_open(&journal, specimen).await
    };
    drop(journal);
    tokio::task::spawn_blocking(|| task.close()).await.context("closing panics")?;
    ensure!(PANICS.load(Ordering::Relaxed) == panics, "something panics");
    result
}

async fn examine_open(journal: &Journal, specimen: &Specimen) -> Result<Verdict> {
    let ids: Vec<EventId> = specimen.events.iter().map(|event| event.head.id).collect();
    let Some(seen) = Seen::read(journal, &ids).await? else { return Ok(Verdict::Reported) };
    seen.is_right(specimen, EVENTS)?;
    seen.is_accounted_for(specimen)?;
    let mut complaints = seen.complaints.len();

    // A new event, one that is there already, and the result of a delivery.
    let new = new_event("c", 1);
    let (id, body) = (new.head.id, new.body.clone());
    match journal.append(new).await {
        Err(_) => complaints += 1,
        Ok(appended) => {
            ensure!(!appended.duplicate && appended.id == id, "a new event is taken for {appended:?}");
            match journal.read(move |reader| reader.event(appended.seq)).await {
                Err(_) => complaints += 1,
                Ok(read) => {
                    let read = read.context("what was just written is gone")?;
                    ensure!(read.head.id == id && read.body == body, "what was just written is read back differently");
                }
            }
        }
    }
    let known = new_event("a", 9);
    let id = known.head.id;
    match journal.append(known).await {
        Err(_) => complaints += 1,
        Ok(appended) => ensure!(appended.id == id, "event 9 is taken for another one: {appended:?}"),
    }
    let settlement = Settlement { sink: SINK.to_owned(), cursor: CURSOR + 1, ..Settlement::default() };
    complaints += usize::from(journal.settle(vec![settlement]).await.is_err());
    let Some(seen) = Seen::read(journal, &ids).await? else { return Ok(Verdict::Reported) };
    seen.is_right(specimen, EVENTS + 2)?;
    Ok(if complaints + seen.complaints.len() == 0 { Verdict::Unharmed } else { Verdict::Reported })
}

/// Everything that is served is a record of one of the two, whole.
async fn examine_mistaken(journal: &Journal, specimen: &Specimen, strangers: &Strangers) -> Result<Verdict> {
    let ids: Vec<EventId> = specimen.events.iter().map(|event| event.head.id).collect();
    let Some(seen) = Seen::read(journal, &ids).await? else { return Ok(Verdict::Reported) };
    let mut theirs = 0;
    for event in &seen.served {
        let is = |stored: &&StoredEvent| stored.seq == event.seq && stored.head == event.head;
        let ours = specimen.events.iter().find(is);
        let stored = ours.or_else(|| strangers.events.iter().find(is)).context("a record that nobody stored")?;
        ensure!(stored.body == event.body && stored.at == event.at, "event {} is served changed", event.seq);
        theirs += u64::from(ours.is_none());
    }
    Ok(match (theirs, seen.complaints.len()) {
        (0, 0) => Verdict::Unharmed,
        (0, _) => Verdict::Reported,
        _ => Verdict::Mistaken,
    })
}

/// What every way of reading shows.
#[derive(Default)]
struct Seen {
    /// What delivery or an operator is told.
    complaints: Vec<String>,
    served: Vec<StoredEvent>,
    /// Positions that delivery comes across: as an event, or to list them as unreadable.
    reached: BTreeSet<Seq>,
    /// Positions whose retry is known.
    retried: BTreeSet<Seq>,
    states: Vec<Option<DeliveryState>>,
    statistics: Option<Statistics>,
    runs_away: Option<Seq>,
}

impl Seen {
    /// `None` where no reader can be opened, which is a report too.
    async fn read(journal: &Journal, ids: &[EventId]) -> Result<Option<Self>> {
        let ids = ids.to_vec();
        Ok(journal.read(move |reader| Ok(Self::of(reader, &ids))).await.ok())
    }

    fn of(reader: &mut dyn Reader, ids: &[EventId]) -> Self {
        let mut seen = Self::default();
        let statistics = reader.statistics();
        seen.statistics = seen.heard("statistics", statistics);
        seen.delivery(reader);
        let (now, ever) = (Timestamp::from_millis(BEGIN), Timestamp::from_millis(i64::MAX));
        for row in seen.heard("blocked", reader.blocked(SINK, 1_000)).into_iter().flatten() {
            seen.retried.insert(row.seq);
        }
        seen.heard("replays", reader.replays(SINK, ever, 1_000));
        seen.heard("replays", reader.replays(SINK, now, 1_000));
        seen.heard("rows", reader.rows_between(SINK, 0, EVENTS));
        seen.heard("oldest", reader.oldest_pending(SINK));
        seen.heard("audit", reader.audit(None, 1_000));
        seen.heard("value", reader.value("probe"));
        for seq in 0..=EVENTS + 2 {
            let event = seen.heard("event", reader.event(seq)).flatten();
            seen.served.extend(event);
            seen.heard("attempts", reader.attempts(seq));
        }
        for seq in 1..=EVENTS {
            let found = seen.heard("found", reader.found(seq)).flatten();
            let state = found.as_ref().and_then(|found| found.deliveries.get(SINK)).map(|delivery| delivery.state);
            seen.states.push(state);
            seen.served.extend(found.map(|found| found.event));
        }
        let states = [None, Some(DeliveryState::Parked), Some(DeliveryState::Retrying), Some(DeliveryState::Dropped)];
        let mut filters: Vec<EventFilter> = Vec::new();
        for state in states {
            let mut filter = EventFilter::default();
            filter.state = state;
            filters.push(filter);
        }
        let mut by_id = EventFilter::default();
        by_id.ids = ids.to_vec();
        filters.push(by_id);
        for filter in &filters {
            let page = seen.heard("search", reader.search(filter, None, 100, 1_000));
            seen.served.extend(page.into_iter().flat_map(|page| page.found).map(|found| found.event));
        }
        for id in ids {
            seen.heard("find", reader.find(*id));
        }
        seen
    }

    /// As the dispatcher goes through the journal.
    fn delivery(&mut self, reader: &mut dyn Reader) {
        let cursor = self.heard("sink", reader.sink(SINK)).map(|sink| sink.cursor);
        let tail = self.statistics.as_ref().map_or(0, |statistics| Seq::try_from(statistics.accepted).unwrap_or(0));
        if let Some(cursor) = cursor {
            let after = self.follow(reader, cursor, true);
            if after < tail {
                // What lies between the last record and the journal's end is listed as missing.
                self.runs_away = (tail - after > MISSING_LIMIT).then_some(tail);
                self.reached.extend(after + 1..=tail.min(after + MISSING_LIMIT));
                self.complaints.push(format!("nothing is there from {after} to {tail}"));
            }
        }
        self.follow(reader, 0, false);
    }

    /// Reads batch after batch; returns the last position there is.
    fn follow(&mut self, reader: &mut dyn Reader, begin: Seq, delivers: bool) -> Seq {
        let mut after = begin;
        // Each step passes at least one position, or is the last.
        for _ in 0..=2 * EVENTS {
            let last = match reader.events_after(SINK, after, 3, 1 << 20) {
                Ok((events, own)) => {
                    let last = events.iter().map(|event| event.seq).max().max(own.iter().copied().max());
                    self.served.extend(events);
                    let Some(last) = last else { break };
                    last
                }
                Err(JournalError::Damaged { seq, .. }) => {
                    self.complaints.push(format!("events after {after}: {seq} is damaged"));
                    seq
                }
                Err(error) => {
                    self.complaints.push(format!("events after {after}: {error}"));
                    break;
                }
            };
            if delivers {
                self.reached.extend(after + 1..=last.min(after.saturating_add(MISSING_LIMIT)));
                if last.saturating_sub(after) > MISSING_LIMIT {
                    self.runs_away = Some(last);
                }
            }
            after = last;
        }
        after
    }

    fn heard<T>(&mut self, what: &str, result: Result<T, JournalError>) -> Option<T> {
        result.map_err(|error| self.complaints.push(format!("{what}: {error}"))).ok()
    }

    /// Whether every event that was served is one that was stored, byte for byte.
    fn is_right(&self, specimen: &Specimen, last: Seq) -> Result<()> {
        for event in &self.served {
            let at = usize::try_from(event.seq - 1).ok();
            let Some(stored) = at.and_then(|at| specimen.events.get(at)) else {
                ensure!(event.seq > EVENTS && event.seq <= last, "event {} was invented", event.seq);
                continue;
            };
            ensure!(event.head == stored.head, "event {} is served with another head: {:?}", event.seq, event.head);
            ensure!(event.body == stored.body, "event {} is served with another body", event.seq);
            ensure!(event.at == stored.at, "event {} is served with another time", event.seq);
        }
        Ok(())
    }

    /// Whether nothing has quietly gone: every event is where it was, or somebody is told.
    fn is_accounted_for(&self, specimen: &Specimen) -> Result<()> {
        ensure!(self.runs_away.is_none(), "the journal says that it ends at {:?}", self.runs_away);
        if !self.complaints.is_empty() {
            return Ok(());
        }
        ensure!(
            self.statistics.as_ref() == Some(&specimen.statistics),
            "the totals differ and nobody is told: {:?}",
            self.statistics
        );
        for (seq, wanted) in (1..).zip(STATES) {
            let state = self.states.get(usize::try_from(seq - 1)?).copied().flatten();
            let is_reached = match wanted {
                DeliveryState::Pending => self.reached.contains(&seq),
                DeliveryState::Retrying => self.retried.contains(&seq),
                _ => true,
            };
            ensure!(state == Some(wanted), "event {seq} was {wanted:?}, is {state:?}, and nobody is told");
            ensure!(is_reached, "event {seq} will not be delivered, and nobody is told");
        }
        Ok(())
    }
}
