//! What Lago has been sent and has confirmed: events and exact units of each subscription, metric and billing period.
//! Decisions over values, without I/O.
//!
//! Which period is the current one only Lago says, in `current_usage`: what a subscription's list entry says is another
//! one for plans whose charges are billed monthly and whose fee is billed yearly. Until it has been asked, and after a
//! period has ended, events wait in quarters of an hour, which no time zone's midnight divides.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use kit_lago::usage::Quantity;
use serde::{Deserialize, Serialize};

/// Values in the journal that hold a pair each begin so.
pub(crate) const PREFIX: &str = "ledger/";
const QUARTER_MILLIS: i64 = 15 * 60 * 1000;
/// Quarters that wait for their period at most: what comes beyond them is not compared.
const QUARTERS: usize = 200;
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
            return self.other.add(sum);
        }
        self.quarters.entry(quarter).or_default().add(sum);
    }

    fn take_back(&mut self, at: Timestamp, units: Option<&Quantity>) {
        let quarter = at.as_millis().div_euclid(QUARTER_MILLIS);
        let of_current = self.current.as_mut().filter(|current| current.period.holds(at)).map(|c| &mut c.sum);
        let place = of_current.or_else(|| self.quarters.get_mut(&quarter));
        if !place.is_some_and(|sum| sum.take_back(units)) {
            self.of_before(at).take_back(units);
        }
    }

    /// Lago says that this is the current period.
    fn set_period(&mut self, period: Period) {
        match self.current.take() {
            // The same beginning with another end is the same period: a plan was changed, say.
            Some(current) if current.period.from == period.from => {
                self.current = Some(Booked { period, sum: current.sum });
            }
            // An answer that was on its way for long.
            Some(current) if current.period.from > period.from => {
                self.current = Some(current);
                return;
            }
            before => {
                self.ended.splice(0..0, before);
                self.ended.truncate(ENDED);
                self.current = Some(Booked { period, sum: Sum::EMPTY });
            }
        }
        let begins = period.from.as_millis().div_euclid(QUARTER_MILLIS);
        for (quarter, sum) in std::mem::take(&mut self.quarters) {
            let at = Timestamp::from_millis(quarter.saturating_mul(QUARTER_MILLIS));
            // A subscription may begin within a quarter. Where it took the place of another one, that one's part of the
            // quarter is counted here too.
            if period.holds(at) || quarter == begins {
                self.current.get_or_insert(Booked { period, sum: Sum::EMPTY }).sum.add(&sum);
            } else if at < period.from {
                self.of_before(at).add(&sum);
            } else {
                self.quarters.insert(quarter, sum);
            }
        }
    }

    /// Where an event of before the current period is booked.
    fn of_before(&mut self, at: Timestamp) -> &mut Sum {
        let ended = self.ended.iter_mut().find(|ended| ended.period.holds(at));
        ended.map_or(&mut self.other, |ended| &mut ended.sum)
    }

    /// What waits for its period.
    pub(crate) fn waiting(&self) -> Sum {
        let mut all = Sum::EMPTY;
        self.quarters.values().for_each(|sum| all.add(sum));
        all
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
}

impl Ledger {
    /// From the values that the journal remembers. What cannot be read is left out, and told in the second part.
    pub(crate) fn load(values: Vec<(String, Vec<u8>)>) -> (Self, usize) {
        let (mut ledger, mut unreadable) = (Self::default(), 0);
        for (name, value) in values {
            match (parse_name(&name), serde_json::from_slice(&value)) {
                (Some(name), Ok(pair)) => drop(ledger.pairs.insert(name, pair)),
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
        pair.current = known.map(|known| Booked { period: known.period, sum: Sum::EMPTY });
        pair.book(at, &sum, now);
        self.pairs.insert(name.clone(), pair);
    }

    /// Takes out an event that was booked. It is recorded with the next one that is.
    pub(crate) fn take_back(&mut self, name: &Name, at: Timestamp, units: Option<Quantity>) {
        if let Some(pair) = self.pairs.get_mut(name) {
            pair.take_back(at, units.as_ref());
        }
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

    /// The value that the journal remembers of a pair.
    pub(crate) fn value(&self, name: &Name) -> Option<(String, Vec<u8>)> {
        let value = serde_json::to_vec(self.pairs.get(name)?).ok()?;
        Some((value_name(name), value))
    }
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
        let take_back = |ledger: &mut Ledger, when: &str, units: &str| {
            ledger.take_back(&name(), at(when), Some(units.parse().unwrap()));
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
        let (again, unreadable) = Ledger::load(values);
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
        assert_eq!((pair.quarters.len(), pair.other.events), (QUARTERS, 1_000 - QUARTERS as u64));
    }
}
