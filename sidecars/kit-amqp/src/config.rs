//! The sections `[amqp]` (where events are published) and `[amqp_source]` (what is consumed).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use kit::config::{Problems, texts};
use kit::secret::Secret;
use kit_delivery::DispatcherSettings;
use kit_delivery::config::{CircuitSection, Order, RetrySection, check_seconds};
use kit_delivery::format::Format;
use schemars::JsonSchema;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::{Address, Endpoint};
use crate::message::unknown_placeholder;

/// Bytes of a short string, the type of all names in AMQP 0-9-1.
pub(crate) const NAME_BYTES: usize = 255;
/// Messages of one window at most.
const WINDOW_MAX: usize = 1024;
/// Messages that lie here unacknowledged at most.
const PREFETCH_MAX: u16 = 256;

/// Where events are published: a RabbitMQ exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AmqpSection {
    /// Address of the broker, `amqp://host:5672/vhost` or `amqps://…`. May hold user and password, and several hosts of a
    /// cluster (`amqp://one:5672,two:5672/vhost`): one that does not answer is followed by the next. Without it nothing is
    /// published.
    pub url: Option<Secret>,
    /// File with the address.
    pub url_file: Option<PathBuf>,
    /// File with the user's name, in place of the one in the address (`guest` where there is none).
    pub username_file: Option<PathBuf>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// PEM file with further certificate authorities for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// Exchange that events are published to.
    pub exchange: String,
    /// Routing key template; `{type}`, `{source}` and `{tenant}` are replaced. In the last two, dots and what stands for
    /// other words in bindings are percent-encoded (`-` for an event without tenant).
    pub routing_key: String,
    /// Declare the exchange (topic, durable) and the queues below. Otherwise they are only looked for, and what is missing
    /// is said.
    pub declare: bool,
    /// Queues by name, each with the patterns it is bound with. In the environment `SIDECAR_AMQP__QUEUES__AUDIT=a.*,b.#` is
    /// the queue `audit`; a name with other than small letters, digits and `_` needs the file.
    #[serde(deserialize_with = "queues")]
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    pub queues: BTreeMap<String, Vec<String>>,
    /// Kind of the declared queues: `quorum` or `classic`. Classic queues confirm before a message is on the disk.
    pub queue_kind: QueueKind,
    /// Shape of the message: `cloudevents-structured`, `cloudevents-binary`, `envelope` or `raw`.
    pub format: Format,
    /// `subject`: events of one subject go one after the other; `none`: in parallel.
    pub order: Order,
    /// Messages published before all their confirms are waited for.
    pub window: usize,
    /// Windows on their way at the same time, each on a channel of its own.
    pub concurrency: usize,
    /// Windows started per second at most; 0 means no limit.
    pub rate_per_second: u32,
    /// Largest message in bytes; an event that makes a larger one is parked. Not more than the broker takes
    /// (`max_message_size`).
    pub message_limit_bytes: usize,
    /// Seconds to hand a window to the connection, and to wait where the broker blocks publishers.
    pub publish_timeout_seconds: f64,
    /// Seconds to wait for the confirms of a window. After that its outcome is unknown, and it is sent again.
    pub confirm_timeout_seconds: f64,
    /// Seconds between two heartbeats. A silent connection is given up after two.
    pub heartbeat_seconds: u16,
    /// Seconds to connect, name look-up, TLS and login included. Several hosts and addresses share them.
    pub connect_timeout_seconds: f64,
    /// When and how often to try again.
    pub retry: RetrySection,
    /// When to stop trying for a while.
    pub circuit: CircuitSection,
}

/// Kind of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// Replicated, and on the disk before it is confirmed.
    #[default]
    Quorum,
    /// On one node, and confirmed before it is on the disk.
    Classic,
}

impl QueueKind {
    /// The value of `x-queue-type`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// Queues by name. No default has them, so that a variable's text comes here as it is.
fn queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    let queues: BTreeMap<String, Patterns> = Deserialize::deserialize(deserializer)?;
    Ok(queues.into_iter().map(|(queue, Patterns(patterns))| (queue, patterns)).collect())
}

struct Patterns(Vec<String>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lists;

        impl<'de> Visitor<'de> for Lists {
            type Value = Patterns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of patterns, such as [\"lago.invoice.*\"], or with commas between them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Patterns, E> {
                texts(text).map(Patterns).ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Patterns, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(list)).map(Patterns)
            }
        }

        deserializer.deserialize_any(Lists)
    }
}

