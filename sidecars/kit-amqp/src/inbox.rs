//! A queue that a daemon takes messages from beside its other ways in: nothing, where none is configured.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kit::clock::{SharedClock, SystemClock};
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit::telemetry::Metrics;
use kit_delivery::start::configuration;
use kit_journal::Journal;

use crate::config::{AmqpSetupError, AmqpSourceSection};
use crate::metrics::AmqpMetrics;
use crate::source::{AmqpSource, Message, Taken};

/// Where the section stands in the configuration.
const PATH: &str = "amqp_source";

/// A way in.
#[derive(Clone, Copy, Debug)]
pub struct Inbox<'a> {
    /// The daemon's name: what the broker shows as the application.
    pub daemon: &'static str,
    /// Name of the connection in metrics and at the broker.
    pub name: &'static str,
    /// `[amqp_source]`.
    pub section: &'a AmqpSourceSection,
}

impl Inbox<'_> {
    /// Reports what of the section cannot be used.
    pub fn check(self, problems: &mut Problems) {
        if !self.section.is_set() {
            return;
        }
        for error in self.source(&AmqpMetrics::default(), Arc::new(SystemClock)).err().into_iter().flatten() {
            problems.add(&format!("{PATH}.{}", error.path), &error.message);
        }
    }

    /// Takes messages, if there is a queue to take them from, while the journal takes events.
    ///
    /// # Errors
    /// The section cannot be used.
    pub fn start<F>(self, shell: &mut Shell, metrics: &Metrics, journal: &Journal, take: F) -> Result<(), StartError>
    where
        F: Fn(Arc<Message>) -> BoxFuture<'static, Taken> + Send + Sync + 'static,
    {
        if !self.section.is_set() {
            return Ok(());
        }
        let metrics = metrics.shared(AmqpMetrics::register);
        let source = self.source(&metrics, journal.clock()).map_err(|errors| {
            configuration(errors.iter().map(|error| format!("{PATH}.{error}")).collect::<Vec<_>>().join("; "))
        })?;
        shell.spawn(&format!("{} queue", self.name), source.run(shell.stop_token(), journal.health(), take));
        Ok(())
    }

    fn source(self, metrics: &AmqpMetrics, clock: SharedClock) -> Result<AmqpSource, Vec<AmqpSetupError>> {
        AmqpSource::new(self.name, self.daemon, self.section, metrics, clock)
    }
}
