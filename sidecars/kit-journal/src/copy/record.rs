//! What a journal holds in a form that no engine owns: one record a row of meaning, in one order, with one digest.

use std::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::event::{BodyDigest, Seq};
use crate::packed::checksum;
use kit::clock::Timestamp;

/// One of the parts that a journal is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Sinks with where they began, their cursors and counters.
    Sinks,
    /// Events with head and body.
    Events,
    /// Deduplication keys, also of events that are purged.
    Keys,
    /// Deliveries that are neither simply pending nor simply delivered.
    Deliveries,
    /// The delivery log.
    Attempts,
    /// Who did what.
    Audit,
    /// Small values, the journal's own time among them.
    Values,
}

impl Table {
    /// In the order in which they are copied.
    pub const ALL: [Self; 7] =
        [Self::Sinks, Self::Events, Self::Keys, Self::Deliveries, Self::Attempts, Self::Audit, Self::Values];

    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sinks => "sinks",
            Self::Events => "events",
            Self::Keys => "keys",
            Self::Deliveries => "deliveries",
            Self::Attempts => "attempts",
            Self::Audit => "audit",
            Self::Values => "values",
        }
    }

    /// Before its first record.
    pub(crate) fn start(self) -> Position {
        match self {
            Self::Values => Position::Name(String::new()),
            _ => Position::Numbers(i64::MIN, i64::MIN),
        }
    }
}

/// Where a record is in its table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Position {
    /// A number, or a sink and a position.
    Numbers(i64, i64),
    /// Values have names; in the order of their bytes.
    Name(String),
}

impl Position {
    pub(crate) fn first(&self) -> i64 {
        if let Self::Numbers(first, _) = self { *first } else { i64::MIN }
    }

    pub(crate) fn second(&self) -> i64 {
        if let Self::Numbers(_, second) = self { *second } else { i64::MIN }
    }

    pub(crate) fn name(&self) -> &str {
        if let Self::Name(name) = self { name } else { "" }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(first, i64::MIN) => write!(f, "{first}"),
            Self::Numbers(first, second) => write!(f, "{first}/{second}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// `numbers` are start, cursor, delivered, open, parked, dropped, filtered and ahead.
    Sink {
        id: i64,
        name: String,
        numbers: [i64; 8],
        paused: bool,
    },
    Event {
        seq: Seq,
        at: i64,
        head: String,
        sum: Vec<u8>,
        body: Vec<u8>,
    },
    Key {
        seq: Seq,
        age: i64,
        key: [u8; 16],
        id: [u8; 16],
    },
    Delivery {
        sink: i64,
        seq: Seq,
        state: i64,
        lane: i64,
        attempts: i64,
        first_at: Option<i64>,
        next_at: Option<i64>,
        reason: String,
    },
    Attempts {
        id: i64,
        sink: i64,
        at: i64,
        first: Seq,
        last: Seq,
        entries: String,
    },
    Audit {
        id: i64,
        at: i64,
        actor: String,
        action: String,
        detail: String,
    },
    Value {
        name: String,
        value: Vec<u8>,
    },
}

impl Record {
    pub(crate) fn position(&self) -> Position {
        match self {
            Self::Sink { id, .. } | Self::Attempts { id, .. } | Self::Audit { id, .. } => {
                Position::Numbers(*id, i64::MIN)
            }
            Self::Event { seq, .. } | Self::Key { seq, .. } => Position::Numbers(*seq, i64::MIN),
            Self::Delivery { sink, seq, .. } => Position::Numbers(*sink, *seq),
            Self::Value { name, .. } => Position::Name(name.clone()),
        }
    }

    /// About how many bytes it has.
    pub(crate) fn bytes(&self) -> usize {
        64 + match self {
            Self::Event { head, body, .. } => head.len() + body.len(),
            Self::Attempts { entries, .. } => entries.len(),
            Self::Audit { detail, .. } => detail.len(),
            Self::Value { value, .. } => value.len(),
            Self::Sink { .. } | Self::Key { .. } | Self::Delivery { .. } => 0,
        }
    }

    /// Whether it is an event that does not match its checksum: no engine serves it.
    pub(crate) fn is_damaged(&self) -> bool {
        match self {
            Self::Event { seq, at, head, sum, body } => {
                let expected = checksum(*seq, Timestamp::from_millis(*at), head.as_bytes(), &BodyDigest::of(body));
                expected.as_slice() != sum.as_slice()
            }
            _ => false,
        }
    }

    /// The same for the same content, whatever engine it was read from.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut neutral = Neutral(Sha256::new());
        match self {
            Self::Sink { id, name, numbers, paused } => {
                neutral.number(*id).text(name);
                for number in numbers {
                    neutral.number(*number);
                }
                neutral.number(i64::from(*paused));
            }
            Self::Event { seq, at, head, sum, body } => {
                neutral.number(*seq).number(*at).text(head).bytes(sum).bytes(body);
            }
            Self::Key { seq, age, key, id } => {
                neutral.number(*seq).number(*age).bytes(key).bytes(id);
            }
            Self::Delivery { sink, seq, state, lane, attempts, first_at, next_at, reason } => {
                neutral.number(*sink).number(*seq).number(*state).number(*lane).number(*attempts);
                neutral.optional(*first_at).optional(*next_at).text(reason);
            }
            Self::Attempts { id, sink, at, first, last, entries } => {
                neutral.number(*id).number(*sink).number(*at).number(*first).number(*last).text(entries);
            }
            Self::Audit { id, at, actor, action, detail } => {
                neutral.number(*id).number(*at).text(actor).text(action).text(detail);
            }
            Self::Value { name, value } => {
                neutral.text(name).bytes(value);
            }
        }
        neutral.0.finalize().into()
    }
}

/// Lengths go in front, so that no two records run together.
struct Neutral(Sha256);

impl Neutral {
    fn number(&mut self, number: i64) -> &mut Self {
        self.0.update(number.to_le_bytes());
        self
    }

    fn optional(&mut self, number: Option<i64>) -> &mut Self {
        self.number(i64::from(number.is_some())).number(number.unwrap_or(0))
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Without the character zero, which PostgreSQL does not store.
    fn text(&mut self, text: &str) -> &mut Self {
        if text.contains('\0') { self.bytes(storable(text).as_bytes()) } else { self.bytes(text.as_bytes()) }
    }
}

/// Text as every engine can store it: all but the character zero, which an answer of a receiver may hold.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into memory cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
