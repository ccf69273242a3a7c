//! Which runs are told about, and which nothing more is to be done about.

use std::collections::HashSet;

use wildmatch::WildMatch;

use super::config::ObserverSection;
use super::event::Run;

/// Runs whose end is known to be in the journal, remembered so that the overlap is not asked for again: twice as many at
/// most. Further ones are looked up in the journal.
const SEEN: usize = 20_000;

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

#[cfg(test)]
mod tests {
    use super::*;

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
