//! The right to deliver to a sink: one replica at a time, by the database's clock.
//!
//! Keeping them is one small update for all leases of a process, and has a connection of its own: no commit that takes long
//! loses a lease, and none is lost because others take long. Taking one over locks the journal's head as every commit does, so
//! that whatever the one before has settled is either seen by the new one or refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::address::Address;
use super::link::{Link, Speaker, Statement, param, together};
use super::lost::{Lost, Seen};
use crate::engine::{Kept, Lease, LeaseKeeper};
use crate::error::JournalError;

/// How long a lease lasts after it was last asked for: the longest that a sink stands still when a replica is killed.
pub(super) const LASTS: Duration = Duration::from_secs(5);

/// Longer than that the answer to a renewal is not waited for: there is time for another one, on another connection.
const KEPT_WITHIN: Duration = Duration::from_millis(1_500);

/// Longer than that no host is waited for where there may be several: a dead one in front of the one that took over must
/// not cost the lease.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A small write of its own. What cannot be done soon the server gives up as well: a session whose client has gone would wait
/// on. Nor does it wait for a standby: what it says is of no use to one that takes over.
pub(super) const SMALL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 2000; \
     SET LOCAL statement_timeout = 3000; SET LOCAL synchronous_commit = local";
/// A lease that ends later than that was stamped by a clock that is not the database's any more: nobody keeps it.
const BEYOND: Duration = Duration::from_secs(60);

/// Keeps the leases of a process.
pub(super) struct PostgresKeeper {
    link: Link,
    replica: Uuid,
    lost: Lost,
}

impl PostgresKeeper {
    /// For the process that has `seen` this.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub(super) fn new(address: Arc<Address>, seen: &Seen) -> Result<Self, JournalError> {
        let mut address = Address::clone(&address);
        let connect = address.config.get_connect_timeout().copied().unwrap_or(CONNECT_WITHIN);
        address.config.connect_timeout(connect.min(CONNECT_WITHIN));
        let link = Link::answering_within(Arc::new(address), KEPT_WITHIN)?;
        Ok(Self { link, replica: seen.replica, lost: Arc::clone(&seen.lost) })
    }
}

impl LeaseKeeper for PostgresKeeper {
    fn keep(&mut self, leases: &[(&str, u64)]) -> Result<Vec<Kept>, JournalError> {
        if self.lost.get().is_some() {
            return Ok(vec![Kept::Over; leases.len()]);
        }
        let (sinks, epochs): (Vec<&str>, Vec<i64>) =
            leases.iter().map(|(sink, epoch)| (*sink, i64::try_from(*epoch).unwrap_or(i64::MAX))).unzip();
        let params = [
            param(sinks, Type::TEXT_ARRAY),
            param(epochs, Type::INT8_ARRAY),
            param(self.replica, Type::UUID),
            param(LASTS.as_secs_f64(), Type::FLOAT8),
        ];
        let rows = self.link.again(async |speaker| {
            // Said at once, so that it takes one answer and not three. After an error before it the COMMIT is a ROLLBACK.
            let mut answers = together::<Vec<Row>>(vec![
                Box::pin(async { speaker.batch(SMALL).await.map(|()| Vec::new()) }),
                Box::pin(speaker.query(KEEP, &params)),
                Box::pin(async { speaker.batch("COMMIT").await.map(|()| Vec::new()) }),
            ])
            .await?;
            Ok(answers.swap_remove(1))
        })?;
        let found: HashMap<(&str, i64), bool> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let kept = |(sink, epoch): &(&str, u64)| match found.get(&(*sink, i64::try_from(*epoch).unwrap_or(i64::MAX))) {
            Some(true) => Kept::For(Lease { epoch: *epoch, lasts: Some(LASTS) }),
            Some(false) => Kept::NotNow,
            None => Kept::Over,
        };
        Ok(leases.iter().map(kept).collect())
    }
}

