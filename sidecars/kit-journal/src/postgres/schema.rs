//! The tables, their versions, and whether a database is one to keep a journal in.
//!
//! Everything lies in a schema of its own that carries a comment by which it is known. Migrations run in one
//! transaction under an advisory lock, so that replicas may start side by side.

use super::link::{Speaker, param};
use crate::error::{JournalError, OpenError};
use tokio_postgres::types::Type;
use uuid::Uuid;

/// The newest version; `MIGRATIONS[n]` leads from version n to n + 1.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;
/// What the schema's comment says.
const COMMENT: &str = "outrigger journal";
/// Key of the advisory lock: "OUTR" and the schema's hash.
const LOCK: i32 = 0x4f55_5452;
/// The oldest server that all statements here are for.
const OLDEST: i32 = 140_000;

const MIGRATIONS: [&str; 1] = [
    // `head` has one row: every commit begins by locking it, and so positions are given without gaps and become
    // visible in their order. `replicas.commits` tells after a lost connection whether a commit was made. The columns
    // of `events` are those of the SQLite engine, checksum included. `keys` says what is known, one row an event;
    // `exceptions` has a row only for what is neither simply pending nor simply delivered.
    "
    CREATE TABLE @head (
        one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL, journal text NOT NULL,
        last_seq bigint NOT NULL, actions bigint NOT NULL, bytes bigint NOT NULL
    ) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
    CREATE TABLE @replicas (
        id uuid PRIMARY KEY, commits bigint NOT NULL, seen timestamptz NOT NULL
    ) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
    CREATE TABLE @meta (name text PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE @events (
        seq bigint PRIMARY KEY, at bigint NOT NULL, head text NOT NULL, sum bytea NOT NULL, body bytea NOT NULL
    ) WITH (autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_scale_factor = 0.05, toast_tuple_target = 8160);
    ALTER TABLE @events ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE TABLE @keys (seq bigint PRIMARY KEY, age bigint NOT NULL, key uuid NOT NULL, id uuid NOT NULL);
    CREATE UNIQUE INDEX keys_by_key ON @keys (key, id);
    CREATE TABLE @sinks (
        id integer PRIMARY KEY, name text NOT NULL UNIQUE, start bigint NOT NULL, cursor bigint NOT NULL,
        delivered bigint NOT NULL DEFAULT 0, open bigint NOT NULL DEFAULT 0, parked bigint NOT NULL DEFAULT 0,
        dropped bigint NOT NULL DEFAULT 0, filtered bigint NOT NULL DEFAULT 0, ahead bigint NOT NULL DEFAULT 0,
        paused boolean NOT NULL DEFAULT false
    ) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
    CREATE TABLE @leases (
        sink text PRIMARY KEY, holder uuid NOT NULL, epoch bigint NOT NULL, until timestamptz NOT NULL
    ) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
    CREATE TABLE @exceptions (
        sink integer NOT NULL, seq bigint NOT NULL, state smallint NOT NULL, lane bigint NOT NULL,
        attempts bigint NOT NULL, first_at bigint, next_at bigint, reason text NOT NULL, PRIMARY KEY (sink, seq)
    ) WITH (autovacuum_vacuum_scale_factor = 0.05);
    CREATE INDEX exceptions_by_state ON @exceptions (sink, state, seq);
    CREATE INDEX exceptions_by_due ON @exceptions (sink, next_at) WHERE state = 3;
    CREATE TABLE @attempts (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, sink integer NOT NULL, at bigint NOT NULL,
        min_seq bigint NOT NULL, max_seq bigint NOT NULL, entries text NOT NULL
    );
    CREATE TABLE @audit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at bigint NOT NULL, actor text NOT NULL,
        action text NOT NULL, detail text NOT NULL
    );
    ",
];

/// What opening asks for.
pub(super) struct Claim<'a> {
    /// Host, database and schema, for messages.
    pub(super) shown: &'a str,
    /// The journal's name: the one of the daemon.
    pub(super) journal: &'a str,
    /// Whether other tables may lie in the same database.
    pub(super) allow_shared: bool,
}

/// Everything between "cannot be asked" and "must not be used".
pub(super) enum Unfit {
    Refused(OpenError),
    Failed(JournalError),
}

impl From<JournalError> for Unfit {
    fn from(error: JournalError) -> Self {
        Self::Failed(error)
    }
}

/// What every transaction begins with, so that its commit is on the disk when it returns, whatever the server of this
/// transaction is set to: another one may have taken over, or somebody has turned it off for a bulk load.
///
/// `local` asks no standby, and is what a site with standbys may have chosen; less than that is no commit. And what waited
/// for another replica's commit must see it, whatever the site has set.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'";

/// What the settings of a server take away from a commit, as a warning each.
pub(super) async fn weaknesses(speaker: &Speaker<'_>) -> Result<Vec<String>, JournalError> {
    let sql =
        "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name";
    let found = speaker.query(sql, &[]).await?;
    let warning =
        |name: &str| format!("the database runs with {name}=off: after a power cut accepted events may be gone");
    Ok(found.iter().map(|row| warning(row.get(0))).collect())
}

