//! What has been accepted before, within bounded memory whatever the count and the window.
//!
//! Recent keys are 16 bytes each in a hash table (fingerprint and position) and confirmed on disk
//! when they match; the newest have no row there yet (see `saving`). Once the table is full its oldest part moves to a *run*: immutable sorted blocks
//! in the file behind a Bloom filter. Filters share a fixed budget: when it is used up the oldest
//! ones are folded to half their size, which costs some look-ups on disk and never a wrong answer.
//!
//! Memory at most: table 17.8 MB, filters 5 MiB, and 8 MB while a run is being made.

use std::collections::HashMap;

use hashbrown::HashTable;
use kit::clock::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::saving::{Key, Unsaved};
use crate::error::JournalError;
use crate::event::{EventId, KeyHash, Seq};

/// Keys in memory; 2^20 buckets at a load of 7/8 hold 917,504.
const RECENT_KEYS: usize = 900_000;
/// Keys that move to disk together.
const RUN_KEYS: usize = 200_000;
/// All filters together.
const FILTER_BYTES: usize = 5 << 20;
/// Bytes of one key in `keys.entries`: key hash, event id.
pub(super) const ENTRY: usize = 32;
/// Bytes of one key in a block: key hash, event id, position.
pub(super) const BLOCK_ENTRY: usize = 40;
const BLOCK_KEYS: usize = 256;

#[derive(Clone, Copy)]
struct Recent {
    fingerprint: u64,
    seq: Seq,
}

struct Run {
    run: i64,
    newest_at: i64,
    count: usize,
    filter: Bloom,
}

/// What the deduplication may hold in memory. The defaults are right for a daemon; tests take less,
/// to get over the bounds with few keys.
#[derive(Clone, Copy, Debug)]
pub struct DedupeBounds {
    /// Keys in memory; what is beyond moves to disk.
    pub recent_keys: usize,
    /// Keys that move to disk together.
    pub run_keys: usize,
    /// Bytes of all filters over what has moved.
    pub filter_bytes: usize,
}

impl Default for DedupeBounds {
    fn default() -> Self {
        Self { recent_keys: RECENT_KEYS, run_keys: RUN_KEYS, filter_bytes: FILTER_BYTES }
    }
}

pub(super) struct DedupeIndex {
    bounds: DedupeBounds,
    recent: HashTable<Recent>,
    runs: Vec<Run>,
    unsaved: Unsaved,
    /// Keys of the commit being built; they join `recent` when it succeeds.
    staged: Vec<Key>,
    staged_by_key: HashMap<KeyHash, Vec<(EventId, Seq)>>,
}

