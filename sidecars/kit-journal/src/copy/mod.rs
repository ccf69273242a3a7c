//! A journal moved to another place, from one engine to another or to the same: everything that a daemon would miss,
//! in batches that each are committed, so that a copy that was cut off goes on where it was, and compared record by
//! record before a daemon may open it.
//!
//! The source is only read, and must not be in use. What is unfinished says so in a way that no daemon of any version
//! takes it for a journal. Nothing here knows a table of either engine: that is in `sqlite/copy.rs` and
//! `postgres/copy/`.

mod record;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use kit::secret::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use record::Table;
use record::hex;
pub(crate) use record::{Position, Record, storable};

use crate::error::{JournalError, OpenError};
use crate::event::Seq;
use crate::postgres::{self, Address};
use crate::sqlite::{self, DedupeBounds};

/// At most this many records are in memory from each side …
pub(crate) const BATCH_ROWS: usize = 2_000;
/// … keys more, whose number is a multiple of what the SQLite engine packs into a row …
pub(crate) const BATCH_KEYS: usize = 480 * 20;
/// … and about this many bytes, but always one record.
pub(crate) const BATCH_BYTES: usize = 4 << 20;

/// Where a journal is, or is to be.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// A schema of a PostgreSQL database.
    Postgres(Database),
}

/// A schema of a PostgreSQL database, as [`JournalSection`](crate::JournalSection) names it.
#[derive(Clone, Debug)]
pub struct Database {
    /// As `journal.database_url`.
    pub url: Secret,
    /// As `journal.database_ca_file`.
    pub ca_file: Option<PathBuf>,
    /// As `journal.schema`.
    pub schema: String,
    /// As `journal.allow_shared_database`.
    pub allow_shared: bool,
}

/// What is to be copied, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The journal.
    pub from: Place,
    /// Where it is to be; nothing may be there but an unfinished copy of the same journal.
    pub to: Place,
    /// What the copy is called, which a daemon on PostgreSQL checks. Without it as the journal: a file is called as it
    /// is named, without its extension.
    pub name: Option<String>,
    /// Events that do not match their checksum are carried over as what they are. Without it they end the copy.
    pub keep_damaged: bool,
    /// How many keys a copy in a file leaves to be held in memory; the default is that of daemons.
    pub dedupe: DedupeBounds,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Records are written to the target.
    Copying,
    /// Both are read and compared.
    Comparing,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is being done.
    pub doing: Doing,
    /// With which part.
    pub table: Table,
    /// Records copied and records compared, in this and earlier runs.
    pub done: u64,
    /// About how many that will be in the end.
    pub total: u64,
}

/// One part, as it is in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Which part.
    pub table: Table,
    /// How many records.
    pub rows: u64,
    /// SHA-256 over the records in a form that is the same for every engine.
    pub sha256: String,
}

/// Positions that could not be read and that every sink had passed: whether a purge had taken their events before nobody can
/// tell. They are not in the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The first.
    pub first: Seq,
    /// The last; those between that are damaged, or can be read, are none of them.
    pub last: Seq,
    /// How many.
    pub positions: u64,
}

/// What came of a copy.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where the journal is.
    pub from: String,
    /// Where the copy is.
    pub to: String,
    /// What it is called.
    pub journal: String,
    /// Its last position.
    pub last_position: Seq,
    /// An earlier run had begun it.
    pub resumed: bool,
    /// Nothing had to be done: the copy was finished before.
    pub was_finished: bool,
    /// The parts, equal in both.
    pub tables: Vec<Tally>,
    /// Positions of the first events that do not match their checksum and were carried over as they are.
    pub damaged: Vec<Seq>,
    /// How many there are.
    pub damaged_events: u64,
    /// What else could not be read, if anything.
    pub passed: Option<Passed>,
}