impl Default for AmqpSection {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            username_file: None,
            password_file: None,
            ca_file: None,
            exchange: "events".to_owned(),
            routing_key: "{type}".to_owned(),
            declare: true,
            queues: BTreeMap::new(),
            queue_kind: QueueKind::default(),
            format: Format::default(),
            order: Order::default(),
            window: 256,
            concurrency: 1,
            rate_per_second: 0,
            message_limit_bytes: 16 << 20,
            publish_timeout_seconds: 10.0,
            confirm_timeout_seconds: 10.0,
            heartbeat_seconds: 10,
            connect_timeout_seconds: 5.0,
            retry: RetrySection::default(),
            // A window is many events, and a broker is back at once where it is back.
            circuit: CircuitSection { failures: 2, probe_seconds: 0.5, probe_max_seconds: 2.0 },
        }
    }
}

impl AmqpSection {
    /// Whether events are to be published.
    pub fn is_set(&self) -> bool {
        self.url.is_some() || self.url_file.is_some()
    }

    /// Reports a section that is not set, although it says something: whoever wrote it takes it for working.
    pub fn validate_unset(&self, prefix: &str, problems: &mut Problems) {
        if !self.is_set() && *self != Self::default() {
            let text = "must be set to the broker's address, for example amqp://rabbitmq:5672: other settings of this \
                        section are, and nothing is published";
            problems.add(&format!("{prefix}.url"), text);
        }
    }

    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let mut problem = |name: &str, text: &str| problems.add(&format!("{prefix}.{name}"), text);
        if let Some(text) = name_mistake(&self.exchange) {
            problem("exchange", text);
        } else if self.exchange.is_empty() {
            let text = "must be the name of an exchange: the default one, which has none, takes no bindings and leads to \
                        the queue that is named as the routing key alone";
            problem("exchange", text);
        }
        if self.routing_key.is_empty() {
            problem("routing_key", "must not be empty; {type} is the event's type");
        } else if let Some(name) = unknown_placeholder(&self.routing_key) {
            problem("routing_key", &format!("{{{name}}} is not one of {{source}}, {{type}} and {{tenant}}"));
        }
        for (queue, patterns) in &self.queues {
            if queue.is_empty() || queue.len() > NAME_BYTES || queue.starts_with("amq.") {
                problem("queues", &format!("{queue:?} cannot be the name of a queue"));
            }
            if patterns.iter().any(|pattern| pattern.len() > NAME_BYTES) {
                problem("queues", &format!("{queue}: a pattern is longer than 255 bytes"));
            }
        }
        if !(1..=WINDOW_MAX).contains(&self.window) {
            problem("window", "must be between 1 and 1024");
        }
        if !(1..=16).contains(&self.concurrency) {
            problem("concurrency", "must be between 1 and 16");
        }
        if !(1024..=128 << 20).contains(&self.message_limit_bytes) {
            problem("message_limit_bytes", "must be between 1024 and 134217728");
        }
        if let Some(text) = heartbeat_mistake(self.heartbeat_seconds) {
            problem("heartbeat_seconds", text);
        }
        for (name, value) in [
            ("publish_timeout_seconds", self.publish_timeout_seconds),
            ("confirm_timeout_seconds", self.confirm_timeout_seconds),
            ("connect_timeout_seconds", self.connect_timeout_seconds),
        ] {
            check_seconds(&format!("{prefix}.{name}"), value, problems);
        }
        self.retry.validate(&format!("{prefix}.retry"), problems);
        self.circuit.validate(&format!("{prefix}.circuit"), problems);
    }

    pub(crate) fn endpoint(&self) -> Result<Endpoint, Vec<AmqpSetupError>> {
        Address {
            url: self.url.as_ref(),
            url_file: self.url_file.as_deref(),
            username_file: self.username_file.as_deref(),
            password_file: self.password_file.as_deref(),
            ca_file: self.ca_file.as_deref(),
        }
        .resolve(self.heartbeat_seconds, self.connect_timeout_seconds)
    }
}

impl From<&AmqpSection> for DispatcherSettings {
    fn from(section: &AmqpSection) -> Self {
        Self {
            ordered: section.order == Order::Subject,
            ..Self::unordered((section.concurrency, section.rate_per_second), &section.retry, &section.circuit)
        }
    }
}

