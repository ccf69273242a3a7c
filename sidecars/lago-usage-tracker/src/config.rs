//! What can be set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use kit::client::ClientOptions;
use kit::config::{COMMON_WELL_KNOWN, Problems, ProcessSections, Section, WellKnown};
use kit::secret::Secret;
use kit_amqp::AmqpSourceSection;
use kit_delivery::config::{CircuitSection, GatewaySection, RetrySection, TimeoutSection, parse_url};
use kit_journal::JournalSection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Policy;
use crate::rules::Rules;

/// Variables known under names of their own.
pub fn well_known() -> Vec<WellKnown> {
    const OURS: [WellKnown; 10] = [
        WellKnown { env: "LAGO_API_URL", path: "lago.api_url" },
        WellKnown { env: "LAGO_API_KEY", path: "lago.api_key" },
        WellKnown { env: "LAGO_API_KEY_FILE", path: "lago.api_key_file" },
        WellKnown { env: "BRAIN_GATEWAY_URL", path: "gateway.url" },
        WellKnown { env: "AMQP_URL", path: "amqp_source.url" },
        WellKnown { env: "AMQP_URL_FILE", path: "amqp_source.url_file" },
        WellKnown { env: "USAGE_PRODUCER_TOKEN", path: "usage.producer_token" },
        WellKnown { env: "USAGE_PRODUCER_TOKEN_FILE", path: "usage.producer_token_file" },
        WellKnown { env: "USAGE_WEBHOOK_SECRET", path: "webhooks.secret" },
        WellKnown { env: "USAGE_WEBHOOK_SECRET_FILE", path: "webhooks.secret_file" },
    ];
    OURS.into_iter().chain(COMMON_WELL_KNOWN).chain(kit_journal::config::WELL_KNOWN).collect()
}

/// Configuration of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every daemon has: `listen`, `admin`, `log` and `stop`.
    pub process: ProcessSections,
    /// Who may report usage, and what is taken.
    pub usage: UsageSection,
    /// A RabbitMQ queue that usage is taken from as well: in Lago's shape, or as CloudEvents. Whoever may publish to it
    /// may report for everybody. None where `queue` is empty.
    pub amqp_source: AmqpSourceSection,
    /// Events of other daemons, and what they count as.
    pub webhooks: WebhooksSection,
    /// What is looked at before an event is sent.
    pub checks: ChecksSection,
    /// Where usage goes and how fast.
    pub lago: LagoSection,
    /// Many small events made few before they are sent.
    pub rollup: RollupSection,
    /// What Lago has counted beside what it has confirmed.
    pub reconcile: ReconcileSection,
    /// An event at an interval that is looked for in what Lago has counted.
    pub canary: CanarySection,
    /// Where `usage.drift` and other events of the daemon's own go; nowhere without a URL.
    pub gateway: GatewaySection,
    /// Where and how events are kept.
    pub journal: JournalSection,
}

/// Who may report usage, and what is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageSection {
    /// Token that producers show as bearer token, as they would show Lago its API key.
    pub producer_token: Option<Secret>,
    /// File with producers' tokens, one a line, so that one can replace another. After a token may follow, separated by
    /// spaces, whom its holder may report for: `customer:<external id>` (the subscriptions that Lago says are the
    /// customer's) and `subscription:<external id>`, nothing means everybody; and `name:<name>`, which keeps the
    /// `Idempotency-Key`s of several producers apart.
    pub producer_token_file: Option<PathBuf>,
    /// Largest body in bytes.
    pub body_limit_bytes: usize,
    /// Events in one request at most. Lago itself takes 100; larger batches are cut for it.
    pub batch_limit: usize,
    /// Pass other requests below `/api/v1/` on to Lago, with the key that the producer shows. They are answered 404
    /// otherwise.
    pub proxy: bool,
}

