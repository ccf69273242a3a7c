//! One commit: what it asks under the lock, and what it says with its `COMMIT`.

use std::collections::HashMap;

use kit::clock::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::books::{self, Books, Wanted};
use super::link::{Param, Saying, Speaker, Statement, param, together};
use super::lost::{self, TOLD, Told};
use super::{append, no_head, purge};
use crate::engine::{Commit, Committed};
use crate::error::JournalError;
use crate::event::{EventId, KeyHash, Seq};
use crate::forgetting::Numbers;
use crate::judging::Known;

/// What a commit has found under the lock.
pub(super) struct Found {
    pub(super) told: Told,
    pub(super) actions: i64,
    pub(super) bytes: i64,
    pub(super) known: HashMap<KeyHash, Known>,
    pub(super) books: Books,
    pub(super) database: Timestamp,
}

/// What a commit that is made comes to.
pub(super) struct Outcome {
    pub(super) committed: Committed,
    pub(super) actions: i64,
    pub(super) bytes: i64,
    /// Of the event at the last position.
    pub(super) stamp: Option<String>,
}

/// How far a commit has come.
#[derive(Default)]
pub(super) struct Progress {
    /// Its `COMMIT` may have been heard.
    pub(super) in_doubt: bool,
    /// What it comes to, if so.
    pub(super) outcome: Option<Outcome>,
}

