//! The right to deliver to a sink: one replica at a time, by the database's clock.
//!
//! Keeping it is one small update, and has a connection of its own: no commit that takes long loses a lease. Taking it
//! over locks the journal's head as every commit does, so that whatever the one before has settled is either seen by the
//! new one or refused.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::address::Address;
use super::link::{Link, Statement, param};
use super::lost::{Lost, Seen};
use crate::engine::{Lease, LeaseKeeper};
use crate::error::JournalError;

/// How long a lease lasts after it was last asked for: the longest that a sink stands still when a replica is killed.
pub(super) const LASTS: Duration = Duration::from_secs(5);

/// Longer than that the answer to a renewal is not waited for: there is time for another one, on another connection.
const KEPT_WITHIN: Duration = Duration::from_millis(1_500);

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
        let link = Link::answering_within(address, KEPT_WITHIN)?;
        Ok(Self { link, replica: seen.replica, lost: Arc::clone(&seen.lost) })
    }
}

impl LeaseKeeper for PostgresKeeper {
    fn keep(&mut self, sink: &str, epoch: u64) -> Result<Option<Lease>, JournalError> {
        if self.lost.get().is_some() {
            return Ok(None);
        }
        let (replica, epoch) = (self.replica, i64::try_from(epoch).unwrap_or(i64::MAX));
        // Nobody else has had it meanwhile: then it is still ours, even past its end.
        let kept = self.link.again(async |speaker| {
            let sql = "UPDATE @leases SET until = clock_timestamp() + make_interval(secs => $4)
                 WHERE sink = $1 AND holder = $2 AND epoch = $3 RETURNING epoch";
            let params = [
                param(sink, Type::TEXT),
                param(replica, Type::UUID),
                param(epoch, Type::INT8),
                param(LASTS.as_secs_f64(), Type::FLOAT8),
            ];
            speaker.query_opt(sql, &params).await
        })?;
        Ok(kept.and_then(|row| lease(row.get(0))))
    }
}

pub(super) fn take(link: &mut Link, begin: &str, replica: Uuid, sink: &str) -> Result<Option<Lease>, JournalError> {
    let begin = begin.to_owned();
    let seconds = LASTS.as_secs_f64();
    link.again(async |speaker| {
        // Nobody else has had it meanwhile: then it is still ours, even past its end.
        let keep = speaker
            .query_opt(
                "UPDATE @leases SET until = clock_timestamp() + make_interval(secs => $3)
                 WHERE sink = $1 AND holder = $2 RETURNING epoch",
                &[param(sink, Type::TEXT), param(replica, Type::UUID), param(seconds, Type::FLOAT8)],
            )
            .await?;
        if let Some(row) = keep {
            return Ok(lease(row.get(0)));
        }
        let held = speaker
            .query_opt("SELECT until > clock_timestamp() FROM @leases WHERE sink = $1", &[param(sink, Type::TEXT)])
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
                        WHERE l.until <= clock_timestamp()
                     RETURNING epoch",
                    &[param(sink, Type::TEXT), param(replica, Type::UUID), param(seconds, Type::FLOAT8)],
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
    link.again(async |speaker| speaker.execute(&end).await).map(drop)
}
