//! What Lago has been sent and has confirmed: events and exact units of each subscription, metric and billing period.
//! Decisions over values, without I/O.
//!
//! Which period is the current one only Lago says, in `current_usage`: what a subscription's list entry says is another
//! one for plans whose charges are billed monthly and whose fee is billed yearly. Until it has been asked, and after a
//! period has ended, events wait in quarters of an hour, which no time zone's midnight divides.

use std::collections::{BTreeMap, BTreeSet};

use kit::clock::Timestamp;
use kit_journal::Seq;
use kit_lago::usage::Quantity;
use serde::{Deserialize, Serialize};

/// Values in the journal that hold a pair each begin so.
pub(crate) const PREFIX: &str = "ledger/";
const QUARTER_MILLIS: i64 = 15 * 60 * 1000;
/// Values in the journal that hold an event each that was taken out of its pair, until that pair is recorded without it.
pub(crate) const TAKEN_PREFIX: &str = "ledger-taken/";
/// Quarters that wait for their period at most: what comes beyond them is one sum, with its first and its last time.
const QUARTERS: usize = 200;
/// Values that are forgotten with one settlement at most.
const FORGOTTEN_AT_ONCE: usize = 100;
/// Periods that are kept after they have ended.
const ENDED: usize = 2;

/// A subscription's external id and a metric's code.
pub(crate) type Name = (String, String);

/// Events and what they add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) events: u64,
    /// Of metrics that count events or add up a property; `None` as soon as one event's share is not known.
    pub(crate) units: Option<Quantity>,
}

impl Sum {
    const EMPTY: Self = Self { events: 0, units: None };

    fn add(&mut self, other: &Self) {
        if other.events == 0 {
            return;
        }
        self.units = match (self.units.take(), &other.units) {
            (_, Some(units)) if self.events == 0 => Some(units.clone()),
            (Some(mut sum), Some(units)) => {
                sum += units;
                Some(sum)
            }
            _ => None,
        };
        self.events += other.events;
    }

    /// Takes one event out. Nothing where there is none.
    fn take_back(&mut self, units: Option<&Quantity>) -> bool {
        if self.events == 0 {
            return false;
        }
        self.events -= 1;
        match (&mut self.units, units) {
            _ if self.events == 0 => self.units = None,
            (Some(sum), Some(units)) => *sum -= units,
            (left, _) => *left = None,
        }
        true
    }
}

/// A billing period, as `current_usage` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Period {
    pub(crate) from: Timestamp,
    /// The last second of it.
    pub(crate) to: Timestamp,
}

impl Period {
    /// Lago's ends are whole seconds.
    fn ended_before(&self, at: Timestamp) -> bool {
        at >= self.to.plus_millis(1_000)
    }

    fn holds(&self, at: Timestamp) -> bool {
        at >= self.from && !self.ended_before(at)
    }
}

/// One period's sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Booked {
    pub(crate) period: Period,
    pub(crate) sum: Sum,
    /// Events that are not in the sum and may be of this period: a sum is all that is known of those that were booked
    /// before the period's beginning was.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) unsure: u64,
    /// Another period began within it, with another plan: of its events some may be of that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cut: bool,
}

impl Booked {
    fn new(period: Period, sum: Sum) -> Self {
        Self { period, sum, unsure: 0, cut: false }
    }
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Events that wait for their period, and when the first and the last of them happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Heap {
    first: Timestamp,
    last: Timestamp,
    sum: Sum,
}

/// An event that Lago has confirmed and does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    name: Name,
    at: Timestamp,
    units: Option<Quantity>,
}

/// What is booked for a subscription and a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// The period that Lago has last called the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<Booked>,
    /// Of events of after it, or of any time as long as no period is known: by the number of the quarter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    quarters: BTreeMap<i64, Sum>,
    /// What waits beside as many quarters as are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heap: Option<Heap>,
    /// Of events of other times, which are not compared.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) other: Sum,
    /// Periods that have ended, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ended: Vec<Booked>,
    /// When something was last booked.
    pub(crate) changed_at: Timestamp,
}

fn is_empty(sum: &Sum) -> bool {
    *sum == Sum::EMPTY
}

