//! Runs that this daemon started, looked after one by one until they end: an end that never becomes visible, or has been
//! forgotten by the server, is found all the same. They are remembered in the journal, in the commits that change them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kit_journal::Seq;

use super::metrics::ObserverMetrics;

/// Names of values in the journal: this, the namespace, `/` and the run.
const PREFIX: &str = "observer/tracked/";
/// However long a run takes, it is looked at this often.
const RAREST: Duration = Duration::from_secs(3600);

/// Looks that find nothing before a run counts as forgotten.
const MISSING_LOOKS: u32 = 3;

/// Where the tracked runs of a namespace are in the journal.
pub(crate) fn prefix(namespace: &str) -> String {
    format!("{PREFIX}{namespace}/")
}

/// The value that remembers a run.
pub(crate) fn remember(namespace: &str, workflow_id: &str, run_id: &str) -> (String, Vec<u8>) {
    (format!("{PREFIX}{namespace}/{run_id}"), workflow_id.as_bytes().to_vec())
}

/// The value that forgets it.
pub(crate) fn forget(namespace: &str, run_id: &str) -> (String, Vec<u8>) {
    (format!("{PREFIX}{namespace}/{run_id}"), Vec::new())
}

#[derive(Debug)]
struct Entry {
    workflow_id: String,
    due: Duration,
    wait: Duration,
    /// Since when the server knows nothing of it, and in how many looks.
    missing: Option<(Duration, u32)>,
}

/// The tracked runs of one namespace.
#[derive(Debug)]
pub(crate) struct Tracked {
    runs: BTreeMap<Arc<str>, Entry>,
    due: BTreeSet<(Duration, Arc<str>)>,
    limit: usize,
    first_wait: Duration,
}

impl Tracked {
    pub(crate) fn new(limit: usize, first_wait: Duration) -> Self {
        Self { runs: BTreeMap::new(), due: BTreeSet::new(), limit, first_wait }
    }

    /// Looks after a run; false where there are too many already.
    pub(crate) fn add(&mut self, workflow_id: &str, run_id: &str, now: Duration) -> bool {
        if self.runs.contains_key(run_id) {
            return true;
        }
        if self.runs.len() >= self.limit {
            return false;
        }
        let run: Arc<str> = run_id.into();
        let (due, wait) = (now + self.first_wait, self.first_wait);
        let entry = Entry { workflow_id: workflow_id.to_owned(), due, wait, missing: None };
        self.due.insert((entry.due, Arc::clone(&run)));
        self.runs.insert(run, entry);
        true
    }

    pub(crate) fn contains(&self, run_id: &str) -> bool {
        self.runs.contains_key(run_id)
    }

    pub(crate) fn remove(&mut self, run_id: &str) {
        if let Some((run, entry)) = self.runs.remove_entry(run_id) {
            self.due.remove(&(entry.due, run));
        }
    }

    /// The server knows nothing of a run. True once that has lasted so long, over several looks: a server that was started
    /// over the wrong data knows nothing for a while either, and what is told of an end cannot be taken back.
    pub(crate) fn is_missing(&mut self, run_id: &str, lasts: Duration, now: Duration) -> bool {
        let Some(entry) = self.runs.get_mut(run_id) else { return false };
        let (since, looks) = entry.missing.get_or_insert((now, 0));
        *looks += 1;
        *looks >= MISSING_LOOKS && now.saturating_sub(*since) >= lasts
    }

    /// The server knows it.
    pub(crate) fn is_there(&mut self, run_id: &str) {
        if let Some(entry) = self.runs.get_mut(run_id) {
            entry.missing = None;
        }
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Workflow and run that is due first; it is due again after twice the time, unless it is removed.
    pub(crate) fn take_due(&mut self, now: Duration) -> Option<(String, String)> {
        let first = self.due.first().filter(|(due, _)| *due <= now)?;
        let run = Arc::clone(&first.1);
        self.due.pop_first();
        let entry = self.runs.get_mut(&run)?;
        entry.wait = (entry.wait * 2).min(RAREST.max(self.first_wait));
        entry.due = now + entry.wait;
        self.due.insert((entry.due, Arc::clone(&run)));
        Some((entry.workflow_id.clone(), run.to_string()))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }
}

/// What the sink that starts workflows tells the observers.
#[derive(Debug)]
pub struct Tracker {
    namespaces: HashMap<String, Mutex<Tracked>>,
    /// Started, not recorded yet: a delivery that is repeated says so again.
    started: Mutex<HashMap<Seq, (String, String, String)>>,
    began: Instant,
    metrics: ObserverMetrics,
}

impl Tracker {
    pub(crate) fn new(namespaces: &[String], limit: usize, first_wait: Duration, metrics: ObserverMetrics) -> Self {
        let tracked = |namespace: &String| (namespace.clone(), Mutex::new(Tracked::new(limit, first_wait)));
        let namespaces = namespaces.iter().map(tracked).collect();
        Self { namespaces, started: Mutex::default(), began: Instant::now(), metrics }
    }