/// Nobody else has had it meanwhile: then it is still ours, even past its end. A row that another transaction holds is passed
/// by, so that the others are kept: whoever takes over a lease that has run out may wait for a standby with it.
const KEEP: &str = "WITH ours AS (
        SELECT l.sink, l.epoch FROM unnest($1::text[], $2::bigint[]) AS w (sink, epoch)
            JOIN @leases l ON l.sink = w.sink AND l.epoch = w.epoch WHERE l.holder = $3
    ), free AS (
        SELECT l.sink FROM @leases l WHERE l.holder = $3 AND l.sink = ANY($1) FOR NO KEY UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE @leases l SET until = clock_timestamp() + make_interval(secs => $4) FROM ours JOIN free USING (sink)
            WHERE l.sink = ours.sink AND l.epoch = ours.epoch AND l.holder = $3 RETURNING l.sink
    )
    SELECT ours.sink, ours.epoch, kept.sink IS NOT NULL FROM ours LEFT JOIN kept ON kept.sink = ours.sink";

pub(super) fn take(link: &mut Link, begin: &str, replica: Uuid, sink: &str) -> Result<Option<Lease>, JournalError> {
    let begin = begin.to_owned();
    let (seconds, beyond) = (LASTS.as_secs_f64(), BEYOND.as_secs_f64());
    link.again(async |speaker| {
        // Nobody else has had it meanwhile: then it is still ours, even past its end.
        let sql = "UPDATE @leases SET until = clock_timestamp() + make_interval(secs => $3)
                 WHERE sink = $1 AND holder = $2 RETURNING epoch";
        let params = [param(sink, Type::TEXT), param(replica, Type::UUID), param(seconds, Type::FLOAT8)];
        let keep = small(speaker, async || speaker.query_opt(sql, &params).await).await?;
        if let Some(row) = keep {
            return Ok(lease(row.get(0)));
        }
        let held = speaker
            .query_opt(
                "SELECT until > clock_timestamp() AND until <= clock_timestamp() + make_interval(secs => $2)
                 FROM @leases WHERE sink = $1",
                &[param(sink, Type::TEXT), param(beyond, Type::FLOAT8)],
            )
            .await?;
        if held.is_some_and(|row| row.get(0)) {
            return Ok(None);
        }
        let taken = async {
            speaker.batch(&begin).await?;
            speaker.query("SELECT 1 FROM @head FOR UPDATE", &[]).await?;
            let taken = speaker
                .query_opt(
                    "INSERT INTO @leases AS l (sink, holder, epoch, until)
                     VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
                     ON CONFLICT (sink) DO UPDATE
                        SET holder = excluded.holder, epoch = l.epoch + 1, until = excluded.until
                        WHERE l.until <= clock_timestamp() OR l.until > clock_timestamp() + make_interval(secs => $4)
                     RETURNING epoch",
                    &[
                        param(sink, Type::TEXT),
                        param(replica, Type::UUID),
                        param(seconds, Type::FLOAT8),
                        param(beyond, Type::FLOAT8),
                    ],
                )
                .await?;
            speaker.batch("COMMIT").await?;
            Ok::<_, JournalError>(taken)
        };
        let taken = taken.await;
        if taken.is_err() {
            // Whatever failed: nothing that is asked next is to be asked within this transaction.
            drop(speaker.batch("ROLLBACK").await);
        }
        Ok(taken?.and_then(|row| lease(row.get(0))))
    })
}

fn lease(epoch: i64) -> Option<Lease> {
    Some(Lease { epoch: u64::try_from(epoch).unwrap_or(0), lasts: Some(LASTS) })
}

/// Ends a lease now.
pub(super) fn give_back(link: &mut Link, replica: Uuid, sink: &str, epoch: u64) -> Result<(), JournalError> {
    let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
    // Another holder, so that the next one to take it gets another epoch, this replica as well.
    let end = Statement {
        sql: "UPDATE @leases SET until = clock_timestamp(), holder = $4 WHERE sink = $1 AND holder = $2 AND epoch = $3"
            .to_owned(),
        params: vec![
            param(sink, Type::TEXT),
            param(replica, Type::UUID),
            param(epoch, Type::INT8),
            param(Uuid::nil(), Type::UUID),
        ],
    };
    link.again(async |speaker| small(speaker, async || speaker.execute(&end).await).await).map(drop)
}

/// Does something within [`SMALL`].
pub(super) async fn small<T>(
    speaker: &Speaker<'_>,
    work: impl AsyncFn() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    let said = async {
        speaker.batch(SMALL).await?;
        let said = work().await?;
        speaker.batch("COMMIT").await?;
        Ok(said)
    };
    let said = said.await;
    if said.is_err() {
        // Whatever failed: nothing that is asked next is to be asked within this transaction.
        drop(speaker.batch("ROLLBACK").await);
    }
    said
}