impl Pair {
    fn book(&mut self, at: Timestamp, sum: &Sum, now: Timestamp) {
        self.changed_at = now;
        if let Some(current) = &mut self.current {
            if current.period.holds(at) {
                return current.sum.add(sum);
            }
            if at < current.period.from {
                return self.of_before(at).add(sum);
            }
        }
        let quarter = at.as_millis().div_euclid(QUARTER_MILLIS);
        if self.quarters.len() >= QUARTERS && !self.quarters.contains_key(&quarter) {
            let heap = self.heap.get_or_insert(Heap { first: at, last: at, sum: Sum::EMPTY });
            (heap.first, heap.last) = (heap.first.min(at), heap.last.max(at));
            return heap.sum.add(sum);
        }
        self.quarters.entry(quarter).or_default().add(sum);
    }

    fn take_back(&mut self, at: Timestamp, units: Option<&Quantity>) {
        let quarter = at.as_millis().div_euclid(QUARTER_MILLIS);
        let of_current = self.current.as_mut().filter(|current| current.period.holds(at)).map(|c| &mut c.sum);
        let place = of_current.or_else(|| self.quarters.get_mut(&quarter));
        let heap = self.heap.as_mut().filter(|heap| (heap.first..=heap.last).contains(&at));
        let place = place.or_else(|| heap.map(|heap| &mut heap.sum));
        if !place.is_some_and(|sum| sum.take_back(units)) {
            self.of_before(at).take_back(units);
        }
    }

    /// Lago says that this is the current period.
    fn set_period(&mut self, period: Period) {
        match self.current.take() {
            // The same beginning with another end is the same period: a plan was changed, say.
            Some(current) if current.period.from == period.from => {
                self.current = Some(Booked { period, ..current });
            }
            // An answer that was on its way for long.
            Some(current) if current.period.from > period.from => {
                self.current = Some(current);
                return;
            }
            // The plan was changed within the period, which Lago counts in two: what was booked since then is in the sum
            // of the one before.
            Some(current) if current.period.holds(period.from) => {
                let unsure = current.sum.events;
                let to = period.from.plus_millis(-1_000);
                let before = Period { to, ..current.period };
                self.end(Booked { period: before, cut: true, ..current });
                self.current = Some(Booked { unsure, ..Booked::new(period, Sum::EMPTY) });
            }
            before => {
                before.into_iter().for_each(|before| self.end(before));
                self.current = Some(Booked::new(period, Sum::EMPTY));
            }
        }
        let begins = period.from.as_millis().div_euclid(QUARTER_MILLIS);
        for (quarter, sum) in std::mem::take(&mut self.quarters) {
            let at = Timestamp::from_millis(quarter.saturating_mul(QUARTER_MILLIS));
            // A subscription may begin within a quarter. Where it took the place of another one, that one's part of the
            // quarter is counted here too.
            if period.holds(at) || quarter == begins {
                self.of_current(period).sum.add(&sum);
            } else if at < period.from {
                self.of_before(at).add(&sum);
            } else {
                self.quarters.insert(quarter, sum);
            }
        }
        self.take_from_heap(period);
    }

    fn take_from_heap(&mut self, period: Period) {
        let Some(heap) = self.heap.take() else { return };
        if period.holds(heap.first) && period.holds(heap.last) {
            self.of_current(period).sum.add(&heap.sum);
        } else if heap.last < period.from {
            let is_of_one = self.ended.iter().any(|e| e.period.holds(heap.first) && e.period.holds(heap.last));
            let place = if is_of_one { self.of_before(heap.first) } else { &mut self.other };
            place.add(&heap.sum);
        } else if period.ended_before(heap.first) {
            self.heap = Some(heap);
        } else {
            self.of_current(period).unsure += heap.sum.events;
            self.other.add(&heap.sum);
        }
    }

    fn of_current(&mut self, period: Period) -> &mut Booked {
        self.current.get_or_insert(Booked::new(period, Sum::EMPTY))
    }

    fn end(&mut self, booked: Booked) {
        self.ended.insert(0, booked);
        self.ended.truncate(ENDED);
    }

    /// Where an event of before the current period is booked.
    fn of_before(&mut self, at: Timestamp) -> &mut Sum {
        let ended = self.ended.iter_mut().find(|ended| ended.period.holds(at));
        ended.map_or(&mut self.other, |ended| &mut ended.sum)
    }

