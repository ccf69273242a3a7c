//! The shared engine: PostgreSQL, for several replicas over one journal (ADR 0016).
//!
//! Every commit begins by locking the one row that holds the last position, so that commits of all replicas follow one
//! another: positions have no gaps and become visible in their order, and what is known under a key is known to all.
//! A commit takes two questions: what is known, and what is written with the `COMMIT` behind it.

mod address;
mod append;
mod books;
mod clock;
mod commit;
pub(crate) mod copy;
mod hosts;
mod lease;
mod link;
mod lost;
mod probe;
mod purge;
mod reader;
mod schema;
mod tls;
mod writing;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::clock::{SharedClock, Timestamp};
use tokio_postgres::types::Type;
use uuid::Uuid;

pub(crate) use address::{Address, is_plain_name};
pub use probe::{DatabaseAnswer, ProbeError, ask_database};
pub(crate) use reader::PostgresReader;

use crate::engine::{Commit, Committed, Engine, Lease, LeaseKeeper, News};
use crate::error::{JournalError, OpenError};
use crate::event::{EventId, KeyHash, Seq};
use clock::DatabaseClock;
use commit::{Outcome, Progress, find, write};
use lease::PostgresKeeper;
use link::{Link, Statement, param};
use lost::{Seen, TOLD, Told};
use schema::{BEGIN, Claim, Unfit};

/// How long opening waits for a database that is not there.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// How often other replicas are looked after when nothing is committed here.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A connection that ends within a commit is made anew for as long as this, to find out what became of it.
const FIND_OUT_WITHIN: Duration = Duration::from_secs(8);
const FIND_OUT_AGAIN: Duration = Duration::from_millis(100);
/// How often a replica that commits nothing says that it is there. One that does not is forgotten after thirty days.
const ENROL_EVERY: Duration = Duration::from_secs(86_400);
/// A replica that stops in the middle of a commit holds up all others no longer than this: for less than a lease lasts.
///
/// Keys are looked up by their index from the first one on: a planner that has not seen the table yet takes a look-up of
/// hundreds for most of it, and reads it from end to end in every commit. What it is told for that must not make it compile.
const LIMITS: &str = "SET LOCAL idle_in_transaction_session_timeout = 2000; SET LOCAL lock_timeout = 10000; \
     SET LOCAL statement_timeout = 12000; SET LOCAL enable_seqscan = off; SET LOCAL jit = off";

/// The engine's writing side.
pub(crate) struct PostgresEngine {
    link: RefCell<Link>,
    clock: Arc<DatabaseClock>,
    /// This process, as the others see it, and what it knows of the journal.
    seen: Seen,
    /// When it has last said that it is there.
    enrolled: Instant,
    actions: i64,
    bytes: u64,
    purge: purge::Progress,
}

impl PostgresEngine {
    /// Opens or creates the journal called `journal`. A database that is not there is waited for a moment.
    ///
    /// # Errors
    /// [`OpenError`]; a database that is not ours is untouched.
    pub(crate) fn open(
        address: &Arc<Address>,
        journal: &str,
        allow_shared: bool,
        host: SharedClock,
    ) -> Result<Self, OpenError> {
        let path = || address.shown.clone().into();
        let store = |source| OpenError::Store { path: path(), source };
        let mut link = Link::new(Arc::clone(address)).map_err(|error| OpenError::Database {
            database: address.shown.clone(),
            what: kit::error::chain(&error),
        })?;
        let claim = Claim { shown: &address.shown, journal, allow_shared };
        let deadline = Instant::now() + OPEN_WITHIN;
        let warnings = loop {
            let mut unfit = None;
            let prepared = link.with(async |speaker| match schema::prepare(speaker, &claim).await {
                Ok(warnings) => Ok(Some(warnings)),
                Err(Unfit::Failed(error)) => Err(error),
                Err(Unfit::Refused(refused)) => {
                    unfit = Some(refused);
                    Ok(None)
                }
            });
            match (prepared, unfit) {
                (_, Some(refused)) => return Err(refused),
                (Ok(Some(warnings)), None) => break warnings,
                (Ok(None), None) => return Err(store(JournalError::NoAnswer)),
                // Neighbours start in any order.
                (Err(error), None)
                    if (error.is_connection_lost() || error.is_crowded_out()) && Instant::now() < deadline =>
                {
                    tracing::debug!(error = %kit::error::chain(&error), "the journal's database is not there yet");
                    std::thread::sleep(OPEN_AGAIN);
                }
                (Err(error), None) => {
                    let Some(said) = error.missing_right() else { return Err(store(error)) };
                    return Err(OpenError::Database { database: address.shown.clone(), what: address.lacks(said) });
                }
            }
        };
        for warning in warnings {
            tracing::warn!(database = %address.shown, "the journal's database: {warning}");
        }
        let mut engine = Self {
            link: RefCell::new(link),
            clock: Arc::new(DatabaseClock::new(host)),
            seen: Seen { replica: Uuid::new_v4(), ..Seen::default() },
            enrolled: Instant::now(),
            actions: 0,
            bytes: 0,
            purge: purge::Progress::default(),
        };
        engine.enrol().map_err(store)?;
        Ok(engine)
    }

