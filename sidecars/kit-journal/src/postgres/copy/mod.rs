//! A journal in PostgreSQL as the source or the target of a copy.
//!
//! The source is read in one transaction that holds the lock which every commit begins with, so that no replica changes
//! it meanwhile. An unfinished copy has no head: no daemon, of whatever version, takes it for a journal, and the head is
//! the last thing that is made.

mod rows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::address::Address;
use super::append::OVERHEAD;
use super::link::{Link, Speaker, Statement, param};
use super::schema::{self, Found, Unfit};
use crate::copy::{End, Ground, Marker, Position, Record, Source, Store, Table, Target};
use crate::error::{JournalError, OpenError};
use crate::event::Seq;

/// A replica that was seen within this time may be at work. It commits or keeps a lease at least this often.
const SEEN_WITHIN: Duration = Duration::from_secs(6);
/// A lease of a replica that was killed lasts for so long at most, and what was seen last grows old.
const WAIT: Duration = Duration::from_secs(12);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// What the source's one transaction begins with. A copy takes its time, and nobody waits for it.
const READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL idle_in_transaction_session_timeout = 0; \
     SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 3000";
const WRITING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; \
     SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 3000";

/// A journal that is read.
struct PostgresStore {
    link: Link,
}

/// A journal that is written.
struct PostgresTarget {
    store: PostgresStore,
    /// This run of the copy; another one that begins takes over from it.
    run: Uuid,
}

/// Whether two URLs and schemas name one place, however they are spelled: asked of the servers, because names, addresses,
/// ports and poolers tell neither that nor the contrary. A lock that is held in one database is held in no other one, not
/// even in one that began as its copy and so has its identifiers. An error comes with `source` or `target`.
pub(crate) fn are_one(source: &Arc<Address>, target: &Arc<Address>) -> Result<bool, (&'static str, OpenError)> {
    if source.schema != target.schema {
        return Ok(false);
    }
    let failed = |side: &'static str, address: &Address| {
        let path = address.shown.clone().into();
        move |source| (side, OpenError::Store { path, source })
    };
    let (high, _) = Uuid::new_v4().as_u64_pair();
    let number = i64::from_ne_bytes(high.to_ne_bytes());
    let take = async |speaker: &Speaker<'_>| {
        let taken = speaker.query_opt("SELECT pg_try_advisory_xact_lock($1)", &[param(number, Type::INT8)]).await?;
        taken.map(|row| row.get::<_, bool>(0)).ok_or(JournalError::NoAnswer)
    };
    let mut holder = Link::new(Arc::clone(source)).map_err(failed("source", source))?;
    let held = holder.with(async |speaker| {
        speaker.batch("BEGIN").await?;
        take(speaker).await
    });
    held.map_err(failed("source", source))?;
    holder.bind();
    let free = Link::new(Arc::clone(target)).and_then(|mut link| link.with(take)).map_err(failed("target", target))?;
    // Where it was not held to the end, the answer means nothing.
    holder.with(async |speaker| speaker.batch("ROLLBACK").await).map_err(failed("source", source))?;
    Ok(!free)
}

/// Connects, and looks at what is there.
fn connect(address: &Arc<Address>) -> Result<(Link, Found), OpenError> {
    let failed = |source| OpenError::Store { path: address.shown.clone().into(), source };
    let mut link = Link::new(Arc::clone(address)).map_err(failed)?;
    let found = link.with(async |speaker| schema::look(speaker).await).map_err(failed)?;
    Ok((link, found))
}

/// Opens a journal to be copied, and keeps replicas from changing it.
pub(crate) fn open_source(address: &Arc<Address>) -> Result<Source, OpenError> {
    let shown = || address.shown.clone();
    let refused = |what: String| OpenError::Database { database: shown(), what };
    let failed = |source| OpenError::Store { path: shown().into(), source };
    let (mut link, found) = connect(address)?;
    let name = match found {
        Found::Journal { version, name } if version == schema::VERSION => name,
        Found::Journal { version, .. } if version > schema::VERSION => {
            return Err(OpenError::Newer { path: shown().into(), found: version, known: schema::VERSION });
        }
        Found::Journal { version, .. } => {
            let what = format!(
                "its schema version is {version}: start its daemon once, which brings it to {}",
                schema::VERSION
            );
            return Err(refused(what));
        }
        Found::Unfinished { .. } => return Err(OpenError::Unfinished { journal: shown() }),
        Found::Nothing => return Err(refused("it holds no journal".to_owned())),
        Found::NoHead => return Err(refused("its head is missing: restore it from a backup".to_owned())),
        Found::Foreign => return Err(refused("the schema is another program's".to_owned())),
    };
    wait_until_unused(&mut link).map_err(|error| match error {
        InUse::Yes(what) => refused(what),
        InUse::Failed(error) => failed(error),
    })?;
    let locked = link.with(async |speaker| {
        speaker.batch(READING).await?;
        speaker.query("SELECT 1 FROM @head FOR SHARE", &[]).await.map(drop)
    });
    locked.map_err(|error| {
        // A lock that is not to be had, or a commit that was made between the two statements.
        let code = if let JournalError::Database(error) = &error { error.code().cloned() } else { None };
        match code.map(|code| code.code().to_owned()).as_deref() {
            Some("55P03" | "40001") => refused(IN_USE.to_owned()),
            _ => failed(error),
        }
    })?;
    link.bind();
    Ok(Source { store: Box::new(PostgresStore { link }), name })
}

