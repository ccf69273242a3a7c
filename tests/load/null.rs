//! The webhook processor over a journal that stores nothing: what everything but the journal costs.
//! Same admission, same writing thread, same deliveries; events live in memory until settled.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kit::clock::{SharedClock, SystemClock, Timestamp};
use kit::config::{Problems, WellKnown};
use kit::lifecycle::Shell;
use kit::run::{Daemon, StartError};
use kit::telemetry::Metrics;
use kit_delivery::start::begin_over;
use kit_journal::engine::{
    Action, ActionOutcome, Attempt, AuditRecord, Commit, Committed, Engine, ExceptionRow, ExceptionState, Found, Page,
    Reader, SinkRow, Statistics, Verdict,
};
use kit_journal::{EventFilter, EventId, Journal, JournalError, Seq, StoredEvent};
use lago_webhook_processor::LagoWebhookProcessor;
use lago_webhook_processor::config::Config;

/// Runs it; configuration comes from the environment, as the real one's.
pub(crate) fn main() -> ExitCode {
    kit::run::main_with_args::<OverNothing>(vec!["null-journal".into()])
}

struct OverNothing;

impl Daemon for OverNothing {
    const NAME: &'static str = "null-journal";
    const VERSION: &'static str = "0";
    const REFERENCE: &'static str = "";
    const ABOUT: &'static str = "The webhook processor over a journal that stores nothing.";
    type Config = Config;

    fn well_known() -> Vec<WellKnown> {
        LagoWebhookProcessor::well_known()
    }

    fn check(config: &Config, problems: &mut Problems) {
        LagoWebhookProcessor::check(config, problems);
    }

    async fn start(config: Config, metrics: Arc<Metrics>, shell: &mut Shell) -> Result<(), StartError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let memory = Arc::new(Mutex::new(Memory::default()));
        let reading = Arc::clone(&memory);
        let opened = metrics.with_registry(|registry| {
            let readers = Box::new(move || Ok(Box::new(Handle(Arc::clone(&reading))) as Box<dyn Reader>));
            Journal::over(Box::new(Handle(memory)), readers, &config.journal, Arc::clone(&clock), registry)
        });
        let opened = opened.map_err(|error| StartError { code: 1, message: kit::error::chain(&error) })?;
        let begun = begin_over(shell, opened);
        LagoWebhookProcessor::start_over(begun, config, metrics, shell).await
    }
}

#[derive(Default)]
struct Memory {
    last: Seq,
    cursor: Seq,
    delivered: u64,
    /// Nothing is kept for a sink that takes nothing: memory that grows would be measured with it.
    paused: bool,
    events: VecDeque<StoredEvent>,
}

struct Handle(Arc<Mutex<Memory>>);

impl Handle {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Handle {
    fn commit(&mut self, commit: &mut Commit) -> Result<Committed, JournalError> {
        let mut memory = self.memory();
        let mut verdicts = Vec::with_capacity(commit.appends.len());
        for append in &commit.appends {
            memory.last += 1;
            let seq = memory.last;
            verdicts.push(Verdict { id: append.head().id, seq, duplicate: false, conflict: false, withheld: false });
            if !memory.paused {
                let (head, body) = (append.head().clone(), append.body().to_vec().into());
                memory.events.push_back(StoredEvent { seq, at: commit.at, head, body });
            }
        }
        for settlement in &commit.settlements {
            memory.cursor = memory.cursor.max(settlement.cursor);
            memory.delivered = u64::try_from(memory.cursor).unwrap_or(0);
        }
        while memory.events.front().is_some_and(|event| event.seq <= memory.cursor) {
            memory.events.pop_front();
        }
        for action in &commit.actions {
            if let Action::Pause { paused, .. } = action {
                memory.paused = *paused;
            }
        }
        let actions = commit.actions.iter().map(|_| ActionOutcome::default()).collect();
        Ok(Committed { verdicts, actions, last_seq: memory.last, synced: true, ..Committed::default() })
    }

    fn reopen(&mut self, _: bool) -> Result<(), JournalError> {
        Ok(())
    }