/// Events of other daemons, and what they count as: `POST /webhooks/events` takes CloudEvents that are signed as Standard
/// Webhooks says. Without a secret there is no such path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksSection {
    /// Standard Webhooks secret (`whsec_…`): the `gateway.signing_secret` of the daemon that sends.
    pub secret: Option<Secret>,
    /// File with secrets, one a line; what is signed with any of them is taken, so that one can replace another.
    pub secret_file: Option<PathBuf>,
    /// Seconds that the sender's clock may differ from ours. A request is signed anew for each attempt.
    pub tolerance_seconds: f64,
    /// What counts as usage. Each rule has `type` (of the event; a `*` at its end stands for any ending), `code` (of the
    /// metric), `subscription` or `customer`, and `properties`, a table. Their values are JSON pointers into the
    /// event's data, or `=` and a fixed text. In the environment a TOML array on one line:
    /// `[{type="lago.invoice.created", code="invoices", subscription="/invoice/subscriptions/0/external_id"}]`.
    pub rules: Vec<RuleSection>,
}

/// What one type of event counts as.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleSection {
    /// Type of the event, or its beginning and a `*`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Code of the billable metric.
    pub code: String,
    /// The external id of the subscription that is billed.
    pub subscription: Option<String>,
    /// The external id of the customer.
    pub customer: Option<String>,
    /// The properties of the usage event by name.
    pub properties: BTreeMap<String, String>,
}

impl Default for WebhooksSection {
    fn default() -> Self {
        Self { secret: None, secret_file: None, tolerance_seconds: 300.0, rules: Vec::new() }
    }
}

/// What is looked at before an event is sent: things that Lago takes with a 200 and never bills. Each is `park`
/// (taken, and parked with the reason), `reject` (422 at once, where the catalogue is known) or `pass` (sent all the same,
/// and counted).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChecksSection {
    /// Lago has no billable metric with the event's code.
    pub unknown_metric: Policy,
    /// The property that the metric counts is missing, or no number where it must be one.
    pub property: Policy,
    /// Lago has no active subscription with the event's id.
    pub no_subscription: Policy,
    /// The event names only its customer, who had several subscriptions at the event's time. `pass` is as `park`: Lago
    /// bills nobody for an event without a subscription. The same is true of `no_subscription` for such an event.
    pub ambiguous_subscription: Policy,
    /// The event is of a time before its subscription began, or in the future.
    pub time: Policy,
    /// The event is of a time before the current billing period. Lago bills it only as long as that period's invoice is
    /// a draft. v1.16 does not tell the period in its list of subscriptions: there it is asked for, where this is not
    /// `pass`, and nothing is rejected at once.
    pub late: Policy,
    /// Seconds that an event may lie in the future.
    pub future_seconds: f64,
    /// Seconds between two looks at Lago's metrics and subscriptions. It is looked at again anyway for an event that
    /// does not fit.
    pub refresh_seconds: f64,
}

impl Default for ChecksSection {
    fn default() -> Self {
        Self {
            unknown_metric: Policy::Park,
            property: Policy::Park,
            no_subscription: Policy::Park,
            ambiguous_subscription: Policy::Park,
            time: Policy::Park,
            late: Policy::Pass,
            future_seconds: 3_600.0,
            refresh_seconds: 300.0,
        }
    }
}

/// Many small events made few before they are sent: what is alike but for the number that its metric adds up becomes one
/// event with the exact sum. Not for metrics whose charges have a price for each event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollupSection {
    /// Codes of the metrics; each must be one that adds up a property (`sum_agg`).
    pub codes: BTreeSet<String>,
    /// Seconds that events are gathered.
    pub window_seconds: f64,
}

/// What Lago has counted (`current_usage`) beside what it has confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReconcileSection {
    /// Seconds between two comparisons; 0 means only when asked for.
    pub every_seconds: f64,
    /// Seconds that Lago may take to count what it has confirmed.
    pub settling_seconds: f64,
    /// Days after which what was counted of a subscription that has ended is forgotten.
    pub keep_days: f64,
}

/// An event at an interval that is looked for in what Lago has counted. Give it a subscription and a metric of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CanarySection {
    /// External id of its subscription; no canary without.
    pub subscription: Option<String>,
    /// Code of its metric.
    pub code: Option<String>,
    /// Properties of its events.
    pub properties: BTreeMap<String, String>,
    /// Seconds between two events.
    pub every_seconds: f64,
    /// Seconds after which an event that Lago has confirmed and not counted is told to the gateway.
    pub alarm_seconds: f64,
}

impl Default for RollupSection {
    fn default() -> Self {
        Self { codes: BTreeSet::new(), window_seconds: 60.0 }
    }
}

