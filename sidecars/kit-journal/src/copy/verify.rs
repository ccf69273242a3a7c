//! Whether the target holds what the source holds, record by record: both are read, in the same order, and every
//! difference is named.

use sha2::{Digest as _, Sha256};

use super::record::{Position, Record, Table, hex};
use super::{Doing, Store, Tally, Watch};
use crate::error::JournalError;
use crate::event::Seq;

/// Differences and damaged records that are named; further ones are counted.
pub(super) const NAMED: usize = 20;

/// What came of comparing.
#[derive(Debug, Default)]
pub(super) struct Verified {
    pub(super) tables: Vec<Tally>,
    /// The first differences, in words.
    pub(super) differences: Vec<String>,
    pub(super) different: u64,
    /// Positions of the first events that do not match their checksum.
    pub(super) damaged: Vec<Seq>,
    pub(super) damaged_events: u64,
    /// Bytes of heads and bodies, and how many events.
    pub(super) event_bytes: u64,
    pub(super) events: u64,
}

impl Verified {
    fn differs(&mut self, table: Table, position: &Position, how: &str) {
        self.different += 1;
        if self.differences.len() < NAMED {
            self.differences.push(format!("{} {position} {how}", table.name()));
        }
    }
}

/// Ages of keys as a target can keep them: of some hundred thousand old ones together it may know the newest age only.
struct Coarse {
    /// Last position, age that is kept, the newest age that was seen.
    runs: Vec<(Seq, i64, Option<i64>)>,
    at: usize,
}

impl Coarse {
    fn apply(&mut self, record: &mut Record) {
        let Record::Key { seq, age, .. } = record else { return };
        while self.runs.get(self.at).is_some_and(|(last, _, _)| last < seq) {
            self.at += 1;
        }
        if let Some((_, kept, newest)) = self.runs.get_mut(self.at) {
            *newest = (*newest).max(Some(*age));
            *age = *kept;
        }
    }
}

/// One side, a batch at a time.
struct Stream {
    table: Table,
    after: Position,
    batch: std::vec::IntoIter<Record>,
}

impl Stream {
    fn new(table: Table) -> Self {
        Self { table, after: table.start(), batch: Vec::new().into_iter() }
    }

    fn next(&mut self, store: &mut dyn Store) -> Result<Option<Record>, JournalError> {
        if let Some(record) = self.batch.next() {
            return Ok(Some(record));
        }
        let batch = store.read(self.table, &self.after)?;
        if let Some(last) = batch.last() {
            self.after = last.position();
        }
        self.batch = batch.into_iter();
        Ok(self.batch.next())
    }
}

/// Reads both and compares them. `runs` says which keys of the target share an age.
pub(super) fn compare(
    source: &mut dyn Store,
    target: &mut dyn Store,
    runs: Vec<(Seq, i64)>,
    watch: &mut Watch<'_>,
) -> Result<Verified, JournalError> {
    let mut verified = Verified::default();
    let mut coarse = Coarse { runs: runs.into_iter().map(|(last, age)| (last, age, None)).collect(), at: 0 };
    for table in Table::ALL {
        let (mut ours, mut theirs) = (Stream::new(table), Stream::new(table));
        let (mut rows, mut digest) = (0_u64, Sha256::new());
        let (mut left, mut right) = (ours.next(source)?, theirs.next(target)?);
        while left.is_some() || right.is_some() {
            if let Some(record) = &mut left {
                coarse.apply(record);
            }
            let order = match (&left, &right) {
                (Some(left), Some(right)) => left.position().cmp(&right.position()),
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            match (order, &left, &right) {
                (std::cmp::Ordering::Equal, Some(one), Some(other)) => {
                    let own = one.digest();
                    if own != other.digest() {
                        verified.differs(table, &one.position(), "differs");
                    }
                    digest.update(own);
                    rows += 1;
                    verified.look_at(one);
                    left = ours.next(source)?;
                    right = theirs.next(target)?;
                }
                (std::cmp::Ordering::Less, Some(one), _) => {
                    verified.differs(table, &one.position(), "is missing in the copy");
                    left = ours.next(source)?;
                }
                (_, _, Some(other)) => {
                    verified.differs(table, &other.position(), "is in the copy only");
                    right = theirs.next(target)?;
                }
                (_, _, None) => break,
            }
            watch.done(Doing::Comparing, table, 1);
        }
        verified.tables.push(Tally { table, rows, sha256: hex(&digest.finalize()) });
    }
    for (last, kept, newest) in coarse.runs {
        if newest != Some(kept) {
            verified.differs(Table::Keys, &Position::Numbers(last, i64::MIN), "and those before it have another age");
        }
    }
    Ok(verified)
}

impl Verified {
    fn look_at(&mut self, record: &Record) {
        let Record::Event { seq, head, body, .. } = record else { return };
        self.events += 1;
        self.event_bytes += (head.len() + body.len()) as u64;
        if record.is_damaged() {
            self.damaged_events += 1;
            if self.damaged.len() < NAMED {
                self.damaged.push(*seq);
            }
        }
    }
}