/// A queue whose messages are taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AmqpSourceSection {
    /// Address of the broker, `amqp://host:5672/vhost` or `amqps://…`. May hold user and password, and several hosts of a
    /// cluster (`amqp://one:5672,two:5672/vhost`): one that does not answer is followed by the next.
    pub url: Option<Secret>,
    /// File with the address.
    pub url_file: Option<PathBuf>,
    /// File with the user's name, in place of the one in the address.
    pub username_file: Option<PathBuf>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// PEM file with further certificate authorities for `amqps`.
    pub ca_file: Option<PathBuf>,
    /// Queue whose messages are taken; none where it is empty. What cannot be taken goes to the queue `<queue>.dead`.
    pub queue: String,
    /// Declare both queues (durable); what the broker itself would throw away of the first one goes to the second one.
    /// Otherwise they are only looked for, and what is missing is said: then give the queue such dead letters by a policy
    /// (`dead-letter-exchange` empty, `dead-letter-routing-key` `<queue>.dead`).
    pub declare: bool,
    /// Exchange that the declared queue is bound to; none where it is empty.
    pub exchange: String,
    /// Patterns that the declared queue is bound with.
    pub bindings: Vec<String>,
    /// Kind of the declared queues: `quorum` or `classic`.
    pub queue_kind: QueueKind,
    /// Messages taken and not yet acknowledged at most.
    pub prefetch: u16,
    /// Largest message in bytes; a larger one goes to the queue of dead letters. One of more than 16 MiB, or with more than
    /// 128 KiB of headers, is not even read: the source stops before it until it is removed.
    pub message_limit_bytes: usize,
    /// Longest time in seconds before a message that could not be taken is looked at again.
    pub retry_max_seconds: f64,
    /// Seconds that a message which cannot be taken waits here before it goes back to the queue. Must be less than the
    /// broker's `consumer_timeout` (30 minutes by default), and as long as may be: a quorum queue counts how often a message
    /// came back, and gives it up after 20 times (RabbitMQ 4.0 and later).
    pub hold_max_seconds: f64,
    /// Seconds between two heartbeats.
    pub heartbeat_seconds: u16,
    /// Seconds to connect, name look-up, TLS and login included. Several hosts and addresses share them.
    pub connect_timeout_seconds: f64,
}

impl Default for AmqpSourceSection {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            username_file: None,
            password_file: None,
            ca_file: None,
            queue: String::new(),
            declare: true,
            exchange: String::new(),
            bindings: Vec::new(),
            queue_kind: QueueKind::default(),
            prefetch: PREFETCH_MAX,
            message_limit_bytes: 1 << 20,
            retry_max_seconds: 30.0,
            hold_max_seconds: 600.0,
            heartbeat_seconds: 10,
            connect_timeout_seconds: 5.0,
        }
    }
}

impl AmqpSourceSection {
    /// Whether anything is to be taken: an address alone may be there for others.
    pub fn is_set(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Reports a section without a queue that says more than where the broker is.
    pub fn validate_unset(&self, prefix: &str, problems: &mut Problems) {
        let address = Self {
            url: self.url.clone(),
            url_file: self.url_file.clone(),
            username_file: self.username_file.clone(),
            password_file: self.password_file.clone(),
            ca_file: self.ca_file.clone(),
            ..Self::default()
        };
        if !self.is_set() && *self != address {
            let text = "must be set to the name of a queue: other settings of this section are, and nothing is taken";
            problems.add(&format!("{prefix}.queue"), text);
        }
    }

    /// Checks the values; `prefix` is the section's path in the configuration.
    pub fn validate(&self, prefix: &str, problems: &mut Problems) {
        let mut problem = |name: &str, text: &str| problems.add(&format!("{prefix}.{name}"), text);
        // The queue of dead letters has a longer name.
        if self.queue.is_empty() || self.queue.len() > NAME_BYTES - 5 || self.queue.starts_with("amq.") {
            problem("queue", "must be set to the name of a queue, of at most 250 bytes");
        }
        if let Some(text) = name_mistake(&self.exchange).filter(|_| !self.exchange.is_empty()) {
            problem("exchange", text);
        }
        if !self.bindings.is_empty() && self.exchange.is_empty() {
            problem("bindings", "need exchange to be set");
        }
        if self.bindings.iter().any(|pattern| pattern.len() > NAME_BYTES) {
            problem("bindings", "must be patterns of at most 255 bytes");
        }
        if !(1..=PREFETCH_MAX).contains(&self.prefetch) {
            problem("prefetch", "must be between 1 and 256");
        }
        if !(1024..=16 << 20).contains(&self.message_limit_bytes) {
            problem("message_limit_bytes", "must be between 1024 and 16777216");
        }
        if let Some(text) = heartbeat_mistake(self.heartbeat_seconds) {
            problem("heartbeat_seconds", text);
        }
        for (name, value) in [
            ("retry_max_seconds", self.retry_max_seconds),
            ("hold_max_seconds", self.hold_max_seconds),
            ("connect_timeout_seconds", self.connect_timeout_seconds),
        ] {
            check_seconds(&format!("{prefix}.{name}"), value, problems);
        }
    }

    pub(crate) fn endpoint(&self) -> Result<Endpoint, Vec<AmqpSetupError>> {
        Address {
            url: self.url.as_ref(),
            url_file: self.url_file.as_deref(),
            username_file: self.username_file.as_deref(),
            password_file: self.password_file.as_deref(),
            ca_file: self.ca_file.as_deref(),
        }
        .resolve(self.heartbeat_seconds, self.connect_timeout_seconds)
    }
}

fn name_mistake(name: &str) -> Option<&'static str> {
    (name.len() > NAME_BYTES).then_some("must be a name of at most 255 bytes")
}