    fn idle(&mut self, _: Timestamp) -> Result<(), JournalError> {
        Ok(())
    }

    fn last_seq(&self) -> Seq {
        self.memory().last
    }

    fn known(&self, _: &str, _: &str) -> Result<Vec<(EventId, Seq)>, JournalError> {
        Ok(Vec::new())
    }

    fn remembered(&self, _: &str) -> Result<(Option<Vec<u8>>, Option<Timestamp>), JournalError> {
        Ok((None, None))
    }

    fn dedupe_memory(&self) -> (u64, u64) {
        (0, 0)
    }

    fn used_bytes(&self) -> Result<u64, JournalError> {
        Ok(0)
    }

    fn close(self: Box<Self>) {}
}

impl Reader for Handle {
    fn events_after(
        &mut self,
        _: &str,
        after: Seq,
        limit: u32,
        max_bytes: u64,
    ) -> Result<(Vec<StoredEvent>, Vec<Seq>), JournalError> {
        let memory = self.memory();
        let mut bytes = 0;
        let wanted = memory.events.iter().skip_while(|event| event.seq <= after).take(limit as usize);
        let wanted = wanted.take_while(|event| {
            let fits = bytes < max_bytes;
            bytes += event.body.len() as u64;
            fits
        });
        Ok((wanted.cloned().collect(), Vec::new()))
    }

    fn event(&mut self, seq: Seq) -> Result<Option<StoredEvent>, JournalError> {
        Ok(self.memory().events.iter().find(|event| event.seq == seq).cloned())
    }

    fn find(&mut self, _: EventId) -> Result<Option<Seq>, JournalError> {
        Ok(None)
    }

    fn blocked(&mut self, _: &str, _: u32) -> Result<Vec<ExceptionRow>, JournalError> {
        Ok(Vec::new())
    }

    fn rows_between(&mut self, _: &str, _: Seq, _: Seq) -> Result<Vec<Seq>, JournalError> {
        Ok(Vec::new())
    }

    fn not_in_state(&mut self, _: &str, _: &[Seq], _: ExceptionState) -> Result<Vec<Seq>, JournalError> {
        Ok(Vec::new())
    }

    fn replays(
        &mut self,
        _: &str,
        _: Timestamp,
        _: u32,
    ) -> Result<(Vec<ExceptionRow>, Option<Timestamp>), JournalError> {
        Ok((Vec::new(), None))
    }

    fn sink(&mut self, name: &str) -> Result<SinkRow, JournalError> {
        let memory = self.memory();
        Ok(SinkRow {
            name: name.to_owned(),
            start: 0,
            cursor: memory.cursor,
            delivered: memory.delivered,
            open: 0,
            parked: 0,
            dropped: 0,
            filtered: 0,
            ahead: 0,
            paused: memory.paused,
        })
    }

    fn search(&mut self, _: &EventFilter, _: Option<Seq>, _: u32, _: u64) -> Result<Page, JournalError> {
        Ok(Page { found: Vec::new(), next: None, examined: 0 })
    }

    fn found(&mut self, _: Seq) -> Result<Option<Found>, JournalError> {
        Ok(None)
    }

    fn attempts(&mut self, _: Seq) -> Result<Vec<(String, Attempt)>, JournalError> {
        Ok(Vec::new())
    }

    fn audit(&mut self, _: Option<i64>, _: u32) -> Result<Vec<(i64, AuditRecord)>, JournalError> {
        Ok(Vec::new())
    }

    fn value(&mut self, _: &str) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(None)
    }

    fn values(&mut self, _: &str) -> Result<Vec<(String, Vec<u8>)>, JournalError> {
        Ok(Vec::new())
    }

    fn statistics(&mut self) -> Result<Statistics, JournalError> {
        let sink = self.sink("gateway")?;
        let accepted = u64::try_from(self.memory().last).unwrap_or(0);
        Ok(Statistics { accepted, used_bytes: 0, oldest_seq: None, oldest_at: None, sinks: vec![sink] })
    }

    fn oldest_pending(&mut self, _: &str) -> Result<Option<Timestamp>, JournalError> {
        Ok(None)
    }
}
