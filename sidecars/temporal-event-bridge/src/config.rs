//! What can be set.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kit::config::{COMMON_WELL_KNOWN, Problems, ProcessSections, Section, WellKnown};
use kit::secret::Secret;
use kit_amqp::{AmqpSection, AmqpSourceSection};
use kit_delivery::config::{CircuitSection, Order, RetrySection};
use kit_delivery::{DispatcherSettings, GatewaySection};
use kit_journal::JournalSection;
use kit_routes::{RouteSection, RoutesSection, SinkSection};
use kit_temporal::TemporalSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::observer::ObserverSection;
use crate::rules::Rules;
pub use crate::rules::{Action, Conflict, Input, OnConflict, OnMissing, Reuse, RuleSection, WorkflowRetrySection};

/// Variables known under names of their own.
pub fn well_known() -> Vec<WellKnown> {
    const OURS: [WellKnown; 5] = [
        WellKnown { env: "BRIDGE_WEBHOOK_SECRET", path: "webhooks.secret" },
        WellKnown { env: "BRIDGE_WEBHOOK_SECRET_FILE", path: "webhooks.secret_file" },
        WellKnown { env: "BRAIN_GATEWAY_URL", path: "gateway.url" },
        WellKnown { env: "AMQP_URL", path: "amqp_source.url" },
        WellKnown { env: "AMQP_URL_FILE", path: "amqp_source.url_file" },
    ];
    let temporal = kit_temporal::config::WELL_KNOWN;
    OURS.into_iter().chain(temporal).chain(COMMON_WELL_KNOWN).chain(kit_journal::config::WELL_KNOWN).collect()
}

/// Configuration of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every daemon has: `listen`, `admin`, `log` and `stop`.
    pub process: ProcessSections,
    /// Where Temporal is and how it is asked.
    pub temporal: TemporalSection,
    /// Events of other daemons.
    pub webhooks: WebhooksSection,
    /// A RabbitMQ queue that events are taken from as well. None where `queue` is empty.
    pub amqp_source: AmqpSourceSection,
    /// What events do to workflows: a list of `[[rule]]`, of which the first that matches is applied. In the environment a
    /// TOML array on one line:
    /// `[{name="dunning", types=["lago.invoice.payment_failure"], workflow_type="Dunning", task_queue="billing"}]`.
    pub rule: Vec<RuleSection>,
    /// How Temporal is called for events.
    pub calls: CallsSection,
    /// How the ends of workflows become events.
    pub observer: ObserverSection,
    /// Where those events go; nowhere without a URL.
    pub gateway: GatewaySection,
    /// The RabbitMQ exchange that they are published to; none without a URL.
    pub amqp: AmqpSection,
    /// Further sinks by name (`a` to `z`, digits, `-` and `_`), each with a `type`; `type = "http"` has everything that
    /// `[gateway]` has, `type = "amqp"` everything that `[amqp]` has. In the environment `SIDECAR_SINKS__AUDIT__TYPE=http`, `SIDECAR_SINKS__AUDIT__URL` and so on.
    pub sinks: BTreeMap<String, SinkSection>,
    /// Which of them go to which sinks: a list of `[[route]]`, see [Routes](routes.md).
    pub route: Vec<RouteSection>,
    /// Where routes come from, what gets no route, and what jq may use.
    pub routes: RoutesSection,
    /// Where and how events are kept.
    pub journal: JournalSection,
}

/// Events of other daemons: `POST /webhooks/events` takes CloudEvents that are signed as Standard Webhooks says. Without a
/// secret there is no such path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksSection {
    /// Standard Webhooks secret (`whsec_…`): the `gateway.signing_secret` of the daemon that sends.
    pub secret: Option<Secret>,
    /// File with secrets, one a line; what is signed with any of them is taken, so that one can replace another.
    pub secret_file: Option<PathBuf>,
    /// Seconds that the sender's clock may differ from ours. A request is signed anew for each attempt.
    pub tolerance_seconds: f64,
    /// Largest body in bytes.
    pub body_limit_bytes: usize,
}

/// How Temporal is called for events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CallsSection {
    /// `subject`: events of one subject go one after the other; `none`: in parallel.
    pub order: Order,
    /// Calls in flight at most.
    pub concurrency: usize,
    /// Calls started per second at most; 0 means no limit.
    pub rate_per_second: u32,
    /// Seconds before each further attempt with an event that Temporal has answered about; after the last one it is
    /// parked. Each is varied by ±20 %. The default ends after three days.
    pub retry_schedule_seconds: Vec<f64>,
    /// When to stop trying for a while.
    pub circuit: CircuitSection,
}

impl Default for CallsSection {
    fn default() -> Self {
        Self {
            order: Order::default(),
            concurrency: 16,
            rate_per_second: 0,
            retry_schedule_seconds: RetrySection::default().schedule_seconds,
            circuit: CircuitSection::default(),
        }
    }
}

impl CallsSection {
    /// As the delivery engine takes it.
    pub(crate) fn settings(&self) -> DispatcherSettings {
        let retry = self.retry();
        DispatcherSettings {
            ordered: self.order == Order::Subject,
            ..DispatcherSettings::unordered((self.concurrency, self.rate_per_second), &retry, &self.circuit)
        }
    }

    fn retry(&self) -> RetrySection {
        RetrySection { schedule_seconds: self.retry_schedule_seconds.clone(), ..RetrySection::default() }
    }