    /// What waits for its period.
    pub(crate) fn waiting(&self) -> Sum {
        let mut all = Sum::EMPTY;
        let heap = self.heap.iter().map(|heap| &heap.sum);
        self.quarters.values().chain(heap).for_each(|sum| all.add(sum));
        all
    }

    /// Something waits for a period, and Lago may tell it by now.
    pub(crate) fn lacks_a_period(&self, now: Timestamp) -> bool {
        let waits = !self.quarters.is_empty() || self.heap.is_some();
        self.current.as_ref().is_none_or(|current| waits && current.period.ended_before(now))
    }

    /// All of it is of before `then`, and nothing was booked since.
    fn is_of_before(&self, then: Timestamp) -> bool {
        let last_quarter = self.quarters.keys().next_back().map_or(0, |quarter| quarter + 1);
        let last_waiting = Timestamp::from_millis(last_quarter.saturating_mul(QUARTER_MILLIS));
        self.changed_at < then
            && last_waiting < then
            && self.heap.as_ref().is_none_or(|heap| heap.last < then)
            && self.current.as_ref().is_none_or(|current| current.period.ended_before(then))
    }

    /// What is booked in the period that Lago has last called the current one.
    pub(crate) fn current_sum(&self) -> Option<&Sum> {
        self.current.as_ref().map(|current| &current.sum)
    }
}

/// All pairs.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pairs: BTreeMap<Name, Pair>,
    /// Positions of events that are taken out of their pair here, and not yet in what the journal holds of it.
    taken: BTreeMap<Name, BTreeSet<Seq>>,
    /// Names of values that are to go from the journal.
    forgotten: BTreeSet<String>,
}

impl Ledger {
    /// From the values that the journal remembers: those of the pairs, and of what was taken out of them. What cannot be
    /// read is left out, and told in the second part.
    pub(crate) fn load(pairs: Vec<(String, Vec<u8>)>, taken: Vec<(String, Vec<u8>)>) -> (Self, usize) {
        let (mut ledger, mut unreadable) = (Self::default(), 0);
        for (name, value) in pairs {
            match (parse_name(&name), serde_json::from_slice(&value)) {
                (Some(name), Ok(pair)) => drop(ledger.pairs.insert(name, pair)),
                _ => unreadable += 1,
            }
        }
        for (name, value) in taken {
            let seq = name.strip_prefix(TAKEN_PREFIX).and_then(|seq| seq.parse().ok());
            match (seq, serde_json::from_slice::<Taken>(&value)) {
                (Some(seq), Ok(taken)) if ledger.pairs.contains_key(&taken.name) => ledger.take_back(seq, taken),
                // Its pair has been forgotten.
                (Some(_), Ok(_)) => drop(ledger.forgotten.insert(name)),
                _ => unreadable += 1,
            }
        }
        (ledger, unreadable)
    }

    /// Books an event of `at` that Lago has confirmed.
    pub(crate) fn book(&mut self, name: &Name, at: Timestamp, units: Option<Quantity>, now: Timestamp) {
        let sum = Sum { events: 1, units };
        if let Some(pair) = self.pairs.get_mut(name) {
            return pair.book(at, &sum, now);
        }
        let mut pair = Pair::default();
        // What is known of the subscription's period through another metric is good for this one.
        let known = self.of_subscription(&name.0).find_map(|(_, pair)| pair.current.as_ref());
        pair.current = known.map(|known| Booked::new(known.period, Sum::EMPTY));
        pair.book(at, &sum, now);
        self.pairs.insert(name.clone(), pair);
    }

    /// Takes out an event that was booked, once. That it is taken out the journal must have been told ([`Taken::value`]):
    /// its pair is recorded without it when something is booked there again.
    pub(crate) fn take_back(&mut self, seq: Seq, taken: Taken) {
        let Some(pair) = self.pairs.get_mut(&taken.name) else { return };
        if self.taken.entry(taken.name).or_default().insert(seq) {
            pair.take_back(taken.at, taken.units.as_ref());
        }
    }

