//! Authentik's worker, as far as it sends webhooks: a notification for each user or for one, a few at a time, tried again
//! for as long as its version does, and then forgotten.
//!
//! Source: goauthentik/authentik `authentik/events/tasks.py` at 2024.10.1 and 2026.2.2; waits computed from Celery 5.4.0
//! and Dramatiq 1.17.1.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::event::{NewEvent, Row};
use super::mapping::{self, Mapping, Recipient, Unmade};
use super::state::AuthentikState;
use super::wire::{self, Unsent};
use crate::blueprint::ACTIONS;
use crate::envelope::SERVICE_ACCOUNT;

/// How a worker sends.
#[derive(Clone, Debug)]
pub struct NotifierOptions {
    /// The transport's URL.
    pub url: String,
    /// Its mappings.
    pub mapping: Mapping,
    /// Whether one notification is sent, or one for each user of the group.
    pub send_once: bool,
    /// Users of the group.
    pub recipients: usize,
    /// Whether the rule's policy is our blueprint's; else everything matches.
    pub has_policy: bool,
    /// Tasks that run at the same time.
    pub slots: usize,
    /// What a second of Authentik takes, in seconds: waits and timeouts are multiplied by it.
    pub time_scale: f64,
    /// What goes wrong on the way.
    pub trouble: Trouble,
}

impl NotifierOptions {
    /// As our blueprint sets it up, in real time.
    pub fn new(url: impl Into<String>, mapping: Mapping) -> Self {
        Self {
            url: url.into(),
            mapping,
            send_once: true,
            recipients: 1,
            has_policy: true,
            slots: 2,
            time_scale: 1.0,
            trouble: Trouble::default(),
        }
    }
}

/// What goes wrong between an event and its webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trouble {
    /// The share of notifications that are lost before they are sent.
    pub lost: f64,
    /// The share that is sent twice.
    pub twice: f64,
    /// Each is held back for a random time up to this: the order is lost.
    pub delay: Duration,
}

/// What became of notifications. Every one that was begun is delivered, given up, or still under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotifierCounts {
    /// Events that the rule was told about.
    pub events: u64,
    /// Of those, not let through by the policy.
    pub refused_by_policy: u64,
    /// Lost on purpose.
    pub lost: u64,
    /// Begun.
    pub begun: u64,
    /// Attempts.
    pub attempts: u64,
    /// Taken by the receiver, as Authentik sees it.
    pub delivered: u64,
    /// Of those, after a redirect: the receiver may not have got them.
    pub redirected: u64,
    /// Given up.
    pub given_up: u64,
}

#[derive(Debug, Default)]
struct Tally {
    events: AtomicU64,
    refused_by_policy: AtomicU64,
    lost: AtomicU64,
    begun: AtomicU64,
    attempts: AtomicU64,
    delivered: AtomicU64,
    redirected: AtomicU64,
    given_up: AtomicU64,
    /// Wakes whoever waits for quiet.
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Job {
    row: Row,
    recipient: usize,
    attempt: u32,
    delay: Duration,
}

/// Where events are told about.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    jobs: mpsc::UnboundedSender<Job>,
    options: Arc<NotifierOptions>,
    tally: Arc<Tally>,
}

impl Queue {
    /// The rule is told about an event.
    pub(super) fn fire(&self, row: &Row) {
        add(&self.tally.events);
        if self.options.has_policy && !passes(row) {
            add(&self.tally.refused_by_policy);
            return;
        }
        let trouble = self.options.trouble;
        let recipients = if self.options.send_once { self.options.recipients.min(1) } else { self.options.recipients };
        for recipient in 0..recipients {
            if fastrand::f64() < trouble.lost {
                add(&self.tally.lost);
                continue;
            }
            let times = if fastrand::f64() < trouble.twice { 2 } else { 1 };
            for _ in 0..times {
                add(&self.tally.begun);
                let delay = trouble.delay.mul_f64(fastrand::f64());
                self.push(Job { row: row.clone(), recipient, attempt: 0, delay });
            }
        }
    }

    /// A worker that has stopped forgets what it is given.
    fn push(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            self.end(&self.tally.given_up);
        }
    }

    fn end(&self, counter: &AtomicU64) {
        add(counter);
        self.tally.changed.notify_waiters();
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::AcqRel);
}

/// The policy of our blueprint.
fn passes(row: &Row) -> bool {
    let action = &*row.new.action;
    let own = action.starts_with("model_") && row.new.user["username"] == SERVICE_ACCOUNT;
    !own && (ACTIONS.contains(&action) || action.starts_with("custom_"))
}

/// A running worker. Dropping it stops it with whatever it was doing.
#[derive(Debug)]
pub struct Notifier {
    queue: Queue,
    tasks: JoinSet<()>,
}

