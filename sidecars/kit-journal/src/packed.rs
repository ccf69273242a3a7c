//! Codes and packed forms that both engines store alike.

use std::borrow::Cow;

use kit::clock::Timestamp;
use sha2::{Digest, Sha256};

use crate::engine::{Attempt, ExceptionState};
use crate::error::JournalError;
use crate::event::{BodyDigest, Seq};

/// The number that stands for a state.
pub(crate) fn state_code(state: ExceptionState) -> i64 {
    match state {
        ExceptionState::Retrying => 1,
        ExceptionState::Waiting => 2,
        ExceptionState::Replaying => 3,
        ExceptionState::Parked => 4,
        ExceptionState::Dropped => 5,
        ExceptionState::Filtered => 6,
    }
}

/// The state that a number stands for.
pub(crate) fn state_of(code: i64) -> Option<ExceptionState> {
    [
        ExceptionState::Retrying,
        ExceptionState::Waiting,
        ExceptionState::Replaying,
        ExceptionState::Parked,
        ExceptionState::Dropped,
        ExceptionState::Filtered,
    ]
    .into_iter()
    .find(|state| state_code(*state) == code)
}

/// An attempt as it is stored: an array, because a thousand field names cost more than the values.
type PackedAttempt<'a> = (Seq, i64, u32, Option<u16>, Cow<'a, str>, Option<Cow<'a, str>>, Option<Cow<'a, str>>);

/// Attempts as JSON, with the first and the last position among them; `None` where there are none.
pub(crate) fn attempts(attempts: &[Attempt]) -> Result<Option<(Seq, Seq, String)>, JournalError> {
    let (Some(first), Some(last)) = (attempts.iter().map(|a| a.seq).min(), attempts.iter().map(|a| a.seq).max()) else {
        return Ok(None);
    };
    let packed: Vec<PackedAttempt<'_>> = attempts
        .iter()
        .map(|a| {
            (
                a.seq,
                a.at.as_millis(),
                a.ms,
                a.status,
                a.outcome.as_str().into(),
                a.error.as_deref().map(Into::into),
                a.response.as_deref().map(Into::into),
            )
        })
        .collect();
    let entries = serde_json::to_string(&packed)
        .map_err(|_| JournalError::Damaged { seq: first, what: "attempt cannot be written as JSON" })?;
    Ok(Some((first, last, entries)))
}

/// Those of packed attempts that are of this event.
pub(crate) fn attempts_of(seq: Seq, entries: &str) -> Result<Vec<Attempt>, JournalError> {
    let packed: Vec<PackedAttempt<'_>> = serde_json::from_str(entries)
        .map_err(|_| JournalError::Damaged { seq, what: "attempt log is not understood" })?;
    let own = packed.into_iter().filter(|attempt| attempt.0 == seq);
    let unpacked = own.map(|(seq, at, ms, status, outcome, error, response)| Attempt {
        seq,
        at: Timestamp::from_millis(at),
        ms,
        status,
        outcome: outcome.into_owned(),
        error: error.map(Into::into),
        response: response.map(Into::into),
    });
    Ok(unpacked.collect())
}

/// SHA-256 over position, time, head and the body's digest: a record is served only if it matches.
pub(crate) fn checksum(seq: Seq, at: Timestamp, head: &[u8], body: &BodyDigest) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(seq.to_le_bytes());
    hasher.update(at.as_millis().to_le_bytes());
    hasher.update((head.len() as u64).to_le_bytes());
    hasher.update(head);
    hasher.update(body.0);
    hasher.finalize().into()
}
