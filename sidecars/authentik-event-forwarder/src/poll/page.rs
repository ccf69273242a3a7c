//! A page of events as it was read, and how it lies to others.

use kit::clock::Timestamp;
use kit_authentik::event::{Event, EventPk};
use kit_journal::{BodyDigest, Dedupe, EventId, NewEvent};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::around::Gap;
use super::window::Window;
use crate::admit::Admission;

/// One event of a page.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) at: Place,
    pub(super) raw: Box<RawValue>,
    /// Its key is its own, and not made of its bytes.
    has_pk: bool,
}

impl Row {
    /// What cannot be read, for a person to look at; under its own key where it has one, whichever way it comes.
    pub(super) fn kept(&self, admission: &Admission) -> NewEvent {
        let (mut event, _) = admission.unreadable(self.raw.get().as_bytes().to_vec());
        if self.has_pk {
            event.head.key = self.at.pk.to_string();
            event.head.id = EventId::derive(&admission.source, &event.head.key, None);
            event.dedupe = Dedupe::Key;
        }
        event.head.subject = format!("event/{}", event.head.key);
        event
    }
}

/// What may be known of a row that cannot be read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rest {
    pk: Value,
    created: Value,
}

/// The rows of an answer, the newest first, also those that are no events. Without a time a row has that of its neighbour.
pub(super) fn rows(events: Vec<Box<RawValue>>, now: Timestamp) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::with_capacity(events.len());
    let mut neighbour = now.as_millis().saturating_mul(1000);
    for raw in events {
        let (pk, created) = match Event::read(raw.get()) {
            Ok(event) => (Some(event.pk), event.created_micros()),
            Err(_) => {
                let rest: Rest = serde_json::from_str(raw.get()).unwrap_or_default();
                let created = rest.created.as_str().and_then(|text| text.parse::<Timestamp>().ok());
                let pk = rest.pk.as_str().and_then(|text| text.parse().ok());
                (pk, created.map(|time| time.as_millis().saturating_mul(1000)))
            }
        };
        neighbour = created.unwrap_or(neighbour);
        let at = Place { created: neighbour, pk: pk.unwrap_or_else(|| pk_of_bytes(raw.get())) };
        rows.push(Row { at, raw, has_pk: pk.is_some() });
    }
    rows
}

/// What time it is there, where it says so. The header has seconds: what happened within this one is not ahead.
pub(super) fn time_there(server_time: Option<Timestamp>, now: Timestamp) -> Timestamp {
    server_time.map_or(now, |time| time.plus_millis(999))
}

fn pk_of_bytes(row: &str) -> EventPk {
    let digest = BodyDigest::of(row.as_bytes()).0;
    EventPk::from_u128(digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte)))
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
    /// Rows that Authentik has given.
    pub(super) len: usize,
    /// Rows that there are on all pages.
    pub(super) count: usize,
    pub(super) has_next: bool,
    /// What time it was there when it was asked for; by the own clock where it does not say so.
    pub(super) now: Timestamp,
    /// What was stepped over.
    pub(super) gaps: Vec<Gap>,
}

impl Page {
    /// Past the end.
    pub(super) fn empty(window: Window, now: Timestamp) -> Self {
        Self { window, rows: Vec::new(), len: 0, count: 0, has_next: false, now, gaps: Vec::new() }
    }

    /// Nothing is known of any row of it.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gaps.is_empty()
    }

    /// Rows that were stepped over and are newer than the newest one that was read.
    pub(super) fn stepped_over(&self) -> usize {
        self.gaps.first().filter(|gap| gap.newer.is_none()).map_or(0, |gap| gap.rows)
    }

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
        !self.has_next || self.rows.last().map_or(self.gaps.is_empty(), |oldest| oldest.at.is_before(floor))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::EventsSection;
    use crate::exclude::Rules;
    use crate::names::Aliases;

    #[test]
    fn a_row_that_is_no_event_has_a_place_and_is_kept_under_one_key() {
        let pk = "0f0e0d0c-0b0a-4908-8706-050403020100";
        let texts = [
            r#"{"action":"login"}"#.to_owned(),
            format!(r#"{{"pk":"{pk}","created":"2026-11-22T13:27:00.123456Z"}}"#),
            "7".to_owned(),
        ];
        let raws = texts.iter().map(|text| RawValue::from_string(text.clone()).unwrap()).collect();

        let now: Timestamp = "2026-11-22T14:00:00Z".parse().unwrap();
        let rows = rows(raws, now);

        let time: Timestamp = "2026-11-22T13:27:00.123Z".parse().unwrap();
        assert_eq!(rows.iter().map(|row| row.at.time()).collect::<Vec<_>>(), [now, time, time]);
        let section = EventsSection::default();
        let admission = Admission {
            source: "authentik/default".to_owned(),
            rules: Rules::new(&section),
            aliases: Aliases::new(&section),
            keep_headers: false,
        };
        let kept: Vec<_> = rows.iter().map(|row| row.kept(&admission)).collect();
        assert_eq!((kept[1].head.key.as_str(), kept[1].dedupe), ("0f0e0d0c0b0a49088706050403020100", Dedupe::Key));
        assert_eq!(kept[1].head.id, EventId::derive("authentik/default", &kept[1].head.key, None));
        for (event, text) in kept.iter().zip(&texts) {
            assert_eq!(
                (event.head.event_type.as_str(), event.body.as_slice()),
                ("authentik.unreadable", text.as_bytes())
            );
        }
        assert!(
            kept[0].head.key.starts_with("sha256-") && kept[0].head.subject == format!("event/{}", kept[0].head.key)
        );
        assert_ne!(rows[0].at.pk, rows[2].at.pk);
    }
}