    fn validate(&self, problems: &mut Problems) {
        if !(1..=1024).contains(&self.concurrency) {
            problems.add("calls.concurrency", "must be between 1 and 1024");
        }
        let schedule = &self.retry_schedule_seconds;
        if schedule.len() > 1000 || schedule.iter().any(|seconds| !(0.0..=2_592_000.0).contains(seconds)) {
            problems.add("calls.retry_schedule_seconds", "must be at most 1000 numbers of seconds from 0 to 30 days");
        }
        self.circuit.validate("calls.circuit", problems);
    }
}

impl Default for WebhooksSection {
    fn default() -> Self {
        Self { secret: None, secret_file: None, tolerance_seconds: 300.0, body_limit_bytes: 4 << 20 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: ProcessSections::at_ports(8084, 9084),
            temporal: TemporalSection::default(),
            webhooks: WebhooksSection::default(),
            amqp_source: AmqpSourceSection::default(),
            rule: Vec::new(),
            calls: CallsSection::default(),
            observer: ObserverSection::default(),
            gateway: GatewaySection::default(),
            amqp: AmqpSection::default(),
            sinks: BTreeMap::new(),
            route: Vec::new(),
            routes: RoutesSection::default(),
            journal: JournalSection {
                path: PathBuf::from("/var/lib/outrigger/temporal-event-bridge.db"),
                ..JournalSection::default()
            },
        }
    }
}

/// What does not fit together, though the daemon can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// There are rules, and no way for an event to come.
    NoWayIn,
    /// Events can come, and no rule is for any of them.
    NoRules,
    /// No events in, and nobody to tell of the ends of workflows.
    Nothing,
}

impl Idle {
    /// For a person.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Self::NoWayIn => {
                "no event can come, so the rules do nothing: neither BRIDGE_WEBHOOK_SECRET_FILE nor SIDECAR_AMQP_SOURCE__QUEUE \
                 is set"
            }
            Self::NoRules => {
                "there are no rules: every event that comes is listed as filtered, and does nothing. Set [[rule]]"
            }
            Self::Nothing => {
                "there is nothing to do: no rules, no way for events to come, and no gateway, [amqp] or [sinks] to tell of the \
                 ends of workflows"
            }
        }
    }
}

impl Config {
    /// What does not fit together, if anything does not.
    pub(crate) fn idle(&self) -> Option<Idle> {
        let has_way_in =
            self.webhooks.secret.is_some() || self.webhooks.secret_file.is_some() || self.amqp_source.is_set();
        match (has_way_in, self.rule.is_empty()) {
            (true, false) => None,
            (true, true) => Some(Idle::NoRules),
            (false, false) => Some(Idle::NoWayIn),
            (false, true) => (!self.observer.enabled || !self.outgoing().is_any()).then_some(Idle::Nothing),
        }
    }
}

impl AsRef<ProcessSections> for Config {
    fn as_ref(&self) -> &ProcessSections {
        &self.process
    }
}

impl Section for Config {
    const GROUPS: &'static [&'static str] = &["process"];

    fn validate(&self, problems: &mut Problems) {
        self.process.validate(problems);
        self.journal.validate("journal", problems);
        self.temporal.validate("temporal", problems);
        self.webhooks.validate(problems);
        if self.amqp_source.is_set() {
            self.amqp_source.validate("amqp_source", problems);
        }
        self.amqp_source.validate_unset("amqp_source", problems);
        self.calls.validate(problems);
        if let Err(mistakes) = Rules::compile(&self.rule) {
            mistakes.iter().for_each(|mistake| problems.add("rule", mistake));
        }
        self.outgoing().validate(problems);
        self.observer.validate("observer", problems);
    }
}

impl WebhooksSection {
    fn validate(&self, problems: &mut Problems) {
        if !(1.0..=86_400.0).contains(&self.tolerance_seconds) {
            problems.add("webhooks.tolerance_seconds", "must be a number of seconds from 1 to a day");
        }
        if !(1024..=64 << 20).contains(&self.body_limit_bytes) {
            problems.add("webhooks.body_limit_bytes", "must be between 1024 and 67108864");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_together_is_known() {
        let rules = vec![RuleSection::default()];
        let webhooks = || WebhooksSection { secret_file: Some("f".into()), ..WebhooksSection::default() };
        let gateway = GatewaySection { url: Some("http://g".to_owned()), ..GatewaySection::default() };
        let check = |config: Config, expected: Option<Idle>| assert_eq!(config.idle(), expected);
        check(Config::default(), Some(Idle::Nothing));
        check(Config { rule: rules.clone(), ..Config::default() }, Some(Idle::NoWayIn));
        check(Config { webhooks: webhooks(), ..Config::default() }, Some(Idle::NoRules));
        check(Config { webhooks: webhooks(), rule: rules, ..Config::default() }, None);
        check(Config { gateway: gateway.clone(), ..Config::default() }, None);
        let observer = ObserverSection { enabled: false, ..ObserverSection::default() };
        check(Config { gateway, observer, ..Config::default() }, Some(Idle::Nothing));
    }

    #[test]
    fn a_secret_that_is_wrong_is_told_by_the_variable_that_holds_it() {
        for (variable, secret, secret_file) in [
            ("BRIDGE_WEBHOOK_SECRET: ", Some(Secret::from("abc".to_owned())), None),
            ("BRIDGE_WEBHOOK_SECRET_FILE: ", None, Some(PathBuf::from("/dev/null"))),
        ] {
            let webhooks = WebhooksSection { secret, secret_file, ..WebhooksSection::default() };
            let mut problems = Problems::default();
            <crate::TemporalEventBridge as kit::run::Daemon>::check(
                &Config { webhooks, ..Config::default() },
                &mut problems,
            );
            let lines = problems.lines(&well_known());
            assert!(lines.iter().any(|line| line.starts_with(variable)), "{variable}{lines:?}");
        }
    }
}