/// Takes the lock, and reads all that the commit rests on; `seen` are the parameters of [`TOLD`]. One question.
pub(super) async fn find(
    speaker: &Speaker<'_>,
    begin: &str,
    commit: &Commit,
    seen: [Param<'static>; 2],
) -> Result<Found, JournalError> {
    let keys = append::keys(commit);
    let wanted = Wanted::of(commit);
    let (sinks, seqs): (Vec<&str>, Vec<Seq>) = wanted.rows.iter().map(|(sink, seq)| (sink.as_str(), *seq)).unzip();
    let (moving, to): (Vec<&str>, Vec<Seq>) = wanted.up_to.iter().map(|(sink, seq)| (sink.as_str(), *seq)).unzip();
    let of_sinks = !commit.settlements.is_empty() || !commit.actions.is_empty() || commit.purge.is_some();
    let empty = async || Ok::<Vec<Row>, JournalError>(Vec::new());
    let lock = "SELECT actions, bytes FROM @head FOR UPDATE";
    // After it, because what a statement sees was decided before it has waited for the lock.
    let told = format!("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, {TOLD} FROM @head h");
    let known_params = [param(keys, Type::UUID_ARRAY)];
    let rows_params = [
        param(sinks, Type::TEXT_ARRAY),
        param(seqs, Type::INT8_ARRAY),
        param(moving, Type::TEXT_ARRAY),
        param(to, Type::INT8_ARRAY),
    ];
    let stored_params = [param(wanted.events.clone(), Type::INT8_ARRAY)];
    let sinks_sql =
        format!("SELECT {} FROM @sinks s LEFT JOIN @leases l ON l.sink = s.name ORDER BY s.id", books::SINKS);
    let row_columns = books::ROW.split(", ").map(|column| format!("e.{column}")).collect::<Vec<_>>().join(", ");
    let rows_sql = format!(
        "SELECT e.sink, {row_columns} FROM unnest($1::text[], $2::bigint[]) AS w (name, seq)
            JOIN @sinks s ON s.name = w.name JOIN @exceptions e ON e.sink = s.id AND e.seq = w.seq
         UNION
         SELECT e.sink, {row_columns} FROM unnest($3::text[], $4::bigint[]) AS w (name, upto)
            JOIN @sinks s ON s.name = w.name JOIN @exceptions e ON e.sink = s.id AND e.seq > s.cursor AND e.seq <= w.upto"
    );
    let (forgotten, most): (Vec<&str>, Vec<i64>) =
        wanted.first.iter().map(|(sink, most)| (sink.as_str(), *most)).unzip();
    let first_params = [param(forgotten, Type::TEXT_ARRAY), param(most, Type::INT8_ARRAY)];
    let first_sql = format!(
        "SELECT e.sink, {row_columns} FROM unnest($1::text[], $2::bigint[]) AS w (name, most)
            JOIN @sinks s ON s.name = w.name
            CROSS JOIN LATERAL (SELECT * FROM @exceptions x WHERE x.sink = s.id ORDER BY x.seq LIMIT w.most) e"
    );
    let mut answers = together::<Vec<Row>>(vec![
        Box::pin(async { speaker.batch(begin).await.map(|()| Vec::new()) }),
        Box::pin(speaker.query(lock, &[])),
        Box::pin(async {
            if commit.appends.is_empty() {
                return empty().await;
            }
            // In no order: of a table that it has not analysed the server takes so many keys for a third, and for the sake of the
            // order went through all of them by their positions, in each commit.
            speaker.query("SELECT key, id, seq FROM @keys WHERE key = ANY($1)", &known_params).await
        }),
        Box::pin(async { if of_sinks { speaker.query(&sinks_sql, &[]).await } else { empty().await } }),
        Box::pin(async {
            if wanted.rows.is_empty() && wanted.up_to.is_empty() {
                return empty().await;
            }
            speaker.query(&rows_sql, &rows_params).await
        }),
        Box::pin(async {
            if wanted.events.is_empty() {
                return empty().await;
            }
            speaker.query("SELECT seq FROM @events WHERE seq = ANY($1)", &stored_params).await
        }),
        Box::pin(async {
            if wanted.first.is_empty() {
                return empty().await;
            }
            speaker.query(&first_sql, &first_params).await
        }),
        Box::pin(async {
            if !wanted.numbers {
                return empty().await;
            }
            let sql = "SELECT name, value FROM @meta WHERE starts_with(name, $1)";
            speaker.query(sql, &[param(Numbers::PREFIX, Type::TEXT)]).await
        }),
        Box::pin(speaker.query(&told, &seen)),
    ])
    .await?
    .into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let (_, head, mut keys, sinks, mut rows, stored) = (next(), next(), next(), next(), next(), next());
    let (first, numbers, told) = (next(), next(), next());
    rows.extend(first);
    let (Some(head), Some(told)) = (head.first(), told.first()) else { return Err(no_head()) };
    keys.sort_unstable_by_key(|row| row.get::<_, Seq>(2));
    let mut known: HashMap<KeyHash, Known> = HashMap::new();
    for row in &keys {
        let key = KeyHash(row.get::<_, Uuid>(0).into_bytes());
        known.entry(key).or_default().push((EventId::from_bytes(row.get::<_, Uuid>(1).into_bytes()), row.get(2)));
    }
    let numbers = Numbers::read(numbers.iter().map(|row| (row.get(0), row.get(1))));
    Ok(Found {
        told: Told::read(told, 1),
        actions: head.get(0),
        bytes: head.get(1),
        known,
        books: Books { numbers, ..Books::open(&sinks, &rows, &stored)? },
        database: Timestamp::from_millis(told.get(0)),
    })
}

/// Works out what a commit changes, and says it with the `COMMIT` behind it. One question.
pub(super) async fn write(
    speaker: &Speaker<'_>,
    commit: &mut Commit,
    mut found: Found,
    (replica, number): (Uuid, i64),
    progress_of_purge: &mut purge::Progress,
    progress: &mut Progress,
) -> Result<(), JournalError> {
    let mut committed = Committed { last_seq: found.told.last_seq, ..Committed::default() };
    for (place, settlement) in commit.settlements.iter().enumerate() {
        committed.refused.extend(found.books.refusal(settlement).map(|why| (place, why)));
    }
    let mut appended = append::judge(commit, &mut found.known, &mut committed)?;
    for (place, settlement) in commit.settlements.iter().enumerate() {
        if !committed.refused.iter().any(|(refused, _)| *refused == place) {
            found.books.settle(settlement, commit.age)?;
        }
    }
    for action in &commit.actions {
        committed.actions.push(found.books.act(action, committed.last_seq)?);
    }
    found.books.remember(&commit.values);

    let stamp = match appended.stored.last() {
        Some((place, _)) => Some(lost::stamp(commit.appends[*place].head.id, commit.age)),
        None => found.told.newest.take(),
    };
    let mut statements = append::statements(commit, &appended.stored);
    statements.extend(found.books.statements());
    if let Some(plan) = &commit.purge {
        let used = u64::try_from(found.bytes + appended.bytes).unwrap_or(0);
        let step = purge::Step::find(speaker, plan, progress_of_purge, &found.books, used).await?;
        committed.purged = step.purged();
        appended.bytes -= step.bytes();
        statements.extend(step.statements(plan));
    }
    if statements.is_empty() {
        // Only duplicates, say: they rest on an earlier commit and need none of their own.
        speaker.batch("ROLLBACK").await?;
        progress.outcome = Some(Outcome { committed, actions: found.actions, bytes: found.bytes, stamp });
        return Ok(());
    }
    statements.push(Statement {
        sql: "UPDATE @head SET last_seq = $1, actions = $2, bytes = $3".to_owned(),
        params: vec![
            param(committed.last_seq, Type::INT8),
            param(found.actions + i64::from(!commit.actions.is_empty()), Type::INT8),
            param(found.bytes + appended.bytes, Type::INT8),
        ],
    });
    statements.push(Statement {
        sql: "INSERT INTO @replicas AS r (id, commits, seen) VALUES ($1, $2, now())
              ON CONFLICT (id) DO UPDATE SET commits = excluded.commits, seen = excluded.seen"
            .to_owned(),
        params: vec![param(replica, Type::UUID), param(number, Type::INT8)],
    });
    committed.synced = true;
    let bytes = found.bytes + appended.bytes;
    progress.outcome = Some(Outcome { committed, actions: found.actions, bytes, stamp });
    progress.in_doubt = true;
    let answers = {
        let mut said: Vec<Saying<'_, u64>> = Vec::new();
        for statement in &statements {
            said.push(Box::pin(speaker.execute(statement)));
        }
        // After an error before it the database takes this for a ROLLBACK.
        said.push(Box::pin(async { speaker.batch("COMMIT").await.map(|()| 0) }));
        together(said).await
    };
    if let Err(error) = answers {
        // Where the database has spoken there is no doubt, and nothing of it is left.
        progress.in_doubt = error.is_connection_lost();
        return Err(error);
    }
    Ok(())
}