/// Checks the server and the database, and brings the schema to the current version.
///
/// Returns what is to be said as warnings.
pub(super) async fn prepare(speaker: &Speaker<'_>, claim: &Claim<'_>) -> Result<Vec<String>, Unfit> {
    let mut warnings = check_server(speaker, claim).await?;
    match migrate(speaker, claim).await {
        Ok(neighbour) => {
            speaker.batch("COMMIT").await?;
            warnings.extend(neighbour);
            Ok(warnings)
        }
        Err(unfit) => {
            drop(speaker.batch("ROLLBACK").await);
            Err(unfit)
        }
    }
}

/// Checks that the server can hold a journal, and begins a transaction; what is to be said as warnings.
async fn check_server(speaker: &Speaker<'_>, claim: &Claim<'_>) -> Result<Vec<String>, Unfit> {
    let refuse = |what: String| Unfit::Refused(OpenError::Database { database: claim.shown.to_owned(), what });
    let settings = speaker
        .query(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
                current_setting('transaction_read_only')",
            &[],
        )
        .await?;
    let Some(settings) = settings.first() else { return Err(JournalError::NoAnswer.into()) };
    let text = |at: usize| settings.get::<_, &str>(at);
    if settings.get::<_, i32>(0) < OLDEST {
        return Err(refuse(format!(
            "the server is version {}, and 14 is the oldest that works",
            settings.get::<_, i32>(0) / 10_000
        )));
    }
    if text(1) != "UTF8" {
        return Err(refuse(format!("its encoding is {}, and the journal needs UTF8", text(1))));
    }
    if text(2) == "on" {
        return Err(refuse("it takes no writes: name the primary server, or several hosts".to_owned()));
    }
    let warnings = weaknesses(speaker).await?;
    match speaker.batch("BEGIN").await {
        Ok(()) => Ok(warnings),
        Err(error) if error.is_refused_transaction() => Err(refuse(format!(
            "it refuses transactions ({}): a pooler in front of it must be in session or transaction mode",
            kit::error::chain(&error)
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Returns a warning, where another program's tables have come to lie beside the journal.
async fn migrate(speaker: &Speaker<'_>, claim: &Claim<'_>) -> Result<Option<String>, Unfit> {
    let refuse = |what: String| Unfit::Refused(OpenError::Database { database: claim.shown.to_owned(), what });
    let schema = speaker.schema();
    speaker
        .query("SELECT pg_advisory_xact_lock($1, hashtext($2))", &[param(LOCK, Type::INT4), param(schema, Type::TEXT)])
        .await?;
    let neighbour = foreign(speaker, claim).await?;
    let known = speaker.query_opt(KNOWN, &[param(schema, Type::TEXT)]).await?;
    let mut version = 0;
    match known {
        None => speaker.batch(&format!("CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS '{COMMENT}'")).await?,
        Some(row) if row.get::<_, &str>(0) == COMMENT => {
            let head = speaker.query_opt("SELECT version, journal FROM @head", &[]).await?;
            let Some(head) = head else {
                if unfinished(speaker).await?.is_some() {
                    return Err(Unfit::Refused(OpenError::Unfinished { journal: claim.shown.to_owned() }));
                }
                return Err(refuse("its head is missing: restore it from a backup".to_owned()));
            };
            version = head.get(0);
            let journal: &str = head.get(1);
            if journal != claim.journal {
                return Err(refuse(format!(
                    "it holds the journal {journal:?}, and this is {:?}: give every daemon a schema of its own \
                     (SIDECAR_JOURNAL__SCHEMA)",
                    claim.journal
                )));
            }
        }
        // Made by whoever may make schemas, for us.
        Some(row) if row.get::<_, i64>(1) == 0 => {
            speaker.batch(&format!("COMMENT ON SCHEMA {schema} IS '{COMMENT}'")).await?;
        }
        Some(_) => {
            return Err(refuse(
                "the schema is another program's: set SIDECAR_JOURNAL__SCHEMA to one of our own".to_owned(),
            ));
        }
    }
    if version > VERSION {
        let path = claim.shown.into();
        return Err(Unfit::Refused(OpenError::Newer { path, found: version, known: VERSION }));
    }
    // A journal that is in use stays so, whoever has made a table beside it since: replicas must be able to start.
    if version == 0
        && let Some(what) = neighbour
    {
        return Err(refuse(what));
    }
    if version < VERSION {
        // Whoever reads the tables for long – a backup – would hold up the change, and the change everybody else.
        speaker.batch("SET LOCAL lock_timeout = 5000").await?;
    }
    for (step, sql) in (0_i64..).zip(MIGRATIONS).skip(usize::try_from(version).unwrap_or(0)) {
        speaker.batch(sql).await?;
        if step == 0 {
            let head = "INSERT INTO @head (version, journal, last_seq, actions, bytes) VALUES (1, $1, 0, 0, 0)";
            speaker.query(head, &[param(claim.journal, Type::TEXT)]).await?;
        }
    }
    if version < VERSION {
        speaker.query("UPDATE @head SET version = $1", &[param(VERSION, Type::INT8)]).await?;
    }
    Ok(neighbour)
}

/// Says what is wrong with a database that holds other programs' tables, unless it may.
async fn foreign(speaker: &Speaker<'_>, claim: &Claim<'_>) -> Result<Option<String>, JournalError> {
    if claim.allow_shared {
        return Ok(None);
    }
    let row = speaker.query_opt(FOREIGN, &[param(speaker.schema(), Type::TEXT), param(COMMENT, Type::TEXT)]).await?;
    Ok(row.map(|row| {
        format!(
            "it holds tables of another program ({}.{}): give the journal a database of its own, or set \
             SIDECAR_JOURNAL__ALLOW_SHARED_DATABASE=true",
            row.get::<_, &str>(0),
            row.get::<_, &str>(1)
        )
    }))
}

/// What is in a schema.
#[derive(Debug)]
pub(super) enum Found {
    /// No schema, or an empty one.
    Nothing,
    /// A journal.
    Journal { version: i64, name: String },
    /// A copy that was not finished, and what it says of itself.
    Unfinished { version: i64, marker: String },
    /// What was a journal.
    NoHead,
    /// Something of another program.
    Foreign,
}

/// Says what is in the schema; changes nothing.
pub(super) async fn look(speaker: &Speaker<'_>) -> Result<Found, JournalError> {
    let known = speaker.query_opt(KNOWN, &[param(speaker.schema(), Type::TEXT)]).await?;
    match known {
        None => Ok(Found::Nothing),
        Some(row) if row.get::<_, &str>(0) == COMMENT && row.get::<_, i64>(1) > 0 => {
            let head = speaker.query_opt("SELECT version, journal FROM @head", &[]).await?;
            match head {
                Some(head) => Ok(Found::Journal { version: head.get(0), name: head.get(1) }),
                None => unfinished(speaker).await.map(|copy| copy.unwrap_or(Found::NoHead)),
            }
        }
        Some(row) if row.get::<_, i64>(1) == 0 => Ok(Found::Nothing),
        Some(_) => Ok(Found::Foreign),
    }
}

/// The copy that was not finished, where there is one. Journals have no such table.
async fn unfinished(speaker: &Speaker<'_>) -> Result<Option<Found>, JournalError> {
    let exists = "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'copying'";
    if speaker.query_opt(exists, &[param(speaker.schema(), Type::TEXT)]).await?.is_none() {
        return Ok(None);
    }
    let row = speaker.query_opt("SELECT version, marker FROM @copying", &[]).await?;
    Ok(row.map(|row| Found::Unfinished { version: row.get(0), marker: row.get(1) }))
}

/// Makes the schema with its tables, and without a head: what has none is no journal.
pub(super) async fn begin_copy(speaker: &Speaker<'_>, claim: &Claim<'_>, marker: &str, run: Uuid) -> Result<(), Unfit> {
    check_server(speaker, claim).await?;
    let begun = async {
        let schema = speaker.schema();
        let lock = [param(LOCK, Type::INT4), param(schema, Type::TEXT)];
        speaker.query("SELECT pg_advisory_xact_lock($1, hashtext($2))", &lock).await?;
        if let Some(what) = foreign(speaker, claim).await? {
            return Err(Unfit::Refused(OpenError::Database { database: claim.shown.to_owned(), what }));
        }
        // One that is there was made by whoever may make schemas, for us.
        if speaker.query(KNOWN, &[param(schema, Type::TEXT)]).await?.is_empty() {
            speaker.batch(&format!("CREATE SCHEMA {schema}")).await?;
        }
        speaker.batch(&format!("COMMENT ON SCHEMA {schema} IS '{COMMENT}'")).await?;
        for sql in MIGRATIONS {
            speaker.batch(sql).await?;
        }
        speaker
            .batch("CREATE TABLE @copying (version bigint NOT NULL, marker text NOT NULL, run uuid NOT NULL)")
            .await?;
        let params = [param(VERSION, Type::INT8), param(marker, Type::TEXT), param(run, Type::UUID)];
        speaker.query("INSERT INTO @copying (version, marker, run) VALUES ($1, $2, $3)", &params).await?;
        Ok(())
    };
    match begun.await {
        Ok(()) => Ok(speaker.batch("COMMIT").await?),
        Err(unfit) => {
            drop(speaker.batch("ROLLBACK").await);
            Err(unfit)
        }
    }
}

/// What a schema's comment is, and how much is in it.
const KNOWN: &str = "SELECT coalesce(obj_description(oid, 'pg_namespace'), ''),
        (SELECT count(*) FROM pg_class WHERE relnamespace = pg_namespace.oid)
     FROM pg_namespace WHERE nspname = $1";

/// One table, view or sequence that is neither PostgreSQL's own, nor an extension's, nor in a journal's schema.
const FOREIGN: &str = "
    SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
        AND n.nspname <> $1 AND coalesce(obj_description(n.oid, 'pg_namespace'), '') <> $2
        AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2 LIMIT 1";
