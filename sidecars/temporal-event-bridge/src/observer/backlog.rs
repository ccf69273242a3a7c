//! Task queues that have work and no worker: nothing goes on there, and nothing fails either.

use std::collections::BTreeMap;
use std::time::Duration;

use kit::clock::SharedClock;
use kit::lifecycle::StopToken;
use kit_journal::{Dedupe, EventHead, EventId, Journal, NewEvent};
use kit_temporal::api::enums::v1::{TaskQueueKind, TaskQueueType};
use kit_temporal::api::taskqueue::v1::TaskQueue;
use kit_temporal::api::workflowservice::v1::{DescribeTaskQueueRequest, DescribeTaskQueueResponse};
use kit_temporal::{Temporal, TemporalError};
use serde_json::json;

use super::event::source;
use super::metrics::ObserverMetrics;
use crate::direction::OBSERVED;

/// Names of values in the journal: this, the namespace, `/` and the task queue. The value is the key of the event that told
/// about it.
const PREFIX: &str = "observer/stalled/";
/// Task queues at most: each is a label value and two questions a look.
const QUEUES: usize = 50;
/// Between looks at two task queues, unless one alone is to be looked at more often.
const BETWEEN_QUEUES: Duration = Duration::from_secs(45);

/// What a look at a task queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Tasks that wait.
    pub(crate) backlog: i64,
    /// Workers that asked for tasks in the last minutes.
    pub(crate) pollers: usize,
}

/// What is to be told about a task queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Work waits and nobody takes it.
    Stalled,
    /// That is over.
    Resumed,
}

/// What is known of one task queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Looks in a row that found work and no worker.
    bad: u32,
    /// Key of the event that told so.
    told: Option<String>,
}

impl Watched {
    /// Takes a look into account.
    pub(crate) fn judge(&mut self, found: Found, looks: u32) -> Option<Tell> {
        if found.backlog > 0 && found.pollers == 0 {
            self.bad = self.bad.saturating_add(1);
            return (self.bad >= looks && self.told.is_none()).then_some(Tell::Stalled);
        }
        self.bad = 0;
        // Work that has gone without a worker was taken back, or has timed out: nothing waits any more.
        self.told.is_some().then_some(Tell::Resumed)
    }
}

/// Looks at the task queues of one namespace.
pub(crate) struct Backlog {
    temporal: Temporal,
    journal: Journal,
    clock: SharedClock,
    namespace: String,
    queues: BTreeMap<String, Watched>,
    every: Duration,
    looks: u32,
    metrics: ObserverMetrics,
}

impl std::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backlog").field("queues", &self.queues.keys()).finish_non_exhaustive()
    }
}

impl Backlog {
    pub(crate) fn new(
        temporal: Temporal,
        journal: Journal,
        clock: SharedClock,
        namespace: &str,
        task_queues: impl Iterator<Item = String>,
        (every, looks): (Duration, u32),
        metrics: ObserverMetrics,
    ) -> Self {
        let queues: BTreeMap<String, Watched> =
            task_queues.take(QUEUES).map(|name| (name, Watched::default())).collect();
        for name in queues.keys() {
            metrics.queue(namespace, name, 0, false);
        }
        Self { temporal, journal, clock, namespace: namespace.to_owned(), queues, every, looks, metrics }
    }