    /// The database's clock, which all replicas go by.
    pub(crate) fn clock(&self) -> SharedClock {
        Arc::clone(&self.clock) as SharedClock
    }

    /// Makes this process known to the database, and looks for the first time.
    fn enrol(&mut self) -> Result<(), JournalError> {
        let replica = self.seen.replica;
        // Its number is only ever written by a commit: one that is missing here was lost.
        self.link.get_mut().again(async |speaker| {
            let enrol = Statement {
                sql: "INSERT INTO @replicas (id, commits, seen) VALUES ($1, 0, now())
                      ON CONFLICT (id) DO UPDATE SET seen = now()"
                    .into(),
                params: vec![param(replica, Type::UUID)],
            };
            let forget = "DELETE FROM @replicas WHERE seen < now() - interval '30 days'";
            let forget = Statement { sql: forget.into(), params: Vec::new() };
            lease::small(speaker, async || {
                speaker.execute(&enrol).await?;
                speaker.execute(&forget).await
            })
            .await
        })?;
        self.enrolled = Instant::now();
        self.look().map(drop)
    }

    /// Makes a commit, and leaves in `progress` what it comes to.
    fn try_commit(&mut self, commit: &mut Commit, progress: &mut Progress) -> Result<(), JournalError> {
        let Self { link, seen, purge, clock, .. } = self;
        let begin = format!("{BEGIN}; {LIMITS}");
        link.get_mut().with(async |speaker| {
            let written = async {
                let asked = clock.host();
                let found = find(speaker, &begin, commit, seen.params()).await?;
                clock.heard(found.database, asked);
                seen.check(&found.told)?;
                seen.check_settled(commit, &found.told)?;
                write(speaker, commit, found, (seen.replica, seen.commits + 1), purge, progress).await
            };
            let written = written.await;
            if written.is_err() && !progress.in_doubt {
                // Of what fails before its COMMIT nothing is left.
                drop(speaker.batch("ROLLBACK").await);
            }
            written
        })
    }

    /// Takes over what a commit has come to.
    fn take_over(&mut self, outcome: Outcome) -> Committed {
        let Outcome { mut committed, actions, bytes, stamp } = outcome;
        committed.acted_elsewhere = self.actions != actions;
        let acts = committed.synced && !committed.actions.is_empty();
        self.seen.commits += i64::from(committed.synced);
        self.actions = actions + i64::from(acts);
        (self.seen.last_seq, self.seen.stamp) = (committed.last_seq, stamp);
        self.bytes = u64::try_from(bytes).unwrap_or(0);
        if committed.synced {
            self.enrolled = Instant::now();
        }
        committed
    }

    /// Whether the commit with this number was made: asked under the lock that it held, so that it is over.
    fn was_made(&mut self, number: i64) -> Result<bool, JournalError> {
        let begin = format!("{BEGIN}; {LIMITS}");
        let Self { link, seen, .. } = self;
        let told = link.get_mut().again(async |speaker| {
            let asked = async {
                speaker.batch(&begin).await?;
                speaker.query("SELECT 1 FROM @head FOR UPDATE", &[]).await?;
                speaker.query_opt(&format!("SELECT {TOLD} FROM @head h"), &seen.params()).await
            };
            let row = asked.await;
            let ended = speaker.batch("ROLLBACK").await;
            let row = row?;
            ended?;
            row.map(|row| Told::read(&row, 0)).ok_or_else(no_head)
        })?;
        seen.check(&told)?;
        Ok(told.commits.is_some_and(|commits| commits >= number))
    }

    /// What became of a commit whose connection was lost; an error where that cannot be found out soon.
    fn find_out(&mut self) -> Result<bool, JournalError> {
        let deadline = Instant::now() + FIND_OUT_WITHIN;
        loop {
            match self.was_made(self.seen.commits + 1) {
                Ok(made) => return Ok(made),
                Err(error) if Instant::now() >= deadline || self.seen.is_usable().is_err() => return Err(error),
                Err(_) => std::thread::sleep(FIND_OUT_AGAIN),
            }
        }
    }
}

fn no_head() -> JournalError {
    JournalError::Inconsistent("the database has no head of the journal".to_owned())
}

