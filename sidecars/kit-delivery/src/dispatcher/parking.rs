//! The log lines about dead letters: each tells one, as long as they are few; of a flood the first ones and a number.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use kit_journal::Seq;

use super::work::Work;

/// So many dead letters in [`A_WHILE`] have a line each.
const LINES: u32 = 10;
/// After that the others are told in one.
const A_WHILE: Duration = Duration::from_secs(60);

/// Dead letters since the first one of a while.
#[derive(Debug, Default)]
pub(super) struct Parking {
    ends: Option<Instant>,
    lines: u32,
    untold: u64,
    last_reason: String,
}

impl Parking {
    /// One more; true where it has a line of its own.
    fn add(&mut self, reason: &str, now: Instant) -> bool {
        self.ends.get_or_insert(now + A_WHILE);
        if self.lines < LINES {
            self.lines += 1;
            return true;
        }
        self.untold += 1;
        reason.clone_into(&mut self.last_reason);
        false
    }

    /// When something is to be told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ends
    }

    /// What had no line of its own, and the last reason; the next while begins with the next dead letter.
    fn end(&mut self) -> Option<(u64, String)> {
        let over = std::mem::take(self);
        (over.untold > 0).then_some((over.untold, over.last_reason))
    }
}

/// A reason without what it may quote of the event: jq's errors show the value that they stumbled over.
fn for_the_log(reason: &str) -> Cow<'_, str> {
    let Some(rest) = reason.strip_prefix("jq: ") else { return Cow::Borrowed(reason) };
    let (program, error) = rest.split_once(": ").unwrap_or(("a program", rest));
    if ["takes more than ", "gives "].iter().any(|ours| error.starts_with(ours)) {
        return Cow::Borrowed(reason);
    }
    Cow::Owned(format!("jq: {program} failed, the dead letter has its error"))
}

impl Work {
    /// An event has become a dead letter: a person must know.
    pub(super) fn say_parked(&mut self, seq: Seq, reason: &str) {
        let reason = &*for_the_log(reason);
        if self.parking.add(reason, Instant::now()) {
            tracing::error!(seq, sink = %self.name, reason = %reason, "event {seq} parked as a dead letter: {reason}");
        }
    }

    /// Tells of those that had no line of their own, when it is time or the daemon stops.
    pub(super) fn say_how_many_parked(&mut self, stops: bool) {
        if !stops && self.parking.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        if let Some((count, reason)) = self.parking.end() {
            tracing::error!(
                count,
                sink = %self.name,
                reason = %reason,
                "{count} more events parked as dead letters within a minute, the last one: {reason}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jq_stumbled_over_is_not_in_the_log() {
        let quoted = "jq: transform of rule paid: cannot index \"hunter2: secret\" with \"price\"";
        assert_eq!(for_the_log(quoted), "jq: transform of rule paid failed, the dead letter has its error");
        assert_eq!(for_the_log("jq: cannot"), "jq: a program failed, the dead letter has its error");
        for told in ["HTTP 400: no", "jq: filter of route loop: takes more than 1 s of processor time"] {
            assert_eq!(for_the_log(told), told);
        }
    }

    #[test]
    fn the_first_dead_letters_of_a_while_have_a_line_each_and_the_others_one_together() {
        let (mut parking, now) = (Parking::default(), Instant::now());
        assert_eq!((parking.due(), parking.end()), (None, None));

        let own: Vec<bool> = (0..13).map(|n| parking.add(&format!("reason {n}"), now)).collect();
        assert_eq!(own, [[true; 10].as_slice(), &[false; 3]].concat());
        assert_eq!(parking.due(), Some(now + A_WHILE), "since the first one");
        assert_eq!(parking.end(), Some((3, "reason 12".to_owned())));

        assert!(parking.add("again", now) && parking.due().is_some());
        assert_eq!(parking.end(), None, "each of them had its line");
    }
}