    /// Nobody observes.
    pub fn nobody() -> Self {
        Self::new(&[], 0, Duration::ZERO, ObserverMetrics::default())
    }

    /// Time since the daemon started, by a clock that never jumps.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A delivery has started this run, or found it running. It is looked after from when the delivery is recorded on. What
    /// is no run's id is passed by: some answers tell none.
    pub fn started(&self, seq: Seq, namespace: &str, workflow_id: &str, run_id: &str) {
        if self.namespaces.contains_key(namespace) && is_run_id(run_id) {
            let run = (namespace.to_owned(), workflow_id.to_owned(), run_id.to_owned());
            lock(&self.started).insert(seq, run);
        }
    }

    /// What is to be remembered in the commit that records these deliveries ([`kit_delivery::Sink::recording`]).
    pub fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        let mut started = lock(&self.started);
        let runs = delivered.iter().filter_map(|seq| started.remove(seq));
        let kept = runs.filter(|(namespace, workflow_id, run_id)| {
            let add = |mut tracked: MutexGuard<'_, Tracked>| tracked.add(workflow_id, run_id, self.now());
            let is_tracked = self.of(namespace).is_some_and(add);
            if !is_tracked {
                self.metrics.untracked(namespace);
            }
            is_tracked
        });
        kept.map(|(namespace, workflow_id, run_id)| remember(&namespace, &workflow_id, &run_id)).collect()
    }

    /// The tracked runs of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> Option<MutexGuard<'_, Tracked>> {
        self.namespaces.get(namespace).map(lock)
    }
}

/// Runs are named by UUIDs.
fn is_run_id(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_run_is_looked_at_ever_more_rarely_until_it_is_removed() {
        let mut tracked = Tracked::new(10, secs(60));
        assert!(tracked.add("w", "r", secs(0)));

        assert_eq!(tracked.take_due(secs(59)), None);
        assert_eq!(tracked.take_due(secs(60)), Some(("w".to_owned(), "r".to_owned())));
        assert_eq!((tracked.take_due(secs(179)), tracked.next_due()), (None, Some(secs(180))));
        for _ in 0..20 {
            let due = tracked.next_due().expect("it is there");
            assert!(tracked.take_due(due).is_some());
        }
        let due = tracked.next_due().expect("it is there");
        assert!(tracked.take_due(due).is_some());
        assert_eq!(tracked.next_due(), Some(due + RAREST));

        tracked.remove("r");
        assert_eq!((tracked.len(), tracked.next_due()), (0, None));
    }

    #[test]
    fn a_run_is_forgotten_by_the_server_when_that_lasts() {
        let mut tracked = Tracked::new(10, secs(60));
        tracked.add("w", "r", secs(0));

        assert!(!tracked.is_missing("r", secs(100), secs(0)));
        assert!(!tracked.is_missing("r", secs(100), secs(200)), "not by two looks");
        tracked.is_there("r");
        assert!(!tracked.is_missing("r", secs(100), secs(300)));
        assert!(!tracked.is_missing("r", secs(100), secs(310)));
        assert!(!tracked.is_missing("r", secs(100), secs(399)), "not before its time");
        assert!(tracked.is_missing("r", secs(100), secs(400)));
    }

    #[test]
    fn there_are_no_more_than_allowed() {
        let mut tracked = Tracked::new(2, secs(60));
        assert!(tracked.add("w", "1", secs(0)) && tracked.add("w", "2", secs(0)) && !tracked.add("w", "3", secs(0)));
        assert!(tracked.add("w", "2", secs(0)), "one that is known is no further one");
        tracked.remove("1");
        assert!(tracked.add("w", "3", secs(0)));
    }

    #[test]
    fn a_started_run_is_remembered_with_its_delivery() {
        let tracker = Tracker::new(&["a".to_owned()], 10, secs(60), ObserverMetrics::default());
        let run = "01a2038e-871c-76cc-b5f0-788cc629850c";
        tracker.started(1, "a", "w1", run);
        tracker.started(2, "elsewhere", "w2", run);
        tracker.started(3, "a", "w3", "in progress");

        assert_eq!(tracker.recording(&[1, 2, 3]), [(format!("observer/tracked/a/{run}"), b"w1".to_vec())]);
        assert_eq!(tracker.recording(&[1]), []);
        assert!(tracker.of("a").is_some_and(|tracked| tracked.contains(run) && tracked.len() == 1));
    }
}
