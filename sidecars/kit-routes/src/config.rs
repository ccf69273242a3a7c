//! The sections of the configuration: further sinks, routes, and how routes are read again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kit::config::Problems;
use kit_amqp::AmqpSection;
use kit_delivery::config::{GatewaySection, check_seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::jq::JqLimits;

/// Further sinks at most: each has a task and a window of its own.
const SINKS: usize = 32;

/// A sink beside the daemon's own, `[sinks.<name>]`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SinkSection {
    /// `type = "http"`: everything that `[gateway]` has.
    Http(Box<GatewaySection>),
    /// `type = "amqp"`: everything that `[amqp]` has.
    Amqp(Box<AmqpSection>),
}

/// One route, `[[route]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteSection {
    /// Its name in metrics, reasons and the API: 1 to 64 of a-z, 0-9, - and _.
    pub name: String,
    /// Event types it is about, as globs with `*` and `?`; matched against the type and its alias. All, when empty.
    pub types: Vec<String>,
    /// Conditions on the event; all must hold.
    pub when: Vec<WhenSection>,
    /// jq program over the CloudEvent (the body is `.data`) that must give `true`.
    pub filter: Option<String>,
    /// Sinks that get the event.
    pub to: Vec<String>,
    /// By sink: jq program over the CloudEvent whose one value becomes the event's data for that sink.
    pub transform: BTreeMap<String, String>,
    /// The event goes nowhere, unless a route before this one has matched.
    pub drop: bool,
}

/// One condition on a field of the event. Exactly one of `equals`, `one_of`, `exists` and `not` is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WhenSection {
    /// `type`, `source`, `subject`, `tenantid`, `id`, `typealias`, or `data.` and a dotted path into the JSON body.
    pub field: String,
    /// The field must be this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// The field must be one of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    /// The field must be there (`true`), or must not be there (`false`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// The field must not be this; one that is not there is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Value>,
}

/// Where routes come from, and what jq may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoutesSection {
    /// File with `[[route]]` and `default_route`, instead of those of the configuration. It is read again on SIGHUP
    /// and when it changes, all or nothing.
    pub file: Option<PathBuf>,
    /// Seconds between two looks at the file; a change is taken when it is seen twice alike.
    pub look_seconds: f64,
    /// Sinks that get what no route has matched. All, when empty.
    pub default_route: Vec<String>,
    /// What a jq program may use. Processes for it are started only where a route has one.
    pub jq: JqSection,
}

/// What a jq program may use. One that needs more makes a dead letter of its event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JqSection {
    /// Processes that run programs, at most. One sink uses one less, so that its programs hold up no other sink.
    pub workers: usize,
    /// Seconds of processor time for one event; up to one more is given.
    pub time_limit_seconds: u32,
    /// Bytes of memory of one process, its code and the parsed body included.
    pub memory_limit_bytes: u64,
    /// Bytes of what one program gives.
    pub output_limit_bytes: usize,
}

impl Default for RoutesSection {
    fn default() -> Self {
        Self { file: None, look_seconds: 2.0, default_route: Vec::new(), jq: JqSection::default() }
    }
}

impl Default for JqSection {
    fn default() -> Self {
        Self { workers: 2, time_limit_seconds: 1, memory_limit_bytes: 128 << 20, output_limit_bytes: 1 << 20 }
    }
}

impl From<&JqSection> for JqLimits {
    fn from(section: &JqSection) -> Self {
        Self {
            workers: section.workers,
            seconds: section.time_limit_seconds,
            memory_bytes: section.memory_limit_bytes,
            answer_bytes: section.output_limit_bytes,
        }
    }
}

impl RoutesSection {
    fn validate(&self, problems: &mut Problems) {
        check_seconds("routes.look_seconds", self.look_seconds, problems);
        self.jq.validate("routes.jq", problems);
    }
}

impl JqSection {
    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let mut bounds = |name: &str, value: u64, bounds: std::ops::RangeInclusive<u64>| {
            if !bounds.contains(&value) {
                let (least, most) = (bounds.start(), bounds.end());
                problems.add(&format!("{prefix}.{name}"), &format!("must be between {least} and {most}"));
            }
        };
        bounds("workers", self.workers as u64, 1..=64);
        bounds("time_limit_seconds", u64::from(self.time_limit_seconds), 1..=60);
        bounds("memory_limit_bytes", self.memory_limit_bytes, 32 << 20..=4 << 30);
        bounds("output_limit_bytes", self.output_limit_bytes as u64, 1024..=64 << 20);
    }
}

/// What the configuration says about routing.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// Names of the sinks that the daemon has anyway.
    pub own: &'a [&'a str],
    /// `[sinks.<name>]`.
    pub sinks: &'a BTreeMap<String, SinkSection>,
    /// `[[route]]`.
    pub route: &'a [RouteSection],
    /// `[routes]`.
    pub routes: &'a RoutesSection,
}

impl Routing<'_> {
    /// Checks the values that no file is needed for.
    pub fn validate(&self, problems: &mut Problems) {
        for (name, sink) in self.sinks {
            let path = format!("sinks.{name}");
            if !fits(name) || self.own.contains(&name.as_str()) {
                let own = self.own.join(", ");
                problems.add(&path, &format!("must be named with 1 to 64 of a-z, 0-9, - and _, and not {own}"));
            }
            match sink {
                SinkSection::Http(section) => section.validate(&path, problems),
                SinkSection::Amqp(section) => section.validate(&path, problems),
            }
        }
        if self.sinks.len() > SINKS {
            problems.add("sinks", &format!("must be at most {SINKS}"));
        }
        self.routes.validate(problems);
        if self.routes.file.is_some() && !(self.route.is_empty() && self.routes.default_route.is_empty()) {
            let text = "is set, so that the configuration must have no [[route]] and no routes.default_route: move \
                        them to that file";
            problems.add("routes.file", text);
        }
    }

    /// Every sink's name: the daemon's own first, the others in order.
    pub fn names(&self) -> Vec<String> {
        self.own.iter().map(|name| (*name).to_owned()).chain(self.sinks.keys().cloned()).collect()
    }
}

/// Whether this can name a sink or a route.
pub(crate) fn fits(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}
