//! Appending: which events are new, and the two statements that store those.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Statement, param};
use crate::engine::{Commit, Committed, Verdict};
use crate::error::JournalError;
use crate::event::{KeyHash, Seq};
use crate::judging::{self, Known};
use crate::packed::checksum;

/// What an event takes beside its head and its body, roughly: columns, keys and indexes.
pub(super) const OVERHEAD: i64 = 250;

/// What came of the appends of a commit.
#[derive(Default)]
pub(super) struct Appended {
    /// Place in the commit and position of those that are new.
    pub(super) stored: Vec<(usize, Seq)>,
    /// By so much the journal grows.
    pub(super) bytes: i64,
}

/// The keys that a commit asks for.
pub(super) fn keys(commit: &Commit) -> Vec<Uuid> {
    let mut keys: Vec<Uuid> = commit.appends.iter().map(|append| Uuid::from_bytes(append.key.0)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The first and the last key that share all that the scopes of a key share.
pub(super) fn all_scopes(key: &KeyHash) -> [Uuid; 2] {
    [0_u8, 0xff].map(|fill| {
        let mut bytes = [fill; 16];
        bytes[..KeyHash::SHARED].copy_from_slice(key.shared());
        Uuid::from_bytes(bytes)
    })
}

/// Says of every append what became of it, and gives the new ones their positions. What takes the place of a settlement
/// that is refused is withheld, as is a group that contradicts what is known.
pub(super) fn judge(
    commit: &mut Commit,
    known: &mut HashMap<KeyHash, Known>,
    committed: &mut Committed,
) -> Result<Appended, JournalError> {
    let mut appended = Appended::default();
    let mut together = commit.together.iter().peekable();
    for place in 0..commit.appends.len() {
        if let Some(range) = together.next_if(|range| range.start == place) {
            let withheld = judging::contradiction(&commit.appends[range.clone()], |key, _| {
                Ok(known.get(&key).cloned().unwrap_or_default())
            })?;
            committed.verdicts.extend(withheld.into_iter().flatten());
        }
        // A group that is withheld has its verdicts already.
        if committed.verdicts.len() > place {
            continue;
        }
        let append = &mut commit.appends[place];
        let replaced = commit.instead.iter().find(|(range, _)| range.contains(&place));
        if replaced.is_some_and(|(_, settlement)| committed.refused.iter().any(|(refused, _)| refused == settlement)) {
            committed.verdicts.push(judging::withheld(append));
            continue;
        }
        let known = known.entry(append.key).or_default();
        if let Some(verdict) = judging::judge(append, known) {
            committed.verdicts.push(verdict);
            continue;
        }
        let (id, seq) = (append.head.id, committed.last_seq + 1);
        known.push((id, seq));
        committed.last_seq = seq;
        let conflict = append.head.conflict;
        committed.verdicts.push(Verdict { id, seq, duplicate: false, conflict, withheld: false });
        appended.stored.push((place, seq));
        appended.bytes += i64::try_from(append.json.len() + append.body.len()).unwrap_or(0) + OVERHEAD;
    }
    Ok(appended)
}

/// Stores what is new.
pub(super) fn statements<'a>(commit: &'a Commit, stored: &[(usize, Seq)]) -> Vec<Statement<'a>> {
    if stored.is_empty() {
        return Vec::new();
    }
    let appends = || stored.iter().map(|(place, seq)| (&commit.appends[*place], *seq));
    let seqs: Vec<Seq> = appends().map(|(_, seq)| seq).collect();
    let heads: Vec<&str> = appends().map(|(append, _)| &*append.json).collect();
    let sum = |(append, seq): (&crate::engine::Append, Seq)| {
        checksum(seq, commit.at, append.json.as_bytes(), &append.digest).to_vec()
    };
    let sums: Vec<Vec<u8>> = appends().map(sum).collect();
    let bodies: Vec<&[u8]> = appends().map(|(append, _)| &*append.body).collect();
    let keys: Vec<Uuid> = appends().map(|(append, _)| Uuid::from_bytes(append.key.0)).collect();
    let ids: Vec<Uuid> = appends().map(|(append, _)| Uuid::from_bytes(*append.head.id.as_bytes())).collect();
    vec![
        Statement {
            sql: "INSERT INTO @events (seq, at, head, sum, body)
                  SELECT seq, $2, head, sum, body
                  FROM unnest($1::bigint[], $3::text[], $4::bytea[], $5::bytea[]) AS e (seq, head, sum, body)"
                .to_owned(),
            params: vec![
                param(seqs.clone(), Type::INT8_ARRAY),
                param(commit.at.as_millis(), Type::INT8),
                param(heads, Type::TEXT_ARRAY),
                param(sums, Type::BYTEA_ARRAY),
                param(bodies, Type::BYTEA_ARRAY),
            ],
        },
        Statement {
            sql: "INSERT INTO @keys (seq, age, key, id)
                  SELECT seq, $2, key, id FROM unnest($1::bigint[], $3::uuid[], $4::uuid[]) AS k (seq, key, id)"
                .to_owned(),
            params: vec![
                param(seqs, Type::INT8_ARRAY),
                param(commit.age.as_millis(), Type::INT8),
                param(keys, Type::UUID_ARRAY),
                param(ids, Type::UUID_ARRAY),
            ],
        },
    ]
}
