//! A page of events as it was read, and how it lies to others.

use kit::clock::Timestamp;
use kit_authentik::event::EventPk;
use serde_json::value::RawValue;

use super::window::Window;

/// One event of a page.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) at: Place,
    pub(super) raw: Box<RawValue>,
}

/// Where an event stands: by its time, in microseconds since 1970. A busy moment has many events in a millisecond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) created: i64,
    pub(super) pk: EventPk,
}

impl Place {
    /// Its time, cut off to a millisecond.
    pub(super) fn time(self) -> Timestamp {
        Timestamp::from_millis(self.created.div_euclid(1000))
    }

    pub(super) fn is_before(self, time: Timestamp) -> bool {
        self.created < time.as_millis().saturating_mul(1000)
    }
}

/// A page that was read.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) window: Window,
    /// The newest first.
    pub(super) rows: Vec<Row>,
    /// Rows that it has, also those that cannot be read.
    pub(super) len: usize,
    /// Rows that there are on all pages.
    pub(super) count: usize,
    pub(super) has_next: bool,
    /// What time it was there when it was asked for; by the own clock where it does not say so.
    pub(super) now: Timestamp,
}

impl Page {
    pub(super) fn newest(&self) -> Option<Place> {
        self.rows.first().map(|row| row.at)
    }

    /// Whether no row is left out between this page and an older one that ended with `newest`.
    pub(super) fn joins(&self, newest: Place) -> bool {
        let has_it = || self.rows.iter().any(|row| row.at.pk == newest.pk);
        !self.has_next || self.rows.last().is_none_or(|oldest| oldest.at.created < newest.created) || has_it()
    }

    /// Whether everything newer than `floor` is on this page or on newer ones.
    pub(super) fn reaches(&self, floor: Timestamp) -> bool {
        !self.has_next || self.rows.last().is_none_or(|oldest| oldest.at.is_before(floor))
    }
}
