//! What Lago never counts and a person has accepted: usage of a period whose invoice was final before it came. Decisions over
//! values, without I/O.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use kit_lago::usage::Quantity;
use serde::{Deserialize, Serialize};

use crate::ledger::{Booked, Ledger, Name};
use crate::reconcile::Compared;

/// Values in the journal that hold one each begin so.
pub(crate) const PREFIX: &str = "usage-accepted/";

/// What of a pair is accepted as missing, in one billing period: so much, and no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    /// Beginning of the period.
    from: Timestamp,
    events: u64,
    /// Where both sides' are known.
    units: Option<Quantity>,
    /// When, and why.
    at: Timestamp,
    reason: String,
}

impl Accepted {
    /// What is missing by a comparison.
    pub(crate) fn new(booked: &Booked, compared: &Compared, at: Timestamp, reason: &str) -> Self {
        let events = compared.missing_events;
        Self { from: booked.period.from, events, units: short(booked, compared), at, reason: reason.to_owned() }
    }

    /// Whether what is missing by a comparison is accepted.
    pub(crate) fn covers(&self, booked: &Booked, compared: &Compared) -> bool {
        let no_more_units = match (&self.units, short(booked, compared)) {
            (Some(accepted), Some(short)) => short <= *accepted,
            // Of events alone, as far as these are known.
            _ => compared.missing_events > 0,
        };
        self.from == booked.period.from && compared.missing_events <= self.events && no_more_units
    }

    /// As the journal keeps it.
    pub(crate) fn value(&self, name: &Name) -> Option<(String, Vec<u8>)> {
        Some((format!("{PREFIX}{}", serde_json::to_string(name).ok()?), serde_json::to_vec(self).ok()?))
    }
}

/// Units that Lago has counted too few.
fn short(booked: &Booked, compared: &Compared) -> Option<Quantity> {
    let mut units = booked.sum.units.clone()?;
    units -= &compared.lago.as_ref()?.units;
    Some(units)
}

/// From the values that the journal remembers, and the names of those that nothing is booked for any more.
pub(crate) fn load(values: Vec<(String, Vec<u8>)>, ledger: &Ledger) -> (BTreeMap<Name, Accepted>, Vec<String>) {
    let (mut accepted, mut stale) = (BTreeMap::new(), Vec::new());
    for (key, value) in values {
        let name = key.strip_prefix(PREFIX).and_then(|name| serde_json::from_str::<Name>(name).ok());
        match (name.filter(|name| ledger.pair(name).is_some()), serde_json::from_slice(&value)) {
            (Some(name), Ok(value)) => drop(accepted.insert(name, value)),
            _ => stale.push(key),
        }
    }
    (accepted, stale)
}
