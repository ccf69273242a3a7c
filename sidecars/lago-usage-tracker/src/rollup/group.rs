//! Which events become one, and what that one is. Decisions over values, without I/O.
//!
//! Events of one subscription, metric, quarter of an hour and set of other properties are one to Lago when the metric
//! adds up a property: the sum of what they say, at the time of the latest of them. Billing periods begin at a midnight
//! of some time zone, which no quarter of an hour holds inside.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kit::clock::Timestamp;
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, NewEvent, Seq, StoredEvent};
use kit_lago::usage::{EpochSeconds, Quantity, UsageEvent};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::admit::{READY, Stored};

/// CloudEvents `source` of what comes out: another one than that of what goes in, whose keys are taken.
pub(crate) const SOURCE: &str = "usage/rollup";
const QUARTER_MILLIS: i64 = 15 * 60 * 1000;
/// Longest text of a sum: Lago is not sent what the checks would call no number.
const LONGEST_SUM: usize = 100;

/// What events have in common that become one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    subscription: String,
    code: String,
    quarter: i64,
    /// The other properties, with what they hold as it was written.
    properties: BTreeMap<String, String>,
}

impl Key {
    /// Of an event whose metric adds up `field`, with the number it holds; `None` where it has to go alone.
    fn of(event: &Stored<'_>, field: &str) -> Option<(Self, Quantity)> {
        if event.precise_total_amount_cents.is_some() {
            return None;
        }
        let mut properties: BTreeMap<Cow<'_, str>, &RawValue> =
            event.properties.map(|object| serde_json::from_str(object.get())).transpose().ok()??;
        let quantity = Quantity::of_json(properties.remove(field)?).ok()?;
        let quarter = event.time()?.as_millis().div_euclid(QUARTER_MILLIS);
        let properties = properties.into_iter().map(|(name, value)| (name.into_owned(), value.get().to_owned()));
        let subscription = event.external_subscription_id.as_deref()?.to_owned();
        let code = event.code.to_string();
        Some((Self { subscription, code, quarter, properties: properties.collect() }, quantity))
    }