/// Why a journal was not copied. Nothing was changed but an unfinished copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the two cannot be opened.
    #[error("{side}")]
    Open {
        /// `source` or `target`.
        side: &'static str,
        /// Why.
        source: OpenError,
    },
    /// One of the two is not what it must be.
    #[error("{0}")]
    Refused(String),
    /// Reading or writing failed. The same command goes on from there.
    #[error("{doing}: the same command goes on from there")]
    CutOff {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: JournalError,
    },
    /// The source has events that do not match their checksum.
    #[error(
        "{count} events of {from} are damaged ({positions}): restore a backup, or carry them over as they are with \
         --keep-damaged, which makes dead letters of those that are not delivered yet"
    )]
    Damaged {
        /// Where the journal is.
        from: String,
        /// How many.
        count: u64,
        /// The first of them, and what else cannot be read.
        positions: String,
    },
    /// The copy does not hold what the source holds.
    #[error("the copy is not equal in {count} records ({differences}): remove it and copy again")]
    Different {
        /// How many.
        count: u64,
        /// The first of them.
        differences: String,
    },
}

/// What is read from: the source, and the target to compare them.
pub(crate) trait Store {
    /// Records after a position, in order, a batch; none at the end.
    fn read(&mut self, table: Table, after: &Position) -> Result<Vec<Record>, JournalError>;
    /// The last position ever given.
    fn last_seq(&mut self) -> Result<Seq, JournalError>;
    /// About how many records a table has.
    fn estimate(&mut self, table: Table) -> Result<u64, JournalError>;
    /// First and last position of the events, last number of attempts and of audit, and how many deliveries.
    fn ends(&mut self) -> Result<[i64; 5], JournalError>;
    /// What could not be read of the events when they were last read to the end, beside those that came as damaged.
    fn passed(&self) -> Option<Passed> {
        None
    }
}

/// What is written to.
pub(crate) trait Target: Store {
    /// The position of the last record that is there.
    fn end(&mut self, table: Table) -> Result<Position, JournalError>;
    /// Adds records after those that are there, in one commit.
    fn write(&mut self, table: Table, records: &[Record]) -> Result<(), JournalError>;
    /// Last position and age of keys that share an age, in order.
    fn shared_ages(&mut self) -> Result<Vec<(Seq, i64)>, JournalError>;
    /// Removes all of an unfinished copy, and begins another.
    fn begin_again(&mut self, marker: &Marker) -> Result<(), JournalError>;
    /// Makes it a journal that daemons open.
    fn finish(&mut self, marker: &Marker, end: &End) -> Result<(), JournalError>;
    /// As the store that it is, too.
    fn as_store(&mut self) -> &mut dyn Store;
}

/// What a journal ends with, beside its tables.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) last_seq: Seq,
    pub(crate) events: u64,
    pub(crate) event_bytes: u64,
}

/// What an unfinished copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// Where the source is.
    pub(crate) from: String,
    /// What the journal is called.
    pub(crate) journal: String,
    /// Of the source, as it was.
    pub(crate) fingerprint: String,
}

/// What is found where the copy is to be.
#[derive(Debug)]
pub(crate) enum Ground {
    /// Nothing; an unfinished copy is there now.
    New,
    /// An unfinished copy.
    Unfinished(Marker),
    /// A journal; in a database it has a name.
    Journal(Option<String>),
}

/// A source that is open, and nobody else's meanwhile.
pub(crate) struct Source {
    pub(crate) store: Box<dyn Store>,
    pub(crate) name: String,
}

/// Tells whoever watches how far it has come.
pub(crate) struct Watch<'a> {
    tell: &'a mut dyn FnMut(Step),
    done: u64,
    total: u64,
}

impl Watch<'_> {
    pub(crate) fn done(&mut self, doing: Doing, table: Table, count: u64) {
        self.done += count;
        self.total = self.total.max(self.done);
        (self.tell)(Step { doing, table, done: self.done, total: self.total });
    }
}

impl std::fmt::Display for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, last, positions } = self;
        write!(
            f,
            "{positions} positions from {first} to {last} cannot be read: their events were delivered everywhere, and may have \
             been purged"
        )
    }
}

