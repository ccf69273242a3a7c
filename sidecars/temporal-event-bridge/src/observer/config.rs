//! What can be set about observing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kit::config::Problems;
use kit::secret::Secret;
use kit_temporal::config::namespace_mistake;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sweep::{Pace, ServerTime};

/// Visibility stores give at most so many rows a page (`frontend.visibilityMaxPageSize`).
const LARGEST_PAGE: u32 = 1000;

/// How the ends of workflows become events `temporal.workflow.*`. Nothing is observed where there is nobody to tell: no
/// gateway, no `[amqp]` and no `[sinks]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObserverSection {
    /// Observe at all.
    pub enabled: bool,
    /// Namespaces that are observed; the one of `temporal.namespace` where this is empty.
    pub namespaces: Vec<String>,
    /// Only workflows of these types, as globs; all of them where this is empty.
    pub types: Vec<String>,
    /// Only workflows on these task queues, as globs; all of them where this is empty.
    pub task_queues: Vec<String>,
    /// Only workflows that this visibility query finds, such as `CustomerTier = "gold"`. Needs a server whose visibility
    /// store takes queries (1.24 and later do).
    pub query: String,
    /// Tell about every run that another one follows (retried, continued as new, due again by its schedule) with
    /// `temporal.workflow.continued`; otherwise only how the last run of such a chain ended.
    pub continued: bool,
    /// Where observing begins with a new journal: `now`, or a time such as `2026-11-01T00:00:00Z`. What the server has
    /// forgotten after its retention cannot be told.
    pub since: String,
    /// Seconds between two looks at what has closed, while nothing closes.
    pub idle_seconds: f64,
    /// Seconds between two looks while workflows close. Visibility is limited to 10 questions a second and namespace.
    pub busy_seconds: f64,
    /// Seconds that every look goes back over what was seen before: rows do not appear in order.
    pub overlap_seconds: f64,
    /// Seconds that the wide look at start, and then every so often, goes back.
    pub wide_overlap_seconds: f64,
    /// Seconds between two wide looks.
    pub wide_seconds: f64,
    /// Rows in one answer.
    pub page_size: u32,
    /// Ends that are read at a time.
    pub concurrency: usize,
    /// Runs started or signalled by this daemon that are looked after one by one until they end, so that an end that never
    /// becomes visible is found all the same. Further ones are only found by looking at what has closed.
    pub tracked: usize,
    /// Seconds between two looks at a tracked run, at first; the longer it runs, the rarer, down to once an hour.
    pub tracked_seconds: f64,
    /// Seconds that the server must know nothing of a run that was started here, or fail over a run that has closed, before
    /// its end is told as unknown.
    pub unknown_after_seconds: f64,
    /// Put the result (and the details of a cancellation or termination) into the event.
    pub result: bool,
    /// Put the failure (message, type, details, causes; never stack traces), or the reason of a termination, into the event.
    pub failure: bool,
    /// Put the memo into the event.
    pub memo: bool,
    /// Search attributes that are put into the event, as globs.
    pub search_attributes: Vec<String>,
    /// Names of members, as globs, whose values are replaced by `[redacted]` wherever they occur in results, details and
    /// memos, in upper or lower case. What is not JSON is left out then.
    pub redact: Vec<String>,
    /// Largest result, memo or details in bytes; of larger ones the event tells the size.
    pub payload_limit_bytes: usize,
    /// Completion callbacks, which tell about an end at once.
    pub callbacks: CallbackSection,
    /// Task queues that have work and no worker.
    pub backlog: BacklogSection,
}

/// Completion callbacks: Temporal tells this daemon when a workflow that it started ends, instead of only being asked.
/// Needs a server 1.27 or later that lists the address in `callback.allowedAddresses` (`component.callbacks.allowedAddresses`
/// before 1.32). The same end is told once all the same, and one whose callback is lost is found by looking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CallbackSection {
    /// Address of this daemon's public listener as Temporal reaches it, such as `http://temporal-event-bridge:8084`. No
    /// callbacks without.
    pub url: Option<String>,
    /// Token that the callbacks carry, so that nobody else has runs looked at.
    pub token: Option<Secret>,
    /// File with the token.
    pub token_file: Option<PathBuf>,
}

/// Task queues that have work and no worker, told as `temporal.task_queue.stalled` and, once it is over,
/// `temporal.task_queue.resumed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BacklogSection {
    /// Seconds between two looks; 0 does not look.
    pub seconds: f64,
    /// Task queues that are looked at, beside those that rules name.
    pub task_queues: Vec<String>,
    /// Looks in a row that find work and no worker before it is told: a worker that is restarted is no event.
    pub looks: u32,
}

impl Default for BacklogSection {
    fn default() -> Self {
        Self { seconds: 60.0, task_queues: Vec::new(), looks: 2 }
    }
}

impl Default for ObserverSection {
    fn default() -> Self {
        Self {
            enabled: true,
            namespaces: Vec::new(),
            types: Vec::new(),
            task_queues: Vec::new(),
            query: String::new(),
            continued: false,
            since: "now".to_owned(),
            idle_seconds: 2.5,
            busy_seconds: 1.0,
            overlap_seconds: 60.0,
            wide_overlap_seconds: 3600.0,
            wide_seconds: 3600.0,
            page_size: 500,
            concurrency: 8,
            tracked: 20_000,
            tracked_seconds: 120.0,
            unknown_after_seconds: 3600.0,
            result: true,
            failure: true,
            memo: true,
            search_attributes: Vec::new(),
            redact: Vec::new(),
            payload_limit_bytes: 64 << 10,
            callbacks: CallbackSection::default(),
            backlog: BacklogSection::default(),
        }
    }
}