    /// Eight digits that tell groups of the same events' range apart.
    fn digits(&self) -> String {
        let mut hasher = Sha256::new();
        let mut part = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        part(&self.subscription);
        part(&self.code);
        part(&self.quarter.to_string());
        for (name, value) in &self.properties {
            part(name);
            part(value);
        }
        hex(&hasher.finalize()[..4])
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Events that become one.
struct Group {
    field: String,
    first: Seq,
    last: Seq,
    sum: Quantity,
    /// The latest event's time, as it was sent.
    latest: (Timestamp, EpochSeconds),
    /// Of the ids of all events in order.
    members: Sha256,
}

/// What comes out of a range of the journal.
#[derive(Debug, Default)]
pub(crate) struct Rolled {
    /// For the journal, in order.
    pub(crate) events: Vec<NewEvent>,
    /// Events that went into sums.
    pub(crate) summed: u64,
    /// Sums.
    pub(crate) sums: u64,
    /// Events that go on as they are.
    pub(crate) alone: u64,
}

/// Gathers events of a range.
#[derive(Default)]
pub(crate) struct Groups {
    open: BTreeMap<Key, Group>,
    out: Rolled,
}

impl Groups {
    /// Takes an event; `field` is the property that its metric adds up, `None` where the event is not to be summed.
    pub(crate) fn take(&mut self, event: &StoredEvent, field: Option<&str>) {
        let stored = Stored::read(&event.body);
        let keyed = stored.as_ref().and_then(|stored| {
            let field = field?;
            let (key, quantity) = Key::of(stored, field)?;
            Some((key, quantity, stored.time()?, stored.seconds()?, field))
        });
        let Some((key, quantity, time, seconds, field)) = keyed else { return self.alone(event) };
        let group = self.open.entry(key).or_insert_with(|| Group {
            field: field.to_owned(),
            first: event.seq,
            last: event.seq,
            sum: Quantity::default(),
            latest: (time, seconds.clone()),
            members: Sha256::new(),
        });
        let mut sum = group.sum.clone();
        sum += &quantity;
        if sum.to_string().len() > LONGEST_SUM {
            return self.alone(event);
        }
        group.sum = sum;
        group.last = event.seq;
        group.members.update(event.head.id.as_bytes());
        if time > group.latest.0 {
            group.latest = (time, seconds);
        }
        self.out.summed += 1;
    }

    /// As it is, under its own transaction id.
    fn alone(&mut self, event: &StoredEvent) {
        let scope = event.head.scope.clone().unwrap_or_default();
        let body = event.body.to_vec();
        let id = EventId::derive_scoped(SOURCE, &event.head.key, &scope, &BodyDigest::of(&body));
        let head = EventHead {
            scope: Some(scope),
            tenant: event.head.tenant.clone(),
            json: true,
            ..EventHead::new(id, SOURCE, READY, event.head.subject.clone(), event.head.key.clone())
        };
        self.out.events.push(NewEvent { head, body, dedupe: Dedupe::Key });
        self.out.alone += 1;
    }

    /// What comes out of everything taken.
    pub(crate) fn finish(mut self) -> Rolled {
        for (key, group) in self.open {
            // One whose only event did not fit into it.
            if let Some(event) = group.into_event(key) {
                self.out.events.push(event);
                self.out.sums += 1;
            }
        }
        self.out
    }
}

impl Group {
    fn into_event(self, key: Key) -> Option<NewEvent> {
        let members = self.members.finalize();
        if members == Sha256::new().finalize() {
            return None;
        }
        let transaction_id = format!("{}{}", transaction_prefix(self.first, self.last, &key), hex(&members[..8]));
        let mut properties: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
        for (name, value) in &key.properties {
            properties.insert(name, RawValue::from_string(value.clone()).ok()?);
        }
        // A text: as a JSON number it could lose digits on its way through Lago.
        let sum = RawValue::from_string(format!("\"{}\"", self.sum)).ok()?;
        properties.insert(&self.field, sum);
        let properties = RawValue::from_string(serde_json::to_string(&properties).ok()?).ok()?;
        let event = UsageEvent {
            transaction_id: None,
            external_subscription_id: None,
            external_customer_id: None,
            code: Cow::Borrowed(&key.code),
            timestamp: None,
            precise_total_amount_cents: None,
            properties: Some(&properties),
        };
        let body = event.to_json(&transaction_id, Some(&key.subscription), &self.latest.1);
        let id = EventId::derive_scoped(SOURCE, &transaction_id, &key.subscription, &BodyDigest::of(&body));
        let head = EventHead {
            scope: Some(key.subscription.clone()),
            json: true,
            ..EventHead::new(id, SOURCE, READY, format!("subscription/{}", key.subscription), transaction_id)
        };
        Some(NewEvent { head, body, dedupe: Dedupe::Key })
    }
}

/// A sum's transaction id up to the digits of its members: the range of the journal that it covers, and the group.
fn transaction_prefix(first: Seq, last: Seq, key: &Key) -> String {
    format!("rollup-{first}-{last}-{}-", key.digits())
}

/// Whether the sum with this transaction id holds an event.
pub(crate) fn holds(transaction_id: &str, event: &StoredEvent, field: &str) -> bool {
    let Some((key, _)) = Stored::read(&event.body).and_then(|stored| Key::of(&stored, field)) else { return false };
    let mut parts = transaction_id.strip_prefix("rollup-").unwrap_or_default().split('-');
    let (Some(first), Some(last), Some(digits)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let range = first.parse::<Seq>().ok().zip(last.parse::<Seq>().ok());
    range.is_some_and(|(first, last)| (first..=last).contains(&event.seq)) && digits == key.digits()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::admit;

    const NOW: Timestamp = Timestamp::from_millis(1_732_000_000_000);

    fn stored(seq: Seq, json: &str) -> StoredEvent {
        let event = admit::admit(serde_json::from_str(json).unwrap(), None, NOW).unwrap();
        StoredEvent { seq, at: NOW, head: event.head, body: event.body.into() }
    }

    fn event(seq: Seq, subscription: &str, seconds: i64, properties: &str) -> StoredEvent {
        stored(
            seq,
            &format!(
                r#"{{"transaction_id":"t-{seq}","external_subscription_id":"{subscription}","code":"gb","timestamp":{seconds},"properties":{properties}}}"#
            ),
        )
    }

    fn rolled(events: &[StoredEvent]) -> Vec<String> {
        let mut groups = Groups::default();
        events.iter().for_each(|event| groups.take(event, Some("gb")));
        groups.finish().events.into_iter().map(|event| String::from_utf8(event.body).unwrap()).collect()
    }

    #[test]
    fn events_alike_but_for_the_number_become_one_with_the_exact_sum() {
        let base = 1_732_000_500;
        let events = [
            event(1, "s", base, r#"{"gb":0.1,"region":"eu"}"#),
            event(2, "s", base + 60, r#"{"region":"eu","gb":"0.2"}"#),
            event(3, "s", base, r#"{"gb":5,"region":"us"}"#),
            event(4, "x", base, r#"{"gb":7,"region":"eu"}"#),
            event(5, "s", base + 1_800, r#"{"gb":9,"region":"eu"}"#),
            event(6, "s", base + 30, r#"{"gb":1e1,"region":"eu"}"#),
        ];
        let rolled = rolled(&events);
        assert_eq!(rolled.len(), 4, "{rolled:?}");
        let sum = rolled.iter().find(|body| body.contains("rollup-1-6-")).unwrap();
        assert!(sum.contains(r#""timestamp":1732000560,"properties":{"gb":"10.3","region":"eu"}"#), "{sum}");
        for (place, expected) in [(0, true), (1, true), (2, false), (3, false), (4, false), (5, true)] {
            let id: serde_json::Value = serde_json::from_str(sum).unwrap();
            assert_eq!(holds(id["transaction_id"].as_str().unwrap(), &events[place], "gb"), expected, "{place}");
        }
    }

    #[test]
    fn what_cannot_be_added_up_goes_on_as_it_is() {
        let events = [
            event(1, "s", 1_732_000_500, r#"{"gb":"much"}"#),
            event(2, "s", 1_732_000_500, "{}"),
            stored(3, r#"{"transaction_id":"t-3","external_subscription_id":"s","code":"gb"}"#),
            stored(
                4,
                r#"{"transaction_id":"t-4","external_subscription_id":"s","code":"gb","precise_total_amount_cents":"1","properties":{"gb":1}}"#,
            ),
        ];
        let bodies: Vec<String> = events.iter().map(|event| String::from_utf8(event.body.to_vec()).unwrap()).collect();
        assert_eq!(rolled(&events), bodies);
    }

    #[test]
    fn sums_that_would_be_no_number_to_the_checks_are_not_made() {
        let events = [event(1, "s", 1_732_000_500, r#"{"gb":1e90}"#), event(2, "s", 1_732_000_500, r#"{"gb":1e-90}"#)];
        let rolled = rolled(&events);
        assert_eq!(rolled.len(), 2);
        for body in rolled {
            let stored = Stored::read(body.as_bytes()).unwrap();
            assert!(Quantity::of_json(stored.property("gb").unwrap()).is_ok(), "{body}");
        }
    }

    proptest! {
        /// Whatever comes in, the units that come out are the same for each subscription and property set, each event
        /// is in one sum, and the same range gives the same bytes.
        #[test]
        fn nothing_is_lost_added_or_counted_twice(
            parts in proptest::collection::vec((0..3_u8, 0..3_u8, 0..4_i64, -1_000_000..1_000_000_i64, 0..6_u32), 1..60)
        ) {
            let events: Vec<StoredEvent> = (1..).zip(&parts).map(|(seq, (subscription, region, quarter, number, digits))| {
                let properties = format!(r#"{{"gb":{number}e-{digits},"region":"r{region}"}}"#);
                event(seq, &format!("s{subscription}"), 1_732_000_000 + quarter * 900, &properties)
            }).collect();
            let total = |bodies: &[String]| {
                let mut totals: BTreeMap<(String, String), Quantity> = BTreeMap::new();
                for body in bodies {
                    let stored = Stored::read(body.as_bytes()).unwrap();
                    let key = (
                        stored.external_subscription_id.clone().unwrap().into_owned(),
                        stored.property("region").unwrap().get().to_owned(),
                    );
                    *totals.entry(key).or_default() += &Quantity::of_json(stored.property("gb").unwrap()).unwrap();
                }
                totals
            };
            let before: Vec<String> =
                events.iter().map(|event| String::from_utf8(event.body.to_vec()).unwrap()).collect();
            let after = rolled(&events);
            prop_assert_eq!(total(&before), total(&after));
            prop_assert_eq!(&after, &rolled(&events));
            for event in &events {
                let holding = after.iter().filter(|body| {
                    holds(&Stored::read(body.as_bytes()).unwrap().transaction_id, event, "gb")
                });
                prop_assert_eq!(holding.count(), 1);
            }
        }
    }
}