impl Place {
    fn address(&self) -> Result<Option<Arc<Address>>, CopyError> {
        let Self::Postgres(database) = self else { return Ok(None) };
        if !postgres::is_plain_name(&database.schema) {
            return Err(CopyError::Refused(format!("{:?} is no name of a schema of ours", database.schema)));
        }
        let address = Address::parse(&database.url, database.ca_file.clone(), &database.schema);
        address
            .map(|address| Some(Arc::new(address)))
            .map_err(|what| CopyError::Refused(format!("the database's URL {what}")))
    }

    fn shown(&self, address: Option<&Address>) -> String {
        match (self, address) {
            (Self::Sqlite(path), _) => std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string(),
            (Self::Postgres(_), Some(address)) => format!("{address:?}"),
            (Self::Postgres(_), None) => String::new(),
        }
    }
}

/// Copies a journal. `tell` hears how far it has come, once a record or a batch. Blocks.
///
/// # Errors
/// [`CopyError`]: the source is as it was; the target holds what it held before, or an unfinished copy, with which the
/// same plan goes on.
pub fn copy(plan: &Plan, tell: &mut dyn FnMut(Step)) -> Result<Report, CopyError> {
    let (source_address, target_address) = (plan.from.address()?, plan.to.address()?);
    let (from, to) = (plan.from.shown(source_address.as_deref()), plan.to.shown(target_address.as_deref()));
    let open = |side| move |source| CopyError::Open { side, source };
    let is_one = match (&plan.from, &plan.to, &source_address, &target_address) {
        (Place::Sqlite(one), Place::Sqlite(other), ..) => {
            let canonical = one.canonicalize().ok();
            from == to || (canonical.is_some() && canonical == other.canonicalize().ok())
        }
        (.., Some(one), Some(other)) => {
            postgres::copy::are_one(one, other).map_err(|(side, source)| CopyError::Open { side, source })?
        }
        _ => false,
    };
    if is_one {
        return Err(CopyError::Refused(format!("the journal is at {to} already: name another target")));
    }
    let mut source = match (&plan.from, &source_address) {
        (Place::Postgres(_), Some(address)) => postgres::copy::open_source(address).map_err(open("source"))?,
        (Place::Sqlite(path), _) => sqlite::copy::open_source(path).map_err(open("source"))?,
        (Place::Postgres(_), None) => return Err(CopyError::Refused("the source has no address".to_owned())),
    };
    let reading = |source| CopyError::CutOff { doing: format!("read {from}"), source };
    let fingerprint = fingerprint(&mut *source.store).map_err(reading)?;
    let journal = plan.name.clone().unwrap_or(source.name);
    let marker = Marker { from: from.clone(), journal: journal.clone(), fingerprint };
    let (mut target, ground) = match (&plan.to, &target_address) {
        (Place::Postgres(database), Some(address)) => {
            postgres::copy::open_target(address, database.allow_shared, &marker).map_err(open("target"))?
        }
        (Place::Sqlite(path), _) => sqlite::copy::open_target(path, plan.dedupe, &marker).map_err(open("target"))?,
        (Place::Postgres(_), None) => return Err(CopyError::Refused("the target has no address".to_owned())),
    };
    let (mut resumed, mut was_finished) = (false, false);
    let writing = |source| CopyError::CutOff { doing: format!("write {to}"), source };
    match ground {
        Ground::New => {}
        Ground::Unfinished(found) if found.journal == journal && found.fingerprint == marker.fingerprint => {
            resumed = true
        }
        // The journal was gone on with since: what was copied of it may be gone from it.
        Ground::Unfinished(found) if found.journal == journal && found.from == from => {
            target.begin_again(&marker).map_err(writing)?;
        }
        Ground::Unfinished(found) => {
            return Err(CopyError::Refused(format!(
                "{to} is an unfinished copy of the journal {} at {}, and this is {journal} at {from}: remove it first, or \
                 finish that one",
                found.journal, found.from
            )));
        }
        Ground::Journal(name) => {
            let own = self::fingerprint(target.as_store()).map_err(reading)?;
            if own != marker.fingerprint || name.as_ref().is_some_and(|name| *name != journal) {
                let events = target.last_seq().map_err(reading)?;
                let called = name.map_or_else(String::new, |name| format!(" called {name}"));
                return Err(CopyError::Refused(format!(
                    "{to} holds a journal{called} already, of {events} events: name another target, or remove that one first"
                )));
            }
            was_finished = true;
        }
    }
    let store = &mut *source.store;
    let mut total = 0;
    for table in Table::ALL {
        total += store.estimate(table).map_err(reading)?;
    }
    let mut watch = Watch { tell, done: 0, total: total * 2 };
    if was_finished {
        watch.done = total;
    } else {
        for table in Table::ALL {
            copy_table(store, &mut *target, table, &mut watch, (&from, &to))?;
        }
    }
    let last_seq = store.last_seq().map_err(reading)?;
    let runs = target.shared_ages().map_err(writing)?;
    let comparing = |source| CopyError::CutOff { doing: format!("compare {from} with {to}"), source };
    let verified = verify::compare(store, target.as_store(), runs, &mut watch).map_err(comparing)?;
    if verified.different > 0 {
        let differences = verified.differences.join(", ");
        return Err(CopyError::Different { count: verified.different, differences });
    }
    let passed = store.passed();
    if (verified.damaged_events > 0 || passed.is_some()) && !plan.keep_damaged && !was_finished {
        let positions = verified.damaged.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let positions = [
            (!positions.is_empty()).then(|| format!("positions {positions}")),
            passed.map(|passed| passed.to_string()),
        ];
        let positions = positions.into_iter().flatten().collect::<Vec<_>>().join("; ");
        return Err(CopyError::Damaged { from, count: verified.damaged_events, positions });
    }
    if !was_finished {
        let end = End { last_seq, events: verified.events, event_bytes: verified.event_bytes };
        target.finish(&marker, &end).map_err(writing)?;
    }
    let verify::Verified { tables, damaged, damaged_events, .. } = verified;
    Ok(Report {
        from,
        to,
        journal,
        last_position: last_seq,
        resumed,
        was_finished,
        tables,
        damaged,
        damaged_events,
        passed,
    })
}