impl ObserverSection {
    /// Checks what no file is needed for.
    pub fn validate(&self, path: &str, problems: &mut Problems) {
        let mut between = |name: &str, value: f64, least: f64, most: f64| {
            if !(least..=most).contains(&value) {
                problems.add(&format!("{path}.{name}"), &format!("must be between {least} and {most}"));
            }
        };
        between("idle_seconds", self.idle_seconds, 0.2, 600.0);
        between("busy_seconds", self.busy_seconds, 0.2, 600.0);
        between("overlap_seconds", self.overlap_seconds, 5.0, 3600.0);
        between("wide_overlap_seconds", self.wide_overlap_seconds, 5.0, 604_800.0);
        between("wide_seconds", self.wide_seconds, 1.0, 604_800.0);
        between("tracked_seconds", self.tracked_seconds, 1.0, 3600.0);
        between("unknown_after_seconds", self.unknown_after_seconds, 0.0, 604_800.0);
        between("page_size", f64::from(self.page_size), 1.0, f64::from(LARGEST_PAGE));
        if self.backlog.seconds != 0.0 {
            between("backlog.seconds", self.backlog.seconds, 1.0, 86_400.0);
        }
        between("backlog.looks", f64::from(self.backlog.looks), 1.0, 1000.0);
        let mut add = |name: &str, message: &str| problems.add(&format!("{path}.{name}"), message);
        if !(1..=64).contains(&self.concurrency) {
            add("concurrency", "must be between 1 and 64");
        }
        if let Some(text) = self.namespaces.iter().find_map(|name| namespace_mistake(name)) {
            add("namespaces", &format!("each {text}"));
        }
        if self.namespaces.iter().collect::<BTreeSet<_>>().len() < self.namespaces.len() {
            add("namespaces", "must hold each namespace once");
        }
        if self.callbacks.url.is_none() && (self.callbacks.token.is_some() || self.callbacks.token_file.is_some()) {
            add("callbacks.url", "must be set where callbacks.token is: nobody calls back without it");
        }
        if self.tracked > 1_000_000 {
            add("tracked", "must be at most 1000000");
        }
        if !(1..=4 << 20).contains(&self.payload_limit_bytes) {
            add("payload_limit_bytes", "must be between 1 and 4194304");
        }
        if self.since_time().is_err() {
            add("since", "must be now, or a time such as 2026-11-01T00:00:00Z");
        }
        if let Some(url) = &self.callbacks.url {
            if !(url.starts_with("http://") || url.starts_with("https://")) || url.len() > 512 {
                add("callbacks.url", "must begin with http:// or https:// and have at most 512 characters");
            }
            if self.callbacks.token.is_none() == self.callbacks.token_file.is_none() {
                add("callbacks.token_file", "must be set where callbacks.url is, or callbacks.token in its place");
            }
        }
    }

    /// Where observing begins; `None` is now.
    ///
    /// # Errors
    /// It is neither `now` nor a time.
    pub(crate) fn since_time(&self) -> Result<Option<ServerTime>, jiff::Error> {
        if self.since.eq_ignore_ascii_case("now") {
            return Ok(None);
        }
        self.since.parse::<jiff::Timestamp>().map(|at| Some(ServerTime(at.as_microsecond())))
    }

    pub(crate) fn tracked_first(&self) -> Duration {
        Duration::try_from_secs_f64(self.tracked_seconds).unwrap_or(Duration::from_secs(120))
    }

    pub(crate) fn unknown_after(&self) -> Duration {
        Duration::try_from_secs_f64(self.unknown_after_seconds).unwrap_or(Duration::from_secs(3600))
    }

    pub(crate) fn pace(&self) -> Pace {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60));
        Pace {
            idle: seconds(self.idle_seconds),
            busy: seconds(self.busy_seconds),
            overlap: seconds(self.overlap_seconds),
            wide_overlap: seconds(self.wide_overlap_seconds),
            wide: seconds(self.wide_seconds),
            slice: Duration::from_secs(3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_have_meant_is_told() {
        let check = |section: ObserverSection, expected: &str| {
            let mut problems = Problems::default();
            section.validate("observer", &mut problems);
            let lines = problems.lines(&[]);
            assert!(lines.len() == 1 && lines[0].contains(expected), "{lines:?}");
        };
        let of = |namespaces: &[&str]| ObserverSection {
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            ..ObserverSection::default()
        };
        check(of(&["a", ""]), "SIDECAR_OBSERVER__NAMESPACES: each must be the name of a namespace");
        check(of(&["a", "b c"]), "SIDECAR_OBSERVER__NAMESPACES: each must be");
        check(of(&["a", "b", "a"]), "SIDECAR_OBSERVER__NAMESPACES: must hold each namespace once");
        let callbacks = CallbackSection { token: Some(Secret::from("t".to_owned())), ..CallbackSection::default() };
        let unused = ObserverSection { callbacks, ..ObserverSection::default() };
        check(unused, "SIDECAR_OBSERVER__CALLBACKS__URL: must be set where callbacks.token is");
    }
}