impl DedupeIndex {
    pub(super) fn load(conn: &Connection, bounds: DedupeBounds) -> Result<Self, JournalError> {
        let mut index = Self {
            bounds,
            recent: HashTable::new(),
            runs: Vec::new(),
            unsaved: Unsaved::load(conn)?,
            staged: Vec::new(),
            staged_by_key: HashMap::new(),
        };
        let mut rows = conn.prepare("SELECT first_seq, entries FROM keys ORDER BY first_seq")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let first: Seq = row.get(0)?;
            let entries = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            for (seq, (key, _)) in (first..).zip(parse_entries(entries)) {
                remember(&mut index.recent, key, seq);
            }
        }
        for (key, _, seq) in index.unsaved.iter() {
            remember(&mut index.recent, *key, *seq);
        }
        let mut runs = conn.prepare("SELECT run, newest_at, count, filter FROM key_runs ORDER BY run")?;
        let mut runs = runs.query([])?;
        while let Some(row) = runs.next()? {
            let count: i64 = row.get(2)?;
            index.runs.push(Run {
                run: row.get(0)?,
                newest_at: row.get(1)?,
                count: usize::try_from(count).unwrap_or(0),
                filter: Bloom::from_bytes(row.get(3)?),
            });
            // They are stored at full size, and all of them at that size may be more than there is memory.
            index.fit_filters();
        }
        Ok(index)
    }

    /// Every event known under this key, the earliest first.
    pub(super) fn lookup(&self, conn: &Connection, key: KeyHash) -> Result<Vec<(EventId, Seq)>, JournalError> {
        let mut known = Vec::new();
        for run in &self.runs {
            if run.filter.may_hold(key) {
                lookup_run(conn, run.run, key, &mut known)?;
            }
        }
        let fingerprint = key.fingerprint();
        for recent in self.recent.iter_hash(spread(fingerprint)) {
            if recent.fingerprint == fingerprint
                && let Some((stored, id)) = self.entry_at(conn, recent.seq)?
                && stored == key
            {
                known.push((id, recent.seq));
            }
        }
        if let Some(staged) = self.staged_by_key.get(&key) {
            known.extend(staged);
        }
        known.sort_unstable_by_key(|(_, seq)| *seq);
        Ok(known)
    }

    /// Every event known under this key in any scope, the earliest first; in memory and on disk it is told by a few
    /// bytes, so that another key's may be among them.
    pub(super) fn in_any_scope(&self, conn: &Connection, key: KeyHash) -> Result<Vec<(EventId, Seq)>, JournalError> {
        let mut known = Vec::new();
        for run in &self.runs {
            lookup_shared(conn, run.run, key, &mut known)?;
        }
        let fingerprint = key.fingerprint();
        for recent in self.recent.iter_hash(spread(fingerprint)) {
            if recent.fingerprint >> SCOPE_BITS == fingerprint >> SCOPE_BITS
                && let Some((stored, id)) = self.entry_at(conn, recent.seq)?
                && stored.shared() == key.shared()
            {
                known.push((id, recent.seq));
            }
        }
        known.sort_unstable_by_key(|(_, seq)| *seq);
        Ok(known)
    }

    fn entry_at(&self, conn: &Connection, seq: Seq) -> Result<Option<(KeyHash, EventId)>, JournalError> {
        match self.unsaved.at(seq) {
            Some(entry) => Ok(Some(entry)),
            None => saved_entry_at(conn, seq),
        }
    }

    pub(super) fn stage(&mut self, key: KeyHash, id: EventId, seq: Seq) {
        self.staged.push((key, id, seq));
        self.staged_by_key.entry(key).or_default().push((id, seq));
    }

    /// Whether rows should be written for the keys that have none.
    pub(super) fn wants_saving(&self) -> bool {
        self.unsaved.fill_a_row(self.staged.len()) || self.wants_run(true)
    }

    /// Writes rows for all keys that have none, staged ones too. Inside the caller's transaction.
    pub(super) fn save(&mut self, conn: &Connection, at: Timestamp) -> Result<(), JournalError> {
        self.unsaved.save(conn, &self.staged, at)
    }

    pub(super) fn bounds(&self) -> DedupeBounds {
        self.bounds
    }

    pub(super) fn commit_staged(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        self.staged_by_key.clear();
        for (key, _, seq) in &staged {
            remember(&mut self.recent, *key, *seq);
        }
        self.unsaved.committed(&staged);
    }

    pub(super) fn discard_staged(&mut self) {
        self.staged.clear();
        self.staged_by_key.clear();
        self.unsaved.discarded();
    }

    /// Whether the oldest keys should move to disk: `pressing` when it cannot wait for a quiet moment.
    pub(super) fn wants_run(&self, pressing: bool) -> bool {
        let limit = self.bounds.recent_keys;
        self.recent.len() >= if pressing { limit } else { limit - limit / 10 }
    }

    /// Moves the oldest keys to a run. Inside the caller's transaction; returns what
    /// [`DedupeIndex::adopt_run`] takes once that has committed.
    pub(super) fn write_run(&self, conn: &Connection) -> Result<Option<NewRun>, JournalError> {
        let number = self.runs.last().map_or(1, |run| run.run + 1);
        write_run(conn, number, self.bounds.run_keys)
    }

    pub(super) fn adopt_run(&mut self, new: NewRun) {
        self.recent.retain(|recent| recent.seq > new.last_seq);
        self.runs.push(new.run);
        self.fit_filters();
    }

    /// Forgets keys first seen before `before`, at most about `limit` of them. Inside the caller's
    /// transaction; the returned forgetting is applied once that has committed.
    pub(super) fn expire(&self, conn: &Connection, before: Timestamp, limit: u32) -> Result<Forgotten, JournalError> {
        let mut forgotten = Forgotten::default();
        if let Some(run) = self.runs.first()
            && run.newest_at < before.as_millis()
        {
            conn.execute("DELETE FROM key_blocks WHERE run = ?", [run.run])?;
            conn.execute("DELETE FROM key_runs WHERE run = ?", [run.run])?;
            forgotten.run = Some(run.run);
            forgotten.count = run.count;
            return Ok(forgotten);
        }
        if !self.runs.is_empty() {
            return Ok(forgotten);
        }
        let mut rows = conn.prepare_cached("SELECT first_seq, at, entries FROM keys ORDER BY first_seq LIMIT ?")?;
        let mut rows = rows.query([limit])?;
        let mut last = None;
        while forgotten.count < limit as usize
            && let Some(row) = rows.next()?
            && row.get::<_, i64>(1)? < before.as_millis()
        {
            let first: Seq = row.get(0)?;
            let entries = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            forgotten
                .recent
                .extend((first..).zip(parse_entries(entries)).map(|(seq, (key, _))| (key.fingerprint(), seq)));
            forgotten.count = forgotten.recent.len();
            last = Some(first);
        }
        if let Some(last) = last {
            conn.execute("DELETE FROM keys WHERE first_seq <= ?", [last])?;
        }
        Ok(forgotten)
    }

    pub(super) fn forget(&mut self, forgotten: Forgotten) {
        if let Some(run) = forgotten.run {
            self.runs.retain(|r| r.run != run);
        }
        for (fingerprint, seq) in forgotten.recent {
            if let Ok(entry) = self.recent.find_entry(spread(fingerprint), |r| r.seq == seq) {
                entry.remove();
            }
        }
    }

    /// Bytes held, and keys remembered in all.
    pub(super) fn memory(&self) -> (u64, u64) {
        let filters: usize = self.runs.iter().map(|run| run.filter.bytes().len()).sum();
        let keys: usize = self.runs.iter().map(|run| run.count).sum::<usize>() + self.recent.len();
        ((self.recent.allocation_size() + filters) as u64, keys as u64)
    }

    fn fit_filters(&mut self) {
        let mut total: usize = self.runs.iter().map(|run| run.filter.bytes().len()).sum();
        while total > self.bounds.filter_bytes {
            // The largest of the oldest: every filter is halved once before any is halved twice.
            let Some(run) = self.runs.iter_mut().rev().max_by_key(|run| run.filter.bytes().len()) else { return };
            if !run.filter.fold() {
                return;
            }
            total = self.runs.iter().map(|run| run.filter.bytes().len()).sum();
        }
    }
}