impl Notifier {
    /// Starts a worker that is told about whatever happens from now on.
    pub fn start(state: &Arc<AuthentikState>, options: NotifierOptions) -> Self {
        let (jobs, received) = mpsc::unbounded_channel();
        let slots = options.slots.max(1);
        let queue = Queue { jobs, options: Arc::new(options), tally: Arc::default() };
        let received = Arc::new(tokio::sync::Mutex::new(received));
        let mut tasks = JoinSet::new();
        for _ in 0..slots {
            let worker = Worker { state: Arc::downgrade(state), queue: queue.clone(), received: Arc::clone(&received) };
            tasks.spawn(worker.run());
        }
        state.attach(queue.clone());
        Self { queue, tasks }
    }

    /// What became of notifications so far.
    pub fn counts(&self) -> NotifierCounts {
        let tally = &self.queue.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        NotifierCounts {
            delivered: read(&tally.delivered),
            redirected: read(&tally.redirected),
            given_up: read(&tally.given_up),
            attempts: read(&tally.attempts),
            lost: read(&tally.lost),
            refused_by_policy: read(&tally.refused_by_policy),
            // Last, so that they are never fewer than what has ended.
            begun: read(&tally.begun),
            events: read(&tally.events),
        }
    }

    /// Waits until nothing is under way; whether that happened in time.
    pub async fn quiet(&self, within: Duration) -> bool {
        let quiet = async {
            loop {
                let changed = self.queue.tally.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let counts = self.counts();
                if counts.delivered + counts.given_up == counts.begun {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, quiet).await.is_ok()
    }

    /// Stops it with whatever it was doing, as a crash of the worker does.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

struct Worker {
    state: Weak<AuthentikState>,
    queue: Queue,
    received: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>>,
}

impl Worker {
    async fn run(self) {
        // Waits are beside the slots, which is where tasks that wait are.
        let mut waiting = JoinSet::new();
        loop {
            let next = async { self.received.lock().await.recv().await };
            let job = tokio::select! {
                Some(_) = waiting.join_next(), if !waiting.is_empty() => continue,
                job = next => job,
            };
            let Some(mut job) = job else { return };
            if !job.delay.is_zero() {
                let delay = std::mem::take(&mut job.delay);
                let queue = self.queue.clone();
                waiting.spawn(async move {
                    tokio::time::sleep(delay).await;
                    queue.push(job);
                });
                continue;
            }
            self.attempt(job).await;
        }
    }

    async fn attempt(&self, job: Job) {
        let Some(state) = self.state.upgrade() else {
            return self.queue.end(&self.queue.tally.given_up);
        };
        let options = &self.queue.options;
        let generation = state.generation();
        add(&self.queue.tally.attempts);
        let recipient = Recipient {
            username: if job.recipient == 0 { SERVICE_ACCOUNT.to_owned() } else { format!("member-{}", job.recipient) },
            email: String::new(),
        };
        // The notification is made anew for each attempt, and never stored.
        let nonce = Uuid::new_v4().simple().to_string();
        let made = mapping::make(&options.mapping, generation, &job.row, &recipient, &nonce);
        // Only what the receiver did wrong is tried again by Celery.
        let again = match made {
            Err(unmade) => {
                if unmade == Unmade::Raised {
                    state.happen(NewEvent::of_system("property_mapping_exception", json!({ "message": "…" })));
                }
                generation.retries_everything()
            }
            Ok(made) => {
                let limit = generation.http_timeout().unwrap_or_else(|| generation.task_limit());
                let agent = format!("authentik@{}", generation.version());
                match wire::send(&options.url, &made, &agent, limit.mul_f64(options.time_scale)).await {
                    Ok(sent) if sent.is_success() => {
                        if sent.redirects > 0 {
                            add(&self.queue.tally.redirected);
                        }
                        return self.queue.end(&self.queue.tally.delivered);
                    }
                    // The task is cut off from outside, which is no error of the transport.
                    Err(Unsent::TimedOut) => generation.http_timeout().is_some(),
                    Ok(_) | Err(Unsent::Broken) => true,
                }
            }
        };
        let schedule = generation.retry_schedule();
        if again && job.attempt < schedule.retries {
            let attempt = job.attempt + 1;
            let delay = schedule.wait_before(attempt, fastrand::f64()).mul_f64(options.time_scale);
            return self.queue.push(Job { attempt, delay, ..job });
        }
        if generation.reports_failed_tasks() {
            // With the URL, secrets in it and all.
            let message = format!("Task notification_transport encountered an error: {}", options.url);
            state.happen(NewEvent::of_system("system_task_exception", json!({ "message": message })));
        }
        self.queue.end(&self.queue.tally.given_up);
    }
}