    /// What the journal is to remember of these pairs, and to forget. In the commit that records what was booked.
    pub(crate) fn take_record(&mut self, changed: &BTreeSet<Name>) -> Vec<(String, Vec<u8>)> {
        let mut values = Vec::with_capacity(changed.len());
        for name in changed {
            values.extend(self.value(name));
            let taken = self.taken.remove(name).unwrap_or_default();
            values.extend(taken.into_iter().map(|seq| (taken_name(seq), Vec::new())));
        }
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(name) = self.forgotten.pop_first() else { break };
            // It may have come again.
            if parse_name(&name).is_none_or(|name| !self.pairs.contains_key(&name)) {
                values.push((name, Vec::new()));
            }
        }
        values
    }

    /// Pairs of which everything is of before `then`: their subscription may have ended.
    pub(crate) fn of_before(&self, then: Timestamp) -> BTreeSet<String> {
        let over = self.pairs.iter().filter(|(_, pair)| pair.is_of_before(then));
        over.map(|((subscription, _), _)| subscription.clone()).collect()
    }

    /// Forgets the pairs of a subscription of which everything is of before `then`; they go from the journal with what
    /// is recorded next. Gives their names.
    pub(crate) fn forget(&mut self, subscription: &str, then: Timestamp) -> Vec<Name> {
        let own = self.of_subscription(subscription).filter(|(_, pair)| pair.is_of_before(then));
        let names: Vec<Name> = own.map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.pairs.remove(name);
            self.forgotten.insert(value_name(name));
            let taken = self.taken.remove(name).unwrap_or_default();
            self.forgotten.extend(taken.into_iter().map(taken_name));
        }
        names
    }

    /// Lago says that this is the current period of a subscription. Recorded with the next event that is booked: what is
    /// in the journal must not be ahead of the deliveries that are recorded there, and Lago can be asked again.
    pub(crate) fn set_period(&mut self, subscription: &str, period: Period) {
        let from = (subscription.to_owned(), String::new());
        for (_, pair) in self.pairs.range_mut(from..).take_while(|((own, _), _)| own == subscription) {
            pair.set_period(period);
        }
    }

    /// The pairs of a subscription.
    pub(crate) fn of_subscription<'a>(&'a self, subscription: &'a str) -> impl Iterator<Item = (&'a Name, &'a Pair)> {
        let from = (subscription.to_owned(), String::new());
        self.pairs.range(from..).take_while(move |((own, _), _)| own == subscription)
    }

    /// Every pair in order of the names, after `after`.
    pub(crate) fn pairs(&self, after: Option<&Name>) -> impl Iterator<Item = (&Name, &Pair)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.pairs.range((after.map_or(Unbounded, Excluded), Unbounded))
    }

    pub(crate) fn pair(&self, name: &Name) -> Option<&Pair> {
        self.pairs.get(name)
    }

    fn value(&self, name: &Name) -> Option<(String, Vec<u8>)> {
        let value = serde_json::to_vec(self.pairs.get(name)?).ok()?;
        Some((value_name(name), value))
    }
}

impl Taken {
    pub(crate) fn new((name, at, units): (Name, Timestamp, Option<Quantity>)) -> Self {
        Self { name, at, units }
    }

    /// What the journal is told of the event at this position.
    pub(crate) fn value(&self, seq: Seq) -> Option<(String, Vec<u8>)> {
        Some((taken_name(seq), serde_json::to_vec(self).ok()?))
    }
}

fn taken_name(seq: Seq) -> String {
    format!("{TAKEN_PREFIX}{seq}")
}

/// A length in front, so that no two pairs of texts run together.
fn value_name((subscription, code): &Name) -> String {
    format!("{PREFIX}{}/{subscription}/{code}", subscription.len())
}