impl Engine for PostgresEngine {
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError> {
        let mut again = true;
        loop {
            let mut progress = Progress::default();
            let error = match (self.try_commit(commit, &mut progress), progress.outcome) {
                (Ok(()), Some(outcome)) => return Ok(self.take_over(outcome)),
                (Ok(()), None) => return Err(JournalError::NoAnswer),
                (Err(error), outcome) => {
                    self.purge = purge::Progress::default();
                    if !error.is_connection_lost() || !again {
                        return Err(error);
                    }
                    let chain = kit::error::chain(&error);
                    tracing::warn!(error = %chain, "the connection to the journal's database is lost, connecting again: {chain}");
                    // Nobody is answered before it is known.
                    if self.find_out()?
                        && let Some(outcome) = outcome.filter(|_| progress.in_doubt)
                    {
                        return Ok(self.take_over(outcome));
                    }
                    error
                }
            };
            tracing::debug!(error = %kit::error::chain(&error), "the commit was not made, making it again");
            again = false;
        }
    }

    fn reopen(&mut self, _alone: bool) -> Result<(), JournalError> {
        if self.was_made(self.seen.commits + 1)? {
            self.seen.commits += 1;
        }
        // It may be another server than the one that was asked at the start.
        for warning in self.link.get_mut().again(async |speaker| schema::weaknesses(speaker).await)? {
            tracing::warn!("{warning}");
        }
        self.enrol()
    }

    fn idle(&mut self, _age: Timestamp) -> Result<(), JournalError> {
        Ok(())
    }

    fn last_seq(&self) -> Seq {
        self.seen.last_seq
    }

    fn known(&self, source: &str, key: &str) -> Result<Vec<(EventId, Seq)>, JournalError> {
        let [first, last] = append::all_scopes(&KeyHash::of(source, key));
        let rows = self.link.borrow_mut().again(async |speaker| {
            let params = [param(first, Type::UUID), param(last, Type::UUID)];
            speaker.query("SELECT id, seq FROM @keys WHERE key BETWEEN $1 AND $2 ORDER BY seq", &params).await
        })?;
        Ok(rows.iter().map(|row| (EventId::from_bytes(row.get::<_, Uuid>(0).into_bytes()), row.get(1))).collect())
    }

    fn remembered(&self, name: &str) -> Result<(Option<Vec<u8>>, Option<Timestamp>), JournalError> {
        let (value, newest) = self.link.borrow_mut().again(async |speaker| {
            let value =
                speaker.query_opt("SELECT value FROM @meta WHERE name = $1", &[param(name, Type::TEXT)]).await?;
            let newest = speaker.query_opt("SELECT age FROM @keys ORDER BY seq DESC LIMIT 1", &[]).await?;
            Ok((value, newest))
        })?;
        Ok((value.map(|row| row.get(0)), newest.map(|row| Timestamp::from_millis(row.get(0)))))
    }

    fn dedupe_memory(&self) -> (u64, u64) {
        // In the database, and not counted: that would be a walk through all of them.
        (0, 0)
    }

    fn used_bytes(&self) -> Result<u64, JournalError> {
        Ok(self.bytes)
    }

    fn lease(&mut self, sink: &str) -> Result<Option<Lease>, JournalError> {
        // Nothing can be recorded here any more: another replica is to deliver.
        self.seen.is_usable()?;
        let begin = format!("{BEGIN}; {LIMITS}");
        lease::take(self.link.get_mut(), &begin, self.seen.replica, sink)
    }

    fn keeper(&self) -> Result<Option<Box<dyn LeaseKeeper>>, JournalError> {
        let address = Arc::clone(&self.link.borrow().address);
        Ok(Some(Box::new(PostgresKeeper::new(address, &self.seen)?)))
    }

    fn give_back(&mut self, sink: &str, epoch: u64) -> Result<(), JournalError> {
        lease::give_back(self.link.get_mut(), self.seen.replica, sink, epoch)
    }

    fn look_every(&self) -> Option<Duration> {
        Some(LOOK_EVERY)
    }

    fn look(&mut self) -> Result<Option<News>, JournalError> {
        if self.enrolled.elapsed() >= ENROL_EVERY {
            self.enrol()?;
        }
        let Self { link, seen, clock, .. } = self;
        let head = link.get_mut().again(async |speaker| {
            let sql = format!(
                "SELECT h.actions, h.bytes, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, {TOLD} FROM @head h"
            );
            let asked = clock.host();
            let row = speaker.query_opt(&sql, &seen.params()).await?.ok_or_else(no_head)?;
            clock.heard(Timestamp::from_millis(row.get(2)), asked);
            Ok(row)
        })?;
        let told = Told::read(&head, 3);
        seen.check(&told)?;
        seen.learn(told);
        let actions = head.get(0);
        let acted_elsewhere = std::mem::replace(&mut self.actions, actions) != actions;
        self.bytes = u64::try_from(head.get::<_, i64>(1)).unwrap_or(0);
        Ok(Some(News { last_seq: self.seen.last_seq, acted_elsewhere }))
    }

    fn over(&self) -> Option<String> {
        self.seen.lost.get().cloned()
    }

    fn close(self: Box<Self>) {}
}
