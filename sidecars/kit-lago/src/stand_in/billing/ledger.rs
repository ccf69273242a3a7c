//! The books: every event that would be billed, in order of storing, and what became of repeated
//! arrivals. About 200 bytes an event besides its own text, so that a million of them fit.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use serde::Serialize;
use uuid::Uuid;

use super::event::Incoming;

/// Stands for an event without subscription.
const NO_SUBSCRIPTION: u32 = u32::MAX;

/// An event on the books: a customer pays for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerEvent {
    /// The subscription it is billed to.
    pub external_subscription_id: Option<String>,
    /// With the subscription, what Lago deduplicates by.
    pub transaction_id: String,
    /// The billable metric.
    pub code: String,
    /// The timestamp as sent: the very characters, quotes included where it was a string.
    pub timestamp: Option<String>,
    /// The time Lago made of it, in microseconds since 1970.
    pub timestamp_micros: i64,
    /// The properties as sent: the very characters.
    pub properties: String,
    /// When it was stored, in microseconds since 1970.
    pub stored_micros: i64,
}

/// A [`LedgerEvent`] that is still in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerEntry<'a> {
    /// The subscription it is billed to.
    pub external_subscription_id: Option<&'a str>,
    /// With the subscription, what Lago deduplicates by.
    pub transaction_id: &'a str,
    /// The billable metric.
    pub code: &'a str,
    /// The timestamp as sent: the very characters, quotes included where it was a string.
    pub timestamp: Option<&'a str>,
    /// The time Lago made of it, in microseconds since 1970.
    pub timestamp_micros: i64,
    /// The properties as sent: the very characters.
    pub properties: &'a str,
    /// `precise_total_amount_cents` as sent.
    pub precise_total_amount_cents: Option<&'a str>,
    /// When it was stored, in microseconds since 1970.
    pub stored_micros: i64,
    /// Lago's own id of it.
    pub lago_id: Uuid,
}

impl LedgerEntry<'_> {
    /// A copy that outlives the look into the books.
    pub fn to_owned(&self) -> LedgerEvent {
        LedgerEvent {
            external_subscription_id: self.external_subscription_id.map(str::to_owned),
            transaction_id: self.transaction_id.to_owned(),
            code: self.code.to_owned(),
            timestamp: self.timestamp.map(str::to_owned),
            timestamp_micros: self.timestamp_micros,
            properties: self.properties.to_owned(),
            stored_micros: self.stored_micros,
        }
    }
}

/// An event that passed Lago's validations, ready to be stored.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) transaction_id: &'a str,
    pub(super) code: &'a str,
    pub(super) incoming: &'a Incoming<'a>,
    pub(super) timestamp_micros: i64,
}

impl Draft<'_> {
    fn subscription(&self) -> Option<&str> {
        self.incoming.external_subscription_id.as_deref()
    }
}

/// What makes two events one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uniqueness {
    /// Subscription and transaction id; without subscription nothing is ever the same.
    Postgres,
    /// Code, subscription, timestamp in milliseconds and transaction id.
    ClickHouse,
}

#[derive(Debug)]
pub(super) struct Ledger {
    uniqueness: Uniqueness,
    rows: Vec<Row>,
    by_identity: HashTable<u32>,
    codes: Names,
    subscriptions: Names,
    hasher: RandomState,
}

/// One stored event. Its texts lie in one piece, one after the other: transaction id, timestamp,
/// properties, amount.
#[derive(Debug)]
struct Row {
    texts: Box<str>,
    transaction_id_bytes: u32,
    timestamp_bytes: u32,
    properties_bytes: u32,
    code: u32,
    subscription: u32,
    identity_hash: u64,
    timestamp_micros: i64,
    stored_micros: i64,
}