fn parse_name(name: &str) -> Option<Name> {
    let (length, rest) = name.strip_prefix(PREFIX)?.split_once('/')?;
    let length: usize = length.parse().ok()?;
    let (subscription, code) = (rest.get(..length)?, rest.get(length..)?.strip_prefix('/')?);
    Some((subscription.to_owned(), code.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOVEMBER: (&str, &str) = ("2026-11-01T00:00:00Z", "2026-11-30T23:59:59Z");
    const DECEMBER: (&str, &str) = ("2026-12-01T00:00:00Z", "2026-12-31T23:59:59Z");

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn period((from, to): (&str, &str)) -> Period {
        Period { from: at(from), to: at(to) }
    }

    fn name() -> Name {
        ("s/1".to_owned(), "gb".to_owned())
    }

    fn booked(ledger: &Ledger) -> Option<(u64, String)> {
        let sum = &ledger.pair(&name())?.current.as_ref()?.sum;
        Some((sum.events, sum.units.as_ref()?.to_string()))
    }

    fn book(ledger: &mut Ledger, when: &str, units: &str) {
        ledger.book(&name(), at(when), Some(units.parse().unwrap()), at("2026-11-21T00:00:00Z"));
    }

    #[test]
    fn what_comes_before_the_period_is_known_is_booked_when_it_is() {
        let mut ledger = Ledger::default();
        book(&mut ledger, "2026-11-20T10:00:00Z", "0.1");
        book(&mut ledger, "2026-11-20T11:00:00Z", "0.2");
        book(&mut ledger, "2026-10-31T23:59:59.999Z", "5");
        book(&mut ledger, "2026-12-01T00:00:00Z", "7");
        assert_eq!(booked(&ledger), None);
        ledger.set_period("s/1", period(NOVEMBER));
        assert_eq!(booked(&ledger), Some((2, "0.3".to_owned())));
        assert_eq!(ledger.pair(&name()).unwrap().other.events, 1);
        book(&mut ledger, "2026-11-30T23:59:59.999Z", "1");
        assert_eq!(booked(&ledger), Some((3, "1.3".to_owned())));
        // The next period takes what was waiting for it, and the last one stays to be looked at.
        book(&mut ledger, "2026-12-01T00:00:01Z", "2");
        ledger.set_period("s/1", period(DECEMBER));
        assert_eq!(booked(&ledger), Some((2, "9".to_owned())));
        book(&mut ledger, "2026-11-30T12:00:00Z", "1");
        let ended = &ledger.pair(&name()).unwrap().ended;
        assert_eq!((ended.len(), ended[0].period, ended[0].sum.events), (1, period(NOVEMBER), 4));
        ledger.set_period("s/1", period(DECEMBER));
        assert_eq!(booked(&ledger), Some((2, "9".to_owned())));
        // A late answer about the period before.
        ledger.set_period("s/1", period(NOVEMBER));
        assert_eq!(booked(&ledger), Some((2, "9".to_owned())));
    }

    #[test]
    fn units_are_exact_or_not_there() {
        let mut ledger = Ledger::default();
        ledger.set_period("s/1", period(NOVEMBER));
        book(&mut ledger, "2026-11-20T10:00:00Z", "0.1");
        ledger.set_period("s/1", period(NOVEMBER));
        for _ in 0..9 {
            book(&mut ledger, "2026-11-20T10:00:00Z", "0.1");
        }
        assert_eq!(booked(&ledger), Some((10, "1".to_owned())));
        ledger.book(&name(), at("2026-11-20T10:00:00Z"), None, Timestamp::default());
        book(&mut ledger, "2026-11-20T10:00:00Z", "0.1");
        assert_eq!(booked(&ledger), None);
        assert_eq!(ledger.pair(&name()).unwrap().current.as_ref().unwrap().sum.events, 12);
    }

    #[test]
    fn what_lago_takes_back_is_taken_out_where_it_was_booked() {
        let mut ledger = Ledger::default();
        book(&mut ledger, "2026-11-20T10:00:00Z", "0.1");
        book(&mut ledger, "2026-11-20T10:00:00Z", "0.2");
        let mut seq = 0;
        let mut take_back = |ledger: &mut Ledger, when: &str, units: &str| {
            seq += 1;
            ledger.take_back(seq, Taken::new((name(), at(when), Some(units.parse().unwrap()))));
        };
        take_back(&mut ledger, "2026-11-20T10:01:00Z", "0.2");
        ledger.set_period("s/1", period(NOVEMBER));
        assert_eq!(booked(&ledger), Some((1, "0.1".to_owned())));
        book(&mut ledger, "2026-11-21T10:00:00Z", "5");
        take_back(&mut ledger, "2026-11-21T10:00:00Z", "5");
        assert_eq!(booked(&ledger), Some((1, "0.1".to_owned())));
        // More than there is cannot be taken out.
        take_back(&mut ledger, "2026-11-21T10:00:00Z", "0.1");
        take_back(&mut ledger, "2026-11-21T10:00:00Z", "0.1");
        assert_eq!(ledger.pair(&name()).unwrap().current_sum().unwrap(), &Sum::EMPTY);
    }

    #[test]
    fn it_is_the_same_after_a_restart() {
        let mut ledger = Ledger::default();
        for when in ["2026-10-02T00:00:00Z", "2026-11-02T00:00:00Z", "2026-12-02T00:00:00Z"] {
            book(&mut ledger, when, "1.50");
        }
        ledger.set_period("s/1", period(NOVEMBER));
        let values = vec![ledger.value(&name()).unwrap(), (format!("{PREFIX}9/x/y"), b"{}".to_vec())];
        let (again, unreadable) = Ledger::load(values, Vec::new());
        assert_eq!((again.pairs, unreadable), (ledger.pairs, 1));
    }

    #[test]
    fn no_two_pairs_have_one_name() {
        let names = [("a/b", "c"), ("a", "b/c"), ("", "a/b/c"), ("2/a", "b"), ("2", "a/b")];
        for (subscription, code) in names {
            let name = (subscription.to_owned(), code.to_owned());
            assert_eq!(parse_name(&value_name(&name)), Some(name));
        }
    }

    #[test]
    fn a_flood_of_times_is_bounded() {
        let mut ledger = Ledger::default();
        let began = at("2020-01-01T00:00:00Z");
        for n in 0..1_000 {
            ledger.book(&name(), began.plus_millis(n * QUARTER_MILLIS), None, began);
        }
        let pair = ledger.pair(&name()).unwrap();
        assert_eq!((pair.quarters.len(), pair.heap.as_ref().unwrap().sum.events), (QUARTERS, 1_000 - QUARTERS as u64));
        assert_eq!(pair.waiting().events, 1_000);
    }

    /// Ten days without Lago, over the end of a period: everything comes before Lago has told the next one.
    #[test]
    fn a_backlog_of_days_is_counted_in_its_period() {
        let mut ledger = Ledger::default();
        ledger.set_period("s/1", period(NOVEMBER));
        book(&mut ledger, "2026-11-28T12:00:00Z", "1");
        ledger.set_period("s/1", period(NOVEMBER));
        let began = at("2026-12-01T00:00:00Z");
        for n in 0..10 * 96 {
            ledger.book(&name(), began.plus_millis(n * QUARTER_MILLIS), Some(Quantity::whole(1)), began);
        }
        assert!(ledger.pair(&name()).unwrap().lacks_a_period(at("2026-12-10T00:00:00Z")));
        ledger.set_period("s/1", period(DECEMBER));
        assert_eq!(booked(&ledger), Some((960, "960".to_owned())));
        let pair = ledger.pair(&name()).unwrap();
        assert_eq!((pair.waiting().events, pair.other.events, pair.current.as_ref().unwrap().unsure), (0, 0, 0));
    }

    /// What cannot be told apart is not taken for what somebody else has reported.
    #[test]
    fn what_may_be_of_two_periods_is_of_neither_and_known() {
        let mut ledger = Ledger::default();
        let first = at("2026-11-25T00:00:00Z");
        for n in 0..10 * 96 {
            ledger.book(&name(), first.plus_millis(n * QUARTER_MILLIS), None, first);
        }
        ledger.set_period("s/1", period(DECEMBER));
        let pair = ledger.pair(&name()).unwrap();
        // The first two hundred quarters are November's, and of the rest it is not known.
        let current = pair.current.as_ref().unwrap();
        assert_eq!((current.sum.events, current.unsure, pair.other.events), (0, 760, 960));
    }

    #[test]
    fn a_plan_that_is_changed_within_a_period_begins_another_one() {
        let mut ledger = Ledger::default();
        book(&mut ledger, "2026-11-10T10:00:00Z", "1");
        ledger.set_period("s/1", period(NOVEMBER));
        // After the change, and before Lago was asked.
        book(&mut ledger, "2026-11-20T10:05:00Z", "2");
        let changed = ("2026-11-20T10:00:00Z", "2026-11-30T23:59:59Z");
        ledger.set_period("s/1", period(changed));
        book(&mut ledger, "2026-11-20T11:00:00Z", "4");
        book(&mut ledger, "2026-11-20T09:59:00Z", "8");
        assert_eq!(booked(&ledger), Some((1, "4".to_owned())));
        let pair = ledger.pair(&name()).unwrap();
        assert_eq!(pair.current.as_ref().unwrap().unsure, 2);
        let before = &pair.ended[0];
        assert_eq!((before.cut, before.sum.events, before.period.to), (true, 3, at("2026-11-20T09:59:59Z")));
        // The next period is whole.
        ledger.set_period("s/1", period(DECEMBER));
        let pair = ledger.pair(&name()).unwrap();
        assert_eq!((pair.current.as_ref().unwrap().unsure, pair.ended[0].unsure), (0, 2));
    }

    /// A kill at any moment: what the journal holds is what Lago counts.
    #[test]
    fn what_is_taken_back_is_out_after_a_crash_and_taken_once() {
        let mut ledger = Ledger::default();
        ledger.set_period("s/1", period(NOVEMBER));
        for units in ["1", "2", "4"] {
            book(&mut ledger, "2026-11-20T10:00:00Z", units);
        }
        ledger.set_period("s/1", period(NOVEMBER));
        let mut stored: BTreeMap<String, Vec<u8>> = ledger.take_record(&BTreeSet::from([name()])).into_iter().collect();
        let load = |stored: &BTreeMap<String, Vec<u8>>| {
            let (taken, pairs) = stored.clone().into_iter().partition(|(name, _)| name.starts_with(TAKEN_PREFIX));
            Ledger::load(pairs, taken)
        };
        let taken = Taken::new((name(), at("2026-11-20T10:00:00Z"), Some(Quantity::whole(2))));
        stored.extend(taken.value(7));
        let (mut crashed, unreadable) = load(&stored);
        assert_eq!((booked(&crashed), unreadable), (Some((2, "5".to_owned())), 0));
        assert_eq!(booked(&load(&stored).0), Some((2, "5".to_owned())), "and again");
        // The same complaint once more.
        crashed.take_back(7, taken.clone());
        assert_eq!(booked(&crashed), Some((2, "5".to_owned())));

        ledger.take_back(7, taken);
        for ledger in [&mut ledger, &mut crashed] {
            let mut stored = stored.clone();
            book(ledger, "2026-11-20T10:00:00Z", "8");
            let values = ledger.take_record(&BTreeSet::from([name()]));
            stored.extend(values);
            stored.retain(|_, value| !value.is_empty());
            assert_eq!(stored.len(), 1, "nothing is left to be taken out");
            assert_eq!(booked(&load(&stored).0), Some((3, "13".to_owned())));
        }
    }

    #[test]
    fn what_ended_long_ago_is_forgotten_and_what_comes_after_all_is_not() {
        let mut ledger = Ledger::default();
        ledger.set_period("s/1", period(NOVEMBER));
        book(&mut ledger, "2026-11-20T10:00:00Z", "1");
        ledger.set_period("s/1", period(NOVEMBER));
        for too_early in ["2026-11-20T23:00:00Z", "2026-11-30T23:00:00Z"] {
            assert!(ledger.of_before(at(too_early)).is_empty(), "{too_early}");
            assert!(ledger.forget("s/1", at(too_early)).is_empty());
        }
        let then = at("2026-12-05T00:00:00Z");
        assert_eq!(ledger.of_before(then), BTreeSet::from(["s/1".to_owned()]));
        assert_eq!(ledger.forget("s/1", then), [name()]);
        assert!(ledger.pair(&name()).is_none());
        let values = ledger.take_record(&BTreeSet::new());
        assert_eq!(values, [(value_name(&name()), Vec::new())]);
        assert!(ledger.take_record(&BTreeSet::new()).is_empty(), "once");

        book(&mut ledger, "2026-11-20T10:00:00Z", "1");
        ledger.forget("s/1", then);
        book(&mut ledger, "2026-11-20T10:00:00Z", "1");
        let values = ledger.take_record(&BTreeSet::from([name()]));
        assert!(values.len() == 1 && !values[0].1.is_empty(), "{values:?}");
    }
}