    /// Looks until the daemon stops.
    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        tokio::select! {
            () = stop.stopped() => {}
            () = self.watch() => {}
        }
        Ok(())
    }

    async fn watch(&mut self) {
        self.recall().await;
        if self.queues.is_empty() {
            return std::future::pending().await;
        }
        let names: Vec<String> = self.queues.keys().cloned().collect();
        // Spread over the time, so that they are no burst; and of many each is looked at more rarely.
        let pause = (self.every / u32::try_from(names.len()).unwrap_or(u32::MAX)).max(BETWEEN_QUEUES.min(self.every));
        loop {
            for name in &names {
                tokio::time::sleep(pause.mul_f64(1.0 + 0.05 * fastrand::f64())).await;
                match self.look(name).await {
                    Ok(found) => self.judge(name, found).await,
                    Err(error) => {
                        tracing::debug!(task_queue = %name, error = %error, "task queue {name} cannot be looked at now: {error}");
                    }
                }
            }
        }
    }

    /// What was told before the restart.
    async fn recall(&mut self) {
        let prefix = format!("{PREFIX}{}/", self.namespace);
        let (from, length) = (prefix.clone(), prefix.len());
        let stored = self.journal.read(move |reader| reader.values(&from)).await.unwrap_or_default();
        for (name, key) in stored {
            if let Some(watched) = self.queues.get_mut(&name[length..]) {
                *watched = Watched { bad: self.looks, told: String::from_utf8(key).ok() };
            }
        }
    }

    /// Workflow and activity tasks of a queue together.
    async fn look(&self, name: &str) -> Result<Found, TemporalError> {
        let mut found = Found { backlog: 0, pollers: 0 };
        for kind in [TaskQueueType::Workflow, TaskQueueType::Activity] {
            let answer = self.temporal.describe_task_queue(question(&self.namespace, name, kind)).await?;
            let (backlog, pollers) = (waiting(&answer), answer.pollers.len());
            // Workflows that nobody works on are a standstill, whoever does activities; and the other way round.
            if backlog > 0 && pollers == 0 {
                return Ok(Found { backlog, pollers });
            }
            found.backlog += backlog;
            found.pollers += pollers;
        }
        Ok(found)
    }

    async fn judge(&mut self, name: &str, found: Found) {
        let looks = self.looks;
        let Some(watched) = self.queues.get_mut(name) else { return };
        let told = watched.judge(found, looks);
        let key = match (told, &watched.told) {
            (Some(Tell::Stalled), _) => format!("{}/{name}/stalled/{}", self.namespace, self.clock.now()),
            (Some(Tell::Resumed), Some(stalled)) => format!("{stalled}/resumed"),
            _ => {
                self.metrics.queue(&self.namespace, name, found.backlog, watched.told.is_some());
                return;
            }
        };
        let is_stalled = told == Some(Tell::Stalled);
        let event = self.event(name, found, is_stalled, &key);
        let remembered = if is_stalled { key.clone().into_bytes() } else { Vec::new() };
        let value = (format!("{PREFIX}{}/{name}", self.namespace), remembered);
        match self.journal.append_recording(vec![event], vec![value]).await {
            Ok(_) if is_stalled => {
                tracing::warn!(task_queue = %name, count = found.backlog, "task queue {name} has work and no worker");
            }
            Ok(_) => tracing::info!(task_queue = %name, "task queue {name} has a worker again"),
            Err(error) => {
                let error = kit::error::chain(&error);
                tracing::warn!(task_queue = %name, error = %error, "what is found about task queue {name} cannot be told yet: {error}");
                return;
            }
        }
        if let Some(watched) = self.queues.get_mut(name) {
            watched.told = is_stalled.then_some(key);
        }
        self.metrics.queue(&self.namespace, name, found.backlog, is_stalled);
    }

    fn event(&self, name: &str, found: Found, is_stalled: bool, key: &str) -> NewEvent {
        let source = source(&self.namespace);
        let kind = if is_stalled { "temporal.task_queue.stalled" } else { "temporal.task_queue.resumed" };
        let head = EventHead {
            json: true,
            scope: Some(OBSERVED.to_owned()),
            time: Some(self.clock.now().to_string()),
            ..EventHead::new(EventId::derive(&source, key, None), source, kind, format!("task-queue/{name}"), key)
        };
        let data = json!({
            "namespace": self.namespace,
            "task_queue": name,
            "backlog": found.backlog,
            "pollers": found.pollers,
        });
        NewEvent { head, body: data.to_string().into_bytes(), dedupe: Dedupe::Key }
    }
}

/// Older servers tell a hint in the status, newer ones the statistics: both are asked for.
fn question(namespace: &str, name: &str, kind: TaskQueueType) -> DescribeTaskQueueRequest {
    #[expect(deprecated, reason = "what servers before 1.29 understand")]
    DescribeTaskQueueRequest {
        namespace: namespace.to_owned(),
        task_queue: Some(TaskQueue { name: name.to_owned(), kind: TaskQueueKind::Normal as i32, ..Default::default() }),
        task_queue_type: kind as i32,
        report_stats: true,
        include_task_queue_status: true,
        ..Default::default()
    }
}

fn waiting(answer: &DescribeTaskQueueResponse) -> i64 {
    let counted = answer.stats.as_ref().map(|stats| stats.approximate_backlog_count);
    #[expect(deprecated, reason = "what servers before 1.29 answer")]
    let hinted = answer.task_queue_status.as_ref().map(|status| status.backlog_count_hint);
    counted.unwrap_or(0).max(hinted.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_told_once_and_its_end_once() {
        let mut watched = Watched::default();
        let looks = |backlog, pollers| Found { backlog, pollers };

        assert_eq!(watched.judge(looks(5, 1), 2), None, "a worker is there");
        assert_eq!(watched.judge(looks(5, 0), 2), None, "it may only be restarted");
        assert_eq!(watched.judge(looks(5, 1), 2), None);
        assert_eq!(watched.judge(looks(5, 0), 2), None);
        assert_eq!(watched.judge(looks(6, 0), 2), Some(Tell::Stalled));
        assert_eq!(watched.judge(looks(6, 0), 2), Some(Tell::Stalled), "until the journal has it");
        watched.told = Some("k".to_owned());
        assert_eq!(watched.judge(looks(7, 0), 2), None);
        assert_eq!(watched.judge(looks(7, 1), 2), Some(Tell::Resumed));
        watched.told = None;
        assert_eq!(watched.judge(looks(0, 0), 2), None, "no work and no worker is no standstill");
    }
}
