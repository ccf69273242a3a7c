//! Which runs are told about, and which nothing more is to be done about.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use wildmatch::WildMatch;

use super::config::ObserverSection;
use super::event::Run;

/// Runs whose end is known to be in the journal, remembered so that the overlap is not asked for again: twice as many at
/// most. Further ones are looked up in the journal.
const SEEN: usize = 20_000;

/// Runs that could not be read, remembered until they can; further ones are only tried again.
const TROUBLED: usize = 1_000;
/// Attempts to read how a run ended, at least, before it is given up.
const ATTEMPTS: u32 = 10;

/// Which workflows are told about.
#[derive(Debug)]
pub(crate) struct Wanted {
    types: Vec<WildMatch>,
    task_queues: Vec<WildMatch>,
}

impl Wanted {
    pub(crate) fn new(section: &ObserverSection) -> Self {
        let globs = |globs: &[String]| globs.iter().map(|glob| WildMatch::new(glob)).collect();
        Self { types: globs(&section.types), task_queues: globs(&section.task_queues) }
    }

    pub(crate) fn fits(&self, run: &Run) -> bool {
        let fits = |globs: &[WildMatch], name: &str| globs.is_empty() || globs.iter().any(|glob| glob.matches(name));
        fits(&self.types, &run.workflow_type) && fits(&self.task_queues, &run.task_queue)
    }
}

/// Runs that nothing more is to be done about: two generations, so that what is forgotten is old.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    young: HashSet<Box<str>>,
    old: HashSet<Box<str>>,
}

impl Seen {
    pub(crate) fn contains(&self, run_id: &str) -> bool {
        self.young.contains(run_id) || self.old.contains(run_id)
    }

    pub(crate) fn add(&mut self, run_id: &str) {
        if self.young.len() >= SEEN {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(run_id.into());
    }
}

/// Runs whose end cannot be read. They hold the position where it is, but not for ever.
#[derive(Debug, Default)]
pub(crate) struct Troubled {
    runs: HashMap<String, (Duration, u32)>,
    /// When a run could be read.
    last_read: Option<Duration>,
}

impl Troubled {
    /// Whether a run could not be read before.
    pub(crate) fn contains(&self, run_id: &str) -> bool {
        self.runs.contains_key(run_id)
    }

    /// A run was read.
    pub(crate) fn read(&mut self, run_id: &str, now: Duration) {
        self.runs.remove(run_id);
        self.last_read = Some(now);
    }

    /// A run could not be read. True once that has gone on so long, though others could be read meanwhile: it is the run.
    pub(crate) fn is_given_up(&mut self, run_id: &str, lasts: Duration, now: Duration) -> bool {
        if self.runs.len() >= TROUBLED && !self.runs.contains_key(run_id) {
            return false;
        }
        let (since, attempts) = self.runs.entry(run_id.to_owned()).or_insert((now, 0));
        *attempts += 1;
        let others = self.last_read.is_some_and(|read| read > *since);
        *attempts >= ATTEMPTS && now.saturating_sub(*since) >= lasts && others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_given_up_late_and_only_where_others_can_be_read() {
        let secs = Duration::from_secs;
        let mut troubled = Troubled::default();
        for second in 0..5_000 {
            assert!(!troubled.is_given_up("r", secs(3600), secs(second)), "nothing can be read");
        }
        troubled.read("other", secs(5_000));
        assert!(troubled.is_given_up("r", secs(3600), secs(5_001)));

        troubled.read("r", secs(5_002));
        for second in 0..3600 {
            assert!(!troubled.is_given_up("r", secs(3600), secs(6_000 + second)));
            troubled.read("other", secs(6_000 + second));
        }
        assert!(troubled.is_given_up("r", secs(3600), secs(9_600)));
    }

    #[test]
    fn what_is_forgotten_is_old() {
        let mut seen = Seen::default();
        for number in 0..=SEEN + 10 {
            seen.add(&number.to_string());
        }
        assert!(seen.contains("0") && seen.contains(&(SEEN + 10).to_string()));
        for number in 0..SEEN {
            seen.add(&format!("later-{number}"));
        }
        assert!(!seen.contains("0") && seen.contains(&(SEEN + 5).to_string()) && seen.contains("later-0"));
        assert!(seen.young.len() + seen.old.len() <= 2 * SEEN);
    }
}