const IN_USE: &str = "the journal is in use: stop every replica of its daemon first";

enum InUse {
    Yes(String),
    Failed(JournalError),
}

/// Waits until leases have run out and nobody was seen for a while; a replica that is at work is noticed by what it
/// does meanwhile.
fn wait_until_unused(link: &mut Link) -> Result<(), InUse> {
    let signs = "SELECT
            coalesce((SELECT max(until) FROM @leases)::text, '') || coalesce((SELECT max(seen)::text || sum(commits) FROM @replicas), ''),
            coalesce((SELECT max(until) > clock_timestamp() FROM @leases), false)
                OR coalesce((SELECT max(seen) > clock_timestamp() - make_interval(secs => $1) FROM @replicas), false)";
    let seconds = SEEN_WITHIN.as_secs_f64();
    let begin = Instant::now();
    let mut first: Option<String> = None;
    loop {
        let row = link.again(async |speaker| speaker.query_opt(signs, &[param(seconds, Type::FLOAT8)]).await);
        let Some(row) = row.map_err(InUse::Failed)? else { return Err(InUse::Failed(JournalError::NoAnswer)) };
        let (sign, alive): (String, bool) = (row.get(0), row.get(1));
        if first.get_or_insert_with(|| sign.clone()) != &sign || begin.elapsed() > WAIT {
            return Err(InUse::Yes(IN_USE.to_owned()));
        }
        if !alive {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Opens or begins a copy.
pub(crate) fn open_target(
    address: &Arc<Address>,
    allow_shared: bool,
    marker: &Marker,
) -> Result<(Box<dyn Target>, Ground), OpenError> {
    let shown = || address.shown.clone();
    let refused = |what: &str| OpenError::Database { database: shown(), what: what.to_owned() };
    let failed = |source| OpenError::Store { path: shown().into(), source };
    let (mut link, found) = connect(address)?;
    let run = Uuid::new_v4();
    let ground = match found {
        Found::Journal { version, .. } if version > schema::VERSION => {
            return Err(OpenError::Newer { path: shown().into(), found: version, known: schema::VERSION });
        }
        Found::Journal { name, .. } => Ground::Journal(Some(name)),
        Found::Nothing => {
            let text = encode(marker).map_err(failed)?;
            let claim = schema::Claim { shown: &address.shown, journal: &marker.journal, allow_shared };
            let mut unfit = None;
            let begun = link.with(async |speaker| match schema::begin_copy(speaker, &claim, &text, run).await {
                Ok(()) => Ok(()),
                Err(Unfit::Failed(error)) => Err(error),
                Err(Unfit::Refused(refused)) => {
                    unfit = Some(refused);
                    Ok(())
                }
            });
            if let Some(refused) = unfit {
                return Err(refused);
            }
            begun.map_err(failed)?;
            Ground::New
        }
        Found::Unfinished { version, .. } if version != schema::VERSION => {
            return Err(refused("it is an unfinished copy made by another version: drop the schema first"));
        }
        Found::Unfinished { marker, .. } => {
            let found = serde_json::from_str(&marker);
            let found =
                found.map_err(|_| refused("the unfinished copy does not say of what: drop the schema first"))?;
            let take =
                Statement { sql: "UPDATE @copying SET run = $1".to_owned(), params: vec![param(run, Type::UUID)] };
            link.with(async |speaker| speaker.execute(&take).await).map_err(failed)?;
            Ground::Unfinished(found)
        }
        Found::NoHead => return Err(refused("its head is missing: restore it from a backup, or drop the schema")),
        Found::Foreign => return Err(refused("the schema is another program's: name another one")),
    };
    Ok((Box::new(PostgresTarget { store: PostgresStore { link }, run }), ground))
}

fn encode(marker: &Marker) -> Result<String, JournalError> {
    serde_json::to_string(marker).map_err(|error| JournalError::Inconsistent(error.to_string()))
}

impl PostgresStore {
    fn ask<T>(&mut self, work: impl AsyncFnOnce(&Speaker<'_>) -> Result<T, JournalError>) -> Result<T, JournalError> {
        self.link.with(work)
    }

    fn numbers<const N: usize>(&mut self, sql: &str) -> Result<[i64; N], JournalError> {
        let row: Option<Row> = self.ask(async |speaker| speaker.query_opt(sql, &[]).await)?;
        let row = row.ok_or(JournalError::NoAnswer)?;
        Ok(std::array::from_fn(|at| row.get(at)))
    }
}

impl Store for PostgresStore {
    fn read(&mut self, table: Table, after: &Position) -> Result<Vec<Record>, JournalError> {
        self.ask(async |speaker| rows::read(speaker, table, after).await)
    }

    fn last_seq(&mut self) -> Result<Seq, JournalError> {
        self.numbers("SELECT last_seq FROM @head").map(|[last]| last)
    }

    fn estimate(&mut self, table: Table) -> Result<u64, JournalError> {
        let [count] = self.numbers(&rows::estimate(table))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    fn ends(&mut self) -> Result<[i64; 5], JournalError> {
        self.numbers(
            "SELECT coalesce((SELECT min(seq) FROM @events), 0), coalesce((SELECT max(seq) FROM @events), 0),
                coalesce((SELECT max(id) FROM @attempts), 0), coalesce((SELECT max(id) FROM @audit), 0),
                (SELECT count(*) FROM @exceptions)",
        )
    }
}

impl PostgresTarget {
    /// One transaction, as long as no other run has taken over.
    fn commit(&mut self, statements: &[Statement<'_>]) -> Result<(), JournalError> {
        let run = self.run;
        self.store.ask(async |speaker| {
            speaker.batch(WRITING).await?;
            let own = async {
                let mine = [param(run, Type::UUID)];
                if speaker.query("SELECT 1 FROM @copying WHERE run = $1 FOR UPDATE", &mine).await?.is_empty() {
                    return Err(JournalError::Unavailable("another run of the copy has taken over".to_owned()));
                }
                for statement in statements {
                    speaker.execute(statement).await?;
                }
                Ok(())
            };
            match own.await {
                Ok(()) => speaker.batch("COMMIT").await,
                Err(error) => {
                    drop(speaker.batch("ROLLBACK").await);
                    Err(error)
                }
            }
        })
    }
}

fn statement(sql: &str) -> Statement<'static> {
    Statement { sql: sql.to_owned(), params: Vec::new() }
}

impl Store for PostgresTarget {
    fn read(&mut self, table: Table, after: &Position) -> Result<Vec<Record>, JournalError> {
        self.store.read(table, after)
    }

    fn last_seq(&mut self) -> Result<Seq, JournalError> {
        self.store.last_seq()
    }

    fn estimate(&mut self, table: Table) -> Result<u64, JournalError> {
        self.store.estimate(table)
    }

    fn ends(&mut self) -> Result<[i64; 5], JournalError> {
        self.store.ends()
    }
}

impl Target for PostgresTarget {
    fn end(&mut self, table: Table) -> Result<Position, JournalError> {
        self.store.ask(async |speaker| rows::end(speaker, table).await)
    }

    fn write(&mut self, table: Table, records: &[Record]) -> Result<(), JournalError> {
        let statement = rows::write(table, records)?;
        self.commit(&[statement])
    }

    fn shared_ages(&mut self) -> Result<Vec<(Seq, i64)>, JournalError> {
        Ok(Vec::new())
    }

    fn begin_again(&mut self, marker: &Marker) -> Result<(), JournalError> {
        let text = encode(marker)?;
        let sql = "TRUNCATE @meta, @events, @keys, @sinks, @exceptions, @attempts, @audit";
        let mark =
            Statement { sql: "UPDATE @copying SET marker = $1".to_owned(), params: vec![param(text, Type::TEXT)] };
        self.commit(&[statement(sql), mark])
    }

    fn finish(&mut self, marker: &Marker, end: &End) -> Result<(), JournalError> {
        // The planner knows nothing of what has just been written. It will by itself, later.
        drop(
            self.store.ask(async |speaker| {
                speaker.batch("ANALYZE @events, @keys, @exceptions, @attempts, @sinks, @meta").await
            }),
        );
        let bytes = i64::try_from(end.event_bytes)
            .unwrap_or(i64::MAX)
            .saturating_add(i64::try_from(end.events).unwrap_or(0).saturating_mul(OVERHEAD));
        let numbers = |table: &str| {
            statement(&format!(
                "SELECT setval(pg_get_serial_sequence('@{table}', 'id'), (SELECT coalesce(max(id), 0) FROM @{table}) + 1, false)"
            ))
        };
        let head = Statement {
            sql: "INSERT INTO @head (version, journal, last_seq, actions, bytes) VALUES ($1, $2, $3, 0, $4)".to_owned(),
            params: vec![
                param(schema::VERSION, Type::INT8),
                param(marker.journal.as_str(), Type::TEXT),
                param(end.last_seq, Type::INT8),
                param(bytes, Type::INT8),
            ],
        };
        self.commit(&[numbers("attempts"), numbers("audit"), head, statement("DROP TABLE @copying")])
    }

    fn as_store(&mut self) -> &mut dyn Store {
        self
    }
}