pub(super) struct NewRun {
    last_seq: Seq,
    run: Run,
}

impl NewRun {
    /// How many keys it holds.
    pub(super) fn count(&self) -> usize {
        self.run.count
    }
}

/// Moves about `run_keys` of the oldest keys to the run with this number. Inside the caller's transaction.
pub(super) fn write_run(conn: &Connection, run: i64, run_keys: usize) -> Result<Option<NewRun>, JournalError> {
    let mut keys: Vec<Key> = Vec::with_capacity(run_keys);
    let mut newest_at = i64::MIN;
    {
        let mut rows = conn.prepare("SELECT first_seq, at, entries FROM keys ORDER BY first_seq")?;
        let mut rows = rows.query([])?;
        while keys.len() < run_keys
            && let Some(row) = rows.next()?
        {
            let first: Seq = row.get(0)?;
            newest_at = newest_at.max(row.get(1)?);
            let entries = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            keys.extend((first..).zip(parse_entries(entries)).map(|(seq, (key, id))| (key, id, seq)));
        }
    }
    let Some(last_seq) = keys.last().map(|(_, _, seq)| *seq) else { return Ok(None) };
    keys.sort_unstable_by_key(|(key, _, seq)| (*key, *seq));
    let mut filter = Bloom::with_capacity(keys.len());
    let mut insert = conn.prepare_cached("INSERT INTO key_blocks (run, first_key, entries) VALUES (?, ?, ?)")?;
    let mut at = 0;
    while at < keys.len() {
        // A key with several events stays within one block: blocks are found by their first key.
        let mut end = (at + BLOCK_KEYS).min(keys.len());
        while end < keys.len() && keys[end].0 == keys[end - 1].0 {
            end += 1;
        }
        let mut entries = Vec::with_capacity((end - at) * BLOCK_ENTRY);
        for (key, id, seq) in &keys[at..end] {
            filter.insert(*key);
            entries.extend_from_slice(&key.0);
            entries.extend_from_slice(id.as_bytes());
            entries.extend_from_slice(&seq.to_le_bytes());
        }
        insert.execute(params![run, keys[at].0.0.as_slice(), entries])?;
        at = end;
    }
    let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
    conn.execute(
        "INSERT INTO key_runs (run, last_seq, newest_at, count, filter) VALUES (?, ?, ?, ?, ?)",
        params![run, last_seq, newest_at, count, filter.bytes()],
    )?;
    conn.execute("DELETE FROM keys WHERE first_seq <= ?", [last_seq])?;
    Ok(Some(NewRun { last_seq, run: Run { run, newest_at, count: keys.len(), filter } }))
}

