//! What forgetting a sink comes to, for every engine: what is given up with each step, the account at its end, and what is
//! remembered of the sink.

use std::collections::HashMap;

use serde::Serialize;

use crate::commit::ExceptionState;
use crate::event::Seq;

/// One step of forgetting a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// Deliveries that were still to be made.
    pub pending: u64,
    /// Dead letters.
    pub parked: u64,
    /// The sink's account at its end, with the step that was the last one.
    pub account: Option<Account>,
}

/// What became of all events that a sink was responsible for: `accepted` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Events it was responsible for.
    pub accepted: u64,
    /// Delivered.
    pub delivered: u64,
    /// Dropped by a person or by a route, with what was given up at the end.
    pub dropped: u64,
    /// Not wanted by its rules.
    pub filtered: u64,
}

/// Numbers of the sinks that were forgotten, by name. One that gets such a name again gets its number too, and no other
/// one does: attempts are stored under it, and readers know it by heart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers(HashMap<String, i64>);

impl Numbers {
    /// What the names of the remembered values that they are stored in begin with.
    pub(crate) const PREFIX: &str = "sinks.forgotten/";

    /// From these values.
    pub(crate) fn read<'a>(values: impl IntoIterator<Item = (String, &'a [u8])>) -> Self {
        let number = |(name, value): (String, &[u8])| {
            let name = name.strip_prefix(Self::PREFIX)?.to_owned();
            Some((name, std::str::from_utf8(value).ok()?.parse().ok()?))
        };
        Self(values.into_iter().filter_map(number).collect())
    }

    /// The value that remembers one more.
    pub(crate) fn add(&mut self, name: &str, number: i64) -> (String, Vec<u8>) {
        self.0.insert(name.to_owned(), number);
        (format!("{}{name}", Self::PREFIX), number.to_string().into_bytes())
    }

    /// The number for a sink of this name, where these are taken, and whether it is the first one there ever was.
    pub(crate) fn next(&self, name: &str, taken: impl IntoIterator<Item = i64>) -> (i64, bool) {
        let last = taken.into_iter().chain(self.0.values().copied()).max();
        (self.0.get(name).copied().unwrap_or(last.unwrap_or(0) + 1), last.is_none())
    }
}

/// A sink's counters while it is forgotten: every one that is counted is given up with a row, or with what the cursor has
/// still to pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forgetting {
    pub(crate) start: Seq,
    pub(crate) cursor: Seq,
    pub(crate) delivered: i64,
    pub(crate) open: i64,
    pub(crate) parked: i64,
    pub(crate) dropped: i64,
    pub(crate) filtered: i64,
    pub(crate) ahead: i64,
}

impl Forgetting {
    /// A step over rows in these states, the last one where there are no more; the counters are what they are after it.
    pub(crate) fn step(
        &mut self,
        states: impl IntoIterator<Item = ExceptionState>,
        last_seq: Seq,
        is_last: bool,
    ) -> Forgotten {
        let untried = last_seq - self.cursor - self.ahead;
        let (mut pending, mut parked) = (untried.max(0), 0);
        for state in states {
            if state.is_open() {
                pending += 1;
                self.open -= 1;
            } else if state == ExceptionState::Parked {
                parked += 1;
                self.parked -= 1;
            }
        }
        self.dropped += pending + parked;
        (self.cursor, self.ahead) = (last_seq, 0);
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let account = is_last.then(|| Account {
            accepted: count(self.cursor - self.start),
            delivered: count(self.delivered),
            dropped: count(self.dropped),
            filtered: count(self.filtered),
        });
        Forgotten { pending: count(pending), parked: count(parked), account }
    }
}