impl Default for ReconcileSection {
    fn default() -> Self {
        Self { every_seconds: 300.0, settling_seconds: 120.0, keep_days: 90.0 }
    }
}

impl Default for CanarySection {
    fn default() -> Self {
        Self { subscription: None, code: None, properties: BTreeMap::new(), every_seconds: 300.0, alarm_seconds: 900.0 }
    }
}

/// Where usage goes and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LagoSection {
    /// Lago's API, for example `http://lago-api:3000`.
    pub api_url: Option<String>,
    /// API key of the organisation.
    pub api_key: Option<Secret>,
    /// File with the API key.
    pub api_key_file: Option<PathBuf>,
    /// PEM file with further certificate authorities for `https`.
    pub ca_file: Option<PathBuf>,
    /// Events in one request to Lago at most; it takes 100.
    pub batch_size: usize,
    /// Seconds that the first event of a batch waits for others.
    pub linger_seconds: f64,
    /// Requests in flight at most. Lago's API has five threads by default, and kills them when they stall. After a start
    /// and after each outage one is, and one more with each round that gets through.
    pub concurrency: usize,
    /// Requests per second at most; 0 means no limit.
    pub rate_per_second: u32,
    /// Time limits of a request.
    pub timeout: TimeoutSection,
    /// Seconds before each further attempt with an event that Lago has answered about; after the last one it is
    /// parked. Each is varied by ±20 %. The default ends after three days.
    pub retry_schedule_seconds: Vec<f64>,
    /// When to stop trying for a while.
    pub circuit: CircuitSection,
}

impl LagoSection {
    /// How the client behaves that asks and sends.
    pub(crate) fn client(&self) -> ClientOptions {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
        ClientOptions {
            connect_timeout: seconds(self.timeout.connect_seconds),
            read_timeout: seconds(self.timeout.read_seconds),
            total_timeout: seconds(self.timeout.total_seconds),
            ca_file: self.ca_file.clone(),
            ..ClientOptions::default()
        }
    }

    /// The schedule, as the delivery engine takes it.
    pub(crate) fn retry(&self) -> RetrySection {
        RetrySection { schedule_seconds: self.retry_schedule_seconds.clone(), ..RetrySection::default() }
    }
}

impl Default for UsageSection {
    fn default() -> Self {
        Self {
            producer_token: None,
            producer_token_file: None,
            body_limit_bytes: 8 << 20,
            batch_limit: 10_000,
            proxy: false,
        }
    }
}