fn heartbeat_mistake(seconds: u16) -> Option<&'static str> {
    (!(1..=60).contains(&seconds)).then_some("must be between 1 and 60")
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct AmqpSetupError {
    /// Path of the setting within its section.
    pub path: &'static str,
    /// What is wrong and how to mend it.
    pub message: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_mistake_is_said_at_once() {
        let section = AmqpSection {
            routing_key: "{tipe}".to_owned(),
            window: 0,
            concurrency: 17,
            heartbeat_seconds: 0,
            confirm_timeout_seconds: -1.0,
            queues: BTreeMap::from([("amq.x".to_owned(), vec!["#".to_owned()])]),
            ..AmqpSection::default()
        };
        let mut problems = Problems::default();
        section.validate("amqp", &mut problems);
        let lines = problems.lines(&[]);
        assert_eq!(lines.len(), 6, "{lines:#?}");

        let section = AmqpSourceSection { prefetch: 300, ..AmqpSourceSection::default() };
        let mut problems = Problems::default();
        section.validate("amqp_source", &mut problems);
        assert_eq!(problems.lines(&[]).len(), 2);
    }

    #[test]
    fn a_section_that_says_something_and_does_nothing_is_reported() {
        let lines = |check: &dyn Fn(&mut Problems)| {
            let mut problems = Problems::default();
            check(&mut problems);
            problems.lines(&[])
        };
        let section = AmqpSection { window: 7, ..AmqpSection::default() };
        assert!(lines(&|problems| section.validate_unset("amqp", problems))[0].contains("SIDECAR_AMQP__URL"));
        assert!(lines(&|problems| AmqpSection::default().validate_unset("amqp", problems)).is_empty());
        let section = AmqpSection { exchange: String::new(), ..AmqpSection::default() };
        assert!(lines(&|problems| section.validate("amqp", problems))[0].contains("SIDECAR_AMQP__EXCHANGE"));

        let section = AmqpSourceSection { prefetch: 7, ..AmqpSourceSection::default() };
        assert!(
            lines(&|problems| section.validate_unset("amqp_source", problems))[0]
                .contains("SIDECAR_AMQP_SOURCE__QUEUE")
        );
        // The address may be there for others.
        let url = Some(Secret::from("amqp://mq".to_owned()));
        let section = AmqpSourceSection { url, ..AmqpSourceSection::default() };
        assert!(lines(&|problems| section.validate_unset("amqp_source", problems)).is_empty());
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        amqp: AmqpSection,
    }

    impl kit::config::Section for Config {
        fn validate(&self, problems: &mut Problems) {
            self.amqp.validate("amqp", problems);
        }
    }

    #[test]
    fn queues_come_from_the_environment_too() {
        let read = |env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            kit::config::read::<Config>(&kit::config::Source { env, ..kit::config::Source::default() })
        };
        let (config, lines) = read(&[
            ("SIDECAR_AMQP__QUEUES__AUDIT", "lago.invoice.*, lago.fee.#"),
            ("SIDECAR_AMQP__QUEUES__ALL", r##"["#"]"##),
        ]);
        assert!(lines.is_empty(), "{lines:?}");
        let queue = |name: &str, patterns: &[&str]| {
            (name.to_owned(), patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>())
        };
        let queues = BTreeMap::from([queue("all", &["#"]), queue("audit", &["lago.invoice.*", "lago.fee.#"])]);
        assert_eq!(config.amqp.queues, queues);
        for wrong in ["[", "[1]"] {
            let (_, lines) = read(&[("SIDECAR_AMQP__QUEUES__AUDIT", wrong)]);
            assert!(lines[0].starts_with("SIDECAR_AMQP__QUEUES__AUDIT: "), "{lines:?}");
            assert!(lines[0].ends_with("or with commas between them"), "{lines:?}");
        }
    }

    #[test]
    fn credentials_come_from_one_place() {
        let section = AmqpSection {
            url: Some(Secret::from("amqp://user:topsecret@mq".to_owned())),
            password_file: Some("/nonexistent/password".into()),
            ..AmqpSection::default()
        };
        let errors = section.endpoint().unwrap_err();
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("/nonexistent/password"), "{}", errors[0]);

        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "other\n").unwrap();
        let both = AmqpSection { password_file: Some(file.clone()), ..section };
        assert!(both.endpoint().unwrap_err()[0].message.contains("keep one"));
        let url = Some(Secret::from("amqp://mq".to_owned()));
        let endpoint = AmqpSection { url, ..both }.endpoint().unwrap();
        assert_eq!((endpoint.username.as_str(), endpoint.password.expose()), ("guest", "other"));
        assert!(!format!("{endpoint:?}").contains("other"));
    }
}