#[derive(Default)]
pub(super) struct Forgotten {
    run: Option<i64>,
    recent: Vec<(u64, Seq)>,
    pub(super) count: usize,
}

pub(super) fn parse_entries(entries: &[u8]) -> impl Iterator<Item = (KeyHash, EventId)> {
    entries.chunks_exact(ENTRY).map(|entry| {
        let (mut key, mut id) = ([0; 16], [0; 16]);
        key.copy_from_slice(&entry[..16]);
        id.copy_from_slice(&entry[16..ENTRY]);
        (KeyHash(key), EventId::from_bytes(id))
    })
}

pub(super) fn parse_block(entries: &[u8]) -> impl Iterator<Item = (KeyHash, EventId, Seq)> {
    entries.chunks_exact(BLOCK_ENTRY).flat_map(|entry| {
        let mut seq = [0; 8];
        seq.copy_from_slice(&entry[ENTRY..]);
        parse_entries(&entry[..ENTRY]).map(move |(key, id)| (key, id, Seq::from_le_bytes(seq)))
    })
}

/// Bits of a fingerprint that tell scopes of a key apart.
const SCOPE_BITS: usize = 64 - 8 * KeyHash::SHARED;

/// Where a fingerprint is in the table: all scopes of a key together, and the rest as far apart as can be.
fn spread(fingerprint: u64) -> u64 {
    (fingerprint >> SCOPE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn remember(recent: &mut HashTable<Recent>, key: KeyHash, seq: Seq) {
    let fingerprint = key.fingerprint();
    recent.insert_unique(spread(fingerprint), Recent { fingerprint, seq }, |recent| spread(recent.fingerprint));
}

fn saved_entry_at(conn: &Connection, seq: Seq) -> Result<Option<(KeyHash, EventId)>, JournalError> {
    let mut query = conn
        .prepare_cached("SELECT first_seq, entries FROM keys WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1")?;
    let found = query
        .query_row([seq], |row| {
            let first: Seq = row.get(0)?;
            let entries = row.get_ref(1)?.as_blob()?;
            let nth = usize::try_from(seq - first).unwrap_or(usize::MAX);
            Ok(parse_entries(entries).nth(nth))
        })
        .optional()?;
    Ok(found.flatten())
}

/// Blocks are in order of their first key: those that begin with what is shared, and the one before them.
fn lookup_shared(
    conn: &Connection,
    run: i64,
    key: KeyHash,
    known: &mut Vec<(EventId, Seq)>,
) -> Result<(), JournalError> {
    let mut query = conn.prepare_cached(
        "SELECT first_key, entries FROM key_blocks WHERE run = ? AND first_key <= ? ORDER BY first_key DESC",
    )?;
    let mut last = [0xff; 16];
    last[..KeyHash::SHARED].copy_from_slice(key.shared());
    let mut rows = query.query(params![run, last.as_slice()])?;
    while let Some(row) = rows.next()? {
        let entries = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        known.extend(parse_block(entries).filter(|(k, _, _)| k.shared() == key.shared()).map(|(_, id, seq)| (id, seq)));
        let first = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
        if first.get(..KeyHash::SHARED).is_none_or(|first| first < key.shared()) {
            break;
        }
    }
    Ok(())
}

fn lookup_run(conn: &Connection, run: i64, key: KeyHash, known: &mut Vec<(EventId, Seq)>) -> Result<(), JournalError> {
    let mut query = conn.prepare_cached(
        "SELECT entries FROM key_blocks WHERE run = ? AND first_key <= ? ORDER BY first_key DESC LIMIT 1",
    )?;
    query
        .query_row(params![run, key.0.as_slice()], |row| {
            let entries = row.get_ref(0)?.as_blob()?;
            known.extend(parse_block(entries).filter(|(k, _, _)| *k == key).map(|(_, id, seq)| (id, seq)));
            Ok(())
        })
        .optional()?;
    Ok(())
}

/// A Bloom filter whose size is a power of two, so that it can be folded in half.
struct Bloom {
    bits: Vec<u8>,
}

impl Bloom {
    const HASHES: u64 = 7;

    /// About ten bits a key: one wrong "perhaps" in a hundred.
    fn with_capacity(keys: usize) -> Self {
        Self { bits: vec![0; (keys.max(64) * 10 / 8).next_power_of_two()] }
    }

    /// A stored filter; anything that is not a power of two long would answer wrongly and is taken
    /// as "perhaps" for everything.
    fn from_bytes(bits: Vec<u8>) -> Self {
        if bits.len().is_power_of_two() { Self { bits } } else { Self { bits: vec![0xff] } }
    }

    fn bytes(&self) -> &[u8] {
        &self.bits
    }

    fn positions(&self, key: KeyHash) -> impl Iterator<Item = (usize, u8)> + use<> {
        let mut second = [0; 8];
        second.copy_from_slice(&key.0[8..]);
        let (first, second) = (key.fingerprint(), u64::from_be_bytes(second) | 1);
        let mask = (self.bits.len() as u64 * 8) - 1;
        (0..Self::HASHES).map(move |n| {
            let bit = first.wrapping_add(n.wrapping_mul(second)) & mask;
            (usize::try_from(bit / 8).unwrap_or(0), 1 << (bit % 8))
        })
    }

    fn insert(&mut self, key: KeyHash) {
        for (byte, bit) in self.positions(key) {
            self.bits[byte] |= bit;
        }
    }

    fn may_hold(&self, key: KeyHash) -> bool {
        self.positions(key).all(|(byte, bit)| self.bits[byte] & bit != 0)
    }

    /// Halves the filter; false when it cannot get smaller.
    fn fold(&mut self) -> bool {
        let half = self.bits.len() / 2;
        if half == 0 {
            return false;
        }
        for at in 0..half {
            self.bits[at] |= self.bits[at + half];
        }
        self.bits.truncate(half);
        self.bits.shrink_to_fit();
        true
    }
}
