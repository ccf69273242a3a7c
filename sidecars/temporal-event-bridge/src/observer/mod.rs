//! Ends of workflows become events `temporal.workflow.*`, without anything being changed in the server.
//!
//! `sweep` what is asked for next and how far that has come · `listing` the questions · `outcome` what the end of a run says ·
//! `event` what is told about it · `tracked` runs that are looked after one by one · `worker` one
//! namespace · `sweeping` one look at what has closed in it · `checks` one run at a time · `wanted` which are told about ·
//! `gap` whether more was missed than the server remembers · `callbacks` Temporal saying when to look · `backlog` task queues
//! without workers · `config` what can be set.
//!
//! Sweeps are what is relied on; everything else only makes an end known sooner, or finds what never becomes visible
//! ([ADR 0023](../../../../docs/adr/0023-workflow-ends-by-sweeping.md)).

mod backlog;
mod callbacks;
mod checks;
mod config;
mod event;
mod gap;
mod listing;
mod metrics;
mod outcome;
mod sweep;
mod sweeping;
mod tracked;
mod wanted;
mod worker;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use kit::admin::Readiness;
use kit::clock::SharedClock;
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::secret::{self, Secret, SecretError};
use kit::telemetry::{Metrics, Seldom};
use kit_journal::Journal;
use kit_temporal::Temporal;
use tokio::sync::mpsc;

pub use self::callbacks::Attached;
pub use self::config::{BacklogSection, CallbackSection, ObserverSection};
pub use self::tracked::Tracker;

use self::backlog::Backlog;
use self::callbacks::{Callbacks, WAITING};
use self::event::Teller;
use self::gap::Gap;
use self::metrics::ObserverMetrics;
use self::sweep::ServerTime;
use self::wanted::{Seen, Troubled, Wanted};
use self::worker::Observer;

/// What observing stands on.
#[derive(Debug)]
pub struct Base<'a> {
    /// Where ends are found.
    pub temporal: &'a Temporal,
    /// Where they go.
    pub journal: &'a Journal,
    /// The clock.
    pub clock: &'a SharedClock,
    /// Where metrics go.
    pub metrics: &'a Metrics,
    /// Where it is shown what a person has to mend.
    pub readiness: &'a Readiness,
    /// Task queues that rules name, each with its namespace.
    pub task_queues: Vec<(String, String)>,
}

/// What the rest of the daemon has to do with it.
#[derive(Debug)]
pub struct Observed {
    /// Told of every run that is started here.
    pub tracker: Arc<Tracker>,
    /// Attached to every workflow that is started, where callbacks are configured.
    pub attached: Option<Attached>,
    /// Takes callbacks on the public listener.
    pub router: Router,
}

impl Observed {
    /// Nothing is observed.
    pub fn nothing() -> Self {
        Self { tracker: Arc::new(Tracker::nobody()), attached: None, router: Router::new() }
    }
}

/// Checks what only reading files tells.
pub fn check(section: &ObserverSection, problems: &mut Problems) {
    if let Err(error) = token(&section.callbacks) {
        problems.add("observer.callbacks.token_file", &error.to_string());
    }
}

fn token(section: &CallbackSection) -> Result<Option<Secret>, SecretError> {
    if section.url.is_none() {
        return Ok(None);
    }
    let (value, file) = (section.token.as_ref(), section.token_file.as_deref());
    secret::resolve("SIDECAR_OBSERVER__CALLBACKS__TOKEN", value, "SIDECAR_OBSERVER__CALLBACKS__TOKEN_FILE", file)
}

/// Starts observing.
///
/// # Errors
/// The token of callbacks cannot be read.
pub fn start(shell: &mut Shell, base: Base<'_>, section: &ObserverSection) -> Result<Observed, SecretError> {
    let namespaces = match section.namespaces.as_slice() {
        [] => vec![base.temporal.namespace().to_owned()],
        named => named.to_vec(),
    };
    let token = token(&section.callbacks)?;
    let metrics = base.metrics.with_registry(|registry| ObserverMetrics::register(registry, &namespaces));
    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60));
    let tracker = Tracker::new(&namespaces, section.tracked, section.tracked_first(), metrics.clone());
    let tracker = Arc::new(tracker);
    let teller = Arc::new(Teller::new(section));
    let shared = Arc::new(section.clone());
    let mut asked = HashMap::new();
    for namespace in &namespaces {
        let (ask, answers) = mpsc::channel(WAITING);
        asked.insert(namespace.clone(), ask);
        let observer = Observer {
            temporal: base.temporal.clone(),
            journal: base.journal.clone(),
            namespace: namespace.clone(),
            section: Arc::clone(&shared),
            teller: Arc::clone(&teller),
            tracker: Arc::clone(&tracker),
            asked: answers,
            metrics: metrics.clone(),
            ready: base.readiness.part(&format!("observer of {namespace}")),
            wanted: Wanted::new(section),
            seen: Seen::default(),
            troubled: Troubled::default(),
            clock: Arc::clone(base.clock),
            found_until: None,
            gap: Gap::default(),
            retention: None,
            written: ServerTime::default(),
        };
        shell.spawn(&format!("observer of {namespace}"), observer.run(shell.stop_token()));
        let named = base.task_queues.iter().filter(|(of, _)| of == namespace).map(|(_, queue)| queue);
        let queues: BTreeSet<String> = section.backlog.task_queues.iter().chain(named).cloned().collect();
        if section.backlog.seconds > 0.0 && !queues.is_empty() {
            let backlog = Backlog::new(
                base.temporal.clone(),
                base.journal.clone(),
                Arc::clone(base.clock),
                namespace,
                queues.into_iter(),
                (seconds(section.backlog.seconds), section.backlog.looks),
                metrics.clone(),
            );
            shell.spawn(&format!("task queues of {namespace}"), backlog.run(shell.stop_token()));
        }
    }
    let attached = section.callbacks.url.as_deref().zip(token.clone()).map(|(url, token)| Attached::new(url, token));
    let router = token.map_or_else(Router::new, |token| {
        let (asked, metrics) = (asked.clone(), metrics.clone());
        callbacks::router(Arc::new(Callbacks { token, asked, metrics, said: Seldom::default() }))
    });
    Ok(Observed { tracker, attached, router })
}