fn copy_table(
    source: &mut dyn Store,
    target: &mut dyn Target,
    table: Table,
    watch: &mut Watch<'_>,
    (from, to): (&str, &str),
) -> Result<(), CopyError> {
    let failed = |verb: &str, place: &str| {
        let doing = format!("{verb} {} of {place}", table.name());
        move |source| CopyError::CutOff { doing, source }
    };
    let mut after = target.end(table).map_err(failed("read", to))?;
    if after != table.start() {
        let there = target.estimate(table).map_err(failed("read", to))?;
        watch.done(Doing::Copying, table, there);
    }
    loop {
        let records = source.read(table, &after).map_err(failed("read", from))?;
        let Some(last) = records.last() else { return Ok(()) };
        after = last.position();
        target.write(table, &records).map_err(failed("write", to))?;
        watch.done(Doing::Copying, table, records.len() as u64);
    }
}

/// Another one for every journal, and for a journal that was gone on with: nothing is committed that changes none of
/// what it is made of.
fn fingerprint(store: &mut dyn Store) -> Result<String, JournalError> {
    let mut hasher = Sha256::new();
    hasher.update(store.last_seq()?.to_le_bytes());
    for end in store.ends()? {
        hasher.update(end.to_le_bytes());
    }
    for table in [Table::Sinks, Table::Values] {
        let mut after = table.start();
        loop {
            let records = store.read(table, &after)?;
            let Some(last) = records.last() else { break };
            after = last.position();
            for record in &records {
                hasher.update(record.digest());
            }
        }
    }
    Ok(hex(&hasher.finalize()))
}