impl Ledger {
    pub(super) fn new(uniqueness: Uniqueness) -> Self {
        Self {
            uniqueness,
            rows: Vec::new(),
            by_identity: HashTable::new(),
            codes: Names::default(),
            subscriptions: Names::default(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether Postgres' unique index holds this event already.
    pub(super) fn holds(&self, subscription: Option<&str>, transaction_id: &str) -> bool {
        let Some(subscription) = subscription.and_then(|name| self.subscriptions.find(name)) else {
            return false;
        };
        let hash = self.hash((subscription, transaction_id));
        let same = |row: &u32| {
            let row = &self.rows[*row as usize];
            row.subscription == subscription && row.transaction_id() == transaction_id
        };
        self.by_identity.find(hash, same).is_some()
    }

    /// Stores an event and tells where. In ClickHouse's way, it takes the place of the same one.
    pub(super) fn store(&mut self, draft: &Draft<'_>, stored_micros: i64) -> usize {
        let code = self.codes.intern(draft.code);
        let subscription = draft.subscription().map_or(NO_SUBSCRIPTION, |name| self.subscriptions.intern(name));
        let millis = draft.timestamp_micros.div_euclid(1_000);
        let identity_hash = match self.uniqueness {
            Uniqueness::Postgres => self.hash((subscription, draft.transaction_id)),
            Uniqueness::ClickHouse => self.hash((code, subscription, millis, draft.transaction_id)),
        };
        let row = Row::new(draft, code, subscription, identity_hash, stored_micros);
        let rows = &self.rows;
        let same = |known: &u32| {
            let known = &rows[*known as usize];
            known.code == code
                && known.subscription == subscription
                && known.timestamp_micros.div_euclid(1_000) == millis
                && known.transaction_id() == draft.transaction_id
        };
        if self.uniqueness == Uniqueness::ClickHouse
            && let Some(index) = self.by_identity.find(identity_hash, same).map(|index| *index as usize)
        {
            self.rows[index] = row;
            return index;
        }
        let index = self.rows.len();
        self.rows.push(row);
        let indexed = self.uniqueness == Uniqueness::ClickHouse || subscription != NO_SUBSCRIPTION;
        if let Ok(number) = u32::try_from(index)
            && indexed
        {
            let rows = &self.rows;
            self.by_identity.insert_unique(identity_hash, number, |row| rows[*row as usize].identity_hash);
        }
        index
    }

    pub(super) fn entry(&self, index: usize) -> LedgerEntry<'_> {
        let row = &self.rows[index];
        let (timestamp, properties, amount) = row.sent();
        LedgerEntry {
            external_subscription_id: self.subscriptions.get(row.subscription),
            transaction_id: row.transaction_id(),
            code: self.codes.get(row.code).unwrap_or_default(),
            timestamp: (!timestamp.is_empty()).then_some(timestamp),
            timestamp_micros: row.timestamp_micros,
            properties,
            precise_total_amount_cents: (!amount.is_empty()).then_some(amount),
            stored_micros: row.stored_micros,
            lago_id: self.lago_id(index),
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = LedgerEntry<'_>> {
        (0..self.rows.len()).map(|index| self.entry(index))
    }

    /// The events of one metric and subscription, whatever their time.
    pub(super) fn entries_of(&self, code: &str, subscription: &str) -> impl Iterator<Item = LedgerEntry<'_>> {
        let wanted = self.codes.find(code).zip(self.subscriptions.find(subscription));
        let matching = move |row: &Row| wanted == Some((row.code, row.subscription));
        self.rows.iter().enumerate().filter(move |(_, row)| matching(row)).map(|(index, _)| self.entry(index))
    }

    /// Made up from the position, so that it need not be kept.
    fn lago_id(&self, index: usize) -> Uuid {
        let seed = self.hash("lago_id");
        let bytes = ((u128::from(seed) << 64) | index as u128).to_be_bytes();
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    fn hash(&self, value: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(value)
    }
}

impl Row {
    fn new(draft: &Draft<'_>, code: u32, subscription: u32, identity_hash: u64, stored_micros: i64) -> Self {
        let timestamp = draft.incoming.timestamp.map_or("", |raw| raw.get());
        let amount = draft.incoming.precise_total_amount_cents.as_deref().unwrap_or_default();
        // Bodies are far smaller than 4 GiB.
        let bytes = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        Self {
            texts: [draft.transaction_id, timestamp, draft.incoming.properties, amount].concat().into(),
            transaction_id_bytes: bytes(draft.transaction_id),
            timestamp_bytes: bytes(timestamp),
            properties_bytes: bytes(draft.incoming.properties),
            code,
            subscription,
            identity_hash,
            timestamp_micros: draft.timestamp_micros,
            stored_micros,
        }
    }

    fn transaction_id(&self) -> &str {
        &self.texts[..self.transaction_id_bytes as usize]
    }

    /// Timestamp, properties and amount.
    fn sent(&self) -> (&str, &str, &str) {
        let rest = &self.texts[self.transaction_id_bytes as usize..];
        let (timestamp, rest) = rest.split_at(self.timestamp_bytes as usize);
        let (properties, amount) = rest.split_at(self.properties_bytes as usize);
        (timestamp, properties, amount)
    }
}

/// Names that occur again and again, kept once.
#[derive(Debug, Default)]
struct Names {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    fn intern(&mut self, name: &str) -> u32 {
        if let Some(number) = self.find(name) {
            return number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(NO_SUBSCRIPTION);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    fn get(&self, number: u32) -> Option<&str> {
        self.names.get(number as usize).map(AsRef::as_ref)
    }
}