impl Default for LagoSection {
    fn default() -> Self {
        Self {
            api_url: None,
            api_key: None,
            api_key_file: None,
            ca_file: None,
            batch_size: 100,
            linger_seconds: 0.2,
            concurrency: 5,
            rate_per_second: 0,
            timeout: TimeoutSection { read_seconds: 30.0, total_seconds: 60.0, ..TimeoutSection::default() },
            retry_schedule_seconds: RetrySection::default().schedule_seconds,
            circuit: CircuitSection::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: ProcessSections::at_ports(8082, 9082),
            usage: UsageSection::default(),
            amqp_source: AmqpSourceSection::default(),
            webhooks: WebhooksSection::default(),
            checks: ChecksSection::default(),
            lago: LagoSection::default(),
            rollup: RollupSection::default(),
            reconcile: ReconcileSection::default(),
            canary: CanarySection::default(),
            gateway: GatewaySection::default(),
            journal: JournalSection {
                path: PathBuf::from("/var/lib/outrigger/lago-usage-tracker.db"),
                ..JournalSection::default()
            },
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
        self.usage.validate(problems);
        if self.amqp_source.is_set() {
            self.amqp_source.validate("amqp_source", problems);
        }
        self.amqp_source.validate_unset("amqp_source", problems);
        self.webhooks.validate(problems);
        self.checks.validate(problems);
        self.lago.validate(problems);
        self.rollup.validate(problems);
        self.reconcile.validate(problems);
        self.canary.validate(problems);
        if self.gateway.url.is_some() {
            self.gateway.validate("gateway", problems);
        }
    }
}

impl RollupSection {
    fn validate(&self, problems: &mut Problems) {
        if !(1.0..=3_600.0).contains(&self.window_seconds) {
            problems.add("rollup.window_seconds", "must be a number of seconds from 1 to an hour");
        }
    }
}

impl ReconcileSection {
    fn validate(&self, problems: &mut Problems) {
        if self.every_seconds != 0.0 && !(1.0..=86_400.0).contains(&self.every_seconds) {
            problems.add("reconcile.every_seconds", "must be 0, or a number of seconds from 1 to a day");
        }
        if !(0.0..=3_600.0).contains(&self.settling_seconds) {
            problems.add("reconcile.settling_seconds", "must be a number of seconds from 0 to an hour");
        }
        if !(1.0..=3_650.0).contains(&self.keep_days) {
            problems.add("reconcile.keep_days", "must be a number of days from 1 to 3650");
        }
    }
}

impl CanarySection {
    fn validate(&self, problems: &mut Problems) {
        if self.subscription.is_some() != self.code.is_some() {
            problems.add("canary.code", "must be set together with SIDECAR_CANARY__SUBSCRIPTION, or neither");
        }
        if !(1.0..=86_400.0).contains(&self.every_seconds) {
            problems.add("canary.every_seconds", "must be a number of seconds from 1 to a day");
        }
        if !(1.0..=604_800.0).contains(&self.alarm_seconds) {
            problems.add("canary.alarm_seconds", "must be a number of seconds from 1 to a week");
        }
    }
}

impl UsageSection {
    fn validate(&self, problems: &mut Problems) {
        if self.producer_token.is_none() && self.producer_token_file.is_none() {
            problems.add("usage.producer_token_file", "must be set: who has no token could bill anybody");
        }
        if !(1024..=64 << 20).contains(&self.body_limit_bytes) {
            problems.add("usage.body_limit_bytes", "must be between 1024 and 67108864");
        }
        if !(100..=100_000).contains(&self.batch_limit) {
            problems.add("usage.batch_limit", "must be between 100, which Lago takes, and 100000");
        }
    }
}

impl WebhooksSection {
    fn validate(&self, problems: &mut Problems) {
        if !(1.0..=86_400.0).contains(&self.tolerance_seconds) {
            problems.add("webhooks.tolerance_seconds", "must be a number of seconds from 1 to a day");
        }
        if !self.rules.is_empty() && self.secret.is_none() && self.secret_file.is_none() {
            problems.add("webhooks.secret_file", "must be set: the rules are for events that are signed with it");
        }
        if let Err(mistakes) = Rules::read(&self.rules) {
            mistakes.iter().for_each(|mistake| problems.add("webhooks.rules", mistake));
        }
    }
}

impl ChecksSection {
    fn validate(&self, problems: &mut Problems) {
        if !(0.0..=2_592_000.0).contains(&self.future_seconds) {
            problems.add("checks.future_seconds", "must be a number of seconds from 0 to 30 days");
        }
        if !(1.0..=86_400.0).contains(&self.refresh_seconds) {
            problems.add("checks.refresh_seconds", "must be a number of seconds from 1 to a day");
        }
    }
}

impl LagoSection {
    fn validate(&self, problems: &mut Problems) {
        match self.api_url.as_deref() {
            None | Some("") => {
                problems.add("lago.api_url", "must be set to Lago's API, for example http://lago-api:3000");
            }
            Some(url) => {
                if let Err(text) = parse_url(url) {
                    problems.add("lago.api_url", text);
                }
            }
        }
        if !(1..=100).contains(&self.batch_size) {
            problems.add("lago.batch_size", "must be between 1 and 100, which is what Lago takes");
        }
        if !(0.0..=60.0).contains(&self.linger_seconds) {
            problems.add("lago.linger_seconds", "must be a number of seconds from 0 to 60");
        }
        if !(1..=100).contains(&self.concurrency) {
            problems.add("lago.concurrency", "must be between 1 and 100");
        }
        // One that fails its whole batch is alone at the third attempt; before that nobody may be given up for it.
        if !(3..=1000).contains(&self.retry_schedule_seconds.len())
            || self.retry_schedule_seconds.iter().any(|seconds| !(0.0..=2_592_000.0).contains(seconds))
        {
            problems.add("lago.retry_schedule_seconds", "must be 3 to 1000 numbers of seconds from 0 to 30 days");
        }
        self.timeout.validate("lago.timeout", problems);
        self.circuit.validate("lago.circuit", problems);
    }
}
